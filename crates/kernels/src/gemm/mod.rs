//! Matrix products `Y[M, N] = X[M, K] · W[N, K]ᵀ`, the one dot product of the house, and its drivers.
//!
//! **The dot product.** Along K in chunks of 32: an even and an odd accumulator start at zero and take `k` ascending by
//! fused multiply-add; then `acc += even + odd`. This is what one AMX `TDPBF16PS` computes. [`reference()`] states it in
//! six lines; every other path returns the same bits, whatever the blocking, because blocks cut M and N freely and K only
//! between chunks, where the accumulator is stored exactly.
//!
//! The left operand is packed on the way in, as f32 strips of 4 rows, as the bf16 tiles of AMX (`amx.rs`) or as couples of bf16 (`dots.rs`);
//! the right one is packed once, see `pack.rs`.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod dots;
pub(crate) mod fp8;
pub(crate) mod lanes;
pub(crate) mod pack;

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use fp8::PackedFp8;
use lanes::{Lanes, Packable, Plain};
use pack::{Aligned, AnyPacked, Left, LeftData, PAIR, PANEL, Packed};

use crate::{
    isa::{Isa, Level, prefetch, prefetch_helps},
    tensor::{Storage, Tensor},
};

/// Rows of a block: its packed strips stay in L2.
const BLOCK_M: usize = 64;
/// Columns of a block, a multiple of two panels.
const BLOCK_N: usize = 512;
/// Summed elements of a block, a multiple of 32: two bf16 panels of it fill half of a 32 KiB L1.
const BLOCK_K: usize = 256;
/// Rows up to which a product waits for its right operand: then each panel is read from end to end.
const THIN: usize = 8;
/// Bytes of a panel that are asked for ahead, where that helps.
const AHEAD: usize = 1024;
/// Elements of a left operand that are packed at a time: 16 MiB of bf16.
const PACKED: usize = 8 << 20;
/// Elements of a right operand that stay in a core's cache while blocks of rows pass: half of 1 MiB in bf16.
const RESIDENT: usize = 256 << 10;
/// Products below this many multiplications run on the calling thread.
const SERIAL: usize = 64 * 1024;

/// The dot product, by definition. Slow.
pub fn reference(a: &[f32], b: &[f32], mut acc: f32) -> f32 {
    for (a, b) in a.chunks(32).zip(b.chunks(32)) {
        let mut sum = [0.0f32; 2];
        for (k, (a, b)) in a.iter().zip(b).enumerate() {
            sum[k % 2] = a.mul_add(*b, sum[k % 2]);
        }
        acc += sum[0] + sum[1];
    }
    acc
}

/// Where a product goes: element `(m, n)` at `m · stride + n`.
#[derive(Clone, Copy)]
pub(crate) enum Out {
    /// Replaces, rounded to bf16 once.
    Bf16(*mut bf16),
    /// Replaces.
    F32(*mut f32),
    /// Continues the sum that is there.
    AddF32(*mut f32),
}

impl Out {
    /// The place of an output, from its first element on.
    pub fn of(y: &mut Tensor) -> Self {
        match &mut y.storage {
            Storage::F32(y) => Self::F32(y.as_mut_ptr()),
            Storage::Bf16(y) => Self::Bf16(y.as_mut_ptr()),
        }
    }

    /// The same, `elements` further on.
    pub fn offset(self, elements: usize) -> Self {
        match self {
            Self::Bf16(p) => Self::Bf16(p.wrapping_add(elements)),
            Self::F32(p) => Self::F32(p.wrapping_add(elements)),
            Self::AddF32(p) => Self::AddF32(p.wrapping_add(elements)),
        }
    }
}

/// One product of a group. The elements `(m, n)` of `out` must be valid, and no two problems may have one in common.
pub(crate) struct Problem<'a> {
    pub m: usize,
    pub left: Left<'a>,
    pub right: &'a AnyPacked,
    pub bias: Option<&'a [f32]>,
    pub out: Out,
    pub stride: usize,
}

impl<'a> Problem<'a> {
    /// Some of its rows.
    fn rows(&self, first: usize, m: usize) -> Self {
        let at = first * self.left.row_stride;
        let data = match self.left.data {
            LeftData::F32(x) => LeftData::F32(&x[at..]),
            LeftData::Bf16(x) => LeftData::Bf16(&x[at..]),
        };
        Problem { m, left: Left { data, ..self.left }, out: self.out.offset(first * self.stride), ..*self }
    }
}

// SAFETY: the pointer is only written through disjoint tasks, see `Problem`.
unsafe impl Sync for Problem<'_> {}
// SAFETY: as above.
unsafe impl Send for Problem<'_> {}

struct Task {
    problem: usize,
    rows: (usize, usize),
    columns: (usize, usize),
}

/// Runs all problems, cut into tasks for the threads of the current pool. Bits do not depend on the cut.
pub(crate) fn run(isa: Isa, problems: &[Problem<'_>]) {
    // As many rows at a time as leave their packed copy in the last cache.
    let mut batch: Vec<Problem<'_>> = Vec::new();
    let mut held = 0;
    for p in problems {
        let k = k_of(p.right).max(1);
        let step = (PACKED / k).max(1).next_multiple_of(BLOCK_M);
        for first in (0..p.m).step_by(step) {
            let part = p.rows(first, (p.m - first).min(step));
            held += part.m * k;
            batch.push(part);
            if held >= PACKED {
                run_batch(isa, &batch);
                batch.clear();
                held = 0;
            }
        }
    }
    if !batch.is_empty() {
        run_batch(isa, &batch);
    }
}

fn run_batch(isa: Isa, problems: &[Problem<'_>]) {
    let work = |p: &Problem<'_>| p.m * n_of(p.right) * k_of(p.right).max(1);
    let total: usize = problems.iter().map(work).sum();
    let threads = rayon::current_num_threads();
    let parallel = threads > 1 && total > SERIAL;
    let mut tasks = Vec::new();
    let mut shared = vec![false; problems.len()];
    for (problem, p) in problems.iter().enumerate() {
        let (n, k) = (n_of(p.right), k_of(p.right));
        // Enough tasks for the threads to even out, and columns whose weights stay in a core's cache while the rows pass.
        let row_blocks = p.m.div_ceil(BLOCK_M);
        let share = (4 * threads * work(p)).div_ceil(total.max(1));
        let cuts = if parallel { share.div_ceil(row_blocks).max(1) } else { 1 };
        let mut width = n.div_ceil(cuts).next_multiple_of(2 * PANEL).max(4 * PANEL);
        if row_blocks > 1 {
            width = width.min((RESIDENT / k.max(1)).next_multiple_of(2 * PANEL));
        }
        shared[problem] = p.m <= THIN || width < n;
        for c in (0..n).step_by(width) {
            for r in (0..p.m).step_by(BLOCK_M) {
                tasks.push(Task { problem, rows: (r, (r + BLOCK_M).min(p.m)), columns: (c, (c + width).min(n)) });
            }
        }
    }
    let packed: Vec<Option<Strips>> = problems
        .iter()
        .zip(shared)
        .map(|(p, shared)| shared.then(|| pack::with_packed!(p.right, b => Strips::of(isa, p, b, parallel))))
        .collect();
    let each = |t: &Task| {
        let p = &problems[t.problem];
        pack::with_packed!(p.right, b => block(isa, p, b, t, packed[t.problem].as_ref()));
    };
    if parallel { tasks.par_iter().for_each(each) } else { tasks.iter().for_each(each) }
}

fn n_of(b: &AnyPacked) -> usize {
    pack::with_packed!(b, b => b.n)
}

fn k_of(b: &AnyPacked) -> usize {
    pack::with_packed!(b, b => b.k)
}

thread_local! {
    /// A packed left operand, sums, and pieces of a right operand.
    static SCRATCH: std::cell::RefCell<(Vec<f32>, Vec<f32>, Aligned<bf16>)> =
        std::cell::RefCell::new((Vec::new(), Vec::new(), Aligned::zeros(0)));
}

/// A right operand: panels of 16 columns, as they lie or made piece by piece.
trait Panels: Sync {
    /// What products take.
    type E: Packable;
    /// Whether pieces are made.
    const MADE: bool;
    fn k(&self) -> usize;
    /// Some panels and pairs of `k`.
    fn piece<'a>(
        &'a self,
        isa: Isa,
        panels: Range<usize>,
        pairs: Range<usize>,
        scratch: &'a mut Aligned<bf16>,
    ) -> Right<'a, Self::E>;

    /// Elements of K that blocks of so many rows take at a time.
    fn depth(&self, rows: usize) -> usize {
        if rows <= THIN && !Self::MADE { self.k().max(1) } else { BLOCK_K }
    }
}

impl<E: Packable> Panels for Packed<E> {
    type E = E;
    const MADE: bool = false;
    fn k(&self) -> usize {
        self.k
    }
    fn piece<'a>(
        &'a self,
        _: Isa,
        panels: Range<usize>,
        pairs: Range<usize>,
        _: &'a mut Aligned<bf16>,
    ) -> Right<'a, E> {
        let from = (panels.start * self.pairs() + pairs.start) * PAIR;
        Right { data: &self.data[from..], panel_stride: self.pairs() * PAIR }
    }
}

impl Panels for PackedFp8 {
    type E = bf16;
    const MADE: bool = true;
    fn k(&self) -> usize {
        self.k
    }
    fn piece<'a>(
        &'a self,
        isa: Isa,
        panels: Range<usize>,
        pairs: Range<usize>,
        scratch: &'a mut Aligned<bf16>,
    ) -> Right<'a, bf16> {
        self.right(isa, panels, pairs, scratch)
    }
}

/// A left operand packed once for all columns: for each block of rows the pieces of K, one after the other.
struct Strips {
    data: Vec<f32>,
    /// Elements of a block of rows.
    block: usize,
}

impl Strips {
    fn of<B: Panels>(isa: Isa, p: &Problem<'_>, b: &B, parallel: bool) -> Self {
        let (rows, k) = (p.m.min(BLOCK_M), b.k());
        let depth = b.depth(rows);
        let block = left_len::<B::E>(isa, rows, depth) * k.div_ceil(depth);
        let fill = |i: usize, strips: &mut [f32]| {
            let (r0, rows) = (i * BLOCK_M, (p.m - i * BLOCK_M).min(BLOCK_M));
            pack_pieces(isa, &p.left, r0, rows, b, strips);
        };
        Self { data: crate::rows::make_blocks(p.m.div_ceil(BLOCK_M), block, parallel, fill), block }
    }
}

/// Packs all pieces of K of some rows, see [`Strips`].
fn pack_pieces<B: Panels>(isa: Isa, left: &Left<'_>, r0: usize, rows: usize, b: &B, strips: &mut [f32]) {
    let (k, depth) = (b.k(), b.depth(rows));
    let piece = left_len::<B::E>(isa, rows, depth);
    for k0 in (0..k).step_by(depth) {
        pack_left::<B::E>(isa, left, r0, rows, k0, (k - k0).min(depth), &mut strips[k0 / depth * piece..]);
    }
}

fn block<B: Panels>(isa: Isa, p: &Problem<'_>, b: &B, task: &Task, packed: Option<&Strips>) {
    let (r0, r1) = task.rows;
    let rows = r1 - r0;
    let (k, depth) = (b.k(), b.depth(rows));
    let piece = left_len::<B::E>(isa, rows, depth);
    // What is made stays in the first caches until it is used.
    let step = if B::MADE { 4 * PANEL } else { BLOCK_N };
    SCRATCH.with_borrow_mut(|(scratch, c, made)| {
        c.resize(BLOCK_M * BLOCK_N, 0.0);
        let strips = match packed {
            Some(all) => &all.data[r0 / BLOCK_M * all.block..],
            None => {
                scratch.resize(scratch.len().max(piece * k.div_ceil(depth)), 0.0);
                pack_pieces(isa, &p.left, r0, rows, b, scratch);
                &scratch[..]
            }
        };
        for c0 in (task.columns.0..task.columns.1).step_by(step) {
            let columns = (task.columns.1 - c0).min(step);
            let width = columns.next_multiple_of(PANEL);
            // Sums of whole panels in f32 are made where they are to lie, others beside.
            let in_place = match p.out {
                Out::F32(out) | Out::AddF32(out) if columns == width && p.bias.is_none() && k > 0 => Some(out),
                _ => None,
            };
            let (at, stride) = match in_place {
                Some(out) => (out.wrapping_add(r0 * p.stride + c0), p.stride),
                None => (c.as_mut_ptr(), width),
            };
            if let (Out::AddF32(out), None) = (p.out, in_place) {
                for (r, c) in c.chunks_exact_mut(width).take(rows).enumerate() {
                    // SAFETY: the row lies in the output, and only this task touches these columns of it.
                    let from = unsafe { std::slice::from_raw_parts(out.add((r0 + r) * p.stride + c0), columns) };
                    c[..columns].copy_from_slice(from);
                }
            }
            let mut keep = matches!(p.out, Out::AddF32(_));
            for k0 in (0..k).step_by(depth) {
                let strips = &strips[k0 / depth * piece..];
                let pairs = (k - k0).min(depth).div_ceil(2);
                let first = c0 / PANEL;
                let right = b.piece(isa, first..first + width / PANEL, k0 / 2..k0 / 2 + pairs, made);
                // SAFETY: `at` has `rows` rows of `width` columns: those of the output that only this task touches, or of `c`.
                unsafe { tiles_at(isa, rows, width / PANEL, pairs, strips, &right, at, stride, keep) };
                keep = true;
            }
            if in_place.is_some() {
                continue;
            }
            if !keep {
                c[..rows * width].fill(0.0);
            }
            for (r, c) in c.chunks_exact(width).take(rows).enumerate() {
                let at = (r0 + r) * p.stride + c0;
                let c = &c[..columns];
                let bias = p.bias.map(|b| &b[c0..c0 + columns]);
                // SAFETY: the row lies in the output, and only this task touches these columns of it.
                unsafe {
                    match p.out {
                        Out::Bf16(out) => {
                            store_bf16(isa, c, bias, std::slice::from_raw_parts_mut(out.add(at), columns));
                        }
                        Out::F32(out) | Out::AddF32(out) => {
                            store_f32(c, bias, std::slice::from_raw_parts_mut(out.add(at), columns));
                        }
                    }
                }
            }
        }
    });
}

/// How left operands are packed.
enum Form {
    /// f32 in strips of 4 rows.
    Strips,
    /// bf16 tiles of AMX.
    #[cfg(target_arch = "x86_64")]
    Tiles,
    /// Couples of bf16 for `VDPBF16PS`.
    #[cfg(target_arch = "x86_64")]
    Dots,
}

impl Form {
    /// That of so many rows for right operands of `E`.
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
    fn of<E: Packable>(isa: Isa, rows: usize) -> Self {
        #[cfg(target_arch = "x86_64")]
        match (isa.0, E::DTYPE) {
            (Level::Amx, crate::Dtype::Bf16) if rows >= amx::MIN_ROWS => return Self::Tiles,
            (Level::Avx512Bf16, crate::Dtype::Bf16) => return Self::Dots,
            _ => {}
        }
        Self::Strips
    }
}

/// Elements of the buffer that [`pack_left`] fills, whatever it packs.
pub(crate) fn left_len<E: Packable>(isa: Isa, rows: usize, depth: usize) -> usize {
    match Form::of::<E>(isa, rows) {
        Form::Strips => rows.next_multiple_of(4) * depth.next_multiple_of(2),
        #[cfg(target_arch = "x86_64")]
        Form::Tiles => amx::packed_len(rows, depth) / 2,
        #[cfg(target_arch = "x86_64")]
        Form::Dots => dots::packed_len(rows, depth),
    }
}

/// Packs rows `r0..r0 + rows`, columns `k0..k0 + ks` of a left operand for [`tiles`] with right operands of `E`.
pub(crate) fn pack_left<E: Packable>(
    isa: Isa,
    left: &Left<'_>,
    r0: usize,
    rows: usize,
    k0: usize,
    ks: usize,
    out: &mut [f32],
) {
    match Form::of::<E>(isa, rows) {
        Form::Strips => {}
        #[cfg(target_arch = "x86_64")]
        Form::Tiles => return amx::pack(isa, left, r0, rows, k0, ks, bytemuck::cast_slice_mut(out)),
        #[cfg(target_arch = "x86_64")]
        Form::Dots => return dots::pack(isa, left, r0, rows, k0, ks, bytemuck::cast_slice_mut(out)),
    }
    left.pack(isa, r0, rows, k0, ks, out);
    if !ks.is_multiple_of(2) {
        // Strips were packed `ks` apart; spread them to `ks + 1`, last first, and fill in the missing `k` with zeros.
        for s in (0..rows.div_ceil(4)).rev() {
            out.copy_within(s * ks * 4..(s + 1) * ks * 4, s * (ks + 1) * 4);
            out[(s * (ks + 1) + ks) * 4..][..4].fill(0.0);
        }
    }
}

crate::isa::multi_isa! {
    fn store_bf16(c: &[f32], bias: Option<&[f32]>, out: &mut [bf16]) {
        match bias {
            None => out.iter_mut().zip(c).for_each(|(o, c)| *o = crate::math::to_bf16(*c)),
            Some(b) => out.iter_mut().zip(c).zip(b).for_each(|((o, c), b)| *o = crate::math::to_bf16(*c + *b)),
        }
    }
}

fn store_f32(c: &[f32], bias: Option<&[f32]>, out: &mut [f32]) {
    match bias {
        None => out.copy_from_slice(c),
        Some(b) => out.iter_mut().zip(c).zip(b).for_each(|((o, c), b)| *o = c + b),
    }
}

/// Panels of a right operand from some column and `k` on.
pub(crate) struct Right<'a, E> {
    pub data: &'a [E],
    pub panel_stride: usize,
}

/// `c[rows, 16 · panels] (+)= strips · right` over `pairs` pairs of `k`, whole chunks of 32 first.
///
/// `strips`: packed by [`pack_left`] for the same `isa`, `E` and `rows`, `2 · pairs` deep; `c`: row stride `stride`; `keep`: continue the sums in `c`.
#[allow(clippy::too_many_arguments)]
pub(crate) fn tiles<E: Packable>(
    isa: Isa,
    rows: usize,
    panels: usize,
    pairs: usize,
    strips: &[f32],
    right: &Right<'_, E>,
    c: &mut [f32],
    stride: usize,
    keep: bool,
) {
    if rows > 0 && panels > 0 {
        assert!(stride >= panels * PANEL && c.len() >= (rows - 1) * stride + panels * PANEL);
        // SAFETY: the place is as large as that.
        unsafe { tiles_at(isa, rows, panels, pairs, strips, right, c.as_mut_ptr(), stride, keep) };
    }
}

/// [`tiles`] at a place that others may use between the rows.
///
/// # Safety
/// `c` is valid for `rows` rows of `16 · panels`, `stride` apart, and nobody else uses those.
#[allow(clippy::too_many_arguments)]
unsafe fn tiles_at<E: Packable>(
    isa: Isa,
    rows: usize,
    panels: usize,
    pairs: usize,
    strips: &[f32],
    right: &Right<'_, E>,
    c: *mut f32,
    stride: usize,
    keep: bool,
) {
    if rows == 0 || panels == 0 {
        return;
    }
    assert!(strips.len() >= left_len::<E>(isa, rows, 2 * pairs));
    assert!(right.data.len() >= (panels - 1) * right.panel_stride + pairs * PAIR);
    // SAFETY: the asserts above and the caller's promise are what `all_tiles` asks for, and `isa` proves the instruction set.
    unsafe {
        match (Form::of::<E>(isa, rows), isa.0) {
            #[cfg(target_arch = "x86_64")]
            (Form::Tiles, _) => {
                let right = Right { data: bytemuck::cast_slice(right.data), panel_stride: right.panel_stride };
                amx::tiles(rows, panels, pairs, bytemuck::cast_slice(strips), &right, c, stride, keep);
            }
            #[cfg(target_arch = "x86_64")]
            (Form::Dots, _) => {
                let right = Right { data: bytemuck::cast_slice(right.data), panel_stride: right.panel_stride };
                dots::tiles(rows, panels, pairs, bytemuck::cast_slice(strips), &right, c, stride, keep);
            }
            (Form::Strips, Level::Portable) => {
                all_tiles::<Plain, E>(rows, panels, pairs, strips, right, c, stride, keep)
            }
            #[cfg(target_arch = "aarch64")]
            (Form::Strips, Level::Neon) => {
                all_tiles::<lanes::Neon, E>(rows, panels, pairs, strips, right, c, stride, keep)
            }
            #[cfg(target_arch = "x86_64")]
            (Form::Strips, Level::Avx2) => avx2(rows, panels, pairs, strips, right, c, stride, keep),
            #[cfg(target_arch = "x86_64")]
            (Form::Strips, Level::Avx512 | Level::Avx512Bf16 | Level::Amx) => {
                avx512(rows, panels, pairs, strips, right, c, stride, keep)
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
#[allow(clippy::too_many_arguments)]
unsafe fn avx2<E: Packable>(
    rows: usize,
    panels: usize,
    pairs: usize,
    strips: &[f32],
    right: &Right<'_, E>,
    c: *mut f32,
    stride: usize,
    keep: bool,
) {
    // SAFETY: passed on to the caller.
    unsafe { all_tiles::<lanes::Avx2, E>(rows, panels, pairs, strips, right, c, stride, keep) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
#[allow(clippy::too_many_arguments)]
unsafe fn avx512<E: Packable>(
    rows: usize,
    panels: usize,
    pairs: usize,
    strips: &[f32],
    right: &Right<'_, E>,
    c: *mut f32,
    stride: usize,
    keep: bool,
) {
    // SAFETY: passed on to the caller.
    unsafe { all_tiles::<lanes::Avx512, E>(rows, panels, pairs, strips, right, c, stride, keep) }
}

/// Right panels outermost, so that they stay in L1 while the strips pass.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn all_tiles<L: Lanes, E: Packable>(
    rows: usize,
    panels: usize,
    pairs: usize,
    strips: &[f32],
    right: &Right<'_, E>,
    c: *mut f32,
    stride: usize,
    keep: bool,
) {
    let ask_ahead = rows <= THIN && prefetch_helps();
    let mut p = 0;
    while p < panels {
        let nv = (panels - p).min(if rows == 1 { L::STREAMS } else { L::TILE.1 });
        let mut r = 0;
        while r < rows {
            let mr = (rows - r).min(L::TILE.0).min(4 - r % 4);
            // SAFETY: within the lengths that `tiles_at` asserted and was promised.
            unsafe {
                let a = strips.as_ptr().add((r / 4) * pairs * 8 + r % 4);
                let b = right.data.as_ptr().add(p * right.panel_stride);
                let c = c.add(r * stride + p * PANEL);
                let s = right.panel_stride;
                macro_rules! tile {
                    ($mr:literal, $nv:literal) => {
                        if ask_ahead {
                            tile::<L, E, $mr, $nv, true>(pairs, a, b, s, c, stride, keep)
                        } else {
                            tile::<L, E, $mr, $nv, false>(pairs, a, b, s, c, stride, keep)
                        }
                    };
                }
                match (mr, nv) {
                    (1, 4) => tile!(1, 4),
                    (1, 3) => tile!(1, 3),
                    (4, 2) => tile!(4, 2),
                    (3, 2) => tile!(3, 2),
                    (2, 2) => tile!(2, 2),
                    (1, 2) => tile!(1, 2),
                    (4, 1) => tile!(4, 1),
                    (3, 1) => tile!(3, 1),
                    (2, 1) => tile!(2, 1),
                    _ => tile!(1, 1),
                }
            }
            r += mr;
        }
        p += nv;
    }
}

/// A tile of `MR` rows and `NV` panels: the definition of [`reference()`], 16 columns at a time.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // indices keep the two products of a row side by side
unsafe fn tile<L: Lanes, E: Packable, const MR: usize, const NV: usize, const PREFETCH: bool>(
    pairs: usize,
    mut a: *const f32,
    mut b: *const E,
    panel_stride: usize,
    c: *mut f32,
    stride: usize,
    keep: bool,
) {
    // SAFETY: `a` is `2 · pairs` groups of 4 f32, `b` is `NV` panels of `pairs` pairs, `c` is `MR` rows of `NV` panels;
    // the caller proved the instruction set of `L`.
    unsafe {
        let mut acc = [[L::zero(); NV]; MR];
        if keep {
            for (r, acc) in acc.iter_mut().enumerate() {
                for (v, acc) in acc.iter_mut().enumerate() {
                    *acc = L::load(c.add(r * stride + v * PANEL));
                }
            }
        }
        let mut left = pairs;
        while left > 0 {
            let chunk = left.min(16);
            left -= chunk;
            let mut even = [[L::zero(); NV]; MR];
            let mut odd = [[L::zero(); NV]; MR];
            for _ in 0..chunk {
                let mut bs = [(L::zero(), L::zero()); NV];
                for (v, bs) in bs.iter_mut().enumerate() {
                    *bs = E::pair::<L>(b.add(v * panel_stride));
                    if PREFETCH {
                        prefetch(b.add(v * panel_stride).cast::<u8>().wrapping_add(AHEAD));
                    }
                }
                for r in 0..MR {
                    let x = L::splat(*a.add(r));
                    for v in 0..NV {
                        even[r][v] = L::fma(x, bs[v].0, even[r][v]);
                    }
                }
                for r in 0..MR {
                    let x = L::splat(*a.add(4 + r));
                    for v in 0..NV {
                        odd[r][v] = L::fma(x, bs[v].1, odd[r][v]);
                    }
                }
                a = a.add(8);
                b = b.add(PAIR);
            }
            for r in 0..MR {
                for v in 0..NV {
                    acc[r][v] = acc[r][v].add(even[r][v].add(odd[r][v]));
                }
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            for (v, acc) in acc.iter().enumerate() {
                acc.store(c.add(r * stride + v * PANEL));
            }
        }
    }
}
