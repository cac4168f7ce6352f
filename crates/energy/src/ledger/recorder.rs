//! From a run's course to rows: the meter is read at every border between phases, so that phases add up to the run.
//!
//! Rows are on the disk a moment after their phase has ended, and all of them when [`Recorder::finish`] returns. `kill -9` loses that moment
//! and what is held back; the chain stays whole.

use std::{
    collections::BTreeMap,
    sync::PoisonError,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use sha2::{Digest, Sha256};

use super::{
    Ledger, LedgerError,
    entry::{Entry, Kind, Phase, Work, hex},
    writer::{Trouble, Writer},
};
use crate::{
    grade::Energy,
    meter::{Meter, Sampler, Snapshot, Window},
};

/// Between two looks at sensors of power.
const EVERY: Duration = Duration::from_millis(200);

/// Pieces of one phase become one row about this often.
const ROW_EVERY: Duration = Duration::from_secs(10);

/// Meters a run and writes it down.
///
/// A ledger that fails is given up, and [`Recorder::trouble`] tells why, once; metering goes on.
pub struct Recorder {
    sampler: Sampler,
    writer: Option<Writer>,
    trouble: Trouble,
    blank: Entry,
    started: Snapshot,
    /// The last border between phases.
    border: Snapshot,
    /// Rows of the request that is not written yet.
    pending: Vec<Entry>,
    /// The last step of a batch, not shared out yet.
    step: Option<Entry>,
    /// Phases of the requests of a batch, by request and phase.
    batch: BTreeMap<(u64, Phase), Entry>,
    /// Pieces of one phase that are not written yet, and when the first of them came.
    held: Option<(Entry, Instant)>,
    next_request: u64,
    work: Work,
    closed: bool,
}

/// Who took part in a step of a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepUser {
    /// Index of the request in the batch.
    pub request: u64,
    /// What it did.
    pub phase: Phase,
    /// Its share of the step, relative to the others' (see [`allocate`](crate::allocate)).
    pub weight: f64,
    /// What was done.
    pub work: Work,
}

impl Recorder {
    /// A run of `command` begins. Without a ledger it is only metered.
    pub fn start(meter: Meter, ledger: Result<Option<Ledger>, LedgerError>, command: &str) -> Self {
        let sampler = Sampler::start(meter, EVERY);
        let started = sampler.snapshot();
        let trouble = Trouble::default();
        let writer = ledger.and_then(|l| l.map(|l| Writer::start(l, trouble.clone())).transpose());
        let writer = writer.unwrap_or_else(|error| {
            *trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            None
        });
        let blank = Entry {
            at_ms: 0,
            run: new_run(),
            request: None,
            kind: Kind::Start,
            command: command.into(),
            tenant: None,
            model: None,
            work: Work::default(),
            seconds: 0.0,
            energy: None,
            unknown_s: 0.0,
            own_cpu_s: None,
            busy_cpu_s: None,
            boundary: String::new(),
        };
        let mut recorder = Self {
            sampler,
            writer,
            trouble,
            blank,
            border: started.clone(),
            started,
            pending: vec![],
            step: None,
            batch: BTreeMap::new(),
            held: None,
            next_request: 0,
            work: Work::default(),
            closed: false,
        };
        let start = Entry { at_ms: now_ms(), ..recorder.blank.clone() };
        recorder.write(&[start]);
        recorder
    }

    /// Names the model of all further rows.
    pub fn set_model(&mut self, fingerprint: String) {
        self.blank.model = Some(fingerprint);
    }

    /// Says for whom all further rows are.
    pub fn set_tenant(&mut self, tenant: String) {
        self.blank.tenant = Some(tenant);
    }

    /// The name of the run.
    pub fn run(&self) -> &str {
        &self.blank.run
    }

    /// What the run has spent until this moment, whatever it is spent on. Cuts no phase.
    pub fn spent(&self) -> Window {
        self.sampler.snapshot().since(&self.started)
    }

    /// The time since the last border was spent on `phase`. Belongs to no request; written at once.
    pub fn phase(&mut self, phase: Phase, work: Work) -> Window {
        let (entry, window) = self.cut(phase, work, None);
        self.write(&[entry]);
        window
    }

    /// The time since the last border was spent on a piece of `phase`, one of many such as steps of training. Pieces that follow each
    /// other are written as one row, every ten seconds and when another phase comes.
    pub fn piece(&mut self, phase: Phase, work: Work) {
        let (piece, _) = self.cut(phase, work, None);
        match &mut self.held {
            Some((held, _)) if held.kind == piece.kind => *held = merged(held, piece),
            _ => {
                self.flush();
                self.held = Some((piece, Instant::now()));
            }
        }
        if self.held.as_ref().is_some_and(|(_, since)| since.elapsed() >= ROW_EVERY) {
            self.flush();
        }
    }

    /// Writes the pieces that are held back; a moment to do so is when what they made is saved.
    pub fn flush(&mut self) {
        if let Some((held, _)) = self.held.take() {
            self.write(&[held]);
        }
    }

    /// The time since the last border was spent on `phase` of the present request; written when the request ends.
    pub fn phase_of_request(&mut self, phase: Phase, work: Work) -> Window {
        let (entry, window) = self.cut(phase, work, Some(self.next_request));
        self.pending.push(entry);
        window
    }

    /// Sets what was done in a phase of the present request, where it is known only later.
    pub fn amend(&mut self, phase: Phase, work: Work) {
        if let Some(row) = self.pending.iter_mut().rfind(|row| row.kind == Kind::Phase(phase)) {
            row.work = work;
        }
    }

    /// A step of several requests that are computed together has ended: the time since the last border was theirs.
    /// [`Recorder::share_step`] says whose.
    pub fn step_of_batch(&mut self) {
        self.write_step();
        self.step = Some(self.cut(Phase::Answer, Work::default(), None).0);
    }

    /// Shares the last [`Recorder::step_of_batch`] out by weight; of nothing but zeros, evenly.
    pub fn share_step(&mut self, users: &[StepUser]) {
        if users.is_empty() {
            return self.write_step();
        }
        let Some(step) = self.step.take() else { return };
        let sum: f64 = users.iter().map(|u| u.weight).sum();
        for user in users {
            let share = if sum > 0.0 { user.weight / sum } else { 1.0 / users.len() as f64 };
            let of = |x: Option<f64>| x.map(|x| x * share);
            self.work = total([self.work, user.work]);
            let part = Entry {
                kind: Kind::Phase(user.phase),
                request: Some(self.next_request + user.request),
                work: user.work,
                seconds: step.seconds * share,
                energy: step.energy.map(|e| e.scaled(share)),
                unknown_s: step.unknown_s * share,
                own_cpu_s: of(step.own_cpu_s),
                busy_cpu_s: of(step.busy_cpu_s),
                ..step.clone()
            };
            let sum = match self.batch.remove(&(user.request, user.phase)) {
                Some(sum) => merged(&sum, part),
                None => part,
            };
            self.batch.insert((user.request, user.phase), sum);
        }
    }

    /// All requests of the batch have ended; their phases and sums are written.
    pub fn end_batch(&mut self) {
        self.write_step();
        let mut rows = vec![];
        let mut phases = std::mem::take(&mut self.batch).into_iter().peekable();
        while let Some(((request, _), phase)) = phases.next() {
            let mut sum = phase.clone();
            rows.push(phase);
            while let Some((_, next)) = phases.next_if(|((next, _), _)| *next == request) {
                sum = merged(&sum, next.clone());
                rows.push(next);
            }
            self.next_request = self.next_request.max(sum.request.unwrap_or(0) + 1);
            rows.push(Entry { kind: Kind::Request, ..sum });
        }
        if !rows.is_empty() {
            self.write(&rows);
        }
    }

    /// A step that nobody has taken is a phase without a request.
    fn write_step(&mut self) {
        if let Some(step) = self.step.take() {
            self.write(&[step]);
        }
    }

    /// The present request has ended; its phases and their sum, which is returned, are written. None if it had no phase.
    pub fn end_request(&mut self) -> Option<Entry> {
        let sum = self.pending.iter().cloned().reduce(|sum, phase| merged(&sum, phase))?;
        let row = Entry { kind: Kind::Request, ..sum };
        self.work = total([self.work, row.work]);
        let mut rows = std::mem::take(&mut self.pending);
        rows.push(row.clone());
        self.next_request += 1;
        self.write(&rows);
        Some(row)
    }

    /// The run has ended. What is left since the last border was idle time.
    pub fn finish(&mut self) -> Window {
        self.end_request();
        self.end_batch();
        let (idle, _) = self.cut(Phase::Idle, Work::default(), None);
        let window = self.border.since(&self.started);
        let run = Entry { kind: Kind::Run, at_ms: idle.at_ms, work: self.work, ..self.blank.clone() }.measured(&window);
        self.write(&[idle, run]);
        self.writer = None; // all is on the disk
        self.closed = true;
        window
    }

    /// All of the run so far.
    pub fn so_far(&self) -> Window {
        self.border.since(&self.started)
    }

    /// Why nothing is written any more; told once.
    pub fn trouble(&mut self) -> Option<LedgerError> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether any sensor measures; if not, every number is a model's.
    pub fn measures(&self) -> bool {
        self.sampler.with(Meter::measures)
    }

    fn cut(&mut self, phase: Phase, work: Work, request: Option<u64>) -> (Entry, Window) {
        let now = self.sampler.snapshot();
        let window = now.since(&self.border);
        self.border = now;
        if request.is_none() {
            self.work = total([self.work, work]);
        }
        let kind = Kind::Phase(phase);
        (Entry { kind, at_ms: now_ms(), work, request, ..self.blank.clone() }.measured(&window), window)
    }

    fn write(&mut self, rows: &[Entry]) {
        if let Some((held, _)) = self.held.take() {
            self.append(&[held]);
        }
        self.append(rows);
    }

    fn append(&mut self, rows: &[Entry]) {
        if let Some(writer) = &self.writer {
            writer.send(rows);
        }
    }
}

impl Drop for Recorder {
    /// A run that ends by an error is closed as well.
    fn drop(&mut self) {
        if !self.closed {
            self.finish();
        }
    }
}

/// One row for two that follow each other.
fn merged(first: &Entry, then: Entry) -> Entry {
    let both = |a: Option<f64>, b: Option<f64>| Some(a? + b?);
    Entry {
        work: total([first.work, then.work]),
        seconds: first.seconds + then.seconds,
        energy: first.energy.zip(then.energy).map(|(a, b)| Energy::sum([a, b])),
        unknown_s: first.unknown_s + then.unknown_s,
        own_cpu_s: both(first.own_cpu_s, then.own_cpu_s),
        busy_cpu_s: both(first.busy_cpu_s, then.busy_cpu_s),
        ..then
    }
}

/// Sums; what is known of some parts only is a sum of those.
fn total(parts: impl IntoIterator<Item = Work>) -> Work {
    let add = |a: Option<f64>, b: Option<f64>| match (a, b) {
        (Some(a), Some(b)) => Some(a + b),
        (a, b) => a.or(b),
    };
    parts.into_iter().fold(Work::default(), |sum, part| Work {
        tokens: sum.tokens + part.tokens,
        cached_tokens: sum.cached_tokens + part.cached_tokens,
        flop: add(sum.flop, part.flop),
        bytes: add(sum.bytes, part.bytes),
    })
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

/// 16 hexadecimal digits that no other run has: of the time, the process and a counter.
fn new_run() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos());
    let seed = format!("{nanos} {} {}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
    hex(&Sha256::digest(seed)[..8])
}
