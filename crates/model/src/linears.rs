//! The linears that training multiplies in FP8, by kind: their shape, and how many tokens reach one in a pass.

use serde::Serialize;

use crate::{Config, account::Component};

/// Linears of one shape that as many tokens reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LinearKind {
    /// Published names without layer and expert, such as `mlp.experts.gate_proj`.
    pub names: Vec<String>,
    /// `K`
    pub inputs: usize,
    /// `N`
    pub outputs: usize,
    /// Tokens that reach each in a pass; of an expert, if all get as many.
    pub tokens: usize,
    /// Experts among which tokens of a layer choose; 1: every token runs through it.
    pub experts: usize,
    /// Matrices in the model, multi-token prediction's among them.
    pub count: usize,
}

impl LinearKind {
    /// Whether it reads what a SwiGLU gave rather than the stream.
    pub fn is_down(&self) -> bool {
        self.names[0].ends_with("down_proj")
    }
}

impl Config {
    /// The linears of attention, feed-forward and experts in the order of a token's way, where `tokens` make a pass.
    pub fn linears(&self, tokens: usize) -> Vec<LinearKind> {
        let mut kinds: Vec<LinearKind> = Vec::new();
        self.for_each_tensor(&mut |name, shape| {
            let &[outputs, inputs] = shape else { return };
            if !Component::in_fp8(&name) {
                return;
            }
            let (experts, tokens) = (self.experts_beside(&name), self.tokens_of_linear(&name, tokens));
            let name = kind(&name);
            let down = name.ends_with("down_proj");
            let alike = |k: &&mut LinearKind| {
                (k.inputs, k.outputs, k.experts, k.tokens) == (inputs, outputs, experts, tokens) && k.is_down() == down
            };
            match kinds.iter_mut().find(alike) {
                Some(kind) => {
                    kind.count += 1;
                    if !kind.names.contains(&name) {
                        kind.names.push(name);
                    }
                }
                None => kinds.push(LinearKind { names: vec![name], inputs, outputs, tokens, experts, count: 1 }),
            }
        });
        kinds
    }

    /// How many of `tokens` reach the linear of this published name, experts getting as many each.
    pub(crate) fn tokens_of_linear(&self, name: &str, tokens: usize) -> usize {
        match &self.moe {
            Some(moe) if Component::is_routed(name) => {
                (tokens * moe.num_experts_per_tok).div_ceil(moe.n_routed_experts)
            }
            _ => tokens,
        }
    }

    fn experts_beside(&self, name: &str) -> usize {
        self.moe.as_ref().filter(|_| Component::is_routed(name)).map_or(1, |moe| moe.n_routed_experts)
    }
}

/// `mlp.experts.up_proj` of `model.layers.3.mlp.experts.17.up_proj.weight`.
fn kind(name: &str) -> String {
    let name = name.strip_prefix("model.layers.").unwrap_or(name);
    let parts = name.split('.').filter(|part| *part != "weight" && part.parse::<usize>().is_err());
    parts.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linears_of_deepseek_v3_are_told_once_by_shape_and_tokens() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/configs/DeepSeek-V3.json");
        let config = Config::from_file(path).unwrap();
        let kinds = config.linears(4096);
        let told: Vec<_> = kinds
            .iter()
            .map(|k| {
                format!("{} {}x{} {} of {} {}", k.names.join(","), k.inputs, k.outputs, k.tokens, k.experts, k.count)
            })
            .collect();
        // 61 layers and one of multi-token prediction; the first 3 are dense. An expert gets 4096 · 8 / 256 tokens.
        assert_eq!(
            told,
            [
                "self_attn.q_a_proj 7168x1536 4096 of 1 62",
                "self_attn.q_b_proj 1536x24576 4096 of 1 62",
                "self_attn.kv_a_proj_with_mqa 7168x576 4096 of 1 62",
                "self_attn.kv_b_proj 512x32768 4096 of 1 62",
                "self_attn.o_proj 16384x7168 4096 of 1 62",
                "mlp.gate_proj,mlp.up_proj 7168x18432 4096 of 1 6",
                "mlp.down_proj 18432x7168 4096 of 1 3",
                "mlp.experts.gate_proj,mlp.experts.up_proj 7168x2048 128 of 256 30208",
                "mlp.experts.down_proj 2048x7168 128 of 256 15104",
                "mlp.shared_experts.gate_proj,mlp.shared_experts.up_proj 7168x2048 4096 of 1 118",
                "mlp.shared_experts.down_proj 2048x7168 4096 of 1 59",
            ]
        );
    }
}
