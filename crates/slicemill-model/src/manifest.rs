//! Which tensors a model needs, by name and shape.
//!
//! The list is made from config.json alone, so a checkpoint can be checked before a byte of its weights is read, and
//! a test can write a random one.

use std::collections::BTreeMap;

use crate::config::{
    DecoderConfig, ModelConfig, Names, Positions, ProjectorConfig, SPATIAL_QUERIES, VisionConfig, VisionKind,
};
use crate::projector::mlp_names;

/// Names and shapes.
pub type Manifest = BTreeMap<String, Vec<usize>>;

/// All tensors that the model of `config` needs.
pub fn manifest(config: &ModelConfig) -> Manifest {
    let (vision, decoder, names) = (&config.vision, &config.decoder, &config.names);
    let mut list = List(Manifest::new());
    list.vision(vision, &names.vision);
    let mut resampler = |queries: usize, positions: Positions| {
        list.resampler((vision.width, decoder.width), queries, positions, &names.projector);
    };
    match config.projector {
        ProjectorConfig::Resampler { queries, positions, .. } => resampler(queries, positions),
        ProjectorConfig::Spatial { .. } => resampler(SPATIAL_QUERIES as usize, Positions::Stored),
        ProjectorConfig::Mlp => {
            let [first, second] = mlp_names(&names.projector);
            list.linear(&first, vision.width, decoder.width, true);
            list.linear(&second, decoder.width, decoder.width, true);
        }
    }
    list.decoder(decoder, names);
    list.0
}

/// Whether a tensor that the manifest lacks is part of what the model computes, so that leaving it out would be wrong: a
/// bias, a norm or a layer that the config does not say. Buffers that code recomputes, layers of the tower beyond the
/// selected one, and other parts of a checkpoint (audio, speech) are not.
pub fn would_be_missed(config: &ModelConfig, name: &str) -> bool {
    let names = &config.names;
    let under = |prefix: &str, name: &str| name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.'));
    if name.ends_with("rotary_emb.inv_freq") || name.ends_with("position_ids") {
        return false;
    }
    if under(&names.projector, name) {
        // A table that is computed here and a buffer there.
        return !name.ends_with(".pos_embed");
    }
    let layers = format!("{}.encoder.layers", names.vision);
    if let Some(rest) = name.strip_prefix(&layers).and_then(|rest| rest.strip_prefix('.')) {
        let layer = rest.split('.').next().and_then(|number| number.parse::<usize>().ok());
        return layer.is_some_and(|layer| layer < config.vision.layers);
    }
    ["layers", "embed_tokens", "norm"].iter().any(|part| under(&format!("{}.{part}", names.decoder), name))
}

struct List(Manifest);

impl List {
    fn add(&mut self, prefix: &str, name: &str, shape: &[usize]) {
        self.0.insert(format!("{prefix}.{name}"), shape.to_vec());
    }

    fn linear(&mut self, name: &str, inputs: usize, outputs: usize, bias: bool) {
        self.0.insert(format!("{name}.weight"), vec![outputs, inputs]);
        if bias {
            self.0.insert(format!("{name}.bias"), vec![outputs]);
        }
    }

    fn layer_norm(&mut self, prefix: &str, name: &str, width: usize) {
        self.add(prefix, &format!("{name}.weight"), &[width]);
        self.add(prefix, &format!("{name}.bias"), &[width]);
    }

    fn vision(&mut self, config: &VisionConfig, prefix: &str) {
        let VisionConfig { kind, width, mlp, patch, grid, .. } = *config;
        self.add(prefix, "embeddings.patch_embedding.weight", &[width, 3, patch, patch]);
        let places = match kind {
            VisionKind::Clip => {
                self.add(prefix, "embeddings.class_embedding", &[width]);
                self.layer_norm(prefix, "pre_layrnorm", width);
                grid * grid + 1
            }
            VisionKind::Siglip => {
                self.add(prefix, "embeddings.patch_embedding.bias", &[width]);
                self.layer_norm(prefix, "post_layernorm", width);
                grid * grid
            }
        };
        self.add(prefix, "embeddings.position_embedding.weight", &[places, width]);
        for i in 0..config.layers {
            let prefix = &format!("{prefix}.encoder.layers.{i}");
            self.layer_norm(prefix, "layer_norm1", width);
            for name in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                self.linear(&format!("{prefix}.self_attn.{name}"), width, width, true);
            }
            self.layer_norm(prefix, "layer_norm2", width);
            self.linear(&format!("{prefix}.mlp.fc1"), width, mlp, true);
            self.linear(&format!("{prefix}.mlp.fc2"), mlp, width, true);
        }
    }

    fn resampler(&mut self, (vision, width): (usize, usize), queries: usize, positions: Positions, prefix: &str) {
        self.add(prefix, "query", &[queries, width]);
        if positions == Positions::Stored {
            self.add(prefix, "pos_embed", &[queries, width]);
        }
        self.add(prefix, "proj", &[width, width]);
        if vision != width {
            self.linear(&format!("{prefix}.kv_proj"), vision, width, false);
        }
        self.add(prefix, "attn.in_proj_weight", &[3 * width, width]);
        self.add(prefix, "attn.in_proj_bias", &[3 * width]);
        self.linear(&format!("{prefix}.attn.out_proj"), width, width, true);
        for name in ["ln_q", "ln_kv", "ln_post"] {
            self.layer_norm(prefix, name, width);
        }
    }

    fn decoder(&mut self, config: &DecoderConfig, names: &Names) {
        let (width, attention, prefix) = (config.width, config.attention, &names.decoder);
        self.add(prefix, "embed_tokens.weight", &[config.vocab, width]);
        for i in 0..config.layers {
            let prefix = &format!("{prefix}.layers.{i}");
            let projection = |name: &str| format!("{prefix}.self_attn.{name}");
            self.linear(&projection("q_proj"), width, attention.width(), config.qkv_bias);
            self.linear(&projection("k_proj"), width, attention.kv_width(), config.qkv_bias);
            self.linear(&projection("v_proj"), width, attention.kv_width(), config.qkv_bias);
            self.linear(&projection("o_proj"), attention.width(), width, false);
            if config.qk_norm {
                self.add(prefix, "self_attn.q_norm.weight", &[attention.head_dim]);
                self.add(prefix, "self_attn.k_norm.weight", &[attention.head_dim]);
            }
            self.linear(&format!("{prefix}.mlp.gate_proj"), width, config.mlp, false);
            self.linear(&format!("{prefix}.mlp.up_proj"), width, config.mlp, false);
            self.linear(&format!("{prefix}.mlp.down_proj"), config.mlp, width, false);
            self.add(prefix, "input_layernorm.weight", &[width]);
            self.add(prefix, "post_attention_layernorm.weight", &[width]);
        }
        self.add(prefix, "norm.weight", &[width]);
        if !config.tied {
            self.0.insert(names.head.clone(), vec![config.vocab, width]);
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
        let last = format!("{}.encoder.layers.{}.mlp.fc1.bias", config.names.vision, config.vision.layers);
        assert!(plain.contains_key(&last) && !other.contains_key(&last));
    }

    #[test]
    fn tensors_that_would_be_missed_are_known() {
        let config = ModelConfig::parse(include_bytes!("../embedded/config.json"), "config.json").unwrap();
        let missed = |name: &str| would_be_missed(&config, name);
        for name in [
            "model.layers.0.self_attn.q_proj.bias",
            "model.layers.9.mlp.up_proj.weight",
            "model.mm_projector.sep_embeddings",
            "model.vision_tower.vision_tower.vision_model.encoder.layers.0.self_attn.q_norm.weight",
        ] {
            assert!(missed(name), "{name}");
        }
        for name in [
            "model.layers.0.self_attn.rotary_emb.inv_freq",
            "model.vision_tower.vision_tower.vision_model.encoder.layers.5.layer_norm1.weight",
            "model.vision_tower.vision_tower.vision_model.post_layernorm.weight",
            "model.vision_tower.vision_tower.vision_model.embeddings.position_ids",
            "tts.layers.0.weight",
            "lm_head.weight",
        ] {
            assert!(!missed(name), "{name}");
        }
    }
}
