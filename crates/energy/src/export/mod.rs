//! The ledger for others: tables, monitoring, and the documents in which a model's energy is declared.
//!
//! Only what the ledger has is exported. Carbon, water and money need a place and a time: they are the converter's.

mod boamps;
mod bom;
mod table;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::ledger::{Group, Kind, Numbered, Phase, Summary, by, models_of_runs};

pub use table::{csv, prometheus};

/// Joules in a kilowatt-hour.
pub const J_PER_KWH: f64 = 3.6e6;

/// A form of export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Every row, RFC 4180.
    Csv,
    /// Every row and their sums.
    Json,
    /// Sums, in Prometheus' text format 0.0.4.
    Prometheus,
    /// A machine-learning bill of materials, CycloneDX 1.6.
    CycloneDx,
    /// An AI package, SPDX 3.0.1.
    Spdx,
    /// One report per model and stage, each on a line, of Boavizta's BoAmps.
    BoAmps,
}

/// The rows in a form.
pub fn export(rows: &[Numbered], format: Format) -> String {
    match format {
        Format::Csv => csv(rows),
        Format::Json => pretty(&json!({ "summary": Summary::of(rows), "rows": rows })),
        Format::Prometheus => prometheus(rows),
        Format::CycloneDx => pretty(&bom::cyclonedx(rows)),
        Format::Spdx => pretty(&bom::spdx(rows)),
        Format::BoAmps => boamps::reports(rows).iter().map(|report| format!("{report}\n")).collect(),
    }
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// What SCI needs beside the ledger.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SciInputs {
    /// Carbon intensity of the electricity, location-based, in gCO2e/kWh.
    pub intensity_g_per_kwh: f64,
    /// This work's share of the hardware's embodied emissions, in gCO2e.
    pub embodied_g: f64,
    /// What the rate is per.
    pub per: FunctionalUnit,
}

/// What a rate is per.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FunctionalUnit {
    /// A token computed.
    Token,
    /// A request answered.
    Request,
}

/// Why there is no rate.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SciError {
    /// A number that is none.
    #[error("{what} is {value}, expected a finite number that is not negative")]
    Number {
        /// Which.
        what: &'static str,
        /// Its value.
        value: f64,
    },
    /// Nothing to divide by.
    #[error("there are no {0:?}s in these rows, so there is no rate per {0:?}")]
    None(FunctionalUnit),
    /// A lower bound cannot be declared as a rate.
    #[error(
        "{phases} phases have no known energy and parts of the machine had no reading for {seconds:.1} s, so the rate would be too low; \
         leave them out (--run, --day) or meter them"
    )]
    Unknown {
        /// Without any energy.
        phases: u64,
        /// In which some part had no reading.
        seconds: f64,
    },
}

/// Software carbon intensity, `(E · I + M) / R`, in gCO2e per functional unit; with its inputs.
///
/// `E` is all energy of the rows, standby and loading included, at the machine (no PUE); offsets have no place in it.
/// Source: SCI specification 1.1, Green Software Foundation (ISO/IEC 21031).
///
/// # Errors
/// If an input is no number, energy is unknown, or there is nothing to divide by.
pub fn sci(rows: &[Numbered], inputs: SciInputs) -> Result<Value, SciError> {
    let SciInputs { intensity_g_per_kwh, embodied_g, per } = inputs;
    for (what, value) in [("the carbon intensity", intensity_g_per_kwh), ("the embodied carbon", embodied_g)] {
        if !value.is_finite() || value < 0.0 {
            return Err(SciError::Number { what, value });
        }
    }
    let summary = Summary::of(rows);
    let total = &summary.total;
    if !total.complete() {
        return Err(SciError::Unknown { phases: total.unknown_phases, seconds: total.unknown_s });
    }
    let units = match per {
        FunctionalUnit::Token => summary.total.tokens,
        FunctionalUnit::Request => summary.n_requests,
    };
    if units == 0 {
        return Err(SciError::None(per));
    }
    let energy_kwh = summary.total.energy.joules / J_PER_KWH;
    let rate = |kwh: f64| (kwh * intensity_g_per_kwh + embodied_g) / units as f64;
    let [low, _, high] = summary.total.energy.band();
    Ok(json!({
        "specification": "SCI 1.1 (ISO/IEC 21031)",
        "formula": "(E * I + M) / R",
        "E_kwh": energy_kwh,
        "I_g_per_kwh": intensity_g_per_kwh,
        "M_g": embodied_g,
        "R": units,
        "functional_unit": per,
        "sci_g_per_unit": rate(energy_kwh),
        "sci_g_per_unit_p5_p95_of_energy": [rate(low / J_PER_KWH), rate(high / J_PER_KWH)],
        "energy_grade": summary.total.energy.grade,
        "caveat": summary.caveat,
        "boundary": boundary(rows),
    }))
}

/// What a phase is called where a model's life has stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Training,
    Validation,
    Inference,
    /// Standby, loading, commands of others.
    Other,
}

impl Stage {
    fn of(phase: Phase) -> Self {
        match phase {
            Phase::Train | Phase::Rollout => Self::Training,
            Phase::Eval => Self::Validation,
            Phase::Prefill | Phase::Thinking | Phase::Answer | Phase::RejectedDraft => Self::Inference,
            Phase::Load | Phase::Idle | Phase::Command => Self::Other,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Training => "training",
            Self::Validation => "validation",
            Self::Inference => "inference",
            Self::Other => "other",
        }
    }
}

/// Rows of each model that is known by its fingerprint, in order of their names.
fn models(rows: &[Numbered]) -> BTreeMap<&str, Vec<Numbered>> {
    let mut models: BTreeMap<&str, Vec<Numbered>> = BTreeMap::new();
    let made = models_of_runs(rows);
    for row in rows {
        if let Some(model) = row.entry.model.as_deref().or_else(|| made.get(&*row.entry.run).copied()) {
            models.entry(model).or_default().push(row.clone());
        }
    }
    models
}

/// Sums by stage.
fn stages(rows: &[Numbered]) -> BTreeMap<Stage, Group> {
    by(rows, |row| match row.entry.kind {
        Kind::Phase(phase) => Some(Stage::of(phase)),
        _ => None,
    })
}

/// What the joules cover: as the row with the most of them says.
fn boundary(rows: &[Numbered]) -> &str {
    let joules = |row: &&Numbered| row.entry.energy.map_or(0.0, |e| e.joules);
    rows.iter().max_by(|a, b| joules(a).total_cmp(&joules(b))).map_or("", |row| &row.entry.boundary)
}

/// The same rows have the same identifier: a UUID (version 8) of a SHA-256.
fn uuid(of: &str, rows: &[Numbered]) -> String {
    let mut hash = Sha256::new();
    hash.update(of);
    for row in rows {
        hash.update(row.seq.to_le_bytes());
        hash.update(row.entry.at_ms.to_le_bytes());
        hash.update(&row.entry.run);
    }
    let mut b: [u8; 32] = hash.finalize().into();
    b[6] = b[6] & 0x0f | 0x80;
    b[8] = b[8] & 0x3f | 0x80;
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    format!("{}-{}-{}-{}-{}", hex(&b[..4]), hex(&b[4..6]), hex(&b[6..8]), hex(&b[8..10]), hex(&b[10..16]))
}
