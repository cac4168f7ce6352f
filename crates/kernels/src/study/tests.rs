use super::*;
use crate::{Isa, Tensor, Tiles, quantize, random::philox4x32, reference_dot};

const BITS14: Accumulator = Accumulator::TensorCore { bits: 14, cut: Cut::Zero };

/// In -1..1.
fn values(len: usize, name: u32) -> Vec<f32> {
    (0..len).map(|i| philox4x32([i as u32, name, 0, 0], [3, 0])[0] as f32 / (1u64 << 31) as f32 - 1.0).collect()
}

/// The accumulator once more, in integers: everything in steps of 2⁻¹⁸.
fn by_integers(a: &[f32], b: &[f32], bits: u32, cut: Cut) -> f64 {
    let off = |x: i64, places: u32| match cut {
        Cut::Zero => x.signum() * (x.abs() >> places << places),
        Cut::Down => x >> places << places,
    };
    let beyond = |x: u64| (64 - x.leading_zeros()).saturating_sub(bits);
    let units = |x: &f32| (x * 512.0) as i64;
    let mut acc = 0_i64;
    for (a, b) in a.chunks(32).zip(b.chunks(32)) {
        let products: Vec<i64> = a.iter().zip(b).map(|(a, b)| units(a) * units(b)).collect();
        let largest = products.iter().fold(acc.unsigned_abs(), |max, p| max.max(p.unsigned_abs()));
        let sum = off(acc, beyond(largest)) + products.iter().map(|p| off(*p, beyond(largest))).sum::<i64>();
        acc = off(sum, beyond(sum.unsigned_abs()));
    }
    acc as f64 / 2.0f64.powi(18)
}

/// Numbers of E4M3 from all its binades, zeros and both signs among them.
fn codes(len: usize, name: u32) -> Vec<f32> {
    let code = |i: usize| philox4x32([i as u32, name, 0, 1], [3, 0])[0] as u8;
    (0..len).map(|i| from_e4m3(if code(i) & 0x7F == 0x7F { 0 } else { code(i) })).collect()
}

/// The inner sum of numbers that E4M3 has.
fn sum(accumulator: Accumulator, a: &[f32], b: &[f32]) -> f64 {
    let nearest = |x: &[f32]| x.iter().map(|x| from_e4m3(to_e4m3(*x))).collect::<Vec<_>>();
    assert_eq!((nearest(a), nearest(b)), (a.to_vec(), b.to_vec()));
    let piece = |x: &[f32]| std::array::from_fn(|i| x.get(i).copied().unwrap_or(0.0));
    let pieces = |x: &[f32]| x.chunks(INSTRUCTION).map(piece).collect::<Vec<_>>();
    accumulator.sum(&pieces(a), &pieces(b))
}

#[test]
fn places_below_those_kept_are_cut_as_by_hand() {
    // 14 bits under 2¹³: whole numbers. 8192 = 64 · 128.
    let with = |x: f32, cut| sum(Accumulator::TensorCore { bits: 14, cut }, &[64.0, 1.0], &[128.0, x]);
    for (x, zero, down) in [
        (1.0, 8193.0, 8193.0),
        (1.875, 8193.0, 8193.0),
        (0.9375, 8192.0, 8192.0),
        (0.0, 8192.0, 8192.0),
        (-0.5, 8192.0, 8191.0),
        (-1.5, 8191.0, 8190.0),
        (-0.001953125, 8192.0, 8191.0),
    ] {
        assert_eq!((with(x, Cut::Zero), with(x, Cut::Down)), (zero, down), "{x}");
    }
    // A bit more keeps halves.
    let more = Accumulator::TensorCore { bits: 15, cut: Cut::Zero };
    assert_eq!(sum(more, &[64.0, 1.0], &[128.0, 1.875]), 8193.5);
    // The sign of the largest does not matter.
    assert_eq!(sum(BITS14, &[64.0, 1.0], &[-128.0, -1.875]), -8193.0);
    assert_eq!(sum(BITS14, &[64.0, 1.0], &[-128.0, 1.875]), -8191.0);
}

#[test]
fn a_sum_that_grows_is_cut_once_more() {
    // 8192 + 8192 + 1 takes 15 bits.
    assert_eq!(sum(BITS14, &[64.0, 64.0, 1.0], &[128.0, 128.0, 1.0]), 16384.0);
    assert_eq!(sum(BITS14, &[64.0, 64.0, 2.0], &[128.0, 128.0, 1.0]), 16386.0);
    // Alignment is to the largest number, 2¹³, not to the sum: both ones are kept until they are added.
    assert_eq!(sum(BITS14, &[64.0, 64.0, 1.0, 1.0], &[128.0, 128.0, 1.0, 1.0]), 16386.0);
}

#[test]
fn what_cancels_takes_the_small_ones_along() {
    let (a, b) = ([64.0, 64.0, 0.5], [128.0, -128.0, 1.5]);
    assert_eq!(sum(BITS14, &a, &b), 0.0);
    assert_eq!(sum(Accumulator::Exact, &a, &b), 0.75);
    // Once they have cancelled, the next instruction aligns with nothing.
    let (a, b) =
        ([&[64.0, 64.0][..], &[0.0; 30], &[0.5]].concat(), [&[128.0, -128.0][..], &[0.0; 30], &[1.5]].concat());
    assert_eq!(sum(BITS14, &a, &b), 0.75);
}

#[test]
fn the_accumulator_is_aligned_with_the_products_of_the_next_instruction() {
    // 8192 in the first instruction, then 32 products of 0.5: each is cut to nothing, though together they are 16.
    let ones = [0.5; 32];
    let (a, b) = ([&[64.0][..], &[0.0; 31], &ones].concat(), [&[128.0][..], &[0.0; 31], &[1.0; 32]].concat());
    assert_eq!((sum(BITS14, &a, &b), sum(Accumulator::Exact, &a, &b)), (8192.0, 8208.0));
    // A promoted sum keeps them.
    assert_eq!(sum(BITS14, &a[..32], &b[..32]) + sum(BITS14, &a[32..], &b[32..]), 8208.0);
}

#[test]
fn the_ends_of_the_range_of_products_are_exact_alone() {
    for (a, b) in [(2.0f32.powi(-9), 2.0f32.powi(-9)), (448.0, 448.0), (-448.0, 448.0), (0.0, 448.0), (448.0, -0.0)] {
        for cut in [Cut::Zero, Cut::Down] {
            assert_eq!(sum(Accumulator::TensorCore { bits: 14, cut }, &[a], &[b]), f64::from(a) * f64::from(b));
        }
    }
    // 448² is 196 · 2¹⁰ and takes places from 2¹⁷ down: 23 bits keep 2⁻⁵.
    let of = |bits, x| sum(Accumulator::TensorCore { bits, cut: Cut::Zero }, &[448.0, x], &[448.0, 1.0]) - 200_704.0;
    assert_eq!([of(23, 0.03125), of(22, 0.03125), of(23, 0.029296875)], [0.03125, 0.0, 0.0]);
    assert_eq!(sum(BITS14, &[], &[]), 0.0);
}

#[test]
fn every_number_of_bits_and_length_is_that_of_integers() {
    for k in [1, 31, 32, 33, 100, 4096] {
        let numbers = [
            [0, 1].map(|name| codes(k, name)),
            [2, 3].map(|name| values(k, name).iter().map(|x| from_e4m3(to_e4m3(*x * 8.0))).collect()),
        ];
        for [a, b] in numbers {
            let up = |x: &[f32]| x.iter().map(|x| x.abs()).collect::<Vec<_>>();
            for (a, b) in [(a.clone(), b.clone()), (up(&a), up(&b))] {
                for (bits, cut) in (MIN_BITS..=MAX_BITS).flat_map(|bits| [(bits, Cut::Zero), (bits, Cut::Down)]) {
                    let got = sum(Accumulator::TensorCore { bits, cut }, &a, &b);
                    assert_eq!(got, by_integers(&a, &b, bits, cut), "{k}, {bits}, {cut:?}");
                }
                // No product is below 2⁻¹⁸, no sum above 2³⁰: 48 bits cut nothing.
                assert_eq!(by_integers(&a, &b, 48, Cut::Zero), sum(Accumulator::Exact, &a, &b));
            }
        }
    }
}

#[test]
fn enough_bits_are_exact() {
    // Whole numbers to 15: 4096 products stay below 2²⁰.
    let whole = |name| codes(4096, name).iter().map(|x| x.clamp(-15.0, 15.0).trunc()).collect::<Vec<_>>();
    let (a, b) = (whole(4), whole(5));
    for cut in [Cut::Zero, Cut::Down] {
        assert_eq!(sum(Accumulator::TensorCore { bits: 20, cut }, &a, &b), sum(Accumulator::Exact, &a, &b));
    }
}

#[test]
fn codes_are_those_of_the_crate() {
    let (rows, k) = (131, 300);
    let x = values(rows * k, 2);
    let tensor = Tensor::from_f32(x.clone(), k);
    for (tile, tiles) in [([1, 128], Tiles::Rows), ([128, 1], Tiles::Columns), ([128, 128], Tiles::Blocks)] {
        let want = quantize::numbers(
            Isa::by_name("portable").unwrap(),
            &tensor,
            tiles,
            &[0, rows],
            crate::formats::BLOCK_MAX_FLOOR,
            ScaleFormat::Ue8m0,
        );
        assert_eq!(Operand::quantize(&x, k, tile, ScaleFormat::Ue8m0).numbers(), want.to_vec_f32(), "{tiles:?}");
    }
}

#[test]
fn the_product_is_the_definition_with_both_scales_of_each_group() {
    // Scales of any size, so that each multiplication rounds; tiles end within the last group.
    let (m, n, k) = (3, 130, 300);
    let (x, y) = (values(m * k, 3), values(n * k, 4));
    let (a, b) =
        (Operand::quantize(&x, k, [1, 128], ScaleFormat::F32), Operand::quantize(&y, k, [128, 128], ScaleFormat::F32));
    for promote in [32, 64, 128] {
        let got = product(&a, &b, BITS14, Some(promote));
        for (i, got) in got.iter().enumerate() {
            let (row, column) = (i / n, i % n);
            let mut want = 0.0_f32;
            for from in (0..k).step_by(promote) {
                let at = from..(from + promote).min(k);
                let scale =
                    f64::from(a.scales[row * 3 + from / 128]) * f64::from(b.scales[column / 128 * 3 + from / 128]);
                let numbers = |x: &Operand, row: usize| {
                    x.codes[row * k..][at.clone()].iter().map(|code| from_e4m3(*code)).collect::<Vec<_>>()
                };
                want += scale as f32 * sum(BITS14, &numbers(&a, row), &numbers(&b, column)) as f32;
            }
            assert_eq!(*got, f64::from(want), "{promote}: {row}, {column}");
        }
    }
}

#[test]
fn the_exact_product_is_that_of_the_numbers_and_f32_is_near() {
    let k = 1000;
    let (x, y) = (values(4 * k, 5), values(4 * k, 6));
    let (a, b) = (
        Operand::quantize(&x, k, [1, 128], ScaleFormat::Ue8m0),
        Operand::quantize(&y, k, [128, 128], ScaleFormat::Ue8m0),
    );
    let exact = product(&a, &b, Accumulator::Exact, Some(128));
    let (f32, cut) = (product(&a, &b, Accumulator::F32, Some(128)), product(&a, &b, BITS14, Some(128)));
    for (i, exact) in exact.iter().enumerate() {
        let (na, nb) = (a.numbers(), b.numbers());
        let (na, nb) = (&na[i / 4 * k..][..k], &nb[i % 4 * k..][..k]);
        let terms: Vec<f64> = na.iter().zip(nb).map(|(a, b)| f64::from(*a) * f64::from(*b)).collect();
        assert_eq!(*exact, terms.iter().sum::<f64>());
        // k roundings of 2⁻²⁴ of what was added so far, at most.
        let bound = k as f64 * 2.0f64.powi(-24) * terms.iter().map(|t| t.abs()).sum::<f64>();
        assert!((f32[i] - exact).abs() <= bound && (f64::from(reference_dot(na, nb, 0.0)) - exact).abs() <= bound);
        // Of a group, 128 products, 4 accumulators and 4 sums are cut, each by less than 2⁻¹³ of what was added.
        let bound = bound + 136.0 * 2.0f64.powi(-13) * terms.iter().map(|t| t.abs()).sum::<f64>();
        assert!((cut[i] - exact).abs() <= bound);
    }
}

#[test]
#[should_panic(expected = "a sum of 1024 meets two scales")]
fn a_sum_over_two_scales_is_refused() {
    let a = Operand::quantize(&values(1000, 7), 1000, [1, 128], ScaleFormat::Ue8m0);
    product(&a, &a, BITS14, None);
}
