//! What the ledger's joules come to in carbon, water and money, and the report of it as one HTML file.

mod html;

use serde::Serialize;

use crate::{
    convert::{
        Band, CarbonIntensity, ConvertError, Embodied, Evidence, Facility, Footprint, IntensityHours, Interval,
        J_PER_KWH, Month, SEED, Site, constant, intervals, stale,
    },
    grade::Energy,
    ledger::{Kind, Numbered, Summary},
    rebound::Rates,
};

pub use html::html;

/// Where the joules were spent, and what they are converted by.
#[derive(Clone, Debug, Serialize)]
pub struct Place {
    /// Grid, building, prices.
    pub site: Site,
    /// What kind of building `site` was made for.
    pub facility: Facility,
    /// The file of hourly intensity that the grid of `site` is from, if it is from one.
    pub intensity_file: Option<String>,
    /// USD per hour of a rented machine, electricity inside; none for one's own, whose electricity is paid.
    pub rent_usd_per_h: Option<Band>,
}

/// What joules come to, as p5, p50 and p95.
#[derive(Clone, Debug, Serialize)]
pub struct Converted {
    /// Energy, carbon, water, electricity.
    #[serde(flatten)]
    pub footprint: Footprint<Interval>,
    /// Rent or electricity, one of them.
    pub usd: Interval,
    /// Which.
    pub usd_is: &'static str,
}

/// A band of joules; a zero is exact.
fn kwh(energy: Energy) -> Result<Band, ConvertError> {
    let [low, mid, high] = energy.band().map(|j| j / J_PER_KWH);
    if mid <= 0.0 { Ok(Band::exact(0.0)) } else { Band::new(low, mid, high) }
}

/// Grams of making a computer without accelerators, per hour that it works.
fn embodied_g_per_h() -> Band {
    let computer = Embodied {
        server_kg: constant("embodied_computer_kg").band,
        device_kg: Band::exact(0.0),
        devices_per_server: 1.0,
        life_years: constant("life_years").band,
        utilisation: constant("utilisation_of_life").band,
    };
    let per_h = intervals(SEED, |draw| vec![computer.g_per_device_h_in(draw)])[0];
    Band::new(per_h.p5, per_h.p50, per_h.p95).expect("a quotient of positive numbers is ordered and above 0")
}

impl Place {
    /// What a machine's joules in so many seconds come to.
    ///
    /// # Errors
    /// [`ConvertError::Number`] for joules whose band is no band (beyond what a number can hold).
    pub fn convert(&self, energy: Energy, seconds: f64) -> Result<Converted, ConvertError> {
        let hours = seconds.max(0.0) / 3600.0;
        let footprint = self.site.footprint(kwh(energy)?, embodied_g_per_h().times(hours), SEED);
        let (usd, usd_is) = match self.rent_usd_per_h {
            Some(rent) => {
                let usd = intervals(SEED, |draw| vec![hours * draw.of("rent", rent)])[0];
                (usd, "rent, electricity inside")
            }
            None => (footprint.electricity_usd, "electricity of one's own machine"),
        };
        Ok(Converted { footprint, usd, usd_is })
    }

    /// The same at central values, without intervals and without the making of the machine: for one of many.
    pub fn rates(&self) -> Rates {
        Rates::of(&self.site, self.rent_usd_per_h.map(Band::mid))
    }

    /// Every number that the conversion stands on, and warnings about them.
    fn inputs(&self, today: Month) -> (Vec<Input>, Vec<String>) {
        let mut used = Site::constants(self.facility);
        used.extend(["embodied_computer_kg", "life_years", "utilisation_of_life"].map(constant));
        let of_site =
            |name: &str, band, unit: &str, source: String| Input { name: name.into(), band, unit: unit.into(), source };
        let table = format!(
            "country {} in electricity_mixes.csv, EcoLogits 0.9.3 (2026-03), unless set by a flag",
            self.site.region
        );
        let grid = match &self.intensity_file {
            Some(file) => format!("{file}, hour by hour: Σ E · I / Σ E"),
            None => table.clone(),
        };
        let mut inputs = vec![
            of_site("grid intensity", self.site.grid_g_per_kwh, "g CO2e per kWh", grid),
            of_site("EWIF", self.site.ewif_l_per_kwh, "L per kWh generated", table),
            of_site("PUE", self.site.pue, "facility / IT energy", "kind of building, unless set by a flag".into()),
            of_site(
                "WUE",
                self.site.wue_l_per_kwh,
                "L per kWh of IT energy",
                "kind of building, unless set by a flag".into(),
            ),
        ];
        if let Some(market) = self.site.market_g_per_kwh {
            inputs.push(of_site("intensity by contracts", market, "g CO2e per kWh", "set by a flag".into()));
        }
        let price = self.site.electricity_usd_per_kwh;
        inputs.push(of_site(
            "electricity price",
            price,
            "USD per kWh",
            "kind of building, unless set by a flag".into(),
        ));
        inputs.extend(used.iter().map(|c| Input {
            name: c.name.clone(),
            band: c.band,
            unit: c.unit.clone(),
            source: format!("{} ({})", c.source, c.date),
        }));
        let mut warnings = stale(used.iter().copied(), today);
        let recalled = used.iter().filter(|c| c.evidence == Evidence::Recalled);
        warnings
            .extend(recalled.map(|c| format!("`{}` is from memory and was not checked again: {}", c.name, c.source)));
        (inputs, warnings)
    }
}

/// Mean intensity of a file of hours over the energy of these rows, each spread evenly over its time.
///
/// # Errors
/// [`ConvertError::NoHour`] for a row outside the file.
pub fn intensity_of_use(rows: &[Numbered], hours: &IntensityHours) -> Result<Band, ConvertError> {
    let uses = rows.iter().filter(|r| matches!(r.entry.kind, Kind::Phase(_))).filter_map(|r| {
        let joules = r.entry.energy?.joules;
        let lasted = (r.entry.seconds.clamp(0.0, 1e9) * 1e3) as i64;
        Some((r.entry.at_ms.saturating_sub(lasted), r.entry.at_ms, joules))
    });
    CarbonIntensity::from_g_per_kwh(hours.mean_of_use(uses)?).map(|mean| Band::exact(mean.g_per_kwh()))
}

/// A number that the conversion stands on.
#[derive(Clone, Debug, Serialize)]
pub struct Input {
    /// What.
    pub name: String,
    /// p5, p50, p95.
    pub band: Band,
    /// Of the three.
    pub unit: String,
    /// Who says so.
    pub source: String,
}

/// A part of the ledger with what it comes to.
#[derive(Clone, Debug, Serialize)]
pub struct LedgerReport {
    /// Which part, for people.
    pub of: String,
    /// Sums.
    #[serde(flatten)]
    pub summary: Summary,
    /// What the total comes to.
    pub footprint: Converted,
    /// By what it was converted.
    pub place: Place,
    /// What that stands on.
    pub inputs: Vec<Input>,
    /// What is inside and what is not.
    pub boundary: Vec<String>,
    /// Stale constants, and what else must be known.
    pub warnings: Vec<String>,
}

impl LedgerReport {
    /// Of these sums.
    ///
    /// # Errors
    /// As [`Place::convert`].
    pub fn of(of: String, summary: Summary, place: Place, today: Month) -> Result<Self, ConvertError> {
        let footprint = place.convert(summary.total.energy, summary.total.seconds)?;
        let (inputs, mut warnings) = place.inputs(today);
        if !summary.total.complete() {
            warnings.insert(0, "parts of the machine had no reading: every number below is a lower bound".into());
        }
        if let Some(caveat) = summary.caveat {
            warnings.insert(0, caveat.into());
        }
        let boundary = vec![
            "energy: the machine's, as far as its sensors or its model reach, other programs' included; see the boundary of each row".into(),
            "carbon of electricity: location-based, PUE once; making: a computer without accelerators, by its hours; no network, no screen".into(),
            "water: on site by WUE on IT energy, off site by EWIF on facility energy; of making the machine: not counted".into(),
            "money: electricity or rent, never both; purchase and work not counted".into(),
        ];
        Ok(Self { of, summary, footprint, place, inputs, boundary, warnings })
    }

    /// The numbers of the total, in order: label, p5–p50–p95, unit, formula.
    pub fn rows(&self) -> Vec<(&'static str, Interval, &'static str, &'static str)> {
        let f = &self.footprint.footprint;
        let mut rows = vec![
            ("IT energy", f.it_kwh, "kWh", "joules / 3.6e6"),
            ("facility energy", f.facility_kwh, "kWh", "PUE · IT energy"),
            ("carbon of the electricity", f.carbon_operational_g, "g CO2e", "facility energy · grid, location-based"),
        ];
        if let Some(market) = f.carbon_market_g {
            rows.push(("the same by contracts", market, "g CO2e", "facility energy · contracts, market-based"));
        }
        rows.extend([
            ("carbon of making the machine", f.carbon_embodied_g, "g CO2e", "hours · embodied / (life · use)"),
            ("carbon, both", f.carbon_g, "g CO2e", "electricity + making"),
            ("water at the data centre", f.water_onsite_l, "L", "IT energy · WUE"),
            ("water at power stations", f.water_offsite_l, "L", "PUE · IT energy · EWIF"),
            ("water, both", f.water_l, "L", "on site + off site"),
            ("money", self.footprint.usd, "USD", self.footprint.usd_is),
        ]);
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        grade::Grade,
        ledger::{Entry, Phase, Work},
    };

    fn place(rent: Option<f64>) -> Place {
        let site = Site::new("USA", Facility::Datacentre).unwrap();
        Place { site, facility: Facility::Datacentre, intensity_file: None, rent_usd_per_h: rent.map(Band::exact) }
    }

    pub(super) fn summary(joules: f64, models: &[&str]) -> Summary {
        let row = |(i, model): (usize, &&str)| Numbered {
            seq: i as i64 + 1,
            entry: Entry {
                at_ms: 1_795_435_200_000 + i as i64 * 86_400_000,
                run: format!("run{i}"),
                request: Some(0),
                kind: Kind::Phase(if i % 2 == 0 { Phase::Answer } else { Phase::Load }),
                command: "chat".into(),
                tenant: None,
                model: Some((*model).into()),
                work: Work::tokens(100),
                seconds: 3600.0,
                energy: Some(Energy::new(joules, Grade::E)),
                unknown_s: 0.0,
                own_cpu_s: None,
                busy_cpu_s: None,
                boundary: String::new(),
            },
        };
        Summary::of(&models.iter().enumerate().map(row).collect::<Vec<_>>())
    }

    pub(super) fn report(joules: f64, models: &[&str]) -> LedgerReport {
        let today = Month::try_from("2026-11".to_owned()).unwrap();
        LedgerReport::of("all of it".into(), summary(joules, models), place(None), today).unwrap()
    }

    #[test]
    fn a_kilowatt_hour_comes_to_what_its_site_says() {
        let c = place(None).convert(Energy { joules: 3.6e6, uncertainty_j: 0.0, grade: Grade::A }, 3600.0).unwrap();
        let (site, f) = (place(None).site, c.footprint);
        assert_eq!((f.it_kwh.p5, f.it_kwh.p95), (1.0, 1.0), "known exactly");
        for (value, central) in [
            (f.carbon_operational_g, site.pue.mid() * site.grid_g_per_kwh.mid()),
            (f.water_l, site.wue_l_per_kwh.mid() + site.pue.mid() * site.ewif_l_per_kwh.mid()),
            (c.usd, site.pue.mid() * site.electricity_usd_per_kwh.mid()),
            // 300 kg over 4 years of which 0.8 are used.
            (f.carbon_embodied_g, 300e3 / (4.0 * 8760.0 * 0.8)),
        ] {
            assert!(value.contains(central) && (value.p50 / central - 1.0).abs() < 0.15, "{value:?} {central}");
        }
        let rates = place(None).rates().amounts(3.6e6, 3600.0);
        assert!((rates.grams / f.carbon_operational_g.p50 - 1.0).abs() < 0.1);
    }

    #[test]
    fn a_rented_machine_pays_no_electricity() {
        let c = place(Some(2.0)).convert(Energy::new(3.6e6, Grade::E), 1800.0).unwrap();
        assert_eq!((c.usd.p5, c.usd.p95, c.usd_is), (1.0, 1.0, "rent, electricity inside"));
    }

    #[test]
    fn worse_grades_give_wider_bands_and_nothing_gives_nothing() {
        let width = |grade| {
            let f = place(None).convert(Energy::new(1e6, grade), 10.0).unwrap().footprint.carbon_operational_g;
            f.p95 / f.p5
        };
        assert!(width(Grade::B) < width(Grade::D) && width(Grade::D) < width(Grade::E));
        let nothing = place(None).convert(Energy::ZERO, 0.0).unwrap();
        assert_eq!((nothing.footprint.carbon_g.p95, nothing.usd.p95), (0.0, 0.0));
    }

    #[test]
    fn a_report_says_that_nothing_was_measured_and_what_is_from_memory() {
        let r = report(1e6, &["m", "m"]);
        assert!(r.warnings[0].contains("no evidence of its own"), "{:?}", r.warnings);
        assert!(r.warnings.iter().any(|w| w.contains("from memory")));
        assert_eq!(r.rows().len(), 9);
        let json = serde_json::to_value(&r).unwrap();
        assert!(
            json["total"]["energy"]["joules"] == 2e6 && json["footprint"]["carbon_g"]["p50"].as_f64().unwrap() > 0.0
        );
    }
}
