use std::{
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::ValueEnum;
use jevons_bench::{
    Event,
    accumulate::{self, Numbers, PROMOTE, Report as Compared, Row, Settings, Sweep, plot},
};
use jevons_kernels::study::{MAX_BITS, MAX_K, MIN_BITS};

use crate::{human::grouped, progress, report::Report};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only these tables
    #[arg(long, value_enum, value_name = "TABLE", value_delimiter = ',', default_values_t = [Table::K, Table::Promotion, Table::Bits])]
    only: Vec<Table>,
    /// Lengths of sums of the first table; the others have 4096 [default: 128 to 16384 in powers of two]
    #[arg(long, value_name = "K", value_delimiter = ',', value_parser = length)]
    k: Vec<usize>,
    /// Bits that the emulated accumulator keeps, but in the table over them
    #[arg(long, value_name = "N", default_value_t = 14, value_parser = clap::value_parser!(u32).range(i64::from(MIN_BITS)..=i64::from(MAX_BITS)))]
    bits: u32,
    /// Random numbers of the matrices
    #[arg(long, value_enum, default_value_t = Kind::Normal)]
    numbers: Kind,
    /// Which way negative numbers lose the bits that are not kept
    #[arg(long, value_enum, default_value_t = Cut::Zero)]
    cut: Cut,
    /// Rows of either matrix: there are as many results squared, and the largest error grows with them
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..=8192))]
    rows: u16,
    /// Of the random numbers
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
    /// Write the largest errors as a picture
    #[arg(long, alias = "svg", value_name = "FILE.svg", value_hint = clap::ValueHint::FilePath)]
    plot: Option<PathBuf>,
    /// CPU threads [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Table {
    /// Sums of several lengths
    K,
    /// Several intervals between promotions to f32
    Promotion,
    /// Several numbers of bits
    Bits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Of a standard normal distribution: sums cancel
    Normal,
    /// Even in 0..1: sums only grow
    Positive,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Cut {
    /// Toward zero
    Zero,
    /// Down, as a shift that fills in the sign does
    Down,
}

fn length(text: &str) -> Result<usize, String> {
    match text.trim().parse() {
        Ok(k) if (1..=MAX_K).contains(&k) => Ok(k),
        _ => Err(format!("expected lengths of sums from 1 to {MAX_K}, for example 128,4096")),
    }
}

pub fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    super::check_folder(args.plot.as_deref())?;
    super::start_threads(args.threads)?;
    let settings = args.settings();
    let bar = progress::named_bar(settings.steps() as u64);
    let compared = accumulate::run(&settings, &mut |event| match event {
        Event::Now(what) => bar.set_message(what),
        Event::Done => bar.inc(1),
    });
    bar.finish_and_clear();
    let compared = compared?;
    if let Some(path) = &args.plot {
        super::write_plot(path, &plot::errors(&compared))?;
    }
    if args.json {
        serde_json::to_writer_pretty(&mut *out, &compared)?;
        return Ok(writeln!(out)?);
    }
    print(&compared, args.plot.as_deref(), out).context("cannot write the report")
}

impl Args {
    fn settings(&self) -> Settings {
        let mut settings = Settings {
            sweeps: vec![],
            bits: self.bits,
            numbers: match self.numbers {
                Kind::Normal => Numbers::Normal,
                Kind::Positive => Numbers::Positive,
            },
            cut_down: self.cut == Cut::Down,
            rows: self.rows.into(),
            seed: self.seed,
            ..Settings::default()
        };
        // Each table once, in the order in which they are explained.
        let tables = [(Table::K, Sweep::K), (Table::Promotion, Sweep::Promotion), (Table::Bits, Sweep::Bits)];
        settings.sweeps.extend(tables.iter().filter(|t| self.only.contains(&t.0)).map(|t| t.1));
        if !self.k.is_empty() {
            settings.lengths.clone_from(&self.k);
        }
        settings
    }
}

fn print(compared: &Compared, plot: Option<&Path>, out: &mut impl Write) -> std::io::Result<()> {
    let s = &compared.settings;
    let rows = |sweep| compared.rows.iter().filter(move |r: &&Row| r.sweep == sweep);
    let mut report = Report::new(out);
    let numbers = match s.numbers {
        Numbers::Normal => "normal random numbers",
        Numbers::Positive => "even random numbers in 0..1",
    };
    let cut = if s.cut_down { "down" } else { "toward zero" };
    report.section(
        "Two matrices in E4M3",
        &[
            ("results".into(), format!("{0} x {0}, of {numbers}, seed {1}", s.rows, s.seed)),
            ("accumulator".into(), format!("{} bits of a model of a tensor core, cut {cut}", s.bits)),
            ("error".into(), "against the exact product of the same codes, in % of the RMS of its results".into()),
        ],
    )?;
    let header = [
        "",
        &format!("{} bits, never", s.bits),
        &format!("{} bits, every {PROMOTE}", s.bits),
        &format!("f32, every {PROMOTE}"),
        "bf16 product",
    ];
    type Error = fn(&Row) -> f64;
    let kinds: [(&str, Error); 2] = [("Largest error, K", |r| r.max_error), ("RMS error, K", |r| r.rms_error)];
    let lengths: Vec<Row> = rows(Sweep::K).copied().collect();
    for (title, error) in kinds.iter().filter(|_| !lengths.is_empty()) {
        let line = |four: &[Row]| {
            [grouped(four[0].k as u64)].into_iter().chain(four.iter().map(|r| percent(error(r)))).collect()
        };
        report.table(title, &header, &lengths.chunks_exact(4).map(line).collect::<Vec<_>>())?;
    }
    let interval = |promote: Option<usize>| promote.map_or("never".into(), |p| p.to_string());
    let cells = |r: &Row| vec![interval(r.promote), percent(r.max_error), percent(r.rms_error)];
    let promotions: Vec<_> = rows(Sweep::Promotion).map(cells).collect();
    if !promotions.is_empty() {
        let title = format!("Promoted every, K = {}", accumulate::K);
        report.table(&title, &["", "largest", "RMS"], &promotions)?;
    }
    let (never, every): (Vec<&Row>, Vec<&Row>) = rows(Sweep::Bits).partition(|r| r.promote.is_none());
    let bits: Vec<_> = never
        .iter()
        .zip(&every)
        .map(|(n, e)| {
            let errors = [n.max_error, n.rms_error, e.max_error, e.rms_error].map(percent);
            [n.bits.unwrap_or_default().to_string()].into_iter().chain(errors).collect()
        })
        .collect();
    if !bits.is_empty() {
        let every = format!("every {PROMOTE}: largest");
        let title = format!("Bits, K = {}", accumulate::K);
        report.table(&title, &["", "never: largest", "RMS", &every, "RMS"], &bits)?;
    }
    if let Some(path) = plot {
        report.line("")?;
        report.line(&format!("picture: {}", path.display()))?;
    }
    Ok(())
}

/// Two digits: `1.5 %`, `0.061 %`, `4.3e-5 %`.
fn percent(error: f64) -> String {
    let p = 100.0 * error;
    match p {
        0.0 => "0".into(),
        p if p < 1e-3 => format!("{p:.1e} %"),
        p => format!("{p:.*} %", (1 - p.log10().floor() as i32).max(0) as usize),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_in_two_digits() {
        let errors = [0.0, 4.26e-7, 1e-5, 6.1e-4, 0.0149, 0.0996, 0.12, 1.5];
        let want = ["0", "4.3e-5 %", "0.0010 %", "0.061 %", "1.5 %", "10.0 %", "12 %", "150 %"];
        assert_eq!(errors.map(percent), want);
    }
}
