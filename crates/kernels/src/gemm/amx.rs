//! Products of bf16 by Intel's AMX: 16 × 16 outputs and 32 of `k` in one instruction, `TDPBF16PS`, which is the house dot product.
//!
//! The intrinsics are not stable, so a block of tiles is one `asm!` that loads or clears, sums over `k` and stores: no number lives in a
//! tile from one to the next. The tiles are configured once for all blocks of a product, and released after it. The right operand is read as it is packed (16 pairs of a panel are a
//! tile of 1 KiB); the left one is packed in tiles of 16 rows and 32 `k`, missing ones zero. AMX takes subnormals for zero and
//! makes none, see the house's promise on those in `ARCHITECTURE.md`.
//!
//! Source: Intel Architecture Instruction Set Extensions Programming Reference, chapter on AMX.

#[cfg(all(test, target_os = "linux"))]
pub(crate) mod emulate;

use std::arch::asm;

use half::bf16;

use super::{
    Right,
    pack::{Left, LeftData, PAIR, PANEL},
};
use crate::{
    isa::{Isa, multi_isa},
    math::to_bf16,
    tensor::Element,
};

/// Rows of a tile.
const ROWS: usize = 16;
/// `k` of a tile.
const DEPTH: usize = 32;
/// Elements of a bf16 tile.
const TILE: usize = ROWS * DEPTH;
/// Fewer rows than this are left to AVX-512: a tile would be mostly empty.
pub(super) const MIN_ROWS: usize = 9;

/// Elements that [`pack`] fills.
pub(super) fn packed_len(rows: usize, depth: usize) -> usize {
    rows.next_multiple_of(ROWS) * depth.next_multiple_of(DEPTH)
}

/// Packs rows `r0..r0 + rows`, columns `k0..k0 + ks`: `out[row block][chunk of 32 k][16][32]`.
pub(super) fn pack(isa: Isa, left: &Left<'_>, r0: usize, rows: usize, k0: usize, ks: usize, out: &mut [bf16]) {
    match left.data {
        LeftData::F32(x) => pack_f32(isa, x, left.row_stride, left.col_stride, r0, rows, k0, ks, out),
        LeftData::Bf16(x) => pack_bf16(isa, x, left.row_stride, left.col_stride, r0, rows, k0, ks, out),
    }
}

macro_rules! pack {
    ($name:ident, $E:ty) => {
        multi_isa! {
            #[allow(clippy::too_many_arguments)]
            fn $name(
                x: &[$E], row_stride: usize, col_stride: usize, r0: usize, rows: usize, k0: usize, ks: usize, out: &mut [bf16],
            ) {
                let chunks = ks.div_ceil(DEPTH);
                let (tiles, _) = out.as_chunks_mut::<TILE>();
                for (t, tile) in tiles[..rows.div_ceil(ROWS) * chunks].iter_mut().enumerate() {
                    let (first, k) = (t / chunks * ROWS, t % chunks * DEPTH);
                    let (nr, nk) = ((rows - first).min(ROWS), (ks - k).min(DEPTH));
                    if nr < ROWS || nk < DEPTH {
                        tile.fill(bf16::ZERO);
                    }
                    let at = (r0 + first) * row_stride + (k0 + k) * col_stride;
                    if col_stride == 1 {
                        for (r, row) in tile.chunks_exact_mut(DEPTH).take(nr).enumerate() {
                            let x = &x[at + r * row_stride..][..nk];
                            row.iter_mut().zip(x).for_each(|(o, x)| *o = narrow(*x));
                        }
                    } else {
                        for j in 0..nk {
                            let x = &x[at + j * col_stride..];
                            for r in 0..nr {
                                tile[r * DEPTH + j] = narrow(x[r * row_stride]);
                            }
                        }
                    }
                }
            }
        }
    };
}
pack!(pack_f32, f32);
pack!(pack_bf16, bf16);

/// Exact from bf16.
#[inline(always)]
fn narrow<E: Element>(x: E) -> bf16 {
    to_bf16(x.widen())
}

/// The configuration of eight whole tiles: palette 1, 16 rows of 64 bytes each.
#[repr(C, align(64))]
struct Configuration([u8; 64]);

static WHOLE: Configuration = {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    let mut tile = 0;
    while tile < 8 {
        bytes[16 + 2 * tile] = 64;
        bytes[48 + tile] = ROWS as u8;
        tile += 1;
    }
    Configuration(bytes)
};

/// `c[rows, 16 · panels] (+)= left · right` over `pairs` pairs of `k`; `left` as [`pack`] made it. See [`super::tiles`].
///
/// # Safety
/// The CPU has AMX with bf16 and the process may use it; lengths and the place are as [`super::tiles_at`] has them, `left` at least
/// [`packed_len`] long.
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn tiles(
    rows: usize,
    panels: usize,
    pairs: usize,
    left: &[bf16],
    right: &Right<'_, bf16>,
    c: *mut f32,
    stride: usize,
    keep: bool,
) {
    let (whole, rest) = (pairs / 16, pairs % 16);
    let chunks = pairs.div_ceil(16);
    let mut edge = Edge([0.0; 4 * ROWS * PANEL]);
    let mut tail = Tail([bf16::ZERO; 2 * TILE]);
    // SAFETY: the CPU has AMX; `WHOLE` is 64 valid bytes. Nothing but this module uses tiles.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const WHOLE, options(nostack, readonly)) };
    for p in (0..panels).step_by(2) {
        let two_panels = p + 1 < panels;
        if rest > 0 {
            for (v, tail) in tail.0.chunks_exact_mut(TILE).enumerate().take(1 + usize::from(two_panels)) {
                let from = (p + v) * right.panel_stride + whole * 16 * PAIR;
                tail[..rest * PAIR].copy_from_slice(&right.data[from..][..rest * PAIR]);
            }
        }
        for r in (0..rows).step_by(2 * ROWS) {
            let two_blocks = r + ROWS < rows;
            // A block of whole tiles is summed where it lies; one at an edge beside, and its rows and panels are moved.
            let direct = two_panels && (r + 2 * ROWS <= rows || r + ROWS == rows);
            let (height, width) = ((rows - r).min(2 * ROWS), if two_panels { 2 * PANEL } else { PANEL });
            if !direct && keep {
                for row in 0..height {
                    // SAFETY: the caller's row, and one of ours.
                    unsafe {
                        c.add((r + row) * stride + p * PANEL)
                            .copy_to_nonoverlapping(edge.0[row * 2 * PANEL..].as_mut_ptr(), width)
                    };
                }
            }
            let (at, c_stride) = if direct {
                (c.wrapping_add(r * stride + p * PANEL), stride)
            } else {
                (edge.0.as_mut_ptr(), 2 * PANEL)
            };
            let block = |chunk: usize, b: *const bf16, b_stride: usize, n: usize, keep: bool| {
                // SAFETY: the row blocks of `left` are `chunks` tiles each and `n` of them from `chunk` on are read; `b` is `n` tiles, and as
                // many `b_stride` on (the same ones again for a single panel); `at` has room for 16 or 32 rows of two panels.
                unsafe {
                    let a = left.as_ptr().add((r / ROWS * chunks + chunk) * TILE);
                    if two_blocks {
                        two_by_two(a, chunks * TILE * 2, b, b_stride * 2, at, c_stride * 4, n, keep);
                    } else {
                        one_by_two(a, b, b_stride * 2, at, c_stride * 4, n, keep);
                    }
                }
            };
            if whole > 0 {
                let b_stride = if two_panels { right.panel_stride } else { 0 };
                block(0, right.data[p * right.panel_stride..].as_ptr(), b_stride, whole, keep);
            }
            if rest > 0 {
                block(whole, tail.0.as_ptr(), if two_panels { TILE } else { 0 }, 1, keep || whole > 0);
            }
            if !direct {
                for row in 0..height {
                    // SAFETY: as above.
                    unsafe {
                        c.add((r + row) * stride + p * PANEL)
                            .copy_from_nonoverlapping(edge.0[row * 2 * PANEL..].as_ptr(), width)
                    };
                }
            }
        }
    }
    // SAFETY: the CPU has AMX. A thread that sleeps with live tiles would cost the system their saving.
    unsafe { asm!("tilerelease", options(nostack)) };
}

/// 32 rows of two panels of f32.
#[repr(C, align(64))]
struct Edge([f32; 4 * ROWS * PANEL]);

/// Two bf16 tiles.
#[repr(C, align(64))]
struct Tail([bf16; 2 * TILE]);

/// 32 × 32 outputs over `n` tiles of `k`. Strides in bytes.
///
/// # Safety
/// As the names say; `n > 0`; the tiles are configured as [`WHOLE`].
#[allow(clippy::too_many_arguments)]
unsafe fn two_by_two(
    a: *const bf16,
    a_stride: usize,
    b: *const bf16,
    b_stride: usize,
    c: *mut f32,
    c_stride: usize,
    n: usize,
    keep: bool,
) {
    // SAFETY: reads and writes what the caller promises; the tiles are configured.
    unsafe {
        asm!(
            "test {keep}, {keep}",
            "jz 2f",
            "tileloadd tmm0, [{c} + {cs}*1]",
            "tileloadd tmm1, [{c} + {cs}*1 + 64]",
            "tileloadd tmm2, [{d} + {cs}*1]",
            "tileloadd tmm3, [{d} + {cs}*1 + 64]",
            "jmp 3f",
            "2:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "3:",
            "tileloadd tmm4, [{a} + {s}*1]",
            "tileloadd tmm6, [{b} + {s}*1]",
            "tileloadd tmm7, [{b2} + {s}*1]",
            "tileloadd tmm5, [{a2} + {s}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a}, 1024",
            "add {a2}, 1024",
            "add {b}, 1024",
            "add {b2}, 1024",
            "dec {n}",
            "jnz 3b",
            "tilestored [{c} + {cs}*1], tmm0",
            "tilestored [{c} + {cs}*1 + 64], tmm1",
            "tilestored [{d} + {cs}*1], tmm2",
            "tilestored [{d} + {cs}*1 + 64], tmm3",
            keep = in(reg) u64::from(keep),
            a = inout(reg) a => _,
            a2 = inout(reg) a.byte_add(a_stride) => _,
            b = inout(reg) b => _,
            b2 = inout(reg) b.byte_add(b_stride) => _,
            c = in(reg) c,
            d = in(reg) c.byte_add(ROWS * c_stride),
            cs = in(reg) c_stride,
            s = in(reg) 64usize,
            n = inout(reg) n => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// 16 × 32 outputs over `n` tiles of `k`. Strides in bytes.
///
/// # Safety
/// As the names say; `n > 0`; the tiles are configured as [`WHOLE`].
unsafe fn one_by_two(
    a: *const bf16,
    b: *const bf16,
    b_stride: usize,
    c: *mut f32,
    c_stride: usize,
    n: usize,
    keep: bool,
) {
    // SAFETY: reads and writes what the caller promises; the tiles are configured.
    unsafe {
        asm!(
            "test {keep}, {keep}",
            "jz 2f",
            "tileloadd tmm0, [{c} + {cs}*1]",
            "tileloadd tmm1, [{c} + {cs}*1 + 64]",
            "jmp 3f",
            "2:",
            "tilezero tmm0",
            "tilezero tmm1",
            "3:",
            "tileloadd tmm4, [{a} + {s}*1]",
            "tileloadd tmm6, [{b} + {s}*1]",
            "tileloadd tmm7, [{b2} + {s}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "add {a}, 1024",
            "add {b}, 1024",
            "add {b2}, 1024",
            "dec {n}",
            "jnz 3b",
            "tilestored [{c} + {cs}*1], tmm0",
            "tilestored [{c} + {cs}*1 + 64], tmm1",
            keep = in(reg) u64::from(keep),
            a = inout(reg) a => _,
            b = inout(reg) b => _,
            b2 = inout(reg) b.byte_add(b_stride) => _,
            c = in(reg) c,
            cs = in(reg) c_stride,
            s = in(reg) 64usize,
            n = inout(reg) n => _,
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// Whether this CPU has AMX with bf16 and the kernel lets this process use it; asks for that at the first call.
pub(crate) fn usable() -> bool {
    static USABLE: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *USABLE.get_or_init(|| detected() && permitted())
}

/// CPUID: tiles and bf16, leaf 7; the system saves tile state, XCR0 bits 17 and 18.
fn detected() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
    #[target_feature(enable = "xsave")]
    fn saved() -> u64 {
        // SAFETY: the CPU has XSAVE, and reading XCR0 is all that this does.
        unsafe { _xgetbv(0) }
    }
    if __cpuid(0).eax < 7 || !is_x86_feature_detected!("xsave") || __cpuid(1).ecx >> 27 & 1 == 0 {
        return false;
    }
    let edx = __cpuid_count(7, 0).edx;
    // SAFETY: XSAVE was detected, and the system has switched it on (OSXSAVE).
    edx >> 22 & 1 == 1 && edx >> 24 & 1 == 1 && unsafe { saved() } >> 17 & 3 == 3
}

/// Asks the kernel for tile data, for all threads of the process: `arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`.
fn permitted() -> bool {
    if !cfg!(target_os = "linux") {
        return false;
    }
    let result: i64;
    // SAFETY: a system call that changes no memory of ours; it clobbers rcx and r11.
    unsafe {
        asm!(
            "syscall",
            inout("rax") 158i64 => result,
            in("rdi") 0x1023u64,
            in("rsi") 18u64,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result == 0
}
