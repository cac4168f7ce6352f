//! Training a byte-level BPE: the same texts in the same order give the same file, byte for byte.
//!
//! Digits are split first (one by one, or in runs of up to three), then words as in GPT-2, then bytes; all 256 bytes are in the
//! alphabet, so any text comes back unchanged. Words are counted here and merged by the `tokenizers` trainer. It sees them in
//! the random order of a hash map, but uses only sums of their counts, and of pairs seen equally often takes the one with
//! the lowest ids (`tests/determinism.rs` holds it to that, across processes and numbers of threads).

use std::collections::{BTreeMap, HashMap};

use tokenizers::{
    AddedToken, Model, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, PreTokenizerWrapper,
    SplitDelimiterBehavior, Tokenizer as Inner,
    models::bpe::{BPE, BpeTrainer},
    pre_tokenizers::{
        byte_level::ByteLevel,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
};

use crate::tokenizer::{Tokenizer, TokenizerError};

/// How runs of digits become words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DigitSplit {
    /// Each digit is a word: easiest to calculate with.
    Single,
    /// Runs of one to three, as DeepSeek-V3.
    UpToThree,
}

/// What to train.
#[derive(Clone, Debug)]
pub struct BpeOptions {
    /// Tokens, special ones included; at least 256 more than these.
    pub vocab_size: usize,
    /// Get the ids from 0 on, in this order.
    pub special_tokens: Vec<String>,
    /// How runs of digits become words.
    pub split_digits: DigitSplit,
    /// Pairs seen less often are not merged.
    pub min_frequency: u64,
}

/// Words as in GPT-2, written anew: optional space and letters, optional space and other signs, spaces.
const WORDS: &str = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Trains on texts. Special tokens in the texts are text like any other.
///
/// Fewer tokens than asked come out if no pair is left that is seen `min_frequency` times.
///
/// # Errors
/// [`TokenizerError::Train`] if the vocabulary has no room for the bytes and special tokens, a special token is empty, there
/// twice or a word that ordinary text may hold, or if there is no text, or more than the trainer can count.
pub fn train_bpe<S: AsRef<str>>(
    texts: impl IntoIterator<Item = S>,
    options: &BpeOptions,
) -> Result<Tokenizer, TokenizerError> {
    let least = 256 + options.special_tokens.len();
    if options.vocab_size < least {
        return Err(TokenizerError::Train(format!(
            "a vocabulary of {} has no room for 256 bytes and {} special tokens; take at least {least}",
            options.vocab_size,
            options.special_tokens.len()
        )));
    }
    for (i, token) in options.special_tokens.iter().enumerate() {
        if token.is_empty() || options.special_tokens[..i].contains(token) {
            let what = format!("special token {i}, {token:?}, is empty or there twice; each needs its own text");
            return Err(TokenizerError::Train(what));
        }
    }
    let failed = |e: Box<dyn std::error::Error + Send + Sync>| TokenizerError::Train(e.to_string());
    let digits = match options.split_digits {
        DigitSplit::Single => r"\p{N}",
        DigitSplit::UpToThree => r"\p{N}{1,3}",
    };
    let split = |pattern: &str| {
        Split::new(SplitPattern::Regex(pattern.into()), SplitDelimiterBehavior::Isolated, false)
            .map(PreTokenizerWrapper::Split)
    };
    let bytes = ByteLevel::new(false, false, false);
    let words = Sequence::new(vec![
        split(digits).map_err(failed)?,
        split(WORDS).map_err(failed)?,
        PreTokenizerWrapper::ByteLevel(bytes),
    ]);
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for text in texts {
        let mut pieces = PreTokenizedString::from(text.as_ref());
        words.pre_tokenize(&mut pieces).map_err(failed)?;
        for (word, _, _) in pieces.get_splits(OffsetReferential::Normalized, OffsetType::Byte) {
            match counts.get_mut(word) {
                Some(n) => *n += 1,
                None => drop(counts.insert(word.to_owned(), 1)),
            }
        }
    }
    if counts.is_empty() {
        return Err(TokenizerError::Train("there is no text to train a tokenizer on".into()));
    }
    // The trainer counts in 32 bits and would wrap silently. No later pair is seen more often than the bytes that it begins
    // with, and those at most as often as the most frequent pair of bytes.
    let mut pairs: HashMap<(char, char), u64> = HashMap::new();
    for (word, n) in &counts {
        for pair in word.chars().zip(word.chars().skip(1)) {
            *pairs.entry(pair).or_default() += n;
        }
    }
    if let Some((_, most)) = pairs.into_iter().find(|(_, n)| *n > i32::MAX as u64) {
        let what =
            format!("one pair of bytes is there {most} times, more than the trainer counts; take a part of the texts");
        return Err(TokenizerError::Train(what));
    }
    let special: Vec<AddedToken> = options.special_tokens.iter().map(|t| AddedToken::from(t.clone(), true)).collect();
    let trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(options.vocab_size)
        .min_frequency(options.min_frequency)
        .special_tokens(special.clone())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut bpe = BPE::default();
    let counts = counts.into_iter().map(|(word, n)| (word.into(), n)).collect();
    trainer.do_train(&counts, &mut bpe).map_err(failed)?;
    debug_assert!(bpe.get_vocab_size() <= options.vocab_size);
    let mut inner = Inner::new(bpe);
    inner.with_pre_tokenizer(Some(PreTokenizerWrapper::Sequence(words)));
    inner.with_decoder(Some(bytes));
    inner.add_special_tokens(special).map_err(failed)?;
    let tokenizer = Tokenizer::from_bytes(inner.to_string(false).map_err(failed)?.as_bytes())?;
    // A special token that is a plain word would be what the same word in a text becomes.
    for token in &options.special_tokens {
        if tokenizer.encode_ordinary(token)?.iter().any(|id| tokenizer.is_special(*id)) {
            let what = format!(
                "the special token {token:?} is also a word of ordinary text; put it in signs, as in \"<{token}>\""
            );
            return Err(TokenizerError::Train(what));
        }
    }
    Ok(tokenizer)
}
