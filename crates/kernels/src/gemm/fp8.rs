//! Right operands stored as E4M3 codes, one byte each, with a scale per 128 × 128 block.
//!
//! An element is the bf16 number `round(code · scale)`: the product is the house dot product of bf16, and only where the operand comes from
//! differs. Each code is looked up in a table of its block, in which the scale is folded: 128 magnitudes, the sign added after.
//!
//! Codes lie in panels of 16 columns, 32 `k` by 32 `k` (missing ones zero), of each four `k` a line of 64 bytes: for each 4 columns the codes
//! of `(k + 2, k)` of one after the other, then those of `(k + 1 + 2, k + 1)`. With the two bytes of each number side by side that is what
//! `VDPBF16PS` takes (`dots.rs`), so a product of that path reads codes and nothing else; other paths expand a piece at a time.
//!
//! Source: DeepSeek-V3, arXiv:2412.19437, section 3.3.2 (128 × 128 blocks of weights).

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::{
    Right,
    pack::{Aligned, PAIR, PANEL, Packed},
};
use crate::{
    formats::{ScaleFormat, block_scale, from_e4m3, to_e4m3},
    isa::{Isa, multi_isa},
    math::{from_bf16, to_bf16},
};

/// Rows and columns of a block that share a scale.
pub const SCALE_BLOCK: usize = 128;
/// Panels of a block's rows.
pub(super) const BLOCK_PANELS: usize = SCALE_BLOCK / PANEL;
/// `k` of a line.
const QUAD: usize = 4;
/// Codes of a line.
pub(super) const LINE: usize = QUAD * PANEL;
/// `k` in which panels are filled up.
pub(super) const CHUNK: usize = 32;

/// A packed matrix of codes.
#[derive(Clone)]
pub(crate) struct PackedFp8 {
    pub n: usize,
    pub k: usize,
    pub(super) codes: Aligned<u8>,
    /// `[⌈N / 128⌉, ⌈K / 128⌉]`
    scales: Vec<f32>,
}

/// Where in a line the code of the `i`-th of its `k` stands, in a column of its panel.
fn place(column: usize, i: usize) -> usize {
    column / 4 * 16 + i % 2 * 8 + column % 4 * 2 + (1 - i / 2)
}

/// Puts the codes of a row where they stand in its panel.
fn set_row(panel: &mut [u8], column: usize, codes: &[u8]) {
    for (codes, line) in codes.chunks(QUAD).zip(panel.chunks_exact_mut(LINE)) {
        codes.iter().enumerate().for_each(|(i, code)| line[place(column, i)] = *code);
    }
}

multi_isa! {
    /// Takes a row into the largest magnitude of each block of columns, as bits: those are ordered as magnitudes are, NaN above all.
    fn widen(row: &[f32], maxima: &mut [u32]) {
        for (part, max) in row.chunks(SCALE_BLOCK).zip(maxima) {
            *max = part.iter().map(|x| x.to_bits() & 0x7FFF_FFFF).fold(*max, u32::max);
        }
    }
}

multi_isa! {
    /// The nearest code of each number under the scale of its block of columns.
    fn encode(row: &[f32], scales: &[f32], codes: &mut [u8]) {
        for ((row, codes), scale) in row.chunks(SCALE_BLOCK).zip(codes.chunks_mut(SCALE_BLOCK)).zip(scales) {
            row.iter().zip(codes).for_each(|(x, code)| *code = to_e4m3(x / scale));
        }
    }
}

impl PackedFp8 {
    /// With codes of zero.
    pub fn zeros(scales: Vec<f32>, n: usize, k: usize) -> Self {
        assert_eq!(scales.len(), n.div_ceil(SCALE_BLOCK) * k.div_ceil(SCALE_BLOCK));
        Self { n, k, codes: Aligned::zeros(n.div_ceil(PANEL) * k.next_multiple_of(CHUNK) * PANEL), scales }
    }

    /// Bytes of a panel.
    pub(super) fn panel_len(&self) -> usize {
        self.k.next_multiple_of(CHUNK) * PANEL
    }

    /// Replaces rows from `first` on by codes, row-major.
    pub fn set_codes(&mut self, first: usize, codes: &[u8]) {
        let (k, len) = (self.k.max(1), self.panel_len());
        assert!(codes.len().is_multiple_of(k) && first + codes.len() / k <= self.n);
        for (row, codes) in (first..).zip(codes.chunks_exact(k)) {
            set_row(&mut self.codes[row / PANEL * len..][..len], row % PANEL, codes);
        }
    }

    /// Replaces rows from `first` on, a multiple of 128, by the nearest codes of f32 values under scales made for their blocks: whole
    /// blocks of rows, or the last ones.
    pub fn quantize_rows(&mut self, isa: Isa, first: usize, rows: &[f32], format: ScaleFormat) {
        let (k, wide) = (self.k.max(1), self.k.div_ceil(SCALE_BLOCK));
        let (n, panel_len) = (rows.len() / k, self.panel_len());
        assert!(rows.len().is_multiple_of(k) && first.is_multiple_of(SCALE_BLOCK) && first + n <= self.n);
        assert!(n.is_multiple_of(SCALE_BLOCK) || first + n == self.n, "a part of a block has no scale of its own");
        if self.k == 0 || n == 0 {
            return;
        }
        let scales = &mut self.scales[first / SCALE_BLOCK * wide..][..n.div_ceil(SCALE_BLOCK) * wide];
        let panels = &mut self.codes[first / PANEL * panel_len..][..n.div_ceil(PANEL) * panel_len];
        let blocks = rows.par_chunks(SCALE_BLOCK * k).zip(scales.par_chunks_mut(wide));
        blocks.zip(panels.par_chunks_mut(BLOCK_PANELS * panel_len)).for_each(|((rows, scales), panels)| {
            let mut maxima = vec![0; wide];
            rows.chunks_exact(k).for_each(|row| widen(isa, row, &mut maxima));
            scales.iter_mut().zip(maxima).for_each(|(s, max)| *s = block_scale(f32::from_bits(max), format));
            let mut codes = vec![0; k];
            for (r, row) in rows.chunks_exact(k).enumerate() {
                encode(isa, row, scales, &mut codes);
                set_row(&mut panels[r / PANEL * panel_len..][..panel_len], r % PANEL, &codes);
            }
        });
    }

    pub fn bytes(&self) -> usize {
        self.codes.len() + 4 * self.scales.len()
    }

    fn scale(&self, row: usize, column: usize) -> f32 {
        self.scales[row / SCALE_BLOCK * self.k.div_ceil(SCALE_BLOCK) + column / SCALE_BLOCK]
    }

    /// Row `n` as f32.
    pub fn row(&self, n: usize, row: &mut [f32]) {
        let panel = &self.codes[n / PANEL * self.panel_len()..];
        for (i, x) in row.iter_mut().enumerate() {
            let code = panel[i / QUAD * LINE + place(n % PANEL, i % QUAD)];
            *x = from_bf16(to_bf16(from_e4m3(code) * self.scale(n, i)));
        }
    }

    /// All of it in bf16.
    pub fn to_bf16(&self, isa: Isa) -> Packed<bf16> {
        let mut all = Packed::zeros(self.n, self.k);
        let pairs = all.pairs();
        self.expand(isa, 0..self.n.div_ceil(PANEL), 0..pairs, &mut all.data);
        all
    }

    /// Some panels and pairs as bf16, `out[panel][pair][16][2]`; the first pair is the first of a block.
    pub fn right<'a>(
        &self,
        isa: Isa,
        panels: Range<usize>,
        pairs: Range<usize>,
        out: &'a mut Aligned<bf16>,
    ) -> Right<'a, bf16> {
        let panel_stride = pairs.len() * PAIR;
        let len = panels.len() * panel_stride;
        if out.len() < len {
            out.resize(len);
        }
        self.expand(isa, panels, pairs, out);
        Right { data: &out[..len], panel_stride }
    }

    fn expand(&self, isa: Isa, panels: Range<usize>, pairs: Range<usize>, out: &mut [bf16]) {
        assert!(pairs.start.is_multiple_of(SCALE_BLOCK / 2));
        let stride = pairs.len() * PAIR;
        let mut table = Table::default();
        let mut p = panels.start;
        while p < panels.end {
            let same_rows = ((p / BLOCK_PANELS + 1) * BLOCK_PANELS).min(panels.end);
            for q in pairs.clone().step_by(SCALE_BLOCK / 2) {
                let same_columns = (q + SCALE_BLOCK / 2).min(pairs.end);
                table.fill(isa, self.scale(p * PANEL, 2 * q));
                for panel in p..same_rows {
                    let codes = &self.codes[panel * self.panel_len() + q / 2 * LINE..];
                    let to = (panel - panels.start) * stride + (q - pairs.start) * PAIR;
                    table.expand(isa, codes, &mut out[to..to + (same_columns - q) * PAIR]);
                }
            }
            p = same_rows;
        }
    }

    /// Tables of all blocks of columns for the block of rows that holds a panel.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn tables(&self, isa: Isa, panel: usize, tables: &mut Vec<Table>) {
        tables.resize_with(self.k.div_ceil(SCALE_BLOCK), Table::default);
        for (block, table) in tables.iter_mut().enumerate() {
            table.fill(isa, self.scale(panel * PANEL, block * SCALE_BLOCK));
        }
    }
}

/// The numbers of the codes 0 to 127 under one scale, as low and high bytes of bf16.
#[repr(C, align(64))]
pub(crate) struct Table {
    pub(super) low: [u8; 128],
    pub(super) high: [u8; 128],
}

impl Default for Table {
    fn default() -> Self {
        Self { low: [0; 128], high: [0; 128] }
    }
}

impl Table {
    fn fill(&mut self, isa: Isa, scale: f32) {
        fill(isa, scale, &MAGNITUDES, &mut self.low, &mut self.high);
    }

    /// Pairs from lines of codes, `[pair][16][2]`: as many as `out` takes.
    fn expand(&self, isa: Isa, codes: &[u8], out: &mut [bf16]) {
        assert!(codes.len() >= out.len().div_ceil(LINE) * LINE && out.len().is_multiple_of(PAIR));
        #[cfg(target_arch = "x86_64")]
        if isa.has_vbmi() {
            // SAFETY: just asked; lengths were.
            return unsafe { expand_vbmi(self, codes, out) };
        }
        let _ = isa;
        for (codes, out) in codes.chunks_exact(LINE).zip(out.chunks_mut(LINE)) {
            for (i, out) in out.iter_mut().enumerate() {
                let code = codes[place(i % PAIR / 2, i / PAIR * 2 + i % 2)];
                let magnitude = usize::from(code & 0x7F);
                *out = bf16::from_le_bytes([self.low[magnitude], self.high[magnitude] | code & 0x80]);
            }
        }
    }
}

/// Of the codes 0 to 127.
static MAGNITUDES: std::sync::LazyLock<[f32; 128]> =
    std::sync::LazyLock::new(|| std::array::from_fn(|code| from_e4m3(code as u8)));

multi_isa! {
    fn fill(scale: f32, magnitudes: &[f32; 128], low: &mut [u8; 128], high: &mut [u8; 128]) {
        for i in 0..128 {
            let bits = to_bf16(magnitudes[i] * scale).to_bits();
            low[i] = bits as u8;
            high[i] = (bits >> 8) as u8;
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod vbmi {
    //! Tables in registers.
    use std::arch::x86_64::*;

    use super::Table;

    /// A [`Table`], in four registers.
    #[derive(Clone, Copy)]
    pub struct Loaded {
        low: [__m512i; 2],
        high: [__m512i; 2],
    }

    impl Loaded {
        #[inline]
        #[target_feature(enable = "avx512f")]
        pub fn of(table: &Table) -> Self {
            // SAFETY: a table is 128 bytes of each.
            let load = |bytes: &[u8; 128]| unsafe {
                [_mm512_loadu_si512(bytes.as_ptr().cast()), _mm512_loadu_si512(bytes[64..].as_ptr().cast())]
            };
            Self { low: load(&table.low), high: load(&table.high) }
        }

        /// The numbers of a line of codes in 16 columns: `(k, k + 2)` and `(k + 1, k + 3)`, the earlier one in the upper half.
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
        pub fn couples(self, codes: __m512i) -> [__m512i; 2] {
            const X_AND_80_OR_Y: i32 = 0xEA; // of (x, 0x80, y)
            let low = _mm512_permutex2var_epi8(self.low[0], codes, self.low[1]);
            let high = _mm512_permutex2var_epi8(self.high[0], codes, self.high[1]);
            let high = _mm512_ternarylogic_epi32::<X_AND_80_OR_Y>(codes, _mm512_set1_epi8(0x80_u8 as i8), high);
            [_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)]
        }
    }
}

/// [`Table::expand`], a line at a time.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn expand_vbmi(table: &Table, codes: &[u8], out: &mut [bf16]) {
    use std::arch::x86_64::*;
    let table = vbmi::Loaded::of(table);
    const UPPER: __mmask32 = 0xAAAA_AAAA;
    for (codes, out) in codes.chunks_exact(LINE).zip(out.chunks_mut(LINE)) {
        // SAFETY: a line is 64 bytes; `out` is one or two pairs of 64 bytes each.
        unsafe {
            let [even, odd] = table.couples(_mm512_loadu_si512(codes.as_ptr().cast()));
            let first = _mm512_mask_mov_epi16(_mm512_srli_epi32::<16>(even), UPPER, odd);
            let second = _mm512_mask_mov_epi16(even, UPPER, _mm512_slli_epi32::<16>(odd));
            _mm512_storeu_si512(out.as_mut_ptr().cast(), first);
            if out.len() == LINE {
                _mm512_storeu_si512(out[PAIR..].as_mut_ptr().cast(), second);
            }
        }
    }
}
