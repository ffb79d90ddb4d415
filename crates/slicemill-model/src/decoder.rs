//! The language model: RMS norm, rotary positions, grouped attention over a cache, gated MLP.
//!
//! Options cover LLaMA (none), Qwen2 (`qkv_bias`), Qwen3 (`qk_norm`), MiniCPM4 (longrope), an explicit head size, a tied
//! output matrix and scaled embeddings.

use candle_core::{DType, Result, Tensor};

use crate::config::{DecoderConfig, Names};
use crate::error::Loaded;
use crate::kv_cache::Batch;
use crate::ops::{Embedding, Engine, HostRows, Linear, Loader, Place, RmsNorm, silu_mul};
use crate::rope::Rope;

/// A decoder-only transformer.
#[derive(Debug)]
pub struct Decoder {
    pub(crate) config: DecoderConfig,
    place: Place,
    embedding: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    head: Linear,
    rope: Rope,
}

#[derive(Debug)]
pub(crate) struct Layer {
    norm1: RmsNorm,
    qkv: Linear,
    pub q_norm: Option<RmsNorm>,
    pub k_norm: Option<RmsNorm>,
    out: Linear,
    norm2: RmsNorm,
    gate_up: Linear,
    down: Linear,
}

impl Layer {
    fn load(config: &DecoderConfig, prefix: &str, loader: Loader<'_>) -> Loaded<Self> {
        let names = |names: &[&str]| -> Vec<String> { names.iter().map(|name| format!("{prefix}.{name}")).collect() };
        let norm = |name: &str| loader.rms_norm(&format!("{prefix}.{name}"), config.eps);
        let head_norm = |name: &str| config.qk_norm.then(|| norm(name)).transpose();
        let qkv = names(&["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]);
        Ok(Self {
            norm1: norm("input_layernorm")?,
            qkv: loader.linear(&qkv, config.qkv_bias)?,
            q_norm: head_norm("self_attn.q_norm")?,
            k_norm: head_norm("self_attn.k_norm")?,
            out: loader.linear(&names(&["self_attn.o_proj"]), false)?,
            norm2: norm("post_attention_layernorm")?,
            gate_up: loader.linear(&names(&["mlp.gate_proj", "mlp.up_proj"]), false)?,
            down: loader.linear(&names(&["mlp.down_proj"]), false)?,
        })
    }

    fn bytes(&self) -> usize {
        [&self.qkv, &self.out, &self.gate_up, &self.down].map(Linear::bytes).iter().sum()
    }
}

impl Decoder {
    pub(crate) fn load(config: &DecoderConfig, names: &Names, context: usize, loader: Loader<'_>) -> Loaded<Self> {
        let prefix = &names.decoder;
        let embedding = loader.tensor(&format!("{prefix}.embed_tokens.weight"))?;
        let head = if config.tied {
            Linear::new(loader.place, &embedding, None)?
        } else {
            Linear::new(loader.place, &loader.tensor(&names.head)?, None)?
        };
        let layers = (0..config.layers)
            .map(|i| Layer::load(config, &format!("{prefix}.layers.{i}"), loader))
            .collect::<Loaded<_>>()?;
        Ok(Self {
            place: loader.place.clone(),
            embedding: Embedding::new(embedding),
            layers,
            norm: loader.rms_norm(&format!("{prefix}.norm"), config.eps)?,
            head,
            rope: Rope::new(config, context),
            config: config.clone(),
        })
    }

    /// Embeddings of text tokens, `[ids, width]`.
    pub fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        let embedded = self.embedding.forward(ids)?;
        match self.config.embedding_scale {
            1.0 => Ok(embedded),
            scale => embedded * f64::from(scale),
        }
    }

    /// Whether the keys of a prompt's prefix depend on the length of the prompt.
    pub(crate) fn prefix_depends_on_length(&self, tokens: usize) -> bool {
        self.rope.depends_on_length(tokens)
    }

    /// Bytes of the weights that one step reads.
    pub fn step_bytes(&self) -> usize {
        self.layers.iter().map(Layer::bytes).sum::<usize>() + self.head.bytes()
    }

    /// Runs the new tokens of every sequence in `batch`, whose keys and values it extends.
    ///
    /// `x` is `[Σ new tokens, width]`, the sequences one after the other. Returns the logits after each sequence's last
    /// new token, `[sequences, vocab]`, on the host.
    pub fn forward(&self, x: &Tensor, batch: &mut Batch<'_>) -> Result<Logits> {
        let last = batch.last_rows();
        let mut x = x.clone();
        for (i, layer) in self.layers.iter().enumerate() {
            let qkv = layer.qkv.forward(&layer.norm1.forward(&x)?)?;
            let mut attended = batch.attend(i, &qkv, &self.config.attention, layer, &self.rope)?;
            if i + 1 == self.layers.len() && last.len() < x.dim(0)? {
                // After the last attention only the last token of each sequence matters.
                let rows = Tensor::from_slice(&last, last.len(), &self.place.device)?;
                (attended, x) = (attended.index_select(&rows, 0)?, x.index_select(&rows, 0)?);
            }
            x = layer.out.onto(&attended, &x)?;
            let gated = silu_mul(self.place.engine, &layer.gate_up.forward(&layer.norm2.forward(&x)?)?)?;
            x = layer.down.onto(&gated, &x)?;
        }
        let logits = self.head.forward(&self.norm.forward(&x)?)?;
        Ok(Logits { vocab: self.config.vocab, values: self.to_host(logits)? })
    }

    fn to_host(&self, logits: Tensor) -> Result<Vec<f32>> {
        match self.place.engine {
            Engine::Kernels(_) => Ok(HostRows::of(&logits)?.values().to_vec()),
            Engine::Candle => logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1(),
        }
    }
}

/// Logits of some sequences.
#[derive(Debug, Clone, PartialEq)]
pub struct Logits {
    vocab: usize,
    values: Vec<f32>,
}

impl Logits {
    /// Of all sequences in order.
    pub fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks_exact(self.vocab)
    }

    /// Of the i-th sequence, `[vocab]`.
    pub fn of(&self, i: usize) -> &[f32] {
        &self.values[i * self.vocab..][..self.vocab]
    }
}
