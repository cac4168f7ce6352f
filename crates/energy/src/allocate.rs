//! Joules of one batched step, shared out to its tokens.
//!
//! What a step costs is of two kinds. Some is a token's own: reading its cache, its attention, the arithmetic of its experts. Some is paid
//! once for everyone who uses it: the bytes of the dense weights, and those of each routed expert. Each shared cost is split evenly among
//! its users, `φ_j = a_j + Σ_{v used by j} b_v / |U_v|`, and joules follow, `E_j = E · φ_j / Σφ`. The even split is the Shapley value of
//! the game in which a cost is paid once if anyone uses it; so it depends on no order of tokens, equal tokens pay equally, and costs of
//! different parts add.
//!
//! Source: Shapley 1953; the even split of such costs: Littlechild and Owen 1973.

use std::collections::BTreeMap;

/// A cost paid once, and the tokens that use it.
#[derive(Clone, Debug, PartialEq)]
pub struct Shared {
    /// In any unit, the same for all costs of a step: joules of a fitted [`Cost`], or bytes.
    pub cost: f64,
    /// Indices of the tokens that use it, each once. Of a cost without users nobody pays anything.
    pub users: Vec<u32>,
}

/// Why a step cannot be shared out.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum AllocateError {
    /// There is nobody to pay.
    #[error("the step has no tokens; book its joules as idle")]
    NoTokens,
    /// A number that is no cost.
    #[error("{what} is {value}, expected a finite number that is not negative")]
    Number {
        /// Which.
        what: String,
        /// Its value.
        value: f64,
    },
    /// A user that is no token of the step.
    #[error("shared cost {cost} is used by token {user}, and the step has {tokens}")]
    User {
        /// Index of the shared cost.
        cost: usize,
        /// The user.
        user: u32,
        /// Tokens of the step.
        tokens: usize,
    },
    /// A user named twice.
    #[error("shared cost {cost} names token {user} twice")]
    Twice {
        /// Index of the shared cost.
        cost: usize,
        /// The user.
        user: u32,
    },
    /// Steps to fit a cost to that say too little.
    #[error("{steps} steps do not determine the {terms} terms of a cost; record more, and different ones")]
    TooFew {
        /// Steps given.
        steps: usize,
        /// Terms to fit.
        terms: usize,
    },
}

/// `φ_j` of every token. `private` has the token's own cost, one for each token.
///
/// # Errors
/// If there are no tokens, a cost is no number or negative, or a user is none of the tokens.
///
/// ```
/// # use jevons_energy::allocate::{Shared, weights};
/// let shared = [Shared { cost: 6.0, users: vec![0, 1] }, Shared { cost: 4.0, users: vec![1, 2] }];
/// assert_eq!(weights(&[1.0, 2.0, 3.0], &shared).unwrap(), [4.0, 7.0, 5.0]);
/// ```
pub fn weights(private: &[f64], shared: &[Shared]) -> Result<Vec<f64>, AllocateError> {
    let check = |what: &dyn Fn() -> String, value: f64| match value.is_finite() && value >= 0.0 {
        true => Ok(()),
        false => Err(AllocateError::Number { what: what(), value }),
    };
    if private.is_empty() {
        return Err(AllocateError::NoTokens);
    }
    for (token, cost) in private.iter().enumerate() {
        check(&|| format!("the cost of token {token}"), *cost)?;
    }
    let mut weights = private.to_vec();
    let mut last_cost = vec![usize::MAX; private.len()];
    for (index, Shared { cost, users }) in shared.iter().enumerate() {
        check(&|| format!("shared cost {index}"), *cost)?;
        for &user in users {
            let Some(weight) = weights.get_mut(user as usize) else {
                return Err(AllocateError::User { cost: index, user, tokens: private.len() });
            };
            if std::mem::replace(&mut last_cost[user as usize], index) == index {
                return Err(AllocateError::Twice { cost: index, user });
            }
            *weight += cost / users.len() as f64;
        }
    }
    Ok(weights)
}

/// Joules of every token; they add up to `energy_j` to within a few roundings. Where nothing costs anything, tokens share evenly.
///
/// # Errors
/// As [`weights`], and if `energy_j` is no number or negative, or costs overflow.
pub fn allocate(energy_j: f64, private: &[f64], shared: &[Shared]) -> Result<Vec<f64>, AllocateError> {
    if !energy_j.is_finite() || energy_j < 0.0 {
        return Err(AllocateError::Number { what: "the energy of the step".into(), value: energy_j });
    }
    let mut joules = weights(private, shared)?;
    // Scaled by the largest first, so that no sum overflows.
    let largest = joules.iter().copied().fold(0.0, f64::max);
    if largest.is_infinite() {
        return Err(AllocateError::Number { what: "the sum of a token's costs".into(), value: largest });
    }
    if largest == 0.0 {
        joules.fill(1.0);
    } else {
        joules.iter_mut().for_each(|j| *j /= largest);
    }
    let sum: f64 = joules.iter().sum();
    joules.iter_mut().for_each(|j| *j *= energy_j / sum);
    Ok(joules)
}

/// Adds tokens' joules up by whatever they belong to: a request and its phase, a tenant, a model. A rejected draft belongs to the
/// request that drafted it.
pub fn roll_up<K: Ord>(joules: &[f64], owner: impl Fn(usize) -> K) -> BTreeMap<K, f64> {
    let mut sums = BTreeMap::new();
    for (token, j) in joules.iter().enumerate() {
        *sums.entry(owner(token)).or_insert(0.0) += j;
    }
    sums
}

/// How many different experts a batch is expected to use if routing is uniform: `n · (1 − (1 − k/n)^B)` of `n` routed experts, `k` per
/// token, for `batch` tokens. Small batches waste energy because it grows so fast at first.
pub fn expected_experts(n_routed: usize, per_token: usize, batch: usize) -> f64 {
    let n = n_routed as f64;
    if n_routed == 0 || per_token >= n_routed {
        return n;
    }
    n * (1.0 - libm::pow(1.0 - per_token as f64 / n, batch as f64))
}

/// Operations that cost as much as a byte from memory, where no [`Cost`] was fitted: the balance of two cores that do 0.23 TFLOP/s and read
/// 34 GB/s (README.md, `jevons bench`). It decides between sequences of one step only, and never how many joules there are.
pub const FLOP_PER_BYTE: f64 = 8.0;

/// What a model costs per step and token, in bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ModelCosts {
    /// Of weights that every token runs through.
    pub dense_bytes: f64,
    /// Of all routed experts.
    pub routed_bytes: f64,
    /// Routed experts per layer; 0 in a dense model.
    pub n_routed_experts: usize,
    /// Of them, chosen by a token.
    pub num_experts_per_tok: usize,
    /// Of keys and values of one token.
    pub cache_bytes_per_token: f64,
    /// Operations of one token.
    pub flop_per_token: f64,
}

/// What one sequence does in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceStep {
    /// Tokens computed: one when decoding, many of a prompt.
    pub tokens: usize,
    /// Tokens in its cache after the step.
    pub context: usize,
}

impl ModelCosts {
    /// `Σφ_j` over the tokens of each sequence of a step: its weight when the joules of the step are shared out.
    ///
    /// Weights of the model are shared by all tokens. Which experts a token chose is not told outside the model, so it pays what it would pay
    /// on average under even routing: by symmetry its part of the expected bytes, [`expected_experts`] of all. Its cache (read once per step
    /// and sequence) and its operations ([`FLOP_PER_BYTE`]) are the sequence's own.
    pub fn sequence_weights(&self, step: &[SequenceStep]) -> Vec<f64> {
        let own_per_token = self.flop_per_token / FLOP_PER_BYTE;
        let bytes = self.sequence_bytes(step);
        step.iter().zip(bytes).map(|(s, bytes)| bytes + s.tokens as f64 * own_per_token).collect()
    }

    /// The part of the bytes read in a step that is each sequence's: of weights by its tokens, of caches its own. Together they are all
    /// that a step reads at least.
    pub fn sequence_bytes(&self, step: &[SequenceStep]) -> Vec<f64> {
        let tokens: usize = step.iter().map(|s| s.tokens).sum();
        let read = expected_experts(self.n_routed_experts, self.num_experts_per_tok, tokens);
        let routed =
            if self.n_routed_experts > 0 { self.routed_bytes * read / self.n_routed_experts as f64 } else { 0.0 };
        let shared_per_token = (self.dense_bytes + routed) / tokens.max(1) as f64;
        let bytes =
            |s: &SequenceStep| s.tokens as f64 * shared_per_token + s.context as f64 * self.cache_bytes_per_token;
        step.iter().map(bytes).collect()
    }
}

/// What a step did: what the joules of a step are explained by.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepWork {
    /// How long it took.
    pub seconds: f64,
    /// Floating-point operations.
    pub flop: f64,
    /// Bytes read from and written to memory.
    pub memory_bytes: f64,
    /// Bytes sent between devices.
    pub link_bytes: f64,
}

/// Joules of a step as a sum of terms, `E ≈ c₀·Δt + c₁·FLOP + c₂·bytes + c₃·link bytes`, no term negative.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Watts that are drawn whatever is done.
    pub watts: f64,
    /// Joules per floating-point operation.
    pub j_per_flop: f64,
    /// Joules per byte of memory.
    pub j_per_byte: f64,
    /// Joules per byte between devices.
    pub j_per_link_byte: f64,
    /// Share of the variance of joules that the fit explains; 1 is all.
    pub r_squared: f64,
}

impl Cost {
    /// The least-squares fit with terms that are not negative, to steps of known joules. Terms that never occur in the steps are 0.
    ///
    /// # Errors
    /// If a number is none, or the steps do not tell the terms apart.
    pub fn fit(steps: &[(StepWork, f64)]) -> Result<Self, AllocateError> {
        const TERMS: usize = 4;
        let row = |w: &StepWork| [w.seconds, w.flop, w.memory_bytes, w.link_bytes];
        for (step, (work, joules)) in steps.iter().enumerate() {
            for value in row(work).into_iter().chain([*joules]) {
                if !value.is_finite() || value < 0.0 {
                    return Err(AllocateError::Number { what: format!("a number of step {step}"), value });
                }
            }
        }
        // Columns differ by many powers of ten: each is scaled to a largest value of 1.
        let mut scale = [0.0_f64; TERMS];
        for (work, _) in steps {
            for (s, x) in scale.iter_mut().zip(row(work)) {
                *s = s.max(x);
            }
        }
        let used: Vec<usize> = (0..TERMS).filter(|&i| scale[i] > 0.0).collect();
        if steps.len() < used.len() || used.is_empty() {
            return Err(AllocateError::TooFew { steps: steps.len(), terms: used.len().max(1) });
        }
        let error = |c: &[f64; TERMS]| -> f64 {
            let residual = |(work, joules): &(StepWork, f64)| {
                let fitted: f64 = (0..TERMS).filter(|&i| scale[i] > 0.0).map(|i| c[i] * row(work)[i] / scale[i]).sum();
                (joules - fitted) * (joules - fitted)
            };
            steps.iter().map(residual).sum()
        };
        // With four terms every choice of those above zero can be tried: the best one without a negative term is the answer.
        let mut best: Option<(f64, [f64; TERMS])> = None;
        let mut singular = true;
        for choice in 1..1_u32 << used.len() {
            let chosen: Vec<usize> =
                used.iter().enumerate().filter(|(bit, _)| choice >> bit & 1 == 1).map(|(_, i)| *i).collect();
            let Some(solution) = solve(steps.iter().map(|(work, j)| (row(work), *j)), &chosen, &scale) else {
                continue;
            };
            singular &= chosen.len() < used.len();
            if solution.iter().all(|c| *c >= 0.0) {
                let error = error(&solution);
                if best.is_none_or(|(least, _)| error < least) {
                    best = Some((error, solution));
                }
            }
        }
        let (Some((error, c)), false) = (best, singular) else {
            return Err(AllocateError::TooFew { steps: steps.len(), terms: used.len() });
        };
        let mean = steps.iter().map(|(_, j)| j).sum::<f64>() / steps.len() as f64;
        let variance: f64 = steps.iter().map(|(_, j)| (j - mean) * (j - mean)).sum();
        let term = |i: usize| if scale[i] > 0.0 { c[i] / scale[i] } else { 0.0 };
        Ok(Self {
            watts: term(0),
            j_per_flop: term(1),
            j_per_byte: term(2),
            j_per_link_byte: term(3),
            r_squared: if variance > 0.0 { 1.0 - error / variance } else { 1.0 },
        })
    }
}

/// Least squares over the `chosen` columns by the normal equations; none if they do not determine it.
fn solve<const N: usize>(
    rows: impl Iterator<Item = ([f64; N], f64)>,
    chosen: &[usize],
    scale: &[f64; N],
) -> Option<[f64; N]> {
    let n = chosen.len();
    let mut a = [[0.0; N]; N];
    let mut b = [0.0; N];
    for (row, y) in rows {
        for (i, &ci) in chosen.iter().enumerate() {
            let x = row[ci] / scale[ci];
            b[i] += x * y;
            for (j, &cj) in chosen.iter().enumerate() {
                a[i][j] += x * row[cj] / scale[cj];
            }
        }
    }
    let size = (0..n).map(|i| a[i][i]).fold(0.0, f64::max);
    for k in 0..n {
        let pivot = (k..n).max_by(|&i, &j| a[i][k].abs().total_cmp(&a[j][k].abs()))?;
        if a[pivot][k].abs() <= 1e-12 * size {
            return None;
        }
        a.swap(k, pivot);
        b.swap(k, pivot);
        for i in k + 1..n {
            let factor = a[i][k] / a[k][k];
            let upper = a[k];
            a[i].iter_mut().zip(upper).skip(k).for_each(|(x, u)| *x -= factor * u);
            b[i] -= factor * b[k];
        }
    }
    let mut solution = [0.0; N];
    for k in (0..n).rev() {
        let known: f64 = (k + 1..n).map(|j| a[k][j] * solution[chosen[j]]).sum();
        solution[chosen[k]] = (b[k] - known) / a[k][k];
    }
    Some(solution)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// The definition: the mean over all orders of arrival of what a token adds to the cost.
    fn brute_force(private: &[f64], shared: &[Shared]) -> Vec<f64> {
        fn arrive(
            left: &mut Vec<usize>,
            paid: &mut Vec<bool>,
            shared: &[Shared],
            private: &[f64],
            sums: &mut [f64],
            orders: &mut f64,
        ) {
            if left.is_empty() {
                *orders += 1.0;
                return;
            }
            // The number of orders of those still to come weighs what this one adds now.
            let later: f64 = (1..left.len()).map(|n| n as f64).product();
            for i in 0..left.len() {
                let token = left.remove(i);
                let before = paid.clone();
                let mut adds = private[token];
                for (v, s) in shared.iter().enumerate() {
                    if !paid[v] && s.users.contains(&(token as u32)) {
                        paid[v] = true;
                        adds += s.cost;
                    }
                }
                sums[token] += adds * later;
                arrive(left, paid, shared, private, sums, orders);
                *paid = before;
                left.insert(i, token);
            }
        }
        let (mut sums, mut orders) = (vec![0.0; private.len()], 0.0);
        arrive(
            &mut (0..private.len()).collect(),
            &mut vec![false; shared.len()],
            shared,
            private,
            &mut sums,
            &mut orders,
        );
        sums.iter().map(|s| s / orders).collect()
    }

    fn step(tokens: std::ops::Range<usize>, costs: usize) -> impl Strategy<Value = (Vec<f64>, Vec<Shared>)> {
        tokens.prop_flat_map(move |n| {
            let shared = vec((0.0..10.0, vec(any::<bool>(), n)), 0..costs);
            let shared = shared.prop_map(|costs| {
                let users = |used: Vec<bool>| (0..used.len() as u32).filter(|i| used[*i as usize]).collect();
                costs.into_iter().map(|(cost, used)| Shared { cost, users: users(used) }).collect()
            });
            (vec(0.0..10.0, n), shared)
        })
    }

    #[test]
    fn the_vector_of_the_reference() {
        let shared = [Shared { cost: 6.0, users: vec![0, 1] }, Shared { cost: 4.0, users: vec![1, 2] }];
        let phi = weights(&[1.0, 2.0, 3.0], &shared).unwrap();
        for (got, want) in phi.iter().zip([4.0, 7.0, 5.0]) {
            assert!((got - want).abs() < 1e-12, "{phi:?}");
        }
        assert!((phi.iter().sum::<f64>() - 16.0).abs() < 1e-12);
        assert_eq!(allocate(32.0, &[1.0, 2.0, 3.0], &shared).unwrap(), [8.0, 14.0, 10.0]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn the_even_split_is_the_shapley_value((private, shared) in step(1..7, 8)) {
            let want = brute_force(&private, &shared);
            for (got, want) in weights(&private, &shared).unwrap().iter().zip(&want) {
                prop_assert!((got - want).abs() <= 1e-12 * want.max(1.0), "{got}, brute force {want}");
            }
        }
    }

    #[test]
    fn the_even_split_is_the_shapley_value_of_eight_tokens() {
        let private = [0.5, 1.0, 0.0, 2.0, 3.0, 0.25, 4.0, 1.5];
        let users = [vec![0, 1, 2, 3, 4, 5, 6, 7], vec![0, 3], vec![1, 2, 7], vec![5], vec![2, 3, 4, 6], vec![]];
        let shared: Vec<_> =
            users.into_iter().zip([9.0, 2.0, 4.0, 1.0, 3.0, 8.0]).map(|(users, cost)| Shared { cost, users }).collect();
        for (got, want) in weights(&private, &shared).unwrap().iter().zip(brute_force(&private, &shared)) {
            assert!((got - want).abs() < 1e-12, "{got}, brute force {want}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]
        #[test]
        fn tokens_pay_the_energy_of_the_step_and_no_more((private, shared) in step(1..40, 12), energy in 0.0..1e6_f64) {
            let joules = allocate(energy, &private, &shared).unwrap();
            prop_assert!(joules.iter().all(|j| *j >= 0.0));
            let sum: f64 = joules.iter().sum();
            prop_assert!((sum - energy).abs() <= 1e-9 * energy, "{sum} of {energy}");
        }
    }

    #[test]
    fn extreme_costs_still_add_up() {
        for private in [vec![0.0; 5], vec![f64::MAX; 5], vec![f64::MIN_POSITIVE; 5], vec![1e-300, 1e300]] {
            let sum: f64 = allocate(7.0, &private, &[]).unwrap().iter().sum();
            assert!((sum - 7.0).abs() < 1e-9, "{private:?}: {sum}");
        }
    }

    #[test]
    fn what_is_no_cost_is_refused() {
        let shared = |cost, users: &[u32]| [Shared { cost, users: users.to_vec() }];
        assert_eq!(weights(&[], &[]), Err(AllocateError::NoTokens));
        assert!(matches!(weights(&[f64::NAN], &[]), Err(AllocateError::Number { .. })));
        assert!(matches!(weights(&[1.0], &shared(-1.0, &[0])), Err(AllocateError::Number { .. })));
        assert!(matches!(weights(&[1.0], &shared(1.0, &[1])), Err(AllocateError::User { user: 1, .. })));
        assert!(matches!(weights(&[1.0], &shared(1.0, &[0, 0])), Err(AllocateError::Twice { user: 0, .. })));
        let overflowing = allocate(1.0, &[f64::MAX], &shared(f64::MAX, &[0]));
        assert!(matches!(overflowing, Err(AllocateError::Number { .. })));
        assert!(matches!(allocate(f64::INFINITY, &[1.0], &[]), Err(AllocateError::Number { .. })));
    }

    #[test]
    fn joules_roll_up_to_whoever_owns_the_tokens() {
        // A rejected draft (token 2) is paid by the request that drafted it.
        let owner = |token: usize| [("a", "answer"), ("b", "answer"), ("a", "rejected_draft")][token];
        let sums = roll_up(&[1.0, 2.0, 4.0], owner);
        assert_eq!(
            sums,
            BTreeMap::from([(("a", "answer"), 1.0), (("b", "answer"), 2.0), (("a", "rejected_draft"), 4.0)])
        );
    }

    #[test]
    fn weights_of_sequences_are_those_of_their_tokens() {
        let costs = ModelCosts {
            dense_bytes: 60.0,
            routed_bytes: 0.0,
            n_routed_experts: 0,
            num_experts_per_tok: 0,
            cache_bytes_per_token: 2.0,
            flop_per_token: 24.0,
        };
        // Three tokens of a prompt beside one that is decoded with eleven in its cache.
        let step = [SequenceStep { tokens: 3, context: 3 }, SequenceStep { tokens: 1, context: 11 }];
        let own = 24.0 / FLOP_PER_BYTE;
        let private = [own + 2.0 * 3.0, own, own, own + 2.0 * 11.0];
        let phi = weights(&private, &[Shared { cost: 60.0, users: vec![0, 1, 2, 3] }]).unwrap();
        let want = [phi[..3].iter().sum::<f64>(), phi[3]];
        assert_eq!(costs.sequence_weights(&step), want);
        assert_eq!(costs.sequence_weights(&[]), Vec::<f64>::new());
    }

    #[test]
    fn unknown_experts_cost_the_mean_of_the_shapley_values_over_all_choices() {
        let costs = ModelCosts {
            dense_bytes: 0.0,
            routed_bytes: 30.0,
            n_routed_experts: 3,
            num_experts_per_tok: 1,
            cache_bytes_per_token: 0.0,
            flop_per_token: 0.0,
        };
        let mut mean = [0.0; 2];
        for choice in 0..9 {
            let chosen = [choice % 3, choice / 3];
            let users = |expert| (0..2_u32).filter(|token| chosen[*token as usize] == expert).collect();
            let shared: Vec<_> = (0..3).map(|expert| Shared { cost: 10.0, users: users(expert) }).collect();
            for (mean, phi) in mean.iter_mut().zip(weights(&[0.0; 2], &shared).unwrap()) {
                *mean += phi / 9.0;
            }
        }
        let got = costs.sequence_weights(&[SequenceStep { tokens: 1, context: 5 }; 2]);
        assert!(got.iter().zip(mean).all(|(got, want)| (got - want).abs() < 1e-12), "{got:?}, enumerated {mean:?}");
    }

    #[test]
    fn batches_cover_experts_as_the_reference_says() {
        for (batch, want) in [(1, 8.0), (8, 57.4), (32, 163.3), (64, 222.4), (128, 251.6)] {
            assert!((expected_experts(256, 8, batch) - want).abs() < 0.06, "{batch}");
        }
        assert_eq!([expected_experts(0, 0, 9), expected_experts(4, 4, 1)], [0.0, 4.0]);
    }

    #[test]
    fn a_fit_finds_the_terms_that_made_the_joules() {
        let truth = |w: &StepWork| 50.0 * w.seconds + 2e-11 * w.flop + 3e-10 * w.memory_bytes;
        let steps: Vec<_> = (1..20)
            .map(|i| {
                let x = f64::from(i);
                let w = StepWork {
                    seconds: 0.01 * x,
                    flop: 1e10 * (x * x % 7.0),
                    memory_bytes: 1e9 * (x % 3.0),
                    link_bytes: 0.0,
                };
                (w, truth(&w))
            })
            .collect();
        let cost = Cost::fit(&steps).unwrap();
        let close = |got: f64, want: f64| assert!((got / want - 1.0).abs() < 1e-9, "{got}, expected {want}");
        close(cost.watts, 50.0);
        close(cost.j_per_flop, 2e-11);
        close(cost.j_per_byte, 3e-10);
        assert_eq!(cost.j_per_link_byte, 0.0);
        assert!(cost.r_squared > 1.0 - 1e-12);
        // What would be negative is zero.
        let falling: Vec<_> = (1..9)
            .map(|i| (StepWork { seconds: 1.0, flop: f64::from(i), ..Default::default() }, 10.0 - f64::from(i)))
            .collect();
        assert_eq!(Cost::fit(&falling).unwrap().j_per_flop, 0.0);
        assert!(matches!(Cost::fit(&steps[..1]), Err(AllocateError::TooFew { .. })));
        assert!(matches!(Cost::fit(&vec![steps[0]; 9]), Err(AllocateError::TooFew { .. })));
        assert!(matches!(Cost::fit(&[]), Err(AllocateError::TooFew { .. })));
    }
}
