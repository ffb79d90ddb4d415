//! Every family end to end against reference outputs, from image files to token ids: pixels, tower features, visual
//! tokens, prompt ids, logits, greedy ids. The checkpoints are tiny and random, in the published layouts: some made here
//! from recipes, some read from the directory in SLICEMILL_GOLDEN.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, IndexOp, Tensor};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use slicemill_core::{Alpha, GenerationParams, ImageOptions, OrientationRule, SlicingPolicy};
use slicemill_pipeline::{BackendFactory, DeviceId, PreparedImage, PreparedView};

use super::numeric::{golden, relative_error};
use super::random::{drain, request};
use super::recipe;
use crate::checkpoint::Weights;
use crate::kernels::Isa;
use crate::kv_cache::{Batch, HostSlot, HostSpan};
use crate::prompt::Piece;
use crate::{BackendOptions, CandleFactory, Model, Place};

/// A checkpoint with its expected outputs.
pub struct Golden {
    pub factory: CandleFactory,
    model: Model,
    pub index: Value,
    tensors: Weights,
    /// What stands for the image in prompt ids, where that is not −200.
    image_token: i64,
}

/// What a variant changes: the policy, or nothing that is read here. `None` is a variant of another processor.
pub fn policy_of(variant: &str, own: &SlicingPolicy) -> Option<SlicingPolicy> {
    match variant.trim_end_matches("_exif") {
        "eval1024" | "pad" => Some(own.clone()),
        "raw" if own.name == "llava-uhd" => SlicingPolicy::named("llava-uhd-raw"),
        "raw" => Some(own.clone()),
        // Short side and centre crop; a prompt with its thoughts: options of other programs.
        "hf_processor" | "thinking" => None,
        other => panic!("the variant {other} is not known"),
    }
}

impl Golden {
    pub fn open(checkpoint: &Path, expected: &Path) -> Self {
        let factory = CandleFactory::from_dir(checkpoint, BackendOptions::default()).unwrap();
        let config: Value = serde_json::from_slice(&std::fs::read(checkpoint.join("config.json")).unwrap()).unwrap();
        Self {
            image_token: config["image_token_index"].as_i64().unwrap_or(-200),
            model: factory.load(&Place::cpu()).unwrap(),
            index: serde_json::from_slice(&std::fs::read(expected.join("index.json")).unwrap()).unwrap(),
            tensors: Weights::open_file(&expected.join("tensors.safetensors")).unwrap(),
            factory,
        }
    }

    /// Checks all cases whose pixels are those of the reference; answers how many they are and how many others.
    fn check(&self, images: &Path) -> (usize, usize) {
        let (mut checked, mut other) = (0, 0);
        for case in self.index["cases"].as_array().unwrap() {
            let Some(policy) = policy_of(case["variant"].as_str().unwrap(), &self.factory.card().policy) else {
                continue;
            };
            let name = case["image"].as_str().unwrap();
            let image = self.prepared(&policy, &images.join(name), case["key"].as_str().unwrap());
            let want = case["views"].as_array().unwrap();
            assert_eq!(image.views.len(), want.len(), "{}", case["key"]);
            if image.views.iter().zip(want).all(|(view, want)| same_pixels(view, want)) {
                self.case(case, &image);
                checked += 1;
            } else {
                // Another decoder of JPEG, after which nothing can be equal.
                assert!(name.ends_with("jpg"), "{}: other pixels", case["key"]);
                other += 1;
            }
        }
        (checked, other)
    }

    pub fn prepared(&self, policy: &SlicingPolicy, path: &Path, key: &str) -> PreparedImage {
        let orientation = if key.ends_with("_exif") { OrientationRule::Apply } else { OrientationRule::Ignore };
        let options = ImageOptions { orientation, alpha: Alpha::Drop, ..ImageOptions::default() };
        let bytes = std::fs::read(path).unwrap();
        let header = slicemill_image::read_header(&bytes, &path.display().to_string(), &options).unwrap();
        let plan = policy.plan(header.oriented_size(orientation)).unwrap();
        let normalisation = self.factory.card().normalisation;
        let prepared = slicemill_image::prepare(&bytes, &header, &plan, &options, &normalisation).unwrap();
        PreparedImage { plan: Arc::new(plan), views: prepared.views }
    }

    fn case(&self, case: &Value, image: &PreparedImage) {
        let key = case["key"].as_str().unwrap();
        let views: Vec<&PreparedView> = image.views.iter().collect();
        let features = self.model.features(&views).unwrap();
        let visual = self.model.encode(&views).unwrap();
        let patches = |view: &PreparedView| (view.patches_wide * view.patches_high) as usize;
        self.rows(&format!("{key}.vit_rows"), &features, image.views.iter().map(patches));
        let tokens: Vec<usize> = image.views.iter().map(|view| self.model.tokens_of(view)).collect();
        self.rows(&format!("{key}.projected_rows"), &visual, tokens.iter().copied());
        for run in case["runs"].as_array().unwrap() {
            let question = run["text"].as_str().unwrap();
            let sequence = self.factory.prompts().assemble(question, &image.plan).unwrap();
            assert_eq!(json!(sequence.tokens), run["embeds_len"], "{key}: {question}");
            let ids: Vec<i64> = sequence.pieces.iter().flat_map(ids_of).collect();
            assert_eq!(ids, self.prompt(case, run, &tokens), "{key}: {question}");
            self.logits(run, key, &ids, &visual);
        }
        self.answers(case, image);
    }

    /// First, middle and last row of every view.
    fn rows(&self, name: &str, got: &Tensor, lengths: impl Iterator<Item = usize>) {
        if !self.tensors.contains(name) {
            return;
        }
        let want = self.tensors.tensor(name, DType::F32, &Device::Cpu).unwrap();
        // A single view has no axis of its own in one of the folders.
        let want = want.reshape(((), 3, got.dim(1).unwrap())).unwrap();
        let mut start = 0;
        for (view, length) in lengths.enumerate() {
            let middle = [length / 2, (length - 1) / 2];
            for (at, rows) in [(0, [0, 0]), (1, middle), (2, [length - 1; 2])] {
                let want = want.i((view, at)).unwrap();
                // The golden folders count the middle from above or below.
                let error = rows
                    .map(|row| relative_error(&got.i(start + row).unwrap(), &want))
                    .into_iter()
                    .fold(f32::INFINITY, f32::min);
                assert!(error < 1e-4, "{name} of view {view}, row {}: {error:e}", rows[0]);
            }
            start += length;
        }
    }

    /// Prompt ids with −1 for every visual token, cut where the reference cuts.
    fn prompt(&self, case: &Value, run: &Value, tokens: &[usize]) -> Vec<i64> {
        let numbers = |value: &Value| -> Vec<i64> {
            value.as_array().map_or_else(Vec::new, |all| all.iter().map(|id| id.as_i64().unwrap()).collect())
        };
        let mut ids = numbers(&run["prompt_ids"]);
        if let Some(bounds) = run["image_bound"].as_array() {
            for bound in bounds {
                let bound = numbers(bound);
                let [start, end] = [bound[0], bound[1]].map(|at| usize::try_from(at).unwrap());
                ids[start..end].fill(-1);
            }
        } else {
            let slot = self.image_token;
            let separators = numbers(&case["plan"]["separators"]);
            let mut views: Vec<i64> = Vec::new();
            for (i, count) in tokens.iter().enumerate() {
                views.extend(std::iter::repeat_n(-1, *count));
                views.extend(separators.get(i));
            }
            let slot = if ids.contains(&slot) { slot } else { -200 };
            ids = ids.into_iter().flat_map(|id| if id == slot { views.clone() } else { vec![id] }).collect();
        }
        ids.truncate(usize::try_from(run["embeds_len"].as_u64().unwrap()).unwrap());
        ids
    }

    fn logits(&self, run: &Value, key: &str, ids: &[i64], visual: &Tensor) {
        let logits = logits_of(&self.model, ids, visual);
        for (id, want) in run["step0_top8_ids"].as_array().unwrap().iter().zip(run["step0_top8"].as_array().unwrap()) {
            let got = logits[usize::try_from(id.as_u64().unwrap()).unwrap()];
            let want = want.as_f64().unwrap() as f32;
            assert!((got - want).abs() < 1e-2, "{key}, logit {id}: {got} {want}");
        }
        let name = format!("{key}.p{}.step0_logits_first512", run["prompt"]);
        if self.tensors.contains(&name) {
            for (got, want) in logits.iter().zip(self.tensors.values(&name).unwrap()) {
                assert!((got - want).abs() < 1e-2, "{key} logits: {got} {want}");
            }
        }
    }

    /// Greedy ids through the backend, all prompts of the image in flight together.
    fn answers(&self, case: &Value, image: &PreparedImage) {
        let mut backend = self.factory.open(DeviceId::Cpu(0)).unwrap();
        let handle = backend.encode(std::slice::from_ref(image)).unwrap()[0];
        let params = GenerationParams { max_new_tokens: 24, ..GenerationParams::default() };
        let runs = case["runs"].as_array().unwrap();
        for run in runs {
            backend.admit(request(handle, run["text"].as_str().unwrap(), &params, 0)).unwrap();
        }
        let eos = self.factory.prompts().eos();
        for (run, generated) in runs.iter().zip(drain(&mut *backend, runs.len())) {
            let generated = generated.unwrap();
            let mut want: Vec<u32> = serde_json::from_value(run["output_ids"].clone()).unwrap();
            if want.last().is_some_and(|id| eos.contains(id)) {
                want.pop();
            }
            assert_eq!(generated.token_ids, want, "{}: {}", case["key"], run["text"]);
            let cut = run["embeds_len_untruncated"].as_u64().map_or(0, |all| all - run["embeds_len"].as_u64().unwrap());
            assert_eq!(u64::from(generated.prompt_cut), cut, "{}", case["key"]);
        }
    }
}

fn ids_of(piece: &Piece) -> Vec<i64> {
    match piece {
        Piece::Tokens(ids) => ids.iter().map(|&id| i64::from(id)).collect(),
        Piece::View(tokens) => vec![-1; *tokens],
    }
}

/// Logits after a prompt; ids below 0 are visual tokens, in order.
pub fn logits_of(model: &Model, ids: &[i64], visual: &Tensor) -> Vec<f32> {
    let config = &model.decoder.config;
    let mut slot = HostSlot::default();
    slot.reserve(config.attention, config.layers, ids.len() + 1).unwrap();
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
    let x = Tensor::cat(&parts, 0).unwrap();
    let mut batch = Batch::Host(Isa::detect(), vec![HostSpan { slot: &mut slot, start: 0, tokens: ids.len() }]);
    model.decoder.forward(&x, &mut batch).unwrap().of(0).to_vec()
}

/// Whether a view's f32 values have the SHA-256 of the reference's: `[3, height, width]` (CLIP), or patches side by side
/// as `[3, 14, patches · 14]` (MiniCPM-V).
fn same_pixels(view: &PreparedView, want: &Value) -> bool {
    let (wide, high) = (view.patches_wide as usize, view.patches_high as usize);
    let pixels = Tensor::new(view.patches.as_slice(), &Device::Cpu).unwrap();
    let (pixels, hash) = match &want["f32_chw_sha256"] {
        Value::String(hash) => {
            let pixels = pixels.reshape(&[high, wide, 3, 14, 14]).unwrap();
            (pixels.permute([2, 0, 3, 1, 4]).unwrap(), hash)
        }
        _ => {
            let pixels = pixels.reshape(&[high * wide, 3, 14, 14]).unwrap();
            let Value::String(hash) = &want["f32_packed_sha256"] else { panic!("a hash: {want}") };
            (pixels.permute([1, 2, 0, 3]).unwrap(), hash)
        }
    };
    let values = pixels.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    &Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect::<String>() == hash
}

/// A layout of `tests/data/checkpoints`, whose images are all PNG.
fn check_layout(layout: &str, cases: usize) {
    let dir = tempfile::tempdir().unwrap();
    recipe::make(layout, dir.path());
    let golden = Golden::open(dir.path(), &recipe::recipes().join(layout).join("expected"));
    assert_eq!(golden.check(&recipe::recipes().join("images")), (cases, 0), "{layout}");
}

#[test]
fn llava_uhd_v1_answers_as_the_reference() {
    check_layout("uhd-v1", 12);
}

#[test]
fn llava_uhd_with_64_queries_answers_as_the_reference() {
    check_layout("uhd-64", 6);
}

#[test]
fn llava_15_as_published_answers_as_the_reference() {
    check_layout("llava-1.5", 6);
}

#[test]
fn llava_15_as_converted_answers_as_the_reference() {
    check_layout("llava-1.5-hf", 6);
}

#[test]
fn minicpm_v_26_answers_as_the_reference() {
    check_layout("minicpmv-2.6", 6);
}

#[test]
fn minicpm_v_45_answers_as_the_reference() {
    check_layout("minicpmv-4.5", 6);
}

#[test]
fn minicpm_v_40_answers_as_the_reference() {
    check_layout("minicpmv-4.0", 6);
}

#[test]
fn the_published_code_end_to_end() {
    let Some(root) = golden("e2e") else { return };
    for folder in ["bridge-1", "jul-1", "jul-2", "llava15-1", "minicpmv26-1"] {
        let dir = root.join(folder);
        let golden = Golden::open(&dir.join("checkpoint"), &dir.join("expected"));
        let (checked, other) = golden.check(&root.join("images"));
        println!("{folder}: {checked} cases, {other} with other pixels");
        assert!(checked >= 12 && other == 0, "{folder}: {checked} cases, {other} with other pixels");
    }
}
