//! The energy account of a command: what it spends is metered and written to the ledger.
//!
//! An account that fails never stops its command: it warns once and goes on without the ledger.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    fmt,
    io::Cursor,
    ops::ControlFlow,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{anyhow, bail};
use jevons_energy::{
    allocate::{ModelCosts, SequenceStep},
    convert::Facility,
    grade::Energy,
    ledger::{Entry, Fingerprint, Group, Ledger, Phase, Recorder, StepUser, Work},
    meter::{Meter, Options, Wall, Window},
    rebound::{Cap, Decision, Gate, GateError, read_policy},
    report::{Converted, Place},
};
use jevons_model::{
    Config,
    account::{Component, WeightFormat},
    inspect::stated_format,
};
use serde_json::{Value, json};

use crate::{place::SiteArgs, source::Files};

/// Of every command that computes.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct LedgerArgs {
    /// Write nothing to the energy ledger; JEVONS_LEDGER=off does the same
    #[arg(long, help_heading = "Energy")]
    no_ledger: bool,
    /// For whom: energy is booked on this name, and budgets of it hold [default: JEVONS_KEY, else none]
    #[arg(long, value_name = "NAME", help_heading = "Energy")]
    key: Option<String>,
}

impl LedgerArgs {
    /// Whether nothing is to be written.
    pub fn off(&self) -> bool {
        self.no_ledger
    }

    /// For whom; empty if nobody is named.
    ///
    /// # Errors
    /// For a name that cannot be one.
    pub fn key(&self) -> anyhow::Result<String> {
        let key = match (&self.key, env::var("JEVONS_KEY")) {
            (Some(key), _) => key.clone(),
            (None, Ok(key)) => key,
            (None, Err(env::VarError::NotPresent)) => String::new(),
            (None, Err(env::VarError::NotUnicode(_))) => bail!("JEVONS_KEY: expected text in UTF-8"),
        };
        if key.len() > LONGEST_KEY || key == Cap::ALL || key.chars().any(char::is_control) {
            bail!(
                "--key {key:?}: expected a name of at most {LONGEST_KEY} bytes, not {:?}, without control characters",
                Cap::ALL
            );
        }
        Ok(key)
    }
}

/// Bytes of a key.
const LONGEST_KEY: usize = 200;

/// Where the budget is: `JEVONS_BUDGET`, else beside the ledger, else (the ledger being off) where both are by default.
pub fn budget_path() -> Option<PathBuf> {
    let beside = |ledger: PathBuf| ledger.with_extension("budget.toml");
    let default = || Some(dirs::data_dir()?.join("jevons").join("energy.sqlite"));
    match env::var_os("JEVONS_BUDGET").filter(|v| !v.is_empty()) {
        Some(path) => Some(path.into()),
        None => ledger_path().or_else(default).map(beside),
    }
}

/// Milliseconds since 1970.
pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

/// Where the ledger is: `JEVONS_LEDGER`, else in the user's data folder. None if it is off, or there is no such folder.
pub fn ledger_path() -> Option<PathBuf> {
    match env::var_os("JEVONS_LEDGER").filter(|v| !v.is_empty()) {
        Some(off) if off == "off" => None,
        Some(path) => Some(path.into()),
        None => Some(dirs::data_dir()?.join("jevons").join("energy.sqlite")),
    }
}

/// What to meter by, beside what the machine has: `JEVONS_WALL_FILE`, `JEVONS_WALL_COMMAND`, `JEVONS_WATTS`.
pub fn meter_options() -> anyhow::Result<Options> {
    let named = |name| env::var_os(name).filter(|v: &OsString| !v.is_empty());
    let command = named("JEVONS_WALL_COMMAND").map(|c| Wall::Command(c.to_string_lossy().into_owned()));
    let wall = named("JEVONS_WALL_FILE").map(|file| Wall::File(file.into())).or(command);
    let calibrated_w = match named("JEVONS_WATTS") {
        Some(watts) => match parse_watts(&watts.to_string_lossy()) {
            Ok(watts) => Some(watts),
            Err(error) => bail!("JEVONS_WATTS: {error}"),
        },
        None => None,
    };
    Ok(Options { wall, calibrated_w, ..Options::default() })
}

/// `IDLE:FULL` in watts.
pub fn parse_watts(text: &str) -> Result<(f64, f64), String> {
    let watts = text.split_once(':').and_then(|(idle, full)| Some((idle.parse().ok()?, full.parse().ok()?)));
    let sensible = |(idle, full): &(f64, f64)| *idle >= 0.0 && idle <= full && full.is_finite();
    watts.filter(sensible).ok_or_else(|| format!("expected IDLE:FULL in watts, such as 12:65, found {text:?}"))
}

/// A running account.
pub struct Account {
    recorder: Recorder,
    budget: Option<Budget>,
    /// Floating-point operations of a forward pass of one token: two per parameter that it uses, attention left out.
    flop_per_token: Option<f64>,
    costs: Option<ModelCosts>,
    /// Bytes that a step of training moves.
    step_bytes: Option<f64>,
}

impl Account {
    /// Opens the account of a command.
    ///
    /// # Errors
    /// Where a budget is set: if it is used up, or cannot be kept because there is no ledger to count by.
    pub fn open(args: &LedgerArgs, command: &str) -> anyhow::Result<Self> {
        let options = meter_options().unwrap_or_else(|error| {
            eprintln!("warning: {error}");
            Options::default()
        });
        let path = ledger_path().filter(|_| !args.no_ledger);
        let key = args.key()?;
        let policy = match budget_path() {
            Some(file) => read_policy(&file)?.map(|policy| (file, policy)),
            None => None,
        };
        let ledger = path.clone().map(Ledger::open).transpose();
        let mut recorder = Recorder::start(Meter::discover(options), ledger, command);
        if !key.is_empty() {
            recorder.set_tenant(key.clone());
        }
        let budget = match policy {
            Some((file, policy)) => {
                let counts = "it counts by the ledger, which is off; turn the ledger on, or end the budget with `jevons rebound budget off`";
                let path = path.ok_or_else(|| anyhow!("{}: a budget is set, and {counts}", file.display()))?;
                if let Some(trouble) = recorder.trouble() {
                    return Err(GateError::from(trouble).into());
                }
                let gate = Gate::open(&path, policy, recorder.run(), &key, now_ms())?;
                Some(Budget { gate, asked: None, slow: None, told_slow: false, stopped: None })
            }
            None => None,
        };
        let mut account = Self { recorder, budget, flop_per_token: None, costs: None, step_bytes: None };
        account.warn();
        account.admit_or_stop()?;
        Ok(account)
    }

    /// Asks the budget whether a step may follow, before each: a step is what is computed within [`ASK_EVERY`], or one step of the
    /// model if that takes longer. Waits if the budget says slow. If it says stop, [`Account::stopped`] tells why.
    pub fn admit(&mut self) -> ControlFlow<()> {
        let Some(budget) = &mut self.budget else { return ControlFlow::Continue(()) };
        if budget.stopped.is_some() {
            return ControlFlow::Break(());
        }
        if budget.asked.is_some_and(|asked| asked.elapsed() < ASK_EVERY) {
            return ControlFlow::Continue(());
        }
        let took = budget.asked.map_or(Duration::ZERO, |asked| asked.elapsed());
        budget.ask(&self.recorder.spent());
        if let Some(Decision::Slow { speed, reason }) = &budget.slow {
            if !budget.told_slow {
                eprintln!("slowed down from here on, to half speed at the cap: {reason}");
                budget.told_slow = true;
            }
            thread::sleep(took.mul_f64(1.0 / speed - 1.0).min(LONGEST_PAUSE));
            // The pause is counted, is no step, and may have left too little for one.
            let spent = self.recorder.spent();
            budget.gate.waited(spent.energy.joules, spent.seconds);
            budget.ask(&spent);
        }
        budget.asked = Some(Instant::now());
        if budget.stopped.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// The same at the beginning of something, after a time of waiting that was no step.
    ///
    /// # Errors
    /// If the budget says stop.
    pub fn admit_or_stop(&mut self) -> anyhow::Result<()> {
        if let Some(budget) = &mut self.budget {
            let spent = self.recorder.spent();
            budget.gate.waited(spent.energy.joules, spent.seconds);
            // A new day, or what another program has given back, may allow what was refused before.
            (budget.stopped, budget.asked) = (None, None);
        }
        match self.admit() {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => bail!("stopped by the budget: {}", self.stopped().unwrap_or_default()),
        }
    }

    /// Why the budget has stopped it, if it has.
    pub fn stopped(&self) -> Option<&str> {
        self.budget.as_ref()?.stopped.as_deref()
    }

    /// What was done so far was loading this model.
    pub fn loaded(&mut self, files: &Files) {
        let mut print = Fingerprint::new();
        let added = match files {
            Files::Folder(folder) => print.add_checkpoint(folder),
            Files::BuiltIn(files) => print.add("model.safetensors", &mut Cursor::new(files.weights())),
        };
        if added.is_ok() {
            self.recorder.set_model(print.finish());
        }
        let config = files.config().ok();
        self.flop_per_token = config.as_ref().map(|config| 2.0 * config.active_parameters() as f64);
        self.costs = config.as_ref().map(model_costs);
        self.phase(Phase::Load, Work::default());
    }

    /// What was done so far made the model in this folder.
    pub fn made(&mut self, folder: &Path) {
        let mut print = Fingerprint::new();
        if print.add_checkpoint(folder).is_ok() {
            self.recorder.set_model(print.finish());
        }
    }

    /// So many parameters are used by a token of the model that is being trained, and so many bytes moved by a step.
    pub fn trains(&mut self, active_parameters: u64, step_bytes: f64) {
        self.flop_per_token = Some(2.0 * active_parameters as f64);
        self.step_bytes = Some(step_bytes);
    }

    /// Tokens with the operations of their forward pass.
    pub fn forward(&self, tokens: usize) -> Work {
        Work { flop: self.flop_per_token.map(|f| f * tokens as f64), ..Work::tokens(tokens) }
    }

    /// The same of steps that follow each other, with the bytes that they read at least.
    pub fn steps(&self, steps: &[SequenceStep]) -> Work {
        let bytes = |costs: &ModelCosts| steps.iter().flat_map(|s| costs.sequence_bytes(&[*s])).sum();
        Work { bytes: self.costs.as_ref().map(bytes), ..self.forward(steps.iter().map(|s| s.tokens).sum()) }
    }

    /// The time since the last phase was spent on this one.
    pub fn phase(&mut self, phase: Phase, work: Work) {
        self.recorder.phase(phase, work);
        self.warn();
    }

    /// The time since the last phase was spent on this one of the present request.
    pub fn phase_of_request(&mut self, phase: Phase, work: Work) {
        self.recorder.phase_of_request(phase, work);
    }

    /// A prompt was computed in these steps after so many tokens that were found in the cache, in the present request.
    pub fn prefilled(&mut self, steps: &[SequenceStep], cached: usize) {
        let work = Work { cached_tokens: cached as u64, ..self.steps(steps) };
        self.recorder.amend(Phase::Prefill, work);
    }

    /// The present request has ended.
    pub fn end_request(&mut self) -> Option<Spent> {
        let row = self.recorder.end_request();
        if let Some(budget) = &mut self.budget {
            // What follows is waiting.
            let spent = self.recorder.spent();
            budget.gate.stepped(spent.energy.joules, spent.seconds);
        }
        self.warn();
        row.as_ref().and_then(Spent::of_row)
    }

    /// A step of requests that are computed together has ended.
    pub fn step_of_batch(&mut self) {
        self.recorder.step_of_batch();
    }

    /// What each sequence of a step costs, relative to the others, and does.
    pub fn shares(&self, step: &[SequenceStep]) -> Vec<Share> {
        let tokens = step.iter().map(|s| s.tokens);
        match &self.costs {
            Some(costs) => {
                let both = costs.sequence_weights(step).into_iter().zip(costs.sequence_bytes(step));
                let share = |(tokens, (weight, bytes))| Share { weight, tokens, bytes: Some(bytes) };
                tokens.zip(both).map(share).collect()
            }
            None => tokens.map(|tokens| Share { weight: tokens as f64, tokens, bytes: None }).collect(),
        }
    }

    /// Shares the last step out, by request and phase.
    pub fn share_step(&mut self, users: BTreeMap<(usize, Phase), Share>) {
        let user = |((request, phase), share): (_, Share)| StepUser {
            request: request as u64,
            phase,
            weight: share.weight,
            work: Work { bytes: share.bytes, ..self.forward(share.tokens) },
        };
        let users: Vec<_> = users.into_iter().map(user).collect();
        self.recorder.share_step(&users);
    }

    /// All requests of a batch have ended.
    pub fn end_batch(&mut self) {
        self.recorder.end_batch();
        self.warn();
    }

    /// A step of training: forward and twice as much backward.
    pub fn step(&mut self, tokens: u64) {
        let flop = self.flop_per_token.map(|f| 3.0 * f * tokens as f64);
        self.recorder.piece(Phase::Train, Work { tokens, flop, bytes: self.step_bytes, ..Work::default() });
    }

    /// What was done since the last step was saving the model that is being trained; what was held back is written.
    pub fn saved(&mut self) {
        self.recorder.piece(Phase::Train, Work::default());
        self.recorder.flush();
        self.warn();
    }

    /// The account is closed: what all of it has spent.
    pub fn close(&mut self) -> Window {
        let window = self.recorder.finish();
        if let Some(budget) = &mut self.budget {
            // If it fails the last step stays held, and the cap is the tighter for it.
            let _ = budget.gate.close(window.energy.joules, window.seconds);
        }
        self.warn();
        window
    }

    fn warn(&mut self) {
        if let Some(trouble) = self.recorder.trouble() {
            eprintln!("warning: {trouble}; going on without it");
        }
    }
}

/// A sequence's part of steps that are computed together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Share {
    /// Of the joules, relative to others.
    pub weight: f64,
    pub tokens: usize,
    /// Read, if known.
    pub bytes: Option<f64>,
}

impl Share {
    pub fn add(&mut self, other: Self) {
        self.weight += other.weight;
        self.tokens += other.tokens;
        self.bytes = other.bytes.map(|bytes| bytes + self.bytes.unwrap_or(0.0));
    }
}

/// Between two questions to the budget, at least: what is computed meanwhile is one step.
const ASK_EVERY: Duration = Duration::from_millis(20);

/// Of a step that is slowed.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The budget of a run.
struct Budget {
    gate: Gate,
    /// When it was asked last.
    asked: Option<Instant>,
    /// The last answer, if it was to slow down.
    slow: Option<Decision>,
    told_slow: bool,
    stopped: Option<String>,
}

impl Budget {
    fn ask(&mut self, spent: &Window) {
        self.slow = None;
        if spent.shares.is_empty() && !spent.unknown.is_empty() {
            let why = "nothing is known of what this machine spends, so no budget can be kept: name a wall meter (JEVONS_WALL_FILE) or \
                       the machine's watts (JEVONS_WATTS=IDLE:FULL)";
            self.stopped = Some(why.into());
            return;
        }
        match self.gate.admit(spent.energy.joules, spent.seconds, now_ms()) {
            Ok(Decision::Allow) => {}
            Ok(slow @ Decision::Slow { .. }) => self.slow = Some(slow),
            Ok(Decision::Stop { reason }) => self.stopped = Some(reason),
            Err(error) => self.stopped = Some(error.to_string()),
        }
    }
}

/// What a model costs by its config, to share out the steps of a batch.
fn model_costs(config: &Config) -> ModelCosts {
    let account = config.account();
    let format = stated_format(config).unwrap_or(WeightFormat::Bf16);
    let bytes = |routed: bool| -> u64 {
        let parts = account.parts.iter().filter(|p| !matches!(p.component, Component::Mtp | Component::Embedding));
        parts.filter(|p| (p.component == Component::RoutedExperts) == routed).map(|p| p.total.bytes(format)).sum()
    };
    let (n_routed_experts, num_experts_per_tok) =
        config.moe.as_ref().map_or((0, 0), |moe| (moe.n_routed_experts, moe.num_experts_per_tok));
    ModelCosts {
        dense_bytes: bytes(false) as f64,
        routed_bytes: bytes(true) as f64,
        n_routed_experts,
        num_experts_per_tok,
        cache_bytes_per_token: account.cache_bytes_per_token(config.default_mla_form()).unwrap_or(0) as f64,
        flop_per_token: 2.0 * account.multiplied().in_matrices as f64,
    }
}

/// Where this machine is: JEVONS_REGION and JEVONS_FACILITY, else the world and a home.
fn place() -> anyhow::Result<Place> {
    let (site, facility) = SiteArgs::default().site(Facility::Home)?;
    Ok(Place { site, facility, intensity_file: None, rent_usd_per_h: None })
}

/// What something has spent, as reports tell it: in one line for people (its `Display`), or in JSON.
///
/// The joules of a run are handed over to its report here, and nowhere else: whatever follows from them (carbon, water, money) is made
/// of a `Spent`.
#[derive(Clone, Copy, Debug)]
pub struct Spent {
    pub energy: Energy,
    /// Whether every part of the machine had a reading or a model; otherwise the joules are a lower bound.
    pub complete: bool,
}

impl Spent {
    /// Of a row; none if nothing is known.
    pub fn of_row(row: &Entry) -> Option<Self> {
        Some(Self { energy: row.energy?, complete: row.unknown_s <= 1e-9 })
    }

    pub fn of_window(window: &Window) -> Self {
        Self { energy: window.energy, complete: window.complete() }
    }

    pub fn of_group(group: &Group) -> Self {
        Self { energy: group.energy, complete: group.complete() }
    }

    /// Of several that follow each other.
    pub fn sum(parts: &[Self]) -> Self {
        Self { energy: Energy::sum(parts.iter().map(|p| p.energy)), complete: parts.iter().all(|p| p.complete) }
    }

    /// Carbon, water and money, by the place that the environment names.
    ///
    /// # Errors
    /// If it names none that there is.
    pub fn converted(&self, seconds: f64) -> anyhow::Result<(Place, Converted)> {
        let place = place()?;
        let converted = place.convert(self.energy, seconds)?;
        Ok((place, converted))
    }

    /// Grams of CO2e of the electricity, at central values, and the region of the grid; none if the environment names no place that
    /// there is.
    pub fn carbon_g(&self) -> Option<(f64, String)> {
        let place = place().ok()?;
        Some((place.rates().amounts(self.energy.joules, 0.0).grams, place.site.region))
    }

    pub fn json(&self) -> Value {
        json!({
            "joules": self.energy.joules,
            "uncertainty_j": self.energy.uncertainty_j,
            "p5_p50_p95_j": self.energy.band(),
            "grade": self.energy.grade,
            "complete": self.complete,
            "carbon_g": self.carbon_g().map(|(g, _)| g),
            "caveat": self.energy.grade.caveat(),
        })
    }
}

/// `at least 12.3 J (grade E: 6.2–24.6 J), declared power × time, no measurement`
impl fmt::Display for Spent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at_least = if self.complete { "" } else { "at least " };
        write!(f, "{at_least}{}, {}", self.energy, self.energy.grade.meaning())
    }
}
