//! Positions for the patch grid of a view: interpolated from a table, picked from it, or computed.
//!
//! Interpolation is `torch.nn.functional.interpolate(mode="bicubic", align_corners=False)` in f32: cubic convolution
//! with a = −0.75 over 4 × 4 neighbours, clamped at the border, no antialiasing. Results are kept per grid, because an
//! image has at most two shapes of views and images of a dataset share them.

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

/// Where positions come from. Tables are square, `[side · side, width]` row-major.
#[derive(Debug)]
enum Source {
    Bicubic { table: Vec<f32>, side: usize },
    Nearest { table: Vec<f32>, side: usize },
    SinCos,
}

/// Positions of any patch grid.
#[derive(Debug)]
pub struct PositionTable {
    source: Source,
    width: usize,
    place: Place,
    kept: Mutex<HashMap<PatchGrid, Tensor>>,
}

impl PositionTable {
    fn from(place: &Place, source: Source, width: usize) -> Self {
        Self { source, width, place: place.clone(), kept: Mutex::default() }
    }

    /// A table of `[side · side, width]` values that is interpolated bicubically ([`interpolate_bicubic`]).
    pub fn bicubic(place: &Place, table: Vec<f32>, side: usize) -> Self {
        let width = table.len() / (side * side);
        Self::from(place, Source::Bicubic { table, side }, width)
    }

    /// A table of `[side · side, width]` values of which the row of the nearest place is picked ([`nearest`]).
    pub fn nearest(place: &Place, table: Vec<f32>, side: usize) -> Self {
        let width = table.len() / (side * side);
        Self::from(place, Source::Nearest { table, side }, width)
    }

    /// Sines and cosines of the column and the row ([`sin_cos`]).
    pub fn sin_cos(place: &Place, width: usize) -> Self {
        Self::from(place, Source::SinCos, width)
    }

    /// The table of a grid, `[patches, width]`.
    pub fn of(&self, grid: PatchGrid) -> Result<Tensor> {
        if let Some(table) = self.kept.lock().unwrap_or_else(PoisonError::into_inner).get(&grid) {
            return Ok(table.clone());
        }
        let values = match &self.source {
            Source::Bicubic { table, side } => interpolate_bicubic(table, *side, self.width, grid),
            Source::Nearest { table, side } => nearest(table, *side, self.width, grid),
            Source::SinCos => sin_cos(self.width, grid),
        };
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

/// Rows of `[side · side, width]` for `[grid.high · grid.wide, width]`: those of the nearest place, as SigLIP for any
/// resolution picks them.
pub fn nearest(table: &[f32], side: usize, width: usize, grid: PatchGrid) -> Vec<f32> {
    let (rows, columns) = (buckets(grid.high, side), buckets(grid.wide, side));
    let picked = rows.iter().flat_map(|row| columns.iter().map(move |column| row * side + column));
    picked.flat_map(|at| &table[at * width..][..width]).copied().collect()
}

/// Places 0 to `side − 1` of `n` patches in a row: `torch.bucketize` of the fractions i / n between the boundaries
/// k / side, in f32. They are not `i · side / n` for every n, because the reference makes the fractions by
/// `torch.arange`, which on x86 adds steps to the first of every eight values, and by a product in the rest after the
/// last sixteen.
fn buckets(n: usize, side: usize) -> Vec<usize> {
    let step = f64::from(1.0 / n as f32);
    let vectorised = 16 * (n / 16);
    let fraction = |i: usize| {
        let first = 8 * (i / 8);
        if i < vectorised {
            (f64::from((step * first as f64) as f32) + (i - first) as f64 * step) as f32
        } else {
            (step * i as f64) as f32
        }
    };
    let cell = 1.0 / side as f64;
    let boundaries: Vec<f32> = (0..side - 1).map(|k| (cell + k as f64 * cell) as f32).collect();
    (0..n).map(|i| boundaries.partition_point(|&boundary| boundary <= fraction(i))).collect()
}

/// `[grid.high · grid.wide, width]`: the first half of a row encodes its column, the second its row, each as all sines
/// and then all cosines of the angles `p / 10000^(4k / width)`.
pub fn sin_cos(width: usize, grid: PatchGrid) -> Vec<f32> {
    let quarter = width / 4;
    let omega: Vec<f32> = (0..quarter).map(|k| 1.0 / 10_000_f32.powf(k as f32 / quarter as f32)).collect();
    let encode = |position: usize| {
        let angles = omega.iter().map(move |omega| position as f32 * omega);
        angles.clone().map(f32::sin).chain(angles.map(f32::cos))
    };
    let places = (0..grid.high).flat_map(|row| (0..grid.wide).map(move |column| (row, column)));
    places.flat_map(|(row, column)| encode(column).chain(encode(row))).collect()
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
        let table = PositionTable::bicubic(&Place::cpu(), vec![1.0; 256], 1);
        for wide in 1..60 {
            table.of(PatchGrid { high: 100, wide }).unwrap();
        }
        let held: usize = table.kept.lock().unwrap().keys().map(|g| g.patches() * 1024).sum();
        assert!((1..=KEPT_BYTES_MAX).contains(&held), "{held}");
    }

    #[test]
    fn buckets_are_monotonic_and_whole_where_they_must_be() {
        for n in 1..200 {
            let buckets = buckets(n, 70);
            assert!(buckets.is_sorted() && buckets[0] == 0 && buckets[n - 1] < 70, "{n}");
        }
        assert_eq!(buckets(70, 70), (0..70).collect::<Vec<_>>());
        assert_eq!(buckets(7, 70), [0, 10, 20, 30, 40, 50, 60]);
        // A place where the reference differs from the integer quotient.
        let integer: Vec<usize> = (0..100).map(|i| i * 70 / 100).collect();
        assert_ne!(buckets(100, 70), integer);
    }

    #[test]
    fn sines_and_cosines_stand_column_first() {
        let table = sin_cos(8, PatchGrid { high: 2, wide: 3 });
        assert_eq!(table.len(), 48);
        let at = |row: usize, column: usize| &table[(row * 3 + column) * 8..][..8];
        assert_eq!(at(0, 0), [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0]);
        assert!((at(0, 2)[0] - 2.0_f32.sin()).abs() < 1e-6 && at(0, 2)[4] == 0.0);
        assert!((at(1, 0)[4] - 1.0_f32.sin()).abs() < 1e-6 && (at(1, 0)[5] - 0.01_f32.sin()).abs() < 1e-6);
    }
}
