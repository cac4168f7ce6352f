//! What a config says of a model's cost: published counts come out, and the sums are those of real models.
//! `golden/configs/README.md` says where the files come from.

use std::path::PathBuf;

use jevons_layers::Param;
use jevons_model::{
    Config, Model, ModelError, Precision,
    account::{Account, Component, WeightFormat},
    config::{MlaForm, TensorSpec},
    doctor::PUBLISHED,
};
use serde_json::{Map, Value, json};

fn keys(name: &str) -> Map<String, Value> {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/golden/configs", name].iter().collect();
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn config(name: &str) -> Config {
    let mut keys = keys(name);
    keys.remove("quantization_config");
    Config::from_json(&Value::Object(keys).to_string()).unwrap()
}

/// What the partial file leaves out, by the model's card and config: vocabulary 163,840, context 8,192, plain queries.
fn moonlight() -> Config {
    let mut keys = keys("Moonlight-16B-A3B-partial.json");
    let rest = json!({
        "vocab_size": 163_840, "q_lora_rank": null, "max_position_embeddings": 8192, "n_group": 1, "topk_group": 1,
    });
    keys.extend(rest.as_object().unwrap().clone());
    Config::from_json(&Value::Object(keys).to_string()).unwrap()
}

/// In billions, to `digits` after the point.
fn billions(n: u64, digits: usize) -> String {
    format!("{:.digits$}", n as f64 / 1e9)
}

fn part(account: &Account<'_>, component: Component) -> u64 {
    account.parts.iter().find(|p| p.component == component).map_or(0, |p| p.total.parameters)
}

#[test]
fn published_parameter_counts_come_out() {
    // Model cards and technical reports. Active: with the whole embedding, and without the input embedding.
    for (name, total, active, multiplied) in [
        ("DeepSeek-V3.json", "671.0", "37.6", "36.6"),
        ("DeepSeek-R1.json", "671.0", "37.6", "36.6"),
        ("DeepSeek-V2-Lite-Chat.json", "15.7", "2.7", "2.5"),
        ("Kimi-K2-Instruct.json", "1026.4", "32.9", "31.7"),
        ("Qwen2.5-7B-Instruct.json", "7.6", "7.6", "7.1"),
        ("Qwen2.5-32B-Instruct.json", "32.8", "32.8", "32.0"),
        ("DeepSeek-R1-Distill-Qwen-1.5B.json", "1.8", "1.8", "1.5"),
        ("Meta-Llama-3.1-8B.json", "8.0", "8.0", "7.5"),
        ("Meta-Llama-3.1-70B.json", "70.6", "70.6", "69.5"),
    ] {
        let config = config(name);
        let account = config.account();
        let found = [account.total(), account.active(), account.multiplied()].map(|s| billions(s.parameters, 1));
        assert_eq!(found, [total, active, multiplied], "{name}");
    }
}

#[test]
fn moonlight_has_its_published_counts_without_embedding_and_head() {
    let config = moonlight();
    let account = config.account();
    let both = part(&account, Component::Embedding) + part(&account, Component::Head);
    assert_eq!(billions(account.total().parameters - both, 1), "15.3");
    assert_eq!(billions(account.active().parameters - both, 2), "2.24");
}

#[test]
fn deepseek_v3_trains_with_250_billion_operations_per_token_as_published() {
    let config = config("DeepSeek-V3.json");
    let flop = config.account().training_flop_per_token(4096);
    let giga = |x: f64| format!("{:.1}", x / 1e9);
    assert_eq!([giga(flop.weights), giga(flop.attention), giga(flop.total())], ["219.7", "30.7", "250.4"]);
}

#[test]
fn deepseek_v3_caches_70272_bytes_per_token() {
    let config = config("DeepSeek-V3.json");
    let account = config.account();
    assert_eq!(account.cache_bytes_per_token(MlaForm::Absorbed), Some(70_272));
    // 128 heads with a key of 192 and a value of 128.
    assert_eq!(account.cache_bytes_per_token(MlaForm::Expanded), Some(61 * 128 * (192 + 128) * 2));
    // arXiv:2505.09343 has 327.68 KB for Qwen2.5-72B, whose attention has the same shapes.
    let llama = self::config("Meta-Llama-3.1-70B.json");
    assert_eq!(llama.account().cache_bytes_per_token(MlaForm::Expanded), Some(327_680));
    assert_eq!(llama.account().cache_bytes_per_token(MlaForm::Absorbed), None);
}

#[test]
fn absorbed_decoding_costs_the_same_weights_and_more_attention() {
    let config = config("DeepSeek-V3.json");
    let account = config.account();
    let [expanded, absorbed] =
        [MlaForm::Expanded, MlaForm::Absorbed].map(|form| account.decode_flop_per_token(4096, form).unwrap());
    assert_eq!(expanded.weights, absorbed.weights);
    assert_eq!(expanded.weights, 2.0 * account.multiplied().in_matrices as f64);
    assert_eq!(absorbed.attention / expanded.attention, 1088.0 / 320.0);
    assert_eq!(expanded.attention, f64::from(61 * 128 * 2 * 320) * 4096.0);
}

#[test]
fn the_published_deepseek_v3_checkpoint_has_the_bytes_that_are_counted() {
    // 684.5 B numbers and 641.3 GiB on disk, with multi-token prediction and its copies of embedding and head.
    let config = config("DeepSeek-V3.json");
    let account = config.account();
    assert_eq!(billions(account.mtp().unwrap().total.parameters, 1), "11.6");
    assert_eq!(billions(account.stored().parameters, 1), "684.5");
    let gib = account.stored().bytes(WeightFormat::Fp8) as f64 / f64::from(1 << 30);
    assert_eq!(format!("{gib:.1}"), "641.3");
    // A token of multi-token prediction runs through 8 of its 256 experts.
    let mtp = account.mtp().unwrap();
    assert_eq!(mtp.total.parameters - mtp.active.parameters, (256 - 8) * 3 * 2048 * 7168);
}

#[test]
fn components_add_up_to_the_tensors_of_every_config() {
    for name in [
        "DeepSeek-V3.json",
        "DeepSeek-V2-Lite-Chat.json",
        "Meta-Llama-3.1-8B.json",
        "parity-deepseek-v3.json",
        "parity-deepseek-v3-groups-yarn.json",
        "parity-qwen2.json",
    ] {
        let config = config(name);
        let account = config.account();
        let all: u64 = account.parts.iter().map(|p| p.total.parameters).sum();
        assert_eq!(all, config.tensors().iter().map(|t| t.elements() as u64).sum::<u64>(), "{name}");
        assert_eq!(account.total().parameters, config.total_parameters(), "{name}");
        assert_eq!(account.active().parameters, config.active_parameters(), "{name}");
    }
}

#[test]
fn the_counts_are_those_of_an_allocated_model() {
    let mut mtp = keys("parity-deepseek-v3.json");
    mtp.insert("num_nextn_predict_layers".into(), 1.into());
    let mtp = Config::from_json(&Value::Object(mtp).to_string()).unwrap();
    assert!(mtp.account().mtp().is_some());
    for (name, config) in [
        ("deepseek_v3", config("parity-deepseek-v3.json")),
        ("deepseek_v3 with multi-token prediction", mtp),
        ("qwen2", config("parity-qwen2.json")),
    ] {
        let zeros = |spec: &TensorSpec| Ok::<_, ModelError>(vec![0.0; spec.elements()]);
        let model = Model::new(config.clone(), Precision::F32, zeros).unwrap();
        let held = model.weights().params().iter().map(|p| match p {
            Param::Matrix(m) => (m.n() * m.k()) as u64,
            Param::Vector(v) => v.len() as u64,
            Param::LatentUp(_) => panic!("{name} was made in the expanded form"),
        });
        let counted: u64 = config.account().parts.iter().map(|p| p.total.parameters).sum();
        assert_eq!(held.sum::<u64>(), counted, "{name}");
    }
}

#[test]
fn the_doctors_models_are_those_of_the_published_configs() {
    let of = |name: &str, config: &Config, format: WeightFormat| {
        let account = config.account();
        let cache = account.cache_bytes_per_token(config.default_mla_form()).unwrap();
        let found = [account.total().bytes(format), account.multiplied().bytes(format), cache];
        let model = PUBLISHED.iter().find(|m| m.name == name).unwrap();
        let listed = [model.weight_bytes, model.read_bytes_per_token, model.cache_bytes_per_token];
        assert_eq!(listed, found, "{name}");
    };
    // The distills have the shapes of the models that they were made from.
    let bf16 = WeightFormat::Bf16;
    of("R1-Distill-Qwen-1.5B", &config("DeepSeek-R1-Distill-Qwen-1.5B.json"), bf16);
    of("R1-Distill-Qwen-7B", &config("Qwen2.5-7B-Instruct.json"), bf16);
    of("R1-Distill-Llama-8B", &config("Meta-Llama-3.1-8B.json"), bf16);
    of("DeepSeek-V2-Lite", &config("DeepSeek-V2-Lite-Chat.json"), bf16);
    of("R1-Distill-Qwen-32B", &config("Qwen2.5-32B-Instruct.json"), bf16);
    of("R1-Distill-Llama-70B", &config("Meta-Llama-3.1-70B.json"), bf16);
    of("DeepSeek-R1", &config("DeepSeek-R1.json"), WeightFormat::Fp8);
    assert!(PUBLISHED.is_sorted_by_key(|m| m.weight_bytes));
}

#[test]
fn a_pass_over_one_token_is_a_decoding_step_and_of_many_only_the_last_token_has_logits() {
    for name in ["DeepSeek-V3.json", "DeepSeek-R1-Distill-Qwen-1.5B.json"] {
        let config = config(name);
        let account = config.account();
        let pass = |sequences, new, before| {
            account.pass(sequences, new, before, MlaForm::Expanded, WeightFormat::Bf16).unwrap()
        };
        let one = pass(1, 1, 99);
        assert_eq!(one.flop, account.decode_flop_per_token(100, MlaForm::Expanded).unwrap(), "{name}");
        // One token chooses its experts and nothing else, so the bytes are those of what it is multiplied by and of its cache.
        let cache = account.cache_bytes_per_token(MlaForm::Expanded).unwrap() * 100;
        let read = (account.multiplied().bf16_bytes + cache) as f64;
        assert!((one.bytes / read - 1.0).abs() < 1e-9, "{name}: {} {read}", one.bytes);
        // Four tokens at once compute what they do one by one, but for three heads.
        let steps: f64 = (0..4).map(|i| pass(1, 1, i).flop.total()).sum();
        let head = 2.0 * part(&account, Component::Head) as f64;
        assert!((pass(1, 4, 0).flop.total() / (steps - 3.0 * head) - 1.0).abs() < 1e-12, "{name}");
        assert!((pass(8, 1, 9).flop.total() / (8.0 * pass(1, 1, 9).flop.total()) - 1.0).abs() < 1e-12, "{name}");
        // However many tokens, no weight is read twice.
        let all = account.total().bf16_bytes - part(&account, Component::Embedding) * 2;
        let weights =
            pass(1, 4096, 0).bytes - account.cache_bytes_per_token(MlaForm::Expanded).unwrap() as f64 * 4096.0;
        assert!(weights <= all as f64 * (1.0 + 1e-12) && weights > 0.999 * all as f64, "{name}");
    }
    let dense = config("DeepSeek-R1-Distill-Qwen-1.5B.json");
    assert_eq!(dense.account().pass(1, 1, 0, MlaForm::Absorbed, WeightFormat::Bf16), None);
}

#[test]
fn random_weights_are_the_same_for_the_same_seed_and_take_the_bytes_of_their_format() {
    let text = include_str!("golden/configs/DeepSeek-R1-Distill-Qwen-1.5B.json");
    let mut keys: Map<String, Value> = serde_json::from_str(text).unwrap();
    for (key, value) in [("hidden_size", 64), ("intermediate_size", 96), ("num_hidden_layers", 2), ("vocab_size", 500)]
    {
        keys.insert(key.into(), json!(value));
    }
    keys.insert("num_attention_heads".into(), json!(4));
    keys.retain(|key, _| !key.ends_with("_token_id"));
    let config = Config::from_json(&Value::Object(keys).to_string()).unwrap();
    let logits = |seed, precision| {
        let model = Model::random(config.clone(), precision, None, seed).unwrap();
        let format = if precision == Precision::F32 { WeightFormat::F32 } else { WeightFormat::Bf16 };
        // Packed panels are whole, and gains stay f32: a little more than the account says.
        let (held, counted) = (model.weights().bytes() as f64, config.account().total().bytes(format) as f64);
        assert!(held >= counted && held < 1.1 * counted, "{held} {counted}");
        let logits = model.logits(&[1, 2, 3]).to_vec_f32();
        assert!(logits.iter().all(|x| x.is_finite()));
        logits
    };
    let first = logits(1, Precision::Bf16);
    assert_eq!(first, logits(1, Precision::Bf16));
    assert_ne!(first, logits(2, Precision::Bf16));
    assert_ne!(first, logits(1, Precision::F32));
}

#[test]
fn random_weights_serve_both_forms_of_latent_attention() {
    let config = Config::from_file(PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/golden/parity/v3-odd-groups/config.json"
    )))
    .unwrap();
    let logits = |form| {
        let model = Model::random(config.clone(), Precision::F32, Some(form), 5).unwrap();
        model.logits(&[3, 1, 4, 1, 5]).to_vec_f32()
    };
    let (expanded, absorbed) = (logits(MlaForm::Expanded), logits(MlaForm::Absorbed));
    let largest = expanded.iter().fold(0f32, |m, x| m.max(x.abs()));
    // The forms are equal but for rounding: of f32 numbers below `largest`, summed a few hundred times.
    assert!(expanded.iter().zip(&absorbed).all(|(a, b)| (a - b).abs() <= 1e-4 * largest), "{largest}");
}
