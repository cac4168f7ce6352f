//! What can be wrong with a recipe.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::key;

/// What is wrong with a recipe, where, and what to try.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The file cannot be read.
    #[error("{path}: cannot read the recipe")]
    Read {
        /// The recipe.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not TOML, or a value of another type, or a key missing.
    #[error("{path}:{line}: {message}")]
    Syntax {
        /// The recipe.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What was found and expected.
        message: String,
    },
    /// A key that no recipe has.
    #[error("{path}:{line}: unknown key `{key}`{}; here a recipe may have {}", did_you_mean(.suggestion.as_deref()), .expected.join(", "))]
    UnknownKey {
        /// The recipe.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// As written.
        key: String,
        /// The nearest key that would be right here.
        suggestion: Option<String>,
        /// All keys that would be right here.
        expected: Vec<String>,
    },
    /// `--set key=value` does not fit.
    #[error("--set {key}: {message}")]
    Override {
        /// As given.
        key: String,
        /// What is wrong and what was expected.
        message: String,
    },
    /// A value that makes no sense, alone or with others.
    #[error("{}: `{key}` is {found}; expected {expected}", place(.path, *.line))]
    Invalid {
        /// The recipe.
        path: PathBuf,
        /// Where the key stands, from 1, if it stands in the file.
        line: Option<usize>,
        /// Dotted; elements of lists by number.
        key: String,
        /// As found.
        found: String,
        /// What would be right.
        expected: String,
    },
}

fn did_you_mean(suggestion: Option<&str>) -> String {
    suggestion.map(|s| format!(", did you mean `{s}`?")).unwrap_or_default()
}

fn place(path: &Path, line: Option<usize>) -> String {
    match line {
        Some(line) => format!("{}:{line}", path.display()),
        None => path.display().to_string(),
    }
}

impl RecipeError {
    pub(super) fn from_toml(path: &Path, text: &str, error: &toml::de::Error) -> Self {
        let line = error.span().map_or(1, |span| key::line(text, span.start));
        match key::unknown_field(error.message()) {
            Some((key, expected)) => Self::UnknownKey {
                path: path.into(),
                line,
                suggestion: super::nearest(&key, expected.iter().map(String::as_str)).map(Into::into),
                key,
                expected,
            },
            None => Self::Syntax { path: path.into(), line, message: key::explain(error.message()) },
        }
    }

    /// Adds the line at which the key of an [`RecipeError::Invalid`] stands.
    pub(super) fn at_line_of(mut self, text: &str) -> Self {
        if let Self::Invalid { key, line, .. } = &mut self {
            *line = key::line_of(text, key);
        }
        self
    }
}
