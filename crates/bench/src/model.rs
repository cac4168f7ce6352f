//! A model's phases: prompts, decoding, a training step.
//!
//! Tokens are random ids, the same in every run of the program. Decoding at a context `C` computes the token that looks at `C` keys,
//! itself among them, over and over; the keys before it are those of a real prompt.

use std::convert::Infallible;

use jevons_kernels::{Dtype, random::philox4x32};
use jevons_layers::{Keep, ParamId};
use jevons_model::{
    Config, Extend, KvCache, MlaForm, Model, Precision,
    account::{Flop, Pass, WeightFormat},
    config::Attention,
};
use jevons_train::{
    data::Row as TrainRow,
    memory::{StepShape, estimate},
    optimizer::Optimizer,
    state,
    trainer::{StepSettings, Trainer},
};

use crate::{
    BenchError, Event, Phase, Report, Row, Settings,
    report::{Measured, Work, name_of},
    timing::{Times, repeat, seconds},
};

/// Seed of random weights and of the token ids.
pub const SEED: u64 = 1;
/// Tokens of a prompt that are read at a time where reading it is not what is measured.
const CHUNK: usize = 512;

/// A model of this shape with random weights, in bf16 unless told otherwise.
///
/// # Errors
/// As [`check_weights`] and [`Model::random`].
pub fn random(config: Config, precision: Option<Precision>, mla: Option<MlaForm>) -> Result<Model, BenchError> {
    check_weights(&config, precision)?;
    Ok(Model::random(config, precision.unwrap_or(Precision::Bf16), mla, SEED)?)
}

/// Whether there is memory for what [`random`] makes.
///
/// # Errors
/// [`BenchError::Memory`] if not.
pub fn check_weights(config: &Config, precision: Option<Precision>) -> Result<(), BenchError> {
    let format = format_of(precision.unwrap_or(Precision::Bf16));
    check_free("the model's weights", config.account().total().bytes(format))
}

fn check_free(what: &str, needed: u64) -> Result<(), BenchError> {
    match jevons_sys::available_memory_bytes() {
        Some(available) if needed > available => Err(BenchError::Memory { what: what.into(), needed, available }),
        _ => Ok(()),
    }
}

fn format_of(precision: Precision) -> WeightFormat {
    match precision {
        Precision::F32 => WeightFormat::F32,
        Precision::Bf16 => WeightFormat::Bf16,
    }
}

/// Runs the phases of a model that the settings name; the training step last, as it changes the weights.
pub(crate) fn run(
    model: Model,
    settings: &Settings,
    report: &mut Report,
    observe: &mut dyn FnMut(Event),
) -> Result<(), BenchError> {
    let config = model.config();
    report.model = Some(Measured {
        parameters: config.total_parameters(),
        active_parameters: config.active_parameters(),
        weight_bytes: model.weights().bytes(),
        precision: name_of(model.precision().dtype()),
        mla: matches!(config.attention, Attention::Mla { .. }).then(|| match model.mla_form() {
            MlaForm::Expanded => "expanded",
            MlaForm::Absorbed => "absorbed",
        }),
        context: config.max_position_embeddings,
    });
    if settings.phases.contains(&Phase::Prefill) {
        report.phase("prefill", |report| prefill(&model, settings, report, observe))?;
    }
    if settings.phases.contains(&Phase::Decode) {
        report.phase("decode", |report| decode(&model, settings, report, observe))?;
    }
    if settings.phases.contains(&Phase::Train) {
        report.phase("train", |report| train(model, settings, report, observe))?;
    }
    Ok(())
}

fn pass(model: &Model, sequences: usize, new: usize, before: usize) -> Work {
    let pass = model.config().account().pass(sequences, new, before, model.mla_form(), format_of(model.precision()));
    // `None` is for a form that the model lacks, and it runs in this one.
    let Pass { flop, bytes } = pass.unwrap_or(Pass { flop: Flop { weights: 0.0, attention: 0.0 }, bytes: 0.0 });
    Work { tokens: Some(sequences * new), flop: flop.total(), bytes }
}

fn add(report: &mut Report, phase: Phase, name: String, dtype: Dtype, work: Work, times: Times) {
    let row = Row::new(phase, name, dtype, work, times, &report.limits);
    report.rows.push(row);
}

fn prefill(
    model: &Model,
    settings: &Settings,
    report: &mut Report,
    observe: &mut dyn FnMut(Event),
) -> Result<(), BenchError> {
    let longest = model.config().max_position_embeddings;
    for &n in &settings.prefill_tokens {
        let name = format!("{n} token{}", if n == 1 { "" } else { "s" });
        observe(Event::Now(format!("prefill of {name}")));
        if n > longest {
            report.leave_out(Phase::Prefill, name, too_long(longest));
        } else {
            let Ok(times) = repeat(settings.budget(), |run| {
                let tokens = ids(model, run, n);
                let mut cache = model.new_cache();
                Ok::<_, Infallible>(seconds(|| model.extend(&mut [Extend { tokens: &tokens, cache: &mut cache }])))
            });
            add(report, Phase::Prefill, name, model.precision().dtype(), pass(model, 1, n, 0), times);
        }
        observe(Event::Done);
    }
    Ok(())
}

fn decode(
    model: &Model,
    settings: &Settings,
    report: &mut Report,
    observe: &mut dyn FnMut(Event),
) -> Result<(), BenchError> {
    let longest = model.config().max_position_embeddings;
    let mut contexts = settings.decode_contexts.clone();
    contexts.sort_unstable();
    let prompt = ids(model, 0, contexts.iter().copied().filter(|c| *c <= longest).max().unwrap_or(0));
    let mut cache = model.new_cache();
    for context in contexts {
        let before = context.saturating_sub(1);
        for &batch in &settings.decode_batches {
            let name = format!("context {context}, batch {batch}");
            observe(Event::Now(format!("decode at {name}")));
            match room(model, context, batch) {
                Err(reason) => report.leave_out(Phase::Decode, name, reason),
                Ok(()) => {
                    for piece in prompt[cache.len()..before].chunks(CHUNK) {
                        model.extend(&mut [Extend { tokens: piece, cache: &mut cache }]);
                    }
                    let times = decode_steps(model, settings, &mut cache, batch);
                    add(report, Phase::Decode, name, model.precision().dtype(), pass(model, batch, 1, before), times);
                }
            }
            observe(Event::Done);
        }
    }
    Ok(())
}

/// Whether the model has the context and the machine the memory for its caches; else why not.
fn room(model: &Model, context: usize, batch: usize) -> Result<(), String> {
    let longest = model.config().max_position_embeddings;
    if context > longest {
        return Err(too_long(longest));
    }
    let per_token = model.config().cache_numbers(model.mla_form()) * model.precision().dtype().size() as u64;
    let needed = per_token * (context * (batch + 1)) as u64;
    check_free("the caches", needed).map_err(|error| error.to_string())
}

fn too_long(longest: usize) -> String {
    format!("the model's longest context is {longest} tokens")
}

/// `batch` sequences that all continue `cache`, which is left as it was.
fn decode_steps(model: &Model, settings: &Settings, cache: &mut KvCache, batch: usize) -> Times {
    let before = cache.len();
    let mut others = vec![cache.clone(); batch - 1];
    let Ok(times) = repeat(settings.budget(), |run| {
        let tokens = ids(model, run, batch);
        let caches = std::iter::once(&mut *cache).chain(&mut others);
        let mut sequences: Vec<_> =
            caches.zip(tokens.chunks(1)).map(|(cache, tokens)| Extend { tokens, cache }).collect();
        let taken = seconds(|| model.extend(&mut sequences));
        sequences.iter_mut().for_each(|s| s.cache.truncate(before));
        Ok::<_, Infallible>(taken)
    });
    times
}

fn train(
    model: Model,
    settings: &Settings,
    report: &mut Report,
    observe: &mut dyn FnMut(Event),
) -> Result<(), BenchError> {
    let length = settings.train_length.min(model.config().max_position_embeddings);
    let sequences = settings.train_sequences;
    let name = format!("{sequences} x {length} tokens");
    observe(Event::Now(format!("training step of {name}")));
    let dtype = model.precision().dtype();
    match trainable(&model, sequences, length) {
        Err(reason) => report.leave_out(Phase::Train, name, reason),
        Ok(()) => {
            let account = model.config().account();
            let tokens = sequences * length;
            let work = Work {
                tokens: Some(tokens),
                flop: account.training_flop_per_token(length).total() * tokens as f64,
                bytes: account.step_bytes(format_of(model.precision())),
            };
            // As `jevons train` does.
            jevons_sys::keep_freed_memory();
            let mut trainer = trainer(model, sequences);
            let times = repeat(settings.budget(), |run| {
                let row = |i: usize| {
                    let mut tokens = ids(&trainer.model, run * sequences + i, length + 1);
                    let targets = tokens.split_off(1);
                    tokens.extend(&targets[..length - 1]);
                    TrainRow { tokens, targets, lengths: vec![length] }
                };
                let rows: Vec<_> = (0..sequences).map(row).collect();
                let mut result = Ok(());
                let taken = seconds(|| result = trainer.step(&rows, 1e-5).map(drop));
                result.map(|()| taken)
            })?;
            add(report, Phase::Train, name, dtype, work, times);
        }
    }
    observe(Event::Done);
    Ok(())
}

/// Whether a step of this size can be taken here; else why not.
fn trainable(model: &Model, sequences: usize, length: usize) -> Result<(), String> {
    if model.mla_form() == MlaForm::Absorbed {
        return Err("absorbed latent attention is for inference only; try --mla expanded".into());
    }
    let shape = StepShape {
        sequences,
        length,
        micro_batches: 1,
        dtype: model.precision().dtype(),
        moments: Dtype::F32,
        keep: Keep::All,
        mtp: false,
    };
    let estimate = estimate(model.config(), model.config().total_parameters() as usize, shape);
    let needed = estimate.total() - estimate.weights - estimate.process;
    check_free("the training step", needed as u64).map_err(|error| error.to_string())
}

fn trainer(model: Model, sequences: usize) -> Trainer {
    let masters = model.specs().iter().enumerate().map(|(i, spec)| {
        // Selection biases take no gradient.
        (!spec.is_always_f32()).then(|| state::values(&model, ParamId(i)))
    });
    let optimizer = Optimizer::new(masters.collect(), Dtype::F32);
    let settings = StepSettings::new(sequences);
    Trainer::new(model, optimizer, settings)
}

/// Token ids below the vocabulary's size; others in each run.
fn ids(model: &Model, run: usize, n: usize) -> Vec<u32> {
    let vocab = model.config().vocab_size as u64;
    let id = |i: usize| {
        let word = philox4x32([i as u32, run as u32, 0, 1], [SEED as u32, 0])[0];
        ((u64::from(word) * vocab) >> 32) as u32
    };
    (0..n).map(id).collect()
}
