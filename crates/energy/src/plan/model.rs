//! What the planner needs of a model: from its config.json, or from two numbers.

use jevons_model::{
    Config,
    config::{Attention, MlaForm},
};
use serde::Serialize;
use serde_json::{Map, Value};

use super::{PlanError, number};

/// Routed experts of a model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Routed {
    /// Share of the experts that one token runs through, `K / E`.
    pub share: f64,
    /// Experts of a layer; `None` if only sizes were given.
    pub experts: Option<f64>,
    /// Parameters of all routed experts of all layers.
    pub parameters: f64,
}

/// Sizes of a model, in parameters and FLOP.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelShape {
    /// All parameters, without layers of multi-token prediction.
    pub total_parameters: f64,
    /// Those that run per token, input embedding included as in published counts.
    pub active_parameters: f64,
    /// Those of them that are multiplied: all but the table of the input embedding.
    pub multiplied_parameters: f64,
    /// FLOP of attention, forward, per token and per token of context that it sees, keys and values per head.
    pub attention_flop: f64,
    /// The same while decoding: latent attention then works in the latent space.
    pub decode_attention_flop: f64,
    /// Numbers in the cache per token of context, all layers.
    pub cache_numbers: f64,
    /// Decoder layers.
    pub layers: f64,
    /// Routed experts, if there are any.
    pub routed: Option<Routed>,
    /// Bytes per parameter as stored: 1 for FP8, 2 for bf16.
    pub stored_bytes: f64,
    /// What was guessed because only sizes were given.
    pub guesses: Vec<String>,
}

impl ModelShape {
    /// Of a config.json, quantised ones included: the FP8 checkpoints of DeepSeek cannot be loaded by every build, but they can be planned with.
    ///
    /// # Errors
    /// Those of [`Config::from_json`].
    pub fn from_config_json(text: &str) -> Result<Self, PlanError> {
        let parsed: Result<Map<String, Value>, _> = serde_json::from_str(text);
        let Ok(mut map) = parsed else { return Ok(Self::from_config(&Config::from_json(text)?)) };
        let fp8 = map.remove("quantization_config").is_some_and(|q| q.get("quant_method") == Some(&"fp8".into()));
        let mut shape = Self::from_config(&Config::from_json(&Value::Object(map).to_string())?);
        if fp8 {
            shape.stored_bytes = 1.0;
        }
        Ok(shape)
    }

    /// Of a config.
    pub fn from_config(config: &Config) -> Self {
        let (total, active) = (config.total_parameters() as f64, config.active_parameters() as f64);
        // A tied embedding is also the head, which is multiplied.
        let table = if config.tie_word_embeddings { 0.0 } else { (config.vocab_size * config.hidden_size) as f64 };
        let (layers, heads) = (config.num_hidden_layers as f64, config.num_attention_heads as f64);
        let expanded = 2.0 * heads * (config.qk_head_dim() + config.v_head_dim()) as f64 * layers;
        let form = config.default_mla_form();
        let absorbed = match (&config.attention, form) {
            (Attention::Mla { kv_lora_rank, qk_rope_head_dim, .. }, MlaForm::Absorbed) => {
                2.0 * heads * (2 * kv_lora_rank + qk_rope_head_dim) as f64 * layers
            }
            _ => expanded,
        };
        let routed = config.moe.as_ref().map(|moe| {
            let (e, k) = (moe.n_routed_experts as f64, moe.num_experts_per_tok as f64);
            // Active parameters leave out E − K of E experts of every layer.
            let parameters = if e > k { (total - active) * e / (e - k) } else { 0.0 };
            Routed { share: k / e, experts: Some(e), parameters }
        });
        Self {
            total_parameters: total,
            active_parameters: active,
            multiplied_parameters: active - table,
            attention_flop: expanded,
            decode_attention_flop: absorbed,
            cache_numbers: config.cache_numbers(form) as f64,
            layers,
            routed,
            stored_bytes: 2.0,
            guesses: Vec::new(),
        }
    }

    /// Of two numbers of parameters. All active ones are taken as multiplied, attention as none, and what serving needs beyond is guessed, and
    /// said to be.
    ///
    /// # Errors
    /// [`PlanError::Number`] unless `0 < active ≤ total ≤ 10¹⁵`.
    pub fn from_size(total: f64, active: f64) -> Result<Self, PlanError> {
        number("the number of parameters", total, 1.0..=1e15, "1 to 10¹⁵ (--size 70e9)")?;
        number(
            "the number of active parameters",
            active,
            1.0..=total,
            "above 0 and at most all parameters (--active 37e9)",
        )?;
        // Depth goes with the cube root of size: 7 B have 32 layers, 70 B 80, GPT-3 96.
        let layers = (19.4 * libm::cbrt(active / 1e9)).max(2.0).round();
        let mut guesses = vec![
            format!("{layers} layers, from the size"),
            "attention's FLOP left out: 2 to 15 % more at the usual lengths".into(),
            "a cache of 8 key-value heads of 128 per layer".into(),
        ];
        let routed = (active < total).then(|| {
            guesses.push("half of the active parameters are routed experts".into());
            let dense = active / 2.0;
            Routed { share: dense / (total - dense), experts: None, parameters: total - dense }
        });
        Ok(Self {
            total_parameters: total,
            active_parameters: active,
            multiplied_parameters: active,
            attention_flop: 0.0,
            decode_attention_flop: 0.0,
            cache_numbers: 2048.0 * layers,
            layers,
            routed,
            stored_bytes: 2.0,
            guesses,
        })
    }

    /// FLOP of a training step per token, forward and backward: `6 · multiplied + 3 · attention · S / 2`, a token seeing half of its
    /// sequence on average.
    pub fn train_flop_per_token(&self, sequence: f64) -> f64 {
        6.0 * self.multiplied_parameters + 3.0 * self.attention_flop * sequence / 2.0
    }

    /// FLOP of a forward pass per token of a prompt of `length` tokens.
    pub fn prefill_flop_per_token(&self, length: f64) -> f64 {
        2.0 * self.multiplied_parameters + self.attention_flop * length / 2.0
    }

    /// FLOP of one new token with `context` tokens before it.
    pub fn decode_flop_per_token(&self, context: f64) -> f64 {
        2.0 * self.multiplied_parameters + self.decode_attention_flop * context
    }

    /// Bytes of the weights as stored.
    pub fn weight_bytes(&self) -> f64 {
        self.total_parameters * self.stored_bytes
    }

    /// Bytes of the state of training in mixed precision: weights and gradients in bf16 or f32, masters and two moments in f32: 16 per parameter.
    pub fn training_bytes(&self) -> f64 {
        self.total_parameters * 16.0
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn golden(name: &str) -> ModelShape {
        let path = format!("{}/../model/tests/golden/configs/{name}.json", env!("CARGO_MANIFEST_DIR"));
        ModelShape::from_config_json(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    #[test]
    fn a_token_of_v3_takes_the_published_flop() {
        let v3 = golden("DeepSeek-V3");
        // Published: 250 GFLOP per token at 4K; 219.7 of the products and 30.7 of attention make 250.4.
        assert!((v3.train_flop_per_token(4096.0) / 1e9 - 250.4).abs() < 0.1, "{}", v3.train_flop_per_token(4096.0));
        assert_eq!((v3.stored_bytes, v3.routed.unwrap().experts), (1.0, Some(256.0)));
        // 58 layers of 256 experts of 44.04 M.
        assert!((v3.routed.unwrap().parameters / (58.0 * 256.0 * 3.0 * 7168.0 * 2048.0) - 1.0).abs() < 1e-12);
        assert_eq!(v3.cache_numbers, 61.0 * 576.0);
    }

    #[test]
    fn active_parameters_are_those_of_the_config_and_not_a_division() {
        // D5: a documentation divides all parameters by the number of active experts: 671 / 8 = 83.9 B.
        let active = golden("DeepSeek-V3").active_parameters;
        assert!((active / 1e9 - 37.55).abs() < 0.01, "{active}");
    }

    #[test]
    fn sizes_alone_agree_with_the_config_within_what_is_said() {
        let (config, size) = (golden("Qwen2.5-7B-Instruct"), ModelShape::from_size(7.6e9, 7.6e9).unwrap());
        let ratio = config.train_flop_per_token(4096.0) / size.train_flop_per_token(4096.0);
        assert!((0.9..1.15).contains(&ratio), "{ratio}");
        assert!(size.routed.is_none() && !size.guesses.is_empty());
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        for (total, active) in [(0.0, 0.0), (1e9, 2e9), (f64::NAN, 1.0), (1e9, f64::NAN), (1e16, 1e9), (1e9, -1.0)] {
            assert!(ModelShape::from_size(total, active).is_err(), "{total} {active}");
        }
        assert!(ModelShape::from_config_json("{}").is_err());
        assert!(ModelShape::from_config_json("no json").is_err());
    }
}
