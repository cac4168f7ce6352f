//! LoRA adapters against `peft` (how the cases were made: `tests/golden/make_adapters.py`), and what is refused.

use std::{
    fs,
    path::{Path, PathBuf},
};

use jevons_model::{
    Adapter, Config, LoadOptions, Model, Precision,
    adapter::{Direction, save_applied},
    checkpoint::{Checkpoint, StoredDtype, TensorOut, write_safetensors},
};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

const CASES: [(&str, &str); 2] = [("qwen2-patterns", "qwen2-tied-odd"), ("v3-rslora", "v3-no-q-lora-tied")];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn adapter(case: &str) -> PathBuf {
    golden("adapters").join(case)
}

fn base(case: &str) -> PathBuf {
    golden("parity").join(case)
}

const F32: LoadOptions<'static> =
    LoadOptions { precision: Some(Precision::F32), mla: None, mtp: false, adapter: None, quantize: None };

fn relative(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let difference: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    (difference / b.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>()).sqrt()
}

#[test]
fn logits_with_an_adapter_agree_with_peft() {
    for (case, of) in CASES {
        let bytes = fs::read(adapter(case).join("reference.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let floats = |name: &str| -> Vec<f32> {
            let data = file.tensor(name).unwrap().data();
            data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
        };
        let ids = file.tensor("input_ids").unwrap();
        let ids: Vec<Vec<u32>> = ids
            .data()
            .chunks_exact(8 * ids.shape()[1])
            .map(|row| row.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect())
            .collect();
        let logits = |model: &Model| -> Vec<f32> { ids.iter().flat_map(|i| model.logits(i).f32().to_vec()).collect() };
        let adapter = Adapter::open(adapter(case)).unwrap();
        let with = logits(&Model::load(&base(of), LoadOptions { adapter: Some(&adapter), ..F32 }).unwrap());
        let without = logits(&Model::load(&base(of), F32).unwrap());
        let (beside, merged) = (relative(&with, &floats("logits")), relative(&with, &floats("merged")));
        assert!(beside < 1e-5 && merged < 1e-5, "{case}: {beside:e} {merged:e}");
        assert!(relative(&without, &with) > 0.05, "{case}: the adapter changes nothing");
        println!("{case}: {beside:.1e} from the adapter beside the weights, {merged:.1e} from the merged weights");
    }
}

#[test]
fn ranks_and_scales_follow_the_patterns() {
    let adapter = Adapter::open(adapter("qwen2-patterns")).unwrap();
    let of = |name: &str| adapter.targets().find(|t| t.0 == name).map(|t| (t.1, t.2)).unwrap();
    assert_eq!(of("model.layers.0.self_attn.q_proj.weight"), (3, 8.0 / 3.0));
    assert_eq!(of("model.layers.1.self_attn.q_proj.weight"), (2, 4.0));
    assert_eq!(of("model.layers.0.mlp.down_proj.weight"), (5, 3.0 / 5.0));
    assert_eq!(adapter.targets().len(), 10);
    let config = Config::from_file(base("qwen2-tied-odd").join("config.json")).unwrap();
    adapter.check(&config).unwrap();
}

#[test]
fn what_is_merged_in_f32_comes_back_within_rounding() {
    for (case, of) in CASES {
        let adapter = Adapter::open(adapter(case)).unwrap();
        let config = Config::from_file(base(of).join("config.json")).unwrap();
        let file = Checkpoint::open(base(of)).unwrap();
        let mut changed = 0;
        for spec in config.tensors() {
            let before = file.read_f32(&spec.name, &spec.shape).unwrap();
            let mut values = before.clone();
            if !adapter.apply(&spec, &mut values, Direction::Merge).unwrap() {
                assert!(values == before);
                continue;
            }
            changed += 1;
            assert!(relative(&values, &before) > 0.01);
            assert!(adapter.apply(&spec, &mut values, Direction::Unmerge).unwrap());
            assert!(relative(&values, &before) < 1e-6, "{}", spec.name);
        }
        assert_eq!(changed, adapter.targets().len());
    }
}

/// A copy of a case with changed keys.
fn changed(keys: Value) -> TempDir {
    let (dir, from) = (tempdir().unwrap(), adapter("qwen2-patterns"));
    let mut config: Value = serde_json::from_slice(&fs::read(from.join("adapter_config.json")).unwrap()).unwrap();
    config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    fs::write(dir.path().join("adapter_config.json"), config.to_string()).unwrap();
    fs::copy(from.join("adapter_model.safetensors"), dir.path().join("adapter_model.safetensors")).unwrap();
    dir
}

fn error(dir: &Path) -> String {
    Adapter::open(dir).expect_err("an error").to_string()
}

#[test]
fn what_is_not_plain_lora_is_refused_with_the_key() {
    for (keys, said) in [
        (json!({"peft_type": "IA3"}), "`peft_type` is \"IA3\", which is not supported; supported: LORA"),
        (json!({"use_dora": true}), "`use_dora` is true, which is not supported"),
        (json!({"use_something_new": {"a": 1}}), "`use_something_new` is {\"a\":1}, which is not supported"),
        (json!({"modules_to_save": ["lm_head"]}), "`modules_to_save` is [\"lm_head\"], which is not supported"),
        (json!({"fan_in_fan_out": true}), "`fan_in_fan_out` is true"),
        (json!({"bias": "all"}), "`bias` is \"all\", which is not supported; supported: \"none\""),
        (json!({"r": 0}), "`r` must be a whole number from 1 to 65536"),
        (json!({"r": 1e30}), "`r` must be a whole number"),
        (json!({"r": 4}), "as adapter_config.json says r = 4"),
        (json!({"lora_alpha": "8"}), "`lora_alpha` must be a number"),
        (json!({"rank_pattern": {"(": 3}}), "`rank_pattern` has a pattern that is no regular expression: \"(\""),
        (json!({"rank_pattern": {"(a{1000}){1000}{1000}": 3}}), "that is no regular expression"),
        (json!({"rank_pattern": [1]}), "`rank_pattern` is [1], expected a table of patterns"),
        (json!({"alpha_pattern": {"down_proj": null}}), "`alpha_pattern` must be a number"),
    ] {
        let message = error(changed(keys.clone()).path());
        assert!(message.contains(said), "{keys}: {message}");
    }
}

#[test]
fn files_that_are_no_adapter_are_refused() {
    let dir = tempdir().unwrap();
    assert!(
        error(dir.path()).contains("an adapter is a folder with adapter_config.json and adapter_model.safetensors")
    );
    assert!(error(&base("qwen2-tied-odd")).contains("this folder holds a model, not an adapter"));
    for (text, said) in
        [("{\"r\": ", "not a JSON object"), ("[]", "not a JSON object"), ("{}", "`peft_type` is missing")]
    {
        fs::write(dir.path().join("adapter_config.json"), text).unwrap();
        assert!(error(dir.path()).contains(said), "{text}");
    }
    fs::write(dir.path().join("adapter_config.json"), "{\"peft_type\": \"LORA\"}").unwrap();
    fs::write(dir.path().join("adapter_model.bin"), "pickle").unwrap();
    assert!(error(dir.path()).contains("can run code when it is read"));
    fs::write(dir.path().join("adapter_config.json"), vec![b' '; (1 << 20) + 1]).unwrap();
    assert!(error(dir.path()).contains("larger than 1 MiB"));
}

#[test]
fn tensors_that_fit_nothing_are_refused_by_name() {
    let write = |tensors: &[(&str, &[usize])]| {
        let dir = tempdir().unwrap();
        let config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4});
        fs::write(dir.path().join("adapter_config.json"), config.to_string()).unwrap();
        let outs: Vec<TensorOut> = tensors
            .iter()
            .map(|(name, shape)| TensorOut { name: (*name).into(), dtype: StoredDtype::F32, shape: shape.to_vec() })
            .collect();
        write_safetensors(dir.path().join("adapter_model.safetensors"), &[].into(), &outs, |i, out| {
            out.write_all(&vec![0; outs[i].shape.iter().product::<usize>() * 4])
        })
        .unwrap();
        dir
    };
    let (a, b) = (
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight",
    );
    assert!(error(write(&[(a, &[2, 80])]).path()).contains("has no lora_B beside it"));
    assert!(error(write(&[(b, &[80, 2])]).path()).contains("is neither lora_A nor lora_B of a linear"));
    assert!(error(write(&[(a, &[2, 80]), (b, &[80, 2]), ("x", &[1])]).path()).contains("`x` is neither"));
    assert!(error(write(&[(a, &[3, 80]), (b, &[80, 3])]).path()).contains("expected [2, K] and [N, 2]"));
    assert!(error(write(&[(a, &[2, 80]), (b, &[160])]).path()).contains("expected two matrices"));
    // Of another model: sizes, then names.
    let check = |dir: &Path, of: &str| {
        let config = Config::from_file(base(of).join("config.json")).unwrap();
        Adapter::open(dir).unwrap().check(&config).unwrap_err().to_string()
    };
    let dir = write(&[(a, &[2, 81]), (b, &[80, 2])]);
    assert!(check(dir.path(), "qwen2-tied-odd").contains("changes a weight of [80, 81]; this model's is [80, 80]"));
    assert!(check(dir.path(), "v3-odd-groups").contains("is it an adapter of another model?"));
    let adapter = Adapter::open(dir.path()).unwrap();
    let loaded = Model::load(&base("qwen2-tied-odd"), LoadOptions { adapter: Some(&adapter), ..F32 });
    assert!(loaded.err().unwrap().to_string().contains("[80, 81]"));
}

#[test]
fn a_merged_folder_is_a_model_of_its_own_and_unmerging_gives_the_base_back_within_rounding() {
    for (case, of) in CASES {
        let adapter = Adapter::open(adapter(case)).unwrap();
        let dir = tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir(path("base")).unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(base(of).join(file), path("base").join(file)).unwrap();
        }
        fs::write(path("base/tokenizer.json"), "{}").unwrap();
        fs::write(path("base/old.bin"), "weights of another format").unwrap();
        let mut last = (0, 0);
        save_applied(&path("base"), &adapter, Direction::Merge, &path("merged"), &mut |n, of| last = (n, of)).unwrap();
        let config = Config::from_file(path("merged/config.json")).unwrap();
        assert_eq!(last, (config.tensors().len(), config.tensors().len()));
        assert!(path("merged/tokenizer.json").exists() && !path("merged/old.bin").exists());
        // The folder holds the bf16 numbers that loading with the adapter rounds to.
        let options = LoadOptions { precision: Some(Precision::Bf16), ..LoadOptions::default() };
        let (beside, merged) = (
            Model::load(&path("base"), LoadOptions { adapter: Some(&adapter), ..options }).unwrap(),
            Model::load(&path("merged"), options).unwrap(),
        );
        assert_eq!(beside.logits(&[3, 1, 4]), merged.logits(&[3, 1, 4]));
        save_applied(&path("merged"), &adapter, Direction::Unmerge, &path("again"), &mut |_, _| {}).unwrap();
        let (a, b) = (Checkpoint::open(path("base")).unwrap(), Checkpoint::open(path("again")).unwrap());
        for spec in config.tensors() {
            let read = |c: &Checkpoint<'_>| c.read_f32(&spec.name, &spec.shape).unwrap();
            assert!(relative(&read(&b), &read(&a)) < 8e-3, "{}", spec.name);
        }
        let again = save_applied(&path("base"), &adapter, Direction::Merge, &path("merged"), &mut |_, _| {});
        assert!(again.unwrap_err().to_string().contains("it is there already"));
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names.len(), 3, "{names:?}");
    }
}
