//! A tokenizer.json, read and written through the `tokenizers` crate, which stays hidden behind [`Tokenizer`].

use std::{
    collections::{HashMap, HashSet},
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use tokenizers::{AddedToken, Tokenizer as Inner};

use crate::{Origin, Prompt};

/// Largest tokenizer.json that is read; the largest published ones have 35 MB, and reading takes some ten times that in memory.
const MAX_BYTES: u64 = 64 << 20;

/// Why a tokenizer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The file cannot be read or written.
    #[error("{path}: cannot access the tokenizer: {error}", path = .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// It is no tokenizer.json, or no vocabulary of the format that was asked for.
    #[error("{origin}: not a tokenizer: {what}; expected the file that is published beside a model")]
    Format {
        /// The file, or that it came from memory.
        origin: String,
        /// What the parser says.
        what: String,
    },
    /// A text cannot be encoded or ids not decoded.
    #[error("the tokenizer failed: {0}")]
    Run(String),
    /// The training options cannot be met.
    #[error("{0}")]
    Train(String),
}

/// Text to token ids and back.
///
/// A *control token* is an added token that text must not be able to name: one that the file marks as special, or whose spelling is
/// markup (in `<>` or `[]`, or with DeepSeek's `｜`). DeepSeek-R1, for example, does not mark `<｜User｜>` as special. Other added
/// tokens, such as the `ü` of DeepSeek LLM, are ordinary text.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: Inner,
    /// The same without its control tokens, so that text cannot name them.
    plain: Inner,
    /// Whether each character of a token is one byte.
    byte_level: bool,
    added: HashMap<u32, AddedToken>,
    /// Control tokens by their text.
    control: HashMap<String, u32>,
    /// Their lengths in bytes, the longest first, and the characters that they begin with.
    control_lengths: Vec<usize>,
    control_starts: Vec<char>,
    /// Added tokens that the decoder would take for something else.
    verbatim: HashSet<u32>,
}

fn is_control(token: &AddedToken) -> bool {
    let within = |a, b| token.content.starts_with(a) && token.content.ends_with(b);
    token.special || within('<', '>') || within('[', ']') || token.content.contains('｜')
}

impl Tokenizer {
    /// Reads a tokenizer.json.
    ///
    /// # Errors
    /// [`TokenizerError::File`] and [`TokenizerError::Format`].
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, TokenizerError> {
        let path = path.as_ref();
        let file = |error| TokenizerError::File { path: path.into(), error };
        let mut bytes = Vec::new();
        fs::File::open(path).map_err(file)?.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(file)?;
        if bytes.len() as u64 > MAX_BYTES {
            let what = format!("it has more than the {MAX_BYTES} bytes that any tokenizer needs");
            return Err(TokenizerError::Format { origin: path.display().to_string(), what });
        }
        Self::parse(&bytes, &path.display().to_string())
    }

    /// From the bytes of a tokenizer.json.
    ///
    /// # Errors
    /// [`TokenizerError::Format`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TokenizerError> {
        Self::parse(bytes, "<memory>")
    }

    fn parse(bytes: &[u8], origin: &str) -> Result<Self, TokenizerError> {
        let format = |what: String| TokenizerError::Format { origin: origin.to_owned(), what };
        // The library takes broken JSON inside a decoder, down to a string's bytes and escapes, and a broken table of a
        // normalizer, for its own mistake and panics.
        let mut json: serde_json::Value = serde_json::from_slice(bytes).map_err(|e| format(e.to_string()))?;
        let inner = std::panic::catch_unwind(|| Inner::from_bytes(bytes))
            .map_err(|_| format("one of its parts cannot be read".into()))?
            .map_err(|e| format(e.to_string()))?;
        let added: HashMap<u32, AddedToken> = inner.get_added_tokens_decoder().into_iter().collect();
        let kept: Vec<(u32, &AddedToken)> =
            added.iter().filter(|(_, t)| !is_control(t)).map(|(id, t)| (*id, t)).collect();
        let plain = if kept.is_empty() {
            let mut plain = Inner::new(inner.get_model().clone());
            plain.with_normalizer(inner.get_normalizer().cloned()).map_err(|e| format(e.to_string()))?;
            plain.with_pre_tokenizer(inner.get_pre_tokenizer().cloned());
            plain.with_decoder(inner.get_decoder().cloned());
            plain
        } else {
            if let Some(tokens) = json["added_tokens"].as_array_mut() {
                tokens.retain(|t| kept.iter().any(|(_, k)| t["content"] == *k.content));
            }
            // Without the others they would get other ids, unless the vocabulary says which.
            if let Some(vocab) = json["model"]["vocab"].as_object_mut() {
                for (id, token) in &kept {
                    vocab.insert(token.content.clone(), (*id).into());
                }
            }
            // A template processor adds special tokens by id and refuses to load without them.
            json["post_processor"] = serde_json::Value::Null;
            Inner::from_bytes(json.to_string()).map_err(|e| format(e.to_string()))?
        };
        let control: HashMap<String, u32> =
            added.iter().filter(|(_, t)| is_control(t)).map(|(id, t)| (t.content.clone(), *id)).collect();
        let mangled = |id: u32, t: &AddedToken| inner.decode(&[id], false).map_or(true, |text| text != t.content);
        let verbatim = added.iter().filter(|(id, t)| mangled(**id, t)).map(|(id, _)| *id).collect();
        let mut control_lengths: Vec<usize> = control.keys().map(String::len).collect();
        control_lengths.sort_unstable_by(|a, b| b.cmp(a));
        control_lengths.dedup();
        let mut control_starts: Vec<char> = control.keys().filter_map(|t| t.chars().next()).collect();
        control_starts.sort_unstable();
        control_starts.dedup();
        let decoder = inner.get_decoder().map(serde_json::to_string);
        let byte_level = matches!(decoder, Some(Ok(json)) if json.contains("\"ByteLevel\""));
        Ok(Self { inner, plain, byte_level, added, control, control_lengths, control_starts, verbatim })
    }

    /// Ids of a rendered template: special tokens in the text are taken as such. Adds none by itself.
    ///
    /// # Errors
    /// [`TokenizerError::Run`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        run(&self.inner, text)
    }

    /// Ids of a rendered conversation. What the template wrote may name control tokens, what messages say may not: there
    /// `<｜User｜>` is eight characters and nothing else. An assistant's own `<think>` and `</think>` stay control tokens, because
    /// that is what it said. Adds none by itself.
    ///
    /// # Errors
    /// [`TokenizerError::Run`].
    pub fn encode_prompt(&self, prompt: &Prompt) -> Result<Vec<u32>, TokenizerError> {
        let text = prompt.as_str();
        let mut named = vec![];
        let mut forged = false;
        let mut at = 0;
        while let Some(start) = text[at..].find(|c| self.control_starts.contains(&c)).map(|i| at + i) {
            let longest = self.control_lengths.iter().find_map(|len| {
                let token = text.get(start..start + len)?;
                let id = *self.control.get(token)?;
                let thought = matches!(token, "<think>" | "</think>");
                match prompt.origin(start..start + len) {
                    Origin::Template => Some((*len, id)),
                    Origin::Assistant if thought => Some((*len, id)),
                    _ => {
                        forged = true;
                        None
                    }
                }
            });
            at = start + longest.map_or_else(|| text[start..].chars().next().map_or(1, char::len_utf8), |(len, _)| len);
            named.extend(longest.map(|(len, id)| (start..start + len, id)));
        }
        if !forged {
            let ids = self.encode(text)?;
            // A normalizer may make control tokens of text that spells none.
            let control = ids.iter().copied().filter(|id| self.is_control(*id));
            if control.eq(named.iter().map(|(_, id)| *id)) {
                return Ok(ids);
            }
        }
        let mut ids = vec![];
        let mut done = 0;
        for (range, id) in named {
            self.push_ordinary(&mut ids, &text[done..range.start])?;
            ids.push(id);
            done = range.end;
        }
        self.push_ordinary(&mut ids, &text[done..])?;
        Ok(ids)
    }

    fn push_ordinary(&self, ids: &mut Vec<u32>, text: &str) -> Result<(), TokenizerError> {
        let more = self.encode_ordinary(text)?;
        if let Some(id) = more.iter().find(|id| self.is_control(**id)) {
            let token = self.id_to_token(*id).unwrap_or_default();
            let what =
                format!("it makes the control token {token:?} of ordinary text, so that a message could forge it");
            return Err(TokenizerError::Run(what));
        }
        ids.extend(more);
        Ok(())
    }

    /// Ids of text in which control tokens have no meaning.
    ///
    /// # Errors
    /// [`TokenizerError::Run`].
    pub fn encode_ordinary(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        run(&self.plain, text)
    }

    /// Text of ids, special tokens included; ids outside the vocabulary give nothing.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.decode_with(ids, false)
    }

    /// Text of ids without special tokens.
    pub fn decode_skip_special(&self, ids: &[u32]) -> String {
        self.decode_with(ids, true)
    }

    fn decode_with(&self, ids: &[u32], skip_special: bool) -> String {
        let mut text = String::new();
        for run in ids.chunk_by(|a, b| !self.verbatim.contains(a) && !self.verbatim.contains(b)) {
            match run {
                [id] if self.verbatim.contains(id) => {
                    text += self.added.get(id).filter(|t| !(skip_special && t.special)).map_or("", |t| &t.content);
                }
                _ => text += &self.inner.decode(run, skip_special).unwrap_or_default(),
            }
        }
        text
    }

    /// Id of a token.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Token of an id, in the vocabulary's own spelling.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether an id is a special token.
    pub fn is_special(&self, id: u32) -> bool {
        self.added.get(&id).is_some_and(|t| t.special)
    }

    /// Whether an id is a control token: see [`Tokenizer`].
    pub fn is_control(&self, id: u32) -> bool {
        self.added.get(&id).is_some_and(is_control)
    }

    /// Largest id plus one.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab(true).values().max().map_or(0, |id| *id as usize + 1)
    }

    /// Bytes of text that an id stands for; special tokens have none.
    pub fn byte_len(&self, id: u32) -> usize {
        match (self.added.get(&id), self.id_to_token(id)) {
            (Some(added), _) if added.special => 0,
            (Some(added), _) => added.content.len(),
            (None, Some(token)) if self.byte_level => token.chars().count(),
            // `<0x0A>` stands for a byte, `▁` for a space.
            (None, Some(token)) if is_byte(&token) => 1,
            (None, Some(token)) => token.replace('▁', " ").len(),
            (None, None) => 0,
        }
    }

    /// The tokenizer.json.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.inner.to_string(true).expect("a tokenizer always prints").into_bytes()
    }

    /// Writes the tokenizer.json whole or not at all.
    ///
    /// # Errors
    /// [`TokenizerError::File`]; a file that was there stays.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), TokenizerError> {
        let path = path.as_ref();
        jevons_sys::atomic::write(path, &self.to_bytes())
            .map_err(|error| TokenizerError::File { path: path.into(), error })
    }
}

fn is_byte(token: &str) -> bool {
    token.strip_prefix("<0x").and_then(|t| t.strip_suffix('>')).is_some_and(|t| u8::from_str_radix(t, 16).is_ok())
}

fn run(inner: &Inner, text: &str) -> Result<Vec<u32>, TokenizerError> {
    Ok(inner.encode_fast(text, false).map_err(|e| TokenizerError::Run(e.to_string()))?.get_ids().to_vec())
}

/// Text of ids as they come, never half a character.
///
/// What all pushes and [`DecodeStream::finish`] return, joined, is the decoding of all ids.
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// The last id whose text is out. Some tokenizers take the space away that a text begins with, and only there.
    before: Option<u32>,
    /// Ids whose text is not all out.
    pending: Vec<u32>,
    /// Bytes of their text that are out.
    shown: usize,
}

impl<'a> DecodeStream<'a> {
    /// The beginning of a text.
    pub fn new(tokenizer: &'a Tokenizer, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, before: None, pending: Vec::new(), shown: 0 }
    }

    /// What follows `ids`, whose text is known.
    pub fn after(tokenizer: &'a Tokenizer, skip_special: bool, ids: &[u32]) -> Self {
        let before = ids.last().copied().filter(|id| !tokenizer.is_special(*id));
        Self { before, ..Self::new(tokenizer, skip_special) }
    }

    fn decode(&self, ids: &[u32]) -> String {
        if self.skip_special { self.tokenizer.decode_skip_special(ids) } else { self.tokenizer.decode(ids) }
    }

    /// Of the pending ids.
    fn text(&self) -> String {
        let Some(before) = self.before else { return self.decode(&self.pending) };
        let start = self.decode(&[before]);
        let both = self.decode(&[&[before], &self.pending[..]].concat());
        match both.strip_prefix(&start) {
            Some(text) => text.to_owned(),
            None => self.decode(&self.pending), // A character began in `before`: its part is out already.
        }
    }

    /// The text that one more id completes; empty while a character is incomplete.
    pub fn push(&mut self, id: u32) -> String {
        self.pending.push(id);
        let text = self.text();
        // A replacement character at the end may become a real one with the next byte; a character has at most 4.
        let open = text.char_indices().rev().take(4).take_while(|(_, c)| *c == char::REPLACEMENT_CHARACTER).last();
        let end = open.map_or(text.len(), |(at, _)| at);
        let new = text.get(self.shown..end).unwrap_or_default().to_owned();
        self.shown = self.shown.max(end);
        if end == text.len() {
            self.clear();
        }
        new
    }

    /// What is left; bytes that never became a character are shown as U+FFFD.
    pub fn finish(&mut self) -> String {
        let text = self.text();
        let rest = text.get(self.shown..).unwrap_or_default().to_owned();
        self.clear();
        rest
    }

    fn clear(&mut self) {
        // A token that is left out has no text to come after.
        let shown = self.pending.iter().rev().find(|id| !(self.skip_special && self.tokenizer.is_special(**id)));
        self.before = shown.copied().or(self.before);
        self.pending.clear();
        self.shown = 0;
    }
}
