//! Position tables that are interpolated to the patch grid of a view.
//!
//! `torch.nn.functional.interpolate(mode="bicubic", align_corners=False)` in f32: cubic convolution with a = −0.75 over
//! 4 × 4 neighbours, clamped at the border, no antialiasing. Results are kept per grid, because an image has at most
//! two shapes of views and images of a dataset share them.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use candle_core::{Result, Tensor};

use crate::ops::Place;

/// Bytes of interpolated tables that are kept.
const KEPT_BYTES_MAX: usize = 64 << 20;

/// A patch grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PatchGrid {
    /// Patches down.
    pub high: usize,
    /// Patches across.
    pub wide: usize,
}

impl PatchGrid {
    /// Number of patches.
    pub const fn patches(self) -> usize {
        self.high * self.wide
    }
}

/// A square table of positions, `[side · side, width]` row-major, and its interpolations.
#[derive(Debug)]
pub struct PositionTable {
    values: Vec<f32>,
    side: usize,
    width: usize,
    place: Place,
    kept: Mutex<HashMap<PatchGrid, Tensor>>,
}

impl PositionTable {
    /// From `[side · side, width]` values.
    pub fn new(place: &Place, values: Vec<f32>, side: usize) -> Self {
        let width = values.len() / (side * side);
        Self { values, side, width, place: place.clone(), kept: Mutex::default() }
    }

    /// The table of a grid, `[patches, width]`.
    pub fn of(&self, grid: PatchGrid) -> Result<Tensor> {
        if let Some(table) = self.kept.lock().unwrap_or_else(PoisonError::into_inner).get(&grid) {
            return Ok(table.clone());
        }
        let values = interpolate_bicubic(&self.values, self.side, self.width, grid);
        let table = self.place.rows(values, self.width)?;
        let bytes = grid.patches() * self.width * size_of::<f32>();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let held: usize = kept.keys().map(|grid| grid.patches() * self.width * size_of::<f32>()).sum();
        if held + bytes > KEPT_BYTES_MAX {
            kept.clear();
        }
        kept.insert(grid, table.clone());
        Ok(table)
    }
}

/// Four neighbours of an output position, clamped, and their weights.
fn neighbours(position: usize, from: usize, to: usize) -> [(usize, f32); 4] {
    const A: f32 = -0.75;
    let near = |x: f32| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f32| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    // One rounding, as in torch's compiled kernels: around position 20 a second one would be worth 2e-6 of the table.
    let source = (from as f32 / to as f32).mul_add(position as f32 + 0.5, -0.5);
    let (start, t) = (source.floor(), source - source.floor());
    let weights = [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)];
    std::array::from_fn(|i| {
        let index = (start + i as f32 - 1.0).clamp(0.0, (from - 1) as f32);
        (index as usize, weights[i])
    })
}

/// Resamples `[side · side, width]` to `[grid.high · grid.wide, width]`; the table itself when the grid is its own.
pub fn interpolate_bicubic(table: &[f32], side: usize, width: usize, grid: PatchGrid) -> Vec<f32> {
    if grid == (PatchGrid { high: side, wide: side }) {
        return table.to_vec();
    }
    let across: Vec<_> = (0..grid.wide).map(|x| neighbours(x, side, grid.wide)).collect();
    let mut out = vec![0.0; grid.patches() * width];
    for (y, rows) in out.chunks_exact_mut(grid.wide * width).enumerate() {
        for (row, vertical) in neighbours(y, side, grid.high) {
            for (out, horizontal) in rows.chunks_exact_mut(width).zip(&across) {
                let source = |i: usize| &table[(row * side + horizontal[i].0) * width..][..width];
                let [a, b, c, d] = [source(0), source(1), source(2), source(3)];
                for j in 0..width {
                    let line = a[j] * horizontal[0].1
                        + b[j] * horizontal[1].1
                        + c[j] * horizontal[2].1
                        + d[j] * horizontal[3].1;
                    out[j] += line * vertical;
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_stays_constant_and_its_own_grid_is_untouched() {
        let table = vec![0.5; 4 * 4 * 3];
        for (high, wide) in [(1, 1), (3, 9), (7, 2)] {
            let out = interpolate_bicubic(&table, 4, 3, PatchGrid { high, wide });
            assert!(out.iter().all(|x| (x - 0.5).abs() < 1e-6) && out.len() == high * wide * 3);
        }
        let table: Vec<f32> = (0..48_u8).map(f32::from).collect();
        assert_eq!(interpolate_bicubic(&table, 4, 3, PatchGrid { high: 4, wide: 4 }), table);
    }

    #[test]
    fn kept_tables_are_bounded() {
        let table = PositionTable::new(&Place::cpu(), vec![1.0; 256], 1);
        for wide in 1..60 {
            table.of(PatchGrid { high: 100, wide }).unwrap();
        }
        let held: usize = table.kept.lock().unwrap().keys().map(|g| g.patches() * 1024).sum();
        assert!((1..=KEPT_BYTES_MAX).contains(&held), "{held}");
    }
}
