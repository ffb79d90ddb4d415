//! One integration-test binary: architecture, tidiness, and the program as a person would run it.

mod bars;
mod broken;
mod captions;
mod fixtures;
mod interruptions;
mod layering;
mod program;
mod sizes;
mod tidy;
