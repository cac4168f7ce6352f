//! `config.json` of the supported families: reading, checking, writing, and what follows from it (shapes, counts,
//! rope).
//!
//! Source: the published files of DeepSeek-V2, DeepSeek-V3, Qwen2 and Llama; key names and defaults as `transformers` 5.23 reads them.
//! A config comes from strangers: every size is bounded and every relation between sizes is checked in
//! [`Config::from_json`], so that code which has a [`Config`] may multiply its sizes without overflow.

mod error;
mod inference;
mod new;
mod quantization;
mod read;
mod refused;
mod rope;
mod tensors;

pub use error::ConfigError;
pub use inference::{Translated, translate_inference_keys};
pub use jevons_kernels::formats::ScaleFormat;
pub use new::{Key, KeyDefault};
pub use quantization::Quantization;
pub(crate) use read::brief;
pub(crate) use read::text_of;
pub use tensors::TensorSpec;

use std::path::Path;

use serde_json::{Map, Value};

/// Which published layout a config.json describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// `deepseek_v3`: multi-head latent attention and mixture of experts. `kimi_k2` is the same layout by another name.
    DeepseekV3,
    /// `deepseek_v2`: the same attention, experts chosen by a softmax without bias. DeepSeek-V2, V2-Lite, Coder-V2.
    DeepseekV2,
    /// `qwen2`: grouped-query attention with biases on Q, K and V, dense. The R1-Distill-Qwen models.
    Qwen2,
    /// `llama`: grouped-query attention, dense. Llama 2 and 3, the R1-Distill-Llama models.
    Llama,
}

impl Family {
    /// The value of `model_type` that we write.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::DeepseekV3 => "deepseek_v3",
            Self::DeepseekV2 => "deepseek_v2",
            Self::Qwen2 => "qwen2",
            Self::Llama => "llama",
        }
    }

    /// The class that `transformers` loads the layout with, as in `architectures`.
    pub fn architecture(self) -> &'static str {
        match self {
            Self::DeepseekV3 => "DeepseekV3ForCausalLM",
            Self::DeepseekV2 => "DeepseekV2ForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Llama => "LlamaForCausalLM",
        }
    }
}

/// How keys are rotated.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies, above 1.
    pub theta: f64,
    /// Context extension.
    pub scaling: RopeScaling,
    /// Pairs (2k, 2k+1) if true, (k, k + dim/2) if false.
    pub interleave: bool,
}

/// Context extension of the rotary embedding.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// None.
    None,
    /// YaRN, arXiv:2309.00071.
    Yarn {
        /// Longest context over the original one, at least 1.
        factor: f64,
        /// Context of the training before the extension, in tokens.
        original_max_position_embeddings: usize,
        /// Dimensions with more rotations than this over the original context keep their frequency. 32 by default.
        beta_fast: f64,
        /// Dimensions with fewer rotations than this are slowed by the whole `factor`. 1 by default.
        beta_slow: f64,
        /// Weight of `ln(factor)` in the cos/sin multiplier; 0 if the file has none.
        mscale: f64,
        /// The same in the softmax scale (latent attention only) and in the multiplier's divisor; 0 if the file has
        /// none.
        mscale_all_dim: f64,
        /// The cos/sin multiplier, if the file gives it outright.
        attention_factor: Option<f64>,
        /// Round the ends of the ramp to whole dimensions. True by default.
        truncate: bool,
    },
    /// Llama 3.1: slow pairs are slowed by `factor`, fast ones kept, those between ramp by their wavelength.
    Llama3 {
        /// Longest context over the original one, at least 1.
        factor: f64,
        /// Pairs that turn fewer times than this over the original context are slowed by the whole `factor`.
        low_freq_factor: f64,
        /// Pairs that turn more often than this keep their frequency; above `low_freq_factor`.
        high_freq_factor: f64,
        /// Context of the training before the extension, in tokens.
        original_max_position_embeddings: usize,
    },
}

/// Attention of the family.
#[derive(Clone, Debug, PartialEq)]
pub enum Attention {
    /// Multi-head latent attention.
    Mla {
        /// Width of the queries' latent space; `None`: queries come straight from the hidden state (`q_proj`).
        q_lora_rank: Option<usize>,
        /// Width of the latent space of keys and values.
        kv_lora_rank: usize,
        /// Part of a head's query and key that is not rotated.
        qk_nope_head_dim: usize,
        /// Part that is rotated; the key's is shared by all heads. Even.
        qk_rope_head_dim: usize,
        /// Width of a head's value.
        v_head_dim: usize,
        /// Biases on q_a_proj (none on q_proj, without `q_lora_rank`), kv_a_proj_with_mqa and o_proj.
        bias: bool,
    },
    /// Grouped-query attention.
    Gqa {
        /// Divides `num_attention_heads`.
        num_key_value_heads: usize,
        /// Width of a head. Even.
        head_dim: usize,
        /// Biases on q_proj, k_proj and v_proj, as in Qwen2.
        qkv_bias: bool,
        /// A bias on o_proj, as in Llama with `attention_bias`.
        o_bias: bool,
    },
}

/// How latent attention is computed. The two are one function in mathematics and not in bits, so a run keeps to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MlaForm {
    /// Keys and values per head: what training computes. Its cache holds `H·(Dn + Dr + Dv)` numbers per token and layer.
    Expanded,
    /// Queries moved into the latent space, for inference only. Its cache holds `kv_lora_rank + Dr` numbers per token and layer.
    Absorbed,
}

/// How experts are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopkMethod {
    /// DeepSeek-V3, `noaux_tc` with `sigmoid`: a selection bias per expert; groups rated by the sum of their two best.
    BiasedSigmoid,
    /// DeepSeek-V2, `group_limited_greedy` (or `greedy`, one group) with `softmax`: groups rated by their best.
    Softmax,
}

/// Mixture of experts of the layers from `first_k_dense_replace` on.
#[derive(Clone, Debug, PartialEq)]
pub struct Moe {
    /// Scores and choice.
    pub topk_method: TopkMethod,
    /// `E`, with [`TopkMethod::BiasedSigmoid`] at least 2 per group.
    pub n_routed_experts: usize,
    /// `K`, at most the experts of `topk_group` groups.
    pub num_experts_per_tok: usize,
    /// Experts that every token runs through, stored as one SwiGLU of `n_shared_experts · moe_intermediate_size`.
    pub n_shared_experts: usize,
    /// `F`, width of one expert.
    pub moe_intermediate_size: usize,
    /// Groups that the experts are cut into; divides `n_routed_experts`.
    pub n_group: usize,
    /// Groups that a token may use.
    pub topk_group: usize,
    /// Whether the chosen experts' weights are scaled to sum to 1 (before `routed_scaling_factor`).
    pub norm_topk_prob: bool,
    /// Factor on the routed experts' sum.
    pub routed_scaling_factor: f32,
    /// Layers before this one are dense.
    pub first_k_dense_replace: usize,
    /// Of the later layers, those whose number it divides have experts; 1 in all published models.
    pub moe_layer_freq: usize,
}

/// What the forward pass needs of a config.json.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Which layout.
    pub family: Family,
    /// `V`, below 2³¹.
    pub vocab_size: usize,
    /// `D`.
    pub hidden_size: usize,
    /// Width of the dense feed-forward layers.
    pub intermediate_size: usize,
    /// Biases in the dense feed-forward layers, as in Llama with `mlp_bias`.
    pub mlp_bias: bool,
    /// Decoder layers, those of multi-token prediction not counted.
    pub num_hidden_layers: usize,
    /// Layers of multi-token prediction after them, 0 or 1; see [`Config::without_mtp`].
    pub num_nextn_predict_layers: usize,
    /// `H`.
    pub num_attention_heads: usize,
    /// Longest context, in tokens.
    pub max_position_embeddings: usize,
    /// Keeps an all-zero token finite in the norms; above 0.
    pub rms_norm_eps: f32,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Standard deviation of fresh matrices.
    pub initializer_range: f32,
    /// How positions enter.
    pub rope: Rope,
    /// Attention of every layer.
    pub attention: Attention,
    /// `None` if all layers are dense by family.
    pub moe: Option<Moe>,
    /// How weights are stored, `None` if as plain numbers.
    pub quantization: Option<Quantization>,
    /// Token that starts a text.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a reply. config.json has one number or a list.
    pub eos_token_ids: Vec<u32>,
    /// The file as read, so that what is written back loses no key.
    pub raw: Map<String, Value>,
}

impl Config {
    /// Reads the text of a config.json.
    ///
    /// Rope keys of either style are understood: `rope_theta` beside `rope_scaling`, or `rope_parameters`.
    ///
    /// # Errors
    /// [`ConfigError`] for text that is not a JSON object, a family, option or quantisation that is not supported, and
    /// for a key that is missing, of another type, absurd, or at odds with another.
    ///
    /// ```
    /// # use jevons_model::Config;
    /// let error = Config::from_json(r#"{"model_type": "gpt2"}"#).unwrap_err();
    /// assert!(error.to_string().contains("supported: deepseek_v2"));
    /// ```
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        read::from_json(text)
    }

    /// Reads a config.json, see [`Config::from_json`].
    ///
    /// # Errors
    /// [`ConfigError::Read`] if the file cannot be read or is larger than a config can be; else [`ConfigError::File`],
    /// which puts the path before the errors of [`Config::from_json`].
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        read::from_file(path.as_ref())
    }

    /// The text of a config.json and its keys, whatever they say.
    pub(crate) fn keys_of_file(path: &Path) -> Result<(String, Map<String, Value>), ConfigError> {
        read::keys_of_file(path)
    }

    /// Makes the config of a new model from the published keys; only the sizes must be given, [`Config::keys`] lists
    /// them all. [`Config::raw`] then holds every key that `transformers` wants of the family, rope keys in the older
    /// style, which every tool reads.
    ///
    /// # Errors
    /// [`ConfigError::UnknownKey`] for a key that is not in [`Config::keys`], and the errors of [`Config::from_json`].
    pub fn from_map(map: &Map<String, Value>) -> Result<Self, ConfigError> {
        new::from_map(map)
    }

    /// The keys that [`Config::from_map`] takes, with defaults and meaning.
    pub fn keys(family: Family) -> impl Iterator<Item = &'static Key> {
        new::keys(family)
    }

    /// The same model without its layers of multi-token prediction, which a reply does not need. [`Config::raw`] keeps the key.
    #[must_use]
    pub fn without_mtp(self) -> Self {
        Self { num_nextn_predict_layers: 0, ..self }
    }

    /// The text of a config.json: every key of [`Config::raw`], in its order, and a final newline.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(&self.raw).expect("a JSON map always prints");
        text.push('\n');
        text
    }

    /// Numbers that the cache holds per token, all layers; both forms are the same without latent attention.
    pub fn cache_numbers(&self, form: MlaForm) -> u64 {
        let per_layer = match (&self.attention, form) {
            (Attention::Mla { kv_lora_rank, qk_rope_head_dim, .. }, MlaForm::Absorbed) => {
                kv_lora_rank + qk_rope_head_dim
            }
            (Attention::Gqa { num_key_value_heads, head_dim, .. }, _) => 2 * num_key_value_heads * head_dim,
            _ => self.num_attention_heads * (self.qk_head_dim() + self.v_head_dim()),
        };
        per_layer as u64 * self.num_hidden_layers as u64
    }

    /// The form that inference takes unless told otherwise: absorbed where the expanded cache of the longest context would pass 4 GiB
    /// in bf16. It follows from the config alone, never from load.
    pub fn default_mla_form(&self) -> MlaForm {
        let per_token = 2 * self.cache_numbers(MlaForm::Expanded);
        let bytes = per_token.saturating_mul(self.max_position_embeddings as u64);
        match self.attention {
            Attention::Mla { .. } if bytes > 4 << 30 => MlaForm::Absorbed,
            _ => MlaForm::Expanded,
        }
    }

    /// Whether layer `i` has experts.
    pub fn is_moe_layer(&self, i: usize) -> bool {
        self.moe.as_ref().is_some_and(|m| i >= m.first_k_dense_replace && i.is_multiple_of(m.moe_layer_freq))
    }

    /// Width of one head's query and key: what scores are summed over.
    pub fn qk_head_dim(&self) -> usize {
        match self.attention {
            Attention::Mla { qk_nope_head_dim, qk_rope_head_dim, .. } => qk_nope_head_dim + qk_rope_head_dim,
            Attention::Gqa { head_dim, .. } => head_dim,
        }
    }

    /// Width of one head's value.
    pub fn v_head_dim(&self) -> usize {
        match self.attention {
            Attention::Mla { v_head_dim, .. } => v_head_dim,
            Attention::Gqa { head_dim, .. } => head_dim,
        }
    }

    /// How many of a head's dimensions are rotated. Even.
    pub fn rope_dim(&self) -> usize {
        match self.attention {
            Attention::Mla { qk_rope_head_dim, .. } => qk_rope_head_dim,
            Attention::Gqa { head_dim, .. } => head_dim,
        }
    }
}
