//! Jinja as chat templates use it, in a sandbox.
//!
//! An interpreter of our own, for three things that a template engine does not give: every character of the output knows whether
//! the template or a message wrote it ([`Origin`]), so that a message cannot spell a control token; strings and lists count
//! against a budget of memory while they live; and values print and compare as in Python, which templates are written for.
//!
//! It has what Jinja's sandbox in `transformers` has, with these differences:
//! - Left out: `recursive` loops, `loop.changed`, `*` and `**` before arguments, `autoescape`, other templates (`include`, `import`,
//!   `extends`, `block`), `cycler`, `joiner`, `lipsum`, bytes (`encode`), and the filters `filesizeformat`, `groupby`, `pprint`, `random`,
//!   `slice`, `striptags`, `urlencode`, `urlize`, `wordwrap`, `xmlattr`. A template with
//!   one of them does not compile, or fails where it uses it.
//! - More, because published templates need it: lists and dictionaries may be changed (`append`, `pop`: Kimi-K2), `from_json` exists
//!   (DeepSeek-V3.2), and what Python computes lazily (`range`, `map`, `dict.items()`) is a list, prints as one and goes into `tojson`
//!   (llama.cpp's R1).
//! - Whole numbers have 128 bits; `isdigit` and `isdecimal` are `isnumeric`; `repr` prints characters that Unicode has not assigned;
//!   `strftime_now` prints UTC, not the local time.

mod builtins;
mod eval;
mod json;
mod lexer;
mod parser;
mod python;
#[cfg(test)]
mod tests;
mod value;

use std::{
    collections::HashMap,
    time::{SystemTime, UNIX_EPOCH},
};

use value::{Function, Meter, Value};

/// Where a character of a prompt comes from, the most trusted first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// The template, or tokenizer_config.json.
    Template,
    /// What an assistant said or thought.
    Assistant,
    /// Any other message, tools, and further variables.
    Data,
}

/// (end, origin) of runs of characters, ascending.
pub(crate) type Runs = Vec<(usize, Origin)>;

/// Why a template does not compile.
#[derive(Debug)]
pub(crate) struct SyntaxError {
    pub line: usize,
    pub what: String,
}

/// Why a rendering ended.
#[derive(Debug)]
pub(crate) enum Fault {
    Fuel,
    Memory,
    /// By `raise_exception`.
    Refused(String),
    Message(String),
}

impl Fault {
    fn message(what: impl Into<String>) -> Self {
        Self::Message(what.into())
    }
}

/// A compiled template.
#[derive(Debug)]
pub(crate) struct Template {
    nodes: Vec<parser::Node>,
}

/// A variable of a template.
pub(crate) enum Variable<'a> {
    /// A string of the template's own.
    Own(&'a str),
    /// A value whose strings all have one origin.
    Json(&'a serde_json::Value, Origin),
    /// A list of dictionaries whose values may differ in origin.
    Messages(Vec<Vec<(String, serde_json::Value, Origin)>>),
}

impl Template {
    pub fn parse(source: &str) -> Result<Self, SyntaxError> {
        Ok(Self { nodes: parser::parse(source)? })
    }

    /// The text, with (end, origin) of its runs; or the line and what went wrong there.
    pub fn render(
        &self,
        variables: Vec<(&str, Variable<'_>)>,
        now: SystemTime,
        fuel: u64,
        memory: usize,
    ) -> Result<(String, Runs), (usize, Fault)> {
        let meter = Meter::new(fuel, memory);
        let mut globals = HashMap::from(
            [
                ("range", Function::Range),
                ("dict", Function::Dict),
                ("namespace", Function::Namespace),
                ("raise_exception", Function::RaiseException),
                ("strftime_now", Function::StrftimeNow),
            ]
            .map(|(name, f)| (name.to_owned(), Value::Function(f))),
        );
        for (name, variable) in variables {
            let value = match variable {
                Variable::Own(text) => Value::str(&meter, text, Origin::Template),
                Variable::Json(json, origin) => Value::from_json(&meter, json, origin, 128),
                Variable::Messages(messages) => messages_value(&meter, messages),
            };
            globals.insert(name.to_owned(), value.map_err(|fault| (0, fault))?);
        }
        let mut machine = eval::Machine::new(meter, now, globals);
        let text = machine.run(&self.nodes).map_err(|fault| (machine.line.get(), fault))?;
        Ok(text.into_parts())
    }
}

fn messages_value(
    meter: &std::rc::Rc<Meter>,
    messages: Vec<Vec<(String, serde_json::Value, Origin)>>,
) -> Result<Value, Fault> {
    let list = value::List::new(meter, false)?;
    for message in messages {
        let dict = value::Dict::new(meter)?;
        for (key, json, origin) in message {
            dict.insert(Value::str(meter, &key, Origin::Data)?, Value::from_json(meter, &json, origin, 128)?)?;
        }
        list.push(Value::Dict(dict.into()))?;
    }
    Ok(Value::List(list.into()))
}

/// `strftime` in UTC and in English. An unknown directive stays as it is.
fn strftime(now: SystemTime, format: &str) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let days = seconds / 86_400;
    let (y, m, d) = civil(days);
    let (month, day) = (MONTHS[m as usize - 1], DAYS[(days % 7) as usize]);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let of_year = (1..m).map(|m| days_of_month(y, m)).sum::<u64>() + d;
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let rest = chars.as_str();
        // `%-d`: without zeros.
        let padded = !rest.starts_with('-');
        if !padded {
            chars.next();
        }
        let two = |n: u64| if padded { format!("{n:02}") } else { n.to_string() };
        match chars.next() {
            Some('Y') => out += &y.to_string(),
            Some('y') => out += &two(y % 100),
            Some('m') => out += &two(m),
            Some('d') => out += &two(d),
            Some('e') => out += &format!("{d:2}"),
            Some('j') => out += &if padded { format!("{of_year:03}") } else { of_year.to_string() },
            Some('B') => out += month,
            Some('b' | 'h') => out += &month[..3],
            Some('A') => out += day,
            Some('a') => out += &day[..3],
            Some('H') => out += &two(hour),
            Some('I') => out += &two((hour + 11) % 12 + 1),
            Some('p') => out += if hour < 12 { "AM" } else { "PM" },
            Some('M') => out += &two(minute),
            Some('S') => out += &two(second),
            Some('F') => out += &format!("{y}-{m:02}-{d:02}"),
            Some('T') => out += &format!("{hour:02}:{minute:02}:{second:02}"),
            Some('Z' | 'z') => {}
            Some('n') => out.push('\n'),
            Some('%') => out.push('%'),
            Some(other) => {
                out.push('%');
                out.extend((!padded).then_some('-'));
                out.push(other);
            }
            None => out.push('%'),
        }
    }
    out
}

fn days_of_month(year: u64, month: u64) -> u64 {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    match month {
        2 => 28 + u64::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Year, month and day of a number of days since 1970-01-01, proleptic Gregorian.
fn civil(mut days: u64) -> (u64, u64, u64) {
    // 400 years have 146,097 days.
    let mut year = 1970 + days / 146_097 * 400;
    days %= 146_097;
    let mut month = 1;
    while days >= days_of_month(year, month) {
        days -= days_of_month(year, month);
        (year, month) = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
    }
    (year, month, days + 1)
}
