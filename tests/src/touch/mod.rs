//! A worker that touches files as its script says, and scripts of which the truth is known: for tests of the
//! profiler and its benchmark.

pub mod cases;
pub mod generator;
mod worker;

pub use worker::work;
