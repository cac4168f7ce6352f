//! `.tiktoken` files: one token a line, `base64 rank`, and nothing else; the rank is the id and says how early a token is merged.
//!
//! The merges are not in the file. A token's are found by encoding its own bytes with the tokens of lower rank: what is left are
//! the two parts that were merged into it. A token of which more than two parts are left is only found as a whole word
//! (`ignore_merges`).
//!
//! Most files hold the bytes of each token. DeepSeek's hold the characters that stand for them in a byte-level vocabulary, and
//! are told apart by what stands for the byte 0.

use std::{collections::HashMap, fs, io::Read, path::Path};

use crate::{
    tokenizer::TokenizerError,
    vocabulary::{MAX_TOKENS, Style, Vocabulary, byte_to_char, never_in_text},
};

/// Bytes of a file; the largest published ones have 4 MB.
const MAX_FILE: u64 = 32 << 20;
/// Bytes of a token; the longest published ones have 256 (spaces).
const MAX_TOKEN: usize = 1024;
/// Sum of the squared lengths of tokens, which bounds the time to find the merges; published files have less than 2²⁴.
const MAX_WORK: usize = 1 << 28;

impl Vocabulary {
    /// Reads a `.tiktoken` file.
    ///
    /// # Errors
    /// [`TokenizerError::File`] and [`TokenizerError::Format`], which names the line.
    pub fn from_tiktoken_file(path: impl AsRef<Path>, style: Style) -> Result<Self, TokenizerError> {
        let path = path.as_ref();
        let file = |error| TokenizerError::File { path: path.into(), error };
        let mut bytes = Vec::new();
        fs::File::open(path).map_err(file)?.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(file)?;
        Self::from_tiktoken(&bytes, style, &path.display().to_string())
    }

    /// From the bytes of a `.tiktoken` file; `origin` names it in errors.
    ///
    /// # Errors
    /// [`TokenizerError::Format`].
    pub fn from_tiktoken(bytes: &[u8], style: Style, origin: &str) -> Result<Self, TokenizerError> {
        let error = |what: String| TokenizerError::Format { origin: origin.to_owned(), what };
        if bytes.len() as u64 > MAX_FILE {
            return Err(error(format!("more than {MAX_FILE} bytes, which no vocabulary needs")));
        }
        let payloads = parse(bytes).map_err(error)?;
        let single: HashMap<&[u8], ()> = payloads.iter().filter(|p| p.len() <= 2).map(|p| (p.as_slice(), ())).collect();
        let missing = |byte: u8, spelled: &[u8]| !never_in_text(byte) && !single.contains_key(spelled);
        let raw = (0..=255).all(|b| !missing(b, &[b]));
        let letters: Vec<char> = (0..=255).map(byte_to_char).collect();
        let spelled = |b: u8| letters[b as usize].to_string().into_bytes();
        if !raw && let Some(byte) = (0..=255).find(|b| missing(*b, &spelled(*b))) {
            let what = format!(
                "no token stands for the byte {byte}; expected one for each, as bytes or as the characters of a byte-level vocabulary"
            );
            return Err(error(what));
        }
        let mut tokens = Vec::with_capacity(payloads.len());
        let mut ranks: HashMap<Vec<u8>, u32> = HashMap::with_capacity(payloads.len());
        let bytes_of: HashMap<char, u8> = letters.iter().copied().zip(0..=255).collect();
        // By id; none of a token that stands for no bytes, such as a special token.
        let mut contents: Vec<Option<Vec<u8>>> = Vec::with_capacity(payloads.len());
        for (payload, id) in payloads.into_iter().zip(0u32..) {
            let (token, content) = if raw {
                (payload.iter().map(|b| letters[*b as usize]).collect(), Some(payload))
            } else {
                let token = String::from_utf8(payload)
                    .map_err(|_| error(format!("token {id} is not UTF-8, but those for single bytes are")))?;
                let content = token.chars().map(|c| bytes_of.get(&c).copied()).collect();
                (token, content)
            };
            if let Some(content) = &content
                && let Some(other) = ranks.insert(content.clone(), id)
            {
                return Err(error(format!("the tokens {other} and {id} are the same")));
            }
            tokens.push(token);
            contents.push(content);
        }
        let mut merges = Vec::new();
        let mut ignore_merges = false;
        for (content, id) in contents.iter().zip(0u32..) {
            let Some(content) = content.as_ref().filter(|c| c.len() > 1) else { continue };
            match split(content, id, &ranks) {
                Some(pair) => merges.push(pair),
                None => ignore_merges = true,
            }
        }
        let mut vocabulary = Self { style, tokens, merges, ignore_merges, added: vec![] };
        let added = style.added_tokens(vocabulary.tokens.len() as u32);
        vocabulary.set_added_tokens(added, origin)?;
        Ok(vocabulary)
    }
}

/// Payloads by rank. An error says in which line.
fn parse(bytes: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let mut payloads: Vec<Option<Vec<u8>>> = Vec::new();
    let mut work = 0usize;
    for (line, n) in bytes.split(|b| *b == b'\n').zip(1..) {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        let mut words = line.split(|b| *b == b' ');
        let (Some(payload), Some(rank), None) = (words.next(), words.next(), words.next()) else {
            return Err(format!("line {n}: expected two words, a token in base64 and its rank"));
        };
        let rank: usize = std::str::from_utf8(rank)
            .ok()
            .and_then(|r| r.parse().ok())
            .filter(|r| *r < MAX_TOKENS)
            .ok_or_else(|| format!("line {n}: the rank is not a number below {MAX_TOKENS}"))?;
        let payload = base64(payload).filter(|p| !p.is_empty());
        let payload = payload.ok_or_else(|| format!("line {n}: the token is not base64"))?;
        if payload.len() > MAX_TOKEN {
            return Err(format!("line {n}: a token of {} bytes, more than {MAX_TOKEN}", payload.len()));
        }
        work += payload.len() * payload.len();
        if work > MAX_WORK {
            return Err(format!("line {n}: too many long tokens; is it a vocabulary?"));
        }
        if payloads.len() <= rank {
            payloads.resize(rank + 1, None);
        }
        if payloads[rank].replace(payload).is_some() {
            return Err(format!("line {n}: the rank {rank} is there twice"));
        }
    }
    let n = payloads.len();
    payloads
        .into_iter()
        .zip(0..)
        .map(|(p, rank): (_, usize)| {
            p.ok_or_else(|| format!("there is no token of rank {rank}, though ranks go to {}", n - 1))
        })
        .collect()
}

/// Standard base64 with padding; none if it is not.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let value = |c: u8| {
        Some(match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        })
    };
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let padding = text.iter().rev().take_while(|c| **c == b'=').count();
    if padding > 2 {
        return None;
    }
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    for (i, group) in text.chunks(4).enumerate() {
        let last = (i + 1) * 4 == text.len();
        let letters = if last { 4 - padding } else { 4 };
        let mut bits = 0u32;
        for (j, c) in group.iter().enumerate() {
            bits = bits << 6 | if j < letters { u32::from(value(*c)?) } else { 0 };
        }
        out.extend(&bits.to_be_bytes()[1..letters]);
    }
    Some(out)
}

/// The two parts of lower rank that merge into a token; none if its bytes merge into more parts.
fn split(content: &[u8], id: u32, ranks: &HashMap<Vec<u8>, u32>) -> Option<(u32, u32)> {
    let rank = |from: usize, to: usize| ranks.get(&content[from..to]).copied().filter(|r| *r < id).unwrap_or(u32::MAX);
    // `edges[i]..edges[i + 1]` is part i; `joined[i]` the rank of parts i and i + 1 as one.
    let mut edges: Vec<usize> = (0..=content.len()).collect();
    let mut joined: Vec<u32> = (0..content.len() - 1).map(|i| rank(i, i + 2)).collect();
    while joined.len() > 1 {
        let (at, best) = joined.iter().enumerate().min_by_key(|(i, r)| (**r, *i))?;
        if *best == u32::MAX {
            return None;
        }
        edges.remove(at + 1);
        joined.remove(at);
        if at > 0 {
            joined[at - 1] = rank(edges[at - 1], edges[at + 1]);
        }
        if at < joined.len() {
            joined[at] = rank(edges[at], edges[at + 2]);
        }
    }
    let part = |i: usize| ranks.get(&content[edges[i]..edges[i + 1]]).copied().filter(|r| *r < id);
    Some((part(0)?, part(1)?))
}
