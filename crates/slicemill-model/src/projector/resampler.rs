//! The perceiver resampler of LLaVA-UHD's 64-query variant and of MiniCPM-V: learned queries attend to all patches of a
//! view.
//!
//! ```text
//!   q = ln_q(query) + pos_embed                      the same for every view; no pos_embed in MiniCPM-V
//!   x = ln_kv(kv_proj(features))
//!   k = x + positions of the patch grid              v = x
//!   tokens = ln_post(attention(q, k, v)) · proj      (proj is not transposed)
//! ```
//!
//! Positions of keys are the interpolated pos_embed (LLaVA-UHD) or sines and cosines of the grid (MiniCPM-V).

use candle_core::{Result, Tensor};

use crate::attention::{Queries, attend_segments};
use crate::config::Positions;
use crate::error::Loaded;
use crate::kernels::AttentionShape;
use crate::ops::{LayerNorm, Linear, Loader, Place, add_tables};
use crate::position::{PatchGrid, PositionTable};

/// Added to the variance in the resampler's layer norms.
const EPS: f32 = 1e-6;

/// What resamplers have in common: keys and values from features, and what follows the attention.
#[derive(Debug)]
pub(super) struct Frame {
    /// Absent when the widths are equal.
    kv: Option<Linear>,
    ln_kv: LayerNorm,
    out: Linear,
    ln_post: LayerNorm,
    proj: Linear,
}

impl Frame {
    pub(super) fn load(vision: usize, width: usize, prefix: &str, loader: Loader<'_>) -> Loaded<Self> {
        let name = |name: &str| format!("{prefix}.{name}");
        let proj = loader.tensor(&name("proj"))?.t()?.contiguous()?;
        Ok(Self {
            kv: if vision == width { None } else { Some(loader.linear(&[name("kv_proj")], false)?) },
            ln_kv: loader.layer_norm(&name("ln_kv"), EPS)?,
            out: loader.linear(&[name("attn.out_proj")], true)?,
            ln_post: loader.layer_norm(&name("ln_post"), EPS)?,
            proj: Linear::new(loader.place, &proj, None)?,
        })
    }

    /// `ln_kv(kv_proj(features))`.
    pub(super) fn input(&self, features: &Tensor) -> Result<Tensor> {
        match &self.kv {
            Some(kv) => self.ln_kv.forward(&kv.forward(features)?),
            None => self.ln_kv.forward(features),
        }
    }

    /// `ln_post(out_proj(attended)) · proj`.
    pub(super) fn output(&self, attended: &Tensor) -> Result<Tensor> {
        self.proj.forward(&self.ln_post.forward(&self.out.forward(attended)?)?)
    }
}

/// Normalised queries plus `positions`, through the query part of the attention's input projection.
pub(super) fn projected_queries(
    width: usize,
    positions: Option<Vec<f32>>,
    prefix: &str,
    loader: Loader<'_>,
) -> Loaded<Tensor> {
    let place = loader.place;
    let mut queries =
        loader.layer_norm(&format!("{prefix}.ln_q"), EPS)?.forward(&loader.tensor(&format!("{prefix}.query"))?)?;
    if let Some(positions) = positions {
        queries = (queries + place.rows(positions, width)?)?;
    }
    let (weight, bias) = input_part(0, width, prefix, loader)?;
    Ok(Linear::new(place, &weight, Some(bias))?.forward(&queries)?)
}

/// Weight and bias of one of the three parts (query, key, value) of the attention's input projection.
pub(super) fn input_part(part: usize, width: usize, prefix: &str, loader: Loader<'_>) -> Loaded<(Tensor, Tensor)> {
    let weight = loader.tensor(&format!("{prefix}.attn.in_proj_weight"))?;
    let bias = loader.tensor(&format!("{prefix}.attn.in_proj_bias"))?;
    let (weight, bias) = (weight.narrow(0, part * width, width)?, bias.narrow(0, part * width, width)?);
    Ok((weight.contiguous()?, bias.contiguous()?))
}

/// A perceiver resampler.
#[derive(Debug)]
pub struct Resampler {
    place: Place,
    attention: AttentionShape,
    frame: Frame,
    /// Normalised and projected queries, `[queries, width]`.
    queries: Tensor,
    positions: PositionTable,
    key: Linear,
    value: Linear,
}

impl Resampler {
    pub(crate) fn load(
        vision: usize,
        width: usize,
        heads: usize,
        positions: Positions,
        prefix: &str,
        loader: Loader<'_>,
    ) -> Loaded<Self> {
        let place = loader.place;
        let stored = match positions {
            Positions::Stored => Some(loader.weights.values(&format!("{prefix}.pos_embed"))?),
            Positions::Computed => None,
        };
        let input = |part: usize| -> Loaded<Linear> {
            let (weight, bias) = input_part(part, width, prefix, loader)?;
            Ok(Linear::new(place, &weight, Some(bias))?)
        };
        Ok(Self {
            place: place.clone(),
            attention: AttentionShape { heads, kv_heads: heads, head_dim: width / heads },
            frame: Frame::load(vision, width, prefix, loader)?,
            queries: projected_queries(width, stored.clone(), prefix, loader)?,
            positions: match stored {
                Some(table) => {
                    let side = (table.len() / width).isqrt();
                    PositionTable::bicubic(place, table, side)
                }
                None => PositionTable::sin_cos(place, width),
            },
            key: input(1)?,
            value: input(2)?,
        })
    }

    /// Visual tokens of all views in order, `[views · queries, width]`.
    pub fn forward(&self, features: &Tensor, grids: &[PatchGrid]) -> Result<Tensor> {
        let x = self.frame.input(features)?;
        let tables: Vec<Tensor> = grids.iter().map(|&grid| self.positions.of(grid)).collect::<Result<_>>()?;
        let key = self.key.forward(&add_tables(self.place.engine, &x, &tables)?)?;
        let value = self.value.forward(&x)?;
        let lengths: Vec<usize> = grids.iter().map(|grid| grid.patches()).collect();
        let queries = Queries::Shared(&self.queries);
        let attended = attend_segments(&self.place, self.attention, queries, &key, &value, &lengths)?;
        self.frame.output(&attended)
    }
}
