//! Checkpoints that are complete, sharded, broken.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use serde_json::json;
use slicemill_core::Fate;
use slicemill_pipeline::{BackendFactory, DeviceId};

use super::random::{self, config, write, write_json_files};
use crate::{BackendOptions, CandleFactory};

fn open(dir: &std::path::Path) -> Result<CandleFactory, String> {
    CandleFactory::from_dir(dir, BackendOptions::default()).map_err(|e| e.to_string())
}

fn save(tensors: &HashMap<String, Tensor>, path: std::path::PathBuf) {
    candle_core::safetensors::save(tensors, path).unwrap();
}

fn shard(dir: &std::path::Path, tensors: HashMap<String, Tensor>) {
    std::fs::remove_file(dir.join("model.safetensors")).unwrap();
    let (mut parts, mut map) = (vec![HashMap::new(); 3], serde_json::Map::new());
    for (i, (name, tensor)) in tensors.into_iter().enumerate() {
        map.insert(name.clone(), json!(format!("model-0000{}-of-00003.safetensors", i % 3 + 1)));
        parts[i % 3].insert(name, tensor);
    }
    for (i, part) in parts.iter().enumerate() {
        save(part, dir.join(format!("model-0000{}-of-00003.safetensors", i + 1)));
    }
    let index = json!({"metadata": {}, "weight_map": map});
    std::fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

fn tokens(factory: &CandleFactory) -> Vec<f32> {
    let mut backend = factory.open(DeviceId::Cpu(0)).unwrap();
    let handles = backend.encode(&[random::image(&factory.card().policy, 300, 200, 1)]).unwrap();
    backend.read_tokens(handles[0]).unwrap()
}

#[test]
fn shards_give_what_one_file_gives() {
    let dir = tempfile::tempdir().unwrap();
    let tensors = write(dir.path(), &config(), DType::F32);
    let one = open(dir.path()).unwrap();
    shard(dir.path(), tensors);
    let three = open(dir.path()).unwrap();
    assert_eq!(tokens(&one), tokens(&three));
    assert_ne!(one.card().fingerprint, three.card().fingerprint);
}

#[test]
fn half_precision_is_read_exactly() {
    for dtype in [DType::F16, DType::BF16] {
        let (half, full) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let tensors = write(half.path(), &config(), dtype);
        write_json_files(full.path(), &config());
        let widened = tensors.into_iter().map(|(n, t)| (n, t.to_dtype(DType::F32).unwrap())).collect();
        save(&widened, full.path().join("model.safetensors"));
        assert_eq!(tokens(&open(half.path()).unwrap()), tokens(&open(full.path()).unwrap()));
    }
}

#[test]
fn the_fingerprint_is_that_of_the_bytes() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(a.path(), &config(), DType::F32);
    let mut tensors = write(b.path(), &config(), DType::F32);
    let fingerprint = |dir: &tempfile::TempDir| open(dir.path()).unwrap().card().fingerprint.clone();
    let same = fingerprint(&a);
    assert_eq!(same, fingerprint(&b), "the place does not count");
    let norm = tensors["model.norm.weight"].affine(1.0, 1e-3).unwrap();
    tensors.insert("model.norm.weight".to_owned(), norm);
    save(&tensors, b.path().join("model.safetensors"));
    assert_ne!(same, fingerprint(&b));
    let embedded = CandleFactory::embedded(BackendOptions::default()).unwrap();
    assert_eq!(embedded.card().fingerprint.len(), 64);
    assert_eq!(embedded.card().name, "embedded");
}

#[test]
fn every_tensor_that_does_not_fit_is_listed() {
    let dir = tempfile::tempdir().unwrap();
    let mut tensors = write(dir.path(), &config(), DType::F32);
    tensors.remove("model.layers.1.mlp.up_proj.weight");
    tensors.remove("lm_head.weight");
    let wrong = Tensor::zeros((48, 49), DType::F32, &Device::Cpu).unwrap();
    tensors.insert("model.mm_projector.proj".to_owned(), wrong);
    let ids = Tensor::zeros(48, DType::U32, &Device::Cpu).unwrap();
    tensors.insert("model.norm.weight".to_owned(), ids);
    save(&tensors, dir.path().join("model.safetensors"));
    let error = open(dir.path()).unwrap_err();
    for line in [
        "4 tensors do not fit config.json",
        "model.layers.1.mlp.up_proj.weight: missing, expected [80, 48]",
        "lm_head.weight: missing, expected [700, 48]",
        "model.mm_projector.proj: expected [48, 48], found [48, 49]",
        "model.norm.weight: expected F32, F16 or BF16, found U32",
    ] {
        assert!(error.contains(line), "{line}\n{error}");
    }
}

#[test]
fn broken_directories_are_named_and_say_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let check = |file: &str, expected: &str| {
        let error = open(dir.path()).unwrap_err();
        assert!(error.contains(file) && error.contains(expected), "{file} {expected}: {error}");
    };
    check("config.json", "cannot be read");
    let tensors = write(dir.path(), &config(), DType::F32);

    let whole = std::fs::read(path("model.safetensors")).unwrap();
    std::fs::write(path("model.safetensors"), &whole[..whole.len() / 2]).unwrap();
    check("model.safetensors", "is not a complete safetensors file");
    std::fs::write(path("model.safetensors"), &whole).unwrap();

    std::fs::write(path("tokenizer.json"), b"{\"model\": 3}").unwrap();
    check("tokenizer.json", "is not a tokenizer");
    std::fs::write(path("tokenizer.json"), crate::embedded::TOKENIZER).unwrap();

    let mut other = config();
    other["model_type"] = json!("qwen2");
    std::fs::write(path("config.json"), other.to_string()).unwrap();
    check("config.json", "model_type \"qwen2\" is not supported");
    std::fs::write(path("config.json"), config().to_string()).unwrap();
    assert!(open(dir.path()).is_ok());

    shard(dir.path(), tensors);
    let second = path("model-00002-of-00003.safetensors");
    let bytes = std::fs::read(&second).unwrap();
    std::fs::remove_file(&second).unwrap();
    check("model-00002-of-00003.safetensors", "is missing");
    std::fs::write(&second, &bytes[..100]).unwrap();
    check("model-00002-of-00003.safetensors", "not a complete safetensors file");
    std::fs::write(path("model.safetensors.index.json"), r#"{"weight_map": {"a": "../b.safetensors"}}"#).unwrap();
    check("model.safetensors.index.json", "must lie beside the index");
    std::fs::remove_file(path("model.safetensors.index.json")).unwrap();
    check("model-00002-of-00003.safetensors", "not a complete safetensors file");
    for i in 1..=3 {
        std::fs::remove_file(path(&format!("model-0000{i}-of-00003.safetensors"))).unwrap();
    }
    check("holds neither", "model.safetensors.index.json");
}

#[test]
fn the_card_says_what_the_config_says() {
    let factory = random::factory(&config(), BackendOptions { context_tokens_max: Some(100), ..Default::default() });
    let card = factory.card();
    assert_eq!((card.width, card.context_tokens_max), (48, 100));
    assert_eq!(card.shape.vision.layers, 2, "mm_vision_select_layer −2 of 3");
    assert_eq!((card.shape.decoder.heads, card.shape.decoder.kv_heads, card.shape.decoder.head_dim), (4, 2, 20));
    assert_eq!((card.policy.side, card.policy.max_slices, card.policy.name.as_str()), (112, 6, "llava-uhd-raw"));
    assert_eq!(card.generation.max_new_tokens, 48);
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_gpu_without_the_feature_is_refused_with_the_remedy() {
    let factory = CandleFactory::embedded(BackendOptions::default()).unwrap();
    let error = factory.open(DeviceId::Cuda(0)).err().unwrap();
    assert_eq!(error.fate, Fate::Fatal);
    assert!(error.message.contains("--features cuda") && error.message.contains("--devices cpu"), "{error}");
}
