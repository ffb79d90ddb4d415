//! Projectors: features of a packed batch of views → visual tokens of the language model's width.

mod mlp;
mod resampler;
mod spatial;
mod windows;

use candle_core::{Result, Tensor};
pub use mlp::{Mlp, mlp_names};
pub use resampler::Resampler;
pub use spatial::SpatialResampler;
#[cfg(test)]
pub use windows::windows;

use crate::config::{ModelConfig, ProjectorConfig};
use crate::error::Loaded;
use crate::ops::Loader;
use crate::position::PatchGrid;

/// A projector.
#[derive(Debug)]
pub enum Projector {
    /// Every query attends to all patches of its view.
    Resampler(Box<Resampler>),
    /// Every query attends to its own window of the view.
    Spatial(Box<SpatialResampler>),
    /// Patch by patch.
    Mlp(Mlp),
}

impl Projector {
    pub(crate) fn load(config: &ModelConfig, loader: Loader<'_>) -> Loaded<Self> {
        let (prefix, width, vision) = (&config.names.projector, config.decoder.width, config.vision.width);
        Ok(match config.projector {
            ProjectorConfig::Resampler { heads, positions, .. } => {
                Self::Resampler(Box::new(Resampler::load(vision, width, heads, positions, prefix, loader)?))
            }
            ProjectorConfig::Spatial { heads, rounding } => {
                Self::Spatial(Box::new(SpatialResampler::load(vision, width, heads, rounding, prefix, loader)?))
            }
            ProjectorConfig::Mlp => Self::Mlp(Mlp::load(prefix, loader)?),
        })
    }

    /// Visual tokens of all views in order, `[Σ tokens, width]`.
    pub fn forward(&self, features: &Tensor, grids: &[PatchGrid]) -> Result<Tensor> {
        match self {
            Self::Resampler(resampler) => resampler.forward(features, grids),
            Self::Spatial(resampler) => resampler.forward(features, grids),
            Self::Mlp(mlp) => mlp.forward(features),
        }
    }
}
