//! What is said of published configs: figures, or a refusal that names what is missing; and what is unusual about them.
//! `golden/configs/README.md` says where the files come from.

use std::path::PathBuf;

use jevons_model::{
    account::WeightFormat,
    config::{Attention, Family, TopkMethod},
    inspect::{Described, Severity, TokenizerFacts, describe, stated_format},
};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

fn text(name: &str) -> String {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/golden/configs", name].iter().collect();
    std::fs::read_to_string(path).unwrap()
}

fn read(name: &str) -> Described {
    describe(&text(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn changed(name: &str, changes: Value) -> Described {
    let mut keys: Map<String, Value> = serde_json::from_str(&text(name)).unwrap();
    keys.extend(changes.as_object().unwrap().clone());
    describe(&Value::Object(keys).to_string()).unwrap()
}

fn ids(described: &Described) -> Vec<&'static str> {
    described.remarks().iter().map(|r| r.id).collect()
}

/// Files that are not configs of models.
const NOT_CONFIGS: [&str; 1] = ["rope.json"];

#[test]
fn every_config_gives_figures_or_a_refusal_that_names_what_is_missing() {
    let refused = [
        ("DeepSeek-V3.2.json", "sparse attention"),
        ("DeepSeek-V4-Flash.json", "hyper-connections"),
        ("DeepSeek-V4-Pro.json", "hyper-connections"),
        ("Kimi-K2.5.json", "vision tower and the 4-bit format"),
        ("MiMo-7B-Base.json", "multi-token prediction of its own"),
        ("Qwen3-0.6B.json", "`q_norm`, `k_norm`"),
        ("Qwen3-30B-A3B.json", "`num_experts`"),
        (
            "Moonlight-16B-A3B-partial.json",
            "`vocab_size`, `max_position_embeddings`, `q_lora_rank`, `n_group`, `topk_group` are missing; deepseek_v3 needs",
        ),
    ];
    let folder: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/golden/configs"].iter().collect();
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if !name.ends_with(".json") || NOT_CONFIGS.contains(&name.as_str()) {
            continue;
        }
        seen += 1;
        match (describe(&text(&name)), refused.iter().find(|(refused, _)| *refused == name)) {
            (Ok(described), None) => {
                assert!(described.config.account().training_flop_per_token(4096).total() > 0.0, "{name}");
                assert!(described.remarks().iter().all(|r| !r.what.is_empty() && !r.why.is_empty()), "{name}");
            }
            (Err(error), Some((_, words))) => assert!(error.to_string().contains(words), "{name}: {error}"),
            (Ok(_), Some(_)) => panic!("{name} is refused no more: tell what it costs here"),
            (Err(error), None) => panic!("{name}: {error}"),
        }
    }
    assert!(seen >= 24, "{seen}");
}

#[test]
fn an_unsupported_family_is_refused_with_the_list_of_those_that_are() {
    for name in ["Qwen3-0.6B.json", "DeepSeek-V4-Pro.json"] {
        let error = describe(&text(name)).unwrap_err().to_string();
        assert!(error.starts_with("`model_type` is ") && error.contains("Supported: deepseek_v2"), "{error}");
    }
}

// The files of DeepSeek's inference code.

#[test]
fn the_inference_codes_configs_are_the_published_models_by_other_keys() {
    let same = |inference: &str, published: &str| {
        let (a, b) = (read(inference), read(published));
        assert_eq!(a.config.account().total(), b.config.account().total(), "{inference}");
        assert_eq!(a.config.account().active(), b.config.account().active(), "{inference}");
        assert_eq!((&a.config.rope, &a.config.moe), (&b.config.rope, &b.config.moe), "{inference}");
        assert_eq!(a.config.max_position_embeddings, b.config.max_position_embeddings, "{inference}");
        assert_eq!(a.config.softmax_scale(), b.config.softmax_scale(), "{inference}");
        assert!(!a.assumptions.is_empty() && a.not_loadable.is_some());
    };
    same("inference-16B.json", "DeepSeek-V2-Lite-Chat.json");
    same("inference-671B.json", "DeepSeek-V3.json");
    same("inference-v3.1.json", "DeepSeek-V3.json");
}

#[test]
fn deepseek_v2_has_its_published_counts_and_operations() {
    // arXiv:2405.04434: 236 B, 21 B active; arXiv:2505.09343: 155 GFLOP per training token at 4K.
    let v2 = read("inference-236B.json");
    let account = v2.config.account();
    assert_eq!(v2.config.family, Family::DeepseekV2);
    assert!(matches!(v2.config.attention, Attention::Mla { q_lora_rank: Some(1536), .. }));
    let moe = v2.config.moe.as_ref().unwrap();
    assert_eq!((moe.topk_method, moe.n_group, moe.topk_group), (TopkMethod::Softmax, 8, 3));
    assert_eq!(account.total().parameters / 100_000_000, 2357);
    assert_eq!(account.active().parameters / 100_000_000, 213);
    assert_eq!(format!("{:.0}", account.training_flop_per_token(4096).total() / 1e9), "155");
}

#[test]
fn mistakes_in_the_inference_codes_keys_are_named() {
    let error = |changes: Value| {
        let mut keys: Map<String, Value> = serde_json::from_str(&text("inference-671B.json")).unwrap();
        for (key, value) in changes.as_object().unwrap() {
            if value.is_null() {
                keys.remove(key)
            } else {
                keys.insert(key.clone(), value.clone())
            };
        }
        describe(&Value::Object(keys).to_string()).unwrap_err().to_string()
    };
    let missing = error(json!({ "n_heads": null, "v_head_dim": null }));
    assert_eq!(
        missing,
        "`n_heads`, `v_head_dim` are missing; DeepSeek's inference code needs them all. Is this the whole file?"
    );
    assert!(error(json!({ "n_heads": null })).starts_with("`n_heads` is missing; DeepSeek's inference code needs"));
    assert!(error(json!({ "score_func": "relu" })).contains("supported: softmax and sigmoid"));
    assert!(error(json!({ "dtype": "fp4" })).contains("supported: bf16 and fp8"));
    assert!(error(json!({ "rope_factor": -1 })).contains("`rope_factor`"));
    assert!(error(json!({ "dim": "wide" })).contains("`hidden_size` is \"wide\""));
}

// What is unusual.

#[test]
fn the_stated_format_is_that_of_the_published_weights() {
    assert_eq!(stated_format(&read("DeepSeek-V3.json").config), Some(WeightFormat::Fp8));
    assert_eq!(stated_format(&read("inference-v3.1.json").config), Some(WeightFormat::Fp8));
    assert_eq!(stated_format(&read("Qwen2.5-7B-Instruct.json").config), Some(WeightFormat::Bf16));
    let awq = changed("Qwen2.5-7B-Instruct.json", json!({ "quantization_config": { "quant_method": "awq" } }));
    assert_eq!(stated_format(&awq.config), None);
    assert!(awq.not_loadable.unwrap().contains("awq"));
}

#[test]
fn a_plain_model_has_nothing_unusual_and_others_have_what_they_are_known_for() {
    assert_eq!(ids(&read("Qwen2.5-7B-Instruct.json")), [""; 0]);
    assert_eq!(ids(&read("Meta-Llama-3.1-8B.json")), ["extended_context"]);
    let has = |described: &Described, expected: &[&str]| {
        let ids = ids(described);
        expected.iter().for_each(|id| assert!(ids.contains(id), "{id} is not in {ids:?}"));
    };
    has(
        &read("DeepSeek-V3.json"),
        &[
            "extended_context",
            "multi_token_prediction",
            "fp8",
            "partial_fp8_blocks",
            "auto_map",
            "default_initializer_range",
        ],
    );
    has(&read("Kimi-K2-Instruct.json"), &["other_name", "default_aux_loss"]);
    has(&read("DeepSeek-R1-Distill-Qwen-1.5B.json"), &["context_beyond_rotation", "float16", "auto_map"]);
    let qwen = |changes| changed("Qwen2.5-7B-Instruct.json", changes);
    has(&qwen(json!({ "tie_word_embeddings": true })), &["tied_embeddings"]);
    has(&qwen(json!({ "rope_theta": 12_345.0, "max_position_embeddings": 4096 })), &["unusual_rope_theta"]);
    has(&qwen(json!({ "eos_token_id": null })), &["no_end_token"]);
    has(&qwen(json!({ "architectures": ["OtherForCausalLM"] })), &["architecture"]);
    has(&qwen(json!({ "index_topk": 3 })), &["unread_keys"]);
    has(
        &changed("Meta-Llama-3.1-8B.json", json!({ "attention_bias": true, "mlp_bias": true })),
        &["attention_bias", "mlp_bias"],
    );
}

#[test]
fn only_kv_a_proj_has_partial_blocks_in_deepseek_v3() {
    let remarks = read("DeepSeek-V3.json").remarks();
    let partial = remarks.iter().find(|r| r.id == "partial_fp8_blocks").unwrap();
    assert_eq!(partial.what, "blocks at the edge of kv_a_proj_with_mqa are not whole");
}

#[test]
fn a_tokenizer_at_odds_with_the_config_is_noticed() {
    let config = read("Qwen2.5-7B-Instruct.json").config;
    let good = TokenizerFacts {
        tokens: Some(152_064),
        chat_template: true,
        bos_token_id: Some(151_643),
        eos_token_id: Some(151_645),
        generation_eos: Some(vec![151_645]),
        ..TokenizerFacts::default()
    };
    let ids = |facts: &TokenizerFacts| facts.remarks(&config).iter().map(|r| r.id).collect::<Vec<_>>();
    assert_eq!(ids(&good), [""; 0]);
    assert_eq!(ids(&TokenizerFacts::default()), ["no_tokenizer", "no_generation_config"]);
    for (facts, id) in [
        (TokenizerFacts { tokens: Some(151_665), ..good.clone() }, "padded_vocabulary"),
        (TokenizerFacts { tokens: Some(152_065), ..good.clone() }, "tokenizer_too_large"),
        (TokenizerFacts { error: Some("broken".into()), ..good.clone() }, "tokenizer_broken"),
        (TokenizerFacts { chat_template: false, ..good.clone() }, "no_chat_template"),
        (TokenizerFacts { template_error: Some("broken".into()), ..good.clone() }, "template_broken"),
        (TokenizerFacts { bos_token_id: Some(7), ..good.clone() }, "bos_differs"),
        (TokenizerFacts { eos_token_id: Some(7), ..good.clone() }, "eos_differs"),
        (TokenizerFacts { generation_eos: None, ..good.clone() }, "no_generation_config"),
        (TokenizerFacts { generation_eos: Some(vec![151_645, 151_643]), ..good.clone() }, "more_end_tokens"),
        (TokenizerFacts { generation_error: Some("broken".into()), ..good.clone() }, "generation_config_broken"),
    ] {
        assert_eq!(ids(&facts), [id]);
    }
    let outside = TokenizerFacts { generation_eos: Some(vec![151_645, 200_000]), ..good };
    assert_eq!(ids(&outside), ["eos_outside", "more_end_tokens"]);
    assert_eq!(outside.remarks(&config)[0].severity, Severity::Problem);
}

// Hostile files.

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0_u64..5).prop_map(Value::from),
        (0_u32..40).prop_map(|n| Value::from(1_u64 << n)),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        Just(json!([1, "x"])),
        Just(json!({ "quant_method": "fp8", "type": "yarn", "factor": 1e300 })),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn nothing_that_is_said_of_a_mutated_config_panics(
        name in prop::sample::select(vec![
            "parity-deepseek-v3.json", "DeepSeek-V2-Lite-Chat.json", "Meta-Llama-3.1-8B.json", "parity-qwen2.json",
            "inference-671B.json",
        ]),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), value()), 1..4),
        context in 1_usize..1 << 31,
    ) {
        let mut keys: Map<String, Value> = serde_json::from_str(&text(name)).unwrap();
        for (index, value) in changes {
            let key = keys.keys().nth(index.index(keys.len())).unwrap().clone();
            keys.insert(key, value);
        }
        if let Ok(described) = describe(&Value::Object(keys).to_string()) {
            described.remarks();
            let account = described.config.account();
            account.stored();
            for form in [jevons_model::MlaForm::Expanded, jevons_model::MlaForm::Absorbed] {
                account.memory_bytes(context, form, WeightFormat::Fp8);
                account.decode_flop_per_token(context, form);
            }
            described.config.default_mla_form();
            prop_assert!(account.active().parameters <= account.total().parameters);
        }
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,200}") {
        let _ = describe(&text);
    }
}
