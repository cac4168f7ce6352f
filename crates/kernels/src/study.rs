//! What an accumulator of few bits loses: DeepSeek-V3's FP8 product over an emulated tensor core. For study; nothing here is fast.
//!
//! `C[m, n] = Σ_g sa[m, g] · sb[n, g] · Σ_{k in g} a[m, k] · b[n, k]` of E4M3 numbers `a`, `b` under scales `sa`, `sb`. An [`Accumulator`] makes the
//! inner sum; every `promote` elements of K it is **promoted**: copied out as f32, multiplied by both scales and added in f32.
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

use crate::{
    formats::{ScaleFormat, block_scale, from_e4m3, to_e4m3},
    math::sum16,
};

/// Elements of K that an instruction adds.
pub const INSTRUCTION: usize = 32;
/// Longest sum. It is exact in f64, and stays within f32 even if [`MIN_BITS`] are always cut down, away from zero.
pub const MAX_K: usize = 1 << 15;
/// Fewest bits of an emulated accumulator.
pub const MIN_BITS: u32 = 10;
/// Most bits of an emulated accumulator, one less than f32 has.
pub const MAX_BITS: u32 = 23;

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
    /// Without loss; the outer sum is in f64.
    Exact,
    /// f32, rounded to nearest; element `i` goes into lane `i mod 16`, as in other sums of this crate.
    F32,
    /// A tensor core that keeps `bits`, the leading one among them.
    TensorCore {
        /// [`MIN_BITS`] to [`MAX_BITS`]; DeepSeek-V3 finds 14.
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

    /// What one instruction takes, row by row, the last of a row filled up with zeros.
    fn pieces(&self) -> Vec<[f32; INSTRUCTION]> {
        let piece = |codes: &[u8]| std::array::from_fn(|i| codes.get(i).map_or(0.0, |code| from_e4m3(*code)));
        self.codes.chunks(self.k).flat_map(|row| row.chunks(INSTRUCTION).map(piece)).collect()
    }
}

/// `C = A·Bᵀ`, `[M, N]`, of `a`, `[M, K]`, and `b`, `[N, K]`, promoted after every `promote` elements of K; `None`: only at the end.
///
/// # Panics
/// If a sum would reach over two scales before it is promoted, `promote` is no multiple of [`INSTRUCTION`], rows have different lengths, or
/// bits are not as said.
pub fn product(a: &Operand, b: &Operand, accumulator: Accumulator, promote: Option<usize>) -> Vec<f64> {
    let (k, n, group) = (a.k, b.rows(), promote.unwrap_or(a.k.next_multiple_of(INSTRUCTION)));
    assert!(k == b.k && group > 0 && group.is_multiple_of(INSTRUCTION));
    assert!(!matches!(accumulator, Accumulator::TensorCore { bits, .. } if !(MIN_BITS..=MAX_BITS).contains(&bits)));
    for x in [a, b] {
        assert!(x.tile[1] >= k || x.tile[1].is_multiple_of(group), "a sum of {group} meets two scales");
    }
    let (pa, pb, wide) = (a.pieces(), b.pieces(), k.div_ceil(INSTRUCTION));
    let mut c = vec![0.0; a.rows() * n];
    c.par_chunks_mut(n).zip(pa.par_chunks(wide)).enumerate().for_each(|(m, (c, pa))| {
        for (n, (c, pb)) in c.iter_mut().zip(pb.chunks(wide)).enumerate() {
            let groups = pa.chunks(group / INSTRUCTION).zip(pb.chunks(group / INSTRUCTION));
            let parts = groups.enumerate().map(|(g, (pa, pb))| {
                let scale = f64::from(a.scale(m, g * group)) * f64::from(b.scale(n, g * group));
                (scale, accumulator.sum(pa, pb))
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
    /// The inner sum of products of E4M3 numbers.
    fn sum(self, a: &[[f32; INSTRUCTION]], b: &[[f32; INSTRUCTION]]) -> f64 {
        match self {
            Self::Exact => exact(a.as_flattened(), b.as_flattened()),
            // A product has 8 significant bits, so that only additions round.
            Self::F32 => {
                let (a, b) = (a.as_flattened(), b.as_flattened());
                sum16(a.len(), |i| a[i] * b[i]).into()
            }
            Self::TensorCore { bits, cut } => {
                a.iter().zip(b).fold(0.0, |acc, (a, b)| instruction(acc, a, b, bits, cut)).into()
            }
        }
    }
}

/// Products are whole multiples of 2⁻¹⁸ below 2¹⁸, so that f64 adds [`MAX_K`] of them without loss, in any order.
fn exact(a: &[f32], b: &[f32]) -> f64 {
    let mut lanes = [0.0; 8];
    for (a, b) in a.chunks(8).zip(b.chunks(8)) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += f64::from(a * b);
        }
    }
    lanes.iter().sum()
}

/// The accumulator after one more instruction. Numbers of up to 24 bits are exact in f32, as are products, of 8.
fn instruction(acc: f32, a: &[f32; INSTRUCTION], b: &[f32; INSTRUCTION], bits: u32, cut: Cut) -> f32 {
    let products: [f32; INSTRUCTION] = std::array::from_fn(|i| a[i] * b[i]);
    // Magnitudes are ordered as their bits are.
    let magnitude = |x: f32| x.abs().to_bits() as i32;
    let largest = products.iter().fold(magnitude(acc), |max, p| max.max(magnitude(*p)));
    if largest == 0 {
        return 0.0;
    }
    // The last place kept is 2^last; in steps of it everything is a whole number, and the sum below 2²⁹.
    let last = (largest >> 23) - 127 - (bits as i32 - 1);
    let power = |exponent: i32| f32::from_bits(((127 + exponent) as u32) << 23);
    let steps = power(-last);
    let sum = products.iter().map(|p| cut.whole(p * steps)).sum::<i32>() + cut.whole(acc * steps);
    // It may have grown by up to 6 places.
    let longer = (u32::BITS - sum.unsigned_abs().leading_zeros()).saturating_sub(bits);
    cut.shift(sum, longer) as f32 * power(last + longer as i32)
}

impl Cut {
    /// The whole part of `x`, less than 2²³ in size. A cast says the same, but minds NaN and infinity and is no vector code.
    #[inline(always)]
    fn whole(self, x: f32) -> i32 {
        /// 2²³: beyond it f32 has whole numbers only, so that adding it rounds, and its bits count in ones.
        const WHOLE: f32 = 8_388_608.0;
        let near = x.abs() + WHOLE;
        let magnitude = near.to_bits() as i32 - WHOLE.to_bits() as i32 - i32::from(near - WHOLE > x.abs());
        let sign = x.to_bits() as i32 >> 31;
        let toward_zero = (magnitude ^ sign) - sign;
        match self {
            Self::Zero => toward_zero,
            Self::Down => toward_zero - i32::from(toward_zero as f32 > x),
        }
    }

    fn shift(self, x: i32, places: u32) -> i32 {
        match self {
            Self::Zero => x / (1 << places),
            Self::Down => x >> places,
        }
    }
}

#[cfg(test)]
mod tests;
