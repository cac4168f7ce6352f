use std::{fmt::Write as _, path::PathBuf};

use indicatif::{ProgressBar, ProgressStyle};

/// Train a model by a recipe
///
/// Ctrl-C saves and leaves; --resume goes on from there, to the same bits as if it had never stopped.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Recipe: model, data, optimizer, schedule, precision, evaluation (TOML)
    recipe: PathBuf,
    /// Go on from the last checkpoint of the recipe's run folder
    #[arg(long)]
    resume: bool,
    /// Change a key of the recipe, e.g. --set schedule.steps=100; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// CPU threads; changes the time taken, never the result [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
}

/// What the bar tells about one optimizer step.
#[derive(Clone, Copy, Debug, Default)]
pub struct Step {
    /// Steps done, this one included.
    pub step: u64,
    /// Mean loss of the step, in nats per token.
    pub loss: f64,
    /// Learning rate of the step.
    pub lr: f64,
    /// Training tokens per second.
    pub tokens_per_s: f64,
    /// Last held-out loss, in nats per token, if one was taken.
    pub held_out: Option<f64>,
}

impl Step {
    fn text(&self) -> String {
        let mut text = format!("loss {:.4}, lr {:.2e}, {:.0} tokens/s", self.loss, self.lr, self.tokens_per_s);
        if let Some(loss) = self.held_out {
            write!(text, ", held-out {loss:.4}").expect("a String takes all");
        }
        text
    }
}

/// The bar of a run: time left, step, loss, learning rate, speed. Where stderr is not a terminal, a line every
/// [`Bar::LINE_EVERY`] steps instead.
pub struct Bar {
    bar: ProgressBar,
    steps: u64,
}

impl Bar {
    const LINE_EVERY: u64 = 10;

    /// Of a run of `steps` that starts after `done` of them.
    pub fn new(steps: u64, done: u64) -> Self {
        let style = ProgressStyle::with_template("{pos}/{len} {wide_bar} {eta} left, {msg}");
        let bar = ProgressBar::new(steps).with_style(style.expect("the template is well-formed")).with_position(done);
        bar.reset_eta(); // steps of an earlier session took no time of this one
        Self { bar, steps }
    }

    /// After each step.
    pub fn step(&self, step: &Step) {
        self.bar.set_message(step.text());
        self.bar.set_position(step.step);
        if self.bar.is_hidden() && (step.step.is_multiple_of(Self::LINE_EVERY) || step.step == self.steps) {
            eprintln!("step {}/{}: {}", step.step, self.steps, step.text());
        }
    }

    /// A line above the bar, such as a warning or a saved checkpoint.
    pub fn note(&self, text: &str) {
        if self.bar.is_hidden() {
            eprintln!("{text}");
        } else {
            self.bar.println(text);
        }
    }

    /// Leaves the last state on the screen.
    pub fn finish(self) {
        self.bar.abandon();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_tells_the_held_out_loss_once_there_is_one() {
        let step = Step { step: 3, loss: 2.5, lr: 3e-4, tokens_per_s: 1234.5, held_out: None };
        assert_eq!(step.text(), "loss 2.5000, lr 3.00e-4, 1234 tokens/s");
        assert_eq!(
            Step { held_out: Some(2.25), ..step }.text(),
            "loss 2.5000, lr 3.00e-4, 1234 tokens/s, held-out 2.2500"
        );
    }

    #[test]
    fn a_resumed_run_starts_where_it_stopped() {
        let bar = Bar::new(100, 40);
        assert_eq!((bar.bar.position(), bar.bar.length()), (40, Some(100)));
        bar.step(&Step { step: 41, ..Step::default() });
        assert_eq!(bar.bar.position(), 41);
    }
}
