//! The plan of one image: what will be encoded, before any pixel is read.

use serde::{Deserialize, Serialize};

use crate::{Cut, OverviewPosition, Size, TokenRule};

/// Columns × rows of slices. 0 × 0 means that only the overview is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Grid {
    /// Slices per row.
    pub cols: u32,
    /// Rows of slices.
    pub rows: u32,
}

impl Grid {
    /// Only the overview is encoded.
    pub const NONE: Self = Self { cols: 0, rows: 0 };

    /// Slices, without the overview.
    pub const fn slices(self) -> u32 {
        self.cols * self.rows
    }
}

/// A rectangle in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rect {
    /// Left edge.
    pub x: u32,
    /// Upper edge.
    pub y: u32,
    /// Its size.
    pub size: Size,
}

/// Which part of the image a view shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ViewKind {
    /// A slice of the grid.
    Slice {
        /// Column, from 0.
        col: u32,
        /// Row, from 0.
        row: u32,
    },
    /// The whole image.
    Overview,
}

/// One image that the vision tower encodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct View {
    /// What it shows.
    pub kind: ViewKind,
    /// Encoded size in pixels, multiples of the patch.
    pub size: Size,
    /// Patches across.
    pub patches_wide: u32,
    /// Patches down.
    pub patches_high: u32,
}

impl View {
    /// Number of patches.
    pub const fn patches(&self) -> u32 {
        self.patches_wide * self.patches_high
    }
}

/// What will be encoded of one image. Made by [`crate::SlicingPolicy::plan`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SlicePlan {
    /// Size of the image after orientation.
    pub image: Size,
    /// Size after the pre-resize; equals `image` when there is none.
    pub working: Size,
    /// Grid of slices.
    pub grid: Grid,
    /// How slices are made.
    pub cut: Cut,
    /// Encoded size of every slice; 0 × 0 when there are none.
    pub slice: Size,
    /// Encoded size of the overview.
    pub overview: Size,
    /// Where the overview stands.
    pub overview_position: OverviewPosition,
    /// Patch size in pixels.
    pub patch: u32,
}

/// Why a size has no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanRejection {
    /// Width or height is 0.
    #[error("the image has no pixels ({0})")]
    EmptyImage(Size),
    /// The pre-resize would make the short side 0 pixels.
    #[error("resizing {image} so that its long side is {long_side} would leave its short side 0 pixels; use a policy without pre-resize")]
    AspectTooExtreme {
        /// Size of the image.
        image: Size,
        /// The pre-resize.
        long_side: u32,
    },
    /// An encoded view would have more patches than a tower can be given.
    #[error("a view of {view} would have {patches} patches, more than {patches_max}; crop the image or use pad-square")]
    TooManyPatches {
        /// Size of the view.
        view: Size,
        /// Its patches.
        patches: u64,
        /// The limit.
        patches_max: u64,
    },
}

impl SlicePlan {
    /// Slices, without the overview.
    pub const fn slices(&self) -> u32 {
        self.grid.slices()
    }

    /// Encoded views: slices and overview.
    pub const fn view_count(&self) -> u32 {
        self.grid.slices() + 1
    }

    /// Size of the image that [`Cut::ResizeThenCut`] cuts: cols × slice width by rows × slice height.
    pub const fn refined(&self) -> Size {
        Size::new(self.grid.cols * self.slice.width, self.grid.rows * self.slice.height)
    }

    /// Visual tokens in all views; separators are not included.
    pub fn visual_tokens(&self, rule: TokenRule) -> u64 {
        self.views().iter().map(|view| u64::from(rule.tokens(view))).sum()
    }
}
