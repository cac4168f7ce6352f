//! What can be wrong with a config.json.

use std::{io, path::PathBuf};

/// Why a config.json, or the model table of a recipe, is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(
        "{path}: cannot read the model's configuration: {error}; a model folder has a config.json beside its *.safetensors",
        path = .path.display()
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// What is wrong inside a file.
    #[error("{path}: {error}", path = .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: Box<ConfigError>,
    },
    /// Not JSON, or cut off.
    #[error("not valid JSON: {0}; is the file whole?")]
    Json(String),
    /// JSON, but not an object.
    #[error("expected a JSON object of keys and values, found {found}")]
    NotAnObject {
        /// The value's beginning.
        found: String,
    },
    /// A key is not there.
    #[error("`{key}` is missing; {family} needs {expected}")]
    Missing {
        /// The key.
        key: String,
        /// `model_type` or the table that needs it.
        family: String,
        /// What the key would hold.
        expected: String,
    },
    /// Several keys are not there.
    #[error("{} are missing; {family} needs them all. Is this the whole file?", list(.keys))]
    MissingSeveral {
        /// The keys.
        keys: Vec<String>,
        /// `model_type`.
        family: String,
    },
    /// A family that is known and not supported.
    #[error("`model_type` is {found}, which is not supported: {missing}. Supported: {supported}")]
    Family {
        /// The value.
        found: String,
        /// What the family has that no supported one has.
        missing: &'static str,
        /// What is supported.
        supported: &'static str,
    },
    /// A value that no model can have.
    #[error("`{key}` is {found}, expected {expected}")]
    Invalid {
        /// The key.
        key: String,
        /// The value's beginning.
        found: String,
        /// What would be right.
        expected: String,
    },
    /// A value that another program may know.
    #[error("`{key}` is {found}, which is not supported; supported: {supported}")]
    Unsupported {
        /// The key.
        key: String,
        /// The value's beginning.
        found: String,
        /// What is supported.
        supported: String,
    },
    /// Two keys say different things.
    #[error("`{key}` is {found}, but `{other}` is {other_found}: remove the wrong one")]
    Conflict {
        /// One key.
        key: String,
        /// Its value.
        found: String,
        /// The other.
        other: String,
        /// Its value.
        other_found: String,
    },
    /// All sizes are possible alone, not together.
    #[error("the sizes together make {what}, more than the {limit} that a model may have; is a size mistyped?")]
    TooLarge {
        /// What there is too much of, with its number.
        what: String,
        /// The limit.
        limit: u64,
    },
    /// A key that no supported model has, in a recipe.
    #[error("`{key}` is not a key of a {family} model{}", did_you_mean(.nearest.as_deref()))]
    UnknownKey {
        /// The key.
        key: String,
        /// `model_type`.
        family: &'static str,
        /// A key that looks like it.
        nearest: Option<String>,
    },
}

fn did_you_mean(key: Option<&str>) -> String {
    key.map_or_else(String::new, |k| format!("; did you mean `{k}`?"))
}

fn list(keys: &[String]) -> String {
    keys.iter().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ")
}
