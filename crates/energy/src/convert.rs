//! From energy to carbon, water and money.
//!
//! Every formula names its boundary: IT energy `E` is what the machine draws, facility energy `PUE · E` what the building draws for it.
//! PUE enters each term exactly once or not at all:
//!
//! | quantity | formula | PUE |
//! |---|---|---|
//! | carbon | `PUE · E · I` | once |
//! | water on site | `E · WUE` | none: WUE is per kWh of IT energy |
//! | water off site | `PUE · E · EWIF` | once |
//! | electricity bill | `PUE · E · p` | once |
//!
//! Sources: Li et al. 2023, arXiv:2304.03271 (water); Green Software Foundation, SCI 1.1 (carbon, embodied). Numbers with a band are
//! [`Band`]s, results are [`Interval`]s by Monte Carlo with a fixed seed.

mod band;
mod constants;
mod hours;
mod money;
mod monte_carlo;
mod site;

pub use band::Band;
pub(crate) use band::Z95;
pub use constants::{Constant, Evidence, Month, constant, constants, stale};
pub use hours::{CarbonIntensity, Hour, IntensityHours};
pub use money::{Money, Usage, api_usd, capital_recovery_factor, owned_usd, rental_usd};
pub use monte_carlo::{DRAWS, Draw, Interval, SEED, intervals};
pub use site::{Embodied, Facility, Footprint, Site, WaterUse, carbon_g, facility_kwh, regions, water_l};

/// 1 kWh in joules.
pub const J_PER_KWH: f64 = 3.6e6;

/// Why a number, a region or a file is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// A number that the quantity cannot have.
    #[error("{what} is {found}, expected {expected}")]
    Number {
        /// The quantity.
        what: String,
        /// The number or text.
        found: String,
        /// What would be right.
        expected: String,
    },
    /// A region that is not in the table.
    #[error(
        "there is no region `{found}`; regions are countries by three letters (ISO 3166 alpha-3), such as {near}, and WOR for the world"
    )]
    Region {
        /// What was asked for.
        found: String,
        /// Some that there are.
        near: String,
    },
    /// Energy that was used when a file of hours says nothing.
    #[error(
        "the intensity file goes from {from} to {to}, and energy was used at {at}; give a file with that hour, or report a day of it (--day)"
    )]
    NoHour {
        /// When.
        at: String,
        /// The first hour of the file.
        from: String,
        /// The end of its last hour.
        to: String,
    },
    /// A line of a file of hours.
    #[error(
        "line {line} of the intensity file: {problem}; expected `time,g_per_kwh`, then lines such as 2026-01-31T13:00Z,412.5"
    )]
    Hours {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
}
