//! Linear layer, `y = x·Wᵀ + b`. Shapes: `T` tokens, `K` inputs, `N` outputs.

use jevons_kernels::{Dtype, Ops, Tensor};

use crate::{Grads, ParamId, Weights};

/// A matrix and an optional bias.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    /// `[N, K]`
    pub weight: ParamId,
    /// `[N]`
    pub bias: Option<ParamId>,
}

impl Linear {
    /// `x`: `[T, K]`. Returns `[T, N]`, rounded once to the format of the weights.
    pub fn forward(&self, ops: &Ops, w: &Weights, x: &Tensor) -> Tensor {
        self.forward_as(ops, w, x, w.dtype())
    }

    /// The same in a given format.
    pub fn forward_as(&self, ops: &Ops, w: &Weights, x: &Tensor, dtype: Dtype) -> Tensor {
        ops.matmul(x, &w[self.weight], self.bias.map(|b| w.vector(b)), dtype)
    }

    /// Several [`Linear::forward`] of one `x`.
    pub fn forward_all<const N: usize>(all: [&Self; N], ops: &Ops, w: &Weights, x: &Tensor) -> [Tensor; N] {
        ops.matmuls(x, all.map(|l| (&w[l.weight], l.bias.map(|b| w.vector(b)))), w.dtype())
    }

    /// `x`: as in [`Linear::forward`]; `dy`: f32 `[T, N]`. Adds to the gradients of weight and bias, and to `dx`: f32 `[T, K]`.
    pub fn backward(&self, ops: &Ops, w: &Weights, grads: &mut Grads, x: &Tensor, dy: &Tensor, dx: &mut Tensor) {
        self.parameters_backward(ops, grads, x, dy);
        ops.add_matmul_input_grad(dy, &w[self.weight], dx);
    }

    /// As [`Linear::backward`], returning `dx` alone.
    pub fn backward_new(&self, ops: &Ops, w: &Weights, grads: &mut Grads, x: &Tensor, dy: &Tensor) -> Tensor {
        self.parameters_backward(ops, grads, x, dy);
        ops.matmul_input_grad(dy, &w[self.weight])
    }

    fn parameters_backward(&self, ops: &Ops, grads: &mut Grads, x: &Tensor, dy: &Tensor) {
        if let Some(db) = self.bias.and_then(|b| grads.get_mut(b)) {
            ops.bias_grad(dy, db);
        }
        if let Some(dw) = grads.get_mut(self.weight) {
            ops.matmul_weight_grad(dy, x, dw);
        }
    }
}
