//! A training run from recipe to run folder: the main path of this crate, top to bottom.
//!
//! recipe → tokenizer → config → weights → token files → (batch → [`Trainer::step`] → metrics)* → checkpoints, plots, report.
//!
//! The run folder holds `model/` (the published layout, which other tools open), `state/checkpoint.safetensors` (all that a resumed
//! run needs), `metrics.jsonl`, `loss.svg`, `expert_load.svg` and the token files in `data/`. Every file is replaced whole.

use std::{
    borrow::Cow,
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use jevons_kernels::{Dtype, ScaleFormat};
use jevons_layers::{Keep, ParamId};
use jevons_model::{
    Config, Fp8, LinearKind, Linears, Model, ModelError, Precision, Wgrad,
    checkpoint::{Checkpoint, CheckpointError, SaveDtype, save_model},
    config::{ConfigError, TensorSpec},
};
use jevons_text::{BpeOptions, DigitSplit, Tokenizer, TokenizerError, house, train_bpe};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::{
    data::{self, ChatFormat, DataError, Encoder, Segment, TrainData},
    memory::{Class, Estimate, StepShape, estimate},
    metrics::{MetricsError, MetricsFile, StepMetrics},
    optimizer::{Optimizer, OptimizerSettings},
    plot,
    recipe::{self, Recipe, Recompute, SplitDigits, TokenizerChoice},
    rng::{Rng, Stream},
    schedule::Schedule,
    state::{self, StateError},
    trainer::{StepError, StepReport, StepSettings, Trainer},
};

/// Why a run did not start or stopped.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// config.json
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Weights.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Weights and config together.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// Data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// State of an earlier run.
    #[error(transparent)]
    State(#[from] StateError),
    /// metrics.jsonl
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// A step.
    #[error(transparent)]
    Step(#[from] StepError),
    /// A file of the run folder.
    #[error("{path}: cannot write: {error}", path = .path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// There is a run already.
    #[error("{folder}: holds a run already; continue it with --resume, or choose another run.folder", folder = .0.display())]
    Exists(PathBuf),
    /// There is none.
    #[error("{folder}: holds no saved state to resume; start the run without --resume", folder = .0.display())]
    NothingToResume(PathBuf),
    /// The recipe asks for something that does not fit together.
    #[error("{0}")]
    Recipe(String),
    /// Memory.
    #[error(
        "the run needs about {needed} MiB and {available} MiB are free; \
         try a smaller batch.micro_batch_sequences, recompute = \"layer\", or optimizer.moments = \"bf16\""
    )]
    Memory {
        /// Estimated peak, MiB.
        needed: u64,
        /// Free, MiB.
        available: u64,
    },
}

/// What a caller sees while the run goes on.
#[derive(Debug)]
pub enum Event<'a> {
    /// Something to say once.
    Notice(String),
    /// Text is being made into tokens.
    Tokens(data::Progress),
    /// Before the first step.
    Memory {
        /// By class of tensor.
        estimate: &'a Estimate,
        /// Free bytes, if the system says.
        available: Option<u64>,
    },
    /// The steps begin.
    Start {
        /// Steps already taken.
        step: u64,
        /// Steps of the run.
        steps: u64,
        /// Parameters.
        parameters: u64,
        /// Of which a token uses.
        active: u64,
        /// Bytes that a step moves at least: weights, gradients, masters and moments.
        step_bytes: f64,
        /// Of which are trained.
        trained: u64,
    },
    /// A step was taken.
    Step(&'a StepMetrics),
    /// The held-out loss was taken.
    Heldout {
        /// After so many steps.
        step: u64,
        /// Nats per token.
        loss: f64,
        /// Bits per byte of text.
        bits_per_byte: Option<f64>,
    },
    /// Model and state are on disk.
    Saved {
        /// After so many steps.
        step: u64,
    },
}

/// How a run ended.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Summary {
    /// Where it is.
    pub folder: PathBuf,
    /// Steps taken in all.
    pub step: u64,
    /// Whether it was stopped before its last step.
    pub interrupted: bool,
    /// Training loss of the last step, nats per token.
    pub loss: Option<f64>,
    /// Held-out loss, nats per token.
    pub heldout_loss: Option<f64>,
    /// Held-out loss, bits per byte.
    pub heldout_bits_per_byte: Option<f64>,
    /// Tokens seen in all.
    pub tokens: u64,
    /// Tokens per second of this process' steps.
    pub tokens_per_s: f64,
    /// Estimated peak memory, bytes.
    pub estimated_peak_bytes: u64,
    /// Highest resident memory of this process, bytes, if the system says.
    pub peak_rss_bytes: Option<u64>,
    /// Memory by class of tensor, estimated and held; the last row is the peak.
    pub memory: Vec<Class>,
}

/// Runs a recipe. `stop`: set it to end after the current step, saved.
///
/// # Errors
/// [`RunError`]; what was saved before stays whole.
pub fn run(
    recipe: &Recipe,
    resume: bool,
    stop: &AtomicBool,
    observe: &mut dyn FnMut(Event<'_>),
) -> Result<Summary, RunError> {
    let folder = recipe.resolve(&recipe.run.folder);
    let state_path = folder.join("state").join("checkpoint.safetensors");
    match (state_path.exists(), resume) {
        (true, false) => return Err(RunError::Exists(folder)),
        (false, true) => return Err(RunError::NothingToResume(folder)),
        _ => {}
    }
    let tokenizer = find_tokenizer(recipe, &folder, resume, observe)?;
    let (config, init) = start(recipe, tokenizer.as_ref(), observe)?;
    check_fit(recipe, &config, tokenizer.as_ref())?;
    let trained = trained_parameters(recipe, &config)?;
    if let Some(text) = chosen_linears(precision(recipe), &config) {
        observe(Event::Notice(text));
    }

    let shape = StepShape {
        sequences: recipe.batch.micro_batch_sequences,
        length: recipe.data.sequence_length,
        micro_batches: recipe.batch.sequences / recipe.batch.micro_batch_sequences,
        precision: precision(recipe),
        moments: moments(recipe),
        keep: keep(recipe.recompute),
        mtp: recipe.mtp.loss_weight > 0.0,
    };
    let specs = config.tensors();
    let elements = specs.iter().zip(&trained).filter(|(_, t)| **t).map(|(s, _)| s.elements()).sum();
    let estimate = estimate(&config, elements, shape);
    let available = jevons_sys::available_memory_bytes();
    observe(Event::Memory { estimate: &estimate, available });
    if let Some(available) = available
        && estimate.total() as u64 > available
    {
        let mib = |bytes: u64| bytes >> 20;
        return Err(RunError::Memory { needed: mib(estimate.total() as u64), available: mib(available) });
    }

    let encoder = encoder(tokenizer.as_ref(), &config);
    let data = data::prepare(recipe, &encoder, &mut |p| observe(Event::Tokens(p)))?;
    let mut trainer = build(recipe, config, init, &trained)?;
    let mut tokens = 0;
    if resume {
        tokens = state::load(&state_path, &mut trainer, &recipe.canonical_json())?.tokens;
    }
    let first = trainer.optimizer.steps;
    fs::create_dir_all(&folder).map_err(|error| RunError::Write { path: folder.clone(), error })?;
    let mut metrics = MetricsFile::open(folder.join("metrics.jsonl"), first)?;
    observe(Event::Start {
        step: first,
        steps: recipe.schedule.steps,
        parameters: trainer.model.config().total_parameters(),
        active: trainer.model.config().active_parameters(),
        step_bytes: trainer.model.config().account().step_bytes(trainer.model.weight_format()),
        trained: elements as u64,
    });

    let run = Run { recipe, folder: &folder, state: &state_path, tokenizer: tokenizer.as_ref() };
    let schedule = Schedule::new(recipe);
    let heldout_rows = data.heldout.as_ref().map(|h| h.sample(recipe.evaluation.heldout_sequences));
    let mut heldout = None;
    let evaluate = |trainer: &Trainer, metrics: &mut MetricsFile, observe: &mut dyn FnMut(Event<'_>)| {
        let (Some(rows), Some(batcher)) = (&heldout_rows, &data.heldout) else { return Ok(None) };
        let (nats, targets) = trainer.evaluate(rows);
        let loss = nats / targets.max(1) as f64;
        let per_target = batcher.bytes_per_target();
        let bits_per_byte = (per_target > 0.0).then(|| loss / per_target / std::f64::consts::LN_2);
        let step = trainer.optimizer.steps;
        metrics.heldout(step, loss, bits_per_byte)?;
        observe(Event::Heldout { step, loss, bits_per_byte });
        Ok::<_, RunError>(Some((loss, bits_per_byte)))
    };
    let due = |every: u64, step: u64| every > 0 && step.is_multiple_of(every);
    if first == 0 && recipe.evaluation.every_steps > 0 {
        heldout = evaluate(&trainer, &mut metrics, observe)?;
    }
    let (mut loss, mut seconds, mut seen) = (None, 0.0, 0u64);
    let mut saved_at = if resume { Some(first) } else { None };
    while trainer.optimizer.steps < recipe.schedule.steps && !stop.load(Ordering::Relaxed) {
        let step = trainer.optimizer.steps;
        let rows = batch(&data.train, step);
        let start = Instant::now();
        let lr = schedule.lr(step);
        let report = trainer.step(&rows, lr)?;
        let elapsed = start.elapsed().as_secs_f64();
        (loss, seconds) = (Some(report.loss), seconds + elapsed);
        (tokens, seen) = (tokens + report.tokens as u64, seen + report.tokens as u64);
        let line = step_metrics(step, lr, tokens, elapsed, &report);
        metrics.step(&line)?;
        observe(Event::Step(&line));
        let done = step + 1;
        if due(recipe.evaluation.every_steps, done)
            || (done == recipe.schedule.steps && recipe.evaluation.every_steps > 0)
        {
            heldout = evaluate(&trainer, &mut metrics, observe)?;
        }
        if due(recipe.checkpoint.every_steps, done) {
            run.save(&trainer, tokens)?;
            saved_at = Some(done);
            observe(Event::Saved { step: done });
        }
    }
    let step = trainer.optimizer.steps;
    if saved_at != Some(step) {
        run.save(&trainer, tokens)?;
        observe(Event::Saved { step });
    }
    drop(metrics);
    let peak_rss_bytes = jevons_sys::peak_rss_bytes();
    let used = (step > first).then(|| trainer.used());
    let (heldout_loss, heldout_bits_per_byte) = heldout.unzip();
    Ok(Summary {
        folder: folder.clone(),
        step,
        interrupted: step < recipe.schedule.steps,
        loss,
        heldout_loss,
        heldout_bits_per_byte: heldout_bits_per_byte.flatten(),
        tokens,
        tokens_per_s: if seconds > 0.0 { seen as f64 / seconds } else { 0.0 },
        estimated_peak_bytes: estimate.total() as u64,
        peak_rss_bytes,
        memory: estimate.table(used, peak_rss_bytes),
    })
}

fn step_metrics(step: u64, lr: f64, tokens: u64, seconds: f64, report: &StepReport) -> StepMetrics {
    StepMetrics {
        step,
        loss: report.loss,
        mtp_loss: report.mtp_loss,
        balance_loss: report.balance_loss,
        grad_norm: report.grad_norm,
        lr,
        tokens,
        tokens_per_s: report.tokens as f64 / seconds,
        loads: report.loads.clone(),
    }
}

fn batch(data: &TrainData, step: u64) -> Vec<data::Row> {
    data.batch(step)
}

struct Run<'a> {
    recipe: &'a Recipe,
    folder: &'a Path,
    state: &'a Path,
    tokenizer: Option<&'a Tokenizer>,
}

impl Run<'_> {
    /// State first: it is what a resumed run reads. Then the model for others, then the pictures.
    fn save(&self, trainer: &Trainer, tokens: u64) -> Result<(), RunError> {
        let write = |path: &Path| {
            let path = path.to_path_buf();
            move |error| RunError::Write { path, error }
        };
        let parent = self.state.parent().expect("state/ stands in the run folder");
        fs::create_dir_all(parent).map_err(write(parent))?;
        state::save(self.state, trainer, &self.recipe.canonical_json(), tokens)?;
        let dtype = match self.recipe.checkpoint.dtype {
            recipe::SaveFormat::F32 => SaveDtype::F32,
            recipe::SaveFormat::Bf16 => SaveDtype::Bf16,
            recipe::SaveFormat::Fp8 => SaveDtype::Fp8(scale_format(self.recipe)),
        };
        let model = self.folder.join("model");
        let order: std::collections::HashMap<&str, usize> =
            trainer.model.specs().iter().enumerate().map(|(i, s)| (s.name.as_str(), i)).collect();
        save_model(&model, trainer.model.config(), dtype, |spec: &TensorSpec| {
            let i = order[spec.name.as_str()];
            match &trainer.optimizer.slots[i] {
                Some(slot) => Cow::Borrowed(&slot.master[..]),
                None => Cow::Owned(state::values(&trainer.model, ParamId(i))),
            }
        })?;
        let config = trainer.model.config();
        let mut small = vec![("generation_config.json", generation_config(config))];
        if let Some(t) = self.tokenizer {
            small.push(("tokenizer.json", t.to_bytes()));
            small.push(("tokenizer_config.json", self.tokenizer_config(config)));
        }
        for (name, bytes) in small {
            let path = model.join(name);
            jevons_sys::atomic::write(&path, &bytes).map_err(write(&path))?;
        }
        let lines = crate::metrics::read(self.folder.join("metrics.jsonl"))?;
        for (name, svg) in plot::all(&lines) {
            let path = self.folder.join(name);
            jevons_sys::atomic::write(&path, svg.as_bytes()).map_err(write(&path))?;
        }
        Ok(())
    }

    /// The one beside the weights that the run began from, or the house's.
    fn tokenizer_config(&self, config: &Config) -> Vec<u8> {
        let of_init = self
            .recipe
            .model
            .init
            .as_ref()
            .and_then(|init| fs::read(self.recipe.resolve(init).join("tokenizer_config.json")).ok());
        of_init.unwrap_or_else(|| house::tokenizer_config_json(config.max_position_embeddings).into_bytes())
    }
}

fn generation_config(config: &Config) -> Vec<u8> {
    let eos = match config.eos_token_ids[..] {
        [] => Value::Null,
        [one] => json!(one),
        _ => json!(config.eos_token_ids),
    };
    let text = json!({ "bos_token_id": config.bos_token_id, "eos_token_id": eos, "do_sample": false });
    format!("{text:#}\n").into_bytes()
}

fn scale_format(recipe: &Recipe) -> ScaleFormat {
    match recipe.fp8.unwrap_or_default().scale {
        recipe::Fp8Scale::Ue8m0 => ScaleFormat::Ue8m0,
        recipe::Fp8Scale::Fp32 => ScaleFormat::F32,
    }
}

fn precision(recipe: &Recipe) -> Precision {
    match recipe.precision {
        recipe::Precision::F32 => Precision::F32,
        recipe::Precision::Bf16 => Precision::Bf16,
        recipe::Precision::Fp8 => {
            let section = recipe.fp8.unwrap_or_default();
            Precision::Fp8(Fp8 {
                scale: scale_format(recipe),
                wgrad: match section.wgrad {
                    recipe::Fp8Wgrad::Reuse => Wgrad::Reuse,
                    recipe::Fp8Wgrad::Retile => Wgrad::Retile,
                },
                gradient_blocks: section.gradients == recipe::Fp8Gradients::Block,
                linears: match section.linears {
                    recipe::Fp8Linears::All => Linears::All,
                    recipe::Fp8Linears::Auto => {
                        Linears::Auto { tokens: recipe.batch.sequences * recipe.data.sequence_length }
                    }
                },
            })
        }
    }
}

/// What `fp8.linears = "auto"` comes to, for people.
fn chosen_linears(precision: Precision, config: &Config) -> Option<String> {
    let Precision::Fp8(Fp8 { linears: Linears::Auto { tokens }, .. }) = precision else { return None };
    let left = precision.left_in_bf16(config);
    let (bf16, fp8): (Vec<_>, Vec<_>) = config.linears(tokens).into_iter().partition(|l| left.contains(l));
    let list = |kinds: Vec<LinearKind>| match kinds.is_empty() {
        true => "none".to_owned(),
        false => kinds.iter().flat_map(|l| &l.names).map(String::as_str).collect::<Vec<_>>().join(", "),
    };
    Some(format!("fp8.linears = \"auto\": in bf16 {}; in FP8 {}", list(bf16), list(fp8)))
}

fn moments(recipe: &Recipe) -> Dtype {
    match recipe.moments() {
        recipe::MomentsFormat::F32 => Dtype::F32,
        recipe::MomentsFormat::Bf16 => Dtype::Bf16,
    }
}

fn keep(r: Recompute) -> Keep {
    match r {
        Recompute::None => Keep::All,
        Recompute::MlaUp => Keep::ButUp,
        Recompute::Layer => Keep::Input,
    }
}

/// The tokenizer of the run: its own when it resumes, else the recipe's, else the one beside the first weights.
fn find_tokenizer(
    recipe: &Recipe,
    folder: &Path,
    resume: bool,
    observe: &mut dyn FnMut(Event<'_>),
) -> Result<Option<Tokenizer>, RunError> {
    let own = folder.join("model").join("tokenizer.json");
    if resume && own.exists() {
        return Ok(Some(Tokenizer::from_file(own)?));
    }
    match &recipe.model.tokenizer {
        Some(TokenizerChoice::File(path)) => Ok(Some(Tokenizer::from_file(recipe.resolve(path))?)),
        Some(TokenizerChoice::Train { train }) => {
            observe(Event::Notice("learning a tokenizer from the data".into()));
            let texts = data::sample_texts(recipe, &ChatFormat::default(), train.sample_bytes)?;
            let options = BpeOptions {
                vocab_size: train.vocab_size,
                special_tokens: house::SPECIAL_TOKENS.map(String::from).to_vec(),
                split_digits: match train.split_digits {
                    SplitDigits::Single => DigitSplit::Single,
                    SplitDigits::Three => DigitSplit::UpToThree,
                },
                min_frequency: 2,
            };
            Ok(Some(train_bpe(texts, &options)?))
        }
        None => {
            let beside = recipe.model.init.as_ref().map(|init| recipe.resolve(init).join("tokenizer.json"));
            match beside.filter(|path| path.exists()) {
                Some(path) => Ok(Some(Tokenizer::from_file(path)?)),
                None if recipe.data.tokens.is_some() && recipe.data.heldout.is_empty() => Ok(None),
                None => Err(RunError::Recipe(
                    "the recipe names no tokenizer and text must become tokens; \
                     set model.tokenizer to a tokenizer.json, or [model.tokenizer] train = { vocab_size = 4096 }"
                        .into(),
                )),
            }
        }
    }
}

/// Config, and the weights to begin from if the recipe names some.
fn start(
    recipe: &Recipe,
    tokenizer: Option<&Tokenizer>,
    observe: &mut dyn FnMut(Event<'_>),
) -> Result<(Config, Option<Checkpoint<'static>>), RunError> {
    if let Some(init) = &recipe.model.init {
        let dir = recipe.resolve(init);
        let (mut config, file) = (Config::from_file(dir.join("config.json"))?, Checkpoint::open(&dir)?);
        let own = format!("model.layers.{}.eh_proj.weight", config.num_hidden_layers);
        if config.num_nextn_predict_layers > 0 && file.get(&own).is_none() {
            let text = "config.json promises multi-token prediction, the weights lack it (many tools drop it): going on without";
            observe(Event::Notice(text.into()));
            config = config.without_mtp();
        }
        return Ok((config, Some(file)));
    }
    let mut map: Map<String, Value> = recipe.model.config.clone().unwrap_or_default();
    if let Some(t) = tokenizer {
        map.entry("vocab_size").or_insert_with(|| json!(t.vocab_size()));
        for (key, token) in [("bos_token_id", house::SPECIAL_TOKENS[0]), ("eos_token_id", house::SPECIAL_TOKENS[1])] {
            if let (false, Some(id)) = (map.contains_key(key), t.token_to_id(token)) {
                map.insert(key.into(), json!(id));
            }
        }
    }
    Ok((Config::from_map(&map)?, None))
}

fn check_fit(recipe: &Recipe, config: &Config, tokenizer: Option<&Tokenizer>) -> Result<(), RunError> {
    if let Some(t) = tokenizer
        && t.vocab_size() > config.vocab_size
    {
        return Err(RunError::Recipe(format!(
            "the tokenizer has {} tokens and the model's vocab_size is {}; is it another model's tokenizer?",
            t.vocab_size(),
            config.vocab_size
        )));
    }
    if recipe.data.sequence_length > config.max_position_embeddings {
        return Err(RunError::Recipe(format!(
            "data.sequence_length is {} and the model's max_position_embeddings {}; make the one shorter or the other longer",
            recipe.data.sequence_length, config.max_position_embeddings
        )));
    }
    Ok(())
}

/// By parameter id. Selection biases take no gradient.
fn trained_parameters(recipe: &Recipe, config: &Config) -> Result<Vec<bool>, RunError> {
    let specs = config.tensors();
    for pattern in &recipe.model.freeze {
        if !specs.iter().any(|s| recipe::glob_matches(pattern, &s.name)) {
            return Err(RunError::Recipe(format!(
                "model.freeze: no parameter matches \"{pattern}\"; names are as in {}",
                specs[0].name
            )));
        }
    }
    let mtp = format!("model.layers.{}.", config.num_hidden_layers);
    let still = |s: &TensorSpec| is_bias(s) || (recipe.mtp.loss_weight == 0.0 && s.name.starts_with(&mtp));
    let trained: Vec<bool> = specs.iter().map(|s| !still(s) && !recipe.model.is_frozen(&s.name)).collect();
    if trained.iter().any(|t| *t) {
        Ok(trained)
    } else {
        Err(RunError::Recipe("model.freeze leaves no parameter to train".into()))
    }
}

fn is_bias(s: &TensorSpec) -> bool {
    s.name.ends_with("e_score_correction_bias")
}

/// Ids of text through the run's tokenizer; without one no text comes.
fn encoder<'a>(tokenizer: Option<&'a Tokenizer>, config: &Config) -> Encoder<'a> {
    let control = |name: &str, fallback: Option<u32>| tokenizer.and_then(|t| t.token_to_id(name)).or(fallback);
    Encoder {
        vocab_size: config.vocab_size,
        tokenizer_sha256: tokenizer.map_or([0; 32], |t| Sha256::digest(t.to_bytes()).into()),
        bos: control(house::SPECIAL_TOKENS[0], config.bos_token_id),
        eos: control(house::SPECIAL_TOKENS[1], config.eos_token_ids.first().copied()),
        chat: ChatFormat::default(),
        encode: Box::new(move |segment: &Segment| {
            let Some(t) = tokenizer else { return Err("the run has no tokenizer".into()) };
            if segment.special {
                let id = t.token_to_id(&segment.text);
                return id.map(|id| vec![id]).ok_or_else(|| {
                    format!("the tokenizer has no token {}; conversations need it", segment.text).into()
                });
            }
            Ok(t.encode_ordinary(&segment.text)?)
        }),
    }
}

/// Random weights: matrices N(0, σ²), gains 1, biases 0; a function of the recipe's seed and the parameter's number.
fn random(spec: &TensorSpec, id: usize, seed: u64, sigma: f64) -> Vec<f32> {
    match spec.shape[..] {
        [_] if spec.name.ends_with("bias") => vec![0.0; spec.elements()],
        [_] => vec![1.0; spec.elements()],
        _ => {
            let mut rng = Rng::new(seed, Stream::Weights, id as u64);
            // Box and Muller 1958; 1 − u is never 0.
            let mut normal = || {
                let (u, v) = (1.0 - rng.uniform(), rng.uniform());
                libm::sqrt(-2.0 * libm::log(u)) * libm::cos(2.0 * std::f64::consts::PI * v)
            };
            (0..spec.elements()).map(|_| (sigma * normal()) as f32).collect()
        }
    }
}

fn build(
    recipe: &Recipe,
    config: Config,
    init: Option<Checkpoint<'static>>,
    trained: &[bool],
) -> Result<Trainer, RunError> {
    use rayon::prelude::*;
    let sigma = recipe.model.initializer_range.unwrap_or(f64::from(config.initializer_range));
    let specs = config.tensors();
    let values = |(i, spec): (usize, &TensorSpec)| match &init {
        Some(file) => file.read_f32(&spec.name, &spec.shape),
        None => Ok(random(spec, i, recipe.seed, sigma)),
    };
    let masters = specs
        .par_iter()
        .enumerate()
        .map(|(i, spec)| if trained[i] { values((i, spec)).map(Some) } else { Ok(None) })
        .collect::<Vec<_>>()
        .into_iter()
        .collect::<Result<Vec<_>, CheckpointError>>()?;
    let number: std::collections::HashMap<&str, usize> =
        specs.iter().enumerate().map(|(i, s)| (s.name.as_str(), i)).collect();
    let model = Model::new(config, precision(recipe), |spec| {
        let i = number[spec.name.as_str()];
        match &masters[i] {
            Some(master) => Ok(master.clone()),
            None => values((i, spec)),
        }
    })?;
    let settings = StepSettings {
        optimizer: OptimizerSettings {
            betas: recipe.optimizer.betas,
            eps: recipe.optimizer.eps,
            weight_decay: recipe.optimizer.weight_decay,
            grad_clip: recipe.optimizer.grad_clip,
            moments: moments(recipe),
        },
        micro_batch_rows: recipe.batch.micro_batch_sequences,
        keep: keep(recipe.recompute),
        balance_alpha: recipe.moe.sequence_balance_alpha as f32,
        bias_update_speed: recipe.moe.bias_update_speed as f32,
        mtp_loss_weight: recipe.mtp.loss_weight as f32,
        collapsed_expert_steps: recipe.moe.collapsed_expert_steps,
    };
    Ok(Trainer::new(model, Optimizer::new(masters, moments(recipe)), settings))
}
