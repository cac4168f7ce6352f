//! DeepSeek-V3's mixed precision: the three products of a linear take the operands that the definition says, and gradients of layers stay
//! beside those in f32.

use jevons_kernels::{
    Dtype, GateShape, Matrix, Ops, ScaleFormat, Scoring, Tensor,
    formats::{BLOCK_MAX_FLOOR, E4M3_MAX, GRADIENT_MAX_FLOOR, block_scale_to, from_e4m3, to_e4m3},
    math::round_bf16,
};
use jevons_layers::{Balance, Fp8, Gate, Grads, Input, Linear, Linears, Moe, Param, ParamId, SwiGlu, Weights, Wgrad};
use proptest::prelude::*;

/// Deterministic values in (−1, 1), a few of them large.
fn values(seed: u64, n: usize) -> Vec<f32> {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..n)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            let v = (x >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
            if x.is_multiple_of(61) { 30.0 * v } else { v }
        })
        .collect()
}

/// `x` `[rows, cols]` in tiles of `down × across`, number by number.
fn quantised(x: &[f32], cols: usize, [down, across]: [usize; 2], floor: f32, scale: ScaleFormat) -> Vec<f32> {
    let mut largest = std::collections::HashMap::new();
    let tile = |i: usize| (i / cols / down, i % cols / across);
    for (i, x) in x.iter().enumerate() {
        let max = largest.entry(tile(i)).or_insert(0.0_f32);
        *max = max.max(x.abs());
    }
    let number = |(i, x): (usize, &f32)| {
        let scale = block_scale_to(largest[&tile(i)], E4M3_MAX, floor, scale);
        round_bf16(from_e4m3(to_e4m3(x / scale)) * scale)
    };
    x.iter().enumerate().map(number).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_linear_multiplies_what_the_definition_says(
        t in 1usize..150, n in 1usize..200, k in 1usize..200, powers in any::<bool>(), retile in any::<bool>(),
        gradient_blocks in any::<bool>(), small in any::<bool>(), seed in 0u64..1000,
    ) {
        let ops = Ops::new().unwrap();
        let scale = if powers { ScaleFormat::Ue8m0 } else { ScaleFormat::F32 };
        let fp8 = Fp8 { scale, wgrad: if retile { Wgrad::Retile } else { Wgrad::Reuse }, gradient_blocks, linears: Linears::All };
        let (w, bias) = (values(seed, n * k), values(seed + 1, n));
        let params = vec![Param::Matrix(Matrix::quantized(scale, &w, n, k)), Param::Vector(bias.clone())];
        let weights = Weights::new(Dtype::Bf16, params).with_fp8(Some(fp8));
        let linear = Linear { weight: ParamId(0), bias: Some(ParamId(1)) };
        let x = Tensor::from_f32(values(seed + 2, t * k), k).to_dtype(Dtype::Bf16);
        // A mean over a batch makes gradients small.
        let unit = if small { 1e-9 } else { 1.0 };
        let dy = Tensor::from_f32(values(seed + 3, t * n).iter().map(|x| x * unit).collect(), n);

        // The operands, and then nothing but the products of bf16.
        let bf16 = |x: Vec<f32>, cols: usize| Tensor::from_f32(x, cols).to_dtype(Dtype::Bf16);
        let w_q = Matrix::from_f32(Dtype::Bf16, &quantised(&w, k, [128, 128], BLOCK_MAX_FLOOR, scale), n, k);
        let x_q = quantised(&x.to_vec_f32(), k, [1, 128], BLOCK_MAX_FLOOR, scale);
        let dy_q = quantised(dy.f32(), n, [if gradient_blocks { 128 } else { 1 }, 128], GRADIENT_MAX_FLOOR, scale);
        let again = |x: &[f32], cols, floor| if retile { quantised(x, cols, [128, 1], floor, scale) } else { x.to_vec() };
        let (x_w, dy_w) = (bf16(again(&x_q, k, BLOCK_MAX_FLOOR), k), bf16(again(&dy_q, n, GRADIENT_MAX_FLOOR), n));
        let y = ops.matmul(&bf16(x_q, k), &w_q, Some(&bias), Dtype::Bf16);
        let dx = ops.matmul_input_grad(&bf16(dy_q, n), &w_q);
        let mut dw = vec![0.0; n * k];
        ops.matmul_weight_grad(&dy_w, &x_w, &mut dw);

        prop_assert_eq!(linear.forward(&ops, &weights, &x), y.clone());
        let [a, b] = Linear::forward_all([&linear, &linear], &ops, &weights, &x);
        prop_assert_eq!((&a, &b), (&y, &y));
        let mut grads = Grads::zeros([Some(n * k), Some(n)]);
        let input = Input::new(&ops, &weights, &[linear.weight], &x);
        prop_assert_eq!(linear.backward_new(&ops, &weights, &mut grads, &input, &dy), dx);
        prop_assert_eq!(bits(grads.get(ParamId(0)).unwrap()), bits(&dw));
        // The bias takes gradients as they are.
        let db: Vec<f32> = (0..n).map(|i| dy.f32().chunks(n).map(|dy| dy[i]).fold(0.0, |a, b| a + b)).collect();
        prop_assert_eq!(bits(grads.get(ParamId(1)).unwrap()), bits(&db));
    }
}

/// Square root of `Σ(a − b)² / Σb²`.
fn relative(a: &[f32], b: &[f32]) -> f64 {
    let sum =
        |f: &dyn Fn(f64, f64) -> f64| -> f64 { a.iter().zip(b).map(|(a, b)| f(f64::from(*a), f64::from(*b))).sum() };
    (sum(&|a, b| (a - b) * (a - b)) / sum(&|_, b| b * b)).sqrt()
}

/// Weights of these shapes in f32, and in FP8 as the settings say.
fn both(shapes: &[(usize, usize)], plain: &[usize], fp8: Fp8) -> [Weights; 2] {
    let value = |i: usize, n: usize, k: usize| -> Vec<f32> {
        values(i as u64 + 10, n * k).iter().map(|x| x.clamp(-1.0, 1.0) / (k as f32).sqrt()).collect()
    };
    let exact =
        |(i, &(n, k)): (usize, &(usize, usize))| Param::Matrix(Matrix::from_f32(Dtype::F32, &value(i, n, k), n, k));
    let codes = |(i, &(n, k)): (usize, &(usize, usize))| {
        Param::Matrix(if plain.contains(&i) {
            Matrix::from_f32(Dtype::Bf16, &value(i, n, k), n, k)
        } else {
            Matrix::quantized(fp8.scale, &value(i, n, k), n, k)
        })
    };
    [
        Weights::new(Dtype::F32, shapes.iter().enumerate().map(exact).collect()),
        Weights::new(Dtype::Bf16, shapes.iter().enumerate().map(codes).collect()).with_fp8(Some(fp8)),
    ]
}

const ALL: [Fp8; 4] = [
    Fp8 { scale: ScaleFormat::Ue8m0, wgrad: Wgrad::Reuse, gradient_blocks: false, linears: Linears::All },
    Fp8 { scale: ScaleFormat::F32, wgrad: Wgrad::Reuse, gradient_blocks: false, linears: Linears::All },
    Fp8 { scale: ScaleFormat::Ue8m0, wgrad: Wgrad::Retile, gradient_blocks: false, linears: Linears::All },
    Fp8 { scale: ScaleFormat::Ue8m0, wgrad: Wgrad::Reuse, gradient_blocks: true, linears: Linears::All },
];

/// A number of E4M3 is off by 1/16 at most and by 3 % in the mean; a gradient passes through a few of them.
const NEAR: f64 = 0.12;

/// A gradient `[t, d]` of the size that a mean over a large batch has.
fn small(seed: u64, t: usize, d: usize) -> Tensor {
    Tensor::from_f32(values(seed, t * d).iter().map(|x| x * 1e-9).collect(), d)
}

#[test]
fn gradients_of_a_gated_layer_are_near_those_in_f32_and_its_activations_take_half() {
    let (t, d, f) = (70, 96, 160);
    for fp8 in ALL {
        let ops = Ops::new().unwrap();
        let linear = |i| Linear { weight: ParamId(i), bias: None };
        let layer = SwiGlu { gate: linear(0), up: linear(1), down: linear(2) };
        let weights = both(&[(f, d), (f, d), (d, f)], &[], fp8);
        let (x, dy) = (Tensor::from_f32(values(1, t * d), d), small(2, t, d));
        let [exact, quantised] = weights.map(|w| {
            let x = x.to_dtype(w.dtype());
            let mut grads = Grads::zeros([f * d, f * d, d * f].map(Some));
            let (y, saved) = layer.forward(&ops, &w, &x);
            let dx = layer.backward(&ops, &w, &mut grads, &x, &saved, &dy);
            let mut all = vec![y.to_vec_f32(), dx.to_vec_f32()];
            all.extend((0..3).map(|i| grads.get(ParamId(i)).unwrap().to_vec()));
            (all, saved.bytes())
        });
        for (i, (a, b)) in quantised.0.iter().zip(&exact.0).enumerate() {
            let error = relative(a, b);
            assert!(error < NEAR && error > 1e-3, "{fp8:?}: {i}: {error}");
        }
        assert_eq!(quantised.1, 2 * t * (f + 4 * 2), "one byte each, a scale per 128");
    }
}

#[test]
fn gradients_of_experts_are_near_those_in_f32_and_the_gate_stays_in_bf16() {
    let (t, d, f, e) = (90, 64, 48, 4);
    for fp8 in ALL {
        let ops = Ops::new().unwrap();
        let linear = |i| Linear { weight: ParamId(i), bias: None };
        // Gate, then gate, up and down of each expert, then those of the shared one.
        let mut shapes = vec![(e, d)];
        shapes.extend((0..=e).flat_map(|_| [(f, d), (f, d), (d, f)]));
        let ids = |part: usize| (0..e).map(|i| ParamId(1 + 3 * i + part)).collect::<Vec<_>>();
        let shared = 1 + 3 * e;
        let shape = GateShape {
            scoring: Scoring::Sigmoid,
            experts: e,
            top_k: 2,
            groups: 1,
            top_groups: 1,
            normalise: true,
            scale: 1.0,
        };
        let layer = Moe {
            gate: Gate { linear: linear(0), bias: None, shape },
            gates: ids(0),
            ups: ids(1),
            downs: ids(2),
            shared: Some(SwiGlu { gate: linear(shared), up: linear(shared + 1), down: linear(shared + 2) }),
        };
        let weights = both(&shapes, &[0], fp8);
        let (x, dy) = (Tensor::from_f32(values(1, t * d), d), small(2, t, d));
        let balance = Balance { alpha: 0.0, cu_seqlens: &[0, t], share: 1.0 };
        let [exact, quantised] = weights.map(|w| {
            // The same numbers for both, so that both choose the same experts.
            let x = x.to_dtype(Dtype::Bf16).to_dtype(w.dtype());
            let mut grads = Grads::zeros(shapes.iter().map(|(n, k)| Some(n * k)));
            let (y, saved) = layer.forward(&ops, &w, &x);
            let (dx, _) = layer.backward(&ops, &w, &mut grads, &x, &saved, &dy, &balance);
            let mut all = vec![y.to_vec_f32(), dx.to_vec_f32()];
            all.extend((0..shapes.len()).map(|i| grads.get(ParamId(i)).unwrap().to_vec()));
            (all, saved.routing.experts.clone())
        });
        let same = exact.1.iter().zip(&quantised.1).filter(|(a, b)| a == b).count();
        assert!(same * 100 >= exact.1.len() * 98, "{same} of {}", exact.1.len());
        for (i, (a, b)) in quantised.0.iter().zip(&exact.0).enumerate() {
            let error = relative(a, b);
            assert!(error < 2.0 * NEAR, "{fp8:?}: {i}: {error}");
        }
    }
}

#[test]
fn linears_left_in_bf16_give_the_numbers_of_bf16_and_the_others_those_of_fp8() {
    let (t, d, f) = (70, 150, 140);
    let ops = Ops::new().unwrap();
    let linear = |i| Linear { weight: ParamId(i), bias: None };
    let layer = SwiGlu { gate: linear(0), up: linear(1), down: linear(2) };
    let shapes = [(f, d), (f, d), (d, f)];
    let bf16 = |x: Vec<f32>, cols: usize| Tensor::from_f32(x, cols).to_dtype(Dtype::Bf16);
    let x = bf16(values(1, t * d), d);
    let dy = small(2, t, d);
    for fp8 in ALL {
        // Every choice of what is left.
        for left in 0..8 {
            let plain: Vec<usize> = (0..3).filter(|i| left >> i & 1 == 1).collect();
            let [exact, weights] = both(&shapes, &plain, fp8);
            let numbers =
                |x: &[f32], cols: usize, tile: [usize; 2]| quantised(x, cols, tile, BLOCK_MAX_FLOOR, fp8.scale);
            let slopes =
                |x: &[f32], cols: usize, tile: [usize; 2]| quantised(x, cols, tile, GRADIENT_MAX_FLOOR, fp8.scale);
            let w = [0, 1, 2].map(|i: usize| {
                let ((n, k), w) = (shapes[i], exact[ParamId(i)].to_vec_f32());
                let w = if plain.contains(&i) { w } else { numbers(&w, k, [128, 128]) };
                Matrix::from_f32(Dtype::Bf16, &w, n, k)
            });
            // Operands of linear `i`, and then nothing but the products of bf16.
            let input = |i: usize, x: &Tensor| match plain.contains(&i) {
                true => x.clone(),
                false => bf16(numbers(&x.to_vec_f32(), x.cols, [1, 128]), x.cols),
            };
            let gradient = |i: usize, dy: &Tensor| match plain.contains(&i) {
                true => dy.clone(),
                false => bf16(slopes(dy.f32(), dy.cols, [if fp8.gradient_blocks { 128 } else { 1 }, 128]), dy.cols),
            };
            let retiled = |i: usize| !plain.contains(&i) && fp8.wgrad == Wgrad::Retile;
            let again = |i: usize, x: Tensor| match retiled(i) {
                true => bf16(numbers(&x.to_vec_f32(), x.cols, [128, 1]), x.cols),
                false => x,
            };
            let gradient_again = |i: usize, dy: Tensor| match retiled(i) {
                true => bf16(slopes(&dy.to_vec_f32(), dy.cols, [128, 1]), dy.cols),
                false => dy,
            };
            let weight_grad = |i: usize, dy: &Tensor, x: &Tensor| {
                let mut dw = vec![0.0; shapes[i].0 * shapes[i].1];
                ops.matmul_weight_grad(&gradient_again(i, gradient(i, dy)), &again(i, input(i, x)), &mut dw);
                dw
            };
            let forward = |i: usize, x: &Tensor| ops.matmul(&input(i, x), &w[i], None, Dtype::Bf16);
            let (g, u) = (forward(0, &x), forward(1, &x));
            let y = forward(2, &ops.silu_mul(&g, &u));
            // What the down-projection is made of is kept as it takes its input.
            let kept = |x: &Tensor| match plain.contains(&2) {
                true => x.clone(),
                false => bf16(numbers(&x.to_vec_f32(), f, [1, 128]), f),
            };
            let (g, u) = (kept(&g), kept(&u));
            let a = ops.silu_mul(&g, &u);
            let da = ops.matmul_input_grad(&gradient(2, &dy), &w[2]);
            let (dg, du) = ops.silu_mul_grad(&g, &u, &da);
            let mut dx = ops.matmul_input_grad(&gradient(0, &dg), &w[0]);
            ops.add_matmul_input_grad(&gradient(1, &du), &w[1], &mut dx);

            let mut grads = Grads::zeros(shapes.map(|(n, k)| Some(n * k)));
            let (got_y, saved) = layer.forward(&ops, &weights, &x);
            assert_eq!(got_y, y, "{fp8:?} {plain:?}");
            assert_eq!(saved.bytes(), 2 * t * if plain.contains(&2) { 2 * f } else { f + 4 * 2 }, "{plain:?}");
            assert_eq!(layer.backward(&ops, &weights, &mut grads, &x, &saved, &dy), dx, "{fp8:?} {plain:?}");
            for (i, dw) in
                [weight_grad(0, &dg, &x), weight_grad(1, &du, &x), weight_grad(2, &dy, &a)].iter().enumerate()
            {
                assert_eq!(bits(grads.get(ParamId(i)).unwrap()), bits(dw), "{fp8:?} {plain:?} {i}");
            }
        }
    }
}
