//! Progress bars on stderr; none where stderr is not a terminal.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar with the time left, counting `total` of `unit`.
pub fn bar(total: u64, what: &'static str, unit: &'static str) -> ProgressBar {
    let template = format!("{what} {{wide_bar}} {{pos}}/{{len}} {unit}, {{eta}} left");
    let style = ProgressStyle::with_template(&template).expect("the template is well-formed");
    ProgressBar::new(total).with_style(style)
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
