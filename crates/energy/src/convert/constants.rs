//! The constants in the binary: each with unit, band, source, date and evidence.

use std::{
    collections::BTreeMap,
    fmt,
    sync::LazyLock,
    time::{SystemTime, UNIX_EPOCH},
};

use chrono::{DateTime, Datelike};
use serde::{Deserialize, Serialize};

use super::Band;

/// Values older than this are reported as stale.
const STALE_MONTHS: i32 = 24;

/// How a value came here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Evidence {
    /// In the primary text, or the named tool's own files.
    Read,
    /// In another's text.
    Quoted,
    /// From inputs that the source names, or our judgement, which it then says.
    Computed,
    /// From memory, not read again: check before relying on it.
    Recalled,
}

/// A month of a year.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Month {
    year: i32,
    month: i32,
}

impl Month {
    /// The present one, by this machine's clock.
    pub fn now() -> Self {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let now = i64::try_from(seconds).ok().and_then(|s| DateTime::from_timestamp(s, 0)).unwrap_or_default();
        Self { year: now.year(), month: now.month() as i32 }
    }

    /// Months from `self` to `later`; negative if `later` is before.
    pub fn until(self, later: Self) -> i32 {
        (later.year - self.year) * 12 + later.month - self.month
    }
}

impl TryFrom<String> for Month {
    type Error = String;

    /// `YYYY-MM`.
    fn try_from(text: String) -> Result<Self, String> {
        let parsed = text.split_once('-').and_then(|(year, month)| {
            let (year, month) = (year.parse().ok()?, month.parse().ok()?);
            ((1900..=9999).contains(&year) && (1..=12).contains(&month)).then_some(Self { year, month })
        });
        parsed.ok_or_else(|| format!("`{text}` is no month, expected such as 2026-01"))
    }
}

impl From<Month> for String {
    fn from(month: Month) -> Self {
        month.to_string()
    }
}

impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:02}", self.year, self.month)
    }
}

/// A value with where it comes from.
#[derive(Clone, Debug, Serialize)]
pub struct Constant {
    /// Unique.
    pub name: String,
    /// p5, p50, p95.
    pub band: Band,
    /// Of all three.
    pub unit: String,
    /// Who says so, and what is our judgement.
    pub source: String,
    /// Of the source.
    pub date: Month,
    /// How it came here.
    pub evidence: Evidence,
}

impl Constant {
    /// The central value.
    pub fn value(&self) -> f64 {
        self.band.mid()
    }

    /// Whether it is more than 24 months old. What holds by definition or is a record of the past does not age: exact values never are.
    pub fn is_stale(&self, today: Month) -> bool {
        !self.band.is_exact() && self.date.until(today) > STALE_MONTHS
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    value: f64,
    low: Option<f64>,
    high: Option<f64>,
    unit: String,
    source: String,
    date: Month,
    evidence: Evidence,
}

#[derive(Deserialize)]
struct File {
    constant: Vec<Entry>,
}

static CONSTANTS: LazyLock<BTreeMap<String, Constant>> = LazyLock::new(|| {
    let file: File =
        toml::from_str(include_str!("../../data/constants.toml")).expect("the constants in the binary are well-formed");
    let all = file.constant.into_iter().map(|e| {
        let band = Band::new(e.low.unwrap_or(e.value), e.value, e.high.unwrap_or(e.value));
        let band = band.unwrap_or_else(|error| panic!("constant `{}`: {error}", e.name));
        let Entry { name, unit, source, date, evidence, .. } = e;
        (name.clone(), Constant { name, band, unit, source, date, evidence })
    });
    all.collect()
});

/// The constant of that name, one of `data/constants.toml`. Panics if there is none: names are ours.
pub fn constant(name: &str) -> &'static Constant {
    CONSTANTS.get(name).unwrap_or_else(|| panic!("there is no constant `{name}`"))
}

/// All of them, by name.
pub fn constants() -> impl Iterator<Item = &'static Constant> {
    CONSTANTS.values()
}

/// One sentence for each of the constants that is stale.
pub fn stale<'a>(used: impl IntoIterator<Item = &'a Constant>, today: Month) -> Vec<String> {
    let old = used.into_iter().filter(|c| c.is_stale(today));
    old.map(|c| format!("`{}` is of {}, more than {STALE_MONTHS} months old: {}", c.name, c.date, c.source)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_constant_has_a_source_a_unit_and_a_unique_name() {
        let file: File = toml::from_str(include_str!("../../data/constants.toml")).unwrap();
        assert_eq!(file.constant.len(), constants().count());
        for c in constants() {
            assert!(
                c.source.len() > 3 && !c.unit.is_empty() && c.date.until(Month { year: 2027, month: 1 }) > 0,
                "{c:?}"
            );
        }
    }

    #[test]
    fn a_value_older_than_two_years_is_stale() {
        let pue = constant("pue_datacentre");
        let at = |text: &str| Month::try_from(text.to_string()).unwrap();
        assert!(!pue.is_stale(at("2027-06")) && pue.is_stale(at("2027-07")));
        assert_eq!(stale([pue], at("2030-01")).len(), 1);
        assert!(!constant("pue_home").is_stale(at("2099-01")), "true by definition");
        for text in ["", "2026", "2026-13", "2026-00", "99999-01", "x-1"] {
            assert!(Month::try_from(text.to_string()).is_err(), "{text}");
        }
    }
}
