//! Budgets: caps in joules, grams, litres or money per key and day, and what they say of the next step.
//!
//! [`Budget::judge`] is the rule alone, without clock or file; [`super::Gate`] keeps it through the ledger. A binding cap on energy holds the
//! rebound below a level of one's own choice. An efficiency dividend shrinks the caps as efficiency rises, so that part of each saving is
//! kept.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::convert::{Band, J_PER_KWH, Site, carbon_g, facility_kwh, water_l};

/// What is capped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// Energy of the machine.
    Joules,
    /// CO2 equivalent of its electricity.
    Grams,
    /// Water, on site and off site.
    Litres,
    /// Money.
    Usd,
}

impl Resource {
    /// For people.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Joules => "J",
            Self::Grams => "g CO2e",
            Self::Litres => "L",
            Self::Usd => "USD",
        }
    }
}

/// What the machine's joules and seconds come to: central values, at one place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rates {
    /// Grams of CO2 equivalent per kWh of the machine: `PUE · I`.
    pub g_per_kwh: f64,
    /// Litres per kWh of the machine: `WUE + PUE · EWIF`.
    pub l_per_kwh: f64,
    /// USD per kWh of the machine, `PUE · p`; 0 where hours are rented.
    pub usd_per_kwh: f64,
    /// USD per hour, electricity inside; 0 for a machine of one's own.
    pub usd_per_hour: f64,
    /// Where these are from, for people.
    pub place: String,
}

impl Rates {
    /// Of a site, at its central values; rented at so many USD per hour, or the electricity paid.
    pub fn of(site: &Site, rent_usd_per_h: Option<f64>) -> Self {
        let (pue, [grid, wue, ewif]) =
            (site.pue.mid(), [site.grid_g_per_kwh, site.wue_l_per_kwh, site.ewif_l_per_kwh].map(Band::mid));
        Self {
            g_per_kwh: carbon_g(facility_kwh(1.0, pue), grid),
            l_per_kwh: water_l(1.0, wue, pue, ewif).total_l(),
            usd_per_kwh: if rent_usd_per_h.is_some() { 0.0 } else { pue * site.electricity_usd_per_kwh.mid() },
            usd_per_hour: rent_usd_per_h.unwrap_or(0.0),
            place: site.region.clone(),
        }
    }

    /// What was spent, in every resource.
    pub fn amounts(&self, joules: f64, seconds: f64) -> Amounts {
        let kwh = joules / J_PER_KWH;
        Amounts {
            joules,
            grams: kwh * self.g_per_kwh,
            litres: kwh * self.l_per_kwh,
            usd: kwh * self.usd_per_kwh + seconds / 3600.0 * self.usd_per_hour,
        }
    }
}

/// So much of each resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
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

    /// Both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            joules: self.joules + other.joules,
            grams: self.grams + other.grams,
            litres: self.litres + other.litres,
            usd: self.usd + other.usd,
        }
    }
}

/// A limit per day, UTC.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cap {
    /// Of what.
    pub resource: Resource,
    /// How much per day, above 0.
    pub amount: f64,
    /// Whose: this key's; `*` for all keys together; none for each key by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

impl Cap {
    /// All keys together.
    pub const ALL: &str = "*";
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

/// The rules, as in their file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Share of a cap from which on steps are slowed, 0 to 1; at 1 they never are.
    pub slow_from: f64,
    /// What joules come to.
    pub rates: Rates,
    /// Tightens the caps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dividend: Option<Dividend>,
    /// Each is enforced.
    pub caps: Vec<Cap>,
}

impl Policy {
    /// Of TOML.
    ///
    /// # Errors
    /// [`BudgetError::File`] for what is no policy, [`BudgetError::Policy`] for one that cannot be.
    pub fn from_toml(text: &str) -> Result<Self, BudgetError> {
        let policy: Self = toml::from_str(text).map_err(|e| BudgetError::File(e.to_string()))?;
        policy.check()?;
        Ok(policy)
    }

    /// As TOML.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("a policy has only numbers and texts")
    }

    /// # Errors
    /// [`BudgetError::Policy`] for a cap that is not above 0, a share outside 0..=1, a baseline that is not above 0, or a negative rate.
    pub fn check(&self) -> Result<(), BudgetError> {
        let bad = |what, found, expected| Err(BudgetError::Policy { what, found, expected });
        for cap in &self.caps {
            if !(cap.amount > 0.0 && cap.amount.is_finite()) {
                return bad("cap", cap.amount, "a finite number above 0");
            }
        }
        if !(0.0..=1.0).contains(&self.slow_from) {
            return bad("share to slow from", self.slow_from, "0 to 1");
        }
        let r = &self.rates;
        for rate in [r.g_per_kwh, r.l_per_kwh, r.usd_per_kwh, r.usd_per_hour] {
            if !(rate >= 0.0 && rate.is_finite()) {
                return bad("rate", rate, "a finite number, not negative");
            }
        }
        if let Some(d) = self.dividend {
            if !(0.0..=1.0).contains(&d.share) {
                return bad("dividend", d.share, "a share of 0 to 1");
            }
            if !(d.baseline_j_per_token > 0.0 && d.baseline_j_per_token.is_finite()) {
                return bad("baseline", d.baseline_j_per_token, "J per token, above 0");
            }
        }
        Ok(())
    }
}

/// Why a policy is refused.
#[derive(Debug, thiserror::Error)]
pub enum BudgetError {
    /// No policy at all.
    #[error("no budget as `jevons rebound budget set` writes one: {0}")]
    File(String),
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

/// The answer to a step.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Go on.
    Allow,
    /// Go on, at that share of full speed, at least half of it.
    Slow {
        /// Of full speed, 0.5 to 1.
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
            Self::Allow => f.write_str("allowed"),
            Self::Slow { speed, reason } => write!(f, "slowed to {:.0} % of full speed: {reason}", speed * 100.0),
            Self::Stop { reason } => write!(f, "stopped: {reason}"),
        }
    }
}

/// A policy and the efficiency that its dividend goes by.
#[derive(Clone, Debug)]
pub struct Budget {
    policy: Policy,
    j_per_token: Option<f64>,
}

impl Budget {
    /// `j_per_token`: the present one, for the dividend; none, or one that is no number above 0, leaves the caps as they are.
    ///
    /// # Errors
    /// As [`Policy::check`].
    pub fn new(policy: Policy, j_per_token: Option<f64>) -> Result<Self, BudgetError> {
        policy.check()?;
        Ok(Self { policy, j_per_token: j_per_token.filter(|j| *j > 0.0 && j.is_finite()) })
    }

    /// The rules.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The cap in force, the dividend taken off. Worse efficiency than the baseline never loosens a cap.
    pub fn limit(&self, cap: &Cap) -> f64 {
        match (self.policy.dividend, self.j_per_token) {
            (Some(d), Some(now)) if cap.resource != Resource::Usd => {
                let saving = (1.0 - now / d.baseline_j_per_token).max(0.0);
                cap.amount * (1.0 - d.share * saving)
            }
            _ => cap.amount,
        }
    }

    /// What the caps say of a step of `key`, given what this key (`own`) and all keys together (`all`) have used on that day. A step is
    /// stopped if it would pass a cap by what it is expected to take, or if nothing is left.
    pub fn judge(&self, key: &str, day: &str, own: Amounts, all: Amounts, step: Amounts) -> Decision {
        let (mut speed, mut slowed) = (1.0f64, String::new());
        for cap in &self.policy.caps {
            let used = match cap.key.as_deref() {
                Some(Cap::ALL) => all,
                Some(of) if of != key => continue,
                _ => own,
            };
            let (limit, unit) = (self.limit(cap), cap.resource.unit());
            let (used, step) = (used.of(cap.resource), step.of(cap.resource));
            let who = match cap.key.as_deref() {
                Some(Cap::ALL) => "all keys together have".into(),
                _ if key.is_empty() => "you have".into(),
                _ => format!("{} has", name(key)),
            };
            // A cap that the dividend took to 0 allows nothing.
            if used >= limit || used + step > limit {
                let reason = format!(
                    "{who} used {} of {} {unit} on {day}, and the next step would take about {}; the budget is new at 00:00 UTC \
                     (jevons rebound budget)",
                    digits(used),
                    digits(limit),
                    digits(step)
                );
                return Decision::Stop { reason };
            }
            let share = (used + step) / limit;
            if share > self.policy.slow_from {
                // From full speed at the threshold to half of it at the cap: a pause is then no longer than a step, and takes no more
                // than was kept for the next one.
                let here = 1.0 - 0.5 * (share - self.policy.slow_from) / (1.0 - self.policy.slow_from);
                if here < speed {
                    speed = here;
                    slowed = format!("{who} used {:.0} % of {} {unit} on {day}", share * 100.0, digits(limit));
                }
            }
        }
        if speed < 1.0 { Decision::Slow { speed, reason: slowed } } else { Decision::Allow }
    }
}

/// A key, shortened and without what would change a terminal.
fn name(key: &str) -> String {
    key.chars().take(40).map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// About four digits.
fn digits(x: f64) -> String {
    match x {
        _ if x == 0.0 => "0".into(),
        1e6.. => format!("{x:.3e}"),
        100.0.. => format!("{x:.0}"),
        0.01.. => format!("{x:.3}"),
        _ => format!("{x:.2e}"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::convert::Facility;

    pub fn policy(caps: &[(Resource, f64, Option<&str>)]) -> Policy {
        let cap = |(resource, amount, key): &(Resource, f64, Option<&str>)| Cap {
            resource: *resource,
            amount: *amount,
            key: key.map(Into::into),
        };
        let site = Site::new("USA", Facility::Datacentre).unwrap();
        Policy { slow_from: 1.0, rates: Rates::of(&site, None), dividend: None, caps: caps.iter().map(cap).collect() }
    }

    fn joules(joules: f64) -> Amounts {
        Amounts { joules, ..Amounts::default() }
    }

    fn judge(b: &Budget, used: f64, step: f64) -> Decision {
        b.judge("ada", "2026-05-01", joules(used), joules(used), joules(step))
    }

    #[test]
    fn a_budget_allows_then_slows_then_stops() {
        let b = Budget::new(Policy { slow_from: 0.5, ..policy(&[(Resource::Joules, 10.0, None)]) }, None).unwrap();
        assert_eq!(judge(&b, 2.5, 2.5), Decision::Allow);
        let Decision::Slow { speed, .. } = judge(&b, 5.0, 2.5) else { panic!() };
        assert!((speed - 0.75).abs() < 1e-12, "half way from full speed to half of it: {speed}");
        assert!(matches!(judge(&b, 7.5, 2.5), Decision::Slow { speed, .. } if (speed - 0.5).abs() < 1e-12));
        let stop = judge(&b, 10.0, 2.5).to_string();
        assert!(stop.contains("stopped: ada has used 10.000 of 10.000 J on 2026-05-01"), "{stop}");
        assert!(matches!(judge(&b, 9.0, 2.0), Decision::Stop { .. }), "it would pass the cap");
        assert!(matches!(judge(&b, 10.0, 0.0), Decision::Stop { .. }), "nothing is left");
    }

    #[test]
    fn every_resource_counts() {
        for resource in [Resource::Joules, Resource::Grams, Resource::Litres, Resource::Usd] {
            let b = Budget::new(policy(&[(resource, 1.0, None)]), None).unwrap();
            let over = Amounts { joules: 1.5, grams: 1.5, litres: 1.5, usd: 1.5 };
            let all_but = Amounts {
                joules: if resource == Resource::Joules { 0.0 } else { 1.5 },
                grams: if resource == Resource::Grams { 0.0 } else { 1.5 },
                litres: if resource == Resource::Litres { 0.0 } else { 1.5 },
                usd: if resource == Resource::Usd { 0.0 } else { 1.5 },
            };
            let none = Amounts::default();
            let Decision::Stop { reason } = b.judge("k", "d", over, none, none) else { panic!("{resource:?}") };
            assert!(reason.contains(resource.unit()), "{reason}");
            assert_eq!(b.judge("k", "d", all_but, none, none), Decision::Allow);
        }
    }

    #[test]
    fn a_cap_is_of_one_key_of_each_or_of_all_together() {
        let b = |key| Budget::new(policy(&[(Resource::Joules, 10.0, key)]), None).unwrap();
        let ask = |b: &Budget, own, all| b.judge("ada", "d", joules(own), joules(all), joules(1.0)) == Decision::Allow;
        assert!(ask(&b(None), 5.0, 50.0) && !ask(&b(None), 10.0, 10.0));
        assert!(ask(&b(Some("*")), 5.0, 8.0) && !ask(&b(Some("*")), 5.0, 10.0));
        assert!(ask(&b(Some("bob")), 50.0, 50.0) && !ask(&b(Some("ada")), 10.0, 10.0));
    }

    #[test]
    fn the_dividend_keeps_its_share_of_each_saving_and_never_loosens() {
        let dividend = Some(Dividend { share: 0.5, baseline_j_per_token: 4.0 });
        let policy = Policy { dividend, ..policy(&[(Resource::Joules, 100.0, None), (Resource::Usd, 100.0, None)]) };
        let limits = |j_per_token| {
            let b = Budget::new(policy.clone(), j_per_token).unwrap();
            [0, 1].map(|i| b.limit(&policy.caps[i]))
        };
        // Twice as efficient: half is saved, half of that is kept. Money is not energy.
        assert_eq!(limits(Some(2.0)), [75.0, 100.0]);
        assert_eq!(limits(Some(1.0)), [62.5, 100.0]);
        for nothing in [Some(8.0), None, Some(0.0), Some(f64::NAN)] {
            assert_eq!(limits(nothing), [100.0, 100.0]);
        }
    }

    #[test]
    fn joules_become_grams_litres_and_money_with_pue_once() {
        let site = Site::new("USA", Facility::Datacentre).unwrap();
        let a = Rates::of(&site, None).amounts(3.6e6, 3600.0);
        let (pue, grid) = (site.pue.mid(), site.grid_g_per_kwh.mid());
        assert!((a.grams - pue * grid).abs() < 1e-9);
        assert!((a.litres - (site.wue_l_per_kwh.mid() + pue * site.ewif_l_per_kwh.mid())).abs() < 1e-9);
        assert!((a.usd - pue * site.electricity_usd_per_kwh.mid()).abs() < 1e-12);
        // A rented hour has its electricity inside.
        assert_eq!(Rates::of(&site, Some(2.0)).amounts(3.6e6, 1800.0).usd, 1.0);
    }

    #[test]
    fn a_policy_survives_its_file_and_a_bad_one_is_refused() {
        let good = Policy {
            dividend: Some(Dividend { share: 0.5, baseline_j_per_token: 2.0 }),
            ..policy(&[(Resource::Grams, 5.0, Some("ada")), (Resource::Usd, 1.0, None)])
        };
        assert_eq!(Policy::from_toml(&good.to_toml()).unwrap(), good);
        for (from, to) in [
            ("amount = 5.0", "amount = 0.0"),
            ("amount = 5.0", "amount = nan"),
            ("slow_from = 1.0", "slow_from = 1.5"),
            ("share = 0.5", "share = -0.1"),
            ("\"grams\"", "\"cats\""),
            ("g_per_kwh", "g_per_mwh"),
        ] {
            let text = good.to_toml();
            assert!(text.contains(from), "{text}");
            assert!(Policy::from_toml(&text.replacen(from, to, 1)).is_err(), "{from} {to}");
        }
        assert!(Policy::from_toml("caps = 3").unwrap_err().to_string().contains("rebound budget set"));
    }
}
