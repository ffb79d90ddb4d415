//! From a size to a plan: one function, driven by the fields of the policy.
//!
//! ```text
//!   image ─▶ pre-resize ─▶ grid ─▶ slice size ─▶ overview size ─▶ limits ─▶ SlicePlan
//! ```
//!
//! The published code computes in 64-bit floats, and many sizes lie exactly between two grids or two roundings, so
//! that the order of operations decides. Every expression here keeps the order of its source: JUL is thunlp/LLaVA-UHD,
//! branch `LLaVA-UHD-v1` at dd7f6cc (July 2024), `llava/slice_process.py`; MAR the same repository at d0d857d (March
//! 2024), `slice_logic.py`; BET is ParadoxZW/LLaVA-UHD-Better at 2c1dc19; MCV is OpenBMB/MiniCPM-V at 0dbb566,
//! `finetune/dataset.py`. The casts to integers truncate, as Python's `int()` does; out of range they saturate.

#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod property_tests;

use crate::{CandidateRule, Cut, Grid, Partition, PlanRejection, Rounding, Size, SlicePlan, SlicingPolicy};

impl SlicingPolicy {
    /// What will be encoded of an image of this size (after orientation). Pure, and total: every size has a plan or
    /// a rejection.
    ///
    /// # Errors
    /// [`PlanRejection`] says why the size has no plan.
    pub fn plan(&self, image: Size) -> Result<SlicePlan, PlanRejection> {
        self.validate().map_err(PlanRejection::InvalidPolicy)?;
        if image.width == 0 || image.height == 0 {
            return Err(PlanRejection::EmptyImage(image));
        }
        let working = match self.pre_resize {
            Some(long_side) => resize_long_side(image, long_side)?,
            None => image,
        };
        let grid = self.grid(working);
        let plan = SlicePlan {
            image,
            working,
            grid,
            cut: self.cut,
            slice: self.slice_size(working, grid)?,
            overview: self.overview_size(working, grid),
            overview_position: self.overview,
            patch: self.patch,
        };
        self.check_views(&plan)?;
        Ok(plan)
    }

    /// The grid of slices; [`Grid::NONE`] when only the overview is encoded.
    fn grid(&self, working: Size) -> Grid {
        match self.partition {
            Partition::None => Grid::NONE,
            Partition::Fixed { cols, rows } => Grid { cols, rows },
            Partition::Adaptive(rule) => {
                // The ideal number of slices (paper, section 3.1), capped. The quotient is a float division in JUL
                // and MAR, and ceil makes it at least 1.
                let ideal = (working.pixels() as f64 / Size::new(self.side, self.side).pixels() as f64).ceil();
                let ideal = ideal.min(f64::from(self.max_slices)) as u32;
                match rule {
                    CandidateRule::Capped if ideal <= 1 => Grid::NONE,
                    CandidateRule::Capped => {
                        let counts = [ideal - 1, ideal, ideal + 1];
                        nearest_grid(working, counts.into_iter().filter(|&n| n != 1 && n <= self.max_slices))
                    }
                    CandidateRule::Widened => {
                        let least = if ideal <= 2 { ideal } else { ideal - 1 };
                        nearest_grid(working, least..=ideal + 1)
                    }
                }
            }
        }
    }

    /// Encoded size of every slice.
    fn slice_size(&self, working: Size, grid: Grid) -> Result<Size, PlanRejection> {
        if grid == Grid::NONE {
            return Ok(Size::new(0, 0));
        }
        match self.cut {
            Cut::ResizeThenCut => Ok(self.refined_slice(working, grid)),
            Cut::PadSquare => Ok(Size::new(self.side, self.side)),
            Cut::CutThenResize => {
                let tile = Size::new(working.width / grid.cols, working.height / grid.rows);
                if tile.width == 0 || tile.height == 0 {
                    return Err(PlanRejection::TooSmall { image: working, grid });
                }
                Ok(self.adapt_size(tile))
            }
        }
    }

    /// Encoded size of the overview.
    fn overview_size(&self, working: Size, grid: Grid) -> Size {
        match self.cut {
            Cut::PadSquare => Size::new(self.side, self.side),
            Cut::CutThenResize => self.adapt_size(working),
            // JUL `slice_image_minicpm`: enlarged only when it is the one view.
            Cut::ResizeThenCut => {
                self.best_resize(f64::from(working.width), f64::from(working.height), grid == Grid::NONE)
            }
        }
    }

    /// JUL `get_refine_size`, divided by the grid: the size of one slice.
    fn refined_slice(&self, working: Size, grid: Grid) -> Size {
        let width = self.ensure_divide(f64::from(working.width), grid.cols) / f64::from(grid.cols);
        let height = self.ensure_divide(f64::from(working.height), grid.rows) / f64::from(grid.rows);
        self.best_resize(width, height, true)
    }

    /// JUL and MCV `find_best_resize`: about side² pixels in the same aspect, in whole patches. The width comes from
    /// the height after its truncation.
    fn best_resize(&self, width: f64, height: f64, upscale: bool) -> Size {
        let side = f64::from(self.side);
        let (mut width, mut height) = (width, height);
        if upscale || width * height > side * side {
            let ratio = width / height;
            height = (side / ratio.sqrt()).trunc();
            width = (height * ratio).trunc();
        }
        Size::new(self.ensure_divide(width, self.patch) as u32, self.ensure_divide(height, self.patch) as u32)
    }

    /// JUL and MCV `ensure_divide`: the multiple of `unit` near `length`, at least `unit`.
    fn ensure_divide(&self, length: f64, unit: u32) -> f64 {
        let unit = f64::from(unit);
        let multiples = match self.rounding {
            Rounding::Floor => (length / unit).floor(),
            Rounding::HalfEven => (length / unit).round_ties_even(),
        };
        (multiples * unit).max(unit)
    }

    /// MAR and BET `adapt_size`: the most whole patches in the same aspect, at most (side / patch)². It is not exact
    /// on perfect ratios (a square of 320 gets 23 × 23 patches), and must not be made so.
    fn adapt_size(&self, size: Size) -> Size {
        let patches_max = self.square_patches() as f64;
        let patch = f64::from(self.patch);
        let (width, height) = (f64::from(size.width), f64::from(size.height));
        let scale = (patches_max * (patch / height) * (patch / width)).sqrt();
        let fit = |length: f64| (scale * length / patch).floor().min(patches_max).max(1.0) as u32 * self.patch;
        Size::new(fit(width), fit(height))
    }

    /// Refuses views with more patches than [`Self::VIEW_PATCHES_MAX`], and checks the plan's invariants.
    fn check_views(&self, plan: &SlicePlan) -> Result<(), PlanRejection> {
        for view in [plan.slice, plan.overview] {
            debug_assert!(view.width.is_multiple_of(self.patch) && view.height.is_multiple_of(self.patch));
            let patches = u64::from(view.width / self.patch) * u64::from(view.height / self.patch);
            if patches > Self::VIEW_PATCHES_MAX {
                return Err(PlanRejection::TooManyPatches { view, patches, patches_max: Self::VIEW_PATCHES_MAX });
            }
        }
        debug_assert!(plan.overview.pixels() > 0, "there is always an overview");
        debug_assert_eq!(plan.slice.pixels() > 0, plan.grid != Grid::NONE, "slices have a size where there are any");
        Ok(())
    }
}

/// JUL `resize_image_keep_ratio`: the long side becomes `long_side`, upwards too.
fn resize_long_side(image: Size, long_side: u32) -> Result<Size, PlanRejection> {
    let (width, height) = (f64::from(image.width), f64::from(image.height));
    let long = f64::from(long_side);
    let working = if image.width > image.height {
        Size::new(long_side, ((long / width) * height) as u32)
    } else {
        Size::new(((long / height) * width) as u32, long_side)
    };
    if working.width == 0 || working.height == 0 {
        return Err(PlanRejection::AspectTooExtreme { image, long_side });
    }
    Ok(working)
}

/// The grid with one of these numbers of slices whose aspect is nearest to the image's, on a logarithmic scale
/// (equation 2 of the paper). Among equals the first wins: fewer slices, then fewer columns.
fn nearest_grid(working: Size, counts: impl Iterator<Item = u32>) -> Grid {
    let aspect = (f64::from(working.width) / f64::from(working.height)).ln();
    let mut best = Grid { cols: 1, rows: 1 };
    let mut error_min = f64::INFINITY;
    for count in counts {
        for cols in (1..=count).filter(|&cols| count.is_multiple_of(cols)) {
            let rows = count / cols;
            let error = ((f64::from(cols) / f64::from(rows)).ln() - aspect).abs();
            if error < error_min {
                error_min = error;
                best = Grid { cols, rows };
            }
        }
    }
    best
}
