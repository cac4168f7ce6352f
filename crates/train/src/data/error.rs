//! What can be wrong with training data.

use std::{io, path::PathBuf};

/// What is wrong with training data, where, and what to try.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file or folder cannot be read.
    #[error("{path}: cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("{path}: cannot be written; nothing was left there")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A source without files.
    #[error(
        "{path}: no such file; expected a file, a folder with .txt or .jsonl files, or a pattern that matches some"
    )]
    NoFiles {
        /// File, folder or pattern.
        path: PathBuf,
    },
    /// Not text.
    #[error(
        "{path}: byte {byte} is not UTF-8; expected text in UTF-8 (of a compressed file, bytes count after unpacking)"
    )]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Offset of the first wrong byte in the unpacked file, from 0.
        byte: u64,
    },
    /// Not what its name says, damaged, or cut short.
    #[error("{path}: {message}")]
    Unpack {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A line of a JSON lines file is not what the recipe says.
    #[error("{path}:{line}: {message}")]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: u64,
        /// What was found and expected.
        message: String,
    },
    /// A template of the recipe is no template.
    #[error("template {template:?}: {message}")]
    Template {
        /// As written.
        template: String,
        /// What is wrong.
        message: String,
    },
    /// The tokenizer refuses a document.
    #[error("{origin}: cannot be turned into tokens: {message}")]
    Encode {
        /// File and line, or generator.
        origin: String,
        /// What the tokenizer says.
        message: String,
    },
    /// Not one of our token files, damaged, or of other content.
    #[error("{path}: not a usable token file: {message}; delete it, and it is made again")]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The token tensor does not fit the recipe.
    #[error("{path}: {message}")]
    Tensor {
        /// The safetensors file.
        path: PathBuf,
        /// What was found and expected.
        message: String,
    },
    /// Nothing is left to train on, or to evaluate on.
    #[error("{what} without a single token to predict; add sources or documents, or change data.heldout_fraction")]
    Empty {
        /// Which part of the data.
        what: &'static str,
    },
}
