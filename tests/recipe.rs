//! Tiny checkpoints of the published layouts, made from recipes: every value follows from the tensor's name and a seed,
//! so that `tests/reference/oracle` and this module write the same bytes and only the expected outputs are stored.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView};
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};

/// Where the recipes are.
pub fn recipes() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/checkpoints")
}

#[derive(Deserialize)]
struct Recipe {
    seed: u64,
    tensors: Vec<TensorRecipe>,
    data_sha256: BTreeMap<String, String>,
    sentencepiece: Option<Sentencepiece>,
}

#[derive(Deserialize)]
struct TensorRecipe {
    name: String,
    shape: Vec<usize>,
    dtype: String,
    scale: f32,
    offset: f32,
    file: String,
}

#[derive(Deserialize)]
struct Sentencepiece {
    size: u32,
    filler: String,
    pieces: BTreeMap<String, (String, f32)>,
}

/// Makes the checkpoint of a layout in `to`. A layout whose weights are stored is copied.
pub fn make(layout: &str, to: &Path) {
    let from = recipes().join(layout);
    copy(&from, to);
    let recipe: Recipe = serde_json::from_slice(&std::fs::read(from.join("recipe.json")).unwrap()).unwrap();
    if let Some(model) = &recipe.sentencepiece {
        std::fs::write(to.join("tokenizer.model"), model.bytes()).unwrap();
    }
    if !to.join("pytorch_model.bin.index.json").exists() {
        recipe.write_weights(to);
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_file() {
            std::fs::copy(&path, target).unwrap();
        } else if !path.ends_with("expected") {
            std::fs::create_dir(&target).unwrap();
            copy(&path, &target);
        }
    }
}

impl Recipe {
    fn write_weights(&self, to: &Path) {
        let mut files: BTreeMap<&str, Vec<(&TensorRecipe, Vec<u8>)>> = BTreeMap::new();
        for tensor in &self.tensors {
            files.entry(&tensor.file).or_default().push((tensor, tensor.bytes(self.seed)));
        }
        let mut map = serde_json::Map::new();
        for (file, tensors) in &files {
            let mut hash = Sha256::new();
            tensors.iter().for_each(|(_, bytes)| hash.update(bytes));
            let hash: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(&hash, &self.data_sha256[*file], "{file} is not what the reference was run on");
            map.extend(tensors.iter().map(|(tensor, _)| (tensor.name.clone(), json!(file))));
            let views = tensors.iter().map(|(tensor, bytes)| {
                (tensor.name.as_str(), TensorView::new(tensor.dtype(), tensor.shape.clone(), bytes).unwrap())
            });
            safetensors::serialize_to_file(views, None, &to.join(file)).unwrap();
        }
        if files.keys().any(|file| file.contains("-of-")) {
            let index = json!({"metadata": {}, "weight_map": map});
            std::fs::write(to.join("model.safetensors.index.json"), index.to_string()).unwrap();
        }
    }
}

/// The i-th value is uniform in [−1, 1), from SplitMix64 of the name's FNV-1a hash, seed and i.
pub fn uniform(name: &str, seed: u64, count: usize) -> Vec<f32> {
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
    let name = name
        .bytes()
        .fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3));
    let value = |i: u64| {
        let state = name.wrapping_add(seed.wrapping_mul(GOLDEN)).wrapping_add((i + 1).wrapping_mul(GOLDEN));
        let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        2.0 * (((z ^ (z >> 31)) >> 40) as f32 / 16_777_216.0) - 1.0
    };
    (0..count as u64).map(value).collect()
}

impl TensorRecipe {
    fn dtype(&self) -> Dtype {
        match self.dtype.as_str() {
            "F32" => Dtype::F32,
            "F16" => Dtype::F16,
            "BF16" => Dtype::BF16,
            other => panic!("{other}"),
        }
    }

    fn bytes(&self, seed: u64) -> Vec<u8> {
        let values = uniform(&self.name, seed, self.shape.iter().product());
        let values = values.into_iter().map(|x| x * self.scale + self.offset);
        match self.dtype() {
            Dtype::F16 => values.flat_map(|x| f16::from_f32(x).to_le_bytes()).collect(),
            Dtype::BF16 => values.flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect(),
            _ => values.flat_map(f32::to_le_bytes).collect(),
        }
    }
}

impl Sentencepiece {
    /// A `ModelProto` with pieces, a trainer's and a normaliser's section.
    fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for id in 0..self.size {
            let (text, score, kind) = self.piece(id);
            let mut piece = Vec::new();
            field(1, text.as_bytes(), &mut piece);
            piece.push(2 << 3 | 5);
            piece.extend(score.to_le_bytes());
            number(3, kind, &mut piece);
            field(1, &piece, &mut out);
        }
        let mut trainer = Vec::new();
        for (name, value) in [(3, 2), (4, u64::from(self.size)), (35, 1), (40, 0), (41, 1), (42, 2), (43, u64::MAX)] {
            number(name, value, &mut trainer);
        }
        field(2, &trainer, &mut out);
        let mut normaliser = Vec::new();
        field(1, b"identity", &mut normaliser);
        for (name, value) in [(3, 1), (4, 0), (5, 1)] {
            number(name, value, &mut normaliser);
        }
        field(3, &normaliser, &mut out);
        out
    }

    /// Text, score and type: unknown 2, control 3, byte 6, normal 1.
    fn piece(&self, id: u32) -> (String, f32, u64) {
        match (id, self.pieces.get(&id.to_string())) {
            (0, _) => ("<unk>".to_owned(), 0.0, 2),
            (1, _) => ("<s>".to_owned(), 0.0, 3),
            (2, _) => ("</s>".to_owned(), 0.0, 3),
            (3..259, _) => (format!("<0x{:02X}>", id - 3), 0.0, 6),
            (_, Some((text, score))) => (text.clone(), *score, 1),
            _ => (self.filler.replace("{id}", &id.to_string()), 259.0 - id as f32, 1),
        }
    }
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 & 0x7F | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn number(name: u64, value: u64, out: &mut Vec<u8>) {
    varint(name << 3, out);
    varint(value, out);
}

fn field(name: u64, bytes: &[u8], out: &mut Vec<u8>) {
    varint(name << 3 | 2, out);
    varint(bytes.len() as u64, out);
    out.extend(bytes);
}
