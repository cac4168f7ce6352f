//! config.json: published files give the published counts, rope keys give what `transformers` makes of them, and each
//! mistake has its own message. `golden/configs/README.md` says where the files come from.

use std::path::PathBuf;

use jevons_model::{
    Config,
    config::{Attention, ConfigError, Family, KeyDefault, Quantization, RopeScaling, ScaleFormat},
};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

fn path(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/golden/configs", name].iter().collect()
}

fn keys(name: &str) -> Map<String, Value> {
    serde_json::from_str(&std::fs::read_to_string(path(name)).unwrap()).unwrap()
}

fn read(keys: &Map<String, Value>) -> Result<Config, ConfigError> {
    Config::from_json(&Value::Object(keys.clone()).to_string())
}

/// The message for the small reference model's config with these keys changed; `null` stays `null`.
fn error_v3(changes: Value) -> String {
    error("parity-deepseek-v3.json", changes)
}

fn error_qwen2(changes: Value) -> String {
    error("parity-qwen2.json", changes)
}

fn error(name: &str, changes: Value) -> String {
    let mut keys = keys(name);
    keys.extend(changes.as_object().unwrap().clone());
    read(&keys).expect_err("accepted").to_string()
}

// What the files say.

#[test]
fn deepseek_v3_and_r1_have_671_billion_parameters_of_which_37_and_a_half_run() {
    for name in ["DeepSeek-V3.json", "DeepSeek-R1.json"] {
        let config = Config::from_file(path(name)).unwrap();
        // Shapes of the technical report, multiplied out by hand: `reference/deepseek.md` 1.6.
        let mla = 1536 * 7168 + 1536 + 24_576 * 1536 + 576 * 7168 + 512 + 32_768 * 512 + 7168 * 16_384;
        let (expert, dense) = (3 * 2048 * 7168, 3 * 18_432 * 7168);
        let rest = 2 * 129_280 * 7168 + 7168 + 61 * (mla + 2 * 7168) + 3 * dense + 58 * (256 * 7168 + 256 + expert);
        assert_eq!(config.total_parameters(), rest + 58 * 256 * expert);
        assert_eq!(config.active_parameters(), rest + 58 * 8 * expert);
        assert_eq!(config.total_parameters() / 100_000_000, 6710, "published: 671 B");
        assert_eq!(config.active_parameters() / 10_000_000, 3755, "published: 37 B without the embedding");
    }
}

#[test]
fn published_parameter_counts_come_out() {
    // Qwen2.5: model cards (7.61 B, 32.5 B); R1-Distill-Qwen-1.5B: 1.78 B with its untied head.
    let total = |name: &str| Config::from_file(path(name)).unwrap().total_parameters();
    assert_eq!(total("DeepSeek-R1-Distill-Qwen-1.5B.json"), 1_777_088_000);
    assert_eq!(total("Qwen2.5-7B-Instruct.json"), 7_615_616_512);
    assert_eq!(total("Qwen2.5-32B-Instruct.json"), 32_763_876_352);
    assert_eq!(Config::from_file(path("Qwen2.5-7B-Instruct.json")).unwrap().active_parameters(), 7_615_616_512);
}

#[test]
fn llama_and_deepseek_v2_have_their_published_counts_and_no_selection_bias() {
    // Model cards: 8.03 B, 70.6 B; V2-Lite: 15.7 B, of which 2.4 B run, the input embedding not counted.
    let total = |name: &str| Config::from_file(path(name)).unwrap().total_parameters();
    assert_eq!(total("Meta-Llama-3.1-8B.json"), 8_030_261_248);
    let v2 = Config::from_file(path("DeepSeek-V2-Lite-Chat.json")).unwrap();
    assert_eq!((v2.family, v2.total_parameters() / 100_000_000), (Family::DeepseekV2, 157));
    let embedding = (v2.vocab_size * v2.hidden_size) as u64;
    assert_eq!((v2.active_parameters() - embedding) / 100_000_000, 24);
    assert!(v2.tensors().iter().all(|t| !t.is_always_f32()));
    let moe = v2.moe.as_ref().unwrap();
    assert_eq!((moe.n_group, moe.topk_group, moe.norm_topk_prob), (1, 1, false));
    // mscale = mscale_all_dim = 0.707: reference notes, 1.3.
    assert!((v2.softmax_scale() - 0.114_721_4).abs() < 1e-6);
    assert_eq!(v2.default_mla_form(), jevons_model::MlaForm::Absorbed);
}

#[test]
fn multi_token_prediction_is_a_layer_of_its_own_that_inference_drops() {
    let config = Config::from_file(path("DeepSeek-V3.json")).unwrap();
    assert_eq!(config.num_nextn_predict_layers, 1);
    let own: Vec<_> = config.tensors().into_iter().filter(|t| t.name.starts_with("model.layers.61.")).collect();
    // Reference notes, 1.6: 11.6 B of its own.
    assert_eq!(own.iter().map(|t| t.elements() as u64).sum::<u64>() / 100_000_000, 116);
    assert_eq!(own.iter().find(|t| t.name.ends_with("eh_proj.weight")).unwrap().shape, [7168, 14336]);
    let copies = config.mtp_copies();
    assert_eq!(copies[0], ("model.layers.61.embed_tokens.weight".into(), "model.embed_tokens.weight"));
    assert_eq!(copies[1], ("model.layers.61.shared_head.head.weight".into(), "lm_head.weight"));
    let total = config.total_parameters();
    let without = config.without_mtp();
    assert_eq!(without.total_parameters(), total);
    assert!(without.tensors().iter().all(|t| !t.name.contains("layers.61.")) && without.mtp_copies().is_empty());
    // 576 numbers in each of 61 layers: 70,272 bytes in bf16.
    assert_eq!(without.cache_numbers(jevons_model::MlaForm::Absorbed) * 2, 70_272);
    assert_eq!(without.cache_numbers(jevons_model::MlaForm::Expanded), 61 * 128 * (192 + 128));
}

#[test]
fn llama3_rope_keeps_fast_pairs_slows_slow_ones_and_ramps_between() {
    let config = Config::from_file(path("Meta-Llama-3.1-8B.json")).unwrap();
    let (scaled, plain) = (config.rope_inv_freq(), {
        let mut plain = config.clone();
        plain.rope.scaling = RopeScaling::None;
        plain.rope_inv_freq()
    });
    assert_eq!(scaled.len(), 64);
    for (k, (s, p)) in scaled.iter().zip(&plain).enumerate() {
        let turns = 8192.0 * p / std::f64::consts::TAU;
        let ratio = s / p;
        match turns {
            t if t > 4.0 => assert_eq!(ratio, 1.0, "{k}"),
            t if t < 1.0 => assert!((ratio - 0.125).abs() < 1e-12, "{k}"),
            _ => assert!(ratio > 0.125 && ratio < 1.0, "{k}"),
        }
    }
    let broken = |changes: Value| {
        let mut keys = keys("Meta-Llama-3.1-8B.json");
        keys["rope_scaling"].as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        read(&keys).unwrap_err().to_string()
    };
    assert_eq!(
        broken(json!({"high_freq_factor": 1.0})),
        "`rope_scaling.high_freq_factor` is 1.0, expected a number above `low_freq_factor`, 1; usually 4"
    );
    assert!(broken(json!({"low_freq_factor": 0})).starts_with("`rope_scaling.low_freq_factor` is 0, expected"));
    assert!(broken(json!({"factor": "8"})).starts_with("`rope_scaling.factor` is \"8\", expected a number"));
}

#[test]
fn kimi_k2_is_the_same_layout_with_a_trillion_parameters_of_which_32_billion_run() {
    let config = Config::from_file(path("Kimi-K2-Instruct.json")).unwrap();
    assert_eq!(config.family, Family::DeepseekV3);
    assert_eq!(config.total_parameters() / 1_000_000_000, 1026, "published: 1 T");
    assert_eq!(config.active_parameters() / 1_000_000_000, 32, "published: 32 B");
}

#[test]
fn moonlight_has_plain_queries_and_its_published_counts() {
    let mut keys = keys("Moonlight-16B-A3B-partial.json");
    let rest = json!({
        "vocab_size": 163_840, "q_lora_rank": null, "max_position_embeddings": 8192, "n_group": 1, "topk_group": 1,
        "rope_theta": 50_000.0, "rope_scaling": null,
    });
    keys.extend(rest.as_object().unwrap().clone());
    let config = read(&keys).unwrap();
    assert!(matches!(config.attention, Attention::Mla { q_lora_rank: None, .. }));
    let both_embeddings = 2 * 163_840 * 2048;
    let rounded = |n: u64, to: u64| (n - both_embeddings + to / 2) / to;
    assert_eq!(rounded(config.total_parameters(), 100_000_000), 153, "published: 15.3 B");
    assert_eq!(rounded(config.active_parameters(), 10_000_000), 224, "published: 2.24 B");
}

#[test]
fn the_tensors_are_those_of_the_reference_checkpoints_in_the_order_of_the_model() {
    let config = Config::from_file(path("parity-deepseek-v3.json")).unwrap();
    let tensors = config.tensors();
    let names: Vec<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names[0], "model.embed_tokens.weight");
    assert_eq!(names[1], "model.layers.0.input_layernorm.weight");
    assert_eq!(names[names.len() - 2..], ["model.norm.weight", "lm_head.weight"]);
    let shape = |name: &str| tensors.iter().find(|t| t.name == name).map(|t| t.shape.clone()).unwrap();
    assert_eq!(shape("model.layers.0.mlp.down_proj.weight"), [128, 256]);
    assert_eq!(shape("model.layers.0.self_attn.q_b_proj.weight"), [192, 96]);
    assert_eq!(shape("model.layers.0.self_attn.kv_a_proj_with_mqa.weight"), [80, 128]);
    assert_eq!(shape("model.layers.2.mlp.experts.7.gate_proj.weight"), [64, 128]);
    assert_eq!(shape("model.layers.2.mlp.shared_experts.down_proj.weight"), [128, 64]);
    assert_eq!(shape("model.layers.2.mlp.gate.e_score_correction_bias"), [8]);
    assert!([0, 1, 2].map(|i| config.is_moe_layer(i)) == [false, true, true]);
}

#[test]
fn tied_heads_plain_queries_and_biases_change_the_tensors() {
    let names = |changes: Value| -> Vec<String> {
        let mut keys = keys("parity-deepseek-v3.json");
        keys.extend(changes.as_object().unwrap().clone());
        read(&keys).unwrap().tensors().into_iter().map(|t| t.name).collect()
    };
    let plain = names(json!({}));
    let tied = names(json!({"tie_word_embeddings": true}));
    assert_eq!(plain.len(), tied.len() + 1);
    assert!(!tied.contains(&"lm_head.weight".into()));

    let direct = names(json!({"q_lora_rank": null}));
    assert!(direct.contains(&"model.layers.0.self_attn.q_proj.weight".into()));
    assert!(!direct.iter().any(|n| n.contains("q_a_") || n.contains("q_b_")));

    let biased = names(json!({"attention_bias": true}));
    let biases: Vec<_> = biased.iter().filter(|n| n.starts_with("model.layers.1.") && n.ends_with(".bias")).collect();
    assert_eq!(
        biases,
        ["q_a_proj", "kv_a_proj_with_mqa", "o_proj"].map(|p| format!("model.layers.1.self_attn.{p}.bias")).each_ref()
    );
}

#[test]
fn end_tokens_may_be_one_several_or_none() {
    let eos = |value: Value| {
        let mut keys = keys("parity-qwen2.json");
        keys.insert("eos_token_id".into(), value);
        read(&keys).unwrap().eos_token_ids
    };
    assert_eq!(eos(json!(7)), [7]);
    assert_eq!(eos(json!([7, 0, 511])), [7, 0, 511]);
    assert_eq!(eos(json!(null)), [0_u32; 0]);
}

#[test]
fn what_is_written_back_has_every_key_in_its_order() {
    for name in ["DeepSeek-R1-Distill-Qwen-1.5B.json", "parity-deepseek-v3-groups-yarn.json"] {
        let config = Config::from_file(path(name)).unwrap();
        let again: Map<String, Value> = serde_json::from_str(&config.to_json()).unwrap();
        assert_eq!(again.iter().collect::<Vec<_>>(), keys(name).iter().collect::<Vec<_>>());
        assert_eq!(Config::from_json(&config.to_json()).unwrap(), config);
    }
}

// Rope.

#[test]
fn rope_is_what_transformers_makes_of_the_same_keys() {
    let cases: Map<String, Value> = keys("rope.json");
    assert_eq!(cases.len(), 19);
    for (name, case) in &cases {
        let base = match case["keys"]["model_type"].as_str().unwrap() {
            "deepseek_v3" => "parity-deepseek-v3.json",
            _ => "Qwen2.5-7B-Instruct.json",
        };
        let mut keys = keys(base);
        keys.retain(|k, _| !k.starts_with("rope_"));
        keys.extend(case["keys"].as_object().unwrap().clone());
        let config = read(&keys).unwrap_or_else(|e| panic!("{name}: {e}"));

        let close = |what: &str, ours: f64, theirs: f64, bound: f64| {
            assert!((ours - theirs).abs() <= bound * theirs.abs(), "{name}: {what} {ours}, transformers {theirs}");
        };
        let theirs: Vec<f64> = case["inv_freq"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        let ours = config.rope_inv_freq();
        assert_eq!(ours.len(), theirs.len());
        for (ours, theirs) in ours.into_iter().zip(theirs) {
            // Theirs is computed in f32 with a handful of roundings of 2⁻²⁴ each and a power of an f32 exponent.
            close("frequency", ours, theirs, 3e-6);
        }
        close("cos/sin multiplier", config.rope_attention_factor(), case["attention_factor"].as_f64().unwrap(), 1e-14);
        close("softmax scale", config.softmax_scale(), case["softmax_scale"].as_f64().unwrap(), 1e-14);
    }
}

#[test]
fn the_softmax_scale_of_deepseek_v3_is_the_one_of_the_reference_notes() {
    assert!((Config::from_file(path("DeepSeek-V3.json")).unwrap().softmax_scale() - 0.135_233_8).abs() < 5e-8);
    assert!(
        (Config::from_file(path("parity-deepseek-v3.json")).unwrap().softmax_scale() - 48_f64.sqrt().recip()).abs()
            < 1e-16
    );
}

#[test]
fn both_styles_of_rope_keys_mean_the_same() {
    let mut new = keys("parity-deepseek-v3-groups-yarn.json");
    let old = read(&new).unwrap();
    let mut table = new.remove("rope_scaling").unwrap();
    table["rope_theta"] = new.remove("rope_theta").unwrap();
    table.as_object_mut().unwrap().remove("type");
    new.insert("rope_parameters".into(), table);
    let new = read(&new).unwrap();
    assert!(matches!(new.rope.scaling, RopeScaling::Yarn { factor: 40.0, original_max_position_embeddings: 64, .. }));
    assert_eq!(new.rope, old.rope);
}

// Mistakes. The small V3 model has 8 experts in 1 group of which 2 run, 4 heads, 16 rotated dimensions.

#[test]
fn every_required_key_is_named_when_it_is_missing() {
    let required_v3 = [
        "model_type",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
        "q_lora_rank",
        "kv_lora_rank",
        "qk_nope_head_dim",
        "qk_rope_head_dim",
        "v_head_dim",
        "n_routed_experts",
        "num_experts_per_tok",
        "n_shared_experts",
        "moe_intermediate_size",
        "n_group",
        "topk_group",
        "first_k_dense_replace",
    ];
    let required_qwen2 = [
        "model_type",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
    ];
    for (file, required) in [("parity-deepseek-v3.json", &required_v3[..]), ("parity-qwen2.json", &required_qwen2[..])]
    {
        for key in required {
            let mut keys = keys(file);
            keys.remove(*key).unwrap();
            let error = read(&keys).unwrap_err().to_string();
            assert!(error.starts_with(&format!("`{key}` is missing; ")), "{error}");
        }
    }
    let mut keys = keys("parity-deepseek-v3.json");
    keys.remove("kv_lora_rank");
    assert_eq!(
        read(&keys).unwrap_err().to_string(),
        "`kv_lora_rank` is missing; deepseek_v3 needs a whole number from 1 to 16777216"
    );
}

#[test]
fn keys_with_a_published_default_may_be_missing() {
    let mut keys = keys("parity-deepseek-v3.json");
    let config = read(&keys).unwrap();
    for key in [
        "attention_bias",
        "bos_token_id",
        "hidden_act",
        "initializer_range",
        "moe_layer_freq",
        "norm_topk_prob",
        "num_key_value_heads",
        "rms_norm_eps",
        "rope_interleave",
        "rope_scaling",
        "rope_theta",
        "routed_scaling_factor",
        "scoring_func",
        "tie_word_embeddings",
        "topk_method",
        "architectures",
        "torch_dtype",
    ] {
        keys.remove(key).unwrap();
    }
    let bare = read(&keys).unwrap();
    assert_eq!(Config { raw: config.raw.clone(), bos_token_id: Some(0), ..bare }, config);
}

#[test]
fn other_families_are_refused_by_name() {
    let supported = "deepseek_v2 (DeepSeek-V2, V2-Lite), deepseek_v3 (DeepSeek-V3 and R1, Moonlight, Kimi-K2), \
                     llama (Llama 2 and 3, R1-Distill-Llama), qwen2 (Qwen2, Qwen2.5, R1-Distill-Qwen)";
    let said = format!("`model_type` is \"gemma\", which is not supported; supported: {supported}");
    assert_eq!(error_v3(json!({"model_type": "gemma"})), said);
    assert!(error_v3(json!({"model_type": 3})).starts_with("`model_type` is 3, which is not supported"));
}

#[test]
fn block_fp8_as_published_is_understood() {
    for (name, scale_format) in [("DeepSeek-V3.json", ScaleFormat::F32), ("Kimi-K2-Instruct.json", ScaleFormat::F32)] {
        let quantization = Config::from_file(path(name)).unwrap().quantization.unwrap();
        assert_eq!(quantization, Quantization { scale_format });
        let mut keys = keys(name);
        keys.insert("quantization_config".into(), quantization.to_json());
        assert_eq!(read(&keys).unwrap().quantization, Some(quantization));
    }
    let ue8m0 = Quantization { scale_format: ScaleFormat::Ue8m0 };
    let mut keys = keys("DeepSeek-V3.json");
    keys["quantization_config"]["scale_fmt"] = "ue8m0".into();
    assert_eq!(read(&keys).unwrap().quantization, Some(ue8m0));
    assert_eq!(ue8m0.to_json(), keys["quantization_config"]);
    keys.insert("quantization_config".into(), Value::Null);
    assert_eq!(read(&keys).unwrap().quantization, None);
}

#[test]
fn other_quantisations_are_refused_with_the_reason() {
    let fp8 = |key: &str, value: Value| {
        let mut table = Quantization { scale_format: ScaleFormat::F32 }.to_json();
        table[key] = value;
        error_v3(json!({ "quantization_config": table }))
    };
    assert_eq!(
        error_qwen2(json!({"quantization_config": {"quant_method": "gptq", "bits": 4}})),
        "`quantization_config.quant_method` is \"gptq\", which is not supported; supported: fp8 (in blocks of 128 × 128), and none (weights in BF16, F16 or F32)"
    );
    assert!(error_qwen2(json!({"quantization_config": 8})).starts_with("`quantization_config.quant_method` is 8,"));
    assert!(error_qwen2(json!({"quantization_config": {}})).starts_with("`quantization_config.quant_method` is {},"));
    assert_eq!(
        fp8("weight_block_size", json!([64, 128])),
        "`quantization_config.weight_block_size` is [64,128], which is not supported; supported: [128, 128] (one scale for each block of the weight)"
    );
    for (key, value) in [
        ("weight_block_size", Value::Null),
        ("weight_block_size", json!([128])),
        ("weight_block_size", json!([128, 128, 1])),
        ("weight_block_size", json!([-128, 128.0])),
        ("weight_block_size", json!("128")),
        ("fmt", json!("e5m2")),
        ("activation_scheme", json!("static")),
        ("scale_fmt", json!("e4m3")),
        ("quant_method", json!(["fp8"])),
    ] {
        let error = fp8(key, value.clone());
        assert!(error.starts_with(&format!("`quantization_config.{key}` is {value}, which is not")), "{error}");
    }
}

#[test]
fn files_that_are_no_config_are_refused() {
    assert_eq!(
        Config::from_json("{\"model_type\": ").unwrap_err().to_string(),
        "not valid JSON: EOF while parsing a value at line 1 column 15; is the file whole?"
    );
    assert_eq!(
        Config::from_json("[1, 2]").unwrap_err().to_string(),
        "expected a JSON object of keys and values, found [1,2]"
    );
    assert!(Config::from_json("{\"rms_norm_eps\": NaN}").unwrap_err().to_string().starts_with("not valid JSON"));
    assert!(Config::from_json(&"[".repeat(100_000)).unwrap_err().to_string().contains("recursion limit"));
    let missing = path("none.json");
    assert!(
        Config::from_file(&missing)
            .unwrap_err()
            .to_string()
            .starts_with(&format!("{}: cannot read", missing.display()))
    );
    assert!(Config::from_file(path("")).unwrap_err().to_string().contains("not a file"));
}

#[test]
fn a_file_too_large_for_a_config_is_not_read() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 40).unwrap(); // A hole, which takes no disk.
    assert!(Config::from_file(file.path()).unwrap_err().to_string().contains("larger than 16 MiB"));
}

#[test]
fn absurd_sizes_are_refused() {
    let said = "expected a whole number from 1 to 16777216";
    assert_eq!(error_v3(json!({"hidden_size": 0})), format!("`hidden_size` is 0, {said}"));
    assert_eq!(
        error_v3(json!({"hidden_size": 1_000_000_000_000_u64})),
        format!("`hidden_size` is 1000000000000, {said}")
    );
    assert_eq!(error_v3(json!({"intermediate_size": -1})), format!("`intermediate_size` is -1, {said}"));
    assert_eq!(error_v3(json!({"kv_lora_rank": 64.5})), format!("`kv_lora_rank` is 64.5, {said}"));
    assert_eq!(error_v3(json!({"v_head_dim": "32"})), format!("`v_head_dim` is \"32\", {said}"));
    assert_eq!(error_v3(json!({"qk_nope_head_dim": null})), format!("`qk_nope_head_dim` is null, {said}"));
    assert_eq!(error_v3(json!({"q_lora_rank": 0})), format!("`q_lora_rank` is 0, {said}, or null"));
    assert_eq!(
        error_v3(json!({"vocab_size": 1_u64 << 31})),
        "`vocab_size` is 2147483648, expected a whole number from 1 to 2147483647"
    );
    assert_eq!(
        error_v3(json!({"num_hidden_layers": 0})),
        "`num_hidden_layers` is 0, expected a whole number from 1 to 100000"
    );
    assert_eq!(
        error_v3(json!({"max_position_embeddings": 0})),
        "`max_position_embeddings` is 0, expected a whole number from 1 to 2147483648"
    );
    assert_eq!(error_v3(json!({"n_shared_experts": 0})), format!("`n_shared_experts` is 0, {said}"));
    assert_eq!(error_v3(json!({"moe_layer_freq": 0})), format!("`moe_layer_freq` is 0, {said}"));
}

#[test]
fn sizes_that_are_absurd_together_are_refused_without_building_the_list() {
    assert_eq!(
        error_v3(json!({"num_hidden_layers": 100_000, "n_routed_experts": 16_777_216})),
        "the sizes together make about 5033167600003 tensors, more than the 1000000 that a model may have; is a size mistyped?"
    );
    assert!(
        error_v3(json!({"hidden_size": 1 << 24, "vocab_size": i32::MAX}))
            .contains(" parameters, more than the 1000000000000000 ")
    );
    assert!(
        error_v3(json!({"num_attention_heads": 1 << 24, "num_key_value_heads": 1 << 24}))
            .contains("values in all heads")
    );
    assert!(error_v3(json!({"n_shared_experts": 1 << 24})).contains("shared experts 1073741824 wide"));
    assert!(error_qwen2(json!({"head_dim": 1 << 24})).contains("values in all heads"));
}

#[test]
fn heads_that_do_not_divide_are_refused() {
    assert_eq!(
        error_qwen2(json!({"num_key_value_heads": 4})),
        "`num_key_value_heads` is 4, expected a divisor of `num_attention_heads`, 6: as many query heads share each key"
    );
    assert_eq!(
        error_qwen2(json!({"num_attention_heads": 5, "num_key_value_heads": 5})),
        "`num_attention_heads` is 5, expected a divisor of `hidden_size`, 192, as the file has no `head_dim`"
    );
    assert_eq!(
        error_v3(json!({"num_key_value_heads": 2})),
        "`num_key_value_heads` is 2, expected `num_attention_heads`, 4: latent attention has a key and a value for every head"
    );
}

#[test]
fn odd_rotated_dimensions_are_refused() {
    assert_eq!(
        error_v3(json!({"qk_rope_head_dim": 15})),
        "`qk_rope_head_dim` is 15, expected an even number: rotary embedding turns pairs"
    );
    assert_eq!(
        error_qwen2(json!({"head_dim": 31})),
        "`head_dim` is 31, expected an even number: rotary embedding turns pairs"
    );
    assert!(error_qwen2(json!({"num_attention_heads": 64, "num_key_value_heads": 64})).starts_with("`head_dim` is 3,"));
}

#[test]
fn experts_that_do_not_fit_their_groups_are_refused() {
    assert_eq!(
        error_v3(json!({"n_group": 3})),
        "`n_group` is 3, expected a divisor of `n_routed_experts`, 8: groups are alike"
    );
    assert_eq!(error_v3(json!({"topk_group": 2})), "`topk_group` is 2, expected at most `n_group`, 1");
    assert_eq!(
        error_v3(json!({"num_experts_per_tok": 9})),
        "`num_experts_per_tok` is 9, expected at most 8: a token chooses among 1 groups of 8 experts"
    );
    assert_eq!(
        error_v3(json!({"n_group": 4, "topk_group": 2, "num_experts_per_tok": 5})),
        "`num_experts_per_tok` is 5, expected at most 4: a token chooses among 2 groups of 2 experts"
    );
    assert_eq!(
        error_v3(json!({"n_group": 8})),
        "`n_routed_experts` is 8, expected at least 2 for each of the 8 groups: a group is rated by its best two"
    );
}

#[test]
fn numbers_that_break_the_arithmetic_are_refused() {
    let eps = "expected a number above 0 and below 1, usually 1e-6";
    assert_eq!(error_v3(json!({"rms_norm_eps": -1e-6})), format!("`rms_norm_eps` is -1e-6, {eps}"));
    assert_eq!(error_v3(json!({"rms_norm_eps": 0})), format!("`rms_norm_eps` is 0, {eps}"));
    assert_eq!(error_v3(json!({"rms_norm_eps": 1e-40})), format!("`rms_norm_eps` is 1e-40, {eps}"));
    assert_eq!(error_v3(json!({"rms_norm_eps": "small"})), "`rms_norm_eps` is \"small\", expected a number");
    assert_eq!(
        error_v3(json!({"routed_scaling_factor": 0.0})),
        "`routed_scaling_factor` is 0.0, expected a number above 0"
    );
    assert_eq!(
        error_v3(json!({"routed_scaling_factor": 1e300})),
        "`routed_scaling_factor` is 1e+300, expected a number above 0"
    );
    assert_eq!(
        error_v3(json!({"initializer_range": -0.02})),
        "`initializer_range` is -0.02, expected a standard deviation of 0 or more, usually 0.02"
    );
    assert_eq!(error_v3(json!({"tie_word_embeddings": 1})), "`tie_word_embeddings` is 1, expected true or false");
}

#[test]
fn tokens_outside_of_the_vocabulary_are_refused() {
    assert_eq!(
        error_v3(json!({"bos_token_id": 512})),
        "`bos_token_id` is 512, expected a token below `vocab_size`, 512"
    );
    assert_eq!(
        error_v3(json!({"eos_token_id": [1, -1]})),
        "`eos_token_id` is [1,-1], expected a token below `vocab_size`, 512"
    );
}

#[test]
fn options_that_change_the_mathematics_are_refused() {
    assert_eq!(
        error_qwen2(json!({"hidden_act": "gelu"})),
        "`hidden_act` is \"gelu\", which is not supported; supported: silu"
    );
    assert_eq!(
        error_v3(json!({"scoring_func": "softmax"})),
        "`scoring_func` is \"softmax\", which is not supported; supported: sigmoid"
    );
    assert_eq!(
        error_v3(json!({"topk_method": "greedy"})),
        "`topk_method` is \"greedy\", which is not supported; supported: noaux_tc"
    );
    assert_eq!(
        error_qwen2(json!({"use_sliding_window": true})),
        "`use_sliding_window` is true, which is not supported; supported: false (attention over the whole context)"
    );
    assert_eq!(
        error_qwen2(json!({"layer_types": ["full_attention", "sliding_attention"]})),
        "`layer_types` is \"sliding_attention\", which is not supported; supported: full_attention in every layer"
    );
}

#[test]
fn rope_keys_that_are_not_understood_are_refused() {
    let rope = |table: Value| error_v3(json!({"rope_scaling": table}));
    assert_eq!(
        rope(json!({"type": "linear", "factor": 2.0})),
        "`rope_scaling.type` is \"linear\", which is not supported; supported: default (no scaling), yarn and llama3"
    );
    assert_eq!(
        rope(json!({"rope_type": "dynamic", "factor": 8.0})),
        "`rope_scaling.rope_type` is \"dynamic\", which is not supported; supported: default (no scaling), yarn and llama3"
    );
    assert_eq!(
        rope(json!({"factor": 2.0})),
        "`rope_scaling.rope_type` is missing; rope_scaling needs the kind of scaling, \"default\", \"yarn\" or \"llama3\""
    );
    assert_eq!(rope(json!({"type": "yarn"})), "`rope_scaling.factor` is missing; rope_scaling needs a number");
    assert_eq!(
        rope(json!({"type": "yarn", "factor": 0.5})),
        "`rope_scaling.factor` is 0.5, expected a number from 1 to 1000000: the longest context over the original one"
    );
    assert_eq!(
        rope(json!({"type": "yarn", "factor": 2, "beta_fast": 1, "beta_slow": 2})),
        "`rope_scaling.beta_fast` is 1, expected at least `beta_slow`, 2; usually 32"
    );
    assert_eq!(
        rope(json!({"type": "yarn", "factor": 2, "mscale": -1})),
        "`rope_scaling.mscale` is -1, expected a number of 0 or more, usually 1"
    );
    assert_eq!(
        rope(json!({"type": "yarn", "factor": 2, "original_max_position_embeddings": 0})),
        "`rope_scaling.original_max_position_embeddings` is 0, expected a whole number from 1 to 2147483648"
    );
    assert_eq!(
        rope(json!({"type": "yarn", "rope_type": "default"})),
        "`rope_scaling.rope_type` is \"default\", but `rope_scaling.type` is \"yarn\": remove the wrong one"
    );
    assert_eq!(
        rope(json!("yarn")),
        "`rope_scaling` is \"yarn\", expected null or a table such as {\"rope_type\": \"yarn\", ...}"
    );
    assert_eq!(
        rope(json!({"type": "default", "partial_rotary_factor": 0.5})),
        "`rope_scaling.partial_rotary_factor` is 0.5, which is not supported; supported: 1 (whole heads rotate)"
    );
    assert_eq!(error_v3(json!({"rope_theta": 1})), "`rope_theta` is 1, expected a number above 1, usually 10000");
    assert_eq!(
        error_v3(json!({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}})),
        "`rope_theta` is 10000.0, but `rope_parameters.rope_theta` is 500000: remove the wrong one"
    );
    assert!(
        error_v3(json!({
            "rope_parameters": {"rope_type": "default"},
            "rope_scaling": {"rope_type": "yarn", "factor": 2},
        }))
        .starts_with("`rope_scaling` is {\"rope_type\":\"yarn\",\"factor\":2}, but `rope_parameters` is ")
    );
    assert!(
        error_qwen2(json!({"rope_parameters": {"full_attention": {"rope_type": "default"}}}))
            .ends_with("expected one table for all layers: rope by layer type is not supported")
    );
}

// New models.

fn recipe() -> Value {
    json!({
        "model_type": "deepseek_v3", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 160,
        "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 128, "kv_lora_rank": 16,
        "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "n_routed_experts": 24, "num_experts_per_tok": 4,
        "moe_intermediate_size": 24, "n_group": 3,
    })
}

fn new(changes: Value) -> Result<Config, ConfigError> {
    let mut keys = recipe();
    keys.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    Config::from_map(keys.as_object().unwrap())
}

#[test]
fn a_recipe_of_sizes_becomes_a_whole_config() {
    let config = new(json!({})).unwrap();
    assert_eq!(Config::from_json(&config.to_json()).unwrap(), config);
    for (key, value) in [
        ("architectures", json!(["DeepseekV3ForCausalLM"])),
        ("num_key_value_heads", json!(4)),
        ("topk_group", json!(3)),
        ("q_lora_rank", json!(null)),
        ("head_dim", json!(8)),
        ("qk_head_dim", json!(24)),
        ("rope_theta", json!(10000.0)),
        ("rope_scaling", json!(null)),
        ("scoring_func", json!("sigmoid")),
        ("topk_method", json!("noaux_tc")),
        ("rope_interleave", json!(true)),
        ("torch_dtype", json!("bfloat16")),
        ("num_nextn_predict_layers", json!(0)),
    ] {
        assert_eq!(config.raw[key], value, "{key}");
    }
    let names: Vec<&String> = config.raw.keys().collect();
    assert!(names.is_sorted());
}

#[test]
fn a_recipe_has_every_key_that_the_published_files_have() {
    let config = new(json!({})).unwrap();
    for key in keys("parity-deepseek-v3.json").keys() {
        // `output_router_logits` is a switch of one tool's training code.
        assert!(config.raw.contains_key(key) || key == "output_router_logits", "{key}");
    }
    let qwen2 = json!({
        "model_type": "qwen2", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3,
        "num_attention_heads": 4, "max_position_embeddings": 128,
    });
    let config = Config::from_map(qwen2.as_object().unwrap()).unwrap();
    for key in keys("parity-qwen2.json").keys() {
        // `layer_types` follows from `use_sliding_window`.
        assert!(config.raw.contains_key(key) || key == "layer_types", "{key}");
    }
}

#[test]
fn whole_numbers_become_fractions_where_transformers_wants_them() {
    let config = new(json!({"routed_scaling_factor": 1, "rope_theta": 50000})).unwrap();
    assert!(config.raw["routed_scaling_factor"].is_f64() && config.raw["rope_theta"].is_f64());
    assert_eq!(config.rope.theta, 50_000.0);
}

#[test]
fn rope_of_either_style_is_written_in_the_older_one() {
    let config =
        new(json!({"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e4, "factor": 4, "mscale_all_dim": 1}}))
            .unwrap();
    assert!(!config.raw.contains_key("rope_parameters"));
    assert_eq!(config.raw["rope_theta"], 5e4);
    let again = Config::from_json(&config.to_json()).unwrap();
    assert_eq!(again.rope, config.rope);
    assert!(matches!(again.rope.scaling, RopeScaling::Yarn { factor: 4.0, original_max_position_embeddings: 128, .. }));
}

#[test]
fn typos_in_a_recipe_are_refused_with_the_key_that_was_meant() {
    let error = |changes| new(changes).unwrap_err().to_string();
    assert_eq!(
        error(json!({"n_routed_expert": 8})),
        "`n_routed_expert` is not a key of a deepseek_v3 model; did you mean `n_routed_experts`?"
    );
    assert_eq!(error(json!({"colour": "blue"})), "`colour` is not a key of a deepseek_v3 model");
    assert_eq!(error(json!({"model_type": "qwen2"})), "`kv_lora_rank` is not a key of a qwen2 model");
    assert_eq!(
        error(json!({"num_nextn_predict_layers": 2})),
        "`num_nextn_predict_layers` is 2, which is not supported; supported: 0 and 1; 0 runs without these layers"
    );
    assert_eq!(
        error(json!({"attention_dropout": 0.1})),
        "`attention_dropout` is 0.1, which is not supported; supported: 0"
    );
    let mut short = recipe();
    short.as_object_mut().unwrap().remove("v_head_dim");
    assert!(
        Config::from_map(short.as_object().unwrap()).unwrap_err().to_string().starts_with("`v_head_dim` is missing")
    );
}

#[test]
fn the_list_of_keys_has_each_key_once_and_agrees_with_what_is_required() {
    for family in [Family::DeepseekV3, Family::Qwen2] {
        let mut names: Vec<&str> = Config::keys(family).map(|key| key.name).collect();
        assert!(Config::keys(family).all(|key| !key.doc.is_empty()));
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
    }
    for key in Config::keys(Family::DeepseekV3) {
        let mut keys = recipe();
        keys.as_object_mut().unwrap().remove(key.name);
        let error = Config::from_map(keys.as_object().unwrap()).err();
        assert_eq!(error.is_some(), key.default == KeyDefault::Required, "{}: {error:?}", key.name);
    }
}

// Strangers' files.

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (0_u64..40).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,20}".prop_map(Value::from),
        Just(json!([1, 2])),
        Just(json!({"type": "yarn", "factor": 3})),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever the values are: an error, or a config whose derived numbers can be computed.
    #[test]
    fn no_config_panics(
        file in prop_oneof![Just("parity-deepseek-v3-groups-yarn.json"), Just("parity-qwen2.json")],
        changes in proptest::collection::vec((any::<prop::sample::Index>(), value()), 1..4),
    ) {
        let mut keys = keys(file);
        let names: Vec<String> = keys.keys().cloned().collect();
        for (which, value) in changes {
            keys.insert(which.get(&names).clone(), value);
        }
        if let Ok(config) = read(&keys) {
            prop_assert!(config.active_parameters() <= config.total_parameters());
            prop_assert!(config.softmax_scale().is_finite() && config.rope_attention_factor().is_finite());
            prop_assert!(config.rope_inv_freq().iter().all(|f| f.is_finite() && *f > 0.0));
        }
    }

    #[test]
    fn no_rope_table_panics(changes in proptest::collection::vec((any::<prop::sample::Index>(), value()), 1..4)) {
        let mut keys = keys("parity-deepseek-v3-groups-yarn.json");
        let table = keys["rope_scaling"].as_object_mut().unwrap();
        table.insert("attention_factor".into(), 1.0.into());
        table.insert("truncate".into(), true.into());
        let names: Vec<String> = table.keys().cloned().collect();
        for (which, value) in changes {
            table.insert(which.get(&names).clone(), value);
        }
        if let Ok(config) = read(&keys) {
            prop_assert!(config.softmax_scale().is_finite() && config.rope_attention_factor() > 0.0);
            prop_assert!(config.rope_inv_freq().iter().all(|f| f.is_finite() && *f > 0.0));
        }
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,200}") {
        let _ = Config::from_json(&text);
    }
}
