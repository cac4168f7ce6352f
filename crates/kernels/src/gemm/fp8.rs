//! Right operands stored as E4M3 codes, one byte each, with a scale per 128 × 128 block.
//!
//! An element is the bf16 number `round(code · scale)`: the product is the house dot product of bf16, and only where the operand comes from
//! differs. Codes lie in panels as bf16 elements do (`pack.rs`). As a product takes a piece of them, each code is looked up in a table of its
//! block, in which the scale is folded: 128 magnitudes, the sign added after.
//!
//! Source: DeepSeek-V3, arXiv:2412.19437, section 3.3.2 (128 × 128 blocks of weights).

use half::bf16;

use super::{
    Right,
    pack::{Aligned, PAIR, PANEL, Packed},
};
use crate::{
    formats::from_e4m3,
    isa::{Isa, multi_isa},
    math::{from_bf16, to_bf16},
};

/// Rows and columns of a block that share a scale.
pub const SCALE_BLOCK: usize = 128;
/// Pairs of a block's columns.
const BLOCK_PAIRS: usize = SCALE_BLOCK / 2;
/// Panels of a block's rows.
const BLOCK_PANELS: usize = SCALE_BLOCK / PANEL;

/// A packed matrix of codes.
#[derive(Clone)]
pub(crate) struct PackedFp8 {
    pub n: usize,
    pub k: usize,
    codes: Aligned<u8>,
    /// `[⌈N / 128⌉, ⌈K / 128⌉]`
    scales: Vec<f32>,
}

impl PackedFp8 {
    /// With codes of zero.
    pub fn zeros(scales: Vec<f32>, n: usize, k: usize) -> Self {
        assert_eq!(scales.len(), n.div_ceil(SCALE_BLOCK) * k.div_ceil(SCALE_BLOCK));
        Self { n, k, codes: Aligned::zeros(n.div_ceil(PANEL) * k.div_ceil(2) * PAIR), scales }
    }

    /// Replaces rows from `first` on by codes, row-major.
    pub fn set_codes(&mut self, first: usize, codes: &[u8]) {
        let (k, pairs) = (self.k.max(1), self.pairs());
        assert!(codes.len().is_multiple_of(k) && first + codes.len() / k <= self.n);
        for (row, codes) in (first..).zip(codes.chunks_exact(k)) {
            let panel = &mut self.codes[row / PANEL * pairs * PAIR..][..pairs * PAIR];
            let column = row % PANEL * 2;
            for (codes, pair) in codes.chunks(2).zip(panel.chunks_exact_mut(PAIR)) {
                pair[column..][..codes.len()].copy_from_slice(codes);
            }
        }
    }

    pub fn pairs(&self) -> usize {
        self.k.div_ceil(2)
    }

    pub fn bytes(&self) -> usize {
        self.codes.len() + 4 * self.scales.len()
    }

    fn scale(&self, row: usize, column: usize) -> f32 {
        self.scales[row / SCALE_BLOCK * self.k.div_ceil(SCALE_BLOCK) + column / SCALE_BLOCK]
    }

    /// Row `n` as f32.
    pub fn row(&self, n: usize, row: &mut [f32]) {
        let panel = &self.codes[n / PANEL * self.pairs() * PAIR..];
        for (i, x) in row.iter_mut().enumerate() {
            let code = panel[i / 2 * PAIR + n % PANEL * 2 + i % 2];
            *x = from_bf16(to_bf16(from_e4m3(code) * self.scale(n, i)));
        }
    }

    /// All of it in bf16.
    pub fn to_bf16(&self, isa: Isa) -> Packed<bf16> {
        let mut all = Packed::zeros(self.n, self.k);
        let panels = self.n.div_ceil(PANEL);
        self.expand(isa, 0..panels, 0..self.pairs(), &mut all.data);
        all
    }

    /// Some panels and pairs as bf16, `out[panel][pair][16][2]`.
    pub fn right<'a>(
        &self,
        isa: Isa,
        panels: std::ops::Range<usize>,
        pairs: std::ops::Range<usize>,
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

    fn expand(&self, isa: Isa, panels: std::ops::Range<usize>, pairs: std::ops::Range<usize>, out: &mut [bf16]) {
        let stride = pairs.len() * PAIR;
        let mut table = Table::default();
        let mut p = panels.start;
        while p < panels.end {
            let same_rows = ((p / BLOCK_PANELS + 1) * BLOCK_PANELS).min(panels.end);
            let mut q = pairs.start;
            while q < pairs.end {
                let same_columns = ((q / BLOCK_PAIRS + 1) * BLOCK_PAIRS).min(pairs.end);
                table.fill(isa, self.scale(p * PANEL, 2 * q));
                for panel in p..same_rows {
                    let at = (panel * self.pairs() + q) * PAIR;
                    let to = (panel - panels.start) * stride + (q - pairs.start) * PAIR;
                    let len = (same_columns - q) * PAIR;
                    table.look_up(isa, &self.codes[at..at + len], &mut out[to..to + len]);
                }
                q = same_columns;
            }
            p = same_rows;
        }
    }
}

/// The numbers of the codes 0 to 127 under one scale, as low and high bytes of bf16.
#[repr(C, align(64))]
struct Table {
    low: [u8; 128],
    high: [u8; 128],
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

    fn look_up(&self, isa: Isa, codes: &[u8], out: &mut [bf16]) {
        #[cfg(target_arch = "x86_64")]
        if isa.has_vbmi() {
            // SAFETY: just asked.
            return unsafe { look_up_vbmi(self, codes, out) };
        }
        let _ = isa;
        for (out, code) in out.iter_mut().zip(codes) {
            let magnitude = usize::from(code & 0x7F);
            *out = bf16::from_le_bytes([self.low[magnitude], self.high[magnitude] | code & 0x80]);
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

/// [`Table::look_up`], 64 codes at a time.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn look_up_vbmi(table: &Table, codes: &[u8], out: &mut [bf16]) {
    use std::arch::x86_64::*;
    assert_eq!(codes.len(), out.len());
    // SAFETY: tables are 128 bytes each; codes and places are read and written 64 at a time while there are as many, then under a mask.
    unsafe {
        let load = |bytes: &[u8; 128]| {
            (_mm512_loadu_si512(bytes.as_ptr().cast()), _mm512_loadu_si512(bytes[64..].as_ptr().cast()))
        };
        let ((low_a, low_b), (high_a, high_b)) = (load(&table.low), load(&table.high));
        let sign = _mm512_set1_epi8(0x80_u8 as i8);
        // Bytes interleave within 128 bits; these bring the halves back in order.
        let first = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0);
        let second = _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4);
        for (codes, out) in codes.chunks(64).zip(out.chunks_mut(64)) {
            let all = codes.len() == 64;
            let mask = if all { u64::MAX } else { (1 << codes.len()) - 1 };
            let x = _mm512_maskz_loadu_epi8(mask, codes.as_ptr().cast());
            let low = _mm512_permutex2var_epi8(low_a, x, low_b);
            let high = _mm512_or_si512(_mm512_permutex2var_epi8(high_a, x, high_b), _mm512_and_si512(x, sign));
            let (a, b) = (_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high));
            let (head, tail) = (_mm512_permutex2var_epi64(a, first, b), _mm512_permutex2var_epi64(a, second, b));
            let to = out.as_mut_ptr();
            if all {
                _mm512_storeu_si512(to.cast(), head);
                _mm512_storeu_si512(to.add(32).cast(), tail);
            } else {
                _mm512_mask_storeu_epi16(to.cast(), mask as u32, head);
                _mm512_mask_storeu_epi16(to.wrapping_add(32).cast(), (mask >> 32) as u32, tail);
            }
        }
    }
}
