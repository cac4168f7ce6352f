//! Sources → documents: which files a source means, and what stands in them.

use std::{
    fmt,
    io::{BufRead, Read},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{
    ChatFormat, DataError, Document, Role,
    arithmetic::{self, Arithmetic},
    identity::{self, Identity},
    template::{self, Template},
    unpack,
};
use crate::recipe::{Format, GeneratorKind, Recipe, Source, TrainOn, glob_matches};

/// Longest line of a JSON lines file, in bytes.
const MAX_LINE: u64 = 64 << 20;
/// Folders within folders that are searched.
const MAX_DEPTH: usize = 32;

/// Where a document comes from, for messages.
#[derive(Clone, Debug)]
pub struct Origin {
    what: PathBuf,
    line: u64,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}:{}", self.what.display(), self.line)
    }
}

/// A source whose files and templates have been looked at.
#[derive(Clone, Debug)]
pub struct OpenSource {
    source: Source,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Files { files: Vec<(PathBuf, u64)>, shape: Shape },
    Generator { kind: GeneratorKind, count: u64, seed: u64 },
}

#[derive(Clone, Debug)]
enum Shape {
    Auto,
    Template(Template),
    PromptCompletion(Template, Template),
    Messages(String),
}

impl OpenSource {
    /// Finds the files and reads the templates; opens no file yet.
    ///
    /// # Errors
    /// [`DataError::NoFiles`], [`DataError::Template`], [`DataError::Read`].
    pub fn open(source: &Source, recipe: &Recipe) -> Result<Self, DataError> {
        let kind = match (&source.path, source.generator) {
            (None, Some(kind)) => {
                Kind::Generator { kind, count: source.count.unwrap_or(0), seed: source.seed.unwrap_or(recipe.seed) }
            }
            (path, _) => {
                let parse = |text: &String| {
                    Template::parse(text).map_err(|message| DataError::Template { template: text.clone(), message })
                };
                let shape = match (&source.template, &source.prompt, &source.completion, &source.messages) {
                    (Some(template), ..) => Shape::Template(parse(template)?),
                    (_, Some(prompt), Some(completion), _) => {
                        Shape::PromptCompletion(parse(prompt)?, parse(completion)?)
                    }
                    (.., Some(field)) => Shape::Messages(field.clone()),
                    _ => Shape::Auto,
                };
                Kind::Files { files: find(&recipe.resolve(path.as_deref().unwrap_or_default()))?, shape }
            }
        };
        Ok(Self { source: source.clone(), kind })
    }

    /// How much there is to read: bytes on disk, or documents of a generator. The measure of [`OpenSource::for_each`]'s progress.
    pub fn size(&self) -> u64 {
        match &self.kind {
            Kind::Files { files, .. } => files.iter().map(|(_, bytes)| bytes).sum(),
            Kind::Generator { count, .. } => *count,
        }
    }

    /// How often an epoch has each document.
    pub fn repeat(&self) -> f64 {
        self.source.repeat
    }

    /// SHA-256 of all that decides the documents: the files' content, the generator's version, the keys of the source.
    ///
    /// # Errors
    /// [`DataError::Read`]
    pub fn fingerprint(&self) -> Result<[u8; 32], DataError> {
        let mut sha = Sha256::new();
        let keys = Source { path: None, seed: None, repeat: 1.0, ..self.source.clone() };
        sha.update(serde_json::to_string(&keys).expect("a source can be written as JSON"));
        match &self.kind {
            Kind::Generator { seed, .. } => {
                sha.update(seed.to_le_bytes());
                sha.update(arithmetic::VERSION.to_le_bytes());
                sha.update(identity::VERSION.to_le_bytes());
            }
            Kind::Files { files, .. } => {
                for (path, _) in files {
                    let read = |source| DataError::Read { path: path.clone(), source };
                    let mut one = Sha256::new();
                    let mut file = std::fs::File::open(path).map_err(read)?;
                    let mut buffer = vec![0; 1 << 16];
                    loop {
                        match file.read(&mut buffer).map_err(read)? {
                            0 => break,
                            n => one.update(&buffer[..n]),
                        }
                    }
                    sha.update([u8::from(is_jsonl(path, self.source.format))]);
                    sha.update(one.finalize());
                }
            }
        }
        Ok(sha.finalize().into())
    }

    /// Gives every document to `visit`, in a fixed order; `progress` hears how much of [`OpenSource::size`] is read.
    ///
    /// # Errors
    /// [`DataError`] with file and line or byte, and whatever `visit` returns.
    pub fn for_each(
        &self,
        chat: &ChatFormat,
        progress: &mut dyn FnMut(u64),
        visit: &mut dyn FnMut(&Origin, Document) -> Result<(), DataError>,
    ) -> Result<(), DataError> {
        let only_replies = self.source.train_on == TrainOn::Replies;
        match &self.kind {
            Kind::Generator { kind, count, seed } => {
                let (arithmetic, identity) = (Arithmetic::new(*seed), Identity::new(*seed));
                for i in 0..*count {
                    let (what, turns) = match kind {
                        GeneratorKind::Arithmetic => ("generator arithmetic", arithmetic.example(i).turns()),
                        GeneratorKind::Identity => ("generator identity", identity.example(i).turns()),
                    };
                    let document = chat.document(&turns, only_replies).expect("a question and its answer");
                    visit(&Origin { what: what.into(), line: i }, document)?;
                    progress(i + 1);
                }
                Ok(())
            }
            Kind::Files { files, shape } => {
                let done = Arc::new(AtomicU64::new(0));
                for (path, _) in files {
                    let input = unpack::open(path, done.clone())?;
                    let mut visit = |line, document| {
                        progress(done.load(Ordering::Relaxed));
                        visit(&Origin { what: path.clone(), line }, document)
                    };
                    if is_jsonl(path, self.source.format) {
                        self.json_lines(path, input, shape, chat, only_replies, &mut visit)?;
                    } else {
                        self.text(path, input, &mut visit)?;
                    }
                }
                progress(self.size());
                Ok(())
            }
        }
    }

    fn json_lines(
        &self,
        path: &Path,
        mut input: Box<dyn BufRead>,
        shape: &Shape,
        chat: &ChatFormat,
        only_replies: bool,
        visit: &mut dyn FnMut(u64, Document) -> Result<(), DataError>,
    ) -> Result<(), DataError> {
        let mut line = Vec::new();
        let mut at = 0;
        for number in 1.. {
            line.clear();
            let n = (&mut input).take(MAX_LINE).read_until(b'\n', &mut line).map_err(|e| unpack::failed(path, e))?;
            if n == 0 {
                break;
            }
            let bad = |message: String| DataError::Line { path: path.into(), line: number, message };
            if n as u64 == MAX_LINE && line.last() != Some(&b'\n') {
                return Err(bad("the line is longer than 64 MiB; is it JSON lines?".into()));
            }
            let text = std::str::from_utf8(&line)
                .map_err(|e| DataError::NotUtf8 { path: path.into(), byte: at + e.valid_up_to() as u64 })?;
            at += n as u64;
            let text = if number == 1 { text.trim_start_matches('\u{feff}') } else { text };
            if text.trim().is_empty() {
                continue;
            }
            let object: Map<String, Value> =
                serde_json::from_str(text).map_err(|e| bad(format!("not a JSON object: {e}")))?;
            let document = self.object_document(&object, shape, chat, only_replies).map_err(bad)?;
            visit(number, document)?;
        }
        Ok(())
    }

    fn object_document(
        &self,
        object: &Map<String, Value>,
        shape: &Shape,
        chat: &ChatFormat,
        only_replies: bool,
    ) -> Result<Document, String> {
        let remove = &self.source.remove;
        let conversation =
            |prompt, completion| chat.document(&[(Role::User, prompt), (Role::Assistant, completion)], only_replies);
        let field = |name| Ok::<_, String>(template::without(&template::scalar(object, name)?, remove));
        match shape {
            Shape::Template(template) => Ok(Document::text(template.render(object, remove)?)),
            Shape::PromptCompletion(prompt, completion) => {
                conversation(prompt.render(object, remove)?, completion.render(object, remove)?)
            }
            Shape::Messages(name) => chat.document(&turns(object, name, remove)?, only_replies),
            Shape::Auto if object.contains_key("messages") => {
                chat.document(&turns(object, "messages", remove)?, only_replies)
            }
            Shape::Auto if object.contains_key("prompt") && object.contains_key("completion") => {
                conversation(field("prompt")?, field("completion")?)
            }
            Shape::Auto => Ok(Document::text(field("text").map_err(|e| {
                format!("{e}; set template, prompt and completion, or messages in the recipe's source")
            })?)),
        }
    }

    /// Documents end at separator lines; a piece ends at an empty line once it is long enough, at any line once it is twice as
    /// long, and anywhere between two characters at four times the length.
    fn text(
        &self,
        path: &Path,
        mut input: Box<dyn BufRead>,
        visit: &mut dyn FnMut(u64, Document) -> Result<(), DataError>,
    ) -> Result<(), DataError> {
        let size = self.source.document_bytes;
        let (mut document, mut raw) = (String::new(), Vec::new());
        let (mut at, mut line, mut open) = (0u64, 1, false);
        let mut first_line = 1;
        // `open`: a piece of the present document has been given out, so that the last piece must come even if it is blank.
        let mut give = |document: &mut String, ends: bool, open: &mut bool, line: u64| {
            let text = std::mem::take(document);
            let blank = text.trim().is_empty();
            let given = if blank && !*open { Ok(()) } else { visit(line, Document { ends, ..Document::text(text) }) };
            *open = !ends && (*open || !blank);
            given
        };
        loop {
            let carried = raw.len();
            let n =
                (&mut input).take(4 * size as u64).read_until(b'\n', &mut raw).map_err(|e| unpack::failed(path, e))?;
            if raw.is_empty() {
                break;
            }
            let valid = match std::str::from_utf8(&raw) {
                Ok(text) => text.len(),
                // The limit may fall within a character; the rest of it comes next time.
                Err(e)
                    if e.error_len().is_none()
                        && n > 0
                        && raw.len() - e.valid_up_to() > 0
                        && n as u64 == 4 * size as u64 =>
                {
                    e.valid_up_to()
                }
                Err(e) => return Err(DataError::NotUtf8 { path: path.into(), byte: at + e.valid_up_to() as u64 }),
            };
            debug_assert!(carried < 4);
            let text = std::str::from_utf8(&raw[..valid]).expect("just checked");
            let text = if at == 0 { text.trim_start_matches('\u{feff}') } else { text };
            let whole_line = text.ends_with('\n') || n == 0;
            let content = text.trim_end_matches(['\r', '\n']);
            if self.source.separator.as_deref() == Some(content) {
                give(&mut document, true, &mut open, first_line)?;
            } else {
                if document.is_empty() {
                    first_line = line;
                }
                document.push_str(text);
                let long = document.len();
                if (long >= size && content.trim().is_empty()) || (long >= 2 * size && whole_line) || long >= 4 * size {
                    give(&mut document, false, &mut open, first_line)?;
                }
            }
            line += u64::from(text.ends_with('\n'));
            at += valid as u64;
            raw.drain(..valid);
        }
        give(&mut document, true, &mut open, first_line)
    }
}

fn turns(object: &Map<String, Value>, field: &str, remove: &[[String; 2]]) -> Result<Vec<(Role, String)>, String> {
    let Some(Value::Array(list)) = object.get(field) else {
        return Err(format!(
            "the field `{field}` is {}; expected a list of messages",
            object.get(field).map_or("missing", template::kind)
        ));
    };
    let turn = |(i, message): (usize, &Value)| {
        let Value::Object(message) = message else {
            return Err(format!("message {i} of `{field}` is {}; expected an object", template::kind(message)));
        };
        let role = match template::scalar(message, "role")?.as_str() {
            "system" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            other => {
                return Err(format!(
                    "message {i} of `{field}` has the role {other:?}; expected system, user or assistant"
                ));
            }
        };
        Ok((role, template::without(&template::scalar(message, "content")?, remove)))
    };
    list.iter().enumerate().map(turn).collect()
}

/// The file's name without `.gz` or `.xz`, in lower case.
fn inner_name(path: &Path) -> String {
    let name = path.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
    name.strip_suffix(".gz").or_else(|| name.strip_suffix(".xz")).unwrap_or(&name).to_string()
}

fn is_jsonl(path: &Path, format: Format) -> bool {
    match format {
        Format::Jsonl => true,
        Format::Text => false,
        Format::Auto => [".jsonl", ".ndjson"].iter().any(|end| inner_name(path).ends_with(end)),
    }
}

/// The files that a path means, with their sizes, sorted by name.
fn find(path: &Path) -> Result<Vec<(PathBuf, u64)>, DataError> {
    let none = || DataError::NoFiles { path: path.into() };
    let mut files = Vec::new();
    if path.is_dir() {
        let wanted = |relative: &str| {
            let name = inner_name(Path::new(relative));
            [".txt", ".jsonl", ".ndjson"].iter().any(|end| name.ends_with(end))
        };
        walk(path, "", 0, &wanted, &mut files)?;
    } else if path.exists() {
        files.push(path.to_path_buf());
    } else {
        let parts: Vec<_> = path.components().collect();
        let is_pattern = |part: &std::path::Component| part.as_os_str().to_string_lossy().contains(['*', '?']);
        let cut = parts.iter().position(is_pattern).ok_or_else(none)?;
        let root: PathBuf = parts[..cut].iter().collect();
        let names: Vec<_> = parts[cut..].iter().map(|p| p.as_os_str().to_string_lossy()).collect();
        let pattern = names.join("/");
        let root = if cut == 0 { PathBuf::from(".") } else { root };
        if root.is_dir() {
            walk(&root, "", 0, &|relative| glob_matches(&pattern, relative), &mut files)?;
        }
    }
    files.sort();
    let sized = |path: PathBuf| match std::fs::metadata(&path) {
        Ok(data) => Ok((path, data.len())),
        Err(source) => Err(DataError::Read { path, source }),
    };
    if files.is_empty() { Err(none()) } else { files.into_iter().map(sized).collect() }
}

/// Adds the files under `folder` whose path relative to the root is wanted. Hidden ones are left out; links to folders are not followed.
fn walk(
    folder: &Path,
    relative: &str,
    depth: usize,
    wanted: &dyn Fn(&str) -> bool,
    out: &mut Vec<PathBuf>,
) -> Result<(), DataError> {
    let read = |source| DataError::Read { path: folder.into(), source };
    if depth > MAX_DEPTH {
        return Ok(());
    }
    for entry in std::fs::read_dir(folder).map_err(read)? {
        let entry = entry.map_err(read)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        let relative = if relative.is_empty() { name } else { format!("{relative}/{name}") };
        if entry.file_type().map_err(read)?.is_dir() {
            walk(&entry.path(), &relative, depth + 1, wanted, out)?;
        } else if wanted(&relative) && entry.path().is_file() {
            out.push(entry.path());
        }
    }
    Ok(())
}
