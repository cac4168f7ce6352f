//! What a measurement says, for people and as JSON.

use jevons_kernels::{Dtype, Ops};
use jevons_sys::machine::{Cpu, Load, Machine};
use serde::Serialize;

use crate::{
    Settings,
    roofline::{Bound, Limits},
    timing::Times,
};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Reading a prompt.
    Prefill,
    /// One more token for each sequence.
    Decode,
    /// An optimizer step.
    Train,
    /// Single products.
    Gemm,
}

impl Phase {
    /// Those of a model, in the order in which they run.
    pub const OF_A_MODEL: [Self; 3] = [Self::Prefill, Self::Decode, Self::Train];

    /// As in JSON and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
            Self::Train => "train",
            Self::Gemm => "gemm",
        }
    }
}

/// What one run of a row does.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Work {
    /// Tokens, `None` for a product alone.
    pub tokens: Option<usize>,
    /// Floating-point operations of products.
    pub flop: f64,
    /// Bytes read from memory at least.
    pub bytes: f64,
}

/// One measurement.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Of what.
    pub phase: Phase,
    /// Its size, for people.
    pub name: String,
    /// `f32` or `bf16`: the operands of its products.
    pub format: &'static str,
    /// Of one run.
    pub work: Work,
    /// Of the runs.
    pub times: Times,
    /// In the median run.
    pub tokens_per_s: Option<f64>,
    /// In the median run.
    pub flop_per_s: f64,
    /// In the median run.
    pub bytes_per_s: f64,
    /// What limits it.
    pub bound: Bound,
    /// The least time that the limits allow, over the median time; above 1 where weights are read from a cache.
    pub share_of_limit: f64,
    #[serde(skip)]
    dtype: Dtype,
}

impl Row {
    pub(crate) fn new(phase: Phase, name: String, dtype: Dtype, work: Work, times: Times, limits: &Limits) -> Self {
        let mut row = Self {
            phase,
            name,
            format: name_of(dtype),
            work,
            times,
            tokens_per_s: work.tokens.map(|n| n as f64 / times.median_s),
            flop_per_s: work.flop / times.median_s,
            bytes_per_s: work.bytes / times.median_s,
            bound: Bound::Memory,
            share_of_limit: 0.0,
            dtype,
        };
        row.judge(limits);
        row
    }

    /// Compares with these limits.
    pub(crate) fn judge(&mut self, limits: &Limits) {
        let (least, bound) = limits.least_s(self.work.flop, self.work.bytes, self.dtype);
        (self.bound, self.share_of_limit) = (bound, least / self.times.median_s);
    }
}

/// `f32` or `bf16`.
pub(crate) fn name_of(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "f32",
        Dtype::Bf16 => "bf16",
    }
}

/// Something that was not measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// Of which phase.
    pub phase: Phase,
    /// Its size, for people.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// The highest resident memory of a phase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PhaseMemory {
    /// `limits`, `weights`, or a [`Phase`].
    pub phase: &'static str,
    /// The process's highest resident memory in bytes, `None` if the system does not tell.
    pub peak_rss_bytes: Option<u64>,
    /// Whether that is since the phase began; else since the process did, as some systems cannot forget an earlier peak.
    pub of_phase: bool,
}

/// The model that was measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Measured {
    /// Parameters.
    pub parameters: u64,
    /// Of which a token uses.
    pub active_parameters: u64,
    /// Bytes of the packed weights.
    pub weight_bytes: usize,
    /// `f32` or `bf16`.
    pub precision: &'static str,
    /// Form of its latent attention; `None` for models without.
    pub mla: Option<&'static str>,
    /// Longest context, in tokens.
    pub context: usize,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Version of jevons.
    pub version: &'static str,
    /// The processor.
    pub cpu: Cpu,
    /// Threads in use.
    pub threads: usize,
    /// How busy the machine was before, if the system tells.
    pub load: Option<Load>,
    /// Instruction set in use.
    pub instruction_set: &'static str,
    /// What was asked for.
    pub settings: Settings,
    /// What the machine allows.
    pub limits: Limits,
    /// The model, if there was one.
    pub model: Option<Measured>,
    /// What was measured.
    pub rows: Vec<Row>,
    /// What was not.
    pub left_out: Vec<LeftOut>,
    /// Memory of each phase.
    pub memory: Vec<PhaseMemory>,
}

impl Report {
    pub(crate) fn new(settings: &Settings, ops: &Ops) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            cpu: Machine::read().cpu,
            threads: rayon::current_num_threads(),
            load: None,
            instruction_set: ops.isa().name(),
            settings: settings.clone(),
            limits: Limits::default(),
            model: None,
            rows: vec![],
            left_out: vec![],
            memory: vec![],
        }
    }

    /// Runs a phase and notes its memory.
    pub(crate) fn phase<R, E>(
        &mut self,
        phase: &'static str,
        run: impl FnOnce(&mut Self) -> Result<R, E>,
    ) -> Result<R, E> {
        let of_phase = jevons_sys::reset_peak_rss();
        let result = run(self)?;
        self.memory.push(PhaseMemory { phase, peak_rss_bytes: jevons_sys::peak_rss_bytes(), of_phase });
        Ok(result)
    }

    pub(crate) fn leave_out(&mut self, phase: Phase, name: String, reason: String) {
        self.left_out.push(LeftOut { phase, name, reason });
    }
}
