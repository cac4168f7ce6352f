//! The errors as a picture: a panel for each sweep, errors upwards in powers of ten. SVG.

use jevons_train::plot::{FAINT, INK, STRING, font};
use plotters::{coord::Shift, prelude::*, style::FontStyle};

use super::{PROMOTE, Report, Row, Sweep, Way};

const NEVER: RGBColor = RGBColor(178, 34, 34);
const PROMOTED: RGBColor = RGBColor(36, 101, 178);
const F32: RGBColor = RGBColor(70, 140, 86);
const BF16: RGBColor = RGBColor(214, 95, 14);
const PUBLISHED: RGBColor = RGBColor(110, 116, 128);
/// Width and height of a panel.
const PANEL: (u32, u32) = (440, 440);
/// DeepSeek-V3, section 3.3.2: K, and its largest error in per cent.
const V3: (f64, f64) = (4096.0, 2.0);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

struct Curve {
    name: String,
    color: RGBColor,
    /// In per cent, above 0.
    points: Vec<(f64, f64)>,
}

/// Largest errors, a panel for each sweep of the report.
pub fn errors(report: &Report) -> String {
    let panels: Vec<(&str, &str, Vec<Curve>)> =
        report.settings.sweeps.iter().map(|sweep| (title(*sweep), axis(*sweep), curves(report, *sweep))).collect();
    let lowest = panels.iter().flat_map(|p| &p.2).flat_map(|c| &c.points).map(|p| p.1).fold(1.0, f64::min);
    let highest = panels.iter().flat_map(|p| &p.2).flat_map(|c| &c.points).map(|p| p.1).fold(V3.1, f64::max);
    let mut svg = String::new();
    {
        let size = (PANEL.0 * panels.len().max(1) as u32, PANEL.1);
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE).expect(STRING);
        for (area, (title, axis, curves)) in root.split_evenly((1, panels.len().max(1))).iter().zip(&panels) {
            panel(area, title, axis, curves, lowest / 3.0..highest * 20.0);
        }
        root.present().expect(STRING);
    }
    svg
}

fn title(sweep: Sweep) -> &'static str {
    match sweep {
        Sweep::K => "Longer sums",
        Sweep::Promotion => "Promotion, K = 4096",
        Sweep::Bits => "Bits kept, K = 4096",
    }
}

fn axis(sweep: Sweep) -> &'static str {
    match sweep {
        Sweep::K => "K",
        Sweep::Promotion => "elements between promotions",
        Sweep::Bits => "bits",
    }
}

fn curves(report: &Report, sweep: Sweep) -> Vec<Curve> {
    let bits = report.settings.bits;
    let curve = |name: String, color, of: &dyn Fn(&Row) -> bool, x: &dyn Fn(&Row) -> f64| {
        let rows = report.rows.iter().filter(|r| r.sweep == sweep && r.max_error > 0.0 && of(r));
        let mut points: Vec<(f64, f64)> = rows.map(|r| (x(r), 100.0 * r.max_error)).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Curve { name, color, points }
    };
    let core = |promote: Option<usize>| move |r: &Row| r.way == Way::TensorCore && r.promote == promote;
    let k = |r: &Row| r.k as f64;
    let of_bits = |r: &Row| r.bits.unwrap_or_default().into();
    match sweep {
        Sweep::K => vec![
            curve(format!("{bits} bits, never promoted"), NEVER, &core(None), &k),
            curve(format!("{bits} bits, every {PROMOTE}"), PROMOTED, &core(Some(PROMOTE)), &k),
            curve(format!("f32, every {PROMOTE}"), F32, &|r| r.way == Way::F32, &k),
            curve("bf16 product of jevons".into(), BF16, &|r| r.way == Way::Bf16Product, &k),
        ],
        Sweep::Promotion => {
            let interval = |r: &Row| r.promote.unwrap_or(r.k) as f64;
            vec![curve(format!("{bits} bits; the last: never"), PROMOTED, &|_| true, &interval)]
        }
        Sweep::Bits => vec![
            curve("never promoted".into(), NEVER, &core(None), &of_bits),
            curve(format!("every {PROMOTE}"), PROMOTED, &core(Some(PROMOTE)), &of_bits),
        ],
    }
}

fn panel(area: &Area, title: &str, axis: &str, curves: &[Curve], values: std::ops::Range<f64>) {
    let bits = axis == "bits";
    let xs = curves.iter().flat_map(|c| &c.points).map(|p| p.0);
    let (low, high) = xs.fold((f64::INFINITY, 0.0), |(l, h): (f64, f64), x| (l.min(x), h.max(x)));
    let low = if low.is_finite() { low } else { high };
    // Bits in ones, everything else in powers of two.
    let place = |x: f64| if bits { x } else { x.max(1.0).log2() };
    let mut chart = ChartBuilder::on(area)
        .caption(title, font(18).style(FontStyle::Bold).color(&INK))
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(70)
        .build_cartesian_2d(place(low) - 0.5..place(high) + 0.5, values.log_scale())
        .expect(STRING);
    let whole = |x: f64| if bits { format!("{x}") } else { format!("{}", x.exp2().round()) };
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(FAINT)
        .axis_style(INK.mix(0.5))
        .label_style(font(12).color(&INK))
        .axis_desc_style(font(13).color(&INK))
        .x_desc(axis)
        .y_desc("largest error, % of the RMS result")
        .x_labels(8)
        .x_label_formatter(&|x| if x.fract() == 0.0 { whole(*x) } else { String::new() })
        .y_label_formatter(&|y| format!("{y}"))
        .draw()
        .expect(STRING);
    for curve in curves {
        let (color, points) = (curve.color, curve.points.iter().map(|p| (place(p.0), p.1)).collect::<Vec<_>>());
        chart
            .draw_series(LineSeries::new(points.clone(), color.stroke_width(2)))
            .expect(STRING)
            .label(&curve.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
        chart.draw_series(points.into_iter().map(|p| Circle::new(p, 3, color.filled()))).expect(STRING);
    }
    if axis == "K" {
        chart
            .draw_series([Cross::new((place(V3.0), V3.1), 6, PUBLISHED.stroke_width(2))])
            .expect(STRING)
            .label("published: nearly 2 %")
            .legend(|(x, y)| Cross::new((x + 9, y), 5, PUBLISHED.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(if bits { SeriesLabelPosition::UpperRight } else { SeriesLabelPosition::UpperLeft })
        .background_style(WHITE.mix(0.85))
        .border_style(FAINT)
        .label_font(font(12).color(&INK))
        .margin(6)
        .draw()
        .expect(STRING);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accumulate::{Settings, run};

    #[test]
    fn every_comparison_is_a_point_and_a_missing_sweep_a_missing_panel() {
        let all = Settings { lengths: vec![128, 256], rows: 4, ..Settings::default() };
        let report = run(&all, &mut |_| ()).unwrap();
        let svg = errors(&report);
        let above_0 = report.rows.iter().filter(|r| r.max_error > 0.0).count();
        assert_eq!(svg.matches("<circle").count(), above_0);
        for text in ["Longer sums", "Promotion, K = 4096", "Bits kept, K = 4096", "never promoted", "nearly 2 %"] {
            assert!(svg.contains(text), "{text}");
        }
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
        for sweep in [Sweep::K, Sweep::Promotion, Sweep::Bits] {
            let one = Settings { sweeps: vec![sweep], lengths: vec![32], ..all.clone() };
            let svg = errors(&run(&one, &mut |_| ()).unwrap());
            assert!(svg.contains(title(sweep)) && svg.contains("</svg>") && !svg.contains("NaN"), "{sweep:?}");
        }
    }
}
