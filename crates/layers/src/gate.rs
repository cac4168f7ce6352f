//! The gate of a mixture of experts: scores, a bias that only selects, groups.
//!
//! Source: DeepSeek-V3, arXiv:2412.19437, section 2.1.2; DeepSeek-V2, arXiv:2405.04434, section 2.2. Shapes: `T` tokens, `D` model width, `E` experts, `K` chosen.

use jevons_kernels::{Dtype, GateShape, Ops, Routing, Tensor};

use crate::{Grads, Linear, ParamId, Weights, fp8::Input};

/// A matrix and a selection bias.
#[derive(Clone, Copy, Debug)]
pub struct Gate {
    /// `[E, D]`
    pub linear: Linear,
    /// `e_score_correction_bias`, `[E]`: chooses experts, does not weigh them, takes no gradient. DeepSeek-V2 has none.
    pub bias: Option<ParamId>,
    /// How experts are chosen.
    pub shape: GateShape,
}

impl Gate {
    /// `x`: `[T, D]`. Logits stay f32.
    pub fn forward(&self, ops: &Ops, w: &Weights, x: &Tensor) -> Routing {
        let logits = self.linear.forward_as(ops, w, x, Dtype::F32);
        ops.route(&logits, self.bias.map(|b| w.vector(b)), self.shape)
    }

    /// `dw`: ∂loss/∂weights `[T, K]`. Adds to the gradient of the matrix and to `dx`; returns the balance loss, see
    /// [`Ops::route_grad`].
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        ops: &Ops,
        w: &Weights,
        grads: &mut Grads,
        x: &Tensor,
        routing: &Routing,
        dw: &[f32],
        balance: &Balance<'_>,
        dx: &mut Tensor,
    ) -> f32 {
        let (dlogits, loss) = ops.route_grad(routing, self.shape, dw, balance.alpha, balance.cu_seqlens, balance.share);
        self.linear.backward(ops, w, grads, &Input::new(ops, w, &[self.linear.weight], x), &dlogits, dx);
        loss
    }
}

/// The sequence-wise balance loss.
#[derive(Clone, Copy, Debug)]
pub struct Balance<'a> {
    /// Its weight; 0 leaves it out.
    pub alpha: f32,
    /// Sequences over which it is taken.
    pub cu_seqlens: &'a [usize],
    /// This micro-batch's part of the step.
    pub share: f32,
}
