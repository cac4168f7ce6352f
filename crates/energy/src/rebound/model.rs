//! What an efficiency gain does to use and to energy, if demand has one elasticity.
//!
//! Energy per token falls `k` times, a share `φ` of the logarithm of that reaches the price, and use grows by `k^(φε)`:
//! `E1/E0 = k^(φε − 1)`, `R = 1 − (1 − k^(φε − 1)) / (1 − 1/k)`. More energy is used than before exactly if `φε > 1`.
//! Source: Sorrell and Dimitropoulos 2008, doi:10.1016/j.ecolecon.2007.08.013.

use plotters::prelude::*;
use serde::Serialize;

use super::{ReboundError, number};
use crate::convert::{Band, Draw, Interval, intervals};

/// A gain and how a market answers it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Market {
    /// `k`: energy per token before over after, above 1.
    pub efficiency_gain: f64,
    /// `φ` in 0..=1: how much of it reaches the price. About 1 where device time falls, 0.02 to 0.06 where only electricity does.
    pub pass_through: f64,
    /// `ε`, not negative: relative growth of use per relative fall of the price.
    pub elasticity: f64,
}

/// What becomes of the engineering saving.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Regime {
    /// `φε = 0`: all of it is kept.
    None,
    /// `0 < φε < 1`: part of it is kept.
    Partial,
    /// `φε = 1`: none is kept.
    Full,
    /// `φε > 1`: more energy is used than before.
    Backfire,
}

impl std::fmt::Display for Regime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "no rebound: all of the saving is kept",
            Self::Partial => "partial rebound: part of the saving is kept",
            Self::Full => "full rebound: nothing is saved",
            Self::Backfire => "backfire: more energy is used than before",
        })
    }
}

/// The answer for one elasticity.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Effect {
    /// Use after over before.
    pub demand_ratio: f64,
    /// Energy after over before.
    pub energy_ratio: f64,
    /// `R`; 1 is 100 %.
    pub rebound: f64,
    /// By `φε` alone.
    pub regime: Regime,
}

impl Market {
    fn check(&self) -> Result<(), ReboundError> {
        let k = self.efficiency_gain;
        if k == 1.0 {
            let expected = "above 1, up to 10⁹: without a gain there is no rebound";
            return Err(ReboundError::Number { what: "the efficiency gain", found: k, expected });
        }
        number("the efficiency gain", k, 1.0..=1e9, "above 1, up to 10⁹: energy per token before over after")?;
        number("the pass-through", self.pass_through, 0.0..=1.0, "0 to 1")?;
        number("the elasticity", self.elasticity, 0.0..=10.0, "0 to 10").map(drop)
    }
}

/// What the market makes of the gain.
///
/// # Errors
/// [`ReboundError::Number`] for a gain that is not above 1, a pass-through outside 0..=1, or an elasticity outside 0..=10.
///
/// ```
/// use jevons_energy::rebound::{Market, Regime, effect};
/// let e = effect(&Market { efficiency_gain: 33.0, pass_through: 1.0, elasticity: 1.11 }).unwrap();
/// assert!((e.rebound - 1.48).abs() < 0.005 && (e.energy_ratio - 1.469).abs() < 0.001);
/// assert_eq!(e.regime, Regime::Backfire);
/// ```
pub fn effect(market: &Market) -> Result<Effect, ReboundError> {
    market.check()?;
    let response = market.pass_through * market.elasticity;
    let ln_k = libm::log(market.efficiency_gain);
    // With expm1, so that small gains keep their digits.
    let rebound = 1.0 - libm::expm1((response - 1.0) * ln_k) / libm::expm1(-ln_k);
    let regime = match response {
        r if r > 1.0 => Regime::Backfire,
        1.0 => Regime::Full,
        0.0 => Regime::None,
        _ => Regime::Partial,
    };
    Ok(Effect {
        demand_ratio: libm::exp(response * ln_k),
        energy_ratio: libm::exp((response - 1.0) * ln_k),
        rebound,
        regime,
    })
}

/// The answer where gain, pass-through and elasticity are known within bands.
#[derive(Clone, Debug, Serialize)]
pub struct Projection {
    /// At the central values.
    pub central: Effect,
    /// Use after over before.
    pub demand_ratio: Interval,
    /// Energy after over before.
    pub energy_ratio: Interval,
    /// `R`.
    pub rebound: Interval,
    /// Probability that more energy is used than before.
    pub backfire: f64,
    /// The elasticity beyond which it is: `1/φ`, at the central pass-through.
    pub critical_elasticity: f64,
}

/// The same for bands.
///
/// # Errors
/// As [`effect`], of the bands' ends.
pub fn project(gain: Band, pass_through: Band, elasticity: Band, seed: u64) -> Result<Projection, ReboundError> {
    let at = |gain, pass_through, elasticity| Market { efficiency_gain: gain, pass_through, elasticity };
    at(gain.low(), pass_through.low(), elasticity.low()).check()?;
    at(gain.high(), pass_through.high(), elasticity.high()).check()?;
    let central = effect(&at(gain.mid(), pass_through.mid(), elasticity.mid()))?;
    let columns = intervals(seed, |draw: Draw| {
        // Ends of a log-normal reach beyond what is allowed; they are held at it.
        let k = draw.above_one("efficiency gain", gain).clamp(1.0 + 1e-9, 1e9);
        let market = at(k, draw.share("pass-through", pass_through), draw.of("elasticity", elasticity).min(10.0));
        let e = effect(&market).expect("inside what is allowed");
        vec![e.demand_ratio, e.energy_ratio, e.rebound]
    });
    let backfire = (0..crate::convert::DRAWS).filter(|i| {
        let draw = Draw::new(seed, *i);
        draw.share("pass-through", pass_through) * draw.of("elasticity", elasticity).min(10.0) > 1.0
    });
    let [demand_ratio, energy_ratio, rebound] = columns[..] else { unreachable!("three results") };
    Ok(Projection {
        central,
        demand_ratio,
        energy_ratio,
        rebound,
        backfire: backfire.count() as f64 / f64::from(crate::convert::DRAWS),
        critical_elasticity: 1.0 / pass_through.mid(),
    })
}

const INK: RGBColor = RGBColor(40, 44, 52);
const FAINT: RGBColor = RGBColor(228, 231, 236);
const LINES: [RGBColor; 3] = [RGBColor(36, 101, 178), RGBColor(214, 95, 14), RGBColor(70, 140, 86)];
const STRING: &str = "drawing into a String cannot fail";

/// Energy after over before, against the elasticity from 0 to 2, as SVG: one line per gain, at one pass-through. Above 1 is backfire.
///
/// # Errors
/// As [`effect`]; [`ReboundError::Number`] also without a gain or with more than three.
pub fn plot(gains: &[f64], pass_through: f64) -> Result<String, ReboundError> {
    number("the number of lines", gains.len() as f64, 1.0..=LINES.len() as f64, "1 to 3 gains")?;
    let ratio =
        |gain, elasticity| effect(&Market { efficiency_gain: gain, pass_through, elasticity }).map(|e| e.energy_ratio);
    let curves: Vec<(f64, Vec<(f64, f64)>)> = gains
        .iter()
        .map(|gain| {
            let points = (0..=100).map(|i| Ok((f64::from(i) / 50.0, ratio(*gain, f64::from(i) / 50.0)?)));
            Ok((*gain, points.collect::<Result<_, ReboundError>>()?))
        })
        .collect::<Result<_, ReboundError>>()?;
    let all = curves.iter().flat_map(|(_, points)| points.iter().map(|p| p.1));
    let (low, high) = all.fold((1.0f64, 1.0f64), |(l, h), y| (l.min(y), h.max(y)));

    let mut svg = String::new();
    {
        let font = |size: i32| ("sans-serif", size).into_font().color(&INK);
        let root = SVGBackend::with_string(&mut svg, (800, 520)).into_drawing_area();
        root.fill(&WHITE).expect(STRING);
        let caption = format!("Energy after an efficiency gain, {:.0} % passed on to the price", pass_through * 100.0);
        let mut chart = ChartBuilder::on(&root)
            .caption(caption, font(19))
            .margin(14)
            .margin_right(28)
            .x_label_area_size(44)
            .y_label_area_size(76)
            .build_cartesian_2d(0.0..2.0, (low / 1.3..high * 1.3).log_scale())
            .expect(STRING);
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(FAINT)
            .axis_style(INK.mix(0.5))
            .label_style(font(13))
            .axis_desc_style(font(14))
            .x_desc("elasticity of demand ε")
            .y_desc("energy after / before")
            .x_labels(9)
            .y_label_formatter(&|y| format!("{:.3}", y).trim_end_matches('0').trim_end_matches('.').to_string())
            .draw()
            .expect(STRING);
        let level = LineSeries::new([(0.0, 1.0), (2.0, 1.0)], INK.stroke_width(1));
        chart
            .draw_series(level)
            .expect(STRING)
            .label("as before: above it is backfire")
            .legend(|(x, y)| PathElement::new([(x, y), (x + 22, y)], INK.stroke_width(1)));
        for ((gain, points), color) in curves.into_iter().zip(LINES) {
            let label = format!("{gain} times as efficient");
            chart
                .draw_series(LineSeries::new(points, color.stroke_width(2)))
                .expect(STRING)
                .label(label)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], color.stroke_width(2)));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.85))
            .border_style(FAINT)
            .label_font(font(14))
            .margin(10)
            .draw()
            .expect(STRING);
        root.present().expect(STRING);
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(efficiency_gain: f64, elasticity: f64) -> Effect {
        effect(&Market { efficiency_gain, pass_through: 1.0, elasticity }).unwrap()
    }

    #[test]
    fn the_table_of_the_reference_is_reproduced() {
        let elasticities = [0.3, 0.6, 1.0, 1.11, 1.5];
        for (k, percent) in
            [(2.0, [23, 52, 100, 116, 183]), (5.0, [16, 41, 100, 124, 255]), (33.0, [6, 22, 100, 148, 589])]
        {
            for (e, want) in elasticities.iter().zip(percent) {
                assert_eq!((at(k, *e).rebound * 100.0).round() as i32, want, "k {k}, elasticity {e}");
            }
        }
        for (k, want) in [(2.0, 1.079), (5.0, 1.194), (33.0, 1.469)] {
            assert!((at(k, 1.11).energy_ratio - want).abs() < 5e-4);
        }
    }

    proptest! {
        #[test]
        fn it_backfires_exactly_if_pass_through_times_elasticity_is_above_one(
            k in 1.0001f64..1e6, phi in 0f64..=1.0, epsilon in 0f64..=10.0,
        ) {
            let e = effect(&Market { efficiency_gain: k, pass_through: phi, elasticity: epsilon }).unwrap();
            let response = phi * epsilon;
            prop_assert_eq!(e.regime == Regime::Backfire, response > 1.0);
            // The numbers agree wherever rounding lets them differ from 1 at all.
            if (response - 1.0).abs() * k.ln_1p() > 1e-12 {
                prop_assert_eq!(e.energy_ratio > 1.0, response > 1.0);
                prop_assert_eq!(e.rebound > 1.0, response > 1.0);
                prop_assert_eq!(e.demand_ratio > k, response > 1.0);
            }
        }

        #[test]
        fn small_gains_rebound_by_pass_through_times_elasticity(phi in 0f64..=1.0, epsilon in 0f64..=3.0) {
            let e = effect(&Market { efficiency_gain: 1.0 + 1e-9, pass_through: phi, elasticity: epsilon }).unwrap();
            prop_assert!((e.rebound - phi * epsilon).abs() < 1e-6);
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (k, phi, e) in [
            (1.0, 0.5, 1.0),
            (0.5, 0.5, 1.0),
            (f64::NAN, 0.5, 1.0),
            (2.0, 1.1, 1.0),
            (2.0, 0.5, -1.0),
            (2.0, 0.5, 11.0),
        ] {
            assert!(effect(&Market { efficiency_gain: k, pass_through: phi, elasticity: e }).is_err(), "{k} {phi} {e}");
        }
    }

    #[test]
    fn bands_give_a_probability_of_backfire() {
        let p = project(Band::exact(33.0), Band::exact(1.0), Band::new(0.3, 0.9, 1.8).unwrap(), 0).unwrap();
        // ln(1/0.9) is a quarter of ln(1.8/0.9)/1.645 standard deviations above the centre: 40 %.
        assert!((p.backfire - 0.40).abs() < 0.02, "{}", p.backfire);
        assert!(p.rebound.contains(p.central.rebound) && p.critical_elasticity == 1.0);
        let electricity = project(Band::exact(33.0), Band::exact(0.05), Band::new(0.3, 0.9, 1.8).unwrap(), 0).unwrap();
        assert!(electricity.backfire == 0.0 && electricity.rebound.p95 < 0.02);
    }

    #[test]
    fn the_plot_says_what_it_shows() {
        let svg = plot(&[2.0, 33.0], 1.0).unwrap();
        for text in ["</svg>", "elasticity of demand", "energy after / before", "33 times as efficient", "backfire"] {
            assert!(svg.contains(text), "{text}");
        }
        assert!(plot(&[], 1.0).is_err() && plot(&[2.0; 4], 1.0).is_err() && plot(&[0.5], 1.0).is_err());
        assert!(plot(&[1e9], 1.0).unwrap().contains("</svg>"));
    }
}
