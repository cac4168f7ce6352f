//! Why a conversion does not come about.

use std::{io, path::PathBuf};

use crate::{checkpoint::CheckpointError, config::ConfigError};

/// Why a checkpoint is not converted. Nothing stands under the target's name then that was not there before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// The weights that are read, or the file that is written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// config.json
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file that is read.
    #[error("{path}: cannot read the file: {error}", path = .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// A file or folder that is written.
    #[error("{path}: cannot write: {error}", path = .path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// There is something of the target's name.
    #[error("{path}: is there already; choose another name, or replace it with --force", path = .path.display())]
    Exists {
        /// The target.
        path: PathBuf,
    },
    /// It is to be replaced, and is more than a model.
    #[error(
        "{path}: is not a model folder and will not be replaced: expected a folder with a config.json and no folders in it; remove it yourself if you mean it",
        path = .path.display()
    )]
    NotAModel {
        /// The target.
        path: PathBuf,
    },
    /// The source would be replaced.
    #[error("{path}: is the source itself; choose another name", path = .path.display())]
    Source {
        /// The target.
        path: PathBuf,
    },
    /// Another process writes there.
    #[error("{path}: another conversion to the same name is running; wait for it or stop it", path = .path.display())]
    Busy {
        /// The hidden folder.
        path: PathBuf,
    },
    /// The disk is too small.
    #[error(
        "{path}: the disk has {available} bytes left, {needed} are needed; free some, or convert to another disk",
        path = .path.display()
    )]
    NoSpace {
        /// Where the files would be.
        path: PathBuf,
        /// Bytes still to be written.
        needed: u64,
        /// Bytes that the system says can be.
        available: u64,
    },
    /// More files than a reader takes.
    #[error("the shards would be {shards} files, more than {limit}; choose a larger --shard-size")]
    TooManyShards {
        /// How many.
        shards: usize,
        /// How many may be.
        limit: usize,
    },
    /// FP8 with one kind of scales is to become FP8 with another.
    #[error(
        "{path}: is FP8 with another kind of scales already, and quantising twice loses twice; start from the BF16 weights, or leave --scale out",
        path = .path.display()
    )]
    Requantise {
        /// The source.
        path: PathBuf,
    },
    /// No model file of llama2.c.
    #[error("{path}: not a model file of llama2.c, version 0: {what}", path = .path.display())]
    Llama2c {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Stopped from outside.
    #[error("interrupted; what is done so far is kept in {path}, and the same command goes on from there", path = .path.display())]
    Interrupted {
        /// The hidden folder.
        path: PathBuf,
    },
}
