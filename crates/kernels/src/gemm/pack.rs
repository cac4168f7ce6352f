//! Packed operands: the layout in which every product kernel reads its right-hand side.
//!
//! A matrix `[N, K]` (N outputs, K summed) is cut into panels of 16 outputs; a panel holds pairs of `k` in ascending
//! order; a pair is 32 elements. bf16: 16 × (even, odd), which is the operand tile of AMX; f32: 16 even, then 16 odd.
//! Missing rows and columns are zero, which no sum can see. Panels are contiguous and hold no addresses, so a packed
//! weight can be mapped from disk or streamed.

use std::ops::{Deref, DerefMut};

use half::bf16;
use rayon::prelude::*;

use super::{fp8::PackedFp8, lanes::Packable};
use crate::{
    isa::Isa,
    math::round_bf16,
    tensor::{Dtype, Element, Tensor, with_element},
};

/// Columns of a panel.
pub const PANEL: usize = 16;
/// Elements of a pair of one panel.
pub(crate) const PAIR: usize = 32;
/// Version of the layout above, for files that hold it.
pub const PACK_VERSION: u32 = 1;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

// SAFETY: 64 plain bytes without padding; any bit pattern is valid.
unsafe impl bytemuck::Zeroable for Line {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for Line {}

/// Elements that begin at a cache line.
pub(crate) struct Aligned<E> {
    lines: Vec<Line>,
    len: usize,
    kind: std::marker::PhantomData<E>,
}

impl<E: bytemuck::Pod> Aligned<E> {
    pub fn zeros(len: usize) -> Self {
        let mut lines = Vec::with_capacity((len * size_of::<E>()).div_ceil(64));
        ask_for_huge_pages(lines.spare_capacity_mut());
        lines.resize(lines.capacity(), Line([0; 64]));
        Self { lines, len, kind: std::marker::PhantomData }
    }

    /// Grows with zeros.
    pub fn resize(&mut self, len: usize) {
        self.lines.resize((len * size_of::<E>()).div_ceil(64), Line([0; 64]));
        self.len = len;
    }
}

/// Reading a large weight end to end needs many page entries; pages of 2 MiB, where the system has them, are a twentieth faster.
#[cfg(target_os = "linux")]
fn ask_for_huge_pages(memory: &mut [std::mem::MaybeUninit<Line>]) {
    const HUGE: usize = 2 << 20;
    let (begin, bytes) = (memory.as_mut_ptr().addr(), size_of_val(memory));
    let (from, to) = (begin.next_multiple_of(HUGE), (begin + bytes) / HUGE * HUGE);
    if from < to {
        let at = memory.as_mut_ptr().cast::<u8>().wrapping_add(from - begin);
        // SAFETY: whole pages inside memory that is ours; the advice changes no content. That it may be refused is no matter.
        unsafe { libc::madvise(at.cast(), to - from, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn ask_for_huge_pages(_: &mut [std::mem::MaybeUninit<Line>]) {}

impl<E> Clone for Aligned<E> {
    fn clone(&self) -> Self {
        let mut lines = Vec::with_capacity(self.lines.len());
        ask_for_huge_pages(lines.spare_capacity_mut());
        lines.extend_from_slice(&self.lines);
        Self { lines, len: self.len, kind: std::marker::PhantomData }
    }
}

impl<E: bytemuck::Pod> Deref for Aligned<E> {
    type Target = [E];
    fn deref(&self) -> &[E] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl<E: bytemuck::Pod> DerefMut for Aligned<E> {
    fn deref_mut(&mut self) -> &mut [E] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

/// A packed matrix of one element type.
#[derive(Clone)]
pub(crate) struct Packed<E> {
    pub n: usize,
    pub k: usize,
    pub data: Aligned<E>,
}

impl<E: Packable> Packed<E> {
    /// Pairs of a panel.
    pub fn pairs(&self) -> usize {
        self.k.div_ceil(2)
    }

    pub fn zeros(n: usize, k: usize) -> Self {
        Self { n, k, data: Aligned::zeros(n.div_ceil(PANEL) * k.div_ceil(2) * PAIR) }
    }

    /// Each panel is filled by `fill(first column, columns, panel elements)`.
    fn build(n: usize, k: usize, fill: impl Fn(usize, usize, &mut [E]) + Sync) -> Self {
        let mut packed = Self::zeros(n, k);
        let len = packed.pairs() * PAIR;
        if len == 0 {
            return packed;
        }
        let each = |(p, panel): (usize, &mut [E])| fill(p * PANEL, PANEL.min(n - p * PANEL), panel);
        if n * k < 32 * 1024 {
            packed.data.chunks_exact_mut(len).enumerate().for_each(each);
        } else {
            packed.data.par_chunks_exact_mut(len).enumerate().for_each(each);
        }
        packed
    }

    /// From `[N, K]` row-major.
    pub fn from_rows<S: Element>(src: &[S], n: usize, k: usize) -> Self {
        assert_eq!(src.len(), n * k);
        Self::build(n, k, |n0, columns, panel| Self::fill_panel(&src[n0 * k..][..columns * k], k, panel))
    }

    /// Packs up to 16 rows of `k` into a panel.
    pub fn fill_panel<S: Element>(rows: &[S], k: usize, panel: &mut [E]) {
        for (column, row) in rows.chunks_exact(k).enumerate() {
            let (even, odd) = (E::slot(column, 0), E::slot(column, 1));
            for (x, pair) in row.chunks(2).zip(panel.chunks_exact_mut(PAIR)) {
                pair[even] = E::narrow(x[0].widen());
                if let Some(x) = x.get(1) {
                    pair[odd] = E::narrow(x.widen());
                }
            }
        }
    }

    /// From the rows `[K, N]` of a row-major matrix of row length `stride`, columns `n0..n0 + n`: the transposed operand.
    pub fn from_columns<S: Element>(isa: Isa, src: &[S], stride: usize, n0: usize, n: usize, k: usize) -> Self {
        assert!(k == 0 || src.len() >= (k - 1) * stride + n0 + n);
        Self::build(n, k, |p0, columns, panel| {
            if columns == PANEL {
                E::pack_columns(isa, src, stride, n0 + p0, k, panel);
                return;
            }
            for (q, pair) in panel.chunks_exact_mut(PAIR).enumerate() {
                for parity in 0..2.min(k - 2 * q) {
                    for column in 0..columns {
                        pair[E::slot(column, parity)] =
                            E::narrow(src[(2 * q + parity) * stride + n0 + p0 + column].widen());
                    }
                }
            }
        })
    }

    /// The packed form of the transposed matrix.
    pub fn transposed(&self) -> Self {
        let pairs = self.pairs();
        Self::build(self.k, self.n, |k0, columns, panel| {
            for (q, pair) in panel.chunks_exact_mut(PAIR).enumerate() {
                for parity in 0..2.min(self.n - 2 * q) {
                    let n = 2 * q + parity;
                    let from = &self.data[((n / PANEL) * pairs + k0 / 2) * PAIR..][..columns.div_ceil(2) * PAIR];
                    let (even, odd) = (E::slot(n % PANEL, 0), E::slot(n % PANEL, 1));
                    for column in 0..columns {
                        pair[E::slot(column, parity)] =
                            from[column / 2 * PAIR + if column % 2 == 0 { even } else { odd }];
                    }
                }
            }
        })
    }

    /// Replaces rows from `first` on, which begins a panel; the last panel is whole, or ends the matrix.
    pub fn set_rows<S: Element>(&mut self, first: usize, rows: &[S]) {
        let (k, len) = (self.k, self.pairs() * PAIR);
        let n = rows.len().checked_div(k).unwrap_or_default();
        assert!(rows.len() == n * k && first.is_multiple_of(PANEL) && first + n <= self.n);
        assert!(n.is_multiple_of(PANEL) || first + n == self.n);
        let part = Self::from_rows(rows, n, k);
        self.data[first / PANEL * len..][..part.data.len()].copy_from_slice(&part.data);
    }

    /// Row `n` as f32 into `row` (`[K]`).
    pub fn row(&self, n: usize, row: &mut [f32]) {
        let panel = &self.data[(n / PANEL) * self.pairs() * PAIR..][..self.pairs() * PAIR];
        let (even, odd) = (E::slot(n % PANEL, 0), E::slot(n % PANEL, 1));
        for (x, pair) in row.chunks_mut(2).zip(panel.chunks_exact(PAIR)) {
            x[0] = pair[even].widen();
            if let Some(x) = x.get_mut(1) {
                *x = pair[odd].widen();
            }
        }
    }
}

/// A weight matrix `[N, K]`, packed once, in its own format.
#[derive(Clone)]
pub struct Matrix(pub(crate) AnyPacked);

#[derive(Clone)]
pub(crate) enum AnyPacked {
    F32(Packed<f32>),
    Bf16(Packed<bf16>),
    Fp8(PackedFp8),
}

/// Runs a body with `$p` bound to the packed matrix inside.
macro_rules! with_packed {
    ($m:expr, $p:ident => $body:expr) => {
        match $m {
            $crate::gemm::pack::AnyPacked::F32($p) => $body,
            $crate::gemm::pack::AnyPacked::Bf16($p) => $body,
            $crate::gemm::pack::AnyPacked::Fp8($p) => $body,
        }
    };
}
pub(crate) use with_packed;

impl Matrix {
    /// Packs `[N, K]` row-major f32, rounding to `dtype`.
    pub fn from_f32(dtype: Dtype, data: &[f32], n: usize, k: usize) -> Self {
        Self(match dtype {
            Dtype::F32 => AnyPacked::F32(Packed::from_rows(data, n, k)),
            Dtype::Bf16 => AnyPacked::Bf16(Packed::from_rows(data, n, k)),
        })
    }

    /// All zero.
    pub fn zeros(dtype: Dtype, n: usize, k: usize) -> Self {
        Self(match dtype {
            Dtype::F32 => AnyPacked::F32(Packed::zeros(n, k)),
            Dtype::Bf16 => AnyPacked::Bf16(Packed::zeros(n, k)),
        })
    }

    /// Replaces the rows from `first` on by row-major f32 values, rounded as by [`Matrix::from_f32`].
    ///
    /// # Panics
    /// Unless `first` and the number of rows are multiples of 16 (the last rows may be fewer), or if the matrix holds codes.
    pub fn set_rows(&mut self, first: usize, rows: &[f32]) {
        match &mut self.0 {
            AnyPacked::F32(p) => p.set_rows(first, rows),
            AnyPacked::Bf16(p) => p.set_rows(first, rows),
            AnyPacked::Fp8(_) => panic!("codes come with their scales"),
        }
    }

    /// Rows N (outputs).
    pub fn n(&self) -> usize {
        with_packed!(&self.0, p => p.n)
    }

    /// Columns K (summed).
    pub fn k(&self) -> usize {
        with_packed!(&self.0, p => p.k)
    }

    /// Of E4M3 codes, for now zero, with the f32 scales of their 128 × 128 blocks, `[⌈N / 128⌉, ⌈K / 128⌉]`: one byte for a weight. An
    /// element is the bf16 number `round(code · scale)`.
    ///
    /// # Panics
    /// If there are not as many scales.
    pub fn zeros_fp8(scales: Vec<f32>, n: usize, k: usize) -> Self {
        Self(AnyPacked::Fp8(PackedFp8::zeros(scales, n, k)))
    }

    /// Replaces the codes of the rows from `first` on, row-major.
    ///
    /// # Panics
    /// If the matrix holds no codes, or there are no such rows.
    pub fn set_codes(&mut self, first: usize, codes: &[u8]) {
        match &mut self.0 {
            AnyPacked::Fp8(p) => p.set_codes(first, codes),
            AnyPacked::F32(_) | AnyPacked::Bf16(_) => panic!("a matrix of {:?} takes no codes", self.dtype()),
        }
    }

    /// Whether it holds codes of one byte.
    pub fn is_fp8(&self) -> bool {
        matches!(self.0, AnyPacked::Fp8(_))
    }

    /// Number format of the elements as products take them.
    pub fn dtype(&self) -> Dtype {
        match self.0 {
            AnyPacked::F32(_) => Dtype::F32,
            AnyPacked::Bf16(_) | AnyPacked::Fp8(_) => Dtype::Bf16,
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match &self.0 {
            AnyPacked::F32(p) => p.data.len() * 4,
            AnyPacked::Bf16(p) => p.data.len() * 2,
            AnyPacked::Fp8(p) => p.bytes(),
        }
    }

    /// Row `n` as f32 into `row` (`[K]`).
    pub fn row(&self, n: usize, row: &mut [f32]) {
        assert!(n < self.n() && row.len() == self.k());
        with_packed!(&self.0, p => p.row(n, row));
    }

    /// `[N, K]` row-major, as f32.
    pub fn to_vec_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.n() * self.k()];
        if self.k() > 0 {
            out.par_chunks_exact_mut(self.k()).enumerate().for_each(|(n, row)| self.row(n, row));
        }
        out
    }

    pub(crate) fn transposed(&self, isa: Isa) -> Self {
        Self(match &self.0 {
            AnyPacked::Fp8(p) => AnyPacked::Bf16(p.to_bf16(isa).transposed()),
            AnyPacked::F32(p) => AnyPacked::F32(p.transposed()),
            AnyPacked::Bf16(p) => AnyPacked::Bf16(p.transposed()),
        })
    }
}

/// A left-hand operand: element `(m, k)` at `m · row_stride + k · col_stride`.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a> {
    pub data: LeftData<'a>,
    pub row_stride: usize,
    pub col_stride: usize,
    /// Round f32 elements to bf16 on the way in.
    pub round: bool,
}

#[derive(Clone, Copy)]
pub(crate) enum LeftData<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

impl<'a> Left<'a> {
    /// Rows of `x` from row `first` on.
    pub fn rows(x: &'a Tensor, first: usize, round: bool) -> Self {
        let data = with_element!(x.dtype(), E => LeftData::of(&E::slice(x)[first * x.cols..]));
        Self { data, row_stride: x.cols, col_stride: 1, round }
    }

    /// All rows of `x`, columns from `from` on.
    pub fn part(x: &'a Tensor, from: usize, round: bool) -> Self {
        let data = with_element!(x.dtype(), E => LeftData::of(&E::slice(x)[from..]));
        Self { data, row_stride: x.cols, col_stride: 1, round }
    }

    /// Columns of `x` as rows, summing over rows of `x` from `first` on.
    pub fn columns(x: &'a Tensor, first: usize, round: bool) -> Self {
        Self { row_stride: 1, col_stride: x.cols, ..Self::rows(x, first, round) }
    }

    /// Packs rows `r0..r0 + rows`, columns `k0..k0 + ks` into strips of 4 rows, `out[strip][k][4]`; missing rows are 0.
    pub fn pack(&self, isa: Isa, r0: usize, rows: usize, k0: usize, ks: usize, out: &mut [f32]) {
        match self.data {
            LeftData::F32(x) => pack_left_f32(isa, x, self, r0, rows, k0, ks, out),
            LeftData::Bf16(x) => pack_left_bf16(isa, x, self, r0, rows, k0, ks, out),
        }
    }
}

impl<'a> LeftData<'a> {
    /// Elements of whichever type.
    pub fn of<E: Element>(x: &'a [E]) -> Self {
        match E::DTYPE {
            Dtype::F32 => Self::F32(bytemuck::cast_slice(x)),
            Dtype::Bf16 => Self::Bf16(bytemuck::cast_slice(x)),
        }
    }
}

macro_rules! pack_left {
    ($name:ident, $E:ty) => {
        crate::isa::multi_isa! {
            #[allow(clippy::too_many_arguments)]
            fn $name(x: &[$E], a: &Left<'_>, r0: usize, rows: usize, k0: usize, ks: usize, out: &mut [f32]) {
                let round = a.round;
                let value = |x: $E| if round { round_bf16(x.widen()) } else { x.widen() };
                for (s, strip) in out.chunks_exact_mut(4 * ks).take(rows.div_ceil(4)).enumerate() {
                    let (first, n) = (r0 + 4 * s, (rows - 4 * s).min(4));
                    let (strip, _) = strip.as_chunks_mut::<4>();
                    if n == 4 && a.col_stride == 1 {
                        let row = |r: usize| &x[(first + r) * a.row_stride + k0..][..ks];
                        let (x0, x1, x2, x3) = (row(0), row(1), row(2), row(3));
                        for (k, o) in strip.iter_mut().enumerate() {
                            *o = [value(x0[k]), value(x1[k]), value(x2[k]), value(x3[k])];
                        }
                    } else if n == 4 && a.row_stride == 1 {
                        for (k, o) in strip.iter_mut().enumerate() {
                            let x = &x[(k0 + k) * a.col_stride + first..][..4];
                            *o = [value(x[0]), value(x[1]), value(x[2]), value(x[3])];
                        }
                    } else {
                        for (k, o) in strip.iter_mut().enumerate() {
                            for r in 0..4 {
                                o[r] = if r < n {
                                    value(x[(first + r) * a.row_stride + (k0 + k) * a.col_stride])
                                } else {
                                    0.0
                                };
                            }
                        }
                    }
                }
            }
        }
    };
}
pack_left!(pack_left_f32, f32);
pack_left!(pack_left_bf16, bf16);
