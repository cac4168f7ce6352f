//! What a model accepts as a sequence, checked before anything is computed.

use jevons_model::Config;

/// Tokens that a model cannot take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SequenceError {
    /// No first token.
    #[error("it has no tokens; at least one is needed")]
    Empty,
    /// Longer than `max_position_embeddings`.
    #[error("it has {tokens} tokens and the model's context is {context}; shorten it")]
    TooLong {
        /// Length asked for.
        tokens: usize,
        /// Length possible.
        context: usize,
    },
    /// Not in the embedding table.
    #[error(
        "token {id} at position {position} is outside the vocabulary of {vocab_size}; does it come from another model's tokenizer?"
    )]
    Token {
        /// The id.
        id: u32,
        /// Where, from 0.
        position: usize,
        /// Ids end before it.
        vocab_size: usize,
    },
}

/// Whether a model of this configuration can take `tokens`.
///
/// # Errors
/// Empty, too long, or an id outside the vocabulary.
pub fn check_sequence(config: &Config, tokens: &[u32]) -> Result<(), SequenceError> {
    let (context, vocab_size) = (config.max_position_embeddings, config.vocab_size);
    if tokens.is_empty() {
        return Err(SequenceError::Empty);
    }
    if tokens.len() > context {
        return Err(SequenceError::TooLong { tokens: tokens.len(), context });
    }
    match tokens.iter().position(|id| *id as usize >= vocab_size) {
        Some(position) => Err(SequenceError::Token { id: tokens[position], position, vocab_size }),
        None => Ok(()),
    }
}
