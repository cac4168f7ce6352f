//! What is unusual about a model, and why it matters: from its config, its tokenizer and the headers of its weights.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Described, Remark, Weights, files::list};
use crate::{
    Config,
    account::Component,
    config::{Attention, Family, RopeScaling},
};

/// Rotary bases of the published models that we know of: DeepSeek and Llama 2, Moonlight and Kimi-K2, Llama 3, Qwen2.
const USUAL_THETA: [f64; 4] = [10_000.0, 50_000.0, 500_000.0, 1_000_000.0];

/// Keys that other tools write and that say nothing about what a model computes, or nothing where they are at rest.
const HARMLESS: [&str; 34] = [
    "_name_or_path",
    "_attn_implementation",
    "attn_implementation",
    "auto_map",
    "aux_loss_alpha",
    "seq_aux",
    "ep_size",
    "pretraining_tp",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "quantization_config",
    "license",
    "use_mrope",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
    "layer_types",
    "output_router_logits",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "head_dim",
    "qk_head_dim",
    "num_nextn_predict_layers",
    "attention_bias",
    "mlp_bias",
    "partial_rotary_factor",
    "original_max_position_embeddings",
    "rope_inv_freq_dtype",
    "torchscript",
    "is_decoder",
    "unsloth_fixed",
    "use_bfloat16",
];

impl Described {
    /// What is unusual about the config.
    pub fn remarks(&self) -> Vec<Remark> {
        let mut remarks = Vec::new();
        if !self.assumptions.is_empty() {
            remarks.push(Remark::note(
                "assumed",
                format!("taken for granted: {}", self.assumptions.join("; ")),
                "the file does not say; the figures rest on it",
            ));
        }
        if let Some(why) = &self.not_loadable {
            remarks.push(Remark::problem("not_loadable", "its weights cannot be loaded here", why.clone()));
        }
        let c = &self.config;
        context(c, &mut remarks);
        layers(c, &mut remarks);
        stored(c, &mut remarks);
        keys(c, &mut remarks);
        remarks
    }
}

fn context(c: &Config, remarks: &mut Vec<Remark>) {
    let extended = match c.rope.scaling {
        RopeScaling::None => None,
        RopeScaling::Yarn { factor, original_max_position_embeddings, .. } => {
            Some(("YaRN", factor, original_max_position_embeddings))
        }
        RopeScaling::Llama3 { factor, original_max_position_embeddings, .. } => {
            Some(("Llama 3 scaling", factor, original_max_position_embeddings))
        }
    };
    if let Some((method, factor, original)) = extended {
        remarks.push(Remark::note(
            "extended_context",
            format!("the context was extended from {original} tokens by a factor of {factor} ({method})"),
            "short texts are computed with the stretched positions too; most of the training was on the short context",
        ));
    }
    let slowest = c.rope_inv_freq().into_iter().fold(f64::INFINITY, f64::min);
    let period = 2.0 * std::f64::consts::PI / slowest;
    if extended.is_none() && period < c.max_position_embeddings as f64 {
        remarks.push(Remark::warning(
            "context_beyond_rotation",
            format!(
                "a context of {} tokens, but with the rotary base {} even the slowest pair has turned once after {period:.0}",
                c.max_position_embeddings, c.rope.theta
            ),
            "far positions look like near ones; do not trust the whole context before a test",
        ));
    }
    if !USUAL_THETA.contains(&c.rope.theta) {
        remarks.push(Remark::note(
            "unusual_rope_theta",
            format!("the rotary base {} is not one of the usual (10,000, 50,000, 500,000, 1,000,000)", c.rope.theta),
            "a wrong base garbles every position; compare with the makers' file",
        ));
    }
}

fn layers(c: &Config, remarks: &mut Vec<Remark>) {
    if c.tie_word_embeddings {
        remarks.push(Remark::note(
            "tied_embeddings",
            "embedding and head are one matrix",
            "it is counted once; training the one trains the other",
        ));
    }
    match c.attention {
        Attention::Mla { bias: true, .. } => remarks.push(Remark::note(
            "attention_bias",
            "latent attention has biases",
            "no published DeepSeek model has; other tools may drop them",
        )),
        Attention::Gqa { qkv_bias, o_bias, .. } if c.family == Family::Llama && (qkv_bias || o_bias) => {
            remarks.push(Remark::note(
                "attention_bias",
                "attention has biases",
                "no published Llama has; other tools may drop them",
            ));
        }
        _ => {}
    }
    if c.mlp_bias {
        remarks.push(Remark::note(
            "mlp_bias",
            "feed-forward layers have biases",
            "no published model of the family has; other tools may drop them",
        ));
    }
    if let Some(mtp) = c.account().mtp() {
        let (all, active) = (in_words(mtp.total.parameters), in_words(mtp.active.parameters));
        remarks.push(Remark::note(
            "multi_token_prediction",
            format!("a layer of multi-token prediction: {all} parameters besides, {active} of them active per token"),
            "a reply does not need it and the counts leave it out",
        ));
    }
    let hidden = c.raw.get("num_nextn_predict_layers").and_then(Value::as_u64).filter(|n| *n > 0);
    if let (Some(n), 0) = (hidden, c.num_nextn_predict_layers) {
        remarks.push(Remark::note(
            "multi_token_prediction",
            format!("{n} layers of multi-token prediction"),
            "they are not read here; a reply does not need them",
        ));
    }
    if c.eos_token_ids.is_empty() {
        remarks.push(Remark::warning(
            "no_end_token",
            "config.json names no token that ends a text",
            "unless generation_config.json does, replies end at the length limit only",
        ));
    }
}

/// A count as people write it, `11.6 B`.
fn in_words(n: u64) -> String {
    let n = n as f64;
    match n {
        _ if n >= 1e9 => format!("{:.1} B", n / 1e9),
        _ if n >= 1e6 => format!("{:.1} M", n / 1e6),
        _ => format!("{n}"),
    }
}

fn stored(c: &Config, remarks: &mut Vec<Remark>) {
    match c.raw.get("quantization_config") {
        Some(Value::Object(table)) if table.get("quant_method").is_some_and(|m| m == "fp8") => {
            let powers = table.get("scale_fmt").is_some_and(|f| f == "ue8m0");
            remarks.push(Remark::note(
                "fp8",
                format!(
                    "linears are stored in FP8 (E4M3, blocks of 128 × 128, {} as scale)",
                    if powers { "a power of two" } else { "any f32" }
                ),
                "a number has 3 bits after the point; activations are quantised as well where the makers run it",
            ));
            let partial = partial_blocks(c);
            if !partial.is_empty() {
                remarks.push(Remark::note(
                    "partial_fp8_blocks",
                    format!(
                        "blocks at the edge of {} are not whole",
                        list(&partial.iter().map(String::as_str).collect::<Vec<_>>())
                    ),
                    "their scale covers what is there; tools that assume whole blocks read wrong scales or refuse",
                ));
            }
        }
        _ => {
            if c.raw.get("torch_dtype").or(c.raw.get("dtype")).is_some_and(|d| d == "float16") {
                remarks.push(Remark::note(
                    "float16",
                    "config.json says float16",
                    "the families here are trained in bf16; float16 ends at 65,504 and may overflow in other tools",
                ));
            }
        }
    }
}

/// Matrices that FP8 stores whose sizes are no multiples of 128, by the last part of their name.
fn partial_blocks(c: &Config) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    c.for_each_tensor(&mut |name, shape| {
        if Component::in_fp8(&name) && shape.len() == 2 && shape.iter().any(|d| !d.is_multiple_of(128)) {
            let parts: Vec<&str> = name.rsplit('.').collect();
            names.insert(parts.get(1).copied().unwrap_or_default().to_owned());
        }
    });
    names
}

fn keys(c: &Config, remarks: &mut Vec<Remark>) {
    if let Some(model_type) = c.raw.get("model_type").and_then(Value::as_str).filter(|m| *m != c.family.model_type()) {
        remarks.push(Remark::note(
            "other_name",
            format!("model_type {model_type} is the layout {}", c.family.model_type()),
            "it is loaded as that; what we write says so too",
        ));
    }
    if let Some(Value::Array(names)) = c.raw.get("architectures")
        && let [Value::String(name)] = &names[..]
        && name != c.family.architecture()
    {
        remarks.push(Remark::warning(
            "architecture",
            format!("architectures says {}, model_type says {}", list(&[name]), c.family.architecture()),
            "the class may compute something else; here model_type decides",
        ));
    }
    if c.raw.contains_key("auto_map") {
        remarks.push(Remark::note(
            "auto_map",
            "config.json names Python code (auto_map)",
            "it is never run here; the layout is known by its model_type",
        ));
    }
    // Of small models the value may well be the one they were trained with.
    let large_deepseek = matches!(c.family, Family::DeepseekV3 | Family::DeepseekV2) && c.hidden_size >= 2048;
    if large_deepseek && c.raw.get("initializer_range").and_then(Value::as_f64) == Some(0.02) {
        remarks.push(Remark::note(
            "default_initializer_range",
            "initializer_range 0.02 is the file format's default",
            "DeepSeek reports 0.006; who trains from it should not copy the number",
        ));
    }
    if large_deepseek && c.raw.get("aux_loss_alpha").and_then(Value::as_f64) == Some(0.001) {
        remarks.push(Remark::note(
            "default_aux_loss",
            "aux_loss_alpha 0.001 is the file format's default",
            "DeepSeek-V3 reports 0.0001; who trains from it should not copy the number",
        ));
    }
    let known: BTreeSet<&str> = Config::keys(c.family).map(|key| key.name).chain(HARMLESS).collect();
    let unread: Vec<&str> =
        c.raw.iter().filter(|(k, v)| !known.contains(k.as_str()) && !v.is_null()).map(|(k, _)| k.as_str()).collect();
    if !unread.is_empty() {
        remarks.push(Remark::note(
            "unread_keys",
            format!("keys that are not read here: {}", list(&unread)),
            "if one of them changes what the model computes, it changes nothing here",
        ));
    }
}

/// What the files around a tokenizer say, as far as they are there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenizerFacts {
    /// Tokens of tokenizer.json.
    pub tokens: Option<usize>,
    /// Why tokenizer.json cannot be used.
    pub error: Option<String>,
    /// Whether there is a chat template.
    pub chat_template: bool,
    /// Why the template cannot be used.
    pub template_error: Option<String>,
    /// `add_bos_token` of tokenizer_config.json.
    pub add_bos_token: Option<bool>,
    /// Ids of the tokens that tokenizer_config.json names `bos_token` and `eos_token`.
    pub bos_token_id: Option<u32>,
    /// See there.
    pub eos_token_id: Option<u32>,
    /// End tokens of generation_config.json; `None` without the file.
    pub generation_eos: Option<Vec<u32>>,
    /// Why generation_config.json cannot be used.
    pub generation_error: Option<String>,
}

impl TokenizerFacts {
    /// What is unusual about them, beside a config.
    pub fn remarks(&self, c: &Config) -> Vec<Remark> {
        let mut remarks = Vec::new();
        match (&self.error, self.tokens) {
            (Some(error), _) => {
                remarks.push(Remark::problem("tokenizer_broken", "the tokenizer cannot be used", error.clone()));
            }
            (None, None) => remarks.push(Remark::warning(
                "no_tokenizer",
                "there is no tokenizer.json",
                "text means nothing to the model; only token ids can be used",
            )),
            (None, Some(tokens)) if tokens < c.vocab_size => remarks.push(Remark::note(
                "padded_vocabulary",
                format!("the vocabulary has {} rows, the tokenizer {tokens} tokens", c.vocab_size),
                "the rows in between are padding: no text gives them, and a token sampled from them prints nothing",
            )),
            (None, Some(tokens)) if tokens > c.vocab_size => remarks.push(Remark::problem(
                "tokenizer_too_large",
                format!("the tokenizer has {tokens} tokens, the vocabulary {} rows", c.vocab_size),
                "it belongs to another model",
            )),
            _ => {}
        }
        if let Some(error) = &self.template_error {
            remarks.push(Remark::problem("template_broken", "the chat template cannot be used", error.clone()));
        } else if !self.chat_template && self.tokens.is_some() {
            remarks.push(Remark::note(
                "no_chat_template",
                "there is no chat template",
                "it continues text; it does not chat",
            ));
        }
        self.special_tokens(c, &mut remarks);
        remarks
    }

    fn special_tokens(&self, c: &Config, remarks: &mut Vec<Remark>) {
        if self.add_bos_token == Some(true) && c.bos_token_id.is_none() {
            remarks.push(Remark::warning(
                "bos_unknown",
                "tokenizer_config.json asks for a first token (add_bos_token), config.json names none",
                "texts begin without it here",
            ));
        }
        let differ = |ours: Option<u32>, theirs: Option<u32>| ours.zip(theirs).filter(|(ours, theirs)| ours != theirs);
        if let Some((ours, theirs)) = differ(c.bos_token_id, self.bos_token_id) {
            remarks.push(Remark::warning(
                "bos_differs",
                format!("the first token is {ours} in config.json and {theirs} in tokenizer_config.json"),
                "templates use the one, plain text the other",
            ));
        }
        if let Some(eos) = self.eos_token_id.filter(|eos| !c.eos_token_ids.is_empty() && !c.eos_token_ids.contains(eos))
        {
            remarks.push(Remark::warning(
                "eos_differs",
                format!("tokenizer_config.json ends texts with {eos}, config.json with {:?}", c.eos_token_ids),
                "a tool that knows only one of them may talk on past the end",
            ));
        }
        match (&self.generation_error, &self.generation_eos) {
            (Some(error), _) => remarks.push(Remark::problem(
                "generation_config_broken",
                "generation_config.json cannot be used",
                error.clone(),
            )),
            (None, None) => remarks.push(Remark::note(
                "no_generation_config",
                "there is no generation_config.json",
                "the makers' sampling is unknown; replies use temperature 0.6 and top-p 0.95, as DeepSeek-R1",
            )),
            (None, Some(ids)) => {
                if let Some(id) = ids.iter().find(|id| **id as usize >= c.vocab_size) {
                    remarks.push(Remark::problem(
                        "eos_outside",
                        format!(
                            "generation_config.json ends texts with {id}, outside of the vocabulary of {}",
                            c.vocab_size
                        ),
                        "that token never comes; the file belongs to another model",
                    ));
                }
                let more: Vec<u32> = ids.iter().copied().filter(|id| !c.eos_token_ids.contains(id)).collect();
                if !more.is_empty() && !c.eos_token_ids.is_empty() {
                    remarks.push(Remark::note(
                        "more_end_tokens",
                        format!(
                            "generation_config.json ends texts with {ids:?}, config.json with {:?}",
                            c.eos_token_ids
                        ),
                        "either of them ends a reply here",
                    ));
                }
            }
        }
    }
}

impl Weights {
    /// What is unusual about them.
    pub fn remarks(&self) -> Vec<Remark> {
        let names = |names: &[String]| list(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let mut remarks = Vec::new();
        if !self.missing.is_empty() {
            remarks.push(Remark::problem(
                "missing_tensors",
                format!("{} tensors are missing: {}", self.missing.len(), names(&self.missing)),
                "the model cannot be loaded; is the download complete, is config.json this model's?",
            ));
        }
        if !self.missing_mtp.is_empty() {
            remarks.push(Remark::note(
                "missing_mtp",
                format!(
                    "{} tensors of multi-token prediction are missing: {}",
                    self.missing_mtp.len(),
                    names(&self.missing_mtp)
                ),
                "a reply does not need them; training with them does",
            ));
        }
        if !self.unexpected.is_empty() {
            remarks.push(Remark::note(
                "unexpected_tensors",
                format!("{} tensors are not used: {}", self.unexpected.len(), names(&self.unexpected)),
                "left over from a tool, or part of something that is not computed here",
            ));
        }
        remarks
    }
}
