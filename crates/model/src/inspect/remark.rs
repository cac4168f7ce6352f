//! Something about a model that a reader would not expect.

use serde::Serialize;

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Good to know.
    Note,
    /// May surprise whoever uses the model.
    Warning,
    /// Something does not work.
    Problem,
}

/// Something about a model that a reader would not expect, and why it matters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Remark {
    /// For programs; never changes its meaning.
    pub id: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// The fact.
    pub what: String,
    /// What follows from it.
    pub why: String,
}

impl Remark {
    /// Good to know.
    pub fn note(id: &'static str, what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { id, severity: Severity::Note, what: what.into(), why: why.into() }
    }

    /// May surprise.
    pub fn warning(id: &'static str, what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { id, severity: Severity::Warning, what: what.into(), why: why.into() }
    }

    /// Does not work.
    pub fn problem(id: &'static str, what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { id, severity: Severity::Problem, what: what.into(), why: why.into() }
    }
}
