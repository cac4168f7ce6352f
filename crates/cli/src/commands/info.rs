use std::{cmp::Reverse, collections::BTreeMap, io::Write, path::PathBuf};

use anyhow::{Context, bail};
use jevons_model::{
    Config,
    config::{Attention, RopeScaling},
};
use serde_json::{Map, Value, json};

use crate::{human, input, source};

/// Show what a model is
///
/// Architecture, parameters, sizes and context, from config.json and the headers of the weight files alone; no weights are
/// loaded.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Checkpoint folder, run folder, org/name, or a config.json alone [default: the built-in model]
    model: Option<PathBuf>,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    let info = match &args.model {
        Some(path) if path.is_file() => {
            Info::of_config(&input::text(path)?).with_context(|| path.display().to_string())?
        }
        path => Info::of_model(&source::Files::open(path.as_deref())?)?,
    };
    if args.json {
        serde_json::to_writer_pretty(&mut *out, &info.json())?;
        return Ok(writeln!(out)?);
    }
    info.print(out)
}

/// What there is to say about a model.
struct Info {
    config: Config,
    /// Things that a reader would not expect, in words.
    remarks: Vec<String>,
    files: Option<FilesInfo>,
}

/// What the files beside config.json say.
struct FilesInfo {
    tensors: usize,
    bytes: u64,
    /// Tensors of each stored format, most first.
    formats: Vec<(String, usize)>,
    /// Tokens of tokenizer.json, if there is one.
    tokenizer: Option<usize>,
    chat_template: bool,
}

impl Info {
    fn of_config(json: &str) -> anyhow::Result<Self> {
        let (config, quantised) = match Config::from_json(json) {
            Ok(config) => (config, None),
            // Such weights may be out of reach, but what they are can be told.
            Err(error) => match without_quantization(json) {
                Some((config, quantization)) => (config, Some(quantization)),
                None => bail!(error),
            },
        };
        let mut remarks = remarks(&config);
        if let Some(quantization) = quantised {
            remarks.push(format!("the weights are quantised and cannot be loaded yet: {quantization}"));
        }
        Ok(Self { config, remarks, files: None })
    }

    fn of_model(files: &source::Files) -> anyhow::Result<Self> {
        let mut info = Self::of_config(&files.config_json()?).with_context(|| files.name())?;
        let tokenizer = files.tokenizer()?.map(|t| t.vocab_size());
        let chat_template = files.template()?.is_some();
        match tokenizer {
            None => info.remarks.push("there is no tokenizer.json: only token ids can be used".into()),
            Some(_) if !chat_template => info.remarks.push("there is no chat template: it continues text".into()),
            Some(_) => {}
        }
        let checkpoint = files.checkpoint()?;
        let specs = info.config.tensors();
        if let missing @ [first, ..] =
            &specs.iter().map(|s| &s.name).filter(|name| checkpoint.get(name).is_none()).collect::<Vec<_>>()[..]
        {
            info.remarks.push(format!("{} tensors are missing, {first} first: it cannot be loaded", missing.len()));
        }
        if let unexpected @ [first, ..] = &checkpoint.unexpected(&info.config)[..] {
            info.remarks.push(format!("{} tensors are not used, {first} first", unexpected.len()));
        }
        let mut formats: BTreeMap<String, usize> = BTreeMap::new();
        for tensor in checkpoint.tensors() {
            *formats.entry(format!("{:?}", tensor.dtype)).or_default() += 1;
        }
        let mut formats: Vec<_> = formats.into_iter().collect();
        formats.sort_by_key(|(_, n)| Reverse(*n));
        let (tensors, bytes) = (checkpoint.names().len(), checkpoint.tensor_bytes());
        info.files = Some(FilesInfo { tensors, bytes, formats, tokenizer, chat_template });
        Ok(info)
    }

    fn json(&self) -> Value {
        let c = &self.config;
        let parameters = c.total_parameters();
        let mut info = json!({
            "family": c.family.model_type(),
            "architecture": c.family.architecture(),
            "parameters": { "total": parameters, "active_per_token": c.active_parameters() },
            "bytes": { "f32": parameters * 4, "bf16": parameters * 2, "fp8": parameters },
            "num_hidden_layers": c.num_hidden_layers,
            "hidden_size": c.hidden_size,
            "vocab_size": c.vocab_size,
            "context": c.max_position_embeddings,
            "attention": attention(c),
            "experts": c.moe.as_ref().map(|m| json!({
                "layers": expert_layers(c),
                "n_routed_experts": m.n_routed_experts,
                "num_experts_per_tok": m.num_experts_per_tok,
                "n_shared_experts": m.n_shared_experts,
                "moe_intermediate_size": m.moe_intermediate_size,
                "n_group": m.n_group,
                "topk_group": m.topk_group,
            })),
            "kv_bytes_per_token": {
                "bf16": 2 * cached_numbers_per_token(c),
                "f32": 4 * cached_numbers_per_token(c),
                "bf16_latent": latent_numbers_per_token(c).map(|n| 2 * n),
            },
            "remarks": self.remarks,
        });
        if let Some(files) = &self.files {
            let formats: Map<String, Value> = files.formats.iter().map(|(f, n)| (f.clone(), (*n).into())).collect();
            info["stored"] = json!({ "tensors": files.tensors, "bytes": files.bytes, "formats": formats });
            info["tokenizer"] = json!(files.tokenizer.map(|tokens| json!({ "tokens": tokens })));
            info["chat_template"] = files.chat_template.into();
        }
        info
    }

    fn print(&self, out: &mut impl Write) -> anyhow::Result<()> {
        let c = &self.config;
        let parameters = c.total_parameters();
        let mut line = |name: &str, text: String| writeln!(out, "{name:<15} {text}");
        line("family", format!("{} ({})", c.family.model_type(), c.family.architecture()))?;
        let active = match c.active_parameters() {
            active if active < parameters => format!(", {} of them run per token", human::count(active)),
            _ => String::new(),
        };
        line("parameters", format!("{}{active}", human::count(parameters)))?;
        let size = |name: &str, width: u64| format!("{} in {name}", human::bytes(parameters * width));
        line("weights", [size("f32", 4), size("bf16", 2), size("fp8", 1)].join(", "))?;
        line("layers", format!("{} of width {}", c.num_hidden_layers, c.hidden_size))?;
        line("attention", attention_text(c))?;
        match &c.moe {
            Some(m) => {
                let groups = if m.n_group > 1 {
                    format!(", from {} of {} groups", m.topk_group, m.n_group)
                } else {
                    String::new()
                };
                let shared =
                    if m.n_shared_experts > 0 { format!(", and {} shared", m.n_shared_experts) } else { String::new() };
                let (layers, routed, width) = (expert_layers(c), m.n_routed_experts, m.moe_intermediate_size);
                let dense = match c.num_hidden_layers - layers {
                    0 => String::new(),
                    n => format!("; first {n} dense of width {}", c.intermediate_size),
                };
                let text = format!("in {layers} layers {routed} of width {width}, {} per token", m.num_experts_per_tok);
                line("experts", format!("{text}{groups}{shared}{dense}"))?;
            }
            None => line("feed-forward", format!("dense, of width {}", c.intermediate_size))?,
        }
        line("vocabulary", format!("{} tokens", c.vocab_size))?;
        line("context", format!("{} tokens", c.max_position_embeddings))?;
        let per_token = 2 * cached_numbers_per_token(c);
        let full = human::bytes(per_token * c.max_position_embeddings as u64);
        line("cache", format!("{} per token in bf16, {full} for a full context", human::bytes(per_token)))?;
        if let Some(files) = &self.files {
            let formats: Vec<String> = files.formats.iter().map(|(format, n)| format!("{n} {format}")).collect();
            let stored = format!("{} in {} tensors ({})", human::bytes(files.bytes), files.tensors, formats.join(", "));
            line("stored", stored)?;
            line("tokenizer", files.tokenizer.map_or("none".into(), |n| format!("{n} tokens")))?;
            line("chat template", if files.chat_template { "yes" } else { "no" }.into())?;
        }
        for remark in &self.remarks {
            line("remark", remark.clone())?;
        }
        Ok(())
    }
}

/// The config without its quantisation, and that, if it can be read then.
fn without_quantization(json: &str) -> Option<(Config, Value)> {
    let mut map: Map<String, Value> = serde_json::from_str(json).ok()?;
    let quantization = map.remove("quantization_config")?;
    Some((Config::from_json(&Value::Object(map).to_string()).ok()?, quantization))
}

fn attention(c: &Config) -> Value {
    match c.attention {
        Attention::Mla { q_lora_rank, kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim, bias } => json!({
            "kind": "mla", "heads": c.num_attention_heads, "q_lora_rank": q_lora_rank, "kv_lora_rank": kv_lora_rank,
            "qk_nope_head_dim": qk_nope_head_dim, "qk_rope_head_dim": qk_rope_head_dim, "v_head_dim": v_head_dim,
            "bias": bias,
        }),
        Attention::Gqa { num_key_value_heads, head_dim, qkv_bias, o_bias } => json!({
            "kind": "gqa", "heads": c.num_attention_heads, "num_key_value_heads": num_key_value_heads,
            "head_dim": head_dim, "bias": qkv_bias, "o_bias": o_bias,
        }),
    }
}

fn attention_text(c: &Config) -> String {
    let heads = c.num_attention_heads;
    match c.attention {
        Attention::Mla { q_lora_rank, kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim, .. } => {
            let queries = q_lora_rank.map_or("direct queries".into(), |rank| format!("query rank {rank}"));
            format!(
                "latent (MLA), {heads} heads, keys of {qk_nope_head_dim} + {qk_rope_head_dim} rotated, values of {v_head_dim}, {queries}, key-value rank {kv_lora_rank}"
            )
        }
        Attention::Gqa { num_key_value_heads, head_dim, .. } => {
            format!("grouped (GQA), {heads} query heads and {num_key_value_heads} key-value heads of {head_dim}")
        }
    }
}

fn expert_layers(c: &Config) -> usize {
    (0..c.num_hidden_layers).filter(|i| c.is_moe_layer(*i)).count()
}

/// Numbers kept per token of context: keys and values of every head that has its own, as computed (expanded form).
fn cached_numbers_per_token(c: &Config) -> u64 {
    let heads = match c.attention {
        Attention::Mla { .. } => c.num_attention_heads,
        Attention::Gqa { num_key_value_heads, .. } => num_key_value_heads,
    };
    (c.num_hidden_layers * heads * (c.qk_head_dim() + c.v_head_dim())) as u64
}

/// The same if only the latent vector and the rotated part of the key were kept (absorbed form).
fn latent_numbers_per_token(c: &Config) -> Option<u64> {
    match c.attention {
        Attention::Mla { kv_lora_rank, qk_rope_head_dim, .. } => {
            Some((c.num_hidden_layers * (kv_lora_rank + qk_rope_head_dim)) as u64)
        }
        Attention::Gqa { .. } => None,
    }
}

fn remarks(c: &Config) -> Vec<String> {
    let mut remarks = vec![];
    if let RopeScaling::Yarn { factor, original_max_position_embeddings, .. } = c.rope.scaling {
        remarks.push(format!(
            "the context was extended {factor} times from {original_max_position_embeddings} tokens (YaRN)"
        ));
    }
    if c.tie_word_embeddings {
        remarks.push("embedding and head are one matrix".into());
    }
    if let Attention::Mla { bias: true, .. } = c.attention {
        remarks.push("the attention has biases".into());
    }
    if let Some(layers) = c.raw.get("num_nextn_predict_layers").and_then(Value::as_u64).filter(|n| *n > 0) {
        remarks.push(format!("{layers} layer of multi-token prediction is not counted and not used"));
    }
    if c.raw.contains_key("auto_map") {
        remarks.push("config.json names Python code (auto_map); it is never run here".into());
    }
    if c.eos_token_ids.is_empty() {
        remarks.push("config.json names no token that ends a text".into());
    }
    remarks
}
