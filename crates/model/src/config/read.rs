//! config.json to [`Config`], with every size bounded and every relation checked.

use std::{fs::File, io::Read, ops::RangeInclusive, path::Path};

use serde_json::{Map, Value};

use super::{Attention, Config, ConfigError, Family, Moe, Quantization, Rope, RopeScaling, TopkMethod, refused};

/// The largest published config.json is below 10 KB; some list a label per token.
const MAX_FILE_BYTES: u64 = 16 << 20;
/// Widths, 2²⁴: a hundred times the largest published. A product of any two, times 2³¹ tokens, fits a `u64`.
const MAX_WIDTH: usize = 1 << 24;
const MAX_POSITIONS: usize = 1 << 31;
const MAX_VOCABULARY: usize = (1 << 31) - 1;
/// DeepSeek-V3 has 46,000 without scales. Bounds the memory that a list of all names takes.
const MAX_TENSORS: u64 = 1_000_000;
/// A thousand times DeepSeek-V3. Bytes of any format still fit a `u64`.
const MAX_PARAMETERS: u64 = 1_000_000_000_000_000;

const SUPPORTED_FAMILIES: &str = "deepseek_v2 (DeepSeek-V2, V2-Lite), deepseek_v3 (DeepSeek-V3 and R1, Moonlight, Kimi-K2), \
     llama (Llama 2 and 3, R1-Distill-Llama), qwen2 (Qwen2, Qwen2.5, R1-Distill-Qwen)";

pub(super) fn from_file(path: &Path) -> Result<Config, ConfigError> {
    from_json(&text_of(path)?).map_err(|error| ConfigError::File { path: path.into(), error: Box::new(error) })
}

/// The text of a config.json and its keys, none of them looked at.
pub(super) fn keys_of_file(path: &Path) -> Result<(String, Map<String, Value>), ConfigError> {
    let text = text_of(path)?;
    let keys = object(&text).map_err(|error| ConfigError::File { path: path.into(), error: Box::new(error) })?;
    Ok((text, keys))
}

/// The text of a file that is small enough to be a config.
pub(crate) fn text_of(path: &Path) -> Result<String, ConfigError> {
    let read = || -> std::io::Result<String> {
        let mut text = String::new();
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(std::io::Error::other("not a file"));
        }
        if metadata.len() <= MAX_FILE_BYTES {
            file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
        }
        if metadata.len().max(text.len() as u64) > MAX_FILE_BYTES {
            return Err(std::io::Error::other("larger than 16 MiB, which no config.json is"));
        }
        Ok(text)
    };
    read().map_err(|error| ConfigError::Read { path: path.into(), error })
}

pub(super) fn from_json(text: &str) -> Result<Config, ConfigError> {
    from_object(object(text)?)
}

fn object(text: &str) -> Result<Map<String, Value>, ConfigError> {
    match serde_json::from_str(text).map_err(|e| ConfigError::Json(e.to_string()))? {
        Value::Object(map) => Ok(map),
        other => Err(ConfigError::NotAnObject { found: brief(&other) }),
    }
}

pub(super) fn family(map: &Map<String, Value>) -> Result<Family, ConfigError> {
    let missing = || ConfigError::Missing {
        key: "model_type".into(),
        family: "a model".into(),
        expected: format!("the name of its family; supported: {SUPPORTED_FAMILIES}"),
    };
    match map.get("model_type").ok_or_else(missing)? {
        Value::String(s) if s == "deepseek_v3" || s == "kimi_k2" => Ok(Family::DeepseekV3),
        Value::String(s) if s == "deepseek_v2" => Ok(Family::DeepseekV2),
        Value::String(s) if s == "qwen2" => Ok(Family::Qwen2),
        Value::String(s) if s == "llama" => Ok(Family::Llama),
        other => Err(match other.as_str().and_then(refused::what_is_missing) {
            Some(missing) => ConfigError::Family { found: brief(other), missing, supported: SUPPORTED_FAMILIES },
            None => unsupported("model_type", other, SUPPORTED_FAMILIES),
        }),
    }
}

/// Keys without which there is no model, in the order of a published file. Others have a default, or are asked for where another
/// key needs them.
const REQUIRED: [&str; 6] = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
];
/// The same of latent attention and experts.
const REQUIRED_DEEPSEEK: [&str; 10] = [
    "q_lora_rank",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "n_routed_experts",
    "num_experts_per_tok",
    "n_shared_experts",
    "moe_intermediate_size",
    "first_k_dense_replace",
];

fn required(family: Family) -> Vec<&'static str> {
    let own: &[&str] = match family {
        Family::DeepseekV3 | Family::DeepseekV2 => &REQUIRED_DEEPSEEK,
        Family::Qwen2 => &["num_key_value_heads"],
        Family::Llama => &[],
    };
    let groups: &[&str] = if family == Family::DeepseekV3 { &["n_group", "topk_group"] } else { &[] };
    [&REQUIRED, own, groups].concat()
}

/// One error for all missing keys, if they are several; of one alone the reader knows more to say.
pub(super) fn refuse_missing(
    map: &Map<String, Value>,
    owner: &str,
    required: impl Iterator<Item = &'static str>,
) -> Result<(), ConfigError> {
    let mut keys: Vec<String> = required.filter(|&key| !map.contains_key(key)).map(str::to_owned).collect();
    match keys.len() {
        0 => Ok(()),
        1 => Err(ConfigError::Missing { key: keys.remove(0), family: owner.into(), expected: "a whole number".into() }),
        _ => Err(ConfigError::MissingSeveral { keys, family: owner.into() }),
    }
}

pub(super) fn from_object(raw: Map<String, Value>) -> Result<Config, ConfigError> {
    let family = family(&raw)?;
    if let Err(several @ ConfigError::MissingSeveral { .. }) =
        refuse_missing(&raw, family.model_type(), required(family).into_iter())
    {
        return Err(several);
    }
    let keys = Keys { map: &raw, table: "", owner: family.model_type() };
    keys.only("hidden_act", &[Value::from("silu")], "silu")?;

    let vocab_size = keys.size("vocab_size", 1..=MAX_VOCABULARY)?;
    let hidden_size = keys.width("hidden_size")?;
    let num_attention_heads = keys.width("num_attention_heads")?;
    let max_position_embeddings = keys.size("max_position_embeddings", 1..=MAX_POSITIONS)?;
    let rms_norm_eps = keys.number_or("rms_norm_eps", 1e-6)?;
    if !(rms_norm_eps < 1.0 && rms_norm_eps >= f64::from(f32::MIN_POSITIVE)) {
        return Err(keys.invalid("rms_norm_eps", "a number above 0 and below 1, usually 1e-6"));
    }
    let initializer_range = keys.number_or("initializer_range", 0.02)?;
    if !(0.0..=1000.0).contains(&initializer_range) {
        return Err(keys.invalid("initializer_range", "a standard deviation of 0 or more, usually 0.02"));
    }
    let (attention, moe) = match family {
        Family::DeepseekV3 => (mla(&keys, num_attention_heads)?, Some(experts(&keys, TopkMethod::BiasedSigmoid)?)),
        Family::DeepseekV2 => (mla(&keys, num_attention_heads)?, Some(experts(&keys, TopkMethod::Softmax)?)),
        Family::Qwen2 => (gqa(&keys, num_attention_heads, hidden_size, [true, false])?, None),
        Family::Llama => {
            let bias = keys.bool_or("attention_bias", false)?;
            (gqa(&keys, num_attention_heads, hidden_size, [bias, bias])?, None)
        }
    };
    let interleave = match family {
        Family::DeepseekV3 => keys.bool_or("rope_interleave", true)?,
        Family::DeepseekV2 => true,
        Family::Qwen2 | Family::Llama => false,
    };
    let num_nextn_predict_layers = match family {
        Family::DeepseekV3 => match keys.size_or("num_nextn_predict_layers", 0, 0..=100)? {
            n @ (0 | 1) => n,
            n => {
                return Err(unsupported("num_nextn_predict_layers", &n.into(), "0 and 1; 0 runs without these layers"));
            }
        },
        _ => 0,
    };
    let mlp_bias = match family {
        Family::Llama => keys.bool_or("mlp_bias", false)?,
        Family::DeepseekV2 => {
            keys.only("mlp_bias", &[false.into()], "false")?;
            false
        }
        Family::DeepseekV3 | Family::Qwen2 => false,
    };
    let rope = rope(&keys, max_position_embeddings, interleave)?;
    let config = Config {
        family,
        vocab_size,
        hidden_size,
        intermediate_size: keys.width("intermediate_size")?,
        mlp_bias,
        num_hidden_layers: keys.size("num_hidden_layers", 1..=100_000)?,
        num_nextn_predict_layers,
        num_attention_heads,
        max_position_embeddings,
        rms_norm_eps: rms_norm_eps as f32,
        tie_word_embeddings: keys.bool_or("tie_word_embeddings", false)?,
        initializer_range: initializer_range as f32,
        rope,
        attention,
        moe,
        quantization: Quantization::from_config(&raw)?,
        bos_token_id: keys.token_id("bos_token_id", vocab_size)?,
        eos_token_ids: eos(&keys, vocab_size)?,
        raw,
    };
    check_together(&config)?;
    Ok(config)
}

/// Sizes that are fine alone may be absurd together. The number of tensors comes first: it bounds the rest.
fn check_together(config: &Config) -> Result<(), ConfigError> {
    let tensors = config.tensor_count_bound();
    if tensors > MAX_TENSORS {
        return Err(ConfigError::TooLarge { what: format!("about {tensors} tensors"), limit: MAX_TENSORS });
    }
    let mut parameters = 0_u128;
    config.for_each_tensor(&mut |_, shape| parameters += shape.iter().map(|&n| n as u128).product::<u128>());
    if parameters > u128::from(MAX_PARAMETERS) {
        return Err(ConfigError::TooLarge { what: format!("{parameters} parameters"), limit: MAX_PARAMETERS });
    }
    Ok(())
}

fn mla(keys: &Keys<'_>, heads: usize) -> Result<Attention, ConfigError> {
    if keys.size_or("num_key_value_heads", heads, 1..=MAX_WIDTH)? != heads {
        return Err(keys.invalid(
            "num_key_value_heads",
            &format!("`num_attention_heads`, {heads}: latent attention has a key and a value for every head"),
        ));
    }
    let q_lora_rank = match keys.get("q_lora_rank") {
        Some(Value::Null) => None,
        _ => Some(keys.width_or_null("q_lora_rank")?),
    };
    let (qk_nope_head_dim, qk_rope_head_dim, v_head_dim) =
        (keys.width("qk_nope_head_dim")?, keys.width("qk_rope_head_dim")?, keys.width("v_head_dim")?);
    even(keys, "qk_rope_head_dim", qk_rope_head_dim)?;
    let widest = heads as u64 * (qk_nope_head_dim + qk_rope_head_dim.max(v_head_dim)) as u64;
    if widest > MAX_WIDTH as u64 {
        return Err(ConfigError::TooLarge { what: format!("{widest} values in all heads"), limit: MAX_WIDTH as u64 });
    }
    Ok(Attention::Mla {
        q_lora_rank,
        kv_lora_rank: keys.width("kv_lora_rank")?,
        qk_nope_head_dim,
        qk_rope_head_dim,
        v_head_dim,
        bias: keys.bool_or("attention_bias", false)?,
    })
}

fn gqa(
    keys: &Keys<'_>,
    heads: usize,
    hidden_size: usize,
    [qkv_bias, o_bias]: [bool; 2],
) -> Result<Attention, ConfigError> {
    keys.only("use_sliding_window", &[false.into()], "false (attention over the whole context)")?;
    keys.only("use_mrope", &[false.into()], "false (text only)")?;
    if let Some(Value::Array(types)) = keys.get("layer_types")
        && let Some(other) = types.iter().find(|t| *t != "full_attention")
    {
        return Err(unsupported("layer_types", other, "full_attention in every layer"));
    }
    let num_key_value_heads = match keys.get("num_key_value_heads") {
        Some(Value::Null) => heads,
        None if keys.owner == Family::Llama.model_type() => heads, // Llama 1: a key for every head.
        _ => keys.width_or_null("num_key_value_heads")?,
    };
    if !heads.is_multiple_of(num_key_value_heads) {
        return Err(keys.invalid(
            "num_key_value_heads",
            &format!("a divisor of `num_attention_heads`, {heads}: as many query heads share each key"),
        ));
    }
    let head_dim = match keys.get("head_dim") {
        Some(Value::Null) | None if !hidden_size.is_multiple_of(heads) => {
            return Err(keys.invalid(
                "num_attention_heads",
                &format!("a divisor of `hidden_size`, {hidden_size}, as the file has no `head_dim`"),
            ));
        }
        Some(Value::Null) | None => hidden_size / heads,
        Some(_) => keys.width("head_dim")?,
    };
    if !head_dim.is_multiple_of(2) {
        return Err(ConfigError::Invalid {
            key: "head_dim".into(),
            found: head_dim.to_string(),
            expected: "an even number: rotary embedding turns pairs".into(),
        });
    }
    let widest = heads as u64 * head_dim as u64;
    if widest > MAX_WIDTH as u64 {
        return Err(ConfigError::TooLarge { what: format!("{widest} values in all heads"), limit: MAX_WIDTH as u64 });
    }
    Ok(Attention::Gqa { num_key_value_heads, head_dim, qkv_bias, o_bias })
}

fn experts(keys: &Keys<'_>, topk_method: TopkMethod) -> Result<Moe, ConfigError> {
    let softmax = topk_method == TopkMethod::Softmax;
    let greedy = softmax && keys.get("topk_method").is_none_or(|m| m == "greedy");
    if softmax {
        keys.only("scoring_func", &["softmax".into()], "softmax")?;
        keys.only("topk_method", &["greedy".into(), "group_limited_greedy".into()], "greedy and group_limited_greedy")?;
        // Published code scales either by the sum or by the factor, `transformers` always by the factor.
        keys.only("norm_topk_prob", &[false.into()], "false, as in every published deepseek_v2 model")?;
    } else {
        keys.only("scoring_func", &["sigmoid".into()], "sigmoid")?;
        keys.only("topk_method", &["noaux_tc".into()], "noaux_tc")?;
    }
    let (n_group, topk_group) = if greedy {
        (1, 1) // The choice is among all experts, whatever the keys say.
    } else {
        (keys.width("n_group")?, keys.width("topk_group")?)
    };
    let moe = Moe {
        topk_method,
        n_routed_experts: keys.width("n_routed_experts")?,
        num_experts_per_tok: keys.width("num_experts_per_tok")?,
        n_shared_experts: match keys.get("n_shared_experts") {
            Some(Value::Null) if softmax => 0,
            _ => keys.width("n_shared_experts")?,
        },
        moe_intermediate_size: keys.width("moe_intermediate_size")?,
        n_group,
        topk_group,
        norm_topk_prob: keys.bool_or("norm_topk_prob", !softmax)?,
        routed_scaling_factor: keys.number_or("routed_scaling_factor", if softmax { 1.0 } else { 2.5 })? as f32,
        first_k_dense_replace: keys.size("first_k_dense_replace", 0..=MAX_WIDTH)?,
        moe_layer_freq: keys.size_or("moe_layer_freq", 1, 1..=MAX_WIDTH)?,
    };
    if !(moe.routed_scaling_factor.is_normal() && moe.routed_scaling_factor > 0.0) {
        return Err(keys.invalid("routed_scaling_factor", "a number above 0"));
    }
    if !moe.n_routed_experts.is_multiple_of(moe.n_group) {
        let expected = format!("a divisor of `n_routed_experts`, {}: groups are alike", moe.n_routed_experts);
        return Err(keys.invalid("n_group", &expected));
    }
    let group = moe.n_routed_experts / moe.n_group;
    if group < 2 && !softmax {
        let expected = format!("at least 2 for each of the {} groups: a group is rated by its best two", moe.n_group);
        return Err(keys.invalid("n_routed_experts", &expected));
    }
    if moe.topk_group > moe.n_group {
        return Err(keys.invalid("topk_group", &format!("at most `n_group`, {}", moe.n_group)));
    }
    if moe.num_experts_per_tok > moe.topk_group * group {
        let expected = format!(
            "at most {}: a token chooses among {} groups of {group} experts",
            moe.topk_group * group,
            moe.topk_group
        );
        return Err(keys.invalid("num_experts_per_tok", &expected));
    }
    let shared = moe.n_shared_experts as u64 * moe.moe_intermediate_size as u64;
    if shared > MAX_WIDTH as u64 {
        return Err(ConfigError::TooLarge { what: format!("shared experts {shared} wide"), limit: MAX_WIDTH as u64 });
    }
    Ok(moe)
}

/// Either style of keys. A value inside the table goes before one beside it, as in `transformers`; where both styles
/// are there and disagree, nobody can know which the weights were made with.
fn rope(keys: &Keys<'_>, max_position_embeddings: usize, interleave: bool) -> Result<Rope, ConfigError> {
    let beside = match keys.get("rope_theta") {
        None | Some(Value::Null) => None,
        Some(_) => Some(theta(keys)?),
    };
    let mut read = None;
    for name in ["rope_parameters", "rope_scaling"] {
        let table = match keys.get(name) {
            None | Some(Value::Null) => continue,
            Some(Value::Object(table)) => table,
            Some(_) => return Err(keys.invalid(name, "null or a table such as {\"rope_type\": \"yarn\", ...}")),
        };
        let table = Keys { map: table, table: name, owner: name };
        let inside = match table.get("rope_theta") {
            None | Some(Value::Null) => None,
            Some(_) => Some(theta(&table)?),
        };
        if let (Some(inside), Some(beside)) = (inside, beside)
            && inside != beside
        {
            return Err(keys.conflict("rope_theta", &format!("{name}.rope_theta"), inside.to_string()));
        }
        table.only("partial_rotary_factor", &[1.0.into(), 1.into(), Value::Null], "1 (whole heads rotate)")?;
        let rope = Rope {
            theta: inside.or(beside).unwrap_or(10_000.0),
            scaling: scaling(&table, keys, max_position_embeddings)?,
            interleave,
        };
        match &read {
            Some(first) if *first != rope => {
                let other = keys.get("rope_parameters").map_or_else(String::new, brief);
                return Err(keys.conflict("rope_scaling", "rope_parameters", other));
            }
            _ => read = Some(rope),
        }
    }
    keys.only("partial_rotary_factor", &[1.0.into(), 1.into(), Value::Null], "1 (whole heads rotate)")?;
    Ok(read.unwrap_or(Rope { theta: beside.unwrap_or(10_000.0), scaling: RopeScaling::None, interleave }))
}

fn theta(keys: &Keys<'_>) -> Result<f64, ConfigError> {
    let theta = keys.number("rope_theta")?;
    if theta > 1.0 && theta <= 1e18 {
        Ok(theta)
    } else {
        Err(keys.invalid("rope_theta", "a number above 1, usually 10000"))
    }
}

fn scaling(table: &Keys<'_>, top: &Keys<'_>, max_position_embeddings: usize) -> Result<RopeScaling, ConfigError> {
    if let (Some(new), Some(old)) = (table.get("rope_type"), table.get("type"))
        && new != old
    {
        return Err(table.conflict("rope_type", &table.path("type"), brief(old)));
    }
    let kind = if table.get("rope_type").is_some() { "rope_type" } else { "type" };
    match table.get(kind) {
        None if table.map.values().any(Value::is_object) => {
            return Err(table.invalid_table("one table for all layers: rope by layer type is not supported"));
        }
        None if table.map.keys().any(|k| k != "rope_theta" && k != "partial_rotary_factor") => {
            return Err(table.missing("rope_type", "the kind of scaling, \"default\", \"yarn\" or \"llama3\""));
        }
        None => return Ok(RopeScaling::None),
        Some(Value::String(s)) if s == "default" => return Ok(RopeScaling::None),
        Some(Value::String(s)) if s == "llama3" => return llama3(table),
        Some(Value::String(s)) if s == "yarn" => {}
        Some(other) => return Err(unsupported(&table.path(kind), other, "default (no scaling), yarn and llama3")),
    }
    // `transformers` lets a key of this name at the top win, and takes the longest context where there is none.
    let original = if matches!(top.get("original_max_position_embeddings"), Some(v) if !v.is_null()) {
        top.size("original_max_position_embeddings", 1..=MAX_POSITIONS)?
    } else {
        table.size_or("original_max_position_embeddings", max_position_embeddings, 1..=MAX_POSITIONS)?
    };
    let factor = match table.get("factor") {
        Some(Value::Null) => max_position_embeddings as f64 / original as f64,
        _ => table.number("factor")?,
    };
    if !(1.0..=1e6).contains(&factor) {
        return Err(table.invalid("factor", "a number from 1 to 1000000: the longest context over the original one"));
    }
    // 0 stands for the default there.
    let or_default = |x: f64, default: f64| if x == 0.0 { default } else { x };
    let beta_fast = or_default(table.number_or("beta_fast", 0.0)?, 32.0);
    let beta_slow = or_default(table.number_or("beta_slow", 0.0)?, 1.0);
    let is_turns = |x: f64| (1e-6..=1e6).contains(&x);
    if !is_turns(beta_slow) {
        return Err(table.invalid("beta_slow", "a number of rotations above 0, usually 1"));
    }
    if !is_turns(beta_fast) || beta_fast < beta_slow {
        return Err(table.invalid("beta_fast", &format!("at least `beta_slow`, {beta_slow}; usually 32")));
    }
    let mscale = |key: &str| match table.number_or(key, 0.0)? {
        x if (0.0..=1000.0).contains(&x) => Ok(x),
        _ => Err(table.invalid(key, "a number of 0 or more, usually 1")),
    };
    let attention_factor = match table.get("attention_factor") {
        None | Some(Value::Null) => None,
        Some(_) => match table.number("attention_factor")? {
            x if x > 0.0 && x <= 1000.0 => Some(x),
            _ => return Err(table.invalid("attention_factor", "a number above 0")),
        },
    };
    Ok(RopeScaling::Yarn {
        factor,
        original_max_position_embeddings: original,
        beta_fast,
        beta_slow,
        mscale: mscale("mscale")?,
        mscale_all_dim: mscale("mscale_all_dim")?,
        attention_factor,
        truncate: table.bool_or("truncate", true)?,
    })
}

fn llama3(table: &Keys<'_>) -> Result<RopeScaling, ConfigError> {
    let factor = table.number("factor")?;
    if !(1.0..=1e6).contains(&factor) {
        return Err(table.invalid("factor", "a number from 1 to 1000000: the longest context over the original one"));
    }
    let (low, high) = (table.number("low_freq_factor")?, table.number("high_freq_factor")?);
    if !(1e-6..=1e6).contains(&low) {
        return Err(table.invalid("low_freq_factor", "a number of rotations above 0, usually 1"));
    }
    if !(high > low && high <= 1e6) {
        return Err(table.invalid("high_freq_factor", &format!("a number above `low_freq_factor`, {low}; usually 4")));
    }
    Ok(RopeScaling::Llama3 {
        factor,
        low_freq_factor: low,
        high_freq_factor: high,
        original_max_position_embeddings: table.size("original_max_position_embeddings", 1..=MAX_POSITIONS)?,
    })
}

fn eos(keys: &Keys<'_>, vocab_size: usize) -> Result<Vec<u32>, ConfigError> {
    match keys.get("eos_token_id") {
        Some(Value::Array(ids)) => ids
            .iter()
            .map(|id| token_id(id, vocab_size).ok_or_else(|| keys.outside("eos_token_id", vocab_size)))
            .collect(),
        _ => Ok(keys.token_id("eos_token_id", vocab_size)?.into_iter().collect()),
    }
}

fn token_id(value: &Value, vocab_size: usize) -> Option<u32> {
    value.as_u64().filter(|&id| id < vocab_size as u64).and_then(|id| u32::try_from(id).ok())
}

fn even(keys: &Keys<'_>, key: &str, n: usize) -> Result<(), ConfigError> {
    if n.is_multiple_of(2) { Ok(()) } else { Err(keys.invalid(key, "an even number: rotary embedding turns pairs")) }
}

fn unsupported(key: &str, found: &Value, supported: &str) -> ConfigError {
    ConfigError::Unsupported { key: key.into(), found: brief(found), supported: supported.into() }
}

/// The beginning of a value as JSON; a stranger's file may hold a book there.
pub(crate) fn brief(value: &Value) -> String {
    let text = match value {
        Value::Array(list) if list.len() > 8 => format!("a list of {}", list.len()),
        Value::Object(map) if map.len() > 8 => format!("a table of {} keys", map.len()),
        Value::String(s) if s.len() > 400 => format!("a text of {} bytes", s.len()),
        other => other.to_string(),
    };
    match text.char_indices().nth(100) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// A table of the file with typed access; errors carry the key with the table's name before it.
struct Keys<'a> {
    map: &'a Map<String, Value>,
    /// Empty at the top.
    table: &'static str,
    /// Who needs the keys, for the error of a missing one.
    owner: &'static str,
}

impl<'a> Keys<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key)
    }

    fn path(&self, key: &str) -> String {
        if self.table.is_empty() { key.into() } else { format!("{}.{key}", self.table) }
    }

    fn size(&self, key: &str, range: RangeInclusive<usize>) -> Result<usize, ConfigError> {
        let expected = || format!("a whole number from {} to {}", range.start(), range.end());
        let value = self.get(key).ok_or_else(|| self.missing(key, &expected()))?;
        let n = value.as_u64().and_then(|n| usize::try_from(n).ok());
        n.filter(|n| range.contains(n)).ok_or_else(|| self.invalid(key, &expected()))
    }

    fn size_or(&self, key: &str, default: usize, range: RangeInclusive<usize>) -> Result<usize, ConfigError> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(_) => self.size(key, range),
        }
    }

    fn width(&self, key: &str) -> Result<usize, ConfigError> {
        self.size(key, 1..=MAX_WIDTH)
    }

    /// For keys that must be there but may be `null`, which the caller has looked for.
    fn width_or_null(&self, key: &str) -> Result<usize, ConfigError> {
        self.width(key).map_err(|error| match error {
            ConfigError::Missing { key, family, expected } => {
                ConfigError::Missing { key, family, expected: expected + ", or null" }
            }
            ConfigError::Invalid { key, found, expected } => {
                ConfigError::Invalid { key, found, expected: expected + ", or null" }
            }
            other => other,
        })
    }

    fn number(&self, key: &str) -> Result<f64, ConfigError> {
        let value = self.get(key).ok_or_else(|| self.missing(key, "a number"))?;
        value.as_f64().filter(|x| x.is_finite()).ok_or_else(|| self.invalid(key, "a number"))
    }

    fn number_or(&self, key: &str, default: f64) -> Result<f64, ConfigError> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(_) => self.number(key),
        }
    }

    fn bool_or(&self, key: &str, default: bool) -> Result<bool, ConfigError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.invalid(key, "true or false")),
        }
    }

    /// `null` or absent: none.
    fn token_id(&self, key: &str, vocab_size: usize) -> Result<Option<u32>, ConfigError> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => token_id(value, vocab_size).map(Some).ok_or_else(|| self.outside(key, vocab_size)),
        }
    }

    /// Absent, or one of `allowed`.
    fn only(&self, key: &str, allowed: &[Value], supported: &str) -> Result<(), ConfigError> {
        match self.get(key) {
            Some(value) if !allowed.contains(value) => Err(unsupported(&self.path(key), value, supported)),
            _ => Ok(()),
        }
    }

    fn missing(&self, key: &str, expected: &str) -> ConfigError {
        ConfigError::Missing { key: self.path(key), family: self.owner.into(), expected: expected.into() }
    }

    fn invalid(&self, key: &str, expected: &str) -> ConfigError {
        let found = self.get(key).map_or_else(|| "missing".into(), brief);
        ConfigError::Invalid { key: self.path(key), found, expected: expected.into() }
    }

    fn invalid_table(&self, expected: &str) -> ConfigError {
        let found = brief(&Value::Object(self.map.clone()));
        ConfigError::Invalid { key: self.table.into(), found, expected: expected.into() }
    }

    fn outside(&self, key: &str, vocab_size: usize) -> ConfigError {
        self.invalid(key, &format!("a token below `vocab_size`, {vocab_size}"))
    }

    fn conflict(&self, key: &str, other: &str, other_found: String) -> ConfigError {
        let found = self.get(key).map_or_else(|| "missing".into(), brief);
        ConfigError::Conflict { key: self.path(key), found, other: other.into(), other_found }
    }
}
