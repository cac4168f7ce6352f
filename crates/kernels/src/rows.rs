//! Rows shared between threads, in chunks whose size does not depend on their number.

use rayon::prelude::*;

/// Elements below which the calling thread does all.
const SERIAL: usize = 16 * 1024;
/// Rows of a chunk.
const ROWS: usize = 32;

/// Calls `f(first row, rows of a)` for chunks of rows of width `d`.
pub(crate) fn each<T: Send>(a: &mut [T], d: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    if d == 0 {
        return;
    }
    if a.len() < SERIAL {
        a.chunks_mut(ROWS * d).enumerate().for_each(|(i, a)| f(i * ROWS, a));
    } else {
        a.par_chunks_mut(ROWS * d).enumerate().for_each(|(i, a)| f(i * ROWS, a));
    }
}

/// Calls `f(first row, rows of a, rows of b)` for chunks of rows of widths `da` and `db`.
pub(crate) fn zip2<T: Send, U: Send>(
    a: &mut [T],
    da: usize,
    b: &mut [U],
    db: usize,
    f: impl Fn(usize, &mut [T], &mut [U]) + Sync,
) {
    split(a, ROWS * da, b, ROWS * db, |i, a, b| f(i * ROWS, a, b));
}

/// Calls `f(first row, rows of a, one row of b)` for chunks of `per` rows of `a`, one row of `b` each.
pub(crate) fn zip2_of<T: Send, U: Send>(
    per: usize,
    a: &mut [T],
    da: usize,
    b: &mut [U],
    db: usize,
    f: impl Fn(usize, &mut [T], &mut [U]) + Sync,
) {
    split(a, per * da, b, db, |i, a, b| f(i * per, a, b));
}

fn split<T: Send, U: Send>(
    a: &mut [T],
    a_chunk: usize,
    b: &mut [U],
    b_chunk: usize,
    f: impl Fn(usize, &mut [T], &mut [U]) + Sync,
) {
    if a_chunk == 0 || b_chunk == 0 {
        return;
    }
    if a.len() < SERIAL {
        a.chunks_mut(a_chunk).zip(b.chunks_mut(b_chunk)).enumerate().for_each(|(i, (a, b))| f(i, a, b));
    } else {
        a.par_chunks_mut(a_chunk).zip(b.par_chunks_mut(b_chunk)).enumerate().for_each(|(i, (a, b))| f(i, a, b));
    }
}
