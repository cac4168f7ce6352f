//! The optimizer step: AdamW, element by element.
//!
//! Source: Loshchilov and Hutter 2017, arXiv:1711.05101.

use half::bf16;
use rayon::prelude::*;

use crate::{
    gemm::{
        lanes::Packable,
        pack::{AnyPacked, Matrix, PAIR, PANEL, Packed},
    },
    isa::{Isa, multi_isa},
    tensor::{Dtype, Element, with_element},
};

/// Settings of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled decay; 0 for tensors that are not matrices.
    pub weight_decay: f32,
    /// `1 − β₁ᵗ`
    pub correction1: f32,
    /// `1 − β₂ᵗ`
    pub correction2: f32,
    /// Multiplies the gradient: the clipping factor.
    pub grad_scale: f32,
}

/// First or second moments of a parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum Moments {
    /// f32 elements.
    F32(Vec<f32>),
    /// bf16 elements, rounded to nearest even after each step.
    Bf16(Vec<bf16>),
}

impl Moments {
    /// All zero.
    pub fn zeros(dtype: Dtype, len: usize) -> Self {
        match dtype {
            Dtype::F32 => Self::F32(vec![0.0; len]),
            Dtype::Bf16 => Self::Bf16(vec![bf16::ZERO; len]),
        }
    }

    /// The elements as little-endian bytes of their own format.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::F32(x) => bytemuck::cast_slice(x),
            Self::Bf16(x) => bytemuck::cast_slice(x),
        }
    }
}

/// `p ← p·(1 − lr·decay) − lr · m̂ / (√v̂ + eps)`, with `m`, `v` the decayed means of `g` and `g²`, hats their corrections.
pub fn step(isa: Isa, s: AdamW, p: &mut [f32], g: &[f32], m: &mut Moments, v: &mut Moments) {
    match (m, v) {
        (Moments::F32(m), Moments::F32(v)) => step_typed(isa, s, p, g, m, v),
        (Moments::Bf16(m), Moments::Bf16(v)) => step_typed(isa, s, p, g, m, v),
        _ => panic!("both moments have one format"),
    }
}

fn step_typed<E: Element>(isa: Isa, s: AdamW, p: &mut [f32], g: &[f32], m: &mut [E], v: &mut [E]) {
    assert!(p.len() == g.len() && p.len() == m.len() && p.len() == v.len());
    const CHUNK: usize = 16 * 1024;
    let whole = p.par_chunks_mut(CHUNK).zip(g.par_chunks(CHUNK)).zip(m.par_chunks_mut(CHUNK));
    whole.zip(v.par_chunks_mut(CHUNK)).for_each(|(((p, g), m), v)| {
        step_slice(isa, s, p, g, bytemuck::cast_slice_mut(m), bytemuck::cast_slice_mut(v), E::DTYPE);
    });
}

/// [`step`] of a matrix `[N, K]` and, panel by panel, its compute weights anew: each number is fetched once. Weights that were
/// held as codes are held in bf16 from then on.
pub fn step_matrix(isa: Isa, s: AdamW, p: &mut [f32], g: &[f32], m: &mut Moments, v: &mut Moments, w: &mut Matrix) {
    if let AnyPacked::Fp8(codes) = &w.0 {
        w.0 = AnyPacked::Bf16(Packed::zeros(codes.n, codes.k));
    }
    match (m, v, &mut w.0) {
        (Moments::F32(m), Moments::F32(v), AnyPacked::F32(w)) => step_packed(isa, s, p, g, m, v, w),
        (Moments::F32(m), Moments::F32(v), AnyPacked::Bf16(w)) => step_packed(isa, s, p, g, m, v, w),
        (Moments::Bf16(m), Moments::Bf16(v), AnyPacked::F32(w)) => step_packed(isa, s, p, g, m, v, w),
        (Moments::Bf16(m), Moments::Bf16(v), AnyPacked::Bf16(w)) => step_packed(isa, s, p, g, m, v, w),
        _ => panic!("both moments have one format"),
    }
}

fn step_packed<E: Element, W: Packable>(
    isa: Isa,
    s: AdamW,
    p: &mut [f32],
    g: &[f32],
    m: &mut [E],
    v: &mut [E],
    w: &mut Packed<W>,
) {
    assert!([g.len(), m.len(), v.len(), w.n * w.k] == [p.len(); 4]);
    let (k, rows, panel) = (w.k, PANEL * w.k, w.pairs() * PAIR);
    if p.is_empty() {
        return;
    }
    let values = p.par_chunks_mut(rows).zip(g.par_chunks(rows)).zip(m.par_chunks_mut(rows)).zip(v.par_chunks_mut(rows));
    values.zip(w.data.par_chunks_exact_mut(panel)).for_each(|((((p, g), m), v), panel)| {
        step_slice(isa, s, p, g, bytemuck::cast_slice_mut(m), bytemuck::cast_slice_mut(v), E::DTYPE);
        Packed::<W>::fill_panel(p, k, panel);
    });
}

multi_isa! {
    #[allow(clippy::too_many_arguments)]
    fn step_slice(s: AdamW, p: &mut [f32], g: &[f32], m: &mut [u8], v: &mut [u8], dtype: Dtype) {
        with_element!(dtype, E => {
            let (m, v): (&mut [E], &mut [E]) = (bytemuck::cast_slice_mut(m), bytemuck::cast_slice_mut(v));
            let keep = 1.0 - s.lr * s.weight_decay;
            let (rate, root) = (s.lr / s.correction1, s.correction2.sqrt());
            for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
                let g = g * s.grad_scale;
                let m1 = m.widen() * s.beta1 + g * (1.0 - s.beta1);
                let v1 = v.widen() * s.beta2 + g * g * (1.0 - s.beta2);
                *m = E::narrow(m1);
                *v = E::narrow(v1);
                *p = *p * keep - rate * (m1 / (v1.sqrt() / root + s.eps));
            }
        });
    }
}

/// `Σ x²` in f64: element `i` goes to lane `i mod 16`; lanes are added ascending.
pub fn sum_of_squares(isa: Isa, x: &[f32]) -> f64 {
    // Chunks are summed on their own and added ascending, so that threads can share them.
    let parts: Vec<f64> = x.par_chunks(64 * 1024).map(|x| squares(isa, x)).collect();
    parts.iter().sum()
}

multi_isa! {
    fn squares(x: &[f32]) -> f64 {
        let mut lanes = [0.0f64; 16];
        for x in x.chunks(16) {
            for (lane, x) in lanes.iter_mut().zip(x) {
                *lane += f64::from(*x) * f64::from(*x);
            }
        }
        lanes.iter().sum()
    }
}
