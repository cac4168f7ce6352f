//! Cumulative counters and samples of power, turned into joules.
//!
//! A read that fails is *pending*: the next good read bridges it, because a counter goes on counting while nobody looks. Joules
//! are *lost* only where the counter itself is no witness any more: after a reset, or when it may have wrapped twice.

/// What one look at a sensor says.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Joules since the last `Known` or `Lost`.
    Known(f64),
    /// Nothing now, and why; a later `Known` will cover this time too.
    Pending(String),
    /// The time since the last `Known` or `Lost` will never be known, and why. The sensor counts on from here.
    Lost(String),
}

/// Turns the states of a cumulative counter into joules.
#[derive(Clone, Debug)]
pub struct Counter {
    joules_per_unit: f64,
    /// Where the counter begins again; none if it never does.
    range: Option<u64>,
    /// No more power than this can flow through what is counted, in watts. Tells a wrap from a reset.
    max_w: f64,
    /// The counter may lag behind by this much, in seconds.
    granularity_s: f64,
    /// Time and state of the last good read.
    last: Option<(f64, u64)>,
}

impl Counter {
    /// A counter of units of `joules_per_unit` that wraps at `range`.
    pub fn new(joules_per_unit: f64, range: Option<u64>, max_w: f64, granularity_s: f64) -> Self {
        Self { joules_per_unit, range: range.filter(|r| *r > 0), max_w, granularity_s, last: None }
    }

    /// The counter stands at `value` at the time `now_s`; an error if it could not be read.
    ///
    /// `ΔE = (e₂ − e₁) mod R`, valid while the gap is below `R / P_max`.
    pub fn read(&mut self, now_s: f64, value: Result<u64, String>) -> Step {
        let value = match (value, self.range) {
            (Ok(v), Some(r)) if v > r => return Step::Pending(format!("the counter reads {v}, above its range {r}")),
            (Ok(v), _) => v,
            (Err(why), _) => return Step::Pending(why),
        };
        let Some((then_s, before)) = self.last.replace((now_s, value)) else {
            return Step::Lost("first reading".into());
        };
        let gap_s = (now_s - then_s).max(0.0);
        let units = match self.range {
            Some(range) if gap_s >= range as f64 * self.joules_per_unit / self.max_w => {
                return Step::Lost(format!("no reading for {gap_s:.0} s, in which the counter may have wrapped twice"));
            }
            Some(range) if value < before => range - before + value,
            None if value < before => return Step::Lost("the counter went back: its driver was restarted".into()),
            _ => value - before,
        };
        let joules = units as f64 * self.joules_per_unit;
        if joules > self.max_w * (gap_s + self.granularity_s) {
            return Step::Lost(format!("{joules:.0} J in {gap_s:.3} s cannot be: the counter was reset"));
        }
        Step::Known(joules)
    }
}

/// Integrates samples of power by the trapezoid rule.
#[derive(Clone, Debug)]
pub struct Integrator {
    /// Power between samples further apart than this is unknown, in seconds.
    max_gap_s: f64,
    last: Option<(f64, f64)>,
}

impl Integrator {
    /// For samples that are at most `max_gap_s` apart.
    pub fn new(max_gap_s: f64) -> Self {
        Self { max_gap_s, last: None }
    }

    /// Power is `watts` at the time `now_s`; an error if it could not be read.
    pub fn read(&mut self, now_s: f64, watts: Result<f64, String>) -> Step {
        let watts = match watts {
            Ok(w) if w.is_finite() && w >= 0.0 => w,
            Ok(w) => return Step::Pending(format!("{w} W is no power")),
            Err(why) => return Step::Pending(why),
        };
        match self.last.replace((now_s, watts)) {
            None => Step::Lost("first reading".into()),
            Some((then_s, _)) if now_s - then_s > self.max_gap_s => {
                Step::Lost(format!("no sample of power for {:.1} s", now_s - then_s))
            }
            Some((then_s, before)) => Step::Known((now_s - then_s).max(0.0) * (watts + before) / 2.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Joules of all known steps, and how many steps were lost.
    fn total(counter: &mut Counter, reads: &[(f64, Option<u64>)]) -> (f64, usize) {
        let mut sum = (0.0, 0);
        for (t, value) in reads {
            match counter.read(*t, value.ok_or_else(|| "gone".into())) {
                Step::Known(j) => sum.0 += j,
                Step::Lost(_) => sum.1 += 1,
                Step::Pending(_) => {}
            }
        }
        sum
    }

    fn rapl() -> Counter {
        Counter::new(1e-6, Some(262_143_300_000), 1000.0, 0.001)
    }

    // D1: others make 262,146.5 J of it, because the failed read becomes 0 and looks like a wrap.
    #[test]
    fn d1_a_failed_read_is_bridged_by_the_next_good_one() {
        let reads =
            [(0.0, Some(100_000_000_000)), (1.0, Some(100_001_500_000)), (2.0, None), (3.0, Some(100_003_000_000))];
        assert_eq!(total(&mut rapl(), &reads), (3.0, 1)); // the first reading is the one "lost"
    }

    // D2: others report 0 W over a wrap.
    #[test]
    fn d2_a_wrap_is_a_modular_difference() {
        let (joules, lost) = total(&mut rapl(), &[(0.0, Some(262_143_000_000)), (1.0, Some(500_000_000))]);
        assert!((joules - 500.3).abs() < 1e-9 && lost == 1, "{joules}");
    }

    #[test]
    fn a_reset_is_no_wrap_and_its_joules_are_lost_not_invented() {
        let reads = [(0.0, Some(100_000_000_000)), (1.0, Some(5_000_000)), (2.0, Some(6_000_000))];
        assert_eq!(total(&mut rapl(), &reads), (1.0, 2));
        let mut nvml = Counter::new(1e-3, None, 2000.0, 0.1);
        assert_eq!(total(&mut nvml, &[(0.0, Some(9_000)), (1.0, Some(10)), (2.0, Some(1_010))]), (1.0, 2));
    }

    #[test]
    fn a_gap_in_which_the_counter_may_wrap_twice_is_lost() {
        let reads = [(0.0, Some(0)), (262.0, Some(1_000_000)), (600.0, Some(2_000_000))];
        assert_eq!(total(&mut rapl(), &reads), (1.0, 2));
    }

    #[test]
    fn a_value_above_the_range_is_unknown() {
        assert!(matches!(rapl().read(0.0, Ok(u64::MAX)), Step::Pending(_)));
    }

    #[test]
    fn power_is_integrated_by_trapezoids_and_not_across_long_gaps() {
        let mut power = Integrator::new(5.0);
        assert!(matches!(power.read(0.0, Ok(100.0)), Step::Lost(_)));
        assert_eq!(power.read(2.0, Ok(200.0)), Step::Known(300.0));
        assert!(matches!(power.read(3.0, Err("no".into())), Step::Pending(_)));
        assert_eq!(power.read(4.0, Ok(200.0)), Step::Known(400.0));
        assert!(matches!(power.read(20.0, Ok(200.0)), Step::Lost(_)));
        assert!(matches!(power.read(21.0, Ok(f64::NAN)), Step::Pending(_)));
        assert!(matches!(power.read(21.0, Ok(-1.0)), Step::Pending(_)));
    }
}
