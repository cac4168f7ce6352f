//! A tensor from one format into another, a bounded piece at a time.

use std::{
    io::{self, Write},
    ops::Range,
};

use half::bf16;
use jevons_kernels::formats::{block_scale, to_e4m3};
use rayon::prelude::*;

use crate::{
    checkpoint::{CheckpointError, Rows, Stored, StoredDtype},
    config::{Quantization, ScaleFormat},
};

const BLOCK: usize = Quantization::BLOCK;
/// Numbers held at a time.
const PIECE: usize = 1 << 18;
/// Numbers that a thread takes at a time.
const PART: usize = 1 << 13;

/// Why a tensor is not written.
pub(super) enum Failure {
    Source(CheckpointError),
    Write(io::Error),
}

impl From<CheckpointError> for Failure {
    fn from(error: CheckpointError) -> Self {
        Self::Source(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Write(error)
    }
}

/// The bytes as they are.
pub(super) fn copy(stored: &Stored<'_>, out: &mut dyn Write) -> Result<(), Failure> {
    let bytes = stored.view.bytes;
    for begin in (0..bytes.len()).step_by(PIECE) {
        let end = bytes.len().min(begin + PIECE);
        out.write_all(&bytes[begin..end])?;
        stored.release(begin..end);
    }
    Ok(())
}

/// F32, or BF16 rounded to nearest even.
pub(super) fn floats(rows: &Rows<'_>, dtype: StoredDtype, out: &mut dyn Write) -> Result<(), Failure> {
    let mut buffer = Buffer::default();
    for span in spans(0..rows.rows(), rows.cols()) {
        let (values, bytes) = buffer.read(rows, &span)?;
        let width = dtype.bitsize() / 8;
        bytes.resize(values.len() * width, 0);
        let parts = values.par_chunks(PART).zip(bytes.par_chunks_mut(PART * width));
        match dtype {
            StoredDtype::F32 => parts.for_each(|(x, b)| narrow(x, b, f32::to_le_bytes)),
            StoredDtype::BF16 => parts.for_each(|(x, b)| narrow(x, b, |x| bf16::from_f32(x).to_le_bytes())),
            other => unreachable!("nothing is converted to {other} here"),
        }
        out.write_all(bytes)?;
        rows.release(span.rows);
    }
    Ok(())
}

fn narrow<const N: usize>(values: &[f32], bytes: &mut [u8], f: impl Fn(f32) -> [u8; N]) {
    values.iter().zip(bytes.as_chunks_mut::<N>().0).for_each(|(x, bytes)| *bytes = f(*x));
}

/// The scale of each block of 128 × 128, `[⌈N / 128⌉, ⌈K / 128⌉]`; the last ones over the numbers that are there.
///
/// # Errors
/// [`CheckpointError::Value`] for a number that is not finite.
pub(super) fn scales(rows: &Rows<'_>, format: ScaleFormat) -> Result<Vec<f32>, CheckpointError> {
    if rows.view().elements() == 0 {
        return Ok(Vec::new()); // However many rows of nothing.
    }
    let mut buffer = Buffer::default();
    let mut all = Vec::with_capacity(rows.rows().div_ceil(BLOCK) * rows.cols().div_ceil(BLOCK));
    for first in (0..rows.rows()).step_by(BLOCK) {
        let block_rows = first..rows.rows().min(first + BLOCK);
        let mut maxima = vec![0_u32; rows.cols().div_ceil(BLOCK)];
        for span in spans(block_rows.clone(), rows.cols()) {
            let (values, _) = buffer.read(rows, &span)?;
            for row in values.chunks(span.cols.len().max(1)) {
                for (part, max) in row.chunks(BLOCK).zip(&mut maxima[span.cols.start / BLOCK..]) {
                    // Magnitudes are ordered as their bits are, and NaN is above all.
                    *max = part.iter().map(|x| x.to_bits() & 0x7FFF_FFFF).fold(*max, u32::max);
                }
            }
        }
        if let Some(bad) = maxima.iter().find(|max| !f32::from_bits(**max).is_finite()) {
            return Err(CheckpointError::Value {
                path: rows.view().path.into(),
                name: rows.view().name.into(),
                found: format!("{} in rows {block_rows:?}", f32::from_bits(*bad)),
                expected: "finite numbers: FP8 has no others",
            });
        }
        all.extend(maxima.into_iter().map(|max| block_scale(f32::from_bits(max), format)));
        rows.release(block_rows);
    }
    Ok(all)
}

/// E4M3 codes under these scales.
pub(super) fn codes(rows: &Rows<'_>, scales: &[f32], out: &mut dyn Write) -> Result<(), Failure> {
    let mut buffer = Buffer::default();
    let per_row = rows.cols().div_ceil(BLOCK);
    for span in spans(0..rows.rows(), rows.cols()) {
        let (values, codes) = buffer.read(rows, &span)?;
        codes.resize(values.len(), 0);
        let width = span.cols.len().max(1);
        values.par_chunks(width).zip(codes.par_chunks_mut(width)).enumerate().for_each(|(i, (values, codes))| {
            let scales = &scales[(span.rows.start + i) / BLOCK * per_row + span.cols.start / BLOCK..];
            for ((values, codes), scale) in values.chunks(BLOCK).zip(codes.chunks_mut(BLOCK)).zip(scales) {
                values.iter().zip(codes).for_each(|(x, code)| *code = to_e4m3(x / scale));
            }
        });
        out.write_all(codes)?;
        rows.release(span.rows);
    }
    Ok(())
}

/// A piece: whole rows, or a part of one that begins at a block.
struct Span {
    rows: Range<usize>,
    cols: Range<usize>,
}

/// All numbers of these rows, in order, in pieces of at most [`PIECE`].
fn spans(rows: Range<usize>, cols: usize) -> impl Iterator<Item = Span> {
    let (step_rows, step_cols) = if cols > PIECE { (1, PIECE) } else { (PIECE / cols.max(1), cols.max(1)) };
    let (end, first) = (if cols == 0 { rows.start } else { rows.end }, rows.start);
    (first..end).step_by(step_rows).flat_map(move |row| {
        let rows = row..end.min(row + step_rows);
        (0..cols).step_by(step_cols).map(move |col| Span { rows: rows.clone(), cols: col..cols.min(col + step_cols) })
    })
}

#[derive(Default)]
struct Buffer {
    values: Vec<f32>,
    bytes: Vec<u8>,
}

impl Buffer {
    /// The numbers of a piece, and room for what is made of them.
    fn read(&mut self, rows: &Rows<'_>, span: &Span) -> Result<(&[f32], &mut Vec<u8>), CheckpointError> {
        let width = span.cols.len();
        self.values.resize(span.rows.len() * width, 0.0);
        if width == rows.cols() {
            rows.read(span.rows.clone(), &mut self.values)?;
        } else {
            rows.read_part(span.rows.start, span.cols.start, &mut self.values)?;
        }
        Ok((&self.values, &mut self.bytes))
    }
}
