//! Jobs, DataFusion plan nodes, the local runner, verification, reports and SQL of slicemill.
//!
//! ```text
//!  JOB.toml, flags ─▶ JobDraft ─▶ Job ─▶ freeze ─▶ units ─▶ plan ─▶ LocalRunner ─▶ RunSummary
//!                      (job)              │                  │ AnnotateExec → WriteExec → CommitExec
//!                                         ▼                  ▼
//!                                   OUT/_slicemill     OUT/captions, answers, tokens, failed, skipped, timings
//!                                                            │
//!            plan_job (headers only)                         ▼
//!                                          verify_output, retry_job, read_report, query_output
//! ```
//!
//! | module | what it does |
//! |---|---|
//! | [`job`] | the job file, its checks, the job, its fingerprint |
//! | [`questions`] | questions of ask jobs, joined on the image key |
//! | [`freeze`] | freezing a job into its output; the check that a later run is the same job |
//! | [`nodes`], [`plan`], [`runner`] | the physical plan, how it is built, what runs it |
//! | [`run`], [`retry`] | a run from description to `_SUCCESS`; failed rows again |
//! | [`plan_summary`] | what a job will take |
//! | [`verify`], [`report`], [`sql`] | proving, summarising and querying an output |
//!
//! Models are passed in as a [`BackendFactory`](slicemill_pipeline::BackendFactory): nothing here knows candle.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking"))]

mod condition;
mod error;
mod figures;
pub mod freeze;
mod inputs;
pub mod job;
mod memory;
pub mod nodes;
pub mod plan;
pub mod plan_summary;
pub mod questions;
pub mod report;
pub mod retry;
pub mod run;
pub mod runner;
pub mod sidecars;
pub mod sql;
mod stop;
pub mod verify;

#[cfg(test)]
mod tests;

pub use condition::Condition;
pub use error::ExecError;
pub use freeze::{Different, FrozenJob};
pub use job::{
    Difference, Job, JobDraft, JobError, JobFile, Part, RunOptions, Selection, ShardSize, SpoolOptions, StandardInput,
};
pub use memory::{resident_bytes, resident_bytes_peak};
pub use plan_summary::{MeasuredRate, PlanSummary, measure_rate, plan_job};
pub use report::{Report, read_report};
pub use retry::{RetrySummary, retry_job};
pub use run::{RunObserver, RunRecord, RunSummary, RunTotals, run_job, runtime_limits};
pub use sidecars::{SidecarSummary, write_sidecars};
pub use sql::{QueryResult, query_output};
pub use stop::StopSignal;
pub use verify::{Check, Verification, verify_output};
