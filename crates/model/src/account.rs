//! What a model costs, from its config alone: parameters by component, bytes by format, FLOP and cache bytes per token.
//!
//! Source: the accounting of DeepSeek-V3, arXiv:2412.19437 (671 B, 37 B active) and arXiv:2505.09343 table 2 (250 GFLOP
//! per training token at 4K, 70,272 bytes of latent cache per token). A multiply-add is 2 FLOP. FLOP are of matrix products
//! alone, as everywhere in the field: norms, rope, softmax and the optimizer are left out.

use serde::Serialize;

use crate::{
    Config,
    config::{Attention, MlaForm, TensorSpec},
};

/// DeepSeek's blocks of weights that share a scale have this many rows and columns.
const FP8_BLOCK: usize = 128;

/// What a parameter is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Component {
    /// Input embedding; the head too where it is tied.
    Embedding,
    /// Projections of attention, with their biases.
    Attention,
    /// Feed-forward layers that every token runs through.
    DenseFfn,
    /// The gates' weights and selection biases.
    Router,
    /// Experts that tokens choose.
    RoutedExperts,
    /// Experts that every token runs through.
    SharedExperts,
    /// Gains.
    Norms,
    /// Output head; nothing where it is tied.
    Head,
    /// All of the layers of multi-token prediction; the embedding and head that they share not among it.
    Mtp,
}

impl Component {
    /// In the order of a token's way.
    const ALL: [Self; 9] = [
        Self::Embedding,
        Self::Attention,
        Self::DenseFfn,
        Self::Router,
        Self::RoutedExperts,
        Self::SharedExperts,
        Self::Norms,
        Self::Head,
        Self::Mtp,
    ];

    /// Of a tensor, by its published name, multi-token prediction told by its inner parts; and whether DeepSeek stores the
    /// tensor's matrix in FP8, as it does where the product runs in FP8.
    fn of(name: &str) -> (Self, bool) {
        let has = |part: &str| name.contains(part);
        match () {
            () if name.starts_with("lm_head.") => (Self::Head, false),
            () if has("embed_tokens.") => (Self::Embedding, false),
            () if has(".eh_proj.") => (Self::Mtp, false),
            () if has("norm.") => (Self::Norms, false),
            () if has(".self_attn.") => (Self::Attention, true),
            () if has(".mlp.gate.") => (Self::Router, false),
            () if has(".mlp.experts.") => (Self::RoutedExperts, true),
            () if has(".mlp.shared_experts.") => (Self::SharedExperts, true),
            () => (Self::DenseFfn, true),
        }
    }

    /// Whether DeepSeek stores a matrix of this name in FP8.
    pub(crate) fn in_fp8(name: &str) -> bool {
        Self::of(name).1
    }

    /// Whether a tensor of this name is of an expert that tokens choose.
    pub(crate) fn is_routed(name: &str) -> bool {
        Self::of(name).0 == Self::RoutedExperts
    }
}

/// A number format for all weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightFormat {
    /// Four bytes each.
    F32,
    /// Two bytes each; selection biases stay f32.
    Bf16,
    /// As DeepSeek-V3 is published: matrices of attention and feed-forward layers take a byte per number and an f32
    /// scale per block of 128 × 128; embedding, head, gates and gains stay bf16, selection biases f32.
    Fp8,
    /// The same with the output head in FP8 too.
    Fp8Head,
}

impl WeightFormat {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Fp8 => "FP8",
            Self::Fp8Head => "FP8, the head too",
        }
    }
}

/// Numbers and bytes of some tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Size {
    /// Numbers, FP8 scales not counted.
    pub parameters: u64,
    /// Those in matrices, which products run over; the others are gains and biases.
    pub in_matrices: u64,
    /// Bytes in [`WeightFormat::F32`].
    pub f32_bytes: u64,
    /// Bytes in [`WeightFormat::Bf16`].
    pub bf16_bytes: u64,
    /// Bytes in [`WeightFormat::Fp8`].
    pub fp8_bytes: u64,
    /// Bytes in [`WeightFormat::Fp8Head`].
    pub fp8_head_bytes: u64,
}

impl Size {
    /// Bytes in a format.
    pub fn bytes(&self, format: WeightFormat) -> u64 {
        match format {
            WeightFormat::F32 => self.f32_bytes,
            WeightFormat::Bf16 => self.bf16_bytes,
            WeightFormat::Fp8 => self.fp8_bytes,
            WeightFormat::Fp8Head => self.fp8_head_bytes,
        }
    }

    fn of(name: &str, shape: &[usize], fp8: bool, head: bool) -> Self {
        let n: u64 = shape.iter().map(|&d| d as u64).product();
        let bf16_bytes = if TensorSpec::name_is_always_f32(name) { 4 * n } else { 2 * n };
        let stored = |in_fp8: bool| match *shape {
            [rows, columns] if in_fp8 => n + 4 * (rows.div_ceil(FP8_BLOCK) * columns.div_ceil(FP8_BLOCK)) as u64,
            _ => bf16_bytes,
        };
        let (fp8_bytes, fp8_head_bytes) = (stored(fp8), stored(fp8 || head));
        let in_matrices = if shape.len() == 2 { n } else { 0 };
        Self { parameters: n, in_matrices, f32_bytes: 4 * n, bf16_bytes, fp8_bytes, fp8_head_bytes }
    }

    /// Field by field.
    fn zip(self, other: Self, f: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            parameters: f(self.parameters, other.parameters),
            in_matrices: f(self.in_matrices, other.in_matrices),
            f32_bytes: f(self.f32_bytes, other.f32_bytes),
            bf16_bytes: f(self.bf16_bytes, other.bf16_bytes),
            fp8_bytes: f(self.fp8_bytes, other.fp8_bytes),
            fp8_head_bytes: f(self.fp8_head_bytes, other.fp8_head_bytes),
        }
    }

    fn map(self, f: impl Fn(u64) -> u64) -> Self {
        self.zip(self, |n, _| f(n))
    }

    fn plus(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    fn minus(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
}

/// The parameters of one component, in the whole model and on one token's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Part {
    /// Which.
    pub component: Component,
    /// In the model.
    #[serde(flatten)]
    pub total: Size,
    /// What one token runs through: all, of routed experts those it chooses.
    pub active: Size,
}

/// Floating-point operations of one token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Flop {
    /// Products with weights.
    pub weights: f64,
    /// Scores and mixing of values, which grow with the context.
    pub attention: f64,
}

impl Flop {
    /// Both.
    pub fn total(&self) -> f64 {
        self.weights + self.attention
    }
}

/// Name of the matrix that makes logits: the head, or an embedding that is `tied` to it.
pub(crate) fn head_name(tied: bool) -> &'static str {
    if tied { "model.embed_tokens.weight" } else { "lm_head.weight" }
}

/// What a forward pass must do at least.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Pass {
    /// Of products.
    pub flop: Flop,
    /// Bytes read from memory if nothing is in a cache: each weight that is used once, and the keys and values of all tokens.
    pub bytes: f64,
}

/// What a model costs; made by [`Config::account`].
#[derive(Clone, Debug)]
pub struct Account<'a> {
    config: &'a Config,
    /// Components that the model has, in the order of a token's way. [`Component::Mtp`] comes last and is part of no total but
    /// [`Account::stored`].
    pub parts: Vec<Part>,
}

impl Config {
    /// Counts everything once.
    pub fn account(&self) -> Account<'_> {
        let mut totals = [Size::default(); Component::ALL.len()];
        let mut mtp_routed = Size::default();
        self.for_each_tensor(&mut |name, shape| {
            let (mut component, fp8) = Component::of(&name);
            let size = Size::of(&name, shape, fp8, name == self.head_name());
            if self.is_mtp_tensor(&name) {
                if component == Component::RoutedExperts {
                    mtp_routed = mtp_routed.plus(size);
                }
                component = Component::Mtp;
            }
            let total = &mut totals[component as usize];
            *total = total.plus(size);
        });
        // All experts are alike, so the division is exact.
        let chosen = |routed: Size| match &self.moe {
            Some(moe) => routed.map(|n| n / moe.n_routed_experts as u64 * moe.num_experts_per_tok as u64),
            None => routed,
        };
        let part = |component: Component| {
            let total = totals[component as usize];
            let active = match component {
                Component::RoutedExperts => chosen(total),
                Component::Mtp => total.minus(mtp_routed).plus(chosen(mtp_routed)),
                _ => total,
            };
            Part { component, total, active }
        };
        let parts = Component::ALL.map(part).into_iter().filter(|p| p.total.parameters > 0).collect();
        Account { config: self, parts }
    }

    /// Name of the matrix that makes logits.
    pub(crate) fn head_name(&self) -> &'static str {
        head_name(self.tie_word_embeddings)
    }

    /// Whether a tensor of [`Config::tensors`] belongs to a layer of multi-token prediction.
    pub(crate) fn is_mtp_tensor(&self, name: &str) -> bool {
        let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
        layer.is_some_and(|i| i >= self.num_hidden_layers)
    }
}

impl Account<'_> {
    fn main_parts(&self) -> impl Iterator<Item = &Part> {
        self.parts.iter().filter(|p| p.component != Component::Mtp)
    }

    /// The layers of multi-token prediction, without the embedding and head that they share.
    pub fn mtp(&self) -> Option<&Part> {
        self.parts.iter().find(|p| p.component == Component::Mtp)
    }

    /// The whole model without multi-token prediction (DeepSeek-V3: 671.0 B).
    pub fn total(&self) -> Size {
        self.main_parts().fold(Size::default(), |sum, p| sum.plus(p.total))
    }

    /// What one token runs through, the whole embedding counted (DeepSeek-V3: 37.55 B).
    pub fn active(&self) -> Size {
        self.main_parts().fold(Size::default(), |sum, p| sum.plus(p.active))
    }

    /// What one token is multiplied by: [`Account::active`] without the input embedding, of which a token only looks up a
    /// row (DeepSeek-V3: 36.62 B). A tied embedding stays, it is multiplied by as the head.
    pub fn multiplied(&self) -> Size {
        let looked_up = |p: &&Part| p.component == Component::Embedding && !self.config.tie_word_embeddings;
        self.main_parts().filter(|p| !looked_up(p)).fold(Size::default(), |sum, p| sum.plus(p.active))
    }

    /// Everything that the published layout stores: multi-token prediction too, with its copies of embedding and head
    /// (DeepSeek-V3: 684.5 B).
    pub fn stored(&self) -> Size {
        let all = self.parts.iter().fold(Size::default(), |sum, p| sum.plus(p.total));
        let shape = [self.config.vocab_size, self.config.hidden_size];
        let copy = |sum: Size, (name, _): &(String, _)| sum.plus(Size::of(name, &shape, false, false));
        self.config.mtp_copies().iter().fold(all, copy)
    }

    /// Training, forward and backward, in sequences of `length` tokens with causal attention: a token looks at half of them
    /// on average. Backward is twice forward; nothing is computed twice to save memory. Multi-token prediction is not counted
    /// (DeepSeek-V3 at 4,096: 250.4 · 10⁹, as published).
    pub fn training_flop_per_token(&self, length: usize) -> Flop {
        let keys = length as f64 / 2.0;
        let width = self.config.qk_head_dim() + self.config.v_head_dim();
        Flop {
            weights: 6.0 * self.multiplied().in_matrices as f64,
            attention: 3.0 * self.attention_flop_per_key(width) * keys,
        }
    }

    /// Decoding one token that looks at `context` keys, itself among them. `None`: the model has no such form.
    ///
    /// The products with weights are the same in both forms: absorbed, the two halves of `kv_b_proj` multiply the query and
    /// the mixed latent vector instead of the token's own latent vector.
    pub fn decode_flop_per_token(&self, context: usize, form: MlaForm) -> Option<Flop> {
        let width = match (form, &self.config.attention) {
            (MlaForm::Expanded, _) => self.config.qk_head_dim() + self.config.v_head_dim(),
            // Scores over the latent vector and the rotated key, values mixed in the latent space.
            (MlaForm::Absorbed, Attention::Mla { kv_lora_rank, qk_rope_head_dim, .. }) => {
                2 * kv_lora_rank + qk_rope_head_dim
            }
            (MlaForm::Absorbed, Attention::Gqa { .. }) => return None,
        };
        Some(Flop {
            weights: 2.0 * self.multiplied().in_matrices as f64,
            attention: self.attention_flop_per_key(width) * context as f64,
        })
    }

    /// A pass that appends `new` tokens to each of `sequences` that hold `before`, and gives the logits after the last of each. Of
    /// routed experts, as many are read as even routing chooses on average. `None`: the model has no such form.
    pub fn pass(
        &self,
        sequences: usize,
        new: usize,
        before: usize,
        form: MlaForm,
        format: WeightFormat,
    ) -> Option<Pass> {
        let per_token = self.decode_flop_per_token(1, form)?;
        let (sequences, new, before) = (sequences as f64, new as f64, before as f64);
        let head = 2.0 * self.head().map_or(0.0, |p| p.total.in_matrices as f64);
        let flop = Flop {
            weights: sequences * (new * (per_token.weights - head) + head),
            attention: sequences * per_token.attention * (new * before + new * (new + 1.0) / 2.0),
        };
        let read = self.main_parts().map(|part| match (part.component, &self.config.moe) {
            (Component::Embedding, _) if !self.config.tie_word_embeddings => 0.0,
            (Component::RoutedExperts, Some(moe)) => {
                let missed = 1.0 - moe.num_experts_per_tok as f64 / moe.n_routed_experts as f64;
                part.total.bytes(format) as f64 * (1.0 - libm::pow(missed, sequences * new))
            }
            _ => part.total.bytes(format) as f64,
        });
        // The cache is in the format of the activations: f32, or bf16 whatever the weights.
        let numbers = if format == WeightFormat::F32 { 2.0 } else { 1.0 };
        let cache = self.cache_bytes_per_token(form)? as f64 * numbers * sequences * (before + new);
        Some(Pass { flop, bytes: read.sum::<f64>() + cache })
    }

    /// Bytes that an optimizer step on all parameters moves at least: compute weights read forward and backward and written anew,
    /// f32 gradients written and read, f32 masters and two f32 moments read and written.
    pub fn step_bytes(&self, format: WeightFormat) -> f64 {
        let total = self.total();
        3.0 * total.bytes(format) as f64 + 32.0 * total.parameters as f64
    }

    /// What logits are made by: the head, or a tied embedding.
    fn head(&self) -> Option<&Part> {
        let head = if self.config.tie_word_embeddings { Component::Embedding } else { Component::Head };
        self.parts.iter().find(|p| p.component == head)
    }

    /// Of one query per head and layer with one key and value, which multiply `width` numbers.
    fn attention_flop_per_key(&self, width: usize) -> f64 {
        2.0 * self.config.num_hidden_layers as f64 * self.config.num_attention_heads as f64 * width as f64
    }

    /// Bytes of cache per token of context, with two bytes per number as bf16 has. `None`: the model has no such form.
    pub fn cache_bytes_per_token(&self, form: MlaForm) -> Option<u64> {
        let latent = matches!(self.config.attention, Attention::Mla { .. });
        (latent || form == MlaForm::Expanded).then(|| 2 * self.config.cache_numbers(form))
    }

    /// Bytes of weights and of the cache of one sequence of `context` tokens in bf16; `u64::MAX` where it is more. `None`:
    /// the model has no such form.
    pub fn memory_bytes(&self, context: usize, form: MlaForm, format: WeightFormat) -> Option<u64> {
        let cache = self.cache_bytes_per_token(form)?.saturating_mul(context as u64);
        Some(self.total().bytes(format).saturating_add(cache))
    }
}
