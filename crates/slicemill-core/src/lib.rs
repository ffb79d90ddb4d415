//! Sizes, slicing policies and plans, buckets, the cost model, row types and the error type of slicemill.
//!
//! Everything here is pure and total: no I/O, no clock, no randomness, no tensors.
//!
//! ```text
//!   Size ──▶ SlicingPolicy::plan ──▶ SlicePlan ──▶ views, visual tokens, bucket
//!                                        │
//!                  ModelCard ────────────┴──────▶ Flops (vision, projector, prefill, decode)
//! ```

mod bucket;
mod card;
mod cost;
mod error;
mod options;
mod plan;
mod policy;
mod rows;
mod size;

pub use bucket::{BatchLimits, BucketKey, Bucketer};
pub use card::{ModelCard, Normalisation, Schema, TokenRule};
pub use cost::{DecoderShape, Flops, ModelShape, ProjectorShape, VisionShape};
pub use error::{ErrorClass, Fate, RowError, Stage};
pub use options::{Alpha, GenerationParams, ImageOptions, OrientationRule, TaskKind, TokenDtype};
pub use plan::{Grid, PlanRejection, Rect, SlicePlan, View, ViewKind};
pub use policy::{CandidateRule, Cut, OverviewPosition, Partition, PolicyError, Rounding, SlicingPolicy};
pub use rows::{ContentRow, FailedRow, RowOutcome, SkippedRow, TimingRow};
pub use size::Size;
