//! Stored bytes to numbers.

use std::path::Path;

use half::f16;

use super::{CheckpointError, StoredDtype};

const FLOATS: &str = "BF16, F16 or F32";

/// A tensor where it lies in the file.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Published name.
    pub name: &'a str,
    /// Format of the numbers.
    pub dtype: StoredDtype,
    /// Row-major.
    pub shape: &'a [usize],
    /// Little-endian, not necessarily aligned.
    pub bytes: &'a [u8],
    /// The file, for messages.
    pub path: &'a Path,
}

impl TensorView<'_> {
    /// How many numbers.
    pub fn elements(&self) -> usize {
        self.shape.iter().product() // Checked when the file was opened.
    }

    /// The numbers as f32: exact from F32, BF16 and F16.
    ///
    /// # Errors
    /// [`CheckpointError::Dtype`] for any other format. FP8 needs its scales: [`super::Checkpoint::read_f32`].
    pub fn to_f32(&self) -> Result<Vec<f32>, CheckpointError> {
        if !matches!(self.dtype, StoredDtype::F32 | StoredDtype::BF16 | StoredDtype::F16) {
            return Err(self.wrong_dtype(FLOATS));
        }
        let mut out = vec![0.0; self.elements()];
        floats(self.dtype, self.bytes, &mut out);
        Ok(out)
    }

    /// The numbers as i64, from any integer format: token ids, for instance.
    ///
    /// # Errors
    /// [`CheckpointError::Dtype`] for any other format, [`CheckpointError::Value`] for a U64 from 2⁶³ on.
    pub fn to_i64(&self) -> Result<Vec<i64>, CheckpointError> {
        let b = self.bytes;
        Ok(match self.dtype {
            StoredDtype::I64 => map(b, i64::from_le_bytes),
            StoredDtype::I32 => map(b, |b| i32::from_le_bytes(b).into()),
            StoredDtype::I16 => map(b, |b| i16::from_le_bytes(b).into()),
            StoredDtype::I8 => map(b, |b| i8::from_le_bytes(b).into()),
            StoredDtype::U32 => map(b, |b| u32::from_le_bytes(b).into()),
            StoredDtype::U16 => map(b, |b| u16::from_le_bytes(b).into()),
            StoredDtype::U8 => map(b, |b| u8::from_le_bytes(b).into()),
            StoredDtype::U64 => {
                let wide = map(b, u64::from_le_bytes);
                if let Some(big) = wide.iter().find(|&&n| i64::try_from(n).is_err()) {
                    return Err(CheckpointError::Value {
                        path: self.path.into(),
                        name: self.name.into(),
                        found: big.to_string(),
                        expected: "a number below 2^63",
                    });
                }
                wide.into_iter().map(|n| n as i64).collect()
            }
            _ => return Err(self.wrong_dtype("a format of whole numbers (I64, I32, U32, ...)")),
        })
    }

    pub(super) fn wrong_dtype(&self, expected: &'static str) -> CheckpointError {
        CheckpointError::Dtype { path: self.path.into(), name: self.name.into(), found: self.dtype, expected }
    }
}

/// F32, BF16 or F16 to f32.
pub(super) fn floats(dtype: StoredDtype, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        StoredDtype::F32 => widen(bytes, out, f32::from_le_bytes),
        StoredDtype::BF16 => widen(bytes, out, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
        StoredDtype::F16 => widen(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
        other => unreachable!("{other} is no float of this list"),
    }
}

fn widen<const N: usize>(bytes: &[u8], out: &mut [f32], f: impl Fn([u8; N]) -> f32) {
    let (chunks, rest) = bytes.as_chunks::<N>();
    assert!(rest.is_empty() && chunks.len() == out.len());
    out.iter_mut().zip(chunks).for_each(|(x, bytes)| *x = f(*bytes));
}

/// The length was checked against format and shape when the file was opened, so no bytes remain.
fn map<const N: usize, T>(bytes: &[u8], f: impl Fn([u8; N]) -> T) -> Vec<T> {
    let (chunks, rest) = bytes.as_chunks::<N>();
    assert!(rest.is_empty());
    chunks.iter().map(|&chunk| f(chunk)).collect()
}
