//! A number that is known within a band.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::ConvertError;

/// p5, p50 and p95 of a quantity that is positive, or exactly known.
///
/// Between and beyond, it is log-normal on either side of the centre with a spread of its own, so that asymmetric knowledge stays
/// asymmetric. All three are finite and ordered; unless they are equal they are above 0.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Band {
    low: f64,
    mid: f64,
    high: f64,
}

/// The p95 of a standard normal.
pub(crate) const Z95: f64 = 1.644_853_626_951_472_2;

impl Band {
    /// A number known exactly. Panics unless it is finite and not negative.
    pub const fn exact(x: f64) -> Self {
        assert!(x.is_finite() && x >= 0.0, "an exact quantity is finite and not negative");
        Self { low: x, mid: x, high: x }
    }

    /// p5, p50, p95.
    ///
    /// # Errors
    /// [`ConvertError::Number`] unless `0 < low ≤ mid ≤ high < ∞`, or all three are equal, finite and not negative.
    pub fn new(low: f64, mid: f64, high: f64) -> Result<Self, ConvertError> {
        let exact = low == mid && mid == high && mid.is_finite() && mid >= 0.0;
        if exact || (low > 0.0 && low <= mid && mid <= high && high.is_finite()) {
            Ok(Self { low, mid, high })
        } else {
            Err(ConvertError::Number {
                what: "a band".into(),
                found: format!("{low}:{mid}:{high}"),
                expected: "low:mid:high, finite, ordered and above 0; or one number for an exact value".into(),
            })
        }
    }

    /// p5.
    pub fn low(self) -> f64 {
        self.low
    }

    /// p50.
    pub fn mid(self) -> f64 {
        self.mid
    }

    /// p95.
    pub fn high(self) -> f64 {
        self.high
    }

    /// Whether it is known exactly.
    pub fn is_exact(self) -> bool {
        self.low == self.high
    }

    /// The value `z` standard deviations from the centre: −1.645 gives `low`, 0 `mid`, 1.645 `high`.
    pub fn at(self, z: f64) -> f64 {
        if self.is_exact() {
            return self.mid;
        }
        let ratio = if z < 0.0 { self.mid / self.low } else { self.high / self.mid };
        self.mid * libm::exp(libm::log(ratio) * z / Z95)
    }

    /// Every number of the band times a positive factor.
    #[must_use]
    pub fn times(self, factor: f64) -> Self {
        debug_assert!(factor >= 0.0 && factor.is_finite());
        Self { low: self.low * factor, mid: self.mid * factor, high: self.high * factor }
    }
}

impl FromStr for Band {
    type Err = ConvertError;

    /// `12`, `1.5e6`, `14.8T` (K, M, B or G, T), or `low:mid:high`.
    fn from_str(text: &str) -> Result<Self, ConvertError> {
        let bad = || ConvertError::Number {
            what: "a quantity".into(),
            found: format!("`{}`", text.chars().take(60).collect::<String>()),
            expected: "a number that is not negative (12, 1.5e6, 14.8T), or its band low:mid:high (1M:2M:5M)".into(),
        };
        let numbers: Result<Vec<f64>, _> = text.split(':').map(|part| with_suffix(part.trim())).collect();
        match numbers.as_deref() {
            Ok([x]) => Self::new(*x, *x, *x).map_err(|_| bad()),
            Ok([low, mid, high]) => Self::new(*low, *mid, *high),
            _ => Err(bad()),
        }
    }
}

/// A number with K, M, B (or G) or T after it, in powers of a thousand.
fn with_suffix(text: &str) -> Result<f64, std::num::ParseFloatError> {
    let (digits, factor) = match text.char_indices().next_back() {
        Some((at, 'k' | 'K')) => (&text[..at], 1e3),
        Some((at, 'M')) => (&text[..at], 1e6),
        Some((at, 'B' | 'G')) => (&text[..at], 1e9),
        Some((at, 'T')) => (&text[..at], 1e12),
        _ => (text, 1.0),
    };
    digits.parse::<f64>().map(|x| x * factor)
}

impl<'de> Deserialize<'de> for Band {
    /// One number, or a list `[low, mid, high]`.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Exact(f64),
            Band([f64; 3]),
        }
        let [low, mid, high] = match Form::deserialize(deserializer)? {
            Form::Exact(x) => [x; 3],
            Form::Band(band) => band,
        };
        Self::new(low, mid, high).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_band_passes_through_its_three_numbers() {
        let band = Band::new(1.0, 3.0, 4.0).unwrap();
        for (z, want) in [(-Z95, 1.0), (0.0, 3.0), (Z95, 4.0)] {
            assert!((band.at(z) - want).abs() < 1e-12, "{z}: {}", band.at(z));
        }
        assert_eq!(Band::exact(0.0).at(3.0), 0.0);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "x", "-1", "NaN", "inf", "1:2", "3:2:1", "0:1:2", "1:2:inf", "1:2:3:4", "-1:1:2"] {
            assert!(text.parse::<Band>().is_err(), "{text}");
        }
        assert_eq!("1e3".parse::<Band>().unwrap(), Band::exact(1000.0));
        assert_eq!("14.8T".parse::<Band>().unwrap(), Band::exact(14.8e12));
        assert_eq!("2788K".parse::<Band>().unwrap(), Band::exact(2.788e6));
        assert!("T".parse::<Band>().is_err() && "1Q".parse::<Band>().is_err());
        assert_eq!("1:2:3".parse::<Band>().unwrap(), Band::new(1.0, 2.0, 3.0).unwrap());
    }
}
