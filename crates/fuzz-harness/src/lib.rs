//! What the fuzz targets do with bytes from a stranger: read them as each kind of file that a model folder has, and use what was read.
//!
//! A target may return errors by the million; it must not panic, and must not allocate much more than the bytes it was given. `fuzz/`
//! runs these under libFuzzer; `tests/replay.rs` runs the committed corpus, and mutations of it, in CI.
#![forbid(unsafe_code)]

use std::{cell::RefCell, fs, path::Path};

use jevons_model::{
    Adapter, Config, MlaForm, account::WeightFormat, adapter::Direction, checkpoint::Checkpoint, inspect,
};
use jevons_text::{ChatTemplate, Message, RenderOptions, Style, Tokenizer, Vocabulary, llama2c_tokenizer};
use tempfile::TempDir;

/// A target: its name, which is that of its corpus folder, and what it does.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 5] =
    [("safetensors", safetensors), ("index", index), ("config", config), ("template", template), ("adapter", adapter)];

/// Numbers of a tensor that are decoded; a header may promise more than there is, but never more than the file.
const MAX_ELEMENTS: usize = 1 << 20;

/// One safetensors file: every tensor is looked at and decoded.
pub fn safetensors(data: &[u8]) {
    let Ok(file) = Checkpoint::from_bytes(data) else { return };
    let bytes: u64 = file.tensors().map(|t| t.bytes.len() as u64).sum();
    assert!(bytes <= data.len() as u64 && bytes == file.tensor_bytes());
    for t in file.tensors() {
        if t.shape.iter().product::<usize>() <= MAX_ELEMENTS {
            let (_, _) = (file.read_f32(t.name, t.shape), t.to_i64());
        }
    }
}

thread_local! {
    /// A folder that the targets with several files write into.
    static DIR: RefCell<Option<TempDir>> = const { RefCell::new(None) };
}

/// Runs `f` in an empty folder.
fn in_folder(f: impl FnOnce(&Path)) {
    DIR.with_borrow_mut(|dir| {
        let dir = dir.get_or_insert_with(|| tempfile::tempdir().expect("a temporary folder"));
        f(dir.path());
        for entry in fs::read_dir(dir.path()).expect("the folder is ours").flatten() {
            fs::remove_file(entry.path()).expect("the file is ours");
        }
    });
}

/// A safetensors file with one F32 tensor `a` of two numbers.
const SHARD: &[u8] =
    b"\x38\0\0\0\0\0\0\0{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}   \0\0\0\0\0\0\0\0";

/// `model.safetensors.index.json` beside one shard, `s.safetensors`.
pub fn index(data: &[u8]) {
    in_folder(|dir| {
        fs::write(dir.join("model.safetensors.index.json"), data).expect("room for a file");
        fs::write(dir.join("s.safetensors"), SHARD).expect("room for a file");
        if let Ok(file) = Checkpoint::open(dir) {
            assert_eq!(file.names().collect::<Vec<_>>(), ["a"]);
        }
    });
}

/// config.json: whatever is accepted has bounded sizes, and reads the same once written.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(config) = Config::from_json(text) else { return };
    let experts = config.moe.as_ref().map_or(0, |m| m.n_routed_experts);
    if config.num_hidden_layers * (experts + 1) > 10_000 {
        return; // Hundreds of thousands of names are allowed, and slow here.
    }
    assert_eq!(
        Config::from_json(&config.to_json()).expect("it was read before").tensors().len(),
        config.tensors().len()
    );
    let total = config.total_parameters();
    assert!(config.active_parameters() <= total);
    let _ = (config.cache_numbers(MlaForm::Expanded), config.default_mla_form());
    assert!(config.rope_inv_freq().iter().all(|f| f.is_finite()));
    assert!(config.softmax_scale().is_finite() && config.rope_attention_factor().is_finite());
    let described = inspect::describe(text).expect("it was read before");
    assert!(described.remarks().iter().all(|r| !r.what.is_empty() && !r.why.is_empty()));
    let account = config.account();
    assert_eq!(account.total().parameters, total);
    let _ =
        (account.stored(), account.memory_bytes(config.max_position_embeddings, MlaForm::Expanded, WeightFormat::Fp8));
}

/// tokenizer.json: a text goes through it in both directions.
pub fn tokenizer(data: &[u8]) {
    let Ok(tokenizer) = Tokenizer::from_bytes(data) else { return };
    for text in ["Hello, 12345 wörld!\n\n  世界 <s></s>", ""] {
        for ids in [tokenizer.encode(text), tokenizer.encode_ordinary(text)].into_iter().flatten() {
            let _ = (tokenizer.decode(&ids), tokenizer.decode_skip_special(&ids));
            ids.iter().for_each(|id| {
                tokenizer.byte_len(*id);
            });
        }
    }
    let _ = (tokenizer.decode(&[0, 1, u32::MAX]), tokenizer.vocab_size());
}

/// A chat template: a conversation is rendered.
pub fn template(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(template) = ChatTemplate::new(text, "<s>".into(), "</s>".into()) else { return };
    let messages = [
        Message::new("system", "Be brief."),
        Message::new("user", "1 + 1?"),
        Message::new("assistant", "<think>\neasy\n</think>\n\n2"),
        Message::new("user", "Sure?"),
    ];
    for add_generation_prompt in [true, false] {
        let _ = template.render(&messages, &RenderOptions { add_generation_prompt, ..RenderOptions::default() });
    }
}

/// An adapter folder: adapter_config.json up to the first zero byte, then the weights.
pub fn adapter(data: &[u8]) {
    let at = data.iter().position(|b| *b == 0).unwrap_or(data.len());
    let (config, weights) = (&data[..at], &data[(at + 1).min(data.len())..]);
    in_folder(|dir| {
        fs::write(dir.join("adapter_config.json"), config).expect("room for a file");
        fs::write(dir.join("adapter_model.safetensors"), weights).expect("room for a file");
        let Ok(adapter) = Adapter::open(dir) else { return };
        let _ = adapter.parameters();
        let names: Vec<String> = adapter.targets().map(|t| t.0.to_owned()).collect();
        for name in names {
            let spec = jevons_model::config::TensorSpec { name, shape: vec![2, 2] };
            let _ = adapter.apply(&spec, &mut [0.0; 4], Direction::Merge);
        }
    });
}

/// A `.tiktoken` vocabulary, in every style that is published as one.
pub fn tiktoken(data: &[u8]) {
    for style in [Style::DeepSeekV3, Style::DeepSeekR1, Style::Qwen2, Style::KimiK2] {
        if let Ok(vocabulary) = Vocabulary::from_tiktoken(data, style, "<memory>") {
            tokenizer(&vocabulary.to_tokenizer_json());
        }
    }
}

/// The vocabulary of a GGUF file.
pub fn gguf(data: &[u8]) {
    if let Ok(vocabulary) = Vocabulary::from_gguf(data, "<memory>") {
        tokenizer(&vocabulary.to_tokenizer_json());
    }
}

/// The tokenizer of llama2.c.
pub fn llama2c(data: &[u8]) {
    if let Ok((json, config)) = llama2c_tokenizer(data, "<memory>") {
        tokenizer(json.as_bytes());
        serde_json::from_str::<serde_json::Value>(&config).expect("we wrote it");
    }
}
