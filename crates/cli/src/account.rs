//! The energy account of a command: what it spends is metered and written to the ledger.
//!
//! An account that fails never stops its command: it warns once and goes on without the ledger.

use std::{
    env,
    ffi::OsString,
    io::Cursor,
    path::{Path, PathBuf},
};

use anyhow::bail;
use jevons_energy::{
    grade::Energy,
    ledger::{Fingerprint, Ledger, Phase, Recorder, Work},
    meter::{Meter, Options, Wall, Window},
};

use crate::source::Files;

/// Of every command that computes.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct LedgerArgs {
    /// Write nothing to the energy ledger; JEVONS_LEDGER=off does the same
    #[arg(long, help_heading = "Energy")]
    no_ledger: bool,
}

impl LedgerArgs {
    /// Whether nothing is to be written.
    pub fn off(&self) -> bool {
        self.no_ledger
    }
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
    /// Floating-point operations of a forward pass of one token: two per parameter that it uses, attention left out.
    flop_per_token: Option<f64>,
}

impl Account {
    /// Opens the account of a command.
    pub fn open(args: &LedgerArgs, command: &str) -> Self {
        let options = meter_options().unwrap_or_else(|error| {
            eprintln!("warning: {error}");
            Options::default()
        });
        let path = ledger_path().filter(|_| !args.no_ledger);
        let ledger = path.map(Ledger::open).transpose();
        let mut account =
            Self { recorder: Recorder::start(Meter::discover(options), ledger, command), flop_per_token: None };
        account.warn();
        account
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
        self.flop_per_token = files.config().ok().map(|config| 2.0 * config.active_parameters() as f64);
        self.phase(Phase::Load, Work::default());
    }

    /// What was done so far made the model in this folder.
    pub fn made(&mut self, folder: &Path) {
        let mut print = Fingerprint::new();
        if print.add_checkpoint(folder).is_ok() {
            self.recorder.set_model(print.finish());
        }
    }

    /// So many parameters are used by a token of the model that is being trained.
    pub fn trains(&mut self, active_parameters: u64) {
        self.flop_per_token = Some(2.0 * active_parameters as f64);
    }

    /// Tokens with the operations of their forward pass.
    pub fn forward(&self, tokens: usize) -> Work {
        Work { flop: self.flop_per_token.map(|f| f * tokens as f64), ..Work::tokens(tokens) }
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

    /// So many tokens of a prompt were computed, and so many found in the cache, in the present request.
    pub fn prefilled(&mut self, computed: usize, cached: usize) {
        let work = Work { cached_tokens: cached as u64, ..self.forward(computed) };
        self.recorder.amend(Phase::Prefill, work);
    }

    /// The present request has ended.
    pub fn end_request(&mut self) -> Option<Energy> {
        let energy = self.recorder.end_request();
        self.warn();
        energy
    }

    /// The time since the last phase was spent on several requests at once, in proportion to their operations.
    pub fn shared_requests(&mut self, phase: Phase, works: &[Work]) {
        let shares: Vec<_> = works.iter().map(|work| (work.tokens as f64, *work)).collect();
        self.recorder.shared_requests(phase, &shares);
        self.warn();
    }

    /// A step of training: forward and twice as much backward.
    pub fn step(&mut self, tokens: u64) {
        let flop = self.flop_per_token.map(|f| 3.0 * f * tokens as f64);
        self.recorder.piece(Phase::Train, Work { tokens, flop, ..Work::default() });
    }

    /// What was held back is written.
    pub fn saved(&mut self) {
        self.recorder.flush();
        self.warn();
    }

    /// The account is closed: what all of it has spent.
    pub fn close(&mut self) -> Window {
        let window = self.recorder.finish();
        self.warn();
        window
    }

    fn warn(&mut self) {
        if let Some(trouble) = self.recorder.trouble() {
            eprintln!("warning: {trouble}; going on without it");
        }
    }
}

/// In one line, with what kind of number it is.
pub fn sentence(energy: &Energy) -> String {
    format!("{energy}, {}", energy.grade.meaning())
}
