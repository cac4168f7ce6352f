//! Ready batches: a safetensors tensor of token ids, used in exactly its order.

use std::path::{Path, PathBuf};

use jevons_sys::MappedFile;
use safetensors::{Dtype, SafeTensors};

use super::{DataError, Row};

/// Tokens `[steps, B, S + 1]`, i64: of each row the first `S` are inputs, the last `S` their targets.
#[derive(Debug)]
pub struct TokenTensor {
    path: PathBuf,
    map: MappedFile,
    /// Byte of the first id.
    start: usize,
    shape: [usize; 3],
}

impl TokenTensor {
    /// Opens the tensor `name` and checks that it is i64, has this batch and sequence length, and at least `steps` steps of ids
    /// below `vocab_size`.
    ///
    /// # Errors
    /// [`DataError::Read`], [`DataError::Tensor`]
    pub fn open(
        path: &Path,
        name: &str,
        steps: u64,
        [sequences, sequence_length]: [usize; 2],
        vocab_size: usize,
    ) -> Result<Self, DataError> {
        let map = MappedFile::open(path).map_err(|source| DataError::Read { path: path.into(), source })?;
        let bad = |message: String| DataError::Tensor { path: path.into(), message };
        let (start, shape) = {
            let file =
                SafeTensors::deserialize(&map).map_err(|e| bad(format!("not a usable safetensors file: {e}")))?;
            let tensor = file.tensor(name).map_err(|_| {
                let mut names = file.names();
                names.sort_unstable();
                names.truncate(10);
                bad(format!("no tensor {name:?}; it has {}; set data.tensor to one of them", names.join(", ")))
            })?;
            if tensor.dtype() != Dtype::I64 {
                return Err(bad(format!("the tensor {name:?} is {:?}; expected I64", tensor.dtype())));
            }
            let shape: [usize; 3] = tensor.shape().try_into().map_err(|_| {
                let found = tensor.shape();
                bad(format!(
                    "the tensor {name:?} has the shape {found:?}; expected [steps, batch, sequence_length + 1]"
                ))
            })?;
            (tensor.data().as_ptr() as usize - map.as_ptr() as usize, shape)
        };
        let [found_steps, b, s1] = shape;
        if b != sequences || s1 != sequence_length + 1 {
            return Err(bad(format!(
                "the tensor {name:?} has the shape {shape:?}; batch.sequences and data.sequence_length ask \
                 [steps, {sequences}, {}]",
                sequence_length + 1
            )));
        }
        if (found_steps as u64) < steps {
            return Err(bad(format!("{found_steps} steps of tokens; schedule.steps asks {steps}")));
        }
        let tensor = Self { path: path.into(), map, start, shape };
        let range = 0..vocab_size as i64;
        let wrong = tensor.ids(0..found_steps * b * s1).position(|id| !range.contains(&id));
        if let Some(i) = wrong {
            let id = tensor.ids(i..i + 1).next().expect("one id");
            let (step, row, column) = (i / (b * s1), i / s1 % b, i % s1);
            return Err(bad(format!(
                "token id {id} at [{step}, {row}, {column}]; the model's vocabulary has {vocab_size}"
            )));
        }
        Ok(tensor)
    }

    /// Steps of tokens.
    pub fn steps(&self) -> u64 {
        self.shape[0] as u64
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The rows of step `step`, from 0. Panics unless there is such a step.
    pub fn batch(&self, step: u64) -> Vec<Row> {
        assert!(step < self.steps(), "step {step} of {}", self.steps());
        let [_, b, s1] = self.shape;
        let row = |r: usize| {
            let first = (step as usize * b + r) * s1;
            let ids: Vec<u32> = self.ids(first..first + s1).map(|id| id as u32).collect();
            Row { tokens: ids[..s1 - 1].into(), targets: ids[1..].into(), lengths: vec![s1 - 1] }
        };
        (0..b).map(row).collect()
    }

    fn ids(&self, range: std::ops::Range<usize>) -> impl Iterator<Item = i64> + '_ {
        let bytes = &self.map[self.start + range.start * 8..self.start + range.end * 8];
        bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().expect("8 bytes")))
    }
}
