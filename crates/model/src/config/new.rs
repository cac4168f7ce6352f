//! The config of a new model, from the keys that its author cares about.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{Attention, Config, ConfigError, Family, RopeScaling, read};

/// A key that [`Config::from_map`] takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// As in config.json.
    pub name: &'static str,
    /// What an absent key means.
    pub default: KeyDefault,
    /// Meaning, with unit where there is one.
    pub doc: &'static str,
}

/// What an absent [`Key`] means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyDefault {
    /// It must be given.
    Required,
    /// This JSON value.
    Json(&'static str),
    /// It follows from another key, which the text names.
    Derived(&'static str),
    /// It is left out of the file.
    Absent,
}

use KeyDefault::{Absent, Derived, Json, Required};

const fn key(name: &'static str, default: KeyDefault, doc: &'static str) -> Key {
    Key { name, default, doc }
}

const COMMON: &[Key] = &[
    key(
        "model_type",
        Required,
        "the layout: deepseek_v3, deepseek_v2 (latent attention, mixture of experts), qwen2 or llama (dense)",
    ),
    key("vocab_size", Required, "tokens of the vocabulary"),
    key("hidden_size", Required, "width of the residual stream"),
    key("intermediate_size", Required, "width of a dense feed-forward layer"),
    key("num_hidden_layers", Required, "decoder layers"),
    key("num_attention_heads", Required, "heads of a layer"),
    key("max_position_embeddings", Required, "longest context, in tokens"),
    key("num_key_value_heads", Derived("num_attention_heads"), "heads with a key and a value of their own"),
    key("rms_norm_eps", Json("1e-6"), "keeps an all-zero token finite in the norms"),
    key("tie_word_embeddings", Json("false"), "whether the head is the embedding"),
    key(
        "initializer_range",
        Json("0.02"),
        "standard deviation of fresh matrices; DeepSeek-V3 trained with 0.006 at width 7168",
    ),
    key("rope_theta", Json("10000.0"), "base of the rotary frequencies"),
    key(
        "rope_scaling",
        Json("null"),
        "context extension: a table with type = \"yarn\" or \"llama3\", factor, original_max_position_embeddings, ...",
    ),
    key("rope_parameters", Absent, "rope_theta and rope_scaling in one table, the newer style"),
    key("bos_token_id", Json("null"), "token that starts a text"),
    key("eos_token_id", Json("null"), "token that ends a reply, or a list of them"),
    key("pad_token_id", Json("null"), "token that other tools fill batches with"),
    key("hidden_act", Json("\"silu\""), "activation; silu only"),
    key("attention_dropout", Json("0.0"), "must be 0: models of these families train without dropout"),
    key("use_cache", Json("true"), "for other tools: whether they keep keys and values"),
    key("torch_dtype", Json("\"bfloat16\""), "format of the stored weights; saving sets it"),
    key("architectures", Derived("model_type"), "for other tools: the class to load"),
];

/// Latent attention and experts.
const DEEPSEEK: &[Key] = &[
    key("q_lora_rank", Json("null"), "latent width of queries; absent: queries come straight from the hidden state"),
    key("kv_lora_rank", Required, "latent width of keys and values"),
    key("qk_nope_head_dim", Required, "part of a head's query and key that does not rotate"),
    key("qk_rope_head_dim", Required, "part that rotates; even"),
    key("v_head_dim", Required, "width of a head's value"),
    key("attention_bias", Json("false"), "biases on q_a_proj, kv_a_proj_with_mqa and o_proj"),
    key("n_routed_experts", Required, "experts of a layer"),
    key("num_experts_per_tok", Required, "experts that a token runs through"),
    key("n_shared_experts", Json("1"), "experts that every token runs through besides"),
    key("moe_intermediate_size", Required, "width of an expert"),
    key("n_group", Json("1"), "groups that the experts are cut into"),
    key("topk_group", Derived("n_group"), "groups that a token may use"),
    key("first_k_dense_replace", Json("1"), "first layers that are dense"),
    key("moe_layer_freq", Json("1"), "of the later layers, one in so many has experts"),
    key("pretraining_tp", Json("1"), "for other tools; always 1"),
    key("head_dim", Derived("qk_rope_head_dim"), "for other tools: the part that rotates"),
    key("qk_head_dim", Derived("qk_nope_head_dim + qk_rope_head_dim"), "for other tools: width of a head's query"),
];

const DEEPSEEK_V3: &[Key] = &[
    key("rope_interleave", Json("true"), "whether rotated pairs are neighbours"),
    key("norm_topk_prob", Json("true"), "whether the chosen experts' weights are scaled to sum to 1"),
    key("routed_scaling_factor", Json("2.5"), "factor on the routed experts' sum"),
    key("scoring_func", Json("\"sigmoid\""), "the gate's scores; sigmoid only"),
    key("topk_method", Json("\"noaux_tc\""), "choice of experts by biased scores; noaux_tc only"),
    key("num_nextn_predict_layers", Json("0"), "layers of multi-token prediction, 0 or 1"),
];

const DEEPSEEK_V2: &[Key] = &[
    key("norm_topk_prob", Json("false"), "false only"),
    key("routed_scaling_factor", Json("1.0"), "factor on the routed experts' sum"),
    key("scoring_func", Json("\"softmax\""), "the gate's scores; softmax only"),
    key(
        "topk_method",
        Json("\"group_limited_greedy\""),
        "choice of experts: group_limited_greedy, or greedy among all",
    ),
    key("mlp_bias", Json("false"), "false only"),
];

const QWEN2: &[Key] = &[
    key("head_dim", Absent, "width of a head; hidden_size / num_attention_heads if absent"),
    key("use_sliding_window", Json("false"), "false only"),
    key("sliding_window", Json("null"), "for other tools; unused"),
    key("max_window_layers", Json("28"), "for other tools; unused"),
];

const LLAMA: &[Key] = &[
    key("head_dim", Absent, "width of a head; hidden_size / num_attention_heads if absent"),
    key("attention_bias", Json("false"), "biases on q_proj, k_proj, v_proj and o_proj"),
    key("mlp_bias", Json("false"), "biases in the feed-forward layers"),
    key("pretraining_tp", Json("1"), "for other tools; always 1"),
];

pub(super) fn keys(family: Family) -> impl Iterator<Item = &'static Key> {
    let (shared, own): (&[Key], &[Key]) = match family {
        Family::DeepseekV3 => (DEEPSEEK, DEEPSEEK_V3),
        Family::DeepseekV2 => (DEEPSEEK, DEEPSEEK_V2),
        Family::Qwen2 => (&[], QWEN2),
        Family::Llama => (&[], LLAMA),
    };
    COMMON.iter().chain(shared).chain(own)
}

pub(super) fn from_map(given: &Map<String, Value>) -> Result<Config, ConfigError> {
    let family = read::family(given)?;
    if let Some(unknown) = given.keys().find(|name| keys(family).all(|key| key.name != *name)) {
        return Err(ConfigError::UnknownKey {
            key: brief_name(unknown),
            family: family.model_type(),
            nearest: nearest(unknown, keys(family).map(|key| key.name)),
        });
    }
    // Sorted by name, as published files are.
    let mut map: BTreeMap<String, Value> = given.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    for key in keys(family) {
        let Json(default) = key.default else { continue };
        let default: Value = serde_json::from_str(default).expect("defaults are JSON");
        let value = map.entry(key.name.into()).or_insert_with(|| default.clone());
        // `transformers` refuses a whole number where it wants a fraction.
        if let (true, Some(x)) = (default.is_f64(), value.as_f64()) {
            *value = x.into();
        }
    }
    let absent = |map: &BTreeMap<_, _>, name: &str| matches!(map.get(name), None | Some(Value::Null));
    for (name, from) in [("num_key_value_heads", "num_attention_heads"), ("topk_group", "n_group")] {
        if keys(family).any(|key| key.name == name)
            && absent(&map, name)
            && let Some(value) = map.get(from).cloned()
        {
            map.insert(name.into(), value);
        }
    }
    map.insert("model_type".into(), family.model_type().into());
    map.insert("architectures".into(), vec![Value::from(family.architecture())].into());
    if given.contains_key("rope_parameters") && !given.contains_key("rope_theta") {
        map.remove("rope_theta"); // The default must not argue with the table.
    }
    refuse_unbuilt(&map)?;

    let mut config = read::from_object(map.into_iter().collect())?;
    write_derived(&mut config);
    Ok(config)
}

/// What a file may say about a model that exists, but a new model cannot have.
fn refuse_unbuilt(map: &BTreeMap<String, Value>) -> Result<(), ConfigError> {
    for (name, supported) in [("attention_dropout", 0), ("pretraining_tp", 1)] {
        if let Some(value) = map.get(name)
            && value.as_f64() != Some(f64::from(supported))
        {
            let found = read::brief(value);
            return Err(ConfigError::Unsupported { key: name.into(), found, supported: supported.to_string() });
        }
    }
    Ok(())
}

/// Keys that other tools read and that follow from the rest; rope in the style that every version of them reads.
fn write_derived(config: &mut Config) {
    let rope = config.rope.clone();
    let (rope_dim, qk_head_dim) = (config.rope_dim(), config.qk_head_dim());
    let raw = &mut config.raw;
    if let Attention::Mla { .. } = config.attention {
        raw.insert("head_dim".into(), rope_dim.into());
        raw.insert("qk_head_dim".into(), qk_head_dim.into());
    }
    raw.remove("rope_parameters");
    raw.insert("rope_theta".into(), rope.theta.into());
    let scaling = match rope.scaling {
        RopeScaling::None => Value::Null,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            serde_json::json!({
                "type": "llama3",
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_max_position_embeddings,
            })
        }
        RopeScaling::Yarn {
            factor,
            original_max_position_embeddings,
            beta_fast,
            beta_slow,
            mscale,
            mscale_all_dim,
            attention_factor,
            truncate,
        } => {
            // Both names of the type: older tools know the first, newer the second.
            let mut table = serde_json::json!({
                "type": "yarn",
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": original_max_position_embeddings,
                "beta_fast": beta_fast,
                "beta_slow": beta_slow,
            });
            for (name, value) in [("mscale", mscale), ("mscale_all_dim", mscale_all_dim)] {
                if value != 0.0 {
                    table[name] = value.into();
                }
            }
            if let Some(value) = attention_factor {
                table["attention_factor"] = value.into();
            }
            if !truncate {
                table["truncate"] = false.into();
            }
            table
        }
    };
    raw.insert("rope_scaling".into(), scaling);
    raw.sort_keys();
}

fn brief_name(name: &str) -> String {
    name.chars().take(60).collect()
}

/// The name with the fewest edits to `typo`, if few enough to be meant.
fn nearest(typo: &str, names: impl Iterator<Item = &'static str>) -> Option<String> {
    if typo.len() > 60 {
        return None;
    }
    let (edits, name) = names.map(|name| (edits(typo, name), name)).min()?;
    (edits <= 1 + typo.len() / 4).then(|| name.into())
}

/// Levenshtein distance in bytes.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
