//! Vision towers: patches of a packed batch of views → features.

mod clip;

use candle_core::{Result, Tensor};
pub use clip::Clip;

use crate::config::ClipConfig;
use crate::error::Loaded;
use crate::ops::Loader;
use crate::position::PatchGrid;

/// Views packed along the patch axis, without padding.
#[derive(Debug, Clone)]
pub struct PackedViews {
    /// `[Σ patches, 3 · patch · patch]`, each patch in the order channel, row, column.
    pub patches: Tensor,
    /// Patch grid of every view.
    pub grids: Vec<PatchGrid>,
}

/// A vision tower.
#[derive(Debug)]
pub enum VisionTower {
    /// CLIP with interpolated positions.
    Clip(Clip),
}

impl VisionTower {
    pub(crate) fn load(config: &ClipConfig, prefix: &str, loader: Loader<'_>) -> Loaded<Self> {
        Ok(Self::Clip(Clip::load(config, prefix, loader)?))
    }

    /// Features of all patches, `[Σ patches, width]`.
    pub fn forward(&self, views: &PackedViews) -> Result<Tensor> {
        match self {
            Self::Clip(clip) => clip.forward(views),
        }
    }
}
