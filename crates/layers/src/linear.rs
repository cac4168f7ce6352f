//! Linear layer, `y = x·Wᵀ + b`. Shapes: `T` tokens, `K` inputs, `N` outputs.

use std::borrow::Cow;

use jevons_kernels::{
    Dtype, Ops, Tensor,
    formats::{BLOCK_MAX_FLOOR, GRADIENT_MAX_FLOOR},
};

use crate::{
    Grads, ParamId, Weights,
    fp8::{Input, gradient, retiled},
};

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
        let x = Input::new(ops, w, &[self.weight], x);
        ops.matmul(x.of(w, self.weight), &w[self.weight], self.bias.map(|b| w.vector(b)), dtype)
    }

    /// Several [`Linear::forward`] of one `x`.
    pub fn forward_all<const N: usize>(all: [&Self; N], ops: &Ops, w: &Weights, x: &Tensor) -> [Tensor; N] {
        let x = Input::new(ops, w, &all.map(|l| l.weight), x);
        let operands = all.map(|l| (&w[l.weight], l.bias.map(|b| w.vector(b))));
        let first = x.of(w, all[0].weight);
        if all.iter().all(|l| std::ptr::eq(x.of(w, l.weight), first)) {
            return ops.matmuls(first, operands, w.dtype());
        }
        all.map(|l| ops.matmul(x.of(w, l.weight), &w[l.weight], l.bias.map(|b| w.vector(b)), w.dtype()))
    }

    /// `x`: as in [`Linear::forward`]; `dy`: f32 `[T, N]`. Adds to the gradients of weight and bias, and to `dx`: f32 `[T, K]`.
    pub fn backward(&self, ops: &Ops, w: &Weights, grads: &mut Grads, x: &Input<'_>, dy: &Tensor, dx: &mut Tensor) {
        let dy = self.parameters_backward(ops, w, grads, x, dy);
        ops.add_matmul_input_grad(&dy, &w[self.weight], dx);
    }

    /// As [`Linear::backward`], returning `dx` alone.
    pub fn backward_new(&self, ops: &Ops, w: &Weights, grads: &mut Grads, x: &Input<'_>, dy: &Tensor) -> Tensor {
        let dy = self.parameters_backward(ops, w, grads, x, dy);
        ops.matmul_input_grad(&dy, &w[self.weight])
    }

    /// Returns `dy` as products take it.
    fn parameters_backward<'a>(
        &self,
        ops: &Ops,
        w: &Weights,
        grads: &mut Grads,
        x: &Input<'_>,
        dy: &'a Tensor,
    ) -> Cow<'a, Tensor> {
        if let Some(db) = self.bias.and_then(|b| grads.get_mut(b)) {
            ops.bias_grad(dy, db);
        }
        let all = [0, dy.rows];
        let dy = gradient(ops, w, self.weight, dy, &all);
        if let Some(dw) = grads.get_mut(self.weight) {
            let x = retiled(ops, w, self.weight, x.of(w, self.weight), &all, BLOCK_MAX_FLOOR);
            ops.matmul_weight_grad(&retiled(ops, w, self.weight, &dy, &all, GRADIENT_MAX_FLOOR), &x, dw);
        }
        dy
    }
}
