//! Slicing policies as data.

use serde::{Deserialize, Serialize};

use crate::{PlanRejection, Size, SlicePlan};

/// Which slice counts compete for the grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CandidateRule {
    /// N−1, N, N+1 without 1 and without counts above the maximum; N ≤ 1 is not sliced (July 2024 release, MiniCPM-V).
    Capped,
    /// N is capped first and widened after, so that one slice more than the maximum is possible; N = 1 competes as {1, 2} (March 2024 code).
    Widened,
}

/// How the image is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Partition {
    /// The grid whose aspect is nearest to the image's.
    Adaptive(CandidateRule),
    /// Always this grid.
    Fixed {
        /// Columns.
        cols: u32,
        /// Rows.
        rows: u32,
    },
    /// Only the overview.
    None,
}

/// Rounding of a length to a multiple of the patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rounding {
    /// Downwards (LLaVA-UHD).
    Floor,
    /// To nearest, ties to even (MiniCPM-V; Python's `round`).
    HalfEven,
}

/// How slices are made from the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cut {
    /// The whole image is resized once and cut into equal tiles (July 2024 release, MiniCPM-V).
    ResizeThenCut,
    /// The image is cut at its own resolution, each tile is resized in its own aspect (paper).
    CutThenResize,
    /// The image is padded to a square with the mean colour, resized to cols·side × rows·side and cut (LLaVA-1.5).
    PadSquare,
}

/// Where the overview stands in the sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OverviewPosition {
    /// Before the slices (MiniCPM-V).
    First,
    /// After the slices (LLaVA-UHD).
    Last,
}

/// A slicing policy: one row of a table, not a code path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SlicingPolicy {
    /// Its name.
    pub name: String,
    /// Side of the square the vision tower was trained on, in pixels.
    pub side: u32,
    /// Patch size in pixels; all encoded sizes are multiples of it.
    pub patch: u32,
    /// Largest number of slices, without the overview.
    pub max_slices: u32,
    /// The long side is resized to this first, upwards too.
    pub pre_resize: Option<u32>,
    /// Grid selection.
    pub partition: Partition,
    /// Rounding to patch multiples.
    pub rounding: Rounding,
    /// How slices are made.
    pub cut: Cut,
    /// Where the overview stands.
    pub overview: OverviewPosition,
}

/// An override that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PolicyError(pub String);

impl SlicingPolicy {
    /// The names of all policies, in the order they are documented.
    pub const NAMES: &'static [&'static str] =
        &["llava-uhd", "llava-uhd-raw", "llava-uhd-paper", "llava-uhd-v2", "minicpm-v", "pad-square", "fixed-2x2", "whole"];
}
