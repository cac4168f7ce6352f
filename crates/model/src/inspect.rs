//! What a model is, for people who have not loaded it: from its config, its folder and the headers of its weights.
//!
//! Nothing here fails on a strange model: what is strange is said, as a [`Remark`].

mod files;
mod licence;
mod remark;
mod unusual;

pub use files::{FileKind, Folder, ModelFile, sha256};
pub use licence::Licence;
pub use remark::{Remark, Severity};
pub use unusual::TokenizerFacts;

use std::{collections::BTreeMap, path::Path};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    Config,
    account::WeightFormat,
    checkpoint::Checkpoint,
    config::{ConfigError, text_of, translate_inference_keys},
};

/// A config of any kind that we can make sense of.
#[derive(Clone, Debug)]
pub struct Described {
    /// The sizes, with the quantisation left out if it is not supported.
    pub config: Config,
    /// What the reading rests on, for files in other keys than those of config.json.
    pub assumptions: Vec<String>,
    /// Why a checkpoint of this config cannot be loaded, if so.
    pub not_loadable: Option<String>,
}

/// Reads a config.json, also one whose quantisation is not supported, or a config of DeepSeek's inference code.
///
/// # Errors
/// As [`Config::from_json`].
pub fn describe(json: &str) -> Result<Described, ConfigError> {
    let Ok(Value::Object(map)) = serde_json::from_str(json) else {
        return Config::from_json(json).map(|config| Described { config, assumptions: vec![], not_loadable: None });
    };
    let Some(translated) = translate_inference_keys(&map)? else { return describe_map(map) };
    let mut described = describe_map(translated.map)?;
    described.assumptions = translated.assumptions;
    described.not_loadable = Some(
        "this is a config of DeepSeek's inference code, whose checkpoints have other tensor names; load the published folder"
            .into(),
    );
    Ok(described)
}

/// [`describe`] of a file.
///
/// # Errors
/// As [`Config::from_file`].
pub fn describe_file(path: &Path) -> Result<Described, ConfigError> {
    describe(&text_of(path)?).map_err(|error| ConfigError::File { path: path.into(), error: Box::new(error) })
}

fn describe_map(map: Map<String, Value>) -> Result<Described, ConfigError> {
    let read = |map: &Map<String, Value>| Config::from_json(&Value::Object(map.clone()).to_string());
    let error = match read(&map) {
        Ok(config) => return Ok(Described { config, assumptions: vec![], not_loadable: None }),
        Err(error) => error,
    };
    let mut without = map.clone();
    if without.remove("quantization_config").is_none() {
        return Err(error);
    }
    // Such weights may be out of reach, but what they are can be told.
    let mut config = read(&without)?;
    config.raw = map;
    Ok(Described { config, assumptions: vec![], not_loadable: Some(error.to_string()) })
}

/// The format that the config says its weights are in; `None` for one that is not among ours.
pub fn stated_format(config: &Config) -> Option<WeightFormat> {
    match config.raw.get("quantization_config") {
        Some(Value::Object(table)) => (table.get("quant_method")? == "fp8").then_some(WeightFormat::Fp8),
        _ => match config.raw.get("torch_dtype").or(config.raw.get("dtype")).and_then(Value::as_str) {
            Some("float32") => Some(WeightFormat::F32),
            Some("bfloat16" | "float16") => Some(WeightFormat::Bf16),
            _ => None,
        },
    }
}

/// What the headers of the weight files say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Weights {
    /// How many tensors.
    pub tensors: usize,
    /// Bytes of all of them.
    pub bytes: u64,
    /// Tensors of each format, as the file names it.
    pub formats: BTreeMap<String, usize>,
    /// Tensors that the model needs and the files lack, those of multi-token prediction not among them.
    pub missing: Vec<String>,
    /// The same of multi-token prediction, which a reply does not need.
    pub missing_mtp: Vec<String>,
    /// Tensors that the model does not use.
    pub unexpected: Vec<String>,
}

impl Weights {
    /// Compares the files with what the config asks for, by name.
    pub fn of(checkpoint: &Checkpoint<'_>, config: &Config) -> Self {
        let mut formats = BTreeMap::new();
        for tensor in checkpoint.tensors() {
            *formats.entry(format!("{:?}", tensor.dtype)).or_default() += 1;
        }
        let names = config.tensors().into_iter().map(|spec| spec.name).filter(|name| checkpoint.get(name).is_none());
        let (missing_mtp, missing) = names.partition(|name| config.is_mtp_tensor(name));
        Self {
            tensors: checkpoint.names().len(),
            bytes: checkpoint.tensor_bytes(),
            formats,
            missing,
            missing_mtp,
            unexpected: checkpoint.unexpected(config),
        }
    }
}
