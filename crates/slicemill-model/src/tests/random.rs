//! Random checkpoints in the published layout, views and images for them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use slicemill_core::{GenerationParams, Size, SlicePlan, SlicingPolicy};
use slicemill_pipeline::{
    Backend, BackendError, BackendFactory, DeviceId, GenerateRequest, Generated, PreparedImage, PreparedView,
    VisualHandle,
};

use crate::config::ModelConfig;
use crate::kernels::noise;
use crate::manifest::{Manifest, manifest};
use crate::{BackendOptions, CandleFactory, Place};

/// config.json of a tiny model with grouped attention and an inner layer selected.
pub fn config() -> Value {
    let mut json: Value = serde_json::from_slice(crate::embedded::CONFIG).unwrap();
    for (key, value) in [
        ("hidden_size", json!(48)),
        ("intermediate_size", json!(80)),
        ("num_hidden_layers", json!(2)),
        ("num_attention_heads", json!(4)),
        ("num_key_value_heads", json!(2)),
        ("head_dim", json!(20)),
        ("vocab_size", json!(700)),
        ("tie_word_embeddings", json!(false)),
        ("mm_num_queries", json!(9)),
        ("mm_resampler_heads", json!(3)),
        ("mm_vision_select_layer", json!(-2)),
        ("max_position_embeddings", json!(220)),
    ] {
        json[key] = value;
    }
    for (key, value) in
        [("hidden_size", 32), ("intermediate_size", 64), ("num_hidden_layers", 3), ("num_attention_heads", 2)]
    {
        json["vision_config"][key] = json!(value);
    }
    json
}

pub fn parse(json: &Value) -> ModelConfig {
    ModelConfig::parse(&serde_json::to_vec(json).unwrap(), "config.json").unwrap()
}

/// Random tensors: norms near one, matrices scaled by their width.
pub fn tensors(manifest: &Manifest, dtype: DType) -> HashMap<String, Tensor> {
    let tensor = |(seed, (name, shape)): (usize, (&String, &Vec<usize>))| {
        let count = shape.iter().product();
        let matrix = shape.len() >= 2 && !name.contains("embed") && !name.ends_with("query");
        let inputs: usize = shape.iter().skip(1).product();
        let scale = if matrix { (3.0 / inputs as f32).sqrt() } else { 0.3 };
        let offset = if name.ends_with("weight") && shape.len() == 1 { 1.0 } else { 0.0 };
        let values: Vec<f32> = noise(count, seed as u64 + 1).iter().map(|x| offset + x * scale).collect();
        let tensor = Tensor::from_vec(values, shape.as_slice(), &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        (name.clone(), tensor)
    };
    manifest.iter().enumerate().map(tensor).collect()
}

pub fn write_json_files(dir: &Path, config: &Value) {
    std::fs::write(dir.join("config.json"), serde_json::to_vec_pretty(config).unwrap()).unwrap();
    std::fs::write(dir.join("tokenizer.json"), crate::embedded::TOKENIZER).unwrap();
}

/// Writes a whole random checkpoint in one file.
pub fn write(dir: &Path, config: &Value, dtype: DType) -> HashMap<String, Tensor> {
    let tensors = tensors(&manifest(&parse(config)), dtype);
    write_json_files(dir, config);
    candle_core::safetensors::save(&tensors, dir.join("model.safetensors")).unwrap();
    tensors
}

pub fn factory(config: &Value, options: BackendOptions) -> CandleFactory {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), config, DType::F32);
    // The mapping outlives the name of the file.
    CandleFactory::from_dir(dir.path(), options).unwrap()
}

/// An image of this size with random pixels.
pub fn image(policy: &SlicingPolicy, width: u32, height: u32, seed: u64) -> PreparedImage {
    let plan: SlicePlan = policy.plan(Size::new(width, height)).unwrap();
    let values = 3 * (plan.patch as usize).pow(2);
    let views = plan
        .views()
        .iter()
        .enumerate()
        .map(|(i, view)| PreparedView {
            patches_wide: view.patches_wide,
            patches_high: view.patches_high,
            patches: noise(view.patches() as usize * values, seed * 100 + i as u64),
        })
        .collect();
    PreparedImage { plan: Arc::new(plan), views }
}

/// Sizes with none to six slices.
pub const SIZES: [(u32, u32); 8] =
    [(112, 112), (300, 200), (90, 130), (500, 120), (112, 112), (240, 160), (1000, 100), (64, 700)];

pub fn images(policy: &SlicingPolicy) -> Vec<PreparedImage> {
    SIZES.iter().enumerate().map(|(i, &(w, h))| image(policy, w, h, i as u64 + 1)).collect()
}

/// A backend on the CPU: `threads` kernels threads, or candle's operations.
pub fn open(factory: &CandleFactory, portable: bool) -> Box<dyn Backend> {
    if portable {
        factory.open_in(&Place::candle(Device::Cpu, DType::F32)).unwrap()
    } else {
        factory.open(DeviceId::Cpu(0)).unwrap()
    }
}

pub fn request(image: VisualHandle, prompt: &str, params: &GenerationParams, seed: u64) -> GenerateRequest {
    GenerateRequest { image, prompt: prompt.to_owned(), params: params.clone(), seed }
}

/// Steps until nothing is in flight; errors of sequences are kept beside their results, in order of admission.
pub fn drain(backend: &mut dyn Backend, in_flight: usize) -> Vec<Result<Generated, BackendError>> {
    let mut done = Vec::new();
    while done.len() < in_flight {
        match backend.step() {
            Ok(finished) => done.extend(finished.into_iter().map(|g| (g.sequence, Ok(g)))),
            Err((sequence, error)) => done.push((sequence.expect("an error of a sequence"), Err(error))),
        }
    }
    done.sort_by_key(|(sequence, _)| *sequence);
    done.into_iter().map(|(_, result)| result).collect()
}
