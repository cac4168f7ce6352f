//! Token files: documents as token ids on disk, made once and mapped into memory by every later run.
//!
//! ```text
//! bytes         what, all numbers little-endian
//!     8         "jevonsTK"
//! T · 2 or 4    ids, each below V
//! ⌈T / 8⌉       one bit per token, lowest first: is it a target of the loss?
//! N · 24        per document: end in tokens, content hash, learnt bytes of text
//!     4         version, 1
//!     4         bytes per id: 2 or 4
//!     8         vocabulary size, V
//!     8         documents, N
//!     8         tokens, T
//!    32         fingerprint of what the file was made from
//!    32         SHA-256 of everything before
//! ```
//! What says the lengths comes last, so that the file is written in one go however long it gets.
//! A file from strangers can therefore be wrong, but not lead a reader out of its bounds: every length, the checksum, the order
//! of the ends and the range of the ids are checked in [`TokenFile::open`].

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use jevons_sys::{MappedFile, atomic};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::{ChatFormat, DataError, Document, OpenSource, Segment, source::Origin};

const MAGIC: &[u8; 8] = b"jevonsTK";
const VERSION: u32 = 1;
const HEAD: usize = 8;
const FOOT: usize = 96;
/// Text that is turned into tokens at a time, in bytes: enough for every core, little for the memory.
const CHUNK: usize = 4 << 20;

/// Turns segments into token ids; shared by threads.
pub type Encode<'a> = dyn Fn(&Segment) -> Result<Vec<u32>, Box<dyn std::error::Error + Send + Sync>> + Send + Sync + 'a;

/// What must be known of a tokenizer.
pub struct Encoder<'a> {
    /// Every id is below it.
    pub vocab_size: usize,
    /// SHA-256 of `tokenizer.json`: another tokenizer makes another token file.
    pub tokenizer_sha256: [u8; 32],
    /// Put before every document, never a target.
    pub bos: Option<u32>,
    /// Put after every document that ends, always a target.
    pub eos: Option<u32>,
    /// Control tokens of conversations.
    pub chat: ChatFormat,
    /// Text → ids, with no tokens added; a special segment is the name of one control token.
    pub encode: Box<Encode<'a>>,
}

/// How far the making of token files is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes read from disk, or documents generated.
    pub done: u64,
    /// Of so many.
    pub total: u64,
    /// Tokens written.
    pub tokens: u64,
}

/// A mapped token file.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    map: MappedFile,
    id_bytes: usize,
    vocab_size: usize,
    documents: usize,
    tokens: usize,
    fingerprint: [u8; 32],
}

impl TokenFile {
    /// Opens a token file and checks all of it.
    ///
    /// # Errors
    /// [`DataError::Read`], or [`DataError::TokenFile`] with what is wrong.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let map = MappedFile::open(path).map_err(|source| DataError::Read { path: path.into(), source })?;
        let bad = |message: String| DataError::TokenFile { path: path.into(), message };
        let bytes: &[u8] = &map;
        if bytes.len() < HEAD + FOOT || &bytes[..HEAD] != MAGIC {
            return Err(bad("it does not start and end as one".into()));
        }
        let (content, sha) = bytes.split_at(bytes.len() - 32);
        let foot = &bytes[bytes.len() - FOOT..];
        let u32_at = |at: usize| u32::from_le_bytes(foot[at..at + 4].try_into().expect("4 bytes"));
        if u32_at(0) != VERSION {
            return Err(bad(format!("version {}; expected {VERSION}", u32_at(0))));
        }
        let id_bytes = match u32_at(4) {
            n @ (2 | 4) => n as usize,
            n => return Err(bad(format!("{n} bytes per id; expected 2 or 4"))),
        };
        let [vocab_size, documents, tokens] = [8, 16, 24].map(|at| u64_at(foot, at));
        if vocab_size == 0 || vocab_size > 1 << 32 || (id_bytes == 2 && vocab_size > 1 << 16) {
            return Err(bad(format!("a vocabulary of {vocab_size} with {id_bytes} bytes per id")));
        }
        let want = (|| {
            let (ids, entries) = (tokens.checked_mul(id_bytes as u64)?, documents.checked_mul(24)?);
            ids.checked_add(tokens.div_ceil(8))?.checked_add(entries)?.checked_add((HEAD + FOOT) as u64)
        })();
        if want != Some(bytes.len() as u64) {
            let want = want.map_or("more than there can be".into(), |n| n.to_string());
            return Err(bad(format!("{} bytes; its last lines ask {want}; was it cut short?", bytes.len())));
        }
        if Sha256::digest(content)[..] != *sha {
            return Err(bad("its checksum does not fit; it is damaged".into()));
        }
        let fingerprint = foot[32..64].try_into().expect("32 bytes");
        let (vocab_size, documents, tokens) = (vocab_size as usize, documents as usize, tokens as usize);
        let file = Self { path: path.into(), map, id_bytes, vocab_size, documents, tokens, fingerprint };
        let mut ends = (0..documents).map(|d| file.entry(d)[0]);
        if !ends.clone().is_sorted() || ends.next_back().unwrap_or(0) != tokens as u64 {
            return Err(bad("its documents do not add up to its tokens".into()));
        }
        if let Some(id) = file.ids(0, tokens).find(|id| *id as usize >= vocab_size) {
            return Err(bad(format!("token id {id}; its vocabulary has {vocab_size}")));
        }
        Ok(file)
    }

    /// The token file of a source in `folder`: opened if it is there and made from the same things, made otherwise. A damaged one
    /// is made again.
    ///
    /// # Errors
    /// What reading the source, the tokenizer and writing give. No half-made file is left.
    pub fn build_or_open(
        folder: &Path,
        source: &OpenSource,
        encoder: &Encoder,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, DataError> {
        let fingerprint = encoder.fingerprint(source)?;
        let path = folder.join(format!("{}.tokens", &super::hex(&fingerprint)[..16]));
        match Self::open(&path) {
            Ok(file) if file.fingerprint == fingerprint => return Ok(file),
            Ok(_) | Err(DataError::TokenFile { .. }) => {}
            Err(DataError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        std::fs::create_dir_all(folder).map_err(|source| DataError::Write { path: folder.into(), source })?;
        build(&path, fingerprint, source, encoder, progress)?;
        Self::open(&path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `V`: every id is below it.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Documents.
    pub fn documents(&self) -> usize {
        self.documents
    }

    /// Tokens of all documents.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Where a document's tokens stand.
    pub fn range(&self, document: usize) -> std::ops::Range<usize> {
        let start = if document == 0 { 0 } else { self.entry(document - 1)[0] };
        start as usize..self.entry(document)[0] as usize
    }

    /// [`Document::content_hash`]
    pub fn content_hash(&self, document: usize) -> u64 {
        self.entry(document)[1]
    }

    /// [`Document::learnt_bytes`]
    pub fn learnt_bytes(&self, document: usize) -> u64 {
        self.entry(document)[2]
    }

    /// Ids of the tokens `start..end` of the file.
    pub fn ids(&self, start: usize, end: usize) -> impl Iterator<Item = u32> + '_ {
        assert!(start <= end && end <= self.tokens, "tokens {start}..{end} of {}", self.tokens);
        let n = self.id_bytes;
        let bytes = &self.map[HEAD + start * n..HEAD + end * n];
        bytes.chunks_exact(n).map(|b| match b {
            [a, b] => u32::from(u16::from_le_bytes([*a, *b])),
            [a, b, c, d] => u32::from_le_bytes([*a, *b, *c, *d]),
            _ => unreachable!("chunks of 2 or 4"),
        })
    }

    /// Whether a token of the file is a target of the loss.
    pub fn is_target(&self, token: usize) -> bool {
        assert!(token < self.tokens);
        self.map[HEAD + self.tokens * self.id_bytes + token / 8] >> (token % 8) & 1 == 1
    }

    fn entry(&self, document: usize) -> [u64; 3] {
        assert!(document < self.documents, "document {document} of {}", self.documents);
        let at = HEAD + self.tokens * self.id_bytes + self.tokens.div_ceil(8) + document * 24;
        [0, 8, 16].map(|o| u64_at(&self.map, at + o))
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

impl Encoder<'_> {
    /// What a token file of `source` depends on.
    fn fingerprint(&self, source: &OpenSource) -> Result<[u8; 32], DataError> {
        let mut sha = Sha256::new();
        sha.update(source.fingerprint()?);
        sha.update(self.tokenizer_sha256);
        sha.update(format!("{:?}", (VERSION, self.vocab_size, self.bos, self.eos, &self.chat)));
        Ok(sha.finalize().into())
    }

    /// Ids of a document, and which of them are targets.
    fn document(&self, origin: &Origin, document: &Document) -> Result<(Vec<u32>, Vec<bool>), DataError> {
        let bad = |message: String| DataError::Encode { origin: origin.to_string(), message };
        let (mut ids, mut targets) = (Vec::new(), Vec::new());
        if let Some(bos) = self.bos {
            ids.push(bos);
            targets.push(false);
        }
        for segment in &document.segments {
            let more = (self.encode)(segment).map_err(|e| bad(e.to_string()))?;
            if segment.special && more.len() != 1 {
                let message = format!("{:?} gives {} tokens; expected one control token", segment.text, more.len());
                return Err(bad(message));
            }
            targets.resize(targets.len() + more.len(), segment.train);
            ids.extend(more);
        }
        if let (Some(eos), true) = (self.eos, document.ends) {
            ids.push(eos);
            targets.push(true);
        }
        match ids.iter().find(|id| **id as usize >= self.vocab_size) {
            Some(id) => Err(bad(format!("token id {id}; the vocabulary has {}", self.vocab_size))),
            None => Ok((ids, targets)),
        }
    }
}

/// A token file in the making.
struct Building<'a> {
    encoder: &'a Encoder<'a>,
    out: Hashed,
    id_bytes: usize,
    /// Documents that are not encoded yet, and their bytes.
    waiting: Vec<(Origin, Document)>,
    waiting_bytes: usize,
    tokens: u64,
    documents: u64,
    /// The bits and the entries of the file: they follow the ids.
    targets: Vec<u8>,
    entries: Vec<u8>,
}

/// Hashes what it writes.
struct Hashed {
    path: PathBuf,
    file: atomic::Writer,
    sha: Sha256,
}

impl Hashed {
    fn write(&mut self, bytes: &[u8]) -> Result<(), DataError> {
        self.sha.update(bytes);
        self.file.write_all(bytes).map_err(|source| DataError::Write { path: self.path.clone(), source })
    }
}

impl Building<'_> {
    /// Encodes what waits, on all cores, and writes it in order.
    fn flush(&mut self) -> Result<(), DataError> {
        let waiting = std::mem::take(&mut self.waiting);
        self.waiting_bytes = 0;
        let encode = |(origin, document): &(Origin, Document)| {
            let (ids, targets) = self.encoder.document(origin, document)?;
            Ok((ids, targets, document.content_hash(), document.learnt_bytes()))
        };
        // Results, not one result of all: of several errors rayon keeps whichever came first in time.
        let encoded: Vec<Result<_, DataError>> = waiting.par_iter().map(encode).collect();
        let mut raw = Vec::new();
        for document in encoded {
            let (ids, targets, hash, bytes) = document?;
            raw.clear();
            for (id, target) in ids.iter().zip(targets) {
                raw.extend_from_slice(&id.to_le_bytes()[..self.id_bytes]);
                let bit = self.tokens % 8;
                if bit == 0 {
                    self.targets.push(0);
                }
                *self.targets.last_mut().expect("pushed at bit 0") |= u8::from(target) << bit;
                self.tokens += 1;
            }
            self.out.write(&raw)?;
            self.documents += 1;
            for n in [self.tokens, hash, bytes] {
                self.entries.extend_from_slice(&n.to_le_bytes());
            }
        }
        Ok(())
    }
}

fn build(
    path: &Path,
    fingerprint: [u8; 32],
    source: &OpenSource,
    encoder: &Encoder,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), DataError> {
    let write = |source| DataError::Write { path: path.into(), source };
    let file = atomic::Writer::create(path).map_err(write)?;
    let mut building = Building {
        encoder,
        out: Hashed { path: path.into(), file, sha: Sha256::new() },
        id_bytes: if encoder.vocab_size <= 1 << 16 { 2 } else { 4 },
        waiting: Vec::new(),
        waiting_bytes: 0,
        tokens: 0,
        documents: 0,
        targets: Vec::new(),
        entries: Vec::new(),
    };
    building.out.write(MAGIC)?;
    let (total, done) = (source.size(), std::cell::Cell::new(0));
    source.for_each(&encoder.chat, &mut |n| done.set(n), &mut |origin, document| {
        building.waiting_bytes += document.bytes();
        building.waiting.push((origin.clone(), document));
        if building.waiting_bytes >= CHUNK {
            building.flush()?;
            progress(Progress { done: done.get(), total, tokens: building.tokens });
        }
        Ok(())
    })?;
    building.flush()?;
    progress(Progress { done: total, total, tokens: building.tokens });
    let Building { mut out, targets, entries, id_bytes, tokens, documents, .. } = building;
    out.write(&targets)?;
    out.write(&entries)?;
    out.write(&VERSION.to_le_bytes())?;
    out.write(&(id_bytes as u32).to_le_bytes())?;
    for n in [encoder.vocab_size as u64, documents, tokens] {
        out.write(&n.to_le_bytes())?;
    }
    out.write(&fingerprint)?;
    let sha: [u8; 32] = out.sha.clone().finalize().into();
    out.write(&sha)?;
    out.file.commit().map_err(write)
}
