use super::*;
use crate::{
    grade::{Energy, Grade},
    ledger::{Entry, Work},
};

fn row(seq: i64, kind: Kind, joules: f64, tokens: u64) -> Numbered {
    let work = Work { tokens, ..Work::default() };
    let entry = Entry {
        at_ms: 1_795_426_219_000 + seq * 1000,
        run: "0123456789abcdef".into(),
        request: Some(1),
        kind,
        command: "chat".into(),
        tenant: Some("a \"b\"\n, \\".into()),
        model: Some("ab".repeat(32)),
        work,
        seconds: 2.0,
        energy: Some(Energy::new(joules, Grade::E)),
        unknown_s: 0.0,
        own_cpu_s: Some(1.0),
        busy_cpu_s: None,
        boundary: "cpu: a model, with \"quotes\" [E]".into(),
    };
    Numbered { seq, entry }
}

fn rows() -> Vec<Numbered> {
    vec![
        row(1, Kind::Start, 0.0, 0),
        row(2, Kind::Phase(Phase::Load), 100.0, 0),
        row(3, Kind::Phase(Phase::Prefill), 36.0, 10),
        row(4, Kind::Phase(Phase::Thinking), 360.0, 20),
        row(5, Kind::Phase(Phase::Answer), 324.0, 10),
        row(6, Kind::Request, 720.0, 40),
        row(7, Kind::Phase(Phase::Train), 3.6e6, 1000),
        row(8, Kind::Phase(Phase::Idle), 80.0, 0),
        row(9, Kind::Run, 3_600_900.0, 1040),
    ]
}

#[test]
fn csv_has_a_field_for_every_column_whatever_is_in_them() {
    let text = csv(&rows());
    let mut columns = 0;
    // A reader of RFC 4180: quotes toggle, doubled quotes stay.
    let (mut fields, mut records, mut quoted) = (1, vec![], false);
    for c in text.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => fields += 1,
            '\n' if !quoted => {
                records.push(fields);
                columns = columns.max(fields);
                fields = 1;
            }
            _ => {}
        }
    }
    assert_eq!((records.len(), columns), (10, 20));
    assert!(records.iter().all(|r| *r == 20), "{records:?}");
    assert!(text.contains(",E,") && text.contains("2026-11-23T"));
}

#[test]
fn prometheus_text_is_one_sample_a_line_with_escaped_labels() {
    let text = prometheus(&rows());
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(name.starts_with("jevons_") && value.parse::<f64>().is_ok(), "{line}");
    }
    assert!(text.contains(r#"tenant="a \"b\"\n, \\",grade="E"} 36"#), "{text}");
    assert!(text.ends_with("jevons_requests_total 1\n"));
}

#[test]
fn energy_is_declared_by_stage_in_kilowatt_hours_with_its_grade() {
    let bom: Value = serde_json::from_str(&export(&rows(), Format::CycloneDx)).unwrap();
    let consumptions =
        &bom["components"][0]["modelCard"]["considerations"]["environmentalConsiderations"]["energyConsumptions"];
    let of = |activity: &str| {
        consumptions
            .as_array()
            .unwrap()
            .iter()
            .find(|c| c["activity"] == activity)
            .map(|c| c["activityEnergyCost"]["value"].as_f64().unwrap())
    };
    assert_eq!((of("training"), of("inference"), of("validation")), (Some(1.0), Some(0.0002), None));
    assert!((of("other").unwrap() - 180.0 / 3.6e6).abs() < 1e-15);
    assert_eq!(consumptions[0]["properties"][0], json!({ "name": "jevons:energy:grade", "value": "E" }));

    let spdx: Value = serde_json::from_str(&export(&rows(), Format::Spdx)).unwrap();
    let package = spdx["@graph"].as_array().unwrap().iter().find(|e| e["type"] == "ai_AIPackage").unwrap();
    assert_eq!(
        package["ai_energyConsumption"]["ai_trainingEnergyConsumption"][0]["ai_energyQuantity"],
        "1.000000000000000"
    );
    assert!(package["comment"].as_str().unwrap().contains("grade E"));

    let reports: Vec<Value> =
        export(&rows(), Format::BoAmps).lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(reports.len(), 2);
    let inference = reports.iter().find(|r| r["task"]["taskStage"] == "inference").unwrap();
    assert_eq!((&inference["measures"][0]["powerConsumption"], &inference["quality"]), (&json!(0.0002), &json!("low")));
    assert_eq!(inference["task"]["dataset"][1]["dataQuantity"], 30);
}

#[test]
fn sci_is_energy_times_intensity_plus_embodied_per_unit() {
    let inputs = SciInputs { intensity_g_per_kwh: 400.0, embodied_g: 116.0, per: FunctionalUnit::Token };
    let sci = super::sci(&rows(), inputs).unwrap();
    let want = (3_600_900.0 / 3.6e6 * 400.0 + 116.0) / 1040.0;
    assert!((sci["sci_g_per_unit"].as_f64().unwrap() - want).abs() < 1e-12, "{sci}");
    let request = SciInputs { per: FunctionalUnit::Request, ..inputs };
    assert_eq!(super::sci(&rows(), request).unwrap()["R"], 1);
    assert!(matches!(super::sci(&rows(), SciInputs { embodied_g: f64::NAN, ..inputs }), Err(SciError::Number { .. })));
    assert_eq!(super::sci(&[], inputs), Err(SciError::None(FunctionalUnit::Token)));
    let mut unknown = rows();
    unknown[2].entry.energy = None;
    assert_eq!(super::sci(&unknown, inputs), Err(SciError::Unknown { phases: 1, seconds: 0.0 }));
    let mut partly = rows();
    partly[2].entry.unknown_s = 2.0;
    assert_eq!(super::sci(&partly, inputs), Err(SciError::Unknown { phases: 0, seconds: 2.0 }));
}

#[test]
fn an_empty_ledger_is_an_empty_document_and_no_error() {
    for format in [Format::Csv, Format::Json, Format::Prometheus, Format::CycloneDx, Format::Spdx, Format::BoAmps] {
        let text = export(&[], format);
        assert!(text.is_empty() == (format == Format::BoAmps), "{format:?}");
    }
}

/// `JEVONS_EXPORT_DIR=DIR cargo test --release -p jevons-energy -- --ignored write_exports` writes a file of each form, to check
/// them with the validators of their makers.
#[test]
#[ignore = "writes files"]
fn write_exports() {
    let dir =
        std::path::PathBuf::from(std::env::var_os("JEVONS_EXPORT_DIR").expect("JEVONS_EXPORT_DIR names a folder"));
    for (name, format) in [
        ("cyclonedx.json", Format::CycloneDx),
        ("spdx.json", Format::Spdx),
        ("boamps.jsonl", Format::BoAmps),
        ("metrics.txt", Format::Prometheus),
        ("ledger.csv", Format::Csv),
        ("ledger.json", Format::Json),
    ] {
        std::fs::write(dir.join(name), export(&rows(), format)).unwrap();
    }
}
