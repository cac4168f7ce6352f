//! From one checkpoint into another: formats of the weights, shards, layers of multi-token prediction.
//!
//! A tensor is read, converted and written in bounded pieces, and pages of mapped files are given back, so memory does not grow
//! with the weights; only names and shapes of all tensors are held. A tensor whose format stays is copied byte by byte, and
//! config.json keeps every byte but those of the keys that must change. The target appears whole or not at all.

mod config_text;
mod error;
mod llama2c;
mod pieces;
mod plan;
mod staging;

pub use error::ConvertError;

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io::{self, Write},
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use jevons_sys::{atomic, machine::Disk};
use serde::Serialize;
use serde_json::{Map, Value, json};

use self::{
    config_text::Edit,
    llama2c::Llama2c,
    pieces::Failure,
    plan::{How, Item, Plan},
    staging::Staging,
};
use crate::{
    checkpoint::{Checkpoint, CheckpointError, INDEX, Rows, SINGLE, Stored, TensorOut, write_safetensors},
    config::{Config, ConfigError, Quantization, ScaleFormat},
};

/// Bytes of scales that are kept from one pass over a shard to the next; beyond that they are computed again. Those of 64 GB
/// of FP8 weights.
const MAX_SCALES: usize = 16 << 20;
/// Room for headers, index and rounding when the disk is asked.
const SLACK_BYTES: u64 = 1 << 20;

/// What the weights become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// FP8 becomes `code · scale`.
    F32,
    /// Rounded to nearest even; the gate's selection bias stays as it is.
    Bf16,
    /// The linears of the layers become E4M3 with one F32 scale for each block of 128 × 128. What published checkpoints keep
    /// becomes BF16: embedding, head, norms, gate, `eh_proj`. What is FP8 already stays as it is.
    Fp8,
}

/// How to convert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// `None`: every tensor keeps its format, and its bytes.
    pub to: Option<Target>,
    /// For FP8. `None`: as the source if it is FP8, else [`ScaleFormat::F32`].
    pub scale: Option<ScaleFormat>,
    /// Largest number of bytes of tensors in a file; one tensor that is larger has a file of its own.
    pub shard_bytes: u64,
    /// Leave out layers of multi-token prediction.
    pub drop_mtp: bool,
    /// Replace a model folder that is there.
    pub replace: bool,
}

impl Default for Options {
    /// Keeps formats and layers, in shards of 5 GB, and replaces nothing.
    fn default() -> Self {
        Self { to: None, scale: None, shard_bytes: 5_000_000_000, drop_mtp: false, replace: false }
    }
}

/// How far a conversion is, in bytes of tensors written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// So far, those of an interrupted run included.
    pub done_bytes: u64,
    /// In the end.
    pub total_bytes: u64,
}

/// What a conversion did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Files with weights, in order.
    pub files: Vec<String>,
    /// Of these, the files that an interrupted run had written.
    pub resumed_files: usize,
    /// Tensors written.
    pub tensors: usize,
    /// Bytes of tensors read from.
    pub source_bytes: u64,
    /// Bytes of tensors written.
    pub bytes: u64,
    /// Tensors of each stored format.
    pub formats: BTreeMap<String, usize>,
    /// Tensors of multi-token prediction that were left out.
    pub dropped_tensors: usize,
    /// Keys of config.json that were changed.
    pub config_keys: Vec<&'static str>,
    /// Other files that were copied.
    pub side_files: Vec<String>,
    /// Files that were not: code, weights of other tools, folders.
    pub left_out: Vec<String>,
}

/// Converts the model folder `source` into the new folder `target`.
///
/// `watch` is called between pieces; on [`ControlFlow::Break`] the conversion stops, and the same call goes on later.
///
/// # Errors
/// [`ConvertError`]; the target is then as it was. What an interrupted or failed write had finished is kept in a hidden folder
/// beside the target for the next run.
pub fn convert(
    source: &Path,
    target: &Path,
    options: &Options,
    watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Summary, ConvertError> {
    refuse_source(source, target)?;
    let config_path = source.join("config.json");
    let (text, keys) = Config::keys_of_file(&config_path)?;
    let in_config = |error| ConfigError::File { path: config_path.clone(), error: Box::new(error) };
    let quantization = Quantization::from_config(&keys).map_err(in_config)?;
    let scale = match (options.scale, quantization) {
        (Some(asked), Some(there)) if options.to == Some(Target::Fp8) && asked != there.scale_format => {
            return Err(ConvertError::Requantise { path: source.into() });
        }
        (asked, there) => asked.or(there.map(|q| q.scale_format)).unwrap_or(ScaleFormat::F32),
    };
    let layers = match keys.get("num_hidden_layers").map(Value::as_u64) {
        Some(Some(layers)) => Some(layers),
        _ if options.drop_mtp => {
            let (key, family) = ("num_hidden_layers".into(), "leaving out multi-token prediction".into());
            let error = ConfigError::Missing { key, family, expected: "the number of layers before it".into() };
            return Err(in_config(error).into());
        }
        _ => None,
    };
    let checkpoint = Checkpoint::open(source)?;
    let is_dropped = |name: &str| options.drop_mtp && layers.is_some_and(|layers| plan::layer(name) >= Some(layers));
    let mut plan = Plan { to: options.to, scale, groups: Vec::new() };
    let (mut dropped_tensors, mut source_bytes) = (0, 0);
    for view in checkpoint.tensors() {
        if is_dropped(view.name) {
            dropped_tensors += 1;
        } else {
            source_bytes += view.bytes.len() as u64;
            plan.add(&checkpoint, &view)?;
        }
    }
    let edits = edits(&keys, options, Quantization { scale_format: scale });
    let (side_files, left_out) = side_files(source)?;
    let stamps: Vec<Value> = checkpoint.files().map(stamp).collect::<Result<_, _>>()?;
    let job = Job {
        source: &checkpoint,
        groups: plan.groups,
        metadata: checkpoint.metadata().clone(),
        config: config_text::edit(&text, &edits),
        side_files,
        identity: json!([source.canonicalize().ok(), stamps]),
    };
    let summary = run(job, target, options, watch)?;
    let config_keys = edits.iter().map(Edit::key).collect();
    Ok(Summary { source_bytes, dropped_tensors, config_keys, left_out, ..summary })
}

/// Makes a model folder of a model file of llama2.c, version 0, in F32 unless [`Options::to`] says otherwise. `side_files` are
/// written beside the weights, for instance a tokenizer.json.
///
/// # Errors
/// [`ConvertError`]; [`ConvertError::Llama2c`] for a file that is none.
pub fn import_llama2c(
    file: &Path,
    side_files: Vec<(String, Vec<u8>)>,
    target: &Path,
    options: &Options,
    watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Summary, ConvertError> {
    refuse_source(file, target)?;
    let model = Llama2c::open(file)?;
    let text = model.config();
    let config = Config::from_json(&text)?;
    let scale = options.scale.unwrap_or(ScaleFormat::F32);
    let mut plan = Plan { to: options.to, scale, groups: Vec::new() };
    let mut source_bytes = 0;
    for name in model.names() {
        let stored = Source::stored(&model, name).expect("its own name");
        source_bytes += stored.view.bytes.len() as u64;
        plan.add(&model, &stored.view)?;
    }
    let edits = edits(&config.raw, options, Quantization { scale_format: scale });
    let job = Job {
        source: &model,
        groups: plan.groups,
        metadata: BTreeMap::new(),
        config: config_text::edit(&text, &edits),
        side_files: side_files
            .into_iter()
            .map(|(name, bytes)| SideFile { name, content: Content::Bytes(bytes) })
            .collect(),
        identity: json!([file.canonicalize().ok(), stamp(file)?]),
    };
    Ok(Summary { source_bytes, ..run(job, target, options, watch)? })
}

/// Tensors to read from.
trait Source: Sync {
    fn stored(&self, name: &str) -> Option<Stored<'_>>;
    /// The tensor's numbers, if it holds numbers that can be read as f32.
    fn rows(&self, name: &str) -> Result<Rows<'_>, CheckpointError>;
    /// Whether the rows come in another order than they are stored in.
    fn is_reordered(&self, name: &str) -> bool;
}

impl Source for Checkpoint<'_> {
    fn stored(&self, name: &str) -> Option<Stored<'_>> {
        Checkpoint::stored(self, name)
    }

    fn rows(&self, name: &str) -> Result<Rows<'_>, CheckpointError> {
        let shape = self.get(name).map(|view| view.shape).unwrap_or_default();
        Checkpoint::rows(self, name, shape)
    }

    fn is_reordered(&self, _: &str) -> bool {
        false
    }
}

/// What must change in config.json.
fn edits(keys: &Map<String, Value>, options: &Options, quantization: Quantization) -> Vec<Edit> {
    let mut edits = Vec::new();
    let mut set = |key: &'static str, value: Value| {
        if keys.get(key) != Some(&value) {
            edits.push(Edit::Set(key, value));
        }
    };
    let dtype = match options.to {
        None => None,
        Some(Target::F32) => Some("float32"),
        Some(Target::Bf16 | Target::Fp8) => Some("bfloat16"),
    };
    if let Some(dtype) = dtype {
        let names = ["torch_dtype", "dtype"].into_iter().filter(|key| keys.contains_key(*key));
        let names: Vec<_> = names.collect();
        names.iter().chain(["torch_dtype"].iter().filter(|_| names.is_empty())).for_each(|key| set(key, dtype.into()));
    }
    if options.drop_mtp {
        let names = ["num_nextn_predict_layers", "num_mtp_layers"].into_iter().filter(|key| keys.contains_key(*key));
        names.for_each(|key| set(key, 0.into()));
    }
    if options.to == Some(Target::Fp8) && Quantization::from_config(keys).ok().flatten() != Some(quantization) {
        set("quantization_config", quantization.to_json());
    }
    if matches!(options.to, Some(Target::F32 | Target::Bf16)) && keys.contains_key("quantization_config") {
        edits.push(Edit::Remove("quantization_config"));
    }
    edits
}

/// A file beside config.json and weights.
struct SideFile {
    name: String,
    content: Content,
}

enum Content {
    /// Of this file.
    Copy(PathBuf),
    Bytes(Vec<u8>),
}

/// The files of a model folder to be copied, and those not to be.
fn side_files(folder: &Path) -> Result<(Vec<SideFile>, Vec<String>), ConvertError> {
    let read = |error| ConvertError::Read { path: folder.into(), error };
    let (mut copied, mut left_out) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(folder).map_err(read)? {
        let path = entry.map_err(read)?.path();
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
        let weights = ["bin", "pt", "pth", "ckpt", "gguf", "onnx", "h5", "msgpack", "npz", "pkl", "pickle"];
        if name == "config.json" || extension == "safetensors" || name.ends_with(".safetensors.index.json") {
            continue; // Written anew.
        } else if name.starts_with('.') || !path.is_file() || extension == "py" || weights.contains(&&*extension) {
            left_out.push(name.to_owned());
        } else {
            copied.push(SideFile { name: name.to_owned(), content: Content::Copy(path.clone()) });
        }
    }
    copied.sort_by(|a, b| a.name.cmp(&b.name));
    left_out.sort();
    Ok((copied, left_out))
}

/// What tells whether a file is still the same.
fn stamp(path: &Path) -> Result<Value, ConvertError> {
    let metadata = fs::metadata(path).map_err(|error| ConvertError::Read { path: path.into(), error })?;
    let modified = metadata.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
    Ok(json!([
        path.file_name().map(|n| n.to_string_lossy()),
        metadata.len(),
        modified.map(|t| t.as_nanos().to_string())
    ]))
}

/// The target must not be the source, nor hold it.
fn refuse_source(source: &Path, target: &Path) -> Result<(), ConvertError> {
    match (source.canonicalize(), target.canonicalize()) {
        (Ok(from), Ok(to)) if from.starts_with(&to) => Err(ConvertError::Source { path: target.into() }),
        _ => Ok(()),
    }
}

/// All that there is to write.
struct Job<'a> {
    source: &'a dyn Source,
    groups: Vec<Vec<Item>>,
    metadata: BTreeMap<String, String>,
    config: String,
    side_files: Vec<SideFile>,
    /// Of the source.
    identity: Value,
}

fn run(
    mut job: Job<'_>,
    target: &Path,
    options: &Options,
    watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Summary, ConvertError> {
    let shards = plan::shards(std::mem::take(&mut job.groups), options.shard_bytes)?;
    let names: Vec<String> = match shards.len() {
        1 => vec![SINGLE.into()],
        n => (1..=n).map(|i| format!("model-{i:05}-of-{n:05}.safetensors")).collect(),
    };
    job.metadata.entry("format".into()).or_insert_with(|| "pt".into());
    let identity = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "source": job.identity,
        "to": format!("{:?} {:?}", options.to, options.scale),
        "metadata": job.metadata,
        "shards": shards.iter().zip(&names).map(|(s, name)| (name, s.len(), plan::bytes(s))).collect::<Vec<_>>(),
    });
    let staging = Staging::open(target, options.replace, &identity.to_string())?;
    match write(&job, &shards, &names, &staging, watch) {
        Ok(summary) => {
            staging.commit()?;
            Ok(summary)
        }
        // What is written is right, and may go on.
        Err(error) if is_of_the_disk(&error) && names.iter().any(|name| staging.folder().join(name).is_file()) => {
            Err(error)
        }
        Err(error @ ConvertError::Interrupted { .. }) => Err(error),
        Err(error) => {
            staging.discard();
            Err(error)
        }
    }
}

/// Not of the source.
fn is_of_the_disk(error: &ConvertError) -> bool {
    matches!(
        error,
        ConvertError::Write { .. }
            | ConvertError::NoSpace { .. }
            | ConvertError::Checkpoint(CheckpointError::Write { .. })
    )
}

fn write(
    job: &Job<'_>,
    shards: &[Vec<Item>],
    names: &[String],
    staging: &Staging,
    watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Summary, ConvertError> {
    let folder = staging.folder();
    let failed = |error| ConvertError::Write { path: folder.into(), error };
    let mut expected: Vec<&str> = names.iter().map(String::as_str).collect();
    expected.extend(job.side_files.iter().map(|f| f.name.as_str()));
    staging.keep_only(&expected).map_err(failed)?;

    let is_done: Vec<bool> = names.iter().map(|name| folder.join(name).is_file()).collect();
    let total_bytes = shards.iter().map(|s| plan::bytes(s)).sum();
    let mut done_bytes = shards.iter().zip(&is_done).filter(|(_, done)| **done).map(|(s, _)| plan::bytes(s)).sum();
    let side_bytes = |file: &SideFile| match &file.content {
        Content::Copy(path) => fs::metadata(path).map_or(0, |m| m.len()),
        Content::Bytes(bytes) => bytes.len() as u64,
    };
    let needed = total_bytes - done_bytes + job.side_files.iter().map(side_bytes).sum::<u64>() + SLACK_BYTES;
    if let Some(available) = Disk::of(folder).available_bytes.filter(|n| *n < needed) {
        return Err(ConvertError::NoSpace { path: folder.into(), needed, available });
    }

    let mut meter = Meter { done_bytes: &mut done_bytes, total_bytes, watch };
    for ((items, name), _) in shards.iter().zip(names).zip(&is_done).filter(|(_, done)| !**done) {
        write_shard(job, items, &folder.join(name), &mut meter)?;
    }
    if let [_, _, ..] = shards {
        let map: BTreeMap<&str, &str> =
            shards.iter().zip(names).flat_map(|(s, name)| s.iter().map(|item| (&*item.out.name, &**name))).collect();
        let index = json!({ "metadata": { "total_size": total_bytes }, "weight_map": map });
        let text = serde_json::to_string_pretty(&index).expect("JSON prints") + "\n";
        atomic::write(folder.join(INDEX), text.as_bytes()).map_err(failed)?;
    }
    for file in &job.side_files {
        write_side_file(&file.content, &folder.join(&file.name))?;
    }
    atomic::write(folder.join("config.json"), job.config.as_bytes()).map_err(failed)?;

    let mut formats = BTreeMap::<String, usize>::new();
    shards.iter().flatten().for_each(|item| *formats.entry(item.out.dtype.to_string()).or_default() += 1);
    Ok(Summary {
        files: names.to_vec(),
        resumed_files: is_done.iter().filter(|done| **done).count(),
        tensors: shards.iter().map(Vec::len).sum(),
        source_bytes: 0,
        bytes: total_bytes,
        formats,
        dropped_tensors: 0,
        config_keys: Vec::new(),
        side_files: job.side_files.iter().map(|f| f.name.clone()).collect(),
        left_out: Vec::new(),
    })
}

fn write_side_file(content: &Content, target: &Path) -> Result<(), ConvertError> {
    let failed = |error| ConvertError::Write { path: target.into(), error };
    match content {
        Content::Bytes(bytes) => atomic::write(target, bytes).map_err(failed),
        Content::Copy(path) => {
            let mut from = File::open(path).map_err(|error| ConvertError::Read { path: path.clone(), error })?;
            let mut copy = || {
                let mut writer = atomic::Writer::create(target)?;
                io::copy(&mut from, &mut writer)?;
                writer.commit()
            };
            copy().map_err(failed)
        }
    }
}

fn write_shard(job: &Job<'_>, items: &[Item], path: &Path, meter: &mut Meter<'_>) -> Result<(), ConvertError> {
    let outs: Vec<TensorOut> = items.iter().map(|item| item.out.clone()).collect();
    let mut scales = ScaleCache::default();
    let mut failure = None;
    let written = write_safetensors(path, &job.metadata, &outs, |i, out| {
        let mut out = Metered { out, meter, stopped: false };
        let result = write_tensor(job.source, &items[i], &mut scales, &mut out);
        match result {
            Ok(()) => Ok(()),
            Err(Failure::Write(error)) if !out.stopped => Err(error),
            Err(Failure::Write(error)) => {
                failure = Some(ConvertError::Interrupted { path: path.parent().unwrap_or(path).into() });
                Err(error)
            }
            Err(Failure::Source(error)) => {
                failure = Some(error.into());
                Err(io::Error::other("the source is wrong"))
            }
        }
    });
    match failure {
        Some(error) => Err(error),
        None => Ok(written?),
    }
}

fn write_tensor(source: &dyn Source, item: &Item, cache: &mut ScaleCache, out: &mut dyn Write) -> Result<(), Failure> {
    match item.how {
        How::Copy => pieces::copy(&source.stored(&item.source).expect("planned from it"), out),
        How::Floats => pieces::floats(&source.rows(&item.source)?, item.out.dtype, out),
        How::Scales(format) => {
            let scales = pieces::scales(&source.rows(&item.source)?, format)?;
            for scale in &scales {
                out.write_all(&scale.to_le_bytes())?;
            }
            cache.put(&item.source, scales);
            Ok(())
        }
        How::Codes(format) => {
            let rows = source.rows(&item.source)?;
            let scales = match cache.take(&item.source) {
                Some(scales) => scales,
                None => pieces::scales(&rows, format)?,
            };
            pieces::codes(&rows, &scales, out)
        }
    }
}

/// Scales between the two passes over a shard: F32 stands before FP8 in a file.
#[derive(Default)]
struct ScaleCache {
    scales: HashMap<String, Vec<f32>>,
    bytes: usize,
}

impl ScaleCache {
    fn put(&mut self, name: &str, scales: Vec<f32>) {
        if self.bytes + scales.len() * 4 <= MAX_SCALES {
            self.bytes += scales.len() * 4;
            self.scales.insert(name.into(), scales);
        }
    }

    fn take(&mut self, name: &str) -> Option<Vec<f32>> {
        let scales = self.scales.remove(name)?;
        self.bytes -= scales.len() * 4;
        Some(scales)
    }
}

struct Meter<'a> {
    done_bytes: &'a mut u64,
    total_bytes: u64,
    watch: &'a mut dyn FnMut(Progress) -> ControlFlow<()>,
}

/// Counts what is written, and stops when told so.
struct Metered<'a, 'm> {
    out: &'a mut dyn Write,
    meter: &'a mut Meter<'m>,
    stopped: bool,
}

impl Write for Metered<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        *self.meter.done_bytes += n as u64;
        let progress = Progress { done_bytes: *self.meter.done_bytes, total_bytes: self.meter.total_bytes };
        if (self.meter.watch)(progress).is_break() {
            self.stopped = true;
            return Err(io::Error::other("stopped"));
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
