//! The embedded model against the numbers that its training code gives, from image file to token ids.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use slicemill_core::{Alpha, GenerationParams, ImageOptions, OrientationRule, SlicingPolicy};
use slicemill_image::{prepare, read_header};
use slicemill_pipeline::{Backend, BackendFactory, PreparedImage, PreparedView};

use super::numeric::relative_error;
use super::random::{drain, open, request};
use crate::checkpoint::Weights;
use crate::prompt::Piece;
use crate::{BackendOptions, CandleFactory};

#[derive(Deserialize)]
struct Golden {
    weights_sha256: String,
    images: Vec<GoldenImage>,
}

#[derive(Deserialize)]
struct GoldenImage {
    file: String,
    prompts: Vec<GoldenPrompt>,
}

#[derive(Deserialize)]
struct GoldenPrompt {
    question: String,
    /// −1 is a visual token.
    prompt_ids: Vec<i64>,
    greedy_ids: Vec<u32>,
    greedy_text: String,
}

/// An image file as the model of `factory` is given it.
pub fn prepared(policy: &SlicingPolicy, factory: &CandleFactory, path: &Path, exif: OrientationRule) -> PreparedImage {
    let options = ImageOptions { orientation: exif, alpha: Alpha::Drop, ..Default::default() };
    let bytes = std::fs::read(path).unwrap();
    let header = read_header(&bytes, &path.display().to_string(), &options).unwrap();
    let plan = policy.plan(header.oriented_size(exif)).unwrap();
    let views = prepare(&bytes, &header, &plan, &options, &factory.card().normalisation).unwrap().views;
    let views = views
        .into_iter()
        .map(|v| PreparedView { patches_wide: v.patches_wide, patches_high: v.patches_high, patches: v.patches })
        .collect();
    PreparedImage { plan: Arc::new(plan), views }
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

fn golden() -> (Golden, Weights) {
    let dir = root().join("tests/data/embedded");
    let golden: Golden = serde_json::from_slice(&std::fs::read(dir.join("golden.json")).unwrap()).unwrap();
    let digest: String = Sha256::digest(crate::embedded::WEIGHTS).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(digest, golden.weights_sha256, "golden.json is of other weights: run tests/reference/golden.py again");
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(dir.join("golden.safetensors"), copy.path().join("model.safetensors")).unwrap();
    (golden, Weights::open(copy.path()).unwrap())
}

#[test]
fn prompts_are_tokenised_as_in_training() {
    let factory = CandleFactory::embedded(BackendOptions::default()).unwrap();
    let (golden, _) = golden();
    for image in &golden.images {
        let path = root().join("examples/images").join(&image.file);
        let plan = prepared(&factory.card().policy, &factory, &path, OrientationRule::Apply).plan;
        for prompt in &image.prompts {
            let sequence = factory.prompts().assemble(&prompt.question, &plan).unwrap();
            let ids: Vec<i64> = sequence
                .pieces
                .iter()
                .flat_map(|piece| match piece {
                    Piece::Tokens(ids) => ids.iter().map(|&id| i64::from(id)).collect(),
                    Piece::View(tokens) => vec![-1; *tokens],
                })
                .collect();
            assert_eq!(ids, prompt.prompt_ids, "{}: {}", image.file, prompt.question);
            assert_eq!(factory.prompt_tokens(&prompt.question, &plan).unwrap() as usize, ids.len());
        }
    }
}

/// Lossless files only: decoders of JPEG differ by a grey level here and there.
fn lossless(golden: &Golden) -> impl Iterator<Item = &GoldenImage> {
    golden.images.iter().filter(|image| !image.file.ends_with("jpg"))
}

fn check(backend: &mut dyn Backend, factory: &CandleFactory) {
    let (golden, tensors) = golden();
    let images: Vec<PreparedImage> = lossless(&golden)
        .map(|image| {
            let path = root().join("examples/images").join(&image.file);
            prepared(&factory.card().policy, factory, &path, OrientationRule::Apply)
        })
        .collect();
    assert!(images.len() >= 4);
    let handles = backend.encode(&images).unwrap();
    let params = GenerationParams { max_new_tokens: 48, ..Default::default() };
    for (image, handle) in lossless(&golden).zip(handles) {
        let got = Tensor::new(backend.read_tokens(handle).unwrap(), &Device::Cpu).unwrap();
        let want = tensors.tensor(&format!("{}.visual", image.file), DType::F32, &Device::Cpu).unwrap();
        let error = relative_error(&got, &want);
        assert!(error < 1e-4, "{}: {error:e}", image.file);
        for prompt in &image.prompts {
            backend.admit(request(handle, &prompt.question, &params, 0)).unwrap();
        }
        for (prompt, generated) in image.prompts.iter().zip(drain(backend, image.prompts.len())) {
            let generated = generated.unwrap();
            assert_eq!(generated.token_ids, prompt.greedy_ids, "{}: {}", image.file, prompt.question);
            assert_eq!(generated.text, prompt.greedy_text.trim());
        }
    }
}

#[test]
fn the_forward_pass_equals_torchs() {
    let factory = CandleFactory::embedded(BackendOptions::default()).unwrap();
    check(&mut *open(&factory, false), &factory);
}

#[test]
fn the_forward_pass_on_candles_operations_equals_torchs() {
    let factory = CandleFactory::embedded(BackendOptions::default()).unwrap();
    check(&mut *open(&factory, true), &factory);
}

#[test]
fn first_step_logits_equal_torchs() {
    let factory = CandleFactory::embedded(BackendOptions::default()).unwrap();
    let model = factory.load(&crate::Place::cpu()).unwrap();
    let (golden, tensors) = golden();
    for image in lossless(&golden) {
        let path = root().join("examples/images").join(&image.file);
        let views = prepared(&factory.card().policy, &factory, &path, OrientationRule::Apply).views;
        let visual = model.encode(&views.iter().collect::<Vec<_>>()).unwrap();
        for (i, prompt) in image.prompts.iter().enumerate() {
            let logits = super::golden::logits_of(&model, &prompt.prompt_ids, &visual);
            let want = tensors.tensor(&format!("{}.logits.{i}", image.file), DType::F32, &Device::Cpu).unwrap();
            let error = relative_error(&Tensor::new(logits, &Device::Cpu).unwrap(), &want);
            assert!(error < 1e-4, "{} {i}: {error:e}", image.file);
        }
    }
}
