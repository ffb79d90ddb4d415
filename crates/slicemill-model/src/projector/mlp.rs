//! The projector of LLaVA-1.5: two linear layers with a GELU between, patch by patch.

use candle_core::{Result, Tensor};

use crate::error::Loaded;
use crate::kernels::Activation;
use crate::ops::{Linear, Loader};

/// Two linear layers.
#[derive(Debug)]
pub struct Mlp {
    first: Linear,
    second: Linear,
}

/// Names of the two layers under `prefix`: those of `nn.Sequential` in the published layout, those of transformers in
/// the converted one.
pub fn mlp_names(prefix: &str) -> [String; 2] {
    if prefix.ends_with("multi_modal_projector") {
        ["linear_1", "linear_2"].map(|name| format!("{prefix}.{name}"))
    } else {
        ["0", "2"].map(|name| format!("{prefix}.{name}"))
    }
}

impl Mlp {
    pub(crate) fn load(prefix: &str, loader: Loader<'_>) -> Loaded<Self> {
        let [first, second] = mlp_names(prefix);
        Ok(Self { first: loader.linear(&[first], true)?, second: loader.linear(&[second], true)? })
    }

    /// Visual tokens, one per patch: `[Σ patches, width]`.
    pub fn forward(&self, features: &Tensor) -> Result<Tensor> {
        self.second.forward(&self.first.activated(features, Activation::Gelu)?)
    }
}
