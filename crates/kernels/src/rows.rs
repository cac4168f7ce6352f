//! Rows shared between threads, in chunks whose size does not depend on their number.

use std::mem::MaybeUninit;

use bytemuck::Zeroable;
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

/// `n` rows of width `d`, made by `f(first row, rows)` in chunks of rows that it finds zero. A chunk is cleared where it is made, in
/// cache, rather than all of them before.
pub(crate) fn make<T: Zeroable + Send>(n: usize, d: usize, f: impl Fn(usize, &mut [T]) + Sync) -> Vec<T> {
    make_chunks(n * d, d, f)
}

/// `len` elements, made as by [`make`] without regard to rows; `f` gets the place of its first one.
pub(crate) fn make_flat<T: Zeroable + Send>(len: usize, f: impl Fn(usize, &mut [T]) + Sync) -> Vec<T> {
    const PIECE: usize = 512;
    make_chunks(len, PIECE, |piece, x| f(piece * PIECE, x))
}

/// `n` blocks of `len` elements, each filled by `f(its number, block)`, which finds it zero.
pub(crate) fn make_blocks<T: Zeroable + Send>(
    n: usize,
    len: usize,
    parallel: bool,
    f: impl Fn(usize, &mut [T]) + Sync,
) -> Vec<T> {
    let mut out = Vec::with_capacity(n * len);
    let blocks = &mut out.spare_capacity_mut()[..n * len];
    let each = |(i, x): (usize, &mut [MaybeUninit<T>])| f(i, cleared(x));
    match len {
        0 => {}
        _ if parallel && n > 1 => blocks.par_chunks_exact_mut(len).enumerate().for_each(each),
        _ => blocks.chunks_exact_mut(len).enumerate().for_each(each),
    }
    // SAFETY: every block has been cleared; there is nothing in blocks of no elements.
    unsafe { out.set_len(n * len) };
    out
}

fn make_chunks<T: Zeroable + Send>(len: usize, d: usize, f: impl Fn(usize, &mut [T]) + Sync) -> Vec<T> {
    let mut out = Vec::with_capacity(len);
    each(&mut out.spare_capacity_mut()[..len], d, |first, x| f(first, cleared(x)));
    // SAFETY: `each` has cleared all of them; there are none where `d` is 0.
    unsafe { out.set_len(len) };
    out
}

/// [`make`] for two at once.
pub(crate) fn make2<T: Zeroable + Send, U: Zeroable + Send>(
    n: usize,
    da: usize,
    db: usize,
    f: impl Fn(usize, &mut [T], &mut [U]) + Sync,
) -> (Vec<T>, Vec<U>) {
    assert!(da > 0 && db > 0);
    let (mut a, mut b) = (Vec::with_capacity(n * da), Vec::with_capacity(n * db));
    let (spare_a, spare_b) = (&mut a.spare_capacity_mut()[..n * da], &mut b.spare_capacity_mut()[..n * db]);
    zip2(spare_a, da, spare_b, db, |first, a, b| f(first, cleared(a), cleared(b)));
    // SAFETY: `zip2` has cleared `n` rows of both.
    unsafe {
        a.set_len(n * da);
        b.set_len(n * db);
    }
    (a, b)
}

/// [`make`] for three at once.
pub(crate) fn make3<T: Zeroable + Send, U: Zeroable + Send, V: Zeroable + Send>(
    n: usize,
    [da, db, dc]: [usize; 3],
    f: impl Fn(usize, &mut [T], &mut [U], &mut [V]) + Sync,
) -> (Vec<T>, Vec<U>, Vec<V>) {
    let mut a = Vec::with_capacity(n * da);
    let (b, c) =
        beside2(&mut a.spare_capacity_mut()[..n * da], [da, db, dc], |first, a, b, c| f(first, cleared(a), b, c));
    // SAFETY: `beside2` has called the function for all rows, which has cleared them.
    unsafe { a.set_len(n * da) };
    (a, b, c)
}

/// [`make`] for two, beside the rows of `a`, which are there.
pub(crate) fn beside2<T: Send, U: Zeroable + Send, V: Zeroable + Send>(
    a: &mut [T],
    [da, db, dc]: [usize; 3],
    f: impl Fn(usize, &mut [T], &mut [U], &mut [V]) + Sync,
) -> (Vec<U>, Vec<V>) {
    assert!(da > 0 && db > 0 && dc > 0 && a.len().is_multiple_of(da));
    let n = a.len() / da;
    let (mut b, mut c) = (Vec::with_capacity(n * db), Vec::with_capacity(n * dc));
    let (spare_b, spare_c) = (&mut b.spare_capacity_mut()[..n * db], &mut c.spare_capacity_mut()[..n * dc]);
    let f = |i: usize, a: &mut [T], b: &mut [MaybeUninit<U>], c: &mut [MaybeUninit<V>]| {
        f(i * ROWS, a, cleared(b), cleared(c));
    };
    if n * da < SERIAL {
        let bc = a.chunks_mut(ROWS * da).zip(spare_b.chunks_mut(ROWS * db));
        bc.zip(spare_c.chunks_mut(ROWS * dc)).enumerate().for_each(|(i, ((a, b), c))| f(i, a, b, c));
    } else {
        let bc = a.par_chunks_mut(ROWS * da).zip(spare_b.par_chunks_mut(ROWS * db));
        bc.zip(spare_c.par_chunks_mut(ROWS * dc)).enumerate().for_each(|(i, ((a, b), c))| f(i, a, b, c));
    }
    // SAFETY: all chunks of `n` rows of both have been cleared.
    unsafe {
        b.set_len(n * db);
        c.set_len(n * dc);
    }
    (b, c)
}

fn cleared<T: Zeroable>(x: &mut [MaybeUninit<T>]) -> &mut [T] {
    // SAFETY: all bytes are written, and zeros are a valid `T`; `MaybeUninit<T>` lies as `T` does.
    unsafe {
        x.as_mut_ptr().write_bytes(0, x.len());
        &mut *(std::ptr::from_mut(x) as *mut [T])
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
