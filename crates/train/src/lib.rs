//! Training.
#![forbid(unsafe_code)]
pub mod memory;
pub mod optimizer;
pub mod state;
pub mod trainer;
