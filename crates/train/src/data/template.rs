//! Text made from the fields of a JSON object: `{question}\n{answer|before:####}`.

use serde_json::{Map, Value};

use crate::recipe::nearest;

/// A parsed template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Field { name: String, cut: Option<Cut> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Cut {
    Before(String),
    After(String),
}

impl Template {
    /// `{field}`, `{field|before:X}`, `{field|after:X}`; `{{` and `}}` are braces. The error says what is wrong.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            literal.push_str(&rest[..at]);
            let brace = &rest[at..at + 1];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                literal.push_str(brace);
                rest = after;
            } else if brace == "}" {
                return Err("a `}` without `{`; write }} for a brace".into());
            } else {
                let end = rest.find('}').ok_or("a `{` without `}`; write {{ for a brace")?;
                parts.push(Part::Text(std::mem::take(&mut literal)));
                parts.push(field(&rest[..end])?);
                rest = &rest[end + 1..];
            }
        }
        literal.push_str(rest);
        parts.push(Part::Text(literal));
        parts.retain(|p| *p != Part::Text(String::new()));
        if parts.iter().all(|p| matches!(p, Part::Text(_))) {
            return Err("it names no field; expected one in braces, such as {text}".into());
        }
        Ok(Self(parts))
    }

    /// The text for one object; what stands between each pair of `remove` marks is left out. The error says what is wrong.
    pub(super) fn render(&self, object: &Map<String, Value>, remove: &[[String; 2]]) -> Result<String, String> {
        let mut out = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Field { name, cut } => {
                    let value = without(&scalar(object, name)?, remove);
                    let missing = |mark| format!("the field `{name}` has no {mark:?} in it");
                    out.push_str(match cut {
                        None => &value,
                        Some(Cut::Before(mark)) => value.split_once(mark).ok_or_else(|| missing(mark))?.0.trim(),
                        Some(Cut::After(mark)) => value.split_once(mark).ok_or_else(|| missing(mark))?.1.trim(),
                    });
                }
            }
        }
        Ok(out)
    }
}

fn field(text: &str) -> Result<Part, String> {
    let (name, filter) = match text.split_once('|') {
        Some((name, filter)) => (name, Some(filter)),
        None => (text, None),
    };
    if name.is_empty() {
        return Err("a field without a name".into());
    }
    let cut = match filter.map(|f| (f, f.split_once(':'))) {
        None => None,
        Some((_, Some(("before", mark)))) if !mark.is_empty() => Some(Cut::Before(mark.into())),
        Some((_, Some(("after", mark)))) if !mark.is_empty() => Some(Cut::After(mark.into())),
        Some((filter, _)) => return Err(format!("`{filter}` is no filter; expected before:X or after:X")),
    };
    Ok(Part::Field { name: name.into(), cut })
}

/// A field that is text, a number or a truth value, as text.
pub(super) fn scalar(object: &Map<String, Value>, name: &str) -> Result<String, String> {
    match object.get(name) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(value @ (Value::Number(_) | Value::Bool(_))) => Ok(value.to_string()),
        Some(other) => Err(format!("the field `{name}` is {}; expected text", kind(other))),
        None => {
            let near = nearest(name, object.keys().map(String::as_str));
            let near = near.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
            let all: Vec<&str> = object.keys().take(20).map(String::as_str).collect();
            Err(format!("there is no field `{name}`{near}; the line has {}", all.join(", ")))
        }
    }
}

pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Leaves out everything from the first mark to the next second one, marks included. A first mark without its second stays.
pub(super) fn without(text: &str, remove: &[[String; 2]]) -> String {
    let mut text = text.to_string();
    for [open, close] in remove {
        let mut out = String::with_capacity(text.len());
        let mut rest = &text[..];
        while let Some((before, after)) = rest.split_once(open.as_str())
            && let Some((_, after)) = after.split_once(close.as_str())
        {
            out.push_str(before);
            rest = after;
        }
        out.push_str(rest);
        text = out;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(json: &str) -> Map<String, Value> {
        serde_json::from_str(json).unwrap()
    }

    fn render(template: &str, json: &str) -> Result<String, String> {
        let remove = [["<<".to_string(), ">>".to_string()]];
        Template::parse(template)?.render(&object(json), &remove)
    }

    #[test]
    fn fields_filters_and_removed_parts_give_the_text_one_would_write_by_hand() {
        let gsm8k = r#"{"question": "How many?", "answer": "48/2 = <<48/2=24>>24 <<a>>clips.\n#### 24"}"#;
        assert_eq!(render("{question}\n{answer}", gsm8k).unwrap(), "How many?\n48/2 = 24 clips.\n#### 24");
        let split = "<t>{answer|before:####}</t>{answer|after:####}";
        assert_eq!(render(split, gsm8k).unwrap(), "<t>48/2 = 24 clips.</t>24");
        assert_eq!(render("{{{n}}}", r#"{"n": -1.5}"#).unwrap(), "{-1.5}");
        assert_eq!(render("{a}", r#"{"a": "x << y"}"#).unwrap(), "x << y");
    }

    #[test]
    fn what_is_wrong_with_a_template_or_a_line_is_said() {
        let cases = [
            ("{a", "{}", "a `{` without `}`"),
            ("a}", "{}", "a `}` without `{`"),
            ("plain", "{}", "names no field"),
            ("{a|upper}", "{}", "`upper` is no filter"),
            ("{a|before:}", "{}", "`before:` is no filter"),
            ("{}", "{}", "a field without a name"),
            ("{txet}", r#"{"text": "", "id": 1}"#, "no field `txet`; did you mean `text`?; the line has text, id"),
            ("{a}", r#"{"a": [1]}"#, "`a` is a list; expected text"),
            ("{a|after:##}", r#"{"a": "b"}"#, "has no \"##\" in it"),
        ];
        for (template, json, want) in cases {
            let message = render(template, json).unwrap_err();
            assert!(message.contains(want), "{template}: {message}");
        }
    }
}
