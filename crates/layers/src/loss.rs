//! Output head and next-token cross-entropy in one, a block of tokens at a time, so that `[T, V]` logits never exist.
//!
//! Shapes: `T` tokens, `D` model width, `V` vocabulary.

pub use jevons_kernels::IGNORE;
use jevons_kernels::{Dtype, Ops, Tensor};

use crate::{Grads, ParamId, Weights};

/// Bytes of logits held at a time.
const LOGITS_BYTES: usize = 16 << 20;

/// Loss of a micro-batch and the gradient of the head's input.
pub struct HeadLoss {
    /// Natural log-probability of each target, 0 where ignored, `[T]`.
    pub logprobs: Vec<f32>,
    /// ∂loss/∂x, f32 `[T, D]`.
    pub dx: Tensor,
}

/// Tokens of a block: a multiple of 32, so that the sum over tokens of the head's gradient has the same chunks as in one piece.
pub fn tokens_per_block(vocab: usize) -> usize {
    (LOGITS_BYTES / 4 / vocab.max(1) / 32).clamp(1, 64) * 32
}

/// `loss = −scale · Σ log p(target)`. `x`: `[T, D]` after the final norm; `head`: `[V, D]`; `targets`: `[T]`.
/// Adds to the head's gradient.
pub fn head_loss(
    ops: &Ops,
    w: &Weights,
    grads: &mut Grads,
    head: ParamId,
    x: &Tensor,
    targets: &[u32],
    scale: f32,
) -> HeadLoss {
    let mut logprobs = Vec::with_capacity(x.rows);
    let mut all = Vec::with_capacity(x.rows * x.cols);
    for_blocks(ops, w, head, x, targets, |x, mut logits, targets| {
        logprobs.extend(ops.cross_entropy_grad(&mut logits, targets, scale));
        if let Some(dw) = grads.get_mut(head) {
            ops.matmul_weight_grad(&logits, x, dw);
        }
        all.extend_from_slice(ops.matmul_input_grad(&logits, &w[head]).f32());
    });
    HeadLoss { logprobs, dx: Tensor::from_f32(all, x.cols) }
}

/// The log-probabilities alone.
pub fn head_logprobs(ops: &Ops, w: &Weights, head: ParamId, x: &Tensor, targets: &[u32]) -> Vec<f32> {
    let mut logprobs = Vec::with_capacity(x.rows);
    for_blocks(ops, w, head, x, targets, |_, logits, targets| logprobs.extend(ops.target_logprobs(&logits, targets)));
    logprobs
}

fn for_blocks(
    ops: &Ops,
    w: &Weights,
    head: ParamId,
    x: &Tensor,
    targets: &[u32],
    mut f: impl FnMut(&Tensor, Tensor, &[u32]),
) {
    assert_eq!(x.rows, targets.len());
    let block = tokens_per_block(w[head].n());
    for first in (0..x.rows).step_by(block) {
        let rows: Vec<u32> = (first as u32..(first + block).min(x.rows) as u32).collect();
        let x = ops.gather(x, &rows);
        let logits = ops.matmul(&x, &w[head], None, Dtype::F32);
        f(&x, logits, &targets[first..first + rows.len()]);
    }
}
