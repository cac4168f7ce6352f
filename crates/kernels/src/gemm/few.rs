//! Products of few rows with codes of one byte, by f32 multiply-adds of AVX-512: such products wait for memory, so each panel is read once,
//! from end to end, and its codes are looked up in registers.
//!
//! This is what CPUs with AMX run in decoding, where tiles would be nearly empty. The order is that of the house dot product.

use std::arch::x86_64::*;

use super::fp8::{BLOCK_PANELS, CHUNK, LINE, PackedFp8, SCALE_BLOCK, Table, vbmi::Loaded};
use super::pack::PANEL;
use crate::isa::Isa;

/// Panels that one row reads side by side.
const STREAMS: usize = 4;

/// `c[rows, 16 · panels] (+)= strips · right` over all of K, for up to 8 rows. See [`super::tiles`]; `tables` is a buffer.
///
/// # Safety
/// The CPU has AVX-512 with `VPERMI2B`; `strips` are those of [`super::pack_left`], `K` rounded up to even deep, and `c` is valid for
/// `rows` rows of these panels, `stride` apart.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx2,fma")]
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn tiles(
    isa: Isa,
    rows: usize,
    panels: std::ops::Range<usize>,
    strips: &[f32],
    right: &PackedFp8,
    tables: &mut Vec<Table>,
    c: *mut f32,
    stride: usize,
    keep: bool,
) {
    let depth = right.k.next_multiple_of(2);
    assert!(panels.end * PANEL <= right.n.next_multiple_of(PANEL) && strips.len() >= rows.next_multiple_of(4) * depth);
    let mut p = panels.start;
    while p < panels.end {
        // Panels of one row of blocks share their tables.
        let end = panels.end.min((p / BLOCK_PANELS + 1) * BLOCK_PANELS);
        right.tables(isa, p, tables);
        while p < end {
            let nv = if rows == 1 { (end - p).min(STREAMS) } else { (end - p).min(2) };
            let codes = right.codes[p * right.panel_len()..].as_ptr();
            for r in (0..rows).step_by(4) {
                // SAFETY: whole panels, whole strips, and the rows of `c` that are left.
                unsafe {
                    let a = strips.as_ptr().add(r * depth);
                    let c = c.add(r * stride + (p - panels.start) * PANEL);
                    macro_rules! tile {
                        ($mr:literal, $nv:literal) => {
                            tile::<$mr, $nv>(depth, a, codes, right.panel_len(), tables, c, stride, keep)
                        };
                    }
                    match ((rows - r).min(4), nv) {
                        (1, 4) => tile!(1, 4),
                        (1, 3) => tile!(1, 3),
                        (1, 2) => tile!(1, 2),
                        (1, _) => tile!(1, 1),
                        (2, 2) => tile!(2, 2),
                        (2, _) => tile!(2, 1),
                        (3, 2) => tile!(3, 2),
                        (3, _) => tile!(3, 1),
                        (_, 2) => tile!(4, 2),
                        _ => tile!(4, 1),
                    }
                }
            }
            p += nv;
        }
    }
}

/// `MR` rows of one strip, `NV` panels of codes `panel_len` bytes apart.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx2,fma")]
#[allow(clippy::too_many_arguments, clippy::needless_range_loop)]
unsafe fn tile<const MR: usize, const NV: usize>(
    depth: usize,
    a: *const f32,
    codes: *const u8,
    panel_len: usize,
    tables: &[Table],
    c: *mut f32,
    stride: usize,
    keep: bool,
) {
    let upper = _mm512_set1_epi32(0xFFFF_0000_u32 as i32);
    let mut acc = [[_mm512_setzero_ps(); NV]; MR];
    for r in 0..MR {
        for v in 0..NV {
            if keep {
                // SAFETY: the caller's place.
                acc[r][v] = unsafe { _mm512_loadu_ps(c.add(r * stride + v * PANEL)) };
            }
        }
    }
    for (table, first) in tables.iter().zip((0..depth).step_by(SCALE_BLOCK)) {
        let table = Loaded::of(table);
        for chunk in (first..depth.min(first + SCALE_BLOCK)).step_by(CHUNK) {
            let mut even = [[_mm512_setzero_ps(); NV]; MR];
            let mut odd = [[_mm512_setzero_ps(); NV]; MR];
            for k in (chunk..depth.min(chunk + CHUNK)).step_by(4) {
                let mut both = [[_mm512_setzero_si512(); 2]; NV];
                for v in 0..NV {
                    // SAFETY: panels are filled up to whole chunks of lines.
                    let line = unsafe { _mm512_loadu_si512(codes.add(v * panel_len + k / 4 * LINE).cast()) };
                    both[v] = table.couples(line);
                }
                for r in 0..MR {
                    // The last line may hold two `k` only; the depth is even.
                    let halves = if k + 4 <= depth { 2 } else { 1 };
                    for half in 0..halves {
                        // SAFETY: `k + 2 · half + 1` is below the depth.
                        let (x, y) = unsafe {
                            let at = a.add((k + 2 * half) * 4 + r);
                            (_mm512_set1_ps(*at), _mm512_set1_ps(*at.add(4)))
                        };
                        for v in 0..NV {
                            let number = |couple: __m512i| {
                                // The earlier number is in the upper half.
                                _mm512_castsi512_ps(if half == 0 {
                                    _mm512_and_si512(couple, upper)
                                } else {
                                    _mm512_slli_epi32::<16>(couple)
                                })
                            };
                            even[r][v] = _mm512_fmadd_ps(x, number(both[v][0]), even[r][v]);
                            odd[r][v] = _mm512_fmadd_ps(y, number(both[v][1]), odd[r][v]);
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
    for r in 0..MR {
        for v in 0..NV {
            // SAFETY: as above.
            unsafe { _mm512_storeu_ps(c.add(r * stride + v * PANEL), acc[r][v]) };
        }
    }
}
