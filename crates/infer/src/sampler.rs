//! From logits to one token.
//!
//! Order of the steps: divide by the temperature, keep the `top_k` best, of these the smallest set that holds `top_p` of
//! their mass, of these the ones with at least `min_p` times the best one's probability, draw. Ties go to the lower id.

use std::cmp::Ordering;

use jevons_kernels::{Isa, Ops, math};

use crate::rng;

/// How to choose the next token. The default is greedy.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the most likely token. Otherwise at least [`Sampling::MIN_TEMPERATURE`].
    pub temperature: f32,
    /// Keep this many of the most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of most likely tokens with this share of the probability, at least one; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this many times as likely as the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Same seed, prompt and options: same tokens.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0 }
    }
}

impl Sampling {
    /// A smaller temperature than this overflows, and is greedy in all but name.
    pub const MIN_TEMPERATURE: f32 = 1e-4;
}

/// A setting of [`Sampling`] outside its range.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{name} is {value}, expected {expected}")]
pub struct SamplingError {
    name: &'static str,
    value: f32,
    expected: &'static str,
}

/// Logits that no distribution belongs to: the model is broken, not the request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogitsError {
    /// NaN or +∞
    #[error("the logit of token {token} is {value}; the weights are damaged, or overflow in this precision")]
    NotANumber {
        /// Where.
        token: usize,
        /// As printed.
        value: String,
    },
    /// No token is possible.
    #[error("no token has a finite logit; the weights are damaged, or overflow in this precision")]
    NoneFinite,
}

/// A drawn token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Its id.
    pub token: u32,
    /// Natural logarithm of its probability after temperature, before `top_k`, `top_p` and `min_p`; at temperature 0,
    /// that of the model itself (temperature 1).
    pub logprob: f32,
}

/// Draws tokens by checked settings.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    ops: Ops,
}

impl Sampler {
    /// # Errors
    /// A setting outside its range.
    pub fn new(sampling: Sampling) -> Result<Self, SamplingError> {
        let Sampling { temperature, top_p, min_p, .. } = sampling;
        let check = |name, value, ok, expected| if ok { Ok(()) } else { Err(SamplingError { name, value, expected }) };
        let warm = (Sampling::MIN_TEMPERATURE..=1e4).contains(&temperature);
        check("temperature", temperature, temperature == 0.0 || warm, "0 (greedy) or 0.0001 to 10000")?;
        check("top_p", top_p, (0.0..=1.0).contains(&top_p), "0 to 1")?;
        check("min_p", min_p, (0.0..=1.0).contains(&min_p), "0 to 1")?;
        // Every path returns the same bits; a wrong JEVONS_ISA was refused when the model was loaded.
        let ops = Ops::new().unwrap_or_else(|_| Ops::with_isa(Isa::PORTABLE));
        Ok(Self { sampling, ops })
    }

    /// Chooses the token at `position` of a sequence, `logits` `[V]` being the model's output one position before.
    ///
    /// The random number is named by the seed, `choice` (which of several sequences of one request) and `position`, so
    /// it is the same in any batch, and after an interruption.
    ///
    /// # Errors
    /// [`LogitsError`] if `logits` hold NaN or +∞, or nothing finite.
    pub fn choose(&self, logits: &[f32], choice: u64, position: u64) -> Result<Choice, LogitsError> {
        let best = best(logits)?;
        if self.sampling.temperature == 0.0 {
            return Ok(Choice { token: best, logprob: logits[best as usize] - self.ops.log_sum_exp(logits) });
        }
        let z: Vec<f32> = logits.iter().map(|x| x / self.sampling.temperature).collect();
        let top = z[best as usize];
        if !top.is_finite() {
            return Err(LogitsError::NotANumber { token: best as usize, value: top.to_string() });
        }
        let u = rng::uniform(self.sampling.seed, choice, position);
        let weight = |token: u32| f64::from(math::exp(z[token as usize] - top));
        let mut ranked = Ranked::new(logits);
        let (kept, mass) = self.keep(&mut ranked, weight);
        let token = draw(ranked.ids[..kept].iter().copied(), weight, u * mass);
        Ok(Choice { token, logprob: z[token as usize] - self.ops.log_sum_exp(&z) })
    }

    /// How many of the most likely tokens stay, and the sum of their weights.
    ///
    /// A mass of the whole vocabulary is summed by id, any other from the most likely token down.
    fn keep(&self, ranked: &mut Ranked<'_>, weight: impl Fn(u32) -> f64) -> (usize, f64) {
        let Sampling { top_k, top_p, min_p, .. } = self.sampling;
        let vocab = ranked.ids.len();
        let limit = if top_k == 0 { vocab } else { top_k.min(vocab) };
        let total: f64 = if limit == vocab {
            (0..vocab as u32).map(&weight).sum()
        } else {
            ranked.sort_to(limit);
            ranked.ids[..limit].iter().map(|t| weight(*t)).sum()
        };
        if top_p == 1.0 && min_p == 0.0 {
            return (limit, total);
        }
        let enough = if top_p == 1.0 { f64::INFINITY } else { f64::from(top_p) * total };
        let mut mass = 0.0;
        for n in 0..limit {
            ranked.sort_to(n + 1);
            let w = weight(ranked.ids[n]);
            if n > 0 && (mass >= enough || w < f64::from(min_p)) {
                return (n, mass);
            }
            mass += w;
        }
        (limit, mass)
    }
}

/// The first of `tokens` at which the running sum of weights passes `target`. Rounding may leave the sum just below it:
/// then the last token that has any weight.
fn draw(tokens: impl Iterator<Item = u32>, weight: impl Fn(u32) -> f64, target: f64) -> u32 {
    let (mut sum, mut last) = (0.0, None);
    for token in tokens {
        let w = weight(token);
        if w > 0.0 {
            last = Some(token);
            sum += w;
            if sum > target {
                break;
            }
        }
    }
    last.expect("the most likely token weighs 1")
}

/// Most likely token.
fn best(logits: &[f32]) -> Result<u32, LogitsError> {
    let mut best: Option<usize> = None;
    for (token, x) in logits.iter().enumerate() {
        if x.is_nan() || *x == f32::INFINITY {
            return Err(LogitsError::NotANumber { token, value: x.to_string() });
        }
        if x.is_finite() && best.is_none_or(|b| *x > logits[b]) {
            best = Some(token);
        }
    }
    best.map(|b| b as u32).ok_or(LogitsError::NoneFinite)
}

/// Token ids, sorted from the most likely down only as far as somebody looked.
struct Ranked<'a> {
    logits: &'a [f32],
    ids: Vec<u32>,
    sorted: usize,
}

impl<'a> Ranked<'a> {
    fn new(logits: &'a [f32]) -> Self {
        Self { logits, ids: (0..logits.len() as u32).collect(), sorted: 0 }
    }

    /// Sorts at least the first `n`. Ranks by the undivided logits: division may make a tie of a difference.
    fn sort_to(&mut self, n: usize) {
        if n <= self.sorted {
            return;
        }
        let n = n.max(4 * self.sorted).max(64).min(self.ids.len());
        // `+ 0.0` makes one zero of two, which are a tie.
        let key = |t: u32| self.logits[t as usize] + 0.0;
        let order = |a: &u32, b: &u32| -> Ordering { key(*b).total_cmp(&key(*a)).then(a.cmp(b)) };
        let rest = &mut self.ids[self.sorted..];
        let count = n - self.sorted;
        if count < rest.len() {
            rest.select_nth_unstable_by(count - 1, order);
        }
        rest[..count].sort_unstable_by(order);
        self.sorted = n;
    }
}

#[cfg(test)]
mod tests;
