//! What a training run or a service will take, before it starts: FLOP, device-hours, memory, joules, carbon, water and money, each as an
//! interval.
//!
//! The chain is `FLOP → device-hours → IT energy → facility energy → carbon, water, money`:
//!
//! - `hours = FLOP / (peak · utilisation · 3600)`. Utilisation is the whole run's, restarts and lost work included, and its band is
//!   computed from a table of published runs ([`runs`]), each of which can be predicted without itself ([`back_tests`]).
//! - `IT energy = hours · nameplate · server ratio · mean fraction`, the rest as in [`crate::convert`].
//! - a decode step takes `max(FLOP / F, bytes / BW) + overhead`, `bytes = dense + covered experts + KV cache`.
//!
//! What is not in it, and is said with every plan: research and ablations before the run, failed runs, staff, data, storage, networks.

mod hardware;
mod model;
mod report;
mod runs;
mod serving;
mod training;

use serde::Serialize;

pub use hardware::{Device, devices};
pub use model::{ModelShape, Routed};
pub use report::{Assumption, Plan, Row};
pub(crate) use runs::student_t;
pub use runs::{BackTest, Run, Utilisation, back_tests, runs, utilisation};
pub use serving::{Serving, coverage, decode_step_s};
pub use training::{Distillation, R1, Rl};

use crate::convert::{Band, ConvertError, Facility, Money, Site};

/// Why a plan cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A number, a region or a band.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// The model's configuration.
    #[error(transparent)]
    Config(#[from] jevons_model::config::ConfigError),
    /// Hardware that is not in the table.
    #[error("there is no hardware profile `{found}`; there are {known}, and cpu with a declared speed and power")]
    Hardware {
        /// What was asked for.
        found: String,
        /// The names.
        known: String,
    },
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
    /// Something that the work needs.
    #[error("{what} is missing: {why}")]
    Missing {
        /// The quantity.
        what: &'static str,
        /// Why it is needed, and what to give.
        why: &'static str,
    },
}

/// What is to be done.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "stage")]
pub enum Work {
    /// Pre-training, or supervised fine-tuning: every token forward and backward.
    Train {
        /// Tokens, epochs multiplied in.
        tokens: Band,
        /// Length of a sequence, for the attention's share.
        sequence: f64,
    },
    /// Reinforcement learning with sampled groups.
    Rl(Rl),
    /// A teacher writes texts and a student learns them.
    Distill(Distillation),
    /// DeepSeek-R1 on top of its base model, from the published counts.
    R1(R1),
    /// A service.
    Serve(Serving),
}

/// A question to the planner.
#[derive(Clone, Debug)]
pub struct Request {
    /// The model.
    pub model: ModelShape,
    /// What is done with it.
    pub work: Work,
    /// On what.
    pub device: Device,
    /// How many devices, for days, megawatts, and the time of reinforcement learning.
    pub devices: Option<f64>,
    /// Device-hours, where the run has been and they are known; they then replace the estimate of a training run.
    pub device_hours: Option<Band>,
    /// Utilisation, where it is known from one's own measurement: model FLOP over the peak's of the whole run.
    pub utilisation: Option<Band>,
    /// A published run that must not inform the band; for back-tests.
    pub without_run: Option<String>,
    /// Where.
    pub site: Site,
    /// What kind of building `site` was made for; names its constants in the report.
    pub facility: Facility,
    /// How it is paid for.
    pub money: Money,
    /// Of the Monte Carlo.
    pub seed: u64,
}

/// Makes the plan.
///
/// # Errors
/// [`PlanError`] for numbers that cannot be and for what is missing.
///
/// ```
/// use jevons_energy::{convert::{Band, Facility, Money, Site}, plan::{Device, ModelShape, Request, Work, plan}};
///
/// let device = Device::named("H800").unwrap();
/// let request = Request {
///     model: ModelShape::from_size(671e9, 37e9).unwrap(),
///     work: Work::Train { tokens: Band::exact(14.8e12), sequence: 4096.0 },
///     money: device.default_money(Band::exact(0.08)),
///     device,
///     devices: Some(2048.0),
///     device_hours: None,
///     utilisation: None,
///     without_run: None,
///     site: Site::new("CHN", Facility::Datacentre).unwrap(),
///     facility: Facility::Datacentre,
///     seed: 0,
/// };
/// let plan = plan(&request).unwrap();
/// assert!(plan.row("device_hours").unwrap().value.contains(2.664e6));
/// ```
pub fn plan(request: &Request) -> Result<Plan, PlanError> {
    request.site.check()?;
    if let Some(n) = request.devices {
        number("the number of devices", n, 1.0..=1e8, "1 to 10⁸")?;
    }
    match &request.work {
        Work::Serve(serving) => serving::plan(request, serving),
        _ => training::plan(request),
    }
}

/// `x` if it is in the range.
pub(crate) fn number(
    what: &'static str,
    x: f64,
    range: std::ops::RangeInclusive<f64>,
    expected: &'static str,
) -> Result<f64, PlanError> {
    if range.contains(&x) { Ok(x) } else { Err(PlanError::Number { what, found: x, expected }) }
}

/// The same for all of a band.
pub(crate) fn band(
    what: &'static str,
    x: Band,
    range: std::ops::RangeInclusive<f64>,
    expected: &'static str,
) -> Result<Band, PlanError> {
    number(what, x.low(), range.clone(), expected)?;
    number(what, x.high(), range, expected)?;
    Ok(x)
}
