//! How far a number of joules can be trusted.
//!
//! Source: `docs/energy.md`. A sum takes the worst grade of any part above [`MATTERS`] of it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How joules were obtained, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Grade {
    /// A meter between the machine and the wall.
    A,
    /// A hardware counter of energy: RAPL, NVML.
    B,
    /// Samples of power, integrated over time.
    C,
    /// A model calibrated on this machine against a meter.
    D,
    /// Nameplate or declared watts × time and load. No measurement of energy at all.
    E,
}

/// A part of a sum below this share of it does not decide the grade of the sum.
pub const MATTERS: f64 = 0.05;

/// Quantile of the standard normal distribution at 95 %.
const Z95: f64 = 1.644_853_626_951_472_2;

impl Grade {
    /// All, best first.
    pub const ALL: [Self; 5] = [Self::A, Self::B, Self::C, Self::D, Self::E];

    /// For people: where such a number comes from.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::A => "wall meter",
            Self::B => "hardware energy counter",
            Self::C => "integrated power samples",
            Self::D => "calibrated model, no counter",
            Self::E => "declared power × time, no measurement",
        }
    }

    /// What has to be said beside such a number, if anything: that it confirms nothing.
    pub fn caveat(self) -> Option<&'static str> {
        match self {
            Self::A | Self::B | Self::C => None,
            Self::D => {
                Some("no sensor measured most of this: it is computed from time and load, and no evidence of its own")
            }
            Self::E => Some(
                "no sensor measured most of this: it is declared power × time and load, and no evidence of its own",
            ),
        }
    }

    /// Standard uncertainty of ln(joules) where the instrument states none of its own.
    ///
    /// A, B, C: 1 %, 3 % and 5 %, of the size of what makers state for plug meters (±2 %), RAPL and NVML (±5 %). D: 15 %, E: 42 % (p5 to
    /// p95 is a factor of two either way); both are judgements, and reports say so.
    pub fn default_relative(self) -> f64 {
        match self {
            Self::A => 0.01,
            Self::B => 0.03,
            Self::C => 0.05,
            Self::D => 0.15,
            Self::E => 0.42,
        }
    }

    /// `A` to `E`.
    pub fn letter(self) -> char {
        match self {
            Self::A => 'A',
            Self::B => 'B',
            Self::C => 'C',
            Self::D => 'D',
            Self::E => 'E',
        }
    }

    /// The grade of a letter.
    pub fn from_letter(letter: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|g| letter.len() == 1 && letter.starts_with(g.letter()))
    }
}

impl fmt::Display for Grade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.letter())
    }
}

/// Joules with their grade and uncertainty.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Energy {
    /// Best estimate, in joules.
    pub joules: f64,
    /// Standard uncertainty, in joules.
    pub uncertainty_j: f64,
    /// How it was obtained.
    pub grade: Grade,
}

impl Energy {
    /// No energy at all, exactly.
    pub const ZERO: Self = Self { joules: 0.0, uncertainty_j: 0.0, grade: Grade::A };

    /// With the uncertainty usual for the grade.
    pub fn new(joules: f64, grade: Grade) -> Self {
        Self { joules, uncertainty_j: joules.abs() * grade.default_relative(), grade }
    }

    /// The sum of parts. Uncertainties add up linearly, because the errors of meters are systematic: two readings of one
    /// sensor err the same way, so nothing averages out. The grade is the worst of those parts that are above
    /// [`MATTERS`] of the sum of sizes.
    pub fn sum(parts: impl IntoIterator<Item = Self>) -> Self {
        let parts: Vec<_> = parts.into_iter().collect();
        let size: f64 = parts.iter().map(|p| p.joules.abs()).sum();
        // Of nothing but zeros each part matters: a zero that was not measured is none.
        let matters = |p: &&Self| size == 0.0 || p.joules.abs() > MATTERS * size;
        Self {
            joules: parts.iter().map(|p| p.joules).sum(),
            uncertainty_j: parts.iter().map(|p| p.uncertainty_j).sum(),
            grade: parts.iter().filter(matters).map(|p| p.grade).max().unwrap_or(Grade::A),
        }
    }

    /// A share of it, for instance of one request among several.
    pub fn scaled(self, share: f64) -> Self {
        Self { joules: self.joules * share, uncertainty_j: self.uncertainty_j * share.abs(), grade: self.grade }
    }

    /// 5th, 50th and 95th percentile in joules of the log-normal distribution with this median and this standard
    /// uncertainty of the logarithm.
    pub fn band(self) -> [f64; 3] {
        if self.joules <= 0.0 {
            return [self.joules; 3];
        }
        let factor = libm::exp(Z95 * self.uncertainty_j / self.joules);
        [self.joules / factor, self.joules, self.joules * factor]
    }
}

/// `12.3 J (grade E: 6.2–24.6)`.
impl fmt::Display for Energy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [low, _, high] = self.band();
        write!(f, "{} (grade {}: {}–{})", joules(self.joules), self.grade, number(low), joules(high))
    }
}

/// Joules for people, three digits, in J up to 10 kJ, then kJ and MJ.
pub fn joules(j: f64) -> String {
    match j.abs() {
        a if a >= 1e7 => format!("{} MJ", number(j / 1e6)),
        a if a >= 1e4 => format!("{} kJ", number(j / 1e3)),
        _ => format!("{} J", number(j)),
    }
}

/// A number with about three digits.
fn number(x: f64) -> String {
    match x.abs() {
        a if a >= 100.0 => format!("{x:.0}"),
        a if a >= 10.0 => format!("{x:.1}"),
        a if a >= 0.1 || a == 0.0 => format!("{x:.2}"),
        _ => format!("{x:.2e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_takes_the_worst_grade_that_matters() {
        let (b, e) = (Energy::new(96.0, Grade::B), Energy::new(4.0, Grade::E));
        assert_eq!(Energy::sum([b, e]).grade, Grade::B);
        assert_eq!(Energy::sum([b, Energy::new(6.0, Grade::E)]).grade, Grade::E);
        assert_eq!(Energy::sum([]), Energy::ZERO);
        assert_eq!(Energy::sum([Energy::new(0.0, Grade::B), Energy::new(0.0, Grade::E)]).grade, Grade::E);
    }

    #[test]
    fn uncertainties_of_one_sensor_do_not_average_out() {
        let parts = vec![Energy::new(1.0, Grade::C); 100];
        assert!((Energy::sum(parts).uncertainty_j - 5.0).abs() < 1e-12);
    }

    #[test]
    fn the_band_of_a_declared_number_is_a_factor_of_two_either_way() {
        let [low, mid, high] = Energy::new(100.0, Grade::E).band();
        assert!((low - 50.0).abs() < 0.2 && mid == 100.0 && (high - 200.0).abs() < 0.6, "{low} {high}");
    }

    #[test]
    fn letters_name_grades_and_nothing_else_does() {
        for grade in Grade::ALL {
            assert_eq!(Grade::from_letter(&grade.to_string()), Some(grade));
        }
        assert_eq!(["", "F", "AB", "a"].map(Grade::from_letter), [None; 4]);
    }
}
