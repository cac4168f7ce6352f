//! Frequencies of the rotary embedding, and what YaRN and Llama 3.1 change.
//!
//! Source: Su et al. 2021, arXiv:2104.09864; YaRN: Peng et al. 2023, arXiv:2309.00071, equations 17 to 22, with the
//! conventions of `transformers` 5.23 for absent keys; Llama 3.1: the model's published reference code. All in f64 through `libm`, so that every machine gets the same
//! bits.

use super::{Attention, Config, RopeScaling};

impl Config {
    /// Angle per position of each rotated pair, in radians: `[rope_dim / 2]`, fastest first.
    ///
    /// Without scaling `theta^(−2k / rope_dim)`. YaRN and Llama 3.1 divide slow pairs by `factor`, keep fast ones, and ramp
    /// between: the one by the number of the pair, the other by its turns over the original context.
    pub fn rope_inv_freq(&self) -> Vec<f64> {
        let (dim, theta) = (self.rope_dim() as f64, self.rope.theta);
        let plain = (0..self.rope_dim() / 2).map(|k| 1.0 / libm::pow(theta, 2.0 * k as f64 / dim));
        let (factor, original, beta_fast, beta_slow, truncate) = match self.rope.scaling {
            RopeScaling::None => return plain.collect(),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                return plain
                    .map(|f| {
                        let turns = original_max_position_embeddings as f64 * f / (2.0 * std::f64::consts::PI);
                        let ramp = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        let kept = ramp.clamp(0.0, 1.0);
                        f * kept + f / factor * (1.0 - kept)
                    })
                    .collect();
            }
            RopeScaling::Yarn {
                factor,
                original_max_position_embeddings: original,
                beta_fast,
                beta_slow,
                truncate,
                ..
            } => (factor, original, beta_fast, beta_slow, truncate),
        };
        // The dimension that turns `rotations` times over the original context.
        let dim_of = |rotations: f64| {
            dim * libm::log(original as f64 / (rotations * 2.0 * std::f64::consts::PI)) / (2.0 * libm::log(theta))
        };
        let (mut low, mut high) = (dim_of(beta_fast), dim_of(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001; // A step instead of a ramp, without dividing by zero.
        }
        plain
            .enumerate()
            .map(|(k, f)| {
                let ramp = ((k as f64 - low) / (high - low)).clamp(0.0, 1.0);
                f / factor * ramp + f * (1.0 - ramp)
            })
            .collect()
    }

    /// Multiplier of cos and sin, 1 without scaling: `attention_factor` if given, else `m(mscale) / m(mscale_all_dim)`
    /// if both are given, else `m(1)`, where `m(s) = 0.1 · s · ln(factor) + 1`.
    pub fn rope_attention_factor(&self) -> f64 {
        match self.rope.scaling {
            RopeScaling::None | RopeScaling::Llama3 { .. } => 1.0,
            RopeScaling::Yarn { attention_factor: Some(given), .. } => given,
            RopeScaling::Yarn { factor, mscale, mscale_all_dim, .. } if mscale != 0.0 && mscale_all_dim != 0.0 => {
                yarn_mscale(factor, mscale) / yarn_mscale(factor, mscale_all_dim)
            }
            RopeScaling::Yarn { factor, .. } => yarn_mscale(factor, 1.0),
        }
    }

    /// Factor on the scores before the softmax: `1 / √qk_head_dim`, for latent attention with YaRN times
    /// `m(mscale_all_dim)²` (DeepSeek-V3: 0.1352338).
    pub fn softmax_scale(&self) -> f64 {
        let plain = 1.0 / (self.qk_head_dim() as f64).sqrt();
        match (&self.attention, &self.rope.scaling) {
            (Attention::Mla { .. }, RopeScaling::Yarn { factor, mscale_all_dim, .. }) => {
                let m = yarn_mscale(*factor, *mscale_all_dim); // 1 if the file has no `mscale_all_dim`.
                plain * m * m
            }
            _ => plain,
        }
    }
}

/// `m(s) = 0.1 · s · ln(factor) + 1`.
fn yarn_mscale(factor: f64, s: f64) -> f64 {
    0.1 * s * libm::log(factor) + 1.0
}
