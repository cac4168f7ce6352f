//! Bills of materials: CycloneDX 1.6 (ECMA-424) and SPDX 3.0.1, both with a model's energy by stage of its life.
//!
//! Neither has a place for uncertainty: CycloneDX gets it as properties, SPDX as a comment.

use serde_json::{Value, json};

use super::{J_PER_KWH, Stage, boundary, models, stages, uuid};
use crate::ledger::{Group, Numbered, time};

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn last_time(rows: &[Numbered]) -> String {
    time(rows.iter().map(|r| r.entry.at_ms).max().unwrap_or(0))
}

fn name(model: &str) -> String {
    format!("model {}", model.get(..12).unwrap_or(model))
}

/// One component per model.
pub(super) fn cyclonedx(rows: &[Numbered]) -> Value {
    let component = |(model, rows): (&str, Vec<Numbered>)| {
        let consumptions: Vec<_> =
            stages(&rows).into_iter().map(|(stage, group)| consumption(stage, &group, boundary(&rows))).collect();
        json!({
            "type": "machine-learning-model",
            "bom-ref": format!("model-{model}"),
            "name": name(model),
            "properties": [property("jevons:model:fingerprint", model)],
            "modelCard": { "considerations": { "environmentalConsiderations": { "energyConsumptions": consumptions } } },
        })
    };
    json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": format!("urn:uuid:{}", uuid("cyclonedx", rows)),
        "version": 1,
        "metadata": {
            "timestamp": last_time(rows),
            "tools": { "components": [{ "type": "application", "name": "jevons", "version": VERSION }] },
        },
        "components": models(rows).into_iter().map(component).collect::<Vec<_>>(),
    })
}

fn consumption(stage: Stage, group: &Group, boundary: &str) -> Value {
    let kwh = |joules: f64| json!({ "value": joules / J_PER_KWH, "unit": "kWh" });
    let [low, _, high] = group.energy.band();
    let mut properties = vec![
        property("jevons:energy:grade", &group.energy.grade.to_string()),
        property("jevons:energy:grade-meaning", group.energy.grade.meaning()),
        property("jevons:energy:kWh-p5", &(low / J_PER_KWH).to_string()),
        property("jevons:energy:kWh-p95", &(high / J_PER_KWH).to_string()),
        property("jevons:energy:boundary", boundary),
        property("jevons:tokens", &group.tokens.to_string()),
    ];
    if !group.complete() {
        properties.push(property("jevons:energy:lower-bound", "true"));
        properties.push(property("jevons:energy:unknown-phases", &group.unknown_phases.to_string()));
        properties.push(property("jevons:energy:unknown-seconds", &group.unknown_s.to_string()));
    }
    json!({
        "activity": stage.as_str(),
        "energyProviders": [{
            "organization": { "name": "unknown" },
            "energySource": "unknown",
            "energyProvided": kwh(group.energy.joules),
        }],
        "activityEnergyCost": kwh(group.energy.joules),
        "properties": properties,
    })
}

fn property(name: &str, value: &str) -> Value {
    json!({ "name": name, "value": value })
}

/// One AI package per model. SPDX knows training, fine-tuning and inference; what is neither is told in the comment.
pub(super) fn spdx(rows: &[Numbered]) -> Value {
    let document = format!("urn:uuid:{}", uuid("spdx", rows));
    let id = |name: &str| format!("{document}#{name}");
    let mut graph = vec![
        json!({
            "type": "CreationInfo",
            "@id": "_:creation",
            "specVersion": "3.0.1",
            "created": last_time(rows),
            "createdBy": [id("agent")],
            "createdUsing": [id("tool")],
        }),
        json!({ "type": "SoftwareAgent", "spdxId": id("agent"), "creationInfo": "_:creation", "name": "jevons" }),
        json!({ "type": "Tool", "spdxId": id("tool"), "creationInfo": "_:creation", "name": format!("jevons {VERSION}") }),
    ];
    let mut packages = vec![];
    for (model, rows) in models(rows) {
        let package = id(&format!("model-{model}"));
        let stages = stages(&rows);
        let mut consumption = json!({ "type": "ai_EnergyConsumption" });
        let mut comment = format!("fingerprint {model}");
        for (stage, group) in &stages {
            let [low, _, high] = group.energy.band().map(|j| decimal(j / J_PER_KWH));
            comment += &format!(
                "; {}: {} kWh (grade {}: {}; p5 {low}, p95 {high})",
                stage.as_str(),
                decimal(group.energy.joules / J_PER_KWH),
                group.energy.grade,
                group.energy.grade.meaning()
            );
            if !group.complete() {
                comment += ", a lower bound: some readings are missing";
            }
            let slot = match stage {
                Stage::Training => "ai_trainingEnergyConsumption",
                Stage::Inference => "ai_inferenceEnergyConsumption",
                Stage::Validation | Stage::Other => continue,
            };
            consumption[slot] = json!([{
                "type": "ai_EnergyConsumptionDescription",
                "ai_energyQuantity": decimal(group.energy.joules / J_PER_KWH),
                "ai_energyUnit": "kilowattHour",
            }]);
        }
        comment += &format!("; covered: {}", boundary(&rows));
        graph.push(json!({
            "type": "ai_AIPackage",
            "spdxId": package,
            "creationInfo": "_:creation",
            "name": name(model),
            "comment": comment,
            "software_primaryPurpose": "model",
            "ai_energyConsumption": consumption,
        }));
        packages.push(package);
    }
    let mut bom = json!({
        "type": "SpdxDocument",
        "spdxId": document,
        "creationInfo": "_:creation",
        "name": "energy ledger of jevons",
        "profileConformance": ["core", "software", "ai"],
    });
    if !packages.is_empty() {
        bom["rootElement"] = packages.clone().into();
        bom["element"] = packages.into();
    }
    graph.push(bom);
    json!({ "@context": "https://spdx.org/rdf/3.0.1/spdx-context.jsonld", "@graph": graph })
}

/// `xsd:decimal` knows no exponent.
fn decimal(x: f64) -> String {
    format!("{x:.15}")
}
