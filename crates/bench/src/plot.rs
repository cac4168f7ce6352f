//! The roofline as a picture: operations per byte to the right, operations per second upwards, both in powers of ten. SVG.

use jevons_train::plot::{FAINT, INK, STRING, font};
use plotters::{
    coord::Shift,
    prelude::*,
    style::{
        FontStyle,
        text_anchor::{HPos, Pos, VPos},
    },
};

use crate::{Limits, Phase, Report, Row};

const MEMORY: RGBColor = RGBColor(36, 101, 178);
const PRODUCTS: RGBColor = RGBColor(110, 116, 128);
const SIZE: (u32, u32) = (1100, 640);
/// Columns of the chart; the list of points stands beside it.
const CHART: u32 = 760;
/// Pixels between two lines of the list.
const LINE: i32 = 20;

/// Every row as a numbered point under the roofs, with a list of what they are.
pub fn roofline(report: &Report) -> String {
    let limits = &report.limits;
    let rows: Vec<&Row> = report.rows.iter().filter(|r| x(r) > 0.0 && r.flop_per_s > 0.0).collect();
    let roofs = roofs(limits);
    let highest = roofs.iter().map(|r| r.1).fold(1e6, f64::max);
    // All points, and the edge where the roofs meet, lie in the picture.
    let edge = highest / limits.bytes_per_s().max(1.0);
    let xs = rows.iter().map(|r| x(r)).chain([0.5, edge * 4.0]);
    let ys = rows.iter().map(|r| r.flop_per_s).chain([highest * 1.5, 0.5 * limits.bytes_per_s().max(1.0)]);
    let (span, values) = (decades(xs), decades(ys));
    let mut svg = String::new();
    {
        let height = SIZE.1.max(150 + LINE as u32 * rows.len() as u32);
        let root = SVGBackend::with_string(&mut svg, (SIZE.0, height)).into_drawing_area();
        root.fill(&WHITE).expect(STRING);
        let (left, right) = root.split_horizontally(CHART);
        let mut chart = ChartBuilder::on(&left)
            .caption("What this machine allows, and what was reached", font(20).style(FontStyle::Bold).color(&INK))
            .margin(14)
            .x_label_area_size(44)
            .y_label_area_size(84)
            .build_cartesian_2d(span.clone().log_scale(), values.clone().log_scale())
            .expect(STRING);
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(FAINT)
            .axis_style(INK.mix(0.5))
            .label_style(font(13).color(&INK))
            .axis_desc_style(font(14).color(&INK))
            .x_desc("FLOP per byte of memory")
            .y_desc("FLOP per second")
            .x_label_formatter(&|x| short(*x))
            .y_label_formatter(&|y| short(*y))
            .draw()
            .expect(STRING);
        for (name, height) in &roofs {
            let meets = (height / limits.bytes_per_s().max(1.0)).max(span.start);
            let style = PRODUCTS.stroke_width(2);
            chart.draw_series(LineSeries::new([(meets, *height), (span.end, *height)], style)).expect(STRING);
            let at = (span.end, *height);
            let text = format!("{name}, {}FLOP/s", short(*height));
            chart.draw_series([Text::new(text, at, label(PRODUCTS, HPos::Right, VPos::Bottom))]).expect(STRING);
        }
        let bytes = limits.bytes_per_s().max(1.0);
        let from = span.start.max(values.start / bytes);
        let slope = [(from, from * bytes), (edge, highest)];
        chart.draw_series(LineSeries::new(slope, MEMORY.stroke_width(2))).expect(STRING);
        let text = format!("reading memory, {}B/s", short(bytes));
        let middle = ((slope[0].0 * slope[1].0).sqrt(), (slope[0].1 * slope[1].1).sqrt());
        chart.draw_series([Text::new(text, middle, label(MEMORY, HPos::Right, VPos::Bottom))]).expect(STRING);

        let mut taken: Vec<(i32, i32)> = vec![];
        for (i, row) in rows.iter().enumerate() {
            let (at, color) = ((x(row), row.flop_per_s), color(row.phase));
            chart.draw_series([Circle::new(at, 4, color.filled())]).expect(STRING);
            let (px, py) = chart.backend_coord(&at);
            let place = free((px + 6, py - 2), &taken);
            taken.push(place);
            let style = label(color, HPos::Left, VPos::Bottom);
            left.draw(&Text::new((i + 1).to_string(), place, style)).expect(STRING);
        }
        list(&right, &rows);
        root.present().expect(STRING);
    }
    svg
}

/// Operations per byte.
fn x(row: &Row) -> f64 {
    if row.work.bytes > 0.0 { row.work.flop / row.work.bytes } else { 0.0 }
}

/// Rates that products cannot exceed.
fn roofs(limits: &Limits) -> Vec<(&'static str, f64)> {
    let mut roofs = vec![("f32 multiply-add", limits.fma_flop_per_s.all_threads.max(1.0))];
    roofs.extend(limits.bf16_instruction.zip(limits.bf16_flop_per_s.map(|rate| rate.all_threads)));
    roofs
}

/// A little more than the values take, in whole powers of ten.
fn decades(values: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
    let (low, high) = values.fold((f64::INFINITY, 0.0), |(l, h): (f64, f64), v| (l.min(v), h.max(v)));
    let mut ends = (1.0, 1.0);
    while ends.0 > low {
        ends.0 /= 10.0;
    }
    while ends.0 * 10.0 <= low {
        ends.0 *= 10.0;
    }
    while ends.1 < high {
        ends.1 *= 10.0;
    }
    ends.0..ends.1.max(ends.0 * 10.0)
}

fn label(color: RGBColor, h: HPos, v: VPos) -> TextStyle<'static> {
    font(13).color(&color).pos(Pos::new(h, v))
}

fn color(phase: Phase) -> RGBColor {
    match phase {
        Phase::Prefill => RGBColor(214, 95, 14),
        Phase::Decode => RGBColor(36, 101, 178),
        Phase::Train => RGBColor(70, 140, 86),
        Phase::Gemm => RGBColor(128, 64, 152),
    }
}

/// The place, or the nearest one to its right where no number stands yet.
fn free((mut x, y): (i32, i32), taken: &[(i32, i32)]) -> (i32, i32) {
    while taken.iter().any(|t| (t.0 - x).abs() < 18 && (t.1 - y).abs() < 13) {
        x += 18;
    }
    (x, y)
}

/// What the numbers mean.
fn list(area: &DrawingArea<SVGBackend<'_>, Shift>, rows: &[&Row]) {
    let text = |text: String, at: (i32, i32), color: RGBColor, h: HPos| {
        area.draw(&Text::new(text, at, label(color, h, VPos::Center))).expect(STRING);
    };
    text("% of limit".into(), (320, 56), INK, HPos::Right);
    for (i, row) in rows.iter().enumerate() {
        let (y, color) = (80 + LINE * i as i32, color(row.phase));
        text((i + 1).to_string(), (22, y), color, HPos::Right);
        text(format!("{} {}, {}", row.phase.name(), row.name, row.format), (30, y), color, HPos::Left);
        text(format!("{:.0}", 100.0 * row.share_of_limit), (320, y), color, HPos::Right);
    }
}

/// `100 G` for 1e11.
fn short(n: f64) -> String {
    let steps = [(1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    let (step, prefix) = steps.into_iter().find(|(step, _)| n >= *step * 0.9995).unwrap_or((1.0, ""));
    let digits = format!("{:.3}", n / step);
    let number = if n / step >= 100.0 { format!("{:.0}", n / step) } else { digits.chars().take(4).collect() };
    let number = if number.contains('.') { number.trim_end_matches('0').trim_end_matches('.') } else { &number };
    format!("{number} {prefix}")
}

#[cfg(test)]
mod tests {
    use jevons_kernels::{Dtype, Ops};

    use super::*;
    use crate::{Settings, report::Work, roofline::Pair, timing::Times};

    #[test]
    fn the_picture_has_both_roofs_and_a_numbered_point_for_every_row() {
        let mut report = Report::new(&Settings::new(vec![], true), &Ops::new().unwrap());
        let pair = |all_threads| Pair { one_thread: 1.0, all_threads };
        report.limits = Limits {
            read_bytes_per_s: pair(3e10),
            fma_flop_per_s: pair(4e11),
            bf16_flop_per_s: Some(pair(6e12)),
            bf16_instruction: Some("TDPBF16PS (AMX)"),
            ..Limits::default()
        };
        let empty = roofline(&report);
        assert!(empty.contains("AMX") && empty.contains("30 GB/s") && !empty.contains("<circle"), "{empty}");
        for (i, phase) in
            [Phase::Prefill, Phase::Decode, Phase::Decode, Phase::Train, Phase::Gemm].into_iter().enumerate()
        {
            let work = Work { tokens: Some(1), flop: 1e9 * (i + 1) as f64, bytes: 1e9 };
            let name = format!("row {i}");
            report.rows.push(Row::new(phase, name, Dtype::Bf16, work, Times::of(vec![0.1]), &report.limits));
        }
        let svg = roofline(&report);
        assert_eq!(svg.matches("<circle").count(), 5);
        for text in ["FLOP per byte", "6 TFLOP/s", "prefill row 0, bf16", "gemm row 4, bf16", "% of limit"] {
            assert!(svg.contains(text), "{text}: {svg}");
        }
        assert!(svg.contains("</svg>") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn numbers_that_would_cover_each_other_move_apart() {
        assert_eq!(free((100, 100), &[]), (100, 100));
        assert_eq!(free((100, 100), &[(104, 103), (130, 90)]), (154, 100));
        assert_eq!(free((100, 100), &[(140, 100), (100, 113)]), (100, 100));
    }

    #[test]
    fn axes_reach_over_all_values_in_whole_decades() {
        assert_eq!(decades([0.5, 60.0].into_iter()), 0.1..100.0);
        assert_eq!(decades([3e9, 2e11].into_iter()), 1e9..1e12);
        assert_eq!(decades([7.0].into_iter()), 1.0..10.0);
    }

    #[test]
    fn rates_are_told_with_three_digits_at_most() {
        assert_eq!([1.0, 0.1, 1e11, 6.4e12, 31_700_000_000.0].map(short), ["1 ", "0.1 ", "100 G", "6.4 T", "31.7 G"]);
    }
}
