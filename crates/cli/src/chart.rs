//! A chart of the last values, drawn with blocks.

/// Eighths of a block, from nothing to all of it.
const EIGHTHS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// `rows` lines of `columns` characters: the last values at the right, from zero to the scale, which is the largest value rounded up to 1,
/// 2 or 5 times a power of ten. Returns the lines and the scale.
pub fn bars(values: &[f64], columns: usize, rows: usize) -> (Vec<String>, f64) {
    let shown = &values[values.len().saturating_sub(columns)..];
    let scale = round_up(shown.iter().copied().filter(|v| v.is_finite()).fold(0.0, f64::max));
    let line = |row: usize| {
        let below = (rows - 1 - row) * 8;
        let mut line = " ".repeat(columns - shown.len());
        line.extend(shown.iter().map(|value| {
            let eighths = (value / scale * (rows * 8) as f64).round().max(0.0) as usize;
            EIGHTHS[eighths.saturating_sub(below).min(8)]
        }));
        line
    };
    ((0..rows).map(line).collect(), scale)
}

fn round_up(value: f64) -> f64 {
    let mut power = 1e-3;
    while power * 10.0 <= value && power < 1e15 {
        power *= 10.0;
    }
    [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= value).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_stand_at_the_right_and_reach_the_scale() {
        let (lines, scale) = bars(&[0.0, 5.0, 10.0], 4, 2);
        assert_eq!((lines[0].as_str(), lines[1].as_str(), scale), ("   █", "  ██", 10.0));
        assert_eq!(bars(&[1.0, 2.0, 3.0], 2, 1).1, 5.0);
        assert_eq!(bars(&[], 3, 1).0, ["   "]);
        assert_eq!([0.0, 12.0, 200.0, 0.3].map(round_up), [1e-3, 20.0, 200.0, 0.5]);
    }
}
