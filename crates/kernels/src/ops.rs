//! The seam to hardware: everything a layer may ask for, on typed views. The CPU is one implementation.
//!
//! A second one (CUDA) takes this list, the same shapes and the same references, and states a tolerance instead of equal
//! bits. Gradients of weights, and what a name begins with `add_` or a `&mut` gradient says, **add** to what they are given, so shared
//! weights and micro-batches need no special case.

use crate::{
    adamw::{self, AdamW, Moments},
    attention::{self, HeadShape, Sequence},
    formats::ScaleFormat,
    gemm::{
        self, Out, Problem,
        pack::{AnyPacked, Left, Matrix, Packed},
    },
    isa::Isa,
    loss, moe,
    moe::{GateShape, Routing},
    pointwise::{self, LatentHeads},
    quantize::{self, Quantized, Tiles},
    rms_norm,
    rope::{self, Angles, RopeLayout},
    tensor::{Blank, Dtype, Storage, Tensor},
};

/// The operations, on this CPU. Threads are those of the current rayon pool.
#[derive(Clone, Copy, Debug)]
pub struct Ops {
    isa: Isa,
}

impl Ops {
    /// With the instruction set of [`Isa::chosen`].
    ///
    /// # Errors
    /// If `JEVONS_ISA` names one that this CPU lacks.
    pub fn new() -> Result<Self, String> {
        Ok(Self { isa: Isa::chosen()? })
    }

    /// With a given instruction set.
    pub fn with_isa(isa: Isa) -> Self {
        Self { isa }
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    // ---- products -------------------------------------------------------------------------------------------------

    /// `x·wᵀ + bias`, rounded once to `dtype`. `x`: `[T, K]`, in the format of `w` or f32 to be rounded to it; `w`: `[N, K]`;
    /// `bias`: `[N]`; result `[T, N]`.
    pub fn matmul(&self, x: &Tensor, w: &Matrix, bias: Option<&[f32]>, dtype: Dtype) -> Tensor {
        let [y] = self.matmuls(x, [(w, bias)], dtype);
        y
    }

    /// Several [`Ops::matmul`] of one `x`, shared between the threads as one.
    pub fn matmuls<const N: usize>(&self, x: &Tensor, w: [(&Matrix, Option<&[f32]>); N], dtype: Dtype) -> [Tensor; N] {
        let mut y = w.map(|(w, _)| {
            assert_eq!(x.cols, w.k(), "x [{}, {}] · w [{}, {}]", x.rows, x.cols, w.n(), w.k());
            Blank::new(dtype, x.rows, w.n())
        });
        let problems: Vec<_> = w
            .iter()
            .zip(&mut y)
            .map(|((w, bias), y)| Problem {
                m: x.rows,
                left: Left::rows(x, 0, rounds(w)),
                right: &w.0,
                bias: *bias,
                out: y.out(),
                stride: w.n(),
            })
            .collect();
        gemm::run(self.isa, &problems);
        // SAFETY: a product writes every element of its `[T, N]`.
        y.map(|y| unsafe { y.written() })
    }

    /// `dx += dy·w`. `dy`: f32 `[T, N]`, rounded to the format of `w`; `dx`: f32 `[T, K]`.
    pub fn add_matmul_input_grad(&self, dy: &Tensor, w: &Matrix, dx: &mut Tensor) {
        assert!((dx.rows, dx.cols) == (dy.rows, w.k()));
        self.input_grad(dy, w, Out::AddF32(dx.f32_mut().as_mut_ptr()));
    }

    /// `dx = dy·w`; shapes as in [`Ops::add_matmul_input_grad`].
    pub fn matmul_input_grad(&self, dy: &Tensor, w: &Matrix) -> Tensor {
        let mut dx = Blank::new(Dtype::F32, dy.rows, w.k());
        self.input_grad(dy, w, dx.out());
        // SAFETY: the product has written all of `[T, K]`.
        unsafe { dx.written() }
    }

    fn input_grad(&self, dy: &Tensor, w: &Matrix, out: Out) {
        assert_eq!(dy.cols, w.n());
        let transposed = w.transposed(self.isa);
        let left = Left::rows(dy, 0, rounds(w));
        let problem = Problem { m: dy.rows, left, right: &transposed.0, bias: None, out, stride: w.k() };
        gemm::run(self.isa, &[problem]);
    }

    /// `dw += dyᵀ·x`, tokens ascending. `dy`: f32 `[T, N]`, rounded to the format of `x`; `x`: `[T, K]`; `dw`: `[N, K]`.
    pub fn matmul_weight_grad(&self, dy: &Tensor, x: &Tensor, dw: &mut [f32]) {
        self.grouped_matmul_weight_grad(dy, x, &[0, x.rows], vec![Some(dw)]);
    }

    /// `db += Σ_t dy[t]`, tokens ascending. `dy`: f32 `[T, N]`; `db`: `[N]`.
    pub fn bias_grad(&self, dy: &Tensor, db: &mut [f32]) {
        for dy in dy.f32().chunks_exact(db.len()) {
            db.iter_mut().zip(dy).for_each(|(b, d)| *b += d);
        }
    }

    /// Rows `offsets[e]..offsets[e + 1]` of `x` times `w[e]ᵀ`, in the dtype of `x`. Groups may be empty.
    pub fn grouped_matmul(&self, x: &Tensor, offsets: &[usize], w: &[&Matrix]) -> Tensor {
        let [y] = self.grouped_matmuls(x, offsets, [w]);
        y
    }

    /// Several [`Ops::grouped_matmul`] of one `x`, shared between the threads as one.
    pub fn grouped_matmuls<const N: usize>(&self, x: &Tensor, offsets: &[usize], w: [&[&Matrix]; N]) -> [Tensor; N] {
        let mut y = w.map(|w| {
            let n = w[0].n();
            check_offsets(offsets, w.len(), x.rows);
            assert!(w.iter().all(|w| (w.n(), w.k()) == (n, x.cols)));
            (Blank::new(x.dtype(), x.rows, n), n)
        });
        let outs = y.each_mut().map(|(y, n)| (*n, y.out()));
        let problems: Vec<_> = (0..offsets.len() - 1)
            .filter(|e| offsets[*e] < offsets[e + 1])
            .flat_map(|e| {
                w.iter().zip(outs).map(move |(w, (n, out))| Problem {
                    m: offsets[e + 1] - offsets[e],
                    left: Left::rows(x, offsets[e], rounds(w[e])),
                    right: &w[e].0,
                    bias: None,
                    out: out.offset(offsets[e] * n),
                    stride: n,
                })
            })
            .collect();
        gemm::run(self.isa, &problems);
        // SAFETY: the offsets cut all rows, each group's product writes all of its own.
        y.map(|(y, _)| unsafe { y.written() })
    }

    /// `dx[rows of e] += dy[rows of e]·w[e]`; shapes as in [`Ops::grouped_matmul`], gradients f32.
    pub fn add_grouped_matmul_input_grad(&self, dy: &Tensor, offsets: &[usize], w: &[&Matrix], dx: &mut Tensor) {
        assert!((dx.rows, dx.cols) == (dy.rows, w[0].k()));
        self.grouped_input_grad(dy, offsets, w, Out::AddF32(dx.f32_mut().as_mut_ptr()));
    }

    /// `dx[rows of e] = dy[rows of e]·w[e]`; shapes as in [`Ops::grouped_matmul`], gradients f32.
    pub fn grouped_matmul_input_grad(&self, dy: &Tensor, offsets: &[usize], w: &[&Matrix]) -> Tensor {
        let mut dx = Blank::new(Dtype::F32, dy.rows, w[0].k());
        self.grouped_input_grad(dy, offsets, w, dx.out());
        // SAFETY: the offsets cut all rows, each group's product writes all of its own.
        unsafe { dx.written() }
    }

    fn grouped_input_grad(&self, dy: &Tensor, offsets: &[usize], w: &[&Matrix], out: Out) {
        use rayon::prelude::*;
        let stride = w[0].k();
        check_offsets(offsets, w.len(), dy.rows);
        let transposed: Vec<_> = w
            .par_iter()
            .enumerate()
            .map(|(e, w)| (offsets[e] < offsets[e + 1]).then(|| w.transposed(self.isa)))
            .collect();
        let problems: Vec<_> = transposed
            .iter()
            .enumerate()
            .filter_map(|(e, t)| {
                let t = t.as_ref()?;
                assert_eq!((t.n(), t.k()), (stride, dy.cols));
                Some(Problem {
                    m: offsets[e + 1] - offsets[e],
                    left: Left::rows(dy, offsets[e], rounds(t)),
                    right: &t.0,
                    bias: None,
                    out: out.offset(offsets[e] * stride),
                    stride,
                })
            })
            .collect();
        gemm::run(self.isa, &problems);
    }

    /// `dw[e] += dyᵀ·x` over the rows of `e`; shapes as in [`Ops::grouped_matmul`]; `None` skips a frozen weight.
    pub fn grouped_matmul_weight_grad(&self, dy: &Tensor, x: &Tensor, offsets: &[usize], dw: Vec<Option<&mut [f32]>>) {
        let (n, k) = (dy.cols, x.cols);
        assert_eq!(dy.rows, x.rows);
        check_offsets(offsets, dw.len(), x.rows);
        let round = x.dtype() == Dtype::Bf16;
        let wanted: Vec<_> = dw
            .into_iter()
            .enumerate()
            .filter_map(|(e, dw)| dw.filter(|_| offsets[e] < offsets[e + 1]).map(|dw| (offsets[e], offsets[e + 1], dw)))
            .collect();
        let rights: Vec<_> = wanted
            .iter()
            .map(|(from, to, _)| match &x.storage {
                Storage::F32(x) => AnyPacked::F32(Packed::from_columns(self.isa, &x[from * k..], k, 0, k, to - from)),
                Storage::Bf16(x) => AnyPacked::Bf16(Packed::from_columns(self.isa, &x[from * k..], k, 0, k, to - from)),
            })
            .collect();
        let problems: Vec<_> = wanted
            .into_iter()
            .zip(&rights)
            .map(|((from, _, dw), right)| {
                assert_eq!(dw.len(), n * k);
                Problem {
                    m: n,
                    left: Left::columns(dy, from, round),
                    right,
                    bias: None,
                    out: Out::AddF32(dw.as_mut_ptr()),
                    stride: k,
                }
            })
            .collect();
        gemm::run(self.isa, &problems);
    }

    // ---- FP8 ------------------------------------------------------------------------------------------------------

    /// The numbers of `x` in E4M3 under scales of its tiles, as bf16: the operand of a product in FP8. Tiles along or across tokens
    /// begin anew at each of `offsets`, which cut all rows. `floor`: [`BLOCK_MAX_FLOOR`](crate::formats::BLOCK_MAX_FLOOR) or, of gradients,
    /// [`GRADIENT_MAX_FLOOR`](crate::formats::GRADIENT_MAX_FLOOR).
    pub fn fp8_numbers(&self, x: &Tensor, tiles: Tiles, offsets: &[usize], floor: f32, scale: ScaleFormat) -> Tensor {
        quantize::numbers(self.isa, x, tiles, offsets, floor, scale)
    }

    /// `x` in one byte per element, to be kept; see [`Quantized`].
    pub fn fp8_keep(&self, x: &Tensor, scale: ScaleFormat) -> Quantized {
        Quantized::of(self.isa, x, scale)
    }

    /// `x` in twelve bits per element, to be kept; see [`Quantized::e5m6`].
    pub fn e5m6_keep(&self, x: &Tensor) -> Quantized {
        Quantized::e5m6(self.isa, x)
    }

    /// What was kept, as bf16.
    pub fn fp8_expand(&self, x: &Quantized) -> Tensor {
        x.expand(self.isa)
    }

    // ---- embedding ------------------------------------------------------------------------------------------------

    /// Rows `ids` of `table` `[V, D]` as f32 `[T, D]`.
    pub fn embed(&self, ids: &[u32], table: &Matrix) -> Tensor {
        let d = table.k();
        let mut y = Tensor::zeros(Dtype::F32, ids.len(), d);
        y.f32_mut().chunks_exact_mut(d).zip(ids).for_each(|(y, id)| table.row(*id as usize, y));
        y
    }

    /// `dtable[ids[t]] += dy[t]`, tokens ascending. `dy`: f32 `[T, D]`; `dtable`: `[V, D]`.
    pub fn embed_grad(&self, ids: &[u32], dy: &Tensor, dtable: &mut [f32]) {
        for (id, dy) in ids.iter().zip(dy.f32().chunks_exact(dy.cols)) {
            dtable[*id as usize * dy.len()..][..dy.len()].iter_mut().zip(dy).for_each(|(t, d)| *t += d);
        }
    }

    // ---- pointwise ------------------------------------------------------------------------------------------------

    /// Root-mean-square norm of `x` `[T, D]` in `dtype`, and the reciprocal roots `[T]`.
    pub fn rms_norm(&self, x: &Tensor, gain: &[f32], eps: f32, dtype: Dtype) -> (Tensor, Vec<f32>) {
        rms_norm::forward(self.isa, x, gain, eps, dtype)
    }

    /// `h + added`, f32 `[T, D]`, and its norm as [`Ops::rms_norm`] gives it, in one pass.
    pub fn sum_norm(
        &self,
        h: &Tensor,
        added: &Tensor,
        gain: &[f32],
        eps: f32,
        dtype: Dtype,
    ) -> (Tensor, Tensor, Vec<f32>) {
        rms_norm::sum_forward(self.isa, h, added, gain, eps, dtype)
    }

    /// `h += added`, `h` f32 `[T, D]`, and the norm of the sum, in one pass.
    pub fn add_norm(&self, h: &mut Tensor, added: &Tensor, gain: &[f32], eps: f32, dtype: Dtype) -> Tensor {
        rms_norm::add_forward(self.isa, h, added, gain, eps, dtype)
    }

    /// Adds to `dx` and, unless frozen, to `dgain`; see [`Ops::rms_norm`].
    pub fn rms_norm_grad(
        &self,
        x: &Tensor,
        gain: &[f32],
        rrms: &[f32],
        dy: &Tensor,
        dx: &mut Tensor,
        dgain: Option<&mut [f32]>,
    ) {
        rms_norm::backward(self.isa, x, gain, rrms, dy, dx, dgain);
    }

    /// Rotates `x` in place.
    pub fn rope(&self, x: &mut Tensor, layout: RopeLayout, angles: &Angles) {
        rope::apply(self.isa, x, layout, angles, false);
    }

    /// Rotates a gradient back, in place.
    pub fn rope_grad(&self, dx: &mut Tensor, layout: RopeLayout, angles: &Angles) {
        rope::apply(self.isa, dx, layout, angles, true);
    }

    /// `silu(g) ∘ u`.
    pub fn silu_mul(&self, g: &Tensor, u: &Tensor) -> Tensor {
        pointwise::silu_mul(self.isa, g, u)
    }

    /// `(dg, du)`, f32.
    pub fn silu_mul_grad(&self, g: &Tensor, u: &Tensor, da: &Tensor) -> (Tensor, Tensor) {
        pointwise::silu_mul_grad(self.isa, g, u, da)
    }

    /// `h += y`, `h` f32.
    pub fn add(&self, h: &mut Tensor, y: &Tensor) {
        pointwise::add(h, y);
    }

    /// `h + y`, `h` and the result f32.
    pub fn sum(&self, h: &Tensor, y: &Tensor) -> Tensor {
        pointwise::sum(h, y)
    }

    /// Columns `from..from + n`.
    pub fn columns(&self, x: &Tensor, from: usize, n: usize) -> Tensor {
        pointwise::columns(x, from, n)
    }

    /// Columns of `a`, then of `b`.
    pub fn beside(&self, a: &Tensor, b: &Tensor) -> Tensor {
        pointwise::beside(a, b)
    }

    // ---- attention ------------------------------------------------------------------------------------------------

    /// Keys and values of a latent attention's heads, from the up-projection and the shared rotated key.
    pub fn latent_split(&self, kv: &Tensor, kr: &Tensor, heads: LatentHeads) -> (Tensor, Tensor) {
        pointwise::latent_split(kv, kr, heads)
    }

    /// `(dkv, dkr)`, f32.
    pub fn latent_split_grad(&self, dk: &Tensor, dv: &Tensor, heads: LatentHeads) -> (Tensor, Tensor) {
        pointwise::latent_split_grad(dk, dv, heads)
    }

    /// Queries of a latent attention's heads, moved into the latent space: of `q` `[T, H·(Dn + Dr)]`, `[q_n·Uₕ ; q_r]` per head,
    /// `[T, H·(R + Dr)]`. `up[h]`: `Uₕᵀ`, `[R, Dn]`.
    pub fn latent_query(&self, q: &Tensor, up: &[Matrix], heads: LatentHeads) -> Tensor {
        let LatentHeads { heads: h, nope, rope, .. } = heads;
        let latent = up[0].n();
        assert!(up.len() == h && q.cols == h * (nope + rope) && up.iter().all(|u| (u.n(), u.k()) == (latent, nope)));
        let mut y = pointwise::widen_heads(q, h, nope, rope, latent);
        self.heads_matmul(q, nope + rope, up, &mut y, latent + rope);
        y
    }

    /// Values of a latent attention's heads from their latent sums `o` `[T, H·R]`: `o·Vₕᵀ` per head, `[T, H·Dv]`. `up[h]`: `[Dv, R]`.
    pub fn latent_output(&self, o: &Tensor, up: &[Matrix]) -> Tensor {
        let (dv, latent) = (up[0].n(), up[0].k());
        assert!(o.cols == up.len() * latent && up.iter().all(|u| (u.n(), u.k()) == (dv, latent)));
        let mut y = Tensor::zeros(o.dtype(), o.rows, up.len() * dv);
        self.heads_matmul(o, latent, up, &mut y, dv);
        y
    }

    /// First columns of each head of `x` (`width` apart) times `w[h]ᵀ`, to the first columns of each head of `y` (`out_width` apart).
    fn heads_matmul(&self, x: &Tensor, width: usize, w: &[Matrix], y: &mut Tensor, out_width: usize) {
        let (stride, rows) = (y.cols, x.rows);
        assert!(x.cols == w.len() * width && y.cols == w.len() * out_width && y.rows == rows);
        if rows == 0 {
            return;
        }
        let out = Out::of(y);
        let problems: Vec<_> = w
            .iter()
            .enumerate()
            .map(|(h, w)| Problem {
                m: rows,
                left: Left::part(x, h * width, rounds(w)),
                right: &w.0,
                bias: None,
                out: out.offset(h * out_width),
                stride,
            })
            .collect();
        gemm::run(self.isa, &problems);
    }

    /// Causal attention on latent caches ([`KvBlocks::latent`](attention::KvBlocks::latent)): appends `k` `[T, R + Dr]`, whose first `R`
    /// columns are the value; `q` `[T, H·(R + Dr)]`. Returns `[T, H·R]`.
    pub fn latent_attention(&self, shape: HeadShape, q: &Tensor, k: &Tensor, seqs: &mut [Sequence<'_>]) -> Tensor {
        attention::latent_forward(self.isa, shape, q, k, seqs).0
    }

    /// Causal attention: appends to each sequence's cache; returns `[T, H·Dv]` and log-sum-exps `[T, H]`.
    pub fn attention(
        &self,
        shape: HeadShape,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        seqs: &mut [Sequence<'_>],
    ) -> (Tensor, Vec<f32>) {
        attention::forward(self.isa, shape, q, k, v, seqs)
    }

    /// `(dq, dk, dv)`, f32, for sequences that began empty.
    pub fn attention_grad(
        &self,
        shape: HeadShape,
        saved: &attention::Saved<'_>,
        d_o: &Tensor,
        cu_seqlens: &[usize],
    ) -> (Tensor, Tensor, Tensor) {
        attention::backward(self.isa, shape, saved, d_o, cu_seqlens)
    }

    // ---- experts --------------------------------------------------------------------------------------------------

    /// Chooses experts; `logits`: f32 `[T, E]`.
    pub fn route(&self, logits: &Tensor, bias: Option<&[f32]>, gate: GateShape) -> Routing {
        moe::route(self.isa, logits, bias, gate)
    }

    /// Gradient of the logits (f32) and the sequence-wise balance loss.
    pub fn route_grad(
        &self,
        routing: &Routing,
        gate: GateShape,
        dw: &[f32],
        alpha: f32,
        cu_seqlens: &[usize],
        share: f32,
    ) -> (Tensor, f32) {
        moe::route_grad(routing, gate, dw, alpha, cu_seqlens, share)
    }

    /// Row `i` of the result is row `tokens[i]` of `x`.
    pub fn gather(&self, x: &Tensor, tokens: &[u32]) -> Tensor {
        moe::gather(x, tokens)
    }

    /// Adds sorted rows back to their tokens: the gradient of [`Ops::gather`].
    pub fn gather_grad(&self, dy: &Tensor, routing: &Routing, dx: &mut Tensor) {
        moe::scatter_add(dy, routing, dx);
    }

    /// Weighted sum of each token's expert outputs, then the shared output; f32.
    pub fn combine(&self, y: &Tensor, routing: &Routing, shared: Option<&Tensor>) -> Tensor {
        moe::combine(self.isa, y, routing, shared)
    }

    /// Multiplies sorted rows (f32) by their weights.
    pub fn scale_rows(&self, x: &mut Tensor, routing: &Routing) {
        moe::scale_rows(x, routing);
    }

    /// Gradient of the routing weights from `da` and `a`, the down-projection's input.
    pub fn route_weight_grad(&self, da: &Tensor, a: &Tensor, routing: &Routing) -> Vec<f32> {
        moe::weight_grad(self.isa, da, a, routing)
    }

    // ---- loss and optimizer ---------------------------------------------------------------------------------------

    /// Turns logits (f32) into their gradient; returns the targets' log-probabilities.
    pub fn cross_entropy_grad(&self, logits: &mut Tensor, targets: &[u32], scale: f32) -> Vec<f32> {
        loss::cross_entropy_grad(self.isa, logits, targets, scale)
    }

    /// Log-probability of each row's target.
    pub fn target_logprobs(&self, logits: &Tensor, targets: &[u32]) -> Vec<f32> {
        loss::target_logprobs(self.isa, logits, targets)
    }

    /// `ln Σ eˣ` of one row.
    pub fn log_sum_exp(&self, x: &[f32]) -> f32 {
        loss::log_sum_exp(self.isa, x)
    }

    /// One AdamW step of one parameter.
    pub fn adamw(&self, s: AdamW, p: &mut [f32], g: &[f32], m: &mut Moments, v: &mut Moments) {
        adamw::step(self.isa, s, p, g, m, v);
    }

    /// The same of a matrix, whose compute weights follow.
    #[allow(clippy::too_many_arguments)]
    pub fn adamw_matrix(&self, s: AdamW, p: &mut [f32], g: &[f32], m: &mut Moments, v: &mut Moments, w: &mut Matrix) {
        adamw::step_matrix(self.isa, s, p, g, m, v, w);
    }

    /// `Σ x²` in f64.
    pub fn sum_of_squares(&self, x: &[f32]) -> f64 {
        adamw::sum_of_squares(self.isa, x)
    }
}

/// Offsets that cut `rows` rows into `groups` ascending groups.
fn check_offsets(offsets: &[usize], groups: usize, rows: usize) {
    assert!(offsets.len() == groups + 1 && offsets[0] == 0 && offsets[groups] == rows && offsets.is_sorted());
}

/// Whether f32 left operands are rounded to bf16 for this weight.
fn rounds(w: &Matrix) -> bool {
    w.dtype() == Dtype::Bf16
}
