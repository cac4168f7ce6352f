//! Published chat templates, and small ones of Python's habits, render as in `transformers`, to the byte
//! (`tests/golden/make_chat_templates.py`).

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use jevons_text::{ChatTemplate, Message, RenderOptions, TemplateError};
use serde_json::Value;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/chat-templates").join(name)
}

fn json(name: &str) -> Value {
    let file = fs::File::open(golden(name)).unwrap();
    if !name.ends_with(".xz") {
        return serde_json::from_reader(file).unwrap();
    }
    let mut text = String::new();
    lzma_rust2::XzReader::new(file, false).read_to_string(&mut text).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// 2026-03-05 14:07:09, where the clock of the references stands.
fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_772_719_629)
}

fn messages(json: &Value) -> Vec<Message> {
    let message = |m: &Value| {
        let mut extra = m.as_object().unwrap().clone();
        let Some(Value::String(role)) = extra.shift_remove("role") else { panic!("{m}") };
        // The plain form where it can be, so that it is tested as well.
        let content = match extra.get("content") {
            Some(Value::String(text)) if extra.len() == 1 => text.clone(),
            _ => return Message { role, extra, ..Message::default() },
        };
        Message::new(role, content)
    };
    json.as_array().unwrap().iter().map(message).collect()
}

fn template(source: &str, tokens: &Value) -> Result<ChatTemplate, TemplateError> {
    ChatTemplate::new(
        source,
        tokens["bos_token"].as_str().unwrap().into(),
        tokens["eos_token"].as_str().unwrap().into(),
    )
}

/// What a case expects and what came out, if they differ.
fn difference(case: &Value, got: Result<String, TemplateError>) -> Option<String> {
    let got = match (got, case["text"].as_str(), case["error"].as_str()) {
        (Ok(got), Some(want), _) if got == want => return None,
        (Err(TemplateError::Refused(got)), _, Some(want)) if want == format!("TemplateError: {got}") => return None,
        (Err(TemplateError::Run(_) | TemplateError::Compile(_)), _, Some(want))
            if !want.starts_with("TemplateError:") =>
        {
            return None;
        }
        (Ok(text), ..) => format!("{text:?}"),
        (Err(e), ..) => format!("error: {e}"),
    };
    let want = case["text"].as_str().map_or_else(|| format!("error: {}", case["error"]), |t| format!("{t:?}"));
    Some(format!("want {want}\n got {got}\n"))
}

fn report(differences: &[String], of: usize) {
    assert!(differences.is_empty(), "{} of {of} differ:\n{}", differences.len(), differences.join("\n"));
}

#[test]
fn published_templates_render_as_in_transformers() {
    let goldens = json("renders.json.xz");
    let cases = goldens["cases"].as_array().unwrap();
    let mut differences = vec![];
    let mut templates = std::collections::BTreeMap::new();
    for case in cases {
        let name = case["template"].as_str().unwrap();
        let template = templates
            .entry(name)
            .or_insert_with(|| template(&fs::read_to_string(golden(name)).unwrap(), &goldens["tokens"]).unwrap());
        let conversation =
            goldens["conversations"].as_array().unwrap().iter().find(|c| c["name"] == case["conversation"]);
        let conversation = conversation.unwrap();
        let options = RenderOptions {
            add_generation_prompt: case["add_generation_prompt"] == true,
            extra: conversation["variables"].as_object().unwrap().clone(),
            now: Some(now()),
        };
        let got = template.render(&messages(&conversation["messages"]), &options).map(|p| p.as_str().to_owned());
        let what = format!("{name}, {}, {}", case["conversation"], case["add_generation_prompt"]);
        differences.extend(difference(case, got).map(|d| format!("{what}\n{d}")));
    }
    assert_eq!(templates.len(), 15);
    report(&differences, cases.len());
}

#[test]
fn python_habits_are_those_of_python() {
    let goldens = json("snippets.json");
    let cases = goldens["cases"].as_array().unwrap();
    let options =
        RenderOptions { extra: goldens["values"].as_object().unwrap().clone(), now: Some(now()), ..Default::default() };
    let messages = messages(&goldens["messages"]);
    let mut differences = vec![];
    for case in cases {
        let source = case["template"].as_str().unwrap();
        let got = template(source, &goldens["tokens"])
            .and_then(|t| t.render(&messages, &options))
            .map(|p| p.as_str().to_owned());
        differences.extend(difference(case, got).map(|d| format!("{source}\n{d}")));
    }
    report(&differences, cases.len());
}
