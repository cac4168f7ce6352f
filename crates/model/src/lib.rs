//! Config, parameters, checkpoint formats, and the layers strung together.
#![forbid(unsafe_code)]
pub mod account;
pub mod adapter;
pub mod checkpoint;
pub mod config;
pub mod convert;
pub mod doctor;
pub mod inspect;
mod linears;
mod model;
mod random;

pub use adapter::Adapter;
pub use config::{Config, MlaForm};
pub use jevons_layers::{Fp8, Linears, Wgrad};
pub use linears::LinearKind;
pub use model::{
    Extend, KvCache, LoadOptions, MicroBatch, Model, ModelError, NonFinite, PassOptions, PassOutput, Precision,
    Quantize,
};
