//! Conversion: what stays keeps its bytes, what changes is what the formats define, and the target appears whole or not at all.

use std::{
    collections::BTreeMap,
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use half::bf16;
use jevons_kernels::formats::{from_e4m3, to_e4m3};
use jevons_model::{
    Config, LoadOptions, Model, Quantize,
    account::WeightFormat,
    checkpoint::{Checkpoint, SaveDtype, StoredDtype, TensorOut, save_model, write_safetensors},
    config::ScaleFormat,
    convert::{ConvertError, Options, Summary, Target, convert, import_llama2c},
};
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

fn golden(case: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "../../tests/golden/parity", case].iter().collect()
}

fn run(source: &Path, target: &Path, options: Options) -> Result<Summary, ConvertError> {
    convert(source, target, &options, &mut |_| ControlFlow::Continue(()))
}

/// Converts into a folder of its own.
fn converted(source: &Path, options: Options) -> (TempDir, PathBuf, Summary) {
    let dir = tempdir().unwrap();
    let target = dir.path().join("out");
    let summary = run(source, &target, options).unwrap();
    assert_eq!(names(dir.path()), ["out"], "something is left beside the target");
    (dir, target, summary)
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn contents(dir: &Path) -> Vec<(String, Vec<u8>)> {
    names(dir).into_iter().map(|n| (n.clone(), fs::read(dir.join(n)).unwrap())).collect()
}

/// Format, shape and bytes of every tensor.
fn tensors(dir: &Path) -> BTreeMap<String, (StoredDtype, Vec<usize>, Vec<u8>)> {
    let checkpoint = Checkpoint::open(dir).unwrap();
    checkpoint.tensors().map(|t| (t.name.to_owned(), (t.dtype, t.shape.to_vec(), t.bytes.to_vec()))).collect()
}

fn floats(dtype: StoredDtype, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        StoredDtype::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        StoredDtype::BF16 => bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        StoredDtype::F8_E8M0 => bytes.iter().map(|b| f32::from_bits(u32::from(*b) << 23)).collect(),
        other => panic!("{other}"),
    }
}

/// `code · scale`, element by element.
fn dequantised(all: &BTreeMap<String, (StoredDtype, Vec<usize>, Vec<u8>)>, name: &str) -> Vec<f32> {
    let (dtype, shape, codes) = &all[name];
    assert_eq!(*dtype, StoredDtype::F8_E4M3, "{name}");
    let (dtype, _, scales) = &all[&format!("{name}_scale_inv")];
    let scales = floats(*dtype, scales);
    let (n, k) = (shape[0], shape[1]);
    let scale = |i: usize, j: usize| scales[i / 128 * k.div_ceil(128) + j / 128];
    (0..n * k).map(|at| from_e4m3(codes[at]) * scale(at / k, at % k)).collect()
}

fn config_keys(dir: &Path) -> serde_json::Map<String, Value> {
    serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap()
}

/// A bf16 model of odd sizes, some larger than a block.
fn bf16_model() -> TempDir {
    model(SaveDtype::Bf16)
}

fn model(dtype: SaveDtype) -> TempDir {
    let keys = json!({
        "model_type": "deepseek_v3", "vocab_size": 77, "hidden_size": 140, "intermediate_size": 150,
        "num_hidden_layers": 2, "num_attention_heads": 3, "max_position_embeddings": 128, "kv_lora_rank": 20,
        "qk_nope_head_dim": 10, "qk_rope_head_dim": 6, "v_head_dim": 14, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 22, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
    });
    let config = Config::from_map(keys.as_object().unwrap()).unwrap();
    let dir = tempdir().unwrap();
    save_model(dir.path(), &config, dtype, |spec| {
        let seed = spec.name.bytes().fold(7_u32, |x, b| x.wrapping_mul(31).wrapping_add(b.into()));
        let value =
            |i: u32| ((i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 8) as f32 / 16_777_216.0 - 0.5) * 0.2;
        // A gain near one; a block of zeros; magnitudes over many binades.
        let scaled = |i: usize| match i {
            _ if spec.shape.len() == 1 => 1.0 + value(i as u32),
            0..128 if spec.name.ends_with("layers.0.mlp.gate_proj.weight") => 0.0,
            _ => value(i as u32) * [1.0, 0.03, 1e-3][i % 3],
        };
        (0..spec.elements()).map(scaled).collect::<Vec<_>>().into()
    })
    .unwrap();
    dir
}

// What stays.

#[test]
fn what_keeps_its_format_keeps_its_bytes_through_shards_and_back() {
    for case in ["v3-fp8-odd", "deepseek-v3-mtp", "qwen2-tied-odd"] {
        let source = golden(case);
        let (_dir, shards, summary) = converted(&source, Options { shard_bytes: 60_000, ..Options::default() });
        assert!(summary.files.len() > 2, "{:?}", summary.files);
        assert_eq!(summary.bytes, summary.source_bytes);
        assert_eq!(tensors(&shards), tensors(&source));
        assert_eq!(fs::read(shards.join("config.json")).unwrap(), fs::read(source.join("config.json")).unwrap());
        let index: Value =
            serde_json::from_slice(&fs::read(shards.join("model.safetensors.index.json")).unwrap()).unwrap();
        assert_eq!(index["metadata"]["total_size"], summary.bytes);
        assert_eq!(index["weight_map"].as_object().unwrap().len(), summary.tensors);
        for file in &summary.files {
            let bytes = Checkpoint::open_file(shards.join(file)).unwrap();
            assert!(bytes.tensor_bytes() <= 60_000 || bytes.names().len() <= 2, "{file}");
        }
        let (_dir, single, _) = converted(&shards, Options::default());
        assert_eq!(tensors(&single), tensors(&source));
        let (_dir, again, _) = converted(&single, Options::default());
        assert!(contents(&again) == contents(&single), "{case}: a second round changes bytes");
    }
}

#[test]
fn files_beside_the_weights_are_copied_but_for_code_and_other_weights() {
    let source = bf16_model();
    let add = |name: &str, text: &str| fs::write(source.path().join(name), text).unwrap();
    for name in ["tokenizer.json", "LICENSE", "README.md", "chat_template.jinja"] {
        add(name, name);
    }
    for name in ["modeling.py", "pytorch_model.bin", "x.gguf", ".hidden"] {
        add(name, "no");
    }
    fs::create_dir(source.path().join("figures")).unwrap();
    let (_dir, target, summary) = converted(source.path(), Options::default());
    assert_eq!(summary.side_files, ["LICENSE", "README.md", "chat_template.jinja", "tokenizer.json"]);
    assert_eq!(summary.left_out, [".hidden", "figures", "modeling.py", "pytorch_model.bin", "x.gguf"]);
    assert_eq!(
        names(&target),
        ["LICENSE", "README.md", "chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]
    );
    assert_eq!(fs::read(target.join("LICENSE")).unwrap(), b"LICENSE");
}

// What changes.

#[test]
fn fp8_becomes_code_times_scale_in_f32_and_that_rounded_in_bf16() {
    let source = golden("v3-fp8-odd");
    let stored = tensors(&source);
    for (to, dtype) in [(Target::F32, StoredDtype::F32), (Target::Bf16, StoredDtype::BF16)] {
        let (_dir, target, summary) = converted(&source, Options { to: Some(to), ..Options::default() });
        let new = tensors(&target);
        let mut count = 0;
        for (name, (found, _, bytes)) in &new {
            let want = match stored[name].0 {
                StoredDtype::F8_E4M3 => dequantised(&stored, name),
                other => floats(other, &stored[name].2),
            };
            count += usize::from(stored[name].0 == StoredDtype::F8_E4M3);
            // Of the case, even the gate's bias is bf16; what is bf16 already stays.
            let is_bias = name.ends_with("e_score_correction_bias") && to == Target::Bf16;
            assert_eq!(*found, if is_bias { stored[name].0 } else { dtype }, "{name}");
            let rounded = |x: &f32| if *found == StoredDtype::BF16 { bf16::from_f32(*x).to_f32() } else { *x };
            assert_eq!(floats(*found, bytes), want.iter().map(rounded).collect::<Vec<_>>(), "{name}");
        }
        assert_eq!(count, 40);
        assert_eq!(new.len(), stored.len() - count, "scales are gone");
        let mut want = config_keys(&source);
        want.shift_remove("quantization_config");
        want.insert("torch_dtype".into(), if to == Target::F32 { "float32" } else { "bfloat16" }.into());
        assert_eq!(config_keys(&target), want);
        assert!(summary.config_keys.contains(&"quantization_config"), "{:?}", summary.config_keys);
    }
}

/// Block by block, with a search for the nearest code.
fn quantised_by_hand(values: &[f32], k: usize, format: ScaleFormat) -> (Vec<u8>, Vec<f32>) {
    let n = values.len() / k;
    let (mut codes, mut scales) = (vec![0; n * k], Vec::new());
    for (i, j) in (0..n.div_ceil(128)).flat_map(|i| (0..k.div_ceil(128)).map(move |j| (i, j))) {
        let block = || {
            (i * 128..n.min(i * 128 + 128)).flat_map(move |r| (j * 128..k.min(j * 128 + 128)).map(move |c| r * k + c))
        };
        let max = block().map(|at| values[at].abs()).fold(1e-4, f32::max);
        let scale = match format {
            ScaleFormat::F32 => max / 448.0,
            ScaleFormat::Ue8m0 => (-40..40).map(|e| 2.0_f32.powi(e)).find(|s| max / 448.0 <= *s).unwrap(),
        };
        scales.push(scale);
        for at in block() {
            let x = values[at] / scale;
            let distance = |code: &u8| (f64::from(from_e4m3(*code)) - f64::from(x)).abs();
            let sign = u8::from(x.is_sign_negative()) << 7;
            let nearest = (0..=126)
                .map(|code| code | sign)
                .min_by(|a, b| distance(a).total_cmp(&distance(b)).then((a & 1).cmp(&(b & 1))));
            codes[at] = nearest.unwrap();
        }
    }
    (codes, scales)
}

#[test]
fn the_linears_of_layers_become_fp8_and_nothing_else() {
    let source = bf16_model();
    let stored = tensors(source.path());
    for format in [ScaleFormat::F32, ScaleFormat::Ue8m0] {
        let options = Options { to: Some(Target::Fp8), scale: Some(format), ..Options::default() };
        let (_dir, target, summary) = converted(source.path(), options);
        let new = tensors(&target);
        for (name, (dtype, shape, bytes)) in &stored {
            if name.contains("_proj.") || name.contains("_proj_with_mqa.") {
                let (codes, scales) = quantised_by_hand(&floats(*dtype, bytes), shape[1], format);
                assert_eq!(new[name], (StoredDtype::F8_E4M3, shape.clone(), codes), "{name}");
                let (dtype, shape, bytes) = &new[&format!("{name}_scale_inv")];
                assert_eq!((*dtype, shape.iter().product()), (StoredDtype::F32, scales.len()));
                assert_eq!(floats(*dtype, bytes), scales, "{name}");
            } else {
                assert_eq!(&new[name], &stored[name], "{name}");
            }
        }
        assert_eq!(summary.formats["F8_E4M3"], (new.len() - stored.len()), "a scale for each");
        let read = Config::from_file(target.join("config.json")).unwrap();
        assert_eq!(read.quantization.unwrap().scale_format, format);
        let mut want = config_keys(source.path());
        want.insert("quantization_config".into(), read.quantization.unwrap().to_json());
        assert_eq!(config_keys(&target), want);

        // It runs, near to what it was.
        let options = LoadOptions { precision: Some(jevons_model::Precision::F32), ..LoadOptions::default() };
        let logits = |dir: &Path| Model::load(dir, options).unwrap().logits(&[1, 2, 3, 70]).f32().to_vec();
        let (a, b) = (logits(source.path()), logits(&target));
        let error = a.iter().zip(&b).map(|(a, b)| (a - b).powi(2)).sum::<f32>() / a.iter().map(|a| a * a).sum::<f32>();
        assert!(error.sqrt() < 0.1, "{format:?}: {error}");
    }
}

#[test]
fn weights_quantised_as_they_are_loaded_are_those_of_the_converted_folder() {
    let source = bf16_model();
    for head in [false, true] {
        let options = Options { to: Some(Target::Fp8), head, ..Options::default() };
        let (_dir, target, _) = converted(source.path(), options);
        let quantize = Some(Quantize { scale: ScaleFormat::F32, head });
        let loaded = Model::load(source.path(), LoadOptions { quantize, ..LoadOptions::default() }).unwrap();
        let stored = Model::load(&target, LoadOptions::default()).unwrap();
        let plain = Model::load(source.path(), LoadOptions::default()).unwrap();
        let format = if head { WeightFormat::Fp8Head } else { WeightFormat::Fp8 };
        assert_eq!([&plain, &loaded, &stored].map(Model::weight_format), [WeightFormat::Bf16, format, format]);
        assert!(loaded.weights().bytes() < plain.weights().bytes());
        assert_eq!(loaded.weights().bytes(), stored.weights().bytes());
        let logits = |model: &Model| model.logits(&[1, 2, 3, 70]);
        assert_eq!(logits(&loaded), logits(&stored));
        assert_ne!(logits(&loaded), logits(&plain));
    }
    let f32 = Some(jevons_model::Precision::F32);
    let quantize = Some(Quantize { scale: ScaleFormat::F32, head: false });
    let refused = Model::load(source.path(), LoadOptions { precision: f32, quantize, ..LoadOptions::default() });
    assert!(refused.err().unwrap().to_string().contains("choose precision bf16"));
}

#[test]
fn a_model_saved_in_fp8_has_the_codes_and_scales_of_the_converted_one() {
    for format in [ScaleFormat::F32, ScaleFormat::Ue8m0] {
        let saved = model(SaveDtype::Fp8(format));
        let options = Options { to: Some(Target::Fp8), scale: Some(format), ..Options::default() };
        let (_dir, converted, _) = converted(model(SaveDtype::F32).path(), options);
        let (saved_tensors, converted_tensors) = (tensors(saved.path()), tensors(&converted));
        assert!(saved_tensors.keys().eq(converted_tensors.keys()));
        let mut quantised = 0;
        for (name, saved) in &saved_tensors {
            if saved.0 == StoredDtype::F8_E4M3 || name.ends_with("_scale_inv") {
                assert!(*saved == converted_tensors[name], "{name}");
                quantised += 1;
            }
        }
        assert!(quantised > 20, "{quantised}");
        assert_eq!(saved_tensors["model.embed_tokens.weight"].0, StoredDtype::BF16);
        let keys = |dir: &Path| config_keys(dir)["quantization_config"].clone();
        assert_eq!(keys(saved.path()), keys(&converted));
        Model::load(saved.path(), LoadOptions::default()).unwrap();
    }
}

#[test]
fn quantising_what_was_dequantised_gives_the_same_numbers_with_power_of_two_scales() {
    let source = bf16_model();
    let fp8 = |from: &Path, scale| {
        converted(from, Options { to: Some(Target::Fp8), scale: Some(scale), ..Options::default() })
    };
    let to = |from: &Path, to| converted(from, Options { to: Some(to), ..Options::default() });

    // Powers of two: bf16 holds code · scale exactly. A block whose largest code is 224 may come back with half the scale and
    // twice the codes, the same numbers; from then on nothing changes.
    let (_a, first, _) = fp8(source.path(), ScaleFormat::Ue8m0);
    let (_b, plain, _) = to(&first, Target::Bf16);
    let (_c, second, _) = fp8(&plain, ScaleFormat::Ue8m0);
    let (_d, plain2, _) = to(&second, Target::Bf16);
    let (_e, third, _) = fp8(&plain2, ScaleFormat::Ue8m0);
    assert_eq!(tensors(&plain), tensors(&plain2));
    assert_eq!(tensors(&second), tensors(&third));
    let (first, second) = (tensors(&first), tensors(&second));
    for (name, (dtype, _, codes)) in &first {
        if *dtype == StoredDtype::F8_E4M3 {
            assert_eq!(dequantised(&first, name), dequantised(&second, name), "{name}");
            let scale = format!("{name}_scale_inv");
            if first[&scale] == second[&scale] {
                assert_eq!(codes, &second[name].2);
            }
        }
    }

    // Other scales: through f32 the codes come back, and scales but for their last place; bf16 would round.
    let (_f, first, _) = fp8(source.path(), ScaleFormat::F32);
    let (_g, plain, _) = to(&first, Target::F32);
    let (_h, second, _) = fp8(&plain, ScaleFormat::F32);
    let (first, second) = (tensors(&first), tensors(&second));
    for (name, (dtype, _, bytes)) in &first {
        match dtype {
            StoredDtype::F32 => {
                let pairs = floats(*dtype, bytes).into_iter().zip(floats(*dtype, &second[name].2));
                assert!(pairs.clone().all(|(a, b)| a.to_bits().abs_diff(b.to_bits()) <= 1), "{name}");
            }
            _ => assert_eq!(&first[name], &second[name], "{name}"),
        }
    }
}

#[test]
fn fp8_stays_as_it_is_when_fp8_is_asked_and_is_not_quantised_twice() {
    let source = golden("v3-fp8-odd");
    let (_dir, target, summary) = converted(&source, Options { to: Some(Target::Fp8), ..Options::default() });
    assert_eq!(tensors(&target), tensors(&source));
    assert_eq!(summary.config_keys, [""; 0]);
    let dir = tempdir().unwrap();
    let options = Options { to: Some(Target::Fp8), scale: Some(ScaleFormat::Ue8m0), ..Options::default() };
    let error = run(&source, &dir.path().join("out"), options).unwrap_err();
    assert!(error.to_string().contains("quantising twice loses twice"), "{error}");
    assert_eq!(names(dir.path()), [""; 0]);
}

#[test]
fn layers_of_multi_token_prediction_are_left_out_when_told() {
    let source = golden("deepseek-v3-mtp");
    let (_dir, target, summary) = converted(&source, Options { drop_mtp: true, ..Options::default() });
    let (old, new) = (tensors(&source), tensors(&target));
    let kept: BTreeMap<_, _> =
        old.clone().into_iter().filter(|(name, _)| !name.starts_with("model.layers.3.")).collect();
    assert_eq!(new, kept);
    assert_eq!(summary.dropped_tensors, old.len() - new.len());
    assert!(summary.dropped_tensors > 10);
    assert_eq!(summary.config_keys, ["num_nextn_predict_layers"]);
    assert_eq!(config_keys(&target)["num_nextn_predict_layers"], 0);
    assert_eq!(Model::load(&target, LoadOptions::default()).unwrap().config().num_nextn_predict_layers, 0);

    // In FP8 the layer's linears go with the rest; eh_proj and the copies of embedding and head do not.
    let (_dir, fp8, _) = converted(&source, Options { to: Some(Target::Fp8), ..Options::default() });
    let new = tensors(&fp8);
    for (name, dtype) in [
        ("eh_proj.weight", StoredDtype::BF16),
        ("embed_tokens.weight", StoredDtype::BF16),
        ("shared_head.head.weight", StoredDtype::BF16),
        ("mlp.gate.weight", StoredDtype::BF16),
        ("self_attn.o_proj.weight", StoredDtype::F8_E4M3),
        ("mlp.experts.1.up_proj.weight", StoredDtype::F8_E4M3),
    ] {
        assert_eq!(new[&format!("model.layers.3.{name}")].0, dtype, "{name}");
    }
    let (_dir, dropped, summary) = converted(&fp8, Options { drop_mtp: true, ..Options::default() });
    assert!(!tensors(&dropped).keys().any(|name| name.starts_with("model.layers.3.")), "{summary:?}");
}

// The target.

#[test]
fn what_is_there_is_replaced_only_when_told_and_only_a_model() {
    let source = golden("qwen2-tied-odd");
    let dir = tempdir().unwrap();
    let target = dir.path().join("out");
    let forced = Options { replace: true, ..Options::default() };
    let refused = |options, words: &str| {
        let before = contents_deep(dir.path());
        let error = run(&source, &target, options).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        assert!(contents_deep(dir.path()) == before, "{words}");
    };
    fs::write(&target, "a file").unwrap();
    refused(Options::default(), "is there already");
    refused(forced, "is not a model folder");
    fs::remove_file(&target).unwrap();
    fs::create_dir(&target).unwrap();
    refused(Options::default(), "is there already");
    refused(forced, "is not a model folder");
    fs::write(target.join("config.json"), "{}").unwrap();
    fs::create_dir(target.join("precious")).unwrap();
    refused(forced, "is not a model folder");
    fs::remove_dir(target.join("precious")).unwrap();
    refused(Options::default(), "is there already");
    run(&source, &target, forced).unwrap();
    assert_eq!(tensors(&target), tensors(&source));
    assert_eq!(names(dir.path()), ["out"]);

    let error = run(&target, &target, forced).unwrap_err().to_string();
    assert!(error.ends_with("is the source itself; choose another name"), "{error}");
    let error = run(&source, &dir.path().join("no/out"), forced).unwrap_err().to_string();
    assert!(error.contains("cannot write: No such file"), "{error}");
    let error = run(&source, &dir.path().join(".."), forced).unwrap_err().to_string();
    assert!(error.contains("expected the name of a new folder"), "{error}");
}

fn contents_deep(dir: &Path) -> Vec<(PathBuf, Option<Vec<u8>>)> {
    let mut all = Vec::new();
    for name in names(dir) {
        let path = dir.join(name);
        all.push((path.clone(), fs::read(&path).ok()));
        if path.is_dir() {
            all.extend(contents_deep(&path));
        }
    }
    all
}

#[test]
fn an_interrupted_run_goes_on_to_the_same_bytes() {
    let source = golden("v3-fp8-odd");
    let options = Options { to: Some(Target::Bf16), shard_bytes: 60_000, ..Options::default() };
    let (_dir, whole, summary) = converted(&source, options);
    let dir = tempdir().unwrap();
    let target = dir.path().join("out");
    let half = summary.bytes / 2;
    let stop = |options: &Options| {
        let mut watch = |p: jevons_model::convert::Progress| match p.done_bytes > half {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        };
        convert(&source, &target, options, &mut watch).unwrap_err()
    };
    let error = stop(&options);
    assert!(matches!(error, ConvertError::Interrupted { .. }), "{error}");
    assert_eq!(names(dir.path()), [".out.converting"]);
    // What a killed process leaves too.
    fs::write(dir.path().join(".out.converting/.model-00003-of-00009.safetensors.1-1.tmp"), "half").unwrap();
    let mut first = None;
    let resumed = convert(&source, &target, &options, &mut |p| {
        first.get_or_insert(p.done_bytes);
        ControlFlow::Continue(())
    });
    let resumed = resumed.unwrap();
    assert!(resumed.resumed_files > 2 && resumed.resumed_files < resumed.files.len(), "{resumed:?}");
    assert!(first.unwrap() > 60_000, "{first:?}");
    assert!(contents(&target) == contents(&whole));
    assert_eq!(names(dir.path()), ["out"]);

    // Another plan starts anew.
    fs::remove_dir_all(&target).unwrap();
    stop(&options);
    let other = Options { to: Some(Target::F32), ..options };
    let summary = run(&source, &target, other).unwrap();
    assert_eq!(summary.resumed_files, 0);
    let (_dir, whole, _) = converted(&source, other);
    assert!(contents(&target) == contents(&whole));
}

#[test]
fn two_runs_to_one_target_do_not_mix() {
    let source = golden("qwen2-tied-odd");
    let dir = tempdir().unwrap();
    let target = dir.path().join("out");
    let mut second = None;
    let options = Options::default();
    convert(&source, &target, &options, &mut |_| {
        second.get_or_insert_with(|| run(&source, &target, options));
        ControlFlow::Continue(())
    })
    .unwrap();
    let error = second.unwrap().unwrap_err();
    assert!(matches!(error, ConvertError::Busy { .. }), "{error}");
    assert_eq!(tensors(&target), tensors(&source));
}

/// Unmounts when dropped.
#[cfg(target_os = "linux")]
struct Mount(PathBuf);

#[cfg(target_os = "linux")]
impl Drop for Mount {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).status();
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_is_too_small_is_noticed_before_anything_is_written() {
    let dir = tempdir().unwrap();
    let mut mount = std::process::Command::new("mount");
    let mounted = mount.args(["-t", "tmpfs", "-o", "size=1200k", "tmpfs"]).arg(dir.path()).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: mounting a small disk takes root");
        return;
    }
    let _mount = Mount(dir.path().into());
    let source = golden("v3-fp8-odd");
    let target = dir.path().join("out");
    let options = Options { to: Some(Target::F32), ..Options::default() };
    let error = run(&source, &target, options).unwrap_err();
    assert!(matches!(error, ConvertError::NoSpace { .. }), "{error}");
    assert!(error.to_string().contains("bytes left, "), "{error}");
    assert_eq!(names(dir.path()), [""; 0]);
}

// Sources that are wrong.

/// A folder with this config and these tensors.
fn folder(config: &str, tensors: &[(&str, StoredDtype, &[usize], Vec<u8>)]) -> TempDir {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("config.json"), config).unwrap();
    let outs: Vec<TensorOut> = tensors
        .iter()
        .map(|(name, dtype, shape, _)| TensorOut { name: (*name).into(), dtype: *dtype, shape: shape.to_vec() })
        .collect();
    write_safetensors(dir.path().join("model.safetensors"), &BTreeMap::new(), &outs, |i, out| {
        out.write_all(&tensors[i].3)
    })
    .unwrap();
    dir
}

#[test]
fn a_source_that_is_wrong_leaves_nothing() {
    let f32s = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let weight = "model.layers.0.mlp.up_proj.weight";
    let scale = "model.layers.0.mlp.up_proj.weight_scale_inv";
    let to = |to| Options { to: Some(to), ..Options::default() };
    let fp8 = |codes: [u8; 2], scale_value: f32| {
        folder(
            "{}",
            &[
                (weight, StoredDtype::F8_E4M3, &[1, 2], codes.into()),
                (scale, StoredDtype::F32, &[1, 1], f32s(&[scale_value])),
            ],
        )
    };
    let float = |x: f32| folder("{}", &[(weight, StoredDtype::F32, &[1, 2], f32s(&[1.0, x]))]);
    for (source, options, words) in [
        (
            folder("{}", &[(weight, StoredDtype::F8_E4M3, &[1, 2], vec![0; 2])]),
            Options::default(),
            "no file of the checkpoint has its scales",
        ),
        (fp8([0, 0], f32::NAN), Options::default(), "has a value of NaN, expected scales above 0"),
        (fp8([0, 0x7f], 1.0), to(Target::Bf16), "has a value of NaN (code 0x7f) in row 0, column 1"),
        (float(f32::NAN), to(Target::Fp8), "has a value of NaN in rows 0..1, expected finite numbers"),
        (float(f32::INFINITY), to(Target::Fp8), "has a value of inf in rows 0..1, expected finite numbers"),
        (folder("[]", &[]), Options::default(), "expected a JSON object"),
        (folder("{", &[]), Options::default(), "not valid JSON"),
        (
            folder(r#"{"quantization_config": {"quant_method": "awq"}}"#, &[]),
            Options::default(),
            "\"awq\", which is not supported",
        ),
        (folder("{}", &[]), Options { drop_mtp: true, ..Options::default() }, "`num_hidden_layers` is missing"),
        (tempdir().unwrap(), Options::default(), "cannot read the model's configuration"),
    ] {
        let dir = tempdir().unwrap();
        let error = run(source.path(), &dir.path().join("out"), options).expect_err("accepted").to_string();
        assert!(error.contains(words), "{words}: {error}");
        assert_eq!(names(dir.path()), [""; 0], "{words}");
    }
}

#[test]
fn tensors_without_numbers_and_of_whole_numbers_are_converted_too() {
    let integers = ("model.layers.0.ids", StoredDtype::I64, &[2][..], vec![7; 16]);
    let empty = ("model.layers.0.mlp.up_proj.weight", StoredDtype::BF16, &[1 << 40, 0][..], vec![]);
    let source =
        folder("{}", &[integers, empty, ("model.layers.0.mlp.gate_proj.weight", StoredDtype::BF16, &[0, 5], vec![])]);
    for to in [None, Some(Target::F32), Some(Target::Bf16), Some(Target::Fp8)] {
        let (_dir, target, _) = converted(source.path(), Options { to, ..Options::default() });
        let new = tensors(&target);
        assert_eq!(new["model.layers.0.ids"], (StoredDtype::I64, vec![2], vec![7; 16]));
        assert_eq!(new["model.layers.0.mlp.up_proj.weight"].1, [1 << 40, 0]);
    }
    let (_dir, target, summary) = converted(folder("{}", &[]).path(), Options::default());
    assert_eq!((summary.tensors, tensors(&target).len()), (0, 0));
}

#[test]
fn a_row_longer_than_a_piece_is_quantised_as_others_are() {
    let k = (1 << 18) + 300;
    let value = |i: usize| ((i * 7919) % 1009) as f32 / 1009.0 - 0.4;
    let values: Vec<f32> = (0..2 * k).map(value).collect();
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let source = folder("{}", &[("model.layers.0.x_proj.weight", StoredDtype::F32, &[2, k], bytes)]);
    let (_dir, target, _) = converted(source.path(), Options { to: Some(Target::Fp8), ..Options::default() });
    let new = tensors(&target);
    let scales = floats(StoredDtype::F32, &new["model.layers.0.x_proj.weight_scale_inv"].2);
    let codes = &new["model.layers.0.x_proj.weight"].2;
    assert_eq!(scales.len(), k.div_ceil(128));
    for (j, scale) in scales.into_iter().enumerate() {
        let columns = j * 128..k.min(j * 128 + 128);
        let max = columns.clone().flat_map(|c| [values[c].abs(), values[k + c].abs()]).fold(0.0, f32::max);
        assert_eq!(scale, max / 448.0, "block {j}");
        assert!(
            columns
                .clone()
                .all(|c| codes[c] == to_e4m3(values[c] / scale) && codes[k + c] == to_e4m3(values[k + c] / scale))
        );
    }
}

// llama2.c.

/// A model file: two layers, four heads over two key-value heads of width four.
fn llama2c(vocab: i32) -> Vec<u8> {
    let (dim, hidden, layers, heads, kv_heads, positions) = (16_usize, 12_usize, 2_usize, 4_usize, 2_usize, 8_usize);
    let (v, kv, head) = (vocab.unsigned_abs() as usize, 8, 4);
    let per_layer = dim + 2 * dim * dim + 2 * kv * dim + dim + 3 * hidden * dim;
    let head_values = if vocab < 0 { v * dim } else { 0 };
    let count = v * dim + layers * per_layer + dim + positions * head + head_values;
    let header = [dim as i32, hidden as i32, layers as i32, heads as i32, kv_heads as i32, vocab, positions as i32];
    let value = |i: usize| ((i * 37) % 101) as f32 / 101.0 - 0.5;
    header.iter().flat_map(|x| x.to_le_bytes()).chain((0..count).flat_map(|i| value(i).to_le_bytes())).collect()
}

fn import(bytes: &[u8], options: Options) -> Result<(TempDir, PathBuf), String> {
    let dir = tempdir().unwrap();
    let (file, target) = (dir.path().join("model.bin"), dir.path().join("out"));
    fs::write(&file, bytes).unwrap();
    let side_files = vec![("tokenizer.json".to_owned(), b"{}".to_vec())];
    match import_llama2c(&file, side_files, &target, &options, &mut |_| ControlFlow::Continue(())) {
        Ok(_) => Ok((dir, target)),
        Err(error) => {
            assert_eq!(names(dir.path()), ["model.bin"]);
            Err(error.to_string().replace(&file.display().to_string(), "FILE"))
        }
    }
}

#[test]
fn a_llama2c_file_becomes_a_llama_whose_heads_turn_in_halves() {
    for vocab in [20, -20] {
        let bytes = llama2c(vocab);
        let (_dir, target) = import(&bytes, Options::default()).unwrap();
        assert_eq!(names(&target), ["config.json", "model.safetensors", "tokenizer.json"]);
        let new = tensors(&target);
        let value = |name: &str| floats(new[name].0, &new[name].2);
        let all = floats(StoredDtype::F32, &bytes[28..]);
        assert_eq!(value("model.embed_tokens.weight"), all[..320]);
        // Places counted by hand: embedding 320; attention norms 2 · 16; wq 2 · 256; wk, wv 2 · 128; wo 2 · 256; norms 32; w1, w2, w3
        // 2 · 192 each; final norm 16; rope 32.
        assert_eq!(value("model.layers.1.input_layernorm.weight"), all[336..352]);
        let rows = |first: usize, row: usize| &all[first + 16 * row..][..16];
        let q = value("model.layers.1.self_attn.q_proj.weight");
        for (row, from) in [0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15].into_iter().enumerate() {
            assert_eq!(q[16 * row..][..16], *rows(352 + 256, from), "row {row}");
        }
        let k = value("model.layers.0.self_attn.k_proj.weight");
        for (row, from) in [0, 2, 1, 3, 4, 6, 5, 7].into_iter().enumerate() {
            assert_eq!(k[16 * row..][..16], *rows(864, from), "row {row}");
        }
        assert_eq!(value("model.layers.1.self_attn.v_proj.weight"), all[1120 + 128..1120 + 256]);
        assert_eq!(value("model.layers.0.self_attn.o_proj.weight"), all[1376..1632]);
        assert_eq!(value("model.layers.1.post_attention_layernorm.weight"), all[1904..1920]);
        assert_eq!(value("model.layers.0.mlp.gate_proj.weight"), all[1920..2112]);
        assert_eq!(value("model.layers.1.mlp.down_proj.weight"), all[2496..2688]);
        assert_eq!(value("model.layers.1.mlp.up_proj.weight"), all[2880..3072]);
        assert_eq!(value("model.norm.weight"), all[3072..3088]);
        assert_eq!(new.contains_key("lm_head.weight"), vocab < 0);
        if vocab < 0 {
            assert_eq!(value("lm_head.weight"), all[3120..]);
        }
        let model = Model::load(&target, LoadOptions::default()).unwrap();
        assert_eq!(model.config().tie_word_embeddings, vocab > 0);
        assert!(model.logits(&[1, 2, 3]).f32().iter().all(|x| x.is_finite()));
        // The same rows in other formats.
        let (_dir, target) = import(&bytes, Options { to: Some(Target::Bf16), ..Options::default() }).unwrap();
        let narrow = tensors(&target);
        let name = "model.layers.1.self_attn.q_proj.weight";
        let want: Vec<f32> = q.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
        assert_eq!(floats(narrow[name].0, &narrow[name].2), want);
        assert_eq!(config_keys(&target)["torch_dtype"], "bfloat16");
    }
}

#[test]
fn llama2c_files_that_are_wrong_are_refused_with_the_reason() {
    let whole = llama2c(20);
    let with = |field: usize, value: i32| {
        let mut bytes = whole.clone();
        bytes[4 * field..][..4].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    let start = "FILE: not a model file of llama2.c, version 0: ";
    for (bytes, words) in [
        (vec![], "it has 0 bytes, the header alone takes 28"),
        (whole[..27].to_vec(), "it has 27 bytes"),
        (whole[..whole.len() - 1].to_vec(), "bytes, its header describes"),
        ([&whole[..], &[0]].concat(), "bytes, its header describes"),
        ([&b"24ka"[..], &whole[4..]].concat(), "it is of a later version of the format"),
        (with(0, 0), "its dim is 0, expected 1 to 1048576"),
        (with(0, i32::MAX), "its dim is 2147483647"),
        (with(1, -1), "its hidden_dim is -1"),
        (with(2, 1001), "its n_layers is 1001, expected 1 to 1000"),
        (with(3, 3), "3 heads over a width of 16 and 2 key-value heads do not go together"),
        (with(3, 16), "16 heads over a width of 16"),
        (with(4, 3), "4 heads over a width of 16 and 3 key-value heads"),
        (with(5, i32::MIN), "its vocab_size is -2147483648"),
        (with(5, 0), "its vocab_size is 0"),
        (with(6, 1 << 20), "its header describes"),
    ] {
        let error = import(&bytes, Options::default()).expect_err("accepted");
        assert!(error.starts_with(start) && error.contains(words), "{words}: {error}");
    }
}

#[test]
fn a_llama2c_file_with_any_byte_of_its_header_changed_is_an_error_or_a_model() {
    let whole = llama2c(20);
    for at in 0..28 {
        for value in [0, 1, 2, 4, 0x7f, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] = value;
            match import(&bytes, Options::default()) {
                Ok(_) => assert!(bytes == whole || at % 4 == 0, "byte {at} = {value}"),
                Err(error) => assert!(error.starts_with("FILE: not a model file of llama2.c"), "{error}"),
            }
        }
    }
}
