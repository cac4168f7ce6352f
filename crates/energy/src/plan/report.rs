//! What a plan says.

use serde::Serialize;

use crate::convert::{Band, Constant, Interval};

/// One number of a plan.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Stable name, unit in it or beside.
    pub key: &'static str,
    /// For people.
    pub label: &'static str,
    /// Of the value.
    pub unit: &'static str,
    /// p5, p50, p95.
    pub value: Interval,
    /// How it is computed, in symbols.
    pub formula: &'static str,
}

/// An input that was not given, or is known within a band only.
#[derive(Clone, Debug, Serialize)]
pub struct Assumption {
    /// What.
    pub name: String,
    /// p5, p50, p95.
    pub band: Band,
    /// Of the three.
    pub unit: String,
    /// Who says so, and when.
    pub source: String,
}

impl Assumption {
    /// Something named.
    pub fn new(name: &str, band: Band, unit: &str, source: impl Into<String>) -> Self {
        Self { name: name.into(), band, unit: unit.into(), source: source.into() }
    }
}

impl From<&Constant> for Assumption {
    fn from(c: &Constant) -> Self {
        Self::new(&c.name, c.band, &c.unit, format!("{} ({})", c.source, c.date))
    }
}

/// The answer of the planner.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// What is planned, in words.
    pub title: String,
    /// The numbers, in the order of the chain.
    pub rows: Vec<Row>,
    /// What they stand on.
    pub assumptions: Vec<Assumption>,
    /// What is inside and what is not.
    pub boundary: Vec<String>,
    /// Stale values, guesses, limits that are passed.
    pub warnings: Vec<String>,
}

impl Plan {
    /// The row of that key.
    pub fn row(&self, key: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.key == key)
    }
}

/// Collects rows of one draw; the same keys in the same order each time.
pub(super) type Numbers = Vec<(&'static str, &'static str, &'static str, &'static str, f64)>;

/// Rows from the draws of `f`. What is not the same in every draw is a row; a `None` for all is left out.
pub(super) fn rows(seed: u64, f: impl Fn(crate::convert::Draw) -> Numbers) -> Vec<Row> {
    let heads = f(crate::convert::Draw::new(seed, 0));
    let values = crate::convert::intervals(seed, |draw| f(draw).into_iter().map(|(.., x)| x).collect());
    let row = |((key, label, unit, formula, _), value)| Row { key, label, unit, value, formula };
    heads.into_iter().zip(values).map(row).collect()
}
