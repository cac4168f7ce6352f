//! Small number formats, number by number: E4M3 for values, E5M6 for what attention keeps, E8M0 for power-of-two scales. These are the
//! definitions; a faster path must return the same bits.
//!
//! Sources: OCP 8-bit Floating Point Specification 1.0 (E4M3: sign, 4 bits of exponent with bias 7, 3 of mantissa; no
//! infinities; 0x7F and 0xFF are NaN; subnormals are multiples of 2⁻⁹); OCP Microscaling Formats 1.0 (E8M0: 2^(code − 127),
//! 0xFF is NaN); DeepSeek-V3, arXiv:2412.19437, section 3.3.3 (E5M6: IEEE binary16 without its last four bits). A block of numbers shares one f32 scale; a number is `code · scale`.

/// Largest number of E4M3.
pub const E4M3_MAX: f32 = 448.0;

/// Largest magnitude that a block of weights or activations is taken to have at least, so that a block of zeros has a scale above 0.
///
/// As in the kernels published with DeepSeek-V3.
pub const BLOCK_MAX_FLOOR: f32 = 1e-4;

/// The same of gradients. Those of a loss that is a mean over a batch are 1e-6 and below, so [`BLOCK_MAX_FLOOR`] would round most of them
/// away. Here numbers under the smallest scale, 2⁻¹⁰⁸, are still normal numbers of bf16.
pub const GRADIENT_MAX_FLOOR: f32 = 1e-30;

const TABLE: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        table[code] = expand_e4m3(code as u8);
        code += 1;
    }
    table
};

const fn expand_e4m3(code: u8) -> f32 {
    let (sign, exponent, mantissa) = ((code as u32 & 0x80) << 24, (code as u32 >> 3) & 15, code as u32 & 7);
    if code & 0x7F == 0x7F {
        return f32::from_bits(sign | 0x7FC0_0000);
    }
    let magnitude = if exponent == 0 {
        mantissa as f32 / 512.0
    } else {
        f32::from_bits((exponent + 127 - 7) << 23 | mantissa << 20)
    };
    f32::from_bits(sign | magnitude.to_bits())
}

/// The number of an E4M3 code; NaN for 0x7F and 0xFF.
#[inline(always)]
pub fn from_e4m3(code: u8) -> f32 {
    TABLE[code as usize]
}

/// Whether an E4M3 code is no number.
#[inline(always)]
pub fn is_nan_e4m3(code: u8) -> bool {
    code & 0x7F == 0x7F
}

/// The nearest E4M3 code, ties to the even one; ±448 for what lies beyond, infinities included; NaN stays NaN.
///
/// ```
/// # use jevons_kernels::formats::{from_e4m3, to_e4m3};
/// assert_eq!([1.06, 1.07, 1e9].map(|x| from_e4m3(to_e4m3(x))), [1.0, 1.125, 448.0]);
/// ```
#[inline(always)]
pub fn to_e4m3(x: f32) -> u8 {
    /// The smallest normal number, 2⁻⁶.
    const NORMAL: u32 = (127 - 6) << 23;
    let sign = (x.to_bits() >> 24) as u8 & 0x80;
    if x.is_nan() {
        return sign | 0x7F;
    }
    let bits = x.abs().min(E4M3_MAX).to_bits();
    let code = if bits < NORMAL {
        // The last place of 2¹⁴ is 2⁻⁹, the step of subnormals: this addition rounds to it.
        (f32::from_bits(bits) + 16_384.0).to_bits() - 16_384.0_f32.to_bits()
    } else {
        let rounded = bits + 0x7_FFFF + (bits >> 20 & 1); // Half of the last place kept, less one if that is even.
        (rounded - NORMAL + (1 << 23)) >> 20
    };
    sign | code as u8
}

/// Largest number of E5M6.
pub const E5M6_MAX: f32 = 65_024.0;

/// The nearest E5M6 code of 12 bits, ties to the even one; ±65024 for what lies beyond, infinities included; NaN stays NaN.
///
/// ```
/// # use jevons_kernels::formats::{from_e5m6, to_e5m6};
/// assert_eq!([1.01, 1e9].map(|x| from_e5m6(to_e5m6(x))), [1.015625, 65024.0]);
/// ```
#[inline(always)]
pub fn to_e5m6(x: f32) -> u16 {
    /// The smallest normal number, 2⁻¹⁴.
    const NORMAL: u32 = (127 - 14) << 23;
    let sign = (x.to_bits() >> 20) as u16 & 0x800;
    let bits = x.abs().min(E5M6_MAX).to_bits();
    // The last place of 8 is 2⁻²⁰, the step of subnormals: this addition rounds to it.
    let small = (f32::from_bits(bits) + 8.0).to_bits().wrapping_sub(8.0_f32.to_bits());
    let rounded = bits + 0xFFFF + (bits >> 17 & 1); // Half of the last place kept, less one if that is even.
    let normal = rounded.wrapping_sub(NORMAL - (1 << 23)) >> 17;
    let code = if bits < NORMAL { small } else { normal };
    sign | if x.is_nan() { 0x7E0 } else { code as u16 }
}

/// The number of an E5M6 code of 12 bits.
#[inline(always)]
pub fn from_e5m6(code: u16) -> f32 {
    let magnitude = u32::from(code & 0x7FF);
    let normal = f32::from_bits((magnitude << 17) + ((127 - 15) << 23));
    let near = if magnitude < 64 { magnitude as f32 * (1.0 / (1 << 20) as f32) } else { normal };
    let near = match magnitude {
        0x7C0 => f32::INFINITY,
        0x7C1.. => f32::NAN,
        _ => near,
    };
    f32::from_bits(near.to_bits() | u32::from(code & 0x800) << 20)
}

/// The number of an E8M0 code, 2^(code − 127); NaN for 0xFF.
#[inline(always)]
pub fn from_e8m0(code: u8) -> f32 {
    match code {
        0xFF => f32::NAN,
        0 => f32::from_bits(1 << 22), // 2⁻¹²⁷ is subnormal.
        _ => f32::from_bits(u32::from(code) << 23),
    }
}

/// How the scale of a block is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScaleFormat {
    /// Any f32: the block's largest magnitude becomes exactly 448.
    F32,
    /// A power of two (`ue8m0`), rounded up so that nothing overflows: dequantising rounds nothing.
    Ue8m0,
}

/// The scale of a block whose largest magnitude is `max`: `max / 448`, rounded up to a power of two if `format` says so.
/// `max` below [`BLOCK_MAX_FLOOR`] counts as that.
#[inline(always)]
pub fn block_scale(max: f32, format: ScaleFormat) -> f32 {
    block_scale_to(max, E4M3_MAX, BLOCK_MAX_FLOOR, format)
}

/// [`block_scale`] for numbers up to `top` instead of 448, where `max` below `floor` counts as that.
#[inline(always)]
pub fn block_scale_to(max: f32, top: f32, floor: f32, format: ScaleFormat) -> f32 {
    let scale = max.max(floor) / top;
    match format {
        ScaleFormat::F32 => scale,
        // The scale is a normal number: any mantissa carries into the exponent.
        ScaleFormat::Ue8m0 => f32::from_bits((scale.to_bits() + 0x7F_FFFF) & !0x7F_FFFF),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `# section` lines, then one `hexadecimal code` and one `hexadecimal f32` per line.
    const GOLDEN: &str = include_str!("../../../tests/golden/formats/formats.txt");

    fn golden(section: &str) -> Vec<(u32, u32)> {
        let hex = |text: &str| u32::from_str_radix(text, 16).unwrap();
        let rows = GOLDEN.lines().skip_while(|line| *line != format!("# {section}")).skip(1);
        let rows: Vec<_> = rows
            .take_while(|line| !line.starts_with('#'))
            .map(|line| line.split_once(' ').unwrap())
            .map(|(a, b)| (hex(a), hex(b)))
            .collect();
        assert!(rows.len() >= 256, "{section}: {}", rows.len());
        rows
    }

    fn same(a: f32, b: f32) -> bool {
        a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
    }

    #[test]
    fn every_e4m3_code_is_the_number_that_ml_dtypes_says() {
        for (code, bits) in golden("e4m3 codes") {
            assert!(same(from_e4m3(code as u8), f32::from_bits(bits)), "{code:02x}");
            assert_eq!(is_nan_e4m3(code as u8), f32::from_bits(bits).is_nan(), "{code:02x}");
        }
    }

    #[test]
    fn every_e8m0_code_is_the_number_that_ml_dtypes_says() {
        for (code, bits) in golden("e8m0 codes") {
            assert!(same(from_e8m0(code as u8), f32::from_bits(bits)), "{code:02x}");
        }
    }

    #[test]
    fn numbers_at_and_beside_every_tie_become_the_code_that_ml_dtypes_says() {
        for (bits, code) in golden("e4m3 of f32") {
            let x = f32::from_bits(bits);
            assert_eq!(u32::from(to_e4m3(x)), code, "{x:e}");
        }
    }

    #[test]
    fn e5m6_is_the_upper_part_of_float16() {
        for (code, bits) in golden("e5m6 codes") {
            assert_eq!(from_e5m6(code as u16).to_bits(), bits, "{code:03x}");
            assert_eq!(from_e5m6(code as u16 | 0x800).to_bits(), bits | 1 << 31, "{code:03x}");
            assert_eq!(u32::from(to_e5m6(f32::from_bits(bits))), code);
        }
        for (bits, code) in golden("e5m6 of f32") {
            let x = f32::from_bits(bits);
            assert_eq!(u32::from(to_e5m6(x)), code, "{x:e}");
            assert_eq!(u32::from(to_e5m6(-x)), code | 0x800, "{x:e}");
        }
        let codes = (0..=f32::INFINITY.to_bits()).step_by(101).map(|bits| to_e5m6(f32::from_bits(bits)));
        assert!(codes.is_sorted());
        assert!(from_e5m6(to_e5m6(f32::NAN)).is_nan());
        assert_eq!([f32::INFINITY, f32::NEG_INFINITY].map(|x| from_e5m6(to_e5m6(x))), [E5M6_MAX, -E5M6_MAX]);
    }

    #[test]
    fn rounding_is_monotone_over_every_positive_number() {
        // With the ties above right and the ends right, monotone means right everywhere. Every 101st number, from all binades.
        let codes = (0..=f32::INFINITY.to_bits()).step_by(101).map(|bits| to_e4m3(f32::from_bits(bits)));
        assert!(codes.is_sorted());
        for bits in (0..=u32::MAX).step_by(10_007).filter(|bits| !f32::from_bits(*bits).is_nan()) {
            assert_eq!(to_e4m3(f32::from_bits(bits ^ 1 << 31)), to_e4m3(f32::from_bits(bits)) ^ 0x80);
        }
    }

    #[test]
    fn a_code_that_is_a_number_comes_back() {
        for code in (0..=255).filter(|code| !is_nan_e4m3(*code)) {
            assert_eq!(to_e4m3(from_e4m3(code)), code);
        }
        assert_eq!([f32::NAN, -f32::NAN].map(|x| to_e4m3(x) & 0x7F), [0x7F; 2]);
        assert_eq!([f32::INFINITY, f32::NEG_INFINITY, 1e30].map(to_e4m3), [0x7E, 0xFE, 0x7E]);
    }

    #[test]
    fn scales_are_those_of_numpy() {
        for (max, scale) in golden("power-of-two scales") {
            let (max, scale) = (f32::from_bits(max), f32::from_bits(scale));
            assert!(same(block_scale(max, ScaleFormat::Ue8m0), scale), "{max:e}");
            assert!(max / scale <= E4M3_MAX, "{max:e} overflows");
        }
        for max in [0.0, 1e-30, 9e-5, 1e-4] {
            assert_eq!(block_scale(max, ScaleFormat::F32), 1e-4 / 448.0);
        }
        assert_eq!(block_scale(896.0, ScaleFormat::F32), 2.0);
    }
}
