//! One source of documents.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// An entry of `data.sources` or `data.heldout`: files ([`Source::path`]) or a generator ([`Source::generator`]).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// A file, a folder (all `.txt` and `.jsonl` files in it, with or without `.gz` or `.xz`), or a pattern (`*` within a
    /// folder, `**` across folders). Exactly one of `path` and `generator`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Documents made by a program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generator: Option<GeneratorKind>,
    /// Documents that the generator makes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// Seed of the generator; without it the recipe's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// How often an epoch has each document; a fraction takes that share of them, chosen by a hash of their text.
    #[serde(default = "one")]
    pub repeat: f64,
    /// What the files hold.
    #[serde(default)]
    pub format: Format,
    /// Text files: a line that is exactly this ends a document. Without it a whole file is one document.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub separator: Option<String>,
    /// Text files: a longer document is cut into pieces of about this many bytes, at an empty line or else at the end of a line.
    #[serde(default = "document_bytes")]
    pub document_bytes: usize,
    /// JSON lines: a document's text, with `{field}` for a field of the line. `{field|before:X}` is what stands before the first
    /// X in it, `{field|after:X}` what stands after, both without surrounding blanks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// JSON lines: the user's message, written as `template`; goes with `completion`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// JSON lines: the reply, written as `template`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion: Option<String>,
    /// JSON lines: the field with a list of `{"role", "content"}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<String>,
    /// Text between these two marks is removed from fields, marks included: `[["<<", ">>"]]` for GSM8K.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<[String; 2]>,
    /// Which tokens of a conversation are targets.
    #[serde(default)]
    pub train_on: TrainOn,
}

/// Documents made by a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GeneratorKind {
    /// Additions and subtractions with their steps, [`crate::data::arithmetic::Arithmetic`].
    Arithmetic,
    /// Questions about the model itself and beyond what it can do, [`crate::data::identity::Identity`].
    Identity,
}

/// What a file holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// By the name: `.jsonl`, `.ndjson` (before `.gz`, `.xz`) are JSON lines, all others text.
    #[default]
    Auto,
    /// UTF-8 text.
    Text,
    /// A JSON object per line.
    Jsonl,
}

/// Which tokens of a conversation are targets. Of plain text, all are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrainOn {
    /// All of it.
    #[default]
    All,
    /// What the assistant says.
    Replies,
}

fn one() -> f64 {
    1.0
}

fn document_bytes() -> usize {
    16 << 10
}

impl Source {
    /// Plain text or JSON lines at `path`, everything else by default.
    pub fn files(path: impl Into<PathBuf>) -> Self {
        Self { path: Some(path.into().to_string_lossy().into_owned()), ..Self::empty() }
    }

    /// `count` documents of a generator.
    pub fn generated(generator: GeneratorKind, count: u64, seed: u64) -> Self {
        Self { generator: Some(generator), count: Some(count), seed: Some(seed), ..Self::empty() }
    }

    fn empty() -> Self {
        Self {
            path: None,
            generator: None,
            count: None,
            seed: None,
            repeat: one(),
            format: Format::Auto,
            separator: None,
            document_bytes: document_bytes(),
            template: None,
            prompt: None,
            completion: None,
            messages: None,
            remove: Vec::new(),
            train_on: TrainOn::All,
        }
    }
}
