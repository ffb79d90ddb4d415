//! The plan of one image: what will be encoded, before any pixel is read.
//!
//! [`crate::SlicingPolicy::plan`] makes it; here is what can be read off it: views, crop boxes and token counts.

use serde::{Deserialize, Serialize};

use crate::{Cut, OverviewPosition, PolicyError, Schema, Size, TokenRule};

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
    #[error(
        "resizing {image} so that its long side is {long_side} would leave its short side 0 pixels; use a policy without pre-resize"
    )]
    AspectTooExtreme {
        /// Size of the image.
        image: Size,
        /// The pre-resize.
        long_side: u32,
    },
    /// An encoded view would have more patches than a tower can be given.
    #[error(
        "a view of {view} would have {patches} patches and {patches_max} is the limit; crop the image or use pad-square"
    )]
    TooManyPatches {
        /// Size of the view.
        view: Size,
        /// Its patches.
        patches: u64,
        /// The limit.
        patches_max: u64,
    },
    /// The image has fewer pixels across or down than the grid has columns or rows, and is to be cut before resizing.
    #[error("an image of {image} cannot be cut into {} columns and {} rows; use pad-square", grid.cols, grid.rows)]
    TooSmall {
        /// Size of the image.
        image: Size,
        /// The grid.
        grid: Grid,
    },
    /// The policy itself is wrong ([`crate::SlicingPolicy::validate`]).
    #[error("{0}")]
    InvalidPolicy(PolicyError),
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

    /// Size of the image that [`Cut::ResizeThenCut`] and [`Cut::PadSquare`] cut: cols × slice width by
    /// rows × slice height. 0 × 0 when there are no slices.
    pub const fn refined(&self) -> Size {
        Size::new(self.grid.cols * self.slice.width, self.grid.rows * self.slice.height)
    }

    /// The views in the order the language model sees them: slices row by row, the overview before or after them.
    pub fn views(&self) -> Vec<View> {
        let mut views = Vec::with_capacity(self.view_count() as usize);
        let overview = self.view(ViewKind::Overview, self.overview);
        if self.overview_position == OverviewPosition::First {
            views.push(overview);
        }
        for row in 0..self.grid.rows {
            views.extend((0..self.grid.cols).map(|col| self.view(ViewKind::Slice { col, row }, self.slice)));
        }
        if self.overview_position == OverviewPosition::Last {
            views.push(overview);
        }
        debug_assert_eq!(views.len(), self.view_count() as usize, "one view per slice, and the overview");
        views
    }

    fn view(&self, kind: ViewKind, size: Size) -> View {
        debug_assert!(size.width.is_multiple_of(self.patch) && size.height.is_multiple_of(self.patch));
        View { kind, size, patches_wide: size.width / self.patch, patches_high: size.height / self.patch }
    }

    /// Where the slices are cut, row by row.
    ///
    /// For [`Cut::CutThenResize`] the boxes lie in the working image: each is width / cols by height / rows, rounded
    /// down, and the last column and row take what remains. For the other two they lie in the refined image
    /// ([`Self::refined`]) and have the size of a slice. In both cases they tile the image they lie in.
    pub fn crop_boxes(&self) -> Vec<Rect> {
        let Grid { cols, rows } = self.grid;
        if self.slices() == 0 {
            return Vec::new();
        }
        let whole = match self.cut {
            Cut::CutThenResize => self.working,
            Cut::ResizeThenCut | Cut::PadSquare => self.refined(),
        };
        let columns = spans(whole.width, cols);
        let boxes: Vec<Rect> = spans(whole.height, rows)
            .flat_map(|(y, height)| {
                columns.clone().map(move |(x, width)| Rect { x, y, size: Size::new(width, height) })
            })
            .collect();
        debug_assert_eq!(boxes.iter().map(|rect| rect.size.pixels()).sum::<u64>(), whole.pixels(), "boxes tile");
        boxes
    }

    /// Visual tokens in all views; separators are not included.
    pub fn visual_tokens(&self, rule: TokenRule) -> u64 {
        self.views().iter().map(|view| u64::from(rule.tokens(view))).sum()
    }

    /// Patches of all views.
    pub const fn patches(&self) -> u64 {
        let area = (self.patch as u64) * (self.patch as u64);
        (self.slice.pixels() / area) * (self.slices() as u64) + self.overview.pixels() / area
    }

    /// Separator tokens: one after every slice for [`Schema::CommaNewline`], none for [`Schema::Plain`].
    ///
    /// The tags of [`Schema::Tagged`] are text before they are tokens, so only the model's tokenizer can count them;
    /// 0 is returned for it. The prompt's whole length comes from the model in every case.
    pub const fn separators(&self, schema: Schema) -> u32 {
        match schema {
            Schema::CommaNewline => self.slices(),
            Schema::Tagged | Schema::Plain => 0,
        }
    }
}

/// `length` in `parts` parts of equal size (offset, length), rounded down; the last takes what remains.
fn spans(length: u32, parts: u32) -> impl Iterator<Item = (u32, u32)> + Clone {
    let step = length / parts.max(1);
    (0..parts).map(move |i| {
        let offset = i * step;
        (offset, if i + 1 == parts { length - offset } else { step })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SlicingPolicy;

    fn plan(name: &str, width: u32, height: u32) -> SlicePlan {
        SlicingPolicy::named(name).unwrap().plan(Size::new(width, height)).unwrap()
    }

    #[test]
    fn views_stand_in_the_order_of_the_sequence() {
        let kinds = |name| plan(name, 1000, 500).views().iter().map(|view| view.kind).collect::<Vec<_>>();
        let slices = [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)].map(|(col, row)| ViewKind::Slice { col, row });
        assert_eq!(kinds("llava-uhd"), [&slices[..], &[ViewKind::Overview]].concat());
        let slices = [0, 1].map(|col| ViewKind::Slice { col, row: 0 });
        assert_eq!(kinds("minicpm-v"), [&[ViewKind::Overview], &slices[..]].concat());
        assert_eq!(kinds("whole"), [ViewKind::Overview]);
    }

    #[test]
    fn the_last_column_and_row_take_the_remainder() {
        let plan = plan("llava-uhd-paper", 1001, 701);
        assert_eq!(plan.grid, Grid { cols: 3, rows: 2 });
        let rect = |x, y, width, height| Rect { x, y, size: Size::new(width, height) };
        let expected = [
            rect(0, 0, 333, 350),
            rect(333, 0, 333, 350),
            rect(666, 0, 335, 350),
            rect(0, 350, 333, 351),
            rect(333, 350, 333, 351),
            rect(666, 350, 335, 351),
        ];
        assert_eq!(plan.crop_boxes(), expected);
    }

    #[test]
    fn resized_images_are_cut_into_equal_tiles() {
        let plan = plan("fixed-2x2", 1001, 701);
        assert_eq!(plan.refined(), Size::new(672, 672));
        let corners: Vec<_> = plan.crop_boxes().iter().map(|rect| (rect.x, rect.y)).collect();
        assert_eq!(corners, [(0, 0), (336, 0), (0, 336), (336, 336)]);
    }

    #[test]
    fn token_counts_follow_the_token_rule() {
        let plan = plan("llava-uhd-raw", 672, 1008);
        assert_eq!((plan.grid, plan.slice), (Grid { cols: 2, rows: 3 }, Size::new(336, 336)));
        assert_eq!(plan.overview, Size::new(266, 406));
        assert_eq!(plan.visual_tokens(TokenRule::Queries(144)), 1008);
        assert_eq!(plan.visual_tokens(TokenRule::Patches), 6 * 576 + 19 * 29);
        assert_eq!(plan.patches(), 6 * 576 + 19 * 29);
        assert_eq!(plan.separators(Schema::CommaNewline), 6);
    }
}
