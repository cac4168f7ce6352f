//! What an accumulator of few bits loses: DeepSeek-V3's FP8 product over an emulated tensor core. For study; nothing here is fast.
//!
//! `C[m, n] = Σ_g sa[m, g] · sb[n, g] · Σ_{k in g} a[m, k] · b[n, k]` of E4M3 numbers `a`, `b` under scales `sa`, `sb`. An [`Accumulator`] makes the
//! inner sum; every so many elements of K it is **promoted**: copied out as f32, multiplied by both scales and added in f32.
//!
//! The tensor core is a model of ours, [`Accumulator::TensorCore`]: each instruction adds 32 products to the accumulator. Products are
//! exact; all 33 numbers are shifted right to the exponent of the largest, the places below the highest `bits` are cut off, what is left is added
//! without loss, and the sum is cut to its highest `bits` again. What others found, on Hopper:
//! - 32 products are shifted to the largest exponent, the highest 14 bits are used and the rest truncated; K = 4096 costs nearly 2 %; promotion every
//!   128: DeepSeek-V3, arXiv:2412.19437, sections 3.3.2 and 3.5.2.
//! - The accumulator has 13 bits of fraction (14 with the leading one) and loses the others even where all products are zero, so it is aligned
//!   with them: SageAttention2, arXiv:2411.10958.
//! - Places are cut toward zero in the tensor cores before: Fasi et al. 2021, "Numerical behavior of NVIDIA tensor cores".
//!
//! Not known, and so ours: whether all 32 products are aligned at once; the exponent of a product (here that of its value; the sum of its
//! factors' exponents may be one less); whether negative numbers are cut toward zero or, as the paper's "sign-fill" shift says, down ([`Cut`]).

use rayon::prelude::*;

use crate::formats::{ScaleFormat, block_scale, from_e4m3, to_e4m3};

/// Elements of K that an instruction adds.
pub const INSTRUCTION: usize = 32;
/// Longest sum: its value stays within 64 bits.
pub const MAX_K: usize = 1 << 24;
/// Steps of the smallest subnormal, 2⁻⁹: every E4M3 number is a whole number of them, of 18 bits at most.
const UNITS: f32 = 512.0;

/// Which way the places are cut that an accumulator does not keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Toward zero: magnitudes lose them.
    Zero,
    /// Down: negative numbers are shifted with their sign filled in.
    Down,
}

/// What makes the inner sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accumulator {
    /// Integers without loss; the outer sum is in f64.
    Exact,
    /// f32, `k` ascending, rounded to nearest.
    F32,
    /// A tensor core that keeps `bits`, the leading one among them.
    TensorCore {
        /// At least 1; DeepSeek-V3 finds 14.
        bits: u32,
        /// Of the others.
        cut: Cut,
    },
}

/// E4M3 codes `[rows, K]` with a scale per tile.
#[derive(Clone, Debug, PartialEq)]
pub struct Operand {
    codes: Vec<u8>,
    /// `[⌈rows / tile[0]⌉, ⌈K / tile[1]⌉]`
    scales: Vec<f32>,
    k: usize,
    tile: [usize; 2],
}

impl Operand {
    /// The nearest codes of `x`, `[rows, K]`, under scales of `tile[0]` rows by `tile[1]` columns: 1 × 128 of activations, 128 × 128 of weights.
    ///
    /// # Panics
    /// Unless `x` is whole rows, nothing is 0 and K is [`MAX_K`] at most.
    pub fn quantize(x: &[f32], k: usize, tile: [usize; 2], format: ScaleFormat) -> Self {
        assert!(0 < k && k <= MAX_K && !x.is_empty() && x.len().is_multiple_of(k) && !tile.contains(&0));
        let (wide, high) = (k.div_ceil(tile[1]), (x.len() / k).div_ceil(tile[0]));
        let mut this = Self { codes: vec![0; x.len()], scales: vec![0.0; wide * high], k, tile };
        for (i, x) in x.iter().enumerate() {
            let max = &mut this.scales[i / k / tile[0] * wide + i % k / tile[1]];
            *max = max.max(x.abs());
        }
        this.scales.iter_mut().for_each(|max| *max = block_scale(*max, format));
        for (i, x) in x.iter().enumerate() {
            this.codes[i] = to_e4m3(x / this.scale(i / k, i % k));
        }
        this
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.codes.len() / self.k
    }

    /// `code · scale`, `[rows, K]`.
    pub fn numbers(&self) -> Vec<f32> {
        (0..self.codes.len()).map(|i| from_e4m3(self.codes[i]) * self.scale(i / self.k, i % self.k)).collect()
    }

    fn scale(&self, row: usize, column: usize) -> f32 {
        self.scales[row / self.tile[0] * self.k.div_ceil(self.tile[1]) + column / self.tile[1]]
    }

    fn units(&self) -> Vec<i32> {
        self.codes.iter().map(|code| (from_e4m3(*code) * UNITS) as i32).collect()
    }
}

/// `C = A·Bᵀ`, `[M, N]`, of `a`, `[M, K]`, and `b`, `[N, K]`, promoted after every `promote` elements of K; `None`: only at the end.
///
/// # Panics
/// If a sum would reach over two scales before it is promoted, or the rows have different lengths.
pub fn product(a: &Operand, b: &Operand, accumulator: Accumulator, promote: Option<usize>) -> Vec<f64> {
    let (k, n, piece) = (a.k, b.rows(), promote.unwrap_or(a.k));
    assert_eq!(k, b.k);
    for x in [a, b] {
        assert!(x.tile[1] >= k || x.tile[1].is_multiple_of(piece), "a sum of {piece} meets two scales");
    }
    let (ua, ub) = (a.units(), b.units());
    let mut c = vec![0.0; a.rows() * n];
    c.par_chunks_mut(n).zip(ua.par_chunks(k)).enumerate().for_each(|(m, (c, ua))| {
        for (n, (c, ub)) in c.iter_mut().zip(ub.chunks(k)).enumerate() {
            let parts = ua.chunks(piece).zip(ub.chunks(piece)).enumerate().map(|(g, (ua, ub))| {
                let scale = f64::from(a.scale(m, g * piece)) * f64::from(b.scale(n, g * piece));
                (scale, accumulator.sum(ua, ub))
            });
            *c = match accumulator {
                Accumulator::Exact => parts.map(|(scale, sum)| scale * sum).sum(),
                _ => parts.fold(0.0_f32, |c, (scale, sum)| c + scale as f32 * sum as f32).into(),
            };
        }
    });
    c
}

impl Accumulator {
    /// The inner sum of products of numbers that are given in steps of 2⁻⁹.
    fn sum(self, a: &[i32], b: &[i32]) -> f64 {
        let exact =
            |a: &[i32], b: &[i32]| a.iter().zip(b).map(|(a, b)| i64::from(*a) * i64::from(*b)).sum::<i64>() as f64;
        let steps = match self {
            Self::Exact => exact(a, b),
            // A product has 8 significant bits, so that only the addition rounds.
            Self::F32 => a.iter().zip(b).fold(0.0, |sum: f32, (a, b)| sum + *a as f32 * *b as f32).into(),
            Self::TensorCore { bits, cut } => {
                let steps = a.chunks(INSTRUCTION).zip(b.chunks(INSTRUCTION));
                steps.fold(0, |acc, (a, b)| instruction(acc, a, b, bits, cut)) as f64
            }
        };
        steps / f64::from(UNITS * UNITS)
    }
}

/// The accumulator after one more instruction; everything in steps of 2⁻¹⁸.
fn instruction(acc: i64, a: &[i32], b: &[i32], bits: u32, cut: Cut) -> i64 {
    let mut products = [0; INSTRUCTION];
    // The highest bit of all magnitudes together is that of the largest.
    let mut magnitudes = acc.unsigned_abs();
    for ((p, a), b) in products.iter_mut().zip(a).zip(b) {
        *p = i64::from(*a) * i64::from(*b);
        magnitudes |= p.unsigned_abs();
    }
    let low = places_below(magnitudes, bits);
    let sum = cut.off(acc, low) + products.iter().map(|p| cut.off(*p, low)).sum::<i64>();
    cut.off(sum, places_below(sum.unsigned_abs(), bits))
}

/// A mask of the places below the highest `bits` of a number.
fn places_below(magnitude: u64, bits: u32) -> i64 {
    let used = u64::BITS - magnitude.leading_zeros();
    (1 << used.saturating_sub(bits)) - 1
}

impl Cut {
    /// `x` without the places of the mask `low`.
    fn off(self, x: i64, low: i64) -> i64 {
        match self {
            // A negative number is first raised by all it may lose.
            Self::Zero => (x + (x >> 63 & low)) & !low,
            Self::Down => x & !low,
        }
    }
}

#[cfg(test)]
mod tests;
