//! `quantization_config`: block FP8, as DeepSeek publishes V3 and R1.

use jevons_kernels::formats::ScaleFormat;
use serde_json::{Map, Value};

use super::{ConfigError, read::brief};

/// Weights of linears are stored as E4M3 codes with one scale for each block of [`Quantization::BLOCK`]² numbers, in
/// `NAME_scale_inv` beside `NAME`. What stays unquantised shows in the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantization {
    /// What the scales are: any f32, or powers of two (`scale_fmt` `ue8m0`).
    pub scale_format: ScaleFormat,
}

impl Quantization {
    /// Rows and columns of a block. The last blocks of a matrix may be smaller.
    pub const BLOCK: usize = 128;

    /// Reads the key `quantization_config` of a config.json; `None` if it is missing or `null`.
    ///
    /// # Errors
    /// [`ConfigError::Unsupported`] for anything but E4M3 in blocks of 128 × 128.
    pub fn from_config(raw: &Map<String, Value>) -> Result<Option<Self>, ConfigError> {
        let table = match raw.get("quantization_config") {
            None | Some(Value::Null) => return Ok(None),
            Some(table) => table,
        };
        let refused = |key: &str, found: &Value, supported: &str| {
            let key = format!("quantization_config.{key}");
            Err(ConfigError::Unsupported { key, found: brief(found), supported: supported.into() })
        };
        // A key that is missing or null is as published.
        let other_than = |key: &str, usual: &str| table.get(key).filter(|v| !v.is_null() && *v != usual);
        let method = table.get("quant_method").unwrap_or(table);
        if method != "fp8" {
            return refused(
                "quant_method",
                method,
                "fp8 (in blocks of 128 × 128), and none (weights in BF16, F16 or F32)",
            );
        }
        if let Some(other) = other_than("fmt", "e4m3") {
            return refused("fmt", other, "e4m3");
        }
        if let Some(other) = other_than("activation_scheme", "dynamic") {
            return refused("activation_scheme", other, "dynamic (scales from the activations themselves)");
        }
        let block = table.get("weight_block_size").unwrap_or(&Value::Null);
        if *block != Value::from([Self::BLOCK; 2].to_vec()) {
            return refused("weight_block_size", block, "[128, 128] (one scale for each block of the weight)");
        }
        let scale_format = match table.get("scale_fmt") {
            None | Some(Value::Null) => ScaleFormat::F32,
            Some(Value::String(s)) if s == "ue8m0" => ScaleFormat::Ue8m0,
            Some(other) => return refused("scale_fmt", other, "ue8m0 (powers of two), or no such key (any scale)"),
        };
        Ok(Some(Self { scale_format }))
    }

    /// The table as published.
    pub fn to_json(self) -> Value {
        let mut table = serde_json::json!({
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "weight_block_size": [Self::BLOCK, Self::BLOCK],
        });
        if self.scale_format == ScaleFormat::Ue8m0 {
            table["scale_fmt"] = "ue8m0".into();
        }
        table
    }
}
