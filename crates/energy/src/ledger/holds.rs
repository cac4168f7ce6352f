//! What runs under way have spent and may spend next, in a table beside the rows, so that several programs keep one budget.
//!
//! A run's rows come when its phases end; until then its hold says what it has spent. Of the two the larger counts, so nothing is
//! counted twice and a killed run's last step stays counted. Holds are of one day, outside the hash chain, and survive `kill -9`, though not
//! always a power cut: the rows do.

use std::{collections::BTreeMap, path::Path};

use rusqlite::{TransactionBehavior, params};

use super::{COLUMNS, Kind, Ledger, LedgerError, day, read};

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS hold (
  run TEXT NOT NULL,
  day TEXT NOT NULL,
  key TEXT NOT NULL,
  joules REAL NOT NULL,
  seconds REAL NOT NULL,
  PRIMARY KEY (run, day)
) STRICT;
";

/// When a day begins, in milliseconds since 1970; of what is no day, the beginning of time.
fn begins(on: &str) -> i64 {
    let day = on.parse::<chrono::NaiveDate>().ok().and_then(|d| d.and_hms_opt(0, 0, 0));
    day.map_or(i64::MIN, |d| d.and_utc().timestamp_millis())
}

/// What a run has used on a day.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Use {
    /// Which.
    pub run: String,
    /// For whom; empty if it was not said.
    pub key: String,
    /// Of the machine.
    pub joules: f64,
    /// While it went on.
    pub seconds: f64,
}

/// Rows and holds of one day at a time.
#[derive(Debug)]
pub struct Holds {
    ledger: Ledger,
    day: String,
    /// The last row that `booked` has.
    seen: i64,
    /// Rows of `day`, summed by run.
    booked: BTreeMap<String, Use>,
}

impl Holds {
    /// Of the ledger in this file, which is made if need be.
    ///
    /// # Errors
    /// As [`Ledger::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, LedgerError> {
        let ledger = Ledger::open(path)?;
        let failed = |source| LedgerError::Sqlite { path: ledger.path.clone(), doing: "written", source };
        // No row is written here: a step need not wait for the disk.
        ledger.db.pragma_update(None, "synchronous", "normal").map_err(failed)?;
        ledger.db.execute_batch(SCHEMA).map_err(failed)?;
        Ok(Self { ledger, day: String::new(), seen: 0, booked: BTreeMap::new() })
    }

    /// Every run's use on a day (`2026-11-23`, UTC) goes to `decide`, and what it returns is held for that run from now on, in one
    /// transaction: two programs never decide on the same state.
    ///
    /// # Errors
    /// If the file cannot be read or written; then nothing is held.
    pub fn decide<T>(&mut self, on: &str, decide: impl FnOnce(&[Use]) -> (T, Option<Use>)) -> Result<T, LedgerError> {
        if self.day != on {
            (self.day, self.seen) = (on.to_owned(), 0);
            self.booked.clear();
        }
        let path = self.ledger.path.clone();
        let failed = |source| LedgerError::Sqlite { path: path.clone(), doing: "written", source };
        let transaction = self.ledger.db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        {
            // Old days are passed over by SQLite, once.
            let last = transaction.query_row("SELECT coalesce(max(seq), 0) FROM entry", [], |row| row.get(0));
            let last: i64 = last.map_err(failed)?;
            let sql = format!("SELECT {COLUMNS} FROM entry WHERE seq > ?1 AND at_ms >= ?2 ORDER BY seq");
            let mut query = transaction.prepare_cached(&sql).map_err(failed)?;
            let mut rows = query.query([self.seen, begins(on)]).map_err(failed)?;
            self.seen = last;
            while let Some(row) = rows.next().map_err(failed)? {
                let seq = row.get(0).map_err(failed)?;
                let (entry, _) = read(row).map_err(|why| LedgerError::Row { path: path.clone(), seq, why })?;
                if !matches!(entry.kind, Kind::Phase(_)) || day(entry.at_ms) != on {
                    continue;
                }
                let sum =
                    self.booked.entry(entry.run.clone()).or_insert_with(|| Use { run: entry.run, ..Use::default() });
                // The rows of a run are for one and the same key; those before it was known name none.
                if let Some(tenant) = entry.tenant {
                    sum.key = tenant;
                }
                sum.joules += entry.energy.map_or(0.0, |e| e.joules);
                sum.seconds += entry.seconds;
            }
        }
        let mut all = self.booked.clone();
        {
            let sql = "SELECT run, key, joules, seconds FROM hold WHERE day = ?1";
            let mut query = transaction.prepare_cached(sql).map_err(failed)?;
            let held = query.query_map([on], |row| {
                Ok(Use { run: row.get(0)?, key: row.get(1)?, joules: row.get(2)?, seconds: row.get(3)? })
            });
            for held in held.map_err(failed)? {
                let held = held.map_err(failed)?;
                let sum = all.entry(held.run.clone()).or_default();
                let (joules, seconds) = (sum.joules.max(held.joules), sum.seconds.max(held.seconds));
                *sum = Use { joules, seconds, ..held };
            }
        }
        let all: Vec<Use> = all.into_values().collect();
        let (answer, hold) = decide(&all);
        if let Some(u) = hold {
            for value in [u.joules, u.seconds] {
                if !(value.is_finite() && value >= 0.0) {
                    return Err(LedgerError::Number { field: "hold", value });
                }
            }
            transaction.execute("DELETE FROM hold WHERE day < ?1", [on]).map_err(failed)?;
            let sql = "INSERT OR REPLACE INTO hold (run, day, key, joules, seconds) VALUES (?1, ?2, ?3, ?4, ?5)";
            let mut insert = transaction.prepare_cached(sql).map_err(failed)?;
            insert.execute(params![u.run, on, u.key, u.joules, u.seconds]).map_err(failed)?;
        }
        transaction.commit().map_err(failed)?;
        Ok(answer)
    }

    /// Every run's use on a day.
    ///
    /// # Errors
    /// As [`Holds::decide`].
    pub fn of_day(&mut self, on: &str) -> Result<Vec<Use>, LedgerError> {
        self.decide(on, |all| (all.to_vec(), None))
    }
}
