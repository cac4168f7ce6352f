//! The config files of DeepSeek's own inference code, which name the same sizes by other keys.
//!
//! Source: github.com/deepseek-ai/DeepSeek-V3 at 9b4e978, `inference/configs` and the defaults of its `ModelArgs`. A checkpoint
//! converted for that code has other tensor names too, so such a file says what a model is and loads none.

use serde_json::{Map, Value, json};

use super::{ConfigError, read};

/// The keys of config.json that say the same, and what they rest on that the file does not say.
#[derive(Clone, Debug, PartialEq)]
pub struct Translated {
    /// As in a published config.json.
    pub map: Map<String, Value>,
    /// In words, one per line.
    pub assumptions: Vec<String>,
}

/// Sizes that every such file has, and their published names.
const SIZES: [(&str, &str); 14] = [
    ("vocab_size", "vocab_size"),
    ("dim", "hidden_size"),
    ("inter_dim", "intermediate_size"),
    ("moe_inter_dim", "moe_intermediate_size"),
    ("n_layers", "num_hidden_layers"),
    ("n_dense_layers", "first_k_dense_replace"),
    ("n_heads", "num_attention_heads"),
    ("n_routed_experts", "n_routed_experts"),
    ("n_shared_experts", "n_shared_experts"),
    ("n_activated_experts", "num_experts_per_tok"),
    ("kv_lora_rank", "kv_lora_rank"),
    ("qk_nope_head_dim", "qk_nope_head_dim"),
    ("qk_rope_head_dim", "qk_rope_head_dim"),
    ("v_head_dim", "v_head_dim"),
];

/// Translates a file of DeepSeek's inference code; `None` if it is not one: it has `dim` and `n_layers` and no `model_type`.
///
/// # Errors
/// [`ConfigError`] names every size that is missing, and a value that the code does not know.
pub fn translate_inference_keys(given: &Map<String, Value>) -> Result<Option<Translated>, ConfigError> {
    if given.contains_key("model_type") || !given.contains_key("dim") || !given.contains_key("n_layers") {
        return Ok(None);
    }
    read::refuse_missing(given, "DeepSeek's inference code", SIZES.iter().map(|(name, _)| *name))?;
    let mut map = Map::new();
    for (name, published) in SIZES {
        map.insert(published.into(), given[name].clone());
    }
    let get = |name: &str, default: Value| given.get(name).cloned().unwrap_or(default);
    let refused = |name: &str, supported: &str| ConfigError::Unsupported {
        key: name.into(),
        found: given.get(name).map_or_else(|| "missing".into(), read::brief),
        supported: supported.into(),
    };

    let groups = get("n_expert_groups", 1.into());
    let (family, scoring, method) = match get("score_func", "softmax".into()).as_str() {
        Some("sigmoid") => ("deepseek_v3", "sigmoid", "noaux_tc"),
        Some("softmax") if groups == 1 => ("deepseek_v2", "softmax", "greedy"),
        Some("softmax") => ("deepseek_v2", "softmax", "group_limited_greedy"),
        _ => return Err(refused("score_func", "softmax and sigmoid")),
    };
    let rest = json!({
        "model_type": family,
        "scoring_func": scoring,
        "topk_method": method,
        "norm_topk_prob": scoring == "sigmoid",
        "n_group": groups,
        "topk_group": get("n_limited_groups", 1.into()),
        "routed_scaling_factor": get("route_scale", json!(1.0)),
        "q_lora_rank": match get("q_lora_rank", 0.into()) {
            rank if rank == 0 => Value::Null,
            rank => rank,
        },
        "tie_word_embeddings": false,
        "rms_norm_eps": 1e-6,
        "rope_theta": get("rope_theta", json!(10_000.0)),
    });
    map.extend(rest.as_object().cloned().unwrap_or_default());

    let (original, factor) = (get("original_seq_len", 4096.into()), get("rope_factor", json!(40.0)));
    let context =
        original.as_f64().zip(factor.as_f64()).map(|(n, factor)| n * factor).filter(|n| (1.0..=1e12).contains(n));
    let context =
        context.ok_or_else(|| refused("rope_factor", "a number that makes a context of original_seq_len longer"))?;
    let mscale = get("mscale", json!(1.0));
    map.insert("max_position_embeddings".into(), (context as u64).into());
    map.insert(
        "rope_scaling".into(),
        json!({
            "type": "yarn", "factor": factor, "original_max_position_embeddings": original,
            "beta_fast": get("beta_fast", 32.into()), "beta_slow": get("beta_slow", 1.into()),
            "mscale": mscale, "mscale_all_dim": mscale,
        }),
    );
    match get("dtype", "bf16".into()).as_str() {
        Some("bf16") => drop(map.insert("torch_dtype".into(), "bfloat16".into())),
        Some("fp8") => {
            let mut fp8 = json!({
                "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
            });
            if let Some(format) = given.get("scale_fmt").filter(|f| !f.is_null()) {
                fp8["scale_fmt"] = format.clone();
            }
            map.insert("quantization_config".into(), fp8);
        }
        _ => return Err(refused("dtype", "bf16 and fp8")),
    }

    let assumptions = vec![
        format!("a context of {} tokens, the code's original_seq_len times its rope_factor", context as u64),
        format!("the layout {family}, from the gate's {scoring}"),
        "YaRN with the code's defaults, a norm epsilon of 1e-6, an untied head".into(),
        "no multi-token prediction: this code does not run it".into(),
    ];
    Ok(Some(Translated { map, assumptions }))
}
