//! `state/checkpoint.safetensors`: everything that a resumed run needs to continue with the same bits, in one file, so that it
//! is whole or not there.
//!
//! Tensors `master.NAME` (f32), `m.NAME`, `v.NAME` (f32 or bf16) for trained parameters, `frozen.NAME` (f32) for the others, selection
//! biases among them. Metadata: `step`, `recipe` (what decides the numbers, as JSON), `tokens`, and `idle`, the expert counters;
//! `linears_in_bf16`, if a run in FP8 leaves some.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use jevons_kernels::Moments;
use jevons_layers::{Param, ParamId};
use jevons_model::{
    Model,
    checkpoint::{Checkpoint, CheckpointError, StoredDtype, TensorOut, write_safetensors},
};

use crate::{
    optimizer::{Optimizer, Slot},
    recipe::Recipe,
    trainer::Trainer,
};

/// Why a state cannot be resumed.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Metadata is missing or not a number.
    #[error("{path}: `{key}` is missing or malformed in the metadata; is it a state written by `jevons train`?", path = .path.display())]
    Metadata {
        /// File.
        path: PathBuf,
        /// Key.
        key: &'static str,
    },
    /// Another recipe.
    #[error(
        "{path}: was written by another recipe, which differs in {keys}; \
         undo the change to continue this run, or start a new one in another run.folder",
        path = .path.display(), keys = .keys.join(", ")
    )]
    Recipe {
        /// File.
        path: PathBuf,
        /// Dotted keys that differ.
        keys: Vec<String>,
    },
    /// Another version's choice of linears.
    #[error(
        "{path}: fp8.linears = \"auto\" left {found} in bf16 when it was written, and {now} in this version; \
         finish the run with the version that began it, or start a new one in another run.folder",
        path = .path.display(), found = .found.as_deref().unwrap_or("no linear"), now = .now.as_deref().unwrap_or("no linear")
    )]
    Linears {
        /// File.
        path: PathBuf,
        /// Kinds of linears.
        found: Option<String>,
        /// The same now.
        now: Option<String>,
    },
}

/// What a state holds besides tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Steps taken.
    pub step: u64,
    /// Tokens seen.
    pub tokens: u64,
}

/// Writes the state of a trainer.
///
/// # Errors
/// [`CheckpointError::Write`]; the state that was there stays whole.
pub fn save(path: &Path, trainer: &Trainer, recipe: &str, tokens: u64) -> Result<(), CheckpointError> {
    let specs = trainer.model.specs();
    let mut outs = Vec::new();
    let mut data: Vec<Data<'_>> = Vec::new();
    for (i, (spec, slot)) in specs.iter().zip(&trainer.optimizer.slots).enumerate() {
        let mut out = |prefix: &str, dtype, item| {
            outs.push(TensorOut { name: format!("{prefix}.{}", spec.name), dtype, shape: spec.shape.clone() });
            data.push(item);
        };
        match slot {
            Some(slot) => {
                out("master", StoredDtype::F32, Data::Bytes(bytemuck::cast_slice(&slot.master)));
                out("m", stored(&slot.m), Data::Bytes(slot.m.bytes()));
                out("v", stored(&slot.v), Data::Bytes(slot.v.bytes()));
            }
            None => out("frozen", StoredDtype::F32, Data::Frozen(ParamId(i))),
        }
    }
    let idle = serde_json::to_string(&trainer.idle).expect("numbers always print");
    let mut metadata = BTreeMap::from([
        ("step".to_owned(), trainer.optimizer.steps.to_string()),
        ("tokens".to_owned(), tokens.to_string()),
        ("recipe".to_owned(), recipe.to_owned()),
        ("idle".to_owned(), idle),
    ]);
    metadata.extend(linears_in_bf16(&trainer.model).map(|names| ("linears_in_bf16".to_owned(), names)));
    write_safetensors(path, &metadata, &outs, |i, out| match data[i] {
        Data::Bytes(bytes) => out.write_all(bytes),
        Data::Frozen(id) => out.write_all(bytemuck::cast_slice(&values(&trainer.model, id))),
    })
}

fn linears_in_bf16(model: &Model) -> Option<String> {
    let left = model.precision().left_in_bf16(model.config());
    (!left.is_empty()).then(|| left.iter().flat_map(|l| &l.names).map(String::as_str).collect::<Vec<_>>().join(", "))
}

enum Data<'a> {
    Bytes(&'a [u8]),
    Frozen(ParamId),
}

fn stored(m: &Moments) -> StoredDtype {
    match m {
        Moments::F32(_) => StoredDtype::F32,
        Moments::Bf16(_) => StoredDtype::BF16,
    }
}

/// Compute weights of one parameter as f32, row-major.
pub fn values(model: &Model, id: ParamId) -> Vec<f32> {
    match &model.weights().params()[id.0] {
        Param::Matrix(m) => m.to_vec_f32(),
        Param::Vector(v) => v.clone(),
        Param::LatentUp(up) => up.to_vec_f32(),
    }
}

/// Reads a state into a trainer that was built from the same recipe: masters, moments, frozen values, counters.
///
/// # Errors
/// [`StateError`]; the trainer may then hold parts of the state and must not be used.
pub fn load(path: &Path, trainer: &mut Trainer, recipe: &str) -> Result<Progress, StateError> {
    let file = Checkpoint::open_file(path)?;
    let get = |key: &'static str| {
        file.metadata().get(key).ok_or_else(|| StateError::Metadata { path: path.to_path_buf(), key })
    };
    let bad = |key| StateError::Metadata { path: path.to_path_buf(), key };
    let found = get("recipe")?;
    if found != recipe {
        return Err(StateError::Recipe { path: path.to_path_buf(), keys: Recipe::changed_keys(found, recipe) });
    }
    let (found, now) = (file.metadata().get("linears_in_bf16").cloned(), linears_in_bf16(&trainer.model));
    if found != now {
        return Err(StateError::Linears { path: path.to_path_buf(), found, now });
    }
    let step: u64 = get("step")?.parse().map_err(|_| bad("step"))?;
    let tokens = get("tokens")?.parse().map_err(|_| bad("tokens"))?;
    trainer.idle = serde_json::from_str(get("idle")?).map_err(|_| bad("idle"))?;
    let specs = trainer.model.specs().to_vec();
    let Optimizer { slots, steps } = &mut trainer.optimizer;
    *steps = step;
    for (i, (spec, slot)) in specs.iter().zip(slots).enumerate() {
        let read = |prefix: &str| file.read_f32(&format!("{prefix}.{}", spec.name), &spec.shape);
        let moments = |prefix: &str, like: &Moments| {
            Ok::<_, CheckpointError>(match like {
                Moments::F32(_) => Moments::F32(read(prefix)?),
                Moments::Bf16(_) => Moments::Bf16(file.read_bf16(&format!("{prefix}.{}", spec.name), &spec.shape)?),
            })
        };
        match slot {
            Some(slot) => {
                *slot = Slot { master: read("master")?, m: moments("m", &slot.m)?, v: moments("v", &slot.v)? };
                trainer.model.set(ParamId(i), &slot.master);
            }
            None => trainer.model.set(ParamId(i), &read("frozen")?),
        }
    }
    Ok(Progress { step, tokens })
}
