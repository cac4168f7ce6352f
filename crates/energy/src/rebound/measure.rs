//! The rebound of a real change, from records of use on both sides of it.
//!
//! With `a = ln(N1/N0)` (tokens per day) and `b = ln k = ln(e0/e1)` (J per token), `R = (eᵃ − 1) / (eᵇ − 1)` and `φε = a / b`. Both logarithms
//! are of means over days; their covariance comes from the days' own scatter, widened for days that follow each other alike, and the
//! interval is Student's. The ladder of attribution is printed with it: all growth counted, growth beyond the trend, growth beyond a control group.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{Datelike, NaiveDate};
use serde::Serialize;

use super::{
    ReboundError, Records,
    lmdi::{Decomposition, Totals, decompose},
    number,
};
use crate::{convert::Draw, plan::student_t};

/// Days that either side must have for a point value.
const MIN_DAYS: usize = 14;
/// An interval wider than this (100 points) has no point value.
const MAX_WIDTH: f64 = 1.0;
/// The p97.5 of a standard normal: intervals are of 95 %.
const Z975: f64 = 1.959_963_984_540_054;
const DRAWS: u32 = 4000;

/// How to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// First day of the new efficiency.
    pub change: NaiveDate,
    /// Groups that did not get it.
    pub control: BTreeSet<String>,
    /// `φ`, to turn the response `φε` into an elasticity.
    pub pass_through: Option<f64>,
    /// Of the Monte Carlo.
    pub seed: u64,
}

/// A value with its interval of 95 %. Without a point, where the records are too thin for one.
#[derive(Clone, Debug, Serialize)]
pub struct Estimate {
    /// p2.5.
    pub low: f64,
    /// The value; absent where it would say more than the records do.
    pub point: Option<f64>,
    /// p97.5.
    pub high: f64,
    /// Why there is no point.
    pub refused: Option<String>,
}

impl Estimate {
    /// Whether `x` is within.
    pub fn contains(&self, x: f64) -> bool {
        self.low <= x && x <= self.high
    }
}

/// One factor of energy, after over before.
#[derive(Clone, Debug, Serialize)]
pub struct Factor {
    /// What.
    pub name: &'static str,
    /// After over before.
    pub ratio: Estimate,
    /// Its part of the change, as a share of the energy before.
    pub share_of_before: Estimate,
}

/// What the records say.
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    /// Days with records before the change.
    pub days_before: usize,
    /// And from it on.
    pub days_after: usize,
    /// Means per day before.
    pub before: Totals,
    /// Means per day after.
    pub after: Totals,
    /// Of the energy per day, exact; summed over groups.
    pub decomposition: Decomposition,
    /// Users, tasks, tokens per task, J per token.
    pub factors: Vec<Factor>,
    /// `k`: J per token before over after.
    pub efficiency_gain: Estimate,
    /// Energy per day after over before.
    pub energy_ratio: Estimate,
    /// `R`, all growth counted: an upper bound where use grew anyway.
    pub rebound: Estimate,
    /// `φε`, all growth counted.
    pub response: Estimate,
    /// `R`, growth beyond the trend of the days before.
    pub rebound_beyond_trend: Estimate,
    /// `φε`, growth beyond the trend.
    pub response_beyond_trend: Estimate,
    /// `R`, growth and gain beyond those of the control groups.
    pub rebound_beyond_control: Option<Estimate>,
    /// `ε = φε / φ`, growth beyond the trend.
    pub elasticity: Option<Estimate>,
    /// What a reader must know.
    pub notes: Vec<String>,
}

/// One side of the change: daily totals.
struct Side {
    days: Vec<i32>,
    daily: Vec<Totals>,
}

impl Side {
    fn mean(&self) -> Totals {
        let n = self.daily.len() as f64;
        let mean = |f: fn(&Totals) -> f64| self.daily.iter().map(f).sum::<f64>() / n;
        Totals {
            users: mean(|t| t.users),
            tasks: mean(|t| t.tasks),
            tokens: mean(|t| t.tokens),
            joules: mean(|t| t.joules),
        }
    }

    /// How each day moves the logarithms of the four factors of the means: `d ln x̄ = x/x̄ − 1`.
    fn influences(&self) -> Vec<[f64; 4]> {
        let m = self.mean();
        let of = |t: &Totals| {
            let [u, k, n, e] = [t.users / m.users, t.tasks / m.tasks, t.tokens / m.tokens, t.joules / m.joules];
            [u - 1.0, k - u, n - k, e - n]
        };
        self.daily.iter().map(of).collect()
    }
}

/// Covariance of the mean of `rows`, widened for rows that follow each other alike, and how many independent rows that leaves.
fn covariance<const N: usize>(rows: &[[f64; N]]) -> ([[f64; N]; N], f64) {
    let n = rows.len() as f64;
    let dot = |i: usize, j: usize| rows.iter().map(|r| r[i] * r[j]).sum::<f64>();
    // First-order autocorrelation with its small-sample bias taken out (Kendall 1954), as the variance's inflation (1 + ρ)/(1 − ρ).
    let inflation: [f64; N] = std::array::from_fn(|i| {
        let square = dot(i, i);
        if square <= 0.0 {
            return 1.0;
        }
        let lagged: f64 = rows.windows(2).map(|w| w[0][i] * w[1][i]).sum();
        let raw = lagged / square;
        let rho = (raw + (1.0 + 3.0 * raw) / n).clamp(0.0, 0.9);
        (1.0 + rho) / (1.0 - rho)
    });
    let most = inflation.iter().fold(1.0f64, |a, b| a.max(*b));
    let cov = std::array::from_fn(|i| {
        std::array::from_fn(|j| dot(i, j) / (n * (n - 1.0)) * (inflation[i] * inflation[j]).sqrt())
    });
    (cov, n / most)
}

/// Lower triangle `L` with `L·Lᵀ = c`; directions without variance stay 0.
fn cholesky<const N: usize>(c: &[[f64; N]; N]) -> [[f64; N]; N] {
    let mut l = [[0.0; N]; N];
    for i in 0..N {
        for j in 0..=i {
            let rest = c[i][j] - (0..j).map(|k| l[i][k] * l[j][k]).sum::<f64>();
            if i == j {
                l[i][i] = rest.max(0.0).sqrt();
            } else if l[j][j] > 1e-150 {
                l[i][j] = rest / l[j][j];
            }
        }
    }
    l
}

/// Draws of a vector about `mean`, with tails of Student's t at the p97.5.
fn draws<const N: usize>(mean: [f64; N], cov: &[[f64; N]; N], freedom: f64, seed: u64, name: &str) -> Vec<[f64; N]> {
    let l = cholesky(cov);
    let widen = student_t(Z975, freedom.max(3.0)) / Z975;
    let names: [String; N] = std::array::from_fn(|i| format!("{name} {i}"));
    let one = |index| {
        let draw = Draw::new(seed, index);
        let z: [f64; N] = std::array::from_fn(|i| draw.normal(&names[i]) * widen);
        std::array::from_fn(|i| mean[i] + (0..=i).map(|j| l[i][j] * z[j]).sum::<f64>())
    };
    (0..DRAWS).map(one).collect()
}

fn estimate(point: f64, mut values: Vec<f64>, thin: Option<&str>, widest: f64) -> Estimate {
    values.retain(|x| !x.is_nan());
    values.sort_by(f64::total_cmp);
    let at = |q: f64| values.get(((values.len() as f64 - 1.0) * q).round() as usize).copied().unwrap_or(f64::NAN);
    let (low, high) = (at(0.025), at(0.975));
    let refused = match thin {
        Some(why) => Some(why.to_string()),
        // Also where an end is no number.
        None if (high - low).partial_cmp(&widest).is_none_or(std::cmp::Ordering::is_gt) => {
            Some(format!("the interval is wider than {:.0} points", widest * 100.0))
        }
        None => None,
    };
    Estimate { low, point: refused.is_none().then_some(point), high, refused }
}

/// Rebound and response from draws of `(a, b)`. Where the draws do not agree that there is a gain, there is no answer but "anything".
fn ladder(a: f64, b: f64, draws: &[(f64, f64)], thin: Option<&str>) -> (Estimate, Estimate) {
    let gainless = draws.iter().filter(|(_, b)| *b <= 0.0).count() as f64 / draws.len() as f64;
    if b <= 0.0 || gainless > 0.025 {
        let why = "no efficiency gain can be told from the scatter of the days, and without one there is no rebound";
        let nothing =
            || Estimate { low: f64::NEG_INFINITY, point: None, high: f64::INFINITY, refused: Some(why.into()) };
        return (nothing(), nothing());
    }
    let usable = || draws.iter().filter(|(_, b)| *b > 0.0);
    let rebound = |(a, b): (f64, f64)| libm::expm1(a) / libm::expm1(b);
    (
        estimate(rebound((a, b)), usable().map(|d| rebound(*d)).collect(), thin, MAX_WIDTH),
        estimate(a / b, usable().map(|(a, b)| a / b).collect(), thin, MAX_WIDTH),
    )
}

/// What is compared: two sides and the distribution of the factors' change.
struct Contrast {
    before: Side,
    after: Side,
    logs: [f64; 4],
    cov: [[f64; 4]; 4],
    freedom: f64,
}

impl Contrast {
    fn of(records: &Records, change: NaiveDate, keep: impl Fn(Option<&str>) -> bool) -> Result<Self, ReboundError> {
        let mut days: BTreeMap<NaiveDate, Totals> = BTreeMap::new();
        let kept = records.all().iter().filter(|r| keep(r.group.as_deref()));
        // Users are a factor only if every record has them.
        let with_users = kept.clone().all(|r| r.users.is_some());
        for r in kept {
            let t = days.entry(r.day).or_default();
            t.users += r.users.unwrap_or(0.0);
            t.tasks += r.tasks;
            t.tokens += r.tokens;
            t.joules += r.joules;
        }
        let side = |after: bool| {
            let of_side = days.iter().filter(|(day, _)| (**day >= change) == after);
            let one = |t: &Totals| if with_users { *t } else { Totals { users: 1.0, ..*t } };
            let (days, daily) = of_side.map(|(day, t)| (day.num_days_from_ce(), one(t))).unzip();
            Side { days, daily }
        };
        let (before, after) = (side(false), side(true));
        for (side, name) in [(&before, "before the change"), (&after, "from the change on")] {
            if side.daily.len() < 3 {
                let n = side.daily.len();
                return Err(ReboundError::TooThin(format!(
                    "{n} days {name}; 3 are the least for an interval, {MIN_DAYS} for a value"
                )));
            }
            let m = side.mean();
            if [m.users, m.tasks, m.tokens, m.joules].iter().any(|x| *x <= 0.0) {
                return Err(ReboundError::TooThin(format!("no users, tasks, tokens or joules at all {name}")));
            }
        }
        let factors = |t: Totals| [t.users, t.tasks / t.users, t.tokens / t.tasks, t.joules / t.tokens];
        let (x0, x1) = (factors(before.mean()), factors(after.mean()));
        let (c0, n0) = covariance(&before.influences());
        let (c1, n1) = covariance(&after.influences());
        Ok(Self {
            logs: std::array::from_fn(|i| libm::log(x1[i] / x0[i])),
            cov: std::array::from_fn(|i| std::array::from_fn(|j| c0[i][j] + c1[i][j])),
            freedom: n0 + n1 - 2.0,
            before,
            after,
        })
    }

    fn thin(&self) -> Option<String> {
        let (n0, n1) = (self.before.daily.len(), self.after.daily.len());
        let few = n0 < MIN_DAYS || n1 < MIN_DAYS;
        few.then(|| format!("{n0} days before and {n1} after; a point value needs {MIN_DAYS} on either side"))
    }

    /// Growth of tokens per day expected from the days before alone, as a logarithm, and its variance.
    fn trend(&self) -> (f64, f64) {
        let points: Vec<(f64, f64)> = (self.before.days.iter().zip(&self.before.daily))
            .filter(|(_, t)| t.tokens > 0.0)
            .map(|(day, t)| (f64::from(*day), libm::log(t.tokens)))
            .collect();
        let n = points.len() as f64;
        let mean = |v: &mut dyn Iterator<Item = f64>, n: f64| v.sum::<f64>() / n;
        let (x0, y0) = (mean(&mut points.iter().map(|p| p.0), n), mean(&mut points.iter().map(|p| p.1), n));
        let sxx: f64 = points.iter().map(|p| (p.0 - x0).powi(2)).sum();
        let x1 = mean(&mut self.after.days.iter().map(|d| f64::from(*d)), self.after.days.len() as f64);
        if points.len() < 3 || sxx <= 0.0 {
            return (0.0, f64::INFINITY);
        }
        let slope = points.iter().map(|p| (p.0 - x0) * (p.1 - y0)).sum::<f64>() / sxx;
        let residuals: Vec<[f64; 1]> = points.iter().map(|p| [p.1 - y0 - slope * (p.0 - x0)]).collect();
        // Variance of the mean, widened for autocorrelation; the slope's follows by the distance. One more degree of freedom is gone.
        let (cov, _) = covariance(&residuals);
        let of_mean = cov[0][0] * (n - 1.0) / (n - 2.0);
        let gap = x1 - x0;
        (slope * gap, of_mean * n * gap * gap / sxx)
    }
}

/// Measures the rebound of the change.
///
/// Days without a record are left out, not taken for zero. The two sides should hold whole weeks.
///
/// # Errors
/// [`ReboundError::TooThin`] with fewer than 3 days on a side, or without use at all on one; [`ReboundError::Number`] for a pass-through outside 0..=1.
pub fn measure(records: &Records, options: &Options) -> Result<Measurement, ReboundError> {
    if let Some(phi) = options.pass_through {
        number("the pass-through", phi, 0.001..=1.0, "above 0, at most 1")?;
    }
    let is_control = |group: Option<&str>| group.is_some_and(|g| options.control.contains(g));
    let contrast = Contrast::of(records, options.change, |group| !is_control(group))?;
    let Contrast { before, after, logs, .. } = &contrast;
    let thin = contrast.thin();
    let thin = thin.as_deref();
    let (e0, e1) = (before.mean(), after.mean());

    let all = draws(*logs, &contrast.cov, contrast.freedom, options.seed, "factors");
    // Tokens are the first three factors together, efficiency the fourth turned over.
    let pair = |l: &[f64; 4]| (l[0] + l[1] + l[2], -l[3]);
    let (a, b) = pair(logs);
    let pairs: Vec<(f64, f64)> = all.iter().map(pair).collect();
    let (rebound, response) = ladder(a, b, &pairs, thin);

    // The trend's own error is independent of the scatter that the pairs hold, to first order.
    let (trend, variance) = contrast.trend();
    let sd = variance.sqrt();
    let widen = student_t(Z975, (before.daily.len() as f64 - 2.0).max(3.0)) / Z975;
    let beyond: Vec<(f64, f64)> = (pairs.iter().enumerate())
        .map(|(i, (a, b))| (a - trend - sd * widen * Draw::new(options.seed, i as u32).normal("trend"), *b))
        .collect();
    let (rebound_beyond_trend, response_beyond_trend) = ladder(a - trend, b, &beyond, thin);

    let rebound_beyond_control = if options.control.is_empty() {
        None
    } else {
        let control = Contrast::of(records, options.change, is_control)?;
        let (ca, cb) = pair(&control.logs);
        let others = draws(control.logs, &control.cov, control.freedom, options.seed, "control");
        let differences: Vec<(f64, f64)> =
            pairs.iter().zip(&others).map(|((a, b), l)| (a - pair(l).0, b - pair(l).1)).collect();
        let control_thin = control.thin();
        Some(ladder(a - ca, b - cb, &differences, thin.or(control_thin.as_deref())).0)
    };

    let names = ["users", "tasks per user", "tokens per task", "J per token"];
    let weight = |logs: &[f64; 4]| {
        // L(E1, E0) / E0 as a function of ln(E1/E0).
        let sum: f64 = logs.iter().sum();
        if sum == 0.0 { 1.0 } else { libm::expm1(sum) / sum }
    };
    let factors = names.iter().enumerate().map(|(i, name)| Factor {
        name,
        ratio: estimate(libm::exp(logs[i]), all.iter().map(|l| libm::exp(l[i])).collect(), thin, f64::INFINITY),
        share_of_before: estimate(
            weight(logs) * logs[i],
            all.iter().map(|l| weight(l) * l[i]).collect(),
            thin,
            f64::INFINITY,
        ),
    });
    let energy = |l: &[f64; 4]| libm::exp(l.iter().sum());
    let elasticity = options.pass_through.map(|phi| Estimate {
        low: response_beyond_trend.low / phi,
        point: response_beyond_trend.point.map(|x| x / phi),
        high: response_beyond_trend.high / phi,
        refused: response_beyond_trend.refused.clone(),
    });
    Ok(Measurement {
        days_before: before.daily.len(),
        days_after: after.daily.len(),
        decomposition: decompose(&by_group(records, options, before.daily.len(), after.daily.len(), is_control)),
        factors: factors.collect(),
        efficiency_gain: estimate(libm::exp(b), pairs.iter().map(|p| libm::exp(p.1)).collect(), thin, f64::INFINITY),
        energy_ratio: estimate(energy(logs), all.iter().map(energy).collect(), thin, f64::INFINITY),
        before: e0,
        after: e1,
        rebound,
        response,
        rebound_beyond_trend,
        response_beyond_trend,
        rebound_beyond_control,
        elasticity,
        notes: vec![
            "intervals are of 95 %".into(),
            "`rebound` counts all growth: where use grew anyway it is an upper bound; `beyond trend` takes the growth of the days before \
             off, `beyond control` that of the groups without the change"
                .into(),
            "the joules are as good as their meter: see its grade".into(),
        ],
    })
}

/// Daily means of each group on both sides.
fn by_group(
    records: &Records,
    options: &Options,
    days_before: usize,
    days_after: usize,
    is_control: impl Fn(Option<&str>) -> bool,
) -> Vec<(Totals, Totals)> {
    let kept: Vec<_> = records.all().iter().filter(|r| !is_control(r.group.as_deref())).collect();
    let with_users = kept.iter().all(|r| r.users.is_some());
    let mut groups: BTreeMap<Option<&str>, (Totals, Totals)> = BTreeMap::new();
    for r in kept {
        let (before, after) = groups.entry(r.group.as_deref()).or_default();
        let (t, days) = if r.day < options.change { (before, days_before) } else { (after, days_after) };
        let days = days as f64;
        t.users += r.users.unwrap_or(0.0) / days;
        t.tasks += r.tasks / days;
        t.tokens += r.tokens / days;
        t.joules += r.joules / days;
    }
    let finish = |t: Totals| if with_users { t } else { Totals { users: 1.0, ..t } };
    groups.into_values().map(|(before, after)| (finish(before), finish(after))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        grade::{Energy, Grade},
        ledger::{Entry, Kind, Numbered, Phase, Work},
        rebound::UsageRecord,
    };

    /// A ledger whose truth is known.
    struct World {
        days: u32,
        k: f64,
        response: f64,
        /// Growth of use per day, as a logarithm.
        trend: f64,
        /// Scatter of a day's use and of its efficiency.
        noise: (f64, f64),
        /// Of the scatter from day to day.
        memory: f64,
        weekend: f64,
    }

    impl World {
        fn records(&self, seed: u64, group: Option<&str>) -> Vec<UsageRecord> {
            let start = NaiveDate::from_ymd_opt(2026, 1, 5).unwrap();
            let mut drift = 0.0;
            (0..2 * self.days)
                .map(|i| {
                    let draw = Draw::new(seed, i);
                    let key = |name: &str| draw.normal(&format!("{name}{}", group.unwrap_or("")));
                    drift = self.memory * drift + (1.0 - self.memory * self.memory).sqrt() * key("use");
                    let after = i >= self.days;
                    let gain = if after { libm::log(self.k) } else { 0.0 };
                    let week = if i % 7 >= 5 { self.weekend } else { 0.0 };
                    let use_log = 12.0 + self.trend * f64::from(i) + self.response * gain + self.noise.0 * drift + week;
                    let tokens = libm::exp(use_log);
                    let joules = tokens * 4.0 * libm::exp(self.noise.1 * key("joules") - gain);
                    let tasks = tokens / 900.0 * libm::exp(0.05 * key("tasks"));
                    let day = start + chrono::Days::new(u64::from(i));
                    UsageRecord { day, tokens, joules, tasks, users: None, group: group.map(Into::into) }
                })
                .collect()
        }

        fn options(&self) -> Options {
            let change = NaiveDate::from_ymd_opt(2026, 1, 5).unwrap() + chrono::Days::new(u64::from(self.days));
            Options { change, control: BTreeSet::new(), pass_through: Some(1.0), seed: 1 }
        }

        fn truth(&self) -> f64 {
            (libm::pow(self.k, self.response) - 1.0) / (self.k - 1.0)
        }
    }

    const CALM: World =
        World { days: 56, k: 2.0, response: 0.9, trend: 0.0, noise: (0.15, 0.08), memory: 0.4, weekend: 0.0 };

    fn share_covered(world: &World, covered: impl Fn(&Measurement) -> bool) -> f64 {
        let seeds = 200;
        let hits = (0..seeds).filter(|seed| {
            let records = Records::new(world.records(*seed, None)).unwrap();
            covered(&measure(&records, &world.options()).unwrap())
        });
        hits.count() as f64 / seeds as f64
    }

    #[test]
    fn the_truth_is_covered_nine_times_of_ten() {
        for world in [
            World { response: 0.3, ..CALM },
            CALM,
            World { response: 1.5, days: 28, ..CALM },
            World { memory: 0.7, ..CALM },
            World { weekend: -0.8, days: 28, ..CALM },
            World { k: 5.0, noise: (0.3, 0.15), ..CALM },
        ] {
            let truth = world.truth();
            let share = share_covered(&world, |m| m.rebound.contains(truth) && m.response.contains(world.response));
            assert!(
                share >= 0.9,
                "φε {}, k {}, {} days, memory {}: {share}",
                world.response,
                world.k,
                world.days,
                world.memory
            );
        }
    }

    #[test]
    fn rows_of_a_ledger_cover_the_truth_as_records_do() {
        let seeds = 100;
        let hits = (0..seeds).filter(|seed| {
            let rows: Vec<Numbered> = CALM.records(*seed, None).iter().flat_map(rows_of_day).collect();
            let (records, left_out) = Records::from_ledger(&rows).unwrap();
            let m = measure(&records, &CALM.options()).unwrap();
            left_out == 0 && m.rebound.contains(CALM.truth()) && m.elasticity.unwrap().contains(CALM.response)
        });
        let share = hits.count() as f64 / seeds as f64;
        assert!(share >= 0.9, "{share}");
    }

    /// Four requests with all tokens and joules of the day, and standby.
    fn rows_of_day(r: &UsageRecord) -> Vec<Numbered> {
        let at_ms = r.day.and_hms_opt(9, 0, 0).unwrap().and_utc().timestamp_millis();
        let row = |kind, share: f64| Numbered {
            seq: 1,
            entry: Entry {
                at_ms,
                run: r.day.to_string(),
                request: Some(0),
                kind,
                command: "chat".into(),
                tenant: None,
                model: None,
                work: Work::tokens(if kind == Kind::Phase(Phase::Idle) { 0 } else { (r.tokens / 4.0) as usize }),
                seconds: 1.0,
                energy: Some(Energy::new(r.joules * share, Grade::C)),
                unknown_s: 0.0,
                own_cpu_s: None,
                busy_cpu_s: None,
                boundary: String::new(),
            },
        };
        let mut rows = vec![row(Kind::Phase(Phase::Idle), 0.2)];
        for _ in 0..4 {
            rows.extend([row(Kind::Phase(Phase::Answer), 0.2), row(Kind::Request, 0.2)]);
        }
        rows
    }

    #[test]
    fn growth_that_came_anyway_is_taken_off_by_the_trend() {
        let world = World { trend: 0.004, response: 0.6, ..CALM };
        let truth = world.truth();
        let share = share_covered(&world, |m| m.rebound_beyond_trend.contains(truth));
        assert!(share >= 0.9, "{share}");
        // And counting all growth overstates it.
        assert!(share_covered(&world, |m| m.rebound.contains(truth)) < 0.5);
        let covered = share_covered(&world, |m| m.elasticity.as_ref().unwrap().contains(0.6));
        assert!(covered >= 0.9, "{covered}");
    }

    #[test]
    fn growth_that_came_anyway_is_taken_off_by_a_control_group() {
        let treated = World { trend: 0.004, response: 0.6, ..CALM };
        let control = World { k: 1.0, ..treated };
        let hits = (0..200).filter(|seed| {
            let mut all = treated.records(*seed, Some("a"));
            all.extend(control.records(*seed, Some("b")));
            let options = Options { control: BTreeSet::from(["b".to_string()]), ..treated.options() };
            let m = measure(&Records::new(all).unwrap(), &options).unwrap();
            m.rebound_beyond_control.unwrap().contains(treated.truth())
        });
        let share = hits.count() as f64 / 200.0;
        assert!(share >= 0.9, "{share}");
    }

    #[test]
    fn intervals_are_worth_having() {
        let records = Records::new(CALM.records(0, None)).unwrap();
        let m = measure(&records, &CALM.options()).unwrap();
        assert!(m.rebound.high - m.rebound.low < 0.5 && m.rebound.point.is_some(), "{:?}", m.rebound);
        assert!(m.efficiency_gain.contains(2.0) && m.efficiency_gain.high - m.efficiency_gain.low < 0.25);
        let d = m.decomposition;
        assert!(d.residual_j.abs() < 1e-12 * m.before.joules.max(m.after.joules), "{d:?}");
        let shares: f64 = m.factors.iter().filter_map(|f| f.share_of_before.point).sum();
        assert!((shares - d.change_j / m.before.joules).abs() < 1e-9, "{shares}");
    }

    #[test]
    fn thin_records_give_an_interval_and_no_point_and_thinner_ones_nothing() {
        let short = World { days: 7, ..CALM };
        let m = measure(&Records::new(short.records(3, None)).unwrap(), &short.options()).unwrap();
        assert!(m.rebound.point.is_none() && m.rebound.refused.as_deref().unwrap().contains("14"), "{:?}", m.rebound);
        let noisy = World { noise: (1.5, 0.1), days: 14, ..CALM };
        let m = measure(&Records::new(noisy.records(3, None)).unwrap(), &noisy.options()).unwrap();
        assert!(
            m.rebound.point.is_none() && m.rebound.refused.as_deref().unwrap().contains("wider"),
            "{:?}",
            m.rebound
        );
        let tiny = World { days: 2, ..CALM };
        let error = measure(&Records::new(tiny.records(3, None)).unwrap(), &tiny.options()).unwrap_err();
        assert!(matches!(error, ReboundError::TooThin(_)));
    }

    #[test]
    fn without_a_gain_there_is_no_rebound() {
        let world = World { k: 1.0, ..CALM };
        let m = measure(&Records::new(world.records(5, None)).unwrap(), &world.options()).unwrap();
        assert!(m.rebound.point.is_none() && m.rebound.refused.unwrap().contains("no efficiency gain"));
    }

    #[test]
    fn strange_records_never_panic() {
        let day = |d| NaiveDate::from_ymd_opt(2026, 1, d).unwrap();
        let record =
            |d, x: f64| UsageRecord { day: day(d), tokens: x, joules: x, tasks: x, users: Some(x), group: None };
        for xs in [[0.0; 8], [1.0; 8], [1e23, 0.0, 1e-300, 1.0, 1e23, 0.0, 3.0, 1e-300]] {
            let all = xs.iter().enumerate().map(|(i, x)| record(i as u32 + 1, *x)).collect();
            for change in [1, 4, 5, 9] {
                let options = Options { change: day(change), ..CALM.options() };
                if let Ok(m) = measure(&Records::new(std::vec::Vec::clone(&all)).unwrap(), &options) {
                    assert!(m.rebound.point.is_none(), "{m:?}");
                }
            }
        }
    }
}
