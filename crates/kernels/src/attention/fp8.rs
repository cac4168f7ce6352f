//! Keys and values in E4M3: a byte per number, and a power of two per token, head and 128 columns.
//!
//! Codes lie where the numbers would lie in a packed block of bf16, so a block is expanded line by line: 32 codes become 32 numbers by
//! arithmetic on 16 bits, since `code · 2^e` has a bf16 whose bits are those of the code, shifted, plus `e` in the exponent.

use half::bf16;
use rayon::prelude::*;

use super::{
    BLOCK, HeadShape,
    cache::{Blocks, key_len, value_len, values_of_keys},
};
use crate::{
    formats::ScaleFormat,
    gemm::{
        lanes::Packable,
        pack::{Aligned, PAIR, PANEL},
    },
    isa::{Isa, multi_isa},
    quantize::{TILE, encode},
    tensor::Dtype,
};

#[derive(Clone)]
pub(super) struct Fp8Kv {
    shape: HeadShape,
    latent: bool,
    /// Last columns of a key, which stay bf16.
    exact: usize,
    len: usize,
    /// `[blocks, G]`
    heads: Vec<Head>,
}

/// 64 tokens of one key head.
#[derive(Clone)]
struct Head {
    keys: Codes,
    /// `[64 outputs, exact]` packed.
    exact: Box<[bf16]>,
    /// None if latent.
    values: Option<Codes>,
}

/// Packed codes of 64 tokens.
#[derive(Clone)]
struct Codes {
    codes: Box<[u8]>,
    /// Exponents, as a bf16 has them: `[⌈columns / 128⌉, 64]`.
    scales: Box<[u8]>,
}

impl Codes {
    fn zeros(len: usize, columns: usize) -> Self {
        Self { codes: vec![0; len].into(), scales: vec![0; columns.div_ceil(TILE) * BLOCK].into() }
    }

    /// Writes a token's row, or zeros: `slot(column)` is where a code belongs.
    fn put(&mut self, row: usize, coded: Option<&Coded>, columns: usize, slot: impl Fn(usize) -> usize) {
        for d in 0..columns {
            self.codes[slot(d)] = coded.map_or(0, |x| x.codes[d]);
        }
        for (group, scales) in self.scales.chunks_mut(BLOCK).enumerate() {
            scales[row] = coded.map_or(0, |x| exponent(x.scales[group]));
        }
    }
}

/// A row of numbers in E4M3.
struct Coded {
    codes: Vec<u8>,
    scales: Vec<f32>,
}

impl Coded {
    fn zeros(columns: usize) -> Self {
        Self { codes: vec![0; columns], scales: vec![0.0; columns.div_ceil(TILE)] }
    }

    fn set(&mut self, isa: Isa, x: &[bf16]) {
        encode(isa, bytemuck::cast_slice(x), Dtype::Bf16, ScaleFormat::Ue8m0, &mut self.codes, &mut self.scales);
    }
}

/// Of a power of two, biased; 255 for what is not finite.
fn exponent(scale: f32) -> u8 {
    (scale.to_bits() >> 23) as u8
}

impl Fp8Kv {
    pub fn new(shape: HeadShape, exact: usize, latent: bool) -> Self {
        assert!(shape.heads.is_multiple_of(shape.kv_heads) && exact < shape.dk);
        assert!(exact == 0 || (shape.dk - exact).is_multiple_of(2), "pairs of columns are of one kind");
        Self { shape, latent, exact, len: 0, heads: vec![] }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_latent(&self) -> bool {
        self.latent
    }

    pub fn bytes(&self) -> usize {
        let codes = |x: &Codes| x.codes.len() + x.scales.len();
        self.heads.iter().map(|h| codes(&h.keys) + 2 * h.exact.len() + h.values.as_ref().map_or(0, codes)).sum()
    }

    /// Columns of a key that are coded.
    fn coded(&self) -> usize {
        self.shape.dk - self.exact
    }

    fn empty(&self) -> Head {
        let panels = BLOCK / PANEL * PAIR;
        Head {
            keys: Codes::zeros(self.coded().div_ceil(2) * panels, self.coded()),
            exact: vec![bf16::ZERO; self.exact.div_ceil(2) * panels].into(),
            values: (!self.latent).then(|| Codes::zeros(value_len(self.shape), self.shape.dv)),
        }
    }

    fn resize(&mut self) {
        let (blocks, empty) = (self.len.div_ceil(BLOCK), self.empty());
        self.heads.resize(blocks * self.shape.kv_heads, empty);
    }

    pub fn truncate(&mut self, len: usize) {
        assert!(len <= self.len);
        self.len = len;
        self.resize();
        if !len.is_multiple_of(BLOCK) {
            // As in bf16: a number behind the end is not read, but it may be infinite, and p = 0.
            let (dk, dv) = (self.coded(), self.shape.dv);
            for head in &mut self.heads[len / BLOCK * self.shape.kv_heads..] {
                (len % BLOCK..BLOCK).for_each(|row| head.put(row, (dk, dv), None, &[], None));
            }
        }
    }

    /// Tokens behind those that are there. `k`: `[tokens, G·Dk]`; `v`: `[tokens, G·Dv]`, not read if latent.
    pub fn append(&mut self, isa: Isa, k: &[bf16], v: &[bf16], tokens: usize) {
        let HeadShape { kv_heads, dk, .. } = self.shape;
        let (first, coded, dv) = (self.len, self.coded(), if self.latent { 0 } else { self.shape.dv });
        self.len += tokens;
        self.resize();
        let end = self.len;
        let each = |(at, data): (usize, &mut Head)| {
            let (block, head) = (first / BLOCK + at / kv_heads, at % kv_heads);
            let (mut key, mut value) = (Coded::zeros(coded), Coded::zeros(dv));
            for position in first.max(block * BLOCK)..end.min((block + 1) * BLOCK) {
                let row = (position - first) * kv_heads + head;
                let (k, exact) = k[row * dk..][..dk].split_at(coded);
                key.set(isa, k);
                value.set(isa, &v[row * dv..][..dv]);
                data.put(position % BLOCK, (coded, dv), Some(&key), exact, Some(&value));
            }
        };
        let heads = &mut self.heads[first / BLOCK * kv_heads..];
        if tokens * kv_heads * (dk + dv) < 16 * 1024 {
            heads.iter_mut().enumerate().for_each(each);
        } else {
            heads.par_iter_mut().enumerate().for_each(each);
        }
    }

    fn head(&self, block: usize, head: usize) -> &Head {
        &self.heads[block * self.shape.kv_heads + head]
    }
}

impl Head {
    /// Writes a token into its row, or zeros.
    fn put(
        &mut self,
        row: usize,
        (dk, dv): (usize, usize),
        key: Option<&Coded>,
        exact: &[bf16],
        value: Option<&Coded>,
    ) {
        // Where column `d` of a key stands among `columns`.
        let of_key = |columns: usize, d: usize| {
            (row / PANEL * columns.div_ceil(2) + d / 2) * PAIR + bf16::slot(row % PANEL, d % 2)
        };
        let of_value = |d: usize| (d / PANEL * (BLOCK / 2) + row / 2) * PAIR + bf16::slot(d % PANEL, row % 2);
        self.keys.put(row, key, dk, |d| of_key(dk, d));
        let columns = self.exact.len() / BLOCK;
        for d in 0..columns {
            self.exact[of_key(columns, d)] = exact.get(d).copied().unwrap_or_default();
        }
        if let Some(values) = &mut self.values {
            values.put(row, value, dv, of_value);
        }
    }
}

impl Blocks<bf16> for Fp8Kv {
    fn shape(&self) -> HeadShape {
        self.shape
    }

    fn keys<'a>(&'a self, isa: Isa, block: usize, head: usize, scratch: &'a mut Aligned<bf16>) -> &'a [bf16] {
        let Head { keys, exact, .. } = self.head(block, head);
        scratch.resize(key_len(self.shape));
        let coded = self.coded().div_ceil(2) * PAIR;
        let panels = scratch.chunks_exact_mut(self.shape.dk.div_ceil(2) * PAIR).zip(keys.codes.chunks_exact(coded));
        for (panel, (to, codes)) in panels.enumerate() {
            let (to, rest) = to.split_at_mut(coded);
            expand_keys(isa, codes, &keys.scales[panel * PANEL..], bytemuck::cast_slice_mut(to));
            rest.copy_from_slice(&exact[panel * rest.len()..][..rest.len()]);
        }
        scratch
    }

    fn values<'a>(
        &'a self,
        isa: Isa,
        block: usize,
        head: usize,
        keys: &[bf16],
        scratch: &'a mut Aligned<bf16>,
    ) -> &'a [bf16] {
        match &self.head(block, head).values {
            None => values_of_keys(self.shape, keys, scratch),
            Some(values) => {
                scratch.resize(value_len(self.shape));
                expand_values(isa, &values.codes, &values.scales, bytemuck::cast_slice_mut(scratch));
            }
        }
        scratch
    }
}

/// What an exponent adds to the bits of a bf16, and whether the number is one at all.
#[inline(always)]
fn shift(exponent: u8) -> u16 {
    u16::from(exponent).wrapping_sub(127) << 7
}

/// The numbers of 32 codes under exponents of their own, as bits of bf16.
#[inline(always)]
fn expand(codes: &[u8; PAIR], exponents: &[u8; PAIR], y: &mut [u16; PAIR]) {
    for i in 0..PAIR {
        let (code, e) = (u16::from(codes[i]), exponents[i]);
        let m = code & 0x7F;
        // Below 8 codes count multiples of 2⁻⁹.
        let small = match m {
            0 => 0,
            1 => 118 << 7,
            2 | 3 => (119 << 7) + ((m - 2) << 6),
            _ => (120 << 7) + ((m.wrapping_sub(4)) << 5),
        };
        let near = if m < 8 { small } else { (m << 4) + (120 << 7) };
        let near = if m == 0 { 0 } else { near.wrapping_add(shift(e)) };
        let near = if m == 0x7F || e == 0xFF { 0x7FC0 } else { near };
        y[i] = near | (code & 0x80) << 8;
    }
}

multi_isa! {
    /// A panel of 16 keys. `scales`: of the first 128 columns, and 64 further on of the next.
    fn expand_keys(codes: &[u8], scales: &[u8], y: &mut [u16]) {
        let lines = codes.as_chunks::<PAIR>().0.chunks(TILE / 2).zip(y.as_chunks_mut::<PAIR>().0.chunks_mut(TILE / 2));
        for (group, (codes, y)) in lines.enumerate() {
            let scales = &scales[group * BLOCK..][..PANEL];
            let exponents = std::array::from_fn(|i| scales[i / 2]);
            codes.iter().zip(y).for_each(|(codes, y)| expand(codes, &exponents, y));
        }
    }
}

multi_isa! {
    /// All values of a block and head.
    fn expand_values(codes: &[u8], scales: &[u8], y: &mut [u16]) {
        let lines = codes.as_chunks::<PAIR>().0.chunks(BLOCK / 2).zip(y.as_chunks_mut::<PAIR>().0.chunks_mut(BLOCK / 2));
        for (panel, (codes, y)) in lines.enumerate() {
            let pairs = scales[panel * PANEL / TILE * BLOCK..][..BLOCK].as_chunks::<2>().0;
            for ((codes, y), pair) in codes.iter().zip(y).zip(pairs) {
                expand(codes, &std::array::from_fn(|i| pair[i % 2]), y);
            }
        }
    }
}
