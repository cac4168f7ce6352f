//! `jevons plan` from outside.

use std::{fs, path::Path};

use serde_json::Value;
use tempfile::tempdir;

use crate::common::{command, finish, jevons};

fn golden(name: &str) -> String {
    format!("{}/../model/tests/golden/configs/{name}.json", env!("CARGO_MANIFEST_DIR"))
}

fn plan(args: &[&str]) -> Value {
    let dir = tempdir().unwrap();
    jevons(dir.path(), &[&["plan", "--json"], args].concat()).json()
}

#[track_caller]
fn within(plan: &Value, key: &str, published: f64) {
    let row = plan["rows"].as_array().unwrap().iter().find(|row| row["key"] == key).unwrap();
    let [p5, p95] = ["p5", "p95"].map(|p| row["value"][p].as_f64().unwrap());
    assert!(p5 <= published && published <= p95, "{key}: {published}, planned {p5} to {p95}");
}

#[test]
fn published_runs_follow_from_config_and_tokens() {
    let v3 = golden("DeepSeek-V3");
    let v3_run = plan(&[&v3, "--tokens", "14.8T", "--hardware", "H800", "--devices", "2048", "--region", "CHN"]);
    within(&v3_run, "device_hours", 2.788e6);
    within(&v3_run, "usd", 5.576e6);
    // 14.8 · 10¹² tokens of the published 250 GFLOP.
    let flop = v3_run["rows"].as_array().unwrap().iter().find(|row| row["key"] == "flop").unwrap();
    assert!((flop["value"]["p50"].as_f64().unwrap() / (14.8e12 * 250e9) - 1.0).abs() < 2e-3, "{flop}");
    let r1 = plan(&[&golden("DeepSeek-R1"), "--stage", "r1", "--hardware", "H800", "--devices", "512"]);
    within(&r1, "device_hours", 147e3);
    within(&r1, "usd", 294e3);
    within(&plan(&["--size", "175B", "--tokens", "300B", "--hardware", "V100"]), "facility_mwh", 1287.0);
    // Runs that the table of published runs does not have. Llama 4 model card: 17 B active, 40 T tokens, 5.0 M H100-hours; 22 T, 2.38 M.
    // DeepSeek LLM, arXiv:2401.02954: 67 B, 300.6 K H800-hours per 10¹² tokens. Falcon-180B model card: 3.5 T tokens, about 7 M A100-hours.
    for (size, active, tokens, hardware, hours) in [
        ("109B", "17B", "40T", "H100", 5.0e6),
        ("400B", "17B", "22T", "H100", 2.38e6),
        ("67B", "67B", "2T", "H800", 601.2e3),
        ("180B", "180B", "3.5T", "A100", 7.0e6),
    ] {
        let run = plan(&["--size", size, "--active", active, "--tokens", tokens, "--hardware", hardware]);
        within(&run, "device_hours", hours);
    }
}

#[test]
fn a_plan_says_what_it_stands_on_and_what_is_not_in_it() {
    let dir = tempdir().unwrap();
    let text = jevons(
        dir.path(),
        &["plan", "--size", "30M", "--tokens", "1B", "--hardware", "cpu", "--cpu-gflops", "800", "--cpu-watts", "65"],
    )
    .ok();
    for part in [
        "p5",
        "p50",
        "p95",
        "device-hours",
        "IT energy",
        "carbon",
        "water",
        "money",
        "It stands on",
        "not in it: research",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let serve = plan(&[&golden("DeepSeek-R1"), "--stage", "serve", "--users", "10K", "--hardware", "H200"]);
    for key in [
        "expert_coverage",
        "devices",
        "full_j_per_token",
        "wh_per_request",
        "ml_per_request",
        "usd_per_request",
        "capacity_mw",
    ] {
        assert!(serve["rows"].as_array().unwrap().iter().any(|row| row["key"] == key), "{key}");
    }
    let back_tests = jevons(dir.path(), &["plan", "--back-tests"]).ok();
    assert!(back_tests.contains("DeepSeek-V3") && back_tests.contains("inside; each was left out"), "{back_tests}");
}

#[test]
fn a_cpu_is_what_the_bench_has_measured() {
    let dir = tempdir().unwrap();
    let path = dir.path();
    let bench = jevons(path, &["bench", "gemm", "--quick", "--json"]).ok();
    fs::write(path.join("bench.json"), &bench).unwrap();
    let args = ["plan", "--size", "30M", "--tokens", "1B", "--hardware", "cpu", "--cpu-watts", "65", "--json"];
    let plan = jevons(path, &[&args[..], &["--bench", "bench.json"]].concat()).json();
    let bench: Value = serde_json::from_str(&bench).unwrap();
    let flop_per_s = bench["limits"]["product_flop_per_s"]["all_threads"].as_f64().unwrap();
    // 6 FLOP per parameter and token, at 0.7 (0.45 to 0.9) of the speed of products.
    within(&plan, "device_hours", 6.0 * 30e6 * 1e9 / (0.7 * flop_per_s) / 3600.0);
    fs::write(path.join("bench.json"), "{}").unwrap();
    let error = jevons(path, &[&args[..], &["--bench", "bench.json"]].concat()).fails(1);
    assert!(error.contains("bench.json") && error.contains("jevons bench --json"), "{error}");
}

#[test]
fn the_region_comes_from_the_flag_or_from_the_environment() {
    let dir = tempdir().unwrap();
    let args = ["plan", "--size", "1B", "--tokens", "1B", "--json"];
    let carbon = |region: Option<&str>, flag: &[&str]| {
        let mut command = command(dir.path(), &[&args, flag].concat());
        command.envs(region.map(|r| ("JEVONS_REGION", r)));
        let plan = finish(command, "").json();
        plan["rows"].as_array().unwrap().iter().find(|r| r["key"] == "carbon_operational_t").unwrap()["value"]["p50"]
            .as_f64()
            .unwrap()
    };
    let (world, france) = (carbon(None, &[]), carbon(Some("FRA"), &[]));
    assert!(france < 0.2 * world, "{france} {world}");
    assert_eq!(carbon(Some("FRA"), &["--region", "WOR"]), world);
}

#[test]
fn what_the_press_says_is_computed_again_with_a_verdict_each() {
    let dir = tempdir().unwrap();
    let claims = plan(&["--claims"]);
    let verdicts: Vec<(&str, &str)> = claims["claims"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| (c["id"].as_str().unwrap(), c["verdict"].as_str().unwrap()))
        .collect();
    let want = [
        ("training-5.6m", "holds"),
        ("gpt4-80-100m", "holds"),
        ("cheaper-18x", "wrong_subject"),
        ("electricity-2-percent", "holds"),
        ("greenhouse-3.7-percent", "wrong_subject"),
        ("water-500ml", "off_by"),
        ("demand-50x-2028", "no_source"),
        ("fraction-training", "holds"),
        ("fraction-answer", "off_by"),
    ];
    assert_eq!(verdicts, want);
    for claim in claims["claims"].as_array().unwrap() {
        assert!(
            claim["inputs"].as_array().unwrap().iter().all(|i| i["source"].is_string() && i["date"].is_string()),
            "{claim:#}"
        );
    }
    let text = jevons(dir.path(), &["plan", "--claims"]).ok();
    for part in
        ["HOLDS", "WRONG SUBJECT", "OFF BY A FACTOR OF 30", "NO SOURCE", "5.58 M USD", "16.9 mL", "arXiv:2304.03271"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn what_cannot_be_planned_is_refused_with_a_way_out() {
    let dir = tempdir().unwrap();
    let fails = |args: &[&str], code, word: &str| {
        let error = jevons(dir.path(), &[&["plan"], args].concat()).fails(code);
        assert!(error.contains(word), "{args:?}: {error}");
    };
    fails(&[], 1, "--size");
    fails(&["--size", "7B"], 1, "--tokens");
    fails(&["--size", "7B", "--tokens", "1T", "--hardware", "abacus"], 1, "MI300X");
    fails(&["--size", "7B", "--tokens", "1T", "--hardware", "cpu"], 2, "--cpu-watts");
    fails(&["--size", "7B", "--tokens", "1T", "--region", "XXX"], 1, "XXX");
    fails(&["--size", "7B", "--tokens", "1T", "--pue", "0.5"], 1, "PUE");
    fails(&["--size", "7B", "--tokens=-1"], 2, "tokens");
    fails(&["--size", "7B", "--active", "9B", "--tokens", "1T"], 1, "active");
    fails(&["--size", "7B", "--tokens", "1T", "--grid", "731590"], 1, "g/kWh");
    fails(&["--size", "7B", "--stage", "rl", "--steps", "100"], 1, "--devices");
    fails(&["--claims", "--size", "7B"], 2, "--size");
    fs::write(dir.path().join("config.json"), "{\"model_type\": \"abacus\"}").unwrap();
    fails(&["config.json", "--tokens", "1T"], 1, "config.json");
    assert!(Path::new(&golden("DeepSeek-V3")).is_file());
}
