//! Activations and gradients in E4M3, with a scale per tile.
//!
//! A quantised operand *is* the bf16 number `round(code · scale)` (exact where the scale is a power of two), so products stay those of bf16:
//! [`numbers`] gives the operand, [`Quantized`] keeps it in one byte, and both say the same. What attention reads again is kept in E5M6. Partial last tiles have a scale of their own
//! elements.
//!
//! Source: DeepSeek-V3, arXiv:2412.19437, section 3.3.

use half::bf16;

use crate::{
    formats::{
        BLOCK_MAX_FLOOR, E4M3_MAX, E5M6_MAX, ScaleFormat, block_scale, block_scale_to, from_e5m6, to_e4m3, to_e5m6,
    },
    isa::{Isa, multi_isa},
    math::to_bf16,
    rows,
    tensor::{Dtype, Element, Tensor, with_element},
};

/// Columns of a tile along a row, rows of one along a column.
pub const TILE: usize = 128;

/// What shares a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tiles {
    /// 1 × 128: a token's own, whatever its neighbours are.
    Rows,
    /// 128 × 1, along tokens.
    Columns,
    /// 128 × 128.
    Blocks,
}

/// A tensor in few bits per element and 1 × 128 tiles, `[rows, cols]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    /// E4M3, one byte each; or E5M6, two in three bytes, a row's last one alone in two.
    codes: Vec<u8>,
    e5m6: bool,
    /// `[rows, ⌈cols / 128⌉]`
    scales: Vec<f32>,
    /// Number of rows, usually tokens.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
}

impl Quantized {
    /// The nearest codes of `x`, f32 or bf16.
    pub fn of(isa: Isa, x: &Tensor, format: ScaleFormat) -> Self {
        let (n, cols, wide) = (x.rows, x.cols, x.cols.div_ceil(TILE));
        if n * cols == 0 {
            return Self { codes: vec![], e5m6: false, scales: vec![], rows: n, cols };
        }
        let (codes, scales) = with_element!(x.dtype(), X => {
            let x = X::slice(x);
            rows::make2(n, cols, wide, |first, codes: &mut [u8], scales: &mut [f32]| {
                let x = &x[first * cols..][..codes.len()];
                for ((x, codes), scales) in x.chunks(cols).zip(codes.chunks_mut(cols)).zip(scales.chunks_mut(wide)) {
                    encode(isa, bytemuck::cast_slice(x), X::DTYPE, format, codes, scales);
                }
            })
        });
        Self { codes, e5m6: false, scales, rows: n, cols }
    }

    /// The nearest numbers of E5M6 under scales that are powers of two: what attention reads again in backward.
    pub fn e5m6(isa: Isa, x: &Tensor) -> Self {
        let (n, cols, wide, stride) = (x.rows, x.cols, x.cols.div_ceil(TILE), packed12(x.cols));
        if n * cols == 0 {
            return Self { codes: vec![], e5m6: true, scales: vec![], rows: n, cols };
        }
        let (codes, scales) = with_element!(x.dtype(), X => {
            let x = X::slice(x);
            rows::make2(n, stride, wide, |first, codes: &mut [u8], scales: &mut [f32]| {
                let x = x[first * cols..].chunks(cols);
                for ((x, codes), scales) in x.zip(codes.chunks_mut(stride)).zip(scales.chunks_mut(wide)) {
                    encode12(isa, bytemuck::cast_slice(x), X::DTYPE, codes, scales);
                }
            })
        });
        Self { codes, e5m6: true, scales, rows: n, cols }
    }

    /// The numbers, bf16: of E4M3 those of [`Ops::fp8_numbers`](crate::Ops::fp8_numbers) in [`Tiles::Rows`].
    pub fn expand(&self, isa: Isa) -> Tensor {
        let (cols, wide) = (self.cols, self.cols.div_ceil(TILE));
        if self.e5m6 {
            let stride = packed12(cols);
            return Tensor::make::<bf16>(self.rows, cols, |first, y| {
                let rows = self.codes[first * stride..].chunks(stride).zip(self.scales[first * wide..].chunks(wide));
                for (y, (codes, scales)) in y.chunks_mut(cols).zip(rows) {
                    decode12(isa, codes, scales, y);
                }
            });
        }
        Tensor::make::<bf16>(self.rows, cols, |first, y| {
            let rows = self.codes[first * cols..].chunks(cols).zip(self.scales[first * wide..].chunks(wide));
            for (y, (codes, scales)) in y.chunks_mut(cols).zip(rows) {
                decode(isa, codes, scales, y);
            }
        })
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.codes.len() + 4 * self.scales.len()
    }
}

/// The numbers that `x`, f32 or bf16, has in E4M3 under scales of its tiles, as bf16. Tiles along or across tokens begin anew at each of
/// `offsets`, which cut all rows; a tile's largest magnitude counts as `floor` at least.
///
/// # Panics
/// Unless the offsets ascend from 0 to the number of rows.
pub fn numbers(isa: Isa, x: &Tensor, tiles: Tiles, offsets: &[usize], floor: f32, format: ScaleFormat) -> Tensor {
    assert!(offsets.is_sorted() && offsets.first() == Some(&0) && offsets.last() == Some(&x.rows));
    let cols = x.cols;
    let scaling = Scaling { floor, format };
    if tiles == Tiles::Rows {
        return with_element!(x.dtype(), X => {
            let x = X::slice(x);
            Tensor::make::<bf16>(x.len() / cols.max(1), cols, |first, y| {
                let x = &x[first * cols..][..y.len()];
                for (x, y) in x.chunks(cols).zip(y.chunks_mut(cols)) {
                    round_row(isa, bytemuck::cast_slice(x), X::DTYPE, scaling, y);
                }
            })
        });
    }
    // Tiles of many rows: a piece of up to 128 of a group at a time.
    let mut y = Tensor::zeros(Dtype::Bf16, x.rows, cols);
    let out = bf16::slice_mut(&mut y);
    let pieces: Vec<_> = offsets
        .windows(2)
        .flat_map(|w| (w[0]..w[1]).step_by(TILE).map(move |first| first..w[1].min(first + TILE)))
        .collect();
    let mut rest = out;
    let mut parts = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let (part, after) = rest.split_at_mut(piece.len() * cols);
        parts.push((piece, part));
        rest = after;
    }
    use rayon::prelude::*;
    with_element!(x.dtype(), X => {
        let x = X::slice(x);
        parts.into_par_iter().for_each(|(piece, y)| {
            let x = &x[piece.start * cols..piece.end * cols];
            round_piece(isa, bytemuck::cast_slice(x), X::DTYPE, cols, tiles == Tiles::Blocks, scaling, y);
        });
    });
    y
}

/// The number of E4M3 next to `x`, ties to the even code; ±448 beyond; NaN stays NaN: `from_e4m3(to_e4m3(x))` without a table.
#[inline(always)]
fn nearest(x: f32) -> f32 {
    let a = x.abs().min(E4M3_MAX);
    let bits = a.to_bits();
    let normal = f32::from_bits((bits + 0x7_FFFF + (bits >> 20 & 1)) & !0xF_FFFF);
    // The last place of 2¹⁴ is 2⁻⁹, the step of subnormals: this addition rounds to it.
    let small = (a + 16_384.0) - 16_384.0;
    let near = if bits < 0x3C80_0000 { small } else { normal }; // 2⁻⁶
    let near = near.copysign(x);
    if x.is_nan() { x } else { near }
}

/// The number of a code, without a table.
#[inline(always)]
fn number(code: u8) -> f32 {
    let m = u32::from(code & 0x7F);
    let normal = f32::from_bits((m << 20) + (120 << 23));
    let near = if m < 8 { m as f32 * (1.0 / 512.0) } else { normal };
    let near = if m == 0x7F { f32::NAN } else { near };
    f32::from_bits(near.to_bits() | u32::from(code & 0x80) << 24)
}

/// Largest magnitude: as bits they are ordered as numbers are, NaN above all.
#[inline(always)]
fn largest<X: Element>(x: &[X], max: u32) -> u32 {
    x.iter().map(|x| x.widen().to_bits() & 0x7FFF_FFFF).fold(max, u32::max)
}

multi_isa! {
    pub(crate) fn encode(x: &[u8], dtype: Dtype, format: ScaleFormat, codes: &mut [u8], scales: &mut [f32]) {
        with_element!(dtype, X => {
            let x: &[X] = bytemuck::cast_slice(x);
            for ((x, codes), scale) in x.chunks(TILE).zip(codes.chunks_mut(TILE)).zip(scales) {
                *scale = block_scale(f32::from_bits(largest(x, 0)), format);
                x.iter().zip(codes).for_each(|(x, code)| *code = to_e4m3(x.widen() / *scale));
            }
        });
    }
}

multi_isa! {
    fn decode(codes: &[u8], scales: &[f32], y: &mut [bf16]) {
        for ((codes, y), scale) in codes.chunks(TILE).zip(y.chunks_mut(TILE)).zip(scales) {
            codes.iter().zip(y).for_each(|(code, y)| *y = to_bf16(number(*code) * *scale));
        }
    }
}

/// Bytes of `n` numbers of 12 bits.
fn packed12(n: usize) -> usize {
    n / 2 * 3 + n % 2 * 2
}

multi_isa! {
    fn encode12(x: &[u8], dtype: Dtype, codes: &mut [u8], scales: &mut [f32]) {
        with_element!(dtype, X => {
            let x: &[X] = bytemuck::cast_slice(x);
            for ((x, codes), scale) in x.chunks(TILE).zip(codes.chunks_mut(TILE / 2 * 3)).zip(scales) {
                *scale = block_scale_to(f32::from_bits(largest(x, 0)), E5M6_MAX, BLOCK_MAX_FLOOR, ScaleFormat::Ue8m0);
                let code = |x: &X| to_e5m6(x.widen() / *scale);
                for (x, codes) in x.chunks(2).zip(codes.chunks_mut(3)) {
                    let a = code(&x[0]);
                    codes[0] = a as u8;
                    codes[1] = (a >> 8) as u8;
                    if let Some(x) = x.get(1) {
                        let b = code(x);
                        codes[1] |= (b << 4) as u8;
                        codes[2] = (b >> 4) as u8;
                    }
                }
            }
        });
    }
}

multi_isa! {
    fn decode12(codes: &[u8], scales: &[f32], y: &mut [bf16]) {
        for ((codes, y), scale) in codes.chunks(TILE / 2 * 3).zip(y.chunks_mut(TILE)).zip(scales) {
            let number = |code: u16| to_bf16(from_e5m6(code) * *scale);
            for (codes, y) in codes.chunks(3).zip(y.chunks_mut(2)) {
                y[0] = number(u16::from(codes[0]) | u16::from(codes[1] & 15) << 8);
                if let Some(y) = y.get_mut(1) {
                    *y = number(u16::from(codes[1] >> 4) | u16::from(codes[2]) << 4);
                }
            }
        }
    }
}

/// How a tile's largest magnitude becomes its scale.
#[derive(Clone, Copy)]
struct Scaling {
    floor: f32,
    format: ScaleFormat,
}

impl Scaling {
    /// `max`: the bits of a magnitude.
    #[inline(always)]
    fn of(self, max: u32) -> f32 {
        block_scale_to(f32::from_bits(max), E4M3_MAX, self.floor, self.format)
    }
}

multi_isa! {
    fn round_row(x: &[u8], dtype: Dtype, scaling: Scaling, y: &mut [bf16]) {
        with_element!(dtype, X => {
            let x: &[X] = bytemuck::cast_slice(x);
            for (x, y) in x.chunks(TILE).zip(y.chunks_mut(TILE)) {
                let scale = scaling.of(largest(x, 0));
                x.iter().zip(y).for_each(|(x, y)| *y = to_bf16(nearest(x.widen() / scale) * scale));
            }
        });
    }
}

multi_isa! {
    /// Rows that share their scales, column by column or 128 columns by 128 columns.
    fn round_piece(x: &[u8], dtype: Dtype, cols: usize, blocks: bool, scaling: Scaling, y: &mut [bf16]) {
        with_element!(dtype, X => {
            let x: &[X] = bytemuck::cast_slice(x);
            let mut maxima = vec![0; cols];
            for row in x.chunks(cols) {
                maxima.iter_mut().zip(row).for_each(|(max, x)| *max = (*max).max(x.widen().to_bits() & 0x7FFF_FFFF));
            }
            let mut scales = vec![0.0; cols];
            for (max, scales) in maxima.chunks(TILE).zip(scales.chunks_mut(TILE)) {
                let all = max.iter().copied().fold(0, u32::max);
                for (scale, max) in scales.iter_mut().zip(max) {
                    *scale = scaling.of(if blocks { all } else { *max });
                }
            }
            for (x, y) in x.chunks(cols).zip(y.chunks_mut(cols)) {
                for ((x, y), scale) in x.iter().zip(y).zip(&scales) {
                    *y = to_bf16(nearest(x.widen() / scale) * scale);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::{from_e4m3, is_nan_e4m3};

    #[test]
    fn arithmetic_gives_the_numbers_of_the_definition() {
        for bits in (0..=u32::MAX).step_by(2_003) {
            let x = f32::from_bits(bits);
            let (a, b) = (nearest(x), from_e4m3(to_e4m3(x)));
            assert!(a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan(), "{x:e}: {a:e} {b:e}");
        }
        for code in 0..=255_u8 {
            // Every number, what lies half way to the next, and one place beside that.
            let x = from_e4m3(code);
            assert!(number(code).to_bits() == x.to_bits() || is_nan_e4m3(code) && number(code).is_nan(), "{code:#x}");
            let tie = (x + from_e4m3(code.wrapping_add(1))) / 2.0;
            for x in [x, tie, tie.next_up(), tie.next_down()] {
                let (a, b) = (nearest(x), from_e4m3(to_e4m3(x)));
                assert!(a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan(), "{x:e}: {a:e} {b:e}");
            }
        }
    }
}
