//! How Python prints, compares and writes JSON.

use std::{cmp::Ordering, rc::Rc};

use super::{
    Fault, Origin,
    value::{Meter, Result, Text, Value},
};

/// Lists and dictionaries within each other that are printed or compared.
const MAX_DEPTH: usize = 100;

fn too_deep<T>() -> Result<T> {
    Err(Fault::message(format!("lists and dictionaries more than {MAX_DEPTH} deep")))
}

/// `repr(float)`.
pub(super) fn float(f: f64) -> String {
    if f.is_nan() {
        return "nan".into();
    }
    if f.is_infinite() {
        return if f > 0.0 { "inf" } else { "-inf" }.into();
    }
    // Rust and Python both print the shortest digits that read back; only the form differs.
    let scientific = format!("{f:e}");
    let (digits, exponent) = scientific.split_once('e').expect("has an exponent");
    let exponent: i32 = exponent.parse().expect("an exponent is a number");
    if f == 0.0 || (-4..16).contains(&exponent) {
        let plain = format!("{f}");
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
}

/// Appends `str(value)`.
pub(super) fn print(out: &mut Text, value: &Value) -> Result<()> {
    match value {
        Value::Undefined(_) => Ok(()),
        Value::Str(text) => out.push_all(text),
        other => repr(out, other, MAX_DEPTH),
    }
}

/// `str(value)`.
pub(super) fn to_text(meter: &Rc<Meter>, value: &Value) -> Result<Rc<Text>> {
    if let Value::Str(text) = value {
        return Ok(text.clone());
    }
    let mut out = Text::new(meter)?;
    print(&mut out, value)?;
    Ok(Rc::new(out))
}

const OWN: Origin = Origin::Template;

fn repr(out: &mut Text, value: &Value, depth: usize) -> Result<()> {
    if depth == 0 {
        return too_deep();
    }
    out.meter().spend(1)?;
    match value {
        Value::Undefined(_) => out.push("Undefined", OWN),
        Value::None => out.push("None", OWN),
        Value::Bool(b) => out.push(if *b { "True" } else { "False" }, OWN),
        Value::Int(i) => out.push(&i.to_string(), OWN),
        Value::Float(f) => out.push(&float(*f), OWN),
        Value::Str(text) => repr_text(out, text),
        Value::List(list) => {
            out.push(if list.tuple { "(" } else { "[" }, OWN)?;
            let mut i = 0;
            while let Some(item) = list.get(i) {
                if i > 0 {
                    out.push(", ", OWN)?;
                }
                repr(out, &item, depth - 1)?;
                i += 1;
            }
            if list.tuple && i == 1 {
                out.push(",", OWN)?;
            }
            out.push(if list.tuple { ")" } else { "]" }, OWN)
        }
        Value::Dict(dict) | Value::Namespace(dict) => {
            let namespace = matches!(value, Value::Namespace(_));
            out.push(if namespace { "<Namespace {" } else { "{" }, OWN)?;
            let mut i = 0;
            while let Some((key, item)) = dict.entry(i) {
                if i > 0 {
                    out.push(", ", OWN)?;
                }
                repr(out, &key, depth - 1)?;
                out.push(": ", OWN)?;
                repr(out, &item, depth - 1)?;
                i += 1;
            }
            out.push(if namespace { "}>" } else { "}" }, OWN)
        }
        Value::Macro(m) => out.push(&format!("<Macro '{}'>", m.definition.name), OWN),
        other => out.push(&format!("<{}>", other.type_name()), OWN),
    }
}

/// A string in quotes, with what cannot be printed escaped.
fn repr_text(out: &mut Text, text: &Text) -> Result<()> {
    let quote = if text.as_str().contains('\'') && !text.as_str().contains('"') { '"' } else { '\'' };
    out.push(quote.encode_utf8(&mut [0; 4]), OWN)?;
    let escaped = text.map(|c, buffer| match c {
        '\n' => buffer.push_str("\\n"),
        '\r' => buffer.push_str("\\r"),
        '\t' => buffer.push_str("\\t"),
        '\\' => buffer.push_str("\\\\"),
        c if c == quote => buffer.extend(['\\', c]),
        c if is_printable(c) => buffer.push(c),
        c => match c as u32 {
            n @ 0..=0xFF => *buffer += &format!("\\x{n:02x}"),
            n @ 0..=0xFFFF => *buffer += &format!("\\u{n:04x}"),
            n => *buffer += &format!("\\U{n:08x}"),
        },
    })?;
    out.push_all(&escaped)?;
    out.push(quote.encode_utf8(&mut [0; 4]), OWN)
}

/// Control and format characters, separators but the space, private use. Unassigned characters, which Python also escapes, are
/// printed here: which ones they are changes with every version of Unicode.
fn is_printable(c: char) -> bool {
    !(c.is_control()
        || (c.is_whitespace() && c != ' ')
        || matches!(c,
            '\u{AD}' | '\u{600}'..='\u{605}' | '\u{61C}' | '\u{6DD}' | '\u{70F}' | '\u{890}' | '\u{891}' | '\u{8E2}' | '\u{180E}'
            | '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2060}'..='\u{206F}' | '\u{E000}'..='\u{F8FF}' | '\u{FEFF}'
            | '\u{FFF9}'..='\u{FFFB}' | '\u{110BD}' | '\u{110CD}' | '\u{13430}'..='\u{1343F}' | '\u{1BCA0}'..='\u{1BCA3}'
            | '\u{1D173}'..='\u{1D17A}' | '\u{E0001}' | '\u{E0020}'..='\u{E007F}' | '\u{F0000}'..='\u{10FFFF}'))
}

/// How `json.dumps` is to write.
pub(super) struct JsonStyle<'a> {
    pub indent: Option<&'a str>,
    pub item: &'a str,
    pub key: &'a str,
    pub sort_keys: bool,
    pub ensure_ascii: bool,
}

/// Appends `json.dumps(value)`.
pub(super) fn json(out: &mut Text, value: &Value, style: &JsonStyle<'_>) -> Result<()> {
    json_at(out, value, style, 0)
}

fn json_at(out: &mut Text, value: &Value, style: &JsonStyle<'_>, depth: usize) -> Result<()> {
    if depth > MAX_DEPTH {
        return too_deep();
    }
    out.meter().spend(1)?;
    let line = |out: &mut Text, depth: usize| -> Result<()> {
        let Some(indent) = style.indent else { return Ok(()) };
        out.push("\n", OWN)?;
        (0..depth).try_for_each(|_| out.push(indent, OWN))
    };
    match value {
        Value::None => out.push("null", OWN),
        Value::Bool(b) => out.push(if *b { "true" } else { "false" }, OWN),
        Value::Int(i) => out.push(&i.to_string(), OWN),
        Value::Float(f) if f.is_finite() => out.push(&float(*f), OWN),
        Value::Float(f) => out.push(
            if f.is_nan() {
                "NaN"
            } else if *f > 0.0 {
                "Infinity"
            } else {
                "-Infinity"
            },
            OWN,
        ),
        Value::Str(text) => json_text(out, text, style),
        Value::List(list) => {
            out.push("[", OWN)?;
            let mut i = 0;
            while let Some(item) = list.get(i) {
                if i > 0 {
                    out.push(style.item, OWN)?;
                }
                line(out, depth + 1)?;
                json_at(out, &item, style, depth + 1)?;
                i += 1;
            }
            if i > 0 {
                line(out, depth)?;
            }
            out.push("]", OWN)
        }
        Value::Dict(dict) => {
            out.push("{", OWN)?;
            let mut order: Vec<usize> = (0..dict.len()).collect();
            if style.sort_keys {
                out.meter().spend(4 * order.len())?;
                let key = |i: usize| dict.entry(i).map(|(k, _)| k);
                let mut failed = None;
                order.sort_by(|a, b| match (key(*a), key(*b)) {
                    (Some(a), Some(b)) => compare(&a, &b, 1).unwrap_or_else(|e| {
                        failed.get_or_insert(e);
                        Ordering::Equal
                    }),
                    _ => Ordering::Equal,
                });
                if let Some(e) = failed {
                    return Err(e);
                }
            }
            for (n, (key, item)) in order.iter().filter_map(|i| dict.entry(*i)).enumerate() {
                if n > 0 {
                    out.push(style.item, OWN)?;
                }
                line(out, depth + 1)?;
                match &key {
                    Value::Str(text) => json_text(out, text, style)?,
                    other => {
                        out.push("\"", OWN)?;
                        json_at(out, other, style, depth + 1)?;
                        out.push("\"", OWN)?;
                    }
                }
                out.push(style.key, OWN)?;
                json_at(out, &item, style, depth + 1)?;
            }
            if dict.len() > 0 {
                line(out, depth)?;
            }
            out.push("}", OWN)
        }
        other => Err(Fault::message(format!("Object of type {} is not JSON serializable", other.type_name()))),
    }
}

fn json_text(out: &mut Text, text: &Text, style: &JsonStyle<'_>) -> Result<()> {
    out.push("\"", OWN)?;
    let escaped = text.map(|c, buffer| match c {
        '"' => buffer.push_str("\\\""),
        '\\' => buffer.push_str("\\\\"),
        '\n' => buffer.push_str("\\n"),
        '\r' => buffer.push_str("\\r"),
        '\t' => buffer.push_str("\\t"),
        '\x08' => buffer.push_str("\\b"),
        '\x0c' => buffer.push_str("\\f"),
        c if (c as u32) < 0x20 || (style.ensure_ascii && !c.is_ascii()) => {
            for unit in c.encode_utf16(&mut [0; 2]) {
                *buffer += &format!("\\u{unit:04x}");
            }
        }
        c => buffer.push(c),
    })?;
    out.push_all(&escaped)?;
    out.push("\"", OWN)
}

/// `a == b`.
pub(super) fn equal(a: &Value, b: &Value) -> Result<bool> {
    equal_at(a, b, MAX_DEPTH)
}

fn equal_at(a: &Value, b: &Value, depth: usize) -> Result<bool> {
    if depth == 0 {
        return too_deep();
    }
    Ok(match (a, b) {
        (Value::Undefined(_), Value::Undefined(_)) | (Value::None, Value::None) => true,
        (Value::Str(a), Value::Str(b)) => {
            a.meter().spend_bytes(a.as_str().len().min(b.as_str().len()))?;
            a.as_str() == b.as_str()
        }
        (Value::List(a), Value::List(b)) => {
            if a.tuple != b.tuple || a.len() != b.len() {
                return Ok(false);
            }
            let mut i = 0;
            while let (Some(x), Some(y)) = (a.get(i), b.get(i)) {
                a.meter().spend(1)?;
                if !equal_at(&x, &y, depth - 1)? {
                    return Ok(false);
                }
                i += 1;
            }
            true
        }
        (Value::Dict(a), Value::Dict(b)) => {
            if a.len() != b.len() {
                return Ok(false);
            }
            let mut i = 0;
            while let Some((key, x)) = a.entry(i) {
                a.meter().spend(1)?;
                match b.get(&key)? {
                    Some(y) if equal_at(&x, &y, depth - 1)? => i += 1,
                    _ => return Ok(false),
                }
            }
            true
        }
        (Value::Namespace(a), Value::Namespace(b)) => Rc::ptr_eq(a, b),
        _ => match (a.as_int(), b.as_int(), a.as_f64(), b.as_f64()) {
            (Some(a), Some(b), ..) => a == b,
            (.., Some(a), Some(b)) => a == b,
            _ => false,
        },
    })
}

/// The order of two values, if Python has one.
pub(super) fn compare(a: &Value, b: &Value, depth: usize) -> Result<Ordering> {
    if depth > MAX_DEPTH {
        return too_deep();
    }
    match (a.defined()?, b.defined()?) {
        (Value::Str(a), Value::Str(b)) => {
            a.meter().spend_bytes(a.as_str().len().min(b.as_str().len()))?;
            Ok(a.as_str().cmp(b.as_str()))
        }
        (Value::List(x), Value::List(y)) if x.tuple == y.tuple => {
            let mut i = 0;
            loop {
                x.meter().spend(1)?;
                match (x.get(i), y.get(i)) {
                    (Some(a), Some(b)) if equal_at(&a, &b, MAX_DEPTH - depth)? => i += 1,
                    (Some(a), Some(b)) => return compare(&a, &b, depth + 1),
                    (a, b) => return Ok(a.is_some().cmp(&b.is_some())),
                }
            }
        }
        (a, b) => {
            let order = match (a.as_int(), b.as_int(), a.as_f64(), b.as_f64()) {
                (Some(a), Some(b), ..) => Some(a.cmp(&b)),
                (.., Some(a), Some(b)) => a.partial_cmp(&b),
                _ => None,
            };
            let types = (a.type_name(), b.type_name());
            order.ok_or_else(|| {
                Fault::message(format!("'<' not supported between instances of '{}' and '{}'", types.0, types.1))
            })
        }
    }
}
