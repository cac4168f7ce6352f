//! Elementwise operations of more than one layer, and copies between layouts.

use crate::{
    isa::{Isa, multi_isa},
    math::sigmoid,
    rows,
    tensor::{Dtype, Element, Tensor, with_element},
};

/// `silu(g) ∘ u` in the dtype of `g`. Source: Shazeer 2020, arXiv:2002.05202.
pub fn silu_mul(isa: Isa, g: &Tensor, u: &Tensor) -> Tensor {
    assert!(g.rows == u.rows && g.cols == u.cols && g.dtype() == u.dtype());
    let (rows, cols) = (g.rows, g.cols);
    with_element!(g.dtype(), E => {
        let (g, u) = (E::slice(g), E::slice(u));
        Tensor::make::<E>(rows, cols, |first, y| {
            let at = first * cols..first * cols + y.len();
            let (g, u) = (bytemuck::cast_slice(&g[at.clone()]), bytemuck::cast_slice(&u[at]));
            silu_mul_slice(isa, g, u, bytemuck::cast_slice_mut(y), E::DTYPE);
        })
    })
}

multi_isa! {
    fn silu_mul_slice(g: &[u8], u: &[u8], y: &mut [u8], dtype: Dtype) {
        with_element!(dtype, E => {
            let (g, u): (&[E], &[E]) = (bytemuck::cast_slice(g), bytemuck::cast_slice(u));
            let y: &mut [E] = bytemuck::cast_slice_mut(y);
            for ((y, g), u) in y.iter_mut().zip(g).zip(u) {
                let g = g.widen();
                *y = E::narrow(g * sigmoid(g) * u.widen());
            }
        });
    }
}

/// Gradients `(dg, du)` of [`silu_mul`] in f32, given `da` = ∂loss/∂(silu(g) ∘ u).
pub fn silu_mul_grad(isa: Isa, g: &Tensor, u: &Tensor, da: &Tensor) -> (Tensor, Tensor) {
    let (rows, cols) = (g.rows, g.cols);
    let da = da.f32();
    assert_eq!(da.len(), rows * cols);
    let (dg, du) = with_element!(g.dtype(), E => {
        let (g, u) = (E::slice(g), E::slice(u));
        rows::make2(rows, cols, cols, |first, dg, du| {
            let at = first * cols..first * cols + dg.len();
            let (g, u) = (bytemuck::cast_slice(&g[at.clone()]), bytemuck::cast_slice(&u[at.clone()]));
            silu_mul_grad_slice(isa, g, u, E::DTYPE, &da[at], dg, du);
        })
    });
    (Tensor::of(dg, rows, cols), Tensor::of(du, rows, cols))
}

multi_isa! {
    fn silu_mul_grad_slice(g: &[u8], u: &[u8], dtype: Dtype, da: &[f32], dg: &mut [f32], du: &mut [f32]) {
        with_element!(dtype, E => {
            let (g, u): (&[E], &[E]) = (bytemuck::cast_slice(g), bytemuck::cast_slice(u));
            for ((((dg, du), g), u), da) in dg.iter_mut().zip(du).zip(g).zip(u).zip(da) {
                let (g, u) = (g.widen(), u.widen());
                let s = sigmoid(g);
                *du = da * (g * s);
                *dg = da * u * (s * (1.0 + g * (1.0 - s)));
            }
        });
    }
}

/// `h += y` for f32 `h`.
pub fn add(h: &mut Tensor, y: &Tensor) {
    assert!(h.rows == y.rows && h.cols == y.cols);
    let cols = h.cols;
    with_element!(y.dtype(), E => {
        let y = E::slice(y);
        rows::each(h.f32_mut(), cols, |first, h| {
            h.iter_mut().zip(&y[first * cols..]).for_each(|(h, y)| *h += y.widen());
        });
    });
}

/// `h + y` for f32 `h`.
pub fn sum(h: &Tensor, y: &Tensor) -> Tensor {
    assert!(h.rows == y.rows && h.cols == y.cols);
    let (h, cols) = (h.f32(), h.cols);
    with_element!(y.dtype(), E => {
        let from = E::slice(y);
        Tensor::make::<f32>(y.rows, cols, |first, sum| {
            let terms = h[first * cols..].iter().zip(&from[first * cols..]);
            sum.iter_mut().zip(terms).for_each(|(sum, (h, y))| *sum = h + y.widen());
        })
    })
}

/// Columns `from..from + n` of `x`.
pub fn columns(x: &Tensor, from: usize, n: usize) -> Tensor {
    assert!(from + n <= x.cols);
    with_element!(x.dtype(), E => {
        let x_ = E::slice(x);
        Tensor::make::<E>(x.rows, n, |first, y| {
            for (y, x) in y.chunks_exact_mut(n).zip(x_[first * x.cols..].chunks_exact(x.cols)) {
                y.copy_from_slice(&x[from..from + n]);
            }
        })
    })
}

/// `a` and `b` side by side.
pub fn beside(a: &Tensor, b: &Tensor) -> Tensor {
    assert!(a.rows == b.rows && a.dtype() == b.dtype());
    let (ca, cb) = (a.cols, b.cols);
    with_element!(a.dtype(), E => {
        let (a_, b_) = (E::slice(a), E::slice(b));
        Tensor::make::<E>(a.rows, ca + cb, |first, y| {
            let sources = a_[first * ca..].chunks_exact(ca).zip(b_[first * cb..].chunks_exact(cb));
            for (y, (a, b)) in y.chunks_exact_mut(ca + cb).zip(sources) {
                y[..ca].copy_from_slice(a);
                y[ca..].copy_from_slice(b);
            }
        })
    })
}

/// Widths of a latent attention's heads: unrotated and rotated part of a key, and a value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LatentHeads {
    /// `H`
    pub heads: usize,
    /// `qk_nope_head_dim`
    pub nope: usize,
    /// `qk_rope_head_dim`
    pub rope: usize,
    /// `v_head_dim`
    pub v: usize,
}

/// Splits `kv` `[T, H·(nope + v)]` and repeats the shared `kr` `[T, rope]`: keys `[T, H·(nope + rope)]`, values `[T, H·v]`.
pub fn latent_split(kv: &Tensor, kr: &Tensor, d: LatentHeads) -> (Tensor, Tensor) {
    assert!(kv.cols == d.heads * (d.nope + d.v) && kr.cols == d.rope && kv.rows == kr.rows);
    let (ck, cv) = (d.heads * (d.nope + d.rope), d.heads * d.v);
    with_element!(kv.dtype(), E => {
        let (kv_, kr_) = (E::slice(kv), E::slice(kr));
        let (k, v) = rows::make2(kv.rows, ck, cv, |first, k: &mut [E], v: &mut [E]| {
            for (t, (k, v)) in k.chunks_exact_mut(ck).zip(v.chunks_exact_mut(cv)).enumerate() {
                let (kv, kr) = (&kv_[(first + t) * kv.cols..][..kv.cols], &kr_[(first + t) * d.rope..][..d.rope]);
                for ((k, v), kv) in k
                    .chunks_exact_mut(d.nope + d.rope)
                    .zip(v.chunks_exact_mut(d.v))
                    .zip(kv.chunks_exact(d.nope + d.v))
                {
                    k[..d.nope].copy_from_slice(&kv[..d.nope]);
                    k[d.nope..].copy_from_slice(kr);
                    v.copy_from_slice(&kv[d.nope..]);
                }
            }
        });
        (Tensor::of(k, kv.rows, ck), Tensor::of(v, kv.rows, cv))
    })
}

/// Of each head `[nope ; rope]` of `q` the rope part, behind `latent` zeros: `[T, H·(latent + rope)]`.
pub fn widen_heads(q: &Tensor, heads: usize, nope: usize, rope: usize, latent: usize) -> Tensor {
    with_element!(q.dtype(), E => {
        let q_ = E::slice(q);
        Tensor::make::<E>(q.rows, heads * (latent + rope), |first, y| {
            for (y, q) in y.chunks_exact_mut(latent + rope).zip(q_[first * q.cols..].chunks_exact(nope + rope)) {
                y[latent..].copy_from_slice(&q[nope..]);
            }
        })
    })
}

/// Gradients of [`latent_split`]: `dkv` `[T, H·(nope + v)]` and `dkr` `[T, rope]`, heads summed in ascending order.
pub fn latent_split_grad(dk: &Tensor, dv: &Tensor, d: LatentHeads) -> (Tensor, Tensor) {
    let (rows, c, ck, cv) = (dk.rows, d.heads * (d.nope + d.v), dk.cols, dv.cols);
    let (dk, dv) = (dk.f32(), dv.f32());
    let (dkv, dkr) = rows::make2(rows, c, d.rope, |first, dkv: &mut [f32], dkr: &mut [f32]| {
        for (t, (dkv, dkr)) in dkv.chunks_exact_mut(c).zip(dkr.chunks_exact_mut(d.rope)).enumerate() {
            let (dk, dv) = (&dk[(first + t) * ck..][..ck], &dv[(first + t) * cv..][..cv]);
            for ((dkv, dk), dv) in
                dkv.chunks_exact_mut(d.nope + d.v).zip(dk.chunks_exact(d.nope + d.rope)).zip(dv.chunks_exact(d.v))
            {
                dkv[..d.nope].copy_from_slice(&dk[..d.nope]);
                dkv[d.nope..].copy_from_slice(dv);
                dkr.iter_mut().zip(&dk[d.nope..]).for_each(|(r, k)| *r += k);
            }
        }
    });
    (Tensor::of(dkv, rows, c), Tensor::of(dkr, rows, d.rope))
}
