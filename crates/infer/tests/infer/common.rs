//! Small models with random weights.

use jevons_kernels::random::philox4x32;
use jevons_model::{Config, Model, ModelError, Precision};

const DEEPSEEK_V3: &str = r#"{
  "model_type": "deepseek_v3", "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
  "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 96, "rms_norm_eps": 1e-6,
  "q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
  "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 16, "n_group": 1,
  "topk_group": 1, "norm_topk_prob": true, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
  "topk_method": "noaux_tc", "first_k_dense_replace": 1, "moe_layer_freq": 1, "rope_theta": 10000.0,
  "rope_scaling": null, "hidden_act": "silu", "tie_word_embeddings": false, "attention_bias": false,
  "bos_token_id": 0, "eos_token_id": 1
}"#;

const QWEN2: &str = r#"{
  "model_type": "qwen2", "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
  "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 96, "rms_norm_eps": 1e-6,
  "rope_theta": 10000.0, "rope_scaling": null, "hidden_act": "silu", "tie_word_embeddings": true,
  "bos_token_id": 0, "eos_token_id": 1
}"#;

/// A model of the DeepSeek-V3 layout, context 96.
pub fn deepseek_v3(vocab_size: usize, precision: Precision) -> Model {
    model(DEEPSEEK_V3, vocab_size, precision, |_, values| values)
}

/// A model of the Qwen2 layout, context 96.
pub fn qwen2(vocab_size: usize, precision: Precision) -> Model {
    model(QWEN2, vocab_size, precision, |_, values| values)
}

/// A model whose weights hold a NaN.
pub fn damaged() -> Model {
    model(QWEN2, 64, Precision::F32, |name, mut values| {
        if name == "model.norm.weight" {
            values[3] = f32::NAN;
        }
        values
    })
}

fn model(
    config: &str,
    vocab_size: usize,
    precision: Precision,
    change: impl Fn(&str, Vec<f32>) -> Vec<f32> + Sync,
) -> Model {
    let config = Config::from_json(&config.replace("VOCAB", &vocab_size.to_string())).unwrap();
    Model::new(config, precision, |spec| {
        let len: usize = spec.shape.iter().product();
        let name = spec.name.bytes().fold(17u32, |hash, b| hash.wrapping_mul(31).wrapping_add(b.into()));
        let values = (0..len as u32).map(|i| {
            let x = philox4x32([i, name, 0, 0], [5, 0])[0] as f32 / u32::MAX as f32 - 0.5;
            // Gains near 1; matrices wide enough that the next token depends on the whole prompt.
            if spec.shape.len() == 1 { 1.0 + 0.2 * x } else { 0.6 * x }
        });
        Ok::<_, ModelError>(change(&spec.name, values.collect()))
    })
    .unwrap()
}

/// A prompt of random tokens.
pub fn prompt(len: usize, seed: u32, vocab_size: u32) -> Vec<u32> {
    (0..len as u32).map(|i| philox4x32([i, 0, 0, 0], [seed, 1])[0] % vocab_size).collect()
}
