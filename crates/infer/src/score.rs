//! How well a model predicts given tokens.

use std::ops::ControlFlow;

use jevons_model::Model;

use crate::sequence::{SequenceError, check_sequence};

/// Result of [`score`].
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// Mean negative log-probability over all predicted tokens, in nats.
    pub loss: f64,
    /// For each sequence of `S` tokens the natural log-probability of its tokens 1 to `S − 1`.
    pub logprobs: Vec<Vec<f32>>,
}

impl Score {
    /// Number of tokens predicted.
    pub fn predicted(&self) -> usize {
        self.logprobs.iter().map(Vec::len).sum()
    }

    /// Sum of the negative log-probabilities, in nats.
    pub fn nats(&self) -> f64 {
        self.loss * self.predicted() as f64
    }
}

/// Why [`score`] has no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScoreError {
    /// A sequence the model cannot take.
    #[error("sequence {index} cannot be scored: {source}")]
    Sequence {
        /// Which, from 0.
        index: usize,
        /// Why.
        source: SequenceError,
    },
    /// Every sequence has one token, or there is none.
    #[error("there is no next token to predict; give a sequence of at least two tokens")]
    NothingToPredict,
    /// By the progress callback.
    #[error("interrupted")]
    Cancelled,
}

/// Tokens computed at once. Changes memory and speed, never a bit of the result.
const TOKENS_AT_ONCE: usize = 4096;

/// Scores every sequence; `on_progress` hears how many sequences are done, and may stop it.
///
/// # Errors
/// A sequence that the model cannot take, before anything is computed; nothing to predict; stopped.
pub fn score(
    model: &Model,
    sequences: &[Vec<u32>],
    on_progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<Score, ScoreError> {
    for (index, tokens) in sequences.iter().enumerate() {
        check_sequence(model.config(), tokens).map_err(|source| ScoreError::Sequence { index, source })?;
    }
    if sequences.iter().all(|s| s.len() < 2) {
        return Err(ScoreError::NothingToPredict);
    }
    let mut logprobs = Vec::with_capacity(sequences.len());
    let mut rest = sequences;
    while !rest.is_empty() {
        let mut tokens = 0;
        let fit = rest.iter().take_while(|s| {
            tokens += s.len();
            tokens <= TOKENS_AT_ONCE
        });
        let (now, later) = rest.split_at(fit.count().max(1));
        logprobs.extend(model.score(now));
        rest = later;
        if on_progress(logprobs.len()).is_break() {
            return Err(ScoreError::Cancelled);
        }
    }
    let (sum, count) = logprobs.iter().flatten().fold((0.0, 0usize), |(sum, n), x| (sum + f64::from(*x), n + 1));
    Ok(Score { loss: -sum / count as f64, logprobs })
}

/// Cuts one long sequence into pieces of at most `context` tokens that share a token at each cut, so that scoring them
/// predicts every token but the first, each once.
pub fn windows(tokens: &[u32], context: usize) -> Vec<Vec<u32>> {
    assert!(context >= 2, "a context of {context} predicts nothing");
    let starts = (0..tokens.len().saturating_sub(1).max(1)).step_by(context - 1);
    starts.map(|from| tokens[from..tokens.len().min(from + context)].to_vec()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_predict_every_token_but_the_first_once() {
        for len in 0..40u32 {
            let tokens: Vec<u32> = (0..len).collect();
            for context in 2..12 {
                let windows = windows(&tokens, context);
                assert!(windows.iter().all(|w| w.len() <= context));
                let predicted: Vec<u32> = windows.iter().flat_map(|w| w.iter().skip(1)).copied().collect();
                assert_eq!(predicted, (1..len).collect::<Vec<_>>(), "{len} tokens in windows of {context}");
                assert!(windows.iter().all(|w| w.windows(2).all(|pair| pair[1] == pair[0] + 1)));
            }
        }
    }
}
