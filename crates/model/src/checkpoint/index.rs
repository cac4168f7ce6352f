//! `model.safetensors.index.json`: which shard holds which tensor.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{self, Read},
    path::Path,
};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};

use super::{CheckpointError, printable};

/// DeepSeek-V3's takes 9 MB.
const MAX_INDEX_BYTES: u64 = 100_000_000;
/// DeepSeek-V3 has 163. Each is mapped, and maps are few.
pub(crate) const MAX_SHARDS: usize = 10_000;

#[derive(Deserialize)]
pub(super) struct Index {
    /// Tensor to plain file name, both checked.
    #[serde(deserialize_with = "without_duplicates")]
    pub weight_map: BTreeMap<String, String>,
}

impl Index {
    pub(super) fn read(path: &Path) -> Result<Self, CheckpointError> {
        let broken = |what: String| CheckpointError::Index { path: path.into(), what };
        let bytes = read(path).map_err(|error| CheckpointError::Read { path: path.into(), error })?;
        if bytes.len() as u64 > MAX_INDEX_BYTES {
            return Err(broken(format!("it has more than {MAX_INDEX_BYTES} bytes")));
        }
        let index: Self = serde_json::from_slice(&bytes).map_err(|e| broken(e.to_string()))?;
        if let Some(shard) = index.weight_map.values().find(|shard| !is_plain_name(shard)) {
            return Err(CheckpointError::ShardName { path: path.into(), shard: shard.clone() });
        }
        let shards = index.shards().len();
        if shards == 0 {
            return Err(broken("it lists no tensors".into()));
        }
        if shards > MAX_SHARDS {
            return Err(broken(format!("it lists {shards} files, more than {MAX_SHARDS}")));
        }
        Ok(index)
    }

    /// The files, each once, sorted.
    pub(super) fn shards(&self) -> Vec<&str> {
        let mut shards: Vec<&str> = self.weight_map.values().map(String::as_str).collect();
        shards.sort_unstable();
        shards.dedup();
        shards
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_INDEX_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A file of the same folder on every system: no separators of any, no drive, no parent, no hidden or empty name.
fn is_plain_name(name: &str) -> bool {
    name.len() <= 255
        && name.ends_with(".safetensors")
        && !name.starts_with('.')
        && !name.chars().any(|c| c.is_control() || matches!(c, '/' | '\\' | ':'))
}

fn without_duplicates<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    struct Entries;
    impl<'de> Visitor<'de> for Entries {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a table from tensor to file name")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut entries = BTreeMap::new();
            while let Some((name, file)) = map.next_entry::<String, String>()? {
                let shown = printable(&name).into_owned();
                if entries.insert(name, file).is_some() {
                    return Err(A::Error::custom(format!("tensor `{shown}` is listed twice")));
                }
            }
            Ok(entries)
        }
    }
    deserializer.deserialize_map(Entries)
}
