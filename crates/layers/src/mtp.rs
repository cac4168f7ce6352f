//! Multi-token prediction, depth 1: one more block that sees the next token and predicts the one after.
//!
//! Source: DeepSeek-V3, arXiv:2412.19437, section 2.2, with the order of published weights: `x_i = eh_proj·[enorm(embedding of t_{i+1}) ;
//! hnorm(h_i)]`, `h_i` after the main model's final norm; a causal block over `i`; a norm; the main model's head predicts `t_{i+2}`.
//! Embedding and head are those of the main model. Shapes: `T` tokens, `T'` of them have a next token in their sequence, `D` model width.

use jevons_kernels::{Dtype, KvBlocks, Ops, Tensor};

use crate::{Batch, Block, BlockSaved, Grads, Keep, Linear, ParamId, RmsNorm, Weights, fp8::Input, gate::Balance};

/// The extra layer.
#[derive(Clone, Debug)]
pub struct Mtp {
    /// Of the next token's embedding.
    pub enorm: RmsNorm,
    /// Of the main model's output.
    pub hnorm: RmsNorm,
    /// `[D, 2·D]`
    pub eh_proj: Linear,
    /// Its number is that of the layer after the last.
    pub block: Block,
    /// `shared_head.norm`
    pub norm: RmsNorm,
    /// The main model's, `[V, D]`.
    pub embedding: ParamId,
}

/// Which rows of a batch have a next token, and what that is.
#[derive(Clone, Debug)]
pub struct MtpRows {
    /// Rows of the main batch, `[T']`.
    pub rows: Vec<u32>,
    /// The token after each, `[T']`.
    pub next: Vec<u32>,
    /// Rows of each sequence; those with none are left out.
    pub lengths: Vec<usize>,
}

impl MtpRows {
    /// `tokens`: `[T]`; `lengths` sum to `T`.
    pub fn new(tokens: &[u32], lengths: &[usize]) -> Self {
        let (mut rows, mut next, mut first) = (Vec::new(), Vec::new(), 0);
        for len in lengths {
            rows.extend((first..first + len.saturating_sub(1)).map(|r| r as u32));
            next.extend_from_slice(&tokens[(first + 1).min(first + len)..first + len]);
            first += len;
        }
        Self { rows, next, lengths: lengths.iter().filter(|l| **l > 1).map(|l| l - 1).collect() }
    }

    /// `targets` of the main batch, `[T]`, as this layer predicts them, `[T']`: each row takes its next row's.
    pub fn targets(&self, targets: &[u32]) -> Vec<u32> {
        self.rows.iter().map(|r| targets[*r as usize + 1]).collect()
    }
}

/// What [`Mtp::backward`] needs.
pub struct Saved {
    e: Tensor,
    h: Tensor,
    rrms_e: Vec<f32>,
    rrms_h: Vec<f32>,
    joined: Tensor,
    block: BlockSaved,
}

impl Mtp {
    /// `x`: `[T, D]` after the main model's final norm; `batch`: of [`MtpRows::lengths`], positions from 0. Returns the residual stream
    /// f32 `[T', D]` before the norm, and each expert's tokens.
    pub fn forward(
        &self,
        ops: &Ops,
        w: &Weights,
        x: &Tensor,
        rows: &MtpRows,
        batch: &Batch,
        keep: Keep,
    ) -> (Tensor, Saved, Option<Vec<usize>>) {
        let e = ops.embed(&rows.next, &w[self.embedding]);
        let h = ops.gather(x, &rows.rows);
        let ((en, rrms_e), (hn, rrms_h)) = (self.enorm.forward(ops, w, &e), self.hnorm.forward(ops, w, &h));
        let joined = ops.beside(&en, &hn);
        let stream = self.eh_proj.forward_as(ops, w, &joined, Dtype::F32);
        let mut caches: Vec<KvBlocks> = rows.lengths.iter().map(|_| self.block.new_cache(w.dtype())).collect();
        let mut kv: Vec<_> = caches.iter_mut().collect();
        let (out, block, loads) = self.block.forward(ops, w, stream, batch, &mut kv, keep);
        (out, Saved { e, h, rrms_e, rrms_h, joined, block }, loads)
    }

    /// `dh`: f32 `[T', D]`, ∂loss/∂output. Adds to all gradients, the embedding's included, and to `dx`: f32 `[T, D]`; returns the
    /// balance loss.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        ops: &Ops,
        w: &Weights,
        grads: &mut Grads,
        rows: &MtpRows,
        batch: &Batch,
        saved: Saved,
        mut dh: Tensor,
        balance: &Balance<'_>,
        dx: &mut Tensor,
    ) -> f32 {
        let Saved { e, h, rrms_e, rrms_h, joined, block } = saved;
        let loss = self.block.backward(ops, w, grads, batch, block, &mut dh, balance);
        let joined = Input::new(ops, w, &[self.eh_proj.weight], &joined);
        let d = self.eh_proj.backward_new(ops, w, grads, &joined, &dh);
        let width = dh.cols;
        let mut part = Tensor::zeros(Dtype::F32, dh.rows, width);
        self.enorm.backward(ops, w, grads, &e, &rrms_e, &ops.columns(&d, 0, width), &mut part);
        if let Some(table) = grads.get_mut(self.embedding) {
            ops.embed_grad(&rows.next, &part, table);
        }
        part.f32_mut().fill(0.0);
        self.hnorm.backward(ops, w, grads, &h, &rrms_h, &ops.columns(&d, width, width), &mut part);
        ops.embed_grad(&rows.rows, &part, dx.f32_mut());
        loss
    }
}

impl Saved {
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.e.bytes()
            + self.h.bytes()
            + self.joined.bytes()
            + (self.rrms_e.len() + self.rrms_h.len()) * 4
            + self.block.bytes()
    }
}
