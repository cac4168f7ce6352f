//! Writing checkpoints: streamed, never a part of one in place of a whole one.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet},
    io::{self, Write},
    path::Path,
};

use half::bf16;
use jevons_kernels::formats::{block_scale, to_e4m3};
use jevons_sys::atomic;
use serde_json::{Map, Value, json};

use super::{CheckpointError, SINGLE, StoredDtype, scale_name};
use crate::{
    Config,
    account::Component,
    config::{Quantization, ScaleFormat, TensorSpec},
};

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorOut {
    /// Published name.
    pub name: String,
    /// Format that its bytes will be in.
    pub dtype: StoredDtype,
    /// Row-major.
    pub shape: Vec<usize>,
}

impl TensorOut {
    /// Bytes that the tensor takes in the file.
    pub(crate) fn bytes(&self) -> u64 {
        let bits = self.shape.iter().fold(self.dtype.bitsize() as u64, |n, &d| n * d as u64);
        assert!(bits.is_multiple_of(8), "`{}` does not fill whole bytes", self.name);
        bits / 8
    }
}

/// Format of the weights of a saved model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaveDtype {
    /// Exact.
    F32,
    /// Rounded to nearest even; the gate's selection biases stay f32, as in published checkpoints.
    Bf16,
    /// Linears in E4M3 with a scale for each block of 128 × 128, as DeepSeek publishes; the rest as in [`SaveDtype::Bf16`].
    Fp8(ScaleFormat),
}

impl SaveDtype {
    /// What is written of a tensor that is called `name`.
    fn of(self, spec: &TensorSpec, name: &str) -> Vec<(Part, TensorOut)> {
        let out = |name: &str, dtype, shape: &[usize]| TensorOut { name: name.into(), dtype, shape: shape.into() };
        match (self, &spec.shape[..]) {
            (Self::Fp8(format), &[n, k]) if Component::in_fp8(&spec.name) => {
                let scales = [n.div_ceil(Quantization::BLOCK), k.div_ceil(Quantization::BLOCK)];
                vec![
                    (Part::Codes(format), out(name, StoredDtype::F8_E4M3, &spec.shape)),
                    (Part::Scales(format), out(&scale_name(name), StoredDtype::F32, &scales)),
                ]
            }
            (Self::Bf16 | Self::Fp8(_), shape) if !spec.is_always_f32() => {
                vec![(Part::Values, out(name, StoredDtype::BF16, shape))]
            }
            (_, shape) => vec![(Part::Values, out(name, StoredDtype::F32, shape))],
        }
    }

    /// As in config.json.
    fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 | Self::Fp8(_) => "bfloat16",
        }
    }
}

/// What a written tensor is of the model's.
#[derive(Clone, Copy)]
enum Part {
    Values,
    Codes(ScaleFormat),
    Scales(ScaleFormat),
}

/// Writes one safetensors file, or leaves `path` as it was.
///
/// `data` is called once for each tensor with its number in `tensors` and writes its bytes, little-endian. The wider
/// formats come first, so that every tensor is aligned; otherwise the order is that of `tensors`. Memory does not grow
/// with the file.
///
/// # Errors
/// [`CheckpointError::Duplicate`] for a name given twice, [`CheckpointError::Write`] for whatever the system or `data`
/// says.
///
/// # Panics
/// If `data` writes more or fewer bytes than format and shape ask.
pub fn write_safetensors(
    path: impl AsRef<Path>,
    metadata: &BTreeMap<String, String>,
    tensors: &[TensorOut],
    data: impl FnMut(usize, &mut dyn Write) -> io::Result<()>,
) -> Result<(), CheckpointError> {
    let path = path.as_ref();
    let writer = stream(path, metadata, tensors, data)?;
    writer.commit().map_err(|error| CheckpointError::Write { path: path.into(), error })
}

/// Saves a model in the published layout: `config.json` and `model.safetensors`, which `transformers` and others open.
///
/// `values` is asked for each tensor of [`Config::tensors`], twice if it is quantised, and returns its numbers, row-major; embedding and head once more for
/// the copies that the published layout keeps with multi-token prediction ([`Config::mtp_copies`]). Both files are on
/// the disk before the weights and then config.json are renamed into place, so only a crash between the two renames
/// leaves files of two models; a run that needs more saves into a new folder. config.json keeps all keys of
/// [`Config::raw`]; it says the new format of the weights, whether linears are quantised, and how many layers of multi-token prediction are
/// written. The folder is made if it is not there.
///
/// # Errors
/// [`CheckpointError::Write`] for whatever the system says, for instance that the disk is full; a model that was there
/// before is then still whole.
///
/// # Panics
/// If `values` returns another number of values than the shape asks.
pub fn save_model<'a>(
    dir: impl AsRef<Path>,
    config: &Config,
    dtype: SaveDtype,
    mut values: impl FnMut(&TensorSpec) -> Cow<'a, [f32]>,
) -> Result<(), CheckpointError> {
    let dir = dir.as_ref();
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |error| CheckpointError::Write { path, error }
    };
    std::fs::create_dir_all(dir).map_err(failed(dir))?;
    let specs = config.tensors();
    let copies = config.mtp_copies();
    let of = |name: &str| specs.iter().find(|spec| spec.name == name).expect("a tensor of every model");
    let (parts, outs): (Vec<(&TensorSpec, Part)>, Vec<TensorOut>) = specs
        .iter()
        .map(|spec| (spec, &spec.name))
        .chain(copies.iter().map(|(name, original)| (of(original), name)))
        .flat_map(|(spec, name)| dtype.of(spec, name).into_iter().map(move |(part, out)| ((spec, part), out)))
        .unzip();
    let metadata = BTreeMap::from([("format".into(), "pt".into())]);
    let weights = stream(&dir.join(SINGLE), &metadata, &outs, |i, out| {
        let (spec, part) = parts[i];
        let values = values(spec);
        assert_eq!(values.len(), spec.elements(), "`{}` is {:?}", spec.name, spec.shape);
        match part {
            Part::Values => write_values(&values, outs[i].dtype, out),
            Part::Codes(format) => write_codes(&values, spec.shape[1], format, out),
            Part::Scales(format) => write_values(&scales(&values, spec.shape[1], format), StoredDtype::F32, out),
        }
    })?;

    let config_path = dir.join("config.json");
    let mut config_file = atomic::Writer::create(&config_path).map_err(failed(&config_path))?;
    let text = Config { raw: saved_keys(config, dtype), ..config.clone() }.to_json();
    config_file.write_all(text.as_bytes()).and_then(|()| config_file.finish()).map_err(failed(&config_path))?;

    // What can fail is done; two renames remain.
    weights.commit().map_err(failed(&dir.join(SINGLE)))?;
    config_file.commit().map_err(failed(&config_path))
}

/// The keys of config.json as they fit what was written.
fn saved_keys(config: &Config, dtype: SaveDtype) -> Map<String, Value> {
    let mut raw = config.raw.clone();
    let name = if raw.contains_key("dtype") { "dtype" } else { "torch_dtype" };
    raw.insert(name.into(), dtype.torch_name().into());
    if name == "dtype" && raw.contains_key("torch_dtype") {
        raw.insert("torch_dtype".into(), dtype.torch_name().into());
    }
    for key in ["num_nextn_predict_layers", "num_mtp_layers"] {
        if let Some(layers) = raw.get_mut(key) {
            *layers = config.num_nextn_predict_layers.into();
        }
    }
    match dtype {
        SaveDtype::Fp8(scale_format) => {
            raw.insert("quantization_config".into(), Quantization { scale_format }.to_json());
        }
        SaveDtype::F32 | SaveDtype::Bf16 => {
            raw.shift_remove("quantization_config");
        }
    }
    raw
}

/// Everything but the last step: the file is whole, on the disk, and not in place.
fn stream(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    tensors: &[TensorOut],
    mut data: impl FnMut(usize, &mut dyn Write) -> io::Result<()>,
) -> Result<atomic::Writer, CheckpointError> {
    let mut seen = HashSet::new();
    if let Some(twice) = tensors.iter().find(|t| t.name == "__metadata__" || !seen.insert(t.name.as_str())) {
        return Err(CheckpointError::Duplicate { path: path.into(), name: twice.name.clone(), other: path.into() });
    }
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(tensors[i].dtype.bitsize())); // Stable.

    let mut write = || -> io::Result<atomic::Writer> {
        let mut out = atomic::Writer::create(path)?;
        let header = header(metadata, tensors, &order);
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        for &i in &order {
            let mut counted = Counted { out: &mut out, bytes: 0 };
            data(i, &mut counted)?;
            assert_eq!(counted.bytes, tensors[i].bytes(), "bytes of `{}`", tensors[i].name);
        }
        out.finish()?;
        Ok(out)
    };
    write().map_err(|error| CheckpointError::Write { path: path.into(), error })
}

/// The JSON, filled up with spaces to a multiple of 8 bytes.
fn header(metadata: &BTreeMap<String, String>, tensors: &[TensorOut], order: &[usize]) -> Vec<u8> {
    let mut table = Map::new();
    if !metadata.is_empty() {
        table.insert("__metadata__".into(), json!(metadata));
    }
    let mut begin = 0;
    for &i in order {
        let tensor = &tensors[i];
        let end = begin + tensor.bytes();
        let entry = json!({
            "dtype": tensor.dtype.to_string(),
            "shape": tensor.shape,
            "data_offsets": [begin, end],
        });
        table.insert(tensor.name.clone(), entry);
        begin = end;
    }
    let mut json = serde_json::to_vec(&table).expect("a JSON map always prints");
    json.resize(json.len().next_multiple_of(8), b' ');
    json
}

fn write_values(values: &[f32], dtype: StoredDtype, out: &mut dyn Write) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(1 << 16);
    for chunk in values.chunks(1 << 14) {
        bytes.clear();
        match dtype {
            StoredDtype::F32 => bytes.extend(chunk.iter().flat_map(|x| x.to_le_bytes())),
            StoredDtype::BF16 => bytes.extend(chunk.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes())),
            other => unreachable!("a model is never saved in {other}"),
        }
        out.write_all(&bytes)?;
    }
    Ok(())
}

/// The scale of each block of a matrix of `k` columns, `[⌈N / 128⌉, ⌈K / 128⌉]`.
fn scales(values: &[f32], k: usize, format: ScaleFormat) -> Vec<f32> {
    let largest = |block: usize, rows: &[f32]| {
        let columns = block * Quantization::BLOCK..k.min((block + 1) * Quantization::BLOCK);
        rows.chunks(k).flat_map(|row| &row[columns.clone()]).fold(0.0, |max: f32, x| max.max(x.abs()))
    };
    let rows = values.chunks((k * Quantization::BLOCK).max(1));
    rows.flat_map(|rows| {
        (0..k.div_ceil(Quantization::BLOCK)).map(move |block| block_scale(largest(block, rows), format))
    })
    .collect()
}

/// E4M3 codes under these scales.
fn write_codes(values: &[f32], k: usize, format: ScaleFormat, out: &mut dyn Write) -> io::Result<()> {
    for rows in values.chunks((k * Quantization::BLOCK).max(1)) {
        let scales = scales(rows, k, format);
        let code = |(i, x): (usize, &f32)| to_e4m3(x / scales[i % k / Quantization::BLOCK]);
        out.write_all(&rows.iter().enumerate().map(code).collect::<Vec<_>>())?;
    }
    Ok(())
}

/// Counts what a caller's function writes.
struct Counted<'a> {
    out: &'a mut atomic::Writer,
    bytes: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
