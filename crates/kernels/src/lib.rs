//! The closed list of operations on which every layer stands ([`Ops`]), and the kernels behind it.
//!
//! Reading order: [`math`] (roundings, `exp`, sums), [`gemm`] (the one dot product), [`attention`], then a file per
//! operation. Each file's first screen gives formula, shapes and the order of its sums; that order is part of the numbers, so
//! every instruction set, thread count and blocking returns the same bits. This crate knows no model.
//!
//! `unsafe` lives here for SIMD and for writing disjoint parts of one output from several threads.

mod adamw;
pub mod attention;
pub mod formats;
pub mod gemm;
mod isa;
mod loss;
pub mod math;
pub mod measure;
mod moe;
mod ops;
mod pointwise;
mod quantize;
pub mod random;
mod rms_norm;
mod rope;
mod rows;
pub mod study;
mod tensor;
#[cfg(test)]
mod tests;

pub use adamw::{AdamW, Moments};
pub use attention::{BLOCK as ATTENTION_BLOCK, HeadShape, KvBlocks, Saved as AttentionSaved, Sequence};
pub use formats::ScaleFormat;
pub use gemm::{
    pack::{Matrix, PACK_VERSION},
    reference as reference_dot,
};
pub use half::bf16;
pub use isa::Isa;
pub use loss::IGNORE;
pub use moe::{GateShape, Routing, Scoring};
pub use ops::Ops;
pub use pointwise::LatentHeads;
pub use quantize::{Quantized, TILE, Tiles};
pub use rope::{Angles, RopeLayout};
pub use tensor::{Dtype, Storage, Tensor};
