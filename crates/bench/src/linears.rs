//! What FP8 does to the three products of training, linear by linear: `y = x·Wᵀ`, `dx = dy·W` and `dW = dyᵀ·x`.
//!
//! Both formats take turns within every run, so that a busy neighbour slows both. In FP8 a product's time includes making its operands
//! from bf16 activations and f32 gradients, as `layers` does it: `x` before `y`, `dy` before `dx`, `x` once more before `dW`, as it is not
//! kept. Each linear is taken by itself, though some share an `x`. Weights are made once per step: in bf16 AdamW writes them on its way,
//! in FP8 they are quantised after it, and that is told apart from the products. Of experts as many are run as pass the caches, with equal numbers of tokens.

use std::{convert::Infallible, hint::black_box, time::Duration};

use jevons_kernels::{AdamW, Dtype, Matrix, Moments, Ops, ScaleFormat, Tensor, Tiles, formats::GRADIENT_MAX_FLOOR};
use jevons_model::{Config, LinearKind};
use jevons_sys::machine::{self, Cpu, Load, Machine};
use serde::Serialize;

use crate::{
    BenchError, Event,
    timing::{Times, samples, seconds},
};

/// Operations of the largest linear of a quick run, three products.
const QUICK_FLOP: f64 = 2e10;
/// Bytes of bf16 weights that experts run over.
const BEYOND_CACHES: usize = 256 << 20;
/// Of all scales, as recipes have it by default.
const SCALE: ScaleFormat = ScaleFormat::Ue8m0;
/// Of largest magnitudes; the time does not depend on it.
const FLOOR: f32 = GRADIENT_MAX_FLOOR;

/// What is measured, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Settings {
    /// Tokens of a step, one micro-batch.
    pub tokens: usize,
    /// Leaves out what is large.
    pub quick: bool,
    /// Seconds of measurement per linear; it takes longer only if its first run does.
    pub seconds_per_row: f64,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Linears {
    /// Version of jevons.
    pub version: &'static str,
    /// The processor.
    pub cpu: Cpu,
    /// Threads in use.
    pub threads: usize,
    /// How busy the machine was before, if the system tells.
    pub load: Option<Load>,
    /// Instruction set in use.
    pub instruction_set: &'static str,
    /// What was asked for.
    pub settings: Settings,
    /// What was measured.
    pub rows: Vec<Row>,
    /// What was not.
    pub left_out: Vec<LeftOut>,
}

/// One kind of linear.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Names and shape.
    #[serde(flatten)]
    pub linear: LinearKind,
    /// Experts that were run; 1 where there are none.
    pub experts_run: usize,
    /// `y = x·Wᵀ`
    pub fprop: Product,
    /// `dx = dy·W`
    pub dgrad: Product,
    /// `dW = dyᵀ·x`
    pub wgrad: Product,
    /// AdamW and the compute weights that follow, of one matrix.
    pub weights: Product,
    /// Time of the three products in bf16 over that in FP8, the median of the runs.
    pub ratio: f64,
    /// Whether that is 1 or more.
    pub helped: bool,
    /// Whether `fp8.linears = "auto"` leaves it in bf16.
    pub auto_leaves_in_bf16: bool,
}

/// One product, or the step of the weights, in both formats.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Product {
    /// Operands in bf16.
    pub bf16: Times,
    /// Operands of E4M3 numbers.
    pub fp8: Times,
    /// Time in bf16 over that in FP8, the median of the runs.
    pub ratio: f64,
}

/// A linear that was not measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// Names and shape.
    #[serde(flatten)]
    pub linear: LinearKind,
    /// Whether `fp8.linears = "auto"` leaves it in bf16.
    pub auto_leaves_in_bf16: bool,
    /// Why.
    pub reason: String,
}

/// Measures every kind of linear of a model, of which only the shapes count.
///
/// # Errors
/// [`BenchError::Isa`]
pub fn run(config: &Config, settings: Settings, observe: &mut dyn FnMut(Event)) -> Result<Linears, BenchError> {
    let ops = Ops::new().map_err(BenchError::Isa)?;
    let mut report = Linears {
        version: env!("CARGO_PKG_VERSION"),
        cpu: Machine::read().cpu,
        threads: rayon::current_num_threads(),
        load: machine::measure_load(Duration::from_millis(250)),
        instruction_set: ops.isa().name(),
        settings,
        rows: vec![],
        left_out: vec![],
    };
    // As `jevons train` does.
    jevons_sys::keep_freed_memory();
    for linear in config.linears(settings.tokens) {
        observe(Event::Now(linear.names.join(", ")));
        let experts_run = experts_run(&linear);
        match room(&linear, experts_run, settings.quick) {
            Err(reason) => {
                let auto_leaves_in_bf16 = !linear.worth_fp8();
                report.left_out.push(LeftOut { linear, auto_leaves_in_bf16, reason })
            }
            Ok(()) => {
                let budget = Duration::try_from_secs_f64(settings.seconds_per_row.max(0.0)).unwrap_or(Duration::MAX);
                let case = Case::new(&ops, &linear, experts_run);
                // Among the workers, as a step of training is.
                report.rows.push(rayon::scope(|_| case.row(linear, budget)));
            }
        }
        observe(Event::Done);
    }
    Ok(report)
}

/// All of them, or as many as pass the caches.
fn experts_run(linear: &LinearKind) -> usize {
    linear.experts.min(BEYOND_CACHES.div_ceil(2 * linear.inputs * linear.outputs))
}

fn room(linear: &LinearKind, experts: usize, quick: bool) -> Result<(), String> {
    let [k, n, t, e] = [linear.inputs, linear.outputs, linear.tokens, experts].map(|d| d as f64);
    if quick && 6.0 * k * n * t * e > QUICK_FLOP {
        return Err("too large for a quick run".into());
    }
    // Weights in both formats and their gradients; operands in both, and results; master and moments of one.
    let needed = (e * (7.0 * n * k + t * (12.0 * k + 14.0 * n)) + 12.0 * n * k) as u64;
    match jevons_sys::available_memory_bytes() {
        Some(available) if needed > available => {
            Err(format!("it needs about {} MB and {} MB are free", needed / 1_000_000, available / 1_000_000))
        }
        _ => Ok(()),
    }
}

/// Operands of one linear, or of as many experts.
struct Case<'a> {
    ops: &'a Ops,
    weights: [Vec<Matrix>; 2],
    /// Of experts where their rows begin, and that of the end.
    offsets: Option<Vec<usize>>,
    /// `[T, K]`: bf16, and its numbers.
    x: [Tensor; 2],
    /// `[T, N]`: f32, and its numbers.
    dy: [Tensor; 2],
    /// What is quantised before each product. Experts' tokens are quantised before they are sorted, so once for all choices.
    quantised: [Vec<Tensor>; 3],
    /// `[N, K]` of each expert.
    dw: Vec<Vec<f32>>,
    /// Of the first matrix.
    master: Vec<f32>,
    moments: [Moments; 2],
}

/// Formats of a [`Case`].
const BF16: usize = 0;
const FP8: usize = 1;
/// What is timed: three products, and the step of the weights.
const PARTS: usize = 4;

/// A step that leaves numbers nearly as they are.
const STEP: AdamW = AdamW {
    lr: 1e-6,
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    weight_decay: 0.1,
    correction1: 1.0,
    correction2: 1.0,
    grad_scale: 1e-3,
};

impl<'a> Case<'a> {
    fn new(ops: &'a Ops, linear: &LinearKind, experts: usize) -> Self {
        let (n, k, rows) = (linear.outputs, linear.inputs, linear.tokens * experts);
        // The values do not matter to the time, as long as none is subnormal.
        let values = |len: usize| (0..len).map(|i| (i % 251) as f32 / 251.0 - 0.5).collect::<Vec<_>>();
        let bf16 = |rows: usize| Tensor::from_f32(values(rows * k), k).to_dtype(Dtype::Bf16);
        let f32 = |rows: usize| Tensor::from_f32(values(rows * n), n);
        let numbers = |x: &Tensor| ops.fp8_numbers(x, Tiles::Rows, &[0, x.rows], FLOOR, SCALE);
        let w = values(n * k);
        let weights = [
            (0..experts).map(|_| Matrix::from_f32(Dtype::Bf16, &w, n, k)).collect(),
            (0..experts).map(|_| Matrix::quantized(SCALE, &w, n, k)).collect(),
        ];
        let tokens = rows.div_ceil(linear.choices);
        let quantised = match (linear.experts > 1, linear.is_down()) {
            (false, _) => [vec![bf16(rows)], vec![f32(rows)], vec![bf16(rows)]],
            // Gradients are weighted by the gate before they meet what the expert computed, and quantised again.
            (true, true) => [vec![bf16(rows)], vec![f32(tokens)], vec![bf16(rows), f32(rows)]],
            (true, false) => [vec![bf16(tokens)], vec![f32(rows)], vec![bf16(tokens)]],
        };
        let (x, dy) = (bf16(rows), f32(rows));
        let (x_fp8, dy_fp8) = (numbers(&x), numbers(&dy));
        Self {
            ops,
            weights,
            offsets: (linear.experts > 1).then(|| (0..=experts).map(|e| e * linear.tokens).collect()),
            x: [x, x_fp8],
            dy: [dy, dy_fp8],
            quantised,
            dw: vec![vec![0.0; n * k]; experts],
            master: w,
            moments: [(); 2].map(|()| Moments::zeros(Dtype::F32, n * k)),
        }
    }

    fn row(mut self, linear: LinearKind, budget: Duration) -> Row {
        let experts_run = self.dw.len();
        let Ok(runs) = samples(budget, |run| Ok::<_, Infallible>(self.run(run)));
        let column = |product: usize, format: usize| runs.iter().map(|r| r[product][format]).collect::<Vec<f64>>();
        let product = |i: usize| Product {
            bf16: Times::of(column(i, BF16)),
            fp8: Times::of(column(i, FP8)),
            ratio: median(runs.iter().map(|r| r[i][BF16] / r[i][FP8]).collect()),
        };
        let all = |run: &[[f64; 2]; PARTS], format: usize| run[..3].iter().map(|p| p[format]).sum::<f64>();
        let ratio = median(runs.iter().map(|r| all(r, BF16) / all(r, FP8)).collect());
        let [fprop, dgrad, wgrad, weights] = [0, 1, 2, 3].map(product);
        let (helped, auto_leaves_in_bf16) = (ratio >= 1.0, !linear.worth_fp8());
        Row { linear, experts_run, fprop, dgrad, wgrad, weights, ratio, helped, auto_leaves_in_bf16 }
    }

    /// Seconds of each product in each format.
    fn run(&mut self, run: usize) -> [[f64; 2]; PARTS] {
        let mut times = [[0.0; 2]; PARTS];
        for (part, times) in times.iter_mut().enumerate() {
            // Neither format always finds what the other left in caches.
            let order = if run.is_multiple_of(2) { [BF16, FP8] } else { [FP8, BF16] };
            for format in order {
                times[format] = seconds(|| match part {
                    3 => self.step(format),
                    product => self.product(product, format),
                });
            }
        }
        times
    }

    fn step(&mut self, format: usize) {
        let (g, [m, v], w) = (&self.dw[0], &mut self.moments, &mut self.weights[format][0]);
        if format == FP8 {
            let (n, k) = (w.n(), w.k());
            self.ops.adamw(STEP, &mut self.master, g, m, v);
            *w = Matrix::quantized(SCALE, &self.master, n, k);
        } else {
            self.ops.adamw_matrix(STEP, &mut self.master, g, m, v, w);
        }
    }

    fn product(&mut self, product: usize, format: usize) {
        let ops = self.ops;
        if format == FP8 {
            for x in &self.quantised[product] {
                black_box(ops.fp8_numbers(x, Tiles::Rows, &[0, x.rows], FLOOR, SCALE));
            }
        }
        let (x, dy, w) = (&self.x[format], &self.dy[format], &self.weights[format]);
        match (product, &self.offsets) {
            (0, None) => drop(black_box(ops.matmul(x, &w[0], None, Dtype::Bf16))),
            (1, None) => drop(black_box(ops.matmul_input_grad(dy, &w[0]))),
            (_, None) => ops.matmul_weight_grad(dy, x, &mut self.dw[0]),
            (0, Some(offsets)) => drop(black_box(ops.grouped_matmul(x, offsets, &w.iter().collect::<Vec<_>>()))),
            (1, Some(offsets)) => {
                drop(black_box(ops.grouped_matmul_input_grad(dy, offsets, &w.iter().collect::<Vec<_>>())));
            }
            (_, Some(offsets)) => {
                let dw = self.dw.iter_mut().map(|dw| Some(&mut dw[..])).collect();
                ops.grouped_matmul_weight_grad(dy, x, offsets, dw);
            }
        }
    }
}

fn median(values: Vec<f64>) -> f64 {
    Times::of(values).median_s
}
