//! Grouped-query attention with optional biases (Qwen2, Llama).
//!
//! Source: Ainslie et al. 2023, arXiv:2305.13245. Shapes: `T` tokens, `D` model width, `H` query heads, `G` key heads, `Dh` head
//! width.

use jevons_kernels::{AttentionSaved, HeadShape, KvBlocks, Ops, RopeLayout, Tensor};

use crate::{
    Batch, Grads, Linear, Weights,
    fp8::{Input, Kept},
    mla::sequences,
};

/// Four projections.
#[derive(Clone, Copy, Debug)]
pub struct Gqa {
    /// `[H·Dh, D]`
    pub q: Linear,
    /// `[G·Dh, D]`
    pub k: Linear,
    /// `[G·Dh, D]`
    pub v: Linear,
    /// `[D, H·Dh]`
    pub o: Linear,
    /// Heads and scale.
    pub shape: HeadShape,
    /// Pairs are neighbours if true, halves if false.
    pub interleave: bool,
}

/// What [`Gqa::backward`] needs besides `x`.
pub struct Saved {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Kept,
    lse: Vec<f32>,
}

impl Gqa {
    fn layout(&self, heads: usize) -> RopeLayout {
        let dim = self.shape.dk;
        RopeLayout { heads, head_dim: dim, offset: 0, dim, interleave: self.interleave }
    }

    /// `x`: `[T, D]`; `kv`: each sequence's cache, appended to. Returns `[T, D]`.
    pub fn forward(
        &self,
        ops: &Ops,
        w: &Weights,
        x: &Tensor,
        batch: &Batch,
        kv: &mut [&mut KvBlocks],
    ) -> (Tensor, Saved) {
        let [mut q, mut k, v] = Linear::forward_all([&self.q, &self.k, &self.v], ops, w, x);
        ops.rope(&mut q, self.layout(self.shape.heads), &batch.angles);
        ops.rope(&mut k, self.layout(self.shape.kv_heads), &batch.angles);
        let (o, lse) = ops.attention(self.shape, &q, &k, &v, &mut sequences(batch, kv));
        let y = self.o.forward(ops, w, &o);
        (y, Saved { q, k, v, o: Kept::new_e5m6(ops, w, self.o.weight, o), lse })
    }

    /// `dy`: f32 `[T, D]`. Adds to all gradients and to `dx`: f32 `[T, D]`.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        ops: &Ops,
        w: &Weights,
        grads: &mut Grads,
        x: &Tensor,
        batch: &Batch,
        s: &Saved,
        dy: &Tensor,
    ) -> Tensor {
        let o = &*s.o.get(ops);
        let d_o = self.o.backward_new(ops, w, grads, &Input::new(ops, w, &[self.o.weight], o), dy);
        let saved = AttentionSaved { q: &s.q, k: &s.k, v: &s.v, o, lse: &s.lse };
        let (mut dq, mut dk, dv) = ops.attention_grad(self.shape, &saved, &d_o, &batch.cu_seqlens);
        ops.rope_grad(&mut dq, self.layout(self.shape.heads), &batch.angles);
        ops.rope_grad(&mut dk, self.layout(self.shape.kv_heads), &batch.angles);
        let x = Input::new(ops, w, &[self.q, self.k, self.v].map(|l| l.weight), x);
        let mut dx = self.q.backward_new(ops, w, grads, &x, &dq);
        self.k.backward(ops, w, grads, &x, &dk, &mut dx);
        self.v.backward(ops, w, grads, &x, &dv, &mut dx);
        dx
    }
}

impl Saved {
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        [&self.q, &self.k, &self.v].iter().map(|t| t.bytes()).sum::<usize>() + self.o.bytes() + self.lse.len() * 4
    }
}
