//! Sixteen f32 lanes, the unit of every product kernel: plain Rust, four NEON registers, two of AVX2, or one of AVX-512.

use half::bf16;

use crate::{
    isa::Isa,
    math::from_bf16,
    tensor::{Dtype, Element},
};

/// Sixteen f32. A caller of any method must know that the CPU has the implementation's instruction set.
pub(crate) trait Lanes: Copy {
    /// Rows and 16-column panels of a tile whose accumulators fit the registers.
    const TILE: (usize, usize);
    /// Panels that are read side by side for one row: as many streams as memory likes and registers allow.
    const STREAMS: usize;
    unsafe fn zero() -> Self;
    /// Reads 16 `f32` at `p`.
    unsafe fn load(p: *const f32) -> Self;
    /// Writes 16 `f32` at `p`.
    unsafe fn store(self, p: *mut f32);
    unsafe fn splat(x: f32) -> Self;
    /// `a · b + c`, rounded once.
    unsafe fn fma(a: Self, b: Self, c: Self) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    /// Reads a packed pair of f32: 16 even elements, then 16 odd ones.
    unsafe fn pair_f32(p: *const f32) -> (Self, Self);
    /// Reads a packed pair of bf16: 16 times (even, odd).
    unsafe fn pair_bf16(p: *const bf16) -> (Self, Self);
}

/// How an element type lies in a packed panel.
pub(crate) trait Packable: Element {
    /// Place of `(column, parity)` among the 32 elements of a pair.
    fn slot(column: usize, parity: usize) -> usize;
    /// Reads a packed pair.
    unsafe fn pair<L: Lanes>(p: *const Self) -> (L, L);
    /// Fills one full panel from 16 columns of a row-major matrix: `panel[k/2][slot(column, k%2)] = src[k, n0 + column]`.
    fn pack_columns<S: Element>(isa: Isa, src: &[S], stride: usize, n0: usize, k: usize, panel: &mut [Self]);
}

macro_rules! pack_columns {
    ($name:ident, $E:ty, $S:ty) => {
        crate::isa::multi_isa! {
            fn $name(src: &[$S], stride: usize, n0: usize, k: usize, panel: &mut [$E]) {
                let (pairs, _) = panel.as_chunks_mut::<32>();
                for (q, pair) in pairs.iter_mut().enumerate() {
                    let even: &[$S; 16] = src[2 * q * stride + n0..][..16].try_into().expect("16 columns");
                    let odd: &[$S; 16] = if 2 * q + 1 < k {
                        src[(2 * q + 1) * stride + n0..][..16].try_into().expect("16 columns")
                    } else {
                        &[<$S>::narrow(0.0); 16]
                    };
                    for i in 0..16 {
                        pair[<$E>::slot(i, 0)] = <$E>::narrow(even[i].widen());
                        pair[<$E>::slot(i, 1)] = <$E>::narrow(odd[i].widen());
                    }
                }
            }
        }
    };
}
pack_columns!(pack_columns_f32_f32, f32, f32);
pack_columns!(pack_columns_f32_bf16, f32, bf16);
pack_columns!(pack_columns_bf16_f32, bf16, f32);
pack_columns!(pack_columns_bf16_bf16, bf16, bf16);

impl Packable for f32 {
    #[inline(always)]
    fn slot(column: usize, parity: usize) -> usize {
        parity * 16 + column
    }
    #[inline(always)]
    unsafe fn pair<L: Lanes>(p: *const Self) -> (L, L) {
        // SAFETY: passed on to the caller.
        unsafe { L::pair_f32(p) }
    }
    fn pack_columns<S: Element>(isa: Isa, src: &[S], stride: usize, n0: usize, k: usize, panel: &mut [Self]) {
        match S::DTYPE {
            Dtype::F32 => pack_columns_f32_f32(isa, bytemuck::cast_slice(src), stride, n0, k, panel),
            Dtype::Bf16 => pack_columns_f32_bf16(isa, bytemuck::cast_slice(src), stride, n0, k, panel),
        }
    }
}

impl Packable for bf16 {
    #[inline(always)]
    fn slot(column: usize, parity: usize) -> usize {
        column * 2 + parity
    }
    #[inline(always)]
    unsafe fn pair<L: Lanes>(p: *const Self) -> (L, L) {
        // SAFETY: passed on to the caller.
        unsafe { L::pair_bf16(p) }
    }
    fn pack_columns<S: Element>(isa: Isa, src: &[S], stride: usize, n0: usize, k: usize, panel: &mut [Self]) {
        match S::DTYPE {
            Dtype::F32 => pack_columns_bf16_f32(isa, bytemuck::cast_slice(src), stride, n0, k, panel),
            Dtype::Bf16 => pack_columns_bf16_bf16(isa, bytemuck::cast_slice(src), stride, n0, k, panel),
        }
    }
}

#[derive(Clone, Copy)]
pub(super) struct Plain([f32; 16]);

impl Lanes for Plain {
    const TILE: (usize, usize) = (4, 1);
    const STREAMS: usize = 1;
    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0.0; 16])
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller promises 16 readable f32.
        Self(unsafe { p.cast::<[f32; 16]>().read() })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller promises 16 writable f32.
        unsafe { p.cast::<[f32; 16]>().write(self.0) }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; 16])
    }
    #[inline(always)]
    unsafe fn fma(a: Self, b: Self, c: Self) -> Self {
        Self(std::array::from_fn(|i| a.0[i].mul_add(b.0[i], c.0[i])))
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + other.0[i]))
    }
    #[inline(always)]
    unsafe fn pair_f32(p: *const f32) -> (Self, Self) {
        // SAFETY: the caller promises 32 readable f32.
        unsafe { (Self::load(p), Self::load(p.add(16))) }
    }
    #[inline(always)]
    unsafe fn pair_bf16(p: *const bf16) -> (Self, Self) {
        // SAFETY: the caller promises 32 readable bf16.
        let x = unsafe { p.cast::<[bf16; 32]>().read() };
        (Self(std::array::from_fn(|i| from_bf16(x[2 * i]))), Self(std::array::from_fn(|i| from_bf16(x[2 * i + 1]))))
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! SAFETY of every method: the trait's callers know that the CPU has the instruction set, and promise the pointers.
    use std::arch::x86_64::*;

    use half::bf16;

    use super::Lanes;

    #[derive(Clone, Copy)]
    pub(in crate::gemm) struct Avx2(__m256, __m256);

    impl Lanes for Avx2 {
        const TILE: (usize, usize) = (2, 1);
        const STREAMS: usize = 2;
        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: see the module.
            unsafe { Self(_mm256_setzero_ps(), _mm256_setzero_ps()) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            // SAFETY: see the module.
            unsafe { Self(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            // SAFETY: see the module.
            unsafe {
                _mm256_storeu_ps(p, self.0);
                _mm256_storeu_ps(p.add(8), self.1);
            }
        }
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: see the module.
            unsafe { Self(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
        }
        #[inline(always)]
        unsafe fn fma(a: Self, b: Self, c: Self) -> Self {
            // SAFETY: see the module.
            unsafe { Self(_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1)) }
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: see the module.
            unsafe { Self(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1)) }
        }
        #[inline(always)]
        unsafe fn pair_f32(p: *const f32) -> (Self, Self) {
            // SAFETY: see the module.
            unsafe { (Self::load(p), Self::load(p.add(16))) }
        }
        #[inline(always)]
        unsafe fn pair_bf16(p: *const bf16) -> (Self, Self) {
            // SAFETY: see the module. A bf16 is the upper half of an f32: shift the even ones up, mask the odd ones.
            unsafe {
                let (x, y) = (_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(16).cast()));
                let even = |x| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(x));
                let mask = _mm256_set1_epi32(0xFFFF_0000_u32 as i32);
                let odd = |x| _mm256_castsi256_ps(_mm256_and_si256(x, mask));
                (Self(even(x), even(y)), Self(odd(x), odd(y)))
            }
        }
    }

    #[derive(Clone, Copy)]
    pub(in crate::gemm) struct Avx512(__m512);

    impl Lanes for Avx512 {
        const TILE: (usize, usize) = (4, 2);
        const STREAMS: usize = 4;
        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: see the module.
            unsafe { Self(_mm512_setzero_ps()) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            // SAFETY: see the module.
            unsafe { Self(_mm512_loadu_ps(p)) }
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            // SAFETY: see the module.
            unsafe { _mm512_storeu_ps(p, self.0) }
        }
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: see the module.
            unsafe { Self(_mm512_set1_ps(x)) }
        }
        #[inline(always)]
        unsafe fn fma(a: Self, b: Self, c: Self) -> Self {
            // SAFETY: see the module.
            unsafe { Self(_mm512_fmadd_ps(a.0, b.0, c.0)) }
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: see the module.
            unsafe { Self(_mm512_add_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn pair_f32(p: *const f32) -> (Self, Self) {
            // SAFETY: see the module.
            unsafe { (Self::load(p), Self::load(p.add(16))) }
        }
        #[inline(always)]
        unsafe fn pair_bf16(p: *const bf16) -> (Self, Self) {
            // SAFETY: see the module. A bf16 is the upper half of an f32: shift the even ones up, mask the odd ones.
            unsafe {
                let x = _mm512_loadu_si512(p.cast());
                let even = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(x));
                let odd = _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(0xFFFF_0000_u32 as i32)));
                (Self(even), Self(odd))
            }
        }
    }
}

#[cfg(target_arch = "aarch64")]
pub(super) use arm::Neon;

#[cfg(target_arch = "aarch64")]
mod arm {
    //! SAFETY of every method: every 64-bit Arm has NEON, and the trait's callers promise the pointers.
    use std::{arch::aarch64::*, array::from_fn};

    use half::bf16;

    use super::Lanes;

    #[derive(Clone, Copy)]
    pub(in crate::gemm) struct Neon([float32x4_t; 4]);

    impl Lanes for Neon {
        const TILE: (usize, usize) = (2, 1);
        const STREAMS: usize = 2;
        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: see the module.
            unsafe { Self::splat(0.0) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            // SAFETY: see the module.
            Self(from_fn(|i| unsafe { vld1q_f32(p.add(4 * i)) }))
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            for (i, x) in self.0.into_iter().enumerate() {
                // SAFETY: see the module.
                unsafe { vst1q_f32(p.add(4 * i), x) }
            }
        }
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: see the module.
            Self([unsafe { vdupq_n_f32(x) }; 4])
        }
        #[inline(always)]
        unsafe fn fma(a: Self, b: Self, c: Self) -> Self {
            // SAFETY: see the module.
            Self(from_fn(|i| unsafe { vfmaq_f32(c.0[i], a.0[i], b.0[i]) }))
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: see the module.
            Self(from_fn(|i| unsafe { vaddq_f32(self.0[i], other.0[i]) }))
        }
        #[inline(always)]
        unsafe fn pair_f32(p: *const f32) -> (Self, Self) {
            // SAFETY: see the module.
            unsafe { (Self::load(p), Self::load(p.add(16))) }
        }
        #[inline(always)]
        unsafe fn pair_bf16(p: *const bf16) -> (Self, Self) {
            // SAFETY: see the module. A bf16 is the upper half of an f32: shift the even ones up, mask the odd ones.
            unsafe {
                let x: [uint32x4_t; 4] = from_fn(|i| vld1q_u32(p.add(8 * i).cast()));
                let mask = vdupq_n_u32(0xFFFF_0000);
                let even = x.map(|x| vreinterpretq_f32_u32(vshlq_n_u32::<16>(x)));
                (Self(even), Self(x.map(|x| vreinterpretq_f32_u32(vandq_u32(x, mask)))))
            }
        }
    }
}
