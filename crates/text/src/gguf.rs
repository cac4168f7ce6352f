//! The vocabulary in the metadata of a GGUF file (versions 2 and 3, little-endian). Weights are not read.
//!
//! Only byte-level BPE (`tokenizer.ggml.model = "gpt2"`) whose way of cutting words is known (`tokenizer.ggml.pre`) is taken.
//! Lengths come from strangers: nothing is allocated before the bytes are there, and all metadata together is bounded.

use std::{
    collections::HashMap,
    fs,
    io::{self, BufReader, Read},
    path::Path,
};

use crate::{
    tokenizer::TokenizerError,
    vocabulary::{AddedToken, MAX_TOKENS, Style, Vocabulary, byte_to_char, never_in_text},
};

/// Bytes of metadata that are read; the largest vocabularies have 20 MB.
const MAX_METADATA: u64 = 256 << 20;
/// Keys; published files have about 40.
const MAX_KEYS: u64 = 1 << 16;
/// Bytes of a key.
const MAX_KEY: u64 = 1 << 16;
/// Arrays within arrays.
const MAX_DEPTH: usize = 4;

/// Kinds of values, as the format numbers them.
mod kind {
    pub const I32: u32 = 5;
    pub const STRING: u32 = 8;
    pub const ARRAY: u32 = 9;
}

/// Kinds of tokens, as the format numbers them; 1 is an ordinary token, 5 an unused one.
mod token_type {
    pub const UNKNOWN: i32 = 2;
    pub const CONTROL: i32 = 3;
    pub const USER_DEFINED: i32 = 4;
}

impl Vocabulary {
    /// Reads the vocabulary of a GGUF file.
    ///
    /// # Errors
    /// [`TokenizerError::File`], and [`TokenizerError::Format`] if it is no GGUF or its tokenizer is of another kind.
    pub fn from_gguf_file(path: impl AsRef<Path>) -> Result<Self, TokenizerError> {
        let path = path.as_ref();
        let file = fs::File::open(path).map_err(|error| TokenizerError::File { path: path.into(), error })?;
        Self::from_gguf(BufReader::with_capacity(1 << 16, file), &path.display().to_string())
    }

    /// From the beginning of a GGUF; `origin` names it in errors.
    ///
    /// # Errors
    /// [`TokenizerError::Format`].
    pub fn from_gguf(reader: impl Read, origin: &str) -> Result<Self, TokenizerError> {
        let mut reader = Metadata { inner: reader.take(MAX_METADATA) };
        vocabulary(&mut reader, origin).map_err(|e| TokenizerError::Format { origin: origin.to_owned(), what: e.0 })
    }
}

/// What is wrong.
struct Wrong(String);

impl From<io::Error> for Wrong {
    fn from(e: io::Error) -> Self {
        Self(match e.kind() {
            io::ErrorKind::UnexpectedEof => {
                format!(
                    "the file ends, or has more than {MAX_METADATA} bytes of metadata, before its vocabulary does; is it whole?"
                )
            }
            _ => format!("cannot read the file: {e}"),
        })
    }
}

impl From<TokenizerError> for Wrong {
    fn from(e: TokenizerError) -> Self {
        match e {
            TokenizerError::Format { what, .. } => Self(what),
            other => Self(other.to_string()),
        }
    }
}

fn wrong<T>(what: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong(what.into()))
}

struct Metadata<R> {
    inner: io::Take<R>,
}

impl<R: Read> Metadata<R> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Wrong> {
        let mut bytes = [0; N];
        self.inner.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, Wrong> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Result<u64, Wrong> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    fn string(&mut self, max: u64) -> Result<String, Wrong> {
        let len = self.u64()?;
        if len > max {
            return wrong(format!("a text of {len} bytes, more than {max}"));
        }
        let mut bytes = Vec::new();
        self.inner.by_ref().take(len).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != len {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        String::from_utf8(bytes).map_err(|_| Wrong("a text is not UTF-8".into()))
    }

    fn skip_bytes(&mut self, n: u64) -> Result<(), Wrong> {
        let there = io::copy(&mut self.inner.by_ref().take(n), &mut io::sink())?;
        if there == n { Ok(()) } else { Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()) }
    }

    fn skip(&mut self, kind: u32, depth: usize) -> Result<(), Wrong> {
        match size_of_kind(kind) {
            Some(n) => self.skip_bytes(n),
            None if kind == kind::STRING => {
                let len = self.u64()?;
                self.skip_bytes(len)
            }
            None if kind == kind::ARRAY && depth < MAX_DEPTH => {
                let (kind, n) = (self.u32()?, self.u64()?);
                match size_of_kind(kind) {
                    Some(size) => self.skip_bytes(n.saturating_mul(size)),
                    None => (0..n).try_for_each(|_| self.skip(kind, depth + 1)),
                }
            }
            None => wrong(format!("a value of the unknown kind {kind}")),
        }
    }

    /// An array's length, if its values are of this kind.
    fn array(&mut self, of: u32, found: u32, max: usize) -> Result<usize, Wrong> {
        if found != kind::ARRAY {
            return wrong(format!("a value of kind {found}, expected an array"));
        }
        let (kind, n) = (self.u32()?, self.u64()?);
        if kind != of {
            return wrong(format!("an array of kind {kind}, expected {of}"));
        }
        match usize::try_from(n).ok().filter(|n| *n <= max) {
            Some(n) => Ok(n),
            None => wrong(format!("an array of {n} values, more than {max}")),
        }
    }

    fn strings(&mut self, found: u32, max: usize) -> Result<Vec<String>, Wrong> {
        let n = self.array(kind::STRING, found, max)?;
        (0..n).map(|_| self.string(MAX_KEY)).collect()
    }
}

/// Bytes of a value of a fixed size.
fn size_of_kind(kind: u32) -> Option<u64> {
    Some(match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        10..=12 => 8,
        _ => return None,
    })
}

fn vocabulary(reader: &mut Metadata<impl Read>, origin: &str) -> Result<Vocabulary, Wrong> {
    if reader.bytes::<4>()? != *b"GGUF" {
        return wrong("it does not begin with GGUF");
    }
    let version = reader.u32()?;
    if !matches!(version, 2 | 3) {
        return wrong(format!("version {version} of GGUF, expected 2 or 3"));
    }
    let _tensors = reader.u64()?;
    let keys = reader.u64()?;
    if keys > MAX_KEYS {
        return wrong(format!("{keys} keys, more than {MAX_KEYS}"));
    }
    let (mut model, mut pre, mut tokens, mut types, mut merges) = (None, None, None, None, None);
    for _ in 0..keys {
        let key = reader.string(MAX_KEY)?;
        let found = reader.u32()?;
        let named = |e: Wrong| Wrong(format!("`{key}`: {}", e.0));
        match (key.as_str(), found) {
            ("tokenizer.ggml.model", kind::STRING) => model = Some(reader.string(MAX_KEY).map_err(named)?),
            ("tokenizer.ggml.pre", kind::STRING) => pre = Some(reader.string(MAX_KEY).map_err(named)?),
            ("tokenizer.ggml.tokens", _) => tokens = Some(reader.strings(found, MAX_TOKENS).map_err(named)?),
            ("tokenizer.ggml.merges", _) => merges = Some(reader.strings(found, 4 * MAX_TOKENS).map_err(named)?),
            ("tokenizer.ggml.token_type", _) => {
                let n = reader.array(kind::I32, found, MAX_TOKENS).map_err(named)?;
                let all: Result<Vec<i32>, Wrong> = (0..n).map(|_| Ok(i32::from_le_bytes(reader.bytes()?))).collect();
                types = Some(all.map_err(named)?);
            }
            _ => reader.skip(found, 0).map_err(named)?,
        }
    }
    let Some(model) = model else { return wrong("it has no `tokenizer.ggml.model`: a file without a vocabulary?") };
    if model != "gpt2" {
        return wrong(format!("its tokenizer is of the kind {model:?}; expected gpt2, a byte-level BPE"));
    }
    let pre = pre.unwrap_or_default();
    let Some(style) = Style::from_gguf(&pre) else {
        return wrong(format!(
            "it cuts words as {pre:?}, which is not known here; expected deepseek-llm, deepseek-coder, deepseek-v3, \
             deepseek-r1-qwen, qwen2 or kimi-k2"
        ));
    };
    let (Some(tokens), Some(types), Some(merges)) = (tokens, types, merges) else {
        return wrong("it lacks one of tokenizer.ggml.tokens, .token_type and .merges");
    };
    build(style, tokens, &types, &merges, origin)
}

fn build(
    style: Style,
    mut tokens: Vec<String>,
    types: &[i32],
    merges: &[String],
    origin: &str,
) -> Result<Vocabulary, Wrong> {
    if types.len() != tokens.len() {
        return wrong(format!("{} tokens, but {} token types", tokens.len(), types.len()));
    }
    let added: Vec<AddedToken> = (tokens.iter().zip(types).zip(0u32..))
        .filter(|((_, t), _)| matches!(**t, token_type::UNKNOWN | token_type::CONTROL | token_type::USER_DEFINED))
        .map(|((content, t), id)| AddedToken { id, content: content.clone(), special: *t != token_type::USER_DEFINED })
        .collect();
    // Added tokens at the end are not part of the vocabulary proper: `ü` among them stands for itself, not for the byte 0xFC.
    let end = added.iter().rev().zip((0..tokens.len()).rev()).take_while(|(t, i)| t.id as usize == *i).count();
    tokens.truncate(tokens.len() - end);
    let ids: HashMap<&str, u32> = tokens.iter().map(String::as_str).zip(0..).collect();
    if ids.len() != tokens.len() {
        return wrong("a token is there twice");
    }
    if let Some(byte) = (0..=255).find(|b| !never_in_text(*b) && !ids.contains_key(&*byte_to_char(*b).to_string())) {
        return wrong(format!("no token stands for the byte {byte}"));
    }
    let mut pairs = Vec::with_capacity(merges.len());
    for (merge, n) in merges.iter().zip(1..) {
        let pair = merge.split_once(' ').and_then(|(a, b)| {
            ids.get(&*format!("{a}{b}"))?;
            Some((*ids.get(a)?, *ids.get(b)?))
        });
        let Some(pair) = pair else {
            return wrong(format!("merge {n}, {merge:?}, is not two tokens that make a third"));
        };
        pairs.push(pair);
    }
    let mut vocabulary = Vocabulary { style, tokens, merges: pairs, ignore_merges: false, added: vec![] };
    vocabulary.set_added_tokens(added, origin)?;
    Ok(vocabulary)
}
