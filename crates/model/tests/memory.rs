//! What loading and converting take in memory, measured in a child process of its own: the most that it ever had resident
//! (`VmHWM`), less what it had before. Pages of mapped files count as long as they are mapped in, so this also shows that they are
//! given back; the system may keep them cached, which is no memory of the process.
//!
//! `JEVONS_LARGE_TESTS=1 cargo test -p jevons-model --test memory` does the same with a larger checkpoint.
#![cfg(target_os = "linux")]

use std::{
    ops::ControlFlow,
    path::Path,
    process::Command,
    sync::atomic::{AtomicU64, Ordering},
};

use jevons_model::{
    Config, LoadOptions, Model, Precision,
    checkpoint::{Checkpoint, SaveDtype, save_model},
    convert::{Options, Target, convert},
};
use jevons_sys::peak_rss_bytes;
use serde_json::json;
use tempfile::{TempDir, tempdir};

/// A bf16 model of 76 MB, or 475.
fn model() -> TempDir {
    let experts = if std::env::var_os("JEVONS_LARGE_TESTS").is_some() { 300 } else { 40 };
    let keys = json!({
        "model_type": "deepseek_v3", "vocab_size": 4000, "hidden_size": 512, "intermediate_size": 1000,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128, "q_lora_rank": 128, "kv_lora_rank": 132,
        "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64, "n_routed_experts": experts, "num_experts_per_tok": 2,
        "moe_intermediate_size": 500, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
    });
    let config = Config::from_map(keys.as_object().unwrap()).unwrap();
    let dir = tempdir().unwrap();
    let count = AtomicU64::new(0);
    save_model(dir.path().join("m"), &config, SaveDtype::Bf16, |spec| {
        let seed = count.fetch_add(1, Ordering::Relaxed);
        (0..spec.elements() as u64)
            .map(|i| ((i * 7919 + seed * 31) % 1009) as f32 / 1009.0 - 0.4)
            .collect::<Vec<_>>()
            .into()
    })
    .unwrap();
    dir
}

fn run(source: &Path, target: &Path, options: Options) {
    convert(source, target, &options, &mut |_| ControlFlow::Continue(())).unwrap();
}

/// Runs the test `name` of this file with `path`, and returns the bytes that it prints.
fn child(name: &str, path: &Path) -> Vec<u64> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--include-ignored", "--nocapture"])
        .env("JEVONS_TEST_DIR", path)
        // The bound counts threads' buffers too: as many as a small machine has.
        .env("RAYON_NUM_THREADS", "2")
        .output()
        .unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    let numbers = text.lines().find_map(|line| line.strip_prefix("BYTES ")).unwrap_or_else(|| panic!("{text}"));
    numbers.split(' ').map(|n| n.parse().unwrap()).collect()
}

#[test]
#[ignore = "run by the test below in a process of its own"]
fn child_loads() {
    let Some(dir) = std::env::var_os("JEVONS_TEST_DIR") else { return };
    let before = peak_rss_bytes().unwrap();
    let model = Model::load(Path::new(&dir), LoadOptions::default()).unwrap();
    println!("\nBYTES {} {}", peak_rss_bytes().unwrap() - before, model.weights().bytes());
}

#[test]
fn loading_takes_the_weights_and_at_most_a_tenth_more() {
    let dir = model();
    let options = Options { to: Some(Target::Fp8), shard_bytes: 10_000_000, ..Options::default() };
    run(&dir.path().join("m"), &dir.path().join("fp8"), options);
    let mut sizes = Vec::new();
    for name in ["m", "fp8"] {
        let numbers = child("child_loads", &dir.path().join(name));
        let (peak, weights) = (numbers[0] as f64, numbers[1] as f64);
        println!("{name}: {:.1} MB at most for {:.1} MB of weights, {:.3}", peak / 1e6, weights / 1e6, peak / weights);
        assert!(weights > 40e6 && peak >= 0.95 * weights, "{numbers:?}: this measures nothing");
        assert!(peak <= 1.1 * weights, "{name}: {peak} bytes for {weights} of weights");
        sizes.push(weights);
    }
    // Codes stay codes; embedding, head and gains are not quantised.
    assert!(sizes[1] < 0.7 * sizes[0], "{sizes:?}");
}

#[test]
#[ignore = "run by the test below in a process of its own"]
fn child_makes_random_weights() {
    let Some(dir) = std::env::var_os("JEVONS_TEST_DIR") else { return };
    let config = Config::from_file(Path::new(&dir).join("config.json")).unwrap();
    let before = peak_rss_bytes().unwrap();
    let model = Model::random(config, Precision::Bf16, None, 1).unwrap();
    println!("\nBYTES {} {}", peak_rss_bytes().unwrap() - before, model.weights().bytes());
}

#[test]
fn random_weights_take_their_size_and_at_most_a_tenth_more() {
    let dir = model();
    let numbers = child("child_makes_random_weights", &dir.path().join("m"));
    let (peak, weights) = (numbers[0] as f64, numbers[1] as f64);
    println!("{:.1} MB at most for {:.1} MB of weights, {:.3}", peak / 1e6, weights / 1e6, peak / weights);
    assert!(weights > 60e6 && peak >= 0.95 * weights, "{numbers:?}: this measures nothing");
    assert!(peak <= 1.1 * weights, "{peak} bytes for {weights} of weights");
}

#[test]
#[ignore = "run by the test below in a process of its own"]
fn child_converts() {
    let Some(dir) = std::env::var_os("JEVONS_TEST_DIR") else { return };
    let dir = Path::new(&dir);
    let before = peak_rss_bytes().unwrap();
    let to = |to| Options { to: Some(to), ..Options::default() };
    run(&dir.join("m"), &dir.join("fp8"), to(Target::Fp8));
    run(&dir.join("fp8"), &dir.join("f32"), to(Target::F32));
    run(&dir.join("f32"), &dir.join("bf16"), to(Target::Bf16));
    run(&dir.join("bf16"), &dir.join("shards"), Options { shard_bytes: 1_000_000, ..Options::default() });
    println!("\nBYTES {}", peak_rss_bytes().unwrap() - before);
}

#[test]
fn converting_takes_the_same_memory_whatever_the_size() {
    let dir = model();
    let bytes = Checkpoint::open(dir.path().join("m")).unwrap().tensor_bytes();
    let peak = child("child_converts", dir.path())[0];
    println!("{:.1} MB at most for {:.1} MB of bf16 weights", peak as f64 / 1e6, bytes as f64 / 1e6);
    // Measured 5 MB for both sizes.
    assert!(peak < 24_000_000 && bytes > 3 * 24_000_000, "{peak} bytes for {bytes} of weights");
}
