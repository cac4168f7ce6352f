//! Counter-based random numbers: a number is a function of what it is for, not of how many were drawn before it.

/// Philox 4×32 with 10 rounds: four random words for each (`counter`, `key`).
///
/// Any two counters, or keys, that differ in one bit give unrelated words, so a caller may use them as names: the sampler's
/// key is the seed, its counter the choice and the position.
/// Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3.
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let ([mut c0, mut c1, mut c2, mut c3], [mut k0, mut k1]) = (counter, key);
    for _ in 0..10 {
        let a = u64::from(c0) * 0xD251_1F53;
        let b = u64::from(c2) * 0xCD9E_8D57;
        (c0, c1, c2, c3) = ((b >> 32) as u32 ^ c1 ^ k0, b as u32, (a >> 32) as u32 ^ c3 ^ k1, a as u32);
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    [c0, c1, c2, c3]
}

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
    fn philox_has_the_known_answers_of_its_authors() {
        // Random123, kat_vectors, philox4x32 10.
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32([!0; 4], [!0; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox4x32([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

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
