//! The typed stream of slicemill: from rows of a listing to annotated rows, over device threads and leases.
//!
//! ```text
//!  rows ─▶ windows ─▶ fetch ─▶ header, plan ─▶ batches ─▶ decode, slice, normalise ─▶ │ encode ─▶ generate │ ─▶ outcomes
//!          (bytes)    (async)  (CPU pool)      (pure)     (CPU pool)                  │ one device, leased │
//!          ╰────────── compressed bytes ──────────╯╰──────── prepared bytes ─────────╯
//! ```
//!
//! [`Annotator::annotate_chunk`] takes the rows of one chunk and gives one [`RowOutcome`](slicemill_core::RowOutcome)
//! per row, in order. Call it for several chunks at once: the host part of one runs while another has the device.
//!
//! - [`Backend`] is the seam to a model, [`Fetch`] the seam to a store.
//! - [`DevicePool`] owns one worker thread per device and leases the devices in order of arrival. A worker that dies or
//!   hangs is replaced, its rows are run again, and a row that loses every worker fails alone.
//! - [`RowFilter`] decides by plan and input columns which rows are annotated.
//! - [`budget`] bounds what is held in memory and says why that cannot deadlock.
//! - [`planned_costs`] is the one path by which both `slicemill plan` and a run count tokens and compute.
//!
//! What is absent, on purpose: formats of images and of files, Arrow, CUDA. Clocks decide nothing but when a device
//! counts as hung.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking"))]

mod annotate;
pub mod backend;
mod batch;
pub mod budget;
mod device;
pub mod fake;
mod host;
mod null;
mod outcomes;
mod panic;
mod plan;
mod pool;
mod prepare;
mod progress;
mod pulse;
mod read;
mod recover;
mod resident;
mod session;
mod spec;
mod windows;
mod worker;

#[cfg(test)]
mod tests;

pub use annotate::Annotator;
pub use backend::{
    Backend, BackendError, BackendFactory, BackendLimits, FinishReason, GenerateRequest, Generated, PreparedImage,
    PreparedView, SequenceId, VisualHandle,
};
pub use device::{DeviceId, DeviceParseError, parse_devices};
pub use host::HostPool;
pub use null::NullFactory;
pub use plan::{Fault, Inspected, PlannedRow, inspect, inspect_kept, planned_costs};
pub use pool::{DeviceLease, DevicePool, LostHow, Supervision, WorkLost, WorkerLost};
pub use progress::{BusyStage, FailedByClass, Progress, ProgressSnapshot};
pub use pulse::{DeviceCall, Pulse};
pub use spec::{
    AnnotateSpec, FailureLimit, Fetch, FetchError, Fetched, InputRef, PipelineError, PlannedView, PromptItem,
    RowFilter, RuntimeLimits,
};
pub use windows::windows;
