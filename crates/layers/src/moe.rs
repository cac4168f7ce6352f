//! Mixture of experts: route, sort by expert, grouped products, mix in a fixed order, plus shared experts. No token is dropped.
//!
//! Source: DeepSeek-V3, arXiv:2412.19437, section 2.1.2. Shapes: `T` tokens, `D` model width, `E` experts, `K` chosen per
//! token, `F` expert width; sorted rows `[T · K, ·]` have experts ascending.

use jevons_kernels::{Dtype, Matrix, Ops, Routing, Tensor};

use crate::{Gate, Grads, ParamId, SwiGlu, Weights, gate::Balance, swiglu};

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
    g: Tensor,
    u: Tensor,
    shared: Option<swiglu::Saved>,
}

impl Moe {
    /// `x`: `[T, D]`. Returns f32 `[T, D]`: experts mixed by fused multiply-add in ascending number, then the shared expert.
    pub fn forward(&self, ops: &Ops, w: &Weights, x: &Tensor) -> (Tensor, Saved) {
        let routing = self.gate.forward(ops, w, x);
        let sorted = ops.gather(x, &routing.tokens);
        let [g, u] = ops.grouped_matmuls(&sorted, &routing.offsets, [&of(w, &self.gates), &of(w, &self.ups)]);
        drop(sorted);
        let y = ops.grouped_matmul(&ops.silu_mul(&g, &u), &routing.offsets, &of(w, &self.downs));
        let (shared, saved) = self.shared.map(|s| s.forward(ops, w, x)).unzip();
        let y = ops.combine(&y, &routing, shared.as_ref());
        (y, Saved { routing, g, u, shared: saved })
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
        let mut dys = ops.gather(dy, &r.tokens);
        let a = ops.silu_mul(&s.g, &s.u);
        let mut da = ops.grouped_matmul_input_grad(&dys, offsets, &of(w, &self.downs));
        let dw = ops.route_weight_grad(&da, &a, r);
        ops.scale_rows(&mut da, r);
        ops.scale_rows(&mut dys, r);
        grads.with_many(&self.downs, |d| ops.grouped_matmul_weight_grad(&dys, &a, offsets, d));
        let (dg, du) = ops.silu_mul_grad(&s.g, &s.u, &da);
        drop((a, da));
        let sorted = ops.gather(x, &r.tokens);
        grads.with_many(&self.gates, |d| ops.grouped_matmul_weight_grad(&dg, &sorted, offsets, d));
        grads.with_many(&self.ups, |d| ops.grouped_matmul_weight_grad(&du, &sorted, offsets, d));
        drop((dys, sorted));
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
