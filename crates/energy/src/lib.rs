//! Power readings to joules, a ledger of what they were spent on, and what they cost in carbon, water and money:
//! conversion, planning, the claims of the press, and rebound.
//!
//! Every number of joules carries a [`grade::Grade`], A to E, and an uncertainty: a reading that failed is unknown, never zero.
//! Energy is in kWh or J, carbon in grams of CO2 equivalent, water in litres, money in US dollars, and every name says which.
//! Files from outside (tables of hours, usage records) are checked; nothing here opens a connection.
#![forbid(unsafe_code)]

pub mod allocate;
pub mod claims;
pub mod convert;
pub mod export;
pub mod grade;
pub mod ledger;
pub mod meter;
pub mod plan;
pub mod rebound;
pub mod report;
