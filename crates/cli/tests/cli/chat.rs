//! `chat` where stdin is not a terminal.

use std::fs;

use serde_json::Value;
use tempfile::{TempDir, tempdir};

use crate::common::{Run, add_tokenizer, jevons, jevons_with, write_model};

fn model() -> TempDir {
    let dir = tempdir().unwrap();
    write_model(&dir.path().join("m"));
    add_tokenizer(&dir.path().join("m"));
    dir
}

fn chat(dir: &TempDir, stdin: &str) -> Run {
    jevons_with(dir.path(), &["chat", "m", "--max-new-tokens", "12"], stdin)
}

#[test]
fn every_line_is_answered_in_plain_text() {
    let dir = model();
    let run = chat(&dir, "hello\n\nand?\n");
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(!run.out.contains('\u{1b}') && !run.err.contains('\u{1b}'), "{run:?}");
    assert_eq!(run.err.matches("12 new tokens").count(), 2, "{run:?}");
    assert_eq!(run.out, chat(&dir, "hello\n\nand?").out, "the same seed gives the same text");
    // What is answered depends on what was said before.
    let alone = chat(&dir, "and?\n").out;
    assert!(!run.out.ends_with(&alone));
    assert_eq!(chat(&dir, "hello\n/reset\nand?\n").out, chat(&dir, "hello\n").out + &alone);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no history is written");
}

#[test]
fn one_message_can_be_given_as_an_argument() {
    let dir = model();
    let piped = chat(&dir, "hello\n").out;
    let args = ["chat", "m", "--max-new-tokens", "12", "--prompt"];
    assert_eq!(jevons(dir.path(), &[&args[..], &["hello"]].concat()).ok(), piped);
    assert_eq!(jevons_with(dir.path(), &[&args[..], &["-"]].concat(), "hello").ok(), piped);
    let reply: Value = jevons(dir.path(), &[&args[..], &["hello", "--json"]].concat()).json();
    assert_eq!(reply["answer"].as_str().unwrap().trim(), piped.trim());
    assert_eq!((reply["thinking"].as_str(), reply["token_ids"].as_array().unwrap().len()), (Some(""), 12));
}

#[test]
fn thinking_is_shown_on_request_and_apart() {
    let dir = model();
    // The prompt opens the thinking, and this model never closes it.
    let path = dir.path().join("m/tokenizer_config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config["chat_template"] = "{{ messages[-1]['content'] }}<think>".into();
    fs::write(&path, config.to_string()).unwrap();
    assert_eq!(chat(&dir, "hello\n").out, "");
    let shown = chat(&dir, "/think on\nhello\n").out;
    assert!(shown.starts_with("[thinking]\n") && shown.len() > 20, "{shown}");
    let flag = jevons(dir.path(), &["chat", "m", "--max-new-tokens", "12", "--think", "on", "--prompt", "hello"]).ok();
    assert_eq!(flag, shown);
    let reply = jevons(dir.path(), &["chat", "m", "--max-new-tokens", "12", "--json", "--prompt", "hello"]).json();
    assert_eq!(shown, format!("[thinking]\n{}\n", reply["thinking"].as_str().unwrap()));
    assert_eq!(reply["answer"], "");
}

#[test]
fn commands_change_the_conversation() {
    let dir = model();
    let plain = chat(&dir, "hello\n").out;
    let retried = chat(&dir, "hello\n/retry\n").out;
    let again = retried.strip_prefix(&plain).unwrap();
    assert!(!again.is_empty() && again != plain);
    assert_ne!(chat(&dir, "/system be brief\nhello\n").out, plain);
    let by_flag =
        jevons(dir.path(), &["chat", "m", "--max-new-tokens", "12", "--system", "be brief", "--prompt", "hello"]);
    assert_eq!(chat(&dir, "/system be brief\nhello\n").out, by_flag.ok());
    let greedy =
        jevons(dir.path(), &["chat", "m", "--max-new-tokens", "12", "--temperature", "0", "--prompt", "hello"]).ok();
    assert_eq!(chat(&dir, "/set temperature 0\nhello\n").out, greedy);
    assert_eq!(chat(&dir, "hello\n/quit\nmore\n").out, plain);
    let told = chat(&dir, "/help\n/set\n/stats\nhello\n/stats\n").err;
    for words in ["/retry", "max_new_tokens 12", "turns: 0; context: 0 of 160 tokens", "turns: 1;", "last reply: "] {
        assert!(told.contains(words), "{words}: {told}");
    }
}

#[test]
fn a_conversation_is_saved_once() {
    let dir = model();
    let out = chat(&dir, "/system be brief\nhello\n/save a.json\n/save a.md\n").ok();
    let json: Value = serde_json::from_str(&fs::read_to_string(dir.path().join("a.json")).unwrap()).unwrap();
    assert_eq!((&json["system"], &json["turns"][0]["user"]), (&"be brief".into(), &"hello".into()));
    assert_eq!(json["turns"][0]["answer"].as_str().unwrap(), out.trim());
    let markdown = fs::read_to_string(dir.path().join("a.md")).unwrap();
    assert_eq!(markdown, format!("**System:** be brief\n\n**You:** hello\n\n{}\n\n", out.trim()));
    let again = chat(&dir, "hello\n/save a.json\n");
    assert_eq!(again.code, Some(1));
    assert!(again.err.contains("a.json exists already"), "{}", again.err);
    assert!(fs::read_to_string(dir.path().join("a.json")).unwrap().contains("be brief"), "the old one stays");
}

#[test]
fn a_wrong_line_ends_a_piped_chat_with_its_reason() {
    let dir = model();
    for (line, words) in [
        ("/qiut", "/qiut is not a command"),
        ("/set heat 3", "heat is not a setting"),
        ("/set top_p 3", "top_p is 3"),
        (&"long ".repeat(60), "the model's context is 160"),
    ] {
        let run = chat(&dir, &format!("hello\n{line}\nmore\n"));
        assert_eq!(run.code, Some(1));
        assert!(run.err.contains(words), "{}", run.err);
    }
    assert!(chat(&dir, "/retry\n").fails(1).contains("no answer to take back"));
}

#[test]
fn a_model_without_a_template_continues_text_and_says_so() {
    let dir = model();
    fs::remove_file(dir.path().join("m/tokenizer_config.json")).unwrap();
    let run = chat(&dir, "the cat\n");
    assert!(run.err.contains("no chat template"), "{}", run.err);
    let args = ["generate", "m", "the cat", "--max-new-tokens", "12", "--temperature", "0.6", "--top-p", "0.95"];
    let continued = jevons(dir.path(), &args).ok();
    assert_eq!(run.ok().trim(), continued.trim());
}

#[test]
fn the_oldest_turns_are_forgotten_with_a_notice() {
    let dir = model();
    let run = chat(&dir, &"tell me about the cat and the hat\n".repeat(8));
    assert!(run.err.contains("the context is full, oldest turns forgotten: "), "{}", run.err);
    assert_eq!(run.code, Some(0));
}

#[test]
fn a_looping_template_is_an_error() {
    let dir = model();
    let path = dir.path().join("m/tokenizer_config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config["chat_template"] = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}".into();
    fs::write(&path, config.to_string()).unwrap();
    assert!(chat(&dir, "hello\n").fails(1).contains("ran too long"));
}
