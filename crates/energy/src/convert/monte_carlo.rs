//! Intervals by Monte Carlo: each draw of each input is a function of (seed, draw, the input's name) and of nothing else.
//!
//! So the same question has the same answer on every machine, and changing one input moves no other's draws.

use std::f64::consts::TAU;

use jevons_kernels::random::philox4x32;
use serde::Serialize;

use super::Band;

/// Draws of an interval. The p5 and p95 of a log-normal with a spread of 0.5 are then known to about 1 %.
pub const DRAWS: u32 = 10_000;

/// The seed, unless told otherwise.
pub const SEED: u64 = 0;

/// One draw of all inputs.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    seed: u64,
    index: u32,
}

impl Draw {
    /// The draw of number `index` under `seed`.
    pub fn new(seed: u64, index: u32) -> Self {
        Self { seed, index }
    }

    /// A standard normal number, the input's own. Source of the formula: Box and Muller 1958.
    pub fn normal(self, input: &str) -> f64 {
        let name = fnv1a(input);
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        let [a, b, c, d] = philox4x32([self.index, name as u32, (name >> 32) as u32, 0x454e_4552], key);
        let unit =
            |high: u32, low: u32| (((u64::from(high) << 32 | u64::from(low)) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        (-2.0 * libm::log(unit(a, b))).sqrt() * libm::cos(TAU * unit(c, d))
    }

    /// The input's value in this draw.
    pub fn of(self, input: &str, band: Band) -> f64 {
        if band.is_exact() { band.mid() } else { band.at(self.normal(input)) }
    }

    /// The same for a ratio that is never below 1, such as PUE: what is above 1 is drawn.
    pub fn above_one(self, input: &str, band: Band) -> f64 {
        let above = Band::new(band.low() - 1.0, band.mid() - 1.0, band.high() - 1.0);
        above.map_or_else(|_| self.of(input, band).max(1.0), |above| 1.0 + self.of(input, above))
    }

    /// The same for a share, never above 1.
    pub fn share(self, input: &str, band: Band) -> f64 {
        self.of(input, band).min(1.0)
    }
}

/// FNV-1a, 64 bits: a name for each input.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Quantiles of a result.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// One in twenty is below.
    pub p5: f64,
    /// Half are below.
    pub p50: f64,
    /// One in twenty is above.
    pub p95: f64,
}

impl Interval {
    /// Of values in any order. Panics if there are none.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        // Linear between the two neighbours, as most statistics programs do.
        let at = |q: f64| {
            let place = q * (values.len() - 1) as f64;
            let (below, above) = (place.floor() as usize, place.ceil() as usize);
            let (a, b) = (values[below], values[above]);
            if a == b { a } else { a + (b - a) * (place - place.floor()) }
        };
        Self { p5: at(0.05), p50: at(0.5), p95: at(0.95) }
    }

    /// Whether `x` is within, ends included.
    pub fn contains(&self, x: f64) -> bool {
        self.p5 <= x && x <= self.p95
    }
}

/// Intervals of the results of `f` over [`DRAWS`] draws; `f` must return as many numbers each time.
pub fn intervals(seed: u64, mut f: impl FnMut(Draw) -> Vec<f64>) -> Vec<Interval> {
    let first = f(Draw::new(seed, 0));
    let mut columns: Vec<Vec<f64>> = first.into_iter().map(|x| vec![x]).collect();
    for index in 1..DRAWS {
        let row = f(Draw::new(seed, index));
        assert_eq!(row.len(), columns.len(), "as many results in every draw");
        columns.iter_mut().zip(row).for_each(|(column, x)| column.push(x));
    }
    columns.into_iter().map(Interval::of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_those_of_their_name_and_of_no_other() {
        let draw = Draw::new(3, 7);
        assert_eq!(draw.normal("pue"), Draw::new(3, 7).normal("pue"));
        for other in [draw.normal("wue"), Draw::new(4, 7).normal("pue"), Draw::new(3, 8).normal("pue")] {
            assert_ne!(draw.normal("pue"), other);
        }
    }

    #[test]
    fn the_interval_of_a_band_is_the_band() {
        let band = Band::new(2.0, 3.0, 10.0).unwrap();
        let got = intervals(SEED, |draw| vec![draw.of("x", band)])[0];
        // √(0.05 · 0.95 / 10⁴) over the density of a normal at p95 is 0.021 standard deviations; four of them.
        for (got, want) in [(got.p5, 2.0), (got.p50, 3.0), (got.p95, 10.0)] {
            assert!((libm::log(got / want)).abs() < 0.085 * 1.2 / 1.645, "{got} {want}");
        }
    }

    #[test]
    fn an_interval_covers_nine_of_ten_truths() {
        // Truths drawn from the same bands under another seed, as in E · PUE · I.
        let bands =
            [(0.8, 1.0, 1.6), (1.1, 1.25, 1.6), (380.0, 473.0, 600.0)].map(|(l, m, h)| Band::new(l, m, h).unwrap());
        let product = |draw: Draw| draw.of("e", bands[0]) * draw.above_one("pue", bands[1]) * draw.of("grid", bands[2]);
        let interval = intervals(1, |draw| vec![product(draw)])[0];
        let inside = (0..10_000).filter(|i| interval.contains(product(Draw::new(2, *i)))).count();
        assert!((8_800..=9_200).contains(&inside), "{inside}");
    }

    #[test]
    fn a_ratio_above_one_stays_there() {
        let band = Band::new(1.02, 1.1, 2.0).unwrap();
        assert!((0..5000).all(|i| Draw::new(9, i).above_one("pue", band) >= 1.0));
        assert_eq!(Draw::new(0, 0).above_one("pue", Band::exact(1.0)), 1.0);
    }
}
