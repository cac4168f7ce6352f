//! Config, parameters, checkpoint formats, and the layers strung together.
#![forbid(unsafe_code)]
pub mod checkpoint;
pub mod config;
mod model;

pub use config::Config;
pub use model::{Extend, KvCache, MicroBatch, Model, ModelError, NonFinite, PassOptions, PassOutput, Precision};
