//! Vision towers: patches of a packed batch of views → features.

mod transformer;

use candle_core::Tensor;
pub use transformer::VisionTower;

use crate::position::PatchGrid;

/// Views packed along the patch axis, without padding.
#[derive(Debug, Clone)]
pub struct PackedViews {
    /// `[Σ patches, 3 · patch · patch]`, each patch in the order channel, row, column.
    pub patches: Tensor,
    /// Patch grid of every view.
    pub grids: Vec<PatchGrid>,
}
