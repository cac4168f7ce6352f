//! Log-sum-exp and cross-entropy over the vocabulary, in fixed blocks of 1,024 entries; the same in training and sampling.

use rayon::prelude::*;

use crate::{
    isa::{Isa, multi_isa},
    math::{exp, sum16},
    rows,
    tensor::Tensor,
};

/// Vocabulary entries of a block.
const BLOCK: usize = 1024;

/// A target that counts neither in the loss nor in its gradient; its log-probability is given as 0.
pub const IGNORE: u32 = u32::MAX;

multi_isa! {
    /// `ln Σ eˣ` of a row of logits. Per block: maximum, then `sum16(e^(x − m))`; blocks merge ascending.
    pub fn log_sum_exp(x: &[f32]) -> f32 {
        let (mut m, mut l) = (f32::NEG_INFINITY, 0.0f32);
        for block in x.chunks(BLOCK) {
            let mut lanes = [f32::NEG_INFINITY; 16];
            for x in block.chunks(16) {
                for (lane, x) in lanes.iter_mut().zip(x) {
                    *lane = if *x > *lane || x.is_nan() { *x } else { *lane };
                }
            }
            let mut top = f32::NEG_INFINITY;
            for x in lanes {
                top = if x > top || x.is_nan() { x } else { top };
            }
            if top == f32::NEG_INFINITY {
                continue;
            }
            let sum = sum16(block.len(), |i| exp(block[i] - top));
            let both = if top > m || top.is_nan() { top } else { m };
            l = l.mul_add(exp(m - both), sum * exp(top - both));
            m = both;
        }
        m + libm::logf(l)
    }
}

/// Turns `logits` (f32 `[T, V]`) into `(softmax − target) · scale`; returns the log-probability of each target, `[T]`.
pub fn cross_entropy_grad(isa: Isa, logits: &mut Tensor, targets: &[u32], scale: f32) -> Vec<f32> {
    let v = logits.cols;
    assert_eq!(targets.len(), logits.rows);
    let mut logprobs = vec![0.0; targets.len()];
    rows::zip2_of(4, logits.f32_mut(), v, &mut logprobs, 4, |first, x, out| {
        for ((x, target), out) in x.chunks_exact_mut(v).zip(&targets[first..]).zip(out) {
            if *target == IGNORE {
                x.fill(0.0);
                continue;
            }
            let lse = log_sum_exp(isa, x);
            *out = x[*target as usize] - lse;
            softmax_grad(isa, x, lse, scale);
            x[*target as usize] -= scale;
        }
    });
    logprobs
}

multi_isa! {
    fn softmax_grad(x: &mut [f32], lse: f32, scale: f32) {
        x.iter_mut().for_each(|x| *x = exp(*x - lse) * scale);
    }
}

/// The log-probability of each target under a row of logits (f32 `[T, V]`).
pub fn target_logprobs(isa: Isa, logits: &Tensor, targets: &[u32]) -> Vec<f32> {
    let v = logits.cols;
    assert_eq!(targets.len(), logits.rows);
    let x = logits.f32();
    let row = |(x, target): (&[f32], &u32)| match *target {
        IGNORE => 0.0,
        target => x[target as usize] - log_sum_exp(isa, x),
    };
    x.par_chunks_exact(v).zip(targets).map(row).collect()
}
