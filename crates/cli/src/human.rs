//! Numbers for people.

use jevons_infer::Generation;

/// A count with three or four digits and a unit: `671.0 B`, `37.55 B`.
pub fn count(n: u64) -> String {
    let steps = [(1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")];
    // 999,950 and more would print as 1000.0 of the unit below.
    match steps.iter().find(|(step, _)| n as f64 >= step * 0.99995 && n >= 1000) {
        Some((step, unit)) => {
            let scaled = n as f64 / step;
            let places = if scaled < 99.995 { 2 } else { 1 };
            format!("{scaled:.places$} {unit}")
        }
        None => n.to_string(),
    }
}

/// Bytes, in powers of ten: `4.8 MB`.
pub fn bytes(n: u64) -> String {
    let steps = [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    match steps.iter().find(|(step, _)| n as f64 >= step * 0.99995 && n >= 1000) {
        Some((step, unit)) => format!("{:.1} {unit}", n as f64 / step),
        None => format!("{n} B"),
    }
}

/// Floating-point operations: `250.4 GFLOP`.
pub fn flop(n: f64) -> String {
    let steps = [(1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")];
    match steps.iter().find(|(step, _)| n >= *step) {
        Some((step, prefix)) => format!("{:.1} {prefix}FLOP", n / step),
        None => format!("{:.1} kFLOP", n / 1e3),
    }
}

/// A whole number with a comma before each group of three digits: `129,280`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Any number with three digits that count: `0.00123`, `3.71e24`, `5.58 M`.
pub fn number(x: f64) -> String {
    let size = x.abs();
    if x == 0.0 || !x.is_finite() {
        return x.to_string();
    }
    let three = |x: f64| {
        let size = x.abs();
        let decimals = if size >= 99.95 {
            0
        } else if size >= 9.995 {
            1
        } else {
            2
        };
        format!("{x:.decimals$}")
    };
    match size {
        1e15.. => format!("{x:.2e}"),
        0.9995e12.. => three(x / 1e12) + " T",
        0.9995e9.. => three(x / 1e9) + " B",
        0.9995e6.. => three(x / 1e6) + " M",
        9999.5.. => three(x / 1e3) + " K",
        0.9995.. => three(x),
        1e-4.. => {
            // As many zeros as there are, then three digits.
            let zeros = (1..=4).find(|n| size * 10f64.powi(*n) >= 0.9995).unwrap_or(4);
            format!("{x:.*}", zeros as usize + 2)
        }
        _ => format!("{x:.2e}"),
    }
}

/// A mass with three digits that count: `12.3 mg`.
pub fn grams(g: f64) -> String {
    match g.abs() {
        a if a >= 1e6 => format!("{} t", number(g / 1e6)),
        a if a >= 1e3 => format!("{} kg", number(g / 1e3)),
        a if a >= 1.0 || a == 0.0 => format!("{} g", number(g)),
        a if a >= 1e-3 => format!("{} mg", number(g * 1e3)),
        _ => format!("{} µg", number(g * 1e6)),
    }
}

/// How much was computed, and how fast.
pub fn speeds(generation: &Generation) -> String {
    let rate = |rate: Option<f64>| rate.map_or(String::new(), |r| format!(" at {r:.0}/s"));
    let cached = match generation.cached_tokens {
        0 => String::new(),
        n => format!(" + {n} kept"),
    };
    format!(
        "{}{cached} prompt tokens{}, {} new tokens{}",
        generation.prompt_tokens - generation.cached_tokens,
        rate(generation.prefill_tokens_per_s()),
        generation.token_ids.len(),
        rate(generation.decode_tokens_per_s()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_three_digits() {
        let shown =
            [0.0, 0.00123, 0.0456, 0.789, 1.0, 12.34, 999.6, 4711.0, 12_345.0, 5.576e6, 3.706e24, 1e-9].map(number);
        let want = [
            "0", "0.00123", "0.0456", "0.789", "1.00", "12.3", "1000", "4711", "12.3 K", "5.58 M", "3.71e24", "1.00e-9",
        ];
        assert_eq!(shown, want);
    }

    #[test]
    fn masses_change_unit_with_their_size() {
        let shown = [0.0, 2.5e-6, 0.012, 3.0, 4.2e3, 1.8e9].map(grams);
        assert_eq!(shown, ["0 g", "2.50 µg", "12.0 mg", "3.00 g", "4.20 kg", "1800 t"]);
    }

    #[test]
    fn counts_and_bytes_change_unit_where_they_need_five_digits() {
        assert_eq!([0, 999, 1000, 1049, 1050].map(count), ["0", "999", "1.00 K", "1.05 K", "1.05 K"]);
        assert_eq!(
            [999_949, 999_950, 37_552_343_552, 671_026_404_352].map(count),
            ["999.9 K", "1.00 M", "37.55 B", "671.0 B"]
        );
        assert_eq!([5, 4_800_000, 1_300_000_000_000].map(bytes), ["5 B", "4.8 MB", "1.3 TB"]);
    }

    #[test]
    fn whole_numbers_are_grouped_and_operations_scaled() {
        assert_eq!([0, 999, 1000, 129_280, 1_000_000].map(grouped), ["0", "999", "1,000", "129,280", "1,000,000"]);
        assert_eq!([250.4e9, 1.5e6, 2e3, 3e15].map(flop), ["250.4 GFLOP", "1.5 MFLOP", "2.0 kFLOP", "3.0 PFLOP"]);
    }
}
