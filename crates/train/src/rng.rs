//! Counter-based random numbers: each is a function of (seed, stream, index, draw), of nothing drawn before and of no thread.
//!
//! So the order of the data at step 10,000 is known without the 9,999 before it, and resuming needs no saved state.
//! Source: Philox 4×32 with 10 rounds, Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".

use jevons_kernels::random::philox4x32;

fn halves(x: u64) -> [u32; 2] {
    [x as u32, (x >> 32) as u32]
}

/// What random numbers are for. Different purposes under one seed never share a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stream {
    /// Order of the documents before packing.
    Documents = 1,
    /// Order of the sequences of an epoch; index: the epoch.
    Epoch = 2,
    /// Which documents a fractional `repeat` takes.
    Repeat = 3,
    /// What a tokenizer is learnt from.
    Sample = 4,
    /// A generated document; index: its number.
    Document = 5,
    /// A generated question about the model; index: its number.
    Identity = 8,
    /// Which sums are held out.
    HeldoutPair = 6,
    /// Initial weights; index: the parameter's number.
    Weights = 7,
}

/// Draws one number after the other from (seed, stream, index); at most 2³² draws.
#[derive(Clone, Debug)]
pub struct Rng {
    key: [u32; 2],
    stream: Stream,
    index: [u32; 2],
    draws: u32,
}

impl Rng {
    /// The numbers named by `seed`, `stream` and `index`.
    pub fn new(seed: u64, stream: Stream, index: u64) -> Self {
        Self { key: halves(seed), stream, index: halves(index), draws: 0 }
    }

    /// A number of 64 random bits.
    pub fn bits(&mut self) -> u64 {
        let [a, b, ..] = philox4x32([self.draws, self.stream as u32, self.index[0], self.index[1]], self.key);
        self.draws = self.draws.checked_add(1).expect("at most 2³² draws from one index");
        u64::from(a) << 32 | u64::from(b)
    }

    /// In [0, 1), a multiple of 2⁻⁵³.
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// In 0..n, all equally likely. Source: Lemire 2019, arXiv:1805.10941.
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "a number below 0");
        loop {
            let product = u128::from(self.bits()) * u128::from(n);
            // 2⁶⁴ mod n of the 2⁶⁴ numbers are one too many for some results; they are drawn again.
            if product as u64 >= n.wrapping_neg() % n {
                return (product >> 64) as u64;
            }
        }
    }

    /// In `low..=high`.
    pub fn between(&mut self, low: i64, high: i64) -> i64 {
        assert!(low <= high);
        low + self.below((high - low) as u64 + 1) as i64
    }

    /// One of them, all equally likely.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}

/// A random order of 0..n that needs no memory: [`Permutation::at`] computes the number at any place.
///
/// A Feistel network over the next even number of bits, walked until it lands below `n` (fewer than 4 times on average).
/// Source: Black and Rogaway 2002, "Ciphers with arbitrary finite domains".
#[derive(Clone, Debug)]
pub struct Permutation {
    n: u64,
    half_bits: u32,
    key: [u32; 2],
    stream: Stream,
    index: u64,
}

impl Permutation {
    const ROUNDS: u32 = 8;

    /// The order of 0..n named by `seed`, `stream` and `index`.
    pub fn new(n: u64, seed: u64, stream: Stream, index: u64) -> Self {
        assert!(n < 1 << 62, "a permutation of {n} numbers");
        let bits = u64::BITS - n.saturating_sub(1).leading_zeros();
        Self { n, half_bits: bits.div_ceil(2).max(1), key: halves(seed), stream, index }
    }

    /// The number at place `i`. Panics unless `i < n`.
    pub fn at(&self, i: u64) -> u64 {
        assert!(i < self.n, "place {i} of {}", self.n);
        let mut x = i;
        loop {
            x = self.encrypt(x);
            if x < self.n {
                return x;
            }
        }
    }

    fn encrypt(&self, x: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (x >> self.half_bits, x & mask);
        // The highest bit keeps these counters apart from those of `Rng`.
        let [low, high] = halves(self.index);
        for round in 0..Self::ROUNDS {
            let counter = [right as u32, self.stream as u32 | 0x8000_0000 | round << 16, low, high];
            (left, right) = (right, left ^ (u64::from(philox4x32(counter, self.key)[0]) & mask));
        }
        left << self.half_bits | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_a_seed_never_change() {
        let mut rng = Rng::new(1, Stream::Epoch, 2);
        let drawn = [rng.bits(), rng.bits(), rng.below(1000), rng.below(1000)];
        assert_eq!(drawn, GOLDEN_DRAWS);
        let p = Permutation::new(10, 1, Stream::Epoch, 0);
        assert_eq!((0..10).map(|i| p.at(i)).collect::<Vec<_>>(), GOLDEN_ORDER);
    }

    // Computed by an implementation in Python, from the papers.
    const GOLDEN_DRAWS: [u64; 4] = [16495799449903995414, 305382775686343962, 738, 81];
    const GOLDEN_ORDER: [u64; 10] = [6, 3, 5, 0, 9, 8, 1, 4, 7, 2];

    #[test]
    fn every_part_of_the_name_matters() {
        let base = Rng::new(1, Stream::Epoch, 2).bits();
        for (seed, stream, index) in [
            (2, Stream::Epoch, 2),
            (1 | 1 << 40, Stream::Epoch, 2),
            (1, Stream::Repeat, 2),
            (1, Stream::Epoch, 2 | 1 << 40),
        ] {
            assert_ne!(Rng::new(seed, stream, index).bits(), base);
        }
    }

    #[test]
    fn below_gives_every_number_about_as_often() {
        let mut rng = Rng::new(7, Stream::Sample, 0);
        let mut seen = [0u32; 7];
        (0..70_000).for_each(|_| seen[rng.below(7) as usize] += 1);
        // Standard deviation √(70000 · 1/7 · 6/7) ≈ 93; five of them.
        assert!(seen.iter().all(|n| n.abs_diff(10_000) < 465), "{seen:?}");
    }

    #[test]
    fn a_permutation_has_every_number_once() {
        for n in [1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000, 4097] {
            let p = Permutation::new(n, 3, Stream::Epoch, n);
            let mut seen: Vec<u64> = (0..n).map(|i| p.at(i)).collect();
            assert!(n < 16 || !seen.is_sorted(), "{n}");
            seen.sort_unstable();
            assert_eq!(seen, (0..n).collect::<Vec<_>>());
        }
    }

    #[test]
    fn every_number_comes_to_every_place_about_as_often() {
        let mut seen = [[0u32; 5]; 5];
        for epoch in 0..10_000 {
            let p = Permutation::new(5, 11, Stream::Epoch, epoch);
            (0..5).for_each(|i| seen[i as usize][p.at(i) as usize] += 1);
        }
        // Standard deviation 40; five of them.
        assert!(seen.iter().flatten().all(|n| n.abs_diff(2000) < 200), "{seen:?}");
    }
}
