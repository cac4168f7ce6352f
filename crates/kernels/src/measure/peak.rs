//! What the arithmetic units give when nothing is read: loops on registers.

use std::hint::black_box;

use crate::isa::{Isa, Level};

/// Sums under way at once: more than the depth of any multiplier's pipeline times their number.
const CHAINS: usize = 12;
/// Rounds of a call: some tens of microseconds.
const ROUNDS: usize = 20_000;

/// Runs multiply-adds of f32 for a moment on the calling thread. Returns their floating-point operations, 2 each.
pub(super) fn fma(isa: Isa) -> f64 {
    // The chains differ, and tend to 1: no two are the same sum, and none leaves the normal numbers.
    let start: [f32; CHAINS] = black_box(std::array::from_fn(|i| 1.0 + i as f32 * 0.01));
    let lanes = match isa.0 {
        Level::Portable => {
            black_box(plain::<1>(start));
            1
        }
        #[cfg(target_arch = "aarch64")]
        Level::Neon => {
            black_box(plain::<4>(start));
            4
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => {
            // SAFETY: `isa` proves that the CPU has AVX2 and FMA.
            black_box(unsafe { avx2(start) });
            8
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx512Bf16 | Level::Amx => {
            // SAFETY: `isa` proves that the CPU has AVX-512.
            black_box(unsafe { avx512(start) });
            16
        }
    };
    (2 * lanes * CHAINS * ROUNDS) as f64
}

/// Runs the instruction that multiplies bf16 for a moment on the calling thread. Returns its floating-point operations, or `None` where
/// `isa` has none.
pub(super) fn bf16(isa: Isa) -> Option<f64> {
    match isa.0 {
        #[cfg(target_arch = "x86_64")]
        Level::Amx => {
            // SAFETY: `isa` proves that the CPU has AMX with bf16 and that this process may use it.
            unsafe { tile_products(ROUNDS / 10) };
            Some((TILE_FLOP * 4 * (ROUNDS / 10)) as f64)
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Bf16 => {
            // SAFETY: `isa` proves that the CPU has AVX-512 with bf16.
            black_box(unsafe { dots() });
            Some((2 * 32 * CHAINS * ROUNDS) as f64)
        }
        _ => None,
    }
}

/// As many lanes as a register of the processor that the program was built for has.
fn plain<const LANES: usize>(start: [f32; CHAINS]) -> f32 {
    let (a, b) = (black_box(0.999_f32), black_box(0.001_f32));
    let mut acc = start.map(|x| [x; LANES]);
    for _ in 0..ROUNDS {
        acc.iter_mut().flatten().for_each(|x| *x = x.mul_add(a, b));
    }
    acc.iter().flatten().sum()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(start: [f32; CHAINS]) -> [f32; 8] {
    use std::arch::x86_64::*;
    let (a, b) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(0.001)));
    let mut acc = start.map(|x| _mm256_set1_ps(x));
    for _ in 0..ROUNDS {
        acc.iter_mut().for_each(|x| *x = _mm256_fmadd_ps(*x, a, b));
    }
    let sum = acc.into_iter().fold(_mm256_setzero_ps(), |sum, x| _mm256_add_ps(sum, x));
    let mut lanes = [0.0; 8];
    // SAFETY: `lanes` is 8 f32, exactly what the store writes.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sum) };
    lanes
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma")]
fn avx512(start: [f32; CHAINS]) -> f32 {
    use std::arch::x86_64::*;
    let (a, b) = (_mm512_set1_ps(black_box(0.999)), _mm512_set1_ps(black_box(0.001)));
    let mut acc = start.map(|x| _mm512_set1_ps(x));
    for _ in 0..ROUNDS {
        acc.iter_mut().for_each(|x| *x = _mm512_fmadd_ps(*x, a, b));
    }
    _mm512_reduce_add_ps(acc.into_iter().fold(_mm512_setzero_ps(), |sum, x| _mm512_add_ps(sum, x)))
}

/// Dot products of pairs of bf16; every sum is zero.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16,avx2,fma")]
fn dots() -> f32 {
    use std::arch::x86_64::*;
    let x: __m512bh = _mm512_cvtne2ps_pbh(_mm512_set1_ps(black_box(0.0)), _mm512_set1_ps(black_box(0.0)));
    let mut acc = [_mm512_setzero_ps(); CHAINS];
    for _ in 0..ROUNDS {
        acc.iter_mut().for_each(|sum| *sum = _mm512_dpbf16_ps(*sum, x, x));
    }
    _mm512_reduce_add_ps(acc.into_iter().fold(_mm512_setzero_ps(), |sum, x| _mm512_add_ps(sum, x)))
}

/// Floating-point operations of one product of whole tiles: 16 × 16 outputs, 32 deep.
#[cfg(target_arch = "x86_64")]
const TILE_FLOP: usize = 2 * 16 * 16 * 32;

/// Eight whole tiles, as `gemm/amx.rs` has them: palette 1, 16 rows of 64 bytes each.
#[cfg(target_arch = "x86_64")]
#[repr(C, align(64))]
struct Configuration([u8; 64]);

/// `4 · rounds` products of empty tiles, four sums under way.
///
/// # Safety
/// The CPU has AMX with bf16 and the process may use it.
#[cfg(target_arch = "x86_64")]
pub(crate) unsafe fn tile_products(rounds: usize) {
    let mut whole = Configuration([0; 64]);
    whole.0[0] = 1;
    (0..8).for_each(|tile| (whole.0[16 + 2 * tile], whole.0[48 + tile]) = (64, 16));
    // SAFETY: the CPU has AMX; `whole` is 64 valid bytes; no other code of this thread has live tiles, and none are left.
    unsafe {
        std::arch::asm!(
            "ldtilecfg [{whole}]",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "tilezero tmm4",
            "tilezero tmm5",
            "tilezero tmm6",
            "tilezero tmm7",
            "test {n}, {n}",
            "jz 3f",
            "2:",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "dec {n}",
            "jnz 2b",
            "3:",
            "tilerelease",
            whole = in(reg) &raw const whole,
            n = inout(reg) rounds => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, readonly),
        );
    }
}
