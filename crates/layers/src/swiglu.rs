//! Gated feed-forward layer, `y = (silu(x·Wgᵀ) ∘ (x·Wuᵀ))·Wdᵀ`.
//!
//! Source: Shazeer 2020, arXiv:2002.05202. Shapes: `T` tokens, `D` model width, `F` hidden width.

use jevons_kernels::{Ops, Tensor};

use crate::{
    Grads, Linear, Weights,
    fp8::{Input, Kept},
};

/// Three matrices.
#[derive(Clone, Copy, Debug)]
pub struct SwiGlu {
    /// `[F, D]`
    pub gate: Linear,
    /// `[F, D]`
    pub up: Linear,
    /// `[D, F]`
    pub down: Linear,
}

/// What [`SwiGlu::backward`] needs besides `x`. The product `silu(g) ∘ u` is not kept: it is cheaper to recompute than to store.
pub struct Saved {
    g: Kept,
    u: Kept,
}

impl SwiGlu {
    /// `x`: `[T, D]`. Returns `y`: `[T, D]`.
    pub fn forward(&self, ops: &Ops, w: &Weights, x: &Tensor) -> (Tensor, Saved) {
        let [g, u] = Linear::forward_all([&self.gate, &self.up], ops, w, x);
        let y = self.down.forward(ops, w, &ops.silu_mul(&g, &u));
        let keep = |x| Kept::new(ops, w, self.down.weight, x);
        (y, Saved { g: keep(g), u: keep(u) })
    }

    /// `dy`: f32 `[T, D]`. Adds to the gradients of the three weights; returns `dx`: f32 `[T, D]`.
    pub fn backward(&self, ops: &Ops, w: &Weights, grads: &mut Grads, x: &Tensor, s: &Saved, dy: &Tensor) -> Tensor {
        let (g, u) = (s.g.get(ops), s.u.get(ops));
        let a = ops.silu_mul(&g, &u);
        let a = Input::new(ops, w, &[self.down.weight], &a);
        let da = self.down.backward_new(ops, w, grads, &a, dy); // [T, F]
        let (dg, du) = ops.silu_mul_grad(&g, &u, &da);
        let x = Input::new(ops, w, &[self.gate.weight, self.up.weight], x);
        let mut dx = self.gate.backward_new(ops, w, grads, &x, &dg);
        self.up.backward(ops, w, grads, &x, &du, &mut dx);
        dx
    }
}

impl Saved {
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.g.bytes() + self.u.bytes()
    }
}
