//! Power readings to joules, and a ledger of what they were spent on.
//!
//! Every number of joules carries a [`grade::Grade`], A to E, and an uncertainty: a reading that failed is unknown, never zero.
#![forbid(unsafe_code)]

pub mod allocate;
pub mod export;
pub mod grade;
pub mod ledger;
pub mod meter;
