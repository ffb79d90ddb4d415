//! The spatially constrained resampler of LLaVA-UHD v1: each of 12 × 12 queries attends to its own window of a view.
//!
//! ```text
//!   q = ln_q(query) + pos_embed                      the same for every view
//!   x = ln_kv(kv_proj(features))
//!   K = pool(x + interpolate(pos_embed, grid))       V = pool(x)       bins of every query's window
//!   tokens = ln_post(attention(q, K, V)) · proj      a query sees the bins of its window
//! ```
//!
//! Pooling is a weighted sum of patches, so keys and values are projected before it, which takes a third of the
//! products of the reference's order; their bias is added after it, because samples outside of a view count as zero.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;
use slicemill_core::WindowRounding;

use super::resampler::{Frame, input_part, projected_queries};
use super::windows::{SIDE, Windows, windows};
use crate::error::Loaded;
use crate::kernels::AttentionShape;
use crate::ops::{Engine, HostRows, Linear, Loader, Place, add_tables};
use crate::position::{PatchGrid, PositionTable};

/// Grids whose windows are kept; a dataset has a few hundred at most.
const KEPT_MAX: usize = 1024;

/// A spatially constrained resampler.
#[derive(Debug)]
pub struct SpatialResampler {
    place: Place,
    attention: AttentionShape,
    rounding: WindowRounding,
    frame: Frame,
    /// Normalised and projected queries, `[144, width]`, in f32.
    queries: Tensor,
    positions: PositionTable,
    key: Linear,
    value: Linear,
    /// Bias of keys and of values, `[width]`, in f32.
    biases: [Tensor; 2],
    kept: Mutex<HashMap<PatchGrid, Arc<Windows>>>,
}

impl SpatialResampler {
    pub(crate) fn load(
        vision: usize,
        width: usize,
        heads: usize,
        rounding: WindowRounding,
        prefix: &str,
        loader: Loader<'_>,
    ) -> Loaded<Self> {
        let place = loader.place;
        let table = loader.weights.values(&format!("{prefix}.pos_embed"))?;
        let ((key, key_bias), (value, value_bias)) =
            (input_part(1, width, prefix, loader)?, input_part(2, width, prefix, loader)?);
        Ok(Self {
            place: place.clone(),
            attention: AttentionShape { heads, kv_heads: heads, head_dim: width / heads },
            rounding,
            frame: Frame::load(vision, width, prefix, loader)?,
            queries: projected_queries(width, Some(table.clone()), prefix, loader)?.to_dtype(DType::F32)?,
            positions: PositionTable::bicubic(place, table, SIDE),
            key: Linear::new(place, &key, None)?,
            value: Linear::new(place, &value, None)?,
            biases: [key_bias.to_dtype(DType::F32)?, value_bias.to_dtype(DType::F32)?],
            kept: Mutex::default(),
        })
    }

    /// Visual tokens of all views in order, `[views · 144, width]`.
    pub fn forward(&self, features: &Tensor, grids: &[PatchGrid]) -> Result<Tensor> {
        let x = self.frame.input(features)?;
        let tables: Vec<Tensor> = grids.iter().map(|&grid| self.positions.of(grid)).collect::<Result<_>>()?;
        let keys = self.key.forward(&add_tables(self.place.engine, &x, &tables)?)?;
        let values = self.value.forward(&x)?;
        let (mut start, mut parts) = (0, Vec::with_capacity(grids.len()));
        for &grid in grids {
            let windows = self.windows(grid);
            let part = |rows: &Tensor| rows.narrow(0, start, grid.patches());
            let (keys, values) = (part(&keys)?, part(&values)?);
            parts.push(match self.place.engine {
                Engine::Kernels(_) => self.attend_host(&keys, &values, &windows)?,
                Engine::Candle => self.attend_device(&keys, &values, &windows, grid)?,
            });
            start += grid.patches();
        }
        self.frame.output(&Tensor::cat(&parts, 0)?)
    }

    fn windows(&self, grid: PatchGrid) -> Arc<Windows> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT_MAX && !kept.contains_key(&grid) {
            kept.clear();
        }
        Arc::clone(kept.entry(grid).or_insert_with(|| Arc::new(windows(grid, self.rounding))))
    }

    /// Window by window, in a fixed order of sums.
    fn attend_host(&self, keys: &Tensor, values: &Tensor, windows: &Windows) -> Result<Tensor> {
        let width = self.attention.width();
        let (queries, keys, values) = (HostRows::of(&self.queries)?, HostRows::of(keys)?, HostRows::of(values)?);
        let [key_bias, value_bias] = [self.biases[0].to_vec1::<f32>()?, self.biases[1].to_vec1::<f32>()?];
        let mut out = vec![0.0_f32; SIDE * SIDE * width];
        out.par_chunks_exact_mut(width).enumerate().for_each(|(window, out)| {
            let keys = pooled(&keys, windows, window, &key_bias);
            let values = pooled(&values, windows, window, &value_bias);
            let query = &queries.values()[window * queries.stride..][..width];
            attend_window(query, &keys, &values, self.attention.head_dim, out);
        });
        Tensor::from_vec(out, (SIDE * SIDE, width), &self.place.device)
    }

    /// All windows at once, with pooling as a product.
    fn attend_device(&self, keys: &Tensor, values: &Tensor, windows: &Windows, grid: PatchGrid) -> Result<Tensor> {
        let AttentionShape { heads, head_dim, .. } = self.attention;
        let (count, bins) = (SIDE * SIDE, windows.bins);
        let mut dense = vec![0.0_f32; count * bins * grid.patches()];
        for (row, at) in dense.chunks_exact_mut(grid.patches()).zip(0..) {
            windows.of(at / bins, at % bins).iter().for_each(|&(patch, weight)| row[patch as usize] = weight);
        }
        let pool = Tensor::from_vec(dense, (count * bins, grid.patches()), &self.place.device)?;
        let pooled = |rows: &Tensor, bias: &Tensor| -> Result<Tensor> {
            let rows = rows.to_dtype(DType::F32)?.contiguous()?;
            pool.matmul(&rows)?.broadcast_add(bias)?.reshape((count, bins, heads, head_dim))
        };
        let (keys, values) = (pooled(keys, &self.biases[0])?, pooled(values, &self.biases[1])?);
        let queries = (self.queries.reshape((count, 1, heads, head_dim))? / (head_dim as f64).sqrt())?;
        let scores = keys.broadcast_mul(&queries)?.sum(3)?;
        let weights = candle_nn::ops::softmax(&scores, 1)?.unsqueeze(3)?;
        values.broadcast_mul(&weights)?.sum(1)?.reshape((count, heads * head_dim))?.to_dtype(self.place.dtype)
    }
}

/// The bins of a window, `[bins, width]`.
fn pooled(rows: &HostRows<'_>, windows: &Windows, window: usize, bias: &[f32]) -> Vec<f32> {
    let mut out = Vec::with_capacity(windows.bins * bias.len());
    for bin in 0..windows.bins {
        let start = out.len();
        out.extend_from_slice(bias);
        for &(patch, weight) in windows.of(window, bin) {
            let row = &rows.values()[patch as usize * rows.stride..][..bias.len()];
            out[start..].iter_mut().zip(row).for_each(|(out, value)| *out += weight * value);
        }
    }
    out
}

/// One query over the bins of its window, head by head.
fn attend_window(query: &[f32], keys: &[f32], values: &[f32], head_dim: usize, out: &mut [f32]) {
    let width = query.len();
    let scale = 1.0 / (head_dim as f32).sqrt();
    for (head, (query, out)) in query.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim)).enumerate() {
        let of_bin = |bin: usize| bin * width + head * head_dim..bin * width + (head + 1) * head_dim;
        let scores: Vec<f32> = (0..keys.len() / width)
            .map(|bin| query.iter().zip(&keys[of_bin(bin)]).map(|(q, k)| q * scale * k).sum())
            .collect();
        let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f32> = scores.iter().map(|score| (score - largest).exp()).collect();
        let total: f32 = weights.iter().sum();
        for (bin, weight) in weights.iter().enumerate() {
            let share = weight / total;
            out.iter_mut().zip(&values[of_bin(bin)]).for_each(|(out, value)| *out += share * value);
        }
    }
}
