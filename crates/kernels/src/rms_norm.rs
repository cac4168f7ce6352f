//! Root-mean-square normalisation over the last dimension, both passes.
//!
//! Source: Zhang and Sennrich 2019, arXiv:1910.07467. Shapes: `T` tokens, `D` model width.

use crate::{
    isa::{Isa, multi_isa},
    math::sum16,
    rows,
    tensor::{Dtype, Element, Tensor, with_element},
};

/// Tokens whose gain gradients are summed before they are added to the total.
const PARTIAL: usize = 64;

/// `y[t, d] = x[t, d] · rrms[t] · gain[d]`, where `rrms = 1 / √(mean(x²) + eps)`, all in f32, `y` rounded once to `dtype`.
///
/// `x`: `[T, D]`; `gain`: `[D]`. Returns `y` and `rrms` `[T]`, kept for [`backward`].
pub fn forward(isa: Isa, x: &Tensor, gain: &[f32], eps: f32, dtype: Dtype) -> (Tensor, Vec<f32>) {
    assert_eq!(x.cols, gain.len());
    with_element!(x.dtype(), X => with_element!(dtype, Y => {
        let (y, rrms) = rows::make2(x.rows, x.cols, 1, |first, y: &mut [Y], r| {
            forward_rows(isa, first, x, gain, eps, bytemuck::cast_slice_mut(y), r, Y::DTYPE, X::DTYPE);
        });
        (Tensor::of(y, x.rows, x.cols), rrms)
    }))
}

/// The sum `s = h + added` and its norm, as [`forward`] gives it, while the rows are in cache. `h`: f32 `[T, D]`. Returns `s`, `y`, `rrms`.
pub fn sum_forward(
    isa: Isa,
    h: &Tensor,
    added: &Tensor,
    gain: &[f32],
    eps: f32,
    dtype: Dtype,
) -> (Tensor, Tensor, Vec<f32>) {
    let d = gain.len();
    assert_eq!([h.rows, h.cols, d], [added.rows, added.cols, added.cols]);
    let from = h.f32();
    with_element!(dtype, Y => {
        let (s, y, rrms) = rows::make3(h.rows, [d, d, 1], |first, s: &mut [f32], y: &mut [Y], r: &mut [f32]| {
            s.copy_from_slice(&from[first * d..][..s.len()]);
            add_forward_rows(isa, first, s, added, gain, eps, bytemuck::cast_slice_mut(y), Y::DTYPE, r);
        });
        (Tensor::of(s, h.rows, d), Tensor::of(y, h.rows, d), rrms)
    })
}

/// [`sum_forward`] with the sum in place of `h`. Returns `y`.
pub fn add_forward(isa: Isa, h: &mut Tensor, added: &Tensor, gain: &[f32], eps: f32, dtype: Dtype) -> Tensor {
    let d = gain.len();
    assert_eq!([h.rows, h.cols, d], [added.rows, added.cols, added.cols]);
    with_element!(dtype, Y => {
        let (y, _) = rows::beside2(h.f32_mut(), [d, d, 1], |first, h, y: &mut [Y], r: &mut [f32]| {
            add_forward_rows(isa, first, h, added, gain, eps, bytemuck::cast_slice_mut(y), Y::DTYPE, r);
        });
        Tensor::of(y, h.rows, d)
    })
}

#[allow(clippy::too_many_arguments)]
fn add_forward_rows(
    isa: Isa,
    first: usize,
    h: &mut [f32],
    added: &Tensor,
    gain: &[f32],
    eps: f32,
    y: &mut [u8],
    y_type: Dtype,
    rrms: &mut [f32],
) {
    with_element!(added.dtype(), A => {
        let added = &A::slice(added)[first * gain.len()..];
        h.iter_mut().zip(added).for_each(|(h, a)| *h += a.widen());
    });
    rows_forward(isa, bytemuck::cast_slice(h), Dtype::F32, gain, eps, y, y_type, rrms);
}

#[allow(clippy::too_many_arguments)]
fn forward_rows(
    isa: Isa,
    first: usize,
    x: &Tensor,
    gain: &[f32],
    eps: f32,
    y: &mut [u8],
    rrms: &mut [f32],
    y_type: Dtype,
    x_type: Dtype,
) {
    with_element!(x_type, X => with_element!(y_type, Y => {
        let x = &X::slice(x)[first * gain.len()..];
        let y: &mut [Y] = bytemuck::cast_slice_mut(y);
        rows_forward(isa, bytemuck::cast_slice(x), X::DTYPE, gain, eps, bytemuck::cast_slice_mut(y), Y::DTYPE, rrms);
    }));
}

multi_isa! {
    #[allow(clippy::too_many_arguments)]
    fn rows_forward(x: &[u8], x_type: Dtype, gain: &[f32], eps: f32, y: &mut [u8], y_type: Dtype, rrms: &mut [f32]) {
        with_element!(x_type, X => with_element!(y_type, Y => {
            let (x, y): (&[X], &mut [Y]) = (bytemuck::cast_slice(x), bytemuck::cast_slice_mut(y));
            let d = gain.len();
            for ((x, y), r) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)).zip(rrms) {
                *r = 1.0 / (sum16(d, |i| x[i].widen() * x[i].widen()) / d as f32 + eps).sqrt();
                for i in 0..d {
                    y[i] = Y::narrow(x[i].widen() * *r * gain[i]);
                }
            }
        }));
    }
}

/// Adds ∂loss/∂x to `dx` and ∂loss/∂gain to `dgain` (if asked), given `dy` = ∂loss/∂y.
///
/// `x`, `dy`, `dx`: `[T, D]`, the gradients f32; `rrms`: `[T]`; `gain`, `dgain`: `[D]`; `x`, `rrms` as in [`forward`].
/// Each `x[d]` moves `y[d]` directly and all of `y` through `rrms`, hence two terms:
/// `dx = rrms · g − x · rrms³ · mean(g · x)`, where `g = dy · gain`. Gain gradients are summed in partials of 64 tokens.
pub fn backward(
    isa: Isa,
    x: &Tensor,
    gain: &[f32],
    rrms: &[f32],
    dy: &Tensor,
    dx: &mut Tensor,
    dgain: Option<&mut [f32]>,
) {
    let d = gain.len();
    assert_eq!([x.cols, dy.cols, dx.cols], [d; 3]);
    assert_eq!([x.rows, dy.rows, dx.rows], [rrms.len(); 3]);
    let mut partials = vec![0.0; rrms.len().div_ceil(PARTIAL) * d];
    let dy = dy.f32();
    with_element!(x.dtype(), X => {
        let x = X::slice(x);
        rows::zip2_of(PARTIAL, dx.f32_mut(), d, &mut partials, d, |first, dx, partial| {
            let n = dx.len();
            let (x, dy) = (&x[first * d..][..n], &dy[first * d..][..n]);
            rows_backward(isa, bytemuck::cast_slice(x), X::DTYPE, gain, &rrms[first..], dy, dx, partial);
        });
    });
    if let Some(dgain) = dgain {
        for partial in partials.chunks_exact(d) {
            dgain.iter_mut().zip(partial).for_each(|(d, p)| *d += p);
        }
    }
}

multi_isa! {
    #[allow(clippy::too_many_arguments)]
    fn rows_backward(
        x: &[u8],
        x_type: Dtype,
        gain: &[f32],
        rrms: &[f32],
        dy: &[f32],
        dx: &mut [f32],
        partial: &mut [f32],
    ) {
        with_element!(x_type, X => {
            let x: &[X] = bytemuck::cast_slice(x);
            let d = gain.len();
            for (((x, dy), dx), r) in x.chunks_exact(d).zip(dy.chunks_exact(d)).zip(dx.chunks_exact_mut(d)).zip(rrms) {
                let mean_gx = sum16(d, |i| dy[i] * gain[i] * x[i].widen()) / d as f32;
                let c = r * r * r * mean_gx;
                for i in 0..d {
                    dx[i] += r * dy[i] * gain[i] - x[i].widen() * c;
                    partial[i] += dy[i] * x[i].widen() * r;
                }
            }
        });
    }
}
