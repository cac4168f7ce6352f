//! Every path against the definition, bit by bit, on shapes that no blocking divides.

use proptest::prelude::*;

use crate::{
    AdamW, AttentionSaved, Dtype, HeadShape, Isa, KvBlocks, Matrix, Moments, Ops, Sequence, Tensor,
    formats::{
        BLOCK_MAX_FLOOR, GRADIENT_MAX_FLOOR, ScaleFormat, block_scale, block_scale_to, from_e4m3, from_e5m6,
        is_nan_e4m3, to_e4m3, to_e5m6,
    },
    math::{exp, round_bf16, sum16},
    quantize::Tiles,
    reference_dot,
};

/// Deterministic values in (−1, 1).
fn values(seed: u64, n: usize) -> Vec<f32> {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..n)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

fn tensor(dtype: Dtype, seed: u64, rows: usize, cols: usize) -> Tensor {
    let t = Tensor { storage: crate::Storage::F32(values(seed, rows * cols)), rows, cols };
    t.to_dtype(dtype)
}

fn every_isa() -> Vec<Isa> {
    let mut all = Isa::available();
    all.extend(emulated_amx());
    all
}

/// AMX where the CPU has AVX-512 but not AMX: its six instructions are then emulated.
fn emulated_amx() -> Option<Isa> {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if Isa::by_name("avx512").is_ok() && Isa::by_name("amx").is_err() {
        crate::gemm::amx::emulate::install();
        return Some(Isa(crate::isa::Level::Amx));
    }
    None
}

fn every_ops() -> Vec<Ops> {
    every_isa().into_iter().map(Ops::with_isa).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

fn dtype() -> impl Strategy<Value = Dtype> {
    prop_oneof![Just(Dtype::F32), Just(Dtype::Bf16)]
}

#[test]
fn every_instruction_set_of_this_cpu_is_tested() {
    let names: Vec<_> = every_isa().iter().map(|isa| isa.name()).collect();
    let amx = if emulated_amx().is_some() { " (amx emulated)" } else { "" };
    println!("instruction sets under test: {}{amx}", names.join(", "));
    assert_eq!(names[0], "portable");
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        assert!(names.contains(&"avx512"), "{names:?}");
        assert!(names.contains(&"avx512bf16") || !is_x86_feature_detected!("avx512bf16"), "{names:?}");
        assert!(names.contains(&"amx") || cfg!(not(target_os = "linux")), "{names:?}");
    }
}

#[test]
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn products_of_bf16_go_through_tiles_where_there_is_amx() {
    let Some(isa) = emulated_amx() else { return println!("skipped: AMX is real here, or AVX-512 is missing") };
    let products = &crate::gemm::amx::emulate::PRODUCTS;
    let before = products.load(std::sync::atomic::Ordering::Relaxed);
    let (x, w) = (tensor(Dtype::Bf16, 1, 32, 64), Matrix::from_f32(Dtype::Bf16, &values(2, 32 * 64), 32, 64));
    Ops::with_isa(isa).matmul(&x, &w, None, Dtype::F32);
    assert!(products.load(std::sync::atomic::Ordering::Relaxed) >= before + 8); // other tests may add theirs
    let before = products.load(std::sync::atomic::Ordering::Relaxed);
    // SAFETY: the instructions are emulated.
    unsafe { crate::measure::peak::tile_products(25) };
    assert!(products.load(std::sync::atomic::Ordering::Relaxed) >= before + 100, "the rate's loop ends early");
}

#[test]
fn left_operands_are_rounded_alike_on_every_path() {
    // Beside every tie, at the ends of the normal numbers, and below them.
    let numbers =
        (0..=u32::MAX).step_by(65_537 * 7).flat_map(|bits| [bits, bits | 0x7FFF, bits | 0x8000, (bits | 0x8000) + 1]);
    let mut x: Vec<f32> = numbers.map(f32::from_bits).filter(|x| x.is_finite()).collect();
    x.extend([0x007F_7FFF, 0x007F_8000, 0x007F_FFFF, 0x0080_0000, 0x7F7F_7FFF, 0x7F7F_8000].map(f32::from_bits));
    x.resize(x.len().next_multiple_of(64), 0.0);
    let (one, t) = (Matrix::from_f32(Dtype::Bf16, &[1.0], 1, 1), x.len());
    let x = Tensor::from_f32(x, 1);
    for ops in every_ops() {
        let y = ops.matmul(&x, &one, None, Dtype::F32);
        let mut dw = vec![0.0; t];
        let row = Tensor::from_f32(x.f32().to_vec(), t);
        ops.matmul_weight_grad(&row, &Tensor::from_f32(vec![1.0], 1).to_dtype(Dtype::Bf16), &mut dw);
        for ((x, y), dw) in x.f32().iter().zip(y.f32()).zip(&dw) {
            let want = round_bf16(*x) + 0.0;
            assert_eq!((y.to_bits(), dw.to_bits()), (want.to_bits(), want.to_bits()), "{x:e} {}", ops.isa().name());
        }
    }
}

#[test]
fn partial_sums_at_the_least_normal_number_are_equal_and_below_it_those_of_bf16_instructions_are_zero() {
    let power = |exponent: i32| f32::from_bits(((127 + exponent) as u32) << 23);
    for (exponent, normal) in [(-63, true), (-64, false)] {
        let x = Tensor::from_f32(vec![power(exponent); 16], 1).to_dtype(Dtype::Bf16);
        let w = Matrix::from_f32(Dtype::Bf16, &[power(exponent); 16], 16, 1);
        for ops in every_ops() {
            let flushes = ops.isa().bf16_instruction().is_some() && !normal;
            let want = if flushes { 0.0 } else { power(exponent) * power(exponent) };
            let y = ops.matmul(&x, &w, None, Dtype::F32);
            assert!(y.f32().iter().all(|y| y.to_bits() == want.to_bits()), "{}: {:e}", ops.isa().name(), y.get(0, 0));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn the_three_products_have_the_bits_of_the_definition(
        dtype in dtype(), t in 0usize..70, n in 1usize..75, k in 1usize..300, seed in 0u64..1000,
    ) {
        let (x, w) = (tensor(dtype, seed, t, k), values(seed + 1, n * k));
        let m = Matrix::from_f32(dtype, &w, n, k);
        let w = m.to_vec_f32();
        let xs = x.to_vec_f32();
        let dy = tensor(Dtype::F32, seed + 2, t, n);
        let dys = dy.to_dtype(dtype).to_vec_f32();
        let bias = values(seed + 3, n);
        let start = values(seed + 4, n * k);
        for ops in every_ops() {
            let name = ops.isa().name();
            let y = ops.matmul(&x, &m, Some(&bias), Dtype::F32);
            let rounded = ops.matmul(&x, &m, Some(&bias), Dtype::Bf16).to_vec_f32();
            let dx = ops.matmul_input_grad(&dy, &m);
            let mut twice = dx.clone();
            ops.add_matmul_input_grad(&dy, &m, &mut twice);
            let mut dw = start.clone();
            ops.matmul_weight_grad(&dy, &x, &mut dw);
            for i in 0..t {
                for j in 0..n {
                    let want = reference_dot(&xs[i * k..][..k], &w[j * k..][..k], 0.0) + bias[j];
                    prop_assert_eq!(y.get(i, j).to_bits(), want.to_bits(), "{} y[{}, {}]", name, i, j);
                    prop_assert_eq!(rounded[i * n + j].to_bits(), round_bf16(want).to_bits());
                }
                for j in 0..k {
                    let column: Vec<f32> = (0..n).map(|n| w[n * k + j]).collect();
                    let want = reference_dot(&dys[i * n..][..n], &column, 0.0);
                    prop_assert_eq!(dx.get(i, j).to_bits(), want.to_bits(), "{} dx[{}, {}]", name, i, j);
                    let want = reference_dot(&dys[i * n..][..n], &column, want);
                    prop_assert_eq!(twice.get(i, j).to_bits(), want.to_bits(), "{} dx[{}, {}] twice", name, i, j);
                }
            }
            for i in 0..n {
                let left: Vec<f32> = (0..t).map(|t| dys[t * n + i]).collect();
                for j in (0..k).step_by(7) {
                    let right: Vec<f32> = (0..t).map(|t| xs[t * k + j]).collect();
                    let want = reference_dot(&left, &right, start[i * k + j]);
                    prop_assert_eq!(dw[i * k + j].to_bits(), want.to_bits(), "{} dw[{}, {}]", name, i, j);
                }
            }
        }
    }

    #[test]
    fn a_grouped_product_is_the_products_of_its_groups(
        dtype in dtype(), sizes in prop::collection::vec(0usize..40, 1..6), n in 1usize..40, k in 1usize..70, seed in 0u64..1000,
    ) {
        let mut offsets = vec![0];
        sizes.iter().for_each(|s| offsets.push(offsets.last().unwrap() + s));
        let t = *offsets.last().unwrap();
        let x = tensor(dtype, seed, t, k);
        let dy = tensor(Dtype::F32, seed + 1, t, n);
        let w: Vec<_> =
            (0..sizes.len()).map(|e| Matrix::from_f32(dtype, &values(seed + 2 + e as u64, n * k), n, k)).collect();
        let w: Vec<&Matrix> = w.iter().collect();
        for ops in every_ops() {
            let y = ops.grouped_matmul(&x, &offsets, &w);
            let dx = ops.grouped_matmul_input_grad(&dy, &offsets, &w);
            let mut twice = dx.clone();
            ops.add_grouped_matmul_input_grad(&dy, &offsets, &w, &mut twice);
            let mut dw = vec![vec![0.0; n * k]; sizes.len()];
            ops.grouped_matmul_weight_grad(&dy, &x, &offsets, dw.iter_mut().map(|d| Some(d.as_mut_slice())).collect());
            for e in 0..sizes.len() {
                let rows: Vec<u32> = (offsets[e] as u32..offsets[e + 1] as u32).collect();
                let (xe, dye) = (ops.gather(&x, &rows), ops.gather(&dy, &rows));
                prop_assert_eq!(ops.gather(&y, &rows), ops.matmul(&xe, w[e], None, dtype));
                let mut dxe = ops.matmul_input_grad(&dye, w[e]);
                prop_assert_eq!(&ops.gather(&dx, &rows), &dxe);
                ops.add_matmul_input_grad(&dye, w[e], &mut dxe);
                prop_assert_eq!(ops.gather(&twice, &rows), dxe);
                let mut dwe = vec![0.0; n * k];
                ops.matmul_weight_grad(&dye, &xe, &mut dwe);
                prop_assert_eq!(bits(&dw[e]), bits(&dwe));
            }
        }
    }

    #[test]
    fn a_matrix_of_codes_is_the_matrix_of_the_numbers_they_stand_for(
        t in 0usize..70, n in 1usize..200, k in 1usize..400, powers in any::<bool>(), seed in 0u64..1000,
    ) {
        let codes: Vec<u8> = values(seed, n * k).iter().map(|x| (x.to_bits() >> 7) as u8).map(|c| if is_nan_e4m3(c) { 0 } else { c }).collect();
        let wide = k.div_ceil(128);
        let scales: Vec<f32> = values(seed + 1, n.div_ceil(128) * wide)
            .iter()
            .map(|x| if powers { f32::from_bits((118 + (x.abs() * 8.0) as u32) << 23) } else { 0.01 + x.abs() })
            .collect();
        let number = |i: usize| round_bf16(from_e4m3(codes[i]) * scales[i / k / 128 * wide + i % k / 128]);
        let numbers: Vec<f32> = (0..n * k).map(number).collect();
        let (mut held, meant) = (Matrix::zeros_fp8(scales.clone(), n, k), Matrix::from_f32(Dtype::Bf16, &numbers, n, k));
        let first = (n / 3).min(40);
        held.set_codes(first, &codes[first * k..]);
        held.set_codes(0, &codes[..first * k]);
        prop_assert_eq!(held.to_vec_f32(), numbers);
        prop_assert_eq!(held.bytes(), n.next_multiple_of(16) * k.next_multiple_of(32) + 4 * scales.len());
        let (x, dy) = (tensor(Dtype::Bf16, seed + 2, t, k), tensor(Dtype::F32, seed + 3, t, n));
        let bias = values(seed + 4, n);
        for ops in every_ops() {
            let name = ops.isa().name();
            prop_assert_eq!(ops.matmul(&x, &held, Some(&bias), Dtype::Bf16), ops.matmul(&x, &meant, Some(&bias), Dtype::Bf16), "{}", name);
            prop_assert_eq!(ops.matmul(&x, &held, None, Dtype::F32), ops.matmul(&x, &meant, None, Dtype::F32), "{}", name);
            prop_assert_eq!(ops.matmul_input_grad(&dy, &held), ops.matmul_input_grad(&dy, &meant), "{}", name);
        }
    }

    #[test]
    fn codes_are_the_nearest_under_the_scales_of_their_blocks(
        n in 1usize..300, k in 1usize..300, powers in any::<bool>(), seed in 0u64..1000,
    ) {
        let format = if powers { ScaleFormat::Ue8m0 } else { ScaleFormat::F32 };
        // Blocks of zeros and of tiny numbers too.
        let size = |i: usize| [1.0, 0.0, 1e-6, 1e3][(i / k / 128 + i % k / 128) % 4];
        let x: Vec<f32> = values(seed, n * k).iter().enumerate().map(|(i, x)| x * size(i)).collect();
        let mut meant = vec![0.0; n * k];
        for (r, c) in (0..n).step_by(128).flat_map(|r| (0..k).step_by(128).map(move |c| (r, c))) {
            let block: Vec<usize> =
                (r..n.min(r + 128)).flat_map(|r| (c..k.min(c + 128)).map(move |c| r * k + c)).collect();
            let scale = block_scale(block.iter().fold(0.0, |max: f32, i| max.max(x[*i].abs())), format);
            block.iter().for_each(|i| meant[*i] = round_bf16(from_e4m3(to_e4m3(x[*i] / scale)) * scale));
        }
        let whole = Matrix::quantized(format, &x, n, k);
        prop_assert_eq!(bits(&whole.to_vec_f32()), bits(&meant));
        let mut pieces = Matrix::quantized(format, &vec![1.0; n * k], n, k);
        for first in (0..n).step_by(128) {
            pieces.quantize_rows(first, &x[first * k..n.min(first + 128) * k], format);
        }
        prop_assert_eq!(bits(&pieces.to_vec_f32()), bits(&meant));
    }

    #[test]
    fn quantised_activations_are_those_of_the_definition_on_every_path(
        t in 1usize..200, d in 1usize..300, dtype in dtype(), cut in 0usize..200, powers in any::<bool>(),
        gradient in any::<bool>(), seed in 0u64..1000,
    ) {
        let floor = if gradient { GRADIENT_MAX_FLOOR } else { BLOCK_MAX_FLOOR };
        let format = if powers { ScaleFormat::Ue8m0 } else { ScaleFormat::F32 };
        let mut x = tensor(Dtype::F32, seed, t, d).to_vec_f32();
        // Tiles of zeros, of tiny and of large numbers.
        x.iter_mut().enumerate().for_each(|(i, x)| *x *= [1.0, 0.0, 1e-7, 1e4][(i / d / 50 + i % d / 128) % 4]);
        let x = Tensor::from_f32(x, d).to_dtype(dtype);
        let values = x.to_vec_f32();
        let offsets = [0, cut.min(t), t];
        let group = |row: usize| if row < offsets[1] { 0 } else { 1 };
        for tiles in [Tiles::Rows, Tiles::Columns, Tiles::Blocks] {
            // Which tile an element belongs to.
            let tile = |row: usize, col: usize| {
                let down = (group(row), (row - offsets[group(row)]) / 128);
                match tiles {
                    Tiles::Rows => ((0, row), col / 128),
                    Tiles::Columns => (down, col),
                    Tiles::Blocks => (down, col / 128),
                }
            };
            let mut largest = std::collections::HashMap::new();
            for (i, x) in values.iter().enumerate() {
                let max = largest.entry(tile(i / d, i % d)).or_insert(0.0_f32);
                *max = max.max(x.abs());
            }
            let meant: Vec<f32> = values.iter().enumerate().map(|(i, x)| {
                let scale = block_scale_to(largest[&tile(i / d, i % d)], 448.0, floor, format);
                round_bf16(from_e4m3(to_e4m3(x / scale)) * scale)
            }).collect();
            for ops in every_ops() {
                let numbers = ops.fp8_numbers(&x, tiles, &offsets, floor, format);
                prop_assert_eq!(bits(&numbers.to_vec_f32()), bits(&meant), "{:?} {}", tiles, ops.isa().name());
                if tiles == Tiles::Rows && floor == BLOCK_MAX_FLOOR {
                    let kept = ops.fp8_keep(&x, format);
                    prop_assert_eq!(kept.bytes(), t * d + 4 * t * d.div_ceil(128));
                    prop_assert_eq!(ops.fp8_expand(&kept), numbers);
                }
            }
        }
    }

    #[test]
    fn what_is_kept_in_twelve_bits_is_the_nearest_number_on_every_path(
        t in 1usize..40, d in 1usize..300, dtype in dtype(), seed in 0u64..1000,
    ) {
        let mut x = tensor(Dtype::F32, seed, t, d).to_vec_f32();
        x.iter_mut().enumerate().for_each(|(i, x)| *x *= [1.0, 0.0, 1e-6, 1e4][(i / d + i % d / 128) % 4]);
        let x = Tensor::from_f32(x, d).to_dtype(dtype);
        let meant: Vec<f32> = x.to_vec_f32().chunks(d).flat_map(|row| row.chunks(128)).flat_map(|tile| {
            let largest = tile.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
            let scale = block_scale_to(largest, 65_024.0, BLOCK_MAX_FLOOR, ScaleFormat::Ue8m0);
            tile.iter().map(|x| round_bf16(from_e5m6(to_e5m6(x / scale)) * scale)).collect::<Vec<_>>()
        }).collect();
        for ops in every_ops() {
            let kept = ops.e5m6_keep(&x);
            prop_assert_eq!(bits(&ops.fp8_expand(&kept).to_vec_f32()), bits(&meant), "{}", ops.isa().name());
            prop_assert_eq!(kept.bytes(), t * (d * 3).div_ceil(2) + 4 * t * d.div_ceil(128));
        }
    }

    #[test]
    fn a_matrix_stepped_panel_by_panel_is_the_step_packed_after(
        dtype in dtype(), moments in dtype(), n in 1usize..50, k in 1usize..70, seed in 0u64..1000,
    ) {
        let s = AdamW {
            lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, correction1: 0.1, correction2: 0.05, grad_scale: 0.7,
        };
        let (start, g) = (values(seed, n * k), values(seed + 1, n * k));
        for ops in every_ops() {
            let (mut p, mut q) = (start.clone(), start.clone());
            let [mut m, mut v, mut m2, mut v2] = std::array::from_fn(|_| Moments::zeros(moments, n * k));
            let mut w = Matrix::from_f32(dtype, &start, n, k);
            for _ in 0..2 {
                ops.adamw_matrix(s, &mut p, &g, &mut m, &mut v, &mut w);
                ops.adamw(s, &mut q, &g, &mut m2, &mut v2);
            }
            prop_assert!(p != start && bits(&p) == bits(&q) && m == m2 && v == v2);
            if dtype == Dtype::Bf16 {
                let mut codes = Matrix::zeros_fp8(vec![1.0; n.div_ceil(128) * k.div_ceil(128)], n, k);
                let (mut p, mut m, mut v) = (q.clone(), m.clone(), v.clone());
                ops.adamw_matrix(AdamW { lr: 0.0, ..s }, &mut p, &g, &mut m, &mut v, &mut codes);
                prop_assert!(!codes.is_fp8());
                prop_assert_eq!(codes.to_vec_f32(), w.to_vec_f32());
            }
            prop_assert_eq!(bits(&w.to_vec_f32()), bits(&Matrix::from_f32(dtype, &q, n, k).to_vec_f32()));
            // What is beyond the last row and column is still zero: products read it.
            let x = Tensor::from_f32(vec![1.0; k], k).to_dtype(dtype);
            prop_assert_eq!(ops.matmul(&x, &w, None, Dtype::F32), ops.matmul(&x, &Matrix::from_f32(dtype, &q, n, k), None, Dtype::F32));
        }
    }

    #[test]
    fn the_dot_product_stays_within_the_rounding_bound(ab in prop::collection::vec((-9f32..9.0, -9f32..9.0), 0..300)) {
        let (a, b): (Vec<f32>, Vec<f32>) = ab.into_iter().unzip();
        let exact: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        let size: f64 = a.iter().zip(&b).map(|(a, b)| (f64::from(*a) * f64::from(*b)).abs()).sum();
        // In any order the sum errs by about n · u · Σ|aᵢbᵢ| at most; EPSILON is 2u.
        let bound = a.len() as f64 * f64::from(f32::EPSILON) * size;
        prop_assert!((f64::from(reference_dot(&a, &b, 0.0)) - exact).abs() <= bound);
    }

    #[test]
    fn a_sum_and_its_norm_in_one_pass_are_those_of_two(
        (h_type, out) in (dtype(), dtype()), t in 0usize..400, d in 1usize..130, seed in 0u64..1000,
    ) {
        let (h, added, gain) = (tensor(Dtype::F32, seed, t, d), tensor(h_type, seed + 1, t, d), values(seed + 2, d));
        for ops in every_ops() {
            let sum = ops.sum(&h, &added);
            let (norm, rrms) = ops.rms_norm(&sum, &gain, 1e-6, out);
            prop_assert!(ops.sum_norm(&h, &added, &gain, 1e-6, out) == (sum.clone(), norm.clone(), rrms));
            let mut in_place = h.clone();
            prop_assert_eq!(ops.add_norm(&mut in_place, &added, &gain, 1e-6, out), norm);
            prop_assert_eq!(in_place, sum);
        }
    }

    #[test]
    fn pointwise_operations_have_equal_bits_on_every_path(dtype in dtype(), t in 1usize..9, d in 1usize..70, seed in 0u64..1000) {
        let (x, u) = (tensor(dtype, seed, t, d), tensor(dtype, seed + 1, t, d));
        let (gain, dy) = (values(seed + 2, d), tensor(Dtype::F32, seed + 3, t, d));
        let run = |ops: &Ops| {
            let (y, rrms) = ops.rms_norm(&x, &gain, 1e-6, dtype);
            let (mut dx, mut dgain) = (tensor(Dtype::F32, seed, t, d), vec![0.0; d]);
            ops.rms_norm_grad(&x, &gain, &rrms, &dy, &mut dx, Some(&mut dgain));
            let a = ops.silu_mul(&x, &u);
            let (dg, du) = ops.silu_mul_grad(&x, &u, &dy);
            let mut logits = dy.clone();
            let targets: Vec<u32> = (0..t).map(|t| (t % d) as u32).collect();
            let logprobs = ops.cross_entropy_grad(&mut logits, &targets, 0.5);
            (y, bits(&rrms), dx, bits(&dgain), a, dg, du, logits, bits(&logprobs))
        };
        let all = every_ops();
        let want = run(&all[0]);
        for ops in &all[1..] {
            prop_assert!(run(ops) == want, "{}", ops.isa().name());
        }
    }
}

/// Attention by the text book in f64.
fn naive_attention(s: HeadShape, q: &Tensor, k: &Tensor, v: &Tensor) -> Vec<f64> {
    let mut out = vec![0.0; q.rows * s.heads * s.dv];
    for t in 0..q.rows {
        for h in 0..s.heads {
            let g = h / (s.heads / s.kv_heads);
            let scores: Vec<f64> = (0..=t)
                .map(|j| {
                    let dot: f64 =
                        (0..s.dk).map(|d| f64::from(q.get(t, h * s.dk + d)) * f64::from(k.get(j, g * s.dk + d))).sum();
                    libm::exp(dot * f64::from(s.scale))
                })
                .collect();
            let total: f64 = scores.iter().sum();
            for d in 0..s.dv {
                let sum: f64 = scores.iter().enumerate().map(|(j, p)| p * f64::from(v.get(j, g * s.dv + d))).sum();
                out[(t * s.heads + h) * s.dv + d] = sum / total;
            }
        }
    }
    out
}

const SHAPES: [HeadShape; 3] = [
    HeadShape { heads: 2, kv_heads: 2, dk: 24, dv: 16, scale: 0.2 },
    HeadShape { heads: 3, kv_heads: 1, dk: 15, dv: 21, scale: 0.3 },
    HeadShape { heads: 4, kv_heads: 2, dk: 32, dv: 32, scale: 0.17 },
];

fn qkv(s: HeadShape, dtype: Dtype, t: usize) -> (Tensor, Tensor, Tensor) {
    let make = |seed, d| tensor(dtype, seed, t, d);
    (make(1, s.heads * s.dk), make(2, s.kv_heads * s.dk), make(3, s.kv_heads * s.dv))
}

#[test]
fn attention_agrees_with_the_text_book() {
    for s in SHAPES {
        // 700 tokens cross a segment of 512 keys.
        for t in [1, 63, 64, 65, 700] {
            let (q, k, v) = qkv(s, Dtype::F32, t);
            let want = naive_attention(s, &q, &k, &v);
            for ops in every_ops() {
                let mut kv = KvBlocks::new(Dtype::F32, s);
                let (o, _) = ops.attention(s, &q, &k, &v, &mut [Sequence { first: 0, tokens: t, kv: &mut kv }]);
                let worst = o.f32().iter().zip(&want).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
                assert!(worst < 2e-6, "{s:?} {t} {}: {worst:e}", ops.isa().name()); // Measured: 4e-7.
            }
        }
    }
}

#[test]
fn attention_has_the_same_bits_however_the_prompt_is_cut_and_on_every_path() {
    for (s, dtype) in SHAPES.into_iter().zip([Dtype::Bf16, Dtype::F32, Dtype::Bf16]) {
        let t = 600;
        let (q, k, v) = qkv(s, dtype, t);
        let mut kv = KvBlocks::new(dtype, s);
        let (want, want_lse) =
            every_ops()[0].attention(s, &q, &k, &v, &mut [Sequence { first: 0, tokens: t, kv: &mut kv }]);
        for ops in every_ops() {
            for cuts in [vec![600], vec![1; 600], vec![64, 1, 300, 35, 200], vec![511, 2, 87]] {
                let mut kv = KvBlocks::new(dtype, s);
                let mut first = 0;
                for tokens in cuts {
                    let rows: Vec<u32> = (first as u32..(first + tokens) as u32).collect();
                    let part = |x: &Tensor| ops.gather(x, &rows);
                    let seq = &mut [Sequence { first: 0, tokens, kv: &mut kv }];
                    let (o, lse) = ops.attention(s, &part(&q), &part(&k), &part(&v), seq);
                    assert!(o == part(&want), "{} at {first}", ops.isa().name());
                    assert_eq!(bits(&lse), bits(&want_lse[first * s.heads..(first + tokens) * s.heads]));
                    first += tokens;
                }
            }
        }
    }
}

#[test]
fn a_truncated_cache_continues_as_if_the_rest_had_never_been_there() {
    let s = SHAPES[0];
    let ops = *every_ops().last().unwrap();
    let (q, k, v) = qkv(s, Dtype::Bf16, 130);
    let run = |kv: &mut KvBlocks, from: u32, to: u32| {
        let rows: Vec<u32> = (from..to).collect();
        let part = |x: &Tensor| ops.gather(x, &rows);
        ops.attention(s, &part(&q), &part(&k), &part(&v), &mut [Sequence { first: 0, tokens: rows.len(), kv }]).0
    };
    let mut kv = KvBlocks::new(Dtype::Bf16, s);
    run(&mut kv, 0, 70);
    let want = run(&mut kv, 70, 80);
    run(&mut kv, 80, 130);
    kv.truncate(70);
    assert_eq!(run(&mut kv, 70, 80), want);
}

/// Each of `heads` of a bf16 row on its own: all but its last `exact` columns as E4M3 has them.
fn numbers_of_heads(ops: &Ops, x: &Tensor, heads: usize, exact: usize) -> Tensor {
    let d = x.cols / heads;
    let values = x.to_vec_f32();
    let mut out = values.clone();
    for (row, out) in values.chunks(d).zip(out.chunks_mut(d)) {
        let part = Tensor::from_f32(row[..d - exact].to_vec(), d - exact);
        let numbers = ops.fp8_numbers(&part, Tiles::Rows, &[0, 1], BLOCK_MAX_FLOOR, ScaleFormat::Ue8m0);
        out[..d - exact].copy_from_slice(&numbers.to_vec_f32());
    }
    Tensor::from_f32(out, x.cols).to_dtype(Dtype::Bf16)
}

#[test]
fn attention_on_a_cache_in_fp8_is_that_in_bf16_on_the_numbers_of_its_codes() {
    let wide = HeadShape { heads: 2, kv_heads: 1, dk: 300, dv: 260, scale: 0.1 };
    let t = 140;
    for (s, exact) in SHAPES.into_iter().map(|s| (s, 0)).chain([(SHAPES[0], 8), (SHAPES[1], 7), (wide, 0), (wide, 40)])
    {
        let latent = s.kv_heads == 1 && s.dv + exact <= s.dk;
        for latent in [false, latent] {
            let (q, k, v) = qkv(s, Dtype::Bf16, t);
            // Magnitudes from far below the floor of scales to far above 1, and what only the sign tells from zero.
            let scaled = |x: &Tensor| {
                let cols = x.cols;
                let of = |(i, x): (usize, &f32)| x * [1e-7, 1e-3, 1.0, 300.0, -0.0][i / cols % 5];
                Tensor::from_f32(x.to_vec_f32().iter().enumerate().map(of).collect(), x.cols).to_dtype(Dtype::Bf16)
            };
            let (k, v) = (scaled(&k), scaled(&v));
            let attend = |ops: &Ops, k: &Tensor, v: &Tensor, kv: &mut KvBlocks, rows: std::ops::Range<u32>| {
                let rows: Vec<u32> = rows.collect();
                let part = |x: &Tensor| ops.gather(x, &rows);
                let seq = &mut [Sequence { first: 0, tokens: rows.len(), kv }];
                match latent {
                    true => ops.latent_attention(s, &part(&q), &part(k), seq),
                    false => ops.attention(s, &part(&q), &part(k), &part(v), seq).0,
                }
            };
            let first = &every_ops()[0];
            let numbers = [(&k, exact), (&v, 0)].map(|(x, exact)| numbers_of_heads(first, x, s.kv_heads, exact));
            let mut plain = if latent { KvBlocks::latent(Dtype::Bf16, s) } else { KvBlocks::new(Dtype::Bf16, s) };
            let want = attend(first, &numbers[0], &numbers[1], &mut plain, 0..t as u32);
            for ops in every_ops() {
                for cuts in [vec![140], vec![1; 140], vec![64, 1, 75]] {
                    let mut kv = KvBlocks::fp8(s, exact, latent);
                    let mut at = 0;
                    for tokens in cuts {
                        let o = attend(&ops, &k, &v, &mut kv, at..at + tokens);
                        let rows: Vec<u32> = (at..at + tokens).collect();
                        assert!(o == ops.gather(&want, &rows), "{s:?} {exact} {latent} {} at {at}", ops.isa().name());
                        at += tokens;
                    }
                    assert_eq!(kv.len(), t);
                    // What is thrown away leaves nothing behind.
                    kv.truncate(70);
                    let again = attend(&ops, &k, &v, &mut kv, 70..140);
                    assert!(again == ops.gather(&want, &(70..140).collect::<Vec<_>>()), "{s:?} {exact} {latent}");
                    kv.truncate(0);
                    assert_eq!(kv.bytes(), 0);
                }
            }
        }
    }
}

#[test]
fn a_cache_in_fp8_takes_a_byte_per_number_and_one_per_128() {
    let ops = every_ops()[0];
    let fill = |s: HeadShape, kv: &mut KvBlocks| {
        let (q, k, v) = qkv(s, Dtype::Bf16, 64);
        let seq = &mut [Sequence { first: 0, tokens: 64, kv }];
        match s.dv {
            512 => drop(ops.latent_attention(s, &q, &k, seq)),
            _ => drop(ops.attention(s, &q, &k, &v, seq)),
        }
    };
    // DeepSeek-V3's latent: 512 codes with 4 scales, 64 numbers of bf16.
    let s = HeadShape { heads: 2, kv_heads: 1, dk: 576, dv: 512, scale: 0.1 };
    let mut kv = KvBlocks::fp8(s, 64, true);
    fill(s, &mut kv);
    assert_eq!(kv.bytes(), 64 * (512 + 4 + 2 * 64));
    let s = HeadShape { heads: 4, kv_heads: 2, dk: 128, dv: 128, scale: 0.1 };
    let mut kv = KvBlocks::fp8(s, 0, false);
    fill(s, &mut kv);
    assert_eq!(kv.bytes(), 64 * 2 * (128 + 1 + 128 + 1));
}

#[test]
fn a_number_that_is_none_stays_none_in_a_cache_in_fp8() {
    let s = SHAPES[0];
    for ops in every_ops() {
        for bad in [f32::NAN, f32::INFINITY] {
            let (q, k, v) = qkv(s, Dtype::Bf16, 3);
            let mut values = v.to_vec_f32();
            values[s.kv_heads * s.dv] = bad;
            let v = Tensor::from_f32(values, v.cols).to_dtype(Dtype::Bf16);
            let mut kv = KvBlocks::fp8(s, 0, false);
            let o = ops.attention(s, &q, &k, &v, &mut [Sequence { first: 0, tokens: 3, kv: &mut kv }]).0.to_vec_f32();
            assert!(o[o.len() / 3..].iter().any(|x| x.is_nan()), "{bad}");
        }
    }
}

#[test]
fn attention_backward_is_the_slope_of_forward_in_a_random_direction() {
    for s in SHAPES {
        let t = 150;
        let cu = [0, 83, 150];
        let (q, k, v) = qkv(s, Dtype::F32, t);
        let d_o = tensor(Dtype::F32, 9, t, s.heads * s.dv);
        for ops in every_ops() {
            let forward = |q: &Tensor, k: &Tensor, v: &Tensor| {
                let mut caches = [KvBlocks::new(Dtype::F32, s), KvBlocks::new(Dtype::F32, s)];
                let mut seqs: Vec<_> = caches
                    .iter_mut()
                    .zip(cu.windows(2))
                    .map(|(kv, w)| Sequence { first: w[0], tokens: w[1] - w[0], kv })
                    .collect();
                ops.attention(s, q, k, v, &mut seqs)
            };
            let loss = |h: f32| {
                let moved = |x: &Tensor, seed| {
                    let d = values(seed, x.rows * x.cols);
                    Tensor::from_f32(x.f32().iter().zip(d).map(|(x, d)| x + h * d).collect(), x.cols)
                };
                let o = forward(&moved(&q, 11), &moved(&k, 12), &moved(&v, 13)).0;
                o.f32().iter().zip(d_o.f32()).map(|(o, d)| f64::from(*o) * f64::from(*d)).sum::<f64>()
            };
            let (o, lse) = forward(&q, &k, &v);
            let saved = AttentionSaved { q: &q, k: &k, v: &v, o: &o, lse: &lse };
            let (dq, dk, dv) = ops.attention_grad(s, &saved, &d_o, &cu);
            let along: f64 = [(dq, 11), (dk, 12), (dv, 13)]
                .iter()
                .map(|(g, seed)| {
                    let d = values(*seed, g.rows * g.cols);
                    g.f32().iter().zip(d).map(|(g, d)| f64::from(*g) * f64::from(d)).sum::<f64>()
                })
                .sum();
            let h = 4e-3;
            let slope = (loss(h) - loss(-h)) / f64::from(2.0 * h);
            let error = (along - slope).abs() / slope.abs().max(1.0);
            assert!(error < 2e-3, "{s:?} {}: {along} against {slope}", ops.isa().name());
        }
    }
}

#[test]
fn log_sum_exp_crosses_blocks_of_the_vocabulary() {
    for n in [1, 15, 1024, 1025, 5000] {
        let x: Vec<f32> = values(4, n).iter().map(|x| x * 20.0).collect();
        let want = libm::log(x.iter().map(|x| libm::exp(f64::from(*x))).sum());
        let all: Vec<u32> = every_ops().iter().map(|ops| ops.log_sum_exp(&x).to_bits()).collect();
        assert!(all.windows(2).all(|w| w[0] == w[1]));
        assert!((f64::from(f32::from_bits(all[0])) - want).abs() < 1e-5, "{n}");
    }
}

#[test]
fn the_sum_and_the_exponential_are_the_documented_ones() {
    let x = values(5, 37);
    let mut lanes = [0.0f32; 16];
    x.iter().enumerate().for_each(|(i, x)| lanes[i % 16] += x);
    for width in [8, 4, 2, 1] {
        (0..width).for_each(|i| lanes[i] += lanes[i + width]);
    }
    assert_eq!(sum16(37, |i| x[i]).to_bits(), lanes[0].to_bits());
    assert_eq!(exp(1.0), std::f32::consts::E);
}
