//! A budget that is kept through the ledger: a run asks before each step, and what every run of the day has used decides.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{Amounts, Budget, BudgetError, Decision, Policy, Records, budget::Rates};
use crate::ledger::{Holds, Ledger, LedgerError, Use, day};

/// Days before the present one whose J per token the dividend goes by.
const EFFICIENCY_DAYS: i64 = 7;
/// Steps whose largest use is expected of the next one.
const STEPS: usize = 16;

/// Why a budget cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// Its file cannot be read.
    #[error("{path}: cannot read the budget: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its rules cannot be.
    #[error("{path}: {source}")]
    Policy {
        /// The file.
        path: PathBuf,
        /// Why.
        source: BudgetError,
    },
    /// The ledger by which it counts cannot be used.
    #[error("a budget is set, and it counts by the ledger: {0}")]
    Ledger(#[from] LedgerError),
}

/// The policy of a file; none if there is no such file.
///
/// # Errors
/// [`GateError::Read`], [`GateError::Policy`].
pub fn read_policy(path: &Path) -> Result<Option<Policy>, GateError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(GateError::Read { path: path.into(), source }),
    };
    Policy::from_toml(&text).map(Some).map_err(|source| GateError::Policy { path: path.into(), source })
}

/// Lets the steps of one run through, or not.
#[derive(Debug)]
pub struct Gate {
    budget: Budget,
    holds: Holds,
    run: String,
    key: String,
    /// Spent by this run until the present day began, as far as it was asked then.
    before_today: (f64, f64),
    today: String,
    /// Spent by this run when it was last asked.
    last: (f64, f64),
    /// What the last steps took.
    steps: Vec<(f64, f64)>,
}

impl Gate {
    /// For the run of that name and key, on that ledger.
    ///
    /// # Errors
    /// [`GateError`] for a policy that cannot be or a ledger that cannot be used.
    pub fn open(ledger: &Path, policy: Policy, run: &str, key: &str, now_ms: i64) -> Result<Self, GateError> {
        let efficiency = if policy.dividend.is_some() { j_per_token(ledger, now_ms)? } else { None };
        let budget = Budget::new(policy, efficiency)
            .map_err(|source| GateError::Policy { path: ledger.with_extension("budget.toml"), source })?;
        let (run, key) = (run.to_owned(), key.to_owned());
        let nothing = (0.0, 0.0);
        let holds = Holds::open(ledger)?;
        Ok(Self { budget, holds, run, key, before_today: nothing, today: day(now_ms), last: nothing, steps: vec![] })
    }

    /// What the run has spent meanwhile, waiting, was no step: it says nothing of what the next one takes.
    pub fn waited(&mut self, joules: f64, seconds: f64) {
        self.last = (joules, seconds);
    }

    /// What the run has spent since it was asked last, or had waited, was a step. Returns it.
    pub fn stepped(&mut self, joules: f64, seconds: f64) -> (f64, f64) {
        let step = ((joules - self.last.0).max(0.0), (seconds - self.last.1).max(0.0));
        if self.last != (0.0, 0.0) {
            self.steps.push(step);
            if self.steps.len() > STEPS {
                self.steps.remove(0);
            }
        }
        self.last = (joules, seconds);
        step
    }

    /// Asks for the next step. `joules`, `seconds`: what the run has spent in all until now, `now_ms` since 1970. The next step is
    /// expected to take what the largest of the last ones did, and is held until the next question.
    ///
    /// # Errors
    /// [`GateError::Ledger`]; without the ledger nothing may go on.
    pub fn admit(&mut self, joules: f64, seconds: f64, now_ms: i64) -> Result<Decision, GateError> {
        let step = self.stepped(joules, seconds);
        let today = day(now_ms);
        if today != self.today {
            // What the step over midnight took is counted on the new day.
            self.before_today = (joules - step.0, seconds - step.1);
            self.today = today;
        }
        let own = (joules - self.before_today.0, seconds - self.before_today.1);
        let largest = |of: fn(&(f64, f64)) -> f64| self.steps.iter().map(of).fold(0.0, f64::max);
        let next = (largest(|s| s.0), largest(|s| s.1));
        let (budget, run, key, today) = (&self.budget, &self.run, &self.key, &self.today);
        let rates = &budget.policy().rates;
        let decision = self.holds.decide(today, |uses| {
            // Of this run its own meter knows more than rows and holds.
            let others = uses.iter().filter(|u| u.run != *run);
            let mine = rates.amounts(own.0, own.1);
            let [of_key, of_all] = used(rates, others, key).map(|used| used.plus(mine));
            let decision = budget.judge(key, today, of_key, of_all, rates.amounts(next.0, next.1));
            let held = match decision {
                Decision::Stop { .. } => own,
                _ => (own.0 + next.0, own.1 + next.1),
            };
            let hold = Use { run: run.clone(), key: key.clone(), joules: held.0, seconds: held.1 };
            (decision, Some(hold))
        })?;
        Ok(decision)
    }

    /// The run has ended: what it has not used is free again.
    ///
    /// # Errors
    /// [`GateError::Ledger`].
    pub fn close(&mut self, joules: f64, seconds: f64) -> Result<(), GateError> {
        let own = ((joules - self.before_today.0).max(0.0), (seconds - self.before_today.1).max(0.0));
        let hold = Use { run: self.run.clone(), key: self.key.clone(), joules: own.0, seconds: own.1 };
        Ok(self.holds.decide(&self.today, |_| ((), Some(hold)))?)
    }
}

/// Used by `key`, and by all keys.
fn used<'a>(rates: &Rates, uses: impl Iterator<Item = &'a Use>, key: &str) -> [Amounts; 2] {
    uses.fold([Amounts::default(); 2], |[own, all], u| {
        let amounts = rates.amounts(u.joules, u.seconds);
        [if u.key == key { own.plus(amounts) } else { own }, all.plus(amounts)]
    })
}

/// What each key has used today, by the ledger and the runs under way.
///
/// # Errors
/// [`GateError::Ledger`].
pub fn used_today(ledger: &Path, rates: &Rates, now_ms: i64) -> Result<Vec<(String, Amounts)>, GateError> {
    let uses = Holds::open(ledger)?.of_day(&day(now_ms))?;
    let mut keys: Vec<&str> = uses.iter().map(|u| u.key.as_str()).collect();
    keys.sort_unstable();
    keys.dedup();
    Ok(keys.iter().map(|key| ((*key).to_owned(), used(rates, uses.iter(), key)[0])).collect())
}

/// J per token of the days before today on which tokens were asked for, a week back; none if there were none.
///
/// # Errors
/// [`GateError::Ledger`].
pub fn j_per_token(ledger: &Path, now_ms: i64) -> Result<Option<f64>, GateError> {
    const DAY_MS: i64 = 86_400_000;
    if !ledger.exists() {
        return Ok(None);
    }
    let today = now_ms.div_euclid(DAY_MS) * DAY_MS;
    let mut rows = Ledger::open_existing(ledger)?.rows_since(today - EFFICIENCY_DAYS * DAY_MS)?;
    rows.retain(|r| r.entry.at_ms < today);
    let records = Records::from_ledger(&rows);
    Ok(records.ok().and_then(|(records, _)| {
        let (joules, tokens) = records.all().iter().fold((0.0, 0.0), |(j, t), r| (j + r.joules, t + r.tokens));
        (tokens > 0.0).then(|| joules / tokens)
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tempfile::tempdir;

    use super::*;
    use crate::{
        grade::{Energy, Grade},
        ledger::{Entry, Kind, Phase, Work},
        rebound::{Cap, Dividend, Resource, budget::tests::policy},
    };

    const NOON: i64 = 1_795_435_200_000; // 2026-11-23T12:00:00Z
    const DAY: i64 = 86_400_000;

    fn row(run: &str, kind: Kind, at_ms: i64, joules: f64, tokens: u64, tenant: Option<&str>) -> Entry {
        Entry {
            at_ms,
            run: run.into(),
            request: Some(0),
            kind,
            command: "chat".into(),
            tenant: tenant.map(Into::into),
            model: None,
            work: Work { tokens, ..Work::default() },
            seconds: 1.0,
            energy: Some(Energy::new(joules, Grade::E)),
            unknown_s: 0.0,
            own_cpu_s: None,
            busy_cpu_s: None,
            boundary: String::new(),
        }
    }

    fn spent(run: &str, at_ms: i64, joules: f64, tenant: Option<&str>) -> Entry {
        row(run, Kind::Phase(Phase::Answer), at_ms, joules, 10, tenant)
    }

    fn open(path: &Path, cap: f64, run: &str, key: &str) -> Gate {
        Gate::open(path, policy(&[(Resource::Joules, cap, None)]), run, key, NOON).unwrap()
    }

    #[test]
    fn what_the_ledger_has_of_today_and_of_the_key_counts() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("l.sqlite");
        Ledger::open(&path)
            .unwrap()
            .append(&[
                spent("a", NOON - DAY, 50.0, None),
                spent("b", NOON, 6.0, None),
                spent("c", NOON, 50.0, Some("bob")),
            ])
            .unwrap();
        let mut gate = open(&path, 10.0, "me", "");
        assert_eq!(gate.admit(1.0, 1.0, NOON).unwrap(), Decision::Allow);
        assert!(matches!(gate.admit(4.0, 2.0, NOON).unwrap(), Decision::Stop { .. }), "6 and 4 are all of it");
        assert!(matches!(open(&path, 10.0, "other", "bob").admit(0.0, 0.0, NOON).unwrap(), Decision::Stop { .. }));
        assert_eq!(gate.admit(4.5, 2.1, NOON + DAY).unwrap(), Decision::Allow, "a new day");
        let today = used_today(&path, &gate.budget.policy().rates, NOON).unwrap();
        assert_eq!(today.iter().map(|(k, a)| (k.as_str(), a.joules)).collect::<Vec<_>>(), [("", 6.0), ("bob", 50.0)]);
    }

    #[test]
    fn rows_that_come_later_are_seen_and_a_day_is_left_behind() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("l.sqlite");
        let mut holds = Holds::open(&path).unwrap();
        let mut ledger = Ledger::open(&path).unwrap();
        let midnight = NOON - DAY / 2;
        let sum = |holds: &mut Holds, at_ms| holds.of_day(&day(at_ms)).unwrap().iter().map(|u| u.joules).sum::<f64>();
        assert_eq!(sum(&mut holds, NOON), 0.0);
        ledger.append(&[spent("a", midnight - 1, 1.0, None), spent("a", midnight, 2.0, None)]).unwrap();
        assert_eq!(sum(&mut holds, NOON), 2.0);
        ledger.append(&[spent("a", NOON, 4.0, None), spent("b", midnight - 1, 8.0, None)]).unwrap();
        assert_eq!(sum(&mut holds, NOON), 6.0);
        assert_eq!(sum(&mut holds, NOON - DAY), 9.0);
        assert_eq!(sum(&mut holds, NOON), 6.0);
    }

    #[test]
    fn a_row_of_a_run_and_its_hold_are_counted_once_and_a_killed_run_stays_counted() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("l.sqlite");
        let mut first = open(&path, 10.0, "first", "");
        assert_eq!(first.admit(4.0, 1.0, NOON).unwrap(), Decision::Allow);
        Ledger::open(&path).unwrap().append(&[spent("first", NOON, 4.0, None)]).unwrap();
        let mut second = open(&path, 10.0, "second", "");
        assert_eq!(second.admit(5.0, 1.0, NOON).unwrap(), Decision::Allow, "4 of first, once");
        drop(first); // killed: it never closed
        assert!(matches!(second.admit(6.5, 2.0, NOON).unwrap(), Decision::Stop { .. }));
    }

    #[test]
    fn steps_under_way_together_cannot_each_spend_the_last_of_a_cap() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("l.sqlite");
        let [mut a, mut b] = ["a", "b"].map(|run| open(&path, 10.0, run, ""));
        assert_eq!(a.admit(0.5, 0.1, NOON).unwrap(), Decision::Allow);
        assert_eq!(b.admit(0.5, 0.1, NOON).unwrap(), Decision::Allow);
        assert_eq!(a.admit(4.0, 1.0, NOON).unwrap(), Decision::Allow); // holds 3.5 more
        assert!(matches!(b.admit(3.5, 1.0, NOON).unwrap(), Decision::Stop { .. }), "7.5 are held by the other");
        a.close(4.0, 1.0).unwrap();
        assert!(matches!(b.admit(3.6, 1.1, NOON).unwrap(), Decision::Stop { .. }), "its own step would pass the cap");
        let mut third = open(&path, 10.0, "third", "");
        assert_eq!(third.admit(0.0, 0.0, NOON).unwrap(), Decision::Allow, "what was not used is free again");
    }

    #[test]
    fn waiting_counts_and_is_no_step() {
        let dir = tempdir().unwrap();
        let mut gate = open(&dir.path().join("l.sqlite"), 100.0, "a", "");
        assert_eq!(gate.admit(1.0, 0.1, NOON).unwrap(), Decision::Allow);
        gate.waited(60.0, 600.0);
        assert_eq!(gate.admit(61.0, 600.1, NOON).unwrap(), Decision::Allow, "the next step takes 1 J, not 59");
        // A step that has ended before it was asked again is remembered over the waiting that follows.
        gate.stepped(81.0, 601.0);
        gate.waited(82.0, 700.0);
        assert!(matches!(gate.admit(82.0, 700.0, NOON).unwrap(), Decision::Stop { .. }), "20 J more would pass 100 J");
    }

    #[test]
    fn the_dividend_goes_by_the_days_before() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("l.sqlite");
        let rows: Vec<Entry> = (1..=3)
            .flat_map(|d| {
                let run = format!("r{d}");
                [spent(&run, NOON - d * DAY, 10.0, None), row(&run, Kind::Request, NOON - d * DAY, 10.0, 10, None)]
            })
            .collect();
        Ledger::open(&path).unwrap().append(&rows).unwrap();
        assert_eq!(j_per_token(&path, NOON).unwrap(), Some(1.0));
        assert_eq!(j_per_token(&path, NOON + 30 * DAY).unwrap(), None);
        let dividend = Some(Dividend { share: 1.0, baseline_j_per_token: 4.0 });
        let tight = Policy { dividend, ..policy(&[(Resource::Joules, 100.0, None)]) };
        let mut gate = Gate::open(&path, tight, "a", "", NOON).unwrap();
        assert_eq!(gate.admit(20.0, 1.0, NOON).unwrap(), Decision::Allow);
        assert!(matches!(gate.admit(25.0, 1.5, NOON).unwrap(), Decision::Stop { .. }), "100 J became 25 J");
    }

    #[test]
    fn a_policy_file_is_read_and_a_bad_one_stops() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("b.toml");
        assert!(read_policy(&path).unwrap().is_none());
        let cap = Cap { resource: Resource::Usd, amount: 2.0, key: None };
        let written = Policy { caps: vec![cap], ..policy(&[]) };
        fs::write(&path, written.to_toml()).unwrap();
        assert_eq!(read_policy(&path).unwrap(), Some(written));
        fs::write(&path, "nonsense").unwrap();
        assert!(read_policy(&path).unwrap_err().to_string().contains("b.toml"));
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(read_policy(&path).is_err());
    }

    proptest! {
        #[test]
        fn texts_of_strangers_are_read_or_refused(text in "(?s).{0,200}", line in "[0-9T:Z,.eE+-]{0,60}") {
            let _ = Policy::from_toml(&text);
            for text in [text, format!("time,g_per_kwh\n{line}\n{line}"), format!("day,tokens,joules,tasks\n{line}")] {
                let _ = (crate::convert::IntensityHours::from_csv(&text), Records::from_text(&text));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn no_client_passes_a_cap_by_more_than_one_step(
            steps in proptest::collection::vec((0f64..3.0, 0usize..3, 0usize..4), 1..80), slow_from in 0f64..=1.0,
        ) {
            // Three runs of two keys take turns in any order, with steps of any size; rows come late or never.
            let dir = tempdir().unwrap();
            let path = dir.path().join("l.sqlite");
            let rules = Policy { slow_from, ..policy(&[(Resource::Joules, 20.0, None)]) };
            let keys = ["ada", "ada", "bob"];
            let mut gates: Vec<Gate> = (0..3)
                .map(|i| Gate::open(&path, rules.clone(), &format!("run {i}"), keys[i], NOON).unwrap())
                .collect();
            let mut ledger = Ledger::open(&path).unwrap();
            let (mut total, mut booked) = ([0.0; 3], [0.0; 3]);
            for (joules, i, book) in steps {
                match gates[i].admit(total[i], total[i] / 10.0, NOON).unwrap() {
                    Decision::Stop { .. } => {}
                    _ => total[i] += joules,
                }
                if book == 0 && total[i] > booked[i] {
                    ledger.append(&[spent(&format!("run {i}"), NOON, total[i] - booked[i], Some(keys[i]))]).unwrap();
                    booked[i] = total[i];
                }
            }
            // A step of each run may be under way at the same time.
            prop_assert!(total[0] + total[1] <= 20.0 + 2.0 * 3.0 && total[2] <= 20.0 + 3.0, "{:?}", total);
        }
    }
}
