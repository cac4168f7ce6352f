//! A tokenizer.json, read and written through the `tokenizers` crate, which stays hidden behind [`Tokenizer`].

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use tokenizers::Tokenizer as Inner;

/// Largest tokenizer.json that is read; the largest published ones have 20 MB.
const MAX_BYTES: u64 = 256 << 20;

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
    /// It is no tokenizer.json.
    #[error("{origin}: not a tokenizer.json: {what}; expected the file that is published beside a model")]
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
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: Inner,
    /// The same without its special tokens, so that text cannot name them.
    plain: Inner,
    /// Whether each character of a token is one byte.
    byte_level: bool,
}

impl Tokenizer {
    /// Reads a tokenizer.json.
    ///
    /// # Errors
    /// [`TokenizerError::File`] and [`TokenizerError::Format`].
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, TokenizerError> {
        let path = path.as_ref();
        let file = |error| TokenizerError::File { path: path.into(), error };
        let size = fs::metadata(path).map_err(file)?.len();
        if size > MAX_BYTES {
            let what = format!("it has {size} bytes, more than the {MAX_BYTES} that any tokenizer needs");
            return Err(TokenizerError::Format { origin: path.display().to_string(), what });
        }
        Self::parse(&fs::read(path).map_err(file)?, &path.display().to_string())
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
        let inner = Inner::from_bytes(bytes).map_err(|e| format(e.to_string()))?;
        let mut json: serde_json::Value = serde_json::from_slice(bytes).map_err(|e| format(e.to_string()))?;
        if let Some(tokens) = json.get_mut("added_tokens").and_then(|t| t.as_array_mut()) {
            tokens.retain(|t| t["special"] != true);
        }
        // A template processor adds special tokens by id and refuses to load without them.
        json["post_processor"] = serde_json::Value::Null;
        let plain = Inner::from_bytes(json.to_string()).map_err(|e| format(e.to_string()))?;
        let byte_level = json["decoder"].to_string().contains("\"ByteLevel\"");
        Ok(Self { inner, plain, byte_level })
    }

    /// Ids of a rendered template: special tokens in the text are taken as such. Adds none by itself.
    ///
    /// # Errors
    /// [`TokenizerError::Run`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        run(&self.inner, text)
    }

    /// Ids of text in which special tokens have no meaning.
    ///
    /// # Errors
    /// [`TokenizerError::Run`].
    pub fn encode_ordinary(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        run(&self.plain, text)
    }

    /// Text of ids, special tokens included; ids outside the vocabulary give nothing.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.inner.decode(ids, false).unwrap_or_default()
    }

    /// Text of ids without special tokens.
    pub fn decode_skip_special(&self, ids: &[u32]) -> String {
        self.inner.decode(ids, true).unwrap_or_default()
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
        self.inner.get_added_tokens_decoder().get(&id).is_some_and(|t| t.special)
    }

    /// Largest id plus one.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab(true).values().max().map_or(0, |id| *id as usize + 1)
    }

    /// Bytes of text that an id stands for; special tokens have none.
    pub fn byte_len(&self, id: u32) -> usize {
        match self.id_to_token(id) {
            Some(_) if self.is_special(id) => 0,
            Some(token) if self.byte_level => token.chars().count(),
            // `<0x0A>` stands for a byte, `▁` for a space.
            Some(token) if is_byte(&token) => 1,
            Some(token) => token.replace('▁', " ").len(),
            None => 0,
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
