//! The published 64-query code end to end, on a tiny random checkpoint in its layout, read from the directory in
//! SLICEMILL_GOLDEN: pixels, tower features, visual tokens, logits and greedy ids.

use candle_core::{DType, Device, IndexOp, Tensor};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use slicemill_core::{OrientationRule, SlicingPolicy};
use slicemill_pipeline::{BackendFactory, PreparedView};

use super::embedded::prepared;
use super::numeric::{golden, relative_error};
use crate::checkpoint::Weights;
use crate::config::ModelConfig;
use crate::kernels::Isa;
use crate::kv_cache::{Batch, HostSlot, HostSpan};
use crate::manifest::manifest;
use crate::{BackendOptions, CandleFactory, Model, Place};

/// Logits after a prompt; ids below 0 are visual tokens, in order. The slot is extended.
pub fn logits_of(model: &Model, ids: &[i64], visual: &Tensor, slot: &mut HostSlot) -> Vec<f32> {
    let config = &model.decoder.config;
    slot.reserve(config.attention, config.layers, ids.len() + 32).unwrap();
    let (mut parts, mut seen) = (Vec::new(), 0);
    for id in ids {
        parts.push(match u32::try_from(*id) {
            Ok(id) => model.decoder.embed(&[id]).unwrap(),
            Err(_) => {
                seen += 1;
                visual.narrow(0, seen - 1, 1).unwrap()
            }
        });
    }
    assert_eq!(seen, visual.dim(0).unwrap(), "every visual token has a place");
    let x = Tensor::cat(&parts, 0).unwrap();
    step(model, &x, slot, 0)
}

fn step(model: &Model, x: &Tensor, slot: &mut HostSlot, start: usize) -> Vec<f32> {
    let tokens = x.dim(0).unwrap();
    let mut batch = Batch::Host(Isa::detect(), vec![HostSpan { slot, start, tokens }]);
    model.decoder.forward(x, &mut batch).unwrap().of(0).to_vec()
}

fn best(logits: &[f32]) -> u32 {
    let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
    u32::try_from(best).unwrap()
}

/// SHA-256 of a view's f32 values as `[3, height, width]`, which is how the reference holds it.
fn pixel_hash(view: &PreparedView) -> String {
    let (wide, high) = (view.patches_wide as usize, view.patches_high as usize);
    let pixels = Tensor::new(view.patches.as_slice(), &Device::Cpu)
        .and_then(|x| x.reshape(&[high, wide, 3, 14, 14]))
        .and_then(|x| x.permute([2, 0, 3, 1, 4]))
        .and_then(|x| x.flatten_all()?.to_vec1::<f32>())
        .unwrap();
    let bytes: Vec<u8> = pixels.iter().flat_map(|x| x.to_le_bytes()).collect();
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Its config.json, with what its code has hard-coded.
fn config(dir: &std::path::Path) -> ModelConfig {
    let mut json: Value = serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap();
    json["mm_projector_type"] = json!("resampler");
    json["mm_num_queries"] = json!(64);
    json["slicemill"] = json!({
        "policy": "llava-uhd-raw", "prompt_template": "{image}\n{question}", "default_prompt": "",
        "separator_column": ",", "separator_row": "\n",
        "image_mean": [0.481_454_66, 0.457_827_5, 0.408_210_73], "image_std": [0.268_629_54, 0.261_302_58, 0.275_777_11],
    });
    ModelConfig::parse(&serde_json::to_vec(&json).unwrap(), "config.json").unwrap()
}

#[test]
fn the_published_64_query_model_end_to_end() {
    let Some(root) = golden("e2e") else { return };
    let dir = root.join("bridge-1");
    let config = config(&dir.join("checkpoint"));
    let weights = Weights::open(&dir.join("checkpoint")).unwrap();
    weights.check(&manifest(&config)).unwrap();
    let model = Model::load(&config, &weights, 4096, &Place::cpu()).unwrap();
    // Only its normalisation is used, which is CLIP's here too.
    let factory = CandleFactory::embedded(BackendOptions::default()).unwrap();
    let policy = SlicingPolicy::named("llava-uhd-raw").unwrap();
    assert_eq!(factory.card().normalisation, config.normalisation);

    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(dir.join("expected/tensors.safetensors"), copy.path().join("model.safetensors")).unwrap();
    let expected = Weights::open(copy.path()).unwrap();
    let index: Value = serde_json::from_slice(&std::fs::read(dir.join("expected/index.json")).unwrap()).unwrap();
    let mut checked = 0;
    for case in index["cases"].as_array().unwrap() {
        let (image, key) = (case["image"].as_str().unwrap(), case["key"].as_str().unwrap());
        let exif = if key.ends_with("_exif") { OrientationRule::Apply } else { OrientationRule::Ignore };
        let image = prepared(&policy, &factory, &root.join("images").join(image), exif);
        let views = case["views"].as_array().unwrap();
        assert_eq!(image.views.len(), views.len(), "{key}");
        if image.views.iter().zip(views).any(|(got, want)| pixel_hash(got) != want["f32_chw_sha256"].as_str().unwrap())
        {
            // A JPEG decoder of its own: nothing after it can be equal.
            assert!(case["image"].as_str().unwrap().ends_with("jpg"), "{key}: other pixels");
            continue;
        }
        check_case(&model, case, key, &image.views, &expected);
        checked += 1;
    }
    assert!(checked >= 9, "{checked} cases had equal pixels");
}

fn check_case(model: &Model, case: &Value, key: &str, views: &[PreparedView], expected: &Weights) {
    let views: Vec<&PreparedView> = views.iter().collect();
    let tensor = |name: String| expected.tensor(&name, DType::F32, &Device::Cpu).unwrap();
    let features = model.features(&views).unwrap();
    let visual = model.encode(&views).unwrap();
    let (want_features, want_visual) = (tensor(format!("{key}.vit_rows")), tensor(format!("{key}.projected_rows")));
    let mut start = 0;
    for (i, view) in views.iter().enumerate() {
        let patches = (view.patches_wide * view.patches_high) as usize;
        for (j, row) in [0, patches / 2, patches - 1].into_iter().enumerate() {
            let error = relative_error(&features.i(start + row).unwrap(), &want_features.i((i, j)).unwrap());
            assert!(error < 1e-4, "{key} features of view {i}, row {row}: {error:e}");
        }
        for (j, row) in [0, 31, 63].into_iter().enumerate() {
            let error = relative_error(&visual.i(i * 64 + row).unwrap(), &want_visual.i((i, j)).unwrap());
            assert!(error < 1e-4, "{key} visual tokens of view {i}, row {row}: {error:e}");
        }
        start += patches;
    }
    for run in case["runs"].as_array().unwrap() {
        let ids = prompt(case, run);
        assert_eq!(ids.len() as u64, run["embeds_len"].as_u64().unwrap(), "{key}");
        let mut slot = HostSlot::default();
        let mut logits = logits_of(model, &ids, &visual, &mut slot);
        let want = tensor(format!("{key}.p{}.step0_logits_first512", run["prompt"]));
        for (got, want) in logits.iter().zip(want.to_vec1::<f32>().unwrap()) {
            assert!((got - want).abs() < 1e-2, "{key} logits: {got} {want}");
        }
        let mut produced = Vec::new();
        while produced.len() < run["output_ids"].as_array().unwrap().len() {
            produced.push(best(&logits));
            let x = model.decoder.embed(&produced[produced.len() - 1..]).unwrap();
            logits = step(model, &x, &mut slot, ids.len() + produced.len() - 1);
        }
        assert_eq!(json!(produced), run["output_ids"], "{key}, prompt {}", run["prompt"]);
    }
}

/// Prompt ids with −1 for every visual token and the separators between views.
fn prompt(case: &Value, run: &Value) -> Vec<i64> {
    let mut views: Vec<i64> = Vec::new();
    for separator in case["plan"]["separators"].as_array().unwrap() {
        views.extend([-1; 64]);
        views.push(separator.as_i64().unwrap());
    }
    views.extend([-1; 64]);
    let ids = run["prompt_ids"].as_array().unwrap().iter().map(|id| id.as_i64().unwrap());
    ids.flat_map(|id| if id == -200 { views.clone() } else { vec![id] }).collect()
}
