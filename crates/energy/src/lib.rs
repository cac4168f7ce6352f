//! Joules, carbon, water and money: conversion, planning, the claims of the press, and rebound.
//!
//! Energy is in kWh or J, carbon in grams of CO2 equivalent, water in litres, money in US dollars, and every name says which.
//! Files from outside (tables of hours, usage records) are checked; nothing here opens a connection.
#![forbid(unsafe_code)]

pub mod claims;
pub mod convert;
pub mod plan;
pub mod rebound;
