//! One HTML file with everything in it: no script, no font, no picture from elsewhere.

use std::fmt::Write;

use plotters::{
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::LedgerReport;
use crate::{
    convert::Interval,
    grade::joules,
    ledger::{Group, time},
};

/// Days, models and runs that are drawn or listed; the last ones, or the largest.
const MOST: usize = 60;

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#282c34}\
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}table{border-collapse:collapse;width:100%}\
td,th{padding:.25rem .6rem;text-align:right;border-bottom:1px solid #e4e7ec;vertical-align:top}\
td:first-child,th:first-child,td.t,th.t{text-align:left}.w{background:#fff4e5;border-left:4px solid #d65f0e;padding:.5rem 1rem;margin:.5rem 0}\
small{color:#666}svg{max-width:100%;height:auto}";

/// The report as one file.
pub fn html(report: &LedgerReport) -> String {
    let mut h = String::new();
    let s = &report.summary;
    let _ = write!(
        h,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Energy report</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><style>{STYLE}</style></head><body>\n<h1>Energy: {}</h1>\n",
        safe(&report.of)
    );
    if let Some((from, to)) = s.from_to_ms {
        let _ = writeln!(
            h,
            "<p>{} runs, {} requests, {} to {}: <b>{}</b>, {} tokens.</p>",
            s.n_runs,
            s.n_requests,
            time(from),
            time(to),
            safe(&s.total.energy.to_string()),
            s.total.tokens
        );
    } else {
        h.push_str("<p>There is nothing in this part of the ledger.</p>\n");
    }
    for warning in &report.warnings {
        let _ = writeln!(h, "<div class=\"w\">{}</div>", safe(warning));
    }

    h.push_str("<h2>What it comes to</h2>\n<table><tr><th></th><th>p5</th><th>p50</th><th>p95</th><th class=\"t\">unit</th><th class=\"t\">formula</th></tr>\n");
    for (label, Interval { p5, p50, p95 }, unit, formula) in report.rows() {
        let _ = writeln!(
            h,
            "<tr><td>{label}</td><td>{}</td><td><b>{}</b></td><td>{}</td><td class=\"t\">{unit}</td><td class=\"t\"><small>{formula}</small></td></tr>",
            number(p5),
            number(p50),
            number(p95)
        );
    }
    h.push_str("</table>\n");

    let mut days: Vec<(String, f64)> = s.days.iter().map(|(day, g)| (day.clone(), g.energy.joules)).collect();
    days.drain(..days.len().saturating_sub(MOST));
    if !days.is_empty() {
        let _ = writeln!(h, "<h2>By day (UTC)</h2>\n{}", bars("Energy per day", &days));
    }
    let phases: Vec<(String, f64)> = s.phases.iter().map(|(phase, g)| ((*phase).to_owned(), g.energy.joules)).collect();
    if !phases.is_empty() {
        let _ = writeln!(h, "<h2>By phase</h2>\n{}", bars("Energy by phase", &phases));
    }

    let mut models: Vec<(String, &Group)> = s.models.iter().map(|(m, g)| (name(m), g)).collect();
    models.sort_by(|a, b| b.1.energy.joules.total_cmp(&a.1.energy.joules));
    models.truncate(MOST);
    let runs: Vec<(String, &Group)> = s.runs[s.runs.len().saturating_sub(MOST)..]
        .iter()
        .map(|r| (format!("{} {} {}", r.run, time(r.from_ms), r.command), &r.group))
        .collect();
    let owned = |groups: &std::collections::BTreeMap<&'static str, Group>| -> Vec<(String, Group)> {
        groups.iter().map(|(n, g)| ((*n).to_owned(), g.clone())).collect()
    };
    let phases = owned(&s.phases);
    table(&mut h, report, "Phases", phases.iter().map(|(n, g)| (n.clone(), g)));
    table(&mut h, report, "Models", models.into_iter());
    table(&mut h, report, "Days", s.days.iter().rev().take(MOST).map(|(n, g)| (n.clone(), g)));
    table(&mut h, report, "Runs, the last", runs.into_iter().rev());

    h.push_str("<h2>What is in it</h2>\n<ul>\n");
    for line in &report.boundary {
        let _ = writeln!(h, "<li>{}</li>", safe(line));
    }
    h.push_str("</ul>\n<h2>What it stands on</h2>\n<table><tr><th></th><th>p5</th><th>p50</th><th>p95</th><th class=\"t\">unit</th><th class=\"t\">source</th></tr>\n");
    for i in &report.inputs {
        let [low, mid, high] = [i.band.low(), i.band.mid(), i.band.high()].map(number);
        let _ = writeln!(
            h,
            "<tr><td>{}</td><td>{low}</td><td>{mid}</td><td>{high}</td><td class=\"t\">{}</td><td class=\"t\"><small>{}</small></td></tr>",
            safe(&i.name),
            safe(&i.unit),
            safe(&i.source)
        );
    }
    h.push_str("</table>\n</body></html>\n");
    h
}

/// Groups with their energy and, at central values, carbon, water and money.
fn table<'a>(h: &mut String, report: &LedgerReport, title: &str, groups: impl Iterator<Item = (String, &'a Group)>) {
    let rates = report.place.rates();
    let _ = writeln!(
        h,
        "<h2>{title}</h2>\n<table><tr><th></th><th>tokens</th><th>seconds</th><th>energy</th><th>grade</th><th>J/token</th>\
         <th>g CO2e</th><th>L</th><th>USD</th></tr>"
    );
    for (name, g) in groups {
        let a = rates.amounts(g.energy.joules, g.seconds);
        let per_token = g.marginal_j_per_token().map_or(String::new(), number);
        let at_least = if g.complete() { "" } else { "at least " };
        let _ = writeln!(
            h,
            "<tr><td>{}</td><td>{}</td><td>{:.1}</td><td>{at_least}{}</td><td>{}</td><td>{per_token}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            safe(&name),
            g.tokens,
            g.seconds,
            joules(g.energy.joules),
            g.energy.grade,
            number(a.grams),
            number(a.litres),
            number(a.usd)
        );
    }
    h.push_str("</table>\n<p><small>Carbon, water and money here at central values, electricity only; the intervals are those of the total above.</small></p>\n");
}

fn name(model: &str) -> String {
    if model.is_empty() { "(none)".into() } else { model.chars().take(12).collect() }
}

/// Three digits that count.
fn number(x: f64) -> String {
    match x.abs() {
        0.0 => "0".into(),
        a if !(1e-3..1e6).contains(&a) => format!("{x:.2e}"),
        a if a >= 100.0 => format!("{x:.0}"),
        a if a >= 10.0 => format!("{x:.1}"),
        a if a >= 1.0 => format!("{x:.2}"),
        a if a >= 0.1 => format!("{x:.3}"),
        a if a >= 0.01 => format!("{x:.4}"),
        _ => format!("{x:.5}"),
    }
}

/// Names come from a file that somebody may have written to.
fn safe(text: &str) -> String {
    let mut safe = String::new();
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c if c.is_control() => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

const INK: RGBColor = RGBColor(40, 44, 52);
const FAINT: RGBColor = RGBColor(228, 231, 236);
const BAR: RGBColor = RGBColor(36, 101, 178);
const STRING: &str = "drawing into a String cannot fail";

/// Joules as bars, from zero, in a unit that fits.
fn bars(title: &str, values: &[(String, f64)]) -> String {
    let most = values.iter().map(|v| v.1).filter(|v| v.is_finite()).fold(0.0, f64::max);
    let (factor, unit) = match most {
        m if m >= 3.6e6 => (1.0 / 3.6e6, "kWh"),
        m if m >= 1e4 => (1e-3, "kJ"),
        _ => (1.0, "J"),
    };
    let top = if most > 0.0 { most * factor * 1.08 } else { 1.0 };
    let n = values.len();
    let mut svg = String::new();
    {
        let font = |size: i32| ("sans-serif", size).into_font().color(&INK);
        let root = SVGBackend::with_string(&mut svg, (860, 300)).into_drawing_area();
        root.fill(&WHITE).expect(STRING);
        let mut chart = ChartBuilder::on(&root)
            .caption(format!("{title}, {unit}"), font(16))
            .margin(10)
            .x_label_area_size(34)
            .y_label_area_size(70)
            .build_cartesian_2d(0.0..n as f64, 0.0..top)
            .expect(STRING);
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(FAINT)
            .axis_style(INK.mix(0.5))
            .label_style(font(12))
            .x_labels(0)
            .y_label_formatter(&|y| number(*y))
            .draw()
            .expect(STRING);
        let of = |(i, (_, joules)): (usize, &(String, f64))| {
            let high = if joules.is_finite() { (joules * factor).clamp(0.0, top) } else { 0.0 };
            Rectangle::new([(i as f64 + 0.12, 0.0), (i as f64 + 0.88, high)], BAR.filled())
        };
        chart.draw_series(values.iter().enumerate().map(of)).expect(STRING);
        // A name below every bar, or below every so many that they do not touch.
        let style = font(12).pos(Pos::new(HPos::Center, VPos::Top));
        for (i, (name, _)) in values.iter().enumerate().step_by(n.div_ceil(9)) {
            let (x, y) = chart.plotting_area().map_coordinate(&(i as f64 + 0.5, 0.0));
            root.draw(&Text::new(name.clone(), (x, y + 8), style.clone())).expect(STRING);
        }
        root.present().expect(STRING);
    }
    svg
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;

    #[test]
    fn the_page_is_whole_and_has_its_numbers_and_pictures() {
        let r = report(1.8e6, &["abc", "def", "abc"]);
        let page = html(&r);
        assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"));
        assert_eq!(page.matches("<svg").count(), 2);
        assert_eq!(page.matches("<table>").count(), page.matches("</table>").count());
        for part in
            ["2026-11-23", "answer", "run2", "1.50", "no evidence of its own", "pue_datacentre", "PUE · IT energy"]
        {
            assert!(page.contains(part), "{part}");
        }
        assert!(page.contains(&number(r.place.site.grid_g_per_kwh.mid())));
        for elsewhere in ["http://", "https://", "<script", "src="] {
            assert!(!page.replace("http://www.w3.org/2000/svg", "").contains(elsewhere), "{elsewhere}");
        }
    }

    #[test]
    fn names_cannot_break_out_of_the_page() {
        let page = html(&report(1.0, &["<script>alert(1)</script>"]));
        assert!(!page.contains("<script") && page.contains("&lt;script&gt;"));
    }

    #[test]
    fn odd_sums_are_drawn_too() {
        for joules in [0.0, 1e-9, 1e300] {
            assert!(html(&report(joules, &["m"])).ends_with("</html>\n"), "{joules}");
        }
        assert!(html(&report(1.0, &[])).contains("nothing in this part"));
        assert_eq!(
            [0.0, 0.001_234, 0.05, 0.5, 12.0, 123.4, 1e7].map(number),
            ["0", "0.00123", "0.0500", "0.500", "12.0", "123", "1.00e7"]
        );
    }
}
