//! The ledger: one SQLite file of what was spent on what, to which rows are only ever added.
//!
//! Each row's SHA-256 covers the row before it, so that a changed, removed, inserted or swapped row breaks the chain at its place
//! ([`Ledger::verify`]). Whoever can write the file can also forge a whole new chain; against that, note the head that `verify` prints
//! somewhere else and compare it later.
//!
//! A row is on the disk when [`Ledger::append`] returns (write-ahead log, `synchronous = FULL`): neither `kill -9` nor a power cut loses
//! it. Several programs may append to one file at once.
//!
//! What a run's phases spent adds up to what the counter of the whole run says: load + tokens + idle = counter; `verify` checks that
//! too.

mod entry;
mod fingerprint;
mod holds;
mod recorder;
mod summary;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row, TransactionBehavior, params};
use serde::Serialize;

pub use entry::{Entry, Kind, Phase, Work};
pub use fingerprint::Fingerprint;
pub use holds::{Holds, Use};
pub use recorder::{Recorder, StepUser};
pub use summary::{Group, RunTotal, Summary, by, day, models_of_runs, time};

use entry::Hash;

/// `jvns`, in the header of the SQLite file.
const APPLICATION_ID: i32 = 0x6a76_6e73;
/// Of the table.
const VERSION: i32 = 1;
/// Another program's append is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest text or blob in a row, in bytes.
const LONGEST: i32 = 1 << 20;
/// Phases add up to their run within this, relative to it.
const CONSERVED: f64 = 1e-9;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS entry (
  seq INTEGER PRIMARY KEY,
  at_ms INTEGER NOT NULL,
  run TEXT NOT NULL,
  request INTEGER,
  kind TEXT NOT NULL,
  command TEXT NOT NULL,
  tenant TEXT,
  model TEXT,
  tokens INTEGER NOT NULL,
  cached_tokens INTEGER NOT NULL,
  flop REAL,
  bytes REAL,
  seconds REAL NOT NULL,
  joules REAL,
  uncertainty_j REAL,
  grade TEXT,
  unknown_s REAL NOT NULL,
  own_cpu_s REAL,
  busy_cpu_s REAL,
  boundary TEXT NOT NULL,
  hash BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS tip (
  id INTEGER PRIMARY KEY CHECK (id = 1),
  seq INTEGER NOT NULL,
  hash BLOB NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS entry_run ON entry (run);
CREATE TRIGGER IF NOT EXISTS entry_is_never_changed BEFORE UPDATE ON entry
  BEGIN SELECT RAISE(ABORT, 'rows are only ever added'); END;
CREATE TRIGGER IF NOT EXISTS entry_is_never_removed BEFORE DELETE ON entry
  BEGIN SELECT RAISE(ABORT, 'rows are only ever added'); END;
";

const COLUMNS: &str = "seq, at_ms, run, request, kind, command, tenant, model, tokens, cached_tokens, flop, bytes, seconds, joules, \
                       uncertainty_j, grade, unknown_s, own_cpu_s, busy_cpu_s, boundary, hash";

/// Why the ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Its folder or file cannot be made.
    #[error(
        "{path}: cannot make the ledger: {source}; name another file with JEVONS_LEDGER=FILE, or turn it off with JEVONS_LEDGER=off"
    )]
    Create {
        /// The ledger.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is none to read.
    #[error("{path}: there is no ledger yet; `jevons chat`, `generate`, `score` and `train` write one")]
    Missing {
        /// The ledger.
        path: PathBuf,
    },
    /// A file of another kind.
    #[error("{path}: this is not a ledger of jevons ({found}); name another file with JEVONS_LEDGER=FILE")]
    NotALedger {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        found: String,
    },
    /// SQLite refuses.
    #[error(
        "{path}: the ledger cannot be {doing}: {source}; is the disk full, the file read-only, or on a network drive?"
    )]
    Sqlite {
        /// The ledger.
        path: PathBuf,
        /// `read` or `written`.
        doing: &'static str,
        /// Why.
        source: rusqlite::Error,
    },
    /// A row that nothing of ours has written.
    #[error("{path}: row {seq} is damaged: {why}; `jevons meter verify` tells which rows can be trusted")]
    Row {
        /// The ledger.
        path: PathBuf,
        /// Its number.
        seq: i64,
        /// What is wrong.
        why: String,
    },
    /// A number that cannot be recorded.
    #[error(
        "a row for the ledger has {field} = {value}, expected a finite number that is not negative, below 2^63 if it is a count"
    )]
    Number {
        /// Of the row.
        field: &'static str,
        /// What it is.
        value: f64,
    },
}

/// An open ledger.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    db: Connection,
}

/// A row with its number.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Numbered {
    /// From 1, without gaps.
    pub seq: i64,
    /// The row.
    #[serde(flatten)]
    pub entry: Entry,
}

/// What [`Ledger::verify`] has found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Rows read.
    pub rows: u64,
    /// SHA-256 of the last row, in hexadecimal: it stands for all of them.
    pub head: String,
    /// What is wrong, in order of rows; at most [`Verdict::MOST`].
    pub problems: Vec<String>,
    /// Runs that were never closed: killed, or still going on. Their phases are complete as far as they go.
    pub open_runs: Vec<String>,
}

impl Verdict {
    /// Problems listed; one is enough to distrust what follows it.
    pub const MOST: usize = 20;

    /// Whether every row is as it was written, and every closed run adds up.
    pub fn intact(&self) -> bool {
        self.problems.is_empty()
    }
}

impl Ledger {
    /// Opens the ledger to append; folder and file are made if need be, readable by their owner only.
    ///
    /// # Errors
    /// If it cannot be made or opened, or the file is something else.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, LedgerError> {
        let path = path.as_ref();
        make_private(path).map_err(|source| LedgerError::Create { path: path.to_owned(), source })?;
        Self::connect(path)
    }

    /// Opens a ledger that is there already, to read.
    ///
    /// # Errors
    /// If there is none, or the file is something else.
    pub fn open_existing(path: impl AsRef<Path>) -> Result<Self, LedgerError> {
        let path = path.as_ref();
        if !path.is_file() {
            return Err(LedgerError::Missing { path: path.to_owned() });
        }
        Self::connect(path)
    }

    fn connect(path: &Path) -> Result<Self, LedgerError> {
        let failed = |doing| move |source| LedgerError::Sqlite { path: path.to_owned(), doing, source };
        let not_ours = |found: String| LedgerError::NotALedger { path: path.to_owned(), found };
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut db = Connection::open_with_flags(path, flags).map_err(failed("opened"))?;
        db.busy_timeout(PATIENCE).map_err(failed("opened"))?;
        db.set_limit(rusqlite::limits::Limit::SQLITE_LIMIT_LENGTH, LONGEST).map_err(failed("opened"))?;
        db.pragma_update(None, "trusted_schema", false).map_err(failed("opened"))?;
        // One snapshot of all three: another program may be making the ledger at this moment.
        let found = db.transaction().and_then(|snapshot| header(&snapshot));
        let (id, version, tables) = match found {
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::NotADatabase) => {
                return Err(not_ours("no SQLite file".into()));
            }
            other => other.map_err(failed("read"))?,
        };
        match (id, version) {
            (APPLICATION_ID, VERSION) => {}
            (APPLICATION_ID, _) => {
                return Err(not_ours(format!("its layout is version {version}, this program knows {VERSION}")));
            }
            (0, 0) if tables == 0 => {}
            _ => return Err(not_ours("an SQLite file of another program".into())),
        }
        write_ahead(&db).map_err(failed("written"))?;
        db.pragma_update(None, "synchronous", "full").map_err(failed("written"))?;
        if id == 0 {
            let transaction =
                db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed("written"))?;
            // Whoever comes second finds it done.
            if header(&transaction).map_err(failed("read"))?.0 == 0 {
                transaction.execute_batch(SCHEMA).map_err(failed("written"))?;
                transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(failed("written"))?;
                transaction.pragma_update(None, "user_version", VERSION).map_err(failed("written"))?;
            }
            transaction.commit().map_err(failed("written"))?;
        }
        Ok(Self { path: path.to_owned(), db })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds rows, all or none. When this returns they are on the disk.
    ///
    /// # Errors
    /// If a number is not finite, or the file cannot be written; then nothing was added.
    pub fn append(&mut self, entries: &[Entry]) -> Result<(), LedgerError> {
        for entry in entries {
            entry.check()?;
        }
        let path = &self.path;
        let failed = |source| LedgerError::Sqlite { path: path.clone(), doing: "written", source };
        let transaction = self.db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        let tip = transaction
            .query_row("SELECT seq, hash FROM tip", [], |row| Ok((row.get(0)?, row.get::<_, Hash>(1)?)))
            .optional()
            .map_err(failed)?;
        let (mut seq, mut hash) = tip.unwrap_or((0_i64, entry::GENESIS));
        for entry in entries {
            (seq, hash) = (seq + 1, entry.hash(seq + 1, &hash));
            let e = entry;
            let sql = format!(
                "INSERT INTO entry ({COLUMNS}) VALUES (?1{})",
                (2..=21).map(|i| format!(", ?{i}")).collect::<String>()
            );
            let mut insert = transaction.prepare_cached(&sql).map_err(failed)?;
            let grade = e.energy.map(|x| x.grade.to_string());
            let (joules, uncertainty_j) = (e.energy.map(|x| x.joules), e.energy.map(|x| x.uncertainty_j));
            insert
                .execute(params![
                    seq,
                    e.at_ms,
                    e.run,
                    e.request.map(|r| r as i64),
                    e.kind.as_str(),
                    e.command,
                    e.tenant,
                    e.model,
                    e.work.tokens as i64,
                    e.work.cached_tokens as i64,
                    e.work.flop,
                    e.work.bytes,
                    e.seconds,
                    joules,
                    uncertainty_j,
                    grade,
                    e.unknown_s,
                    e.own_cpu_s,
                    e.busy_cpu_s,
                    e.boundary,
                    hash
                ])
                .map_err(failed)?;
        }
        transaction
            .execute("INSERT OR REPLACE INTO tip (id, seq, hash) VALUES (1, ?1, ?2)", params![seq, hash])
            .map_err(failed)?;
        transaction.commit().map_err(failed)
    }

    /// Every row in order, as it stands; the chain is not checked.
    ///
    /// # Errors
    /// If the file cannot be read, or `take` returns an error; a damaged row ends the reading.
    pub fn for_each(&self, take: &mut dyn FnMut(Numbered)) -> Result<(), LedgerError> {
        self.scan(&mut |seq, row| {
            let (entry, _) = read(row).map_err(|why| LedgerError::Row { path: self.path.clone(), seq, why })?;
            take(Numbered { seq, entry });
            Ok(())
        })
    }

    /// Every row in order.
    ///
    /// # Errors
    /// As [`Ledger::for_each`].
    pub fn rows(&self) -> Result<Vec<Numbered>, LedgerError> {
        let mut rows = vec![];
        self.for_each(&mut |row| rows.push(row))?;
        Ok(rows)
    }

    /// Rows that ended at this moment (milliseconds since 1970) or later, in order.
    ///
    /// # Errors
    /// As [`Ledger::for_each`].
    pub fn rows_since(&self, at_ms: i64) -> Result<Vec<Numbered>, LedgerError> {
        let failed = |source| LedgerError::Sqlite { path: self.path.clone(), doing: "read", source };
        let sql = format!("SELECT {COLUMNS} FROM entry WHERE at_ms >= ?1 ORDER BY seq");
        let mut query = self.db.prepare(&sql).map_err(failed)?;
        let mut rows = query.query([at_ms]).map_err(failed)?;
        let mut found = vec![];
        while let Some(row) = rows.next().map_err(failed)? {
            let seq = row.get(0).map_err(failed)?;
            let (entry, _) = read(row).map_err(|why| LedgerError::Row { path: self.path.clone(), seq, why })?;
            found.push(Numbered { seq, entry });
        }
        Ok(found)
    }

    fn scan(&self, take: &mut dyn FnMut(i64, &Row<'_>) -> Result<(), LedgerError>) -> Result<(), LedgerError> {
        let failed = |source| LedgerError::Sqlite { path: self.path.clone(), doing: "read", source };
        let mut query = self.db.prepare(&format!("SELECT {COLUMNS} FROM entry ORDER BY seq")).map_err(failed)?;
        let mut rows = query.query([]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            take(row.get(0).map_err(failed)?, row)?;
        }
        Ok(())
    }

    /// Whether any row has this hash, as [`Verdict::head`] prints it: what an earlier head is checked against later.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn has_head(&self, head: &str) -> Result<bool, LedgerError> {
        let failed = |source| LedgerError::Sqlite { path: self.path.clone(), doing: "read", source };
        let sql = "SELECT count(*) FROM entry WHERE lower(hex(hash)) = ?1";
        let found: i64 = self.db.query_row(sql, [head.to_lowercase()], |row| row.get(0)).map_err(failed)?;
        Ok(found > 0)
    }

    /// Recomputes the chain and the sums of every run.
    ///
    /// # Errors
    /// If the file cannot be read at all. What is wrong with its rows is in the verdict.
    pub fn verify(&self) -> Result<Verdict, LedgerError> {
        let mut verdict = Verdict::default();
        let (mut hash, mut expected) = (entry::GENESIS, 1);
        let mut runs: BTreeMap<String, Sums> = BTreeMap::new();
        let mut broken = false;
        let problem = |verdict: &mut Verdict, text: String| {
            if verdict.problems.len() < Verdict::MOST {
                verdict.problems.push(text);
            }
        };
        self.scan(&mut |seq, row| {
            verdict.rows += 1;
            if seq != expected {
                problem(&mut verdict, format!("row {expected} is missing; row {seq} follows"));
            }
            expected = seq.saturating_add(1);
            match read(row) {
                Err(why) => {
                    problem(&mut verdict, format!("row {seq}: {why}"));
                    broken = true;
                }
                Ok((entry, stored)) => {
                    // After a break the chain goes on from what the row says, so that each damaged place is told once.
                    if entry.hash(seq, &hash) != stored && !std::mem::take(&mut broken) {
                        problem(&mut verdict, format!("row {seq} was changed, or the row before it was"));
                    }
                    broken = false;
                    hash = stored;
                    runs.entry(entry.run.clone())
                        .or_default()
                        .add(seq, &entry, &mut |text| problem(&mut verdict, text));
                }
            }
            Ok(())
        })?;
        let failed = |source| LedgerError::Sqlite { path: self.path.clone(), doing: "read", source };
        let tip =
            self.db.query_row("SELECT seq, hash FROM tip", [], |row| Ok((row.get(0)?, row.get::<_, Vec<u8>>(1)?)));
        match tip.optional().map_err(failed)? {
            None if verdict.rows == 0 => {}
            Some((seq, tip)) if (seq, &*tip) == (expected - 1, &hash[..]) => {}
            Some((seq, _)) => {
                problem(&mut verdict, format!("the last row should be {seq}; rows at the end are missing or not ours"))
            }
            None => problem(&mut verdict, "the mark of the last row is missing".into()),
        }
        verdict.head = entry::hex(&hash);
        verdict.open_runs = runs.into_iter().filter(|(_, sums)| !sums.closed).map(|(run, _)| run).collect();
        Ok(verdict)
    }
}

/// Application, version and number of tables of a file.
fn header(db: &Connection) -> rusqlite::Result<(i32, i32, i64)> {
    let number = |pragma: &str| db.pragma_query_value(None, pragma, |row| row.get(0));
    let tables = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    Ok((number("application_id")?, number("user_version")?, tables))
}

/// Turns write-ahead logging on. SQLite does not wait for others here by itself.
fn write_ahead(db: &Connection) -> rusqlite::Result<()> {
    let begun = Instant::now();
    loop {
        match db.pragma_update(None, "journal_mode", "wal") {
            Err(error)
                if matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
                    && begun.elapsed() < PATIENCE =>
            {
                std::thread::sleep(Duration::from_millis(2));
            }
            other => return other,
        }
    }
}

/// What the phases of a run have added up to so far.
#[derive(Default)]
struct Sums {
    joules: f64,
    unknown: bool,
    closed: bool,
    requests: BTreeMap<u64, f64>,
}

impl Sums {
    fn add(&mut self, seq: i64, entry: &Entry, problem: &mut dyn FnMut(String)) {
        let joules = entry.energy.map(|e| e.joules);
        let mut must_equal = |what: &str, sum: f64, unknown: bool| {
            if let (Some(joules), false) = (joules, unknown)
                && (joules - sum).abs() > CONSERVED * joules.abs().max(1.0)
            {
                problem(format!("row {seq}: the phases of this {what} add up to {sum} J, and it says {joules} J"));
            }
        };
        match entry.kind {
            Kind::Start => {}
            Kind::Phase(_) => {
                self.unknown |= joules.is_none();
                self.joules += joules.unwrap_or(0.0);
                if let Some(request) = entry.request {
                    *self.requests.entry(request).or_default() += joules.unwrap_or(0.0);
                }
            }
            Kind::Request => {
                let sum = entry.request.and_then(|r| self.requests.get(&r)).copied().unwrap_or(0.0);
                must_equal("request", sum, self.unknown);
            }
            Kind::Run => {
                must_equal("run", self.joules, self.unknown);
                self.closed = true;
            }
        }
    }
}

/// The row and its hash, or what is wrong with it.
fn read(row: &Row<'_>) -> Result<(Entry, Hash), String> {
    fn get<T: rusqlite::types::FromSql>(row: &Row<'_>, name: &str) -> Result<T, String> {
        row.get(name).map_err(|e| format!("{name}: {e}"))
    }
    let whole = |name: &str| -> Result<u64, String> {
        u64::try_from(get::<i64>(row, name)?).map_err(|_| format!("{name} is negative"))
    };
    let kind: String = get(row, "kind")?;
    let energy = match (get(row, "joules")?, get(row, "uncertainty_j")?, get::<Option<String>>(row, "grade")?) {
        (Some(joules), Some(uncertainty_j), Some(grade)) => {
            let grade =
                crate::grade::Grade::from_letter(&grade).ok_or_else(|| format!("there is no grade {grade:?}"))?;
            Some(crate::grade::Energy { joules, uncertainty_j, grade })
        }
        (None, None, None) => None,
        _ => return Err("joules, their uncertainty and their grade must be there together".into()),
    };
    let request: Option<i64> = get(row, "request")?;
    let request = request.map(|r| u64::try_from(r).map_err(|_| "request is negative")).transpose()?;
    let entry = Entry {
        at_ms: get(row, "at_ms")?,
        run: get(row, "run")?,
        request,
        kind: Kind::from_name(&kind).ok_or_else(|| format!("there is no kind {kind:?}"))?,
        command: get(row, "command")?,
        tenant: get(row, "tenant")?,
        model: get(row, "model")?,
        work: Work {
            tokens: whole("tokens")?,
            cached_tokens: whole("cached_tokens")?,
            flop: get(row, "flop")?,
            bytes: get(row, "bytes")?,
        },
        seconds: get(row, "seconds")?,
        energy,
        unknown_s: get(row, "unknown_s")?,
        own_cpu_s: get(row, "own_cpu_s")?,
        busy_cpu_s: get(row, "busy_cpu_s")?,
        boundary: get(row, "boundary")?,
    };
    entry.check().map_err(|e| e.to_string())?;
    Ok((entry, get(row, "hash")?))
}

fn make_private(path: &Path) -> io::Result<()> {
    let mut folder = fs::DirBuilder::new();
    let mut file = fs::OpenOptions::new();
    file.create(true).append(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
        folder.mode(0o700);
        file.mode(0o600);
    }
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        folder.recursive(true).create(parent)?;
    }
    file.open(path).map(drop)
}
