//! Where energy is used: grid, building, prices. Flags of every command that turns joules into carbon, water and money.

use std::env;

use anyhow::{Context, bail};
use clap::ValueEnum;
use jevons_energy::convert::{Band, Facility, Site};

/// Country of the grid, unless told otherwise.
const WORLD: &str = "WOR";

#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Place")]
pub struct SiteArgs {
    /// Country of the grid, three letters [default: JEVONS_REGION, else WOR: the world]
    #[arg(long, value_name = "ISO3")]
    region: Option<String>,
    /// Kind of building: sets PUE, water and the electricity price [default: JEVONS_FACILITY, else datacentre for devices, home for a CPU]
    #[arg(long, value_enum)]
    facility: Option<FacilityArg>,
    /// Grid intensity in g CO2e per kWh, instead of the country's
    #[arg(long, value_name = "G")]
    grid: Option<Band>,
    /// Intensity by contracts in g CO2e per kWh; reported beside the grid's
    #[arg(long, value_name = "G")]
    market: Option<Band>,
    /// Facility energy over IT energy
    #[arg(long, value_name = "RATIO")]
    pue: Option<Band>,
    /// Litres on site per kWh of IT energy
    #[arg(long, value_name = "L")]
    wue: Option<Band>,
    /// Litres off site per kWh generated
    #[arg(long, value_name = "L")]
    ewif: Option<Band>,
    /// USD per kWh
    #[arg(long, value_name = "USD")]
    electricity_price: Option<Band>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FacilityArg {
    Home,
    Hyperscale,
    Datacentre,
    Industry,
}

impl From<FacilityArg> for Facility {
    fn from(arg: FacilityArg) -> Self {
        match arg {
            FacilityArg::Home => Self::Home,
            FacilityArg::Hyperscale => Self::Hyperscale,
            FacilityArg::Datacentre => Self::Datacentre,
            FacilityArg::Industry => Self::Industry,
        }
    }
}

/// A variable of the environment, if it says anything.
fn variable(name: &str) -> anyhow::Result<Option<String>> {
    match env::var(name) {
        Ok(text) => Ok(Some(text).filter(|t| !t.is_empty())),
        Err(env::VarError::NotPresent) => Ok(None),
        Err(env::VarError::NotUnicode(_)) => bail!("{name}: expected text in UTF-8"),
    }
}

impl SiteArgs {
    /// Whether any flag says anything.
    pub fn is_given(&self) -> bool {
        let bands = [self.grid, self.market, self.pue, self.wue, self.ewif, self.electricity_price];
        self.region.is_some() || self.facility.is_some() || bands.iter().any(Option::is_some)
    }

    /// The site, around a kind of building unless flag or environment name another.
    pub fn site(&self, building: Facility) -> anyhow::Result<(Site, Facility)> {
        let facility = match self.facility {
            Some(arg) => arg.into(),
            None => match variable("JEVONS_FACILITY")? {
                Some(name) => match FacilityArg::from_str(&name, true) {
                    Ok(arg) => arg.into(),
                    Err(_) => {
                        bail!("JEVONS_FACILITY: expected home, hyperscale, datacentre or industry, found {name:?}")
                    }
                },
                None => building,
            },
        };
        let site = match &self.region {
            Some(region) => Site::new(region, facility).context("--region")?,
            None => {
                let region = variable("JEVONS_REGION")?;
                Site::new(region.as_deref().unwrap_or(WORLD), facility).context("JEVONS_REGION")?
            }
        };
        let site = Site {
            grid_g_per_kwh: self.grid.unwrap_or(site.grid_g_per_kwh),
            market_g_per_kwh: self.market,
            pue: self.pue.unwrap_or(site.pue),
            wue_l_per_kwh: self.wue.unwrap_or(site.wue_l_per_kwh),
            ewif_l_per_kwh: self.ewif.unwrap_or(site.ewif_l_per_kwh),
            electricity_usd_per_kwh: self.electricity_price.unwrap_or(site.electricity_usd_per_kwh),
            ..site
        };
        site.check()?;
        Ok((site, facility))
    }
}
