//! One integration-test binary: architecture, tidiness, and the program as a person would run it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests fail by panicking and say what they measured"
)]

mod bars;
mod beams;
mod broken;
mod captions;
mod checkpoints;
mod faults;
mod fixtures;
mod interruptions;
mod layering;
mod operations;
mod parts;
mod program;
mod recipe;
mod selection;
mod servers;
mod sizes;
mod soak;
mod sources;
mod tidy;
