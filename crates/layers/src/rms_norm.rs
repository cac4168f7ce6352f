//! Root-mean-square norm with a learned gain. Source: arXiv:1910.07467.

use jevons_kernels::{Ops, Tensor};

use crate::{Grads, ParamId, Weights};

/// A gain `[D]`.
#[derive(Clone, Copy, Debug)]
pub struct RmsNorm {
    /// `[D]`
    pub weight: ParamId,
    /// Keeps an all-zero token finite.
    pub eps: f32,
}

impl RmsNorm {
    /// `x`: `[T, D]`. Returns the norm, rounded to the format of the weights, and the reciprocal roots `[T]`.
    pub fn forward(&self, ops: &Ops, w: &Weights, x: &Tensor) -> (Tensor, Vec<f32>) {
        ops.rms_norm(x, w.vector(self.weight), self.eps, w.dtype())
    }

    /// `h + added`, f32 `[T, D]`, and [`RmsNorm::forward`] of it.
    pub fn forward_sum(&self, ops: &Ops, w: &Weights, h: &Tensor, added: &Tensor) -> (Tensor, Tensor, Vec<f32>) {
        ops.sum_norm(h, added, w.vector(self.weight), self.eps, w.dtype())
    }

    /// `h += added`, and [`RmsNorm::forward`] of that.
    pub fn infer_sum(&self, ops: &Ops, w: &Weights, h: &mut Tensor, added: &Tensor) -> Tensor {
        ops.add_norm(h, added, w.vector(self.weight), self.eps, w.dtype())
    }

    /// Adds to the gradient of the gain, and to `dx`: f32 `[T, D]`.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        ops: &Ops,
        w: &Weights,
        grads: &mut Grads,
        x: &Tensor,
        rrms: &[f32],
        dy: &Tensor,
        dx: &mut Tensor,
    ) {
        ops.rms_norm_grad(x, w.vector(self.weight), rrms, dy, dx, grads.get_mut(self.weight));
    }
}
