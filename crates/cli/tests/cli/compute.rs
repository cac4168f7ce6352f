//! `score`, `generate` and `info` on a small random model.

use std::fs;

use crate::common::{jevons, jevons_with, write_model};
use serde_json::json;
use tempfile::tempdir;

const IDS: &str = "[[5, 6, 7, 8, 9, 10], [300, 2], [77]]";

#[test]
fn scores_have_one_logprob_per_next_token_and_their_mean_as_loss() {
    let dir = tempdir().unwrap();
    write_model(&dir.path().join("m"));
    fs::write(dir.path().join("ids.json"), IDS).unwrap();
    let report = jevons(dir.path(), &["score", "m", "--token-ids", "ids.json", "--json"]).json();
    let logprobs: Vec<Vec<f64>> = report["sequences"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| serde_json::from_value(s["logprobs"].clone()).unwrap())
        .collect();
    assert_eq!(logprobs.iter().map(Vec::len).collect::<Vec<_>>(), [5, 1, 0]);
    let all = logprobs.concat();
    assert!(all.iter().all(|x| *x < 0.0));
    let mean = -all.iter().sum::<f64>() / 6.0;
    assert!((report["loss"].as_f64().unwrap() - mean).abs() < 1e-6);
    let text = jevons(dir.path(), &["score", "m", "--token-ids", "ids.json"]).ok();
    assert_eq!(text, format!("{:.6} nats per token over 6 tokens\n", report["loss"].as_f64().unwrap()));
}

#[test]
fn threads_change_nothing_and_precision_changes_little() {
    let dir = tempdir().unwrap();
    write_model(&dir.path().join("m"));
    let score = |extra: &[&str]| {
        let args = [&["score", "m", "--token-ids", "-", "--json"], extra].concat();
        jevons_with(dir.path(), &args, IDS).ok()
    };
    assert_eq!(score(&["--threads", "1"]), score(&["--threads", "3"]));
    assert_eq!(score(&[]), score(&["--precision", "bf16"]), "the checkpoint is bf16");
    let loss = |json: String| serde_json::from_str::<serde_json::Value>(&json).unwrap()["loss"].as_f64().unwrap();
    let (f32, bf16) = (loss(score(&["--precision", "f32"])), loss(score(&[])));
    assert!(f32 != bf16 && (f32 - bf16).abs() < 0.05, "{f32} {bf16}");
}

#[test]
fn generated_tokens_do_not_depend_on_the_batch() {
    let dir = tempdir().unwrap();
    write_model(&dir.path().join("m"));
    let generate = |ids: &str, extra: &[&str]| {
        let args = ["generate", "m", "--token-ids", "-", "--json", "--ignore-eos", "--max-new-tokens", "9"];
        jevons_with(dir.path(), &[&args[..], extra].concat(), ids).json()["sequences"].clone()
    };
    // More than one batch of 16.
    let prompts: Vec<Vec<u32>> = (0..20).map(|i| (0..=i).map(|j| (i * 31 + j * 17) % 320).collect()).collect();
    let together = generate(&json!(prompts).to_string(), &[]);
    assert_eq!(together.as_array().unwrap().len(), 20);
    for (i, prompt) in prompts.iter().enumerate() {
        let alone = generate(&json!(prompt).to_string(), &[]);
        assert_eq!(together[i]["token_ids"], alone[0]["token_ids"]);
        assert_eq!(together[i]["token_ids"].as_array().unwrap().len(), 9);
        assert_eq!(together[i]["text"], "");
        assert_eq!(together[i]["finish_reason"], "length");
    }
    let warm = |seed| generate("[[1, 2, 3], [1, 2, 3]]", &["--temperature", "1.5", "--seed", seed]);
    let first = warm("1");
    assert_eq!(first[0]["token_ids"], warm("1")[0]["token_ids"]);
    assert_ne!(first[0]["token_ids"], warm("2")[0]["token_ids"]);
    assert_ne!(first[0]["token_ids"], first[1]["token_ids"], "equal prompts are drawn on independently");
}

#[test]
fn generation_stops_at_the_end_token_unless_told_to_go_on() {
    let dir = tempdir().unwrap();
    let model = dir.path().join("m");
    write_model(&model);
    let generate = |extra: &[&str]| {
        let args = ["generate", "m", "--token-ids", "-", "--json", "--max-new-tokens", "12"];
        jevons_with(dir.path(), &[&args[..], extra].concat(), "[5, 6, 7]").json()["sequences"][0].clone()
    };
    let free = generate(&["--ignore-eos"]);
    let second = free["token_ids"][1].clone();
    // generation_config.json adds to the end tokens of config.json.
    fs::write(model.join("generation_config.json"), json!({ "eos_token_id": [second] }).to_string()).unwrap();
    let ended = generate(&[]);
    let at = free["token_ids"].as_array().unwrap().iter().position(|id| *id == second).unwrap();
    assert_eq!(ended["finish_reason"], "eos");
    assert_eq!(ended["token_ids"].as_array().unwrap()[..], free["token_ids"].as_array().unwrap()[..=at]);
    assert_eq!(generate(&["--ignore-eos"])["token_ids"], free["token_ids"]);
    fs::write(model.join("generation_config.json"), "[]").unwrap();
    let err = jevons_with(dir.path(), &["generate", "m", "--token-ids", "-"], "[1]").fails(1);
    assert!(err.contains("generation_config.json"), "{err}");
}

#[test]
fn a_run_folder_stands_for_the_model_in_it() {
    let dir = tempdir().unwrap();
    write_model(&dir.path().join("run/model"));
    let by_run = jevons_with(dir.path(), &["score", "run", "--token-ids", "-", "--json"], IDS).ok();
    let by_model = jevons_with(dir.path(), &["score", "run/model", "--token-ids", "-", "--json"], IDS).ok();
    assert_eq!(by_run, by_model);
}

#[test]
fn without_a_tokenizer_tokens_are_printed_as_json_lines() {
    let dir = tempdir().unwrap();
    write_model(&dir.path().join("m"));
    let out = jevons_with(dir.path(), &["generate", "m", "--token-ids", "-", "--max-new-tokens", "3"], IDS).ok();
    let lines: Vec<Vec<u32>> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3);
    assert!(lines.iter().all(|ids| (1..=3).contains(&ids.len())));
}

#[test]
fn info_tells_parameters_and_sizes_without_loading_weights() {
    let dir = tempdir().unwrap();
    let model = dir.path().join("m");
    write_model(&model);
    let info = jevons(dir.path(), &["info", "m", "--json"]).json();
    // By hand. Embedding and head 2·320·32; per layer two norms 64 and attention: q 32·32, kv_a 24·32, its norm 16,
    // kv_b 32·16, o 32·16; dense layer 3·48·32; expert layer gate 4·32 + 4, experts 4·3·16·32, shared 3·16·32; last norm 32.
    let attention = 64 + 1024 + 768 + 16 + 512 + 512;
    let total = 20480 + 2 * attention + 4608 + (132 + 6144 + 1536) + 32;
    assert_eq!(info["parameters"]["total"], total);
    assert_eq!(info["parameters"]["active_per_token"], total - 3072);
    assert_eq!(info["parameters"]["multiplied_per_token"], total - 3072 - 10240);
    assert_eq!(info["bytes"]["bf16"], 2 * total + 2 * 4, "the selection biases of 4 experts are f32");
    assert_eq!(info["context"], 160);
    // 2 layers of 2 heads with 16 numbers of a key and 8 of a value, 2 bytes each; or 16 + 8 latent numbers a layer.
    assert_eq!(info["kv_bytes_per_token"], json!({ "expanded": 192, "absorbed": 96 }));
    assert_eq!(info["tokenizer"], json!(null));
    let text = jevons(dir.path(), &["info", "m"]).ok();
    assert!(text.contains("deepseek_v3 (DeepseekV3ForCausalLM)") && text.contains("no tokenizer.json"), "{text}");
    let config_alone = jevons(dir.path(), &["info", "m/config.json", "--json"]).json();
    assert_eq!(config_alone["parameters"], info["parameters"]);
}

#[test]
fn info_lists_files_and_hashes_them_on_request() {
    let dir = tempdir().unwrap();
    let model = dir.path().join("m");
    write_model(&model);
    fs::write(model.join("README.md"), "---\nlicense: mit\n---\n").unwrap();
    fs::write(model.join("modeling_x.py"), "abc").unwrap();
    let info = jevons(dir.path(), &["info", "m", "--json", "--hash"]).json();
    assert_eq!(info["licence"], "mit (README.md)");
    let file =
        |name: &str| info["folder"]["files"].as_array().unwrap().iter().find(|f| f["name"] == name).unwrap().clone();
    // FIPS 180-2, of "abc".
    let sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!((&file("modeling_x.py")["sha256"], &file("modeling_x.py")["kind"]), (&json!(sha), &json!("code")));
    let ids: Vec<&str> = info["remarks"].as_array().unwrap().iter().map(|r| r["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["no_tokenizer", "no_generation_config", "code_files"]);
    let text = jevons(dir.path(), &["info", "m", "--hash"]).ok();
    assert!(text.contains(sha) && text.contains("warning: program files: modeling_x.py"), "{text}");
    assert!(!text.contains('\u{1b}'), "colours in a pipe: {text}");
}

#[test]
fn info_takes_a_context_up_to_the_longest() {
    let dir = tempdir().unwrap();
    write_model(&dir.path().join("m"));
    let at = |n: &str| jevons(dir.path(), &["info", "m", "--json", "--context", n]);
    assert_eq!(at("100").json()["at_context"], 100);
    assert!(at("161").fails(1).contains("longest context is 160 tokens"));
    assert_eq!(jevons(dir.path(), &["info", "m", "--json"]).json()["at_context"], 160);
}

#[test]
fn info_does_not_read_a_file_that_is_too_large_for_a_config() {
    let dir = tempdir().unwrap();
    fs::File::create(dir.path().join("model.safetensors")).unwrap().set_len(1 << 34).unwrap();
    let err = jevons(dir.path(), &["info", "model.safetensors"]).fails(1);
    assert!(err.contains("model.safetensors: cannot read") && err.contains("larger than 16 MiB"), "{err}");
}

#[test]
fn info_tells_of_weights_that_cannot_be_opened() {
    let dir = tempdir().unwrap();
    write_model(&dir.path().join("m"));
    fs::write(dir.path().join("m/model.safetensors"), "short").unwrap();
    let text = jevons(dir.path(), &["info", "m"]).ok();
    assert!(text.contains("problem: the weights cannot be opened"), "{text}");
}

#[test]
fn a_quantised_model_can_be_described_though_not_loaded() {
    let dir = tempdir().unwrap();
    let model = dir.path().join("m");
    write_model(&model);
    let config = fs::read_to_string(model.join("config.json")).unwrap();
    let quantised = config.replacen('{', r#"{"quantization_config": {"quant_method": "awq"},"#, 1);
    fs::write(dir.path().join("config.json"), quantised).unwrap();
    let info = jevons(dir.path(), &["info", "config.json", "--json"]).json();
    assert!(info["remarks"].to_string().contains("awq"), "{info}");
}

#[test]
fn a_broken_checkpoint_is_an_error_that_names_it() {
    let dir = tempdir().unwrap();
    let model = dir.path().join("m");
    write_model(&model);
    let weights = fs::read(model.join("model.safetensors")).unwrap();
    for len in [0, 4, 100, weights.len() - 1] {
        fs::write(model.join("model.safetensors"), &weights[..len]).unwrap();
        let err = jevons_with(dir.path(), &["score", "m", "--token-ids", "-"], IDS).fails(1);
        assert!(err.contains("model.safetensors"), "{len}: {err}");
    }
    fs::remove_file(model.join("model.safetensors")).unwrap();
    assert!(jevons_with(dir.path(), &["score", "m", "--token-ids", "-"], IDS).fails(1).contains("safetensors"));
    write_model(&model);
    let config = fs::read_to_string(model.join("config.json")).unwrap();
    fs::write(model.join("config.json"), config.replace("\"hidden_size\": 32", "\"hidden_size\": 64")).unwrap();
    let err = jevons_with(dir.path(), &["score", "m", "--token-ids", "-"], IDS).fails(1);
    assert!(err.contains("320"), "{err}");
}

#[test]
fn an_adapter_beside_the_weights_and_merged_into_them_scores_the_same() {
    let dir = tempdir().unwrap();
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden");
    let (base, adapter) = (format!("{golden}/parity/qwen2-tied-odd"), format!("{golden}/adapters/qwen2-patterns"));
    let info = jevons(dir.path(), &["adapter", "info", &adapter, "--json"]).json();
    assert_eq!((info["parameters"].as_u64(), info["targets"].as_array().unwrap().len()), (Some(3912), 10));
    jevons(dir.path(), &["adapter", "merge", &base, &adapter, "merged"]).ok();
    jevons(dir.path(), &["adapter", "unmerge", "merged", &adapter, "again"]).ok();
    let score = |args: &[&str]| {
        jevons_with(dir.path(), &[&["score", "--json", "--token-ids", "-"], args].concat(), "[[3, 1, 4, 1, 5]]").json()
    };
    let (beside, merged, plain) = (score(&[&base, "--adapter", &adapter]), score(&["merged"]), score(&[&base]));
    assert_eq!(beside, merged);
    let loss = |report: &serde_json::Value| report["loss"].as_f64().unwrap();
    assert!((loss(&plain) - loss(&merged)).abs() > 0.1);
    assert!((loss(&plain) - loss(&score(&["again"]))).abs() < 0.05);
    let there = jevons(dir.path(), &["adapter", "merge", &base, &adapter, "merged"]).fails(1);
    assert!(there.contains("it is there already"), "{there}");
    let other = jevons(dir.path(), &["adapter", "info", &base]).fails(1);
    assert!(other.contains("this folder holds a model, not an adapter"), "{other}");
}

#[test]
fn both_forms_of_latent_attention_score_nearly_the_same() {
    let dir = tempdir().unwrap();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/parity/v3-odd-groups");
    let loss = |form: &str| {
        let args = ["score", model, "--token-ids", "-", "--json", "--precision", "bf16", "--mla", form];
        jevons_with(dir.path(), &args, "[[5, 6, 7, 8, 9, 10], [77, 2]]").json()["loss"].as_f64().unwrap()
    };
    let (expanded, absorbed) = (loss("expanded"), loss("absorbed"));
    assert!((expanded - absorbed).abs() < 0.05 && expanded != absorbed, "{expanded} {absorbed}");
}
