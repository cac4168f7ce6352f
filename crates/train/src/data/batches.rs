//! Token files → sequences → batches. What a step trains on is a function of the recipe's seed and the step's number: nothing
//! needs to be saved to resume, and no step depends on the ones before it.

use std::sync::Arc;

use super::{DataError, IGNORE, Row, TokenFile};
use crate::{
    recipe::{AttentionSpan, Packing},
    rng::{Permutation, Rng, Stream},
};

/// Which documents.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Split {
    /// All of them.
    All,
    /// Those that a share of all, held out, leaves.
    Train(f64),
    /// A share of all, held out.
    Heldout(f64),
}

impl Split {
    /// Whether a document of this content is on this side. The two sides of one share are each other's complement.
    pub fn has(self, content_hash: u64) -> bool {
        let out = |share: f64| content_hash < (share * 2f64.powi(64)) as u64;
        match self {
            Self::All => true,
            Self::Train(share) => !out(share),
            Self::Heldout(share) => out(share),
        }
    }
}

/// How documents become sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackingSettings {
    /// `S`: most targets of a sequence.
    pub sequence_length: usize,
    /// How documents fill sequences.
    pub packing: Packing,
    /// Whether a document is a sequence of its own for attention.
    pub attention: AttentionSpan,
    /// Decides every order.
    pub seed: u64,
}

/// A run of tokens of one document: `len` inputs, whose targets are the tokens one further on.
#[derive(Clone, Copy, Debug)]
struct Piece {
    file: u32,
    document: u32,
    /// Within the document.
    start: u32,
    len: u32,
}

/// The sequences of some token files, in a random order that changes with every epoch.
#[derive(Debug)]
pub struct Batcher {
    files: Vec<Arc<TokenFile>>,
    settings: PackingSettings,
    layout: Layout,
    rows: u64,
    bytes_per_target: f64,
}

#[derive(Debug)]
enum Layout {
    /// Documents in a random order; where each starts in the stream of all, and where the last ends.
    Continuous { documents: Vec<(u32, u32)>, starts: Vec<u64> },
    /// Pieces in the order of the rows; where each row ends among them.
    Whole { pieces: Vec<Piece>, row_ends: Vec<usize> },
}

impl Batcher {
    /// Rows that are still open while whole documents are packed: more waste less and take longer.
    const OPEN_ROWS: usize = 64;

    /// Packs the documents of `files` that `split` has, each file with how often an epoch has its documents.
    ///
    /// # Errors
    /// [`DataError::Empty`] if there is no target.
    pub fn new(files: &[(Arc<TokenFile>, f64)], split: Split, settings: PackingSettings) -> Result<Self, DataError> {
        assert!(settings.sequence_length > 0);
        let mut documents = Vec::new();
        let (mut bytes, mut targets) = (0, 0u64);
        for (f, (file, repeat)) in files.iter().enumerate() {
            assert!(*repeat > 0.0 && repeat.is_finite());
            for d in (0..file.documents()).filter(|d| split.has(file.content_hash(*d))) {
                let part = Rng::new(file.content_hash(d), Stream::Repeat, f as u64).uniform() < repeat.fract();
                let times = *repeat as u64 + u64::from(part);
                bytes += times * file.learnt_bytes(d);
                targets += times * file.range(d).skip(1).filter(|t| file.is_target(*t)).count() as u64;
                documents.extend((0..times).map(|_| (f as u32, d as u32)));
            }
        }
        if targets == 0 {
            let what = if matches!(split, Split::Heldout(_)) { "the held-out data is" } else { "the training data is" };
            return Err(DataError::Empty { what });
        }
        let order = Permutation::new(documents.len() as u64, settings.seed, Stream::Documents, 0);
        let documents: Vec<_> = (0..documents.len()).map(|i| documents[order.at(i as u64) as usize]).collect();
        let files: Vec<_> = files.iter().map(|(file, _)| file.clone()).collect();
        let (layout, rows) = match settings.packing {
            Packing::Continuous => continuous(&files, documents, settings.sequence_length),
            Packing::Whole => whole(&files, &documents, settings.sequence_length),
        };
        Ok(Self { files, settings, layout, rows, bytes_per_target: bytes as f64 / targets as f64 })
    }

    /// Sequences of an epoch.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Bytes of learnt text per target, over the whole of this data: loss in nats per target, divided by it and by ln 2, is in
    /// bits per byte.
    pub fn bytes_per_target(&self) -> f64 {
        self.bytes_per_target
    }

    /// The `sequences` rows of step `step`, from 0. When an epoch ends within a step, the next one begins there.
    pub fn batch(&self, step: u64, sequences: usize) -> Vec<Row> {
        let first = step * sequences as u64;
        (first..first + sequences as u64).map(|i| self.row(self.place(i))).collect()
    }

    /// The epoch of a step's first sequence, from 0.
    pub fn epoch(&self, step: u64, sequences: usize) -> u64 {
        step * sequences as u64 / self.rows
    }

    /// Up to `n` rows for an evaluation, always the same.
    pub fn sample(&self, n: usize) -> Vec<Row> {
        (0..self.rows.min(n as u64)).map(|i| self.row(self.place(i))).collect()
    }

    /// Number of the row that is the `i`-th of all epochs.
    fn place(&self, i: u64) -> u64 {
        Permutation::new(self.rows, self.settings.seed, Stream::Epoch, i / self.rows).at(i % self.rows)
    }

    /// Row `i` as it is packed, before any order.
    pub fn row(&self, i: u64) -> Row {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        let mut row = Row::default();
        match &self.layout {
            Layout::Whole { pieces, row_ends } => {
                let start = if i == 0 { 0 } else { row_ends[i as usize - 1] };
                pieces[start..row_ends[i as usize]].iter().for_each(|piece| self.push(&mut row, *piece, None));
            }
            Layout::Continuous { documents, starts } => {
                let s = self.settings.sequence_length as u64;
                let total = starts.last().expect("one more than documents");
                let (mut at, end) = (i * s, ((i + 1) * s).min(total - 1));
                let mut d = starts.partition_point(|start| *start <= at) - 1;
                while at < end {
                    let stop = starts[d + 1].min(end);
                    let (file, document) = documents[d];
                    let piece = Piece { file, document, start: (at - starts[d]) as u32, len: (stop - at) as u32 };
                    self.push(&mut row, piece, documents.get(d + 1).copied());
                    (at, d) = (stop, d + 1);
                }
            }
        }
        if self.settings.attention == AttentionSpan::Sequence {
            row.lengths = vec![row.tokens.len()];
        }
        row
    }

    /// Adds a piece. `next`: the document that follows, whose first token is what the last token of this one predicts, if it may see it.
    fn push(&self, row: &mut Row, piece: Piece, next: Option<(u32, u32)>) {
        let file = &self.files[piece.file as usize];
        let document = file.range(piece.document as usize);
        let start = document.start + piece.start as usize;
        let end = start + piece.len as usize;
        row.tokens.extend(file.ids(start, end));
        let inside = (end + 1).min(document.end);
        for (t, id) in (start + 1..inside).zip(file.ids(start + 1, inside)) {
            row.targets.push(if file.is_target(t) { id } else { IGNORE });
        }
        if inside == end {
            let first = next.filter(|_| self.settings.attention == AttentionSpan::Sequence).and_then(|(f, d)| {
                let (file, at) = (&self.files[f as usize], self.files[f as usize].range(d as usize).start);
                file.is_target(at).then(|| file.ids(at, at + 1).next().expect("one id"))
            });
            row.targets.push(first.unwrap_or(IGNORE));
        }
        row.lengths.push(piece.len as usize);
    }
}

fn continuous(files: &[Arc<TokenFile>], mut documents: Vec<(u32, u32)>, s: usize) -> (Layout, u64) {
    let len = |(f, d): &(u32, u32)| files[*f as usize].range(*d as usize).len() as u64;
    documents.retain(|d| len(d) > 0);
    let mut starts = vec![0];
    for d in &documents {
        starts.push(starts.last().expect("not empty") + len(d));
    }
    let inputs = starts.last().expect("not empty") - 1; // The very last token predicts nothing.
    (Layout::Continuous { documents, starts }, inputs.div_ceil(s as u64))
}

/// Each piece goes into the first open row that has room for it.
fn whole(files: &[Arc<TokenFile>], documents: &[(u32, u32)], s: usize) -> (Layout, u64) {
    let mut done: Vec<Vec<Piece>> = Vec::new();
    let mut open: Vec<(usize, Vec<Piece>)> = Vec::new();
    for &(file, document) in documents {
        let inputs = files[file as usize].range(document as usize).len().saturating_sub(1);
        for start in (0..inputs).step_by(s) {
            let len = s.min(inputs - start);
            let piece = Piece { file, document, start: start as u32, len: len as u32 };
            match open.iter_mut().find(|(used, _)| used + len <= s) {
                Some((used, row)) => {
                    *used += len;
                    row.push(piece);
                }
                None => {
                    if open.len() == Batcher::OPEN_ROWS {
                        let fullest = (0..open.len()).max_by_key(|i| (open[*i].0, std::cmp::Reverse(*i)));
                        done.push(open.remove(fullest.expect("not empty")).1);
                    }
                    open.push((len, vec![piece]));
                }
            }
        }
    }
    done.extend(open.into_iter().map(|(_, row)| row));
    let (mut pieces, mut row_ends) = (Vec::new(), Vec::new());
    for row in done {
        pieces.extend(row);
        row_ends.push(pieces.len());
    }
    let rows = row_ends.len() as u64;
    (Layout::Whole { pieces, row_ends }, rows)
}
