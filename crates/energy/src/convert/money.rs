//! Money, in one of three modes that exclude each other, so that nothing is counted twice.

use serde::Serialize;

use super::{Band, Draw};

/// How computing is paid for. One of them, by type: rented hours already hold the electricity, owned hardware does not, and a price per
/// token holds everything.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "mode")]
pub enum Money {
    /// Hours of devices at a rate; electricity is inside.
    Rental {
        /// USD per device-hour.
        usd_per_device_h: Band,
    },
    /// Bought devices, written off over their life; electricity and running costs come on top.
    Owned {
        /// USD per device with its share of server and network.
        capital_usd: Band,
        /// Cost of capital per year, 0.08 for 8 %.
        interest: Band,
        /// Years of life.
        life_years: Band,
        /// Share of its life that a device works.
        utilisation: Band,
        /// USD per device-hour for space, repair and staff, electricity not included.
        opex_usd_per_device_h: Band,
        /// USD per kWh.
        electricity_usd_per_kwh: Band,
    },
    /// Tokens at a price; reasoning tokens are output.
    Api {
        /// USD per 10⁶ input tokens.
        usd_per_m_input: Band,
        /// USD per 10⁶ input tokens found in the provider's cache.
        usd_per_m_cached: Band,
        /// USD per 10⁶ output tokens.
        usd_per_m_output: Band,
    },
}

/// What is paid for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Usage {
    /// Hours of one device.
    pub device_h: f64,
    /// kWh of the facility.
    pub facility_kwh: f64,
    /// Input tokens that were not cached.
    pub input_tokens: f64,
    /// Input tokens that were.
    pub cached_tokens: f64,
    /// Output tokens, reasoning included.
    pub output_tokens: f64,
}

impl Money {
    /// USD in one draw.
    pub fn usd(&self, draw: Draw, usage: &Usage) -> f64 {
        match *self {
            Self::Rental { usd_per_device_h } => rental_usd(usage.device_h, draw.of("rent", usd_per_device_h)),
            Self::Owned {
                capital_usd,
                interest,
                life_years,
                utilisation,
                opex_usd_per_device_h,
                electricity_usd_per_kwh,
            } => {
                let crf = capital_recovery_factor(draw.of("interest", interest), draw.of("life", life_years));
                let utilisation = draw.share("utilisation of life", utilisation);
                let hourly = draw.of("capital", capital_usd) * crf / (8760.0 * utilisation);
                let electricity = usage.facility_kwh * draw.of("electricity price", electricity_usd_per_kwh);
                owned_usd(usage.device_h, hourly, electricity, draw.of("opex", opex_usd_per_device_h))
            }
            Self::Api { usd_per_m_input, usd_per_m_cached, usd_per_m_output } => api_usd(
                usage,
                draw.of("input price", usd_per_m_input),
                draw.of("cached price", usd_per_m_cached),
                draw.of("output price", usd_per_m_output),
            ),
        }
    }

    /// For people.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Rental { .. } => "rental, electricity included",
            Self::Owned { .. } => "owned: capital, electricity and running costs",
            Self::Api { .. } => "price per token",
        }
    }
}

/// USD of rented hours.
pub fn rental_usd(device_h: f64, usd_per_device_h: f64) -> f64 {
    device_h * usd_per_device_h
}

/// USD of owned devices: hours at the hourly share of capital and at running costs, and the electricity bill.
pub fn owned_usd(device_h: f64, capital_usd_per_h: f64, electricity_usd: f64, opex_usd_per_h: f64) -> f64 {
    device_h * (capital_usd_per_h + opex_usd_per_h) + electricity_usd
}

/// USD of tokens; prices are per 10⁶.
pub fn api_usd(usage: &Usage, usd_per_m_input: f64, usd_per_m_cached: f64, usd_per_m_output: f64) -> f64 {
    let usd = usage.input_tokens * usd_per_m_input
        + usage.cached_tokens * usd_per_m_cached
        + usage.output_tokens * usd_per_m_output;
    usd / 1e6
}

/// Share of a capital that is paid each year so that it and its interest are paid off after `years`:
/// `r(1 + r)ⁿ / ((1 + r)ⁿ − 1)`, and `1/n` without interest.
pub fn capital_recovery_factor(interest: f64, years: f64) -> f64 {
    if interest < 1e-12 {
        return 1.0 / years;
    }
    let growth = libm::pow(1.0 + interest, years);
    interest * growth / (growth - 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rented_hours_never_pay_for_electricity_again() {
        let money = Money::Rental { usd_per_device_h: Band::exact(2.0) };
        let usage = |facility_kwh| Usage { device_h: 2.788e6, facility_kwh, output_tokens: 1e9, ..Usage::default() };
        let draw = Draw::new(0, 0);
        assert_eq!(money.usd(draw, &usage(0.0)), 5.576e6);
        assert_eq!(money.usd(draw, &usage(3.29e6)), 5.576e6);
    }

    #[test]
    fn owned_hours_pay_for_capital_electricity_and_opex_once() {
        let money = Money::Owned {
            capital_usd: Band::exact(35_040.0),
            interest: Band::exact(0.0),
            life_years: Band::exact(4.0),
            utilisation: Band::exact(0.5),
            opex_usd_per_device_h: Band::exact(0.25),
            electricity_usd_per_kwh: Band::exact(0.1),
        };
        // 35,040 USD over 4 years of 8,760 hours, half of them used: 2 USD per hour.
        let usage = Usage { device_h: 100.0, facility_kwh: 50.0, ..Usage::default() };
        assert!((money.usd(Draw::new(0, 0), &usage) - (200.0 + 25.0 + 5.0)).abs() < 1e-9);
    }

    #[test]
    fn tokens_are_paid_by_kind() {
        let usage =
            Usage { input_tokens: 1e6, cached_tokens: 2e6, output_tokens: 3e6, device_h: 9.0, facility_kwh: 9.0 };
        assert!((api_usd(&usage, 0.55, 0.14, 2.19) - (0.55 + 0.28 + 6.57)).abs() < 1e-12);
    }

    #[test]
    fn the_recovery_factor_pays_a_loan_off() {
        let (r, n) = (0.08, 5);
        let mut debt = 1.0;
        (0..n).for_each(|_| debt = debt * (1.0 + r) - capital_recovery_factor(r, f64::from(n)));
        assert!(debt.abs() < 1e-12, "{debt}");
    }
}
