//! DeepSeek-V3's mixed precision: which operands of a linear are quantised, and what is kept in one byte.
//!
//! Of a linear whose matrix is held in E4M3 ([`Matrix::is_fp8`](jevons_kernels::Matrix::is_fp8)), `y = x·Wᵀ` takes `x` in 1 × 128 tiles,
//! `dx = dy·W` takes `dy` in 1 × 128 tiles, and `dW = dyᵀ·x` takes the same numbers again ([`Wgrad::Reuse`]) or both in tiles along tokens
//! ([`Wgrad::Retile`]). A quantised operand is the bf16 number `round(code · scale)`. Other linears, norms, gate, attention, embedding and
//! head compute as in bf16.
//!
//! Source: DeepSeek-V3, arXiv:2412.19437, section 3.3.

use std::borrow::Cow;

use jevons_kernels::{
    Ops, Quantized, ScaleFormat, Tensor, Tiles,
    formats::{BLOCK_MAX_FLOOR, GRADIENT_MAX_FLOOR},
};

use crate::{ParamId, Weights};

/// How linears in FP8 compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fp8 {
    /// Of all scales.
    pub scale: ScaleFormat,
    /// Operands of the weight gradient.
    pub wgrad: Wgrad,
    /// Whether output gradients are quantised in 128 × 128 blocks instead of 1 × 128 tiles: an experiment that diverges in long runs.
    pub gradient_blocks: bool,
    /// Which matrices become codes; a linear with another matrix computes as in bf16 and keeps its input so.
    pub linears: Linears,
}

/// Linears that compute in FP8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Linears {
    /// Of attention, feed-forward and experts all, as DeepSeek-V3.
    #[default]
    All,
    /// Of these the ones whose quantising costs little beside their products, told from their shape.
    Auto {
        /// Tokens of an optimizer step.
        tokens: usize,
    },
}

/// Operands of a weight gradient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Wgrad {
    /// The numbers of the other two products: fewer roundings, and no scale depends on neighbouring tokens.
    #[default]
    Reuse,
    /// Quantised once more in 128 × 1 tiles along tokens, as hardware needs that multiplies scaled tiles.
    Retile,
}

impl Default for Fp8 {
    /// Scales that are powers of two, gradients in 1 × 128 tiles, used twice.
    fn default() -> Self {
        Self { scale: ScaleFormat::Ue8m0, wgrad: Wgrad::Reuse, gradient_blocks: false, linears: Linears::All }
    }
}

/// An input of linears, quantised once for all of them if any takes it so.
pub struct Input<'a> {
    plain: &'a Tensor,
    fp8: Option<Tensor>,
}

impl<'a> Input<'a> {
    /// `x` for these linears.
    pub fn new(ops: &Ops, w: &Weights, linears: &[ParamId], x: &'a Tensor) -> Self {
        let fp8 = linears.iter().find_map(|id| w.fp8_of(*id));
        let fp8 = fp8.map(|fp8| ops.fp8_numbers(x, Tiles::Rows, &[0, x.rows], BLOCK_MAX_FLOOR, fp8.scale));
        Self { plain: x, fp8 }
    }

    /// The operand of one of them.
    pub(crate) fn of(&self, w: &Weights, linear: ParamId) -> &Tensor {
        match &self.fp8 {
            Some(x) if w.fp8_of(linear).is_some() => x,
            _ => self.plain,
        }
    }
}

/// The operand of `dx` and, with [`Wgrad::Reuse`], of `dW` that an output gradient becomes. `offsets`: groups of tokens.
pub(crate) fn gradient<'a>(
    ops: &Ops,
    w: &Weights,
    linear: ParamId,
    dy: &'a Tensor,
    offsets: &[usize],
) -> Cow<'a, Tensor> {
    match w.fp8_of(linear) {
        Some(fp8) => {
            let tiles = if fp8.gradient_blocks { Tiles::Blocks } else { Tiles::Rows };
            Cow::Owned(ops.fp8_numbers(dy, tiles, offsets, GRADIENT_MAX_FLOOR, fp8.scale))
        }
        None => Cow::Borrowed(dy),
    }
}

/// [`gradient`] of what is not needed otherwise.
pub(crate) fn taken(ops: &Ops, w: &Weights, linear: ParamId, dy: Tensor, offsets: &[usize]) -> Tensor {
    match gradient(ops, w, linear, &dy, offsets) {
        Cow::Owned(quantised) => quantised,
        Cow::Borrowed(_) => dy,
    }
}

/// An operand of `dW` from that of another product. `offsets`: groups of tokens; `floor`: of its tiles' largest magnitudes.
pub(crate) fn retiled<'a>(
    ops: &Ops,
    w: &Weights,
    linear: ParamId,
    x: &'a Tensor,
    offsets: &[usize],
    floor: f32,
) -> Cow<'a, Tensor> {
    match w.fp8_of(linear) {
        Some(fp8) if fp8.wgrad == Wgrad::Retile => {
            Cow::Owned(ops.fp8_numbers(x, Tiles::Columns, offsets, floor, fp8.scale))
        }
        _ => Cow::Borrowed(x),
    }
}

/// An input of a linear between forward and backward, or what that input is made of.
pub(crate) enum Kept {
    /// As it is.
    Plain(Tensor),
    /// In few bits.
    Fp8(Quantized),
}

impl Kept {
    /// In one byte (E4M3) if `linear` computes in FP8.
    pub fn new(ops: &Ops, w: &Weights, linear: ParamId, x: Tensor) -> Self {
        match w.fp8_of(linear) {
            Some(fp8) => Self::Fp8(ops.fp8_keep(&x, fp8.scale)),
            None => Self::Plain(x),
        }
    }

    /// In twelve bits (E5M6), for what attention reads again: sums of values are sensitive.
    pub fn new_e5m6(ops: &Ops, w: &Weights, linear: ParamId, x: Tensor) -> Self {
        match w.fp8_of(linear) {
            Some(_) => Self::Fp8(ops.e5m6_keep(&x)),
            None => Self::Plain(x),
        }
    }

    pub fn get(&self, ops: &Ops) -> Cow<'_, Tensor> {
        match self {
            Self::Plain(x) => Cow::Borrowed(x),
            Self::Fp8(x) => Cow::Owned(ops.fp8_expand(x)),
        }
    }

    pub fn bytes(&self) -> usize {
        match self {
            Self::Plain(x) => x.bytes(),
            Self::Fp8(x) => x.bytes(),
        }
    }
}
