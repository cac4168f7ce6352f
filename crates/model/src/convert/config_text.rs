//! Edits of a config.json that leave every other byte as it was.

use std::ops::Range;

use serde_json::Value;

/// What to do with a key at the top of the file.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Edit {
    /// Gives it a value; a key that is not there comes last.
    Set(&'static str, Value),
    /// Takes it out.
    Remove(&'static str),
}

impl Edit {
    pub fn key(&self) -> &'static str {
        match self {
            Self::Set(key, _) | Self::Remove(key) => key,
        }
    }
}

/// Applies the edits to the text of a JSON object.
pub(super) fn edit(text: &str, edits: &[Edit]) -> String {
    edits.iter().fold(text.to_owned(), |text, edit| match edit {
        Edit::Set(key, value) => set(&text, key, value),
        Edit::Remove(key) => remove(&text, key),
    })
}

fn set(text: &str, key: &str, value: &Value) -> String {
    let object = Object::scan(text);
    let value = object.print(text, value);
    let mut out = text.to_owned();
    let found: Vec<_> = object.entries.iter().filter(|e| e.key == key).collect();
    if found.is_empty() {
        let entry = format!("{}{}: {value}", object.indent(text), Value::from(key));
        match object.entries.last() {
            Some(last) => out.insert_str(last.value.end, &format!(",{entry}")),
            None => out.insert_str(object.open + 1, &entry),
        }
    }
    for entry in found.into_iter().rev() {
        out.replace_range(entry.value.clone(), &value);
    }
    out
}

fn remove(text: &str, key: &str) -> String {
    let mut text = text.to_owned();
    loop {
        let object = Object::scan(&text);
        let Some(i) = object.entries.iter().position(|e| e.key == key) else { return text };
        // From the end of the entry before, its comma included, or up to the beginning of the next one.
        let range = match (i.checked_sub(1), object.entries.get(i + 1)) {
            (Some(before), _) => object.entries[before].value.end..object.entries[i].value.end,
            (None, Some(next)) => object.entries[i].begin..next.begin,
            (None, None) => object.entries[i].begin..object.entries[i].value.end,
        };
        text.replace_range(range, "");
    }
}

/// Where the parts of an object stand in its text.
struct Object {
    /// The opening brace.
    open: usize,
    entries: Vec<Entry>,
}

struct Entry {
    key: String,
    /// The quotation mark before the key.
    begin: usize,
    value: Range<usize>,
}

impl Object {
    /// `text` must be a JSON object.
    fn scan(text: &str) -> Self {
        let open = text.find('{').expect("the text is an object");
        let mut entries = Vec::new();
        let mut rest = open + 1;
        while let Some(begin) = next(text, rest, |b| b == b'"' || b == b'}').filter(|i| text.as_bytes()[*i] == b'"') {
            let key = value_end(text, begin);
            let colon = next(text, key, |b| b == b':').expect("a colon follows a key");
            let value = next(text, colon + 1, |b| !b.is_ascii_whitespace()).expect("a value follows a colon");
            let end = value_end(text, value);
            let key = serde_json::from_str(&text[begin..key]).expect("the text is JSON");
            entries.push(Entry { key, begin, value: value..end });
            rest = end;
        }
        Self { open, entries }
    }

    /// What stands before each key.
    fn indent<'t>(&self, text: &'t str) -> &'t str {
        self.entries.first().map_or("", |first| &text[self.open + 1..first.begin])
    }

    /// A value in the style of the file: over several lines if the entries are.
    fn print(&self, text: &str, value: &Value) -> String {
        match self.indent(text) {
            indent if indent.starts_with(['\n', '\r']) => {
                let indent = format!("\n{}", indent.trim_start_matches(['\r', '\n']));
                serde_json::to_string_pretty(value).expect("JSON prints").replace('\n', &indent)
            }
            _ => value.to_string(),
        }
    }
}

fn next(text: &str, from: usize, is: impl Fn(u8) -> bool) -> Option<usize> {
    text.as_bytes()[from..].iter().position(|b| is(*b)).map(|i| from + i)
}

/// Where the JSON value that begins at `begin` ends.
fn value_end(text: &str, begin: usize) -> usize {
    let bytes = text.as_bytes();
    let (mut depth, mut in_string, mut i) = (0, false, begin);
    while i < bytes.len() {
        match bytes[i] {
            b'\\' if in_string => i += 1,
            b'"' => {
                in_string = !in_string;
                if !in_string && depth == 0 {
                    return i + 1;
                }
            }
            _ if in_string => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 0 => return i, // after a number or word, at the end of the object
            b'}' | b']' => {
                depth -= 1;
                if depth == 0 {
                    return i + 1;
                }
            }
            b',' if depth == 0 => return i,
            b if depth == 0 && b.is_ascii_whitespace() => return i,
            _ => {}
        }
        i += 1;
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;

    const TEXT: &str = "{\n  \"a\": 1.0e-06,\n  \"torch_dtype\" : \"x\",\n  \"b\": {\"torch_dtype\": [1, \"}\\\"{\"]},\n  \"c\": null\n}\n";

    #[test]
    fn other_bytes_stay() {
        let set = |key, value| edit(TEXT, &[Edit::Set(key, value)]);
        assert_eq!(set("torch_dtype", json!("float32")), TEXT.replace("\"x\"", "\"float32\""));
        assert_eq!(set("a", json!(0)), TEXT.replace("1.0e-06", "0"));
        assert_eq!(set("c", json!({"k": [1]})), TEXT.replace("null", "{\n    \"k\": [\n      1\n    ]\n  }"));
        assert_eq!(set("d", json!(7)), TEXT.replace("null\n", "null,\n  \"d\": 7\n"));
        assert_eq!(edit(TEXT, &[Edit::Remove("a")]), TEXT.replace("\"a\": 1.0e-06,\n  ", ""));
        assert_eq!(edit(TEXT, &[Edit::Remove("c")]), TEXT.replace(",\n  \"c\": null", ""));
        assert_eq!(edit(TEXT, &[Edit::Remove("d")]), TEXT);
    }

    #[test]
    fn compact_empty_and_repeated_texts_are_edited_too() {
        assert_eq!(edit("{}", &[Edit::Set("a", json!([1, 2]))]), "{\"a\": [1,2]}");
        assert_eq!(edit("{\"a\":1}", &[Edit::Remove("a")]), "{}");
        assert_eq!(
            edit("{\"a\":1,\"b\":true}", &[Edit::Set("b", json!(2)), Edit::Set("c", json!({}))]),
            "{\"a\":1,\"b\":2,\"c\": {}}"
        );
        assert_eq!(edit(" {\"a\":1,\"b\":2,\"a\":3 } ", &[Edit::Remove("a")]), " {\"b\":2 } ");
        assert_eq!(edit("{\"a\":1,\"a\":3}", &[Edit::Set("a", json!(0))]), "{\"a\":0,\"a\":0}");
        assert_eq!(edit("{\"\\u0061\":1}", &[Edit::Set("a", json!(0))]), "{\"\\u0061\":0}");
    }

    #[test]
    fn the_result_is_what_editing_the_parsed_file_gives() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/configs");
        for file in std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
            if file.extension().is_none_or(|e| e != "json") {
                continue;
            }
            let text = std::fs::read_to_string(&file).unwrap();
            let Ok(mut map) = serde_json::from_str::<Map<String, Value>>(&text) else { continue };
            let edits = [
                Edit::Remove("quantization_config"),
                Edit::Set("torch_dtype", json!({"x": [1, {}]})),
                Edit::Remove("none"),
            ];
            let edited: Map<String, Value> = serde_json::from_str(&edit(&text, &edits)).unwrap();
            map.shift_remove("quantization_config");
            map.insert("torch_dtype".into(), json!({"x": [1, {}]}));
            assert_eq!(
                serde_json::to_string(&edited).unwrap(),
                serde_json::to_string(&map).unwrap(),
                "{}",
                file.display()
            );
        }
    }
}
