//! One integration-test binary: architecture, tidiness, and the program as a person would run it.

mod layering;
mod tidy;
