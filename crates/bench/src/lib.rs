//! How fast models and products run on this machine, beside what the machine allows.
//!
//! Reading order: [`report`] (what comes out), [`roofline`] (the limit of a piece of work), [`timing`] (how often it runs), [`model`],
//! [`gemm`] and [`linears`] (what is run), [`plot`] (the picture). What work costs comes from `jevons_model::account`, how fast the machine is
//! from `jevons_kernels::measure`; nothing here counts or measures that a second time. [`accumulate`] stands apart: it tells errors, not times.
#![forbid(unsafe_code)]

pub mod accumulate;
pub mod gemm;
pub mod linears;
pub mod model;
pub mod plot;
pub mod report;
pub mod roofline;
pub mod timing;

use std::time::Duration;

use jevons_kernels::{
    Ops,
    measure::{self, BLOCK_BYTES},
};
use jevons_model::{Model, ModelError};
use jevons_sys::machine;
use jevons_train::trainer::StepError;
use serde::Serialize;

pub use report::{Phase, Report, Row};
pub use roofline::Limits;

/// What is measured, and for how long.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Settings {
    /// Which phases, in any order.
    pub phases: Vec<Phase>,
    /// Short runs and small blocks: figures that show that it works rather than how fast.
    pub quick: bool,
    /// Seconds of measurement per row; a row takes longer only if its first run does.
    pub seconds_per_row: f64,
    /// Lengths of prompts, in tokens, each at least 1.
    pub prefill_tokens: Vec<usize>,
    /// Keys that a decoded token looks at, itself among them; 0: it is the first.
    pub decode_contexts: Vec<usize>,
    /// Sequences that are decoded together, each at least 1.
    pub decode_batches: Vec<usize>,
    /// Sequences of a training step, at least 1.
    pub train_sequences: usize,
    /// Tokens of each; fewer where the model's context is shorter.
    pub train_length: usize,
    /// Products `[M, N, K]`, nothing 0.
    pub shapes: Vec<[usize; 3]>,
}

impl Settings {
    /// The usual ones: a few minutes for a model of 1.5 B parameters on a desktop, a few seconds if `quick`.
    pub fn new(phases: Vec<Phase>, quick: bool) -> Self {
        Self {
            phases,
            quick,
            seconds_per_row: if quick { 0.2 } else { 5.0 },
            prefill_tokens: vec![1, 32, 512, 2048],
            decode_contexts: vec![0, 512, 4096],
            decode_batches: vec![1, 8],
            train_sequences: 8,
            train_length: 512,
            shapes: gemm::SHAPES.to_vec(),
        }
    }

    fn budget(&self) -> Duration {
        Duration::try_from_secs_f64(self.seconds_per_row.max(0.0)).unwrap_or(Duration::MAX)
    }

    /// Runs of [`Event::Done`] that [`run`] makes, with or without a model.
    pub fn steps(&self) -> usize {
        let rows = |phase: &Phase| match phase {
            Phase::Prefill => self.prefill_tokens.len(),
            Phase::Decode => self.decode_contexts.len() * self.decode_batches.len(),
            Phase::Train => 1,
            Phase::Gemm => gemm::FORMATS * self.shapes.len(),
        };
        2 + self.phases.iter().map(rows).sum::<usize>()
    }
}

/// What a caller sees while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// What is measured now.
    Now(String),
    /// A row is there, or was left out.
    Done,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// Model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The training step.
    #[error(transparent)]
    Step(#[from] StepError),
    /// `JEVONS_ISA`
    #[error("{0}")]
    Isa(String),
    /// Threads.
    #[error("the system gives no thread to measure with; is there a limit on processes?")]
    Thread,
    /// Memory.
    #[error("{what}: about {} MB are needed and {} MB are free; try a smaller model", .needed / 1_000_000, .available / 1_000_000)]
    Memory {
        /// What would not fit.
        what: String,
        /// Bytes.
        needed: u64,
        /// Bytes.
        available: u64,
    },
}

/// Measures the machine, then each phase of the settings, then the machine once more, as a busy neighbour may have gone; the phases of a
/// model are skipped without one. `load` makes the model, after the machine was measured.
///
/// # Errors
/// [`BenchError`]; what `load` returned, if it failed.
pub fn run<E: From<BenchError>>(
    settings: &Settings,
    load: Option<impl FnOnce() -> Result<Model, E>>,
    observe: &mut dyn FnMut(Event),
) -> Result<Report, E> {
    let ops = Ops::new().map_err(BenchError::Isa)?;
    let mut report = Report::new(settings, &ops);
    observe(Event::Now("the machine's limits".into()));
    report.load = machine::measure_load(Duration::from_millis(250));
    report.phase("limits", |report| {
        report.limits = limits(&ops, settings)?;
        Ok::<_, BenchError>(())
    })?;
    observe(Event::Done);
    if settings.phases.contains(&Phase::Gemm) {
        report.phase("gemm", |report| gemm::run(&ops, settings, report, observe))?;
    }
    if let Some(load) = load {
        observe(Event::Now("making the model".into()));
        let model = report.phase("weights", |_| load())?;
        model::run(model, settings, &mut report, observe)?;
    }
    observe(Event::Now("the machine's limits again".into()));
    report.limits = limits(&ops, settings)?.best(report.limits);
    report.rows.iter_mut().for_each(|row| row.judge(&report.limits));
    observe(Event::Done);
    Ok(report)
}

fn limits(ops: &Ops, settings: &Settings) -> Result<Limits, BenchError> {
    let (block, seconds) = if settings.quick { (BLOCK_BYTES, 0.3) } else { (4 * BLOCK_BYTES, 5.0) };
    let rates = measure::rates(ops, fitting_block(block), Duration::from_secs_f64(seconds));
    Ok(Limits::of(&rates.ok_or(BenchError::Thread)?))
}

/// As many bytes as asked for, unless that is more than a quarter of what is free.
fn fitting_block(bytes: usize) -> usize {
    let quarter = jevons_sys::available_memory_bytes().map_or(bytes, |n| (n / 4) as usize);
    bytes.min(quarter.max(16 << 20))
}
