//! `cargo bench -p jevons-kernels`: rates of the products and of attention at the shapes of a small training step.
//!
//! Best of several runs on all threads of the pool (`RAYON_NUM_THREADS`), GFLOP/s.

use std::time::Instant;

use jevons_kernels::{AttentionSaved, Dtype, HeadShape, Isa, KvBlocks, Matrix, Ops, Sequence, Tensor};

fn best(mut f: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut best = f64::INFINITY;
    while start.elapsed().as_secs_f64() < 0.4 || best == f64::INFINITY {
        let t = Instant::now();
        f();
        best = best.min(t.elapsed().as_secs_f64());
    }
    best
}

fn tensor(dtype: Dtype, rows: usize, cols: usize) -> Tensor {
    let x = (0..rows * cols).map(|i| ((i * 7919 % 1999) as f32 - 999.0) / 1999.0).collect();
    Tensor::from_f32(x, cols).to_dtype(dtype)
}

fn main() {
    println!("{} threads", rayon::current_num_threads());
    println!("{:<9} {:<5} {:>24} {:>9} {:>9} {:>9}", "path", "type", "T x N x K", "forward", "dx", "dw");
    for isa in Isa::available().into_iter().skip(1) {
        let ops = Ops::with_isa(isa);
        for dtype in [Dtype::F32, Dtype::Bf16] {
            for (t, n, k) in
                [(4096, 384, 384), (1024, 192, 384), (1024, 1024, 1024), (512, 8960, 1536), (1, 1536, 1536)]
            {
                let (x, dy) = (tensor(dtype, t, k), tensor(Dtype::F32, t, n));
                let w = Matrix::from_f32(dtype, tensor(Dtype::F32, n, k).f32(), n, k);
                let rate = |s: f64| 2.0 * (t * n * k) as f64 / s / 1e9;
                let forward = rate(best(|| drop(ops.matmul(&x, &w, None, dtype))));
                let input = rate(best(|| drop(ops.matmul_input_grad(&dy, &w))));
                let mut dw = vec![0.0; n * k];
                let weight = rate(best(|| ops.matmul_weight_grad(&dy, &x, &mut dw)));
                let shape = format!("{t} x {n} x {k}");
                println!("{:<9} {dtype:<5?} {shape:>24} {forward:>9.1} {input:>9.1} {weight:>9.1}", isa.name());
            }
            let s = HeadShape { heads: 6, kv_heads: 6, dk: 64, dv: 64, scale: 0.125 };
            let (b, len) = (8, 512usize);
            let make = |d: usize| tensor(dtype, b * len, 6 * d);
            let (q, k, v) = (make(64), make(64), make(64));
            let forward = || {
                let mut kv: Vec<_> = (0..b).map(|_| KvBlocks::new(dtype, s)).collect();
                let mut seqs: Vec<_> =
                    kv.iter_mut().enumerate().map(|(i, kv)| Sequence { first: i * len, tokens: len, kv }).collect();
                ops.attention(s, &q, &k, &v, &mut seqs)
            };
            let flop = (b * 6 * len * len) as f64 * 128.0; // causal half of two products
            let f = flop / best(|| drop(forward())) / 1e9;
            let (o, lse) = forward();
            let cu: Vec<_> = (0..=b).map(|i| i * len).collect();
            let d_o = tensor(Dtype::F32, b * len, 384);
            let saved = AttentionSaved { q: &q, k: &k, v: &v, o: &o, lse: &lse };
            let g = 2.5 * flop / best(|| drop(ops.attention_grad(s, &saved, &d_o, &cu))) / 1e9;
            println!("{:<9} {dtype:<5?} {:>24} {f:>9.1} {g:>9.1}", isa.name(), "attention 8 x 512, 6 x 64");
        }
    }
}
