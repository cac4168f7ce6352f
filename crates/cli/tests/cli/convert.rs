//! `jevons convert`: flags, report, and what other commands make of its output.

use std::{fs, path::PathBuf};

use crate::common::{add_tokenizer, jevons, jevons_with, write_model};
use serde_json::Value;
use tempfile::tempdir;

#[test]
fn a_model_is_converted_to_fp8_and_back_and_runs() {
    let dir = tempdir().unwrap();
    let model = dir.path().join("m");
    write_model(&model);
    add_tokenizer(&model);
    let convert = |args: &[&str]| jevons(dir.path(), &[&["convert"], args].concat());
    let report = convert(&["m", "fp8", "--to", "fp8", "--scale", "ue8m0", "--shard-size", "20KB", "--json"]).json();
    assert!(report["files"].as_array().unwrap().len() > 1, "{report}");
    assert_eq!(report["config_keys"], serde_json::json!(["torch_dtype", "quantization_config"]));
    assert_eq!(report["side_files"], serde_json::json!(["text.txt", "tokenizer.json", "tokenizer_config.json"]));
    assert_eq!(
        report["formats"]["F8_E4M3"],
        report["formats"]["F32"].as_u64().unwrap() - 1,
        "scales, and the gate's bias"
    );
    let info = jevons(dir.path(), &["info", "fp8"]).ok();
    assert!(info.contains("linears are stored in FP8 (E4M3, blocks of 128 × 128, a power of two as scale)"), "{info}");
    assert!(!info.contains("not used"), "{info}");

    let said = convert(&["fp8", "back", "--to", "bf16"]).ok();
    assert!(said.starts_with("back: ") && said.contains(" in 1 file, from "), "{said}");
    assert!(said.contains("changed in config.json: quantization_config"), "{said}");
    // Powers of two: the bf16 numbers are those that FP8 stands for.
    let score =
        |model: &str| jevons_with(dir.path(), &["score", model, "--token-ids", "-", "--json"], "[[5, 6, 7, 8]]").ok();
    assert_eq!(score("fp8"), score("back"));
    assert_ne!(score("fp8"), score("m"));

    let there = convert(&["m", "back"]).fails(1);
    assert!(there.contains("back: is there already") && there.contains("--force"), "{there}");
    convert(&["m", "back", "--force"]).ok();
    assert_eq!(score("back"), score("m"));
}

#[test]
fn wrong_requests_say_what_is_wrong() {
    let dir = tempdir().unwrap();
    write_model(&dir.path().join("m"));
    for (args, code, words) in [
        (&["convert", "m"][..], 2, "<TARGET>"),
        (&["convert", "m", "x", "--to", "fp4"], 2, "possible values: f32, bf16, fp8"),
        (&["convert", "m", "x", "--shard-size", "5 apples"], 2, "such as 500MB, 2GiB"),
        (&["convert", "m", "x", "--shard-size", "0"], 2, "such as 500MB, 2GiB"),
        (&["convert", "m", "x", "--tokenizer", "t"], 2, "--from"),
        (&["convert", "m", "x", "--scale", "ue8m0"], 1, "give --to fp8 too"),
        (&["convert", "m", "x", "--to", "bf16", "--scale", "ue8m0"], 1, "give --to fp8 too"),
        (&["convert", "none", "x"], 1, "there is no such folder"),
        (&["convert", "m", "m"], 1, "is the source itself"),
        (&["convert", "m/config.json", "x", "--from", "llama2c"], 1, "not a model file of llama2.c"),
        (
            &["convert", "m/config.json", "x", "--from", "llama2c", "--tokenizer", "m/config.json"],
            1,
            "m/config.json: not a tokenizer",
        ),
        (
            &["convert", "m/config.json", "x", "--from", "llama2c", "--tokenizer", "none"],
            1,
            "none: cannot read the tokenizer",
        ),
    ] {
        let err = jevons(dir.path(), args).fails(code);
        assert!(err.contains(words), "{args:?}: {err}");
        assert!(!dir.path().join("x").exists() && !dir.path().join(".x.converting").exists(), "{args:?}");
    }
}

/// `stories260K`, a model that was trained, and what it says by its maker's program.
#[test]
fn stories260k_says_what_its_golden_file_has() {
    let Some(folder) = std::env::var_os("JEVONS_TINY_WEIGHTS").map(PathBuf::from) else {
        eprintln!(
            "SKIPPED: set JEVONS_TINY_WEIGHTS to the folder with stories260K.bin, tok512.bin and stories260K-golden.json"
        );
        return;
    };
    let dir = tempdir().unwrap();
    let (model, tokenizer) = (folder.join("stories260K.bin"), folder.join("tok512.bin"));
    let [model, tokenizer] = [&model, &tokenizer].map(|p| p.to_str().unwrap());
    jevons(dir.path(), &["convert", "--from", "llama2c", model, "--tokenizer", tokenizer, "m"]).ok();

    let golden: Value = serde_json::from_slice(&fs::read(folder.join("stories260K-golden.json")).unwrap()).unwrap();
    let ids: Vec<u32> = serde_json::from_value(golden["ids"].clone()).unwrap();
    let text = golden["text"].as_str().unwrap();
    let new = (ids.len() - 1).to_string();
    let args =
        ["generate", "m", "--token-ids", "-", "--json", "--ignore-eos", "--temperature", "0", "--max-new-tokens", &new];
    let report = jevons_with(dir.path(), &args, &golden["prompt_ids"].to_string()).json();
    let said = &report["sequences"][0];
    assert_eq!(serde_json::from_value::<Vec<u32>>(said["token_ids"].clone()).unwrap(), ids[1..]);
    assert_eq!(said["text"], text);

    let encoded = jevons_with(dir.path(), &["tokenizer", "encode", "m"], text).ok();
    assert_eq!(serde_json::from_str::<Vec<u32>>(&encoded).unwrap(), ids[1..]);
    let decoded = jevons_with(dir.path(), &["tokenizer", "decode", "m"], &encoded).ok();
    assert_eq!(decoded, text);
    // FP8 and shards leave it the same story for a while.
    jevons(dir.path(), &["convert", "m", "fp8", "--to", "fp8", "--shard-size", "100KB"]).ok();
    let args = ["generate", "fp8", "Once upon a time", "--json", "--temperature", "0", "--max-new-tokens", "12"];
    let said = jevons(dir.path(), &args).json();
    assert!(said["sequences"][0]["text"].as_str().unwrap().starts_with(", there was a little girl"), "{said}");
}
