//! From prompt tokens to new tokens: sampling, stop strings, and the loop around [`Model::extend`].
//!
//! Whatever is drawn depends on the model, the prompt, the options and the seed only: not on the batch, the threads, how
//! the prompt was cut, or whether a cache was reused.
//!
//! [`Model::extend`]: jevons_model::Model::extend
#![forbid(unsafe_code)]

mod chat;
mod generate;
mod generation_config;
mod rng;
mod sampler;
mod score;
mod sequence;
mod stop;

pub use chat::{Chat, ChatError, ChatEvent, Turn};
pub use generate::{
    Event, FinishReason, GenerateError, GenerateOptions, Generation, Request, Session, generate, generate_batch,
};
pub use generation_config::GenerationConfig;
pub use sampler::{Choice, LogitsError, Sampler, Sampling, SamplingError};
pub use score::{Score, ScoreError, score, windows};
pub use sequence::{SequenceError, check_sequence};
pub use stop::{EmptyStopString, StopStrings};
