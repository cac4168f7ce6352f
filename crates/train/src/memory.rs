//! Peak memory of a training step, computed before it runs.
//!
//! The saved activations are counted exactly (a test compares with what the layers report); the working set of one layer's
//! backward and of the output head is an upper estimate.

use jevons_kernels::Dtype;
use jevons_layers::Keep;
use jevons_model::{Config, config::Attention};

/// What decides the size of a step.
#[derive(Clone, Copy, Debug)]
pub struct StepShape {
    /// Sequences of a micro-batch.
    pub sequences: usize,
    /// Tokens of a sequence.
    pub length: usize,
    /// Micro-batches of a step.
    pub micro_batches: usize,
    /// Format of weights and activations.
    pub dtype: Dtype,
    /// Format of the moments.
    pub moments: Dtype,
    /// What forward keeps.
    pub keep: Keep,
    /// Whether the layer of multi-token prediction runs, if the model has one.
    pub mtp: bool,
}

/// Bytes by class of tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Estimate {
    /// Packed compute weights.
    pub weights: usize,
    /// f32 masters.
    pub masters: usize,
    /// f32 gradients, including the partial sums of micro-batches.
    pub gradients: usize,
    /// Both moments.
    pub moments: usize,
    /// Kept between forward and backward.
    pub activations: usize,
    /// The largest working set of one layer or of the output head.
    pub working: usize,
    /// What the process held before: program, tokenizer.
    pub process: usize,
}

impl Estimate {
    /// Everything together.
    pub fn total(&self) -> usize {
        self.weights + self.masters + self.gradients + self.moments + self.activations + self.working + self.process
    }

    /// Name and bytes of each class.
    pub fn rows(&self) -> [(&'static str, usize); 7] {
        [
            ("weights", self.weights),
            ("masters", self.masters),
            ("gradients", self.gradients),
            ("moments", self.moments),
            ("activations", self.activations),
            ("working set", self.working),
            ("process", self.process),
        ]
    }
}

/// Peak of a step. `trained`: number of trained elements.
pub fn estimate(config: &Config, trained: usize, s: StepShape) -> Estimate {
    let all: usize = config.tensors().iter().map(|t| t.shape.iter().product::<usize>()).sum();
    let tokens = s.sequences * s.length;
    let a = s.dtype.size();
    let mut per_layer: Vec<Layer> = (0..config.num_hidden_layers).map(|i| layer(config, i, tokens, s)).collect();
    let d = config.hidden_size;
    let kept = |l: &Layer, tokens: usize| if s.keep == Keep::Input { tokens * d * 4 } else { l.saved };
    let mut activations = per_layer.iter().map(|l| kept(l, tokens)).sum::<usize>() + tokens * d * 4;
    if s.mtp && config.num_nextn_predict_layers > 0 {
        // The last token of each sequence has no next one; both norms' inputs and their outputs side by side are kept.
        let tokens = tokens - s.sequences;
        let mtp = layer(config, config.num_hidden_layers, tokens, s);
        activations += kept(&mtp, tokens) + tokens * (4 * d + 3 * a * d + 8);
        per_layer.push(mtp);
    }
    let block = jevons_layers::head_tokens_per_block(config.vocab_size).min(tokens);
    let head = block * config.vocab_size * 4 + config.vocab_size * d * a + 2 * tokens * d * 4 + tokens * d * a;
    let inner =
        per_layer.iter().map(|l| l.working + if s.keep == Keep::Input { l.saved } else { 0 }).max().unwrap_or(0);
    // A binary tree over n micro-batches holds one partial sum per level that is under way.
    let buffers = if s.micro_batches > 1 { s.micro_batches.ilog2() as usize + 2 } else { 1 };
    Estimate {
        weights: all * a,
        masters: trained * 4,
        gradients: trained * 4 * buffers,
        moments: trained * 2 * s.moments.size(),
        activations,
        working: head.max(inner) + tokens * d * 8,
        process: jevons_sys::peak_rss_bytes().unwrap_or(0) as usize,
    }
}

struct Layer {
    saved: usize,
    working: usize,
}

fn layer(c: &Config, i: usize, tokens: usize, s: StepShape) -> Layer {
    let a = s.dtype.size();
    let (d, h) = (c.hidden_size, c.num_attention_heads);
    let (attention, attention_working) = match c.attention {
        Attention::Mla {
            q_lora_rank,
            kv_lora_rank: r,
            qk_nope_head_dim: dn,
            qk_rope_head_dim: dr,
            v_head_dim: dv,
            ..
        } => {
            let (dk, rq) = (dn + dr, q_lora_rank.unwrap_or(0));
            let raw = a * (rq + r + dr + h * dv) + 4 * h;
            let up = if rq > 0 { a * rq + 4 } else { 0 } + a * 2 * r + 4 + a * h * (2 * dk + dv);
            let kept = if s.keep == Keep::ButUp { raw } else { raw + up };
            (kept, 8 * h * (2 * dk + 2 * dv) + 4 * h * (dn + dv) + if s.keep == Keep::ButUp { up } else { 0 })
        }
        Attention::Gqa { num_key_value_heads: g, head_dim: dh, .. } => {
            (a * (2 * h * dh + 2 * g * dh) + 4 * h, 8 * (2 * h * dh + 2 * g * dh))
        }
    };
    let swiglu = |f: usize| (a * 2 * f, f * (4 * 3 + a));
    let (ffn, ffn_working) = match &c.moe {
        Some(m) if c.is_moe_layer(i) => {
            let (k, f) = (m.num_experts_per_tok, m.moe_intermediate_size);
            let shared = swiglu(m.n_shared_experts * f);
            let routing = 4 * (4 * k + m.n_routed_experts);
            (
                a * 2 * k * f + routing + shared.0,
                k * (d * (4 + a) + f * (4 * 3 + a)) + shared.1 + 4 * m.n_routed_experts,
            )
        }
        _ => swiglu(c.intermediate_size),
    };
    let stream = 4 * d + a * d + 4 * d + a * d + 8;
    Layer { saved: tokens * (stream + attention + ffn), working: tokens * attention_working.max(ffn_working) }
}
