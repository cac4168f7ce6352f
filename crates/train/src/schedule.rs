//! Learning rate by step: linear warm-up, then constant, then a cosine down to a share of the highest rate.
//!
//! Source of the shape: DeepSeek-V3, arXiv:2412.19437, section 4.2. The cosine comes from the `libm` crate, so that every machine
//! computes the same rate.

use std::f64::consts::PI;

use crate::recipe::Recipe;

/// The learning rate of every step of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Highest rate.
    pub peak: f64,
    /// Steps of the run.
    pub steps: u64,
    /// Steps of rising rate.
    pub warmup_steps: u64,
    /// Steps at the highest rate after them.
    pub constant_steps: u64,
    /// Rate at the end, as a share of the highest.
    pub final_fraction: f64,
}

impl Schedule {
    /// Of a recipe.
    pub fn new(recipe: &Recipe) -> Self {
        let s = &recipe.schedule;
        let after_warmup = s.steps - s.warmup_steps;
        let constant_steps = match (s.constant_steps, s.constant_fraction) {
            (Some(steps), _) => steps,
            (None, Some(fraction)) => (fraction * after_warmup as f64).round() as u64,
            (None, None) => 0,
        };
        Self {
            peak: recipe.optimizer.lr,
            steps: s.steps,
            warmup_steps: s.warmup_steps,
            constant_steps,
            final_fraction: s.final_lr_fraction,
        }
    }

    /// The rate of step `step`, counted from 0.
    ///
    /// Warm-up: `peak · (step + 1) / warmup_steps`, so that the first step already learns and the last of warm-up is at the peak. Cosine: from the
    /// peak down, reaching `final_fraction · peak` at the last step of the run and staying there beyond it.
    pub fn lr(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.peak * ((step + 1) as f64 / self.warmup_steps as f64);
        }
        let flat = self.warmup_steps + self.constant_steps;
        if step < flat {
            return self.peak;
        }
        let decay_steps = self.steps.saturating_sub(flat);
        let progress = ((step + 1 - flat) as f64 / decay_steps.max(1) as f64).min(1.0);
        let share = 0.5 * (1.0 + libm::cos(PI * progress));
        self.peak * (self.final_fraction + (1.0 - self.final_fraction) * share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Schedule = Schedule { peak: 2e-3, steps: 100, warmup_steps: 10, constant_steps: 50, final_fraction: 0.1 };

    #[test]
    fn warm_up_rises_in_equal_parts_and_ends_at_the_peak() {
        assert_eq!([S.lr(0), S.lr(4), S.lr(9)], [2e-3 * 0.1, 2e-3 * 0.5, 2e-3]);
    }

    #[test]
    fn the_peak_is_held_for_the_constant_steps_and_left_after_them() {
        assert_eq!([S.lr(10), S.lr(59)], [2e-3; 2]);
        assert!(S.lr(60) < 2e-3 && S.lr(60) > 1.99e-3);
    }

    #[test]
    fn the_cosine_is_half_way_at_half_of_the_decay_and_ends_at_the_last_step() {
        // Step 79 is the 20th of 40.
        assert!((S.lr(79) - 2e-3 * 0.55).abs() < 1e-18);
        assert!((S.lr(99) - 2e-4).abs() < 1e-18);
        assert_eq!(S.lr(1000), S.lr(99));
        assert!((60..99).all(|step| S.lr(step + 1) < S.lr(step)));
    }

    #[test]
    fn without_warm_up_and_decay_every_step_is_at_the_peak() {
        let flat = Schedule { warmup_steps: 0, constant_steps: 100, ..S };
        assert!((0..100).all(|step| flat.lr(step) == 2e-3));
    }

    #[test]
    fn a_run_of_one_step_has_a_rate() {
        let one = Schedule { steps: 1, warmup_steps: 1, constant_steps: 0, ..S };
        assert_eq!(one.lr(0), 2e-3);
        let cosine = Schedule { steps: 1, warmup_steps: 0, constant_steps: 0, ..S };
        assert!((cosine.lr(0) - 2e-4).abs() < 1e-18);
    }

    #[test]
    fn a_recipe_gives_its_constant_part_as_steps_or_as_a_share() {
        let mut recipe = Recipe::parse(Recipe::documented_example(), "e.toml").unwrap();
        // 60 % of the 1,900 steps after warm-up.
        assert_eq!(Schedule::new(&recipe).constant_steps, 1140);
        recipe.schedule.constant_fraction = None;
        assert_eq!(Schedule::new(&recipe).constant_steps, 0);
        recipe.schedule.constant_steps = Some(7);
        assert_eq!(Schedule::new(&recipe).constant_steps, 7);
    }

    #[test]
    fn the_rate_has_these_bits_on_every_machine() {
        // As Python computes it with the C library's cosine.
        assert_eq!(S.lr(70).to_bits(), 4565411222954973415);
    }
}
