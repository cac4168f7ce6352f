//! How fast this machine reads memory and multiplies, measured in a fraction of a second each. The figures are lower bounds:
//! whatever else runs at the same time takes its share.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use rayon::prelude::*;

use crate::{Dtype, Isa, Matrix, Ops, Tensor, isa::multi_isa};

/// Several times the caches of desktop processors, a fraction of any memory.
const BYTES: usize = 128 << 20;
/// A thread's piece of the block.
const PIECE: usize = 1 << 20;
/// Tokens, outputs and inputs of the product that is timed; large enough to reuse what is in cache, small enough to end soon on plain Rust.
const PRODUCT: [usize; 3] = [64, 1024, 1024];

/// What one machine does per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Bytes that one thread reads from memory.
    pub read_one_thread: f64,
    /// Bytes that all threads together read.
    pub read_all_threads: f64,
    /// Floating-point operations of bf16 products on one thread.
    pub product_one_thread: f64,
    /// The same on all threads.
    pub product_all_threads: f64,
    /// Threads that were used.
    pub threads: usize,
}

/// Measures with the threads of the current rayon pool, for about `budget` in all, after some tens of milliseconds of
/// preparation. Takes 128 MiB of memory; `None` if the system cannot give a thread.
pub fn rates(ops: &Ops, budget: Duration) -> Option<Rates> {
    let quarter = budget / 4;
    let block = vec![1_u64; BYTES / 8];
    let sum = |x: &[u64]| {
        black_box(sum(ops.isa(), x));
    };
    let all = || block.par_chunks(PIECE / 8).for_each(sum);
    let one = || block.chunks(PIECE / 8).for_each(sum);

    let [m, n, k] = PRODUCT;
    let x = Tensor::from_f32(vec![0.5; m * k], k).to_dtype(Dtype::Bf16);
    let w = Matrix::from_f32(Dtype::Bf16, &vec![0.25; n * k], n, k);
    let product = || {
        black_box(ops.matmul(&x, &w, None, Dtype::Bf16));
    };
    let flop = (2 * m * n * k) as f64;
    let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().ok()?;
    Some(Rates {
        read_one_thread: BYTES as f64 / best(quarter, one),
        read_all_threads: BYTES as f64 / best(quarter, all),
        product_one_thread: flop / alone.install(|| best(quarter, product)),
        product_all_threads: flop / best(quarter, product),
        threads: rayon::current_num_threads(),
    })
}

/// Seconds of the fastest of as many runs as `budget` allows, at least one: whatever disturbs makes a run slower, never faster.
fn best(budget: Duration, run: impl Fn()) -> f64 {
    let start = Instant::now();
    let mut best = f64::INFINITY;
    while best.is_infinite() || start.elapsed() < budget {
        let before = Instant::now();
        run();
        best = best.min(before.elapsed().as_secs_f64().max(1e-9));
    }
    best
}

multi_isa! {
    /// Sum modulo 2⁶⁴, the cheapest thing that needs every byte.
    fn sum(x: &[u64]) -> u64 {
        x.iter().fold(0, |sum, n| sum.wrapping_add(*n))
    }
}

impl Isa {
    /// The fastest path of this CPU, whatever the environment asks for.
    pub fn fastest() -> Self {
        *Self::available().last().expect("portable is always there")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_adds_the_same() {
        let x: Vec<u64> = (0..1001).map(|n| n * n).collect();
        let expected: u64 = x.iter().sum();
        assert!(Isa::available().into_iter().all(|isa| sum(isa, &x) == expected));
    }

    #[test]
    fn rates_are_measured_within_a_few_times_the_budget() {
        let start = Instant::now();
        let rates = rates(&Ops::with_isa(Isa::fastest()), Duration::from_millis(40)).unwrap();
        let all = [rates.read_one_thread, rates.read_all_threads, rates.product_one_thread, rates.product_all_threads];
        assert!(all.iter().all(|rate| rate.is_finite() && *rate > 1e6), "{rates:?}");
        // The machine may be busy, and 128 MiB must be made first.
        assert!(start.elapsed() < Duration::from_secs(20));
    }
}
