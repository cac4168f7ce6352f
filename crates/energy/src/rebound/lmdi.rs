//! Logarithmic mean Divisia decomposition (LMDI-I): how much of a change in energy each factor is answerable for, with no residual.
//!
//! `E = users · (tasks / user) · (tokens / task) · (J / token)`, `ΔE_x = L(E1, E0) · ln(x1 / x0)`, `L(a, b) = (a − b) / (ln a − ln b)`.
//! The factor tokens per task is the reasoning rebound: models that think longer. Source: Ang 2005, doi:10.1016/j.enpol.2003.10.010; zeros by
//! Ang and Liu 2007, doi:10.1016/j.enpol.2006.11.016.

use serde::Serialize;

/// `(a − b) / (ln a − ln b)`, and its limits: `a` where both are equal, 0 where one of them is 0.
pub fn log_mean(a: f64, b: f64) -> f64 {
    if a <= 0.0 || b <= 0.0 {
        return 0.0;
    }
    let d = (a - b) / b;
    if d == 0.0 { a } else { (a - b) / libm::log1p(d) }
}

/// Sums of a period, or means per day: the ratios are the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Totals {
    /// Users; 1 if they are not known, and the factor is then silent.
    pub users: f64,
    /// Tasks.
    pub tasks: f64,
    /// Tokens.
    pub tokens: f64,
    /// Joules.
    pub joules: f64,
}

impl Totals {
    /// The factors whose product is the energy.
    fn factors(&self) -> [f64; 4] {
        [self.users, self.tasks / self.users, self.tokens / self.tasks, self.joules / self.tokens]
    }

    fn is_positive(&self) -> bool {
        [self.users, self.tasks, self.tokens, self.joules].iter().all(|x| *x > 0.0 && x.is_finite())
    }
}

/// Joules that each factor is answerable for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Decomposition {
    /// More or fewer users.
    pub users_j: f64,
    /// More or fewer tasks of each.
    pub tasks_per_user_j: f64,
    /// Longer or shorter tasks, thinking included.
    pub tokens_per_task_j: f64,
    /// More or less energy per token.
    pub joules_per_token_j: f64,
    /// Energy after less energy before.
    pub change_j: f64,
    /// What is left over: rounding only.
    pub residual_j: f64,
}

/// Decomposes the change from `before` to `after`, summed over groups (pairs of the same group).
///
/// A group that has nothing on one side is a matter of use alone: its whole energy goes to users, the limit as its size, but not its
/// ratios, goes to 0.
pub fn decompose(groups: &[(Totals, Totals)]) -> Decomposition {
    let mut out = Decomposition::default();
    for (before, after) in groups {
        let (e0, e1) = (before.joules, after.joules);
        out.change_j += e1 - e0;
        if !before.is_positive() || !after.is_positive() {
            out.users_j += e1 - e0;
            continue;
        }
        let (x0, x1) = (before.factors(), after.factors());
        let weight = log_mean(e1, e0);
        let part = |i: usize| weight * libm::log(x1[i] / x0[i]);
        out.users_j += part(0);
        out.tasks_per_user_j += part(1);
        out.tokens_per_task_j += part(2);
        out.joules_per_token_j += part(3);
    }
    let parts = out.users_j + out.tasks_per_user_j + out.tokens_per_task_j + out.joules_per_token_j;
    out.residual_j = out.change_j - parts;
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_vector_of_the_reference_holds() {
        // 100 to 300 tokens, 2 to 1 J per token.
        assert!((log_mean(300.0, 200.0) - 246.63).abs() < 0.005);
        let t = |tokens: f64, joules| Totals { users: 1.0, tasks: tokens, tokens, joules };
        let d = decompose(&[(t(100.0, 200.0), t(300.0, 300.0))]);
        assert!((d.tasks_per_user_j - 270.95).abs() < 0.005 && (d.joules_per_token_j + 170.95).abs() < 0.005, "{d:?}");
        assert!(d.change_j == 100.0 && d.residual_j.abs() < 1e-12 * 300.0 && d.tokens_per_task_j == 0.0);
    }

    #[test]
    fn the_logarithmic_mean_has_its_limits() {
        assert_eq!([log_mean(5.0, 5.0), log_mean(0.0, 5.0), log_mean(5.0, 0.0)], [5.0, 0.0, 0.0]);
        // Near equality the plain formula loses all digits.
        assert!((log_mean(1.0 + 1e-14, 1.0) - 1.0).abs() < 1e-13);
    }

    #[test]
    fn a_group_that_comes_or_goes_is_a_matter_of_use() {
        let some = Totals { users: 2.0, tasks: 4.0, tokens: 8.0, joules: 16.0 };
        let d = decompose(&[(Totals::default(), some)]);
        assert_eq!((d.users_j, d.change_j, d.residual_j), (16.0, 16.0, 0.0));
        let d = decompose(&[(some, Totals::default())]);
        assert_eq!((d.users_j, d.residual_j), (-16.0, 0.0));
    }

    proptest! {
        #[test]
        fn nothing_is_left_over(
            a in proptest::array::uniform4(1e-3f64..1e12), b in proptest::array::uniform4(1e-3f64..1e12),
        ) {
            let t = |[users, tasks, tokens, joules]: [f64; 4]| Totals { users, tasks, tokens, joules };
            let d = decompose(&[(t(a), t(b))]);
            // Relative to the parts, which cancel.
            let size = d.users_j.abs() + d.tasks_per_user_j.abs() + d.tokens_per_task_j.abs() + d.joules_per_token_j.abs();
            prop_assert!(d.residual_j.abs() < 1e-12 * size.max(a[3]).max(b[3]), "{:?}", d);
        }
    }
}
