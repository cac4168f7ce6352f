//! LoRA adapters in the published PEFT layout: a folder with `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Source: Hu et al. 2021, arXiv:2106.09685; rank-stabilised scale: arXiv:2312.03732; names and keys as `peft` 0.21 writes them.
//! A linear `W` `[N, K]` becomes `W + s · B·A` with `A` `[r, K]`, `B` `[N, r]` and `s = α/r` (or `α/√r`). [`Adapter::apply`] adds that
//! to the weights in f32, before they are rounded, or takes it away again. Every element is summed over `r` ascending, so the
//! bits depend on nothing else.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use rayon::prelude::*;
use regex::Regex;
use serde_json::{Map, Value};

use crate::{
    Config, ModelError,
    checkpoint::{Checkpoint, CheckpointError, SaveDtype, save_model},
    config::TensorSpec,
};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const PREFIX: &str = "base_model.model.";
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// A hundred times the largest in use.
const MAX_RANK: u64 = 1 << 16;

/// Why an adapter cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// adapter_config.json cannot be read.
    #[error("{path}: cannot read the adapter's configuration: {error}{hint}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
        /// What is there instead.
        hint: &'static str,
    },
    /// adapter_config.json says something that is wrong, or that this program does not do.
    #[error("{path}: {what}", path = .path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Key, what it is and what was expected.
        what: String,
    },
    /// The weights.
    #[error(transparent)]
    Weights(#[from] CheckpointError),
    /// A tensor of the adapter that fits nothing.
    #[error("{path}: `{name}` {what}", path = .path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What is wrong with it.
        what: String,
    },
}

/// Whether the adapter is put into the weights or taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// `W + s · B·A`
    Merge,
    /// `W − s · B·A`: what was merged in f32 comes back within f32 rounding, what was stored in bf16 within one bf16 rounding.
    Unmerge,
}

/// An open adapter.
pub struct Adapter {
    dir: PathBuf,
    weights: Checkpoint<'static>,
    /// By published name of the weight.
    targets: BTreeMap<String, Target>,
}

struct Target {
    rank: usize,
    scale: f32,
    /// `[N, K]`
    shape: [usize; 2],
}

impl fmt::Debug for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Adapter({}, {} weights)", self.dir.display(), self.targets.len())
    }
}

impl Adapter {
    /// Opens an adapter folder; its tensors are checked against each other and against its configuration.
    ///
    /// # Errors
    /// [`AdapterError`] with the file and the key or tensor.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, AdapterError> {
        let dir = dir.as_ref();
        let settings = Settings::read(dir)?;
        let weights = Checkpoint::open_file(dir.join(WEIGHTS))?;
        let wrong =
            |name: &str, what: String| AdapterError::Tensor { path: dir.join(WEIGHTS), name: name.into(), what };
        let mut targets = BTreeMap::new();
        for a in weights.tensors() {
            let Some(module) = a.name.strip_prefix(PREFIX).and_then(|n| n.strip_suffix(".lora_A.weight")) else {
                if a.name.ends_with(".lora_B.weight") && weights.get(&a.name.replace(".lora_B.", ".lora_A.")).is_some()
                {
                    continue;
                }
                let what = "is neither lora_A nor lora_B of a linear; only these are supported (no embeddings, biases or whole modules)";
                return Err(wrong(a.name, what.into()));
            };
            let b_name = format!("{PREFIX}{module}.lora_B.weight");
            let b = weights
                .get(&b_name)
                .ok_or_else(|| wrong(a.name, "has no lora_B beside it; is the file whole?".into()))?;
            let ([rank, k], [n, columns]) = (a.shape, b.shape) else {
                return Err(wrong(
                    a.name,
                    format!("is {:?} and its lora_B {:?}; expected two matrices", a.shape, b.shape),
                ));
            };
            let (said, scale) = settings.of(module);
            if rank != columns || *rank as u64 != said {
                let what = format!(
                    "is {:?} and its lora_B {:?}; expected [{said}, K] and [N, {said}], as {CONFIG} says r = {said}",
                    a.shape, b.shape
                );
                return Err(wrong(a.name, what));
            }
            targets.insert(format!("{module}.weight"), Target { rank: *rank, scale, shape: [*n, *k] });
        }
        Ok(Self { dir: dir.into(), weights, targets })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// The weights that it changes, by published name, with rank and scale.
    pub fn targets(&self) -> impl ExactSizeIterator<Item = (&str, usize, f32)> {
        self.targets.iter().map(|(name, t)| (name.as_str(), t.rank, t.scale))
    }

    /// Numbers in all of `A` and `B`.
    pub fn parameters(&self) -> u64 {
        self.targets.values().map(|t| (t.rank * (t.shape[0] + t.shape[1])) as u64).sum()
    }

    /// Whether every target is a linear of this model.
    ///
    /// # Errors
    /// [`AdapterError::Tensor`] for the first that is not.
    pub fn check(&self, config: &Config) -> Result<(), AdapterError> {
        let specs = config.tensors();
        let known: BTreeMap<&str, &[usize]> = specs.iter().map(|s| (s.name.as_str(), &s.shape[..])).collect();
        for (name, target) in &self.targets {
            let what = match known.get(name.as_str()) {
                Some(shape) if **shape == target.shape => continue,
                Some(shape) => format!("changes a weight of {:?}; this model's is {shape:?}", target.shape),
                None => "changes a weight that this model does not have; is it an adapter of another model?".into(),
            };
            return Err(AdapterError::Tensor { path: self.dir.join(WEIGHTS), name: name.clone(), what });
        }
        Ok(())
    }

    /// Adds `± s · B·A` to the values of a weight, row-major; returns whether the adapter changes it.
    ///
    /// # Errors
    /// [`AdapterError`] if its tensors are not floats, or have another shape than the weight.
    pub fn apply(&self, spec: &TensorSpec, values: &mut [f32], direction: Direction) -> Result<bool, AdapterError> {
        let Some(t) = self.targets.get(&spec.name) else { return Ok(false) };
        let module = spec.name.strip_suffix(".weight").expect("targets are weights");
        let [n, k] = t.shape;
        if spec.shape != [n, k] || values.len() != n * k {
            let what = format!("changes a weight of {:?}; this model's is {:?}", t.shape, spec.shape);
            return Err(AdapterError::Tensor { path: self.dir.join(WEIGHTS), name: spec.name.clone(), what });
        }
        let a = self.weights.read_f32(&format!("{PREFIX}{module}.lora_A.weight"), &[t.rank, k])?;
        let b = self.weights.read_f32(&format!("{PREFIX}{module}.lora_B.weight"), &[n, t.rank])?;
        let scale = if direction == Direction::Merge { t.scale } else { -t.scale };
        values.par_chunks_exact_mut(k.max(1)).zip(b.par_chunks_exact(t.rank)).for_each(|(row, b)| {
            let mut sum = vec![0.0f32; k];
            for (b, a) in b.iter().zip(a.chunks_exact(k)) {
                sum.iter_mut().zip(a).for_each(|(s, a)| *s = b.mul_add(*a, *s));
            }
            row.iter_mut().zip(sum).for_each(|(w, s)| *w += scale * s);
        });
        Ok(true)
    }
}

/// Writes a model folder with the adapter merged into its weights, or taken out of them, in the format that most of them are stored in;
/// a quantised model is written in bf16. Everything else in the folder that is no weight is copied. `progress` hears how many of how many
/// tensors are written. The folder appears whole or not at all.
///
/// # Errors
/// [`ModelError`]; also if `out` is there already.
pub fn save_applied(
    model: &Path,
    adapter: &Adapter,
    direction: Direction,
    out: &Path,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(), ModelError> {
    let config = Config::from_file(model.join("config.json"))?;
    let file = Checkpoint::open(model)?;
    let lost = |c: &Config| {
        c.mtp_copies().iter().any(|(copy, _)| file.get(&copy.replace("embed_tokens", "eh_proj")).is_none())
    };
    let config = if lost(&config) { config.without_mtp() } else { config };
    adapter.check(&config)?;
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |error| CheckpointError::Write { path, error }
    };
    if out.exists() {
        return Err(failed(out)(io::Error::other("it is there already; choose another folder, or remove it")).into());
    }
    let parent = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(failed(parent))?;
    let beside = tempfile::Builder::new().prefix(".jevons-").tempdir_in(parent).map_err(failed(parent))?;
    let dtype = if file.is_mostly_f32() { SaveDtype::F32 } else { SaveDtype::Bf16 };
    let (total, mut done, mut broken) = (config.tensors().len() + config.mtp_copies().len(), 0, None);
    save_model(beside.path(), &config, dtype, |spec| {
        let values = file.read_f32(&spec.name, &spec.shape).map_err(ModelError::from).and_then(|mut values| {
            adapter.apply(spec, &mut values, direction)?;
            Ok(values)
        });
        done += 1;
        progress(done, total);
        Cow::Owned(values.unwrap_or_else(|error| {
            broken.get_or_insert(error);
            vec![0.0; spec.elements()]
        }))
    })?;
    if let Some(error) = broken {
        return Err(error);
    }
    for entry in std::fs::read_dir(model).map_err(failed(model))? {
        let from = entry.map_err(failed(model))?.path();
        let Some(name) = from.file_name().filter(|_| from.is_file()) else { continue };
        let weights = [".safetensors", ".safetensors.index.json", ".bin", ".pt", ".gguf"];
        if name != "config.json" && !weights.iter().any(|end| name.to_string_lossy().ends_with(end)) {
            std::fs::copy(&from, beside.path().join(name)).map_err(failed(&from))?;
        }
    }
    std::fs::rename(beside.path(), out).map_err(failed(out))?;
    let _ = beside.keep(); // It has another name now.
    Ok(())
}

/// What adapter_config.json says of ranks and scales.
struct Settings {
    rank: u64,
    alpha: f64,
    rslora: bool,
    ranks: Vec<(Regex, u64)>,
    alphas: Vec<(Regex, f64)>,
}

impl Settings {
    fn read(dir: &Path) -> Result<Self, AdapterError> {
        let path = dir.join(CONFIG);
        let read = || -> io::Result<String> {
            let mut text = String::new();
            File::open(&path)?.take(MAX_CONFIG_BYTES + 1).read_to_string(&mut text)?;
            match text.len() as u64 {
                0..=MAX_CONFIG_BYTES => Ok(text),
                _ => Err(io::Error::other("larger than 1 MiB, which no adapter_config.json is")),
            }
        };
        let text = read().map_err(|error| {
            let hint = if dir.join("config.json").exists() {
                "; this folder holds a model, not an adapter"
            } else {
                "; an adapter is a folder with adapter_config.json and adapter_model.safetensors"
            };
            AdapterError::Read { path: path.clone(), error, hint }
        })?;
        let wrong = |what: String| AdapterError::Config { path: path.clone(), what };
        let map: Map<String, Value> =
            serde_json::from_str(&text).map_err(|e| wrong(format!("not a JSON object: {e}; is the file whole?")))?;
        if map.get("peft_type") != Some(&"LORA".into()) {
            let found = map.get("peft_type").map_or("missing".into(), crate::config::brief);
            return Err(wrong(format!("`peft_type` is {found}, which is not supported; supported: LORA")));
        }
        if !dir.join(WEIGHTS).exists() && dir.join("adapter_model.bin").exists() {
            let what = "the weights are in adapter_model.bin, a format that can run code when it is read; save the adapter with peft as safetensors";
            return Err(wrong(what.into()));
        }
        for (key, value) in &map {
            let empty = match value {
                Value::Null | Value::Bool(false) => true,
                Value::Array(list) => list.is_empty(),
                Value::Object(map) => map.is_empty(),
                _ => false,
            };
            let variant = key.starts_with("use_") && key != "use_rslora";
            if !empty && (variant || UNSUPPORTED.contains(&key.as_str())) {
                let found = crate::config::brief(value);
                return Err(wrong(format!(
                    "`{key}` is {found}, which is not supported; supported: plain LoRA of linears"
                )));
            }
        }
        if map.get("bias").is_some_and(|b| b != "none") {
            let found = crate::config::brief(&map["bias"]);
            return Err(wrong(format!("`bias` is {found}, which is not supported; supported: \"none\"")));
        }
        let rank = |key: &str, value: Option<&Value>| {
            let rank = value.and_then(Value::as_u64).filter(|r| (1..=MAX_RANK).contains(r));
            rank.ok_or_else(|| wrong(format!("`{key}` must be a whole number from 1 to {MAX_RANK}")))
        };
        let alpha = |key: &str, value: Option<&Value>| {
            let alpha = value.and_then(Value::as_f64).filter(|a| a.abs() <= 1e6);
            alpha.ok_or_else(|| wrong(format!("`{key}` must be a number, usually r or 2·r")))
        };
        Ok(Self {
            rank: rank("r", map.get("r"))?,
            alpha: alpha("lora_alpha", map.get("lora_alpha"))?,
            rslora: map.get("use_rslora") == Some(&true.into()),
            ranks: patterns(&map, "rank_pattern", &wrong, |key, v| rank(key, Some(v)))?,
            alphas: patterns(&map, "alpha_pattern", &wrong, |key, v| alpha(key, Some(v)))?,
        })
    }

    /// Rank and scale of a module.
    fn of(&self, module: &str) -> (u64, f32) {
        let rank = self.ranks.iter().find(|(p, _)| p.is_match(module)).map_or(self.rank, |(_, r)| *r);
        let alpha = self.alphas.iter().find(|(p, _)| p.is_match(module)).map_or(self.alpha, |(_, a)| *a);
        let divisor = if self.rslora { (rank as f64).sqrt() } else { rank as f64 };
        (rank, (alpha / divisor) as f32)
    }
}

/// Keys that change what the tensors mean, where they are set.
const UNSUPPORTED: [&str; 9] = [
    "modules_to_save",
    "fan_in_fan_out",
    "lora_bias",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "arrow_config",
    "megatron_config",
];

/// A table of module patterns. A pattern holds for modules whose name ends with it, from a dot on.
fn patterns<T>(
    map: &Map<String, Value>,
    key: &str,
    wrong: &dyn Fn(String) -> AdapterError,
    value: impl Fn(&str, &Value) -> Result<T, AdapterError>,
) -> Result<Vec<(Regex, T)>, AdapterError> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Object(table)) => table
            .iter()
            .map(|(pattern, v)| {
                let regex = Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})$"));
                let regex = regex.map_err(|_| {
                    wrong(format!("`{key}` has a pattern that is no regular expression: {pattern:.60?}"))
                })?;
                Ok((regex, value(key, v)?))
            })
            .collect(),
        Some(other) => Err(wrong(format!("`{key}` is {}, expected a table of patterns", crate::config::brief(other)))),
    }
}
