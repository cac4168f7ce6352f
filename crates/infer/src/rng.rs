//! Counter-based random numbers: a number is a function of what it is for, not of how many were drawn before it.

use jevons_kernels::random::philox4x32;

/// A number in [0, 1), a multiple of 2⁻⁵³, named by (`seed`, `choice`, `position`).
pub(crate) fn uniform(seed: u64, choice: u64, position: u64) -> f64 {
    let [a, b, ..] = philox4x32([low(position), high(position), low(choice), high(choice)], [low(seed), high(seed)]);
    let bits = u64::from(a) << 32 | u64::from(b);
    (bits >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

fn low(x: u64) -> u32 {
    x as u32
}

fn high(x: u64) -> u32 {
    (x >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uniform_number_is_the_first_53_bits_of_its_block() {
        assert_eq!(uniform(0, 0, 0), (0x6627_e8d5_e169_c58d_u64 >> 11) as f64 / 2f64.powi(53));
        assert_eq!(uniform(!0, !0, !0), (0x408f_276d_41c8_3b0e_u64 >> 11) as f64 / 2f64.powi(53));
    }

    #[test]
    fn seed_choice_and_position_each_name_another_number() {
        let base = uniform(7, 1, 2);
        for other in
            [uniform(8, 1, 2), uniform(7, 2, 1), uniform(7, 1, 3), uniform(7 << 32, 1, 2), uniform(7, 1, 2 << 32)]
        {
            assert_ne!(base, other);
        }
    }
}
