//! The vision transformer of CLIP and of SigLIP, for views of any patch grid.
//!
//! CLIP as LLaVA-UHD uses it: a class token, positions interpolated to the grid, features of an inner layer without the
//! class token. SigLIP as MiniCPM-V uses it: positions of the nearest place, features after the last norm. The layers
//! are the same.

use candle_core::{DType, Result, Tensor};

use super::PackedViews;
use crate::attention::{Queries, attend_segments};
use crate::config::{VisionConfig, VisionKind};
use crate::error::Loaded;
use crate::kernels::{Activation, AttentionShape};
use crate::ops::{Engine, HostRows, LayerNorm, Linear, Loader, Place};
use crate::position::PositionTable;

/// A vision transformer up to the selected layer.
#[derive(Debug)]
pub struct VisionTower {
    place: Place,
    attention: AttentionShape,
    activation: Activation,
    patch: Linear,
    /// Class embedding plus its position, `[1, width]`.
    class: Option<Tensor>,
    positions: PositionTable,
    pre_norm: Option<LayerNorm>,
    layers: Vec<Layer>,
    post_norm: Option<LayerNorm>,
}

#[derive(Debug)]
struct Layer {
    norm1: LayerNorm,
    qkv: Linear,
    out: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl VisionTower {
    pub(crate) fn load(config: &VisionConfig, prefix: &str, loader: Loader<'_>) -> Loaded<Self> {
        let (place, width) = (loader.place, config.width);
        let embeddings = |name: &str| format!("{prefix}.embeddings.{name}");
        let patch = loader.tensor(&embeddings("patch_embedding.weight"))?.flatten_from(1)?;
        let table = loader.weights.values(&embeddings("position_embedding.weight"))?;
        let clip = config.kind == VisionKind::Clip;
        let norm = |name: &str| loader.layer_norm(&format!("{prefix}.{name}"), config.eps);
        let layers = (0..config.layers)
            .map(|i| Layer::load(config, &format!("{prefix}.encoder.layers.{i}"), loader))
            .collect::<Loaded<_>>()?;
        let (class, positions, bias) = if clip {
            let class = loader.weights.values(&embeddings("class_embedding"))?;
            let (first, table) = table.split_at(width);
            let class: Vec<f32> = class.iter().zip(first).map(|(class, position)| class + position).collect();
            (Some(place.rows(class, width)?), PositionTable::bicubic(place, table.to_vec(), config.grid), None)
        } else {
            let bias = loader.tensor(&embeddings("patch_embedding.bias"))?;
            (None, PositionTable::nearest(place, table, config.grid), Some(bias))
        };
        Ok(Self {
            place: place.clone(),
            attention: AttentionShape { heads: config.heads, kv_heads: config.heads, head_dim: width / config.heads },
            activation: config.activation,
            patch: Linear::new(place, &patch, bias)?,
            class,
            positions,
            pre_norm: if clip { Some(norm("pre_layrnorm")?) } else { None },
            layers,
            post_norm: if clip { None } else { Some(norm("post_layernorm")?) },
        })
    }

    /// Features of all patches, `[Σ patches, width]`: `hidden_states` of the selected layer without the class token
    /// (CLIP), or the output of the last norm (SigLIP).
    pub fn forward(&self, views: &PackedViews) -> Result<Tensor> {
        let extra = usize::from(self.class.is_some());
        let lengths: Vec<usize> = views.grids.iter().map(|grid| grid.patches() + extra).collect();
        let mut x = self.embed(views)?;
        if let Some(norm) = &self.pre_norm {
            x = norm.forward(&x)?;
        }
        for layer in &self.layers {
            x = layer.forward(&x, self, &lengths)?;
        }
        if let Some(norm) = &self.post_norm {
            x = norm.forward(&x)?;
        }
        if extra == 0 { Ok(x) } else { drop_class(&self.place, &x, &lengths) }
    }

    /// Class and patch embeddings with positions, view by view: `[Σ (1 + patches), width]`, or without class tokens
    /// `[Σ patches, width]`.
    pub fn embed(&self, views: &PackedViews) -> Result<Tensor> {
        let patches = self.patch.forward(&views.patches)?;
        let (mut start, mut parts) = (0, Vec::with_capacity(2 * views.grids.len()));
        for &grid in &views.grids {
            parts.extend(self.class.clone());
            parts.push((patches.narrow(0, start, grid.patches())? + self.positions.of(grid)?)?);
            start += grid.patches();
        }
        Tensor::cat(&parts, 0)
    }
}

impl Layer {
    fn load(config: &VisionConfig, prefix: &str, loader: Loader<'_>) -> Loaded<Self> {
        let names = |names: &[&str]| -> Vec<String> { names.iter().map(|name| format!("{prefix}.{name}")).collect() };
        Ok(Self {
            norm1: loader.layer_norm(&format!("{prefix}.layer_norm1"), config.eps)?,
            qkv: loader.linear(&names(&["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]), true)?,
            out: loader.linear(&names(&["self_attn.out_proj"]), true)?,
            norm2: loader.layer_norm(&format!("{prefix}.layer_norm2"), config.eps)?,
            fc1: loader.linear(&names(&["mlp.fc1"]), true)?,
            fc2: loader.linear(&names(&["mlp.fc2"]), true)?,
        })
    }

    fn forward(&self, x: &Tensor, tower: &VisionTower, lengths: &[usize]) -> Result<Tensor> {
        let qkv = self.qkv.forward(&self.norm1.forward(x)?)?;
        let width = tower.attention.width();
        let [q, k, v] = [0, 1, 2].map(|part| qkv.narrow(1, part * width, width));
        let attended = attend_segments(&tower.place, tower.attention, Queries::Own(&q?), &k?, &v?, lengths)?;
        let x = self.out.onto(&attended, x)?;
        let inner = self.fc1.activated(&self.norm2.forward(&x)?, tower.activation)?;
        self.fc2.onto(&inner, &x)
    }
}

/// Removes the first row of every segment.
fn drop_class(place: &Place, x: &Tensor, lengths: &[usize]) -> Result<Tensor> {
    let width = x.dims2()?.1;
    let mut start = 0;
    if place.engine == Engine::Candle || place.dtype != DType::F32 {
        let mut parts = Vec::with_capacity(lengths.len());
        for length in lengths {
            parts.push(x.narrow(0, start + 1, length - 1)?);
            start += length;
        }
        return Tensor::cat(&parts, 0);
    }
    let rows = HostRows::of(x)?;
    let mut out = Vec::with_capacity(x.elem_count() - lengths.len() * width);
    for length in lengths {
        out.extend_from_slice(&rows.values()[(start + 1) * width..(start + length) * width]);
        start += length;
    }
    Tensor::from_vec(out, ((), width), &place.device)
}
