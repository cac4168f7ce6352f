//! The hash of every chunk of a file, so that a bad part can be found and fetched alone.
//!
//! A hub publishes one hash of a whole file, which tells that something is wrong and not where. So every chunk is
//! hashed as it arrives and noted: first in a journal of the unfinished file, later beside the finished one. Both are
//! text: `jevons chunks 1 BYTES CHUNK_BYTES`, then a line `NUMBER SHA256` per chunk.
//!
//! A line is written after the chunk, so after a killed process every noted chunk is there. After a power cut the
//! system may have lost either; a torn line ends the journal, and a lost chunk is found by its hash when the whole file
//! turns out wrong. The published hash has the last word in every case: the notes only say what to fetch again.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    ops::Range,
    path::Path,
};

use crate::{digest::hex, name::is_hex};

pub type ChunkHash = String;

/// Larger tables are not ours.
const MAX_CHUNKS: u64 = 1 << 24;
/// Nor are larger chunks, which are held in memory: none of the files that a hub may have needs them.
const MAX_CHUNK_BYTES: u64 = 64 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunks {
    pub bytes: u64,
    pub chunk_bytes: u64,
    /// `None`: not there.
    pub hashes: Vec<Option<ChunkHash>>,
}

impl Chunks {
    /// None is there.
    pub fn new(bytes: u64, chunk_bytes: u64) -> Self {
        assert!(chunk_bytes > 0);
        let chunk_bytes = chunk_bytes.max(bytes.div_ceil(MAX_CHUNKS));
        let n = usize::try_from(bytes.div_ceil(chunk_bytes)).expect("at most 2²⁴");
        Self { bytes, chunk_bytes, hashes: vec![None; n] }
    }

    /// Reads a table of a file of `bytes`; `None` if it is missing or of another file.
    pub fn read(path: &Path, bytes: u64) -> Option<Self> {
        Some(Self::parse(&std::fs::read(path).ok()?, bytes)?.0)
    }

    /// Also returns how many bytes of the text are good.
    fn parse(text: &[u8], bytes: u64) -> Option<(Self, usize)> {
        let mut lines = text.split_inclusive(|b| *b == b'\n').map_while(|line| {
            let whole = line.strip_suffix(b"\n")?;
            Some((std::str::from_utf8(whole).ok()?, line.len()))
        });
        let (head, mut good) = lines.next()?;
        let mut fields = head.strip_prefix("jevons chunks 1 ")?.split(' ').map(str::parse::<u64>);
        let (Some(Ok(of)), Some(Ok(chunk_bytes)), None) = (fields.next(), fields.next(), fields.next()) else {
            return None;
        };
        let sane = (1..=MAX_CHUNK_BYTES).contains(&chunk_bytes) && bytes.div_ceil(chunk_bytes) <= MAX_CHUNKS;
        if of != bytes || !sane {
            return None;
        }
        let mut chunks = Self::new(bytes, chunk_bytes);
        for (line, length) in lines {
            let Some((number, hash)) = line.split_once(' ').filter(|(_, hash)| is_hex(hash, 64)) else { break };
            let Some(slot) = number.parse::<usize>().ok().and_then(|i| chunks.hashes.get_mut(i)) else { break };
            *slot = Some(hash.into());
            good += length;
        }
        Some((chunks, good))
    }

    fn head(&self) -> String {
        format!("jevons chunks 1 {} {}\n", self.bytes, self.chunk_bytes)
    }

    /// As a text that [`Chunks::read`] reads.
    pub fn text(&self) -> String {
        let line = |(i, hash): (usize, &Option<ChunkHash>)| Some(format!("{i} {}\n", hash.as_ref()?));
        self.head() + &self.hashes.iter().enumerate().filter_map(line).collect::<String>()
    }

    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Where chunk `i` lies in the file.
    pub fn range(&self, i: usize) -> Range<u64> {
        let start = i as u64 * self.chunk_bytes;
        start..(start + self.chunk_bytes).min(self.bytes)
    }

    /// Where a run of chunks lies.
    pub fn span(&self, run: &Range<usize>) -> Range<u64> {
        if run.is_empty() { 0..0 } else { self.range(run.start).start..self.range(run.end - 1).end }
    }

    /// Chunks that are not there, in runs of at most `longest`.
    pub fn missing(&self, longest: usize) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for i in (0..self.len()).filter(|i| self.hashes[*i].is_none()) {
            match runs.last_mut() {
                Some(run) if run.end == i && run.len() < longest => run.end += 1,
                _ => runs.push(i..i + 1),
            }
        }
        runs
    }

    pub fn missing_bytes(&self) -> u64 {
        self.missing(usize::MAX).iter().map(|run| self.span(run)).map(|span| span.end - span.start).sum()
    }
}

/// The table of an unfinished file, growing at its end.
#[derive(Debug)]
pub struct Journal(File);

impl Journal {
    /// Goes on with the journal at `path`, or starts one if there is none that fits. A torn end is cut off.
    pub fn open(path: &Path, bytes: u64, chunk_bytes: u64) -> io::Result<(Self, Chunks)> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let text = std::fs::read(path)?;
        let (chunks, good) = match Chunks::parse(&text, bytes) {
            Some(found) => found,
            None => (Chunks::new(bytes, chunk_bytes), 0),
        };
        file.set_len(good as u64)?;
        if good == 0 {
            file.write_all(chunks.head().as_bytes())?;
        }
        Ok((Self(file), chunks))
    }

    /// One call of the system, so that a killed process leaves a whole line or none.
    pub fn note(&mut self, chunk: usize, hash: &str) -> io::Result<()> {
        self.0.write_all(format!("{chunk} {hash}\n").as_bytes())
    }
}

/// SHA-256 as digits.
pub fn chunk_hash(hasher: sha2::Sha256) -> ChunkHash {
    hex(&sha2::Digest::finalize(hasher))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(c: char) -> String {
        c.to_string().repeat(64)
    }

    #[test]
    fn missing_chunks_come_in_runs_that_cover_each_once() {
        let mut chunks = Chunks::new(95, 10);
        assert_eq!((chunks.len(), chunks.range(9), chunks.missing_bytes()), (10, 90..95, 95));
        chunks.hashes[3] = Some(hash('a'));
        assert_eq!(chunks.missing(4), [0..3, 4..8, 8..10]);
        assert_eq!((chunks.span(&(8..10)), chunks.missing_bytes()), (80..95, 85));
        assert_eq!(Chunks::new(0, 10).missing(4), []);
    }

    #[test]
    fn a_journal_survives_being_torn_anywhere() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        let (mut journal, _) = Journal::open(&path, 35, 10).unwrap();
        journal.note(2, &hash('a')).unwrap();
        journal.note(0, &hash('b')).unwrap();
        let text = std::fs::read(&path).unwrap();
        for cut in 0..=text.len() {
            std::fs::write(&path, &text[..cut]).unwrap();
            let (mut journal, chunks) = Journal::open(&path, 35, 10).unwrap();
            let there = chunks.hashes.iter().flatten().count();
            assert_eq!(there, text[..cut].iter().filter(|b| **b == b'\n').count().saturating_sub(1), "{cut}");
            journal.note(3, &hash('c')).unwrap();
            assert_eq!(Chunks::read(&path, 35).unwrap().hashes[3], Some(hash('c')), "{cut}");
        }
    }

    #[test]
    fn a_table_of_another_file_or_with_nonsense_is_not_used() {
        let parse = |text: &str| Chunks::parse(text.as_bytes(), 35).map(|(chunks, _)| chunks);
        for bad in [
            "",
            "x\n",
            "jevons chunks 1 36 10\n",
            "jevons chunks 1 35 0\n",
            "jevons chunks 1 35 99999999999\n",
            "jevons chunks 1 35 10",
            "jevons chunks 1 35 10 1\n",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert_eq!(Chunks::parse(b"jevons chunks 1 99999999999999 1\n", 99_999_999_999_999), None);
        let a = hash('a');
        for bad in [format!("4 {a}"), "1 a".into(), format!("-1 {a}"), "\0\0\0".into(), format!("1 {}", hash('A'))] {
            let chunks = parse(&format!("jevons chunks 1 35 10\n0 {a}\n{bad}\n2 {a}\n")).unwrap();
            assert_eq!(chunks.hashes, [Some(a.clone()), None, None, None], "{bad}");
        }
        let chunks = Chunks { hashes: vec![Some(a.clone()), None, Some(a), None], ..Chunks::new(35, 10) };
        assert_eq!(parse(&chunks.text()), Some(chunks));
    }
}
