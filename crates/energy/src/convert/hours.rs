//! Grid intensity hour by hour, from a file.

use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};
use serde::Serialize;

use super::ConvertError;

/// Grams of CO2 equivalent per kWh of electricity. The highest grid of the world is below 1,300; what is above 2,500 was given in another unit.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize)]
pub struct CarbonIntensity(f64);

impl CarbonIntensity {
    /// # Errors
    /// [`ConvertError::Number`] unless finite and in 0..=2500.
    pub fn from_g_per_kwh(g: f64) -> Result<Self, ConvertError> {
        if (0.0..=2500.0).contains(&g) {
            return Ok(Self(g));
        }
        Err(ConvertError::Number {
            what: "a carbon intensity".into(),
            found: format!("{g} g/kWh"),
            expected: "0 to 2,500 g/kWh; 1 g/kWh is 1 kg/MWh, and 0.001 kg/kWh".into(),
        })
    }

    /// # Errors
    /// [`ConvertError::Number`] unless in 0..=2.5. 731.59 kg/kWh is refused: it was meant per MWh.
    pub fn from_kg_per_kwh(kg: f64) -> Result<Self, ConvertError> {
        Self::from_g_per_kwh(kg * 1000.0)
    }

    /// # Errors
    /// As [`CarbonIntensity::from_g_per_kwh`].
    pub fn from_kg_per_mwh(kg: f64) -> Result<Self, ConvertError> {
        Self::from_g_per_kwh(kg)
    }

    /// In g/kWh.
    pub fn g_per_kwh(self) -> f64 {
        self.0
    }
}

/// An hour's intensity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hour {
    /// When it begins.
    pub start: DateTime<Utc>,
    /// Its mean.
    pub intensity: CarbonIntensity,
}

/// Consecutive hours. Never empty.
#[derive(Clone, Debug, PartialEq)]
pub struct IntensityHours {
    hours: Vec<Hour>,
}

/// Hours of a file at most: a century.
const MAX_HOURS: usize = 24 * 366 * 100;

impl IntensityHours {
    /// Reads CSV with the header `time,g_per_kwh` and one line per hour, times as `2026-01-31T13:00Z` (also with seconds, or with an offset).
    ///
    /// # Errors
    /// [`ConvertError::Hours`] for another header, a line that is not an hour and a number, or hours that do not follow each other.
    ///
    /// ```
    /// # use jevons_energy::convert::IntensityHours;
    /// let hours = IntensityHours::from_csv("time,g_per_kwh\n2026-01-01T00:00Z,300\n2026-01-01T01:00Z,100\n").unwrap();
    /// assert_eq!(hours.mean_g_per_kwh(), 200.0);
    /// assert!(IntensityHours::from_csv("time,kg_per_mwh\n").is_err());
    /// ```
    pub fn from_csv(text: &str) -> Result<Self, ConvertError> {
        let bad = |line: usize, problem: String| ConvertError::Hours { line, problem };
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut reader = csv::ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .trim(csv::Trim::All)
            .from_reader(text.as_bytes());
        let mut hours: Vec<Hour> = Vec::new();
        for (i, record) in reader.records().enumerate() {
            let record = record.map_err(|error| bad(i + 1, error.to_string()))?;
            let line = record.position().map_or(i + 1, |p| p.line() as usize);
            let cells: Vec<&str> = record.iter().collect();
            if i == 0 {
                if cells != ["time", "g_per_kwh"] {
                    return Err(bad(line, format!("the header is `{}`", shown(&cells.join(",")))));
                }
                continue;
            }
            let [time, value] = cells[..] else {
                return Err(bad(line, format!("it has {} values", cells.len())));
            };
            let start = parse_time(time).ok_or_else(|| bad(line, format!("`{}` is no time", shown(time))))?;
            let g: f64 = value.parse().map_err(|_| bad(line, format!("`{}` is no number", shown(value))))?;
            let intensity = CarbonIntensity::from_g_per_kwh(g).map_err(|error| bad(line, error.to_string()))?;
            if let Some(last) = hours.last()
                && (start - last.start).num_seconds() != 3600
            {
                return Err(bad(line, format!("{start} does not follow {} by one hour", last.start)));
            }
            if hours.len() == MAX_HOURS {
                return Err(bad(line, "the file has more than a century of hours".into()));
            }
            hours.push(Hour { start, intensity });
        }
        if hours.is_empty() {
            return Err(bad(1, "there are no hours".into()));
        }
        Ok(Self { hours })
    }

    /// In order.
    pub fn hours(&self) -> &[Hour] {
        &self.hours
    }

    /// Mean of all hours.
    pub fn mean_g_per_kwh(&self) -> f64 {
        self.hours.iter().map(|h| h.intensity.0).sum::<f64>() / self.hours.len() as f64
    }

    /// Mean intensity of energy that was used within these hours, `Σ E_h · I_h / Σ E_h`, in g/kWh. Each use is `(begin, end, energy)` in
    /// milliseconds since 1970 and any one unit, and is taken as even from begin to end. Of no energy: the mean of all hours.
    ///
    /// # Errors
    /// [`ConvertError::NoHour`] for a use that is not within the hours of the file.
    pub fn mean_of_use(&self, uses: impl IntoIterator<Item = (i64, i64, f64)>) -> Result<f64, ConvertError> {
        const HOUR_MS: i64 = 3_600_000;
        let first = self.hours[0].start.timestamp_millis();
        let (mut energy, mut weighted) = (0.0, 0.0);
        for (begin, end, used) in uses {
            let (from, to) = (
                begin.saturating_sub(first).div_euclid(HOUR_MS),
                end.max(begin).saturating_sub(first).div_euclid(HOUR_MS),
            );
            let hours = usize::try_from(from).ok().zip(usize::try_from(to).ok());
            let within = hours.and_then(|(from, to)| self.hours.get(from..=to));
            let Some(within) = within else {
                let last = self.hours[self.hours.len() - 1].start + TimeDelta::hours(1);
                let at = DateTime::from_timestamp_millis(if from < 0 { begin } else { end }).unwrap_or_default();
                return Err(ConvertError::NoHour {
                    at: at.to_rfc3339(),
                    from: self.hours[0].start.to_rfc3339(),
                    to: last.to_rfc3339(),
                });
            };
            energy += used;
            for (hour, i) in within.iter().zip(from..) {
                let (hour_begin, hour_end) = (first + i * HOUR_MS, first + (i + 1) * HOUR_MS);
                let share = if end > begin {
                    (end.min(hour_end) - begin.max(hour_begin)) as f64 / (end - begin) as f64
                } else {
                    1.0
                };
                weighted += used * share * hour.intensity.0;
            }
        }
        Ok(if energy > 0.0 { weighted / energy } else { self.mean_g_per_kwh() })
    }
}

fn parse_time(text: &str) -> Option<DateTime<Utc>> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Some(time.to_utc());
    }
    NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%MZ").ok().map(|time| time.and_utc())
}

/// The beginning of a stranger's text, without what would change a terminal.
fn shown(text: &str) -> String {
    text.chars().take(60).map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_intensity_in_the_wrong_unit_is_refused() {
        // D8: a documentation gave 731.59 kgCO2 per kWh where per MWh was meant.
        assert!(CarbonIntensity::from_kg_per_kwh(731.59).is_err());
        assert_eq!(CarbonIntensity::from_kg_per_mwh(731.59).unwrap().g_per_kwh(), 731.59);
        for bad in [f64::NAN, -1.0, f64::INFINITY, 2500.1] {
            assert!(CarbonIntensity::from_g_per_kwh(bad).is_err());
        }
    }

    #[test]
    fn carbon_of_hours_is_integrated_and_not_averaged() {
        let hours =
            IntensityHours::from_csv("time,g_per_kwh\n2026-03-29T00:00Z,100\n2026-03-29T01:00:00Z,300\n").unwrap();
        let t = |minutes: i64| hours.hours()[0].start.timestamp_millis() + minutes * 60_000;
        // 3 in the clean hour, 1 in the other: 150, where the plain mean is 200.
        assert_eq!(hours.mean_of_use([(t(0), t(60) - 1, 3.0), (t(70), t(80), 1.0)]).unwrap(), 150.0);
        // A use over both is shared out by time: a quarter in the first hour.
        assert_eq!(hours.mean_of_use([(t(45), t(105), 1.0)]).unwrap(), 250.0);
        assert_eq!(hours.mean_of_use([(t(5), t(5), 1.0)]).unwrap(), 100.0);
        assert_eq!(hours.mean_of_use([]).unwrap(), 200.0);
        for (begin, end) in [
            (t(-1), t(5)),
            (t(110), t(121)),
            (t(500), t(501)),
            (i64::MIN, i64::MIN + 1),
            (i64::MIN, i64::MAX),
            (i64::MAX, i64::MAX),
        ] {
            let error = hours.mean_of_use([(begin, end, 1.0)]).unwrap_err().to_string();
            assert!(error.contains("2026-03-29T02:00"), "{error}");
        }
    }

    #[test]
    fn bad_files_are_refused_with_the_line() {
        let head = "time,g_per_kwh\n";
        for (text, word) in [
            (String::new(), "no hours"),
            ("a,b\n".into(), "header"),
            ("time,kg_per_kwh\n".into(), "header"),
            (format!("{head}2026-01-01T00:00Z\n"), "values"),
            (format!("{head}yesterday,3\n"), "no time"),
            (format!("{head}2026-01-01T00:00Z,lots\n"), "no number"),
            (format!("{head}2026-01-01T00:00Z,NaN\n"), "NaN"),
            (format!("{head}2026-01-01T00:00Z,-3\n"), "-3"),
            (format!("{head}2026-01-01T00:00Z,3\n2026-01-01T00:00Z,3\n"), "line 3"),
            (format!("{head}2026-01-01T00:00Z,3\n2026-01-01T02:00Z,3\n"), "one hour"),
            (format!("{head}\"2026"), "values"),
        ] {
            let error = IntensityHours::from_csv(&text).unwrap_err().to_string();
            assert!(error.contains(word), "{text:?}: {error}");
        }
    }
}
