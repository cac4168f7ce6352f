//! One file per layer, forward and backward side by side. A layer is composition only: it calls [`Ops`](jevons_kernels::Ops) and knows what to keep.
//!
//! Backward **adds** to gradients. Activations between layers are rounded as the house table says (`ARCHITECTURE.md`): the
//! residual stream and all gradients are f32, what a linear returns is rounded once to the format of the weights. This crate
//! does no I/O, knows no thread and no file.
#![forbid(unsafe_code)]

mod batch;
mod block;
mod fp8;
mod gate;
mod gqa;
mod linear;
mod loss;
mod mla;
mod moe;
mod mtp;
mod params;
mod rms_norm;
mod swiglu;

pub use batch::Batch;
pub use block::{Attention, Block, Ffn, Keep, Saved as BlockSaved};
pub use fp8::{Fp8, Input, Linears, Wgrad};
pub use gate::{Balance, Gate};
pub use gqa::Gqa;
pub use linear::Linear;
pub use loss::{HeadLoss, IGNORE, head_logprobs, head_loss, tokens_per_block as head_tokens_per_block};
pub use mla::{Mla, Query};
pub use moe::Moe;
pub use mtp::{Mtp, MtpRows, Saved as MtpSaved};
pub use params::{Grads, LatentUp, Param, ParamId, Weights};
pub use rms_norm::RmsNorm;
pub use swiglu::SwiGlu;
