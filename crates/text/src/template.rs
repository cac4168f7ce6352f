//! Chat templates: Jinja from the model's maker, run in a sandbox.
//!
//! A template is code from outside. It sees the messages and nothing else: no files, no network, no other template; it has
//! fuel (so that it ends), a bound on the memory that its strings and lists hold, and bounds on its source and nesting. It renders
//! as in `transformers`, to the byte: see the module `jinja` for what is left out.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde_json::{Map, Value};

use crate::jinja::{Fault, Origin, Runs, Template, Variable};

/// Steps of the interpreter that one rendering may take, beside one for each 4 bytes of the messages; real templates take some
/// hundreds per message. Copying 64 bytes is a step as well.
const FUEL: u64 = 5_000_000;
/// Bytes that strings and lists may hold at one time, beside 16 for each byte of the messages.
const MEMORY: usize = 64 << 20;
/// Bytes of a template; the longest published ones have 10 KB.
const MAX_SOURCE: usize = 1 << 20;
/// Bytes of a file with a template that are read; the longest published ones have 1.2 MB.
const MAX_FILE: u64 = 8 << 20;

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
    #[error("the chat template ran too long and was stopped; it may loop forever")]
    Fuel,
    /// It holds too much.
    #[error("the chat template took more memory than such messages need and was stopped; it may grow without end")]
    Memory,
    /// Anything else that goes wrong while it runs.
    #[error("the chat template failed: {0}")]
    Run(String),
}

/// A message of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`
    pub role: String,
    /// What was said.
    pub content: String,
    /// What an assistant thought, for templates that ask.
    pub reasoning_content: Option<String>,
    /// Further fields as the API names them: `tool_calls`, `tool_call_id`, `name`. A `content` here (null, or a list of parts) is
    /// taken instead of the text.
    pub extra: Map<String, Value>,
}

impl Message {
    /// Without thinking.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), ..Self::default() }
    }

    /// What a template sees: (key, value, where its text comes from).
    fn fields(&self) -> Vec<(String, Value, Origin)> {
        // The names that templates build control tokens of (`'<|' + role + '|>'`) are not the sender's words.
        let known = ["system", "developer", "user", "assistant", "tool", "function", "ipython"].contains(&&*self.role);
        let role = if known { Origin::Template } else { Origin::Data };
        let said = if self.role == "assistant" { Origin::Assistant } else { Origin::Data };
        let mut fields: Vec<(String, Value, Origin)> = vec![("role".into(), Value::from(&*self.role), role)];
        if !self.extra.contains_key("content") {
            fields.push(("content".into(), Value::from(&*self.content), said));
        }
        if let Some(thought) = &self.reasoning_content {
            fields.push(("reasoning_content".into(), Value::from(&**thought), said));
        }
        for (key, value) in self.extra.iter().filter(|(key, _)| *key != "role") {
            let own = matches!(key.as_str(), "content" | "reasoning_content" | "thinking" | "reasoning");
            let origin = if own { said } else { Origin::Data };
            if let Some(field) = fields.iter_mut().find(|(k, ..)| k == key) {
                *field = (key.clone(), value.clone(), origin);
            } else {
                fields.push((key.clone(), value.clone(), origin));
            }
        }
        // Thinking has three names in the wild; templates read the first, or `thinking`.
        let thought = ["reasoning_content", "thinking", "reasoning"]
            .iter()
            .find_map(|name| fields.iter().find(|(key, value, _)| key == name && !value.is_null()))
            .map(|(_, value, _)| value.clone());
        if let Some(thought) = thought {
            if !fields.iter().any(|(key, ..)| key == "thinking") {
                fields.insert(0, ("thinking".into(), thought.clone(), said));
            }
            fields.retain(|(key, ..)| key != "reasoning_content");
            fields.push(("reasoning_content".into(), thought, said));
        }
        fields
    }

    fn len(&self) -> usize {
        let extra = if self.extra.is_empty() { 0 } else { Value::from(self.extra.clone()).to_string().len() };
        self.content.len() + self.reasoning_content.as_ref().map_or(0, String::len) + extra + 64
    }
}

/// What else a template sees.
#[derive(Clone, Debug, Default)]
pub struct RenderOptions {
    /// End where the assistant is to speak.
    pub add_generation_prompt: bool,
    /// More variables, for example `tools`.
    pub extra: Map<String, Value>,
    /// What `strftime_now` prints, in UTC; the system's time if none.
    pub now: Option<SystemTime>,
}

/// A rendered conversation, to be encoded with [`Tokenizer::encode_prompt`](crate::Tokenizer::encode_prompt).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    text: String,
    runs: Runs,
}

impl Prompt {
    /// All of one origin.
    pub fn new(text: impl Into<String>, origin: Origin) -> Self {
        let text = text.into();
        Self { runs: vec![(text.len(), origin)], text }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the reply begins inside the thinking: the template opened it.
    pub fn opens_thinking(&self) -> bool {
        let text = self.text.trim_end();
        text.ends_with("<think>") && self.origin(text.len() - "<think>".len()..text.len()) == Origin::Template
    }

    /// Who wrote these bytes of the text: the least trusted, if it was more than one.
    pub fn origin(&self, bytes: std::ops::Range<usize>) -> Origin {
        let first = self.runs.partition_point(|(end, _)| *end <= bytes.start);
        let after = self.runs[first..].partition_point(|(end, _)| *end < bytes.end) + first;
        self.runs[first..self.runs.len().min(after + 1)].iter().map(|(_, o)| *o).max().unwrap_or(Origin::Template)
    }
}

/// A compiled template and the special tokens that it names.
#[derive(Debug)]
pub struct ChatTemplate {
    template: Template,
    /// `bos_token` and the like; a template sees those that are not empty.
    tokens: Names,
}

impl ChatTemplate {
    /// From a model's folder: `chat_template.jinja`, or the key of tokenizer_config.json; `None` if there is neither.
    ///
    /// # Errors
    /// [`TemplateError`] names the file.
    pub fn from_folder(dir: impl AsRef<Path>) -> Result<Option<Self>, TemplateError> {
        let read = |name: &str| {
            let path = dir.as_ref().join(name);
            let error = |error| TemplateError::File { path: path.clone(), error };
            let mut text = String::new();
            match fs::File::open(&path) {
                Ok(file) => {
                    io::Read::read_to_string(&mut io::Read::take(file, MAX_FILE + 1), &mut text).map_err(error)?
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(error(e)),
            };
            if text.len() as u64 > MAX_FILE {
                return Err(error(io::Error::other(format!("more than the {MAX_FILE} bytes that any needs"))));
            }
            Ok(Some(text))
        };
        let config = read("tokenizer_config.json")?;
        match read("chat_template.jinja")? {
            Some(source) => {
                let (tokens, _) = parse_config(config.as_deref().unwrap_or("{}"))?;
                Self::with_tokens(&source, tokens).map(Some)
            }
            None => config.map_or(Ok(None), |c| Self::from_config(&c)),
        }
    }

    /// From the text of a tokenizer_config.json; `None` if it has no `chat_template`.
    ///
    /// # Errors
    /// [`TemplateError::Config`] and [`TemplateError::Compile`].
    pub fn from_config(config: &str) -> Result<Option<Self>, TemplateError> {
        let (tokens, source) = parse_config(config)?;
        source.map(|s| Self::with_tokens(&s, tokens)).transpose()
    }

    /// From its source.
    ///
    /// # Errors
    /// [`TemplateError::Compile`].
    pub fn new(source: &str, bos_token: String, eos_token: String) -> Result<Self, TemplateError> {
        Self::with_tokens(source, vec![("bos_token".into(), bos_token), ("eos_token".into(), eos_token)])
    }

    fn with_tokens(source: &str, tokens: Names) -> Result<Self, TemplateError> {
        if source.len() > MAX_SOURCE {
            return Err(TemplateError::Compile(format!("{} bytes, more than {MAX_SOURCE}", source.len())));
        }
        let template =
            Template::parse(source).map_err(|e| TemplateError::Compile(format!("line {}: {}", e.line, e.what)))?;
        Ok(Self { template, tokens })
    }

    /// The prompt for a conversation.
    ///
    /// # Errors
    /// [`TemplateError`], after a bounded time and memory whatever the template does.
    pub fn render(&self, messages: &[Message], options: &RenderOptions) -> Result<Prompt, TemplateError> {
        let size = messages.iter().map(Message::len).sum::<usize>()
            + if options.extra.is_empty() { 0 } else { Value::from(options.extra.clone()).to_string().len() };
        let (flag, null) = (Value::from(options.add_generation_prompt), Value::Null);
        let mut variables: Vec<(&str, Variable<'_>)> = vec![
            ("messages", Variable::Messages(messages.iter().map(Message::fields).collect())),
            ("add_generation_prompt", Variable::Json(&flag, Origin::Data)),
            ("tools", Variable::Json(&null, Origin::Data)),
            ("documents", Variable::Json(&null, Origin::Data)),
        ];
        let tokens = self.tokens.iter().filter(|(_, token)| !token.is_empty());
        variables.extend(tokens.map(|(name, token)| (name.as_str(), Variable::Own(token))));
        variables.extend(options.extra.iter().map(|(name, v)| (name.as_str(), Variable::Json(v, Origin::Data))));
        let now = options.now.unwrap_or_else(SystemTime::now);
        let (fuel, memory) = (FUEL + size as u64 / 4, MEMORY.saturating_add(16 * size));
        let rendered = self.template.render(variables, now, fuel, memory);
        let (text, runs) = rendered.map_err(|(line, fault)| match fault {
            Fault::Fuel => TemplateError::Fuel,
            Fault::Memory => TemplateError::Memory,
            Fault::Refused(what) => TemplateError::Refused(what),
            Fault::Message(what) => TemplateError::Run(format!("line {line}: {what}")),
        })?;
        Ok(Prompt { text, runs })
    }
}

/// (name, token): `bos_token` and the like.
type Names = Vec<(String, String)>;

/// (named tokens, template) of a tokenizer_config.json. Tokens are strings or objects with `content`; the template is a string or
/// a list of named ones, of which `default` counts.
fn parse_config(text: &str) -> Result<(Names, Option<String>), TemplateError> {
    let error = |what: String| TemplateError::Config { origin: "tokenizer_config.json".into(), what };
    let json: Value = serde_json::from_str(text).map_err(|e| error(format!("not JSON: {e}")))?;
    let token = |key: &str| {
        let value = &json[key];
        (key.to_owned(), value.as_str().or_else(|| value["content"].as_str()).unwrap_or_default().to_owned())
    };
    let names = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
    let template = match &json["chat_template"] {
        Value::Null => None,
        Value::String(s) => Some(s.clone()),
        Value::Array(all) => {
            let named = |name: &str| all.iter().find(|t| t["name"] == name);
            let one = named("default").or(all.first()).and_then(|t| t["template"].as_str());
            Some(one.ok_or_else(|| error("`chat_template` is a list without a template".into()))?.to_owned())
        }
        _ => return Err(error("`chat_template` must be a string or a list of {name, template}".into())),
    };
    Ok((names.map(token).to_vec(), template))
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
        let options = RenderOptions { add_generation_prompt: true, ..Default::default() };
        template.render(&messages, &options).map(|prompt| prompt.as_str().to_owned())
    }

    #[test]
    fn the_house_template_drops_earlier_thoughts_and_ends_where_the_assistant_speaks() {
        let want = "<B>Be brief.<｜User｜>Hi<｜Assistant｜>Hello<E><｜User｜>1+1?<｜Assistant｜>";
        assert_eq!(chat(house::CHAT_TEMPLATE).unwrap(), want);
        let config = ChatTemplate::from_config(&house::tokenizer_config_json(256)).unwrap().unwrap();
        let prompt = config.render(&[Message::new("user", "x")], &RenderOptions::default()).unwrap();
        assert_eq!(prompt.as_str(), "<｜begin▁of▁sentence｜><｜User｜>x");
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
        assert_eq!(token.unwrap().unwrap().render(&[], &RenderOptions::default()).unwrap().as_str(), "<s>");
    }
}
