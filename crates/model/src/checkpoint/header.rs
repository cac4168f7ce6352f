//! The header of a safetensors file, from hostile bytes.

use std::{collections::BTreeMap, fmt, ops::Range, path::Path};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, SeqAccess, Visitor},
};

use super::{CheckpointError, StoredDtype, printable};

/// As in the reference implementation; all of DeepSeek-V3's shards together need 13 MB.
const MAX_HEADER_BYTES: usize = 100_000_000;
/// Published weights have at most 5 dimensions.
const MAX_RANK: usize = 8;

/// A tensor's place.
pub(super) struct Tensor {
    pub name: String,
    pub dtype: StoredDtype,
    pub shape: Vec<usize>,
    /// In the whole file; checked to lie within it and to be as long as format and shape ask.
    pub range: Range<usize>,
}

/// A checked header.
pub(super) struct Header {
    /// By place in the file.
    pub tensors: Vec<Tensor>,
    pub metadata: BTreeMap<String, String>,
}

/// Parses and checks the header of `file`, which is the whole file. `path` is for messages.
pub(super) fn parse(path: &Path, file: &[u8]) -> Result<Header, CheckpointError> {
    let broken = |what: String| CheckpointError::Header { path: path.into(), what };
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(broken(format!("it has {} bytes, the header's length alone takes 8", file.len())));
    };
    let length = u64::from_le_bytes(*length);
    let json_length = usize::try_from(length)
        .ok()
        .filter(|&n| n <= MAX_HEADER_BYTES)
        .ok_or_else(|| broken(format!("its header would take {length} bytes, more than {MAX_HEADER_BYTES}")))?;
    let Some((json, data)) = rest.split_at_checked(json_length) else {
        let expected = length.saturating_add(8);
        return Err(CheckpointError::Truncated { path: path.into(), found: file.len() as u64, expected });
    };
    // A copy: text that is checked to be UTF-8 must not change afterwards, and a mapped file might.
    let json = json.to_vec();
    if json.first() != Some(&b'{') {
        return Err(broken("its header does not start with `{`".into()));
    }
    let raw: RawHeader = serde_json::from_slice(&json).map_err(|e| broken(format!("its header is wrong: {e}")))?;
    drop(json);

    let data_start = 8 + json_length;
    let mut tensors = Vec::with_capacity(raw.tensors.len());
    for (name, raw) in raw.tensors {
        let (begin, end) = match place(&raw) {
            Ok(place) => place,
            Err(what) => return Err(CheckpointError::Layout { path: path.into(), name, what }),
        };
        if end > data.len() as u64 {
            let (found, expected) = (file.len() as u64, end.saturating_add(data_start as u64));
            return Err(CheckpointError::Truncated { path: path.into(), found, expected });
        }
        let range = data_start + begin as usize..data_start + end as usize; // Both are at most `data.len()`.
        tensors.push(Tensor { name, dtype: raw.dtype, shape: raw.shape.0, range });
    }
    // Empty tensors share their place with the next one, so the end decides after the beginning.
    tensors.sort_by(|a, b| (a.range.start, a.range.end, &a.name).cmp(&(b.range.start, b.range.end, &b.name)));

    let mut end = data_start;
    for t in &tensors {
        let layout = |what: String| CheckpointError::Layout { path: path.into(), name: t.name.clone(), what };
        if t.range.start < end {
            return Err(layout(format!("shares {} bytes with the tensor before it", end - t.range.start)));
        }
        if t.range.start > end {
            return Err(layout(format!(
                "has {} unused bytes before it, where something may hide",
                t.range.start - end
            )));
        }
        end = t.range.end;
    }
    if end != file.len() {
        return Err(broken(format!("{} unused bytes at its end, where something may hide", file.len() - end)));
    }
    no_duplicates(path, &tensors)?;
    Ok(Header { tensors, metadata: raw.metadata })
}

/// Begin and end of the tensor after the header, as far apart as format and shape ask; or what is wrong with its entry.
fn place(raw: &RawTensor) -> Result<(u64, u64), String> {
    let (shape, (begin, end)) = (&raw.shape.0, raw.data_offsets);
    let found = end.checked_sub(begin).ok_or_else(|| format!("ends at {end}, before its beginning {begin}"))?;
    let bits = shape.iter().try_fold(raw.dtype.bitsize() as u64, |n, &d| n.checked_mul(d as u64));
    let bits = bits.ok_or_else(|| format!("has the impossible shape {shape:?}"))?;
    if !bits.is_multiple_of(8) {
        return Err(format!("of shape {shape:?} in {} does not fill whole bytes", raw.dtype));
    }
    if found != bits / 8 {
        return Err(format!("has {found} bytes, {shape:?} in {} takes {}", raw.dtype, bits / 8));
    }
    Ok((begin, end))
}

fn no_duplicates(path: &Path, tensors: &[Tensor]) -> Result<(), CheckpointError> {
    let mut names: Vec<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(CheckpointError::Duplicate { path: path.into(), name: pair[0].into(), other: path.into() }),
        None => Ok(()),
    }
}

/// The header as written. Names may repeat.
#[derive(Default)]
struct RawHeader {
    tensors: Vec<(String, RawTensor)>,
    metadata: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct RawTensor {
    dtype: StoredDtype,
    shape: Shape,
    data_offsets: (u64, u64),
}

/// At most [`MAX_RANK`] sizes, so that a header of brackets and ones takes no more memory than others.
struct Shape(Vec<usize>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Sizes;
        impl<'de> Visitor<'de> for Sizes {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MAX_RANK} sizes")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                let mut sizes = Vec::new();
                while let Some(size) = seq.next_element()? {
                    if sizes.len() == MAX_RANK {
                        return Err(A::Error::custom(format!("a shape of more than {MAX_RANK} dimensions")));
                    }
                    sizes.push(size);
                }
                Ok(Shape(sizes))
            }
        }
        deserializer.deserialize_seq(Sizes)
    }
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut header = RawHeader::default();
                let mut has_metadata = false;
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        if std::mem::replace(&mut has_metadata, true) {
                            return Err(A::Error::custom("`__metadata__` is there twice"));
                        }
                        header.metadata = map.next_value()?;
                    } else {
                        let tensor = map
                            .next_value()
                            .map_err(|e| A::Error::custom(format!("tensor `{}`: {e}", printable(&name))))?;
                        header.tensors.push((name, tensor));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
