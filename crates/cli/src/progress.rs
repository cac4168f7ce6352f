//! Progress bars on stderr; none where stderr is not a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar with the time left, counting `total` of `unit`.
pub fn bar(total: u64, what: &'static str, unit: &'static str) -> ProgressBar {
    let template = format!("{what} {{wide_bar}} {{pos}}/{{len}} {unit}, {{eta}} left");
    let style = ProgressStyle::with_template(&template).expect("the template is well-formed");
    ProgressBar::new(total).with_style(style)
}

/// A bar with the time left that says, by its message, what is going on.
pub fn named_bar(total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{pos}/{len} {wide_bar} {eta} left, {msg}");
    let bar = ProgressBar::new(total).with_style(style.expect("the template is well-formed"));
    bar.enable_steady_tick(Duration::from_secs(1));
    bar
}

/// A bar with speed and time left, counting bytes. Nothing is shown before it moves.
pub fn bytes_bar(total: u64, what: &'static str) -> ProgressBar {
    let template = format!(
        "{what} {{wide_bar}} {{decimal_bytes}}/{{decimal_total_bytes}}, {{decimal_bytes_per_sec}}, {{eta}} left"
    );
    let style = ProgressStyle::with_template(&template).expect("the template is well-formed");
    ProgressBar::new(total).with_style(style)
}

/// A line that says what is going on while there is nothing else to see.
pub fn spinner() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {msg}").expect("the template is well-formed");
    ProgressBar::new_spinner().with_style(style)
}
