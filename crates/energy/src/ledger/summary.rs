//! Sums over rows: by phase, model, command, run or day; and joules per token, marginal and full.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    Numbered,
    entry::{Kind, Phase},
};
use crate::grade::{Energy, Grade};

/// Sums over phases. Rows of requests and runs repeat their phases and are left out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Group {
    /// Rows.
    pub phases: u64,
    /// Of the phases that are spent for tokens.
    pub tokens: u64,
    /// Taken from caches instead of computed.
    pub cached_tokens: u64,
    /// Floating-point operations, where known.
    pub flop: f64,
    /// Of all phases.
    pub seconds: f64,
    /// Of all phases whose joules are known.
    pub energy: Energy,
    /// Of it, spent on tokens.
    pub active_j: f64,
    /// Of it, spent waiting.
    pub idle_j: f64,
    /// Of it, spent on reading models.
    pub load_j: f64,
    /// Phases of which nothing is known.
    pub unknown_phases: u64,
    /// Seconds for which some part of the machine had no reading; above zero the joules are a lower bound.
    pub unknown_s: f64,
}

impl Group {
    fn of<'a>(rows: impl IntoIterator<Item = &'a Numbered>) -> Self {
        let mut group = Self {
            phases: 0,
            tokens: 0,
            cached_tokens: 0,
            flop: 0.0,
            seconds: 0.0,
            energy: Energy::ZERO,
            active_j: 0.0,
            idle_j: 0.0,
            load_j: 0.0,
            unknown_phases: 0,
            unknown_s: 0.0,
        };
        let mut energies = vec![];
        for row in rows {
            let Kind::Phase(phase) = row.entry.kind else { continue };
            group.phases += 1;
            group.tokens = group.tokens.saturating_add(row.entry.work.tokens);
            group.cached_tokens = group.cached_tokens.saturating_add(row.entry.work.cached_tokens);
            group.flop += row.entry.work.flop.unwrap_or(0.0);
            group.seconds += row.entry.seconds;
            group.unknown_s += row.entry.unknown_s;
            let Some(energy) = row.entry.energy else {
                group.unknown_phases += 1;
                continue;
            };
            *match phase {
                Phase::Idle => &mut group.idle_j,
                Phase::Load => &mut group.load_j,
                _ => &mut group.active_j,
            } += energy.joules;
            energies.push(energy);
        }
        group.energy = Energy::sum(by_grade(&energies));
        group
    }

    /// Whether every phase and every part of the machine had a reading or a model. If not, the joules are a lower bound.
    pub fn complete(&self) -> bool {
        self.unknown_phases == 0 && self.unknown_s <= 1e-9
    }

    /// Joules per token of the phases spent on tokens; none without tokens.
    pub fn marginal_j_per_token(&self) -> Option<f64> {
        (self.tokens > 0).then(|| self.active_j / self.tokens as f64)
    }

    /// Joules per token with the standby and the loading that made them possible; none without tokens.
    pub fn full_j_per_token(&self) -> Option<f64> {
        (self.tokens > 0).then(|| self.energy.joules / self.tokens as f64)
    }
}

/// One part per grade: of many small rows none alone would matter, together they may. Of no rows nothing was measured.
fn by_grade(energies: &[Energy]) -> Vec<Energy> {
    if energies.is_empty() {
        return vec![Energy { grade: Grade::E, ..Energy::ZERO }];
    }
    let of = |grade: Grade| Energy {
        joules: energies.iter().filter(|e| e.grade == grade).map(|e| e.joules).sum(),
        uncertainty_j: energies.iter().filter(|e| e.grade == grade).map(|e| e.uncertainty_j).sum(),
        grade,
    };
    Grade::ALL.into_iter().filter(|g| energies.iter().any(|e| e.grade == *g)).map(of).collect()
}

/// Groups rows by a key; rows without one are left out.
pub fn by<K: Ord>(rows: &[Numbered], key: impl Fn(&Numbered) -> Option<K>) -> BTreeMap<K, Group> {
    let mut groups: BTreeMap<K, Vec<&Numbered>> = BTreeMap::new();
    for row in rows {
        if let Some(key) = key(row) {
            groups.entry(key).or_default().push(row);
        }
    }
    groups.into_iter().map(|(key, rows)| (key, Group::of(rows))).collect()
}

/// The model of each run that names one in its last row: of a training run, what it has made. Earlier rows of that run name none.
pub fn models_of_runs(rows: &[Numbered]) -> BTreeMap<&str, &str> {
    let closed = rows.iter().filter(|r| r.entry.kind == Kind::Run);
    closed.filter_map(|r| Some((&*r.entry.run, r.entry.model.as_deref()?))).collect()
}

/// A ledger, or a part of it, in numbers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// When its first and last row ended, in milliseconds since 1970; none if there is no row.
    pub from_to_ms: Option<(i64, i64)>,
    /// Different runs.
    pub n_runs: u64,
    /// Requests that have ended.
    pub n_requests: u64,
    /// What has to be said beside the total, if anything: that no sensor has measured it.
    pub caveat: Option<&'static str>,
    /// Everything.
    pub total: Group,
    /// By what it was spent on.
    pub phases: BTreeMap<&'static str, Group>,
    /// By model; an empty name where there was none.
    pub models: BTreeMap<String, Group>,
    /// By command of `jevons`.
    pub commands: BTreeMap<String, Group>,
    /// By day, UTC.
    pub days: BTreeMap<String, Group>,
    /// By run, in order of their first rows.
    pub runs: Vec<RunTotal>,
}

/// What a run has spent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunTotal {
    /// Its name.
    pub run: String,
    /// Of `jevons`.
    pub command: String,
    /// The model that it used or made, if known.
    pub model: Option<String>,
    /// When its first row ended, in milliseconds since 1970.
    pub from_ms: i64,
    /// Sums over its phases.
    #[serde(flatten)]
    pub group: Group,
}

impl Summary {
    /// Of these rows.
    pub fn of(rows: &[Numbered]) -> Self {
        let made = models_of_runs(rows);
        let model = |r: &Numbered| -> String {
            let model = r.entry.model.as_deref().or_else(|| made.get(&*r.entry.run).copied());
            model.unwrap_or_default().to_owned()
        };
        let times = || rows.iter().map(|r| r.entry.at_ms);
        let total = Group::of(rows);
        let mut runs: Vec<RunTotal> = vec![];
        let mut groups = by(rows, |r| Some(r.entry.run.clone()));
        for row in rows {
            // The first row of a run takes its sums.
            if let Some(group) = groups.remove(&row.entry.run) {
                let entry = &row.entry;
                let (run, command) = (entry.run.clone(), entry.command.clone());
                runs.push(RunTotal { run, command, model: None, from_ms: entry.at_ms, group });
            }
        }
        let named: BTreeMap<&str, &str> =
            rows.iter().filter_map(|r| Some((&*r.entry.run, r.entry.model.as_deref()?))).collect();
        for run in &mut runs {
            run.model = named.get(&*run.run).map(|model| (*model).to_owned());
        }
        Self {
            from_to_ms: times().min().zip(times().max()),
            n_runs: runs.len() as u64,
            n_requests: rows.iter().filter(|r| r.entry.kind == Kind::Request).count() as u64,
            caveat: (total.phases > 0).then(|| total.energy.grade.caveat()).flatten(),
            total,
            phases: by(rows, |r| match r.entry.kind {
                Kind::Phase(phase) => Some(phase.as_str()),
                _ => None,
            }),
            models: by(rows, |r| Some(model(r))),
            commands: by(rows, |r| Some(r.entry.command.clone())),
            days: by(rows, |r| Some(day(r.entry.at_ms))),
            runs,
        }
    }
}

/// The day of a moment in milliseconds since 1970: `2026-11-23`, UTC.
pub fn day(at_ms: i64) -> String {
    written(at_ms, "%Y-%m-%d")
}

/// A moment in milliseconds since 1970: `2026-11-23T09:30:19Z`.
pub fn time(at_ms: i64) -> String {
    written(at_ms, "%Y-%m-%dT%H:%M:%SZ")
}

/// As the format says; beyond the calendar the number itself.
fn written(at_ms: i64, format: &str) -> String {
    let moment = chrono::DateTime::from_timestamp_millis(at_ms);
    moment.map_or_else(|| format!("{at_ms} ms"), |moment| moment.format(format).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_follow_the_calendar() {
        assert_eq!(time(0), "1970-01-01T00:00:00Z");
        assert_eq!(time(951_782_400_000), "2000-02-29T00:00:00Z");
        assert_eq!(time(1_795_426_219_999), "2026-11-23T09:30:19Z");
        assert_eq!(day(-1), "1969-12-31");
        assert_eq!(day(4_107_542_400_000), "2100-03-01");
    }
}
