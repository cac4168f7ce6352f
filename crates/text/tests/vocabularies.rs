//! Published vocabularies, converted, give the reference token ids, all of them. `tests/data/tokenizers/README.md` says where
//! vocabularies and references come from.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use jevons_text::{AddedToken, Style, Tokenizer, Vocabulary};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tokenizers").join(name)
}

fn text(name: &str) -> String {
    if name.ends_with(".xz") {
        String::from_utf8(unpacked(name)).unwrap()
    } else {
        fs::read_to_string(path(name)).unwrap()
    }
}

fn unpacked(name: &str) -> Vec<u8> {
    let packed = fs::File::open(path(name)).unwrap();
    let mut out = vec![];
    lzma_rust2::XzReader::new(packed, false).read_to_end(&mut out).unwrap();
    out
}

fn tiktoken(name: &str, style: Style) -> (Vocabulary, Tokenizer) {
    let vocabulary = Vocabulary::from_tiktoken(&unpacked(name), style, name).unwrap();
    let tokenizer = vocabulary.to_tokenizer().unwrap();
    (vocabulary, tokenizer)
}

fn gguf(name: &str) -> (Vocabulary, Tokenizer) {
    let vocabulary = Vocabulary::from_gguf(&*unpacked(name), name).unwrap();
    let tokenizer = vocabulary.to_tokenizer().unwrap();
    (vocabulary, tokenizer)
}

fn ids(line: &str) -> Vec<u32> {
    line.split([',', ' ']).filter(|id| !id.is_empty()).map(|id| id.parse().unwrap()).collect()
}

/// `(text, ids)` of the reference vectors of kitoken.
fn kitoken(model: &str) -> Vec<(String, Vec<u32>)> {
    let mut cases = vec![];
    for set in ["small", "mixed"] {
        let unescape = |line: &str| line.replace("\\n", "\n").replace("\\s", " ").replace("\\x", "");
        let inputs = text(&format!("{set}_input.txt"));
        let tokens = text(&format!("{set}_tokens_{model}.txt.xz"));
        assert_eq!(inputs.lines().count(), tokens.lines().count());
        cases.extend(inputs.lines().map(unescape).zip(tokens.lines().map(ids)));
    }
    cases.push((text("utf8_input.txt"), ids(&text(&format!("utf8_tokens_{model}.txt.xz")))));
    cases
}

/// `(text, ids)` of the vocabulary tests of ggml.
fn ggml(model: &str) -> Vec<(String, Vec<u32>)> {
    let inputs = text("ggml-vocab-tests.inp");
    let tokens = text(&format!("ggml-vocab-{model}.gguf.out"));
    let inputs: Vec<&str> = inputs.split("\n__ggml_vocab_test__\n").collect();
    let tokens: Vec<&str> = tokens.lines().collect();
    assert_eq!(tokens.len(), 46);
    // A separator ends the file as well.
    inputs.iter().map(|s| (*s).to_owned()).zip(tokens.into_iter().map(ids)).collect()
}

/// The references were made without control tokens.
fn check(vocabulary: &Vocabulary, tokenizer: &Tokenizer, cases: &[(String, Vec<u32>)]) {
    for (i, (text, want)) in cases.iter().enumerate() {
        assert_eq!(tokenizer.encode_ordinary(text).unwrap(), *want, "case {i}: {text:?}");
        let names = |t: &AddedToken| text.contains(&t.content) && tokenizer.is_control(t.id);
        if !vocabulary.added_tokens().iter().any(names) {
            assert_eq!(tokenizer.encode(text).unwrap(), *want, "case {i}: {text:?}");
        }
        assert_eq!(tokenizer.decode(want), *text, "case {i}");
    }
}

/// Also one with control tokens in it, as such or as text.
fn every_text_comes_back(tokenizer: &Tokenizer) {
    let words = prop_oneof![
        Just("<think>"),
        Just("<｜User｜>"),
        Just("<|im_end|>"),
        Just("[PAD]"),
        Just("é日本🙂"),
        Just("\r\n  x")
    ];
    let texts = ("\\PC{0,30}", prop::collection::vec(words, 0..4)).prop_map(|(text, words)| text + &words.concat());
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(60) });
    let result = runner.run(&texts, |text| {
        for ids in [tokenizer.encode(&text).unwrap(), tokenizer.encode_ordinary(&text).unwrap()] {
            prop_assert_eq!(tokenizer.decode(&ids), text.clone());
        }
        prop_assert!(!tokenizer.encode_ordinary(&text).unwrap().iter().any(|id| tokenizer.is_control(*id)));
        Ok(())
    });
    result.unwrap();
}

#[test]
fn deepseek_v3_gives_all_reference_ids() {
    let (vocabulary, tokenizer) = tiktoken("deepseek_v3.tiktoken.xz", Style::DeepSeekR1);
    // As published: 128,000 tokens, 127,741 merges, 818 added tokens.
    assert_eq!((vocabulary.len(), vocabulary.n_merges(), vocabulary.added_tokens().len()), (128_000, 127_741, 818));
    let cases = kitoken("r1");
    assert_eq!(cases.len(), 141);
    check(&vocabulary, &tokenizer, &cases);
    for (token, id) in [
        ("<｜begin▁of▁sentence｜>", 0),
        ("<｜place▁holder▁no▁797｜>", 128_797),
        ("<think>", 128_798),
        ("</think>", 128_799),
        ("<｜User｜>", 128_803),
        ("<｜tool▁sep｜>", 128_814),
    ] {
        assert_eq!(tokenizer.encode(&format!("a{token}b")).unwrap()[1..], [id, tokenizer.token_to_id("b").unwrap()]);
        assert!(tokenizer.is_control(id) && !tokenizer.encode_ordinary(token).unwrap().contains(&id));
    }
    assert_eq!(tokenizer.vocab_size(), 128_815);
    every_text_comes_back(&tokenizer);
}

#[test]
fn qwen_gives_all_reference_ids() {
    let (vocabulary, tokenizer) = tiktoken("qwen.tiktoken.xz", Style::Qwen2);
    check(&vocabulary, &tokenizer, &ggml("qwen2"));
    assert_eq!(tokenizer.encode("<|im_end|>").unwrap(), [151_645]);
}

#[test]
fn kimi_gives_all_reference_ids() {
    let (vocabulary, tokenizer) = tiktoken("kimi_k2.tiktoken.xz", Style::KimiK2);
    let cases = kitoken("kimi_k2");
    assert_eq!(cases.len(), 141);
    check(&vocabulary, &tokenizer, &cases);
    assert_eq!(tokenizer.encode("[BOS]<|im_middle|>[PAD]").unwrap(), [163_584, 163_601, 163_839]);
    assert_eq!(tokenizer.vocab_size(), 163_840);
    every_text_comes_back(&tokenizer);
}

#[test]
fn deepseek_llm_and_coder_from_gguf_give_all_reference_ids_added_tokens_included() {
    for (model, u_umlaut, begin) in [("deepseek-llm", 100_014, 100_000), ("deepseek-coder", 32_009, 32_013)] {
        let (vocabulary, tokenizer) = gguf(&format!("ggml-vocab-{model}.gguf.xz"));
        check(&vocabulary, &tokenizer, &ggml(model));
        assert!(tokenizer.encode_ordinary("Führer").unwrap().contains(&u_umlaut));
        assert_eq!(tokenizer.encode("<｜begin▁of▁sentence｜>").unwrap(), [begin]);
    }
}
