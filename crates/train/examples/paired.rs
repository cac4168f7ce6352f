//! What a number format costs in loss: the same recipe in bf16 and in FP8, from the same weights on the same batches, for several seeds.
//!
//! ```text
//! cargo run --release -p jevons-train --example paired -- RECIPE.toml --folder DIR [--text GLOB] [--seeds 3] [--set KEY=VALUE]...
//! ```
//!
//! Every run is a folder in DIR, saved as its recipe says; the same command goes on where it was stopped. Then `paired.md`, `paired.json`
//! and `paired.svg` are written: the held-out loss of each run, and the gap to bf16 with its 95 % interval over the seeds (Student's t).

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use jevons_train::{
    metrics::{self, Line},
    plot::{FAINT, INK},
    recipe::Recipe,
    run::{self, Event},
};
use plotters::prelude::*;
use serde_json::{Value, json};

struct Variant {
    name: &'static str,
    /// Of the recipe.
    keys: &'static [(&'static str, &'static str)],
    every_seed: bool,
}

const fn variant(name: &'static str, keys: &'static [(&'static str, &'static str)], every_seed: bool) -> Variant {
    Variant { name, keys, every_seed }
}

const VARIANTS: [Variant; 5] = [
    variant("bf16", &[("precision", "bf16")], true),
    variant("fp8", &[("precision", "fp8")], true),
    variant("fp8-fp32-scales", &[("precision", "fp8"), ("fp8.scale", "fp32")], false),
    variant("fp8-retile", &[("precision", "fp8"), ("fp8.wgrad", "retile")], false),
    variant("fp8-gradient-blocks", &[("precision", "fp8"), ("fp8.gradients", "block")], false),
];

struct Args {
    recipe: PathBuf,
    folder: PathBuf,
    text: Option<String>,
    seeds: u64,
    set: Vec<(String, String)>,
}

impl Args {
    fn read() -> Result<Self, String> {
        let mut words = std::env::args().skip(1);
        let (mut recipe, mut folder, mut text, mut seeds, mut set) = (None, None, None, 3, vec![]);
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            match &*word {
                "--folder" => folder = Some(value()?.into()),
                "--text" => text = Some(value()?),
                "--seeds" => seeds = value()?.parse().map_err(|_| "--seeds needs a number")?,
                "--set" => {
                    let value = value()?;
                    let (key, value) = value.split_once('=').ok_or("--set needs KEY=VALUE")?;
                    set.push((key.into(), value.into()));
                }
                _ if recipe.is_none() && !word.starts_with('-') => recipe = Some(word.into()),
                _ => return Err(format!("{word}: not known; see the first lines of examples/paired.rs")),
            }
        }
        Ok(Self {
            recipe: recipe.ok_or("a recipe is needed")?,
            folder: folder.ok_or("--folder is needed")?,
            text,
            seeds,
            set,
        })
    }
}

/// A finished run.
struct Done {
    variant: &'static str,
    seed: u64,
    heldout_loss: f64,
    tokens: u64,
    /// Step and held-out loss.
    curve: Vec<(f64, f64)>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::read()?;
    fs::create_dir_all(&args.folder)?;
    let folder = args.folder.canonicalize()?;
    let mut all = vec![];
    // The pairs first, so that a run that is stopped early has its interval.
    for of_every_seed in [true, false] {
        for seed in 1..=if of_every_seed { args.seeds } else { 1 } {
            for variant in VARIANTS.iter().filter(|v| v.every_seed == of_every_seed) {
                all.push(train(&args, &folder, variant, seed)?);
                report(&folder, &all)?;
            }
        }
    }
    print!("{}", fs::read_to_string(folder.join("paired.md"))?);
    Ok(())
}

fn train(args: &Args, folder: &Path, variant: &Variant, seed: u64) -> Result<Done, Box<dyn Error>> {
    let Variant { name: variant, keys, .. } = *variant;
    let place = folder.join(format!("{variant}-{seed}"));
    let (seed_text, place_text) = (seed.to_string(), place.display().to_string());
    let cache = folder.join("cache").display().to_string();
    let mut changes = vec![("seed", &*seed_text), ("run.folder", &*place_text), ("data.cache", &*cache)];
    changes.extend(args.text.as_deref().map(|text| ("data.sources.0.path", text)));
    changes.extend(args.set.iter().map(|(key, value)| (&**key, &**value)));
    changes.extend(keys);
    let mut recipe = Recipe::load(&args.recipe)?;
    recipe.apply_overrides(&changes)?;
    recipe.validate()?;
    let resume = place.join("state/checkpoint.safetensors").exists();
    let summary = run::run(&recipe, resume, &AtomicBool::new(false), &mut |event| {
        if let Event::Step(step) = event
            && step.step.is_multiple_of(10)
        {
            eprint!("\r{variant}, seed {seed}: step {}, loss {:.4}   ", step.step, step.loss);
        }
    })?;
    eprintln!();
    let lines = metrics::read(place.join("metrics.jsonl"))?;
    let curve: Vec<(f64, f64)> = lines
        .iter()
        .filter_map(|line| match line {
            Line::Heldout(h) => Some((h.step as f64, h.heldout_loss)),
            Line::Step(_) => None,
        })
        .collect();
    let last = curve.last().map(|(_, loss)| *loss);
    let heldout_loss = summary.heldout_loss.or(last).ok_or("the recipe takes no held-out loss")?;
    Ok(Done { variant, seed, heldout_loss, tokens: summary.tokens, curve })
}

/// Gap to bf16 of the same seed, as a share.
fn gaps<'a>(all: &'a [Done], variant: &str) -> Vec<(&'a Done, f64)> {
    let base = |seed| all.iter().find(|d| d.variant == "bf16" && d.seed == seed);
    all.iter()
        .filter(|d| d.variant == variant)
        .filter_map(|d| Some((d, d.heldout_loss / base(d.seed)?.heldout_loss - 1.0)))
        .collect()
}

/// Mean, and half of its 95 % interval where there are several.
fn mean(values: &[f64]) -> (f64, Option<f64>) {
    /// Student's t at 97.5 % for 1 to 9 degrees of freedom.
    const T: [f64; 9] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262];
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / (n - 1.0);
    let t = values.len().checked_sub(2).map(|i| T[i.min(T.len() - 1)]);
    (mean, t.map(|t| t * (variance / n).sqrt()))
}

fn report(folder: &Path, all: &[Done]) -> Result<(), Box<dyn Error>> {
    let mut text =
        String::from("| run | seeds | tokens | held-out loss, nats | gap to bf16, % |\n|---|---|---|---|---|\n");
    let mut rows: Vec<Value> = vec![];
    for Variant { name: variant, .. } in VARIANTS {
        let runs: Vec<&Done> = all.iter().filter(|d| d.variant == variant).collect();
        let Some(first) = runs.first() else { continue };
        let losses: Vec<f64> = runs.iter().map(|d| d.heldout_loss).collect();
        let gaps: Vec<f64> = gaps(all, variant).iter().map(|(_, gap)| 100.0 * gap).collect();
        let gap = match (variant, mean(&gaps)) {
            ("bf16", _) => "—".to_owned(),
            (_, (mean, Some(half))) => format!("{mean:+.3} ± {half:.3}"),
            (_, (mean, None)) => format!("{mean:+.3}"),
        };
        let list = losses.iter().map(|l| format!("{l:.4}")).collect::<Vec<_>>().join(", ");
        text += &format!("| {variant} | {} | {} | {list} | {gap} |\n", runs.len(), first.tokens);
        rows.push(json!({ "variant": variant, "heldout_loss": losses, "gap_percent": gaps, "tokens": first.tokens }));
    }
    jevons_sys::atomic::write(folder.join("paired.md"), text.as_bytes())?;
    jevons_sys::atomic::write(folder.join("paired.json"), serde_json::to_string_pretty(&rows)?.as_bytes())?;
    if let Some(svg) = plot(all)? {
        jevons_sys::atomic::write(folder.join("paired.svg"), svg.as_bytes())?;
    }
    Ok(())
}

/// Gap to bf16 over the steps, a line for each run.
fn plot(all: &[Done]) -> Result<Option<String>, Box<dyn Error>> {
    let lines: Vec<(&Done, Vec<(f64, f64)>)> = all
        .iter()
        .filter(|d| d.variant != "bf16")
        .filter_map(|d| {
            let base = all.iter().find(|b| b.variant == "bf16" && b.seed == d.seed)?;
            let points = d.curve.iter().zip(&base.curve).filter(|(a, b)| a.0 == b.0 && a.0 > 0.0);
            Some((d, points.map(|(a, b)| (a.0, 100.0 * (a.1 / b.1 - 1.0))).collect()))
        })
        .collect();
    let all_points = || lines.iter().flat_map(|(_, points)| points.iter().copied());
    let Some(last) = all_points().map(|p| p.0).reduce(f64::max) else { return Ok(None) };
    let reach = all_points().map(|p| p.1.abs()).fold(0.3, f64::max) * 1.1;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (800, 420)).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption("Held-out loss in FP8 against bf16, same start, same batches", ("sans-serif", 18, &INK))
            .margin(14)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..last, -reach..reach)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .bold_line_style(FAINT)
            .x_desc("step")
            .y_desc("gap, %")
            .label_style(("sans-serif", 13, &INK))
            .draw()?;
        for limit in [-0.25, 0.25] {
            chart.draw_series(DashedLineSeries::new([(0.0, limit), (last, limit)], 6, 4, INK.mix(0.5).into()))?;
        }
        for (i, (done, points)) in lines.iter().enumerate() {
            let color = Palette99::pick(i).to_rgba();
            chart
                .draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2)))?
                .label(format!("{}, seed {}", done.variant, done.seed))
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerLeft)
            .border_style(FAINT)
            .background_style(WHITE)
            .draw()?;
        area.present()?;
    }
    Ok(Some(svg))
}
