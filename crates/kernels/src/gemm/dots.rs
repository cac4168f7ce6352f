//! Products of bf16 by `VDPBF16PS`, where it is faster than f32 multiply-adds (AMD since Zen 4: twice their rate).
//!
//! The instruction adds two products to each f32 lane, rounded after each, that of the upper halves first. Fed with `(k, k + 2)` it
//! is two steps of the even chain of the house dot product, fed with `(k + 1, k + 3)` two of the odd one. So the left operand is
//! packed as such couples, earlier `k` in the upper half, and those of the right one are blended from two pairs of a panel when they
//! are read. It takes subnormals for zero and makes none, as AMX does.
//!
//! Source: Intel Architecture Instruction Set Extensions Programming Reference, AVX512_BF16.

use std::arch::x86_64::*;

use half::bf16;

use super::{
    Right, THIN,
    pack::{Left, LeftData, PAIR, PANEL},
};
use crate::isa::{Isa, Level};

/// Rows of a packed strip.
const STRIP: usize = 4;
/// `k` of a chunk, the unit in which K is packed: the last one is filled up with zeros.
const CHUNK: usize = 32;
/// Pairs of a chunk.
const CHUNK_PAIRS: usize = CHUNK / 2;
/// Chunks that are coupled at a time for many rows.
const DEPTH: usize = 8;
/// Couples of one strip and chunk: even and odd ones of four `k`, then of the next four, each for four pairs of quadruples.
const COUPLES: usize = STRIP * CHUNK / 2;
/// Panels that one row reads side by side.
const STREAMS: usize = 4;

/// Couples that [`pack`] fills, 4 bytes each.
pub(super) fn packed_len(rows: usize, depth: usize) -> usize {
    rows.div_ceil(STRIP) * depth.div_ceil(CHUNK) * COUPLES
}

/// Packs rows `r0..r0 + rows`, columns `k0..k0 + ks`: `out[strip][chunk][A B C D]`, each of `A` to `D` 16 couples, `[4 octets of k][4 rows]`.
/// Of the octet's `k`, `A` holds (0, 2), `B` (1, 3), `C` (4, 6) and `D` (5, 7).
pub(super) fn pack(isa: Isa, left: &Left<'_>, r0: usize, rows: usize, k0: usize, ks: usize, out: &mut [u32]) {
    assert!(isa.0 == Level::Avx512Bf16 && out.len() >= packed_len(rows, ks));
    if rows == 0 || ks == 0 {
        return;
    }
    let last = (r0 + rows - 1) * left.row_stride + (k0 + ks - 1) * left.col_stride;
    let first = r0 * left.row_stride + k0 * left.col_stride;
    // SAFETY: `isa` proves the instruction set; the last element read lies inside, so all do; `out` was measured.
    unsafe {
        match left.data {
            LeftData::F32(x) => {
                assert!(last < x.len());
                pack_from(x.as_ptr().add(first), left, rows, ks, out);
            }
            LeftData::Bf16(x) => {
                assert!(last < x.len());
                pack_from(x.as_ptr().add(first), left, rows, ks, out);
            }
        }
    }
}

/// # Safety
/// As [`pack_rows`] and [`pack_columns`].
unsafe fn pack_from<S: Source>(x: *const S, left: &Left<'_>, rows: usize, ks: usize, out: &mut [u32]) {
    // SAFETY: passed on to the caller.
    unsafe {
        if left.col_stride == 1 {
            pack_rows(x, left.row_stride, rows, ks, out.as_mut_ptr());
        } else {
            assert_eq!(left.row_stride, 1, "a left operand lies in rows or in columns");
            pack_columns(x, left.col_stride, rows, ks, out.as_mut_ptr());
        }
    }
}

/// What a left operand is made of.
trait Source: Copy {
    /// As bf16, 16 elements at `low` in the lower half and 16 at `high` in the upper one; those outside the masks are zero and not read.
    unsafe fn load(low: *const Self, low_mask: u16, high: *const Self, high_mask: u16) -> __m512i;
}

impl Source for bf16 {
    #[inline(always)]
    unsafe fn load(low: *const Self, low_mask: u16, high: *const Self, high_mask: u16) -> __m512i {
        // SAFETY: the caller's.
        unsafe {
            let low = _mm512_castsi256_si512(_mm256_maskz_loadu_epi16(low_mask, low.cast()));
            _mm512_inserti64x4::<1>(low, _mm256_maskz_loadu_epi16(high_mask, high.cast()))
        }
    }
}

impl Source for f32 {
    /// The instruction rounds as [`crate::math::to_bf16`] does.
    #[inline(always)]
    unsafe fn load(low: *const Self, low_mask: u16, high: *const Self, high_mask: u16) -> __m512i {
        // SAFETY: the caller's; 32 bf16 are 64 bytes.
        unsafe {
            let (low, high) = (_mm512_maskz_loadu_ps(low_mask, low), _mm512_maskz_loadu_ps(high_mask, high));
            std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low))
        }
    }
}

/// A mask of the first `n` lanes.
macro_rules! first {
    ($n:expr, $M:ty) => {
        if $n >= <$M>::BITS as usize { <$M>::MAX } else { ((1 as $M) << $n) - 1 }
    };
}

/// [`pack`] of rows that lie in one piece each.
///
/// # Safety
/// The CPU has AVX-512; `x` is valid for `rows` rows of `ks`, `out` for [`packed_len`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn pack_rows<S: Source>(x: *const S, row_stride: usize, rows: usize, ks: usize, mut out: *mut u32) {
    // Of four elements (0 1 2 3): (2 0 3 1), the earlier one in the upper half.
    let couple = _mm512_set4_epi32(0x0B0A_0F0E, 0x0908_0D0C, 0x0302_0706, 0x0100_0504);
    for strip in (0..rows).step_by(STRIP) {
        for k in (0..ks).step_by(CHUNK) {
            let mask = first!(ks - k, u32);
            // SAFETY: rows and columns inside the operand, `out` has room for every strip and chunk.
            unsafe {
                let row = |r: usize| {
                    let mask = if strip + r < rows { mask } else { 0 };
                    let at = x.wrapping_add((strip + r) * row_stride + k);
                    let both = S::load(at, mask as u16, at.wrapping_add(16), (mask >> 16) as u16);
                    _mm512_shuffle_epi8(both, couple)
                };
                // Per 128 bits: (even, odd) of two quadruples of one row; made (even of 4 rows), (odd of 4 rows) of each.
                let (r0, r1, r2, r3) = (row(0), row(1), row(2), row(3));
                let (low01, low23) = (_mm512_unpacklo_epi32(r0, r1), _mm512_unpacklo_epi32(r2, r3));
                let (high01, high23) = (_mm512_unpackhi_epi32(r0, r1), _mm512_unpackhi_epi32(r2, r3));
                _mm512_storeu_si512(out.cast(), _mm512_unpacklo_epi64(low01, low23));
                _mm512_storeu_si512(out.add(16).cast(), _mm512_unpackhi_epi64(low01, low23));
                _mm512_storeu_si512(out.add(32).cast(), _mm512_unpacklo_epi64(high01, high23));
                _mm512_storeu_si512(out.add(48).cast(), _mm512_unpackhi_epi64(high01, high23));
                out = out.add(COUPLES);
            }
        }
    }
}

/// [`pack`] of columns that lie in one piece each: four strips at a time.
///
/// # Safety
/// The CPU has AVX-512; `x` is valid for `ks` columns of `rows`, `out` for [`packed_len`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn pack_columns<S: Source>(x: *const S, col_stride: usize, rows: usize, ks: usize, out: *mut u32) {
    let strip_len = ks.div_ceil(CHUNK) * COUPLES;
    // Element `i` of the lower half beside element `i` of the upper one.
    let pairs: [u16; 32] = std::array::from_fn(|i| (i / 2 + i % 2 * 16) as u16);
    // SAFETY: 32 numbers of 2 bytes.
    let pairs = unsafe { _mm512_loadu_si512(pairs.as_ptr().cast()) };
    for r in (0..rows).step_by(4 * STRIP) {
        let mask = first!(rows - r, u16);
        let strips = (rows - r).div_ceil(STRIP).min(4);
        for quad in 0..ks.div_ceil(CHUNK) * (CHUNK / 4) {
            // SAFETY: rows and columns inside the operand, `out` has room for every strip and chunk.
            unsafe {
                let couple = |first: usize| {
                    let (k, later) = (4 * quad + first, 4 * quad + first + 2);
                    let column = |k: usize| (x.wrapping_add(k * col_stride + r), if k < ks { mask } else { 0 });
                    let ((high, high_mask), (low, low_mask)) = (column(k), column(later));
                    _mm512_permutexvar_epi16(pairs, S::load(low, low_mask, high, high_mask))
                };
                let (even, odd) = (couple(0), couple(1));
                let (chunk, quad) = (quad / 8, quad % 8);
                let at = out.add(r / STRIP * strip_len + chunk * COUPLES + quad % 2 * 32 + quad / 2 * STRIP);
                let place = |strip: usize, even: __m128i, odd: __m128i| {
                    if strip < strips {
                        _mm_storeu_si128(at.add(strip * strip_len).cast(), even);
                        _mm_storeu_si128(at.add(strip * strip_len + 16).cast(), odd);
                    }
                };
                place(0, _mm512_castsi512_si128(even), _mm512_castsi512_si128(odd));
                place(1, _mm512_extracti32x4_epi32::<1>(even), _mm512_extracti32x4_epi32::<1>(odd));
                place(2, _mm512_extracti32x4_epi32::<2>(even), _mm512_extracti32x4_epi32::<2>(odd));
                place(3, _mm512_extracti32x4_epi32::<3>(even), _mm512_extracti32x4_epi32::<3>(odd));
            }
        }
    }
}

/// `c[rows, 16 · panels] (+)= left · right` over `pairs` pairs of `k`; `left` as [`pack`] made it. See [`super::tiles`].
///
/// # Safety
/// The CPU has AVX-512 with bf16; lengths and the place are as [`super::tiles_at`] has them, `left` at least [`packed_len`] long.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn tiles(
    rows: usize,
    panels: usize,
    pairs: usize,
    left: &[u32],
    right: &Right<'_, bf16>,
    c: *mut f32,
    stride: usize,
    keep: bool,
) {
    // SAFETY: passed on to the caller.
    unsafe {
        if rows <= THIN {
            few_rows(rows, panels, pairs, left, right, c, stride, keep);
        } else {
            many_rows(rows, panels, pairs, left, right, c, stride, keep);
        }
    }
}

/// [`tiles`] of few rows, which wait for memory: each panel is read once, from end to end, and coupled in registers.
///
/// # Safety
/// As [`tiles`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
#[allow(clippy::too_many_arguments)]
unsafe fn few_rows(
    rows: usize,
    panels: usize,
    pairs: usize,
    left: &[u32],
    right: &Right<'_, bf16>,
    c: *mut f32,
    stride: usize,
    keep: bool,
) {
    let (whole, rest) = (pairs / CHUNK_PAIRS, pairs % CHUNK_PAIRS);
    let strip_len = pairs.div_ceil(CHUNK_PAIRS) * COUPLES;
    let mut tail = Tail([bf16::ZERO; STREAMS * CHUNK * PANEL]);
    let mut p = 0;
    while p < panels {
        let nv = match rows {
            1 => (panels - p).min(STREAMS),
            2..=STRIP => (panels - p).min(2),
            _ => 1,
        };
        for (v, tail) in tail.0.chunks_exact_mut(CHUNK * PANEL).enumerate().take(if rest > 0 { nv } else { 0 }) {
            let from = (p + v) * right.panel_stride + whole * CHUNK_PAIRS * PAIR;
            tail[..rest * PAIR].copy_from_slice(&right.data[from..][..rest * PAIR]);
        }
        let operands = Operands {
            a: left.as_ptr(),
            strip_len,
            b: right.data[p * right.panel_stride..].as_ptr(),
            panel_stride: right.panel_stride,
            whole,
            tail: if rest > 0 { tail.0.as_ptr() } else { std::ptr::null() },
        };
        macro_rules! tile {
            ($mr:literal, $nv:literal) => {
                tile::<$mr, $nv, false>(&operands, c.add(p * PANEL), stride, keep)
            };
        }
        // SAFETY: `left` is whole strips, `right` whole panels, `c` as promised.
        unsafe {
            match (rows, nv) {
                (1, 4) => tile!(1, 4),
                (1, 3) => tile!(1, 3),
                (1, 2) => tile!(1, 2),
                (2, 2) => tile!(2, 2),
                (3, 2) => tile!(3, 2),
                (4, 2) => tile!(4, 2),
                (2, _) => tile!(2, 1),
                (3, _) => tile!(3, 1),
                (4, _) => tile!(4, 1),
                (5, _) => tile!(5, 1),
                (6, _) => tile!(6, 1),
                (7, _) => tile!(7, 1),
                (8, _) => tile!(8, 1),
                _ => tile!(1, 1),
            }
        }
        p += nv;
    }
}

/// [`tiles`] of many rows, which wait for multiplication: two panels are coupled once, [`DEPTH`] chunks at a time, for all rows.
///
/// # Safety
/// As [`tiles`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
#[allow(clippy::too_many_arguments)]
unsafe fn many_rows(
    rows: usize,
    panels: usize,
    pairs: usize,
    left: &[u32],
    right: &Right<'_, bf16>,
    c: *mut f32,
    stride: usize,
    keep: bool,
) {
    let chunks = pairs.div_ceil(CHUNK_PAIRS);
    let strip_len = chunks * COUPLES;
    let mut coupled = Coupled([bf16::ZERO; 2 * DEPTH * CHUNK * PANEL]);
    for p in (0..panels).step_by(2) {
        let nv = (panels - p).min(2);
        for first in (0..chunks).step_by(DEPTH) {
            let depth = (chunks - first).min(DEPTH);
            let own = first * CHUNK_PAIRS..pairs.min((first + depth) * CHUNK_PAIRS);
            for (v, coupled) in coupled.0.chunks_exact_mut(DEPTH * CHUNK * PANEL).enumerate().take(nv) {
                let panel = &right.data[(p + v) * right.panel_stride..][own.start * PAIR..own.end * PAIR];
                couple_panel(panel, &mut coupled[..depth * CHUNK * PANEL]);
            }
            let operands = |r: usize| Operands {
                a: left[r / STRIP * strip_len + first * COUPLES..].as_ptr(),
                strip_len,
                b: coupled.0.as_ptr(),
                panel_stride: DEPTH * CHUNK * PANEL,
                whole: depth,
                tail: std::ptr::null(),
            };
            // While these panels are in use, what comes next is asked for, by each tile its share.
            let (next, from) = if first + depth < chunks { (p, own.end) } else { (p + 2, 0) };
            let lines = own.len().div_ceil(rows.div_ceil(STRIP));
            for r in (0..rows).step_by(STRIP) {
                for panel in next..panels.min(next + 2) {
                    let from = panel * right.panel_stride + (from + r / STRIP * lines) * PAIR;
                    (0..lines).for_each(|line| ask_l2(right.data.as_ptr().wrapping_add(from + line * PAIR)));
                }
                macro_rules! tile {
                    ($mr:literal, $nv:literal) => {
                        tile::<$mr, $nv, true>(&operands(r), c.add(r * stride + p * PANEL), stride, keep || first > 0)
                    };
                }
                // SAFETY: `left` is whole strips, `coupled` two panels, `c` as promised.
                unsafe {
                    match (rows - r, nv) {
                        (1, 1) => tile!(1, 1),
                        (2, 1) => tile!(2, 1),
                        (3, 1) => tile!(3, 1),
                        (_, 1) => tile!(4, 1),
                        (1, _) => tile!(1, 2),
                        (2, _) => tile!(2, 2),
                        (3, _) => tile!(3, 2),
                        _ => tile!(4, 2),
                    }
                }
            }
        }
        if chunks == 0 && !keep {
            for r in 0..rows {
                // SAFETY: as above.
                unsafe { c.add(r * stride + p * PANEL).write_bytes(0, nv * PANEL) };
            }
        }
    }
}

/// Couples of a panel's `pairs` as [`chunk`] takes them, missing ones zero: of each four `k` 16 even couples, then 16 odd ones.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn couple_panel(panel: &[bf16], out: &mut [bf16]) {
    let (whole, rest) = panel.as_chunks::<{ 2 * PAIR }>();
    let mut last = [bf16::ZERO; 2 * PAIR];
    last[..rest.len()].copy_from_slice(rest);
    let (out, _) = out.as_chunks_mut::<{ 2 * PAIR }>();
    let filled = whole.len() + usize::from(!rest.is_empty());
    for (two, out) in whole.iter().chain((!rest.is_empty()).then_some(&last)).zip(&mut *out) {
        // SAFETY: two lines of each.
        unsafe {
            let at = two.as_ptr();
            let [even, odd] = couple(_mm512_loadu_si512(at.cast()), _mm512_loadu_si512(at.add(PAIR).cast()));
            let to = out.as_mut_ptr();
            _mm512_storeu_si512(to.cast(), even);
            _mm512_storeu_si512(to.add(PAIR).cast(), odd);
        }
    }
    out[filled..].iter_mut().for_each(|out| out.fill(bf16::ZERO));
}

/// Of pairs `(k, k + 1)` and `(k + 2, k + 3)` in 16 columns: `(k, k + 2)` and `(k + 1, k + 3)`, the earlier one in the upper half.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn couple(x: __m512i, y: __m512i) -> [__m512i; 2] {
    const UPPER: __mmask32 = 0xAAAA_AAAA;
    [
        _mm512_mask_mov_epi16(y, UPPER, _mm512_slli_epi32::<16>(x)),
        _mm512_mask_mov_epi16(_mm512_srli_epi32::<16>(y), UPPER, x),
    ]
}

/// Asks for the cache line of an address, which need not be valid, into the second cache.
#[inline]
fn ask_l2(at: *const bf16) {
    // SAFETY: every x86-64 CPU has the instruction; it reads nothing that the program sees and never faults.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) };
}

/// The last chunk of some panels.
#[repr(C, align(64))]
struct Tail([bf16; STREAMS * CHUNK * PANEL]);

/// Some chunks of two panels, coupled: half of a 32 KiB L1.
#[repr(C, align(64))]
struct Coupled([bf16; 2 * DEPTH * CHUNK * PANEL]);

/// One tile's share of the operands.
struct Operands {
    /// Strips of the left one, `strip_len` couples each.
    a: *const u32,
    strip_len: usize,
    /// Panels of the right one, `panel_stride` elements apart, `whole` chunks deep.
    b: *const bf16,
    panel_stride: usize,
    whole: usize,
    /// A last chunk of each panel, or null.
    tail: *const bf16,
}

/// `MR` rows of `NV` panels, which are `COUPLED` already or as they are packed.
///
/// # Safety
/// As the names say; `c` is `MR` rows of `NV` panels.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn tile<const MR: usize, const NV: usize, const COUPLED: bool>(
    o: &Operands,
    c: *mut f32,
    stride: usize,
    keep: bool,
) {
    // SAFETY: the caller's operands, walked from end to end.
    unsafe {
        let mut acc = [[_mm512_setzero_ps(); NV]; MR];
        if keep {
            for (r, acc) in acc.iter_mut().enumerate() {
                for (v, acc) in acc.iter_mut().enumerate() {
                    *acc = _mm512_loadu_ps(c.add(r * stride + v * PANEL));
                }
            }
        }
        let (mut a, mut b) = (o.a, o.b);
        for _ in 0..o.whole {
            chunk::<MR, NV, COUPLED>(&mut acc, a, o.strip_len, b, o.panel_stride);
            a = a.add(COUPLES);
            b = b.add(CHUNK * PANEL);
        }
        if !o.tail.is_null() {
            chunk::<MR, NV, COUPLED>(&mut acc, a, o.strip_len, o.tail, CHUNK * PANEL);
        }
        for (r, acc) in acc.iter().enumerate() {
            for (v, acc) in acc.iter().enumerate() {
                _mm512_storeu_ps(c.add(r * stride + v * PANEL), *acc);
            }
        }
    }
}

/// `acc += even + odd` over 32 `k`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
#[allow(clippy::needless_range_loop)] // indices keep rows and panels side by side
unsafe fn chunk<const MR: usize, const NV: usize, const COUPLED: bool>(
    acc: &mut [[__m512; NV]; MR],
    a: *const u32,
    strip_len: usize,
    b: *const bf16,
    panel_stride: usize,
) {
    // SAFETY: as in `tile`.
    unsafe {
        let mut even = [[_mm512_setzero_ps(); NV]; MR];
        let mut odd = [[_mm512_setzero_ps(); NV]; MR];
        for octet in 0..CHUNK / 8 {
            for half in 0..2 {
                let mut couples = [[_mm512_setzero_si512(); 2]; NV];
                for (v, couples) in couples.iter_mut().enumerate() {
                    let at = b.add(v * panel_stride + (octet * 4 + half * 2) * PAIR);
                    let (x, y) = (_mm512_loadu_si512(at.cast()), _mm512_loadu_si512(at.add(PAIR).cast()));
                    *couples = if COUPLED { [x, y] } else { couple(x, y) };
                }
                for r in 0..MR {
                    let at = a.add(r / STRIP * strip_len + half * 32 + octet * STRIP + r % STRIP);
                    let (x, y) = (_mm512_set1_epi32(*at as i32), _mm512_set1_epi32(*at.add(16) as i32));
                    for v in 0..NV {
                        even[r][v] = dot(even[r][v], x, couples[v][0]);
                        odd[r][v] = dot(odd[r][v], y, couples[v][1]);
                    }
                }
            }
        }
        for r in 0..MR {
            for v in 0..NV {
                acc[r][v] = _mm512_add_ps(acc[r][v], _mm512_add_ps(even[r][v], odd[r][v]));
            }
        }
    }
}

/// Two steps of 16 chains.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn dot(acc: __m512, x: __m512i, y: __m512i) -> __m512 {
    // SAFETY: both are 32 bf16 in 64 bytes.
    let (x, y) = unsafe { (std::mem::transmute::<__m512i, __m512bh>(x), std::mem::transmute::<__m512i, __m512bh>(y)) };
    _mm512_dpbf16_ps(acc, x, y)
}
