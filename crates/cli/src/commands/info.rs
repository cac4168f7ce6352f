use std::{io::Write, ops::ControlFlow, path::PathBuf};

use anyhow::{Context, bail};
use jevons_model::{
    Config,
    account::{Account, Component, WeightFormat},
    config::{Attention, MlaForm, TopkMethod},
    inspect::{self, Described, FileKind, Folder, Remark, TokenizerFacts, Weights},
};
use serde_json::{Value, json};

use crate::{
    human::{bytes, count, flop, grouped},
    progress,
    report::Report,
    source,
};

/// Context and length of training sequences unless told otherwise, as DeepSeek-V3 was pre-trained with.
const CONTEXT: usize = 4096;
/// More files than this are summed up by kind.
const LISTED_FILES: usize = 20;

/// Show what a model is and what it costs
///
/// Architecture, parameters, operations and bytes per token, memory, licence, files, and what is unusual, from config.json, the
/// folder and the headers of the weight files alone; no weights are loaded. A config.json of DeepSeek's inference code is understood too.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Checkpoint folder, run folder, org/name, or a config.json alone [default: the built-in model]
    model: Option<PathBuf>,
    /// Tokens of context for operations and memory [default: 4096, or the longest of the model]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    context: Option<u32>,
    /// Read every file and print its SHA-256, compared with the published one where a download cache knows it
    #[arg(long)]
    hash: bool,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    let info = match &args.model {
        Some(path) if path.is_file() => {
            if args.hash {
                bail!("{}: this is one file; --hash needs the model's folder", path.display());
            }
            Info::of_config(path.display().to_string(), inspect::describe_file(path)?)
        }
        path => Info::of_model(&source::Files::open(path.as_deref())?, args.hash)?,
    };
    let longest = info.config().max_position_embeddings;
    let context = args.context.map_or(CONTEXT.min(longest), |n| n as usize);
    if context > longest {
        bail!("--context {context}: the model's longest context is {longest} tokens");
    }
    if args.json {
        serde_json::to_writer_pretty(&mut *out, &info.json(context))?;
        return Ok(writeln!(out)?);
    }
    info.print(context, out)
}

/// What there is to say about a model.
struct Info {
    name: String,
    described: Described,
    /// Things that a reader would not expect.
    remarks: Vec<Remark>,
    /// `None` for a config alone.
    parts: Option<Parts>,
}

/// What is beside config.json.
struct Parts {
    tokenizer: TokenizerFacts,
    weights: Option<Weights>,
    /// `None` for the built-in model.
    folder: Option<Folder>,
}

impl Info {
    fn of_config(name: String, described: Described) -> Self {
        Self { name, remarks: described.remarks(), described, parts: None }
    }

    fn of_model(files: &source::Files, hash: bool) -> anyhow::Result<Self> {
        let described = match files {
            source::Files::BuiltIn(_) => inspect::describe(&files.config_json()?)?,
            source::Files::Folder(path) => inspect::describe_file(&path.join("config.json"))?,
        };
        let mut info = Self::of_config(files.name(), described);
        let tokenizer = files.tokenizer_facts();
        info.remarks.extend(tokenizer.remarks(info.config()));
        let folder = match files {
            source::Files::BuiltIn(_) => None,
            source::Files::Folder(path) => {
                let mut folder =
                    Folder::read(path).with_context(|| format!("{}: cannot list the folder", path.display()))?;
                if hash {
                    hash_files(&mut folder)?;
                }
                info.remarks.extend(folder.remarks());
                Some(folder)
            }
        };
        let weights = match files.checkpoint() {
            Ok(checkpoint) => {
                let weights = Weights::of(&checkpoint, info.config());
                info.remarks.extend(weights.remarks());
                Some(weights)
            }
            Err(error) => {
                info.remarks.push(Remark::problem("weights", "the weights cannot be opened", format!("{error:#}")));
                None
            }
        };
        info.parts = Some(Parts { tokenizer, weights, folder });
        Ok(info)
    }

    fn config(&self) -> &Config {
        &self.described.config
    }

    fn licence(&self) -> String {
        match self.parts.as_ref().map(|parts| &parts.folder) {
            Some(Some(folder)) => folder.licence.summary(),
            Some(None) => format!("{} (part of jevons)", env!("CARGO_PKG_LICENSE")),
            None => self.config().raw.get("license").and_then(Value::as_str).unwrap_or("none stated").into(),
        }
    }

    fn json(&self, context: usize) -> Value {
        let (c, account) = (self.config(), self.config().account());
        let total = account.total();
        let decode = |form| {
            account
                .decode_flop_per_token(context, form)
                .map(|f| json!({ "weights": f.weights, "attention": f.attention, "total": f.total() }))
        };
        let memory = |form| {
            let bytes = |format| account.memory_bytes(context, form, format);
            bytes(WeightFormat::Bf16).map(|bf16| json!({ "bf16": bf16, "fp8": bytes(WeightFormat::Fp8) }))
        };
        let training = account.training_flop_per_token(context);
        let mut info = json!({
            "name": self.name,
            "family": c.family.model_type(),
            "architecture": c.family.architecture(),
            "parameters": {
                "total": total.parameters,
                "active_per_token": account.active().parameters,
                "multiplied_per_token": account.multiplied().parameters,
                "multi_token_prediction": account.mtp().map(|mtp| mtp.total.parameters),
                "stored": account.stored().parameters,
                "by_component": account.parts,
            },
            "bytes": { "f32": total.f32_bytes, "bf16": total.bf16_bytes, "fp8": total.fp8_bytes },
            "stated_format": inspect::stated_format(c),
            "num_hidden_layers": c.num_hidden_layers,
            "hidden_size": c.hidden_size,
            "intermediate_size": c.intermediate_size,
            "vocab_size": c.vocab_size,
            "tie_word_embeddings": c.tie_word_embeddings,
            "context": c.max_position_embeddings,
            "rope_theta": c.rope.theta,
            "attention": attention(c),
            "experts": c.moe.as_ref().map(|m| json!({
                "layers": expert_layers(c),
                "n_routed_experts": m.n_routed_experts,
                "num_experts_per_tok": m.num_experts_per_tok,
                "n_shared_experts": m.n_shared_experts,
                "moe_intermediate_size": m.moe_intermediate_size,
                "n_group": m.n_group,
                "topk_group": m.topk_group,
                "gate": gate(m.topk_method),
            })),
            "at_context": context,
            "flop_per_token": {
                "training": { "weights": training.weights, "attention": training.attention, "total": training.total() },
                "decode_expanded": decode(MlaForm::Expanded),
                "decode_absorbed": decode(MlaForm::Absorbed),
            },
            "weight_bytes_read_per_token": {
                "bf16": account.multiplied().bf16_bytes,
                "fp8": account.multiplied().fp8_bytes,
            },
            "kv_bytes_per_token": {
                "expanded": account.cache_bytes_per_token(MlaForm::Expanded),
                "absorbed": account.cache_bytes_per_token(MlaForm::Absorbed),
            },
            "memory_bytes": { "expanded": memory(MlaForm::Expanded), "absorbed": memory(MlaForm::Absorbed) },
            "licence": self.licence(),
            "loadable": self.described.not_loadable.is_none(),
            "remarks": self.remarks,
        });
        if let Some(parts) = &self.parts {
            info["stored"] = json!(parts.weights);
            info["tokenizer"] = json!(parts.tokenizer.tokens.map(|tokens| json!({ "tokens": tokens })));
            info["chat_template"] = parts.tokenizer.chat_template.into();
            info["folder"] = json!(parts.folder);
        }
        info
    }

    fn print(&self, context: usize, out: &mut impl Write) -> anyhow::Result<()> {
        let (c, account) = (self.config(), self.config().account());
        let mut report = Report::new(out);
        report.line(&self.name)?;
        let mut architecture = architecture_rows(c);
        architecture.push(row("licence", self.licence()));
        report.section("Architecture", &architecture)?;
        let (header, rows) = parameter_rows(&account);
        report.table("Parameters", &header, &rows)?;
        report.section(
            &format!("Work per token, at {} tokens of context", grouped(context as u64)),
            &work_rows(&account, context),
        )?;
        report.section("Memory", &memory_rows(c, &account, context))?;
        if let Some(parts) = &self.parts {
            let hashed = parts.folder.iter().flat_map(|f| &f.files).any(|f| f.sha256.is_some());
            report.section(if hashed { "Files, with their SHA-256" } else { "Files" }, &file_rows(parts))?;
        }
        Ok(report.remarks("What is unusual", &self.remarks)?)
    }
}

fn hash_files(folder: &mut Folder) -> anyhow::Result<()> {
    let bar = progress::bytes_bar(folder.bytes(), "hashing");
    let result = folder.hash(&mut |n| {
        bar.inc(n);
        ControlFlow::Continue(())
    });
    bar.finish_and_clear();
    result.map_err(|(path, error)| {
        anyhow::Error::from(error).context(format!("{}: cannot read the file", path.display()))
    })
}

fn row(name: &str, text: impl Into<String>) -> (String, String) {
    (name.into(), text.into())
}

fn architecture_rows(c: &Config) -> Vec<(String, String)> {
    let number = |n: usize| grouped(n as u64);
    let mut rows = vec![row("layout", format!("{} ({})", c.family.model_type(), c.family.architecture()))];
    let experts = expert_layers(c);
    let dense = c.num_hidden_layers - experts;
    let kinds = match (dense, experts) {
        (_, 0) => format!("dense, of width {}", number(c.intermediate_size)),
        (0, _) => "all with experts".into(),
        _ => format!("{dense} dense of width {}, {experts} with experts", number(c.intermediate_size)),
    };
    rows.push(row("layers", format!("{} of width {}, {kinds}", c.num_hidden_layers, number(c.hidden_size))));
    rows.push(row("attention", attention_text(c)));
    if let Some(m) = &c.moe {
        let groups =
            if m.n_group > 1 { format!(" from {} of {} groups", m.topk_group, m.n_group) } else { String::new() };
        let shared = if m.n_shared_experts > 0 { format!(", {} shared", m.n_shared_experts) } else { String::new() };
        let gate = match m.topk_method {
            TopkMethod::BiasedSigmoid => "sigmoid gate with a selection bias",
            TopkMethod::Softmax => "softmax gate",
        };
        rows.push(row(
            "experts",
            format!(
                "{} of width {}, {} per token{groups}{shared}, {gate}",
                m.n_routed_experts,
                number(m.moe_intermediate_size),
                m.num_experts_per_tok
            ),
        ));
    }
    rows.push(row("vocabulary", format!("{} tokens", number(c.vocab_size))));
    rows.push(row("context", format!("{} tokens, rotary base {}", number(c.max_position_embeddings), c.rope.theta)));
    rows
}

fn parameter_rows(account: &Account<'_>) -> ([&'static str; 3], Vec<Vec<String>>) {
    let cells = |name: &str, total: u64, active: u64| vec![name.to_owned(), count(total), count(active)];
    let main = account.parts.iter().filter(|p| p.component != Component::Mtp);
    let mut rows: Vec<Vec<String>> =
        main.map(|p| cells(component(p.component), p.total.parameters, p.active.parameters)).collect();
    rows.push(cells("total", account.total().parameters, account.active().parameters));
    let multiplied = account.multiplied().parameters;
    if multiplied < account.active().parameters {
        rows.push(vec!["without the input embedding".into(), String::new(), count(multiplied)]);
    }
    if let Some(mtp) = account.mtp() {
        rows.push(cells("multi-token prediction, besides", mtp.total.parameters, mtp.active.parameters));
    }
    (["", "all", "per token"], rows)
}

fn component(component: Component) -> &'static str {
    match component {
        Component::Embedding => "embedding",
        Component::Attention => "attention",
        Component::DenseFfn => "dense feed-forward",
        Component::Router => "gates",
        Component::RoutedExperts => "routed experts",
        Component::SharedExperts => "shared experts",
        Component::Norms => "norms",
        Component::Head => "head",
        Component::Mtp => "multi-token prediction",
    }
}

fn work_rows(account: &Account<'_>, context: usize) -> Vec<(String, String)> {
    let text = |f: jevons_model::account::Flop| {
        format!("{} ({} with weights, {} in attention)", flop(f.total()), flop(f.weights), flop(f.attention))
    };
    let mut rows = vec![row("training", text(account.training_flop_per_token(context)))];
    let (expanded, absorbed) = (MlaForm::Expanded, MlaForm::Absorbed);
    let decode = |form| account.decode_flop_per_token(context, form).map(text);
    match (decode(expanded), decode(absorbed)) {
        (Some(e), Some(a)) => rows.extend([row("decoding, expanded", e), row("decoding, absorbed", a)]),
        (Some(e), None) => rows.push(row("decoding", e)),
        _ => {}
    }
    let read = account.multiplied();
    rows.push(row(
        "weights read",
        format!("{} in bf16, {} in FP8, for one token alone", bytes(read.bf16_bytes), bytes(read.fp8_bytes)),
    ));
    rows
}

fn memory_rows(c: &Config, account: &Account<'_>, context: usize) -> Vec<(String, String)> {
    let total = account.total();
    let sizes = [("f32", total.f32_bytes), ("bf16", total.bf16_bytes), ("FP8 with scales", total.fp8_bytes)];
    let sizes: Vec<String> = sizes.iter().map(|(name, n)| format!("{} in {name}", bytes(*n))).collect();
    let mut rows = vec![row("weights", sizes.join(", "))];
    let forms = match account.cache_bytes_per_token(MlaForm::Absorbed) {
        Some(_) => vec![("cache, expanded", MlaForm::Expanded), ("cache, absorbed", MlaForm::Absorbed)],
        None => vec![("cache", MlaForm::Expanded)],
    };
    for (name, form) in forms {
        let Some(per_token) = account.cache_bytes_per_token(form) else { continue };
        let whole = |n: usize| bytes(per_token.saturating_mul(n as u64));
        let longest = c.max_position_embeddings;
        let mut text = format!(
            "{} B per token in bf16, {} for {} tokens",
            grouped(per_token),
            whole(context),
            grouped(context as u64)
        );
        if longest > context {
            text.push_str(&format!(", {} for all {}", whole(longest), grouped(longest as u64)));
        }
        rows.push(row(name, text));
    }
    let format = inspect::stated_format(c).unwrap_or(WeightFormat::Bf16);
    if let Some(needed) = account.memory_bytes(context, c.default_mla_form(), format) {
        let name = match format {
            WeightFormat::F32 => "f32",
            WeightFormat::Bf16 => "bf16",
            WeightFormat::Fp8 => "FP8",
        };
        let here = match (jevons_sys::total_memory_bytes(), jevons_sys::available_memory_bytes()) {
            (Some(total), _) if needed > total => format!("; this machine has {}: not enough", bytes(total)),
            (_, Some(free)) if needed > free => format!("; this machine has {} free now: not enough", bytes(free)),
            (_, Some(free)) => format!("; this machine has {} free", bytes(free)),
            _ => String::new(),
        };
        rows.push(row("together", format!("{} with {name} weights{here}", bytes(needed))));
    }
    rows
}

fn file_rows(parts: &Parts) -> Vec<(String, String)> {
    let mut rows = vec![];
    if let Some(weights) = &parts.weights {
        let mut formats: Vec<_> = weights.formats.iter().collect();
        formats.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
        let formats: Vec<String> = formats.iter().map(|(name, n)| format!("{n} {name}")).collect();
        rows.push(row(
            "weights",
            format!("{} in {} tensors ({})", bytes(weights.bytes), weights.tensors, formats.join(", ")),
        ));
    }
    let tokens = parts.tokenizer.tokens.map_or("none".into(), |n| format!("{} tokens", grouped(n as u64)));
    let template = if parts.tokenizer.chat_template { "with a chat template" } else { "no chat template" };
    rows.push(row("tokenizer", format!("{tokens}, {template}")));
    let Some(folder) = &parts.folder else { return rows };
    let hashed = folder.files.iter().any(|f| f.sha256.is_some());
    if folder.files.len() > LISTED_FILES && !hashed {
        for (kind, name) in KINDS {
            let of_kind = folder.files.iter().filter(|f| f.kind == kind);
            let (n, sum) = of_kind.fold((0, 0), |(n, sum), f| (n + 1, sum + f.bytes.unwrap_or(0)));
            if n > 0 {
                rows.push(row(name, format!("{n} files, {}", bytes(sum))));
            }
        }
        return rows;
    }
    for file in &folder.files {
        let size = file.bytes.map_or("unreadable".into(), bytes);
        let hash = match (&file.sha256, &file.published_sha256) {
            (Some(found), Some(published)) if found == published => format!("  {found} as published"),
            (Some(found), _) => format!("  {found}"),
            (None, Some(published)) => format!("  published as sha256 {published}"),
            (None, None) => String::new(),
        };
        rows.push(row(&file.name, format!("{size}{hash}")));
    }
    rows
}

const KINDS: [(FileKind, &str); 8] = [
    (FileKind::Weights, "safetensors"),
    (FileKind::Data, "data"),
    (FileKind::Text, "texts"),
    (FileKind::Pickle, "pickle"),
    (FileKind::Code, "programs"),
    (FileKind::OtherWeights, "other weights"),
    (FileKind::Unfinished, "unfinished"),
    (FileKind::Other, "others"),
];

fn gate(method: TopkMethod) -> &'static str {
    match method {
        TopkMethod::BiasedSigmoid => "sigmoid_with_selection_bias",
        TopkMethod::Softmax => "softmax",
    }
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
        Attention::Gqa { num_key_value_heads, head_dim, qkv_bias, .. } => {
            let biases = if qkv_bias { ", biases on queries, keys and values" } else { "" };
            format!(
                "grouped (GQA), {heads} query heads and {num_key_value_heads} key-value heads of {head_dim}{biases}"
            )
        }
    }
}

fn expert_layers(c: &Config) -> usize {
    (0..c.num_hidden_layers).filter(|i| c.is_moe_layer(*i)).count()
}
