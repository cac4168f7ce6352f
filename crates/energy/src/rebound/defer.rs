//! Deferring a job to hours of low carbon, from a file of hourly intensity.

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;

use super::{ReboundError, number};
use crate::convert::{Hour, IntensityHours};

/// A time to run in and what it costs in carbon.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Slot {
    /// When each hour of it begins.
    pub hours: Vec<DateTime<Utc>>,
    /// Location-based.
    pub carbon_g: f64,
}

/// Where a job of some hours goes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Deferral {
    /// At once.
    pub now: Slot,
    /// The best hours in a row.
    pub in_a_row: Slot,
    /// The best hours of all, for a job that can stop and resume.
    pub interrupted: Slot,
    /// Grams that the best hours in a row save against running at once; never negative.
    pub saved_g: f64,
    /// The same as a share.
    pub saved_share: f64,
    /// What the worst start would have cost beyond the best, in grams: how much is at stake.
    pub at_stake_g: f64,
    /// What a reader must know.
    pub notes: Vec<String>,
}

/// Plans a job of `hours` whole hours that draws `facility_kwh` evenly, to begin at `earliest` or later and to be done by `deadline`.
///
/// # Errors
/// [`ReboundError::NoSlot`] if the file does not hold that many hours between the two; [`ReboundError::Number`] for no hours or no energy.
pub fn defer(
    intensity: &IntensityHours,
    hours: usize,
    facility_kwh: f64,
    earliest: Option<DateTime<Utc>>,
    deadline: Option<DateTime<Utc>>,
) -> Result<Deferral, ReboundError> {
    number("the length of the job", hours as f64, 1.0..=1e6, "1 to 10⁶ whole hours")?;
    number("the energy of the job", facility_kwh, 0.0..=1e12, "0 to 10¹² kWh of the facility")?;
    let open: Vec<Hour> = (intensity.hours().iter())
        .filter(|h| earliest.is_none_or(|t| h.start >= t))
        .filter(|h| deadline.is_none_or(|t| h.start + TimeDelta::hours(1) <= t))
        .copied()
        .collect();
    if open.len() < hours {
        let all = intensity.hours();
        return Err(ReboundError::NoSlot(format!(
            "the job needs {hours} hours, and the file (from {} to {}) has {} between the earliest start and the deadline",
            all[0].start,
            all[all.len() - 1].start + TimeDelta::hours(1),
            open.len()
        )));
    }
    let per_hour = facility_kwh / hours as f64;
    let slot = |hours: &[Hour]| Slot {
        hours: hours.iter().map(|h| h.start).collect(),
        carbon_g: hours.iter().map(|h| per_hour * h.intensity.g_per_kwh()).sum(),
    };
    let starts = || open.windows(hours).map(|w| (w, w.iter().map(|h| h.intensity.g_per_kwh()).sum::<f64>()));
    let by_sum = |a: &(&[Hour], f64), b: &(&[Hour], f64)| a.1.total_cmp(&b.1);
    // Of equal ones the earliest.
    let best = starts().min_by(by_sum).map_or(&open[..hours], |w| w.0);
    let worst = starts().max_by(by_sum).map_or(&open[..hours], |w| w.0);
    let mut cleanest = open.clone();
    cleanest.sort_by(|a, b| a.intensity.g_per_kwh().total_cmp(&b.intensity.g_per_kwh()).then(a.start.cmp(&b.start)));
    cleanest.truncate(hours);
    cleanest.sort_by_key(|h| h.start);

    let (now, in_a_row, interrupted) = (slot(&open[..hours]), slot(best), slot(&cleanest));
    let saved_g = (now.carbon_g - in_a_row.carbon_g).max(0.0);
    Ok(Deferral {
        saved_share: if now.carbon_g > 0.0 { saved_g / now.carbon_g } else { 0.0 },
        at_stake_g: slot(worst).carbon_g - in_a_row.carbon_g,
        saved_g,
        now,
        in_a_row,
        interrupted,
        notes: vec![
            "location-based; the file is taken at its word: with a forecast, what is saved is a forecast too".into(),
            "average intensity, not marginal: what the grid as a whole emits less is not told by it".into(),
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(values: &[f64]) -> IntensityHours {
        let lines: String = values
            .iter()
            .enumerate()
            .map(|(i, v)| format!("2026-06-{:02}T{:02}:00Z,{v}\n", 1 + i / 24, i % 24))
            .collect();
        IntensityHours::from_csv(&format!("time,g_per_kwh\n{lines}")).unwrap()
    }

    #[test]
    fn the_best_hours_are_found_in_a_row_and_apart() {
        let d = defer(&file(&[400.0, 300.0, 100.0, 350.0, 90.0, 200.0, 500.0]), 2, 4.0, None, None).unwrap();
        assert_eq!((d.now.carbon_g, d.in_a_row.carbon_g, d.interrupted.carbon_g), (1400.0, 580.0, 380.0));
        assert_eq!(d.in_a_row.hours[0].to_rfc3339(), "2026-06-01T04:00:00+00:00");
        assert_eq!(d.interrupted.hours.len(), 2);
        assert_eq!((d.saved_g, d.at_stake_g), (820.0, 820.0));
        assert!((d.saved_share - 820.0 / 1400.0).abs() < 1e-12);
    }

    #[test]
    fn deadlines_hold_and_nothing_is_saved_where_now_is_best() {
        let hours = file(&[100.0, 200.0, 50.0, 50.0]);
        let at = |h: usize| Some(hours.hours()[h].start);
        assert_eq!(defer(&hours, 2, 1.0, None, at(2)).unwrap().saved_g, 0.0);
        assert_eq!(defer(&hours, 2, 1.0, at(2), None).unwrap().now.carbon_g, 50.0);
        let error = defer(&hours, 2, 1.0, at(3), None).unwrap_err().to_string();
        assert!(error.contains("needs 2 hours") && error.contains("has 1"), "{error}");
        assert!(defer(&hours, 0, 1.0, None, None).is_err() && defer(&hours, 1, -1.0, None, None).is_err());
    }
}
