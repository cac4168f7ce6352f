//! Keys: the nearest valid one, the line of one, setting one, comparing all, and the patterns of `freeze` and of paths.

use serde_json::Value;
use toml::de::{DeTable, DeValue};

/// The candidate with the fewest edits (a letter inserted, removed, replaced, or two neighbours swapped) from `word`, unless it
/// takes more than a third of the letters.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|c| (edits(word, c), c))
        .min_by_key(|(n, _)| *n)
        .filter(|(n, c)| *n <= (word.chars().count().max(c.chars().count()) / 3).max(1))
        .map(|(_, c)| c)
}

/// Optimal string alignment distance.
fn edits(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut d = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            d[i][j] = match (i, j) {
                (0, n) | (n, 0) => n,
                _ => {
                    let replace = d[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                    let best = replace.min(d[i - 1][j] + 1).min(d[i][j - 1] + 1);
                    if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                        best.min(d[i - 2][j - 2] + 1)
                    } else {
                        best
                    }
                }
            };
        }
    }
    d[a.len()][b.len()]
}

/// Whether `text` matches `pattern`: `*` stands for any characters except `/`, `**` for any at all, `?` for one except `/`.
///
/// ```
/// # use jevons_train::recipe::glob_matches;
/// assert!(glob_matches("model.layers.*.mlp.gate.*", "model.layers.12.mlp.gate.weight"));
/// assert!(!glob_matches("*.txt", "a/b.txt"));
/// ```
pub fn glob_matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    // reach[i]: the pattern so far matches the first i characters. Takes |pattern| · |text| steps whatever the pattern.
    let mut reach = vec![false; text.len() + 1];
    reach[0] = true;
    let mut rest = &pattern[..];
    while let [first, tail @ ..] = rest {
        match (first, tail) {
            ('*', _) => {
                let (deep, after) = match tail {
                    ['*', after @ ..] => (true, after),
                    _ => (false, tail),
                };
                for i in 0..text.len() {
                    reach[i + 1] |= reach[i] && (deep || text[i] != '/');
                }
                rest = after;
            }
            (c, _) => {
                for i in (0..text.len()).rev() {
                    reach[i + 1] = reach[i] && (*c == text[i] || (*c == '?' && text[i] != '/'));
                }
                reach[0] = false;
                rest = tail;
            }
        }
    }
    reach[text.len()]
}

/// Line, from 1, of a byte of `text`.
pub(super) fn line(text: &str, byte: usize) -> usize {
    text.as_bytes()[..byte.min(text.len())].iter().filter(|b| **b == b'\n').count() + 1
}

/// Line at which a dotted key, or the longest part of it that the file has, stands.
pub(super) fn line_of(text: &str, key: &str) -> Option<usize> {
    let root = DeTable::parse(text).ok()?;
    let mut found = None;
    let mut here = DeValue::Table(root.into_inner());
    for part in key.split('.') {
        let (start, value) = match &here {
            DeValue::Table(table) => {
                let Some((key, value)) = table.iter().find(|(k, _)| k.get_ref() == part) else { break };
                (key.span().start, value.get_ref().clone())
            }
            DeValue::Array(array) => {
                let Some(value) = part.parse().ok().and_then(|i: usize| array.get(i)) else { break };
                (value.span().start, value.get_ref().clone())
            }
            _ => break,
        };
        found = Some(line(text, start));
        here = value;
    }
    found
}

/// The key and the valid ones, if serde's message is about an unknown field.
pub(super) fn unknown_field(message: &str) -> Option<(String, Vec<String>)> {
    let rest = message.strip_prefix("unknown field `")?;
    let (key, expected) = rest.split_once('`')?;
    let expected = expected.split('`').skip(1).step_by(2).map(Into::into).collect();
    Some((key.into(), expected))
}

/// Serde's message in our words.
pub(super) fn explain(message: &str) -> String {
    if let Some((key, expected)) = unknown_field(message) {
        let near = nearest(&key, expected.iter().map(String::as_str));
        let near = near.map(|k| format!(", did you mean `{k}`?")).unwrap_or_default();
        return format!("unknown key `{key}`{near}; here a recipe may have {}", expected.join(", "));
    }
    match message.strip_prefix("missing field ") {
        Some(key) => format!("the key {key} is missing; `jevons train --example` prints every key"),
        None => message.trim_end().replace('\n', "; "),
    }
}

/// Sets a dotted key. Tables on the way are made; elements of lists must exist.
pub(super) fn set(table: &mut toml::Table, key: &str, value: &str) -> Result<(), String> {
    let value = match toml::from_str::<toml::Table>(&format!("v = {value}")) {
        Ok(mut parsed) if parsed.len() == 1 => parsed.remove("v").expect("the one key"),
        _ => toml::Value::String(value.into()),
    };
    let mut parts: Vec<&str> = key.split('.').collect();
    if parts.iter().any(|p| p.is_empty()) {
        return Err("expected a dotted key such as schedule.steps".into());
    }
    let last = parts.pop().expect("split gives at least one part");
    let mut root = toml::Value::Table(std::mem::take(table));
    let result = (|| {
        let mut here = &mut root;
        for part in parts {
            here = match here {
                toml::Value::Table(t) => t.entry(part).or_insert_with(|| toml::Value::Table(toml::Table::new())),
                toml::Value::Array(a) => element(a, part)?,
                other => return Err(format!("`{part}` is looked for in a {}", other.type_str())),
            };
        }
        match here {
            toml::Value::Table(t) => drop(t.insert(last.into(), value)),
            toml::Value::Array(a) => *element(a, last)? = value,
            other => return Err(format!("`{last}` is looked for in a {}", other.type_str())),
        }
        Ok(())
    })();
    let toml::Value::Table(back) = root else { unreachable!("made from a table") };
    *table = back;
    result
}

fn element<'a>(array: &'a mut [toml::Value], index: &str) -> Result<&'a mut toml::Value, String> {
    let n = array.len();
    let found = index.parse().ok().and_then(|i: usize| array.get_mut(i));
    found.ok_or_else(|| format!("`{index}` is no element of a list of {n}; elements count from 0"))
}

/// Adds the dotted keys in which `a` and `b` differ.
pub(super) fn compare(at: &str, a: Option<&Value>, b: Option<&Value>, out: &mut Vec<String>) {
    let join = |k: &str| if at.is_empty() { k.to_string() } else { format!("{at}.{k}") };
    match (a, b) {
        (Some(Value::Object(x)), Some(Value::Object(y))) => {
            for k in x.keys().chain(y.keys().filter(|k| !x.contains_key(*k))) {
                compare(&join(k), x.get(k), y.get(k), out);
            }
        }
        (Some(Value::Array(x)), Some(Value::Array(y))) if x.len() == y.len() => {
            for (i, (x, y)) in x.iter().zip(y).enumerate() {
                compare(&join(&i.to_string()), Some(x), Some(y), out);
            }
        }
        _ if a != b => out.push(at.into()),
        _ => {}
    }
}
