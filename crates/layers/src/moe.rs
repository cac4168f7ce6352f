//! Mixture of experts: route, sort by expert, grouped products, mix in a fixed order, plus shared experts. No token is dropped.
//!
//! Source: DeepSeek-V3, arXiv:2412.19437, section 2.1.2. Shapes: `T` tokens, `D` model width, `E` experts, `K` chosen per
//! token, `F` expert width; sorted rows `[T · K, ·]` have experts ascending.

use std::borrow::Cow;

use jevons_kernels::{
    Dtype, Matrix, Ops, Routing, Tensor,
    formats::{BLOCK_MAX_FLOOR, GRADIENT_MAX_FLOOR},
};

use crate::{
    Gate, Grads, ParamId, SwiGlu, Weights,
    fp8::{Input, Kept, gradient, retiled, taken},
    gate::Balance,
    swiglu,
};

/// A gate, `E` experts, and a shared expert.
#[derive(Clone, Debug)]
pub struct Moe {
    /// Chooses.
    pub gate: Gate,
    /// `[F, D]` each.
    pub gates: Vec<ParamId>,
    /// `[F, D]` each.
    pub ups: Vec<ParamId>,
    /// `[D, F]` each.
    pub downs: Vec<ParamId>,
    /// Runs for every token, unweighted.
    pub shared: Option<SwiGlu>,
}

/// What [`Moe::backward`] needs besides `x`.
pub struct Saved {
    /// What the gate decided.
    pub routing: Routing,
    g: Kept,
    u: Kept,
    shared: Option<swiglu::Saved>,
}

impl Moe {
    /// `x`: `[T, D]`. Returns f32 `[T, D]`: experts mixed by fused multiply-add in ascending number, then the shared expert.
    pub fn forward(&self, ops: &Ops, w: &Weights, x: &Tensor) -> (Tensor, Saved) {
        let routing = self.gate.forward(ops, w, x);
        let input = Input::new(ops, w, &self.gates[..1], x);
        let sorted = ops.gather(input.of(w, self.gates[0]), &routing.tokens);
        drop(input);
        let [g, u] = ops.grouped_matmuls(&sorted, &routing.offsets, [&of(w, &self.gates), &of(w, &self.ups)]);
        drop(sorted);
        let a = ops.silu_mul(&g, &u);
        let a = Input::new(ops, w, &self.downs[..1], &a);
        let y = ops.grouped_matmul(a.of(w, self.downs[0]), &routing.offsets, &of(w, &self.downs));
        let (shared, saved) = self.shared.map(|s| s.forward(ops, w, x)).unzip();
        let y = ops.combine(&y, &routing, shared.as_ref());
        let keep = |x| Kept::new(ops, w, self.downs[0], x);
        (y, Saved { routing, g: keep(g), u: keep(u), shared: saved })
    }

    /// `dy`: f32 `[T, D]`. Adds to all gradients; returns `dx`: f32 `[T, D]`, and the balance loss.
    ///
    /// The weight of a choice gets `⟨dy, y_e⟩ = ⟨dy·Wd, a⟩`, so the expert's output need not be kept.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        ops: &Ops,
        w: &Weights,
        grads: &mut Grads,
        x: &Tensor,
        s: &Saved,
        dy: &Tensor,
        balance: &Balance<'_>,
    ) -> (Tensor, f32) {
        let (r, offsets) = (&s.routing, &s.routing.offsets[..]);
        let mut dx = match (self.shared, &s.shared) {
            (Some(shared), Some(saved)) => shared.backward(ops, w, grads, x, saved, dy),
            _ => Tensor::zeros(Dtype::F32, x.rows, x.cols),
        };
        // All experts of a layer are held alike, so in FP8 the first one tells. What is large is dropped as soon as it can be.
        let first = self.downs[0];
        let a = ops.silu_mul(&s.g.get(ops), &s.u.get(ops));
        let (mut da, mut dys) = match gradient(ops, w, first, dy, &[0, dy.rows]) {
            Cow::Borrowed(dy) => {
                let dys = ops.gather(dy, &r.tokens);
                (ops.grouped_matmul_input_grad(&dys, offsets, &of(w, &self.downs)), dys)
            }
            // A token's numbers are the same wherever it stands, so they are sorted rather than made again for each of its experts.
            Cow::Owned(quantised) => {
                let da =
                    ops.grouped_matmul_input_grad(&ops.gather(&quantised, &r.tokens), offsets, &of(w, &self.downs));
                drop(quantised);
                (da, ops.gather(dy, &r.tokens))
            }
        };
        let dw = ops.route_weight_grad(&da, &a, r);
        ops.scale_rows(&mut da, r);
        ops.scale_rows(&mut dys, r);
        {
            let dys = taken(ops, w, first, dys, offsets);
            let down = Input::new(ops, w, &[first], &a);
            let (dys, a) = (
                retiled(ops, w, first, &dys, offsets, GRADIENT_MAX_FLOOR),
                retiled(ops, w, first, down.of(w, first), offsets, BLOCK_MAX_FLOOR),
            );
            grads.with_many(&self.downs, |d| ops.grouped_matmul_weight_grad(&dys, &a, offsets, d));
        }
        drop(a);
        let (dg, du) = ops.silu_mul_grad(&s.g.get(ops), &s.u.get(ops), &da);
        drop(da);
        let dg = taken(ops, w, self.gates[0], dg, offsets);
        let du = taken(ops, w, self.ups[0], du, offsets);
        {
            let input = Input::new(ops, w, &self.gates[..1], x);
            let sorted = ops.gather(input.of(w, self.gates[0]), &r.tokens);
            let sorted = retiled(ops, w, self.gates[0], &sorted, offsets, BLOCK_MAX_FLOOR);
            for (ids, d) in [(&self.gates, &dg), (&self.ups, &du)] {
                let d = retiled(ops, w, ids[0], d, offsets, GRADIENT_MAX_FLOOR);
                grads.with_many(ids, |dw| ops.grouped_matmul_weight_grad(&d, &sorted, offsets, dw));
            }
        }
        let mut dxs = ops.grouped_matmul_input_grad(&dg, offsets, &of(w, &self.gates));
        ops.add_grouped_matmul_input_grad(&du, offsets, &of(w, &self.ups), &mut dxs);
        ops.gather_grad(&dxs, r, &mut dx);
        let loss = self.gate.backward(ops, w, grads, x, r, &dw, balance, &mut dx);
        (dx, loss)
    }
}

impl Saved {
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let r = &self.routing;
        let routing = (r.experts.len() + r.weights.len() + r.scores.len() + r.tokens.len() + r.places.len()) * 4;
        self.g.bytes() + self.u.bytes() + routing + self.shared.as_ref().map_or(0, |s| s.bytes())
    }
}

fn of<'a>(w: &'a Weights, ids: &[ParamId]) -> Vec<&'a Matrix> {
    ids.iter().map(|id| &w[*id]).collect()
}
