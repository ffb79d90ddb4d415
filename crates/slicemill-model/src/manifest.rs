//! Which tensors a model needs, by name and shape.
//!
//! The list is made from config.json alone, so a checkpoint can be checked before a byte of its weights is read, and
//! a test can write a random one.

use std::collections::BTreeMap;

use crate::config::{ClipConfig, DecoderConfig, ModelConfig, ProjectorConfig};

/// Prefix of the vision tower in a LLaVA checkpoint.
pub(crate) const VISION: &str = "model.vision_tower.vision_tower.vision_model";
/// Prefix of the projector.
pub(crate) const PROJECTOR: &str = "model.mm_projector";
/// Prefix of the language model.
pub(crate) const DECODER: &str = "model";

/// Names and shapes.
pub type Manifest = BTreeMap<String, Vec<usize>>;

/// All tensors that the model of `config` needs.
pub fn manifest(config: &ModelConfig) -> Manifest {
    let mut list = List(Manifest::new());
    list.clip(&config.vision, VISION);
    match config.projector {
        ProjectorConfig::Resampler { grid, .. } => {
            list.resampler(config.vision.width, config.decoder.width, grid * grid, PROJECTOR);
        }
    }
    list.decoder(&config.decoder, DECODER);
    list.0
}

struct List(Manifest);

impl List {
    fn add(&mut self, prefix: &str, name: &str, shape: &[usize]) {
        self.0.insert(format!("{prefix}.{name}"), shape.to_vec());
    }

    fn linear(&mut self, prefix: &str, name: &str, inputs: usize, outputs: usize, bias: bool) {
        self.add(prefix, &format!("{name}.weight"), &[outputs, inputs]);
        if bias {
            self.add(prefix, &format!("{name}.bias"), &[outputs]);
        }
    }

    fn layer_norm(&mut self, prefix: &str, name: &str, width: usize) {
        self.add(prefix, &format!("{name}.weight"), &[width]);
        self.add(prefix, &format!("{name}.bias"), &[width]);
    }

    fn clip(&mut self, config: &ClipConfig, prefix: &str) {
        let ClipConfig { width, mlp, patch, grid, .. } = *config;
        self.add(prefix, "embeddings.class_embedding", &[width]);
        self.add(prefix, "embeddings.patch_embedding.weight", &[width, 3, patch, patch]);
        self.add(prefix, "embeddings.position_embedding.weight", &[grid * grid + 1, width]);
        self.layer_norm(prefix, "pre_layrnorm", width);
        for i in 0..config.layers {
            let prefix = &format!("{prefix}.encoder.layers.{i}");
            self.layer_norm(prefix, "layer_norm1", width);
            for name in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                self.linear(prefix, &format!("self_attn.{name}"), width, width, true);
            }
            self.layer_norm(prefix, "layer_norm2", width);
            self.linear(prefix, "mlp.fc1", width, mlp, true);
            self.linear(prefix, "mlp.fc2", mlp, width, true);
        }
    }

    fn resampler(&mut self, vision: usize, width: usize, queries: usize, prefix: &str) {
        self.add(prefix, "query", &[queries, width]);
        self.add(prefix, "pos_embed", &[queries, width]);
        self.add(prefix, "proj", &[width, width]);
        self.linear(prefix, "kv_proj", vision, width, false);
        self.add(prefix, "attn.in_proj_weight", &[3 * width, width]);
        self.add(prefix, "attn.in_proj_bias", &[3 * width]);
        self.linear(prefix, "attn.out_proj", width, width, true);
        for name in ["ln_q", "ln_kv", "ln_post"] {
            self.layer_norm(prefix, name, width);
        }
    }

    fn decoder(&mut self, config: &DecoderConfig, prefix: &str) {
        let (width, attention) = (config.width, config.attention);
        self.add(prefix, "embed_tokens.weight", &[config.vocab, width]);
        for i in 0..config.layers {
            let prefix = &format!("{prefix}.layers.{i}");
            self.linear(prefix, "self_attn.q_proj", width, attention.width(), config.qkv_bias);
            self.linear(prefix, "self_attn.k_proj", width, attention.kv_width(), config.qkv_bias);
            self.linear(prefix, "self_attn.v_proj", width, attention.kv_width(), config.qkv_bias);
            self.linear(prefix, "self_attn.o_proj", attention.width(), width, false);
            if config.qk_norm {
                self.add(prefix, "self_attn.q_norm.weight", &[attention.head_dim]);
                self.add(prefix, "self_attn.k_norm.weight", &[attention.head_dim]);
            }
            self.linear(prefix, "mlp.gate_proj", width, config.mlp, false);
            self.linear(prefix, "mlp.up_proj", width, config.mlp, false);
            self.linear(prefix, "mlp.down_proj", config.mlp, width, false);
            self.add(prefix, "input_layernorm.weight", &[width]);
            self.add(prefix, "post_attention_layernorm.weight", &[width]);
        }
        self.add(prefix, "norm.weight", &[width]);
        if !config.tied {
            self.0.insert("lm_head.weight".to_owned(), vec![config.vocab, width]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_change_the_list() {
        let json = include_bytes!("../embedded/config.json");
        let mut config = ModelConfig::parse(json, "config.json").unwrap();
        let plain = manifest(&config);
        assert!(!plain.contains_key("lm_head.weight"));
        assert_eq!(plain["model.mm_projector.pos_embed"], [16, config.decoder.width]);
        config.decoder.tied = false;
        config.decoder.qkv_bias = true;
        config.decoder.qk_norm = true;
        config.vision.layers -= 1;
        let other = manifest(&config);
        assert!(other.contains_key("lm_head.weight"));
        assert!(other.contains_key("model.layers.0.self_attn.k_proj.bias"));
        assert!(other.contains_key("model.layers.0.self_attn.q_norm.weight"));
        let last = format!("{VISION}.encoder.layers.{}.mlp.fc1.bias", config.vision.layers);
        assert!(plain.contains_key(&last) && !other.contains_key(&last));
    }
}
