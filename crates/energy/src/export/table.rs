//! CSV and Prometheus' text format.

use std::{collections::BTreeMap, fmt::Write};

use crate::ledger::{Kind, Numbered, time};

const HEADER: &str = "seq,at,run,request,kind,command,tenant,model,tokens,cached_tokens,flop,bytes,seconds,joules,uncertainty_j,grade,\
                      unknown_s,own_cpu_s,busy_cpu_s,boundary";

/// Every row, with a header; an empty field is unknown. Lines end as RFC 4180 has it.
pub fn csv(rows: &[Numbered]) -> String {
    fn opt<T: ToString>(value: Option<T>) -> String {
        value.map_or(String::new(), |v| v.to_string())
    }
    let mut text = format!("{HEADER}\r\n");
    for Numbered { seq, entry: e } in rows {
        let fields = [
            seq.to_string(),
            time(e.at_ms),
            e.run.clone(),
            opt(e.request),
            e.kind.as_str().into(),
            e.command.clone(),
            opt(e.tenant.as_ref()),
            opt(e.model.as_ref()),
            e.work.tokens.to_string(),
            e.work.cached_tokens.to_string(),
            opt(e.work.flop),
            opt(e.work.bytes),
            e.seconds.to_string(),
            opt(e.energy.map(|x| x.joules)),
            opt(e.energy.map(|x| x.uncertainty_j)),
            opt(e.energy.map(|x| x.grade)),
            e.unknown_s.to_string(),
            opt(e.own_cpu_s),
            opt(e.busy_cpu_s),
            e.boundary.clone(),
        ];
        text += &fields.map(|f| quoted(&f)).join(",");
        text += "\r\n";
    }
    text
}

fn quoted(field: &str) -> String {
    if field.contains(['"', ',', '\r', '\n']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}

/// Sums by phase, model, tenant and grade, as counters that only grow.
pub fn prometheus(rows: &[Numbered]) -> String {
    #[derive(Default)]
    struct Sums {
        joules: f64,
        uncertainty_j: f64,
        seconds: f64,
        tokens: u64,
        unknown: u64,
        unknown_s: f64,
    }
    let mut sums: BTreeMap<String, Sums> = BTreeMap::new();
    let mut requests = 0;
    for Numbered { entry: e, .. } in rows {
        requests += u64::from(e.kind == Kind::Request);
        let Kind::Phase(phase) = e.kind else { continue };
        let grade = e.energy.map_or("unknown".to_owned(), |x| x.grade.to_string());
        let (model, tenant) = (e.model.as_deref().unwrap_or_default(), e.tenant.as_deref().unwrap_or_default());
        let labels = format!(
            "phase=\"{}\",model=\"{}\",tenant=\"{}\",grade=\"{grade}\"",
            phase.as_str(),
            escaped(model),
            escaped(tenant)
        );
        let sum = sums.entry(labels).or_default();
        sum.joules += e.energy.map_or(0.0, |x| x.joules);
        sum.uncertainty_j += e.energy.map_or(0.0, |x| x.uncertainty_j);
        sum.seconds += e.seconds;
        sum.tokens = sum.tokens.saturating_add(e.work.tokens);
        sum.unknown += u64::from(e.energy.is_none());
        sum.unknown_s += e.unknown_s;
    }
    type Column = (&'static str, &'static str, &'static str, fn(&Sums) -> f64);
    let columns: [Column; 6] = [
        (
            "jevons_energy_joules_total",
            "counter",
            "Energy of the machine; grades D and E are models; unknown phases add nothing",
            |s| s.joules,
        ),
        ("jevons_energy_uncertainty_joules", "gauge", "Standard uncertainty of the energy", |s| s.uncertainty_j),
        ("jevons_phase_seconds_total", "counter", "Duration", |s| s.seconds),
        ("jevons_tokens_total", "counter", "Tokens computed", |s| s.tokens as f64),
        ("jevons_unknown_phases_total", "counter", "Phases without any reading or model", |s| s.unknown as f64),
        ("jevons_unknown_seconds_total", "counter", "Time in which some part of the machine had no reading", |s| {
            s.unknown_s
        }),
    ];
    let mut text = String::new();
    for (name, kind, help, value) in columns {
        let _ = writeln!(text, "# HELP {name} {help}.\n# TYPE {name} {kind}");
        for (labels, sum) in &sums {
            let _ = writeln!(text, "{name}{{{labels}}} {}", value(sum));
        }
    }
    let _ = writeln!(text, "# HELP jevons_requests_total Requests answered.\n# TYPE jevons_requests_total counter");
    let _ = writeln!(text, "jevons_requests_total {requests}");
    text
}

fn escaped(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
