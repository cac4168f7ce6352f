//! How fast this machine reads memory and multiplies, measured in a fraction of a second each. The figures are lower bounds:
//! whatever else runs at the same time takes its share.

pub(crate) mod peak;

use std::{
    fmt,
    hint::black_box,
    time::{Duration, Instant},
};

use rayon::prelude::*;

use crate::{
    Dtype, Isa, Matrix, Ops, Tensor,
    gemm::pack::Aligned,
    isa::{multi_isa, prefetch},
};

/// Several times the caches of desktop processors, a fraction of any memory: what [`rates`] should read unless there is time and
/// memory for more.
pub const BLOCK_BYTES: usize = 128 << 20;
/// A thread's piece of the block.
const PIECE: usize = 4 << 20;
/// Tokens, outputs and inputs of the product that is timed; large enough to reuse what is in cache, small enough to end soon on plain Rust.
const PRODUCT: [usize; 3] = [64, 1024, 1024];

/// A way to read a block of memory. Which one is fastest depends on how far a core looks ahead by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// Places that are read in turn, 1 to 4.
    pub streams: usize,
    /// Whether what comes is asked for ahead.
    pub prefetched: bool,
}

impl Default for Way {
    fn default() -> Self {
        Self { streams: 1, prefetched: false }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let streams = if self.streams == 1 { "stream" } else { "streams" };
        write!(f, "{} {streams}{}", self.streams, if self.prefetched { ", prefetched" } else { "" })
    }
}

impl Way {
    /// All that this program can do.
    pub fn all() -> Vec<Self> {
        let prefetch: &[bool] = if cfg!(target_arch = "x86_64") { &[false, true] } else { &[false] };
        let ways = (1..=4).flat_map(|streams| prefetch.iter().map(move |prefetched| (streams, *prefetched)));
        ways.map(|(streams, prefetched)| Self { streams, prefetched }).collect()
    }
}

/// What one machine does per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Bytes that one thread reads from memory, the best of all ways.
    pub read_one_thread: f64,
    /// Which was the best.
    pub read_one_thread_way: Way,
    /// Bytes that all threads together read, the best of all ways.
    pub read_all_threads: f64,
    /// Which was the best.
    pub read_all_threads_way: Way,
    /// Floating-point operations of f32 multiply-adds on registers, the instruction set's own rate, on one thread.
    pub fma_one_thread: f64,
    /// The same on all threads.
    pub fma_all_threads: f64,
    /// Floating-point operations of the instruction that multiplies bf16 ([`Isa::bf16_instruction`]) on registers, on one thread; `None` without one.
    pub bf16_one_thread: Option<f64>,
    /// The same on all threads.
    pub bf16_all_threads: Option<f64>,
    /// The name of that instruction.
    pub bf16_instruction: Option<&'static str>,
    /// Floating-point operations of the house's bf16 products on one thread.
    pub product_one_thread: f64,
    /// The same on all threads.
    pub product_all_threads: f64,
    /// Threads that were used.
    pub threads: usize,
}

/// Measures with the threads of the current rayon pool, for about `budget` in all, after some tens of milliseconds of
/// preparation. Takes `block_bytes` of memory, which should be several times what the caches hold; `None` if the system cannot give
/// a thread.
pub fn rates(ops: &Ops, block_bytes: usize, budget: Duration) -> Option<Rates> {
    let isa = ops.isa();
    let threads = rayon::current_num_threads();
    let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().ok()?;

    // In the pages that weights have.
    let block = Aligned::<f32>::zeros(block_bytes / 8 * 2);
    let block: &[u64] = bytemuck::cast_slice(&block);
    let ways = Way::all();
    let share = budget / 4 / ways.len() as u32;
    let sum = |x: &[u64], way: Way| {
        black_box(read(isa, x, way));
    };
    let bytes = (block.len() * 8) as f64;
    let fastest = |run: &dyn Fn(Way)| {
        let timed = ways.iter().map(|way| (bytes / best(share, || run(*way)), *way));
        timed.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or_default()
    };
    let (read_one_thread, read_one_thread_way) = fastest(&|way| block.chunks(PIECE / 8).for_each(|x| sum(x, way)));
    let (read_all_threads, read_all_threads_way) =
        fastest(&|way| block.par_chunks(PIECE / 8).for_each(|x| sum(x, way)));

    let eighth = budget / 8;
    // On all threads at once; a thread that another program holds up makes the round slower, so the best round counts.
    let on_all = |run: &(dyn Fn() -> f64 + Sync)| {
        let work: f64 = rayon::broadcast(|_| run()).into_iter().sum();
        work / best(eighth / 2, || drop(rayon::broadcast(|_| run())))
    };
    let on_one = |run: &dyn Fn() -> f64| {
        run()
            / best(eighth / 2, || {
                black_box(run());
            })
    };
    let fma = || (0..16).map(|_| peak::fma(isa)).sum();
    let bf16 = || (0..16).filter_map(|_| peak::bf16(isa)).sum();
    let has_bf16 = isa.bf16_instruction().is_some();

    let [m, n, k] = PRODUCT;
    let x = Tensor::from_f32(vec![0.5; m * k], k).to_dtype(Dtype::Bf16);
    let w = Matrix::from_f32(Dtype::Bf16, &vec![0.25; n * k], n, k);
    let product = || {
        black_box(ops.matmul(&x, &w, None, Dtype::Bf16));
    };
    let flop = (2 * m * n * k) as f64;
    Some(Rates {
        read_one_thread,
        read_one_thread_way,
        read_all_threads,
        read_all_threads_way,
        fma_one_thread: on_one(&fma),
        fma_all_threads: on_all(&fma),
        bf16_one_thread: has_bf16.then(|| on_one(&bf16)),
        bf16_all_threads: has_bf16.then(|| on_all(&bf16)),
        bf16_instruction: isa.bf16_instruction(),
        product_one_thread: flop / alone.install(|| best(eighth, product)),
        product_all_threads: flop / best(eighth, product),
        threads,
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
    fn read(x: &[u64], way: Way) -> u64 {
        match way {
            Way { streams: 2, prefetched: false } => sum::<2, false>(x),
            Way { streams: 3, prefetched: false } => sum::<3, false>(x),
            Way { streams: 4, prefetched: false } => sum::<4, false>(x),
            Way { prefetched: false, .. } => sum::<1, false>(x),
            Way { streams: 2, .. } => sum::<2, true>(x),
            Way { streams: 3, .. } => sum::<3, true>(x),
            Way { streams: 4, .. } => sum::<4, true>(x),
            Way { .. } => sum::<1, true>(x),
        }
    }
}

/// Cache lines between what is read and what is asked for.
const AHEAD: usize = 32;

#[inline(always)]
fn sum<const STREAMS: usize, const PREFETCH: bool>(x: &[u64]) -> u64 {
    let (lines, tail) = x.as_chunks::<8>();
    let length = lines.len() / STREAMS;
    let mut sums = [[0_u64; 8]; STREAMS];
    for i in 0..length {
        for (s, sum) in sums.iter_mut().enumerate() {
            let line = &lines[s * length + i];
            if PREFETCH {
                prefetch(std::ptr::from_ref(line).wrapping_add(AHEAD));
            }
            (0..8).for_each(|j| sum[j] = sum[j].wrapping_add(line[j]));
        }
    }
    let rest = lines[STREAMS * length..].iter().flatten().chain(tail);
    sums.iter().flatten().chain(rest).fold(0, |sum, n| sum.wrapping_add(*n))
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
    fn every_path_and_every_way_reads_every_number_once() {
        for len in [0, 7, 8, 31, 1001] {
            let x: Vec<u64> = (0..len).map(|n| n * n).collect();
            let expected: u64 = x.iter().sum();
            for (isa, way) in
                Isa::available().into_iter().flat_map(|isa| Way::all().into_iter().map(move |way| (isa, way)))
            {
                assert_eq!(read(isa, &x, way), expected, "{} {way}", isa.name());
            }
        }
    }

    #[test]
    fn wider_paths_do_more_operations_in_as_many_rounds() {
        let operations: Vec<f64> = Isa::available().into_iter().map(peak::fma).collect();
        assert!(operations.is_sorted() && operations[0] > 0.0, "{operations:?}");
    }

    #[test]
    fn rates_are_measured_within_a_few_times_the_budget() {
        let start = Instant::now();
        let ops = Ops::with_isa(Isa::fastest());
        let rates = rates(&ops, BLOCK_BYTES, Duration::from_millis(40)).unwrap();
        let all = [
            rates.read_one_thread,
            rates.read_all_threads,
            rates.fma_one_thread,
            rates.fma_all_threads,
            rates.product_one_thread,
            rates.product_all_threads,
        ];
        assert!(all.iter().all(|rate| rate.is_finite() && *rate > 1e6), "{rates:?}");
        assert_eq!(rates.bf16_all_threads.is_some(), ops.isa().bf16_instruction().is_some());
        // The machine may be busy, and 128 MiB must be made first.
        assert!(start.elapsed() < Duration::from_secs(20));
    }
}
