//! `bench`: what it says, not how fast this machine is.

use std::fs;

use serde_json::Value;
use tempfile::tempdir;

use crate::common::{jevons, write_model};

/// What every row must have, whatever was measured.
#[track_caller]
fn check_row(row: &Value) {
    let number = |v: &Value| v.as_f64().unwrap_or_else(|| panic!("{v} in {row}"));
    for key in ["flop_per_s", "bytes_per_s", "share_of_limit"] {
        assert!(number(&row[key]) > 0.0, "{key}: {row}");
    }
    let times = ["min_s", "median_s", "max_s"].map(|key| number(&row["times"][key]));
    assert!(times[0] > 0.0 && times.is_sorted() && row["times"]["runs"].as_u64().unwrap() > 0, "{row}");
    assert!(["memory", "products"].contains(&row["bound"].as_str().unwrap()), "{row}");
    assert!(["f32", "bf16", "fp8"].contains(&row["format"].as_str().unwrap()), "{row}");
    assert!(number(&row["work"]["flop"]) > 0.0 && number(&row["work"]["bytes"]) > 0.0, "{row}");
    match row["work"]["tokens"].as_u64() {
        // One over the other, but for the last places of JSON.
        Some(n) => assert!((number(&row["tokens_per_s"]) * times[1] / n as f64 - 1.0).abs() < 1e-9, "{row}"),
        None => assert!(row["tokens_per_s"].is_null() && row["phase"] == "gemm", "{row}"),
    }
}

fn names(list: &Value) -> Vec<String> {
    list.as_array()
        .unwrap()
        .iter()
        .map(|r| format!("{} {}", r["phase"].as_str().unwrap(), r["name"].as_str().unwrap()))
        .collect()
}

#[test]
fn a_quick_run_on_the_built_in_model_tells_limits_rows_memory_and_what_was_left_out() {
    let dir = tempdir().unwrap();
    let args = ["bench", "--quick", "--seconds", "0", "--json", "--plot", "roof.svg", "--threads", "2"];
    let report = jevons(dir.path(), &args).json();
    for limit in ["read_bytes_per_s", "fma_flop_per_s", "product_flop_per_s"] {
        for threads in ["one_thread", "all_threads"] {
            assert!(report["limits"][limit][threads].as_f64().unwrap() > 1e6, "{limit} {threads}: {report}");
        }
    }
    assert!(report["limits"]["read_way_all_threads"].as_str().unwrap().contains("stream"), "{report}");
    let own = ["amx", "avx512bf16"].iter().any(|path| report["instruction_set"] == **path);
    assert_eq!(report["limits"]["bf16_flop_per_s"].is_null(), !own);
    assert_eq!(report["limits"]["bf16_instruction"].is_null(), !own);
    assert_eq!(
        names(&report["rows"]),
        [
            "prefill 1 token",
            "prefill 32 tokens",
            "prefill 512 tokens",
            "decode context 0, batch 1",
            "decode context 0, batch 8",
            "decode context 512, batch 1",
            "decode context 512, batch 8",
            "train 8 x 512 tokens",
        ]
    );
    report["rows"].as_array().unwrap().iter().for_each(check_row);
    assert_eq!(
        names(&report["left_out"]),
        ["prefill 2048 tokens", "decode context 4096, batch 1", "decode context 4096, batch 8"]
    );
    assert!(report["left_out"][0]["reason"].as_str().unwrap().contains("512 tokens"), "{report}");
    let memory: Vec<&str> = report["memory"].as_array().unwrap().iter().map(|m| m["phase"].as_str().unwrap()).collect();
    assert_eq!(memory, ["limits", "weights", "prefill", "decode", "train"]);
    if cfg!(target_os = "linux") {
        let peaks = report["memory"].as_array().unwrap().iter().map(|m| m["peak_rss_bytes"].as_u64().unwrap());
        assert!(peaks.min().unwrap() > 1 << 20, "{report}");
    }
    assert_eq!((report["threads"].as_u64(), &report["model"]["name"]), (Some(2), &Value::from("the built-in model")));
    assert_eq!((&report["model"]["random"], &report["settings"]["quick"]), (&Value::from(false), &Value::from(true)));
    assert!(report["cpu"]["architecture"].is_string() && report["version"].is_string(), "{report}");
    let svg = fs::read_to_string(dir.path().join("roof.svg")).unwrap();
    // One point for each row, and its line in the list.
    assert_eq!(svg.matches("<circle").count(), 8);
    assert!(svg.contains("train 8 x 512 tokens, bf16") && svg.contains("reading memory"), "{svg}");
}

#[test]
fn random_weights_of_a_config_are_measured_without_a_file() {
    let dir = tempdir().unwrap();
    write_model(&dir.path().join("m"));
    let args = ["bench", "m/config.json", "--random", "--quick", "--seconds", "0", "--only", "prefill,decode"];
    let report = jevons(dir.path(), &[&args[..], &["--json"]].concat()).json();
    assert_eq!((&report["model"]["random"], &report["model"]["precision"]), (&true.into(), &"bf16".into()));
    assert_eq!((&report["model"]["context"], &report["model"]["mla"]), (&160.into(), &"expanded".into()));
    assert_eq!(
        names(&report["rows"]),
        ["prefill 1 token", "prefill 32 tokens", "decode context 0, batch 1", "decode context 0, batch 8"]
    );
    report["rows"].as_array().unwrap().iter().for_each(check_row);
    let f32 = jevons(dir.path(), &[&args[..], &["--json", "--precision", "f32", "--mla", "absorbed"]].concat()).json();
    assert_eq!((&f32["model"]["precision"], &f32["model"]["mla"]), (&"f32".into(), &"absorbed".into()));
    // Bytes are counted in the format of the weights.
    let quantized = |what: &[&str]| jevons(dir.path(), &[&args[..], &["--json"], what].concat()).json();
    let (fp8, head) = (quantized(&["--quantize", "fp8"]), quantized(&["--quantize", "fp8-head"]));
    let bytes = |r: &serde_json::Value| r["rows"][0]["work"]["bytes"].as_f64().unwrap();
    assert!(bytes(&head) < bytes(&fp8) && bytes(&fp8) < bytes(&report), "{} {}", bytes(&head), bytes(&fp8));
    assert_eq!([&report, &fp8, &head].map(|r| r["model"]["weights"].as_str().unwrap()), ["bf16", "fp8", "fp8_head"]);
    // A folder's shape too, and in words.
    let text = jevons(dir.path(), &["bench", "m", "--random", "--quick", "--seconds", "0", "--only", "train"]).ok();
    for words in ["Training step", "8 x 160 tokens", "m, random weights", "Highest resident memory", "% of limit"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let absorbed = ["bench", "m", "--quick", "--seconds", "0", "--only", "train", "--mla", "absorbed"];
    let text = jevons(dir.path(), &absorbed).ok();
    assert!(text.contains("Left out") && text.contains("for inference only"), "{text}");
    let kept: Vec<_> = fs::read_dir(dir.path().join("m")).unwrap().collect();
    assert_eq!(kept.len(), 2, "{kept:?}");
}

#[test]
fn products_are_measured_in_every_format_and_at_further_shapes() {
    let dir = tempdir().unwrap();
    let args =
        ["bench", "gemm", "--quick", "--seconds", "0", "--only-shapes", "--shape", "33,70,50", "--shape", "1,64,96"];
    let report = jevons(dir.path(), &[&args[..], &["--json"]].concat()).json();
    assert_eq!(names(&report["rows"]), ["gemm 33 x 70 x 50", "gemm 1 x 64 x 96"].repeat(3));
    report["rows"].as_array().unwrap().iter().for_each(check_row);
    let formats: Vec<&str> = report["rows"].as_array().unwrap().iter().map(|r| r["format"].as_str().unwrap()).collect();
    assert_eq!(formats, ["bf16", "bf16", "fp8", "fp8", "f32", "f32"]);
    assert_eq!(report["rows"][0]["work"]["flop"], 2.0 * 33.0 * 70.0 * 50.0);
    assert!(report["model"].is_null() && report["memory"][1]["phase"] == "gemm", "{report}");
    let text = jevons(dir.path(), &args).ok();
    assert!(text.contains("bf16 33 x 70 x 50") && text.contains("TFLOP/s") && !text.contains("tokens/s"), "{text}");
}

#[test]
fn what_an_accumulator_loses_is_told_as_tables_json_and_a_picture() {
    let dir = tempdir().unwrap();
    let args = ["bench", "accumulate", "--rows", "16", "--k", "128,4096"];
    let report = jevons(dir.path(), &[&args[..], &["--json", "--plot", "errors.svg"]].concat()).json();
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2 * 4 + 7 + 2 * 7);
    let error = |sweep: &str, k: u64, way: &str, promote: Option<u64>| {
        let found =
            |r: &&Value| r["sweep"] == sweep && r["k"] == k && r["way"] == way && r["promote"].as_u64() == promote;
        let row = rows.iter().find(found).unwrap_or_else(|| panic!("{sweep} {k} {way} {promote:?}: {report}"));
        assert!(row["rms_error"].as_f64().unwrap() <= row["max_error"].as_f64().unwrap(), "{row}");
        row["max_error"].as_f64().unwrap()
    };
    let (never, every) = (error("k", 4096, "tensor_core", None), error("k", 4096, "tensor_core", Some(128)));
    assert!(never < 0.03 && never > 5.0 * every, "{never} {every}");
    assert!(every > 50.0 * error("k", 4096, "bf16_product", None));
    assert_eq!((error("promotion", 4096, "tensor_core", None), rows[0]["bits"].as_u64()), (never, Some(14)));
    let svg = fs::read_to_string(dir.path().join("errors.svg")).unwrap();
    assert!(svg.contains("Longer sums") && svg.contains("</svg>"), "{svg}");

    let text = jevons(dir.path(), &args).ok();
    for words in ["Largest error, K", "RMS error, K", "14 bits, every 128", "never", "Bits, K = 4096", "toward zero"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let one = ["bench", "accumulate", "--only", "promotion", "--rows", "4", "--numbers", "positive", "--cut", "down"];
    let text = jevons(dir.path(), &one).ok();
    assert!(text.contains("Promoted every, K = 4096") && !text.contains("Bits, K"), "{text}");
    assert!(text.contains("0..1") && text.contains("cut down"), "{text}");
}

#[test]
fn linears_are_measured_in_both_formats_and_those_that_fp8_does_not_help_are_named() {
    let dir = tempdir().unwrap();
    write_model(&dir.path().join("m"));
    let args = ["bench", "linears", "m/config.json", "--quick", "--seconds", "0", "--threads", "2"];
    let report = jevons(dir.path(), &[&args[..], &["--json"]].concat()).json();
    let rows = report["rows"].as_array().unwrap();
    let number = |v: &Value| v.as_f64().unwrap_or_else(|| panic!("{v}"));
    let mut names = vec![];
    for row in rows {
        for product in ["fprop", "dgrad", "wgrad", "weights"] {
            let p = &row[product];
            assert!(number(&p["bf16"]["median_s"]) > 0.0 && number(&p["fp8"]["median_s"]) > 0.0, "{row}");
            assert_eq!(p["bf16"]["runs"], p["fp8"]["runs"], "{row}");
            assert!(number(&p["ratio"]) > 0.0, "{row}");
        }
        assert_eq!(row["helped"].as_bool().unwrap(), number(&row["ratio"]) >= 1.0, "{row}");
        // The test model is far too small.
        assert_eq!(row["auto_leaves_in_bf16"], true, "{row}");
        assert!(row["experts_run"].as_u64().unwrap() <= row["experts"].as_u64().unwrap(), "{row}");
        assert!(number(&row["inputs"]) * number(&row["outputs"]) * number(&row["count"]) > 0.0, "{row}");
        names.extend(row["names"].as_array().unwrap().iter().map(|n| n.as_str().unwrap().to_owned()));
    }
    for name in ["self_attn.o_proj", "mlp.down_proj", "mlp.experts.gate_proj", "mlp.shared_experts.up_proj"] {
        assert!(names.iter().any(|n| n == name), "{name}: {names:?}");
    }
    let config: Value = serde_json::from_str(&fs::read_to_string(dir.path().join("m/config.json")).unwrap()).unwrap();
    let o = rows.iter().find(|r| r["names"].as_array().unwrap().contains(&"self_attn.o_proj".into())).unwrap();
    assert_eq!((&o["outputs"], &o["tokens"]), (&config["hidden_size"], &(8 * 160).into()));
    assert_eq!((&report["model"]["name"], &report["threads"]), (&"m/config.json".into(), &2.into()));
    assert_eq!((&report["settings"]["tokens"], &report["settings"]["quick"]), (&(8 * 160).into(), &true.into()));
    // In words, and of a folder.
    let text = jevons(dir.path(), &["bench", "linears", "m", "--quick", "--seconds", "0", "--tokens", "64"]).ok();
    for words in ["Linears, three products", "in x out", "does not help", "\"auto\" leaves in bf16", "64 tokens"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let left = text.split("leaves in bf16").nth(1).unwrap();
    assert!(left.contains("self_attn.o_proj") && left.contains("mlp.experts.down_proj"), "{text}");
    // What is large is left out of a quick run, and judged by its shape all the same.
    let large = concat!(env!("CARGO_MANIFEST_DIR"), "/../model/tests/golden/configs/DeepSeek-V3.json");
    let report = jevons(dir.path(), &["bench", "linears", large, "--quick", "--seconds", "0", "--json"]).json();
    let left_out = report["left_out"].as_array().unwrap();
    assert!(report["rows"].as_array().unwrap().is_empty() && left_out.len() == 11, "{report}");
    assert_eq!(left_out[0]["reason"], "too large for a quick run");
    assert!(left_out.iter().all(|l| l["auto_leaves_in_bf16"] == false), "{report}");
}

#[test]
fn what_cannot_be_measured_is_refused_with_a_way_out() {
    let dir = tempdir().unwrap();
    write_model(&dir.path().join("m"));
    for (args, word) in [
        (&["bench", "--only", "prefil"][..], "prefill"),
        (&["bench", "--seconds", "1e9"], "from 0 to 3600"),
        (&["bench", "m", "--random", "--adapter", "a"], "cannot be used with"),
        (&["bench", "gemm", "--shape", "1,2"], "three numbers"),
        (&["bench", "gemm", "--only-shapes"], "--shape"),
        (&["bench", "gemm", "--threads", "0"], "--threads"),
        (&["bench", "accumulate", "--bits", "9"], "10..=23"),
        (&["bench", "accumulate", "--bits", "x"], "--bits"),
        (&["bench", "accumulate", "--k", "128,0"], "from 1 to 32768"),
        (&["bench", "accumulate", "--rows", "0"], "1..=8192"),
        (&["bench", "accumulate", "--only", "length"], "promotion"),
        (&["bench", "linears", "--tokens", "0"], "--tokens"),
    ] {
        let err = jevons(dir.path(), args).fails(2);
        assert!(err.contains(word), "{args:?}: {err}");
    }
    for (args, words) in [
        (&["bench", "nowhere"][..], "there is no such folder"),
        (&["bench", "m/config.json"], "--random"),
        (&["bench", "nowhere.json", "--random"], "there is no such folder"),
        (&["bench", "accumulate", "--plot", "no/such/errors.svg"], "no/such: there is no such folder"),
        (&["bench", "linears", "nowhere"], "there is no such folder"),
        (
            &["bench", "--quick", "--seconds", "0", "--only", "prefill", "--plot", "no/such/folder.svg"],
            "no/such: there is no such folder",
        ),
    ] {
        let err = jevons(dir.path(), args).fails(1);
        assert!(err.contains(words), "{args:?}: {err}");
    }
    let huge = concat!(env!("CARGO_MANIFEST_DIR"), "/../model/tests/golden/configs/DeepSeek-V3.json");
    if cfg!(target_os = "linux") {
        let err = jevons(dir.path(), &["bench", huge, "--random", "--quick"]).fails(1);
        assert!(err.contains("the model's weights: about 13") && err.contains("MB are free"), "{err}");
    }
}
