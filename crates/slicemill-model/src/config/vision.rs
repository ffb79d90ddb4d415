//! The vision tower's part of a config.

use serde::Deserialize;

use super::{Problem, dimension, from_value, layers, multiple, positive};
use crate::kernels::Activation;

/// A vision transformer over patches.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    /// Which one.
    pub kind: VisionKind,
    /// Hidden size.
    pub width: usize,
    /// Hidden size of the MLP.
    pub mlp: usize,
    /// Heads.
    pub heads: usize,
    /// Layers that are run. For CLIP: `hidden_states[select_layer]` of the reference, where index 0 is the embedding
    /// and index i the output of layer i, so −1 runs all layers and −2 all but one.
    pub layers: usize,
    /// Patches along a side of the position table.
    pub grid: usize,
    /// Side of a patch, pixels.
    pub patch: usize,
    /// Between the linear layers of the MLP.
    pub activation: Activation,
    /// Added to the variance in layer norms.
    pub eps: f32,
}

/// Which vision transformer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VisionKind {
    /// CLIP: a class token, a norm before the layers, positions interpolated bicubically. Features are those of an
    /// inner layer.
    Clip,
    /// SigLIP for any resolution (NaViT): a bias on patches, positions of the nearest place in the table, a norm after
    /// the layers.
    Siglip,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct RawVision {
    pub model_type: Option<String>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    pub num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    image_size: Option<usize>,
    patch_size: Option<usize>,
    hidden_act: Option<String>,
    layer_norm_eps: Option<f32>,
}

impl RawVision {
    /// From a tower's config: a `vision_config`, or a whole CLIP config that holds one.
    pub fn from_json(value: &serde_json::Value) -> Result<Self, Problem> {
        match value.get("vision_config") {
            Some(inner) => from_value(inner, "vision_config"),
            None => from_value(value, "vision_config"),
        }
    }

    /// The towers that published configs name without describing them.
    pub fn by_name(reference: &str) -> Option<Self> {
        let name = reference.trim_end_matches('/').rsplit('/').next()?;
        (name == "clip-vit-large-patch14-336").then(|| Self {
            model_type: Some("clip_vision_model".to_owned()),
            hidden_size: Some(1024),
            intermediate_size: Some(4096),
            num_hidden_layers: Some(24),
            num_attention_heads: Some(16),
            image_size: Some(336),
            patch_size: Some(14),
            hidden_act: Some("quick_gelu".to_owned()),
            layer_norm_eps: Some(1e-5),
        })
    }

    /// `run` chooses the layers that are run of those there are.
    pub fn check(
        &self,
        kind: VisionKind,
        run: impl FnOnce(usize) -> Result<usize, Problem>,
    ) -> Result<VisionConfig, Problem> {
        let (types, activation, eps): (&[&str], _, _) = match kind {
            VisionKind::Clip => (&["clip_vision_model", "clip"], Activation::QuickGelu, 1e-5),
            VisionKind::Siglip => (&["siglip", "siglip_vision_model"], Activation::GeluTanh, 1e-6),
        };
        if let Some(other) = self.model_type.as_deref().filter(|name| !types.contains(name)) {
            return Err(format!("vision_config.model_type is {other:?}; here only {:?} is supported", types[0]));
        }
        let width = dimension(self.hidden_size, "vision_config.hidden_size")?;
        let heads = dimension(self.num_attention_heads, "vision_config.num_attention_heads")?;
        multiple(width, "vision_config.hidden_size", heads, "vision_config.num_attention_heads")?;
        let all = layers(self.num_hidden_layers, "vision_config.num_hidden_layers")?;
        let patch = dimension(self.patch_size, "vision_config.patch_size")?;
        let side = dimension(self.image_size, "vision_config.image_size")?;
        multiple(side, "vision_config.image_size", patch, "vision_config.patch_size")?;
        Ok(VisionConfig {
            kind,
            width,
            mlp: dimension(self.intermediate_size, "vision_config.intermediate_size")?,
            heads,
            layers: run(all)?,
            grid: side / patch,
            patch,
            activation: match self.hidden_act.as_deref() {
                None => activation,
                Some("quick_gelu") => Activation::QuickGelu,
                Some("gelu_pytorch_tanh") => Activation::GeluTanh,
                Some("gelu") => Activation::Gelu,
                Some(other) => {
                    return Err(format!(
                        "vision_config.hidden_act is {other:?}; quick_gelu, gelu_pytorch_tanh and gelu are supported"
                    ));
                }
            },
            eps: positive(self.layer_norm_eps.unwrap_or(eps), "vision_config.layer_norm_eps")?,
        })
    }
}

/// Whether a tower is known by its name, without a config of its own.
pub(crate) fn tower_is_known(reference: &str) -> bool {
    RawVision::by_name(reference).is_some()
}

/// Layers that `hidden_states[select]` needs, of `all`.
pub(super) fn layers_run(select: i64, all: usize) -> Result<usize, Problem> {
    let count = i64::try_from(all).map_err(|e| e.to_string())?;
    let run = if select < 0 { count + 1 + select } else { select };
    match usize::try_from(run) {
        Ok(run) if run <= all => Ok(run),
        _ => Err(format!("mm_vision_select_layer {select} does not exist in a tower of {all} layers")),
    }
}
