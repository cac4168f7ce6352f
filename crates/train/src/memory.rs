//! Peak memory of a training step, computed before it runs.
//!
//! Weights, masters, gradients, moments and saved activations are counted exactly but for the padding of packed weights (tests compare
//! with what is held); the working buffers of one layer's backward and of the output head are upper estimates.

use jevons_kernels::Dtype;
use jevons_layers::Keep;
use jevons_model::{Config, LinearKind, Precision, account::WeightFormat, config::Attention};

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
    pub precision: Precision,
    /// Format of the moments.
    pub moments: Dtype,
    /// What forward keeps.
    pub keep: Keep,
    /// Whether the layer of multi-token prediction runs, if the model has one.
    pub mtp: bool,
}

/// Bytes by class of tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
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
    /// Gradient of the residual stream, and the stream it is made of.
    pub stream: usize,
    /// Working buffers of the largest layer's backward.
    pub layer: usize,
    /// Logits of a block of tokens, the transposed head, the head's input and its gradient; gone before the layers' backward begins.
    pub head: usize,
    /// What the process held before: program, tokenizer.
    pub process: usize,
}

/// A row of the table: a class of tensors, or a sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Class {
    /// For people.
    pub name: &'static str,
    /// Estimated before the first step.
    pub estimated_bytes: u64,
    /// Held in fact, where it can be told.
    pub used_bytes: Option<u64>,
}

/// What a run held in fact, of the classes that can be counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Packed compute weights.
    pub weights: usize,
    /// f32 masters.
    pub masters: usize,
    /// Gradient buffers.
    pub gradients: usize,
    /// Both moments.
    pub moments: usize,
    /// Most that was kept between forward and backward.
    pub activations: usize,
}

impl Estimate {
    /// The peak: everything together, of layer and head the larger one, as they are not there at the same time.
    pub fn total(&self) -> usize {
        let held = self.weights + self.masters + self.gradients + self.moments + self.activations;
        held + self.stream + self.layer.max(self.head) + self.process
    }

    /// The table. `used`: after the run; `peak`: the process's highest resident memory.
    pub fn table(&self, used: Option<Used>, peak: Option<u64>) -> Vec<Class> {
        let class = |name, estimated: usize, used: Option<usize>| Class {
            name,
            estimated_bytes: estimated as u64,
            used_bytes: used.map(|n| n as u64),
        };
        vec![
            class("weights", self.weights, used.map(|u| u.weights)),
            class("masters", self.masters, used.map(|u| u.masters)),
            class("gradients", self.gradients, used.map(|u| u.gradients)),
            class("moments", self.moments, used.map(|u| u.moments)),
            class("saved activations", self.activations, used.map(|u| u.activations)),
            class("residual stream", self.stream, None),
            class("working buffers", self.layer, None),
            class("head logits", self.head, None),
            class("process before", self.process, None),
            class("peak", self.total(), peak.map(|n| n as usize)),
        ]
    }
}

/// Peak of a step. `trained`: number of trained elements.
pub fn estimate(config: &Config, trained: usize, s: StepShape) -> Estimate {
    let tokens = s.sequences * s.length;
    let a = s.precision.dtype().size();
    let weights = config.account().total().bytes(match s.precision {
        Precision::F32 => WeightFormat::F32,
        Precision::Bf16 => WeightFormat::Bf16,
        Precision::Fp8(_) => WeightFormat::Fp8,
    }) as usize;
    // What is left in bf16 takes two bytes instead of one and a scale per block.
    let scales = |l: &LinearKind| 4 * l.inputs.div_ceil(128) * l.outputs.div_ceil(128);
    let more = |l: &LinearKind| l.count * (l.inputs * l.outputs).saturating_sub(scales(l));
    let weights = weights + s.precision.left_in_bf16(&config.clone().without_mtp()).iter().map(more).sum::<usize>();
    let left: Vec<String> = s.precision.left_in_bf16(config).into_iter().flat_map(|l| l.names).collect();
    let mtp_weights = config.account().mtp().map_or(0, |mtp| mtp.total.parameters as usize * a);
    let mut per_layer: Vec<Layer> = (0..config.num_hidden_layers).map(|i| layer(config, i, tokens, s, &left)).collect();
    let d = config.hidden_size;
    let kept = |l: &Layer, tokens: usize| if s.keep == Keep::Input { tokens * d * 4 } else { l.saved };
    let mut activations = per_layer.iter().map(|l| kept(l, tokens)).sum::<usize>() + tokens * d * 4;
    if s.mtp && config.num_nextn_predict_layers > 0 {
        // The last token of each sequence has no next one; both norms' inputs and their outputs side by side are kept.
        let tokens = tokens - s.sequences;
        let mtp = layer(config, config.num_hidden_layers, tokens, s, &left);
        activations += kept(&mtp, tokens) + tokens * (4 * d + 3 * a * d + 8);
        per_layer.push(mtp);
    }
    let block = jevons_layers::head_tokens_per_block(config.vocab_size).min(tokens);
    let head = block * config.vocab_size * 4 + config.vocab_size * d * a + 2 * tokens * d * 4 + tokens * d * a;
    let inner =
        per_layer.iter().map(|l| l.working + if s.keep == Keep::Input { l.saved } else { 0 }).max().unwrap_or(0);
    // A binary tree over n micro-batches holds one partial sum per level that is under way, and the one that is made.
    let buffers = s.micro_batches.max(1).ilog2() as usize + 1;
    Estimate {
        weights: weights + mtp_weights,
        masters: trained * 4,
        gradients: trained * 4 * buffers,
        moments: trained * 2 * s.moments.size(),
        activations,
        stream: tokens * d * 8,
        layer: inner,
        head,
        process: jevons_sys::peak_rss_bytes().unwrap_or(0) as usize,
    }
}

struct Layer {
    saved: usize,
    working: usize,
}

/// `left`: linears in bf16 where others are in FP8.
fn layer(c: &Config, i: usize, tokens: usize, s: StepShape, left: &[String]) -> Layer {
    let a = s.precision.dtype().size();
    let fp8 = matches!(s.precision, Precision::Fp8(_));
    let (d, h) = (c.hidden_size, c.num_attention_heads);
    let quantised = |linear: &str| fp8 && !left.iter().any(|l| l == linear);
    // What attention returns takes twelve bits in FP8.
    let in_fp8 = quantised("self_attn.o_proj");
    let output = |n: usize| if in_fp8 { (3 * n).div_ceil(2) + 4 * n.div_ceil(128) } else { a * n };
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
            let raw = a * (rq + r + dr) + output(h * dv) + 4 * h;
            // The norms are made again in FP8.
            let query = if rq > 0 { a * rq + 4 } else { 0 };
            let normed = if fp8 { 0 } else { query + a * 2 * r + 4 };
            let up = normed + a * h * (2 * dk + dv);
            let kept = if s.keep == Keep::ButUp { raw } else { raw + up };
            (kept, 8 * h * (2 * dk + 2 * dv) + 4 * h * (dn + dv) + if s.keep == Keep::ButUp { up } else { 0 })
        }
        Attention::Gqa { num_key_value_heads: g, head_dim: dh, .. } => {
            (a * (h * dh + 2 * g * dh) + output(h * dh) + 4 * h, 8 * (2 * h * dh + 2 * g * dh))
        }
    };
    // A kept number of FP8 takes a byte, and a scale is kept for 128 of them.
    let kept = |f: usize, down: &str| if quantised(down) { f + 4 * f.div_ceil(128) } else { a * f };
    let swiglu =
        |f: usize, down: &str| (2 * kept(f, down), f * (4 * 3 + a) + if quantised(down) { 2 * a * f } else { 0 });
    let (ffn, ffn_working) = match &c.moe {
        Some(m) if c.is_moe_layer(i) => {
            let (k, f) = (m.num_experts_per_tok, m.moe_intermediate_size);
            let shared = swiglu(m.n_shared_experts * f, "mlp.shared_experts.down_proj");
            let routing = 4 * (4 * k + m.n_routed_experts);
            (
                2 * k * kept(f, "mlp.experts.down_proj") + routing + shared.0,
                k * (d * (4 + a) + f * (4 * 3 + a)) + shared.1 + 4 * m.n_routed_experts,
            )
        }
        _ => swiglu(c.intermediate_size, "mlp.down_proj"),
    };
    // In FP8 the norms are made again, and the stream after attention from what that added.
    let stream = 4 * d + 8 + if fp8 { a * d } else { 4 * d + 2 * a * d };
    Layer { saved: tokens * (stream + attention + ffn), working: tokens * attention_working.max(ffn_working) }
}
