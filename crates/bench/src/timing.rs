//! How often something runs, and what of it is told.

use std::time::{Duration, Instant};

use serde::Serialize;

/// Runs at most, however short they are.
const MOST: usize = 2000;

/// Times of equal runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Times {
    /// How many.
    pub runs: usize,
    /// The middle one.
    pub median_s: f64,
    /// The shortest.
    pub min_s: f64,
    /// The longest.
    pub max_s: f64,
}

impl Times {
    /// Of at least one run, in any order.
    ///
    /// # Panics
    /// Without a run.
    pub fn of(mut seconds: Vec<f64>) -> Self {
        assert!(!seconds.is_empty(), "at least one run was promised");
        seconds.sort_by(f64::total_cmp);
        let n = seconds.len();
        Self {
            runs: n,
            median_s: (seconds[(n - 1) / 2] + seconds[n / 2]) / 2.0,
            min_s: seconds[0],
            max_s: seconds[n - 1],
        }
    }
}

/// Runs until `budget` is over, at least once. `run` is given its number and returns the seconds that count. The first run warms the
/// caches and does not count, unless it took more than half of the budget.
///
/// # Errors
/// What `run` returned.
pub fn repeat<E>(budget: Duration, run: impl FnMut(usize) -> Result<f64, E>) -> Result<Times, E> {
    Ok(Times::of(samples(budget, run)?))
}

/// As [`repeat`], with everything that each run returned.
///
/// # Errors
/// What `run` returned.
pub fn samples<S, E>(budget: Duration, mut run: impl FnMut(usize) -> Result<S, E>) -> Result<Vec<S>, E> {
    let start = Instant::now();
    let first = run(0)?;
    let mut samples = if start.elapsed() > budget / 2 { vec![first] } else { vec![] };
    while samples.is_empty() || (start.elapsed() < budget && samples.len() < MOST) {
        samples.push(run(samples.len() + 1)?);
    }
    Ok(samples)
}

/// Seconds that `f` takes.
pub fn seconds<R>(f: impl FnOnce() -> R) -> f64 {
    let start = Instant::now();
    std::hint::black_box(f());
    start.elapsed().as_secs_f64().max(1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one_or_between_the_middle_two() {
        let times = Times::of(vec![3.0, 1.0, 2.0]);
        assert_eq!(times, Times { runs: 3, median_s: 2.0, min_s: 1.0, max_s: 3.0 });
        assert_eq!(Times::of(vec![4.0, 1.0, 2.0, 3.0]).median_s, 2.5);
    }

    #[test]
    fn a_first_run_counts_only_where_there_is_no_time_for_another() {
        let mut numbers = vec![];
        let run = |n: usize| {
            numbers.push(n);
            Ok::<_, ()>(n as f64)
        };
        assert_eq!(repeat(Duration::ZERO, run).unwrap(), Times::of(vec![0.0]));
        assert_eq!(numbers, [0]);
        let many = repeat(Duration::from_secs(3600), |n| Ok::<_, ()>(n as f64)).unwrap();
        assert_eq!((many.runs, many.min_s, many.max_s), (MOST, 1.0, MOST as f64));
        assert_eq!(repeat(Duration::ZERO, |_| Err("no")), Err("no"));
    }
}
