//! One optimizer step: micro-batches → forward → loss → backward → gradients summed in a fixed tree → norm → AdamW → biases.
//!
//! The numbers depend on the rows of the step, their order and the size of a micro-batch, and on nothing else: micro-batches
//! are summed in a binary tree by index, so that more machines could own subtrees.

use jevons_layers::{Grads, IGNORE, Keep, ParamId};
use jevons_model::{MicroBatch, Model, NonFinite, PassOptions};

use crate::{
    data::Row,
    memory::Used,
    optimizer::{self, NonFiniteGradient, Optimizer, OptimizerSettings},
};

/// How a step is taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepSettings {
    /// Optimizer.
    pub optimizer: OptimizerSettings,
    /// Rows of a micro-batch.
    pub micro_batch_rows: usize,
    /// What forward keeps for backward.
    pub keep: Keep,
    /// Weight of the loss of multi-token prediction, where the model has it.
    pub mtp_loss_weight: f32,
    /// Weight of the sequence-wise balance loss.
    pub balance_alpha: f32,
    /// Step of the selection biases, γ.
    pub bias_update_speed: f32,
    /// Steps without a token after which an expert counts as collapsed; 0 never.
    pub collapsed_expert_steps: u64,
}

impl StepSettings {
    /// Of so many rows a micro-batch; everything kept, no multi-token prediction, and DeepSeek-V3's balancing.
    pub fn new(micro_batch_rows: usize) -> Self {
        Self {
            optimizer: OptimizerSettings::default(),
            micro_batch_rows,
            keep: Keep::All,
            mtp_loss_weight: 0.0,
            balance_alpha: 1e-4,
            bias_update_speed: 1e-3,
            collapsed_expert_steps: 0,
        }
    }
}

/// What a step gave.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    /// Mean negative log-probability of the step's targets, nats.
    pub loss: f64,
    /// The same of multi-token prediction, where the model has it.
    pub mtp_loss: Option<f64>,
    /// Sequence-wise balance loss, all layers.
    pub balance_loss: f64,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Targets.
    pub targets: usize,
    /// Tokens.
    pub tokens: usize,
    /// Tokens of each expert, `(layer, [E])`.
    pub loads: Vec<(usize, Vec<usize>)>,
    /// Largest number of bytes kept between forward and backward of a micro-batch.
    pub saved_bytes: usize,
}

/// Why a step stopped the run. The state before it is untouched on disk.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// In the forward pass.
    #[error("step {step}: {source}; try a lower learning rate, or resume from the last checkpoint with another seed")]
    Forward {
        /// Step, from 0.
        step: u64,
        /// Where.
        source: NonFinite,
    },
    /// In the backward pass.
    #[error("step {step}: {source}; try a lower learning rate or grad_clip, or resume from the last checkpoint")]
    Backward {
        /// Step, from 0.
        step: u64,
        /// Where.
        source: NonFiniteGradient,
    },
    /// An expert that nobody chooses learns nothing.
    #[error(
        "step {step}: model.layers.{layer}.mlp.experts.{expert} got no token for {steps} steps; \
         raise moe.bias_update_speed, or moe.collapsed_expert_steps if that is expected"
    )]
    CollapsedExpert {
        /// Step, from 0.
        step: u64,
        /// Layer.
        layer: usize,
        /// Expert.
        expert: usize,
        /// Consecutive steps without a token.
        steps: u64,
    },
    /// Nothing to learn from.
    #[error("step {step}: the batch has no target; is every token masked?")]
    Empty {
        /// Step, from 0.
        step: u64,
    },
}

/// A model in training.
pub struct Trainer {
    /// Compute weights.
    pub model: Model,
    /// Masters and moments.
    pub optimizer: Optimizer,
    /// Consecutive steps without a token, `(layer, [E])`.
    pub idle: Vec<(usize, Vec<u64>)>,
    settings: StepSettings,
    /// Gradient buffers not in use.
    free: Vec<Grads>,
    /// Most bytes kept between forward and backward so far.
    saved_bytes: usize,
}

impl Trainer {
    /// `optimizer` decides which parameters are trained.
    pub fn new(model: Model, optimizer: Optimizer, settings: StepSettings) -> Self {
        assert!(settings.micro_batch_rows > 0);
        Self { model, optimizer, idle: Vec::new(), settings, free: Vec::new(), saved_bytes: 0 }
    }

    /// Takes one step on `rows` at learning rate `lr`.
    ///
    /// # Errors
    /// [`StepError`] names the layer or parameter; masters and moments are then as before the step, unless an expert has
    /// collapsed.
    pub fn step(&mut self, rows: &[Row], lr: f64) -> Result<StepReport, StepError> {
        // On a worker of the pool: sharing many small parameters from outside would cost more than their work.
        rayon::scope(|_| self.step_here(rows, lr))
    }

    fn step_here(&mut self, rows: &[Row], lr: f64) -> Result<StepReport, StepError> {
        let step = self.optimizer.steps;
        let targets = rows.iter().flat_map(|r| &r.targets).filter(|t| **t != IGNORE).count();
        if targets == 0 {
            return Err(StepError::Empty { step });
        }
        let sequences: usize = rows.iter().map(|r| r.lengths.len()).sum();
        let mut report = StepReport {
            loss: 0.0,
            mtp_loss: None,
            balance_loss: 0.0,
            grad_norm: 0.0,
            targets,
            tokens: rows.iter().map(|r| r.tokens.len()).sum(),
            loads: Vec::new(),
            saved_bytes: 0,
        };
        let micro = self.settings.micro_batch_rows;
        let batches: Vec<Row> = rows.chunks(micro).map(join).collect();
        let mtp_targets: usize = batches.iter().map(|b| micro_batch(b).mtp_targets()).sum();
        let has_mtp = self.model.config().num_nextn_predict_layers > 0;
        let mtp_weight = if has_mtp && mtp_targets > 0 { self.settings.mtp_loss_weight } else { 0.0 };
        let mut mtp_nats = 0.0;
        // Partial sums under way: the level of each, falling.
        let mut tree: Vec<(u32, Grads)> = Vec::new();
        for batch in &batches {
            let mut grads = self.buffer();
            let options = PassOptions {
                keep: self.settings.keep,
                scale: 1.0 / targets as f32,
                mtp_scale: mtp_weight / mtp_targets.max(1) as f32,
                balance_alpha: self.settings.balance_alpha,
                share: batch.lengths.len() as f32 / sequences as f32,
            };
            let out = self
                .model
                .forward_backward(&mut grads, &micro_batch(batch), &options)
                .map_err(|source| StepError::Forward { step, source })?;
            report.loss -= out.logprobs.iter().map(|x| f64::from(*x)).sum::<f64>();
            mtp_nats -= out.mtp_logprob;
            report.balance_loss += f64::from(out.balance_loss);
            report.saved_bytes = report.saved_bytes.max(out.saved_bytes);
            add_loads(&mut report.loads, out.loads);
            tree.push((0, grads));
            while let [.., (a, _), (b, _)] = tree[..]
                && a == b
            {
                self.merge(&mut tree);
            }
        }
        while tree.len() > 1 {
            self.merge(&mut tree);
        }
        let grads = tree.pop().expect("at least one micro-batch").1;
        report.loss /= targets as f64;
        report.mtp_loss = (mtp_weight > 0.0).then(|| mtp_nats / mtp_targets as f64);
        report.grad_norm =
            Optimizer::global_norm(&self.model, &grads).map_err(|source| StepError::Backward { step, source })?;
        self.optimizer.step(&mut self.model, &grads, report.grad_norm, lr, &self.settings.optimizer);
        self.free.push(grads);
        self.saved_bytes = self.saved_bytes.max(report.saved_bytes);
        if self.settings.bias_update_speed > 0.0 {
            optimizer::balance(&mut self.model, &report.loads, self.settings.bias_update_speed);
        }
        self.count_idle(step, &report.loads)?;
        Ok(report)
    }

    /// What is held, and was kept at most between forward and backward.
    pub fn used(&self) -> Used {
        let slots = || self.optimizer.slots.iter().flatten();
        Used {
            weights: self.model.weights().bytes(),
            masters: slots().map(|s| 4 * s.master.len()).sum(),
            gradients: self.free.iter().map(Grads::bytes).sum(),
            moments: slots().map(|s| s.m.bytes().len() + s.v.bytes().len()).sum(),
            activations: self.saved_bytes,
        }
    }

    /// A gradient buffer of zeros.
    fn buffer(&mut self) -> Grads {
        match self.free.pop() {
            Some(mut grads) => {
                grads.clear();
                grads
            }
            None => self.model.grads(|id: ParamId| self.optimizer.slots[id.0].is_some()),
        }
    }

    /// Adds the last partial sum to the one before it.
    fn merge(&mut self, tree: &mut Vec<(u32, Grads)>) {
        let (_, right) = tree.pop().expect("two partial sums");
        let (level, left) = tree.last_mut().expect("two partial sums");
        left.add(&right);
        *level += 1;
        self.free.push(right);
    }

    fn count_idle(&mut self, step: u64, loads: &[(usize, Vec<usize>)]) -> Result<(), StepError> {
        if self.idle.is_empty() {
            self.idle = loads.iter().map(|(layer, load)| (*layer, vec![0; load.len()])).collect();
        }
        for ((layer, idle), (_, load)) in self.idle.iter_mut().zip(loads) {
            for (expert, (idle, load)) in idle.iter_mut().zip(load).enumerate() {
                *idle = if *load == 0 { *idle + 1 } else { 0 };
                if self.settings.collapsed_expert_steps > 0 && *idle >= self.settings.collapsed_expert_steps {
                    return Err(StepError::CollapsedExpert { step, layer: *layer, expert, steps: *idle });
                }
            }
        }
        Ok(())
    }

    /// Sum of `−log p` in nats, and number of targets, over held-out rows; in order.
    pub fn evaluate(&self, rows: &[Row]) -> (f64, usize) {
        let mut total = (0.0, 0);
        for row in rows {
            let logprobs = self.model.target_logprobs(&row.tokens, &row.targets, &row.lengths);
            total.0 -= logprobs.iter().map(|x| f64::from(*x)).sum::<f64>();
            total.1 += row.targets.iter().filter(|t| **t != IGNORE).count();
        }
        total
    }
}

fn micro_batch(row: &Row) -> MicroBatch<'_> {
    MicroBatch { tokens: &row.tokens, targets: &row.targets, lengths: &row.lengths }
}

fn join(rows: &[Row]) -> Row {
    let mut all = Row::default();
    for row in rows {
        all.tokens.extend_from_slice(&row.tokens);
        all.targets.extend_from_slice(&row.targets);
        all.lengths.extend_from_slice(&row.lengths);
    }
    all
}

fn add_loads(total: &mut Vec<(usize, Vec<usize>)>, loads: Vec<(usize, Vec<usize>)>) {
    if total.is_empty() {
        *total = loads;
        return;
    }
    for ((_, total), (_, loads)) in total.iter_mut().zip(loads) {
        total.iter_mut().zip(loads).for_each(|(t, l)| *t += l);
    }
}
