//! Pictures of a run: the loss with the learning rate, and the load of every expert. SVG, readable in any browser.

use std::collections::BTreeMap;

use plotters::{
    coord::Shift,
    prelude::*,
    style::{
        FontStyle,
        text_anchor::{HPos, Pos, VPos},
    },
};

use crate::metrics::{HeldoutMetrics, Line, StepMetrics};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Lines and text.
pub const INK: RGBColor = RGBColor(40, 44, 52);
/// Grids and frames.
pub const FAINT: RGBColor = RGBColor(228, 231, 236);
const TRAIN: RGBColor = RGBColor(36, 101, 178);
const TRAIN_RAW: RGBColor = RGBColor(186, 208, 234);
const HELDOUT: RGBColor = RGBColor(214, 95, 14);
const RATE: RGBColor = RGBColor(70, 140, 86);

/// Points of a curve at most: more cannot be told apart.
const POINTS: usize = 1200;

/// File name and SVG text of every picture that the lines give: `loss.svg`, and `expert_load.svg` if there are experts.
pub fn all(lines: &[Line]) -> Vec<(&'static str, String)> {
    [("loss.svg", loss(lines)), ("expert_load.svg", expert_load(lines))]
        .into_iter()
        .filter_map(|(name, svg)| Some((name, svg?)))
        .collect()
}

fn steps(lines: &[Line]) -> impl Iterator<Item = &StepMetrics> {
    lines.iter().filter_map(|line| match line {
        Line::Step(step) => Some(step),
        Line::Heldout(_) => None,
    })
}

/// Training loss, each step and smoothed, with the held-out loss; below it the learning rate. `None` without a step.
pub fn loss(lines: &[Line]) -> Option<String> {
    let all: Vec<&StepMetrics> = steps(lines).filter(|s| s.loss.is_finite() && s.lr.is_finite()).collect();
    let last = all.last()?.step;
    let heldout: Vec<&HeldoutMetrics> = lines
        .iter()
        .filter_map(|line| match line {
            Line::Heldout(h) if h.heldout_loss.is_finite() => Some(h),
            _ => None,
        })
        .collect();
    let raw: Vec<(f64, f64)> = all.iter().map(|s| (s.step as f64 + 1.0, s.loss)).collect();
    let smooth = smoothed(&raw);
    let values = raw.iter().map(|p| p.1).chain(heldout.iter().map(|h| h.heldout_loss));
    let losses = padded(values);
    let span = 0.0..(last + 1) as f64;

    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (960, 640)).into_drawing_area();
        root.fill(&WHITE).expect(STRING);
        let (top, bottom) = root.split_vertically(440);

        let mut chart = ChartBuilder::on(&top)
            .caption("Loss", font(20).style(FontStyle::Bold).color(&INK))
            .margin(14)
            .margin_bottom(4)
            .margin_right(28)
            .x_label_area_size(24)
            .y_label_area_size(70)
            .build_cartesian_2d(span.clone(), losses)
            .expect(STRING);
        mesh(&mut chart, "nats per token", None, &|y| decimals(*y));
        let dot = |p: &(f64, f64), color: RGBColor| Circle::new(*p, 4, color.filled());
        chart.draw_series(LineSeries::new(thinned(&raw), TRAIN_RAW.stroke_width(1))).expect(STRING);
        chart
            .draw_series(LineSeries::new(thinned(&smooth), TRAIN.stroke_width(2)))
            .expect(STRING)
            .label("training, smoothed; each step behind it")
            .legend(|(x, y)| PathElement::new([(x, y), (x + 22, y)], TRAIN.stroke_width(2)));
        if raw.len() == 1 {
            chart.draw_series(raw.iter().map(|p| dot(p, TRAIN))).expect(STRING);
        }
        let heldout: Vec<(f64, f64)> = heldout.iter().map(|h| (h.step as f64, h.heldout_loss)).collect();
        if let Some((_, at_end)) = heldout.last() {
            let label = format!("held-out, the last {at_end:.3}");
            chart.draw_series(LineSeries::new(heldout.clone(), HELDOUT.stroke_width(1))).expect(STRING);
            chart
                .draw_series(heldout.iter().map(|p| dot(p, HELDOUT)))
                .expect(STRING)
                .label(label)
                .legend(|(x, y)| Circle::new((x + 11, y), 4, HELDOUT.filled()));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.85))
            .border_style(FAINT)
            .label_font(font(14).color(&INK))
            .margin(10)
            .draw()
            .expect(STRING);

        let rates: Vec<(f64, f64)> = all.iter().map(|s| (s.step as f64 + 1.0, s.lr)).collect();
        let highest = rates.iter().map(|p| p.1).fold(f64::MIN_POSITIVE, f64::max);
        let mut chart = ChartBuilder::on(&bottom)
            .caption("Learning rate", font(16).style(FontStyle::Bold).color(&INK))
            .margin(14)
            .margin_top(0)
            .margin_right(28)
            .x_label_area_size(44)
            .y_label_area_size(70)
            .build_cartesian_2d(span, 0.0..highest * 1.08)
            .expect(STRING);
        mesh(&mut chart, "", Some("steps"), &|y| if *y == 0.0 { "0".into() } else { format!("{y:.1e}") });
        chart.draw_series(LineSeries::new(thinned(&rates), RATE.stroke_width(2))).expect(STRING);
        root.present().expect(STRING);
    }
    Some(svg)
}

/// What every drawing call relies on: its errors are the output's, and the output is a `String`.
pub const STRING: &str = "drawing into a String cannot fail";

/// The typeface of every picture.
pub fn font(size: i32) -> FontDesc<'static> {
    ("sans-serif", size).into_font()
}

fn mesh<'a, 'b>(
    chart: &mut ChartContext<
        'b,
        SVGBackend<'a>,
        Cartesian2d<plotters::coord::types::RangedCoordf64, plotters::coord::types::RangedCoordf64>,
    >,
    y_unit: &str,
    x_unit: Option<&str>,
    y_label: &dyn Fn(&f64) -> String,
) {
    let small = font(13).color(&INK);
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(FAINT)
        .axis_style(INK.mix(0.5))
        .label_style(small.clone())
        .axis_desc_style(font(14).color(&INK))
        .y_desc(y_unit)
        .x_desc(x_unit.unwrap_or_default())
        .x_labels(9)
        .y_labels(6)
        .x_label_formatter(&|x| grouped(*x))
        .y_label_formatter(y_label)
        .draw()
        .expect(STRING);
}

/// `12,000`; nothing between whole steps.
fn grouped(x: f64) -> String {
    if x.fract() != 0.0 {
        return String::new();
    }
    let digits = (x as i64).to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

fn decimals(y: f64) -> String {
    let text = format!("{y:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

/// The range of the values with a little room; never empty.
fn padded(values: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    let room = ((high - low) * 0.05).max(1e-3 * high.abs()).max(1e-6);
    (low - room).max(if low >= 0.0 { 0.0 } else { f64::NEG_INFINITY })..high + room
}

/// Mean over the neighbours, a fiftieth of the points on both sides together; fewer at the ends, and always as many on either
/// side, so that the curve neither lags nor leans.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let half = points.len() / 100;
    let mut sums = vec![0.0];
    points.iter().for_each(|p| sums.push(sums[sums.len() - 1] + p.1));
    let mean = |(i, (x, _)): (usize, &(f64, f64))| {
        let side = half.min(i).min(points.len() - 1 - i);
        let (from, to) = (i - side, i + side + 1);
        (*x, (sums[to] - sums[from]) / (to - from) as f64)
    };
    points.iter().enumerate().map(mean).collect()
}

/// At most about [`POINTS`] points: of each run of points the lowest and the highest, so that no spike is lost.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let run = points.len().div_ceil(POINTS / 2).max(1);
    if run <= 2 {
        return points.to_vec();
    }
    let mut out = Vec::new();
    for chunk in points.chunks(run) {
        let by_value = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let (low, high) = (chunk.iter().min_by(by_value), chunk.iter().max_by(by_value));
        let mut pair: Vec<(f64, f64)> = [low, high].into_iter().flatten().copied().collect();
        pair.sort_by(|a, b| a.0.total_cmp(&b.0));
        pair.dedup();
        out.extend(pair);
    }
    out
}

/// Rows of a heat map at most; beyond, neighbouring experts share one.
const MAX_ROWS: usize = 64;
/// Cells of all heat maps at most: the size of the file.
const MAX_CELLS: usize = 24_000;

/// Tokens of one layer's experts over the steps, as multiples of an equal share.
struct LoadMap {
    layer: usize,
    experts: usize,
    /// `[columns][rows]`
    cells: Vec<Vec<f64>>,
}

/// Per layer with experts a heat map: steps to the right, experts upwards, colour for the expert's share of the tokens. `None` without
/// experts.
pub fn expert_load(lines: &[Line]) -> Option<String> {
    let all: Vec<&StepMetrics> = steps(lines).filter(|s| !s.loads.is_empty()).collect();
    let last = all.last()?.step;
    let maps = load_maps(&all);
    let columns = if maps.len() > 3 { 2 } else { 1 };
    let rows = maps.len().div_ceil(columns);
    let tallest = maps.iter().map(|m| m.experts.min(MAX_ROWS)).max()?;
    let (width, panel) = (960 / columns as u32, (tallest as u32 * 9).clamp(90, 260) + 74);
    let head = 74;
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (960, head + panel * rows as u32)).into_drawing_area();
        root.fill(&WHITE).expect(STRING);
        let (top, below) = root.split_vertically(head);
        scale(&top);
        for (i, map) in maps.iter().enumerate() {
            let (column, row) = ((i % columns) as u32, (i / columns) as u32);
            let from = (column * width, row * panel);
            let area = below.clone().shrink(from, (width, panel));
            heat_map(&area, map, (last + 1) as f64);
        }
        root.present().expect(STRING);
    }
    Some(svg)
}

fn load_maps(all: &[&StepMetrics]) -> Vec<LoadMap> {
    // Layers and experts as the last step has them; an expert's tokens are summed over the steps of a column.
    let shape: BTreeMap<usize, usize> =
        all.last().into_iter().flat_map(|s| &s.loads).map(|(layer, load)| (*layer, load.len())).collect();
    let cells: usize = shape.values().map(|e| (*e).min(MAX_ROWS)).sum();
    let columns = (MAX_CELLS / cells.max(1)).clamp(10, 200).min(all.len());
    let column_of = |i: usize| i * columns / all.len();
    let maps = shape.into_iter().filter(|(_, experts)| *experts > 0).map(|(layer, experts)| {
        let mut tokens = vec![vec![0u64; experts]; columns];
        for (i, step) in all.iter().enumerate() {
            let load = step.loads.iter().find(|(l, load)| *l == layer && load.len() == experts);
            for (sum, n) in tokens[column_of(i)].iter_mut().zip(load.into_iter().flat_map(|(_, load)| load)) {
                *sum += *n as u64;
            }
        }
        let rows = experts.min(MAX_ROWS);
        let shares = |column: Vec<u64>| {
            let total: u64 = column.iter().sum();
            let equal = (total as f64 / experts as f64).max(f64::MIN_POSITIVE);
            let mut cells = vec![1.0; rows];
            for (e, n) in column.iter().enumerate() {
                let (cell, share) = (&mut cells[e * rows / experts], *n as f64 / equal);
                // Of experts that share a row, the one furthest from an equal share shows.
                if (share - 1.0).abs() > (*cell - 1.0f64).abs() {
                    *cell = share;
                }
            }
            cells
        };
        LoadMap { layer, experts, cells: tokens.into_iter().map(shares).collect() }
    });
    maps.collect()
}

/// Blue for idle, white for an equal share, red for twice as much and more.
fn colour(share: f64) -> RGBColor {
    const ENDS: [(f64, f64, f64); 3] = [(33.0, 88.0, 160.0), (250.0, 250.0, 248.0), (178.0, 34.0, 34.0)];
    // In 32 steps, so that neighbours of about the same load become one rectangle.
    let x = (share.clamp(0.0, 2.0) * 16.0).round() / 16.0;
    let (from, to, t) = if x < 1.0 { (ENDS[0], ENDS[1], x) } else { (ENDS[1], ENDS[2], x - 1.0) };
    let mix = |a: f64, b: f64| (a + (b - a) * t).round() as u8;
    RGBColor(mix(from.0, to.0), mix(from.1, to.1), mix(from.2, to.2))
}

/// Title and colour scale.
fn scale(area: &Area) {
    let text = |text: &str, at, size, h| {
        let style = font(size).color(&INK).pos(Pos::new(h, VPos::Center));
        area.draw(&Text::new(text.to_string(), at, style)).expect(STRING);
    };
    let title = font(20).style(FontStyle::Bold).color(&INK).pos(Pos::new(HPos::Left, VPos::Center));
    area.draw(&Text::new("Expert load", (24, 26), title)).expect(STRING);
    text("tokens of each expert, as a multiple of an equal share", (24, 52), 14, HPos::Left);
    let (left, width) = (640, 260);
    for i in 0..width {
        let bar = Rectangle::new(
            [(left + i, 18), (left + i + 1, 34)],
            colour(2.0 * f64::from(i) / f64::from(width)).filled(),
        );
        area.draw(&bar).expect(STRING);
    }
    area.draw(&Rectangle::new([(left, 18), (left + width, 34)], INK.mix(0.4))).expect(STRING);
    for (at, label) in [(0, "0: idle"), (width / 2, "1: equal"), (width, "2 and more")] {
        text(label, (left + at, 48), 13, HPos::Center);
    }
}

fn heat_map(area: &Area, map: &LoadMap, steps: f64) {
    let rows = map.experts.min(MAX_ROWS);
    let mut chart = ChartBuilder::on(area)
        .caption(format!("Layer {}", map.layer), font(15).style(FontStyle::Bold).color(&INK))
        .margin(10)
        .margin_right(24)
        .x_label_area_size(36)
        .y_label_area_size(54)
        .build_cartesian_2d(0.0..steps, -0.5..map.experts as f64 - 0.5)
        .expect(STRING);
    let columns = map.cells.len();
    for row in 0..rows {
        let (low, high) = (bound(row, rows, map.experts), bound(row + 1, rows, map.experts));
        let mut from = 0;
        while from < columns {
            let color = colour(map.cells[from][row]);
            let same = map.cells[from..].iter().take_while(|c| colour(c[row]) == color).count();
            let x = |column: usize| column as f64 / columns as f64 * steps;
            let cell = Rectangle::new([(x(from), low), (x(from + same), high)], color.filled());
            chart.draw_series([cell]).expect(STRING);
            from += same;
        }
    }
    let labels = map.experts.min(9);
    chart
        .configure_mesh()
        .disable_mesh()
        .axis_style(INK.mix(0.5))
        .label_style(font(12).color(&INK))
        .axis_desc_style(font(13).color(&INK))
        .x_desc("steps")
        .y_desc("expert")
        .x_labels(6)
        .y_labels(labels)
        .x_label_formatter(&|x| grouped(*x))
        .y_label_formatter(&|y| grouped(*y))
        .draw()
        .expect(STRING);
}

/// Where row `row` of `rows` begins: expert `e` reaches from `e − ½` to `e + ½`.
fn bound(row: usize, rows: usize, experts: usize) -> f64 {
    (row * experts).div_ceil(rows) as f64 - 0.5
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Rng, Stream};

    /// A run that looks like one.
    fn run(steps: u64, layers: usize, experts: usize) -> Vec<Line> {
        let mut rng = Rng::new(1, Stream::Sample, 0);
        let mut lines = Vec::new();
        for step in 0..steps {
            let t = step as f64 / steps as f64;
            if step % (steps / 10).max(1) == 0 {
                let heldout_loss = 1.6 + 4.6 / (1.0 + 12.0 * t);
                lines.push(Line::Heldout(HeldoutMetrics { step, heldout_loss, heldout_bits_per_byte: None }));
            }
            let mut load = |layer: usize| {
                let one = |e: usize| {
                    let bias = 1.0 + (1.0 - t) * if e % 3 == layer % 3 { 0.9 } else { -0.45 };
                    (1000.0 * bias * (0.9 + 0.2 * rng.uniform())) as usize
                };
                (layer + 1, (0..experts).map(one).collect())
            };
            let loads = (0..layers).map(&mut load).collect();
            let loss = 1.4 + 4.9 / (1.0 + 12.0 * t) + 0.3 * (rng.uniform() - 0.5);
            let lr = 1e-3 * (t * 20.0).min(1.0).min(1.3 - t);
            lines.push(Line::Step(StepMetrics { step, loss, lr, loads, ..StepMetrics::default() }));
        }
        lines
    }

    #[test]
    fn a_run_gives_both_pictures_and_a_dense_one_only_the_loss() {
        let names = |lines: &[Line]| all(lines).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(&run(50, 2, 4)), ["loss.svg", "expert_load.svg"]);
        assert_eq!(names(&run(50, 0, 0)), ["loss.svg"]);
        assert!(names(&run(0, 2, 4)).is_empty());
    }

    #[test]
    fn one_step_and_equal_losses_still_give_a_picture() {
        for n in [1, 2] {
            let mut lines = run(n, 1, 2);
            for line in &mut lines {
                if let Line::Step(s) = line {
                    (s.loss, s.lr) = (0.0, 0.0);
                }
            }
            assert!(loss(&lines).unwrap().contains("</svg>"));
            assert!(expert_load(&lines).unwrap().contains("</svg>"));
        }
    }

    #[test]
    fn axes_say_what_they_show_and_in_which_unit() {
        let svg = loss(&run(300, 0, 0)).unwrap();
        for text in ["nats per token", "steps", "Learning rate", "held-out, "] {
            assert!(svg.contains(text), "{text}");
        }
        let svg = expert_load(&run(300, 2, 8)).unwrap();
        for text in ["Layer 1", "Layer 2", "expert", "steps", "1: equal"] {
            assert!(svg.contains(text), "{text}");
        }
    }

    #[test]
    fn long_runs_of_large_models_stay_small_files() {
        assert!(loss(&run(50_000, 0, 0)).unwrap().len() < 200_000);
        assert!(expert_load(&run(400, 26, 256)).unwrap().len() < 4_000_000);
    }

    #[test]
    fn thinning_keeps_the_spikes() {
        let mut points: Vec<(f64, f64)> = (0..10_000).map(|i| (f64::from(i), 1.0)).collect();
        points[4321].1 = 99.0;
        let thin = thinned(&points);
        assert!(thin.len() <= POINTS + 2 && thin.contains(&(4321.0, 99.0)));
        assert!(thin.is_sorted_by(|a, b| a.0 < b.0));
    }

    #[test]
    fn smoothing_keeps_a_straight_line_and_averages_noise() {
        let line: Vec<(f64, f64)> = (0..500).map(|i| (f64::from(i), 3.0 - 0.005 * f64::from(i))).collect();
        // 500 terms below 3 sum to below 1500: rounding at 2⁻⁵³ · 1500 at most, a hundred times less after the mean.
        assert!(smoothed(&line).iter().zip(&line).all(|(a, b)| a.0 == b.0 && (a.1 - b.1).abs() < 1e-12));
        let noise: Vec<(f64, f64)> = (0..500).map(|i| (f64::from(i), f64::from(i % 2))).collect();
        let middle = smoothed(&noise)[250].1;
        assert!((middle - 0.5).abs() < 0.05, "{middle}");
    }

    #[test]
    fn a_cell_is_the_share_of_its_steps_and_the_furthest_of_its_experts() {
        let step = |loads| StepMetrics { loads, ..StepMetrics::default() };
        let one = step(vec![(3, vec![10, 30])]);
        let two = step(vec![(3, vec![40, 0])]);
        let maps = load_maps(&[&one, &two]);
        assert_eq!((maps[0].layer, maps[0].experts), (3, 2));
        assert_eq!(maps[0].cells, [[0.5, 1.5], [2.0, 0.0]]);
        // 128 experts in 64 rows: the two of a row are 1 and, for the first row, 3.
        let mut load = vec![100; 128];
        (load[0], load[2]) = (300, 0);
        load[127] = 0;
        let maps = load_maps(&[&step(vec![(0, load)])]);
        assert_eq!(maps[0].cells[0].len(), 64);
        let equal = (125.0 * 100.0 + 300.0) / 128.0;
        assert_eq!(maps[0].cells[0][0], 300.0 / equal);
        assert_eq!((maps[0].cells[0][1], maps[0].cells[0][63]), (0.0, 0.0));
    }

    #[test]
    fn colours_run_from_idle_over_equal_to_twice_as_much() {
        assert_eq!([colour(0.0), colour(1.0)], [RGBColor(33, 88, 160), RGBColor(250, 250, 248)]);
        assert_eq!([colour(2.0), colour(9.0)], [RGBColor(178, 34, 34); 2]);
    }

    /// `JEVONS_PLOTS=folder cargo test -p jevons-train plots -- --ignored` writes pictures to look at.
    #[test]
    #[ignore = "writes pictures to look at"]
    fn plots_to_look_at() {
        let folder = std::path::PathBuf::from(std::env::var("JEVONS_PLOTS").expect("set JEVONS_PLOTS to a folder"));
        for (kind, lines) in [("small", run(2000, 3, 8)), ("large", run(600, 8, 64)), ("short", run(5, 1, 4))] {
            for (name, svg) in all(&lines) {
                std::fs::write(folder.join(format!("{kind}_{name}")), svg).expect("a writable folder");
            }
        }
    }
}
