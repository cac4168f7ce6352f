//! `tokenizer`, and the commands that take text.

use std::fs;

use serde_json::json;
use tempfile::tempdir;

use crate::common::{add_tokenizer, jevons, jevons_with, write_model};

#[test]
fn a_trained_tokenizer_gives_every_text_back_and_is_the_same_twice() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("a.txt"), "the cat and the hat, 12 + 34 = 46\n".repeat(40)).unwrap();
    fs::write(dir.path().join("b.txt"), "der Hut und die Katze; größer\n".repeat(40)).unwrap();
    let train =
        |to: &str| jevons(dir.path(), &["tokenizer", "train", "a.txt", "b.txt", "--vocab-size", "290", "-o", to]);
    assert_eq!(train("one").ok(), "one/tokenizer.json: 290 tokens\n");
    train("two").ok();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        let read = |folder: &str| fs::read(dir.path().join(folder).join(name)).unwrap();
        assert_eq!(read("one"), read("two"));
    }
    assert!(train("one").fails(1).contains("exists already"));
    let text = " the größte cat\n\n日本 <think>\t12\r\n";
    let ids = jevons_with(dir.path(), &["tokenizer", "encode", "one"], text).ok();
    assert_eq!(jevons_with(dir.path(), &["tokenizer", "decode", "one/tokenizer.json"], &ids).ok(), text);
    let lines = jevons_with(dir.path(), &["tokenizer", "encode", "one", "--lines"], "the cat\n12\n").ok();
    let lines: Vec<Vec<u32>> = serde_json::from_str(&lines).unwrap();
    assert_eq!(lines.len(), 2);
    assert_eq!(jevons(dir.path(), &["tokenizer", "decode", "one", &json!(lines).to_string()]).ok(), "the cat\n12");
}

#[test]
fn special_tokens_are_text_unless_asked_for() {
    let dir = tempdir().unwrap();
    write_model(&dir.path().join("m"));
    add_tokenizer(&dir.path().join("m"));
    let ids = |extra: &[&str]| -> Vec<u32> {
        let args = [&["tokenizer", "encode", "m", "a<think>b"], extra].concat();
        serde_json::from_str(&jevons(dir.path(), &args).ok()).unwrap()
    };
    assert!(ids(&[]).len() > 5 && ids(&[]).iter().all(|id| *id > 6));
    let special = ids(&["--special"]);
    assert_eq!((special.len(), special[1]), (3, 5));
    let json = json!(special).to_string();
    assert_eq!(jevons(dir.path(), &["tokenizer", "decode", "m", &json]).ok(), "a<think>b");
    assert_eq!(jevons(dir.path(), &["tokenizer", "decode", "m", &json, "--skip-special"]).ok(), "ab");
}

/// All bytes and `ab`, as a .tiktoken file.
fn tiktoken() -> String {
    let letter = |i: u8| char::from(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"[i as usize]);
    let one = |b: u8| format!("{}{}== {b}\n", letter(b >> 2), letter(b << 4 & 63));
    (0..=255).map(one).collect::<String>() + "YWI= 256\n"
}

#[test]
fn a_tiktoken_vocabulary_becomes_a_tokenizer() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("x.tiktoken"), tiktoken()).unwrap();
    fs::write(
        dir.path().join("config.json"),
        r#"{"added_tokens_decoder": {"257": {"content": "<end>", "special": true}}}"#,
    )
    .unwrap();
    let convert = |further: &[&str]| jevons(dir.path(), &[&["tokenizer", "convert"], further].concat());
    let said = convert(&["x.tiktoken", "--like", "qwen2", "-o", "q.json"]).ok();
    assert_eq!(said, "q.json: 260 ids, 1 merges, 3 added tokens\n");
    let encode = |file: &str, text: &str| jevons(dir.path(), &["tokenizer", "encode", file, "--special", text]).ok();
    assert_eq!(encode("q.json", "abc<|im_end|>"), "[256,99,259]\n");
    convert(&["x.tiktoken", "--like", "kimi-k2", "--config", "config.json", "-o", "k.json"]).ok();
    assert_eq!(encode("k.json", "ab<end>"), "[256,257]\n");
    for (args, words) in [
        (&["x.tiktoken", "-o", "n.json"][..], "add --like"),
        (&["x.tiktoken", "--like", "qwen2", "-o", "q.json"], "q.json: exists already"),
        (&["none.tiktoken", "--like", "qwen2", "-o", "n.json"], "none.tiktoken"),
        (&["config.json", "--like", "qwen2", "-o", "n.json"], "config.json: not a tokenizer: line 1"),
        (&["x.gguf", "--like", "qwen2", "-o", "n.json"], "says itself"),
    ] {
        let error = convert(args).fails(1);
        assert!(error.contains(words) && !dir.path().join("n.json").exists(), "{error}");
    }
}

#[test]
fn tokenizer_errors_name_the_file_and_write_nothing() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("a.txt"), "text").unwrap();
    fs::write(dir.path().join("bytes.txt"), [0xff, 0xfe]).unwrap();
    fs::write(dir.path().join("bad.json"), "{}").unwrap();
    let train = |file: &str, size: &str| {
        jevons(dir.path(), &["tokenizer", "train", "a.txt", file, "--vocab-size", size, "-o", "out"]).fails(1)
    };
    assert!(train("nowhere.txt", "300").contains("nowhere.txt: cannot read"));
    assert!(train("bytes.txt", "300").contains("bytes.txt: cannot read"));
    assert!(train("a.txt", "100").contains("no room"));
    assert!(!dir.path().join("out").exists());
    assert!(jevons(dir.path(), &["tokenizer", "encode", "bad.json", "x"]).fails(1).contains("bad.json"));
    assert!(jevons(dir.path(), &["tokenizer", "encode", ".", "x"]).fails(1).contains("no tokenizer.json"));
    write_model(&dir.path().join("m"));
    add_tokenizer(&dir.path().join("m"));
    let outside = jevons(dir.path(), &["tokenizer", "decode", "m", "[1, 5000]"]).fails(1);
    assert!(outside.contains("token 5000"), "{outside}");
}

#[test]
fn a_prompt_is_continued_as_the_same_token_ids_are() {
    let dir = tempdir().unwrap();
    write_model(&dir.path().join("m"));
    add_tokenizer(&dir.path().join("m"));
    let ids = jevons(dir.path(), &["tokenizer", "encode", "m", "the cat"]).ok();
    let rest = ["--max-new-tokens", "20", "--ignore-eos"];
    let by_ids = jevons_with(dir.path(), &[&["generate", "m", "--json", "--token-ids", "-"], &rest[..]].concat(), &ids);
    let by_ids = by_ids.json()["sequences"][0].clone();
    let by_text = jevons(dir.path(), &[&["generate", "m", "the cat", "--json"], &rest[..]].concat()).json();
    assert_eq!(by_text["sequences"][0]["token_ids"], by_ids["token_ids"]);
    let text = by_ids["text"].as_str().unwrap();
    assert_eq!(text, by_text["sequences"][0]["text"]);
    let piped = jevons_with(dir.path(), &[&["generate", "m"], &rest[..]].concat(), "the cat").ok();
    assert_eq!(piped, format!("{text}\n"), "streamed");
    let stop: String = text.chars().skip(5).take(2).collect();
    let stopped = jevons(dir.path(), &[&["generate", "m", "the cat", "--stop", &stop], &rest[..]].concat()).ok();
    assert_eq!(stopped, format!("{}\n", &text[..text.find(&stop).unwrap()]));
}

#[test]
fn the_token_that_begins_a_text_is_added_where_the_tokenizer_asks_for_it() {
    let dir = tempdir().unwrap();
    let model = dir.path().join("m");
    write_model(&model);
    add_tokenizer(&model);
    let prompt_tokens = || {
        let report = jevons(dir.path(), &["generate", "m", "the", "--json", "--max-new-tokens", "1"]).json();
        report["sequences"][0]["prompt_tokens"].as_u64().unwrap()
    };
    let without = prompt_tokens();
    let config = fs::read_to_string(model.join("tokenizer_config.json")).unwrap();
    fs::write(
        model.join("tokenizer_config.json"),
        config.replace("\"add_bos_token\": false", "\"add_bos_token\": true"),
    )
    .unwrap();
    assert_eq!(prompt_tokens(), without + 1);
}

#[test]
fn scored_text_predicts_every_byte_but_those_of_the_first_token() {
    let dir = tempdir().unwrap();
    write_model(&dir.path().join("m"));
    add_tokenizer(&dir.path().join("m"));
    // Longer than the context of 160, so that it is cut.
    let text = "the cat and the hat; ".repeat(40);
    fs::write(dir.path().join("text.txt"), &text).unwrap();
    let ids: Vec<u32> = serde_json::from_str(&jevons(dir.path(), &["tokenizer", "encode", "m", &text]).ok()).unwrap();
    assert!(ids.len() > 160, "{}", ids.len());
    let report = jevons(dir.path(), &["score", "m", "--text", "text.txt", "--json"]).json();
    let predicted: usize =
        report["sequences"].as_array().unwrap().iter().map(|s| s["logprobs"].as_array().unwrap().len()).sum();
    assert_eq!(predicted, ids.len() - 1);
    let first = jevons(dir.path(), &["tokenizer", "decode", "m", &format!("[{}]", ids[0])]).ok().len();
    let nats = report["loss"].as_f64().unwrap() * predicted as f64;
    let want = nats / std::f64::consts::LN_2 / (text.len() - first) as f64;
    assert!((report["bits_per_byte"].as_f64().unwrap() - want).abs() < 1e-9);
    assert_eq!(jevons(dir.path(), &["score", "m", "--text", &text, "--json"]).json(), report, "the text itself");
    let human = jevons(dir.path(), &["score", "m", "--text", "text.txt"]).ok();
    assert!(human.contains("nats per token") && human.contains("bits per byte"), "{human}");
}

#[test]
fn a_tokenizer_with_more_tokens_than_the_model_is_refused() {
    let dir = tempdir().unwrap();
    write_model(&dir.path().join("m"));
    let text = "whoever writes many different words teaches the tokenizer many different pairs of letters, and with those \
                it reaches every size that somebody may ask for, however short the passage seems to be at first";
    fs::write(dir.path().join("a.txt"), text).unwrap();
    jevons(dir.path(), &["tokenizer", "train", "a.txt", "--vocab-size", "321", "--min-frequency", "1", "-o", "t"]).ok();
    fs::copy(dir.path().join("t/tokenizer.json"), dir.path().join("m/tokenizer.json")).unwrap();
    for args in [&["generate", "m", "x"][..], &["score", "m", "--text", "x"], &["chat", "m"]] {
        let err = jevons(dir.path(), args).fails(1);
        assert!(err.contains("321") && err.contains("320"), "{err}");
    }
    let info = jevons(dir.path(), &["info", "m"]).ok();
    assert!(info.contains("problem: the tokenizer has 321 tokens, the vocabulary 320 rows"), "{info}");
}
