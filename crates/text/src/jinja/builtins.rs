//! Filters, tests and methods, as Jinja and Python define them. `tojson` is that of `transformers`; `from_json` (which DeepSeek's
//! later templates use and `transformers` lacks) reads JSON.

use std::rc::Rc;

use super::{
    Fault, Origin,
    eval::{Machine, position, strip_range},
    lexer::is_space,
    parser::Compare,
    python::{self, JsonStyle, print, to_text},
    value::{Dict, Items, List, Result, Text, Value},
};

/// Arguments of a call.
#[derive(Default)]
pub(super) struct Args {
    pub positional: Vec<Value>,
    pub keyword: Vec<(String, Value)>,
}

impl Args {
    /// By position or by these names.
    fn bind<const N: usize>(self, of: &str, names: [&str; N]) -> Result<[Option<Value>; N]> {
        let mut bound = [const { None }; N];
        if self.positional.len() > N {
            return Err(Fault::message(format!("`{of}` takes at most {N} arguments, not {}", self.positional.len())));
        }
        for (slot, value) in bound.iter_mut().zip(self.positional) {
            *slot = Some(value);
        }
        for (name, value) in self.keyword {
            match names.iter().position(|n| *n == name) {
                Some(i) if bound[i].is_none() => bound[i] = Some(value),
                _ => return Err(Fault::message(format!("`{of}` takes no argument `{name}`, or has it already"))),
            }
        }
        Ok(bound)
    }
}

const FILTERS: &str = " abs attr batch capitalize center count d default dictsort e escape first float forceescape format from_json \
    fromjson indent int items join last length list lower map max min reject rejectattr replace reverse round safe select selectattr \
    sort string sum title tojson trim truncate unique upper wordcount ";
const TESTS: &str = " boolean callable defined divisibleby eq equalto escaped even false filter float ge greaterthan gt in integer \
    iterable le lessthan lower lt mapping ne none number odd sameas sequence string test true undefined upper ";
const STR_METHODS: &str = " capitalize casefold center count encode endswith expandtabs find format index isalnum isalpha isascii isdecimal \
    isdigit islower isnumeric isspace istitle isupper join ljust lower lstrip partition removeprefix removesuffix replace rfind rindex \
    rjust rpartition rsplit rstrip split splitlines startswith strip swapcase title upper zfill ";
const LIST_METHODS: &str = " append copy count extend index insert pop remove reverse clear ";
const TUPLE_METHODS: &str = " count index ";
const DICT_METHODS: &str = " clear copy get items keys pop setdefault update values ";

fn listed(list: &str, name: &str) -> bool {
    !name.contains(' ') && list.contains(&format!(" {name} "))
}

pub(super) fn is_filter(name: &str) -> bool {
    listed(FILTERS, name)
}

pub(super) fn is_test(name: &str) -> bool {
    listed(TESTS, name)
}

pub(super) fn has_method(value: &Value, name: &str) -> bool {
    let methods = match value {
        Value::Str(_) => STR_METHODS,
        Value::List(list) if list.tuple => TUPLE_METHODS,
        Value::List(_) => LIST_METHODS,
        Value::Dict(_) => DICT_METHODS,
        Value::Loop(_) => " cycle ",
        _ => return false,
    };
    name.len() < 16 && listed(methods, name)
}

/// The items that a loop over a value would see.
pub(super) fn iterate(m: &Machine, value: &Value) -> Result<Items> {
    let list = List::new(&m.meter, false)?;
    match value {
        Value::Undefined(_) => {}
        Value::List(items) => return items.items(),
        Value::Dict(dict) => {
            let mut i = 0;
            while let Some((key, _)) = dict.entry(i) {
                list.push(key)?;
                i += 1;
            }
        }
        Value::Str(text) => {
            for (at, c) in text.as_str().char_indices() {
                list.push(Value::Str(Rc::new(text.slice(at..at + c.len_utf8())?)))?;
            }
        }
        other => return Err(Fault::message(format!("'{}' object is not iterable", other.type_name()))),
    }
    list.items()
}

/// HTML escapes, as the filter `escape`.
pub(super) fn escape(text: &Text) -> Result<Text> {
    let mut out = text.map(|c, out| match c {
        '&' => out.push_str("&amp;"),
        '<' => out.push_str("&lt;"),
        '>' => out.push_str("&gt;"),
        '\'' => out.push_str("&#39;"),
        '"' => out.push_str("&#34;"),
        c => out.push(c),
    })?;
    out.markup = true;
    Ok(out)
}

fn string(text: Text) -> Result<Value> {
    Ok(Value::Str(Rc::new(text)))
}

fn expect_int(value: Option<&Value>, default: i128, of: &str) -> Result<i128> {
    let Some(value) = value else { return Ok(default) };
    value.as_int().ok_or_else(|| Fault::message(format!("`{of}` takes a whole number, not '{}'", value.type_name())))
}

fn expect_text(m: &Machine, value: Option<&Value>, of: &str) -> Result<Rc<Text>> {
    match value {
        Some(Value::Str(text)) => Ok(text.clone()),
        Some(other) => Err(Fault::message(format!("`{of}` takes a string, not '{}'", other.type_name()))),
        None => Ok(Rc::new(Text::new(&m.meter)?)),
    }
}

fn is_given(value: Option<&Value>) -> bool {
    !matches!(value, None | Some(Value::None))
}

/// `a.b.0` of a value.
fn path(m: &mut Machine, value: &Value, attribute: &Value) -> Result<Value> {
    match attribute {
        Value::Str(names) => {
            let mut value = value.clone();
            for name in names.as_str().split('.') {
                let key = match name.parse::<u32>() {
                    Ok(i) => Value::Int(i.into()),
                    Err(_) => m.text(name, Origin::Template)?,
                };
                value = m.item(&value, &key)?;
            }
            Ok(value)
        }
        other => m.item(value, other),
    }
}

/// What a comparison without regard to case looks at.
fn fold(value: Value, case_sensitive: bool) -> Result<Value> {
    match value {
        Value::Str(text) if !case_sensitive => string(lower(&text)?),
        other => Ok(other),
    }
}

fn lower(text: &Text) -> Result<Text> {
    let all = text.as_str();
    let mut at = 0;
    text.map(|c, out| {
        let before = all[..at].chars().next_back().is_some_and(char::is_alphabetic);
        at += c.len_utf8();
        // The one letter whose small form depends on its place.
        if c == 'Σ' && before && !all[at..].starts_with(char::is_alphabetic) {
            out.push('ς');
        } else {
            out.extend(c.to_lowercase());
        }
    })
}

fn casefold(text: &Text) -> Result<Text> {
    text.map(|c, out| match c {
        'ı' => out.push(c),
        // By way of the large letter, which unites small ones: ß, ς, ſ.
        _ => out.extend(c.to_uppercase().flat_map(char::to_lowercase)),
    })
}

fn upper(text: &Text) -> Result<Text> {
    text.map(|c, out| out.extend(c.to_uppercase()))
}

fn capitalize(text: &Text) -> Result<Text> {
    let mut first = true;
    text.map(
        |c, out| if std::mem::take(&mut first) { out.extend(c.to_uppercase()) } else { out.extend(c.to_lowercase()) },
    )
}

/// The first letter after each character of which `breaks` is true in upper case, the others in lower case.
fn title(text: &Text, breaks: impl Fn(char) -> bool) -> Result<Text> {
    let mut start = true;
    text.map(|c, out| {
        if start {
            out.extend(c.to_uppercase())
        } else {
            out.extend(c.to_lowercase())
        }
        start = breaks(c);
    })
}

fn sorted(m: &Machine, mut keyed: Vec<(Value, Value)>, reverse: bool) -> Result<Vec<Value>> {
    m.meter.spend(keyed.len() * (keyed.len().checked_ilog2().unwrap_or(0) as usize + 1))?;
    let mut failed = None;
    keyed.sort_by(|(a, _), (b, _)| {
        if failed.is_some() {
            return std::cmp::Ordering::Equal;
        }
        let (a, b) = if reverse { (b, a) } else { (a, b) };
        python::compare(a, b, 1).unwrap_or_else(|e| {
            failed = Some(e);
            std::cmp::Ordering::Equal
        })
    });
    match failed {
        Some(e) => Err(e),
        None => Ok(keyed.into_iter().map(|(_, v)| v).collect()),
    }
}

fn pad(text: &Text, width: i128, fill: char, left: impl Fn(usize) -> usize) -> Result<Value> {
    let missing = usize::try_from(width).unwrap_or(0).saturating_sub(text.as_str().chars().count());
    let before = left(missing);
    let mut out = Text::new(text.meter())?;
    let fill = fill.to_string();
    for i in 0..=missing {
        if i == before {
            out.push_all(text)?;
        }
        if i < missing {
            out.push(&fill, Origin::Template)?;
        }
    }
    string(out)
}

/// Python's `center` puts the odd space to the left if the width is odd.
fn center(text: &Text, width: i128, fill: char) -> Result<Value> {
    pad(text, width, fill, |missing| missing / 2 + (missing & (width as usize) & 1))
}

fn replace(text: &Text, old: &str, new: &Text, count: i128) -> Result<Value> {
    let mut left = if count < 0 { usize::MAX } else { usize::try_from(count).unwrap_or(usize::MAX) };
    let mut out = Text::new(text.meter())?;
    let all = text.as_str();
    let mut done = 0;
    text.meter().spend_bytes(all.len())?;
    // An empty text is found before every character and at the end.
    for (at, _) in all.match_indices(old) {
        if left == 0 {
            break;
        }
        left -= 1;
        text.meter().spend(1)?;
        out.push_range(text, done..at)?;
        out.push_all(new)?;
        done = at + old.len();
    }
    out.push_range(text, done..all.len())?;
    out.markup = text.markup;
    string(out)
}

fn lines(text: &str) -> Vec<std::ops::Range<usize>> {
    let mut lines = vec![];
    let mut start = 0;
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        if matches!(c, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}') {
            lines.push(start..at);
            start = at + c.len_utf8();
            if c == '\r' && chars.next_if(|(_, n)| *n == '\n').is_some() {
                start += 1;
            }
        }
    }
    if start < text.len() {
        lines.push(start..text.len());
    }
    lines
}

fn indent(text: &Text, width: &Text, first: bool, blank: bool) -> Result<Value> {
    let mut out = Text::new(text.meter())?;
    // A line is added, so that one at the end without a newline counts as well.
    let mut all = lines(text.as_str());
    if text.as_str().is_empty() || text.as_str().ends_with('\n') {
        all.push(text.as_str().len()..text.as_str().len());
    }
    for (i, line) in all.into_iter().enumerate() {
        if i > 0 {
            out.push("\n", Origin::Template)?;
        }
        if if i == 0 { first } else { blank || !line.is_empty() } {
            out.push_all(width)?;
        }
        out.push_range(text, line)?;
    }
    string(out)
}

fn parse_float(text: &str) -> Option<f64> {
    let text = text.trim_matches(is_space).to_ascii_lowercase();
    let plain = text.trim_start_matches(['+', '-']);
    let named = matches!(plain, "nan" | "inf" | "infinity");
    (named || plain.starts_with(|c: char| c.is_ascii_digit() || c == '.'))
        .then(|| text.replace('_', "").parse().ok())
        .flatten()
}

fn parse_int(text: &str, base: u32) -> Option<i128> {
    let text = text.trim_matches(is_space).replace('_', "").to_ascii_lowercase();
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(&text)),
    };
    let prefix = match base {
        16 => "0x",
        8 => "0o",
        2 => "0b",
        _ => "",
    };
    let digits = digits.strip_prefix(prefix).unwrap_or(digits);
    if !digits.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return None;
    }
    i128::from_str_radix(digits, base).ok().map(|i| sign * i)
}

fn round(value: &Value, precision: i128, method: &str) -> Result<Value> {
    let f = value.as_f64().ok_or_else(|| Fault::message(format!("cannot round '{}'", value.type_name())))?;
    let precision = precision.clamp(-300, 300);
    let scale = libm::pow(10.0, precision as f64);
    Ok(Value::Float(match method {
        "ceil" => (f * scale).ceil() / scale,
        "floor" => (f * scale).floor() / scale,
        "common" if !f.is_finite() => f,
        // Printing rounds the exact number, half to even.
        "common" if precision >= 0 => format!("{f:.*}", precision as usize).parse().unwrap_or(f),
        "common" => (f * scale).round_ties_even() / scale,
        _ => return Err(Fault::message("method must be common, ceil or floor")),
    }))
}

/// `format % values`.
pub(super) fn printf(m: &Machine, format: &Text, values: &[Value]) -> Result<Value> {
    let mut out = Text::new(&m.meter)?;
    let all = format.as_str();
    let mut values = values.iter();
    let mut done = 0;
    while let Some(at) = all[done..].find('%').map(|i| done + i) {
        out.push_range(format, done..at)?;
        let mut chars = all[at + 1..].char_indices().peekable();
        let mut precision = None;
        if chars.next_if(|(_, c)| *c == '.').is_some() {
            let mut digits = 0usize;
            while let Some((_, d)) = chars.next_if(|(_, c)| c.is_ascii_digit()) {
                digits = digits.saturating_mul(10).saturating_add(d.to_digit(10).unwrap_or(0) as usize);
            }
            precision = Some(digits.min(300));
        }
        let Some((offset, kind)) = chars.next() else { return Err(Fault::message("incomplete format")) };
        done = at + 1 + offset + kind.len_utf8();
        if kind == '%' {
            out.push("%", Origin::Template)?;
            continue;
        }
        let value = values.next().ok_or_else(|| Fault::message("not enough arguments for format string"))?;
        match (kind, value.as_f64()) {
            ('s', _) => print(&mut out, value)?,
            ('r', _) => {
                let list = Value::tuple(&m.meter, [value.clone()])?;
                let text = to_text(&m.meter, &list)?;
                out.push_range(&text, 1..text.as_str().len() - 2)?;
            }
            ('d' | 'i', Some(f)) => {
                let text = value.as_int().map_or_else(|| format!("{:.0}", f.trunc()), |i| i.to_string());
                out.push(&text, Origin::Template)?;
            }
            ('f' | 'F', Some(f)) => out.push(&format!("{f:.*}", precision.unwrap_or(6)), Origin::Template)?,
            _ => return Err(Fault::message(format!("cannot format '{}' as %{kind}", value.type_name()))),
        }
    }
    if values.next().is_some() {
        return Err(Fault::message("not all arguments converted during string formatting"));
    }
    out.push_range(format, done..all.len())?;
    string(out)
}

/// `format.format(...)` with `{}`, `{0}` and `{name}`.
fn str_format(m: &mut Machine, format: &Text, args: &Args) -> Result<Value> {
    let mut out = Text::new(&m.meter)?;
    let all = format.as_str();
    let (mut done, mut next) = (0, 0);
    while let Some(at) = all[done..].find(['{', '}']).map(|i| done + i) {
        out.push_range(format, done..at)?;
        if all[at..].starts_with("{{") || all[at..].starts_with("}}") {
            out.push_range(format, at..at + 1)?;
            done = at + 2;
            continue;
        }
        let field = all[at..].find('}').filter(|_| all[at..].starts_with('{'));
        let Some(end) = field.map(|i| at + i) else {
            return Err(Fault::message("a brace without its other half in a format"));
        };
        let name = &all[at + 1..end];
        let value = if name.is_empty() {
            next += 1;
            args.positional.get(next - 1)
        } else if let Ok(i) = name.parse::<usize>() {
            args.positional.get(i)
        } else {
            args.keyword.iter().find(|(n, _)| n == name).map(|(_, v)| v)
        };
        match value {
            Some(value) => print(&mut out, value)?,
            None => {
                let name: String = name.chars().take(100).collect();
                return Err(Fault::message(format!(
                    "`format` has nothing for {{{name}}}; only {{}}, {{0}} and {{name}} are known"
                )));
            }
        }
        done = end + 1;
    }
    out.push_range(format, done..all.len())?;
    string(out)
}

pub(super) fn filter(m: &mut Machine, name: &str, value: Value, args: Args) -> Result<Value> {
    match name {
        "default" | "d" => {
            let [default, boolean] = args.bind(name, ["default_value", "boolean"])?;
            let missing =
                matches!(value, Value::Undefined(_)) || (boolean.is_some_and(|b| b.is_true()) && !value.is_true());
            if missing { default.map_or_else(|| m.text("", Origin::Template), Ok) } else { Ok(value) }
        }
        "length" | "count" => {
            args.bind::<0>(name, [])?;
            Ok(Value::Int(match &value {
                Value::Undefined(_) => 0,
                Value::Str(text) => {
                    m.meter.spend_bytes(text.as_str().len())?;
                    text.as_str().chars().count()
                }
                Value::List(list) => list.len(),
                Value::Dict(dict) => dict.len(),
                other => return Err(Fault::message(format!("object of type '{}' has no len()", other.type_name()))),
            } as i128))
        }
        "tojson" => {
            let [ascii, indent, separators, sort_keys] =
                args.bind(name, ["ensure_ascii", "indent", "separators", "sort_keys"])?;
            let spaces = match &indent {
                Some(Value::Str(text)) => Some(text.as_str().to_owned()),
                given if is_given(given.as_ref()) => {
                    let n = expect_int(given.as_ref(), 0, "indent")?.clamp(0, 64);
                    Some(" ".repeat(n as usize))
                }
                _ => None,
            };
            let pair = match separators.filter(|s| is_given(Some(s))) {
                Some(given) => match &iterate(m, &given)?.items[..] {
                    [Value::Str(item), Value::Str(key)] => Some((item.clone(), key.clone())),
                    _ => return Err(Fault::message("`separators` takes two strings")),
                },
                None => None,
            };
            let style = JsonStyle {
                indent: spaces.as_deref(),
                item: pair.as_ref().map_or(if spaces.is_some() { "," } else { ", " }, |(item, _)| item.as_str()),
                key: pair.as_ref().map_or(": ", |(_, key)| key.as_str()),
                sort_keys: sort_keys.is_some_and(|s| s.is_true()),
                ensure_ascii: ascii.is_some_and(|a| a.is_true()),
            };
            let mut out = Text::new(&m.meter)?;
            python::json(&mut out, &value, &style)?;
            string(out)
        }
        "from_json" | "fromjson" => {
            args.bind::<0>(name, [])?;
            let Value::Str(text) = value.defined()? else {
                return Err(Fault::message(format!("the JSON object must be str, not {}", value.type_name())));
            };
            super::json::parse(&m.meter, text)
        }
        "items" => {
            args.bind::<0>(name, [])?;
            match &value {
                Value::Undefined(_) => m.list([]),
                Value::Dict(_) => method(m, &value, "items", Args::default()),
                _ => Err(Fault::message("Can only get item pairs from a mapping.")),
            }
        }
        "list" => {
            args.bind::<0>(name, [])?;
            let items = iterate(m, &value)?;
            m.list(items.items.iter().cloned())
        }
        "first" | "last" => {
            args.bind::<0>(name, [])?;
            let items = iterate(m, &value)?;
            let item = if name == "first" { items.items.first() } else { items.items.last() };
            Ok(item.cloned().unwrap_or_else(|| Value::undefined("No first or last item, sequence was empty.")))
        }
        "join" => {
            let [separator, attribute] = args.bind(name, ["d", "attribute"])?;
            let separator = match &separator {
                Some(value) => to_text(&m.meter, value)?,
                None => Rc::new(Text::new(&m.meter)?),
            };
            let mut out = Text::new(&m.meter)?;
            for (i, item) in iterate(m, &value)?.items.iter().enumerate() {
                if i > 0 {
                    out.push_all(&separator)?;
                }
                let item = if let Some(a) = &attribute { path(m, item, a)? } else { item.clone() };
                print(&mut out, &item)?;
            }
            string(out)
        }
        "map" => map(m, &value, args),
        "select" | "reject" | "selectattr" | "rejectattr" => select(m, name, &value, args),
        "sort" | "unique" | "min" | "max" => order(m, name, &value, args),
        "dictsort" => {
            let [case_sensitive, by, reverse] = args.bind(name, ["case_sensitive", "by", "reverse"])?;
            let case_sensitive = case_sensitive.is_some_and(|c| c.is_true());
            let by = expect_text(m, by.as_ref(), "by")?;
            let pairs = filter(m, "items", value, Args::default())?;
            let mut keyed = vec![];
            for pair in &iterate(m, &pairs)?.items {
                let key = m.item(pair, &Value::Int(i128::from(by.as_str() == "value")))?;
                keyed.push((fold(key, case_sensitive)?, pair.clone()));
            }
            let sorted = sorted(m, keyed, reverse.is_some_and(|r| r.is_true()))?;
            m.list(sorted)
        }
        "sum" => {
            let [attribute, start] = args.bind(name, ["attribute", "start"])?;
            let (mut whole, mut float, mut is_float) = (0i128, 0f64, false);
            let items = iterate(m, &value)?;
            for item in start.iter().chain(&items.items) {
                let item = match &attribute {
                    Some(a) if !std::ptr::eq(item, start.as_ref().unwrap_or(&Value::None)) => path(m, item, a)?,
                    _ => item.clone(),
                };
                match (item.as_int(), item.as_f64()) {
                    (Some(i), _) => {
                        whole = whole.checked_add(i).ok_or_else(|| Fault::message("a sum that is too large"))?
                    }
                    (None, Some(f)) => (float, is_float) = (float + f, true),
                    _ => return Err(Fault::message(format!("cannot add '{}'", item.type_name()))),
                }
            }
            Ok(if is_float { Value::Float(whole as f64 + float) } else { Value::Int(whole) })
        }
        "reverse" => {
            args.bind::<0>(name, [])?;
            if let Value::Str(text) = &value {
                let mut out = Text::new(&m.meter)?;
                let mut chars = text.as_str().char_indices().rev();
                chars.try_for_each(|(at, c)| out.push_range(text, at..at + c.len_utf8()))?;
                return string(out);
            }
            let items = iterate(m, &value)?;
            m.list(items.items.iter().rev().cloned())
        }
        "batch" => {
            let [n, fill] = args.bind(name, ["linecount", "fill_with"])?;
            let n = usize::try_from(expect_int(n.as_ref(), 0, name)?).ok().filter(|n| *n > 0);
            let n = n.ok_or_else(|| Fault::message("`batch` takes a number above 0"))?;
            let out = List::new(&m.meter, false)?;
            for chunk in iterate(m, &value)?.items.chunks(n) {
                let row = List::new(&m.meter, false)?;
                chunk.iter().try_for_each(|v| row.push(v.clone()))?;
                if let Some(fill) = fill.as_ref().filter(|f| is_given(Some(f))) {
                    (chunk.len()..n).try_for_each(|_| row.push(fill.clone()))?;
                }
                out.push(Value::List(Rc::new(row)))?;
            }
            Ok(Value::List(Rc::new(out)))
        }
        "attr" => {
            let [attribute] = args.bind(name, ["name"])?;
            let attribute = expect_text(m, attribute.as_ref(), name)?;
            match &value {
                // Its keys are items, not attributes.
                Value::Dict(_) if !has_method(&value, attribute.as_str()) => {
                    Ok(Value::undefined("a dictionary's keys are no attributes"))
                }
                _ => m.attribute(&value, attribute.as_str()),
            }
        }
        "abs" => {
            args.bind::<0>(name, [])?;
            match (value.as_int(), value.as_f64()) {
                (Some(i), _) => Ok(Value::Int(i.saturating_abs())),
                (None, Some(f)) => Ok(Value::Float(f.abs())),
                _ => Err(Fault::message(format!("bad operand type for abs(): '{}'", value.type_name()))),
            }
        }
        "int" => {
            let [default, base] = args.bind(name, ["default", "base"])?;
            let base = expect_int(base.as_ref(), 10, "base")?;
            let number = match &value {
                Value::Str(text) => {
                    let base = u32::try_from(base).ok().filter(|b| (2..=36).contains(b));
                    let base = base.ok_or_else(|| Fault::message("`base` is 2 to 36"))?;
                    let text = text.as_str();
                    parse_int(text, base).or_else(|| parse_float(text).filter(|f| f.is_finite()).map(|f| f as i128))
                }
                Value::Float(f) if !f.is_finite() => None,
                other => other.as_int().or_else(|| other.as_f64().map(|f| f as i128)),
            };
            Ok(number.map(Value::Int).or(default).unwrap_or(Value::Int(0)))
        }
        "float" => {
            let [default] = args.bind(name, ["default"])?;
            let number = match &value {
                Value::Str(text) => parse_float(text.as_str()),
                other => other.as_f64(),
            };
            Ok(number.map(Value::Float).or(default).unwrap_or(Value::Float(0.0)))
        }
        "round" => {
            let [precision, method] = args.bind(name, ["precision", "method"])?;
            let method = expect_text(m, method.as_ref(), "method")?;
            let method = if method.as_str().is_empty() { "common" } else { method.as_str() };
            round(&value, expect_int(precision.as_ref(), 0, "precision")?, method)
        }
        _ => text_filter(m, name, &value, args),
    }
}

/// Filters that take their value as text.
#[inline(never)]
fn text_filter(m: &mut Machine, name: &str, value: &Value, args: Args) -> Result<Value> {
    let text = to_text(&m.meter, value)?;
    m.meter.spend_bytes(text.as_str().len())?;
    match name {
        "string" => {
            args.bind::<0>(name, [])?;
            Ok(Value::Str(text))
        }
        "safe" => {
            args.bind::<0>(name, [])?;
            let mut out = text.slice(0..text.as_str().len())?;
            out.markup = true;
            string(out)
        }
        "escape" | "e" | "forceescape" => {
            args.bind::<0>(name, [])?;
            if text.markup && name != "forceescape" { Ok(Value::Str(text)) } else { string(escape(&text)?) }
        }
        "trim" => {
            let [chars] = args.bind(name, ["chars"])?;
            let chars = chars.filter(|c| is_given(Some(c)));
            let chars = if chars.is_some() { Some(expect_text(m, chars.as_ref(), name)?) } else { None };
            string(text.slice(strip_range(text.as_str(), chars.as_ref().map(|c| c.as_str()), true, true))?)
        }
        "lower" | "upper" | "capitalize" | "title" => {
            args.bind::<0>(name, [])?;
            string(match name {
                "lower" => lower(&text)?,
                "upper" => upper(&text)?,
                "capitalize" => capitalize(&text)?,
                _ => title(&text, |c| is_space(c) || "-({[<".contains(c))?,
            })
        }
        "replace" => {
            let [old, new, count] = args.bind(name, ["old", "new", "count"])?;
            let (old, new) = (old.unwrap_or(Value::None), new.unwrap_or(Value::None));
            let (old, new) = (to_text(&m.meter, &old)?, to_text(&m.meter, &new)?);
            let count = count.filter(|c| is_given(Some(c)));
            replace(&text, old.as_str(), &new, expect_int(count.as_ref(), -1, "count")?)
        }
        "indent" => {
            let [width, first, blank] = args.bind(name, ["width", "first", "blank"])?;
            let width = match &width {
                Some(Value::Str(text)) => text.clone(),
                other => {
                    let n = usize::try_from(expect_int(other.as_ref(), 4, "width")?).unwrap_or(0).min(1 << 16);
                    Rc::new(Text::of(&m.meter, &" ".repeat(n), Origin::Template)?)
                }
            };
            indent(&text, &width, first.is_some_and(|f| f.is_true()), blank.is_some_and(|b| b.is_true()))
        }
        "center" => {
            let [width] = args.bind(name, ["width"])?;
            center(&text, expect_int(width.as_ref(), 80, "width")?, ' ')
        }
        "wordcount" => {
            args.bind::<0>(name, [])?;
            let words = text.as_str().split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|w| !w.is_empty());
            Ok(Value::Int(words.count() as i128))
        }
        "truncate" => {
            let [length, killwords, end, leeway] = args.bind(name, ["length", "killwords", "end", "leeway"])?;
            let end = match end {
                Some(end) => to_text(&m.meter, &end)?,
                None => Rc::new(Text::of(&m.meter, "...", Origin::Template)?),
            };
            let n_end = end.as_str().chars().count() as i128;
            let (length, leeway) =
                (expect_int(length.as_ref(), 255, "length")?, expect_int(leeway.as_ref(), 5, "leeway")?);
            if length < n_end || leeway < 0 {
                return Err(Fault::message(
                    "`truncate` takes a length of at least that of its end, and no leeway below 0",
                ));
            }
            if text.as_str().chars().count() as i128 <= length.saturating_add(leeway) {
                return Ok(Value::Str(text));
            }
            let keep = (length - n_end) as usize;
            let mut cut = text.as_str().char_indices().nth(keep).map_or(text.as_str().len(), |(b, _)| b);
            if !killwords.is_some_and(|k| k.is_true()) {
                cut = text.as_str()[..cut].rfind(' ').unwrap_or(cut);
            }
            let mut out = text.slice(0..cut)?;
            out.push_all(&end)?;
            string(out)
        }
        "format" => {
            if !args.keyword.is_empty() {
                return Err(Fault::message("`format` takes no arguments with names"));
            }
            printf(m, &text, &args.positional)
        }
        _ => Err(Fault::message(format!("no filter named `{name}`"))),
    }
}

#[inline(never)]
fn map(m: &mut Machine, value: &Value, mut args: Args) -> Result<Value> {
    let items = iterate(m, value)?;
    let out = List::new(&m.meter, false)?;
    if args.positional.is_empty() {
        let [attribute, default] = args.bind("map", ["attribute", "default"])?;
        let attribute = attribute.ok_or_else(|| Fault::message("`map` takes the name of a filter, or attribute="))?;
        for item in &items.items {
            let got = path(m, item, &attribute)?;
            out.push(match (&got, &default) {
                (Value::Undefined(_), Some(default)) => default.clone(),
                _ => got,
            })?;
        }
    } else {
        let name = args.positional.remove(0);
        let name = expect_text(m, Some(&name), "map")?;
        if !is_filter(name.as_str()) {
            return Err(Fault::message(format!("no filter named `{}`", name.as_str())));
        }
        for item in &items.items {
            let args = Args { positional: args.positional.clone(), keyword: args.keyword.clone() };
            // `map('map', 'map', ...)` nests as deep as it has arguments.
            let got = m.deeper(|m| filter(m, name.as_str(), item.clone(), args))?;
            out.push(got)?;
        }
    }
    Ok(Value::List(Rc::new(out)))
}

#[inline(never)]
fn select(m: &mut Machine, name: &str, value: &Value, mut args: Args) -> Result<Value> {
    let items = iterate(m, value)?;
    let attribute = if name.ends_with("attr") {
        if args.positional.is_empty() {
            return Err(Fault::message(format!("`{name}` takes the name of an attribute")));
        }
        Some(args.positional.remove(0))
    } else {
        None
    };
    let keep = name.starts_with("select");
    let wanted = if args.positional.is_empty() { None } else { Some(args.positional.remove(0)) };
    let wanted = if wanted.is_some() { Some(expect_text(m, wanted.as_ref(), name)?) } else { None };
    if let Some(test) = wanted.as_ref().filter(|t| !is_test(t.as_str())) {
        return Err(Fault::message(format!("no test named `{}`", test.as_str())));
    }
    let out = List::new(&m.meter, false)?;
    for item in &items.items {
        m.meter.spend(1)?;
        let looked_at = if let Some(a) = &attribute { path(m, item, a)? } else { item.clone() };
        let passes = match &wanted {
            Some(name) => {
                let args = Args { positional: args.positional.clone(), keyword: args.keyword.clone() };
                test(m, name.as_str(), &looked_at, args)?
            }
            None => looked_at.is_true(),
        };
        if passes == keep {
            out.push(item.clone())?;
        }
    }
    Ok(Value::List(Rc::new(out)))
}

#[inline(never)]
fn order(m: &mut Machine, name: &str, value: &Value, args: Args) -> Result<Value> {
    let (reverse, case_sensitive, attribute) = if name == "sort" {
        let [reverse, case_sensitive, attribute] = args.bind(name, ["reverse", "case_sensitive", "attribute"])?;
        (reverse.is_some_and(|r| r.is_true()), case_sensitive, attribute)
    } else {
        let [case_sensitive, attribute] = args.bind(name, ["case_sensitive", "attribute"])?;
        (name == "max", case_sensitive, attribute)
    };
    let case_sensitive = case_sensitive.is_some_and(|c| c.is_true());
    let mut keyed = vec![];
    for item in &iterate(m, value)?.items {
        let key = if let Some(a) = &attribute { path(m, item, a)? } else { item.clone() };
        keyed.push((fold(key, case_sensitive)?, item.clone()));
    }
    match name {
        "sort" => {
            let sorted = sorted(m, keyed, reverse)?;
            m.list(sorted)
        }
        "unique" => {
            let seen = Dict::new(&m.meter)?;
            let mut kept = vec![];
            for (key, item) in keyed {
                if seen.get(&key)?.is_none() {
                    seen.insert(key, Value::None)?;
                    kept.push(item);
                }
            }
            m.list(kept)
        }
        _ => {
            let first = sorted(m, keyed, reverse)?.into_iter().next();
            Ok(first.unwrap_or_else(|| Value::undefined("No aggregated item, sequence was empty.")))
        }
    }
}

pub(super) fn test(m: &mut Machine, name: &str, value: &Value, args: Args) -> Result<bool> {
    let comparison = match name {
        "eq" | "equalto" => Some(Compare::Eq),
        "ne" => Some(Compare::Ne),
        "lt" | "lessthan" => Some(Compare::Lt),
        "le" => Some(Compare::Le),
        "gt" | "greaterthan" => Some(Compare::Gt),
        "ge" => Some(Compare::Ge),
        "in" => Some(Compare::In),
        _ => None,
    };
    let one_argument = comparison.is_some() || matches!(name, "divisibleby" | "sameas");
    let mut argument = Value::None;
    if one_argument {
        let [given] = args.bind(name, ["other"])?;
        argument = given.ok_or_else(|| Fault::message(format!("the test `{name}` takes an argument")))?;
    } else {
        args.bind::<0>(name, [])?;
    }
    if let Some(op) = comparison {
        return m.compare(op, value, &argument);
    }
    let whole = |of: &Value| of.as_int().ok_or_else(|| Fault::message(format!("`{name}` takes whole numbers")));
    Ok(match name {
        "defined" => !matches!(value, Value::Undefined(_)),
        "undefined" => matches!(value, Value::Undefined(_)),
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "true" => matches!(value, Value::Bool(true)),
        "false" => matches!(value, Value::Bool(false)),
        "integer" => matches!(value, Value::Int(_)),
        "float" => matches!(value, Value::Float(_)),
        "number" => value.as_f64().is_some(),
        "string" => matches!(value, Value::Str(_)),
        "mapping" => matches!(value, Value::Dict(_)),
        "sequence" => matches!(value, Value::Str(_) | Value::List(_) | Value::Dict(_) | Value::Undefined(_)),
        "iterable" => matches!(value, Value::Str(_) | Value::List(_) | Value::Dict(_) | Value::Undefined(_)),
        "callable" => matches!(value, Value::Macro(_) | Value::Function(_) | Value::Method(_)),
        "escaped" => value.as_text().is_some_and(|t| t.markup),
        "filter" => value.as_text().is_some_and(|t| is_filter(t.as_str())),
        "test" => value.as_text().is_some_and(|t| is_test(t.as_str())),
        "lower" | "upper" => {
            let text = to_text(&m.meter, value)?;
            is_cased(text.as_str(), name == "upper")
        }
        "even" => whole(value)? % 2 == 0,
        "odd" => whole(value)? % 2 != 0,
        "divisibleby" => match whole(&argument)? {
            0 => return Err(Fault::message("division by zero")),
            n => whole(value)?.checked_rem(n) == Some(0),
        },
        "sameas" => match (value, &argument) {
            (Value::List(a), Value::List(b)) => Rc::ptr_eq(a, b),
            (Value::Dict(a), Value::Dict(b)) | (Value::Namespace(a), Value::Namespace(b)) => Rc::ptr_eq(a, b),
            (a, b) => a.type_name() == b.type_name() && python::equal(a, b)?,
        },
        _ => return Err(Fault::message(format!("no test named `{name}`"))),
    })
}

/// `isupper` and `islower`: all letters that have case, and at least one.
fn is_cased(text: &str, upper: bool) -> bool {
    let is = |c: char| if upper { c.is_uppercase() } else { c.is_lowercase() };
    let other = |c: char| if upper { c.is_lowercase() } else { c.is_uppercase() };
    text.chars().any(is) && !text.chars().any(other)
}

pub(super) fn method(m: &mut Machine, value: &Value, name: &str, args: Args) -> Result<Value> {
    match value {
        Value::Str(text) => {
            m.meter.spend_bytes(text.as_str().len())?;
            str_method(m, text, name, args)
        }
        Value::List(list) => list_method(m, value, list, name, args),
        Value::Dict(dict) => dict_method(m, value, dict, name, args),
        other => Err(Fault::message(format!("'{}' object has no method '{name}'", other.type_name()))),
    }
}

#[inline(never)]
fn dict_method(m: &mut Machine, value: &Value, dict: &Rc<Dict>, name: &str, args: Args) -> Result<Value> {
    let entries = |keep: &dyn Fn(Value, Value) -> Result<Value>| {
        let list = List::new(&m.meter, false)?;
        let mut i = 0;
        while let Some((key, value)) = dict.entry(i) {
            list.push(keep(key, value)?)?;
            i += 1;
        }
        Ok(Value::List(Rc::new(list)))
    };
    match name {
        "get" | "pop" | "setdefault" => {
            let [key, default] = args.bind(name, ["key", "default"])?;
            let key = key.ok_or_else(|| Fault::message(format!("`{name}` takes a key")))?;
            let found = if name == "pop" { dict.remove(&key)? } else { dict.get(&key)? };
            match (found, default) {
                (Some(found), _) => Ok(found),
                (None, None) if name == "pop" => Err(Fault::message("there is no such key")),
                (None, default) => {
                    let default = default.unwrap_or(Value::None);
                    if name == "setdefault" {
                        m.note_change(value, &default)?;
                        dict.insert(key, default.clone())?;
                    }
                    Ok(default)
                }
            }
        }
        "items" => {
            args.bind::<0>(name, [])?;
            entries(&|k, v| Value::tuple(&m.meter, [k, v]))
        }
        "keys" => {
            args.bind::<0>(name, [])?;
            entries(&|k, _| Ok(k))
        }
        "values" => {
            args.bind::<0>(name, [])?;
            entries(&|_, v| Ok(v))
        }
        "clear" => {
            args.bind::<0>(name, [])?;
            value.clear_container();
            Ok(Value::None)
        }
        _ => {
            let target = if name == "copy" { Rc::new(Dict::new(&m.meter)?) } else { dict.clone() };
            let mut pairs: Vec<(Value, Value)> = vec![];
            let mut from = |dict: &Dict| {
                let mut i = 0;
                while let Some(pair) = dict.entry(i) {
                    pairs.push(pair);
                    i += 1;
                }
            };
            if name == "copy" {
                args.bind::<0>(name, [])?;
                from(dict);
            } else {
                match args.positional.first() {
                    Some(Value::Dict(other)) => from(other),
                    Some(_) => return Err(Fault::message("`update` takes a dictionary")),
                    None => {}
                }
                for (name, value) in args.keyword {
                    pairs.push((m.text(&name, Origin::Template)?, value));
                }
            }
            m.meter.spend(pairs.len())?;
            for (key, item) in pairs {
                m.note_change(&Value::Dict(target.clone()), &item)?;
                target.insert(key, item)?;
            }
            Ok(if name == "copy" { Value::Dict(target) } else { Value::None })
        }
    }
}

#[inline(never)]
fn list_method(m: &mut Machine, value: &Value, list: &Rc<List>, name: &str, args: Args) -> Result<Value> {
    let missing = || Fault::message(format!("`{name}` takes an argument"));
    match name {
        "append" => {
            let [item] = args.bind(name, ["object"])?;
            let item = item.ok_or_else(missing)?;
            m.note_change(value, &item)?;
            list.push(item)?;
            Ok(Value::None)
        }
        "extend" => {
            let [items] = args.bind(name, ["iterable"])?;
            for item in &iterate(m, &items.ok_or_else(missing)?)?.items {
                m.note_change(value, item)?;
                list.push(item.clone())?;
            }
            Ok(Value::None)
        }
        "insert" => {
            let [at, item] = args.bind(name, ["index", "object"])?;
            let (at, item) = (expect_int(at.as_ref(), 0, name)?, item.ok_or_else(missing)?);
            m.note_change(value, &item)?;
            m.meter.spend(1 + list.len() / 8)?;
            list.push(item)?;
            let n = list.len() as i128 - 1;
            let at = if at < 0 { at.saturating_add(n).max(0) } else { at.min(n) } as usize;
            list.change(|items| items[at..].rotate_right(1));
            Ok(Value::None)
        }
        "pop" => {
            let [at] = args.bind(name, ["index"])?;
            let at = position(expect_int(at.as_ref(), -1, name)?, list.len());
            let at = at.ok_or_else(|| Fault::message("pop from empty list, or index out of range"))?;
            m.meter.spend(1 + list.len() / 8)?;
            Ok(list.change(|items| items.remove(at)))
        }
        "remove" | "index" | "count" => {
            let [wanted] = args.bind(name, ["value"])?;
            let wanted = wanted.ok_or_else(missing)?;
            let mut found = vec![];
            for (i, item) in list.items()?.items.iter().enumerate() {
                m.meter.spend(1)?;
                if python::equal(item, &wanted)? {
                    found.push(i);
                }
            }
            match (name, found.first()) {
                ("count", _) => Ok(Value::Int(found.len() as i128)),
                ("index", Some(i)) => Ok(Value::Int(*i as i128)),
                (_, Some(i)) => {
                    let _removed = list.change(|items| items.remove(*i));
                    Ok(Value::None)
                }
                (_, None) => Err(Fault::message("the value is not in the list")),
            }
        }
        "reverse" => {
            args.bind::<0>(name, [])?;
            m.meter.spend(list.len())?;
            list.change(|items| items.reverse());
            Ok(Value::None)
        }
        "clear" => {
            args.bind::<0>(name, [])?;
            value.clear_container();
            Ok(Value::None)
        }
        _ => {
            args.bind::<0>(name, [])?;
            let items = list.items()?;
            m.list(items.items.iter().cloned())
        }
    }
}

#[inline(never)]
fn str_method(m: &mut Machine, text: &Rc<Text>, name: &str, args: Args) -> Result<Value> {
    let s = text.as_str();
    match name {
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = args.bind(name, ["chars"])?;
            let chars = chars.filter(|c| is_given(Some(c)));
            let chars = if chars.is_some() { Some(expect_text(m, chars.as_ref(), name)?) } else { None };
            let range = strip_range(s, chars.as_ref().map(|c| c.as_str()), name != "rstrip", name != "lstrip");
            string(text.slice(range)?)
        }
        "split" | "rsplit" => {
            let [separator, most] = args.bind(name, ["sep", "maxsplit"])?;
            let most = expect_int(most.as_ref(), -1, "maxsplit")?;
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            let separator = separator.filter(|c| is_given(Some(c)));
            let separator = if separator.is_some() { Some(expect_text(m, separator.as_ref(), name)?) } else { None };
            split(m, text, separator.as_ref().map(|c| c.as_str()), most, name == "rsplit")
        }
        "splitlines" => {
            args.bind::<0>(name, [])?;
            let list = List::new(&m.meter, false)?;
            lines(s).into_iter().try_for_each(|line| list.push(Value::Str(Rc::new(text.slice(line)?))))?;
            Ok(Value::List(Rc::new(list)))
        }
        "partition" | "rpartition" => {
            let [separator] = args.bind(name, ["sep"])?;
            let separator = expect_text(m, separator.as_ref(), name)?;
            let separator = separator.as_str();
            if separator.is_empty() {
                return Err(Fault::message("empty separator"));
            }
            let at = if name == "partition" { s.find(separator) } else { s.rfind(separator) };
            let ranges = match at {
                Some(at) => [0..at, at..at + separator.len(), at + separator.len()..s.len()],
                None if name == "partition" => [0..s.len(), 0..0, 0..0],
                None => [0..0, 0..0, 0..s.len()],
            };
            let parts =
                ranges.into_iter().map(|r| Ok(Value::Str(Rc::new(text.slice(r)?)))).collect::<Result<Vec<_>>>()?;
            Value::tuple(&m.meter, parts)
        }
        "startswith" | "endswith" => {
            let [wanted] = args.bind(name, ["prefix"])?;
            let wanted = wanted.unwrap_or(Value::None);
            let one = |wanted: &Value| match wanted {
                Value::Str(w) if name == "startswith" => Ok(s.starts_with(w.as_str())),
                Value::Str(w) => Ok(s.ends_with(w.as_str())),
                other => Err(Fault::message(format!(
                    "{name} takes a string or a tuple of them, not '{}'",
                    other.type_name()
                ))),
            };
            let found = match &wanted {
                Value::List(list) if list.tuple => {
                    list.items()?.items.iter().map(one).collect::<Result<Vec<_>>>()?.contains(&true)
                }
                other => one(other)?,
            };
            Ok(Value::Bool(found))
        }
        "find" | "rfind" | "index" | "rindex" | "count" => {
            let [wanted] = args.bind(name, ["sub"])?;
            let wanted = expect_text(m, wanted.as_ref(), name)?;
            if name == "count" {
                return Ok(Value::Int(s.matches(wanted.as_str()).count() as i128));
            }
            let at = if name.starts_with('r') { s.rfind(wanted.as_str()) } else { s.find(wanted.as_str()) };
            match at {
                Some(at) => Ok(Value::Int(s[..at].chars().count() as i128)),
                None if name.ends_with("find") => Ok(Value::Int(-1)),
                None => Err(Fault::message("substring not found")),
            }
        }
        "replace" => {
            let [old, new, count] = args.bind(name, ["old", "new", "count"])?;
            let (old, new) = (expect_text(m, old.as_ref(), name)?, expect_text(m, new.as_ref(), name)?);
            replace(text, old.as_str(), &new, expect_int(count.as_ref(), -1, "count")?)
        }
        "removeprefix" | "removesuffix" => {
            let [wanted] = args.bind(name, ["prefix"])?;
            let wanted = expect_text(m, wanted.as_ref(), name)?;
            let range = if name == "removeprefix" {
                s.len() - s.strip_prefix(wanted.as_str()).unwrap_or(s).len()..s.len()
            } else {
                0..s.strip_suffix(wanted.as_str()).unwrap_or(s).len()
            };
            string(text.slice(range)?)
        }
        "join" => {
            let [items] = args.bind(name, ["iterable"])?;
            let mut out = Text::new(&m.meter)?;
            for (i, item) in iterate(m, &items.unwrap_or(Value::None))?.items.iter().enumerate() {
                if i > 0 {
                    out.push_all(text)?;
                }
                let item = expect_text(m, Some(item), "join")?;
                out.push_all(&item)?;
            }
            string(out)
        }
        "format" => str_format(m, text, &args),
        "lower" | "casefold" | "upper" | "capitalize" | "title" | "swapcase" => {
            args.bind::<0>(name, [])?;
            string(match name {
                "upper" => upper(text)?,
                "capitalize" => capitalize(text)?,
                "title" => title(text, |c| !c.is_alphabetic())?,
                "swapcase" => text.map(|c, out| {
                    if c.is_lowercase() { out.extend(c.to_uppercase()) } else { out.extend(c.to_lowercase()) }
                })?,
                "casefold" => casefold(text)?,
                _ => lower(text)?,
            })
        }
        "center" | "ljust" | "rjust" => {
            let [width, fill] = args.bind(name, ["width", "fillchar"])?;
            let width = expect_int(width.as_ref(), 0, name)?;
            let fill = expect_text(m, fill.as_ref(), name)?;
            let fill = fill.as_str().chars().next().unwrap_or(' ');
            match name {
                "center" => center(text, width, fill),
                "ljust" => pad(text, width, fill, |_| 0),
                _ => pad(text, width, fill, |missing| missing),
            }
        }
        "zfill" => {
            let [width] = args.bind(name, ["width"])?;
            let width = expect_int(width.as_ref(), 0, name)?;
            let sign = usize::from(s.starts_with(['+', '-']));
            let mut out = text.slice(0..sign)?;
            let rest = text.slice(sign..s.len())?;
            let Value::Str(padded) = pad(&rest, width.saturating_sub(sign as i128), '0', |missing| missing)? else {
                unreachable!("padding gives a string")
            };
            out.push_all(&padded)?;
            string(out)
        }
        "expandtabs" | "encode" => Err(Fault::message(format!("the string method `{name}` is not supported"))),
        _ => {
            args.bind::<0>(name, [])?;
            let all = |is: fn(char) -> bool| !s.is_empty() && s.chars().all(is);
            Ok(Value::Bool(match name {
                "isalnum" => all(char::is_alphanumeric),
                "isalpha" => all(char::is_alphabetic),
                "isascii" => s.is_ascii(),
                "isdigit" | "isdecimal" | "isnumeric" => all(char::is_numeric),
                "isspace" => all(is_space),
                "islower" => is_cased(s, false),
                "isupper" => is_cased(s, true),
                _ => {
                    let titled = title(text, |c| !c.is_alphabetic())?;
                    titled.as_str() == s && s.chars().any(|c| c.is_uppercase())
                }
            }))
        }
    }
}

fn split(m: &Machine, text: &Text, separator: Option<&str>, most: usize, from_right: bool) -> Result<Value> {
    let s = text.as_str();
    let mut ranges: Vec<std::ops::Range<usize>> = vec![];
    let mut charge = super::value::Charge::new(&m.meter);
    let mut add = |range| {
        charge.grow(32)?;
        ranges.push(range);
        Ok(())
    };
    match separator {
        Some("") => return Err(Fault::message("empty separator")),
        Some(separator) => {
            let mut rest = 0..s.len();
            let mut n = 0;
            while n < most {
                let inside = &s[rest.clone()];
                if from_right {
                    let Some(at) = inside.rfind(separator) else { break };
                    add(rest.start + at + separator.len()..rest.end)?;
                    rest.end = rest.start + at;
                } else {
                    let Some(at) = inside.find(separator) else { break };
                    add(rest.start..rest.start + at)?;
                    rest.start += at + separator.len();
                }
                n += 1;
            }
            add(rest)?;
        }
        None => {
            // Only the side where it begins is stripped, so that the remainder keeps its other end.
            let mut rest = strip_range(s, None, !from_right, from_right);
            let mut n = 0;
            while !rest.is_empty() {
                let inside = &s[rest.clone()];
                let edge = if n == most {
                    None
                } else if from_right {
                    inside.char_indices().rev().find(|(_, c)| is_space(*c)).map(|(i, c)| i + c.len_utf8())
                } else {
                    inside.find(is_space)
                };
                let Some(edge) = edge.map(|e| rest.start + e) else {
                    add(rest)?;
                    break;
                };
                if from_right {
                    add(edge..rest.end)?;
                    rest.end = rest.start + strip_range(&s[rest.start..edge], None, false, true).end;
                } else {
                    add(rest.start..edge)?;
                    rest.start = edge + strip_range(&s[edge..rest.end], None, true, false).start;
                }
                n += 1;
            }
        }
    }
    if from_right {
        ranges.reverse();
    }
    let list = List::new(&m.meter, false)?;
    ranges.into_iter().try_for_each(|r| list.push(Value::Str(Rc::new(text.slice(r)?))))?;
    Ok(Value::List(Rc::new(list)))
}
