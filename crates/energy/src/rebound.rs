//! The Jevons question: does efficiency save anything?
//!
//! [`effect`] answers it for an assumed demand, [`measure`] from records of use, and [`Gate`] and [`defer`] do something about it.
//! `R` is the rebound: 0 if all of the engineering saving is kept, 1 if none is, above 1 if more energy is used than before (backfire).

mod budget;
mod defer;
mod gate;
mod lmdi;
mod measure;
mod model;
mod records;

pub use budget::{Amounts, Budget, BudgetError, Cap, Decision, Dividend, Policy, Rates, Resource};
pub use defer::{Deferral, Slot, defer};
pub use gate::{Gate, GateError, j_per_token, read_policy, used_today};
pub use lmdi::{Decomposition, Totals, decompose, log_mean};
pub use measure::{Estimate, Factor, Measurement, Options, measure};
pub use model::{Effect, Market, Projection, Regime, effect, plot, project};
pub use records::{Records, UsageRecord};

/// Why a question about rebound has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ReboundError {
    /// A number that the quantity cannot have.
    #[error("{what} is {found}, expected {expected}")]
    Number {
        /// The quantity.
        what: &'static str,
        /// The number.
        found: f64,
        /// What would be right.
        expected: &'static str,
    },
    /// A file of records.
    #[error(
        "record {record} of the usage file: {problem}; expected day,tokens,joules,tasks and, if you have them, users,group"
    )]
    Records {
        /// Counted from 1.
        record: usize,
        /// What is wrong.
        problem: String,
    },
    /// Too little to say anything.
    #[error("the records cannot answer: {0}")]
    TooThin(String),
    /// No hours to run in.
    #[error("no time to run in: {0}")]
    NoSlot(String),
}

/// `x` if it is in the range.
fn number(
    what: &'static str,
    x: f64,
    range: std::ops::RangeInclusive<f64>,
    expected: &'static str,
) -> Result<f64, ReboundError> {
    if range.contains(&x) { Ok(x) } else { Err(ReboundError::Number { what, found: x, expected }) }
}
