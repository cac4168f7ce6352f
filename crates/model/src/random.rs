//! Weights for measuring: what a fresh model could hold, made in pieces, the same for the same seed on every machine.
//!
//! Matrices are uniform with the standard deviation that config.json gives fresh ones, gains are 1 and biases 0. Each number is a
//! function of the seed, its tensor's place and its own, so the pieces do not matter.

use std::convert::Infallible;

use jevons_kernels::{formats::ScaleFormat, random::philox4x32};
use jevons_layers::Param;

use crate::{Config, MlaForm, Model, ModelError, Precision, Quantize, config::TensorSpec, model};

impl Model {
    /// A model with random weights, made directly in their packed form: it takes the memory of the weights and a few MB. `mla`: `None`
    /// is [`Config::default_mla_form`]. Multi-token prediction is left out.
    ///
    /// # Errors
    /// [`ModelError::Isa`] for an unknown `JEVONS_ISA`, [`ModelError::QuantizeInF32`].
    pub fn random(
        config: Config,
        precision: Precision,
        mla: Option<MlaForm>,
        quantize: Option<Quantize>,
        seed: u64,
    ) -> Result<Self, ModelError> {
        let quantize = precision.quantize(quantize)?;
        let config = config.without_mtp();
        let form = mla.unwrap_or_else(|| config.default_mla_form());
        Self::build(config, precision, form, |config, id, spec| {
            let quantize = quantize.filter(|q| q.takes(config, precision, spec)).map(|q| q.scale);
            Ok::<_, Infallible>(random(config, precision, form, quantize, id.0, spec, seed))
        })
    }
}

fn random(
    config: &Config,
    precision: Precision,
    mla: MlaForm,
    quantize: Option<ScaleFormat>,
    id: usize,
    spec: &TensorSpec,
    seed: u64,
) -> Param {
    // Uniform numbers reach √3 times as far as they deviate.
    let reach = config.initializer_range * 3f32.sqrt();
    match spec.shape[..] {
        [n, k] if !model::is_absorbed(mla, spec) => {
            let matrix = model::matrix_in_pieces(precision, quantize, n, k, |rows, piece| {
                fill(seed, id, rows.start * k, reach, piece);
                Ok::<_, Infallible>(())
            });
            let Ok(matrix) = matrix;
            Param::Matrix(matrix)
        }
        [_] => {
            let value = if spec.name.ends_with("bias") { 0.0 } else { 1.0 };
            model::param(config, precision, mla, spec, &vec![value; spec.elements()])
        }
        _ => {
            let mut values = vec![0.0; spec.elements()];
            fill(seed, id, 0, reach, &mut values);
            model::param(config, precision, mla, spec, &values)
        }
    }
}

/// Numbers that one draw of random words gives.
const PER_DRAW: usize = 8;

/// Elements `first..` of tensor `id`, evenly between `−reach` and `reach`; `first` is a multiple of 8.
fn fill(seed: u64, id: usize, first: usize, reach: f32, out: &mut [f32]) {
    assert!(first.is_multiple_of(PER_DRAW));
    let key = [seed as u32, (seed >> 32) as u32];
    for (i, out) in out.chunks_mut(PER_DRAW).enumerate() {
        let at = (first / PER_DRAW + i) as u64;
        let words = philox4x32([at as u32, (at >> 32) as u32, id as u32, 0], key);
        for (j, x) in out.iter_mut().enumerate() {
            let half = (words[j / 2] >> (16 * (j % 2))) as u16;
            *x = (f32::from(half) - 32767.5) * (reach / 32768.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_do_not_depend_on_the_pieces_and_deviate_as_asked() {
        let mut whole = vec![0.0; 4099];
        fill(3, 7, 0, 3f32.sqrt(), &mut whole);
        let mut pieces = vec![0.0; 4099];
        for (i, piece) in pieces.chunks_mut(96).enumerate() {
            fill(3, 7, 96 * i, 3f32.sqrt(), piece);
        }
        assert_eq!(whole, pieces);
        let mean = whole.iter().sum::<f32>() / 4099.0;
        let square = whole.iter().map(|x| x * x).sum::<f32>() / 4099.0;
        // Of 4,099 numbers the mean deviates by 0.016 and the mean square by 0.014: five times that.
        assert!(mean.abs() < 0.08 && (square - 1.0).abs() < 0.07, "{mean} {square}");
        let mut other = vec![0.0; 4099];
        fill(3, 8, 0, 3f32.sqrt(), &mut other);
        assert_ne!(whole, other);
    }
}
