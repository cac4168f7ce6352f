//! The least time that work can take on a machine: products at the rate of the arithmetic units, bytes at the rate of memory, both at
//! once.
//!
//! Source: Williams, Waterman and Patterson 2009, "Roofline".

use jevons_kernels::{Dtype, measure::Rates};
use serde::Serialize;

/// On one thread and on all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Pair {
    /// On one thread.
    pub one_thread: f64,
    /// On all threads together.
    pub all_threads: f64,
}

/// What the machine does per second, as measured in this run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Limits {
    /// Bytes read from memory.
    pub read_bytes_per_s: Pair,
    /// The fastest way of reading on one thread.
    pub read_way_one_thread: String,
    /// The fastest way of reading on all threads.
    pub read_way_all_threads: String,
    /// Floating-point operations of f32 multiply-adds in registers, with the instruction set in use.
    pub fma_flop_per_s: Pair,
    /// Of the path's own instruction for products of bf16, in registers; where it has one.
    pub bf16_flop_per_s: Option<Pair>,
    /// Its name.
    pub bf16_instruction: Option<&'static str>,
    /// Of a bf16 product of jevons, 64 × 1024 × 1024.
    pub product_flop_per_s: Pair,
}

/// What decides how fast work can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// Reading.
    Memory,
    /// Multiplying.
    Products,
}

impl Limits {
    /// From the machine's rates.
    pub fn of(rates: &Rates) -> Self {
        let pair = |one_thread, all_threads| Pair { one_thread, all_threads };
        let bf16 = rates.bf16_one_thread.zip(rates.bf16_all_threads);
        Self {
            read_bytes_per_s: pair(rates.read_one_thread, rates.read_all_threads),
            read_way_one_thread: rates.read_one_thread_way.to_string(),
            read_way_all_threads: rates.read_all_threads_way.to_string(),
            fma_flop_per_s: pair(rates.fma_one_thread, rates.fma_all_threads),
            bf16_flop_per_s: bf16.map(|(one, all)| pair(one, all)),
            bf16_instruction: rates.bf16_instruction,
            product_flop_per_s: pair(rates.product_one_thread, rates.product_all_threads),
        }
    }

    /// The better of both in everything: what disturbs makes a measurement lower, never higher.
    #[must_use]
    pub fn best(self, other: Self) -> Self {
        let pair = |a: Pair, b: Pair| Pair {
            one_thread: a.one_thread.max(b.one_thread),
            all_threads: a.all_threads.max(b.all_threads),
        };
        let (a, b) = (self.read_bytes_per_s, other.read_bytes_per_s);
        let way = |better: bool, a: String, b: String| if better { a } else { b };
        Self {
            read_bytes_per_s: pair(a, b),
            read_way_one_thread: way(a.one_thread >= b.one_thread, self.read_way_one_thread, other.read_way_one_thread),
            read_way_all_threads: way(
                a.all_threads >= b.all_threads,
                self.read_way_all_threads,
                other.read_way_all_threads,
            ),
            fma_flop_per_s: pair(self.fma_flop_per_s, other.fma_flop_per_s),
            bf16_flop_per_s: self.bf16_flop_per_s.zip(other.bf16_flop_per_s).map(|(a, b)| pair(a, b)),
            bf16_instruction: self.bf16_instruction,
            product_flop_per_s: pair(self.product_flop_per_s, other.product_flop_per_s),
        }
    }

    /// Floating-point operations per second that products in a format cannot exceed, on all threads.
    pub fn flop_per_s(&self, dtype: Dtype) -> f64 {
        match (dtype, self.bf16_flop_per_s) {
            (Dtype::Bf16, Some(rate)) => rate.all_threads,
            _ => self.fma_flop_per_s.all_threads,
        }
    }

    /// Bytes per second that all threads cannot exceed.
    pub fn bytes_per_s(&self) -> f64 {
        self.read_bytes_per_s.all_threads
    }

    /// The least seconds that products in `dtype` and reading take side by side, and which of them takes as long.
    pub fn least_s(&self, flop: f64, bytes: f64, dtype: Dtype) -> (f64, Bound) {
        let (products, memory) = (flop / self.flop_per_s(dtype), bytes / self.bytes_per_s());
        if products > memory { (products, Bound::Products) } else { (memory, Bound::Memory) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slower_of_reading_and_multiplying_is_the_limit_and_bf16_has_its_own() {
        let pair = |all_threads| Pair { one_thread: 1.0, all_threads };
        let without = Limits { read_bytes_per_s: pair(10.0), fma_flop_per_s: pair(100.0), ..Limits::default() };
        assert_eq!(without.least_s(50.0, 20.0, Dtype::Bf16), (2.0, Bound::Memory));
        assert_eq!(without.least_s(500.0, 20.0, Dtype::Bf16), (5.0, Bound::Products));
        let with = Limits { bf16_flop_per_s: Some(pair(1000.0)), ..without };
        assert_eq!(with.least_s(500.0, 20.0, Dtype::Bf16), (2.0, Bound::Memory));
        assert_eq!(with.least_s(500.0, 20.0, Dtype::F32), (5.0, Bound::Products));
    }

    #[test]
    fn of_two_measurements_the_better_counts_in_each_figure() {
        let limits = |read, way: &str, fma| Limits {
            read_bytes_per_s: Pair { one_thread: read, all_threads: 2.0 },
            read_way_one_thread: way.into(),
            fma_flop_per_s: Pair { one_thread: fma, all_threads: fma },
            ..Limits::default()
        };
        let best = limits(5.0, "a", 1.0).best(limits(4.0, "b", 3.0));
        assert_eq!(best, limits(5.0, "a", 3.0));
        assert_eq!(limits(4.0, "a", 1.0).best(limits(5.0, "b", 3.0)).read_way_one_thread, "b");
    }
}
