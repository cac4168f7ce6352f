//! Device profiles.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::{PlanError, band};
use crate::convert::{Band, Draw, Embodied, Money, Month, constant};

/// A device that computes: a GPU, a TPU, or a machine with a CPU.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// `H100`.
    pub name: String,
    /// Devices of one generation share what is known of their utilisation; `cpu` for a declared one.
    pub generation: String,
    /// Peak of dense bf16 products, 10¹² FLOP/s. Of a CPU: as measured, with its band.
    pub bf16_tflops: Band,
    /// Peak in FP8, where there is one.
    pub fp8_tflops: Option<f64>,
    /// 10⁹ bytes.
    pub memory_gb: f64,
    /// 10⁹ bytes per second.
    pub bandwidth_gb_s: f64,
    /// Of the device alone.
    pub nameplate_w: f64,
    /// Nameplate of the server over that of its devices.
    pub server_ratio: Band,
    /// Mean power over a training run, as a share of the server's nameplate.
    pub mean_fraction: Band,
    /// Mean power with the host's share where it is known; replaces the product of the three above.
    pub measured_w: Option<Band>,
    /// USD per hour; `None` for what nobody rents.
    pub rent_usd_per_h: Option<Band>,
    /// USD with the share of server and network.
    pub capital_usd: Band,
    /// kgCO2e of making it.
    pub embodied_kg: Band,
    /// Where the numbers come from.
    pub source: String,
    /// Of the source.
    pub date: Month,
}

#[derive(Deserialize)]
struct File {
    device: Vec<Device>,
}

static DEVICES: LazyLock<Vec<Device>> = LazyLock::new(|| {
    let file: File =
        toml::from_str(include_str!("../../data/hardware.toml")).expect("the profiles in the binary are well-formed");
    file.device
});

/// All profiles of the binary.
pub fn devices() -> &'static [Device] {
    &DEVICES
}

impl Device {
    /// The profile of that name, in either case.
    ///
    /// # Errors
    /// [`PlanError::Hardware`] with the names that there are.
    pub fn named(name: &str) -> Result<Self, PlanError> {
        let found = devices().iter().find(|d| d.name.eq_ignore_ascii_case(name));
        found.cloned().ok_or_else(|| PlanError::Hardware {
            found: name.chars().take(40).collect(),
            known: devices().iter().map(|d| d.name.as_str()).collect::<Vec<_>>().join(", "),
        })
    }

    /// A machine whose speed was measured by `jevons bench` (or declared) and whose power is declared.
    ///
    /// `gflops`: speed of large products, 10⁹ FLOP/s. `watts`: mean power of the whole machine under load.
    ///
    /// # Errors
    /// [`PlanError::Number`] for numbers that no machine has.
    pub fn cpu(gflops: Band, watts: Band, memory_gb: f64, bandwidth_gb_s: f64) -> Result<Self, PlanError> {
        band("the speed of the CPU", gflops, 0.01..=1e7, "0.01 to 10⁷ GFLOP/s (jevons bench measures it)")?;
        band("the power of the machine", watts, 0.1..=1e5, "0.1 to 10⁵ W, the whole machine under load")?;
        super::number("the memory", memory_gb, 0.1..=1e6, "0.1 to 10⁶ GB")?;
        super::number("the memory bandwidth", bandwidth_gb_s, 0.1..=1e6, "0.1 to 10⁶ GB/s")?;
        Ok(Self {
            name: "CPU".into(),
            generation: "cpu".into(),
            bf16_tflops: gflops.times(1e-3),
            fp8_tflops: None,
            memory_gb,
            bandwidth_gb_s,
            nameplate_w: watts.mid(),
            server_ratio: Band::exact(1.0),
            mean_fraction: Band::exact(1.0),
            measured_w: Some(watts),
            rent_usd_per_h: None,
            capital_usd: Band::new(500.0, 1500.0, 5000.0)?,
            embodied_kg: Band::exact(0.0),
            source: "declared by the user".into(),
            date: Month::now(),
        })
    }

    /// Whether it is a machine of its own.
    pub fn is_cpu(&self) -> bool {
        self.generation == "cpu"
    }

    /// Mean W per device while training, with its share of the host.
    pub fn train_w(&self, draw: Draw) -> f64 {
        match self.measured_w {
            Some(band) => draw.of("measured power", band),
            None => {
                self.nameplate_w
                    * draw.of("server ratio", self.server_ratio)
                    * draw.of("mean fraction", self.mean_fraction)
            }
        }
    }

    /// W per device with its share of the host at a fraction of the nameplate. A CPU's declared power is that of the load, whatever it is.
    pub fn it_w(&self, draw: Draw, input: &str, fraction: Band) -> f64 {
        match self.measured_w {
            Some(band) if self.is_cpu() => draw.of("measured power", band),
            _ => self.nameplate_w * draw.of("server ratio", self.server_ratio) * draw.share(input, fraction),
        }
    }

    /// W per device that the supply must be able to give, host included.
    pub fn capacity_w(&self) -> f64 {
        self.measured_w.map_or(0.0, Band::high).max(self.nameplate_w * self.server_ratio.mid())
    }

    /// How one pays for it unless told otherwise: rent where there is one, else capital and electricity at that price.
    pub fn default_money(&self, electricity_usd_per_kwh: Band) -> Money {
        match self.rent_usd_per_h {
            Some(usd_per_device_h) => Money::Rental { usd_per_device_h },
            None => self.owned(electricity_usd_per_kwh),
        }
    }

    /// Bought, at an electricity price.
    pub fn owned(&self, electricity_usd_per_kwh: Band) -> Money {
        Money::Owned {
            capital_usd: self.capital_usd,
            interest: constant("capital_interest").band,
            life_years: constant("life_years").band,
            utilisation: constant("utilisation_of_life").band,
            opex_usd_per_device_h: if self.is_cpu() {
                Band::exact(0.0)
            } else {
                constant("opex_usd_per_device_h").band
            },
            electricity_usd_per_kwh,
        }
    }

    /// Carbon of making it.
    pub fn embodied(&self) -> Embodied {
        let (server_kg, devices_per_server) = if self.is_cpu() {
            (constant("embodied_computer_kg").band, 1.0)
        } else {
            (constant("embodied_server_kg").band, 8.0)
        };
        Embodied {
            server_kg,
            device_kg: self.embodied_kg,
            devices_per_server,
            life_years: constant("life_years").band,
            utilisation: constant("utilisation_of_life").band,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_is_whole() {
        for d in devices() {
            assert!(
                d.memory_gb > 0.0 && d.bandwidth_gb_s > 0.0 && d.source.len() > 10 && d.rent_usd_per_h.is_some(),
                "{d:?}"
            );
            assert!(d.capacity_w() >= d.nameplate_w);
        }
        for name in ["h800", "H100", "H200", "A100", "MI300X"] {
            Device::named(name).unwrap();
        }
        assert!(Device::named("TI-83").unwrap_err().to_string().contains("MI300X"));
    }

    #[test]
    fn a_cpu_must_be_possible() {
        let ok = Band::exact(500.0);
        assert!(Device::cpu(ok, Band::exact(65.0), 16.0, 40.0).is_ok());
        assert!(Device::cpu(Band::exact(0.0), Band::exact(65.0), 16.0, 40.0).is_err());
        assert!(Device::cpu(ok, Band::exact(0.0), 16.0, 40.0).is_err());
        assert!(Device::cpu(ok, Band::exact(65.0), f64::NAN, 40.0).is_err());
    }
}
