//! Masters, moments and the step: what training keeps beside the model, by parameter id.
//!
//! `Model` holds compute weights; here are their f32 masters and two moments. After a step each trained parameter is rounded and
//! packed into the model again. Decay applies to matrices only. Selection biases take no gradient: they move by
//! `γ · sign(mean load − load)` once per step over the whole batch (arXiv:2408.15664).

use std::cmp::Ordering;

use jevons_kernels::{AdamW, Dtype, Moments};
use jevons_layers::{Grads, ParamId};
use jevons_model::Model;

/// Settings that hold for a whole run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OptimizerSettings {
    /// Decays of the moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled decay of matrices.
    pub weight_decay: f64,
    /// Gradients are scaled down to this global norm; 0 leaves them alone.
    pub grad_clip: f64,
    /// Format of the moments.
    pub moments: Dtype,
}

impl Default for OptimizerSettings {
    /// Those of DeepSeek-V3's pre-training, arXiv:2412.19437, section 4.2; moments in f32.
    fn default() -> Self {
        Self { betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.1, grad_clip: 1.0, moments: Dtype::F32 }
    }
}

/// Master, moments of one trained parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct Slot {
    /// f32 values, row-major.
    pub master: Vec<f32>,
    /// First moment.
    pub m: Moments,
    /// Second moment.
    pub v: Moments,
}

/// All of them, `None` where frozen.
#[derive(Clone, Debug, PartialEq)]
pub struct Optimizer {
    /// By parameter id.
    pub slots: Vec<Option<Slot>>,
    /// Steps taken.
    pub steps: u64,
}

/// The gradient is not finite: the parameter where it shows first, in name order.
#[derive(Debug, thiserror::Error)]
#[error("the gradient of {parameter} is not a finite number")]
pub struct NonFiniteGradient {
    /// Published name.
    pub parameter: String,
}

impl Optimizer {
    /// With zero moments. `masters`: f32 values by parameter id, `None` where frozen.
    pub fn new(masters: Vec<Option<Vec<f32>>>, moments: Dtype) -> Self {
        let slot = |master: Vec<f32>| {
            let n = master.len();
            Slot { m: Moments::zeros(moments, n), v: Moments::zeros(moments, n), master }
        };
        Self { slots: masters.into_iter().map(|m| m.map(slot)).collect(), steps: 0 }
    }

    /// √Σ g² over all trained parameters, in f64, in name order.
    ///
    /// # Errors
    /// [`NonFiniteGradient`] with the first parameter whose gradient is not finite.
    pub fn global_norm(model: &Model, grads: &Grads) -> Result<f64, NonFiniteGradient> {
        let mut order: Vec<usize> = (0..model.specs().len()).collect();
        order.sort_by(|a, b| model.specs()[*a].name.cmp(&model.specs()[*b].name));
        let mut total = 0.0;
        for i in order {
            let Some(g) = grads.get(ParamId(i)) else { continue };
            let squares = model.ops().sum_of_squares(g);
            if !squares.is_finite() {
                return Err(NonFiniteGradient { parameter: model.specs()[i].name.clone() });
            }
            total += squares;
        }
        Ok(total.sqrt())
    }

    /// One step; `norm` from [`Optimizer::global_norm`]. Updates masters, moments and the model's compute weights.
    pub fn step(&mut self, model: &mut Model, grads: &Grads, norm: f64, lr: f64, s: &OptimizerSettings) {
        self.steps += 1;
        let correction = |beta: f64| (1.0 - libm::pow(beta, self.steps as f64)) as f32;
        let clip = if s.grad_clip > 0.0 { (s.grad_clip / (norm + 1e-6)).min(1.0) } else { 1.0 };
        let step = AdamW {
            lr: lr as f32,
            beta1: s.betas[0] as f32,
            beta2: s.betas[1] as f32,
            eps: s.eps as f32,
            weight_decay: 0.0,
            correction1: correction(s.betas[0]),
            correction2: correction(s.betas[1]),
            grad_scale: clip as f32,
        };
        for (i, slot) in self.slots.iter_mut().enumerate() {
            let (Some(slot), Some(g)) = (slot, grads.get(ParamId(i))) else { continue };
            let matrix = model.specs()[i].shape.len() >= 2;
            let step = AdamW { weight_decay: if matrix { s.weight_decay as f32 } else { 0.0 }, ..step };
            model.adamw(ParamId(i), step, &mut slot.master, g, &mut slot.m, &mut slot.v);
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.slots.iter().flatten().map(|s| s.master.len() * 4 + s.m.bytes().len() * 2).sum()
    }
}

/// Moves each selection bias once: up where an expert got less than the mean load of the step, down where it got more.
pub fn balance(model: &mut Model, loads: &[(usize, Vec<usize>)], speed: f32) {
    for (layer, load) in loads {
        let Some(id) = model.gate_bias(*layer) else { continue };
        let (total, experts): (usize, usize) = (load.iter().sum(), load.len());
        let mut bias = model.weights().vector(id).to_vec();
        for (b, load) in bias.iter_mut().zip(load) {
            // Compared as integers, so that an exactly balanced expert stays where it is.
            *b += match (load * experts).cmp(&total) {
                Ordering::Less => speed,
                Ordering::Equal => 0.0,
                Ordering::Greater => -speed,
            };
        }
        model.set(id, &bias);
    }
}
