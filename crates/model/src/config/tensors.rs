//! The tensors of the published layout, and how many numbers they hold.

use super::{Attention, Config, TopkMethod};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// Name and shape of a tensor that a checkpoint must have.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorSpec {
    /// Published name, for example `model.layers.0.self_attn.o_proj.weight`.
    pub name: String,
    /// Row-major; a linear's weight is `[out, in]`.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// How many numbers.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether published checkpoints hold this tensor in f32 whatever the rest is in: the gate's selection bias, whose
    /// steps of 1e-3 would be lost in bf16.
    pub fn is_always_f32(&self) -> bool {
        Self::name_is_always_f32(&self.name)
    }

    /// [`TensorSpec::is_always_f32`] of a name.
    pub(crate) fn name_is_always_f32(name: &str) -> bool {
        name.ends_with(".e_score_correction_bias")
    }

    /// The routed expert that the tensor belongs to.
    fn is_routed_expert(&self) -> bool {
        self.name.contains(".mlp.experts.")
    }
}

impl Config {
    /// Every tensor that a model holds: embedding, layers in order, final norm, head unless tied, layers of multi-token prediction.
    /// The published layout stores more, see [`Config::mtp_copies`].
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let mut all = Vec::new();
        self.for_each_tensor(&mut |name, shape| all.push(TensorSpec { name, shape: shape.to_vec() }));
        all
    }

    /// Embedding and head, stored once more with each layer of multi-token prediction: the copy's name, and the tensor's.
    pub fn mtp_copies(&self) -> Vec<(String, &'static str)> {
        let head = if self.tie_word_embeddings { EMBEDDING } else { HEAD };
        self.mtp_layers()
            .flat_map(|i| {
                let name = |part: &str| format!("model.layers.{i}.{part}.weight");
                [(name("embed_tokens"), EMBEDDING), (name("shared_head.head"), head)]
            })
            .collect()
    }

    fn mtp_layers(&self) -> std::ops::Range<usize> {
        self.num_hidden_layers..self.num_hidden_layers + self.num_nextn_predict_layers
    }

    /// Numbers in all tensors but those of multi-token prediction (DeepSeek-V3: 671.0 · 10⁹).
    pub fn total_parameters(&self) -> u64 {
        self.main_tensors().iter().map(|t| t.elements() as u64).sum()
    }

    fn main_tensors(&self) -> Vec<TensorSpec> {
        self.clone().without_mtp().tensors()
    }

    /// Numbers that one token runs through: all but the routed experts it does not choose. The whole embedding is
    /// counted (DeepSeek-V3: 37.55 · 10⁹).
    pub fn active_parameters(&self) -> u64 {
        let Some(moe) = &self.moe else { return self.total_parameters() };
        let (mut routed, mut rest) = (0, 0);
        for t in self.main_tensors() {
            *(if t.is_routed_expert() { &mut routed } else { &mut rest }) += t.elements() as u64;
        }
        // All experts are alike, so the division is exact.
        rest + routed / moe.n_routed_experts as u64 * moe.num_experts_per_tok as u64
    }

    /// An upper bound of how many tensors there are, without making them.
    pub(super) fn tensor_count_bound(&self) -> u64 {
        let experts = self.moe.as_ref().map_or(0, |m| m.n_routed_experts as u64);
        (self.num_hidden_layers + self.num_nextn_predict_layers) as u64 * (28 + 3 * experts) + 3
    }

    pub(crate) fn for_each_tensor(&self, f: &mut dyn FnMut(String, &[usize])) {
        let d = self.hidden_size;
        f(EMBEDDING.into(), &[self.vocab_size, d]);
        for i in 0..self.num_hidden_layers {
            self.layer_tensors(i, f);
        }
        f("model.norm.weight".into(), &[d]);
        if !self.tie_word_embeddings {
            f(HEAD.into(), &[self.vocab_size, d]);
        }
        for i in self.mtp_layers() {
            for norm in ["enorm", "hnorm", "shared_head.norm"] {
                f(format!("model.layers.{i}.{norm}.weight"), &[d]);
            }
            f(format!("model.layers.{i}.eh_proj.weight"), &[d, 2 * d]);
            self.layer_tensors(i, f);
        }
    }

    fn layer_tensors(&self, i: usize, f: &mut dyn FnMut(String, &[usize])) {
        let mut layer = |name: &str, shape: &[usize]| f(format!("model.layers.{i}.{name}"), shape);
        layer("input_layernorm.weight", &[self.hidden_size]);
        self.attention_tensors(&mut layer);
        layer("post_attention_layernorm.weight", &[self.hidden_size]);
        self.feed_forward_tensors(self.is_moe_layer(i), &mut layer);
    }

    fn attention_tensors(&self, f: &mut dyn FnMut(&str, &[usize])) {
        let (d, h) = (self.hidden_size, self.num_attention_heads);
        match self.attention {
            Attention::Mla { q_lora_rank, kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim, bias } => {
                let q = h * (qk_nope_head_dim + qk_rope_head_dim);
                if let Some(rank) = q_lora_rank {
                    linear(f, "self_attn.q_a_proj", [rank, d], bias);
                    f("self_attn.q_a_layernorm.weight", &[rank]);
                    linear(f, "self_attn.q_b_proj", [q, rank], false);
                } else {
                    linear(f, "self_attn.q_proj", [q, d], false);
                }
                linear(f, "self_attn.kv_a_proj_with_mqa", [kv_lora_rank + qk_rope_head_dim, d], bias);
                f("self_attn.kv_a_layernorm.weight", &[kv_lora_rank]);
                linear(f, "self_attn.kv_b_proj", [h * (qk_nope_head_dim + v_head_dim), kv_lora_rank], false);
                linear(f, "self_attn.o_proj", [d, h * v_head_dim], bias);
            }
            Attention::Gqa { num_key_value_heads, head_dim, qkv_bias, o_bias } => {
                let kv = num_key_value_heads * head_dim;
                linear(f, "self_attn.q_proj", [h * head_dim, d], qkv_bias);
                linear(f, "self_attn.k_proj", [kv, d], qkv_bias);
                linear(f, "self_attn.v_proj", [kv, d], qkv_bias);
                linear(f, "self_attn.o_proj", [d, h * head_dim], o_bias);
            }
        }
    }

    fn feed_forward_tensors(&self, experts: bool, f: &mut dyn FnMut(&str, &[usize])) {
        let d = self.hidden_size;
        if let Some(moe) = self.moe.as_ref().filter(|_| experts) {
            f("mlp.gate.weight", &[moe.n_routed_experts, d]);
            if moe.topk_method == TopkMethod::BiasedSigmoid {
                f("mlp.gate.e_score_correction_bias", &[moe.n_routed_experts]);
            }
        }
        let mut swiglu = |prefix: &str, width: usize, bias: bool| {
            linear(f, &format!("{prefix}.gate_proj"), [width, d], bias);
            linear(f, &format!("{prefix}.up_proj"), [width, d], bias);
            linear(f, &format!("{prefix}.down_proj"), [d, width], bias);
        };
        let Some(moe) = self.moe.as_ref().filter(|_| experts) else {
            return swiglu("mlp", self.intermediate_size, self.mlp_bias);
        };
        for e in 0..moe.n_routed_experts {
            swiglu(&format!("mlp.experts.{e}"), moe.moe_intermediate_size, false);
        }
        if moe.n_shared_experts > 0 {
            swiglu("mlp.shared_experts", moe.n_shared_experts * moe.moe_intermediate_size, false);
        }
    }
}

/// `shape`: `[out, in]`.
fn linear(f: &mut dyn FnMut(&str, &[usize]), name: &str, shape: [usize; 2], bias: bool) {
    f(&format!("{name}.weight"), &shape);
    if bias {
        f(&format!("{name}.bias"), &shape[..1]);
    }
}
