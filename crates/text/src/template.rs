//! Chat templates: Jinja from the model's maker, run in a sandbox.
//!
//! A template is code from outside. It sees the messages and nothing else: no files, no network, no other template; it has
//! fuel (so that it ends), a bound on its output, and a bound on its source. White space is treated as `transformers` does
//! (`trim_blocks`, `lstrip_blocks`), and Python's string methods exist.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value, context, syntax::SyntaxConfig, value::Serde};
use serde::Serialize;

/// Instructions of the interpreter that one rendering may take; real templates take some hundreds per message.
const FUEL: u64 = 5_000_000;
/// Bytes that one rendering may write.
const MAX_OUTPUT: usize = 64 << 20;
/// Bytes of a template; the longest published ones have 10 KB.
const MAX_SOURCE: usize = 1 << 20;

/// Why a template cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The file.
    #[error("{path}: cannot read the chat template: {error}", path = .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// tokenizer_config.json is not what it should be.
    #[error("{origin}: {what}")]
    Config {
        /// File.
        origin: String,
        /// What is wrong.
        what: String,
    },
    /// The template is not valid Jinja.
    #[error("the chat template does not compile: {0}; expected Jinja as `transformers` takes it")]
    Compile(String),
    /// The template calls `raise_exception`.
    #[error("the chat template refuses these messages: {0}")]
    Refused(String),
    /// It does not end.
    #[error("the chat template ran too long ({FUEL} instructions) and was stopped; it may loop forever")]
    Fuel,
    /// It writes too much.
    #[error("the chat template wrote more than {MAX_OUTPUT} bytes and was stopped")]
    Output,
    /// Anything else that goes wrong while it runs.
    #[error("the chat template failed: {0}")]
    Run(String),
}

/// A message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`
    pub role: String,
    /// What was said.
    pub content: String,
    /// What an assistant thought, for templates that ask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
}

impl Message {
    /// Without thinking.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), reasoning_content: None }
    }
}

/// What else a template sees.
#[derive(Clone, Debug, Default)]
pub struct RenderOptions {
    /// End where the assistant is to speak.
    pub add_generation_prompt: bool,
    /// More variables, for example `tools`.
    pub extra: serde_json::Map<String, serde_json::Value>,
}

/// A compiled template and the special tokens that it names.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("bos_token", &self.bos_token).finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// From a model's folder: `chat_template.jinja`, or the key of tokenizer_config.json; `None` if there is neither.
    ///
    /// # Errors
    /// [`TemplateError`] names the file.
    pub fn from_folder(dir: impl AsRef<Path>) -> Result<Option<Self>, TemplateError> {
        let read = |name: &str| {
            let path = dir.as_ref().join(name);
            match fs::read_to_string(&path) {
                Ok(text) => Ok(Some(text)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(TemplateError::File { path, error }),
            }
        };
        let config = read("tokenizer_config.json")?;
        match read("chat_template.jinja")? {
            Some(source) => {
                let (bos, eos, _) = parse_config(config.as_deref().unwrap_or("{}"))?;
                Self::new(&source, bos, eos).map(Some)
            }
            None => config.map_or(Ok(None), |c| Self::from_config(&c)),
        }
    }

    /// From the text of a tokenizer_config.json; `None` if it has no `chat_template`.
    ///
    /// # Errors
    /// [`TemplateError::Config`] and [`TemplateError::Compile`].
    pub fn from_config(config: &str) -> Result<Option<Self>, TemplateError> {
        let (bos, eos, source) = parse_config(config)?;
        source.map(|s| Self::new(&s, bos, eos)).transpose()
    }

    /// From its source.
    ///
    /// # Errors
    /// [`TemplateError::Compile`].
    pub fn new(source: &str, bos_token: String, eos_token: String) -> Result<Self, TemplateError> {
        if source.len() > MAX_SOURCE {
            return Err(TemplateError::Compile(format!("{} bytes, more than {MAX_SOURCE}", source.len())));
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| TemplateError::Compile(describe(&e)))?);
        environment.set_undefined_behavior(UndefinedBehavior::Chainable);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(100);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |what: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("{REFUSED}{what}")))
        });
        environment.add_function("strftime_now", |format: String| strftime(SystemTime::now(), &format));
        environment.add_filter("tojson", |value: Value| -> Result<Value, minijinja::Error> {
            let json = serde_json::to_value(&value)
                .map_err(|e| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string()))?;
            Ok(Value::from_safe_string(python_json(&json)))
        });
        environment.add_template_owned("chat", source.to_owned()).map_err(|e| TemplateError::Compile(describe(&e)))?;
        Ok(Self { environment, bos_token, eos_token })
    }

    /// The prompt for a conversation.
    ///
    /// # Errors
    /// [`TemplateError`], after a bounded time and memory whatever the template does.
    pub fn render(&self, messages: &[Message], options: &RenderOptions) -> Result<String, TemplateError> {
        let template = self.environment.get_template("chat").expect("added in `new`");
        let extra = Value::from(Serde(&options.extra));
        let context = context! {
            messages => Value::from(Serde(messages)),
            add_generation_prompt => options.add_generation_prompt,
            bos_token => self.bos_token.as_str(),
            eos_token => self.eos_token.as_str(),
            ..extra
        };
        let mut out = Bounded(Vec::new());
        match template.render_captured_to(context, &mut out) {
            Ok(_) => String::from_utf8(out.0).map_err(|e| TemplateError::Run(e.to_string())),
            Err(e) => Err(classify(&e)),
        }
    }
}

const REFUSED: &str = "\u{1}refused\u{1}";

fn classify(e: &minijinja::Error) -> TemplateError {
    let text = describe(e);
    if let Some(at) = text.find(REFUSED) {
        let what = &text[at + REFUSED.len()..];
        return TemplateError::Refused(what.split(" (in ").next().unwrap_or(what).to_owned());
    }
    match e.kind() {
        ErrorKind::OutOfFuel => TemplateError::Fuel,
        ErrorKind::WriteFailure => TemplateError::Output,
        _ => TemplateError::Run(text),
    }
}

fn describe(e: &minijinja::Error) -> String {
    let mut text = e.to_string();
    let mut source = std::error::Error::source(e);
    while let Some(s) = source {
        text = format!("{text}: {s}");
        source = s.source();
    }
    text
}

struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT {
            return Err(io::Error::other("too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `(bos, eos, template)` of a tokenizer_config.json. Tokens are strings or objects with `content`; the template is a string or
/// a list of named ones, of which `default` counts.
fn parse_config(text: &str) -> Result<(String, String, Option<String>), TemplateError> {
    let error = |what: String| TemplateError::Config { origin: "tokenizer_config.json".into(), what };
    let json: serde_json::Value = serde_json::from_str(text).map_err(|e| error(format!("not JSON: {e}")))?;
    let token = |key: &str| {
        let value = &json[key];
        value.as_str().or_else(|| value["content"].as_str()).unwrap_or_default().to_owned()
    };
    let template = match &json["chat_template"] {
        serde_json::Value::Null => None,
        serde_json::Value::String(s) => Some(s.clone()),
        serde_json::Value::Array(all) => {
            let named = |name: &str| all.iter().find(|t| t["name"] == name);
            let one = named("default").or(all.first()).and_then(|t| t["template"].as_str());
            Some(one.ok_or_else(|| error("`chat_template` is a list without a template".into()))?.to_owned())
        }
        _ => return Err(error("`chat_template` must be a string or a list of {name, template}".into())),
    };
    Ok((token("bos_token"), token("eos_token"), template))
}

/// JSON as Python's `json.dumps` prints it: `, ` and `: `.
fn python_json(value: &serde_json::Value) -> String {
    use serde_json::Value::{Array, Object};
    match value {
        Array(items) => format!("[{}]", items.iter().map(python_json).collect::<Vec<_>>().join(", ")),
        Object(map) => {
            let pairs = map.iter().map(|(k, v)| format!("{}: {}", serde_json::Value::from(k.as_str()), python_json(v)));
            format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

/// The formats that published templates use, in UTC.
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
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (y, m, d) = civil(seconds / 86_400);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let month = MONTHS[m as usize - 1];
        match chars.next() {
            Some('Y') => out += &y.to_string(),
            Some('m') => out += &format!("{m:02}"),
            Some('d') => out += &format!("{d:02}"),
            Some('B') => out += month,
            Some('b') => out += &month[..3],
            Some('H') => out += &format!("{:02}", seconds / 3600 % 24),
            Some('M') => out += &format!("{:02}", seconds / 60 % 60),
            Some('S') => out += &format!("{:02}", seconds % 60),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

/// Year, month and day of a number of days since 1970-01-01, proleptic Gregorian.
fn civil(days: u64) -> (u64, u64, u64) {
    let leap = |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
    let (mut year, mut left) = (1970, days);
    while left >= 365 + u64::from(leap(year)) {
        left -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while left >= lengths[month] {
        left -= lengths[month];
        month += 1;
    }
    (year, month as u64 + 1, left + 1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::house;

    fn chat(source: &str) -> Result<String, TemplateError> {
        let messages = [
            Message::new("system", "Be brief."),
            Message::new("user", "Hi"),
            Message::new("assistant", "<think>hm</think>Hello"),
            Message::new("user", "1+1?"),
        ];
        let template = ChatTemplate::new(source, "<B>".into(), "<E>".into())?;
        template.render(&messages, &RenderOptions { add_generation_prompt: true, ..Default::default() })
    }

    #[test]
    fn the_house_template_drops_earlier_thoughts_and_ends_where_the_assistant_speaks() {
        let want = "<B>Be brief.<｜User｜>Hi<｜Assistant｜>Hello<E><｜User｜>1+1?<｜Assistant｜>";
        assert_eq!(chat(house::CHAT_TEMPLATE).unwrap(), want);
        let config = ChatTemplate::from_config(&house::tokenizer_config_json(256)).unwrap().unwrap();
        let prompt = config.render(&[Message::new("user", "x")], &RenderOptions::default()).unwrap();
        assert_eq!(prompt, "<｜begin▁of▁sentence｜><｜User｜>x");
    }

    #[test]
    fn a_template_that_loops_or_swells_is_stopped() {
        let start = std::time::Instant::now();
        let many = "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = a + b %}{% endfor %}{% endfor %}";
        assert!(matches!(chat(many), Err(TemplateError::Fuel)), "{:?}", chat(many));
        let wide = "{% set ns = namespace(s='0123456789') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}";
        assert!(chat(wide).is_err());
        let deep = "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}";
        assert!(chat(deep).is_err());
        assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    }

    #[test]
    fn refusals_and_mistakes_are_told_apart() {
        assert!(
            matches!(chat("{{ raise_exception('no system text') }}"), Err(TemplateError::Refused(w)) if w == "no system text")
        );
        assert!(matches!(chat("{% if %}"), Err(TemplateError::Compile(_))));
        assert!(matches!(chat("{{ 1 / 0 }}"), Err(TemplateError::Run(_))));
        assert!(matches!(ChatTemplate::from_config("[").unwrap_err(), TemplateError::Config { .. }));
        assert!(ChatTemplate::from_config("{}").unwrap().is_none());
    }

    #[test]
    fn python_habits_work() {
        assert_eq!(chat("{{ messages[1].content.strip().upper() }}").unwrap(), "HI");
        assert_eq!(chat("{{ {'a': [1, 'é']} | tojson }}").unwrap(), r#"{"a": [1, "é"]}"#);
        assert_eq!(chat("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}").unwrap(), "a1");
        let token =
            ChatTemplate::from_config(r#"{"bos_token": {"content": "<s>"}, "chat_template": "{{ bos_token }}"}"#);
        assert_eq!(token.unwrap().unwrap().render(&[], &RenderOptions::default()).unwrap(), "<s>");
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |seconds| strftime(UNIX_EPOCH + Duration::from_secs(seconds), "%d %b %Y %H:%M:%S %B %m%%");
        assert_eq!(at(0), "01 Jan 1970 00:00:00 January 01%%");
        assert!(at(951_827_696).starts_with("29 Feb 2000 12:34:56"), "{}", at(951_827_696));
    }
}
