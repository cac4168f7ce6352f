//! Every backward is the slope of its forward: finite differences along a random direction, in f32.
//!
//! The direction moves the input and all parameters at once. The step is near the cube root of the rounding unit, where
//! truncation and rounding balance; the bound is about three times the worst of many seeds (measured, see each test).

use jevons_kernels::{Dtype, GateShape, HeadShape, KvBlocks, LatentHeads, Matrix, Ops, Scoring, Tensor};
use jevons_layers::{
    Attention, Balance, Batch, Block, Ffn, Gate, Gqa, Grads, IGNORE, Keep, Linear, Mla, Moe, Mtp, MtpRows, Param,
    ParamId, Query, RmsNorm, SwiGlu, Weights, head_loss,
};

const H: f32 = 4e-3;

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

/// Values, and the shape of a matrix.
type Value = (Vec<f32>, Option<(usize, usize)>);

/// Parameters of a layer under test.
#[derive(Default)]
struct Params(Vec<Value>);

impl Params {
    fn matrix(&mut self, n: usize, k: usize) -> ParamId {
        let scale = 1.0 / (k as f32).sqrt();
        self.0.push((values(100 + self.0.len() as u64, n * k).iter().map(|x| x * scale).collect(), Some((n, k))));
        ParamId(self.0.len() - 1)
    }

    fn vector(&mut self, n: usize, around: f32) -> ParamId {
        self.0.push((values(200 + self.0.len() as u64, n).iter().map(|x| around + 0.3 * x).collect(), None));
        ParamId(self.0.len() - 1)
    }

    fn linear(&mut self, n: usize, k: usize) -> Linear {
        Linear { weight: self.matrix(n, k), bias: None }
    }

    fn norm(&mut self, n: usize) -> RmsNorm {
        RmsNorm { weight: self.vector(n, 1.0), eps: 1e-6 }
    }

    fn swiglu(&mut self, d: usize, f: usize) -> SwiGlu {
        SwiGlu { gate: self.linear(f, d), up: self.linear(f, d), down: self.linear(d, f) }
    }

    fn direction(i: usize, n: usize) -> Vec<f32> {
        values(300 + i as u64, n)
    }

    fn weights(&self, h: f32) -> Weights {
        let params = self.0.iter().enumerate().map(|(i, (v, shape))| {
            let v: Vec<f32> = v.iter().zip(Self::direction(i, v.len())).map(|(v, d)| v + h * d).collect();
            match shape {
                Some((n, k)) => Param::Matrix(Matrix::from_f32(Dtype::F32, &v, *n, *k)),
                None => Param::Vector(v),
            }
        });
        Weights::new(Dtype::F32, params.collect())
    }

    fn grads(&self) -> Grads {
        Grads::zeros(self.0.iter().map(|(v, _)| Some(v.len())))
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// `forward(weights, x)` gives `y`; `backward(weights, grads, x, dy)` gives `dx`. `frozen` parameters do not move.
fn check(
    p: &Params,
    rows: usize,
    d: usize,
    bound: f64,
    forward: impl Fn(&Weights, &Tensor) -> Tensor,
    backward: impl Fn(&Weights, &mut Grads, &Tensor, &Tensor) -> Tensor,
) {
    let x0 = values(1, rows * d);
    let dx0 = values(2, rows * d);
    let at = |h: f32| Tensor::from_f32(x0.iter().zip(&dx0).map(|(x, d)| x + h * d).collect(), d);
    let y = forward(&p.weights(0.0), &at(0.0));
    let r = values(3, y.rows * y.cols);
    let loss = |h: f32| dot(forward(&p.weights(h), &at(h)).f32(), &r);
    let slope = (loss(H) - loss(-H)) / f64::from(2.0 * H);
    let mut grads = p.grads();
    let dx = backward(&p.weights(0.0), &mut grads, &at(0.0), &Tensor::from_f32(r.clone(), y.cols));
    let mut along = dot(dx.f32(), &dx0);
    for (i, (v, _)) in p.0.iter().enumerate() {
        along += dot(grads.get(ParamId(i)).unwrap(), &Params::direction(i, v.len()));
    }
    let error = (along - slope).abs() / slope.abs().max(1.0);
    assert!(error < bound, "backward says {along}, the slope is {slope}, error {error:e}");
}

fn ops() -> Ops {
    Ops::new().unwrap()
}

fn zeros(x: &Tensor) -> Tensor {
    Tensor::zeros(Dtype::F32, x.rows, x.cols)
}

/// Two sequences of 5 and 6 tokens.
fn batch(rope: usize) -> Batch {
    let freq: Vec<f64> = (0..rope / 2).map(|i| libm::pow(100.0, -(i as f64) / rope as f64)).collect();
    Batch::new(&[5, 6], &[0, 0], &freq, 1.0)
}

fn caches(shape: HeadShape) -> [KvBlocks; 2] {
    [KvBlocks::new(Dtype::F32, shape), KvBlocks::new(Dtype::F32, shape)]
}

#[test]
fn linear_with_and_without_bias() {
    let ops = ops();
    for bias in [false, true] {
        let mut p = Params::default();
        let mut l = p.linear(7, 9);
        l.bias = bias.then(|| p.vector(7, 0.0));
        check(&p, 5, 9, 1e-3, |w, x| l.forward(&ops, w, x), |w, g, x, dy| l.backward_new(&ops, w, g, x, dy));
    }
}

#[test]
fn rms_norm() {
    let ops = ops();
    let mut p = Params::default();
    let n = p.norm(37);
    check(
        &p,
        70,
        37,
        1e-3,
        |w, x| n.forward(&ops, w, x).0,
        |w, g, x, dy| {
            let mut dx = zeros(x);
            n.backward(&ops, w, g, x, &n.forward(&ops, w, x).1, dy, &mut dx);
            dx
        },
    );
}

#[test]
fn swiglu() {
    let ops = ops();
    let mut p = Params::default();
    let f = p.swiglu(8, 13);
    check(
        &p,
        6,
        8,
        1e-3,
        |w, x| f.forward(&ops, w, x).0,
        |w, g, x, dy| f.backward(&ops, w, g, x, &f.forward(&ops, w, x).1, dy),
    );
}

fn gqa(p: &mut Params, d: usize, interleave: bool) -> Gqa {
    let shape = HeadShape { heads: 4, kv_heads: 2, dk: 6, dv: 6, scale: 0.4 };
    let mut part = |n, k, bias: bool| {
        let mut l = p.linear(n, k);
        l.bias = bias.then(|| p.vector(n, 0.0));
        l
    };
    Gqa { q: part(24, d, true), k: part(12, d, true), v: part(12, d, true), o: part(d, 24, false), shape, interleave }
}

#[test]
fn grouped_query_attention_with_either_rope() {
    let ops = ops();
    for interleave in [false, true] {
        let mut p = Params::default();
        let a = gqa(&mut p, 10, interleave);
        let batch = batch(6);
        let run = |w: &Weights, x: &Tensor| {
            a.forward(&ops, w, x, &batch, &mut caches(a.shape).iter_mut().collect::<Vec<_>>())
        };
        check(&p, 11, 10, 2e-3, |w, x| run(w, x).0, |w, g, x, dy| a.backward(&ops, w, g, x, &batch, &run(w, x).1, dy));
    }
}

fn mla(p: &mut Params, d: usize, latent_query: bool, interleave: bool) -> Mla {
    let heads = LatentHeads { heads: 3, nope: 5, rope: 4, v: 7 };
    let query = if latent_query {
        Query::Latent(p.linear(8, d), p.norm(8), p.linear(27, 8))
    } else {
        Query::Direct(p.linear(27, d))
    };
    Mla {
        query,
        kv_a: p.linear(10, d),
        kv_norm: p.norm(6),
        kv_b: p.linear(36, 6),
        o: p.linear(d, 21),
        heads,
        latent: 6,
        scale: 0.35,
        interleave,
        absorbed: false,
    }
}

#[test]
fn latent_attention_with_and_without_a_latent_query_and_with_dropped_up_projections() {
    let ops = ops();
    for (latent_query, interleave, forget) in
        [(true, true, false), (false, true, false), (true, false, true), (false, false, true)]
    {
        let mut p = Params::default();
        let a = mla(&mut p, 10, latent_query, interleave);
        let batch = batch(4);
        let run = |w: &Weights, x: &Tensor| {
            a.forward(&ops, w, x, &batch, &mut caches(a.shape()).iter_mut().collect::<Vec<_>>())
        };
        check(
            &p,
            11,
            10,
            2e-3,
            |w, x| run(w, x).0,
            |w, g, x, dy| {
                let mut saved = run(w, x).1;
                if forget {
                    saved.forget_up();
                }
                a.backward(&ops, w, g, x, &batch, &saved, dy)
            },
        );
    }
}

fn moe(p: &mut Params, d: usize, scoring: Scoring, normalise: bool) -> Moe {
    let (e, f) = (6, 5);
    let shape = GateShape { scoring, experts: e, top_k: 2, groups: 3, top_groups: 2, normalise, scale: 2.5 };
    if scoring == Scoring::Softmax {
        p.vector(e, 0.0); // Idle, so that the rest gets other values: with these no choice is near another.
    }
    let linear = p.linear(e, d);
    let bias = (scoring == Scoring::Sigmoid).then(|| p.vector(e, 0.0));
    Moe {
        gate: Gate { linear, bias, shape },
        gates: (0..e).map(|_| p.matrix(f, d)).collect(),
        ups: (0..e).map(|_| p.matrix(f, d)).collect(),
        downs: (0..e).map(|_| p.matrix(d, f)).collect(),
        shared: Some(p.swiglu(d, f)),
    }
}

const NO_BALANCE: Balance<'static> = Balance { alpha: 0.0, cu_seqlens: &[0, 11], share: 1.0 };

#[test]
fn mixture_of_experts_with_either_scoring_with_and_without_normalised_weights() {
    let ops = ops();
    for (scoring, normalise) in
        [(Scoring::Sigmoid, true), (Scoring::Sigmoid, false), (Scoring::Softmax, true), (Scoring::Softmax, false)]
    {
        let mut p = Params::default();
        let m = moe(&mut p, 9, scoring, normalise);
        // A choice of experts is a step, not a slope: the case is good only if none changes along the direction.
        let choice = |h: f32| {
            let x = values(1, 99).iter().zip(values(2, 99)).map(|(x, d)| x + h * d).collect();
            m.forward(&ops, &p.weights(h), &Tensor::from_f32(x, 9)).1.routing.experts
        };
        assert_eq!(choice(H), choice(-H));
        check(
            &p,
            11,
            9,
            2e-3,
            |w, x| m.forward(&ops, w, x).0,
            |w, g, x, dy| {
                // The bias takes no gradient, and its direction must not count.
                m.backward(&ops, w, g, x, &m.forward(&ops, w, x).1, dy, &NO_BALANCE).0
            },
        );
    }
}

#[test]
fn the_balance_loss_is_alpha_at_perfect_balance_and_its_gradient_is_its_slope() {
    let ops = ops();
    for scoring in [Scoring::Sigmoid, Scoring::Softmax] {
        let shape = GateShape { scoring, experts: 5, top_k: 2, groups: 1, top_groups: 1, normalise: true, scale: 1.0 };
        let (x0, d0) = (values(5, 55), values(6, 55));
        let cu = [0, 4, 11];
        let at = |h: f32| {
            let x: Vec<f32> = x0.iter().zip(&d0).map(|(x, d)| 3.0 * x + h * d).collect();
            ops.route(&Tensor::from_f32(x, 5), None, shape)
        };
        let grad = |h: f32| ops.route_grad(&at(h), shape, &[0.0; 22], 1.0, &cu, 1.0);
        assert_eq!(at(H).experts, at(-H).experts);
        let slope = f64::from(grad(H).1 - grad(-H).1) / f64::from(2.0 * H);
        let along = dot(grad(0.0).0.f32(), &d0);
        assert!((along - slope).abs() < 2e-3 * slope.abs().max(0.1), "{along} against {slope}");
        let even = Tensor::from_f32(vec![0.0; 50], 5);
        let loss = ops.route_grad(&ops.route(&even, Some(&[0.0; 5]), shape), shape, &[0.0; 20], 0.25, &[0, 10], 1.0).1;
        assert!((loss - 0.25).abs() < 1e-6, "{loss}");
    }
}

#[test]
fn embedding_and_head_with_ignored_targets_and_more_tokens_than_a_block() {
    let ops = ops();
    let mut p = Params::default();
    let table = p.matrix(11, 6);
    let rows = 9;
    let targets: Vec<u32> = (0..rows as u32).map(|i| if i == 4 { IGNORE } else { i * 3 % 11 }).collect();
    let x0 = values(1, rows * 6);
    let loss = |h: f32| {
        let x = Tensor::from_f32(x0.iter().zip(values(2, rows * 6)).map(|(x, d)| x + h * d).collect(), 6);
        let out = head_loss(&ops, &p.weights(h), &mut p.grads(), table, &x, &targets, 1.0);
        assert_eq!(out.logprobs[4], 0.0);
        -out.logprobs.iter().map(|x| f64::from(*x)).sum::<f64>()
    };
    let mut grads = p.grads();
    let x = Tensor::from_f32(x0.clone(), 6);
    let out = head_loss(&ops, &p.weights(0.0), &mut grads, table, &x, &targets, 1.0);
    let along = dot(out.dx.f32(), &values(2, rows * 6)) + dot(grads.get(table).unwrap(), &Params::direction(0, 66));
    let slope = (loss(H) - loss(-H)) / f64::from(2.0 * H);
    assert!((along - slope).abs() < 1e-3 * slope.abs(), "{along} against {slope}");

    let mut grads = p.grads();
    let dy = Tensor::from_f32(values(8, 18), 6);
    ops.embed_grad(&[3, 0, 3], &dy, grads.get_mut(table).unwrap());
    let got = grads.get(table).unwrap();
    for j in 0..6 {
        assert_eq!(got[18 + j], dy.get(0, j) + dy.get(2, j));
        assert_eq!(got[j], dy.get(1, j));
    }
}

#[test]
fn a_large_vocabulary_in_blocks_has_the_bits_of_one_piece() {
    let ops = ops();
    let (v, d, t) = (70_000, 4, 100);
    assert!(jevons_layers::head_tokens_per_block(v) < t);
    let table = values(1, v * d);
    let x = Tensor::from_f32(values(2, t * d), d);
    let targets: Vec<u32> = (0..t as u32).map(|i| i * 699).collect();
    let w = Weights::new(Dtype::F32, vec![Param::Matrix(Matrix::from_f32(Dtype::F32, &table, v, d))]);
    let mut grads = Grads::zeros([Some(v * d)]);
    let out = head_loss(&ops, &w, &mut grads, ParamId(0), &x, &targets, 0.01);
    let mut logits = ops.matmul(&x, &w[ParamId(0)], None, Dtype::F32);
    let logprobs = ops.cross_entropy_grad(&mut logits, &targets, 0.01);
    assert_eq!(out.logprobs, logprobs);
    let mut dw = vec![0.0; v * d];
    ops.matmul_weight_grad(&logits, &x, &mut dw);
    assert!(grads.get(ParamId(0)).unwrap() == dw);
}

#[test]
fn a_block_whatever_it_keeps() {
    let ops = ops();
    for keep in [Keep::All, Keep::ButUp, Keep::Input] {
        for dense in [true, false] {
            let mut p = Params::default();
            let block = Block {
                attention_norm: p.norm(9),
                attention: if dense {
                    Attention::Gqa(gqa(&mut p, 9, false))
                } else {
                    Attention::Mla(mla(&mut p, 9, true, true))
                },
                ffn_norm: p.norm(9),
                ffn: if dense { Ffn::Dense(p.swiglu(9, 12)) } else { Ffn::Moe(moe(&mut p, 9, Scoring::Sigmoid, true)) },
            };
            let batch = batch(if dense { 6 } else { 4 });
            let run = |w: &Weights, x: &Tensor, keep| {
                let mut kv = [(); 2].map(|()| block.new_cache(Dtype::F32));
                block.forward(&ops, w, x.clone(), &batch, &mut kv.iter_mut().collect::<Vec<_>>(), keep)
            };
            check(
                &p,
                11,
                9,
                4e-3,
                |w, x| run(w, x, keep).0,
                |w, g, x, dy| {
                    let mut dh = dy.clone();
                    block.backward(&ops, w, g, &batch, run(w, x, keep).1, &mut dh, &NO_BALANCE);
                    // All ways of keeping give the same bits.
                    let (mut all, mut same) = (p.grads(), dy.clone());
                    block.backward(&ops, w, &mut all, &batch, run(w, x, Keep::All).1, &mut same, &NO_BALANCE);
                    assert!(&all == g && same == dh);
                    dh
                },
            );
        }
    }
}

#[test]
fn multi_token_prediction_with_a_sequence_too_short_for_it() {
    let ops = ops();
    let mut p = Params::default();
    let (d, tokens) = (9, [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 0]);
    let mtp = Mtp {
        enorm: p.norm(d),
        hnorm: p.norm(d),
        eh_proj: p.linear(d, 2 * d),
        block: Block {
            attention_norm: p.norm(d),
            attention: Attention::Mla(mla(&mut p, d, true, true)),
            ffn_norm: p.norm(d),
            ffn: Ffn::Dense(p.swiglu(d, 12)),
        },
        norm: p.norm(d),
        embedding: p.matrix(10, d),
    };
    let rows = MtpRows::new(&tokens, &[4, 1, 6]);
    assert_eq!((&rows.rows[..], &rows.lengths[..]), (&[0, 1, 2, 5, 6, 7, 8, 9][..], &[3, 5][..]));
    assert_eq!(rows.next, [1, 4, 1, 2, 6, 5, 3, 0]);
    assert_eq!(rows.targets(&[10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]), [11, 12, 13, 16, 17, 18, 19, 20]);
    let freq = [1.0, 0.3];
    let batch = Batch::new(&rows.lengths, &[0, 0], &freq, 1.0);
    let balance = Balance { alpha: 0.0, cu_seqlens: &batch.cu_seqlens, share: 1.0 };
    let run = |w: &Weights, x: &Tensor| mtp.forward(&ops, w, x, &rows, &batch, Keep::All);
    check(
        &p,
        11,
        d,
        3e-3,
        |w, x| run(w, x).0,
        |w, g, x, dy| {
            let mut dx = zeros(x);
            mtp.backward(&ops, w, g, &rows, &batch, run(w, x).1, dy.clone(), &balance, &mut dx);
            dx
        },
    );
}
