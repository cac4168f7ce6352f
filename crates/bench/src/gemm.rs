//! Products `Y[M, N] = X[M, K] · W[N, K]ᵀ` by themselves.
//!
//! Of few rows, as in decoding, a product is as fast as its weights can be read: it then runs over copies of them that together are larger
//! than caches, so that what is measured is memory.

use std::{convert::Infallible, hint::black_box};

use jevons_kernels::{Dtype, Matrix, Ops, Tensor};

use crate::{
    BenchError, Event, Phase, Report, Row, Settings,
    report::{Work, name_of},
    timing::{Times, repeat, seconds},
};

/// `[M, N, K]` that are always measured: square ones, and those of a 1.5 B model and of a small mixture of experts.
pub const SHAPES: [[usize; 3]; 8] = [
    [1024, 1024, 1024],
    [4096, 4096, 4096],
    [512, 8960, 1536],
    [1024, 384, 384],
    [1, 8960, 1536],
    [1, 1536, 8960],
    [8, 8960, 1536],
    [8, 1536, 8960],
];

/// Rows up to which a product is told in bytes per second.
const FEW_ROWS: usize = 8;
/// Bytes of weights that few rows run over.
const BEYOND_CACHES: usize = 512 << 20;
/// Operations of the largest product of a quick run.
const QUICK_FLOP: f64 = 4e9;

pub(crate) fn run(
    ops: &Ops,
    settings: &Settings,
    report: &mut Report,
    observe: &mut dyn FnMut(Event),
) -> Result<(), BenchError> {
    for dtype in [Dtype::Bf16, Dtype::F32] {
        for &shape in &settings.shapes {
            let [m, n, k] = shape;
            let name = format!("{m} x {n} x {k}");
            observe(Event::Now(format!("product {name}")));
            let work = work(shape, dtype);
            match room(settings, shape, work.flop) {
                Err(reason) => report.leave_out(Phase::Gemm, format!("{} {name}", name_of(dtype)), reason),
                Ok(()) => {
                    let times = times(ops, settings, shape, dtype);
                    report.rows.push(Row::new(Phase::Gemm, name, dtype, work, times, &report.limits));
                }
            }
            observe(Event::Done);
        }
    }
    Ok(())
}

fn work([m, n, k]: [usize; 3], dtype: Dtype) -> Work {
    let [m, n, k] = [m, n, k].map(|d| d as f64);
    Work { tokens: None, flop: 2.0 * m * n * k, bytes: (m * k + n * k + m * n) * dtype.size() as f64 }
}

fn room(settings: &Settings, [m, n, k]: [usize; 3], flop: f64) -> Result<(), String> {
    if settings.quick && flop > QUICK_FLOP {
        return Err("too large for a quick run".into());
    }
    let numbers = [(m, k), (n, k), (m, n)].iter().map(|(a, b)| (*a as f64) * (*b as f64)).sum::<f64>();
    // Operands as f32 and, of the weights, packed.
    let needed = (8.0 * numbers) as u64 + if m <= FEW_ROWS { BEYOND_CACHES as u64 } else { 0 };
    match jevons_sys::available_memory_bytes() {
        Some(available) if needed > available => {
            Err(format!("it needs about {} MB and {} MB are free", needed / 1_000_000, available / 1_000_000))
        }
        _ => Ok(()),
    }
}

fn times(ops: &Ops, settings: &Settings, [m, n, k]: [usize; 3], dtype: Dtype) -> Times {
    // The values do not matter to the time, as long as none is subnormal.
    let values = |len: usize| (0..len).map(|i| (i % 251) as f32 / 251.0 - 0.5).collect::<Vec<_>>();
    let x = Tensor::from_f32(values(m * k), k).to_dtype(dtype);
    let w = Matrix::from_f32(dtype, &values(n * k), n, k);
    let beyond = if settings.quick { BEYOND_CACHES / 16 } else { BEYOND_CACHES };
    let copies = if m <= FEW_ROWS { beyond.div_ceil(w.bytes().max(1)) } else { 1 };
    let weights = vec![w; copies];
    let Ok(times) = repeat(settings.budget(), |run| {
        let w = &weights[run % copies];
        Ok::<_, Infallible>(seconds(|| black_box(ops.matmul(&x, w, None, dtype))))
    });
    times
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_work_of_a_product_is_counted_in_its_format() {
        let of = |dtype| work([2, 3, 5], dtype);
        assert_eq!(of(Dtype::Bf16), Work { tokens: None, flop: 60.0, bytes: 62.0 });
        assert_eq!(of(Dtype::F32).bytes, 124.0);
    }

    #[test]
    fn what_does_not_fit_is_left_out_with_a_reason() {
        let settings = Settings::new(vec![Phase::Gemm], false);
        let huge = [1 << 30, 1 << 30, 1 << 30];
        if jevons_sys::available_memory_bytes().is_some() {
            assert!(room(&settings, huge, 1.0).unwrap_err().contains("MB are free"));
        }
        let quick = Settings::new(vec![Phase::Gemm], true);
        assert_eq!(room(&quick, [4096; 3], work([4096; 3], Dtype::F32).flop).unwrap_err(), "too large for a quick run");
        assert_eq!(room(&quick, [1, 1, 1], 2.0), Ok(()));
    }
}
