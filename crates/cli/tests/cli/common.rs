//! Runs the binary, and makes small models for it.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

use jevons_kernels::random::philox4x32;
use jevons_model::Config;
use safetensors::{Dtype, tensor::TensorView};

/// What a run of `jevons` left behind.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Run {
    /// Stdout of a run that must have succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self.out
    }

    /// Stderr of a run that must have failed with `code`, with nothing on stdout.
    #[track_caller]
    pub fn fails(self, code: i32) -> String {
        assert_eq!((self.code, &*self.out), (Some(code), ""), "{}", self.err);
        assert!(!self.err.contains("panicked"), "{}", self.err);
        self.err
    }

    /// JSON on stdout of a run that must have succeeded.
    #[track_caller]
    pub fn json(self) -> serde_json::Value {
        serde_json::from_str(&self.ok()).unwrap()
    }
}

/// `jevons` with these arguments in `dir`, with a home folder of its own and nothing in the environment that says where
/// models are.
pub fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_jevons"));
    command.args(args).current_dir(dir).env("HOME", dir);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env("JEVONS_LEDGER", "off");
    for name in [
        "JEVONS_WALL_FILE",
        "JEVONS_WALL_COMMAND",
        "JEVONS_WATTS",
        "JEVONS_REGION",
        "JEVONS_FACILITY",
        "JEVONS_BUDGET",
        "JEVONS_KEY",
    ] {
        command.env_remove(name);
    }
    for name in ["XDG_DATA_HOME", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ENDPOINT"] {
        command.env_remove(name);
    }
    for name in ["HF_TOKEN", "HF_HUB_OFFLINE", "SSL_CERT_FILE", "ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY"] {
        command.env_remove(name).env_remove(name.to_lowercase());
    }
    command
}

/// The same to its end, with `stdin` piped in.
pub fn jevons_with(dir: &Path, args: &[&str], stdin: &str) -> Run {
    finish(command(dir, args), stdin)
}

/// Runs a command to its end, with `stdin` piped in.
pub fn finish(mut command: Command, stdin: &str) -> Run {
    let mut child = command.spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes()); // it may have left already
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Run { code: status.code(), out: text(stdout), err: text(stderr) }
}

/// `jevons` with nothing on stdin.
pub fn jevons(dir: &Path, args: &[&str]) -> Run {
    jevons_with(dir, args, "")
}

const CONFIG: &str = r#"{
  "architectures": ["DeepseekV3ForCausalLM"],
  "model_type": "deepseek_v3", "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
  "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 160, "rms_norm_eps": 1e-6,
  "q_lora_rank": null, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
  "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 16, "n_group": 1,
  "topk_group": 1, "norm_topk_prob": true, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
  "topk_method": "noaux_tc", "first_k_dense_replace": 1, "moe_layer_freq": 1, "rope_theta": 10000.0,
  "rope_scaling": null, "hidden_act": "silu", "tie_word_embeddings": false, "attention_bias": false,
  "bos_token_id": 0, "eos_token_id": 1
}"#;

/// Writes a model with random weights: 320 tokens, context 160, no tokenizer.
pub fn write_model(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), CONFIG).unwrap();
    let specs = Config::from_json(CONFIG).unwrap().tensors();
    let tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = specs
        .into_iter()
        .map(|spec| {
            let name = spec.name.bytes().fold(17u32, |hash, b| hash.wrapping_mul(31).wrapping_add(b.into()));
            let value = |i: u32| {
                let x = philox4x32([i, name, 0, 0], [5, 0])[0] as f32 / u32::MAX as f32 - 0.5;
                if spec.shape.len() == 1 { 1.0 + 0.2 * x } else { 0.6 * x }
            };
            let values = (0..spec.elements() as u32).map(value);
            if spec.is_always_f32() {
                (spec.name.clone(), Dtype::F32, spec.shape.clone(), values.flat_map(f32::to_le_bytes).collect())
            } else {
                let bf16 = values.flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes());
                (spec.name.clone(), Dtype::BF16, spec.shape.clone(), bf16.collect())
            }
        })
        .collect();
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, data)| (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap()));
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
}

/// Adds a tokenizer of 300 tokens with the house's chat template to a model's folder; it puts no token before a text, so that the
/// ids of a text are those of its prompt.
pub fn add_tokenizer(folder: &Path) {
    let text = folder.join("text.txt");
    fs::write(&text, "the cat and the hat sat on the mat, as cats that sat do; 12 + 34 = 46\n".repeat(20)).unwrap();
    let (folder, text) = (folder.to_str().unwrap(), text.to_str().unwrap());
    let train = ["tokenizer", "train", text, "--vocab-size", "300", "--model-max-length", "160", "-o", folder];
    jevons(Path::new(folder), &train).ok();
    let config = Path::new(folder).join("tokenizer_config.json");
    let text = fs::read_to_string(&config).unwrap();
    assert!(text.contains("\"add_bos_token\": true"), "{text}");
    fs::write(config, text.replace("\"add_bos_token\": true", "\"add_bos_token\": false")).unwrap();
}
