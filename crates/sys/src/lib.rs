//! What the operating system gives: memory maps, memory counters, the machine's parts, and files that are replaced whole or not
//! at all.
//!
//! Together with the kernels this is the only crate with `unsafe`; every other one forbids it.

pub mod atomic;
pub mod machine;
mod map;
mod memory;

pub use map::MappedFile;
pub use memory::{available_memory_bytes, keep_freed_memory, peak_rss_bytes, reset_peak_rss, total_memory_bytes};
