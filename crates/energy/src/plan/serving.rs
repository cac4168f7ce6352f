//! Plans of a service: devices for its peak, joules per token, and what a reply comes to.

use serde::Serialize;

use super::{
    Assumption, Plan, PlanError, Request, band,
    hardware::Device,
    model::ModelShape,
    number,
    report::{Numbers, rows},
    training::{common, money_formula, short},
};
use crate::convert::{Band, Constant, Draw, Usage, constant};

/// A service and its users.
#[derive(Clone, Debug, Serialize)]
pub struct Serving {
    /// Who asks.
    pub users: Band,
    /// Per user.
    pub requests_per_day: Band,
    /// Tokens of a request, its history included.
    pub input_tokens: Band,
    /// Share of them found in a cache.
    pub cached_share: f64,
    /// Tokens of a reply, thinking included.
    pub output_tokens: Band,
    /// Replies that one copy of the model writes at once.
    pub batch: f64,
    /// Requests at the busiest time over the mean.
    pub peak: Band,
}

/// Distinct experts that a batch of `batch` tokens touches, as a share of all: `1 − (1 − k/n)^B`, every expert being as likely.
///
/// ```
/// # use jevons_energy::plan::coverage;
/// assert!((256.0 * coverage(8.0 / 256.0, 64.0) - 222.4).abs() < 0.05);
/// ```
pub fn coverage(share: f64, batch: f64) -> f64 {
    1.0 - libm::pow(1.0 - share.clamp(0.0, 1.0), batch)
}

/// The constants of the decode model.
pub(super) fn constants() -> [&'static Constant; 6] {
    [
        "bandwidth_efficiency",
        "decode_compute_efficiency",
        "decode_overhead_ms_per_layer",
        "decode_overhead_us_per_sequence",
        "decode_power_fraction",
        "idle_power_fraction",
    ]
    .map(constant)
}

/// Devices that hold one copy of the weights and leave two fifths of their memory to caches; a power of two.
pub(super) fn devices_per_copy(model: &ModelShape, device: &Device) -> f64 {
    let least = model.weight_bytes() / (0.6 * device.memory_gb * 1e9);
    let mut n = 1.0;
    while n < least {
        n *= 2.0;
    }
    n
}

/// Seconds of one decode step of `batch` sequences with `context` tokens each on `devices` devices: `max(FLOP / F, bytes / BW) + overhead`.
///
/// Bytes are the dense weights, the experts that the batch touches, and the caches; the overhead has a part per layer and a part per sequence.
pub fn decode_step_s(draw: Draw, model: &ModelShape, device: &Device, devices: f64, batch: f64, context: f64) -> f64 {
    let routed = model.routed.map_or(0.0, |r| r.parameters);
    let touched = model.routed.map_or(0.0, |r| r.parameters * coverage(r.share, batch));
    let weights = (model.total_parameters - routed + touched) * model.stored_bytes;
    let bytes = weights + batch * context * model.cache_numbers * 2.0;
    let bandwidth =
        device.bandwidth_gb_s * 1e9 * draw.share("bandwidth efficiency", constant("bandwidth_efficiency").band);
    let flops = draw.of("peak", device.bf16_tflops)
        * 1e12
        * draw.share("decode compute efficiency", constant("decode_compute_efficiency").band);
    let work = (batch * model.decode_flop_per_token(context) / flops).max(bytes / bandwidth) / devices;
    // A CPU starts no kernels and waits for no other device.
    let overhead = if device.is_cpu() {
        0.0
    } else {
        let layer_s = draw.of("layer overhead", constant("decode_overhead_ms_per_layer").band) * 1e-3;
        let sequence_s = draw.of("sequence overhead", constant("decode_overhead_us_per_sequence").band) * 1e-6;
        layer_s * model.layers + sequence_s * batch
    };
    work + overhead
}

impl Serving {
    fn numbers(&self, request: &Request, draw: Draw) -> Numbers {
        let Request { model, device, site, money, .. } = request;
        let (input, output) =
            (draw.of("input tokens", self.input_tokens), draw.of("output tokens", self.output_tokens));
        let requests = draw.of("users", self.users) * draw.of("requests", self.requests_per_day);
        let per_copy = devices_per_copy(model, device);

        // Time of one copy for one request.
        let step_s = decode_step_s(draw, model, device, per_copy, self.batch, input + output / 2.0);
        let decode_s = output * step_s / self.batch;
        let fresh = input * (1.0 - self.cached_share);
        let flops = draw.of("peak", device.bf16_tflops)
            * 1e12
            * draw.share("decode compute efficiency", constant("decode_compute_efficiency").band);
        let prefill_s = fresh * model.prefill_flop_per_token(input) / (flops * per_copy);
        let busy_s = decode_s + prefill_s;

        let peak_per_s = requests / 86_400.0 * draw.above_one("peak", self.peak);
        let needed = (peak_per_s * busy_s).ceil().max(1.0);
        let devices = request.devices.unwrap_or(needed * per_copy);
        let device_h = devices * 24.0;
        let busy_device_s = requests * busy_s * per_copy;
        let idle_device_s = (device_h * 3600.0 - busy_device_s).max(0.0);

        let w = |input, name: &str| device.it_w(draw, input, constant(name).band);
        let decode_w = w("decode power", "decode_power_fraction");
        let prefill_w = w("prefill power", "prefill_power_fraction").max(decode_w);
        // A declared power is that of the load; idle is a share of it.
        let idle_share = draw.share("idle power", constant("idle_power_fraction").band);
        let idle_w =
            if device.is_cpu() { decode_w * idle_share } else { w("idle power", "idle_power_fraction") }.min(decode_w);
        let active_j = per_copy * (decode_s * decode_w + prefill_s * prefill_w);
        let it_j_day = requests * active_j + idle_device_s * idle_w;
        let embodied_g = device_h * device.embodied().g_per_device_h_in(draw);
        let f = site.footprint_in(draw, it_j_day / 3.6e6, embodied_g);
        let usage = Usage {
            device_h,
            facility_kwh: f.facility_kwh,
            input_tokens: requests * fresh,
            cached_tokens: requests * (input - fresh),
            output_tokens: requests * output,
        };
        let usd = money.usd(draw, &usage);
        let boards = device.nameplate_w * draw.share("decode power", constant("decode_power_fraction").band);
        let tokens = requests * output;
        let covered = model.routed.map(|r| coverage(r.share, self.batch));

        let mut n: Numbers = Vec::new();
        if let Some(covered) = covered {
            n.push(("expert_coverage", "experts that a batch touches", "of all", "1 − (1 − k/n)^B", covered));
        }
        let caches_gb = self.batch * (input + output) * model.cache_numbers * 2.0 / 1e9;
        n.extend([
            ("weights_gb", "memory of the weights", "GB", "parameters · bytes as stored", model.weight_bytes() / 1e9),
            (
                "caches_gb",
                "memory of the caches of a batch",
                "GB",
                "batch · (input + output) · cache per token",
                caches_gb,
            ),
            ("step_ms", "time of a decode step", "ms", "max(FLOP / F, bytes / BW) + overhead", step_s * 1e3),
            ("tokens_per_s_user", "speed that a user sees", "tokens/s", "1 / step", 1.0 / step_s),
            (
                "tokens_per_s_device",
                "output of a device",
                "tokens/s",
                "batch / step / devices of a copy",
                self.batch / step_s / per_copy,
            ),
            ("devices", "devices", "", "peak requests · time of a copy, rounded up", devices),
            (
                "use",
                "share of time that they work",
                "of the day",
                "busy / held",
                (busy_device_s / (device_h * 3600.0)).min(1.0),
            ),
            (
                "boards_j_per_token",
                "devices alone, per output token",
                "J",
                "board power · step · devices / batch",
                boards * step_s * per_copy / self.batch,
            ),
            (
                "marginal_j_per_token",
                "IT energy per output token, active",
                "J",
                "(decode + prefill) / output tokens",
                active_j / output,
            ),
            (
                "full_j_per_token",
                "facility energy per output token, standby included",
                "J",
                "PUE · (active + standby) / output tokens",
                f.facility_kwh * 3.6e6 / tokens,
            ),
            (
                "wh_per_request",
                "facility energy per request",
                "Wh",
                "facility energy / requests",
                f.facility_kwh * 1e3 / requests,
            ),
            (
                "g_per_request",
                "carbon per request, making included",
                "g CO2e",
                "carbon / requests",
                f.carbon_g / requests,
            ),
            (
                "ml_onsite_per_request",
                "water per request at the data centre",
                "mL",
                "IT energy · WUE / requests",
                f.water_onsite_l * 1e3 / requests,
            ),
            (
                "ml_per_request",
                "water per request, both",
                "mL",
                "IT energy · (WUE + PUE · EWIF) / requests",
                f.water_l * 1e3 / requests,
            ),
            ("usd_per_request", "money per request", "USD", money_formula(money), usd / requests),
            ("usd_per_m_output", "money per 10⁶ output tokens", "USD", money_formula(money), usd / tokens * 1e6),
            ("it_kwh_day", "IT energy per day", "kWh", "requests · active + standby", f.it_kwh),
            ("facility_kwh_day", "facility energy per day", "kWh", "PUE · IT energy", f.facility_kwh),
            ("mean_mw", "mean power of the facility", "MW", "facility energy / 24 h", f.facility_kwh / 24.0 / 1e3),
            (
                "capacity_mw",
                "capacity to provide",
                "MW",
                "devices · server nameplate · PUE",
                devices * device.capacity_w() * draw.above_one("pue", site.pue) / 1e6,
            ),
            ("carbon_t_year", "carbon per year", "t CO2e", "365 · (electricity + making)", f.carbon_g * 365.0 / 1e6),
            ("water_m3_year", "water per year, both", "m3", "365 · (on site + off site)", f.water_l * 365.0 / 1e3),
            ("usd_year", "money per year", "USD", money_formula(money), usd * 365.0),
        ]);
        n
    }
}

pub(super) fn plan(request: &Request, serving: &Serving) -> Result<Plan, PlanError> {
    band("the number of users", serving.users, 1e-3..=1e12, "above 0")?;
    band("requests per user and day", serving.requests_per_day, 1e-6..=1e6, "above 0, at most 10⁶")?;
    band("input tokens", serving.input_tokens, 0.0..=1e8, "0 to 10⁸")?;
    band("output tokens", serving.output_tokens, 1.0..=1e8, "1 to 10⁸")?;
    band("peak over mean", serving.peak, 1.0..=1e4, "at least 1")?;
    number("the cached share", serving.cached_share, 0.0..=1.0, "0 to 1")?;
    number("the batch", serving.batch, 1.0..=1e6, "1 to 10⁶ replies at once")?;
    let Request { model, device, .. } = request;
    let rows = rows(request.seed, |draw| serving.numbers(request, draw));
    let mut assumptions: Vec<Assumption> = constants().into_iter().map(Assumption::from).collect();
    assumptions.push(constant("prefill_power_fraction").into());
    let mut warnings = common(request, &mut assumptions);

    let per_copy = devices_per_copy(model, device);
    let context = serving.input_tokens.mid() + serving.output_tokens.mid();
    let caches_gb = serving.batch * context * model.cache_numbers * 2.0 / 1e9;
    let weights_gb = model.weight_bytes() / 1e9;
    let memory_gb = per_copy * device.memory_gb;
    if weights_gb + caches_gb > 0.95 * memory_gb {
        warnings.push(format!(
            "a batch of {} does not fit: weights {weights_gb:.0} GB and caches {caches_gb:.0} GB on {per_copy} {} with {memory_gb:.0} GB; take a smaller batch",
            serving.batch, device.name
        ));
    }
    if request.devices.is_some_and(|n| n < per_copy) {
        warnings.push(format!("one copy of the model needs {per_copy} {}", device.name));
    }
    let title = format!(
        "{} parameters for {} users with {} requests a day each, {} tokens in and {} out, batch {}, on {}, in {}",
        short(model.total_parameters),
        short(serving.users.mid()),
        short(serving.requests_per_day.mid()),
        short(serving.input_tokens.mid()),
        short(serving.output_tokens.mid()),
        short(serving.batch),
        device.name,
        request.site.region
    );
    let boundary = vec![
        format!("one copy on {per_copy:.0} {}: weights {weights_gb:.0} GB, caches {caches_gb:.0} GB", device.name),
        "not in it: networks, the user's device, training, storage".into(),
    ];
    Ok(Plan { title, rows, assumptions, boundary, warnings })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        convert::{Facility, Interval, SEED, Site, intervals},
        plan::{Work, model::tests::golden, plan},
    };

    #[test]
    fn distinct_experts_are_those_of_the_reference() {
        for (batch, want) in [(1.0, 8.0), (8.0, 57.4), (32.0, 163.3), (64.0, 222.4), (128.0, 251.6)] {
            assert!((256.0 * coverage(8.0 / 256.0, batch) - want).abs() < 0.06, "{batch}");
        }
    }

    /// J per output token of the devices alone.
    fn boards_j(model: &ModelShape, device: &str, devices: f64, batch: f64, output: f64) -> Interval {
        let device = Device::named(device).unwrap();
        intervals(SEED, |draw| {
            let step = decode_step_s(draw, model, &device, devices, batch, 200.0 + output / 2.0);
            let w = device.nameplate_w * draw.share("decode power", constant("decode_power_fraction").band);
            vec![w * step * devices / batch]
        })[0]
    }

    #[test]
    fn measured_joules_per_token_lie_inside_the_bands() {
        let r1 = golden("DeepSeek-R1");
        let qwen = ModelShape::from_size(30.5e9, 3.3e9).unwrap();
        // ML.ENERGY, devices only: model, devices, batch, tokens of an answer, J per token.
        let measured = [
            (&r1, "B200", 8.0, 8.0, 11_861.0, 9.87),
            (&r1, "B200", 8.0, 32.0, 11_099.0, 5.33),
            (&r1, "B200", 8.0, 64.0, 11_559.0, 3.86),
            (&r1, "B200", 8.0, 128.0, 11_287.0, 2.38),
            (&r1, "B200", 8.0, 64.0, 8_800.0, 3.52),
            (&r1, "B200", 8.0, 256.0, 8_800.0, 1.34),
            (&r1, "B200", 8.0, 8.0, 846.0, 8.57),
            (&r1, "B200", 8.0, 64.0, 846.0, 2.92),
            (&r1, "B200", 8.0, 256.0, 846.0, 1.31),
            (&r1, "B200", 8.0, 3072.0, 846.0, 0.61),
            (&qwen, "H100", 1.0, 16.0, 8_243.0, 0.59),
        ];
        let mut outside = Vec::new();
        for (model, device, devices, batch, output, want) in measured {
            let got = boards_j(model, device, devices, batch, output);
            if !got.contains(want) {
                outside.push((batch, output, want, got));
            }
        }
        assert!(outside.len() <= 1, "{outside:#?}");
    }

    #[test]
    fn a_reasoning_answer_has_a_band_with_the_measured_one_in_it() {
        // D6: a regression at a fixed batch says 38.1 Wh, without a band, where 12.4 Wh were measured (8 B200, fp8, batch 64).
        let j = boards_j(&golden("DeepSeek-R1"), "B200", 8.0, 64.0, 11_559.0);
        let wh = |j: f64| j * 11_559.0 / 3600.0;
        assert!(wh(j.p5) < 12.4 && 12.4 < wh(j.p95), "{j:?}");
    }

    fn request() -> Request {
        let device = Device::named("H200").unwrap();
        Request {
            model: golden("DeepSeek-R1"),
            work: Work::Serve(Serving {
                users: Band::exact(1e5),
                requests_per_day: Band::exact(10.0),
                input_tokens: Band::exact(1000.0),
                cached_share: 0.5,
                output_tokens: Band::exact(800.0),
                batch: 64.0,
                peak: Band::new(1.5, 2.0, 4.0).unwrap(),
            }),
            money: device.default_money(Band::exact(0.08)),
            device,
            devices: None,
            device_hours: None,
            utilisation: None,
            without_run: None,
            site: Site::new("USA", Facility::Datacentre).unwrap(),
            facility: Facility::Datacentre,
            seed: 0,
        }
    }

    #[test]
    fn standby_is_never_dropped() {
        let busy = plan(&request()).unwrap();
        let idle = plan(&Request { devices: Some(4096.0), ..request() }).unwrap();
        let at = |plan: &Plan, key: &str| plan.row(key).unwrap().value.p50;
        assert!((at(&busy, "marginal_j_per_token") / at(&idle, "marginal_j_per_token") - 1.0).abs() < 1e-12);
        assert!(at(&idle, "full_j_per_token") > 2.0 * at(&busy, "full_j_per_token"));
        assert!(at(&busy, "full_j_per_token") > at(&busy, "marginal_j_per_token"));
    }

    #[test]
    fn larger_batches_take_fewer_joules_per_token() {
        let joules = |batch: f64| {
            let Work::Serve(serving) = request().work else { unreachable!() };
            let work = Work::Serve(Serving { batch, ..serving });
            plan(&Request { work, ..request() }).unwrap().row("boards_j_per_token").unwrap().value.p50
        };
        let all = [1.0, 8.0, 64.0, 512.0].map(joules);
        assert!(all.is_sorted_by(|a, b| a > b), "{all:?}");
    }

    #[test]
    fn a_service_that_cannot_be_is_refused_and_one_that_does_not_fit_is_warned_of() {
        let with = |f: &dyn Fn(&mut Serving)| {
            let Work::Serve(mut serving) = request().work else { unreachable!() };
            f(&mut serving);
            plan(&Request { work: Work::Serve(serving), ..request() })
        };
        assert!(with(&|s| s.batch = 0.0).is_err());
        assert!(with(&|s| s.cached_share = 1.5).is_err());
        assert!(with(&|s| s.users = Band::exact(0.0)).is_err());
        assert!(with(&|s| s.output_tokens = Band::exact(0.0)).is_err());
        assert!(with(&|s| s.batch = 1e6).unwrap().warnings.iter().any(|w| w.contains("does not fit")));
    }
}
