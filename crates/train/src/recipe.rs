//! The recipe: one TOML file that says everything about a training run.
//!
//! A recipe is read in three steps: TOML with every unknown key refused, then the keys changed on the command line, then the
//! checks of [`Recipe::validate`]. Paths in it are relative to its own folder ([`Recipe::resolve`]). A commented example with every
//! key is [`Recipe::documented_example`].

mod error;
mod key;
mod source;
mod validate;

pub use error::RecipeError;
pub use key::{glob_matches, nearest};
pub use source::{Format, GeneratorKind, Source, TrainOn};

use std::{
    fmt,
    path::{Path, PathBuf},
};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, value::MapAccessDeserializer},
};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// A training run, as its recipe file describes it.
///
/// ```
/// # use jevons_train::recipe::Recipe;
/// let recipe = Recipe::parse(Recipe::documented_example(), "example.toml").unwrap();
/// assert_eq!(recipe.batch.sequences % recipe.batch.micro_batch_sequences, 0);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// What the run is called in reports.
    pub name: String,
    /// Decides the initial weights, the order of the data and everything else that is random.
    pub seed: u64,
    /// Format of compute weights and activations.
    #[serde(default)]
    pub precision: Precision,
    /// How FP8 computes; of `precision = "fp8"` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fp8: Option<Fp8Section>,
    /// What forward throws away and backward computes again: memory for time, never other numbers.
    #[serde(default)]
    pub recompute: Recompute,
    /// What is trained.
    pub model: ModelSection,
    /// What it is trained on.
    pub data: DataSection,
    /// How much of it in a step.
    pub batch: BatchSection,
    /// How a gradient becomes a step.
    pub optimizer: OptimizerSection,
    /// How the learning rate goes.
    pub schedule: ScheduleSection,
    /// Balance of the experts; without experts nothing of it applies.
    #[serde(default)]
    pub moe: MoeSection,
    /// Multi-token prediction, where the model has its layer.
    #[serde(default)]
    pub mtp: MtpSection,
    /// When and on how much the held-out loss is taken.
    #[serde(default)]
    pub evaluation: EvaluationSection,
    /// When and how weights are saved.
    #[serde(default)]
    pub checkpoint: CheckpointSection,
    /// Where everything is written.
    pub run: RunSection,
    /// Folder of the recipe file: relative paths start here.
    #[serde(skip)]
    base: PathBuf,
    /// The recipe file, for messages.
    #[serde(skip)]
    origin: PathBuf,
}

/// Format of compute weights and activations. Masters and gradients are f32 always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// To check against references; about half as fast.
    F32,
    /// The usual one.
    #[default]
    Bf16,
    /// The linears of attention, feed-forward and experts multiply E4M3 numbers in all three products (arXiv:2412.19437, section 3.3);
    /// the rest is as in bf16. Compute weights take half the memory, saved activations less.
    Fp8,
}

/// `[fp8]`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fp8Section {
    /// Of all scales.
    pub scale: Fp8Scale,
    /// Operands of weight gradients.
    pub wgrad: Fp8Wgrad,
    /// Tiles of output gradients; `block` is there to show why not.
    pub gradients: Fp8Gradients,
    /// Which linears. The default is not written, so that runs begun before there was this key can be resumed.
    #[serde(skip_serializing_if = "Fp8Linears::is_default")]
    pub linears: Fp8Linears,
}

/// Linears that compute in FP8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fp8Linears {
    /// All of attention, feed-forward and experts.
    #[default]
    All,
    /// Those of them whose quantising costs little beside their products, told from their shape; the others stay in bf16.
    Auto,
}

impl Fp8Linears {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Scales of FP8 numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fp8Scale {
    /// Powers of two, rounded up, as DeepSeek trains since V3.1: a scale rounds nothing.
    #[default]
    Ue8m0,
    /// Any number: the largest of a tile becomes exactly 448.
    Fp32,
}

/// Operands of weight gradients in FP8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fp8Wgrad {
    /// The 1 × 128 numbers of the other products.
    #[default]
    Reuse,
    /// Quantised once more in 128 × 1 tiles along tokens, as V3 must on its hardware.
    Retile,
}

/// Tiles of output gradients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fp8Gradients {
    /// 1 × 128.
    #[default]
    Tile,
    /// 128 × 128: an experiment that diverges in long runs.
    Block,
}

/// Format of saved weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SaveFormat {
    /// The masters as they are.
    F32,
    /// Rounded once.
    #[default]
    Bf16,
    /// Linears in E4M3 with scales as `fp8.scale` says, the numbers that a run in FP8 multiplies; the rest in bf16.
    Fp8,
}

/// What forward throws away and backward computes again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// Nothing: the fastest.
    #[default]
    None,
    /// The up-projections of latent attention: much memory for little time, as DeepSeek-V3 does.
    MlaUp,
    /// All of a layer but its input: the least memory, about a third more time.
    Layer,
}

/// `[model]`: start from a checkpoint ([`ModelSection::init`]) or from random weights ([`ModelSection::config`]).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSection {
    /// Checkpoint folder (`config.json`, `*.safetensors`) whose weights are the start. Exactly one of `init` and `config`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// Keys of the published `config.json`, for a model with random weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<Map<String, Value>>,
    /// The tokenizer; without it the one in the folder of `init`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<TokenizerChoice>,
    /// Standard deviation of random weights, over the config's key of that name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initializer_range: Option<f64>,
    /// Parameters whose published name matches one of these are not trained; `*` stands for any characters. They cost neither
    /// master, gradient nor moments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub freeze: Vec<String>,
}

impl ModelSection {
    /// Whether the parameter of this published name stays as it is.
    pub fn is_frozen(&self, parameter: &str) -> bool {
        self.freeze.iter().any(|pattern| glob_matches(pattern, parameter))
    }
}

/// Where the tokenizer comes from.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum TokenizerChoice {
    /// A `tokenizer.json`.
    File(PathBuf),
    /// A new one, learnt from the training data.
    Train {
        /// How.
        train: TrainTokenizer,
    },
}

impl<'de> Deserialize<'de> for TokenizerChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            train: TrainTokenizer,
        }
        struct Visitor;
        // Not serde's `untagged`: that loses the line and the name of a misspelt key.
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = TokenizerChoice;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("the path of a tokenizer.json, or a table `train = { vocab_size = ... }`")
            }

            fn visit_str<E: de::Error>(self, path: &str) -> Result<Self::Value, E> {
                Ok(TokenizerChoice::File(path.into()))
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                let Table { train } = Table::deserialize(MapAccessDeserializer::new(map))?;
                Ok(TokenizerChoice::Train { train })
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// How a new byte-level BPE tokenizer is learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainTokenizer {
    /// Tokens, special ones included; at least 300 (256 bytes and the special ones).
    pub vocab_size: usize,
    /// How runs of digits are cut before merging.
    #[serde(default)]
    pub split_digits: SplitDigits,
    /// How much of the training text it is learnt from, in bytes.
    #[serde(default = "default::sample_bytes")]
    pub sample_bytes: u64,
}

/// How runs of digits are cut before merging.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SplitDigits {
    /// Each digit is a token: what arithmetic in small models needs.
    #[default]
    Single,
    /// Up to three digits together, as DeepSeek-V3.
    Three,
}

/// `[data]`: text that becomes tokens ([`DataSection::sources`]), or tokens as they are ([`DataSection::tokens`]).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSection {
    /// Files and generators. Exactly one of `sources` and `tokens`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<Source>,
    /// Share of the documents kept out of training, chosen by a hash of their text; for `sources` without `heldout`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heldout_fraction: Option<f64>,
    /// Sources of the held-out documents, instead of a share of `sources`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub heldout: Vec<Source>,
    /// `S`: targets per sequence of a batch.
    pub sequence_length: usize,
    /// How documents fill the sequences.
    #[serde(default)]
    pub packing: Packing,
    /// Whether a token may attend to earlier documents of its sequence.
    #[serde(default)]
    pub attention: AttentionSpan,
    /// A safetensors file with the batches of every step, used in exactly its order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<PathBuf>,
    /// Name of the tensor in `tokens`: `[steps, batch, S + 1]`, i64.
    #[serde(default = "default::tensor")]
    pub tensor: String,
    /// Folder for token files, which later runs on the same data use again; without it `data` in the run folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
}

/// How documents fill the sequences of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Packing {
    /// End to end, cut every `S` tokens: nothing is wasted. For running text.
    #[default]
    Continuous,
    /// Only whole documents, as many as fit; one longer than `S` is cut. For questions with answers. Sequences differ in length.
    Whole,
}

/// Whether a token may attend to earlier documents of its sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttentionSpan {
    /// Its own document only; positions start again with each document.
    #[default]
    Document,
    /// The whole sequence, as DeepSeek-V3 was pre-trained.
    Sequence,
}

/// `[batch]`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchSection {
    /// `B`: sequences per step.
    pub sequences: usize,
    /// Sequences computed at a time; divides `sequences`. It decides memory, and the order in which gradients are summed.
    pub micro_batch_sequences: usize,
}

/// `[optimizer]`: AdamW, arXiv:1711.05101.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerSection {
    /// Highest learning rate.
    pub lr: f64,
    /// Decays of the two moments.
    #[serde(default = "default::betas")]
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    #[serde(default = "default::eps")]
    pub eps: f64,
    /// Decoupled decay, of matrices only.
    #[serde(default = "default::weight_decay")]
    pub weight_decay: f64,
    /// Gradients are scaled down to this global norm; 0 leaves them alone.
    #[serde(default = "default::grad_clip")]
    pub grad_clip: f64,
    /// Format of the two moments; see [`Recipe::moments`] for what it is if not given.
    #[serde(default)]
    pub moments: Option<MomentsFormat>,
}

/// Format of the two moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MomentsFormat {
    /// 8 bytes per parameter.
    F32,
    /// 4 bytes per parameter, as DeepSeek-V3; needs `1 − β₂ ≥ 2⁻⁷`, or the second moment could not decay.
    Bf16,
}

impl MomentsFormat {
    /// Whether a second moment of this format decays by `β₂`: half a unit in the last place of bf16 is 2⁻⁹ relative, and a decay below
    /// 2⁻⁷ could be rounded away for ever.
    pub fn decays(self, beta2: f64) -> bool {
        self == Self::F32 || 1.0 - beta2 >= 0.0078125
    }
}

/// `[schedule]`: linear warm-up, then constant, then cosine; see [`crate::schedule::Schedule`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleSection {
    /// Optimizer steps of the run.
    pub steps: u64,
    /// Steps over which the rate rises from 0 to its highest.
    #[serde(default)]
    pub warmup_steps: u64,
    /// Share of the steps after warm-up that stays at the highest rate; 1 means no decay. At most one of the two `constant_` keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub constant_fraction: Option<f64>,
    /// Steps after warm-up that stay at the highest rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub constant_steps: Option<u64>,
    /// Where the cosine ends, as a share of `lr`.
    #[serde(default = "default::final_lr_fraction")]
    pub final_lr_fraction: f64,
}

/// `[moe]`
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MoeSection {
    /// γ: by how much each expert's selection bias moves per step towards equal load (arXiv:2408.15664); 0 leaves them alone.
    pub bias_update_speed: f64,
    /// α: weight of the sequence-wise balance loss (arXiv:2412.19437, section 2.1.2).
    pub sequence_balance_alpha: f64,
    /// The run stops when an expert got no token for this many steps; 0 never. At the default γ, 200 steps move its bias by
    /// 0.2, a large part of what the gate's sigmoid can span: whoever is still idle then does not come back by itself.
    pub collapsed_expert_steps: u64,
}

impl Default for MoeSection {
    fn default() -> Self {
        Self { bias_update_speed: 1e-3, sequence_balance_alpha: 1e-4, collapsed_expert_steps: 200 }
    }
}

/// `[mtp]`: multi-token prediction (arXiv:2412.19437, section 2.2), where `num_nextn_predict_layers` is 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MtpSection {
    /// λ: weight of its loss beside that of the next token; 0 leaves the layer as it is.
    pub loss_weight: f64,
}

impl Default for MtpSection {
    fn default() -> Self {
        Self { loss_weight: 0.3 }
    }
}

/// `[evaluation]`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluationSection {
    /// The held-out loss is taken before the first step, every so many steps, and at the end; 0 never.
    pub every_steps: u64,
    /// On at most this many held-out sequences, always the same.
    pub heldout_sequences: usize,
}

impl Default for EvaluationSection {
    fn default() -> Self {
        Self { every_steps: 100, heldout_sequences: 64 }
    }
}

/// `[checkpoint]`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointSection {
    /// Saved every so many steps, at the end, and on Ctrl-C; 0 only at the end and on Ctrl-C.
    pub every_steps: u64,
    /// Format of the weights in `model/`. `state/` keeps f32.
    pub dtype: SaveFormat,
}

impl Default for CheckpointSection {
    fn default() -> Self {
        Self { every_steps: 500, dtype: SaveFormat::Bf16 }
    }
}

/// `[run]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSection {
    /// Run folder: `model/`, `state/`, `metrics.jsonl` and the plots.
    pub folder: PathBuf,
}

mod default {
    pub(super) fn sample_bytes() -> u64 {
        32 << 20
    }
    pub(super) fn tensor() -> String {
        "tokens".into()
    }
    pub(super) fn betas() -> [f64; 2] {
        [0.9, 0.95]
    }
    pub(super) fn eps() -> f64 {
        1e-8
    }
    pub(super) fn weight_decay() -> f64 {
        0.1
    }
    pub(super) fn grad_clip() -> f64 {
        1.0
    }
    pub(super) fn final_lr_fraction() -> f64 {
        0.1
    }
}

impl Recipe {
    /// Largest recipe file read, in bytes: far beyond any real one.
    const MAX_BYTES: u64 = 16 << 20;

    /// A recipe with every key, its meaning and its default, in TOML.
    pub fn documented_example() -> &'static str {
        include_str!("recipe/example.toml")
    }

    /// Reads and checks a recipe file.
    ///
    /// # Errors
    /// [`RecipeError`] with the file, and the line and key where there is one.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, RecipeError> {
        let path = path.as_ref();
        let read = |source| RecipeError::Read { path: path.into(), source };
        if std::fs::metadata(path).map_err(read)?.len() > Self::MAX_BYTES {
            return Err(read(std::io::Error::other("larger than 16 MiB; is it a recipe?")));
        }
        Self::parse(&std::fs::read_to_string(path).map_err(read)?, path)
    }

    /// Reads and checks the text of a recipe that stands at `path`.
    ///
    /// # Errors
    /// As [`Recipe::load`].
    pub fn parse(text: &str, path: impl AsRef<Path>) -> Result<Self, RecipeError> {
        let path = path.as_ref();
        let mut recipe: Self = toml::from_str(text).map_err(|e| RecipeError::from_toml(path, text, &e))?;
        recipe.origin = path.into();
        recipe.base = path.parent().unwrap_or(Path::new("")).into();
        recipe.validate().map_err(|e| e.at_line_of(text))?;
        Ok(recipe)
    }

    /// Changes keys, as by `--set schedule.steps=100`. A key is dotted, an element of a list is its number
    /// (`data.sources.0.repeat`); a value is TOML, or else taken as a string. Checks the recipe again; on an error it stays as it was.
    ///
    /// # Errors
    /// [`RecipeError`] if the key is unknown, the value has another type, or the changed recipe fails a check.
    pub fn apply_overrides(&mut self, overrides: &[(&str, &str)]) -> Result<(), RecipeError> {
        let mut table = toml::Table::try_from(&*self).expect("a parsed recipe can be written as TOML");
        for (key, value) in overrides {
            key::set(&mut table, key, value)
                .map_err(|message| RecipeError::Override { key: (*key).into(), message })?;
            // One at a time, so that an error names the key it comes from.
            table
                .clone()
                .try_into::<Self>()
                .map_err(|e| RecipeError::Override { key: (*key).into(), message: key::explain(e.message()) })?;
        }
        let mut changed: Self = table.try_into().expect("checked after the last key");
        (changed.base, changed.origin) = (self.base.clone(), self.origin.clone());
        changed.validate()?;
        *self = changed;
        Ok(())
    }

    /// A path of the recipe as the process must open it.
    pub fn resolve(&self, path: impl AsRef<Path>) -> PathBuf {
        self.base.join(path)
    }

    /// The recipe file.
    pub fn origin(&self) -> &Path {
        &self.origin
    }

    /// What decides the numbers of a run, as JSON with sorted keys: everything but the name, where and when it writes, when it
    /// evaluates, and what it recomputes. Two runs with equal text and data end with equal bits.
    pub fn canonical_json(&self) -> String {
        let Value::Object(mut all) = serde_json::to_value(self).expect("a recipe can be written as JSON") else {
            unreachable!("a struct is an object")
        };
        for key in ["name", "run", "checkpoint", "evaluation", "recompute"] {
            all.remove(key);
        }
        if let Some(Value::Object(data)) = all.get_mut("data") {
            data.remove("cache");
        }
        if let Some(Value::Object(optimizer)) = all.get_mut("optimizer") {
            optimizer.insert("moments".into(), serde_json::to_value(self.moments()).expect("a word"));
        }
        let mut all = Value::Object(all);
        all.sort_all_objects();
        all.to_string()
    }

    /// Format of the moments: if the recipe says none, bf16 where it computes in FP8 and they can decay, as DeepSeek-V3 did, and f32 otherwise.
    pub fn moments(&self) -> MomentsFormat {
        let bf16 = self.precision == Precision::Fp8 && MomentsFormat::Bf16.decays(self.optimizer.betas[1]);
        self.optimizer.moments.unwrap_or(if bf16 { MomentsFormat::Bf16 } else { MomentsFormat::F32 })
    }

    /// SHA-256 of [`Recipe::canonical_json`], in hexadecimal.
    pub fn hash(&self) -> String {
        crate::data::hex(&Sha256::digest(self.canonical_json()).into())
    }

    /// The dotted keys in which two [`Recipe::canonical_json`] differ, to say why a run cannot be resumed.
    pub fn changed_keys(a: &str, b: &str) -> Vec<String> {
        let read = |text| serde_json::from_str(text).unwrap_or(Value::Null);
        let mut keys = Vec::new();
        key::compare("", Some(&read(a)), Some(&read(b)), &mut keys);
        keys
    }
}

#[cfg(test)]
mod tests;
