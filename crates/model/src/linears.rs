//! The linears that training multiplies in FP8, by kind: their shape, how many tokens reach one in a step, and whether FP8 pays there.

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
    /// Tokens that reach each in a step; of an expert, if all get as many.
    pub tokens: usize,
    /// Experts among which a layer's tokens choose; 1: all run through it.
    pub experts: usize,
    /// Of which each token chooses.
    pub choices: usize,
    /// Matrices in the model, multi-token prediction's among them.
    pub count: usize,
}

/// Multiply-adds that take as long as making one number of an activation or a gradient in E4M3, measured; see `docs/fp8.md`.
const PER_NUMBER: u128 = 54;
/// The same of one weight, beyond what writing it in bf16 takes.
const PER_WEIGHT: u128 = 13;
/// Quantising is worth it up to this part of the products: a tenth.
const WORTH: u128 = 10;

impl LinearKind {
    /// Of a parameter, by its published name, where a step has `tokens`; `None` unless it is a linear of attention, feed-forward or
    /// experts.
    pub(crate) fn of(config: &Config, name: &str, shape: &[usize], tokens: usize) -> Option<Self> {
        let &[outputs, inputs] = shape else { return None };
        if !Component::in_fp8(name) {
            return None;
        }
        let (experts, choices) = match &config.moe {
            Some(moe) if Component::is_routed(name) => (moe.n_routed_experts, moe.num_experts_per_tok),
            _ => (1, 1),
        };
        let tokens = (tokens * choices).div_ceil(experts);
        Some(Self { names: vec![kind(name)], inputs, outputs, tokens, experts, choices, count: 1 })
    }

    /// Whether it reads what a SwiGLU gave rather than the stream.
    pub fn is_down(&self) -> bool {
        self.names[0].ends_with("down_proj")
    }

    /// What `fp8.linears = "auto"` goes by: whether all the quantising of a step takes at most a tenth of the time of the three products,
    /// `10 · (54 · numbers + 13 · K·N) ≤ 3 · T·K·N`.
    ///
    /// For each token `x` is quantised before `y` and before `dW`, and `dy` once: `numbers = T·(2·K + N)`. What a gate sends to several
    /// experts is quantised before that, so once for all of them; but a down-projection's `dy` once more, weighted by the gate. The rule
    /// is of shapes alone, since what a run computes may not depend on the machine.
    pub fn worth_fp8(&self) -> bool {
        let [k, n, t, c] = [self.inputs, self.outputs, self.tokens, self.choices].map(|d| d as u128);
        // Of all choices of a token together.
        let numbers = match (self.experts > 1, self.is_down()) {
            (false, _) => c * (2 * k + n),
            (true, false) => 2 * k + c * n,
            (true, true) => 2 * c * k + (c + 1) * n,
        };
        WORTH * (PER_NUMBER * t * numbers + PER_WEIGHT * c * k * n) <= 3 * c * t * k * n
    }

    fn is_like(&self, other: &Self) -> bool {
        let shape = |l: &Self| (l.inputs, l.outputs, l.tokens, l.experts, l.is_down());
        shape(self) == shape(other)
    }
}

impl Config {
    /// The linears of attention, feed-forward and experts in the order of a token's way, where a step has `tokens`.
    pub fn linears(&self, tokens: usize) -> Vec<LinearKind> {
        let mut kinds: Vec<LinearKind> = Vec::new();
        self.for_each_tensor(&mut |name, shape| {
            let Some(mut one) = LinearKind::of(self, &name, shape, tokens) else { return };
            match kinds.iter_mut().find(|kind| kind.is_like(&one)) {
                Some(kind) => {
                    kind.count += 1;
                    if !kind.names.contains(&one.names[0]) {
                        kind.names.append(&mut one.names);
                    }
                }
                None => kinds.push(one),
            }
        });
        kinds
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

    #[test]
    fn linears_are_worth_fp8_where_quantising_takes_a_tenth_of_the_products() {
        let one = |inputs, outputs, tokens| LinearKind {
            names: vec!["self_attn.o_proj".into()],
            inputs,
            outputs,
            tokens,
            experts: 1,
            choices: 1,
            count: 1,
        };
        // Measured in docs/fp8.md: 0.84, 0.91, 0.95; 0.77 and 0.98.
        for (inputs, outputs, worth) in [(256, 256, false), (512, 512, false), (1024, 1024, true)]
            .into_iter()
            .chain([(512, 128, false), (512, 2048, true)])
        {
            assert_eq!(one(inputs, outputs, 4096).worth_fp8(), worth, "{inputs} x {outputs}");
        }
        // The weights alone take too much where few tokens meet them: 10 · 13 > 3 · 43.
        assert!(!one(1 << 20, 1 << 20, 43).worth_fp8() && one(1 << 20, 1 << 20, 44).worth_fp8());
        // Of experts an input is quantised once for all choices.
        let routed =
            |name: &str, choices| LinearKind { names: vec![name.into()], experts: 64, choices, ..one(768, 448, 4096) };
        let worth = |name| [1, 8].map(|choices| routed(name, choices).worth_fp8());
        assert_eq!(worth("mlp.experts.gate_proj"), [false, true]);
        assert_eq!(worth("mlp.experts.down_proj"), [false, false]);
        // No overflow at the largest dimensions.
        assert!(one(1 << 31, 1 << 31, 1 << 40).worth_fp8());
    }
}
