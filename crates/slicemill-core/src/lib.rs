//! Sizes, slicing policies and plans, buckets, the cost model, row types and the error type of slicemill.
//!
//! Everything here is pure and total: no I/O, no clock, no randomness, no tensors.
//!
//! ```text
//!   Size ──▶ SlicingPolicy::plan ──▶ SlicePlan ──▶ views, visual tokens, bucket
//!                                        │
//!                  ModelCard ────────────┴──────▶ Flops (vision, projector, prefill, decode)
//! ```
//!
//! ```
//! use slicemill_core::{Grid, Size, SlicingPolicy, TokenRule};
//!
//! let policy = SlicingPolicy::llava_uhd();
//! let plan = policy.plan(Size::new(4000, 3000))?;
//! assert_eq!(plan.grid, Grid { cols: 3, rows: 2 });
//! assert_eq!(plan.visual_tokens(TokenRule::Queries(64)), 7 * 64);
//! # Ok::<(), slicemill_core::PlanRejection>(())
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking"))]

mod bucket;
mod card;
mod cost;
mod error;
mod loops;
mod options;
mod plan;
mod plan_row;
mod planning;
mod policy;
mod rows;
mod seed;
mod size;

pub use bucket::{Batch, BatchItem, BatchLimits, BucketKey, Bucketer, plan_batches};
pub use card::{ModelCard, Normalisation, Schema, TokenRule};
pub use cost::{ComputeRecipe, DecoderShape, Flops, LmHead, ModelShape, ProjectorShape, VisionShape};
pub use error::{ErrorClass, Fate, RowError, Stage};
pub use loops::looped_tokens;
pub use options::{
    Alpha, GenerationParams, ImageOptions, OrientationRule, TaskKind, TokenDtype, Truncated, WindowRounding,
};
pub use plan::{Grid, PlanRejection, Rect, SlicePlan, View, ViewKind};
pub use plan_row::PlanRow;
pub use policy::{CandidateRule, Cut, OverviewPosition, Partition, PolicyError, Rounding, SlicingPolicy};
pub use rows::{ContentRow, FailedRow, RowOutcome, SkippedRow, TimingRow};
pub use seed::row_seed;
pub use size::Size;
