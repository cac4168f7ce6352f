//! Where energy is used: grid, building, water; and what it comes to.

use std::{collections::BTreeMap, sync::LazyLock};

use serde::Serialize;

use super::{Band, ConvertError, Draw, Interval, constant, constants::Constant, intervals};

/// kWh that the building draws for `it_kwh` of its machines.
pub fn facility_kwh(it_kwh: f64, pue: f64) -> f64 {
    pue * it_kwh
}

/// Grams of CO2 equivalent of facility energy.
pub fn carbon_g(facility_kwh: f64, g_per_kwh: f64) -> f64 {
    facility_kwh * g_per_kwh
}

/// Water by where it is used, in litres.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct WaterUse {
    /// Evaporated at the data centre.
    pub onsite_l: f64,
    /// Evaporated where the electricity was made.
    pub offsite_l: f64,
}

impl WaterUse {
    /// Both.
    pub fn total_l(self) -> f64 {
        self.onsite_l + self.offsite_l
    }
}

/// Water of IT energy: `E · WUE` on site and `E · PUE · EWIF` off site. WUE is per kWh of **IT** energy, so PUE stands with EWIF only.
///
/// `wue` in L per kWh of IT energy, `ewif` in L per kWh generated. Source: Li et al. 2023, arXiv:2304.03271.
///
/// ```
/// # use jevons_energy::convert::water_l;
/// let water = water_l(0.004, 0.55, 1.17, 3.142);
/// assert!((water.total_l() - 0.016904560).abs() < 1e-9);
/// ```
pub fn water_l(it_kwh: f64, wue: f64, pue: f64, ewif: f64) -> WaterUse {
    WaterUse { onsite_l: it_kwh * wue, offsite_l: it_kwh * pue * ewif }
}

/// The building.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Facility {
    /// A home or an office: no building around the machine, PUE 1, no water on site.
    Home,
    /// The data centres of the largest operators.
    Hyperscale,
    /// A rented or own data centre of good make.
    Datacentre,
    /// The mean of the industry.
    Industry,
}

impl Facility {
    fn constants(self) -> [&'static Constant; 3] {
        let [pue, wue, price] = match self {
            Self::Home => ["pue_home", "wue_home", "electricity_home_usd_per_kwh"],
            Self::Hyperscale => ["pue_hyperscale", "wue_hyperscale", "electricity_usd_per_kwh"],
            Self::Datacentre => ["pue_datacentre", "wue_datacentre", "electricity_usd_per_kwh"],
            Self::Industry => ["pue_industry", "wue_datacentre", "electricity_usd_per_kwh"],
        };
        [constant(pue), constant(wue), constant(price)]
    }
}

/// A country's yearly means.
struct Region {
    g_per_kwh: f64,
    ewif_l_per_kwh: f64,
}

static REGIONS: LazyLock<BTreeMap<String, Region>> = LazyLock::new(|| {
    #[derive(serde::Deserialize)]
    struct Row {
        name: String,
        gwp: f64,
        wue: f64,
    }
    let mut reader = csv::Reader::from_reader(include_str!("../../data/electricity_mixes.csv").as_bytes());
    let rows = reader.deserialize::<Row>().map(|row| row.expect("the table in the binary is well-formed"));
    rows.map(|row| (row.name, Region { g_per_kwh: row.gwp * 1000.0, ewif_l_per_kwh: row.wue })).collect()
});

/// The regions of the table, by three letters.
pub fn regions() -> impl Iterator<Item = &'static str> {
    REGIONS.keys().map(String::as_str)
}

/// Everything that turns IT energy into carbon, water and an electricity bill.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Site {
    /// ISO 3166 alpha-3, `WOR` for the world.
    pub region: String,
    /// Location-based grid intensity, gCO2e per kWh.
    pub grid_g_per_kwh: Band,
    /// Market-based intensity, where contracts say another; reported beside the location-based one, never instead.
    pub market_g_per_kwh: Option<Band>,
    /// Facility energy over IT energy, at least 1.
    pub pue: Band,
    /// Litres on site per kWh of IT energy.
    pub wue_l_per_kwh: Band,
    /// Litres off site per kWh generated.
    pub ewif_l_per_kwh: Band,
    /// USD per kWh of the facility.
    pub electricity_usd_per_kwh: Band,
}

impl Site {
    /// A country's grid around a kind of building.
    ///
    /// # Errors
    /// [`ConvertError::Region`] for a country that is not in [`regions`].
    pub fn new(region: &str, facility: Facility) -> Result<Self, ConvertError> {
        let region = region.to_ascii_uppercase();
        let row = REGIONS.get(&region).ok_or_else(|| {
            let alike = regions().filter(|r| r.chars().next() == region.chars().next());
            let near: Vec<&str> = alike.chain(["USA", "CHN", "FRA"]).take(6).collect();
            ConvertError::Region { found: region.chars().take(20).collect(), near: near.join(", ") }
        })?;
        let [pue, wue, price] = facility.constants().map(|c| c.band);
        Ok(Self {
            grid_g_per_kwh: constant("grid_spread").band.times(row.g_per_kwh),
            market_g_per_kwh: None,
            pue,
            wue_l_per_kwh: wue,
            ewif_l_per_kwh: constant("ewif_spread").band.times(row.ewif_l_per_kwh),
            electricity_usd_per_kwh: price,
            region,
        })
    }

    /// Checks what was put in from outside.
    ///
    /// # Errors
    /// [`ConvertError::Number`] for a PUE below 1 or above 5, or an intensity that [`super::CarbonIntensity`] refuses.
    pub fn check(&self) -> Result<(), ConvertError> {
        if !(self.pue.low() >= 1.0 && self.pue.high() <= 5.0) {
            return Err(ConvertError::Number {
                what: "PUE".into(),
                found: format!("{} to {}", self.pue.low(), self.pue.high()),
                expected: "1 to 5: facility energy over IT energy".into(),
            });
        }
        for band in [Some(self.grid_g_per_kwh), self.market_g_per_kwh].into_iter().flatten() {
            super::CarbonIntensity::from_g_per_kwh(band.high())?;
        }
        Ok(())
    }

    /// The constants behind a kind of building and the spread of the grid.
    pub fn constants(facility: Facility) -> Vec<&'static Constant> {
        let spread = [constant("grid_spread"), constant("ewif_spread")];
        facility.constants().into_iter().chain(spread).collect()
    }

    /// What `it_kwh` come to in one draw.
    pub fn footprint_in(&self, draw: Draw, it_kwh: f64, embodied_g: f64) -> Footprint<f64> {
        let pue = draw.above_one("pue", self.pue);
        let facility_kwh = facility_kwh(it_kwh, pue);
        let operational = carbon_g(facility_kwh, draw.of("grid", self.grid_g_per_kwh));
        let market = self.market_g_per_kwh.map(|band| carbon_g(facility_kwh, draw.of("market grid", band)));
        let water = water_l(it_kwh, draw.of("wue", self.wue_l_per_kwh), pue, draw.of("ewif", self.ewif_l_per_kwh));
        Footprint {
            it_kwh,
            facility_kwh,
            carbon_operational_g: operational,
            carbon_market_g: market,
            carbon_embodied_g: embodied_g,
            carbon_g: operational + embodied_g,
            water_onsite_l: water.onsite_l,
            water_offsite_l: water.offsite_l,
            water_l: water.total_l(),
            electricity_usd: facility_kwh * draw.of("electricity price", self.electricity_usd_per_kwh),
        }
    }

    /// What measured or estimated IT energy comes to, with intervals. `embodied_g`: the share of making the machine, 0 if it is not to be counted.
    pub fn footprint(&self, it_kwh: Band, embodied_g: Band, seed: u64) -> Footprint<Interval> {
        let columns = intervals(seed, |draw| {
            let f = self.footprint_in(draw, draw.of("it energy", it_kwh), draw.of("embodied", embodied_g));
            let market = f.carbon_market_g.unwrap_or(0.0);
            vec![
                f.it_kwh,
                f.facility_kwh,
                f.carbon_operational_g,
                market,
                f.carbon_embodied_g,
                f.carbon_g,
                f.water_onsite_l,
                f.water_offsite_l,
                f.water_l,
                f.electricity_usd,
            ]
        });
        let [it, facility, operational, market, embodied, carbon, onsite, offsite, water, usd] = columns[..] else {
            unreachable!("as many intervals as results")
        };
        Footprint {
            it_kwh: it,
            facility_kwh: facility,
            carbon_operational_g: operational,
            carbon_market_g: self.market_g_per_kwh.map(|_| market),
            carbon_embodied_g: embodied,
            carbon_g: carbon,
            water_onsite_l: onsite,
            water_offsite_l: offsite,
            water_l: water,
            electricity_usd: usd,
        }
    }
}

/// What energy comes to, as numbers or as intervals.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Footprint<T> {
    /// Of the machines.
    pub it_kwh: T,
    /// Of the building: `PUE · it_kwh`.
    pub facility_kwh: T,
    /// Location-based.
    pub carbon_operational_g: T,
    /// Market-based, beside it.
    pub carbon_market_g: Option<T>,
    /// Share of making the machines.
    pub carbon_embodied_g: T,
    /// Location-based and embodied.
    pub carbon_g: T,
    /// At the data centre.
    pub water_onsite_l: T,
    /// At the power stations.
    pub water_offsite_l: T,
    /// Both.
    pub water_l: T,
    /// Electricity bill; not part of a rented hour's price.
    pub electricity_usd: T,
}

/// Carbon of making a machine, spread over the hours it works.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Embodied {
    /// kgCO2e of the machine without its devices.
    pub server_kg: Band,
    /// kgCO2e of one device.
    pub device_kg: Band,
    /// Devices per machine.
    pub devices_per_server: f64,
    /// Years that it lives.
    pub life_years: Band,
    /// Share of them that it works.
    pub utilisation: Band,
}

impl Embodied {
    /// Grams per device-hour in one draw: `(M_server / n + M_device) / (life · utilisation)`.
    pub fn g_per_device_h_in(&self, draw: Draw) -> f64 {
        let kg = draw.of("embodied server", self.server_kg) / self.devices_per_server
            + draw.of("embodied device", self.device_kg);
        let hours = draw.of("life", self.life_years) * 8760.0 * draw.share("utilisation of life", self.utilisation);
        kg * 1000.0 / hours
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All central values, so that results can be compared with published products.
    fn central(site: &Site) -> Site {
        let exact = |band: Band| Band::exact(band.mid());
        Site {
            grid_g_per_kwh: exact(site.grid_g_per_kwh),
            pue: exact(site.pue),
            wue_l_per_kwh: exact(site.wue_l_per_kwh),
            ewif_l_per_kwh: exact(site.ewif_l_per_kwh),
            electricity_usd_per_kwh: exact(site.electricity_usd_per_kwh),
            ..site.clone()
        }
    }

    /// L per kWh generated, and no circle.
    #[allow(clippy::approx_constant)]
    const EWIF_USA: f64 = 3.142;

    #[test]
    fn the_water_of_a_request_is_the_published_one() {
        let water = water_l(0.004, 0.55, 1.17, EWIF_USA);
        // 0.004 · 0.55 = 0.0022; 0.004 · 1.17 · 3.142 = 0.01470456.
        assert!((water.onsite_l - 0.0022).abs() < 1e-12);
        assert!((water.offsite_l - 0.014_704_56).abs() < 1e-12);
        assert!((0.5 / water.total_l() - 29.577_818_056_548_292).abs() < 1e-9);
    }

    #[test]
    fn the_water_of_gpt3_is_the_published_one() {
        let water = water_l(1.287e6, 0.55, 1.17, EWIF_USA);
        // Relative, as the numbers are in the millions of litres: 707,850; 4,731,192.18; 5,439,042.18.
        for (got, want) in
            [(water.onsite_l, 707_850.0), (water.offsite_l, 4_731_192.18), (water.total_l(), 5_439_042.18)]
        {
            assert!((got / want - 1.0).abs() < 1e-12, "{got} {want}");
        }
    }

    #[test]
    fn pue_stands_on_the_offsite_term_of_water_only() {
        // D3: EcoLogits prints 16.31 and 26.79 mL where its own formula gives 13.59 and 17.18. D4: CodeCarbon multiplies WUE by PUE
        // and leaves the power stations out.
        for (pue, want_ml) in [(1.2, 13.594_78), (1.56, 17.175_844)] {
            let water = water_l(3.3158e-3, 0.5, pue, 3.0);
            assert!((water.total_l() * 1000.0 - want_ml).abs() < 1e-12, "{}", water.total_l() * 1000.0);
            assert_eq!(water.onsite_l, 3.3158e-3 * 0.5, "WUE is per kWh of IT energy");
            assert!(water.offsite_l > water.onsite_l);
        }
    }

    #[test]
    fn pue_enters_every_term_once() {
        let site = central(&Site::new("CHN", Facility::Datacentre).unwrap());
        let one = site.footprint_in(Draw::new(0, 0), 10.0, 7.0);
        let without = Site { pue: Band::exact(1.0), ..site.clone() }.footprint_in(Draw::new(0, 0), 10.0, 7.0);
        for (with, without) in [
            (one.facility_kwh, without.facility_kwh),
            (one.carbon_operational_g, without.carbon_operational_g),
            (one.water_offsite_l, without.water_offsite_l),
            (one.electricity_usd, without.electricity_usd),
        ] {
            assert!((with / without - 1.25).abs() < 1e-12);
        }
        assert_eq!((one.water_onsite_l, one.carbon_embodied_g), (without.water_onsite_l, 7.0));
        assert!((one.carbon_operational_g - 10.0 * 1.25 * 559.55).abs() < 1e-9);
    }

    #[test]
    fn market_contracts_are_reported_beside_the_grid() {
        let site = Site { market_g_per_kwh: Some(Band::exact(0.0)), ..Site::new("USA", Facility::Hyperscale).unwrap() };
        let f = site.footprint(Band::exact(1000.0), Band::exact(0.0), 0);
        assert_eq!(f.carbon_market_g.unwrap().p50, 0.0);
        assert!(f.carbon_g.p50 > 300_000.0 && f.carbon_g.p5 < f.carbon_g.p50);
    }

    #[test]
    fn embodied_carbon_of_an_hour_is_that_of_the_reference() {
        let at = |years: f64, utilisation: f64| {
            Embodied {
                server_kg: Band::exact(5700.0),
                device_kg: Band::exact(164.0),
                devices_per_server: 8.0,
                life_years: Band::exact(years),
                utilisation: Band::exact(utilisation),
            }
            .g_per_device_h_in(Draw::new(0, 0))
        };
        for (got, want) in [(at(4.0, 1.0), 25.0), (at(4.0, 0.6), 41.7), (at(3.0, 1.0), 33.4)] {
            assert!((got - want).abs() < 0.06, "{got} {want}");
        }
    }

    #[test]
    fn an_unknown_region_is_refused_with_some_that_there_are() {
        let error = Site::new("DDR", Facility::Home).unwrap_err().to_string();
        assert!(error.contains("`DDR`") && error.contains("DEU"), "{error}");
        assert_eq!(regions().count(), 50);
        let site = Site { pue: Band::exact(0.9), ..Site::new("fra", Facility::Home).unwrap() };
        assert!(site.check().unwrap_err().to_string().contains("PUE"));
    }
}
