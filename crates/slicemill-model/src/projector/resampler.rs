//! The perceiver resampler of LLaVA-UHD's 64-query variant: grid × grid learned queries attend to all patches of a view.
//!
//! ```text
//!   q = ln_q(query) + pos_embed                      the same for every view
//!   x = ln_kv(kv_proj(features))
//!   k = x + interpolate(pos_embed, patch grid)       v = x
//!   tokens = ln_post(attention(q, k, v)) · proj      (proj is not transposed)
//! ```

use candle_core::{Result, Tensor};

use crate::attention::{Queries, attend_segments};
use crate::error::Loaded;
use crate::kernels::AttentionShape;
use crate::ops::{LayerNorm, Linear, Loader, Place, add_tables};
use crate::position::{PatchGrid, PositionTable};

/// Added to the variance in the resampler's layer norms.
const EPS: f32 = 1e-6;

/// A perceiver resampler.
#[derive(Debug)]
pub struct Resampler {
    place: Place,
    attention: AttentionShape,
    kv: Linear,
    ln_kv: LayerNorm,
    /// Normalised and projected queries, `[queries, width]`.
    queries: Tensor,
    positions: PositionTable,
    key: Linear,
    value: Linear,
    out: Linear,
    ln_post: LayerNorm,
    proj: Linear,
}

impl Resampler {
    pub(crate) fn load(width: usize, grid: usize, heads: usize, prefix: &str, loader: Loader<'_>) -> Loaded<Self> {
        let place = loader.place;
        let name = |name: &str| format!("{prefix}.{name}");
        let (weight, bias) = (loader.tensor(&name("attn.in_proj_weight"))?, loader.tensor(&name("attn.in_proj_bias"))?);
        let input = |part: usize| {
            Linear::new(
                place,
                &weight.narrow(0, part * width, width)?.contiguous()?,
                Some(bias.narrow(0, part * width, width)?.contiguous()?),
            )
        };
        let positions = loader.weights.values(&name("pos_embed"))?;
        let queries = loader.layer_norm(&name("ln_q"), EPS)?.forward(&loader.tensor(&name("query"))?)?;
        let queries = (queries + place.rows(positions.clone(), width)?)?;
        Ok(Self {
            place: place.clone(),
            attention: AttentionShape { heads, kv_heads: heads, head_dim: width / heads },
            kv: loader.linear(&[name("kv_proj")], false)?,
            ln_kv: loader.layer_norm(&name("ln_kv"), EPS)?,
            queries: input(0)?.forward(&queries)?,
            positions: PositionTable::new(place, positions, grid),
            key: input(1)?,
            value: input(2)?,
            out: loader.linear(&[name("attn.out_proj")], true)?,
            ln_post: loader.layer_norm(&name("ln_post"), EPS)?,
            proj: Linear::new(place, &loader.tensor(&name("proj"))?.t()?.contiguous()?, None)?,
        })
    }

    /// Visual tokens of all views in order, `[views · queries, width]`.
    pub fn forward(&self, features: &Tensor, grids: &[PatchGrid]) -> Result<Tensor> {
        let x = self.ln_kv.forward(&self.kv.forward(features)?)?;
        let tables: Vec<Tensor> = grids.iter().map(|&grid| self.positions.of(grid)).collect::<Result<_>>()?;
        let key = self.key.forward(&add_tables(self.place.engine, &x, &tables)?)?;
        let value = self.value.forward(&x)?;
        let lengths: Vec<usize> = grids.iter().map(|grid| grid.patches()).collect();
        let queries = Queries::Shared(&self.queries);
        let attended = attend_segments(&self.place, self.attention, queries, &key, &value, &lengths)?;
        self.proj.forward(&self.ln_post.forward(&self.out.forward(&attended)?)?)
    }
}
