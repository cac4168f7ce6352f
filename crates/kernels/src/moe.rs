//! Choosing experts and moving tokens to them and back.
//!
//! Source: DeepSeek-V3 technical report, arXiv:2412.19437, equations 12 to 20; DeepSeek-V2, arXiv:2405.04434, section 2.2 (softmax
//! scores, groups by their maximum).
//! Shapes: `T` tokens, `E` routed experts, `K` experts per token, `D` model width.

use crate::{
    isa::{Isa, multi_isa},
    math::{exp, sigmoid, sum16},
    rows,
    tensor::{Dtype, Element, Tensor, with_element},
};

/// How a gate turns logits into scores, and rates a group of experts by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scoring {
    /// `sigmoid`, each expert by itself; a group counts as the sum of its two best. DeepSeek-V3.
    Sigmoid,
    /// `softmax` over all experts; a group counts as its best. DeepSeek-V2.
    Softmax,
}

/// How a gate chooses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GateShape {
    /// Logits to scores.
    pub scoring: Scoring,
    /// `E`
    pub experts: usize,
    /// `K`
    pub top_k: usize,
    /// Groups of consecutive experts.
    pub groups: usize,
    /// Groups kept per token.
    pub top_groups: usize,
    /// Divide the chosen scores by their sum.
    pub normalise: bool,
    /// Multiplies the weights.
    pub scale: f32,
}

/// What a gate decided for a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Routing {
    /// Chosen experts, `[T, K]`, ascending within a token.
    pub experts: Vec<u32>,
    /// Their weights, `[T, K]`.
    pub weights: Vec<f32>,
    /// Scores of all experts, `[T, E]`.
    pub scores: Vec<f32>,
    /// Rows of each expert in the sorted order: expert `e` has `offsets[e]..offsets[e + 1]`, `[E + 1]`.
    pub offsets: Vec<usize>,
    /// Token of each sorted row, `[T · K]`: experts ascending, tokens ascending within.
    pub tokens: Vec<u32>,
    /// Sorted row of each choice, `[T, K]`.
    pub places: Vec<u32>,
    /// `K`
    pub top_k: usize,
}

impl Routing {
    /// Tokens that each expert got, `[E]`.
    pub fn loads(&self) -> Vec<usize> {
        self.offsets.windows(2).map(|w| w[1] - w[0]).collect()
    }
}

/// Scores `s` by [`Scoring`]; the bias, if there is one, chooses, the unbiased score weighs: the best groups by their biased
/// scores, then the `K` best of the kept groups (ties to the lower number), `w = scale · s / (Σ s + 1e-20)`.
///
/// `logits`: f32 `[T, E]`; `bias`: `[E]`.
pub fn route(isa: Isa, logits: &Tensor, bias: Option<&[f32]>, g: GateShape) -> Routing {
    let e = g.experts;
    assert!(logits.cols == e && bias.is_none_or(|b| b.len() == e) && g.top_k <= e && e.is_multiple_of(g.groups));
    let (t, k) = (logits.rows, g.top_k);
    let from = logits.f32();
    let scores = rows::make(t, e, |first, scores: &mut [f32]| {
        scores.copy_from_slice(&from[first * e..][..scores.len()]);
        match g.scoring {
            Scoring::Sigmoid => sigmoids(isa, scores),
            Scoring::Softmax => softmax_rows(isa, scores, e),
        }
    });
    let (experts, weights) = rows::make2(t, k, k, |first, experts: &mut [u32], weights: &mut [f32]| {
        let chosen = experts.chunks_exact_mut(k).zip(weights.chunks_exact_mut(k));
        choose(&scores[first * e..], bias, g, chosen);
    });
    let mut offsets = vec![0; e + 1];
    experts.iter().for_each(|x| offsets[*x as usize + 1] += 1);
    for i in 0..e {
        offsets[i + 1] += offsets[i];
    }
    let mut next = offsets.clone();
    let (mut tokens, mut places) = (vec![0; experts.len()], vec![0; experts.len()]);
    for (i, x) in experts.iter().enumerate() {
        let row = &mut next[*x as usize];
        tokens[*row] = (i / k) as u32;
        places[i] = *row as u32;
        *row += 1;
    }
    Routing { experts, weights, scores, offsets, tokens, places, top_k: k }
}

/// Experts and weights of some tokens, by their `scores` `[T, E]`.
fn choose<'a>(
    scores: &[f32],
    bias: Option<&[f32]>,
    g: GateShape,
    tokens: impl Iterator<Item = (&'a mut [u32], &'a mut [f32])>,
) {
    let e = g.experts;
    let mut biased = vec![0.0; e];
    let per = e / g.groups;
    let mut order: Vec<u32> = Vec::with_capacity(e);
    for (s, (experts, weights)) in scores.chunks_exact(e).zip(tokens) {
        biased.copy_from_slice(s);
        if let Some(bias) = bias {
            biased.iter_mut().zip(bias).for_each(|(b, bias)| *b += bias);
        }
        if g.top_groups < g.groups {
            let mut ranked: Vec<(f32, usize)> = biased
                .chunks_exact(per)
                .enumerate()
                .map(|(i, group)| {
                    let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
                    for b in group {
                        (first, second) = if *b > first { (*b, first) } else { (first, second.max(*b)) };
                    }
                    (if g.scoring == Scoring::Sigmoid && per > 1 { first + second } else { first }, i)
                })
                .collect();
            ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            for (_, group) in &ranked[g.top_groups..] {
                biased[group * per..(group + 1) * per].fill(f32::NEG_INFINITY);
            }
        }
        order.clear();
        order.extend(0..e as u32);
        let best = |a: &u32, b: &u32| biased[*b as usize].total_cmp(&biased[*a as usize]).then(a.cmp(b));
        if g.top_k < e {
            order.select_nth_unstable_by(g.top_k - 1, best);
        }
        let chosen = &mut order[..g.top_k];
        chosen.sort_unstable();
        let total: f32 = chosen.iter().map(|i| s[*i as usize]).sum::<f32>() + 1e-20;
        for ((expert, weight), i) in experts.iter_mut().zip(weights).zip(chosen) {
            let s = s[*i as usize];
            *weight = g.scale * if g.normalise { s / total } else { s };
            *expert = *i;
        }
    }
}

multi_isa! {
    fn sigmoids(x: &mut [f32]) {
        x.iter_mut().for_each(|x| *x = sigmoid(*x));
    }
}

/// Gradient of the logits, f32 `[T, E]`, given `dw` = ∂loss/∂weights `[T, K]`, and the sequence-wise balance loss.
///
/// Through `w_i = c·s_i/Σ`: `ds_i = c/Σ · (dw_i − Σ_j dw_j s_j / Σ)`; then through the scores: `dlogit = ds·s·(1 − s)` for sigmoid,
/// `s·(ds − Σ_j ds_j s_j)` for softmax. The balance loss of a sequence of `T` tokens is
/// `alpha · Σ_e f_e P_e`, `f_e = E/(K·T) · #chosen(e)` without gradient, `P_e = mean_t(s_te / Σ_j s_tj)`; it is averaged over
/// the sequences of `cu_seqlens`, and `share` is this micro-batch's part of the step's sequences.
pub fn route_grad(
    r: &Routing,
    g: GateShape,
    dw: &[f32],
    alpha: f32,
    cu_seqlens: &[usize],
    share: f32,
) -> (Tensor, f32) {
    let (e, k) = (g.experts, g.top_k);
    let t = dw.len() / k;
    let mut d = Tensor::zeros(Dtype::F32, t, e);
    let out = d.f32_mut();
    for t in 0..t {
        let s = &r.scores[t * e..][..e];
        let (chosen, dw) = (&r.experts[t * k..][..k], &dw[t * k..][..k]);
        let ds = &mut out[t * e..][..e];
        if g.normalise {
            let total: f32 = chosen.iter().map(|i| s[*i as usize]).sum::<f32>() + 1e-20;
            let mean: f32 = chosen.iter().zip(dw).map(|(i, d)| d * s[*i as usize]).sum::<f32>() / total;
            chosen.iter().zip(dw).for_each(|(i, d)| ds[*i as usize] = g.scale / total * (d - mean));
        } else {
            chosen.iter().zip(dw).for_each(|(i, d)| ds[*i as usize] = g.scale * d);
        }
    }
    let mut loss = 0.0;
    let sequences = cu_seqlens.len() - 1;
    if alpha > 0.0 {
        for w in cu_seqlens.windows(2) {
            let len = w[1] - w[0];
            let mut f = vec![0.0f32; e];
            r.experts[w[0] * k..w[1] * k].iter().for_each(|i| f[*i as usize] += 1.0);
            f.iter_mut().for_each(|f| *f *= e as f32 / (k * len) as f32);
            let c = alpha * share / (sequences * len) as f32;
            for t in w[0]..w[1] {
                let s = &r.scores[t * e..][..e];
                let total = sum16(e, |i| s[i]);
                let mean = sum16(e, |i| f[i] * s[i]) / total;
                loss += mean * c;
                for (ds, f) in out[t * e..][..e].iter_mut().zip(&f) {
                    *ds += c / total * (f - mean);
                }
            }
        }
    }
    for (d, s) in out.chunks_exact_mut(e).zip(r.scores.chunks_exact(e)) {
        match g.scoring {
            Scoring::Sigmoid => d.iter_mut().zip(s).for_each(|(d, s)| *d *= s * (1.0 - s)),
            Scoring::Softmax => {
                let mean = sum16(e, |i| d[i] * s[i]);
                d.iter_mut().zip(s).for_each(|(d, s)| *d = s * (*d - mean));
            }
        }
    }
    (d, loss)
}

multi_isa! {
    /// Each row of `x` `[T, E]` to `exp(x − max) / Σ`.
    fn softmax_rows(x: &mut [f32], e: usize) {
        for x in x.chunks_exact_mut(e) {
            let top = x.iter().copied().fold(f32::NEG_INFINITY, |a, b| if b > a || b.is_nan() { b } else { a });
            x.iter_mut().for_each(|x| *x = exp(*x - top));
            let sum = sum16(e, |i| x[i]);
            x.iter_mut().for_each(|x| *x /= sum);
        }
    }
}

/// Row `i` of the result is row `rows[i]` of `x`.
pub fn gather(x: &Tensor, tokens: &[u32]) -> Tensor {
    let d = x.cols;
    with_element!(x.dtype(), E => {
        let x = E::slice(x);
        Tensor::make::<E>(tokens.len(), d, |first, y| {
            for (y, t) in y.chunks_exact_mut(d).zip(&tokens[first..]) {
                y.copy_from_slice(&x[*t as usize * d..][..d]);
            }
        })
    })
}

/// `acc[t] += Σ_k y[places[t, k]]`, choices ascending; f32.
pub fn scatter_add(y: &Tensor, r: &Routing, acc: &mut Tensor) {
    let d = y.cols;
    let y = y.f32();
    rows::each(acc.f32_mut(), d, |first, acc| {
        for (acc, places) in acc.chunks_exact_mut(d).zip(r.places[first * r.top_k..].chunks_exact(r.top_k)) {
            for p in places {
                acc.iter_mut().zip(&y[*p as usize * d..][..d]).for_each(|(a, y)| *a += y);
            }
        }
    });
}

/// The mixed output, f32 `[T, D]`: `fma(w, y, acc)` over a token's experts ascending, then the shared expert's output.
///
/// `y`: `[T · K, D]` sorted rows; `shared`: `[T, D]`.
pub fn combine(isa: Isa, y: &Tensor, r: &Routing, shared: Option<&Tensor>) -> Tensor {
    let d = y.cols;
    with_element!(y.dtype(), E => {
        let y = E::slice(y);
        let shared = shared.map(E::slice);
        Tensor::make::<f32>(r.places.len() / r.top_k, d, |first, out| {
            let shared = shared.map(|s| bytemuck::cast_slice(&s[first * d..first * d + out.len()]));
            combine_rows(isa, out, d, bytemuck::cast_slice(y), E::DTYPE, r, first, shared);
        })
    })
}

multi_isa! {
    #[allow(clippy::too_many_arguments)]
    fn combine_rows(out: &mut [f32], d: usize, y: &[u8], dtype: Dtype, r: &Routing, first: usize, shared: Option<&[u8]>) {
        with_element!(dtype, E => {
            let y: &[E] = bytemuck::cast_slice(y);
            for (t, out) in out.chunks_exact_mut(d).enumerate() {
                let choice = (first + t) * r.top_k;
                for (p, w) in r.places[choice..][..r.top_k].iter().zip(&r.weights[choice..]) {
                    let y = &y[*p as usize * d..][..d];
                    out.iter_mut().zip(y).for_each(|(o, y)| *o = w.mul_add(y.widen(), *o));
                }
                if let Some(s) = shared {
                    let s: &[E] = bytemuck::cast_slice(s);
                    out.iter_mut().zip(&s[t * d..][..d]).for_each(|(o, s)| *o += s.widen());
                }
            }
        });
    }
}

/// Multiplies sorted row `i` of f32 `x` by the weight of its choice.
pub fn scale_rows(x: &mut Tensor, r: &Routing) {
    let weights = sorted_weights(r);
    let d = x.cols;
    rows::each(x.f32_mut(), d, |first, x| {
        for (x, w) in x.chunks_exact_mut(d).zip(&weights[first..]) {
            x.iter_mut().for_each(|x| *x *= w);
        }
    });
}

/// Gradient of the weights, `[T, K]`: the dot product of rows of `da` (f32) and `a`, both `[T · K, F]` sorted.
pub fn weight_grad(isa: Isa, da: &Tensor, a: &Tensor, r: &Routing) -> Vec<f32> {
    let f = a.cols;
    let mut sorted = vec![0.0; a.rows];
    let da = da.f32();
    with_element!(a.dtype(), E => {
        let a = E::slice(a);
        rows::each(&mut sorted, 1, |first, out| {
            let at = first * f..(first + out.len()) * f;
            dots(isa, out, f, &da[at.clone()], bytemuck::cast_slice(&a[at]), E::DTYPE);
        });
    });
    r.places.iter().map(|p| sorted[*p as usize]).collect()
}

multi_isa! {
    fn dots(out: &mut [f32], f: usize, da: &[f32], a: &[u8], dtype: Dtype) {
        with_element!(dtype, E => {
            let a: &[E] = bytemuck::cast_slice(a);
            for ((o, da), a) in out.iter_mut().zip(da.chunks_exact(f)).zip(a.chunks_exact(f)) {
                *o = sum16(f, |i| da[i] * a[i].widen());
            }
        });
    }
}

fn sorted_weights(r: &Routing) -> Vec<f32> {
    let mut sorted = vec![0.0; r.places.len()];
    r.places.iter().zip(&r.weights).for_each(|(p, w)| sorted[*p as usize] = *w);
    sorted
}
