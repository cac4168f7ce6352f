//! A tensor read piece by piece, so that a large one is never twice in memory.

use std::ops::Range;

use jevons_kernels::formats::{from_e4m3, from_e8m0, is_nan_e4m3};

use super::{Bytes, Checkpoint, CheckpointError, StoredDtype, TensorView, convert};
use crate::config::Quantization;

const BLOCK: usize = Quantization::BLOCK;
/// The largest scale whose products with E4M3 codes are bf16 numbers, 2¹¹⁹. Published scales are near 1e-4.
const MAX_SCALE: f32 = f32::from_bits((119 + 127) << 23);

/// A tensor of the checkpoint as f32, whatever it is stored as: exact from F32, BF16 and F16; `code · scale` from block FP8,
/// the scale from wherever in the checkpoint it lies, in F32, BF16 or E8M0.
///
/// A matrix `[N, K]` has `N` rows of `K`; any other tensor counts as rows of one number.
pub struct Rows<'a> {
    stored: Stored<'a>,
    cols: usize,
    /// Of an FP8 tensor, `[⌈N / 128⌉, ⌈K / 128⌉]`.
    scales: Option<Vec<f32>>,
    order: RowOrder,
}

/// Bytes of a tensor, and the file that they can be given back to.
#[derive(Clone, Copy)]
pub(crate) struct Stored<'a> {
    pub view: TensorView<'a>,
    pub file: &'a Bytes<'a>,
}

/// Which stored row is read as row `i`.
#[derive(Clone, Copy)]
pub(crate) enum RowOrder {
    /// `i`.
    Stored,
    /// Each head of this many rows is stored as pairs (2j, 2j + 1) that turn together; it is read as (j, j + half a head).
    Halves(usize),
}

impl RowOrder {
    fn stored(self, row: usize) -> usize {
        match self {
            Self::Stored => row,
            Self::Halves(head) => {
                let (first, i) = (row / head * head, row % head);
                first + 2 * (i % (head / 2)) + i / (head / 2)
            }
        }
    }
}

impl Stored<'_> {
    /// Tells the system that these bytes of the tensor will not be read again soon, so that a mapped file takes no memory for
    /// them. They can still be read.
    pub fn release(&self, bytes: Range<usize>) {
        if let Bytes::Mapped(map) = self.file {
            let offset = self.view.bytes.as_ptr().addr() - map.as_ptr().addr();
            map.release(offset + bytes.start..offset + bytes.end);
        }
    }
}

impl Checkpoint<'_> {
    pub(crate) fn stored(&self, name: &str) -> Option<Stored<'_>> {
        let entry = &self.tensors[*self.by_name.get(name)?];
        Some(Stored { view: self.view(entry), file: &self.files[entry.file].bytes })
    }

    /// A tensor of this shape, to be read in pieces.
    ///
    /// # Errors
    /// As [`Checkpoint::read_f32`], but for what single codes say.
    pub fn rows(&self, name: &str, shape: &[usize]) -> Result<Rows<'_>, CheckpointError> {
        self.expect(name, shape)?;
        let stored = self.stored(name).expect("it was just found");
        let scales = match stored.view.dtype {
            StoredDtype::F32 | StoredDtype::BF16 | StoredDtype::F16 => None,
            StoredDtype::F8_E4M3 if shape.len() == 2 => Some(self.scales(&stored.view)?),
            _ => return Err(stored.view.wrong_dtype("BF16, F16, F32, or for a matrix F8_E4M3 with scales")),
        };
        Ok(Rows::new(stored, scales, RowOrder::Stored))
    }

    /// The checked scales of an FP8 matrix.
    fn scales(&self, weight: &TensorView<'_>) -> Result<Vec<f32>, CheckpointError> {
        let name = scale_name(weight.name);
        let Some(stored) = self.stored(&name) else {
            let (path, weight) = (weight.path.into(), weight.name.into());
            return Err(CheckpointError::NoScales { path, name: weight, scales: name });
        };
        let scales = stored.view;
        let expected: Vec<usize> = weight.shape.iter().map(|n| n.div_ceil(BLOCK)).collect();
        if scales.shape != expected {
            let (path, found) = (scales.path.into(), scales.shape.into());
            return Err(CheckpointError::ScaleShape { path, name, found, expected });
        }
        let values = match scales.dtype {
            StoredDtype::F32 | StoredDtype::BF16 => scales.to_f32()?,
            // Some tools write the codes of E8M0 as plain bytes.
            StoredDtype::F8_E8M0 | StoredDtype::U8 => scales.bytes.iter().map(|code| from_e8m0(*code)).collect(),
            _ => return Err(scales.wrong_dtype("F32, BF16 or F8_E8M0, as scales are")),
        };
        stored.release(0..scales.bytes.len());
        match values.iter().find(|s| !(**s > 0.0 && **s <= MAX_SCALE)) {
            None => Ok(values),
            Some(bad) => Err(CheckpointError::Value {
                path: scales.path.into(),
                name,
                found: bad.to_string(),
                expected: "scales above 0 and at most 2^119; the file is damaged",
            }),
        }
    }
}

/// Published name of a weight's scales (multiplied with the codes, despite the name).
pub(crate) fn scale_name(weight: &str) -> String {
    format!("{weight}_scale_inv")
}

impl<'a> Rows<'a> {
    pub(crate) fn new(stored: Stored<'a>, scales: Option<Vec<f32>>, order: RowOrder) -> Self {
        let cols = if let [_, k] = *stored.view.shape { k } else { 1 };
        Self { stored, cols, scales, order }
    }

    /// Where and how the tensor is stored.
    pub fn view(&self) -> &TensorView<'a> {
        &self.stored.view
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        if self.cols == 1 { self.view().elements() } else { self.view().shape[0] }
    }

    /// Numbers of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Reads everything, and releases it.
    ///
    /// # Errors
    /// As [`Rows::read`].
    pub fn read_all(&self) -> Result<Vec<f32>, CheckpointError> {
        let mut out = vec![0.0; self.view().elements()];
        self.read(0..self.rows(), &mut out)?;
        self.release(0..self.rows());
        Ok(out)
    }

    /// Reads whole rows.
    ///
    /// # Errors
    /// [`CheckpointError::Value`] for an FP8 code that is no number.
    ///
    /// # Panics
    /// If there are no such rows, or `out` has another length.
    pub fn read(&self, rows: Range<usize>, out: &mut [f32]) -> Result<(), CheckpointError> {
        assert_eq!(out.len(), rows.len() * self.cols);
        if let (None, RowOrder::Stored) = (&self.scales, self.order) {
            self.floats(rows.start * self.cols, out);
        } else if self.cols > 0 {
            for (row, out) in rows.zip(out.chunks_exact_mut(self.cols)) {
                self.read_part(row, 0, out)?;
            }
        }
        Ok(())
    }

    /// Reads the numbers of one row from column `first` on.
    ///
    /// # Errors
    /// As [`Rows::read`].
    ///
    /// # Panics
    /// If the row ends before `out`.
    pub fn read_part(&self, row: usize, first: usize, out: &mut [f32]) -> Result<(), CheckpointError> {
        assert!(first + out.len() <= self.cols);
        let begin = self.order.stored(row) * self.cols + first;
        let Some(scales) = &self.scales else {
            self.floats(begin, out);
            return Ok(());
        };
        let codes = &self.view().bytes[begin..begin + out.len()];
        let scales = &scales[row / BLOCK * self.cols.div_ceil(BLOCK)..][..self.cols.div_ceil(BLOCK)];
        let (mut at, mut bad) = (0, false);
        while at < out.len() {
            let block = (first + at) / BLOCK;
            let end = out.len().min((block + 1) * BLOCK - first);
            for (x, code) in out[at..end].iter_mut().zip(&codes[at..end]) {
                *x = from_e4m3(*code) * scales[block];
                bad |= is_nan_e4m3(*code);
            }
            at = end;
        }
        if bad { Err(self.not_a_number(row, first, codes)) } else { Ok(()) }
    }

    /// The scales of a matrix of FP8 codes whose rows are read in the order in which they are stored, `[⌈N / 128⌉, ⌈K / 128⌉]`.
    pub fn scales(&self) -> Option<&[f32]> {
        match self.order {
            RowOrder::Stored => self.scales.as_deref(),
            RowOrder::Halves(_) => None,
        }
    }

    /// The codes of whole rows, as they are stored.
    ///
    /// # Errors
    /// As [`Rows::read`].
    ///
    /// # Panics
    /// Unless [`Rows::scales`] has some.
    pub fn codes(&self, rows: Range<usize>) -> Result<&'a [u8], CheckpointError> {
        assert!(self.scales().is_some());
        let codes = &self.stored.view.bytes[rows.start * self.cols..rows.end * self.cols];
        match codes.iter().position(|c| is_nan_e4m3(*c)) {
            Some(at) => Err(self.not_a_number(rows.start + at / self.cols, at % self.cols, &codes[at..=at])),
            None => Ok(codes),
        }
    }

    fn not_a_number(&self, row: usize, first: usize, codes: &[u8]) -> CheckpointError {
        let at = codes.iter().position(|c| is_nan_e4m3(*c)).unwrap_or_default();
        CheckpointError::Value {
            path: self.view().path.into(),
            name: self.view().name.into(),
            found: format!("NaN (code {:#04x}) in row {row}, column {}", codes[at], first + at),
            expected: "numbers; the file is damaged",
        }
    }

    /// Stored floats from element `first` on.
    fn floats(&self, first: usize, out: &mut [f32]) {
        let width = self.view().dtype.bitsize() / 8;
        let bytes = &self.view().bytes[first * width..(first + out.len()) * width];
        convert::floats(self.view().dtype, bytes, out);
    }

    /// Tells the system that these rows will not be read again soon, so that a mapped file takes no memory for them. They can
    /// still be read.
    pub fn release(&self, rows: Range<usize>) {
        let width = self.view().dtype.bitsize() / 8 * self.cols;
        self.stored.release(rows.start * width..rows.end * width);
    }
}
