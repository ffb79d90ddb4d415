//! A whole model where it lives: tower, projector and language model.

use candle_core::{Result, Tensor};
use rayon::prelude::*;
use slicemill_core::TokenRule;
use slicemill_pipeline::PreparedView;

use crate::checkpoint::Weights;
use crate::config::ModelConfig;
use crate::decoder::Decoder;
use crate::error::Loaded;
use crate::kernels;
use crate::ops::{Engine, Loader, Place};
use crate::position::PatchGrid;
use crate::projector::Projector;
use crate::vision::{PackedViews, VisionTower};

/// Patches that the CPU takes through the tower together: their activations stay in the second-level cache.
const GROUP_PATCHES: usize = 320;

/// Tower, projector and language model.
#[derive(Debug)]
pub struct Model {
    /// Where it lives.
    pub place: Place,
    vision: VisionTower,
    projector: Projector,
    token_rule: TokenRule,
    /// The language model.
    pub decoder: Decoder,
}

impl Model {
    /// Loads the weights, which must have been checked against the manifest of `config`.
    ///
    /// # Errors
    /// When the device has no room for them.
    pub fn load(config: &ModelConfig, weights: &Weights, context: usize, place: &Place) -> Loaded<Self> {
        let loader = Loader { weights, place };
        Ok(Self {
            place: place.clone(),
            vision: VisionTower::load(&config.vision, &config.names.vision, loader)?,
            projector: Projector::load(config, loader)?,
            token_rule: config.token_rule(),
            decoder: Decoder::load(&config.decoder, &config.names, context, loader)?,
        })
    }

    /// Visual tokens of a view.
    pub const fn tokens_of(&self, view: &PreparedView) -> usize {
        match self.token_rule {
            TokenRule::Queries(queries) => queries as usize,
            TokenRule::Patches => (view.patches_wide * view.patches_high) as usize,
        }
    }

    /// Features of the tower, `[Σ patches, vision width]`.
    ///
    /// # Errors
    /// When a view has another number of values than its grid says.
    pub fn features(&self, views: &[&PreparedView]) -> Result<Tensor> {
        self.vision.forward(&self.pack(views)?)
    }

    /// Visual tokens of every view in order, `[Σ tokens, width]`.
    ///
    /// # Errors
    /// When a view has another number of values than its grid says.
    pub fn encode(&self, views: &[&PreparedView]) -> Result<Tensor> {
        match self.place.engine {
            Engine::Candle => self.encode_group(views),
            Engine::Kernels(_) => {
                let groups = groups(views, kernels::threads());
                let parts: Vec<Tensor> = if groups.len() < kernels::threads() {
                    groups.iter().map(|group| self.encode_group(group)).collect::<Result<_>>()?
                } else {
                    groups.par_iter().map(|group| kernels::alone(|| self.encode_group(group))).collect::<Result<_>>()?
                };
                Tensor::cat(&parts, 0)
            }
        }
    }

    fn encode_group(&self, views: &[&PreparedView]) -> Result<Tensor> {
        let packed = self.pack(views)?;
        self.projector.forward(&self.vision.forward(&packed)?, &packed.grids)
    }

    fn pack(&self, views: &[&PreparedView]) -> Result<PackedViews> {
        let grids: Vec<PatchGrid> = views
            .iter()
            .map(|view| PatchGrid { high: view.patches_high as usize, wide: view.patches_wide as usize })
            .collect();
        let patches: usize = grids.iter().map(|grid| grid.patches()).sum();
        let mut values = Vec::with_capacity(views.iter().map(|view| view.patches.len()).sum());
        views.iter().for_each(|view| values.extend_from_slice(&view.patches));
        if patches == 0 || !values.len().is_multiple_of(patches) {
            candle_core::bail!("{patches} patches cannot have {} values", values.len());
        }
        let width = values.len() / patches;
        Ok(PackedViews { patches: self.place.rows(values, width)?, grids })
    }
}

/// Neighbouring views in groups of about [`GROUP_PATCHES`], fewer when every thread would not get two groups.
fn groups<'a, 'v>(views: &'a [&'v PreparedView], threads: usize) -> Vec<&'a [&'v PreparedView]> {
    let patches = |view: &PreparedView| (view.patches_high * view.patches_wide) as usize;
    let total: usize = views.iter().map(|view| patches(view)).sum();
    let target = (total / (2 * threads)).clamp(1, GROUP_PATCHES);
    let (mut groups, mut start, mut held) = (Vec::new(), 0, 0);
    for (i, view) in views.iter().enumerate() {
        held += patches(view);
        if held >= target || i + 1 == views.len() {
            groups.push(&views[start..=i]);
            (start, held) = (i + 1, 0);
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_hold_every_view_once_in_order() {
        let views: Vec<PreparedView> =
            (1..40).map(|n| PreparedView { patches_wide: n, patches_high: 8, patches: Vec::new() }).collect();
        let views: Vec<&PreparedView> = views.iter().collect();
        for threads in [1, 2, 64] {
            let groups = groups(&views, threads);
            assert_eq!(groups.concat(), views);
            assert!(groups.iter().all(|group| !group.is_empty()));
            assert!(groups.len() >= threads.min(20), "{threads}");
        }
    }
}
