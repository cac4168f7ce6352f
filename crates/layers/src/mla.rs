//! Multi-head latent attention: keys and values per head, from a shared latent vector.
//!
//! Source: DeepSeek-V3, arXiv:2412.19437, equations 1 to 11. Shapes: `T` tokens, `D` model width, `H` heads, `Rq` and `R` the latent
//! widths (`q_lora_rank`, `kv_lora_rank`), `Dn`, `Dr`, `Dv` widths of a head's unrotated, rotated and value part.
//!
//! ```text
//! c_q = norm(x·Wqaᵀ)        q = c_q·Wqbᵀ          the last Dr columns of each head rotated   (or q = x·Wqᵀ)
//! [c ; k_r] = x·Wkvaᵀ       c_kv = norm(c)        k_r rotated, one for all heads
//! [k_n ; v] per head = c_kv·Wkvbᵀ                 k = [k_n ; k_r]
//! y = attention(q, k, v)·Woᵀ
//! ```
//!
//! This is the *expanded* form. The *absorbed* one, for inference only, moves queries into the latent space instead, `q̃ = [q_n·Wuk ; q_r]`,
//! attends to the keys `[c_kv ; k_r]` with values `c_kv`, one for all heads, and moves the sums out by `Wuv`. The mathematics is the
//! same, the rounding is not, so a run keeps to one form. Its cache has `R + Dr` numbers per token instead of `H·(Dn + Dr + Dv)`.

use jevons_kernels::{AttentionSaved, Dtype, HeadShape, KvBlocks, LatentHeads, Ops, RopeLayout, Sequence, Tensor};

use crate::{
    Batch, Grads, Linear, RmsNorm, Weights,
    fp8::{Input, Kept},
};

/// How queries are made.
#[derive(Clone, Copy, Debug)]
pub enum Query {
    /// `[H·(Dn + Dr), D]`
    Direct(Linear),
    /// `[Rq, D]`, a norm, `[H·(Dn + Dr), Rq]`
    Latent(Linear, RmsNorm, Linear),
}

/// The projections of a latent attention.
#[derive(Clone, Copy, Debug)]
pub struct Mla {
    /// Queries.
    pub query: Query,
    /// `kv_a_proj_with_mqa`, `[R + Dr, D]`
    pub kv_a: Linear,
    /// `[R]`
    pub kv_norm: RmsNorm,
    /// `[H·(Dn + Dv), R]`
    pub kv_b: Linear,
    /// `[D, H·Dv]`
    pub o: Linear,
    /// `H, Dn, Dr, Dv`
    pub heads: LatentHeads,
    /// `kv_lora_rank`
    pub latent: usize,
    /// Multiplies scores.
    pub scale: f32,
    /// Pairs are neighbours if true, halves if false.
    pub interleave: bool,
    /// Whether [`Mla::infer`] runs the absorbed form; `kv_b` is then a [`LatentUp`](crate::LatentUp).
    pub absorbed: bool,
}

/// What [`Mla::backward`] needs besides `x`.
pub struct Saved {
    /// `x·Wqaᵀ`, `[T, Rq]`, without the norm.
    q_raw: Option<Tensor>,
    /// `[c ; k_r]`, `[T, R + Dr]`, without norm and rope.
    kv_raw: Tensor,
    o: Kept,
    lse: Vec<f32>,
    /// Dropped and made again where memory is short.
    up: Option<Up>,
}

/// What follows from `q_raw` and `kv_raw`: the norms and up-projections.
struct Up {
    /// Dropped and made again where models compute in FP8.
    normed: Option<Normed>,
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

/// The latent vectors after their norms.
struct Normed {
    q: Option<(Tensor, Vec<f32>)>,
    kv: (Tensor, Vec<f32>),
    /// `[T, R]`, what the norm of keys and values saw.
    latent: Tensor,
}

impl Mla {
    /// Heads as attention sees them.
    pub fn shape(&self) -> HeadShape {
        let h = self.heads;
        HeadShape { heads: h.heads, kv_heads: h.heads, dk: h.nope + h.rope, dv: h.v, scale: self.scale }
    }

    /// An empty cache of the form that [`Mla::infer`] runs.
    pub fn new_cache(&self, dtype: Dtype) -> KvBlocks {
        if self.absorbed { KvBlocks::latent(dtype, self.latent_shape()) } else { KvBlocks::new(dtype, self.shape()) }
    }

    fn latent_shape(&self) -> HeadShape {
        let dk = self.latent + self.heads.rope;
        HeadShape { heads: self.heads.heads, kv_heads: 1, dk, dv: self.latent, scale: self.scale }
    }

    fn q_layout(&self) -> RopeLayout {
        let h = self.heads;
        let head_dim = h.nope + h.rope;
        RopeLayout { heads: h.heads, head_dim, offset: h.nope, dim: h.rope, interleave: self.interleave }
    }

    fn k_layout(&self) -> RopeLayout {
        let dim = self.heads.rope;
        RopeLayout { heads: 1, head_dim: dim, offset: 0, dim, interleave: self.interleave }
    }

    /// Queries `[T, H·(Dn + Dr)]`, rotated, and what the norm before them gave.
    fn queries(
        &self,
        ops: &Ops,
        w: &Weights,
        x: &Tensor,
        batch: &Batch,
        q_raw: Option<&Tensor>,
    ) -> (Tensor, Option<(Tensor, Vec<f32>)>) {
        let (mut q, q_norm) = match (self.query, q_raw) {
            (Query::Latent(_, norm, b), Some(raw)) => {
                let normed = norm.forward(ops, w, raw);
                (b.forward(ops, w, &normed.0), Some(normed))
            }
            (Query::Direct(q), None) => (q.forward(ops, w, x), None),
            _ => unreachable!("a latent query has its raw form and a direct one has none"),
        };
        ops.rope(&mut q, self.q_layout(), &batch.angles);
        (q, q_norm)
    }

    /// The latent vectors `[T, R]` before their norm, and the rotated keys `[T, Dr]`.
    fn latents(&self, ops: &Ops, batch: &Batch, kv_raw: &Tensor) -> (Tensor, Tensor) {
        let mut k_rope = ops.columns(kv_raw, self.latent, self.heads.rope);
        ops.rope(&mut k_rope, self.k_layout(), &batch.angles);
        (ops.columns(kv_raw, 0, self.latent), k_rope)
    }

    /// The query's latent vectors `[T, Rq]`, unless it has none, and those of keys and values with the rope part `[T, R + Dr]`.
    fn down(&self, ops: &Ops, w: &Weights, x: &Tensor) -> (Option<Tensor>, Tensor) {
        match &self.query {
            Query::Latent(a, ..) => {
                let [q_raw, kv_raw] = Linear::forward_all([a, &self.kv_a], ops, w, x);
                (Some(q_raw), kv_raw)
            }
            Query::Direct(_) => (None, self.kv_a.forward(ops, w, x)),
        }
    }

    fn up(&self, ops: &Ops, w: &Weights, x: &Tensor, batch: &Batch, q_raw: Option<&Tensor>, kv_raw: &Tensor) -> Up {
        let (q, q_norm) = self.queries(ops, w, x, batch, q_raw);
        let (latent, k_rope) = self.latents(ops, batch, kv_raw);
        let kv_norm = self.kv_norm.forward(ops, w, &latent);
        let (k, v) = ops.latent_split(&self.kv_b.forward(ops, w, &kv_norm.0), &k_rope, self.heads);
        Up { normed: Some(Normed { q: q_norm, kv: kv_norm, latent }), q, k, v }
    }

    /// The norms alone, as [`Mla::up`] makes them.
    fn normed(&self, ops: &Ops, w: &Weights, q_raw: Option<&Tensor>, kv_raw: &Tensor) -> Normed {
        let q = match (self.query, q_raw) {
            (Query::Latent(_, norm, _), Some(raw)) => Some(norm.forward(ops, w, raw)),
            _ => None,
        };
        let latent = ops.columns(kv_raw, 0, self.latent);
        Normed { q, kv: self.kv_norm.forward(ops, w, &latent), latent }
    }

    /// [`Mla::forward`] in the form of the model's settings, where no backward follows.
    pub fn infer(&self, ops: &Ops, w: &Weights, x: &Tensor, batch: &Batch, kv: &mut [&mut KvBlocks]) -> Tensor {
        if !self.absorbed {
            return self.forward(ops, w, x, batch, kv).0;
        }
        let up = w.latent_up(self.kv_b.weight);
        let (q_raw, kv_raw) = self.down(ops, w, x);
        let (q, _) = self.queries(ops, w, x, batch, q_raw.as_ref());
        let q = ops.latent_query(&q, &up.keys, self.heads);
        let (latent, k_rope) = self.latents(ops, batch, &kv_raw);
        let k = ops.beside(&self.kv_norm.forward(ops, w, &latent).0, &k_rope);
        let o = ops.latent_attention(self.latent_shape(), &q, &k, &mut sequences(batch, kv));
        self.o.forward(ops, w, &ops.latent_output(&o, &up.values))
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
        let (q_raw, kv_raw) = self.down(ops, w, x);
        let up = self.up(ops, w, x, batch, q_raw.as_ref(), &kv_raw);
        let (o, lse) = ops.attention(self.shape(), &up.q, &up.k, &up.v, &mut sequences(batch, kv));
        let y = self.o.forward(ops, w, &o);
        let normed = up.normed.filter(|_| w.fp8().is_none());
        (y, Saved { q_raw, kv_raw, o: Kept::new_e5m6(ops, w, self.o.weight, o), lse, up: Some(Up { normed, ..up }) })
    }

    /// `dy`: f32 `[T, D]`. Adds to all gradients; returns `dx`: f32 `[T, D]`.
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
        let again;
        let up = match &s.up {
            Some(up) => up,
            None => {
                again = self.up(ops, w, x, batch, s.q_raw.as_ref(), &s.kv_raw);
                &again
            }
        };
        let made;
        let normed = match &up.normed {
            Some(normed) => normed,
            None => {
                made = self.normed(ops, w, s.q_raw.as_ref(), &s.kv_raw);
                &made
            }
        };
        let o = &*s.o.get(ops);
        let d_o = self.o.backward_new(ops, w, grads, &Input::new(ops, w, &[self.o.weight], o), dy);
        let saved = AttentionSaved { q: &up.q, k: &up.k, v: &up.v, o, lse: &s.lse };
        let (mut dq, dk, dv) = ops.attention_grad(self.shape(), &saved, &d_o, &batch.cu_seqlens);
        ops.rope_grad(&mut dq, self.q_layout(), &batch.angles);
        let first = match self.query {
            Query::Latent(a, ..) => a.weight,
            Query::Direct(q) => q.weight,
        };
        let x = &Input::new(ops, w, &[first, self.kv_a.weight], x);
        let mut dx = match (self.query, &s.q_raw, &normed.q) {
            (Query::Latent(a, norm, b), Some(raw), Some((q, rrms))) => {
                let q = Input::new(ops, w, &[b.weight], q);
                let dnormed = b.backward_new(ops, w, grads, &q, &dq);
                let mut draw = Tensor::zeros(Dtype::F32, raw.rows, raw.cols);
                norm.backward(ops, w, grads, raw, rrms, &dnormed, &mut draw);
                a.backward_new(ops, w, grads, x, &draw)
            }
            (Query::Direct(q), ..) => q.backward_new(ops, w, grads, x, &dq),
            _ => unreachable!("a latent query keeps its raw form"),
        };
        let (dkv, mut dk_rope) = ops.latent_split_grad(&dk, &dv, self.heads);
        ops.rope_grad(&mut dk_rope, self.k_layout(), &batch.angles);
        let kv = Input::new(ops, w, &[self.kv_b.weight], &normed.kv.0);
        let dnormed = self.kv_b.backward_new(ops, w, grads, &kv, &dkv);
        let mut dlatent = Tensor::zeros(Dtype::F32, dy.rows, self.latent);
        self.kv_norm.backward(ops, w, grads, &normed.latent, &normed.kv.1, &dnormed, &mut dlatent);
        self.kv_a.backward(ops, w, grads, x, &ops.beside(&dlatent, &dk_rope), &mut dx);
        dx
    }
}

impl Saved {
    /// Drops what backward can make again from the raw projections.
    pub fn forget_up(&mut self) {
        self.up = None;
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let norm = |n: &(Tensor, Vec<f32>)| n.0.bytes() + n.1.len() * 4;
        self.q_raw.as_ref().map_or(0, Tensor::bytes)
            + self.kv_raw.bytes()
            + self.o.bytes()
            + self.lse.len() * 4
            + self.up.as_ref().map_or(0, |u| {
                let normed =
                    u.normed.as_ref().map_or(0, |n| n.q.as_ref().map_or(0, norm) + norm(&n.kv) + n.latent.bytes());
                normed + [&u.q, &u.k, &u.v].iter().map(|t| t.bytes()).sum::<usize>()
            })
    }
}

/// A batch's rows beside the caches of its sequences.
pub(crate) fn sequences<'a>(batch: &Batch, kv: &'a mut [&mut KvBlocks]) -> Vec<Sequence<'a>> {
    assert_eq!(kv.len() + 1, batch.cu_seqlens.len());
    kv.iter_mut()
        .zip(batch.cu_seqlens.windows(2))
        .map(|(kv, w)| Sequence { first: w[0], tokens: w[1] - w[0], kv })
        .collect()
}
