//! Causal attention over packed keys and values, both passes, never an `[S, S]` matrix.
//!
//! **The numbers.** Keys come in blocks of 64 by position, blocks in segments of 8. Within a segment, per query:
//! `s = (q·k) · scale`, `m' = max(m, max s)`, `p = exp(s − m')`, `α = exp(m − m')`, `l = fma(l, α, sum16(p))`,
//! `o = fma(o, α, Σ p·v)` with `p` rounded to the element type for the product; products are the house dot product. Segments
//! merge in ascending order: `m = max(m₁, m₂)`, `l = fma(l₁, α₁, l₂·α₂)`, the same for `o`; `out = o / l`.
//! A query never sees a later key, so a prompt cut anywhere gives the same bits.
//!
//! A **latent cache** ([`KvBlocks::latent`]) holds one key for all heads, whose first `Dv` numbers are the value as well: the absorbed
//! form of latent attention. A cache **in FP8** ([`KvBlocks::fp8`]) holds a byte per number; what it computes is all the above on the numbers that its
//! codes mean.
//!
//! Source: Milakov and Gimelshein 2018, arXiv:1805.02867; Dao et al. 2022, arXiv:2205.14135 (backward).
//! Shapes: `H` query heads share `G` key heads; `Dk`, `Dv` head widths; `q` `[T, H·Dk]`, `k` `[T, G·Dk]`, `v` `[T, G·Dv]`.

mod cache;
mod fp8;

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use crate::{
    gemm::{
        Right,
        lanes::Packable,
        left_len,
        pack::{Aligned, Left, LeftData, PAIR, PANEL, Packed},
        pack_left, tiles,
    },
    isa::{Isa, multi_isa},
    math::{exp, sum16},
    tensor::{Dtype, Element, Tensor, with_element},
};

pub use cache::KvBlocks;
use cache::{AnyKv, Blocks};

/// Keys of a block.
pub const BLOCK: usize = 64;
/// Blocks of a segment.
const SEGMENT: usize = 8;

/// Head counts and widths of an attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadShape {
    /// Query heads `H`.
    pub heads: usize,
    /// Key and value heads `G`; `H` is a multiple.
    pub kv_heads: usize,
    /// Width of queries and keys.
    pub dk: usize,
    /// Width of values.
    pub dv: usize,
    /// Multiplies every score.
    pub scale: f32,
}

/// A sequence of a batch: its rows of `q`, `k`, `v`, and what it holds already.
pub struct Sequence<'a> {
    /// First row.
    pub first: usize,
    /// Rows.
    pub tokens: usize,
    /// The keys and values before these tokens; these are appended.
    pub kv: &'a mut KvBlocks,
}

/// Appends `k` and `v` to each sequence and returns the attention output `[T, H·Dv]` in the dtype of `q`, and the
/// log-sum-exp of each query's scores, `[T, H]`.
pub fn forward(
    isa: Isa,
    shape: HeadShape,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    seqs: &mut [Sequence<'_>],
) -> (Tensor, Vec<f32>) {
    let (dk, dv) = (shape.kv_heads * shape.dk, shape.kv_heads * shape.dv);
    assert_eq!([k.cols, v.cols], [dk, dv]);
    assert!(k.rows == q.rows && v.rows == q.rows && k.dtype() == q.dtype() && v.dtype() == q.dtype());
    for s in seqs.iter_mut() {
        assert!(!s.kv.is_latent(), "a latent cache takes no values");
        match &mut s.kv.0 {
            AnyKv::F32(kv) => kv.append(&k.f32()[s.first * dk..], &v.f32()[s.first * dv..], s.tokens),
            AnyKv::Bf16(kv) => kv.append(&bf16::slice(k)[s.first * dk..], &bf16::slice(v)[s.first * dv..], s.tokens),
            AnyKv::Fp8(kv) => {
                kv.append(isa, &bf16::slice(k)[s.first * dk..], &bf16::slice(v)[s.first * dv..], s.tokens)
            }
        }
    }
    attend(isa, shape, q, seqs)
}

/// [`forward`] on latent caches: `k` `[T, Dk]` is the key of all heads, its first `Dv` columns their value.
pub fn latent_forward(
    isa: Isa,
    shape: HeadShape,
    q: &Tensor,
    k: &Tensor,
    seqs: &mut [Sequence<'_>],
) -> (Tensor, Vec<f32>) {
    assert!(shape.kv_heads == 1 && k.cols == shape.dk && k.rows == q.rows && k.dtype() == q.dtype());
    for s in seqs.iter_mut() {
        assert!(s.kv.is_latent(), "a latent cache is needed");
        match &mut s.kv.0 {
            AnyKv::F32(kv) => kv.append(&k.f32()[s.first * shape.dk..], &[], s.tokens),
            AnyKv::Bf16(kv) => kv.append(&bf16::slice(k)[s.first * shape.dk..], &[], s.tokens),
            AnyKv::Fp8(kv) => kv.append(isa, &bf16::slice(k)[s.first * shape.dk..], &[], s.tokens),
        }
    }
    attend(isa, shape, q, seqs)
}

/// Queries against caches that hold their own keys already.
fn attend(isa: Isa, shape: HeadShape, q: &Tensor, seqs: &[Sequence<'_>]) -> (Tensor, Vec<f32>) {
    assert_eq!(q.cols, shape.heads * shape.dk);
    let HeadShape { heads, kv_heads, dk, dv, .. } = shape;
    let mut out = Tensor::zeros(q.dtype(), q.rows, heads * dv);
    let mut lse = vec![0.0; q.rows * heads];
    // Rows of a tile are tokens and, within a token, the heads that share a key: a block of keys is read once for all.
    let stack = heads / kv_heads;
    let mut all = Vec::new();
    for s in seqs {
        let start = s.kv.len() - s.tokens;
        for from in (0..s.tokens * stack).step_by(BLOCK) {
            let rows = from..(s.tokens * stack).min(from + BLOCK);
            let positions: Vec<_> = rows.clone().map(|r| start + r / stack).collect();
            all.extend((0..kv_heads).map(|group| {
                let places = rows.clone().map(|r| (s.first + r / stack) * heads + group * stack + r % stack).collect();
                Tile { kv: s.kv, group, places, positions: positions.clone() }
            }));
        }
    }
    // Few tiles, as when single tokens are decoded, are cut into their segments.
    let cost: usize = all.iter().map(|t| t.places.len() * t.kv.len() * (dk + dv)).sum();
    let parallel = cost >= 64 * 1024;
    let cut = parallel && all.len() < 4 * rayon::current_num_threads();
    let tasks: Vec<_> = all
        .iter()
        .flat_map(|t| {
            let segments = t.segments();
            let step = if cut { 1 } else { segments };
            (0..segments).step_by(step).map(move |first| (t, first..segments.min(first + step)))
        })
        .collect();
    let run = |(t, segments): &(&Tile<'_>, Range<usize>)| match &t.kv.0 {
        AnyKv::F32(kv) => tile_forward(isa, kv, q.f32(), t, segments.clone()),
        AnyKv::Bf16(kv) => tile_forward(isa, kv, bf16::slice(q), t, segments.clone()),
        AnyKv::Fp8(kv) => tile_forward(isa, kv, bf16::slice(q), t, segments.clone()),
    };
    let parts: Vec<_> = if parallel { tasks.par_iter().map(run).collect() } else { tasks.iter().map(run).collect() };
    let mut parts = parts.into_iter().zip(&tasks).peekable();
    with_element!(q.dtype(), E => {
        let o = E::slice_mut(&mut out);
        while let Some((mut total, (tile, _))) = parts.next() {
            while let Some((part, (_, segments))) = parts.next_if(|(_, (_, segments))| segments.start > 0) {
                total.merge(isa, &part, segments.start, &tile.positions);
            }
            for (r, at) in tile.places.iter().enumerate() {
                for (o, x) in o[at * dv..][..dv].iter_mut().zip(total.row(r)) {
                    *o = E::narrow(*x / total.l[r]);
                }
                lse[*at] = total.m[r] + libm::logf(total.l[r]);
            }
        }
    });
    (out, lse)
}

/// Queries that see the keys of one head, in the order of their positions.
struct Tile<'a> {
    kv: &'a KvBlocks,
    group: usize,
    /// Rows of `[T·H, ·]`.
    places: Vec<usize>,
    positions: Vec<usize>,
}

impl Tile<'_> {
    fn blocks(&self) -> usize {
        self.positions.last().map_or(0, |p| p / BLOCK + 1)
    }

    fn segments(&self) -> usize {
        self.blocks().div_ceil(SEGMENT)
    }
}

/// What some segments contribute to the rows of a tile: greatest score, sum of exponentials, and values weighted by them.
struct Part {
    m: Vec<f32>,
    l: Vec<f32>,
    o: Vec<f32>,
    /// Of a row of `o`.
    width: usize,
}

impl Part {
    fn empty(rows: usize, width: usize) -> Self {
        Self { m: vec![f32::NEG_INFINITY; rows], l: vec![0.0; rows], o: vec![0.0; rows * width], width }
    }

    fn row(&self, r: usize) -> &[f32] {
        &self.o[r * self.width..][..self.width]
    }

    fn row_mut(&mut self, r: usize) -> &mut [f32] {
        &mut self.o[r * self.width..][..self.width]
    }

    /// Takes in the segment that follows. A query that sees nothing of it is left alone.
    fn merge(&mut self, isa: Isa, part: &Self, segment: usize, positions: &[usize]) {
        for r in (0..positions.len()).filter(|r| positions[*r] >= segment * SEGMENT * BLOCK) {
            let m = self.m[r].max(part.m[r]);
            let (a, b) = (exp(self.m[r] - m), exp(part.m[r] - m));
            self.m[r] = m;
            self.l[r] = self.l[r].mul_add(a, part.l[r] * b);
            scale_add(isa, self.row_mut(r), a, part.row(r), b);
        }
    }
}

/// Rows of one head of `x` (`[T, heads · d]`) from row `first` on.
fn head_view(x: &Tensor, first: usize, d: usize, head: usize, round: bool) -> Left<'_> {
    let at = first * x.cols + head * d;
    match &x.storage {
        crate::tensor::Storage::F32(x_) => {
            Left { data: LeftData::F32(&x_[at..]), row_stride: x.cols, col_stride: 1, round }
        }
        crate::tensor::Storage::Bf16(x_) => {
            Left { data: LeftData::Bf16(&x_[at..]), row_stride: x.cols, col_stride: 1, round }
        }
    }
}

/// A packed copy for right operands of `E`, see [`pack_left`].
fn strips<E: Packable>(isa: Isa, left: &Left<'_>, rows: usize, depth: usize) -> Vec<f32> {
    let mut out = vec![0.0; left_len::<E>(isa, rows, depth)];
    pack_left::<E>(isa, left, 0, rows, 0, depth, &mut out);
    out
}

/// A tile against some segments, the first of all or one alone. `q`: `[T·H, Dk]`.
fn tile_forward<E: Packable>(isa: Isa, kv: &impl Blocks<E>, q: &[E], tile: &Tile<'_>, segments: Range<usize>) -> Part {
    let HeadShape { dk, dv, scale, .. } = kv.shape();
    let (rows, group) = (tile.places.len(), tile.group);
    let q: Vec<E> = tile.places.iter().flat_map(|at| &q[at * dk..][..dk]).copied().collect();
    let q = strips::<E>(isa, &Left { data: LeftData::of(&q), row_stride: dk, col_stride: 1, round: false }, rows, dk);
    let width = dv.next_multiple_of(PANEL);
    let mut s = vec![0.0f32; rows * BLOCK];
    let mut p_strips = vec![0.0f32; left_len::<E>(isa, rows, BLOCK)];
    let mut pv = vec![0.0f32; rows * width];
    let mut alpha = vec![0.0f32; rows];
    let (mut keys, mut values) = (Aligned::zeros(0), Aligned::zeros(0));
    let mut total: Option<Part> = None;
    for segment in segments {
        let mut part = Part::empty(rows, width);
        for block in segment * SEGMENT..((segment + 1) * SEGMENT).min(tile.blocks()) {
            let keys = kv.keys(isa, block, group, &mut keys);
            let right = Right { data: keys, panel_stride: dk.div_ceil(2) * PAIR };
            tiles(isa, rows, BLOCK / PANEL, dk.div_ceil(2), &q, &right, &mut s, BLOCK, false);
            for (r, s) in s.chunks_exact_mut(BLOCK).enumerate() {
                let seen = (tile.positions[r] + 1).saturating_sub(block * BLOCK).min(BLOCK);
                alpha[r] = softmax_step(isa, s, seen, scale, &mut part.m[r], &mut part.l[r]);
            }
            let view =
                Left { data: LeftData::F32(&s), row_stride: BLOCK, col_stride: 1, round: E::DTYPE == Dtype::Bf16 };
            pack_left::<E>(isa, &view, 0, rows, 0, BLOCK, &mut p_strips);
            let right = Right { data: kv.values(isa, block, group, keys, &mut values), panel_stride: BLOCK / 2 * PAIR };
            tiles(isa, rows, width / PANEL, BLOCK / 2, &p_strips, &right, &mut pv, width, false);
            for (r, pv) in pv.chunks_exact(width).enumerate() {
                // A query that sees nothing of this block is left alone, so that its bits do not depend on its neighbours.
                if tile.positions[r] >= block * BLOCK {
                    scale_add(isa, part.row_mut(r), alpha[r], pv, 1.0);
                }
            }
        }
        match &mut total {
            None => total = Some(part),
            Some(total) => total.merge(isa, &part, segment, &tile.positions),
        }
    }
    total.unwrap_or_else(|| Part::empty(rows, width))
}

multi_isa! {
    /// Turns a row of 64 scores, of which `seen` are visible, into probabilities relative to the running maximum.
    fn softmax_step(s: &mut [f32], seen: usize, scale: f32, m: &mut f32, l: &mut f32) -> f32 {
        let s: &mut [f32; BLOCK] = s.try_into().expect("a block");
        if seen == 0 {
            s.fill(0.0);
            return 1.0;
        }
        let mut lanes = [f32::NEG_INFINITY; 16];
        for (j, s) in s.iter_mut().enumerate() {
            *s = if j < seen { *s * scale } else { f32::NEG_INFINITY };
            lanes[j % 16] = if *s > lanes[j % 16] || s.is_nan() { *s } else { lanes[j % 16] };
        }
        let mut top = *m;
        for x in lanes {
            top = if x > top || x.is_nan() { x } else { top };
        }
        let alpha = exp(*m - top);
        for s in s.iter_mut() {
            *s = exp(*s - top);
        }
        let sum = sum16(BLOCK, |j| s[j]);
        *m = top;
        *l = l.mul_add(alpha, sum);
        alpha
    }
}

multi_isa! {
    /// `o = fma(o, a, x · b)`.
    fn scale_add(o: &mut [f32], a: f32, x: &[f32], b: f32) {
        for (o, x) in o.iter_mut().zip(x) {
            *o = o.mul_add(a, *x * b);
        }
    }
}

/// What [`backward`] needs of the forward pass.
pub struct Saved<'a> {
    /// `[T, H·Dk]` after rope.
    pub q: &'a Tensor,
    /// `[T, G·Dk]` after rope.
    pub k: &'a Tensor,
    /// `[T, G·Dv]`
    pub v: &'a Tensor,
    /// `[T, H·Dv]`
    pub o: &'a Tensor,
    /// `[T, H]`
    pub lse: &'a [f32],
}

/// Gradients of `q`, `k` and `v` (f32) given `d_o` = ∂loss/∂o, f32 `[T, H·Dv]`, for sequences `cu_seqlens` that begin empty.
///
/// `D = Σ dO·O`, `P = exp(s − lse)`, `dS = P ∘ (dO·Vᵀ − D) · scale`; then `dV = Pᵀ·dO`, `dQ = dS·K`, `dK = dSᵀ·Q`, each with
/// operands rounded to the element type of `q`, key blocks ascending, query blocks ascending within, heads of a group
/// ascending outside.
pub fn backward(
    isa: Isa,
    shape: HeadShape,
    saved: &Saved<'_>,
    d_o: &Tensor,
    cu_seqlens: &[usize],
) -> (Tensor, Tensor, Tensor) {
    let HeadShape { heads, kv_heads, dk, dv, .. } = shape;
    let rows = saved.q.rows;
    let tasks: Vec<_> =
        cu_seqlens.windows(2).flat_map(|w| (0..kv_heads).map(move |g| (w[0], w[1] - w[0], g))).collect();
    let run = |(first, len, g): &(usize, usize, usize)| with_element!(saved.q.dtype(), E => group_backward::<E>(isa, shape, saved, d_o, *first, *len, *g));
    let results: Vec<_> = tasks.par_iter().map(run).collect();
    let per = heads / kv_heads;
    // Heads side by side: `[rows, n · d]`, the gradient of head `h` of a sequence being `of(its groups, h)`, `[len, width ≥ d]`.
    let beside = |n: usize, d: usize, of: &(dyn Fn(&[GroupGrads], usize) -> &[f32] + Sync)| {
        let width = d.next_multiple_of(PANEL);
        Tensor::make::<f32>(rows, n * d, |first, out| {
            for (t, row) in (first..).zip(out.chunks_exact_mut(n * d)) {
                let after = cu_seqlens.partition_point(|start| *start <= t);
                if after == 0 || after == cu_seqlens.len() {
                    continue;
                }
                let groups = &results[(after - 1) * kv_heads..after * kv_heads];
                let at = (t - cu_seqlens[after - 1]) * width;
                for (h, to) in row.chunks_exact_mut(d).enumerate() {
                    to.copy_from_slice(&of(groups, h)[at..][..d]);
                }
            }
        })
    };
    let dq = beside(heads, dk, &|groups, h| &groups[h / per].0[h % per]);
    (dq, beside(kv_heads, dk, &|groups, h| &groups[h].1), beside(kv_heads, dv, &|groups, h| &groups[h].2))
}

type GroupGrads = (Vec<Vec<f32>>, Vec<f32>, Vec<f32>);

/// One key head of one sequence and the query heads that share it: `dq` per head, `dk`, `dv`, rows padded to panels.
/// `E`: the element type of the saved tensors; all operands are of it, or are rounded to it.
fn group_backward<E: Packable>(
    isa: Isa,
    shape: HeadShape,
    saved: &Saved<'_>,
    d_o: &Tensor,
    first: usize,
    len: usize,
    g: usize,
) -> GroupGrads {
    let HeadShape { heads, kv_heads, dk, dv, scale } = shape;
    let round = E::DTYPE == Dtype::Bf16;
    let per = heads / kv_heads;
    let (wk, wv) = (dk.next_multiple_of(PANEL), dv.next_multiple_of(PANEL));
    let blocks = len.div_ceil(BLOCK);
    let size = |b: usize| (len - b * BLOCK).min(BLOCK);
    let mut d_k = vec![0.0f32; len * wk];
    let mut d_v = vec![0.0f32; len * wv];
    let rows_of = |x: &Tensor, head: usize, d: usize, b: usize, round: bool| -> Vec<f32> {
        let view = head_view(x, first + b * BLOCK, d, head, round);
        dense(&view, size(b), d)
    };
    // Right operands of the key block: keys as outputs (for s and dP) and widths as outputs (for dQ).
    let keys: Vec<_> = (0..blocks)
        .map(|b| {
            let (k, v) = (rows_of(saved.k, g, dk, b, false), rows_of(saved.v, g, dv, b, false));
            (
                Packed::<E>::from_rows(&k, size(b), dk),
                Packed::<E>::from_columns(isa, &k, dk, 0, dk, size(b)),
                Packed::<E>::from_rows(&v, size(b), dv),
            )
        })
        .collect();
    let mut s = vec![0.0f32; BLOCK * BLOCK];
    let mut dp = vec![0.0f32; BLOCK * BLOCK];
    let mut d_qs = Vec::with_capacity(per);
    for h in 0..per {
        let head = g * per + h;
        let mut dq = vec![0.0f32; len * wk];
        let queries: Vec<_> = (0..blocks)
            .map(|b| {
                let n = size(b);
                let (q, d) = (rows_of(saved.q, head, dk, b, false), rows_of(d_o, head, dv, b, round));
                let exact = rows_of(d_o, head, dv, b, false);
                let o = rows_of(saved.o, head, dv, b, false);
                let dots: Vec<f32> = (0..n).map(|r| sum16(dv, |i| exact[r * dv + i] * o[r * dv + i])).collect();
                let left = |x: &[f32], d| {
                    strips::<E>(isa, &Left { data: LeftData::F32(x), row_stride: d, col_stride: 1, round: false }, n, d)
                };
                (
                    left(&q, dk),
                    Packed::<E>::from_columns(isa, &q, dk, 0, dk, n),
                    left(&d, dv),
                    Packed::<E>::from_columns(isa, &d, dv, 0, dv, n),
                    dots,
                )
            })
            .collect();
        for (j, (k_rows, k_columns, v_rows)) in keys.iter().enumerate() {
            let nj = size(j);
            let width = nj.next_multiple_of(PANEL);
            for (i, (q, q_columns, d, d_columns, dots)) in queries.iter().enumerate().skip(j) {
                let ni = size(i);
                let right = |p: &Packed<E>| -> (usize, usize) { (p.pairs(), p.pairs() * PAIR) };
                let product = |left: &[f32], rows: usize, p: &Packed<E>, c: &mut [f32], stride: usize, keep: bool| {
                    let (pairs, panel_stride) = right(p);
                    let panels = p.n.div_ceil(PANEL);
                    tiles(isa, rows, panels, pairs, left, &Right { data: &p.data, panel_stride }, c, stride, keep);
                };
                product(q, ni, k_rows, &mut s, width, false);
                product(d, ni, v_rows, &mut dp, width, false);
                for r in 0..ni {
                    let token = first + i * BLOCK + r;
                    let seen = if i == j { (r + 1).min(nj) } else { nj };
                    let lse = saved.lse[token * heads + head];
                    score_grad(
                        isa,
                        &mut s[r * width..][..width],
                        &mut dp[r * width..][..width],
                        seen,
                        scale,
                        lse,
                        dots[r],
                    );
                }
                let left = |x: &[f32], rows: usize, depth: usize, transposed: bool| {
                    let (row_stride, col_stride) = if transposed { (1, width) } else { (width, 1) };
                    strips::<E>(isa, &Left { data: LeftData::F32(x), row_stride, col_stride, round }, rows, depth)
                };
                product(&left(&s, nj, ni, true), nj, d_columns, &mut d_v[j * BLOCK * wv..], wv, true);
                product(&left(&dp, nj, ni, true), nj, q_columns, &mut d_k[j * BLOCK * wk..], wk, true);
                product(&left(&dp, ni, nj, false), ni, k_columns, &mut dq[i * BLOCK * wk..], wk, true);
            }
        }
        d_qs.push(dq);
    }
    (d_qs, d_k, d_v)
}

/// `[rows, d]` f32 copy of a view.
fn dense(view: &Left<'_>, rows: usize, d: usize) -> Vec<f32> {
    let round = |x: f32| if view.round { crate::math::round_bf16(x) } else { x };
    let mut out = Vec::with_capacity(rows * d);
    for r in 0..rows {
        let at = r * view.row_stride..r * view.row_stride + d;
        match view.data {
            LeftData::F32(x) => out.extend(x[at].iter().map(|x| round(*x))),
            LeftData::Bf16(x) => out.extend(x[at].iter().map(|x| x.widen())),
        }
    }
    out
}

multi_isa! {
    /// Scores to probabilities, and products `dO·v` to score gradients, both 0 where not `seen`.
    fn score_grad(s: &mut [f32], dp: &mut [f32], seen: usize, scale: f32, lse: f32, dot: f32) {
        for (j, (s, dp)) in s.iter_mut().zip(dp.iter_mut()).enumerate() {
            let p = exp(*s * scale - lse);
            let ds = p * (*dp - dot) * scale;
            *s = if j < seen { p } else { 0.0 };
            *dp = if j < seen { ds } else { 0.0 };
        }
    }
}
