//! Projectors: features of a packed batch of views → visual tokens of the language model's width.

mod resampler;

use candle_core::{Result, Tensor};
pub use resampler::Resampler;

use crate::config::{ModelConfig, ProjectorConfig};
use crate::error::Loaded;
use crate::ops::Loader;
use crate::position::PatchGrid;

/// A projector.
#[derive(Debug)]
pub enum Projector {
    /// Every query attends to all patches of its view.
    Resampler(Resampler),
}

impl Projector {
    pub(crate) fn load(config: &ModelConfig, prefix: &str, loader: Loader<'_>) -> Loaded<Self> {
        match config.projector {
            ProjectorConfig::Resampler { grid, heads } => {
                Ok(Self::Resampler(Resampler::load(config.decoder.width, grid, heads, prefix, loader)?))
            }
        }
    }

    /// Visual tokens of all views in order, `[Σ tokens, width]`.
    pub fn forward(&self, features: &Tensor, grids: &[PatchGrid]) -> Result<Tensor> {
        match self {
            Self::Resampler(resampler) => resampler.forward(features, grids),
        }
    }
}
