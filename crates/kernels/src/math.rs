//! Functions that must not differ between machines, and the sums and roundings whose order is part of the numbers.

use half::bf16;

/// `eˣ`, within 1.5 units in the last place; 0 below −87.33 (no subnormal results), +∞ above 88.72, NaN for NaN.
///
/// `x = n·ln 2 + r` with |r| ≤ ln 2 / 2, then a polynomial of degree 7 in `r`, then the exponent is set.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts: the first has 9 trailing zero bits, so that n times it is exact.
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³: adding it rounds to an integer
    let clamped = x.clamp(-88.0, 89.0);
    let shifted = clamped.mul_add(LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LO, n.mul_add(-LN2_HI, clamped));
    let p = 1.987_569_1e-4_f32;
    let p = p.mul_add(r, 1.398_199_9e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_5e-2);
    let p = p.mul_add(r, 1.666_666_5e-1);
    let p = p.mul_add(r, 0.5);
    let p = p.mul_add(r * r, r) + 1.0;
    // 2ⁿ in two factors, because 2¹²⁸ is not a number of the format.
    let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = n >> 1;
    let scale = |e: i32| f32::from_bits(((e + 127) << 23) as u32);
    let y = p * scale(half) * scale(n - half);
    if x < -87.33 { 0.0 } else { y }
}

/// `1 / (1 + e⁻ˣ)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Rounds to the nearest bf16, ties to even; NaN stays NaN; subnormal numbers become zero of the same sign, as the instructions that
/// multiply bf16 take them.
#[inline(always)]
pub fn to_bf16(x: f32) -> bf16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) >> 16;
    let flushed = if bits & 0x7F80_0000 == 0 { rounded & 0x8000 } else { rounded };
    let nan = (bits & 0x7FFF_FFFF) > 0x7F80_0000;
    bf16::from_bits(if nan { ((bits >> 16) | 0x0040) as u16 } else { flushed as u16 })
}

/// The f32 that equals a bf16.
#[inline(always)]
pub fn from_bf16(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}

/// The f32 nearest in bf16.
#[inline(always)]
pub fn round_bf16(x: f32) -> f32 {
    from_bf16(to_bf16(x))
}

/// Sum in the house order: element `i` goes to lane `i mod 16`, ascending; then lanes are added in a binary tree.
#[inline(always)]
pub fn sum16(len: usize, term: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0f32; 16];
    let whole = len / 16 * 16;
    for base in (0..whole).step_by(16) {
        for (i, lane) in lanes.iter_mut().enumerate() {
            *lane += term(base + i);
        }
    }
    for i in whole..len {
        lanes[i - whole] += term(i);
    }
    tree16(lanes)
}

#[inline(always)]
fn tree16(mut lanes: [f32; 16]) -> f32 {
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_stays_within_two_units_in_the_last_place_of_libm() {
        let mut worst = 0;
        for i in 0..2_000_000 {
            let x = -87.3 + i as f32 * (176.0 / 2_000_000.0);
            let (got, want) = (exp(x), libm::exp(f64::from(x)) as f32);
            worst = worst.max(got.to_bits().abs_diff(want.to_bits()));
        }
        assert!(worst <= 2, "{worst}");
    }

    #[test]
    fn exp_has_the_stated_values_at_the_edges() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-90.0), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(89.5), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn bf16_rounding_is_that_of_the_half_crate_but_for_subnormals() {
        for bits in (0..=u32::MAX).step_by(9973) {
            let x = f32::from_bits(bits);
            let want = bf16::from_f32(x);
            let got = to_bf16(x);
            if x.is_nan() {
                assert!(got.is_nan());
            } else if x.is_normal() || x.is_infinite() {
                assert_eq!(got.to_bits(), want.to_bits(), "{x:e}");
            } else {
                assert_eq!(from_bf16(got), 0.0, "{x:e}");
            }
        }
    }

    #[test]
    fn sum16_adds_every_term_once() {
        for len in [0, 1, 15, 16, 17, 100] {
            assert_eq!(sum16(len, |i| (i + 1) as f32), (len * (len + 1) / 2) as f32);
        }
    }
}
