//! Whole runs: from a recipe to a run folder.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use jevons_kernels::Dtype;
use jevons_layers::Keep;
use jevons_model::{
    Config, Fp8, Linears, LoadOptions, Model, Precision, Quantize,
    account::WeightFormat,
    checkpoint::{SaveDtype, save_model},
    config::ScaleFormat,
};
use jevons_train::{
    memory::{StepShape, estimate},
    recipe::Recipe,
    run::{Event, RunError, Summary, run},
    trainer::StepError,
};
use serde_json::Value;

const RECIPE: &str = r#"
name = "test"
seed = 3
precision = "bf16"
[model.tokenizer]
train = { vocab_size = 300 }
[model.config]
model_type = "deepseek_v3"
hidden_size = 32
intermediate_size = 48
moe_intermediate_size = 24
num_hidden_layers = 3
first_k_dense_replace = 1
num_attention_heads = 2
q_lora_rank = 20
kv_lora_rank = 16
qk_nope_head_dim = 8
qk_rope_head_dim = 4
v_head_dim = 12
n_routed_experts = 6
n_shared_experts = 1
num_experts_per_tok = 2
n_group = 3
topk_group = 2
max_position_embeddings = 128
[data]
sequence_length = 48
heldout_fraction = 0.1
[[data.sources]]
generator = "arithmetic"
count = 200
[[data.sources]]
path = "text.txt"
[batch]
sequences = 6
micro_batch_sequences = 2
[optimizer]
lr = 3e-3
[schedule]
steps = 12
warmup_steps = 3
[moe]
collapsed_expert_steps = 0
[evaluation]
every_steps = 5
heldout_sequences = 4
[checkpoint]
every_steps = 5
[run]
folder = "run"
"#;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/parity").join(name)
}

/// A folder with the recipe and its text.
fn folder() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let text: String = (0..300).map(|i| format!("Line {i} says that the cat saw {} birds.\n", i * 7 % 13)).collect();
    fs::write(dir.path().join("text.txt"), text).unwrap();
    let recipe = dir.path().join("recipe.toml");
    fs::write(&recipe, RECIPE).unwrap();
    (dir, recipe)
}

fn recipe(path: &Path, changes: &[(&str, &str)]) -> Recipe {
    let mut recipe = Recipe::load(path).unwrap();
    recipe.apply_overrides(changes).unwrap();
    recipe
}

fn go(recipe: &Recipe, resume: bool) -> Result<Summary, RunError> {
    run(recipe, resume, &AtomicBool::new(false), &mut |_| {})
}

/// Stops after `steps` steps, as Ctrl-C does.
fn go_until(recipe: &Recipe, resume: bool, steps: u64) -> Summary {
    let stop = AtomicBool::new(false);
    run(recipe, resume, &stop, &mut |event| {
        if let Event::Step(s) = event
            && s.step + 1 == steps
        {
            stop.store(true, Ordering::Relaxed);
        }
    })
    .unwrap()
}

#[test]
fn a_run_stopped_twice_and_resumed_ends_with_the_bytes_of_an_uninterrupted_one() {
    let (dir, path) = folder();
    for (precision, moments) in [("bf16", "f32"), ("f32", "bf16"), ("fp8", "bf16")] {
        let with = |folder: &str| {
            recipe(&path, &[("run.folder", folder), ("precision", precision), ("optimizer.moments", moments)])
        };
        let whole = go(&with(&format!("whole-{precision}")), false).unwrap();
        assert!(!whole.interrupted && whole.step == 12);
        let parts = with(&format!("parts-{precision}"));
        assert!(go_until(&parts, false, 4).interrupted);
        assert_eq!(go_until(&parts, true, 7).step, 7);
        let end = go(&parts, true).unwrap();
        assert_eq!((end.step, end.loss, end.tokens), (12, whole.loss, whole.tokens));
        assert_eq!(end.heldout_loss, whole.heldout_loss);
        for file in
            ["state/checkpoint.safetensors", "model/model.safetensors", "model/config.json", "model/tokenizer.json"]
        {
            let read = |run: &str| fs::read(dir.path().join(format!("{run}-{precision}")).join(file)).unwrap();
            assert!(read("whole") == read("parts"), "{file} differs");
        }
        let losses = |run: &str| -> Vec<Value> {
            let text = fs::read_to_string(dir.path().join(format!("{run}-{precision}/metrics.jsonl"))).unwrap();
            let lines = text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
            lines.map(|l| serde_json::json!([l["step"], l["loss"], l["heldout_loss"], l["loads"]])).collect()
        };
        assert_eq!(losses("whole"), losses("parts"));
    }
}

/// Changes of [`RECIPE`] by which the dense layer's first two linears are worth FP8, and no other.
const SOME_LARGE: [(&str, &str); 5] = [
    ("precision", "fp8"),
    ("fp8.linears", "auto"),
    ("model.config.hidden_size", "320"),
    ("model.config.intermediate_size", "2048"),
    ("schedule.steps", "4"),
];

#[test]
fn small_linears_stay_in_bf16_if_asked_and_the_run_says_which_and_learns_and_resumes() {
    let (dir, path) = folder();
    let with = |changes: &[(&str, &str)]| recipe(&path, &[&SOME_LARGE[..], changes].concat());
    let mut notices = vec![];
    let whole = run(&with(&[("run.folder", "whole")]), false, &AtomicBool::new(false), &mut |event| {
        if let Event::Notice(text) = event {
            notices.push(text);
        }
    })
    .unwrap();
    let text = notices.iter().find(|n| n.contains("fp8.linears")).unwrap();
    assert!(text.starts_with("fp8.linears = \"auto\": in bf16 self_attn.q_a_proj, "), "{text}");
    assert!(text.ends_with("; in FP8 mlp.gate_proj, mlp.up_proj"), "{text}");
    let weights = whole.memory.iter().find(|c| c.name == "weights").unwrap();
    let held = weights.used_bytes.unwrap();
    assert!(held >= weights.estimated_bytes && held < weights.estimated_bytes * 13 / 10, "{weights:?}");
    // Neither all in FP8 nor all in bf16.
    let all = go(&with(&[("fp8.linears", "all"), ("run.folder", "all")]), false).unwrap();
    let bf16 = go(&recipe(&path, &[&SOME_LARGE[2..], &[("run.folder", "bf16")]].concat()), false).unwrap();
    assert!(whole.loss != all.loss && whole.loss != bf16.loss, "{:?}", whole.loss);
    assert!((whole.loss.unwrap() - bf16.loss.unwrap()).abs() < 0.05, "{:?} {:?}", whole.loss, bf16.loss);
    let used = |s: &Summary, name: &str| s.memory.iter().find(|c| c.name == name).unwrap().used_bytes.unwrap();
    for name in ["weights", "saved activations"] {
        assert!(used(&all, name) < used(&whole, name) && used(&whole, name) < used(&bf16, name), "{name}");
    }

    let parts = with(&[("run.folder", "parts")]);
    assert!(go_until(&parts, false, 2).interrupted);
    let error = go(&with(&[("run.folder", "parts"), ("fp8.linears", "all")]), true).unwrap_err().to_string();
    assert!(error.contains("fp8.linears") && error.contains("another recipe"), "{error}");
    assert_eq!(go(&parts, true).unwrap().loss, whole.loss);
    let state = |run: &str| dir.path().join(run).join("state/checkpoint.safetensors");
    assert!(fs::read(state("whole")).unwrap() == fs::read(state("parts")).unwrap());

    // A state of a version that chose otherwise: one letter of the names that it holds is another.
    let mut bytes = fs::read(state("parts")).unwrap();
    let names = b"\"linears_in_bf16\":\"self_attn.q_a_proj";
    let at = bytes.windows(names.len()).position(|w| w == names).unwrap() + names.len() - 1;
    bytes[at] = b'k';
    fs::write(state("parts"), bytes).unwrap();
    let error = go(&parts, true).unwrap_err().to_string();
    assert!(error.contains("left self_attn.q_a_prok") && error.contains("new one in another run.folder"), "{error}");
}

#[test]
fn threads_and_recomputation_do_not_change_a_bit() {
    let (dir, path) = folder();
    for precision in ["bf16", "fp8"] {
        let runs = [("a", 1, "none"), ("b", 2, "mla_up"), ("c", 3, "layer")];
        let states = runs.map(|(name, threads, recompute)| {
            let name = format!("{name}-{precision}");
            let changes =
                [("run.folder", &*name), ("recompute", recompute), ("precision", precision), ("schedule.steps", "4")];
            let recipe = recipe(&path, &changes);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| go(&recipe, false)).unwrap();
            fs::read(dir.path().join(name).join("state/checkpoint.safetensors")).unwrap()
        });
        assert!(states[0] == states[1] && states[1] == states[2], "{precision}");
    }
}

#[test]
fn a_run_leaves_a_model_plots_and_metrics_and_it_learns() {
    let (dir, path) = folder();
    let summary = go(&recipe(&path, &[("schedule.steps", "60"), ("optimizer.lr", "1e-2")]), false).unwrap();
    let run = dir.path().join("run");
    assert!(summary.loss.unwrap() < 3.6, "{:?}", summary.loss); // ln 300 = 5.7 at the start; measured 2.9
    assert!(summary.heldout_bits_per_byte.unwrap() > 0.1 && summary.heldout_loss.unwrap() < 3.8);
    let model = Model::load(&run.join("model"), LoadOptions::default()).unwrap();
    assert_eq!(model.config().vocab_size, 300);
    assert!(fs::read_to_string(run.join("loss.svg")).unwrap().contains("<svg"));
    assert!(fs::read_to_string(run.join("expert_load.svg")).unwrap().contains("<svg"));
    let lines = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    assert_eq!(lines.lines().filter(|l| l.contains("\"loss\"")).count(), 60);
    assert!(matches!(go(&recipe(&path, &[]), false), Err(RunError::Exists(_))));
    assert!(matches!(go(&recipe(&path, &[("run.folder", "none")]), true), Err(RunError::NothingToResume(_))));
    let changed = recipe(&path, &[("schedule.steps", "60"), ("optimizer.lr", "2e-2")]);
    let error = go(&changed, true).unwrap_err().to_string();
    assert!(error.contains("optimizer.lr"), "{error}");
}

#[test]
fn a_recipe_can_start_from_a_checkpoint_and_ready_batches_and_follows_pytorchs_curve() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("recipe.toml");
    let text = format!(
        r#"
        name = "curve"
        seed = 0
        precision = "f32"
        [model]
        init = {:?}
        [data]
        sequence_length = 64
        tokens = {:?}
        [batch]
        sequences = 4
        micro_batch_sequences = 4
        [optimizer]
        lr = 1e-3
        [schedule]
        steps = 32
        constant_fraction = 1.0
        [moe]
        bias_update_speed = 0.01
        sequence_balance_alpha = 0.0
        [checkpoint]
        dtype = "f32"
        [run]
        folder = "run"
        "#,
        golden("deepseek-v3"),
        golden("training-curve/batches.safetensors")
    );
    fs::write(&path, text).unwrap();
    let curve: Value = serde_json::from_slice(&fs::read(golden("training-curve/curve.json")).unwrap()).unwrap();
    let mut worst = 0.0f64;
    run(&Recipe::load(&path).unwrap(), false, &AtomicBool::new(false), &mut |event| {
        if let Event::Step(s) = event {
            let want = curve["curve"][s.step as usize]["loss"].as_f64().unwrap();
            worst = worst.max((s.loss - want).abs());
        }
    })
    .unwrap();
    assert!(worst < 1e-4, "{worst:e}"); // measured 1.4e-6
}

#[test]
fn a_model_with_multi_token_prediction_trains_it_saves_it_and_resumes_to_the_bit() {
    let (dir, path) = folder();
    let with = |folder: &str, steps: &str| {
        let set = [("model.config.num_nextn_predict_layers", "1"), ("schedule.steps", steps), ("run.folder", folder)];
        recipe(&path, &set)
    };
    let mut losses = Vec::new();
    run(&with("whole", "6"), false, &AtomicBool::new(false), &mut |event| {
        if let Event::Step(s) = event {
            losses.push((s.loss, s.mtp_loss.expect("the model has the layer"), s.loads.len()));
        }
    })
    .unwrap();
    let ((first, first_mtp, layers), (last, last_mtp, _)) = (losses[0], losses[5]);
    assert!(last < first && last_mtp < first_mtp, "{losses:?}");
    // Stopped after three steps and resumed: every byte the same.
    let stop = AtomicBool::new(false);
    run(&with("cut", "6"), false, &stop, &mut |event| {
        if matches!(event, Event::Step(s) if s.step == 2) {
            stop.store(true, Ordering::Relaxed);
        }
    })
    .unwrap();
    go(&with("cut", "6"), true).unwrap();
    let read = |run: &str, file: &str| fs::read(dir.path().join(run).join(file)).unwrap();
    for file in ["state/checkpoint.safetensors", "model/model.safetensors", "model/config.json"] {
        assert!(read("whole", file) == read("cut", file), "{file}");
    }
    // The published layout: the layer after the last, with copies of embedding and head.
    let bytes = read("whole", "model/model.safetensors");
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let config = Config::from_file(dir.path().join("whole/model/config.json")).unwrap();
    let (n, data) = (config.num_hidden_layers, |name: &str| file.tensor(name).unwrap().data());
    assert_eq!((config.num_nextn_predict_layers, layers), (1, (0..=n).filter(|i| config.is_moe_layer(*i)).count()));
    assert_eq!(file.len(), config.tensors().len() + 2);
    assert!(data(&format!("model.layers.{n}.embed_tokens.weight")) == data("model.embed_tokens.weight"));
    assert!(data(&format!("model.layers.{n}.shared_head.head.weight")) == data("lm_head.weight"));
    // Its loss moves the main model's weights too, unless its weight is 0: then the layer stays as it is.
    let off = |folder: &str| {
        let set = [("mtp.loss_weight", "0.0"), ("model.config.num_nextn_predict_layers", "1"), ("run.folder", folder)];
        recipe(&path, &set)
    };
    go(&off("off"), false).unwrap();
    let state = read("off", "state/checkpoint.safetensors");
    let names = safetensors::SafeTensors::deserialize(&state).unwrap();
    assert!(names.tensor(&format!("frozen.model.layers.{n}.eh_proj.weight")).is_ok());
    // Weights that lost the layer on their way are trained without it.
    go(&recipe(&path, &[("run.folder", "lost")]), false).unwrap();
    let lost = dir.path().join("lost/model");
    let text = fs::read_to_string(lost.join("config.json")).unwrap();
    let text = text.replace("\"num_nextn_predict_layers\": 0", "\"num_nextn_predict_layers\": 1");
    fs::write(lost.join("config.json"), text).unwrap();
    let (start, rest) = (RECIPE.find("[model.tokenizer]").unwrap(), RECIPE.find("[data]").unwrap());
    let text = format!("{}[model]\ninit = \"lost/model\"\n{}", &RECIPE[..start], &RECIPE[rest..]);
    fs::write(dir.path().join("again.toml"), text).unwrap();
    let mut notices = Vec::new();
    run(&Recipe::load(dir.path().join("again.toml")).unwrap(), false, &AtomicBool::new(false), &mut |event| {
        if let Event::Notice(text) = event {
            notices.push(text);
        }
    })
    .unwrap();
    assert!(notices.iter().any(|n| n.contains("multi-token prediction")), "{notices:?}");
}

#[test]
fn frozen_parameters_stay_and_cost_no_state() {
    let (dir, path) = folder();
    let frozen = [("model.freeze", r#"["model.embed_tokens.*", "*.experts.*"]"#), ("schedule.steps", "3")];
    go(&recipe(&path, &frozen), false).unwrap();
    let state = fs::read(dir.path().join("run/state/checkpoint.safetensors")).unwrap();
    let names: Vec<String> =
        safetensors::SafeTensors::deserialize(&state).unwrap().names().into_iter().map(ToString::to_string).collect();
    assert!(names.contains(&"frozen.model.embed_tokens.weight".to_string()));
    assert!(!names.iter().any(|n| n.starts_with("m.") && n.contains(".experts.")), "{names:?}");
    assert!(names.contains(&"m.lm_head.weight".to_string()));
    // As if they had never been trained: the same values as at the start.
    let initial = recipe(
        &path,
        &[("schedule.steps", "1"), ("schedule.warmup_steps", "0"), ("run.folder", "start"), ("optimizer.lr", "1e-30")],
    );
    go(&initial, false).unwrap();
    let tensor = |run: &str| {
        let bytes = fs::read(dir.path().join(run).join("model/model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        file.tensor("model.embed_tokens.weight").unwrap().data().to_vec()
    };
    assert!(tensor("run") == tensor("start"));
    let none = go(&recipe(&path, &[("model.freeze", r#"["nothing.*"]"#), ("run.folder", "x")]), false).unwrap_err();
    assert!(none.to_string().contains("nothing.*"), "{none}");
}

#[test]
fn numbers_that_blow_up_stop_the_run_with_the_layer_named_and_nothing_overwritten() {
    let (dir, path) = folder();
    go(&recipe(&path, &[("schedule.steps", "3")]), false).unwrap();
    // A checkpoint with one weight of layer 1 that no product survives.
    let model = Model::load(&dir.path().join("run/model"), LoadOptions::default()).unwrap();
    let values = |spec: &jevons_model::config::TensorSpec| {
        let id = model.specs().iter().position(|s| s.name == spec.name).unwrap();
        let mut values = jevons_train::state::values(&model, jevons_layers::ParamId(id));
        if spec.name == "model.layers.1.mlp.shared_experts.down_proj.weight" {
            values[0] = f32::INFINITY;
        }
        values.into()
    };
    let broken = dir.path().join("broken");
    save_model(&broken, model.config(), SaveDtype::F32, values).unwrap();
    fs::copy(dir.path().join("run/model/tokenizer.json"), broken.join("tokenizer.json")).unwrap();
    let text = RECIPE.replace("[model.config]", "[unused]");
    let (head, rest) = text.split_once("[model.tokenizer]").unwrap();
    let data = &rest[rest.find("[data]").unwrap()..];
    fs::write(&path, format!("{head}[model]\ninit = \"broken\"\n{data}").replace("\"run\"", "\"again\"")).unwrap();
    let error = go(&Recipe::load(&path).unwrap(), false).unwrap_err();
    assert!(matches!(error, RunError::Step(StepError::Forward { step: 0, .. })), "{error}");
    assert!(error.to_string().contains("model.layers.1"), "{error}");
    assert!(!dir.path().join("again/state").exists());
}

#[test]
fn an_expert_that_nobody_chooses_stops_the_run() {
    let (_dir, path) = folder();
    // One group of experts is masked for every token by a bias that no update moves back.
    let changes = [
        ("moe.collapsed_expert_steps", "2"),
        ("moe.bias_update_speed", "0"),
        ("model.config.n_routed_experts", "48"),
        ("model.config.num_experts_per_tok", "1"),
        ("model.config.topk_group", "1"),
        ("batch.sequences", "1"),
        ("batch.micro_batch_sequences", "1"),
        ("data.sequence_length", "16"),
    ];
    let error = go(&recipe(&path, &changes), false).unwrap_err();
    assert!(matches!(error, RunError::Step(StepError::CollapsedExpert { .. })), "{error}");
    assert!(error.to_string().contains(".mlp.experts."), "{error}");
}

#[test]
fn the_memory_of_saved_activations_is_known_exactly_before_the_first_step() {
    for case in ["deepseek-v3", "deepseek-v3-mtp", "deepseek-v2", "qwen2"] {
        let config = Config::from_file(golden(case).join("config.json")).unwrap();
        let auto = Fp8 { linears: Linears::Auto { tokens: 60 }, ..Fp8::default() };
        for precision in [Precision::F32, Precision::Bf16, Precision::Fp8(Fp8::default()), Precision::Fp8(auto)] {
            let model = Model::load(
                &golden(case),
                LoadOptions { precision: Some(precision), mtp: true, ..LoadOptions::default() },
            )
            .unwrap();
            for keep in [Keep::All, Keep::ButUp, Keep::Input] {
                let shape = StepShape {
                    sequences: 3,
                    length: 20,
                    micro_batches: 1,
                    precision,
                    moments: Dtype::F32,
                    keep,
                    mtp: true,
                };
                let tokens = vec![1; 60];
                let batch = jevons_model::MicroBatch { tokens: &tokens, targets: &tokens, lengths: &[20; 3] };
                let options =
                    jevons_model::PassOptions { keep, scale: 1.0, mtp_scale: 0.3, balance_alpha: 0.0, share: 1.0 };
                let out = model.forward_backward(&mut model.grads(|_| true), &batch, &options).unwrap();
                assert_eq!(estimate(&config, 1, shape).activations, out.saved_bytes, "{case} {precision:?} {keep:?}");
            }
        }
    }
}

#[test]
fn the_table_of_memory_says_what_the_run_then_holds() {
    let (_dir, path) = folder();
    let summary = go(&recipe(&path, &[("schedule.steps", "3")]), false).unwrap();
    let class = |name: &str| *summary.memory.iter().find(|c| c.name == name).unwrap();
    for name in ["masters", "gradients", "moments"] {
        let class = class(name);
        assert_eq!(class.used_bytes, Some(class.estimated_bytes), "{name}");
    }
    // Panels of packed weights are whole, and gains stay f32: a few rows of these small matrices.
    let weights = class("weights");
    let held = weights.used_bytes.unwrap();
    assert!(held >= weights.estimated_bytes && held < weights.estimated_bytes * 13 / 10, "{weights:?}");
    // Sequences of text are packed whole, so a micro-batch may have fewer sequences' worth of tokens, never more.
    let saved = class("saved activations");
    assert!(saved.used_bytes.unwrap() <= saved.estimated_bytes && saved.used_bytes.unwrap() > 0, "{saved:?}");
    let (peak, last) = (class("peak"), summary.memory.last().unwrap());
    assert_eq!((peak.estimated_bytes, peak.used_bytes), (summary.estimated_peak_bytes, summary.peak_rss_bytes));
    assert_eq!(last.name, "peak");
}

#[test]
fn a_run_that_cannot_fit_is_refused_before_anything_is_written() {
    let (dir, path) = folder();
    let huge =
        [("batch.sequences", "1048576"), ("batch.micro_batch_sequences", "1048576"), ("data.sequence_length", "128")];
    let error = go(&recipe(&path, &huge), false).unwrap_err();
    if jevons_sys::available_memory_bytes().is_none() {
        return println!("skipped: this system does not tell its free memory");
    }
    assert!(matches!(error, RunError::Memory { .. }), "{error}");
    assert!(error.to_string().contains("micro_batch_sequences"), "{error}");
    assert!(!dir.path().join("run/state").exists() && !dir.path().join("run/model").exists());
}

#[test]
fn a_tokenizer_or_length_that_does_not_fit_the_model_is_refused() {
    let (_dir, path) = folder();
    let small = go(&recipe(&path, &[("model.config.vocab_size", "200")]), false).unwrap_err();
    assert!(small.to_string().contains("vocab_size is 200"), "{small}");
    let long = go(&recipe(&path, &[("data.sequence_length", "129")]), false).unwrap_err();
    assert!(long.to_string().contains("max_position_embeddings"), "{long}");
}

#[test]
fn a_model_saved_in_fp8_is_the_one_that_was_trained() {
    let (dir, path) = folder();
    let [codes, masters] = ["fp8", "f32"].map(|dtype| {
        let changes =
            [("run.folder", dtype), ("precision", "fp8"), ("schedule.steps", "3"), ("checkpoint.dtype", dtype)];
        go(&recipe(&path, &changes), false).unwrap();
        dir.path().join(dtype).join("model")
    });
    let stored = Model::load(&codes, LoadOptions::default()).unwrap();
    assert_eq!(stored.weight_format(), WeightFormat::Fp8);
    let options = LoadOptions {
        precision: Some(Precision::Bf16),
        quantize: Some(Quantize { scale: ScaleFormat::Ue8m0, head: false }),
        ..LoadOptions::default()
    };
    let rounded = Model::load(&masters, options).unwrap();
    assert_eq!(stored.logits(&[1, 2, 3, 7]), rounded.logits(&[1, 2, 3, 7]));
}
