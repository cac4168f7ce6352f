use std::{
    io::{self, Write},
    path::Path,
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::bail;
use indicatif::ProgressBar;
use jevons_hub::{
    Cache, Choice, Event, Fit, Hub, HubError, Listing, Machine, Need, Options, Plan, Revision, Spec, Summary, Verdict,
    Watch,
};
use jevons_kernels::{Ops, measure};
use jevons_model::{
    Config,
    account::{Size, WeightFormat},
};
use serde_json::{Value, json};

use crate::{failure::Interrupted, human, input, interrupt, progress, source};

/// Fetch a model from a hub, verified and resumable
///
/// Config, tokenizer, weights in safetensors, licence and readme come; never code or pickles. Every byte is checked
/// against the published hash. Whatever interrupts it, the same command goes on from there; on a complete model it
/// fetches what has changed and repairs what is damaged.
///
/// HF_ENDPOINT names another hub, HF_TOKEN opens gated models (it is sent to that hub only), HF_HUB_CACHE or HF_HOME says
/// where models are kept: in the same layout and place as other tools keep them. SSL_CERT_FILE names the certificates of
/// a network with an authority of its own.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// org/name, or org/name@revision
    model: Spec,
    /// Branch, tag or commit [default: main]
    #[arg(long, value_name = "REV")]
    revision: Option<Revision>,
    /// Fetch the files that match instead of what a model needs, e.g. '*.json'; may be given several times
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// Leave files out that match; may be given several times
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// Connections at a time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=64))]
    jobs: u8,
    /// Hash every file that is here already, and repair those that are damaged
    #[arg(long)]
    verify: bool,
    /// Say what would be fetched and whether it fits, and leave
    #[arg(long)]
    dry_run: bool,
    /// Print the plan or the result as JSON
    #[arg(long)]
    json: bool,
}

/// Time for measuring how fast this machine reads memory.
const MEASURED: Duration = Duration::from_millis(400);
/// Longest config.json that is looked into.
const MAX_CONFIG_BYTES: u64 = 8 << 20;
/// A conversation to plan memory for, in tokens.
const CONVERSATION: usize = 4096;

pub fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    let mut spec = args.model.clone();
    if let Some(revision) = &args.revision {
        if spec.revision.as_ref().is_some_and(|r| r != revision) {
            bail!("{spec} --revision {revision}: these are two revisions; give one");
        }
        spec.revision = Some(revision.clone());
    }
    let stop = Arc::new(Stop::default());
    stop.on_signal(&spec)?;
    let view = View::new();
    let result = pull(args, &spec, &view, &stop.asked, out);
    stop.over.store(true, Ordering::Relaxed);
    view.clear();
    match result {
        Err(error) if error.downcast_ref().is_some_and(|e| matches!(e, HubError::Interrupted)) => {
            eprintln!("{}", resume(&spec));
            Err(Interrupted.into())
        }
        result => result,
    }
}

/// Offers to fetch a model that is not here, if there is somebody to ask.
pub fn offer(model: &Path) -> anyhow::Result<()> {
    let Some(spec) = source::missing(model).filter(|_| input::can_ask()) else { return Ok(()) };
    let endpoint = Options::from_env()?.endpoint;
    if !input::confirm(&format!("{spec} is not on this machine. Fetch it from {endpoint}?"))? {
        bail!("{spec}: not fetched; this fetches it: jevons pull {spec}");
    }
    let no = Vec::new;
    let (revision, include, exclude) = (None, no(), no());
    let args = Args { model: spec, revision, include, exclude, jobs: 8, verify: false, dry_run: false, json: false };
    run(&args, &mut io::stderr())
}

fn pull(args: &Args, spec: &Spec, view: &View, stop: &AtomicBool, out: &mut impl Write) -> anyhow::Result<()> {
    let options = Options { jobs: args.jobs.into(), ..Options::from_env()? };
    let choice = Choice::new(&args.include, &args.exclude)?;
    let on_event = |event: Event<'_>| view.show(event);
    let hub = Hub::new(options, Cache::from_env()?, Watch { on_event: &on_event, stop })?;
    let listing = hub.listing(spec)?;
    let lock = if args.dry_run { None } else { Some(hub.lock(&spec.repo)?) };
    let plan = hub.plan(&listing, &choice, args.verify)?;
    let outlook = Outlook::of(&hub, &listing, &plan)?;
    let Some(lock) = lock else {
        if args.json {
            return Ok(writeln!(out, "{:#}", plan_json(&plan, &outlook))?);
        }
        for file in &plan.files {
            writeln!(out, "{:>10}  {:<8} {}", human::bytes(file.file.bytes), file.state.as_str(), file.file.path)?;
        }
        return Ok(write!(out, "{}", plan_text(&plan, &outlook))?);
    };
    view.say(plan_text(&plan, &outlook).trim_end());
    let summary = hub.fetch(&plan, &lock)?;
    view.clear();
    report(args, spec, &plan, &summary, out)
}

fn report(args: &Args, spec: &Spec, plan: &Plan, summary: &Summary, out: &mut impl Write) -> anyhow::Result<()> {
    if args.json {
        let file = |f: &jevons_hub::FetchedFile| json!({ "path": f.path, "bytes": f.bytes, "was": f.before.as_str() });
        let report = json!({
            "model": spec.repo.to_string(),
            "revision": plan.listing.revision.as_str(),
            "commit": plan.listing.commit,
            "folder": summary.folder,
            "bytes": plan.bytes,
            "fetched_bytes": summary.fetched_bytes,
            "seconds": summary.time.as_secs_f64(),
            "files": summary.files.iter().map(file).collect::<Vec<_>>(),
        });
        return Ok(writeln!(out, "{report:#}")?);
    }
    let (n, seconds) = (summary.files.len(), summary.time.as_secs_f64());
    let fetched = match summary.fetched_bytes {
        0 => "nothing had to come".into(),
        bytes => format!("{} came in {seconds:.1} s", human::bytes(bytes)),
    };
    writeln!(out, "{n} files in place and verified, {}; {fetched}", human::bytes(plan.bytes))?;
    writeln!(out, "{}", summary.folder.display())?;
    Ok(writeln!(out, "chat with it: jevons chat {spec}")?)
}

/// What a person wants to know before the first byte of the weights comes.
struct Outlook {
    fit: Option<Fit>,
    machine: Machine,
    /// Why there is nothing to say about it.
    remark: Option<String>,
}

impl Outlook {
    fn of(hub: &Hub<'_>, listing: &Listing, plan: &Plan) -> anyhow::Result<Self> {
        let mut outlook = Self { fit: None, machine: Machine::default(), remark: None };
        let weight_bytes = plan.weight_bytes();
        if weight_bytes == 0 {
            return Ok(outlook);
        }
        outlook.machine.total_bytes = jevons_sys::total_memory_bytes();
        outlook.machine.free_bytes = jevons_sys::available_memory_bytes();
        let mut need = Need { weight_bytes, ..Need::default() };
        match hub.small_file(listing, "config.json", MAX_CONFIG_BYTES)? {
            None => outlook.remark = Some("it has no config.json, so jevons cannot run it".into()),
            Some(text) => match Config::from_json(&String::from_utf8_lossy(&text)) {
                Ok(config) => {
                    need = need_of(&config, weight_bytes);
                    let rates = Ops::new().ok().and_then(|ops| measure::rates(&ops, measure::BLOCK_BYTES, MEASURED));
                    outlook.machine.bytes_per_s = rates.map(|rates| rates.read_all_threads);
                }
                Err(error) => outlook.remark = Some(format!("jevons cannot run it yet: {error}")),
            },
        }
        outlook.fit = Some(Fit::of(need, outlook.machine));
        Ok(outlook)
    }
}

/// The files' bytes, shared out as the config says; of the formats that weights have, in the one that comes closest.
fn need_of(config: &Config, weight_bytes: u64) -> Need {
    let account = config.account();
    let stored = account.stored();
    let formats = [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Fp8];
    let format = formats.into_iter().min_by_key(|f| stored.bytes(*f).abs_diff(weight_bytes)).expect("there are three");
    let part =
        |size: Size| (weight_bytes as f64 * size.bytes(format) as f64 / stored.bytes(format).max(1) as f64) as u64;
    let tokens = config.max_position_embeddings.min(CONVERSATION) as u64;
    let cache = account.cache_bytes_per_token(config.default_mla_form()).unwrap_or(0);
    Need {
        weight_bytes: part(account.total()),
        active_bytes: Some(part(account.multiplied())),
        cache_bytes: cache.saturating_mul(tokens),
    }
}

fn plan_text(plan: &Plan, outlook: &Outlook) -> String {
    let mut text = format!("{}, commit {}: ", plan.listing.repo, &plan.listing.commit[..12]);
    text += &format!("{} files, {}", plan.files.len(), human::bytes(plan.bytes));
    let free = plan.free_bytes.map_or(String::new(), |free| format!("; {} free on the disk", human::bytes(free)));
    text += &format!(", {} of it to fetch{free}\n", human::bytes(plan.fetch_bytes));
    if plan.barred > 0 {
        text += &format!("{} of the files asked for run code when opened, and are never fetched\n", plan.barred);
    }
    if !plan.has_room() {
        text += &format!("the disk is too small: {} are needed\n", human::bytes(plan.space_bytes));
    }
    if let Some(fit) = &outlook.fit {
        let of = |bytes: Option<u64>| bytes.map_or("?".into(), human::bytes);
        let (total, free) = (of(outlook.machine.total_bytes), of(outlook.machine.free_bytes));
        let verdict = match fit.verdict {
            Verdict::Fits => "it fits",
            Verdict::NotNow => "it fits once other programs give some back",
            Verdict::TooLarge => "it does not fit this machine",
            Verdict::Unknown => "whether it fits is not known",
        };
        text += &format!("memory: about {} of {total}, {free} free: {verdict}\n", human::bytes(fit.bytes));
        if let (Some(speed), Some(bandwidth)) = (fit.tokens_per_s, outlook.machine.bytes_per_s) {
            let bandwidth = human::bytes(bandwidth as u64);
            text += &format!("speed: at most {speed:.1} tokens/s, as the memory reads {bandwidth}/s\n");
        }
    }
    if let Some(remark) = &outlook.remark {
        text += &format!("remark: {remark}\n");
    }
    text
}

fn plan_json(plan: &Plan, outlook: &Outlook) -> Value {
    let file = |f: &jevons_hub::PlannedFile| {
        let (hash, algorithm) = (f.file.hash.as_str(), f.file.hash.algorithm());
        json!({
            "path": f.file.path, "bytes": f.file.bytes, "state": f.state.as_str(), "fetch_bytes": f.missing(), "hash": hash,
            "algorithm": algorithm,
        })
    };
    json!({
        "model": plan.listing.repo.to_string(),
        "revision": plan.listing.revision.as_str(),
        "commit": plan.listing.commit,
        "folder": plan.folder,
        "bytes": plan.bytes,
        "fetch_bytes": plan.fetch_bytes,
        "disk": { "needed_bytes": plan.space_bytes, "free_bytes": plan.free_bytes, "fits": plan.has_room() },
        "memory": outlook.fit.map(|fit| json!({
            "needed_bytes": fit.bytes,
            "total_bytes": outlook.machine.total_bytes,
            "free_bytes": outlook.machine.free_bytes,
            "verdict": match fit.verdict {
                Verdict::Fits => "fits",
                Verdict::NotNow => "not now",
                Verdict::TooLarge => "too large",
                Verdict::Unknown => "unknown",
            },
            "tokens_per_s_at_most": fit.tokens_per_s,
            "read_bytes_per_s": outlook.machine.bytes_per_s,
        })),
        "remark": outlook.remark,
        "files": plan.files.iter().map(file).collect::<Vec<_>>(),
    })
}

fn resume(spec: &Spec) -> String {
    format!("stopped; what has come is kept, and this goes on from there: jevons pull {spec}")
}

/// The first Ctrl-C lets the pull come to an end; a second one, and a server that says nothing, do not.
#[derive(Default)]
struct Stop {
    asked: AtomicBool,
    over: AtomicBool,
}

impl Stop {
    fn on_signal(self: &Arc<Self>, spec: &Spec) -> anyhow::Result<()> {
        let (this, spec) = (self.clone(), spec.clone());
        interrupt::on_signal(move || {
            let patience = Duration::from_secs(if this.asked.swap(true, Ordering::Relaxed) { 0 } else { 2 });
            let (this, spec) = (this.clone(), spec.clone());
            thread::spawn(move || {
                thread::sleep(patience);
                if !this.over.load(Ordering::Relaxed) {
                    eprintln!("{}", resume(&spec));
                    process::exit(130);
                }
            });
        })
    }
}

/// Progress on stderr.
struct View {
    checking: ProgressBar,
    fetching: ProgressBar,
}

impl View {
    fn new() -> Self {
        Self { checking: progress::bytes_bar(0, "checking"), fetching: progress::bytes_bar(0, "fetching") }
    }

    fn show(&self, event: Event<'_>) {
        match event {
            Event::Host { host, redirected, proxy } => {
                let why = if redirected { ", where the hub sends us" } else { "" };
                let proxy = proxy.map_or(String::new(), |p| format!(" through the proxy {p}"));
                self.say(&format!("connecting to {host}{why}{proxy}"));
            }
            Event::Notice(text) => self.say(text),
            Event::Hashed { done, total } => {
                self.checking.set_length(total);
                self.checking.set_position(done);
                if done == total {
                    self.checking.finish_and_clear();
                }
            }
            Event::Fetched { done, total } => {
                self.fetching.set_length(total);
                self.fetching.set_position(done);
            }
            Event::Done { path } if self.fetching.is_hidden() => self.say(&format!("in place: {path}")),
            Event::Done { .. } => {}
        }
    }

    /// A line above the bar.
    fn say(&self, text: &str) {
        if self.fetching.is_hidden() {
            eprintln!("{text}");
        } else {
            self.fetching.println(text);
        }
    }

    fn clear(&self) {
        self.checking.finish_and_clear();
        self.fetching.finish_and_clear();
    }
}
