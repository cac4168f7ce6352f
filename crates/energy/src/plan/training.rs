//! Plans of training: pre-training, reinforcement learning, distillation.

use serde::Serialize;

use super::{
    Assumption, Plan, PlanError, Request, Work, band,
    model::ModelShape,
    number,
    report::{Numbers, rows},
    runs::utilisation,
    serving::{self, decode_step_s},
};
use crate::convert::{Band, Draw, Evidence, Money, Month, Site, Usage, constant, stale};

/// Reinforcement learning from sampled groups, as GRPO does.
///
/// A step of sampling takes as long as its longest output, token by token, and then every output is scored twice (old and reference
/// policy, forward only) and learnt from (forward and backward). At tens of thousands of tokens it is the first part that counts.
#[derive(Clone, Debug, Serialize)]
pub struct Rl {
    /// Updates of the weights.
    pub steps: Band,
    /// Outputs that one update learns from.
    pub outputs_per_step: f64,
    /// Outputs that are sampled at once; a multiple of `outputs_per_step` makes several updates of one sampling.
    pub outputs_at_once: f64,
    /// Mean length of an output over the run, in tokens.
    pub mean_tokens: Band,
    /// Length of the longest output of a sampling, in tokens: at most the limit that is set.
    pub longest_tokens: Band,
    /// Length of a prompt, in tokens.
    pub prompt_tokens: f64,
}

/// A teacher writes texts, some are kept, a student learns them.
#[derive(Clone, Debug, Serialize)]
pub struct Distillation {
    /// Tokens of the texts that are kept.
    pub tokens: Band,
    /// Times that the student reads each.
    pub epochs: f64,
    /// Share of what the teacher writes that is kept.
    pub kept: Band,
    /// The teacher; `None` if the texts are there already.
    pub teacher: Option<ModelShape>,
    /// Answers that one copy of the teacher writes at once.
    pub teacher_batch: f64,
    /// Length of a text.
    pub length: f64,
}

/// DeepSeek-R1 on top of DeepSeek-V3-Base: R1-Zero, the data that was sampled, two rounds of fine-tuning, and the last reinforcement
/// learning.
#[derive(Clone, Debug, Serialize)]
pub struct R1 {
    /// All reinforcement learning together.
    pub rl: Rl,
    /// Data and fine-tuning.
    pub sft: Distillation,
}

impl R1 {
    /// The published counts; bands where they are not published. Source: DeepSeek-R1, arXiv:2501.12948v2 and Nature 645, 633 (2025).
    pub fn published(base: &ModelShape) -> Self {
        let band = |low, mid, high| Band::new(low, mid, high).expect("ordered");
        Self {
            rl: Rl {
                // 10,400 of R1-Zero and 1,700 of the last round; the round between is not counted in public.
                steps: band(12_100.0, 14_000.0, 20_000.0),
                outputs_per_step: 512.0,
                outputs_at_once: 8192.0,
                // From about a thousand to more than ten thousand over the run, read off the published curve.
                mean_tokens: band(4_000.0, 8_000.0, 12_000.0),
                // The limit was 32,768, for the last fifth of R1-Zero 65,536; early outputs do not reach it.
                longest_tokens: band(15_000.0, 28_000.0, 40_000.0),
                prompt_tokens: 300.0,
            },
            sft: Distillation {
                tokens: Band::exact(804_745.0 * 5_355.0),
                epochs: 2.0,
                kept: band(0.15, 0.4, 0.8),
                teacher: Some(base.clone()),
                teacher_batch: 256.0,
                length: 5_355.0,
            },
        }
    }
}

/// Device-hours by what they do.
#[derive(Clone, Copy, Debug, Default)]
struct Hours {
    /// At the power of training.
    training: f64,
    /// At the power of decoding.
    sampling: f64,
    flop: f64,
    /// Tokens that were trained on or sampled, the larger of the two.
    tokens: f64,
}

impl Hours {
    fn plus(self, other: Self) -> Self {
        Self {
            training: self.training + other.training,
            sampling: self.sampling + other.sampling,
            flop: self.flop + other.flop,
            tokens: self.tokens + other.tokens,
        }
    }
}

struct Planner<'a> {
    request: &'a Request,
    utilisation: Band,
}

impl Planner<'_> {
    fn flop_per_h(&self, draw: Draw) -> f64 {
        let peak = draw.of("peak", self.request.device.bf16_tflops) * 1e12;
        peak * draw.share("utilisation", self.utilisation) * 3600.0
    }

    fn train(&self, draw: Draw, tokens: f64, sequence: f64) -> Hours {
        let flop = self.request.model.train_flop_per_token(sequence) * tokens;
        Hours { training: flop / self.flop_per_h(draw), flop, tokens, ..Hours::default() }
    }

    fn rl(&self, draw: Draw, rl: &Rl) -> Hours {
        let Request { model, device, .. } = self.request;
        let devices = self.request.devices.unwrap_or(1.0);
        let samplings = draw.of("steps", rl.steps) * rl.outputs_per_step / rl.outputs_at_once;
        let mean = draw.of("mean tokens", rl.mean_tokens);
        let longest = draw.of("longest tokens", rl.longest_tokens).max(mean);

        // Copies of the model write their share of the outputs; fewer and fewer are still at it, so the batch is averaged over the time.
        let per_copy = serving::devices_per_copy(model, device).min(devices);
        let batch = (rl.outputs_at_once / (devices / per_copy) * mean / longest).max(1.0);
        let step_s = decode_step_s(draw, model, device, per_copy, batch, rl.prompt_tokens + longest / 2.0);
        let sampling_s = longest * step_s * draw.of("other time", constant("rl_other_time").band);

        let tokens = rl.outputs_at_once * (rl.prompt_tokens + mean);
        let train_flop = model.train_flop_per_token(rl.prompt_tokens + mean) * tokens;
        // A forward pass is a third of forward and backward: two scores add two thirds, sampling itself a third.
        let training = train_flop * 5.0 / 3.0 / self.flop_per_h(draw);
        Hours {
            training: samplings * training,
            sampling: samplings * sampling_s * devices / 3600.0,
            flop: samplings * train_flop * 2.0,
            tokens: samplings * tokens,
        }
    }

    fn distil(&self, draw: Draw, d: &Distillation) -> Hours {
        let kept = draw.of("text tokens", d.tokens);
        let student = self.train(draw, kept * d.epochs, d.length);
        let Some(teacher) = &d.teacher else { return student };
        let written = kept / draw.share("kept share", d.kept);
        let device = &self.request.device;
        let devices = serving::devices_per_copy(teacher, device);
        let step_s = decode_step_s(draw, teacher, device, devices, d.teacher_batch, d.length / 2.0);
        let sampling = written / d.teacher_batch * step_s * devices / 3600.0;
        let flop = teacher.decode_flop_per_token(d.length / 2.0) * written;
        student.plus(Hours { sampling, flop, ..Hours::default() })
    }

    fn hours(&self, draw: Draw) -> Hours {
        match &self.request.work {
            Work::Train { tokens, sequence } => {
                let mut hours = self.train(draw, draw.of("tokens", *tokens), *sequence);
                if let Some(known) = self.request.device_hours {
                    hours.training = draw.of("known hours", known);
                }
                hours
            }
            Work::Rl(rl) => self.rl(draw, rl),
            Work::Distill(d) => self.distil(draw, d),
            Work::R1(r1) => self.rl(draw, &r1.rl).plus(self.distil(draw, &r1.sft)),
            Work::Serve(_) => unreachable!("a service has its own plan"),
        }
    }

    fn numbers(&self, draw: Draw) -> Numbers {
        let Request { device, site, money, .. } = self.request;
        let hours = self.hours(draw);
        let device_h = hours.training + hours.sampling;
        let sampling_w = device.it_w(draw, "decode power", constant("decode_power_fraction").band);
        let it_kwh = (hours.training * device.train_w(draw) + hours.sampling * sampling_w) / 1e3;
        let embodied_g = device_h * device.embodied().g_per_device_h_in(draw);
        let f = site.footprint_in(draw, it_kwh, embodied_g);
        let usage = Usage { device_h, facility_kwh: f.facility_kwh, ..Usage::default() };
        let peak = device.bf16_tflops.mid() * 1e12 * 3600.0;

        let mut n: Numbers = vec![
            ("flop", "FLOP of the model", "FLOP", "Σ tokens · FLOP per token", hours.flop),
            (
                "utilisation",
                "whole-run utilisation",
                "of the bf16 peak",
                "FLOP / (hours · peak · 3600)",
                hours.flop / (device_h * peak),
            ),
            ("device_hours", "device-hours", "h", "FLOP / (peak · utilisation · 3600), plus sampling", device_h),
        ];
        if hours.sampling > 0.0 {
            n.push((
                "sampling_hours",
                "of them, sampling texts",
                "h",
                "longest output · decode step · devices",
                hours.sampling,
            ));
        }
        let (state_gb, least) = memory(self.request);
        n.push((
            "state_gb",
            "memory of weights, gradients and optimizer",
            "GB",
            "16 B · parameters, activations not counted",
            state_gb,
        ));
        n.push((
            "least_devices",
            "devices that hold it, at least",
            "",
            "memory / (0.8 · memory of a device), rounded up",
            least,
        ));
        let devices = match self.request.devices {
            Some(devices) => {
                n.push(("days", "time", "days", "device-hours / devices / 24", device_h / devices / 24.0));
                devices
            }
            None => {
                let devices = device_h / (24.0 * 30.0);
                n.push((
                    "devices_for_30_days",
                    "devices to be done in 30 days",
                    "",
                    "device-hours / (24 · 30)",
                    devices,
                ));
                devices
            }
        };
        let mean_mw = f.facility_kwh / device_h * devices / 1e3;
        n.push(("mean_mw", "mean power of the facility", "MW", "facility energy / time", mean_mw));
        let capacity = devices * device.capacity_w() * draw.above_one("pue", site.pue) / 1e6;
        n.push(("capacity_mw", "capacity to provide", "MW", "devices · server nameplate · PUE", capacity));
        n.extend([
            (
                "boards_mwh",
                "devices alone, at nameplate",
                "MWh",
                "device-hours · nameplate (the boundary of many model cards)",
                device_h * device.nameplate_w / 1e6,
            ),
            ("it_mwh", "IT energy", "MWh", "device-hours · mean power with host", it_kwh / 1e3),
            ("facility_mwh", "facility energy", "MWh", "PUE · IT energy", f.facility_kwh / 1e3),
            (
                "j_per_token",
                "facility energy per token",
                "J",
                "facility energy / tokens",
                f.facility_kwh * 3.6e6 / hours.tokens,
            ),
            (
                "carbon_operational_t",
                "carbon of the electricity",
                "t CO2e",
                "facility energy · grid, location-based",
                f.carbon_operational_g / 1e6,
            ),
        ]);
        if let Some(market) = f.carbon_market_g {
            n.push((
                "carbon_market_t",
                "the same by contracts",
                "t CO2e",
                "facility energy · contracts, market-based",
                market / 1e6,
            ));
        }
        n.extend([
            (
                "carbon_embodied_t",
                "carbon of making the devices",
                "t CO2e",
                "device-hours · embodied / (life · use)",
                embodied_g / 1e6,
            ),
            ("carbon_t", "carbon, both", "t CO2e", "electricity + making", f.carbon_g / 1e6),
            ("water_onsite_m3", "water at the data centre", "m3", "IT energy · WUE", f.water_onsite_l / 1e3),
            ("water_offsite_m3", "water at power stations", "m3", "PUE · IT energy · EWIF", f.water_offsite_l / 1e3),
            ("water_m3", "water, both", "m3", "on site + off site", f.water_l / 1e3),
            ("usd", "money", "USD", money_formula(money), money.usd(draw, &usage)),
            (
                "electricity_usd",
                if matches!(money, Money::Owned { .. }) {
                    "of it, electricity"
                } else {
                    "electricity, inside the rent"
                },
                "USD",
                "facility energy · price",
                f.electricity_usd,
            ),
        ]);
        n
    }
}

/// GB of the state of training, and how many devices hold it if a fifth of their memory is left to activations.
fn memory(request: &Request) -> (f64, f64) {
    let state_gb = request.model.training_bytes() / 1e9;
    (state_gb, (state_gb / (0.8 * request.device.memory_gb)).ceil().max(1.0))
}

pub(super) fn money_formula(money: &Money) -> &'static str {
    match money {
        Money::Rental { .. } => "device-hours · rent (electricity inside)",
        Money::Owned { .. } => "device-hours · (capital per hour + running costs) + electricity",
        Money::Api { .. } => "tokens · price (everything inside)",
    }
}

fn check(request: &Request) -> Result<(), PlanError> {
    let tokens = |t| band("the number of tokens", t, 1.0..=1e17, "1 to 10¹⁷ (--tokens 15e12)").map(drop);
    let length = |l| number("the length", l, 1.0..=1e8, "1 to 10⁸ tokens").map(drop);
    let rl = |rl: &Rl| {
        band("the number of steps", rl.steps, 1.0..=1e9, "1 to 10⁹")?;
        number("the outputs per step", rl.outputs_per_step, 1.0..=1e8, "1 to 10⁸")?;
        number(
            "the outputs sampled at once",
            rl.outputs_at_once,
            rl.outputs_per_step..=1e9,
            "at least the outputs per step",
        )?;
        band("the mean length of outputs", rl.mean_tokens, 1.0..=1e8, "1 to 10⁸ tokens")?;
        band("the longest output", rl.longest_tokens, 1.0..=1e8, "1 to 10⁸ tokens")?;
        length(rl.prompt_tokens.max(1.0))?;
        request.devices.map(drop).ok_or(PlanError::Missing {
            what: "the number of devices",
            why: "sampling waits for the longest output, so its cost goes with the devices that are held meanwhile; give --devices",
        })
    };
    let distil = |d: &Distillation| {
        tokens(d.tokens)?;
        length(d.length)?;
        number("the number of epochs", d.epochs, 1e-3..=1e6, "0.001 to 10⁶")?;
        band("the share that is kept", d.kept, 1e-6..=1.0, "above 0, at most 1")?;
        number("the teacher's batch", d.teacher_batch, 1.0..=1e7, "1 to 10⁷").map(drop)
    };
    match &request.work {
        Work::Train { tokens: t, sequence } => tokens(*t).and_then(|()| length(*sequence)),
        Work::Rl(r) => rl(r),
        Work::Distill(d) => distil(d),
        Work::R1(r) => rl(&r.rl).and_then(|()| distil(&r.sft)),
        Work::Serve(_) => Ok(()),
    }?;
    if let Some(u) = request.utilisation {
        band("utilisation", u, 1e-6..=1.0, "above 0, at most 1 (--utilisation 0.4)")?;
    }
    if let Some(hours) = request.device_hours {
        band("device-hours", hours, 1e-6..=1e15, "above 0")?;
        if !matches!(request.work, Work::Train { .. }) {
            return Err(PlanError::Missing {
                what: "an estimate of the stage",
                why: "known hours (--device-hours) can replace the estimate of pre-training or fine-tuning only",
            });
        }
    }
    Ok(())
}

pub(super) fn plan(request: &Request) -> Result<Plan, PlanError> {
    check(request)?;
    let Request { device, .. } = request;
    let mut assumptions = Vec::new();
    let utilisation = match request.utilisation {
        Some(given) => {
            assumptions.push(Assumption::new("utilisation", given, "of the bf16 peak", "given"));
            given
        }
        None if device.is_cpu() => {
            let c = constant("measured_cpu_share");
            assumptions.push(c.into());
            c.band
        }
        None => {
            let u = utilisation(&device.generation, request.without_run.as_deref());
            let source = format!(
                "{} published runs, {} of them on this generation ({}); 90 % prediction interval",
                u.runs, u.runs_of_generation, device.generation
            );
            assumptions.push(Assumption::new("utilisation", u.band, "of the bf16 peak, whole run", source));
            u.band
        }
    };
    let planner = Planner { request, utilisation };
    let rows = rows(request.seed, |draw| planner.numbers(draw));

    if matches!(request.work, Work::Rl(_) | Work::Distill(_) | Work::R1(_)) {
        assumptions.extend(serving::constants().into_iter().map(Assumption::from));
        assumptions.push(constant("rl_other_time").into());
    }
    let mut warnings = common(request, &mut assumptions);
    let (state_gb, least) = memory(request);
    let memory = format!(
        "state of training: {state_gb:.0} GB (16 bytes per parameter, activations not counted), at least {least:.0} {} of {} GB",
        device.name, device.memory_gb
    );
    if request.devices.is_some_and(|n| n < least) {
        warnings.push(format!("too little memory: {memory}"));
    }
    let mut boundary = vec![
        memory,
        "not in it: research and ablations before the run, failed runs, staff, data, storage, network".into(),
    ];
    if let (Work::Train { .. }, Some(_)) = (&request.work, request.device_hours) {
        boundary.push("device-hours are those given; utilisation follows from them".into());
    }
    Ok(Plan { title: title(request), rows, assumptions, boundary, warnings })
}

/// Assumptions and warnings that every plan has.
pub(super) fn common(request: &Request, assumptions: &mut Vec<Assumption>) -> Vec<String> {
    let Request { device, site, money, .. } = request;
    let of_device = |name: &str, band, unit: &str| {
        Assumption::new(name, band, unit, format!("{} profile: {} ({})", device.name, device.source, device.date))
    };
    match device.measured_w {
        Some(w) => assumptions.push(of_device("mean power with host", w, "W per device")),
        None => assumptions.extend([
            of_device("nameplate of a device", Band::exact(device.nameplate_w), "W"),
            of_device("server over devices", device.server_ratio, "1"),
            of_device("mean over nameplate", device.mean_fraction, "1"),
        ]),
    }
    if let Money::Rental { usd_per_device_h } = money {
        assumptions.push(of_device("rent", *usd_per_device_h, "USD per device-hour"));
    }
    let region = format!("as given, else {} in electricity_mixes.csv, EcoLogits 0.9.3 (2026-03)", site.region);
    assumptions.extend([
        Assumption::new("grid", site.grid_g_per_kwh, "g CO2e per kWh", region.clone()),
        Assumption::new("EWIF", site.ewif_l_per_kwh, "L per kWh generated", region),
        Assumption::new("PUE", site.pue, "1", "as given, else of the facility"),
        Assumption::new("WUE", site.wue_l_per_kwh, "L per kWh of IT energy", "as given, else of the facility"),
        Assumption::new(
            "electricity price",
            site.electricity_usd_per_kwh,
            "USD per kWh",
            "as given, else of the facility",
        ),
    ]);
    let mut used = Site::constants(request.facility);
    used.extend(["embodied_server_kg", "life_years", "utilisation_of_life"].map(constant));
    let today = Month::now();
    let mut warnings = stale(used.iter().copied(), today);
    warnings.extend(request.model.guesses.iter().map(|guess| format!("guessed from the size: {guess}")));
    let recalled = used.iter().filter(|c| c.evidence == Evidence::Recalled);
    warnings.extend(recalled.map(|c| format!("`{}` is from memory and was not checked again: {}", c.name, c.source)));
    warnings
}

/// `671 B`: at most four digits and a letter.
pub(super) fn short(x: f64) -> String {
    let (scaled, letter) = match x {
        1e12.. => (x / 1e12, " T"),
        1e9.. => (x / 1e9, " B"),
        1e6.. => (x / 1e6, " M"),
        1e4.. => (x / 1e3, " K"),
        _ => (x, ""),
    };
    let text = format!("{scaled:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_string() + letter
}

fn title(request: &Request) -> String {
    let Request { model, device, site, .. } = request;
    let work = match &request.work {
        Work::Train { tokens, .. } => format!("training on {} tokens", short(tokens.mid())),
        Work::Rl(rl) => format!("{:.0} steps of reinforcement learning", rl.steps.mid()),
        Work::Distill(d) => format!("distillation into it of {} tokens", short(d.tokens.mid())),
        Work::R1(_) => "the R1 recipe on top of it".into(),
        Work::Serve(_) => "a service".into(),
    };
    let devices = request.devices.map_or(String::new(), |n| format!("{n:.0} "));
    format!(
        "{} parameters, {} of them per token: {work}, on {devices}{}, in {}",
        short(model.total_parameters),
        short(model.active_parameters),
        device.name,
        site.region
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        convert::{Facility, Site},
        plan::{Device, model::tests::golden, plan, runs},
    };

    fn request(model: ModelShape, device: &str, work: Work) -> Request {
        let device = Device::named(device).unwrap();
        Request {
            model,
            work,
            money: device.default_money(Band::exact(0.08)),
            device,
            devices: None,
            device_hours: None,
            utilisation: None,
            without_run: None,
            site: Site::new("WOR", Facility::Datacentre).unwrap(),
            facility: Facility::Datacentre,
            seed: 0,
        }
    }

    fn train(tokens: f64) -> Work {
        Work::Train { tokens: Band::exact(tokens), sequence: 4096.0 }
    }

    #[track_caller]
    fn within(plan: &Plan, key: &str, published: f64) {
        let value = plan.row(key).unwrap().value;
        assert!(value.contains(published), "{key}: {published:e} published, {value:?}");
    }

    #[test]
    fn v3_lies_inside_the_band_made_without_it() {
        let request = Request {
            devices: Some(2048.0),
            without_run: Some("DeepSeek-V3".into()),
            ..request(golden("DeepSeek-V3"), "H800", train(14.8e12))
        };
        let plan = plan(&request).unwrap();
        within(&plan, "device_hours", 2.664e6);
        within(&plan, "device_hours", 2.788e6);
        within(&plan, "usd", 5.576e6);
        within(&plan, "facility_mwh", 3290.0);
        within(&plan, "days", 2.664e6 / 2048.0 / 24.0);
        // 14.8 · 10¹² tokens of 250.4 GFLOP.
        let flop = plan.row("flop").unwrap().value;
        assert!((flop.p50 / 3.706e24 - 1.0).abs() < 1e-3 && flop.p5 == flop.p95, "{flop:?}");
    }

    #[test]
    fn hours_that_are_known_give_the_published_bill_exactly() {
        let request = Request {
            device_hours: Some(Band::exact(2.788e6)),
            money: Money::Rental { usd_per_device_h: Band::exact(2.0) },
            ..request(golden("DeepSeek-V3"), "H800", train(14.8e12))
        };
        let plan = plan(&request).unwrap();
        let usd = plan.row("usd").unwrap().value;
        assert_eq!((usd.p5, usd.p50, usd.p95), (5.576e6, 5.576e6, 5.576e6));
        // The Epoch method's central energy: 0.7 kW · 1.8 · 0.75 · 1.25 per hour.
        let mwh = plan.row("facility_mwh").unwrap().value;
        assert!((mwh.p50 / 3293.3 - 1.0).abs() < 0.06, "{mwh:?}");
        let utilisation = plan.row("utilisation").unwrap().value;
        assert!((utilisation.p50 / (3.706e24 / (2.788e6 * 3600.0 * 989.4e12)) - 1.0).abs() < 1e-3, "{utilisation:?}");
    }

    #[test]
    fn r1_lies_inside_its_band() {
        let model = golden("DeepSeek-R1");
        let work = Work::R1(R1::published(&model));
        let plan = plan(&Request { devices: Some(512.0), ..request(model, "H800", work) }).unwrap();
        within(&plan, "device_hours", 147_000.0);
        within(&plan, "usd", 294_000.0);
        let hours = plan.row("device_hours").unwrap().value;
        assert!(hours.p95 / hours.p5 < 12.0, "a band this wide says nothing: {hours:?}");
    }

    #[test]
    fn gpt3_lies_inside_the_band_made_without_it() {
        let model = ModelShape::from_size(175e9, 175e9).unwrap();
        let request = Request { without_run: Some("GPT-3 175B".into()), ..request(model, "V100", train(300e9)) };
        let plan = plan(&request).unwrap();
        within(&plan, "facility_mwh", 1287.0);
        within(&plan, "device_hours", 3.552e6);
        // And its own inputs give its own number: 10,000 V100 for 14.8 days at 330 W and PUE 1.10 are 1,289 MWh, published rounded as 1,287.
        assert!((10_000.0 * 14.8 * 24.0 * 0.330 * 1.10 / 1e3 - 1287.0f64).abs() < 3.0);
    }

    #[test]
    fn published_energies_lie_inside_the_row_of_their_boundary() {
        for (name, size, device, tokens, key, mwh) in [
            ("BLOOM 176B", 176.2e9, "A100", 366e9, "boards_mwh", 433.196),
            ("OPT-175B", 175e9, "A100", 300e9, "boards_mwh", 324.0),
            ("Llama-2 70B", 68.98e9, "A100", 2e12, "boards_mwh", 688.128),
            // With the host's idle power, 256.6 MWh more.
            ("BLOOM 176B", 176.2e9, "A100", 366e9, "it_mwh", 689.8),
            ("PaLM 540B", 540e9, "TPUv4", 780e9, "facility_mwh", 3436.0),
        ] {
            let model = ModelShape::from_size(size, size).unwrap();
            let request = Request { without_run: Some(name.into()), ..request(model, device, train(tokens)) };
            within(&plan(&request).unwrap(), key, mwh);
        }
    }

    #[test]
    fn reinforcement_learning_needs_its_devices_and_known_hours_fit_training_only() {
        let model = golden("DeepSeek-R1");
        let work = Work::R1(R1::published(&model));
        assert!(plan(&request(model.clone(), "H800", work.clone())).unwrap_err().to_string().contains("--devices"));
        let known =
            Request { devices: Some(512.0), device_hours: Some(Band::exact(1.0)), ..request(model, "H800", work) };
        assert!(plan(&known).is_err());
    }

    #[test]
    fn distillation_counts_the_teacher() {
        let (student, teacher) = (golden("Qwen2.5-7B-Instruct"), golden("DeepSeek-R1"));
        let d = |teacher| {
            Work::Distill(Distillation {
                tokens: Band::exact(4.3e9),
                epochs: 2.0,
                kept: Band::exact(0.5),
                teacher,
                teacher_batch: 128.0,
                length: 5_355.0,
            })
        };
        let hours =
            |work| plan(&request(student.clone(), "H100", work)).unwrap().row("device_hours").unwrap().value.p50;
        let (with, without) = (hours(d(Some(teacher))), hours(d(None)));
        assert!(with > 3.0 * without, "{with} {without}");
    }

    #[test]
    fn a_plan_is_the_same_every_time_and_says_what_is_not_in_it() {
        let request = request(golden("DeepSeek-V3"), "MI300X", train(1e12));
        let (a, b) = (plan(&request).unwrap(), plan(&request).unwrap());
        assert_eq!(serde_json::to_string(&a).unwrap(), serde_json::to_string(&b).unwrap());
        assert!(a.boundary.iter().any(|line| line.contains("not in it")));
        assert!(a.assumptions.iter().any(|x| x.name == "utilisation" && x.source.contains("0 of them")));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let base = request(golden("DeepSeek-V3"), "H800", train(1e12));
        for bad in [
            Request { devices: Some(0.0), ..base.clone() },
            Request { devices: Some(f64::NAN), ..base.clone() },
            Request { utilisation: Some(Band::exact(1.5)), ..base.clone() },
            Request { work: train(0.0), ..base.clone() },
            Request { work: Work::Train { tokens: Band::exact(1e9), sequence: 0.0 }, ..base.clone() },
        ] {
            assert!(plan(&bad).is_err());
        }
        assert_eq!(runs().iter().filter(|r| r.energy_mwh.is_some()).count(), 4);
    }
}
