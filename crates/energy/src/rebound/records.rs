//! Records of use: what was done on a day, and what it took.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, NaiveDate};
use serde::{Deserialize, Serialize};

use super::ReboundError;
use crate::ledger::{Kind, Numbered};

/// What one group of users did on one day. Several records of a day and group are added up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsageRecord {
    /// `2026-01-31`.
    pub day: NaiveDate,
    /// Input and output.
    pub tokens: f64,
    /// As the ledger has them: active and standby.
    pub joules: f64,
    /// Requests, questions, jobs: what people wanted done.
    pub tasks: f64,
    /// People or keys that were active.
    #[serde(default)]
    pub users: Option<f64>,
    /// Tenant, team or key.
    #[serde(default)]
    pub group: Option<String>,
}

/// Checked records. Never empty, in order of days.
#[derive(Clone, Debug, PartialEq)]
pub struct Records {
    records: Vec<UsageRecord>,
}

/// Records of a file at most.
const MAX_RECORDS: usize = 10_000_000;

impl Records {
    /// Records that are checked: numbers finite and not negative, below 10²⁴.
    ///
    /// # Errors
    /// [`ReboundError::Records`] with the first that is wrong.
    pub fn new(mut records: Vec<UsageRecord>) -> Result<Self, ReboundError> {
        let bad = |record: usize, problem: String| ReboundError::Records { record, problem };
        if records.is_empty() || records.len() > MAX_RECORDS {
            return Err(bad(0, format!("there are {} records, expected 1 to {MAX_RECORDS}", records.len())));
        }
        for (i, r) in records.iter().enumerate() {
            let numbers =
                [("tokens", r.tokens), ("joules", r.joules), ("tasks", r.tasks), ("users", r.users.unwrap_or(0.0))];
            if let Some((name, x)) = numbers.iter().find(|(_, x)| !(0.0..1e24).contains(x)) {
                return Err(bad(i + 1, format!("`{name}` is {x}, expected 0 to 10²⁴")));
            }
        }
        records.sort_by_key(|r| r.day);
        Ok(Self { records })
    }

    /// CSV with a header; the order of the columns is free.
    ///
    /// # Errors
    /// [`ReboundError::Records`] for a header or line that is not of a [`UsageRecord`].
    ///
    /// ```
    /// # use jevons_energy::rebound::Records;
    /// assert!(Records::from_csv("day,tokens,joules,tasks\n2026-01-01,1000,5000,3\n").is_ok());
    /// assert!(Records::from_csv("day,tokens,joules,tasks\n2026-01-01,1000,-1,3\n").is_err());
    /// ```
    pub fn from_csv(text: &str) -> Result<Self, ReboundError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text.as_bytes());
        let read = reader.deserialize::<UsageRecord>().take(MAX_RECORDS + 1).enumerate();
        let records: Result<Vec<_>, _> = read
            .map(|(i, r)| r.map_err(|e| ReboundError::Records { record: i + 1, problem: plain(&e.to_string()) }))
            .collect();
        Self::new(records?)
    }

    /// A JSON list of objects with the same names.
    ///
    /// # Errors
    /// [`ReboundError::Records`].
    pub fn from_json(text: &str) -> Result<Self, ReboundError> {
        let records = serde_json::from_str(text)
            .map_err(|e| ReboundError::Records { record: 0, problem: plain(&e.to_string()) })?;
        Self::new(records)
    }

    /// Either: JSON if it begins with a bracket.
    ///
    /// # Errors
    /// As the two.
    pub fn from_text(text: &str) -> Result<Self, ReboundError> {
        if text.trim_start().starts_with('[') { Self::from_json(text) } else { Self::from_csv(text) }
    }

    /// Of a ledger: a day of a tenant is a record. Counted are runs that answered requests: their tokens, the joules of all their phases
    /// (standby and loading included), and a task for each request. Training, and programs under the meter, are no tasks. A day on which a
    /// phase's joules are unknown is left out, since its energy is a lower bound; how many were is returned beside.
    ///
    /// # Errors
    /// [`ReboundError::Records`] if there is no such day.
    pub fn from_ledger(rows: &[Numbered]) -> Result<(Self, usize), ReboundError> {
        let answering: BTreeSet<&str> =
            rows.iter().filter(|r| r.entry.kind == Kind::Request).map(|r| r.entry.run.as_str()).collect();
        let tenants: BTreeMap<&str, &str> =
            rows.iter().filter_map(|r| Some((r.entry.run.as_str(), r.entry.tenant.as_deref()?))).collect();
        let mut days: BTreeMap<(NaiveDate, Option<&str>), (UsageRecord, bool)> = BTreeMap::new();
        for Numbered { entry, .. } in rows.iter().filter(|r| answering.contains(r.entry.run.as_str())) {
            let Some(day) = DateTime::from_timestamp_millis(entry.at_ms).map(|t| t.date_naive()) else { continue };
            let group = tenants.get(entry.run.as_str()).copied();
            let (record, known) = days.entry((day, group)).or_insert_with(|| {
                let group = group.map(str::to_owned);
                (UsageRecord { day, tokens: 0.0, joules: 0.0, tasks: 0.0, users: None, group }, true)
            });
            match entry.kind {
                Kind::Request => record.tasks += 1.0,
                Kind::Phase(_) => {
                    record.tokens += entry.work.tokens as f64;
                    record.joules += entry.energy.map_or(0.0, |e| e.joules);
                    *known &= entry.energy.is_some() && entry.unknown_s <= 1e-9;
                }
                Kind::Start | Kind::Run => {}
            }
        }
        let all = days.len();
        let known: Vec<_> = days.into_values().filter_map(|(record, known)| known.then_some(record)).collect();
        let left_out = all - known.len();
        Ok((Self::new(known)?, left_out))
    }

    /// In order of days.
    pub fn all(&self) -> &[UsageRecord] {
        &self.records
    }
}

/// A stranger's text, shortened and without what would change a terminal.
fn plain(text: &str) -> String {
    text.chars().take(200).map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        grade::{Energy, Grade},
        ledger::{Entry, Phase, Work},
    };

    #[test]
    fn both_forms_give_the_same_records() {
        let csv = "day,group,tasks,joules,tokens\n2026-01-02,a,3,50,10\n2026-01-01,,1,20,5\n";
        let json = r#"[{"day":"2026-01-01","tokens":5,"joules":20,"tasks":1},
            {"day":"2026-01-02","tokens":10,"joules":50,"tasks":3,"group":"a"}]"#;
        assert_eq!(Records::from_text(csv).unwrap(), Records::from_text(json).unwrap());
    }

    #[test]
    fn a_ledger_gives_a_record_for_each_day_and_tenant() {
        let at = |d: i64| 1_767_225_600_000 + d * 86_400_000; // 2026-01-01
        let row = |run: &str, d, kind, tokens, joules: Option<f64>, tenant: Option<&str>| Numbered {
            seq: 1,
            entry: Entry {
                at_ms: at(d),
                run: run.into(),
                request: None,
                kind,
                command: "chat".into(),
                tenant: tenant.map(Into::into),
                model: None,
                work: Work::tokens(tokens),
                seconds: 1.0,
                energy: joules.map(|j| Energy::new(j, Grade::B)),
                unknown_s: 0.0,
                own_cpu_s: None,
                busy_cpu_s: None,
                boundary: String::new(),
            },
        };
        let (answer, idle) = (Kind::Phase(Phase::Answer), Kind::Phase(Phase::Idle));
        let rows = [
            row("a", 0, answer, 10, Some(20.0), None),
            row("a", 0, Kind::Request, 10, Some(20.0), None),
            row("a", 0, idle, 0, Some(5.0), None), // standby is part of what the answers took
            row("b", 0, answer, 4, Some(8.0), Some("ada")),
            row("b", 0, Kind::Request, 4, Some(8.0), Some("ada")),
            row("t", 0, Kind::Phase(Phase::Train), 1000, Some(1e6), None), // no request: no task
            row("c", 1, answer, 3, None, None),                            // nothing is known of it
            row("c", 1, Kind::Request, 3, None, None),
        ];
        let (records, left_out) = Records::from_ledger(&rows).unwrap();
        let day = NaiveDate::from_ymd_opt(2026, 1, 1).unwrap();
        let of = |tokens, joules, group: Option<&str>| UsageRecord {
            day,
            tokens,
            joules,
            tasks: 1.0,
            users: None,
            group: group.map(Into::into),
        };
        assert_eq!((records.all(), left_out), (&[of(10.0, 25.0, None), of(4.0, 8.0, Some("ada"))][..], 1));
        assert!(Records::from_ledger(&rows[5..]).is_err());
    }

    #[test]
    fn bad_records_are_refused_with_their_number() {
        let head = "day,tokens,joules,tasks\n";
        for (text, word) in [
            (String::new(), "0 records"),
            (head.into(), "0 records"),
            (format!("{head}2026-01-01,1,2\n"), "record 1"),
            (format!("{head}2026-02-30,1,2,3\n"), "record 1"),
            (format!("{head}2026-01-01,1,2,3\n2026-01-02,1,NaN,3\n"), "joules"),
            (format!("{head}2026-01-01,1,inf,3\n"), "joules"),
            (format!("{head}2026-01-01,1,x,3\n"), "record 1"),
            ("day,tokens\n2026-01-01,1\n".into(), "record 1"),
            ("[{}]".into(), "day"),
            ("[".into(), "EOF"),
            (r#"[{"day":"2026-01-01","tokens":-5,"joules":20,"tasks":1}]"#.into(), "tokens"),
        ] {
            let error = Records::from_text(&text).unwrap_err().to_string();
            assert!(error.contains(word), "{text:?}: {error}");
        }
    }
}
