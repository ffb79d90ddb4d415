//! The windows of the spatially constrained resampler and their pooling.
//!
//! A view is divided into 12 × 12 equal windows, whatever its patch grid. RoIAlign (torchvision's `roi_align` with
//! `aligned = false` and an adaptive number of samples) pools each window to a few bins; how many, down and across,
//! follows the aspect of the view. (Source: `adapt_spatial_resampler.py` of the July 2024 release, torchvision's
//! `roi_align_kernel`.)

use half::f16;

use slicemill_core::WindowRounding;

use crate::config::SPATIAL_QUERIES;
use crate::position::PatchGrid;

/// Windows down and across.
pub(super) const SIDE: usize = 12;

/// Shapes a window can be pooled to: bins across and down.
const SHAPES: [(usize, usize); 7] = [(4, 2), (3, 2), (4, 3), (3, 3), (2, 4), (2, 3), (3, 4)];

/// How the bins of all windows are made from the patches of a view.
#[derive(Debug, Clone, PartialEq)]
pub struct Windows {
    /// Bins of a window.
    pub bins: usize,
    /// Patch and weight, bin by bin, window by window, row-major.
    pub weights: Vec<(u32, f32)>,
    /// Where every bin's weights end.
    pub ends: Vec<u32>,
}

impl Windows {
    /// The weights of a bin.
    pub fn of(&self, window: usize, bin: usize) -> &[(u32, f32)] {
        let at = window * self.bins + bin;
        let start = if at == 0 { 0 } else { self.ends[at - 1] as usize };
        &self.weights[start..self.ends[at] as usize]
    }
}

/// The shape, across and down, whose aspect is nearest to the grid's; the first of equals.
fn shape(grid: PatchGrid) -> (usize, usize) {
    let aspect = (grid.wide as f64 / grid.high as f64).ln();
    let error = |(across, down): (usize, usize)| (aspect - (across as f64 / down as f64).ln()).abs();
    SHAPES.into_iter().reduce(|best, next| if error(next) < error(best) { next } else { best }).unwrap_or((3, 3))
}

/// The windows of a patch grid.
pub fn windows(grid: PatchGrid, rounding: WindowRounding) -> Windows {
    let (across, down) = shape(grid);
    let (high, wide) = (grid.high as f64, grid.wide as f64);
    // The reference's own order of operations, in f64.
    let height = (high * wide / f64::from(SPATIAL_QUERIES) / (wide / high)).sqrt();
    let width = height * (wide / high);
    let corner = |value: f64| match rounding {
        WindowRounding::F32 => value as f32,
        WindowRounding::F16 => f16::from_f32(value as f32).to_f32(),
    };
    let mut windows = Windows { bins: across * down, weights: Vec::new(), ends: Vec::new() };
    for row in 0..SIDE {
        let (top, bottom) = (row as f64 * height, row as f64 * height + height);
        let rows = Axis::new(corner(top), corner(bottom), down, grid.high);
        for column in 0..SIDE {
            let (left, right) = (column as f64 * width, column as f64 * width + width);
            let columns = Axis::new(corner(left), corner(right), across, grid.wide);
            for bin in 0..across * down {
                windows.bin(rows.bin(bin / across), columns.bin(bin % across), grid.wide);
            }
        }
    }
    windows
}

impl Windows {
    /// Adds a bin: the mean of its samples, each interpolated between four patches.
    fn bin(&mut self, rows: &[Option<Sample>], columns: &[Option<Sample>], wide: usize) {
        let start = self.weights.len();
        let share = 1.0 / (rows.len() * columns.len()).max(1) as f32;
        let pairs = rows.iter().flat_map(|row| columns.iter().map(move |column| (*row, *column)));
        for (row, column) in pairs.filter_map(|(row, column)| Some((row?, column?))) {
            for (y, in_row) in row.parts() {
                for (x, in_column) in column.parts() {
                    let patch = u32::try_from(y * wide + x).unwrap_or(u32::MAX);
                    let weight = in_row * in_column * share;
                    match self.weights[start..].iter_mut().find(|(known, _)| *known == patch) {
                        Some((_, sum)) => *sum += weight,
                        None => self.weights.push((patch, weight)),
                    }
                }
            }
        }
        self.ends.push(u32::try_from(self.weights.len()).unwrap_or(u32::MAX));
    }
}

/// The samples of a window along one axis, bin by bin.
struct Axis {
    samples: Vec<Option<Sample>>,
    per_bin: usize,
}

/// A sample between two patches: the first, the second, and the second's share. A sample outside of the view is
/// nothing.
#[derive(Debug, Clone, Copy)]
struct Sample {
    low: usize,
    high: usize,
    share: f32,
}

impl Sample {
    fn parts(self) -> [(usize, f32); 2] {
        [(self.low, 1.0 - self.share), (self.high, self.share)]
    }
}

impl Axis {
    fn new(start: f32, end: f32, bins: usize, patches: usize) -> Self {
        // A window is at least one patch long.
        let length = (end - start).max(1.0);
        let bin = length / bins as f32;
        let per_bin = (length / bins as f32).ceil() as usize;
        let sample = |i: usize| {
            let (bin_index, step) = ((i / per_bin) as f32, (i % per_bin) as f32);
            let position = start + bin_index * bin + (step + 0.5) * bin / per_bin as f32;
            (-1.0..=patches as f32).contains(&position).then(|| {
                let position = position.max(0.0);
                let low = position as usize;
                if low + 1 >= patches {
                    Sample { low: patches - 1, high: patches - 1, share: 0.0 }
                } else {
                    Sample { low, high: low + 1, share: position - low as f32 }
                }
            })
        };
        Self { samples: (0..bins * per_bin).map(sample).collect(), per_bin }
    }

    fn bin(&self, index: usize) -> &[Option<Sample>] {
        &self.samples[index * self.per_bin..][..self.per_bin]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trained_grid_has_windows_of_two_patches() {
        let windows = windows(PatchGrid { high: 24, wide: 24 }, WindowRounding::F32);
        assert_eq!((windows.bins, windows.ends.len()), (9, 144 * 9));
        for window in 0..144 {
            for bin in 0..9 {
                let sum: f32 = windows.of(window, bin).iter().map(|(_, weight)| weight).sum();
                assert!((sum - 1.0).abs() < 1e-6, "{window} {bin}: {sum}");
            }
        }
        let corner = windows.of(0, 0);
        assert_eq!(corner[0].0, 0);
        assert!((corner[0].1 - 4.0 / 9.0).abs() < 1e-6, "the sample lies a third of a patch from the first");
    }

    #[test]
    fn every_shape_is_that_of_the_nearest_aspect() {
        let shape = |wide, high| shape(PatchGrid { high, wide });
        assert_eq!(shape(24, 24), (3, 3));
        assert_eq!(shape(40, 20), (4, 2));
        assert_eq!(shape(100, 4), (4, 2));
        assert_eq!(shape(4, 100), (2, 4));
        assert_eq!(shape(36, 24), (3, 2));
    }

    #[test]
    fn narrow_views_stay_inside() {
        for (high, wide) in [(1, 60), (60, 1), (2, 241), (11, 13)] {
            for rounding in [WindowRounding::F32, WindowRounding::F16] {
                let windows = windows(PatchGrid { high, wide }, rounding);
                assert!(windows.weights.iter().all(|&(patch, weight)| (patch as usize) < high * wide && weight >= 0.0));
            }
        }
    }
}
