//! Will it fit, and how fast: arithmetic on bytes, before any of them is fetched.

/// What a model needs, as far as is known before it is here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// All weights.
    pub weight_bytes: u64,
    /// Weights that one new token is multiplied with; less than all where there are experts to choose from. `None`: it
    /// is not known.
    pub active_bytes: Option<u64>,
    /// What is remembered of a conversation as long as one should plan for.
    pub cache_bytes: u64,
}

/// What a machine has, as far as that is known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Machine {
    /// Its memory.
    pub total_bytes: Option<u64>,
    /// The part of it that is free now.
    pub free_bytes: Option<u64>,
    /// Memory read per second, measured.
    pub bytes_per_s: Option<f64>,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fit {
    /// Memory needed: weights and cache.
    pub bytes: u64,
    /// Against what the machine has.
    pub verdict: Verdict,
    /// New tokens per second at most, for one conversation. Each token needs every active weight and, at the end, the
    /// whole cache once from memory, so no machine is faster than its memory; one that computes slowly, or reads in
    /// pieces, stays below.
    pub tokens_per_s: Option<f64>,
}

/// Whether the memory suffices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It does.
    Fits,
    /// It would if other programs were not using it now.
    NotNow,
    /// Not on this machine.
    TooLarge,
    /// The machine does not tell.
    Unknown,
}

impl Fit {
    /// Compares a model with a machine.
    ///
    /// ```
    /// # use jevons_hub::{Fit, Machine, Need, Verdict};
    /// let need = Need { weight_bytes: 3_000_000_000, active_bytes: Some(3_000_000_000), cache_bytes: 0 };
    /// let machine = Machine { total_bytes: Some(8 << 30), free_bytes: Some(6 << 30), bytes_per_s: Some(30e9) };
    /// let fit = Fit::of(need, machine);
    /// assert_eq!((fit.verdict, fit.tokens_per_s), (Verdict::Fits, Some(10.0)));
    /// ```
    pub fn of(need: Need, machine: Machine) -> Self {
        let bytes = need.weight_bytes.saturating_add(need.cache_bytes);
        let verdict = match (machine.total_bytes, machine.free_bytes) {
            (Some(total), _) if bytes > total => Verdict::TooLarge,
            (_, Some(free)) if bytes > free => Verdict::NotNow,
            (None, None) => Verdict::Unknown,
            _ => Verdict::Fits,
        };
        let per_token = need.active_bytes.map(|active| active.saturating_add(need.cache_bytes)).filter(|b| *b > 0);
        let speed = machine.bytes_per_s.filter(|s| s.is_finite() && *s > 0.0);
        // What does not fit is read from disk, of whose speed nothing is known here.
        let speed = speed.filter(|_| verdict != Verdict::TooLarge);
        Self { bytes, verdict, tokens_per_s: speed.zip(per_token).map(|(speed, bytes)| speed / bytes as f64) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_tells_never_from_not_now() {
        let machine = Machine { total_bytes: Some(100), free_bytes: Some(50), bytes_per_s: Some(1000.0) };
        let need = |weight_bytes| Need { weight_bytes, active_bytes: Some(weight_bytes / 2), cache_bytes: 10 };
        let fit = |weight_bytes| Fit::of(need(weight_bytes), machine);
        assert_eq!([40, 41, 90, 91].map(|w| fit(w).verdict), {
            use Verdict::{Fits, NotNow, TooLarge};
            [Fits, NotNow, NotNow, TooLarge]
        });
        assert_eq!(fit(80).tokens_per_s, Some(20.0));
        assert_eq!(fit(u64::MAX).tokens_per_s, None);
        let unknown = Fit::of(need(40), Machine::default());
        assert_eq!((unknown.verdict, unknown.tokens_per_s), (Verdict::Unknown, None));
        assert_eq!(Fit::of(Need::default(), machine).tokens_per_s, None);
    }
}
