//! Keys and values of a sequence, packed block by block as the products of attention read them.

use half::bf16;
use rayon::prelude::*;

use super::{BLOCK, HeadShape, fp8::Fp8Kv};
use crate::{
    gemm::{
        lanes::Packable,
        pack::{Aligned, PAIR, PANEL},
    },
    isa::Isa,
    tensor::{Dtype, Element},
};

/// Keys (after rope) and values of one sequence in one layer, packed block by block.
#[derive(Clone)]
pub struct KvBlocks(pub(super) AnyKv);

#[derive(Clone)]
pub(super) enum AnyKv {
    F32(Kv<f32>),
    Bf16(Kv<bf16>),
    Fp8(Fp8Kv),
}

impl KvBlocks {
    /// Empty.
    pub fn new(dtype: Dtype, shape: HeadShape) -> Self {
        Self(match dtype {
            Dtype::F32 => AnyKv::F32(Kv::new(shape)),
            Dtype::Bf16 => AnyKv::Bf16(Kv::new(shape)),
        })
    }

    /// Empty, for one key that all heads share and whose first `shape.dv` numbers are the value: held once.
    ///
    /// # Panics
    /// If there are more key heads, or the value is wider than the key.
    pub fn latent(dtype: Dtype, shape: HeadShape) -> Self {
        assert!(shape.kv_heads == 1 && shape.dv <= shape.dk, "{shape:?} shares no key that holds its value");
        let mut kv = Self::new(dtype, shape);
        match &mut kv.0 {
            AnyKv::F32(kv) => kv.latent = true,
            AnyKv::Bf16(kv) => kv.latent = true,
            AnyKv::Fp8(_) => unreachable!("of a dtype"),
        }
        kv
    }

    /// Empty, for queries, keys and values in bf16, of which a byte each is held: E4M3 under a power of two for each token, head and 128
    /// columns, as `ops.fp8_numbers` in [`Tiles::Rows`](crate::Tiles::Rows) rounds them. The last `exact` columns of a key stay bf16.
    /// `latent`: as [`latent`](Self::latent).
    ///
    /// # Panics
    /// As [`latent`](Self::latent); or if columns stay bf16 behind an odd number of others.
    pub fn fp8(shape: HeadShape, exact: usize, latent: bool) -> Self {
        let shared = shape.kv_heads == 1 && shape.dv + exact <= shape.dk;
        assert!(!latent || shared, "{shape:?} shares no key that holds its value");
        Self(AnyKv::Fp8(Fp8Kv::new(shape, exact, latent)))
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        match &self.0 {
            AnyKv::F32(kv) => kv.len,
            AnyKv::Bf16(kv) => kv.len,
            AnyKv::Fp8(kv) => kv.len(),
        }
    }

    pub(super) fn is_latent(&self) -> bool {
        match &self.0 {
            AnyKv::F32(kv) => kv.latent,
            AnyKv::Bf16(kv) => kv.latent,
            AnyKv::Fp8(kv) => kv.is_latent(),
        }
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keeps the first `len` tokens. What stood behind stays in memory and is overwritten or masked.
    pub fn truncate(&mut self, len: usize) {
        match &mut self.0 {
            AnyKv::F32(kv) => kv.truncate(len),
            AnyKv::Bf16(kv) => kv.truncate(len),
            AnyKv::Fp8(kv) => kv.truncate(len),
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match &self.0 {
            AnyKv::F32(kv) => kv.data.len() * 4,
            AnyKv::Bf16(kv) => kv.data.len() * 2,
            AnyKv::Fp8(kv) => kv.bytes(),
        }
    }
}

/// Keys and values of one sequence, packed: what attention reads. A block and head at a time, in `scratch` where it must be made first.
pub(super) trait Blocks<E>: Sync {
    /// Of the attention.
    fn shape(&self) -> HeadShape;
    /// `[64 outputs, Dk]`
    fn keys<'a>(&'a self, isa: Isa, block: usize, head: usize, scratch: &'a mut Aligned<E>) -> &'a [E];
    /// `[Dv outputs, 64]`; `keys`: of the same block and head.
    fn values<'a>(&'a self, isa: Isa, block: usize, head: usize, keys: &[E], scratch: &'a mut Aligned<E>) -> &'a [E];
}

/// Elements of the packed keys of a block and head.
pub(super) fn key_len(shape: HeadShape) -> usize {
    BLOCK / PANEL * shape.dk.div_ceil(2) * PAIR
}

/// Elements of its packed values.
pub(super) fn value_len(shape: HeadShape) -> usize {
    shape.dv.div_ceil(PANEL) * (BLOCK / 2) * PAIR
}

/// A block holds, per key head, `[64 outputs, Dk]` packed keys and, unless latent, `[Dv outputs, 64]` packed values.
#[derive(Clone)]
pub(super) struct Kv<E> {
    shape: HeadShape,
    latent: bool,
    len: usize,
    data: Aligned<E>,
}

impl<E: Packable> Kv<E> {
    fn new(shape: HeadShape) -> Self {
        assert!(shape.heads.is_multiple_of(shape.kv_heads));
        Self { shape, latent: false, len: 0, data: Aligned::zeros(0) }
    }

    fn head_len(&self) -> usize {
        key_len(self.shape) + if self.latent { 0 } else { value_len(self.shape) }
    }

    fn head(&self, block: usize, head: usize) -> &[E] {
        &self.data[(block * self.shape.kv_heads + head) * self.head_len()..][..self.head_len()]
    }

    fn truncate(&mut self, len: usize) {
        assert!(len <= self.len);
        self.len = len;
        // A value behind the end meets p = 0, but 0 · ∞ is NaN: leave no old number in the block that is kept.
        let blocks = len.div_ceil(BLOCK);
        self.data.resize(blocks * self.shape.kv_heads * self.head_len());
        if !len.is_multiple_of(BLOCK) {
            let (head_len, key_len, dk) = (self.head_len(), key_len(self.shape), self.shape.dk);
            let dv = if self.latent { 0 } else { self.shape.dv };
            for position in len..blocks * BLOCK {
                for head in 0..self.shape.kv_heads {
                    let at = (position / BLOCK * self.shape.kv_heads + head) * head_len;
                    put(&mut self.data[at..at + head_len], key_len, position % BLOCK, (dk, dv), None);
                }
            }
        }
    }

    pub(super) fn append<S: Element>(&mut self, k: &[S], v: &[S], tokens: usize) {
        let HeadShape { kv_heads, dk, dv, .. } = self.shape;
        let first = self.len;
        self.len += tokens;
        self.data.resize(self.len.div_ceil(BLOCK) * kv_heads * self.head_len());
        let dv = if self.latent { 0 } else { dv };
        let (end, head_len, key_len) = (self.len, self.head_len(), key_len(self.shape));
        let blocks = first / BLOCK * kv_heads..end.div_ceil(BLOCK) * kv_heads;
        // One head of one block.
        let each = |(at, data): (usize, &mut [E])| {
            let (block, head) = (first / BLOCK + at / kv_heads, at % kv_heads);
            for position in first.max(block * BLOCK)..end.min((block + 1) * BLOCK) {
                let row = (position - first) * kv_heads + head;
                let (k, v) = (&k[row * dk..][..dk], &v[row * dv..][..dv]);
                put(
                    data,
                    key_len,
                    position % BLOCK,
                    (dk, dv),
                    Some((bytemuck::cast_slice(k), bytemuck::cast_slice(v))),
                );
            }
        };
        let data = &mut self.data[blocks.start * head_len..blocks.end * head_len];
        if tokens * kv_heads * (dk + dv) < 16 * 1024 {
            data.chunks_exact_mut(head_len).enumerate().for_each(each);
        } else {
            data.par_chunks_exact_mut(head_len).enumerate().for_each(each);
        }
    }
}

impl<E: Packable> Blocks<E> for Kv<E> {
    fn shape(&self) -> HeadShape {
        self.shape
    }

    fn keys<'a>(&'a self, _: Isa, block: usize, head: usize, _: &'a mut Aligned<E>) -> &'a [E] {
        &self.head(block, head)[..key_len(self.shape)]
    }

    fn values<'a>(&'a self, _: Isa, block: usize, head: usize, keys: &[E], scratch: &'a mut Aligned<E>) -> &'a [E] {
        if !self.latent {
            return &self.head(block, head)[key_len(self.shape)..];
        }
        values_of_keys(self.shape, keys, scratch);
        scratch
    }
}

/// Writes one token's key and value into its row of a head's block, or zeros.
fn put<E: Packable>(data: &mut [E], key_len: usize, row: usize, (dk, dv): (usize, usize), kv: Option<(&[E], &[E])>) {
    let (keys, values) = data.split_at_mut(key_len);
    let keys = &mut keys[row / PANEL * dk.div_ceil(2) * PAIR..];
    let zero = E::narrow(0.0);
    for d in 0..dk {
        keys[d / 2 * PAIR + E::slot(row % PANEL, d % 2)] = kv.map_or(zero, |(k, _)| k[d]);
    }
    for d in 0..dv {
        values[(d / PANEL * (BLOCK / 2) + row / 2) * PAIR + E::slot(d % PANEL, row % 2)] =
            kv.map_or(zero, |(_, v)| v[d]);
    }
}

/// The packed values of a latent block, the first `Dv` columns of its packed keys.
pub(super) fn values_of_keys<E: Packable>(shape: HeadShape, keys: &[E], values: &mut Aligned<E>) {
    let (pairs, dv) = (shape.dk.div_ceil(2), shape.dv);
    values.resize(value_len(shape));
    if E::DTYPE == Dtype::Bf16 && dv.is_multiple_of(PANEL) {
        return turn(bytemuck::cast_slice(keys), pairs, bytemuck::cast_slice_mut(values));
    }
    for row in 0..BLOCK {
        let keys = &keys[row / PANEL * pairs * PAIR..];
        for d in 0..dv {
            values[(d / PANEL * (BLOCK / 2) + row / 2) * PAIR + E::slot(d % PANEL, row % 2)] =
                keys[d / 2 * PAIR + E::slot(row % PANEL, d % 2)];
        }
    }
}

/// [`values_of_keys`] in bf16, four elements at a time: of two keys in two columns, as they lie in a pair of columns,
/// `(k₀c₀, k₀c₁, k₁c₀, k₁c₁)`, the same as they lie in a pair of keys. `pairs`: of columns, in a panel of keys.
fn turn(keys: &[[u16; 4]], pairs: usize, values: &mut [[u16; 4]]) {
    const LINE: usize = PAIR / 4;
    for (i, line) in values.as_chunks_mut::<LINE>().0.iter_mut().enumerate() {
        let (columns, key_pair) = (i / (BLOCK / 2), i % (BLOCK / 2));
        let first = (key_pair / LINE * pairs + columns * LINE) * LINE + key_pair % LINE;
        for (x, [a, b, c, d]) in line.iter_mut().zip(keys[first..].iter().step_by(LINE)) {
            *x = [*a, *c, *b, *d];
        }
    }
}
