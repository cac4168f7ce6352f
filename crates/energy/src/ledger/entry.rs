//! A row of the ledger, and the bytes that its hash covers.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::LedgerError;
use crate::{grade::Energy, meter::Window};

/// SHA-256.
pub(super) type Hash = [u8; 32];

/// What the first row follows.
pub(super) const GENESIS: Hash = [0; 32];

/// What a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "&'static str", try_from = "String")]
pub enum Kind {
    /// A run begins.
    Start,
    /// A stretch of time within a run, spent on one thing.
    Phase(Phase),
    /// A request has ended: the sum of its phases.
    Request,
    /// A run has ended: what the counter says of all of it.
    Run,
}

/// What a stretch of time was spent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Reading a model from disk.
    Load,
    /// Computing a prompt.
    Prefill,
    /// Drawing tokens of the thinking.
    Thinking,
    /// Drawing tokens of the answer.
    Answer,
    /// Tokens that were drafted and then rejected.
    RejectedDraft,
    /// Steps of training.
    Train,
    /// Drawing answers to train on.
    Rollout,
    /// Measuring a model.
    Eval,
    /// Waiting, the model resident.
    Idle,
    /// A command of another program, under `jevons meter -- COMMAND`.
    Command,
}

impl Phase {
    /// All.
    pub const ALL: [Self; 10] = [
        Self::Load,
        Self::Prefill,
        Self::Thinking,
        Self::Answer,
        Self::RejectedDraft,
        Self::Train,
        Self::Rollout,
        Self::Eval,
        Self::Idle,
        Self::Command,
    ];

    /// As in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Prefill => "prefill",
            Self::Thinking => "thinking",
            Self::Answer => "answer",
            Self::RejectedDraft => "rejected_draft",
            Self::Train => "train",
            Self::Rollout => "rollout",
            Self::Eval => "eval",
            Self::Idle => "idle",
            Self::Command => "command",
        }
    }

    /// Whether it is spent for tokens; the rest is standby and load.
    pub fn is_active(self) -> bool {
        !matches!(self, Self::Load | Self::Idle)
    }
}

impl Kind {
    /// As in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Phase(phase) => phase.as_str(),
            Self::Request => "request",
            Self::Run => "run",
        }
    }

    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        let others = [Self::Start, Self::Request, Self::Run];
        Phase::ALL.into_iter().map(Self::Phase).chain(others).find(|k| k.as_str() == name)
    }
}

impl From<Kind> for &'static str {
    fn from(kind: Kind) -> Self {
        kind.as_str()
    }
}

impl TryFrom<String> for Kind {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        Self::from_name(&name).ok_or_else(|| format!("there is no kind {name:?}"))
    }
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// Tokens computed.
    pub tokens: u64,
    /// Tokens found in the cache instead.
    pub cached_tokens: u64,
    /// Floating-point operations, if known.
    pub flop: Option<f64>,
    /// Bytes of weights and cache read, if known.
    pub bytes: Option<f64>,
}

impl Work {
    /// Tokens, and nothing else known.
    pub fn tokens(tokens: usize) -> Self {
        Self { tokens: tokens as u64, ..Self::default() }
    }
}

/// A row.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Entry {
    /// When it ended: milliseconds since 1970, UTC.
    pub at_ms: i64,
    /// Which run.
    pub run: String,
    /// Which request of the run, if of one.
    pub request: Option<u64>,
    /// What it is about.
    pub kind: Kind,
    /// Of `jevons`: `chat`, `train`, ...
    pub command: String,
    /// For whom, where several share a machine.
    pub tenant: Option<String>,
    /// [`Fingerprint`](super::Fingerprint) of the model.
    pub model: Option<String>,
    /// What was done.
    #[serde(flatten)]
    pub work: Work,
    /// How long it took.
    pub seconds: f64,
    /// What the machine spent; none if nothing is known, which is not the same as nothing.
    #[serde(flatten)]
    pub energy: Option<Energy>,
    /// Seconds for which a part of the machine had no reading; above zero the joules are a lower bound.
    pub unknown_s: f64,
    /// Processor seconds of this program, if known.
    pub own_cpu_s: Option<f64>,
    /// Processor seconds of all programs, if known.
    pub busy_cpu_s: Option<f64>,
    /// What the joules cover, and how they were read.
    pub boundary: String,
}

impl Entry {
    /// Takes over what a window has measured.
    pub fn measured(mut self, window: &Window) -> Self {
        self.seconds = window.seconds;
        self.unknown_s = window.unknown.iter().map(|u| u.seconds).fold(0.0, f64::max);
        let nothing_known = !window.complete() && window.shares.is_empty();
        self.energy = (!nothing_known).then_some(window.energy);
        self.own_cpu_s = window.own_cpu_s;
        self.busy_cpu_s = window.busy_cpu_s;
        self.boundary = window.boundary();
        self
    }

    /// Every number finite, not negative and no larger than SQLite's integers, as the file and the sums need it.
    pub(super) fn check(&self) -> Result<(), LedgerError> {
        let whole = [
            ("request", self.request.unwrap_or(0)),
            ("tokens", self.work.tokens),
            ("cached_tokens", self.work.cached_tokens),
        ];
        if let Some((field, value)) = whole.into_iter().find(|(_, value)| i64::try_from(*value).is_err()) {
            return Err(LedgerError::Number { field, value: value as f64 });
        }
        let numbers = [
            ("flop", self.work.flop),
            ("bytes", self.work.bytes),
            ("seconds", Some(self.seconds)),
            ("joules", self.energy.map(|e| e.joules)),
            ("uncertainty_j", self.energy.map(|e| e.uncertainty_j)),
            ("unknown_s", Some(self.unknown_s)),
            ("own_cpu_s", self.own_cpu_s),
            ("busy_cpu_s", self.busy_cpu_s),
        ];
        for (field, value) in numbers {
            if let Some(value) = value.filter(|v| !v.is_finite() || *v < 0.0) {
                return Err(LedgerError::Number { field, value });
            }
        }
        Ok(())
    }

    /// SHA-256 of the hash of the row before, the number of this row, and its fields: each text with its length before it, each
    /// number as eight little-endian bytes, each optional field after a byte that says whether it is there.
    pub(super) fn hash(&self, seq: i64, previous: &Hash) -> Hash {
        let mut bytes = b"jevons ledger 1".to_vec();
        bytes.extend(previous);
        let mut eight = |value: u64| bytes.extend(value.to_le_bytes());
        eight(seq as u64);
        eight(self.at_ms as u64);
        let mut text = |value: &str| {
            bytes.extend((value.len() as u64).to_le_bytes());
            bytes.extend(value.as_bytes());
        };
        text(&self.run);
        text(self.kind.as_str());
        text(&self.command);
        text(&self.boundary);
        for value in [&self.tenant, &self.model] {
            bytes.push(u8::from(value.is_some()));
            let value = value.as_deref().unwrap_or_default();
            bytes.extend((value.len() as u64).to_le_bytes());
            bytes.extend(value.as_bytes());
        }
        // Zero has two signs and SQLite keeps one of them.
        let float = |value: f64| (value + 0.0).to_bits();
        let energy = self.energy;
        let numbers = [
            self.request,
            Some(self.work.tokens),
            Some(self.work.cached_tokens),
            self.work.flop.map(float),
            self.work.bytes.map(float),
            Some(float(self.seconds)),
            energy.map(|e| float(e.joules)),
            energy.map(|e| float(e.uncertainty_j)),
            energy.map(|e| e.grade.letter() as u64),
            Some(float(self.unknown_s)),
            self.own_cpu_s.map(float),
            self.busy_cpu_s.map(float),
        ];
        for value in numbers {
            bytes.push(u8::from(value.is_some()));
            bytes.extend(value.unwrap_or(0).to_le_bytes());
        }
        Sha256::digest(&bytes).into()
    }
}

/// In hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
