//! What can be wrong with weights on disk.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{StoredDtype, printable};

/// Why a checkpoint cannot be read or written. Every message starts with the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The system cannot open or map the file.
    #[error("{path}: cannot read the checkpoint: {error}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The folder has no weights.
    #[error("{path}: no model.safetensors and no model.safetensors.index.json here{hint}", path = .path.display())]
    NoWeights {
        /// The folder.
        path: PathBuf,
        /// What is there instead.
        hint: &'static str,
    },
    /// Not the format, or a broken header.
    #[error("{path}: not a valid safetensors file: {what}", path = .path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Bytes are lacking at the end.
    #[error(
        "{path}: the file is cut off: it has {found} bytes, its header describes {expected}; fetch or copy it again",
        path = .path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes there.
        found: u64,
        /// Bytes that should be there.
        expected: u64,
    },
    /// A tensor's entry in the header makes no sense.
    #[error("{path}: `{}` {what}; the file is damaged", printable(.name), path = .path.display())]
    Layout {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// A name twice.
    #[error(
        "{path}: `{}` is here a second time (first in {other}); which one counts is not defined",
        printable(.name),
        path = .path.display(),
        other = .other.display()
    )]
    Duplicate {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The file with the first.
        other: PathBuf,
    },
    /// The index of shards is broken.
    #[error("{path}: not a valid index of shards: {what}", path = .path.display())]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The index points outside of its folder.
    #[error(
        "{path}: the index names the file {:?}, expected the plain name of a .safetensors file in the same folder; \
         a file that reaches elsewhere is not to be trusted",
        printable(.shard),
        path = .path.display()
    )]
    ShardName {
        /// The index.
        path: PathBuf,
        /// The name.
        shard: String,
    },
    /// The index and a shard disagree.
    #[error(
        "{path}: has no tensor `{}`, which {index} places here; is it another model's shard?",
        printable(.name),
        path = .path.display(),
        index = .index.display()
    )]
    NotInShard {
        /// The shard.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The index.
        index: PathBuf,
    },
    /// A tensor is not there.
    #[error(
        "{path}: has no tensor `{}`, which config.json asks for; is it another model's?",
        printable(.name),
        path = .path.display()
    )]
    Missing {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor of another size.
    #[error(
        "{path}: `{}` is {found:?}, config.json asks {expected:?}; is it another model's?",
        printable(.name),
        path = .path.display()
    )]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that follows from config.json.
        expected: Vec<usize>,
    },
    /// A tensor of another number format.
    #[error(
        "{path}: `{}` is stored as {found}, expected {expected}{}",
        printable(.name), dtype_hint(*.found),
        path = .path.display()
    )]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its format.
        found: StoredDtype,
        /// Formats that would do.
        expected: &'static str,
    },
    /// FP8 without scales.
    #[error(
        "{path}: `{}` is stored as F8_E4M3, but no file of the checkpoint has its scales, `{}`; is a shard missing?",
        printable(.name), printable(.scales),
        path = .path.display()
    )]
    NoScales {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The tensor that would hold the scales.
        scales: String,
    },
    /// Scales of another size than the blocks of their weight ask.
    #[error(
        "{path}: `{}` is {found:?}, expected {expected:?}, a scale for each block of 128 × 128 of its weight",
        printable(.name),
        path = .path.display()
    )]
    ScaleShape {
        /// The file.
        path: PathBuf,
        /// The tensor of scales.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that follows from the weight.
        expected: Vec<usize>,
    },
    /// A value that does not fit what it is read as.
    #[error("{path}: `{}` has a value of {found}, expected {expected}", printable(.name), path = .path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The value.
        found: String,
        /// What would be right.
        expected: &'static str,
    },
    /// The system cannot write.
    #[error("{path}: cannot save: {error}; what was there before is unchanged", path = .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
}

impl CheckpointError {
    pub(super) fn no_weights(dir: &Path) -> Self {
        let has = |extension: &str| {
            std::fs::read_dir(dir).is_ok_and(|entries| {
                entries.flatten().any(|e| e.path().extension().is_some_and(|x| x.eq_ignore_ascii_case(extension)))
            })
        };
        let hint = if !dir.is_dir() {
            ": there is no such folder"
        } else if has("safetensors") {
            "; shards need their index, fetch model.safetensors.index.json too"
        } else if has("bin") || has("pt") || has("pth") {
            "; PyTorch pickle files can run programs and are never read, take the safetensors version of the model"
        } else if has("gguf") {
            "; GGUF files are not supported yet, take the safetensors version of the model"
        } else {
            "; a model folder has config.json and *.safetensors"
        };
        Self::NoWeights { path: dir.into(), hint }
    }
}

fn dtype_hint(found: StoredDtype) -> &'static str {
    match found {
        StoredDtype::F8_E5M2
        | StoredDtype::F8_E4M3FNUZ
        | StoredDtype::F8_E5M2FNUZ
        | StoredDtype::I8
        | StoredDtype::U8 => {
            "; this quantisation is not supported, take the BF16 or the block-FP8 version of the model"
        }
        _ => "; is it another model's?",
    }
}
