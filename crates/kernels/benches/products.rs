//! `cargo bench -p jevons-kernels [-- FILTER]`: the products and attention at the shapes of models, on every path of this CPU but plain
//! Rust, on all threads of the pool (`RAYON_NUM_THREADS`). Elements per second are floating-point operations per second.
//!
//! Weights of these sizes stay in a cache; `jevons bench gemm` reads the ones of thin products from memory, as decoding does.

use std::{hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use jevons_kernels::{AttentionSaved, Dtype, HeadShape, Isa, KvBlocks, Matrix, Ops, Sequence, Tensor};

/// Tokens, outputs, inputs: of a small training step, a square, a 1.5 B model's prompt, a few rows of an expert, and one row.
const SHAPES: [[usize; 3]; 6] =
    [[4096, 384, 384], [1024, 192, 384], [1024, 1024, 1024], [512, 8960, 1536], [48, 512, 1024], [1, 1536, 1536]];

fn tensor(dtype: Dtype, rows: usize, cols: usize) -> Tensor {
    let x = (0..rows * cols).map(|i| ((i * 7919 % 1999) as f32 - 999.0) / 1999.0).collect();
    Tensor::from_f32(x, cols).to_dtype(dtype)
}

fn paths() -> impl Iterator<Item = (Ops, Dtype, String)> {
    let isas = Isa::available().into_iter().skip(1);
    isas.flat_map(|isa| {
        [Dtype::F32, Dtype::Bf16].map(|dtype| {
            let name = format!("{}/{}", isa.name(), if dtype == Dtype::F32 { "f32" } else { "bf16" });
            (Ops::with_isa(isa), dtype, name)
        })
    })
}

fn products(c: &mut Criterion) {
    for (ops, dtype, path) in paths() {
        let mut group = c.benchmark_group(format!("products/{path}"));
        for [t, n, k] in SHAPES {
            let (x, dy) = (tensor(dtype, t, k), tensor(Dtype::F32, t, n));
            let w = Matrix::from_f32(dtype, tensor(Dtype::F32, n, k).f32(), n, k);
            let mut dw = vec![0.0; n * k];
            group.throughput(Throughput::Elements(2 * (t * n * k) as u64));
            let id = |product: &str| BenchmarkId::new(product, format!("{t}x{n}x{k}"));
            group.bench_function(id("forward"), |b| b.iter(|| black_box(ops.matmul(&x, &w, None, dtype))));
            group.bench_function(id("dx"), |b| b.iter(|| black_box(ops.matmul_input_grad(&dy, &w))));
            group.bench_function(id("dw"), |b| b.iter(|| ops.matmul_weight_grad(&dy, &x, &mut dw)));
        }
        group.finish();
    }
}

/// 8 sequences of 512 tokens, 6 heads of 64.
fn attention(c: &mut Criterion) {
    let shape = HeadShape { heads: 6, kv_heads: 6, dk: 64, dv: 64, scale: 0.125 };
    let (sequences, len) = (8, 512);
    for (ops, dtype, path) in paths() {
        let mut group = c.benchmark_group(format!("attention/{path}"));
        let make = || tensor(dtype, sequences * len, 6 * 64);
        let (q, k, v) = (make(), make(), make());
        let forward = || {
            let mut kv: Vec<_> = (0..sequences).map(|_| KvBlocks::new(dtype, shape)).collect();
            let mut seqs: Vec<_> =
                kv.iter_mut().enumerate().map(|(i, kv)| Sequence { first: i * len, tokens: len, kv }).collect();
            ops.attention(shape, &q, &k, &v, &mut seqs)
        };
        // The causal half of two products, and of five.
        let flop = (sequences * 6 * len * len * 128) as u64;
        group.throughput(Throughput::Elements(flop));
        group.bench_function("forward", |b| b.iter(|| black_box(forward())));
        let (o, lse) = forward();
        let cu: Vec<_> = (0..=sequences).map(|i| i * len).collect();
        let d_o = tensor(Dtype::F32, sequences * len, 6 * 64);
        let saved = AttentionSaved { q: &q, k: &k, v: &v, o: &o, lse: &lse };
        group.throughput(Throughput::Elements(flop * 5 / 2));
        group.bench_function("backward", |b| b.iter(|| black_box(ops.attention_grad(shape, &saved, &d_o, &cu))));
        group.finish();
    }
}

fn short() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
}

criterion_group! { name = benches; config = short(); targets = products, attention }
criterion_main!(benches);
