//! Data: files → documents → tokens → sequences → batches.
//!
//! [`prepare`] makes or opens the token files of a recipe; [`TrainData::batch`] then gives the rows of any step. Nothing here
//! knows a tokenizer or a model: text becomes tokens through the function in [`Encoder`].

pub mod arithmetic;
mod batches;
mod document;
mod error;
pub mod identity;
mod source;
mod template;
mod tensor;
mod token_file;
mod unpack;

pub use batches::{Batcher, PackingSettings, Split};
pub use document::{ChatFormat, Document, Exchange, Role, Segment};
pub use error::DataError;
pub use source::{OpenSource, Origin};
pub use tensor::TokenTensor;
pub use token_file::{Encode, Encoder, Progress, TokenFile};

use std::{collections::BinaryHeap, sync::Arc};

use crate::{
    recipe::{Recipe, Source},
    rng::{Rng, Stream},
};

pub use jevons_kernels::IGNORE;

/// A row of a batch: one or more sequences laid end to end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// `[S]`
    pub tokens: Vec<u32>,
    /// What follows each token, or [`IGNORE`], `[S]`.
    pub targets: Vec<u32>,
    /// Length of each sequence; they sum to `S`.
    pub lengths: Vec<usize>,
}

/// What a run trains and is measured on.
#[derive(Debug)]
pub struct Data {
    /// Training data.
    pub train: TrainData,
    /// Held-out data, if the recipe has any.
    pub heldout: Option<Batcher>,
}

/// Training data: packed documents, or ready batches.
#[derive(Debug)]
pub enum TrainData {
    /// Packed documents and sequences per step.
    Packed(Batcher, usize),
    /// Ready batches.
    Ready(TokenTensor),
}

impl TrainData {
    /// The rows of a step, from 0: a function of the step's number alone.
    pub fn batch(&self, step: u64) -> Vec<Row> {
        match self {
            Self::Packed(batcher, sequences) => batcher.batch(step, *sequences),
            Self::Ready(tensor) => tensor.batch(step),
        }
    }
}

/// Opens or makes everything that `recipe.data` names.
///
/// # Errors
/// [`DataError`] with the file and what to try.
pub fn prepare(recipe: &Recipe, encoder: &Encoder, progress: &mut dyn FnMut(Progress)) -> Result<Data, DataError> {
    let d = &recipe.data;
    let folder = recipe.resolve(d.cache.clone().unwrap_or_else(|| recipe.run.folder.join("data")));
    let settings = PackingSettings {
        sequence_length: d.sequence_length,
        packing: d.packing,
        attention: d.attention,
        seed: recipe.seed,
    };
    let mut open = |sources: &[Source]| {
        let one = |source| {
            let source = OpenSource::open(source, recipe)?;
            let file = TokenFile::build_or_open(&folder, &source, encoder, progress)?;
            Ok((Arc::new(file), source.repeat()))
        };
        sources.iter().map(one).collect::<Result<Vec<_>, DataError>>()
    };
    let train_files = open(&d.sources)?;
    let heldout_files = open(&d.heldout)?;
    let share = d.heldout_fraction.filter(|share| *share > 0.0);
    let heldout = match share {
        Some(share) => Some(Batcher::new(&train_files, Split::Heldout(share), settings)?),
        None if !heldout_files.is_empty() => Some(Batcher::new(&heldout_files, Split::All, settings)?),
        None => None,
    };
    let train = match &d.tokens {
        Some(path) => {
            let shape = [recipe.batch.sequences, d.sequence_length];
            let path = recipe.resolve(path);
            TrainData::Ready(TokenTensor::open(&path, &d.tensor, recipe.schedule.steps, shape, encoder.vocab_size)?)
        }
        None => {
            let split = share.map_or(Split::All, Split::Train);
            TrainData::Packed(Batcher::new(&train_files, split, settings)?, recipe.batch.sequences)
        }
    };
    Ok(Data { train, heldout })
}

/// About `bytes` bytes of the training text, spread evenly over all sources by their size and `repeat`, to learn a tokenizer from.
/// Control tokens are left out; held-out documents too.
///
/// # Errors
/// [`DataError`] if a source cannot be read.
pub fn sample_texts(recipe: &Recipe, chat: &ChatFormat, bytes: u64) -> Result<Vec<String>, DataError> {
    let split = recipe.data.heldout_fraction.map_or(Split::All, Split::Train);
    // Of each source the documents with the lowest random numbers, as many as could be needed if it were the only one: so one
    // reading is enough, and no more than `bytes` per source is held.
    let mut sources = Vec::new();
    for (i, source) in recipe.data.sources.iter().enumerate() {
        let source = OpenSource::open(source, recipe)?;
        let mut drawn: BinaryHeap<(u64, String)> = BinaryHeap::new();
        let (mut size, mut held) = (0, 0);
        source.for_each(chat, &mut |_| {}, &mut |_, document| {
            let hash = document.content_hash();
            if split.has(hash) {
                let text: String = document.segments.into_iter().filter(|s| !s.special).map(|s| s.text).collect();
                size += text.len() as u64;
                held += text.len() as u64;
                drawn.push((Rng::new(hash, Stream::Sample, i as u64).bits(), text));
                while drawn.peek().is_some_and(|(_, text)| held - text.len() as u64 >= bytes) {
                    held -= drawn.pop().map_or(0, |(_, text)| text.len() as u64);
                }
            }
            Ok(())
        })?;
        sources.push((size as f64 * source.repeat(), drawn));
    }
    let total: f64 = sources.iter().map(|(weight, _)| weight).sum();
    let mut texts = Vec::new();
    for (weight, drawn) in sources {
        let mut left = bytes as f64 * (weight / total.max(1.0));
        for (_, text) in drawn.into_sorted_vec() {
            if left <= 0.0 {
                break;
            }
            left -= text.len() as f64;
            texts.push(text);
        }
    }
    Ok(texts)
}

/// In lower-case hexadecimal.
pub fn hex(bytes: &[u8; 32]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
