//! A pre-norm residual block: `h += attention(norm(h)); h += ffn(norm(h))`. The residual stream `h` is f32 `[T, D]`.

use jevons_kernels::{Dtype, KvBlocks, Ops, Tensor};

use crate::{Batch, Gqa, Grads, Mla, Moe, RmsNorm, SwiGlu, Weights, gate::Balance, gqa, mla, moe, swiglu};

/// Attention of a block.
#[derive(Clone, Copy, Debug)]
pub enum Attention {
    /// DeepSeek.
    Mla(Mla),
    /// Qwen2, Llama.
    Gqa(Gqa),
}

/// Feed-forward part of a block.
#[derive(Clone, Debug)]
pub enum Ffn {
    /// One SwiGLU.
    Dense(SwiGlu),
    /// Experts.
    Moe(Moe),
}

/// Two norms, attention, feed-forward.
#[derive(Clone, Debug)]
pub struct Block {
    /// `input_layernorm`
    pub attention_norm: RmsNorm,
    /// Mixes tokens.
    pub attention: Attention,
    /// `post_attention_layernorm`
    pub ffn_norm: RmsNorm,
    /// Works on each token.
    pub ffn: Ffn,
}

/// What forward keeps for backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Everything that backward reads.
    All,
    /// All but the up-projections of a latent attention, which backward makes again.
    ButUp,
    /// The input only: backward runs forward again.
    Input,
}

/// What [`Block::backward`] needs.
pub struct Saved {
    /// The block's input.
    h: Tensor,
    inner: Option<Inner>,
}

struct Inner {
    /// The norm of the input; made again where memory is worth more.
    x: Option<Tensor>,
    rrms: Vec<f32>,
    attention: AttentionSaved,
    mid: Mid,
    rrms_mid: Vec<f32>,
    ffn: FfnSaved,
}

/// The residual stream after attention.
enum Mid {
    /// f32 `[T, D]`, and its norm.
    Whole(Tensor, Tensor),
    /// What attention added to the input: few bytes, and sum and norm are made again.
    Added(Tensor),
}

enum AttentionSaved {
    Mla(Box<mla::Saved>),
    Gqa(Box<gqa::Saved>),
}

enum FfnSaved {
    Dense(Box<swiglu::Saved>),
    Moe(Box<moe::Saved>),
}

impl Block {
    /// An empty cache for [`Block::infer`], and for [`Block::forward`] unless a latent attention is absorbed.
    pub fn new_cache(&self, dtype: Dtype) -> KvBlocks {
        match &self.attention {
            Attention::Mla(a) => a.new_cache(dtype),
            Attention::Gqa(a) => KvBlocks::new(dtype, a.shape),
        }
    }

    /// `h`: f32 `[T, D]`; `kv`: each sequence's cache, appended to. Returns the new `h` and, for a mixture of experts, each
    /// expert's tokens.
    pub fn forward(
        &self,
        ops: &Ops,
        w: &Weights,
        h: Tensor,
        batch: &Batch,
        kv: &mut [&mut KvBlocks],
        keep: Keep,
    ) -> (Tensor, Saved, Option<Vec<usize>>) {
        let (out, mut inner, added) = self.run(ops, w, &h, batch, kv);
        let loads = match &inner.ffn {
            FfnSaved::Moe(s) => Some(s.routing.loads()),
            FfnSaved::Dense(_) => None,
        };
        if let (Keep::ButUp, AttentionSaved::Mla(s)) = (keep, &mut inner.attention) {
            s.forget_up();
        }
        if w.fp8().is_some() {
            (inner.x, inner.mid) = (None, Mid::Added(added));
        }
        (out, Saved { h, inner: (keep != Keep::Input).then_some(inner) }, loads)
    }

    /// As [`Block::forward`] where no backward follows: each activation is dropped after its last use.
    pub fn infer(&self, ops: &Ops, w: &Weights, mut h: Tensor, batch: &Batch, kv: &mut [&mut KvBlocks]) -> Tensor {
        let x = self.attention_norm.forward(ops, w, &h).0;
        let y = match &self.attention {
            Attention::Mla(a) => a.infer(ops, w, &x, batch, kv),
            Attention::Gqa(a) => a.forward(ops, w, &x, batch, kv).0,
        };
        let x = self.ffn_norm.infer_sum(ops, w, &mut h, &y);
        let y = match &self.ffn {
            Ffn::Dense(f) => f.forward(ops, w, &x).0,
            Ffn::Moe(f) => f.forward(ops, w, &x).0,
        };
        ops.add(&mut h, &y);
        h
    }

    /// The block's output, what it kept, and what attention added.
    fn run(
        &self,
        ops: &Ops,
        w: &Weights,
        h: &Tensor,
        batch: &Batch,
        kv: &mut [&mut KvBlocks],
    ) -> (Tensor, Inner, Tensor) {
        let (x, rrms) = self.attention_norm.forward(ops, w, h);
        let (added, attention) = match &self.attention {
            Attention::Mla(a) => {
                let (y, s) = a.forward(ops, w, &x, batch, kv);
                (y, AttentionSaved::Mla(Box::new(s)))
            }
            Attention::Gqa(a) => {
                let (y, s) = a.forward(ops, w, &x, batch, kv);
                (y, AttentionSaved::Gqa(Box::new(s)))
            }
        };
        let (h_mid, x_mid, rrms_mid) = self.ffn_norm.forward_sum(ops, w, h, &added);
        let (y, ffn) = match &self.ffn {
            Ffn::Dense(f) => {
                let (y, s) = f.forward(ops, w, &x_mid);
                (y, FfnSaved::Dense(Box::new(s)))
            }
            Ffn::Moe(f) => {
                let (y, s) = f.forward(ops, w, &x_mid);
                (y, FfnSaved::Moe(Box::new(s)))
            }
        };
        let out = ops.sum(&h_mid, &y);
        let mid = Mid::Whole(h_mid, x_mid);
        (out, Inner { x: Some(x), rrms, attention, mid, rrms_mid, ffn }, added)
    }

    /// `dh`: f32 `[T, D]`, ∂loss/∂output; becomes ∂loss/∂input. Adds to all gradients; returns the balance loss.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        ops: &Ops,
        w: &Weights,
        grads: &mut Grads,
        batch: &Batch,
        saved: Saved,
        dh: &mut Tensor,
        balance: &Balance<'_>,
    ) -> f32 {
        let h = saved.h;
        let inner = saved.inner.unwrap_or_else(|| {
            let mut caches: Vec<_> = (1..batch.cu_seqlens.len()).map(|_| self.new_cache(w.dtype())).collect();
            self.run(ops, w, &h, batch, &mut caches.iter_mut().collect::<Vec<_>>()).1
        });
        let (h_mid, x_mid) = match inner.mid {
            Mid::Whole(h_mid, x_mid) => (h_mid, x_mid),
            Mid::Added(y) => {
                let (h_mid, x_mid, _) = self.ffn_norm.forward_sum(ops, w, &h, &y);
                (h_mid, x_mid)
            }
        };
        let (dx, loss) = match (&self.ffn, &inner.ffn) {
            (Ffn::Dense(f), FfnSaved::Dense(s)) => (f.backward(ops, w, grads, &x_mid, s, dh), 0.0),
            (Ffn::Moe(f), FfnSaved::Moe(s)) => f.backward(ops, w, grads, &x_mid, s, dh, balance),
            _ => unreachable!("saved by the same block"),
        };
        self.ffn_norm.backward(ops, w, grads, &h_mid, &inner.rrms_mid, &dx, dh);
        drop((x_mid, h_mid));
        let x = inner.x.unwrap_or_else(|| self.attention_norm.forward(ops, w, &h).0);
        let dx = match (&self.attention, &inner.attention) {
            (Attention::Mla(a), AttentionSaved::Mla(s)) => a.backward(ops, w, grads, &x, batch, s, dh),
            (Attention::Gqa(a), AttentionSaved::Gqa(s)) => a.backward(ops, w, grads, &x, batch, s, dh),
            _ => unreachable!("saved by the same block"),
        };
        self.attention_norm.backward(ops, w, grads, &h, &inner.rrms, &dx, dh);
        loss
    }
}

impl Saved {
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.h.bytes()
            + self.inner.as_ref().map_or(0, |i| {
                let attention = match &i.attention {
                    AttentionSaved::Mla(s) => s.bytes(),
                    AttentionSaved::Gqa(s) => s.bytes(),
                };
                let ffn = match &i.ffn {
                    FfnSaved::Dense(s) => s.bytes(),
                    FfnSaved::Moe(s) => s.bytes(),
                };
                let mid = match &i.mid {
                    Mid::Whole(h, x) => h.bytes() + x.bytes(),
                    Mid::Added(y) => y.bytes(),
                };
                i.x.as_ref().map_or(0, Tensor::bytes) + mid + attention + ffn + (i.rrms.len() + i.rrms_mid.len()) * 4
            })
    }
}
