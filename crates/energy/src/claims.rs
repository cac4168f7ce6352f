//! What the press says, computed again from its sources: each number with inputs, formula and a verdict.
//!
//! The inputs are constants with source and date. The verdict follows from three questions in this order: is there a source at all, is it a
//! source on the subject that the claim names, and is the claim within a factor of 1.5 (the press rounds) of the band that the source gives.

use serde::Serialize;

use crate::{
    convert::{Band, Constant, Draw, Evidence, Interval, Month, SEED, constant, intervals, stale, water_l},
    plan::Device,
};

/// What becomes of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "verdict", content = "factor")]
pub enum Verdict {
    /// The number follows from its source, for the subject that the claim names.
    Holds,
    /// The number exists, of something else.
    WrongSubject,
    /// The claim is that many times its source, or its source that many times the claim.
    OffBy(f64),
    /// No source was found.
    NoSource,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Holds => write!(f, "holds"),
            Self::WrongSubject => write!(f, "wrong subject"),
            Self::OffBy(factor) => write!(f, "off by a factor of {factor:.0}"),
            Self::NoSource => write!(f, "no source"),
        }
    }
}

/// The press rounds: within this factor of the band a number holds.
const ROUNDING: f64 = 1.5;

impl Verdict {
    /// Of a claimed range about a subject, against what its source gives and what that is about.
    fn of(subject: &str, source: Option<&str>, claimed: [f64; 2], regenerated: Interval) -> Self {
        match source {
            None => return Self::NoSource,
            Some(of) if of != subject => return Self::WrongSubject,
            Some(_) => {}
        }
        let over = claimed[0] / regenerated.p95;
        let under = regenerated.p5 / claimed[1];
        if over <= ROUNDING && under <= ROUNDING {
            return Self::Holds;
        }
        Self::OffBy(if over > under { claimed[0] / regenerated.p50 } else { regenerated.p50 / claimed[1] })
    }
}

/// A number computed again.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// Of what.
    pub label: &'static str,
    /// In words and symbols, with the numbers' names.
    pub formula: &'static str,
    /// p5, p50, p95; equal where the inputs are exact.
    pub value: Interval,
    /// Of the value.
    pub unit: &'static str,
}

/// A claim with its check.
#[derive(Clone, Debug, Serialize)]
pub struct Claim {
    /// Short and stable.
    pub id: &'static str,
    /// What is said.
    pub says: &'static str,
    /// What it is said of.
    pub subject: &'static str,
    /// What its source is about; none if no source was found.
    pub source_is_about: Option<&'static str>,
    /// The number that is claimed: from, to.
    pub claimed: [f64; 2],
    /// Computed again; the first line is what the claim should have said, in the claim's unit.
    pub lines: Vec<Line>,
    /// What went in.
    pub inputs: Vec<Constant>,
    /// What becomes of it.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Why, and what is inside the number and what is not.
    pub why: &'static str,
}

/// What a claim says, before it is checked.
struct Said {
    id: &'static str,
    says: &'static str,
    subject: &'static str,
    source_is_about: Option<&'static str>,
    claimed: [f64; 2],
    why: &'static str,
}

impl Said {
    fn check(self, lines: Vec<Line>, input_names: &[&str]) -> Claim {
        let Self { id, says, subject, source_is_about, claimed, why } = self;
        let verdict = Verdict::of(subject, source_is_about, claimed, lines[0].value);
        let inputs = input_names.iter().map(|name| constant(name).clone()).collect();
        Claim { id, says, subject, source_is_about, claimed, lines, inputs, verdict, why }
    }
}

fn line(
    label: &'static str,
    formula: &'static str,
    unit: &'static str,
    f: impl Fn(&dyn Fn(&str) -> f64) -> f64,
) -> Line {
    let value = intervals(SEED, |draw| vec![f(&|name: &str| draw.of(name, constant(name).band))])[0];
    Line { label, formula, value, unit }
}

fn exactly(x: f64) -> Interval {
    Interval { p5: x, p50: x, p95: x }
}

/// kW of the facility for one device of a training run in one draw: nameplate · server ratio · mean fraction · PUE.
fn facility_kw(draw: Draw, d: &Device) -> f64 {
    d.train_w(draw) / 1e3 * draw.above_one("pue", constant("pue_datacentre").band)
}

/// What [`facility_kw`] takes from a profile, as inputs to be shown.
fn of_profile(d: &Device) -> [Constant; 3] {
    [
        ("nameplate", Band::exact(d.nameplate_w), "W"),
        ("server ratio", d.server_ratio, "server over its devices"),
        ("mean fraction", d.mean_fraction, "mean over nameplate"),
    ]
    .map(|(what, band, unit)| Constant {
        name: format!("{} {what}", d.name),
        band,
        unit: unit.into(),
        source: d.source.clone(),
        date: d.date,
        evidence: Evidence::Quoted,
    })
}

/// Every claim, computed now.
pub fn claims() -> Vec<Claim> {
    vec![
        v3_bill(),
        gpt4_bill(),
        cheaper(),
        electricity(),
        greenhouse(),
        water(),
        demand(),
        energy_training(),
        energy_answer(),
    ]
}

/// One sentence for each input that is stale.
pub fn warnings(today: Month) -> Vec<String> {
    let all = claims();
    let mut lines: Vec<String> = all.iter().flat_map(|claim| stale(&claim.inputs, today)).collect();
    lines.sort();
    lines.dedup();
    lines
}

fn v3_bill() -> Claim {
    let lines = vec![
        line("rented hours of the run", "H800-hours · USD per hour", "USD", |c| {
            c("v3_h800_hours") * c("v3_usd_per_hour")
        }),
        line("R1 on top of it", "H800-hours · USD per hour", "USD", |c| c("r1_h800_hours") * c("v3_usd_per_hour")),
    ];
    let said = Said {
        id: "training-5.6m",
        says: "training DeepSeek cost 5.6 million dollars",
        subject: "the rent of the final training run of DeepSeek-V3",
        source_is_about: Some("the rent of the final training run of DeepSeek-V3"),
        claimed: [5.6e6; 2],
        why: "the rent of the final run of V3, at an assumed rate. Not in it, as its authors say: research, ablations, data, staff, \
              failed runs, the price of the cluster. R1 came on top",
    };
    said.check(lines, &["v3_h800_hours", "v3_usd_per_hour", "r1_h800_hours"])
}

fn gpt4_bill() -> Claim {
    let lines = vec![line("rent of the estimated hours", "A100-hours · USD per hour", "USD", |c| {
        c("gpt4_a100_hours") * c("a100_rent_2023")
    })];
    let said = Said {
        id: "gpt4-80-100m",
        says: "training GPT-4 cost 80 to 100 million dollars",
        subject: "the training of GPT-4",
        source_is_about: Some("the training of GPT-4"),
        claimed: [80e6, 100e6],
        why: "the hours are an unconfirmed leak; at market rent they give this much. `More than 100 million` is a remark about the whole \
              development, not a bill of devices",
    };
    said.check(lines, &["gpt4_a100_hours", "a100_rent_2023"])
}

fn cheaper() -> Claim {
    let lines = vec![
        line("rent against rent", "GPT-4 hours · rent / (V3 hours · rent)", "times", |c| {
            c("gpt4_a100_hours") * c("a100_rent_2023") / (c("v3_h800_hours") * c("v3_usd_per_hour"))
        }),
        line("as the press divides", "100 million / 5.6 million", "times", |_| 100.0 / 5.6),
    ];
    let said = Said {
        id: "cheaper-18x",
        says: "DeepSeek was 18 times cheaper to train than GPT-4",
        subject: "the training of two models",
        source_is_about: Some("one run's rent on one side, a whole development programme on the other"),
        claimed: [18.0; 2],
        why: "the rent of one run is divided into the cost of a programme. Like for like, hours times rent, the factor is about 10 to 14, \
              and one of the two is a leak",
    };
    said.check(lines, &["gpt4_a100_hours", "a100_rent_2023", "v3_h800_hours", "v3_usd_per_hour"])
}

fn electricity() -> Claim {
    let lines = vec![
        line("share in 2024", "TWh of data centres / TWh of the world", "%", |c| {
            100.0 * c("datacentre_twh_2024") / c("world_electricity_twh_2024")
        }),
        line("share in 2025", "TWh · (1 + growth) of data centres / the same of the world", "%", |c| {
            100.0 * c("datacentre_twh_2024") * (1.0 + c("datacentre_growth_2025"))
                / (c("world_electricity_twh_2024") * (1.0 + c("world_growth_2025")))
        }),
    ];
    let said = Said {
        id: "electricity-2-percent",
        says: "data centres use 2 % of the world's electricity",
        subject: "all data centres",
        source_is_about: Some("all data centres"),
        claimed: [2.0; 2],
        why: "of the right size, high for 2024: the IEA says 1.5 %. All data centres, of which AI is a part",
    };
    said.check(
        lines,
        &["datacentre_twh_2024", "world_electricity_twh_2024", "datacentre_growth_2025", "world_growth_2025"],
    )
}

fn greenhouse() -> Claim {
    let lines = vec![
        line("data centres, of all greenhouse gases", "Mt / Gt", "%", |c| {
            c("datacentre_mt_co2") / c("world_gt_co2e") / 10.0
        }),
        line("data centres, of energy's CO2", "Mt / Gt", "%", |c| c("datacentre_mt_co2") / c("energy_gt_co2") / 10.0),
        line("claim over all greenhouse gases", "3.7 % / share", "times", |c| {
            3.7 / (c("datacentre_mt_co2") / c("world_gt_co2e") / 10.0)
        }),
        line("claim over energy's CO2", "3.7 % / share", "times", |c| {
            3.7 / (c("datacentre_mt_co2") / c("energy_gt_co2") / 10.0)
        }),
        line("aviation, of energy's CO2", "as published", "%", |c| c("aviation_percent_co2")),
    ];
    let said = Said {
        id: "greenhouse-3.7-percent",
        says: "data centres cause 3.7 % of greenhouse gases, more than aviation",
        subject: "data centres",
        source_is_about: Some("all digital technology, devices and networks included, in 2018"),
        claimed: [3.7; 2],
        why: "3.7 % was an estimate for all of digital technology in 2018, devices and networks included (The Shift Project, Lean ICT); later \
              texts write `data centres`. Data centres are below aviation's 2 to 2.5 % of CO2",
    };
    said.check(lines, &["datacentre_mt_co2", "world_gt_co2e", "energy_gt_co2", "aviation_percent_co2"])
}

fn water() -> Claim {
    let ml = |c: &dyn Fn(&str) -> f64| {
        water_l(c("water_request_kwh"), c("water_wue"), c("water_pue"), c("water_ewif")).total_l() * 1e3
    };
    let lines = vec![
        line("a medium answer of GPT-3, USA mean", "E · (WUE + PUE · EWIF)", "mL", ml),
        line("of it at the data centre", "E · WUE", "mL", |c| c("water_request_kwh") * c("water_wue") * 1e3),
        line("answers for 500 mL", "500 mL / answer", "answers", |c| 500.0 / ml(c)),
    ];
    let said = Said {
        id: "water-500ml",
        says: "a request drinks 500 mL of water",
        subject: "one answer of a model",
        source_is_about: Some("one answer of a model"),
        claimed: [500.0; 2],
        why: "the source says 500 mL for 10 to 50 answers of GPT-3, by place and hour, most of it evaporated at power stations. Makers' \
              own figures go from 0.26 mL (Google, data centre only) to 45 mL (Mistral, life cycle)",
    };
    said.check(lines, &["water_request_kwh", "water_wue", "water_pue", "water_ewif"])
}

fn demand() -> Claim {
    let lines = vec![
        line("forecasts of electricity that there are", "USA to 2028, world to 2030", "times", |c| {
            c("growth_demand_2028")
        }),
        line("efficiency that 50 times would need", "50 / growth of electricity", "times", |c| {
            50.0 / c("growth_demand_2028")
        }),
    ];
    let said = Said {
        id: "demand-50x-2028",
        says: "demand for processing grows 50 times by 2028",
        subject: "processing in data centres",
        source_is_about: None,
        claimed: [50.0; 2],
        why: "no source was found. Processing is not energy: with the highest forecast of electricity, 50 times the processing would mean 15 \
              times the efficiency",
    };
    said.check(lines, &["growth_demand_2028"])
}

fn energy_training() -> Claim {
    let device = |name| Device::named(name).expect("a profile of the binary");
    let (h800, a100) = (device("H800"), device("A100"));
    // In one draw both have the same PUE, server and fraction of nameplate as far as they are known alike, so the share is narrower than either.
    let values = intervals(SEED, |draw| {
        let gwh = |d: &Device, hours: &str| draw.of(hours, constant(hours).band) * facility_kw(draw, d) / 1e6;
        let (v3, gpt4) = (gwh(&h800, "v3_h800_hours"), gwh(&a100, "gpt4_a100_hours"));
        vec![v3 / gpt4, v3, gpt4]
    });
    let formula = "hours · nameplate · server ratio · mean fraction · PUE";
    let lines = vec![
        Line { label: "V3 over GPT-4", formula: "GWh / GWh", value: values[0], unit: "of it" },
        Line { label: "V3, final run", formula, value: values[1], unit: "GWh" },
        Line { label: "GPT-4, leaked hours", formula, value: values[2], unit: "GWh" },
    ];
    let said = Said {
        // A fraction: anything from a hundredth to a half.
        id: "fraction-training",
        says: "DeepSeek was trained with a fraction of the energy",
        subject: "the final training runs of two models",
        source_is_about: Some("the final training runs of two models"),
        claimed: [0.01, 0.5],
        why: "about a thirteenth, by the same method for both; final run against final run, and the hours of GPT-4 are a leak. Neither was \
              measured",
    };
    let mut claim = said.check(lines, &["v3_h800_hours", "gpt4_a100_hours", "pue_datacentre"]);
    claim.inputs.extend([of_profile(&h800), of_profile(&a100)].into_iter().flatten());
    claim
}

fn energy_answer() -> Claim {
    let wh = |label, tokens: &'static str, joules: &'static str| {
        line(label, "tokens · J per token / 3600", "Wh", move |c| c(tokens) * c(joules) / 3600.0)
    };
    let reasoning = wh("a reasoning answer of R1", "r1_answer_tokens", "r1_answer_j_per_token");
    let chat = wh("a chat answer of V3.1", "chat_answer_tokens", "chat_answer_j_per_token");
    let ratio = reasoning.value.p50 / chat.value.p50;
    let lines = vec![
        Line { label: "reasoning over chat", formula: "Wh / Wh", value: exactly(ratio), unit: "times" },
        reasoning,
        chat,
    ];
    let said = Said {
        id: "fraction-answer",
        says: "an answer of R1 takes a fraction of the energy of other models",
        subject: "answers of two models",
        source_is_about: Some("answers of two models"),
        claimed: [0.01, 0.5],
        why: "energy per token is what saving there is; a reasoning answer has ten times the tokens. Measured, devices only, 8 B200, fp8, \
              batch 64: R1 on GPQA beside its own sibling in chat",
    };
    said.check(lines, &["r1_answer_tokens", "r1_answer_j_per_token", "chat_answer_tokens", "chat_answer_j_per_token"])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(id: &str) -> Claim {
        claims().into_iter().find(|c| c.id == id).unwrap()
    }

    #[track_caller]
    fn first(id: &str) -> f64 {
        claim(id).lines[0].value.p50
    }

    #[test]
    fn every_claim_has_numbers_inputs_and_a_reason() {
        for c in claims() {
            assert!(!c.lines.is_empty() && !c.inputs.is_empty() && c.why.len() > 40, "{c:?}");
            assert!(c.lines.iter().all(|l| l.value.p5 <= l.value.p50 && l.value.p50 <= l.value.p95), "{c:?}");
        }
    }

    #[test]
    fn the_bill_of_v3_holds_to_the_dollar() {
        assert_eq!((first("training-5.6m"), claim("training-5.6m").lines[1].value.p50), (5.576e6, 294_000.0));
        assert_eq!(claim("training-5.6m").verdict, Verdict::Holds);
    }

    #[test]
    fn the_bill_of_gpt4_holds_and_the_comparison_does_not() {
        assert!((first("gpt4-80-100m") / 79.8e6 - 1.0).abs() < 0.02);
        assert_eq!(claim("gpt4-80-100m").verdict, Verdict::Holds);
        assert_eq!(claim("cheaper-18x").verdict, Verdict::WrongSubject);
        assert!((10.0..16.0).contains(&first("cheaper-18x")));
    }

    #[test]
    fn two_percent_holds_as_a_round_number() {
        assert_eq!(claim("electricity-2-percent").verdict, Verdict::Holds);
        assert!((first("electricity-2-percent") - 1.5).abs() < 0.02);
        assert!((claim("electricity-2-percent").lines[1].value.p50 - 1.7).abs() < 0.03);
    }

    #[test]
    fn the_share_of_greenhouse_gases_is_of_another_subject() {
        let c = claim("greenhouse-3.7-percent");
        assert_eq!(c.verdict, Verdict::WrongSubject);
        // 0.3 % of all greenhouse gases, 0.5 % of energy's CO2; 7 to 11 times.
        for (line, want, within) in [(0, 0.333, 0.01), (1, 0.481, 0.01), (2, 11.1, 0.3), (3, 7.7, 0.2)] {
            assert!((c.lines[line].value.p50 - want).abs() < within, "{:?}", c.lines[line]);
        }
    }

    #[test]
    fn half_a_litre_is_thirty_answers() {
        let c = claim("water-500ml");
        assert!((first("water-500ml") - 16.904_56).abs() < 1e-9);
        assert!(matches!(c.verdict, Verdict::OffBy(f) if (f - 29.577_818).abs() < 1e-5), "{:?}", c.verdict);
    }

    #[test]
    fn fifty_times_has_no_source() {
        let c = claim("demand-50x-2028");
        assert_eq!(c.verdict, Verdict::NoSource);
        assert!((c.lines[1].value.p5 - 50.0 / 3.3).abs() < 0.3);
    }

    #[test]
    fn a_fraction_holds_of_training_and_not_of_answers() {
        assert_eq!(claim("fraction-training").verdict, Verdict::Holds);
        let [share, v3, gpt4] = [0, 1, 2].map(|i| claim("fraction-training").lines[i].value);
        // Central values: 2.788e6 h · 0.7 kW · 1.8 · 0.75 · 1.25, and 5.7e7 h · 0.4 kW · 2.031 · 0.75 · 1.25. Medians of products of
        // skewed bands lie a few percent beside them.
        for (value, central) in [(v3, 3.2933), (gpt4, 43.41), (share, 3.2933 / 43.41)] {
            assert!((value.p50 / central - 1.0).abs() < 0.06 && value.contains(central), "{value:?} {central}");
        }
        assert!(share.p95 / share.p5 < v3.p95 / v3.p5, "what both share cancels");
        let c = claim("fraction-answer");
        assert!((c.lines[1].value.p50 - 12.39).abs() < 0.01 && (c.lines[2].value.p50 - 0.686).abs() < 0.001);
        assert!(matches!(c.verdict, Verdict::OffBy(f) if f > 15.0), "{:?}", c.verdict);
    }

    #[test]
    fn a_verdict_asks_for_a_source_then_for_its_subject_then_for_the_number() {
        let about = |source, claimed, value| Verdict::of("cats", source, [claimed; 2], exactly(value));
        assert_eq!(about(None, 1.0, 1.0), Verdict::NoSource);
        assert_eq!(about(Some("dogs"), 1.0, 1.0), Verdict::WrongSubject);
        assert_eq!(about(Some("cats"), 1.4, 1.0), Verdict::Holds);
        assert_eq!(about(Some("cats"), 1.0, 1.4), Verdict::Holds);
        assert_eq!(about(Some("cats"), 30.0, 1.0), Verdict::OffBy(30.0));
        assert_eq!(about(Some("cats"), 1.0, 30.0), Verdict::OffBy(30.0));
        // A band that reaches the claim holds it.
        let wide = Interval { p5: 1.0, p50: 10.0, p95: 40.0 };
        assert_eq!(Verdict::of("cats", Some("cats"), [50.0; 2], wide), Verdict::Holds);
    }

    #[test]
    fn data_centres_emit_less_than_aviation() {
        let c = claim("greenhouse-3.7-percent");
        assert!(c.lines[1].value.p95 < c.lines[4].value.p5, "{:?}", c.lines);
    }

    #[test]
    fn old_inputs_are_warned_of() {
        let at = |text: &str| warnings(Month::try_from(text.to_string()).unwrap()).len();
        assert!(at("2024-01") == 0 && at("2030-01") > 3);
    }
}
