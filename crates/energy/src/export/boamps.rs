//! BoAmps of Boavizta: a report per model and stage.

use serde_json::{Value, json};

use super::{J_PER_KWH, Stage, boundary, models, stages, uuid};
use crate::ledger::{Kind, Numbered, Phase, by, time};

/// In order of models and stages. Standby and loading go into the calibration fields of the model's other reports.
pub(super) fn reports(rows: &[Numbered]) -> Vec<Value> {
    let mut reports = vec![];
    for (model, rows) in models(rows) {
        let stages = stages(&rows);
        let phases = by(&rows, |row| match row.entry.kind {
            Kind::Phase(phase) => Some(phase),
            _ => None,
        });
        let tokens = |phase: Phase| phases.get(&phase).map_or(0, |group| group.tokens);
        let idle = phases.get(&Phase::Idle);
        for (stage, group) in stages.iter().filter(|(stage, _)| **stage != Stage::Other) {
            let last = rows.iter().map(|r| r.entry.at_ms).max().unwrap_or(0);
            // The schema's own classes of error, at 90 % coverage.
            let [_, median, high] = group.energy.band();
            let quality = match high / median - 1.0 {
                e if e <= 0.1 => "high",
                e if e <= 0.25 => "medium",
                _ => "low",
            };
            let dataset =
                |usage: &str, tokens: u64| json!({ "dataUsage": usage, "dataType": "token", "dataQuantity": tokens });
            let data = match stage {
                Stage::Inference => {
                    let drawn = [Phase::Thinking, Phase::Answer, Phase::RejectedDraft].map(tokens).iter().sum();
                    vec![dataset("input", tokens(Phase::Prefill)), dataset("output", drawn)]
                }
                _ => vec![dataset("input", group.tokens)],
            };
            let bound = if group.complete() { "" } else { "; a lower bound: some readings are missing" };
            let grade = group.energy.grade;
            let mut measure = json!({
                "measurementMethod": format!("jevons, grade {grade}: {}{bound}", grade.meaning()),
                "version": env!("CARGO_PKG_VERSION"),
                "cpuTrackingMode": boundary(&rows),
                "powerConsumption": group.energy.joules / J_PER_KWH,
                "measurementDuration": group.seconds,
                "measurementDateTime": plain(last),
            });
            if let Some(idle) = idle {
                measure["powerCalibrationMeasurement"] = (idle.energy.joules / J_PER_KWH).into();
                measure["durationCalibrationMeasurement"] = idle.seconds.into();
            }
            let mut task = json!({
                "taskStage": stage.as_str(),
                "taskFamily": "text generation",
                "algorithms": [{ "algorithmType": "llm", "foundationModelName": model, "framework": "jevons" }],
                "dataset": data,
            });
            if *stage == Stage::Inference {
                task["nbRequest"] = rows.iter().filter(|r| r.entry.kind == Kind::Request).count().into();
            }
            reports.push(json!({
                "header": {
                    "reportId": uuid(&format!("boamps {model} {}", stage.as_str()), &rows),
                    "reportDatetime": plain(last),
                    "reportStatus": "draft",
                    "publisher": { "confidentialityLevel": "internal" },
                },
                "task": task,
                "measures": [measure],
                "system": { "os": std::env::consts::OS },
                "software": { "language": "rust" },
                "infrastructure": { "infraType": "other", "components": [{ "componentType": "cpu", "nbComponent": 1 }] },
                "quality": quality,
            }));
        }
    }
    reports
}

/// `2026-11-23 09:30:19`
fn plain(at_ms: i64) -> String {
    time(at_ms).replace('T', " ").replace('Z', "")
}
