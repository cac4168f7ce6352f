//! Budgets that are enforced: caps in joules, grams, litres or money per key and day.
//!
//! A policy object without clock, thread or file: whatever generates asks [`Budget::admit`] before each step and tells
//! [`Budget::settle`] what it took. A cap is passed by what one step took beyond its estimate, at most: so energy, once it binds, cannot
//! rebound beyond the cap. An efficiency dividend shrinks the caps as efficiency rises, so that part of each saving is kept.

use std::{collections::BTreeMap, fmt};

use chrono::NaiveDate;
use serde::{Deserialize, Serialize};

/// What is capped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// Energy.
    Joules,
    /// CO2 equivalent.
    Grams,
    /// Water.
    Litres,
    /// Money.
    Usd,
}

impl Resource {
    fn unit(self) -> &'static str {
        match self {
            Self::Joules => "J",
            Self::Grams => "g CO2e",
            Self::Litres => "L",
            Self::Usd => "USD",
        }
    }
}

/// What a step takes of each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Amounts {
    /// J.
    pub joules: f64,
    /// gCO2e.
    pub grams: f64,
    /// L.
    pub litres: f64,
    /// USD.
    pub usd: f64,
}

impl Amounts {
    /// Of one resource.
    pub fn of(&self, resource: Resource) -> f64 {
        match resource {
            Resource::Joules => self.joules,
            Resource::Grams => self.grams,
            Resource::Litres => self.litres,
            Resource::Usd => self.usd,
        }
    }

    fn plus(self, other: Self, sign: f64) -> Self {
        let add = |a: f64, b: f64| (a + sign * b).max(0.0);
        Self {
            joules: add(self.joules, other.joules),
            grams: add(self.grams, other.grams),
            litres: add(self.litres, other.litres),
            usd: add(self.usd, other.usd),
        }
    }

    fn check(&self) -> Result<(), BudgetError> {
        let all = [self.joules, self.grams, self.litres, self.usd];
        match all.iter().find(|x| !(x.is_finite() && **x >= 0.0)) {
            Some(x) => Err(BudgetError::Amount(*x)),
            None => Ok(()),
        }
    }
}

/// A limit per key and day.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cap {
    /// Of what.
    pub resource: Resource,
    /// How much per key and day, above 0.
    pub amount: f64,
}

/// Savings that are kept: with a gain `k` in energy per token, caps other than money shrink to `1 − share · (1 − 1/k)` of themselves.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dividend {
    /// Share of each saving that is kept, 0 to 1.
    pub share: f64,
    /// J per token when the caps were set.
    pub baseline_j_per_token: f64,
}

/// The rules.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Each is enforced.
    pub caps: Vec<Cap>,
    /// Share of a cap from which on steps are slowed, 0 to 1; at 1 they never are.
    pub slow_from: f64,
    /// Tightens the caps.
    pub dividend: Option<Dividend>,
}

/// Why a policy or an amount is refused.
#[derive(Debug, thiserror::Error)]
pub enum BudgetError {
    /// An amount that nothing can take.
    #[error("an amount is {0}, expected a finite number that is not negative")]
    Amount(f64),
    /// A rule that cannot be.
    #[error("the budget's {what} is {found}, expected {expected}")]
    Policy {
        /// The rule.
        what: &'static str,
        /// Its value.
        found: f64,
        /// What would be right.
        expected: &'static str,
    },
}

/// Leave to take one step. To be given back to [`Budget::settle`]; a ticket that is dropped stays reserved.
#[derive(Debug, PartialEq)]
#[must_use = "settle it with what the step took"]
pub struct Ticket {
    key: String,
    day: NaiveDate,
    reserved: Amounts,
}

/// The answer to a step.
#[derive(Debug, PartialEq)]
pub enum Decision {
    /// Go on.
    Allow(Ticket),
    /// Go on, at that share of full speed, above 0 and below 1.
    Slow {
        /// To be settled.
        ticket: Ticket,
        /// Of full speed.
        speed: f64,
        /// To be shown.
        reason: String,
    },
    /// Stop, until the day is over.
    Stop {
        /// To be shown.
        reason: String,
    },
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allow(_) => f.write_str("allowed"),
            Self::Slow { speed, reason, .. } => write!(f, "slowed to {:.0} % of full speed: {reason}", speed * 100.0),
            Self::Stop { reason } => write!(f, "stopped: {reason}"),
        }
    }
}

/// What was used, and what is promised to steps under way.
#[derive(Clone, Copy, Debug, Default)]
struct Account {
    used: Amounts,
    reserved: Amounts,
}

/// The state of enforcement.
#[derive(Debug)]
pub struct Budget {
    policy: Policy,
    j_per_token: Option<f64>,
    accounts: BTreeMap<(NaiveDate, String), Account>,
}

impl Budget {
    /// # Errors
    /// [`BudgetError::Policy`] for a cap that is not above 0, shares outside 0..=1, or a baseline that is not above 0.
    pub fn new(policy: Policy) -> Result<Self, BudgetError> {
        let bad = |what, found, expected| Err(BudgetError::Policy { what, found, expected });
        for cap in &policy.caps {
            if !(cap.amount > 0.0 && cap.amount.is_finite()) {
                return bad("cap", cap.amount, "a finite number above 0");
            }
        }
        if !(0.0..=1.0).contains(&policy.slow_from) {
            return bad("share to slow from", policy.slow_from, "0 to 1");
        }
        if let Some(d) = policy.dividend {
            if !(0.0..=1.0).contains(&d.share) {
                return bad("dividend", d.share, "a share of 0 to 1");
            }
            if !(d.baseline_j_per_token > 0.0 && d.baseline_j_per_token.is_finite()) {
                return bad("baseline", d.baseline_j_per_token, "J per token, above 0");
            }
        }
        Ok(Self { policy, j_per_token: None, accounts: BTreeMap::new() })
    }

    /// Tells the dividend the present energy per token. Worse efficiency than the baseline never loosens a cap.
    ///
    /// # Errors
    /// [`BudgetError::Amount`] unless it is finite and above 0.
    pub fn set_efficiency(&mut self, j_per_token: f64) -> Result<(), BudgetError> {
        if !(j_per_token > 0.0 && j_per_token.is_finite()) {
            return Err(BudgetError::Amount(j_per_token));
        }
        self.j_per_token = Some(j_per_token);
        Ok(())
    }

    /// The cap in force, the dividend taken off.
    pub fn cap(&self, cap: &Cap) -> f64 {
        match (self.policy.dividend, self.j_per_token) {
            (Some(d), Some(now)) if cap.resource != Resource::Usd => {
                let saving = (1.0 - now / d.baseline_j_per_token).max(0.0);
                cap.amount * (1.0 - d.share * saving)
            }
            _ => cap.amount,
        }
    }

    /// Asks for a step that is expected to take `estimate`. What is allowed is reserved until it is settled, so that steps under way
    /// together cannot each spend the last of a cap.
    ///
    /// # Errors
    /// [`BudgetError::Amount`] for an estimate that is negative or not a number.
    pub fn admit(&mut self, key: &str, day: NaiveDate, estimate: Amounts) -> Result<Decision, BudgetError> {
        estimate.check()?;
        let account = self.accounts.get(&(day, key.to_string())).copied().unwrap_or_default();
        let mut speed = 1.0f64;
        let mut slowed = String::new();
        for cap in &self.policy.caps {
            let (limit, unit) = (self.cap(cap), cap.resource.unit());
            let held = account.used.of(cap.resource) + account.reserved.of(cap.resource);
            let wanted = held + estimate.of(cap.resource);
            // A cap that the dividend took to 0 allows nothing.
            if held >= limit || wanted > limit {
                let used = account.used.of(cap.resource);
                let reason = format!(
                    "{} has used {used:.3} of {limit:.3} {unit} on {day}, and the next step would take {:.3}; the budget is new at 00:00 UTC",
                    name(key),
                    estimate.of(cap.resource)
                );
                return Ok(Decision::Stop { reason });
            }
            let share = wanted / limit;
            if share > self.policy.slow_from {
                // From full speed at the threshold to a tenth of it at the cap.
                let here = 1.0 - 0.9 * (share - self.policy.slow_from) / (1.0 - self.policy.slow_from);
                if here < speed {
                    speed = here;
                    slowed = format!("{} is at {:.0} % of {limit:.3} {unit} for {day}", name(key), share * 100.0);
                }
            }
        }
        let entry = self.accounts.entry((day, key.to_string())).or_default();
        entry.reserved = entry.reserved.plus(estimate, 1.0);
        let ticket = Ticket { key: key.to_string(), day, reserved: estimate };
        Ok(if speed < 1.0 { Decision::Slow { ticket, speed, reason: slowed } } else { Decision::Allow(ticket) })
    }

    /// Books what the step took.
    ///
    /// # Errors
    /// [`BudgetError::Amount`] for an amount that is negative or not a number; the estimate is then booked.
    pub fn settle(&mut self, ticket: Ticket, actual: Amounts) -> Result<(), BudgetError> {
        let checked = actual.check();
        let booked = if checked.is_ok() { actual } else { ticket.reserved };
        let account = self.accounts.entry((ticket.day, ticket.key)).or_default();
        account.reserved = account.reserved.plus(ticket.reserved, -1.0);
        account.used = account.used.plus(booked, 1.0);
        checked
    }

    /// What a key has used on a day.
    pub fn used(&self, key: &str, day: NaiveDate) -> Amounts {
        self.accounts.get(&(day, key.to_string())).map_or_else(Amounts::default, |a| a.used)
    }

    /// Forgets days before this one.
    pub fn forget_before(&mut self, day: NaiveDate) {
        self.accounts.retain(|(d, _), _| *d >= day);
    }
}

/// A key, shortened and without what would change a terminal.
fn name(key: &str) -> String {
    key.chars().take(40).map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn day(d: u32) -> NaiveDate {
        NaiveDate::from_ymd_opt(2026, 5, d).unwrap()
    }

    fn joules(joules: f64) -> Amounts {
        Amounts { joules, ..Amounts::default() }
    }

    fn budget(amount: f64, slow_from: f64, dividend: Option<Dividend>) -> Budget {
        Budget::new(Policy { caps: vec![Cap { resource: Resource::Joules, amount }], slow_from, dividend }).unwrap()
    }

    fn step(b: &mut Budget, key: &str, d: u32, x: f64) -> &'static str {
        match b.admit(key, day(d), joules(x)).unwrap() {
            Decision::Allow(ticket) => b.settle(ticket, joules(x)).map(|()| "allow").unwrap(),
            Decision::Slow { ticket, speed, .. } => {
                assert!(speed > 0.0 && speed < 1.0);
                b.settle(ticket, joules(x)).map(|()| "slow").unwrap()
            }
            Decision::Stop { .. } => "stop",
        }
    }

    #[test]
    fn a_budget_allows_then_slows_then_stops_and_is_new_the_next_day() {
        let mut b = budget(10.0, 0.5, None);
        let got: Vec<_> = (0..5).map(|_| step(&mut b, "ada", 1, 2.5)).collect();
        assert_eq!(got, ["allow", "allow", "slow", "slow", "stop"]);
        assert_eq!((step(&mut b, "ada", 2, 2.5), step(&mut b, "bob", 1, 2.5)), ("allow", "allow"));
        assert_eq!(b.used("ada", day(1)).joules, 10.0);
        let stop = b.admit("ada", day(1), joules(1.0)).unwrap().to_string();
        assert!(stop.contains("stopped: ada has used 10.000 of 10.000 J"), "{stop}");
        b.forget_before(day(2));
        assert_eq!(b.used("ada", day(1)).joules, 0.0);
    }

    #[test]
    fn every_cap_counts() {
        let caps = [Resource::Joules, Resource::Grams, Resource::Litres, Resource::Usd]
            .map(|resource| Cap { resource, amount: 1.0 });
        for (i, over) in [
            Amounts { joules: 1.5, ..Amounts::default() },
            Amounts { grams: 1.5, ..Amounts::default() },
            Amounts { litres: 1.5, ..Amounts::default() },
            Amounts { usd: 1.5, ..Amounts::default() },
        ]
        .into_iter()
        .enumerate()
        {
            let mut b = Budget::new(Policy { caps: caps.to_vec(), slow_from: 1.0, dividend: None }).unwrap();
            let Decision::Stop { reason } = b.admit("k", day(1), over).unwrap() else { panic!("{i}") };
            assert!(reason.contains(caps[i].resource.unit()), "{reason}");
        }
    }

    #[test]
    fn steps_under_way_together_cannot_each_spend_the_last_of_a_cap() {
        let mut b = budget(10.0, 1.0, None);
        let Decision::Allow(first) = b.admit("k", day(1), joules(6.0)).unwrap() else { panic!() };
        assert!(matches!(b.admit("k", day(1), joules(6.0)).unwrap(), Decision::Stop { .. }));
        b.settle(first, joules(1.0)).unwrap();
        assert!(
            matches!(b.admit("k", day(1), joules(6.0)).unwrap(), Decision::Allow(_)),
            "what was not used is free again"
        );
    }

    #[test]
    fn the_dividend_keeps_its_share_of_each_saving_and_never_loosens() {
        let dividend = Some(Dividend { share: 0.5, baseline_j_per_token: 4.0 });
        let mut b = budget(100.0, 1.0, dividend);
        let cap = Cap { resource: Resource::Joules, amount: 100.0 };
        // Twice as efficient: half is saved, half of that is kept.
        b.set_efficiency(2.0).unwrap();
        assert_eq!(b.cap(&cap), 75.0);
        b.set_efficiency(8.0).unwrap();
        assert_eq!(b.cap(&cap), 100.0);
        b.set_efficiency(1.0).unwrap();
        assert_eq!(b.cap(&cap), 62.5);
        assert_eq!(b.cap(&Cap { resource: Resource::Usd, amount: 100.0 }), 100.0);
        assert!(b.set_efficiency(0.0).is_err() && b.set_efficiency(f64::NAN).is_err());
    }

    #[test]
    fn rules_and_amounts_that_cannot_be_are_refused() {
        let policy = |amount, slow_from, share| Policy {
            caps: vec![Cap { resource: Resource::Joules, amount }],
            slow_from,
            dividend: Some(Dividend { share, baseline_j_per_token: 1.0 }),
        };
        for bad in [policy(0.0, 0.5, 0.5), policy(f64::NAN, 0.5, 0.5), policy(1.0, 1.5, 0.5), policy(1.0, 0.5, -0.1)] {
            assert!(Budget::new(bad).is_err());
        }
        let mut b = budget(10.0, 1.0, None);
        for x in [-1.0, f64::NAN, f64::INFINITY] {
            assert!(b.admit("k", day(1), joules(x)).is_err(), "{x}");
            let Decision::Allow(ticket) = b.admit("k", day(1), joules(1.0)).unwrap() else { panic!() };
            assert!(b.settle(ticket, joules(x)).is_err());
        }
        assert_eq!(b.used("k", day(1)).joules, 3.0, "what cannot be believed is booked as estimated");
    }

    proptest! {
        #[test]
        fn no_client_passes_a_cap_by_more_than_one_step(
            steps in proptest::collection::vec((0f64..5.0, 0f64..5.0, 0u32..3), 1..200), slow_from in 0f64..=1.0,
        ) {
            // Estimates and what steps then take have nothing to do with each other; keys and days are mixed.
            let mut b = budget(20.0, slow_from, None);
            for (estimate, actual, key) in steps {
                match b.admit(&key.to_string(), day(1 + key), joules(estimate)).unwrap() {
                    Decision::Allow(ticket) | Decision::Slow { ticket, .. } => b.settle(ticket, joules(actual)).unwrap(),
                    Decision::Stop { .. } => {}
                }
            }
            for key in 0..3u32 {
                prop_assert!(b.used(&key.to_string(), day(1 + key)).joules <= 20.0 + 5.0);
            }
        }
    }
}
