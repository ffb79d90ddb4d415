//! Files that torch wrote; `tests/data/torch_bin/make.py` made them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::Dtype;

use super::super::Weights;
use super::put;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/torch_bin");
const FIRST: &str = "pytorch_model-00001-of-00002.bin";
const SECOND: &str = "pytorch_model-00002-of-00002.bin";

#[derive(serde::Deserialize)]
struct Expected {
    shape: Vec<usize>,
    values: Vec<f32>,
}

fn expected() -> BTreeMap<String, Expected> {
    serde_json::from_slice(&std::fs::read(Path::new(DATA).join("expected.json")).unwrap()).unwrap()
}

fn copy(names: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in names {
        std::fs::copy(Path::new(DATA).join(name), dir.path().join(name)).unwrap();
    }
    dir
}

fn equal(weights: &Weights) {
    for (name, expected) in expected() {
        let info = weights.info(&name).unwrap_or_else(|| panic!("{name} is missing"));
        assert_eq!(info.shape, expected.shape, "{name}");
        assert_eq!(weights.values(&name).unwrap(), expected.values, "{name}");
        let tensor = weights.tensor(&name, candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
        assert_eq!(tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap(), expected.values, "{name}");
    }
}

#[test]
fn all_layouts_and_types_give_torchs_values() {
    let with_index = Weights::open(Path::new(DATA)).unwrap();
    equal(&with_index);
    equal(&Weights::open(copy(&[FIRST, SECOND]).path()).unwrap());
    let ids = with_index.info("position_ids").unwrap();
    assert_eq!((ids.dtype, ids.shape, ids.bytes), (Dtype::I64, &[1, 4][..], 32));
    let types = ["f32", "f16", "bf16"].map(|name| with_index.info(name).unwrap().dtype);
    assert_eq!(types, [Dtype::F32, Dtype::F16, Dtype::BF16]);
    assert!(with_index.values("position_ids").unwrap_err().to_string().contains("found I64"));
}

#[test]
fn a_single_file_and_one_with_more_than_tensors() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(Path::new(DATA).join("nested.bin"), dir.path().join("pytorch_model.bin")).unwrap();
    assert_eq!(Weights::open(dir.path()).unwrap().values("nested").unwrap(), [0.0, 0.25]);
    let projector = Weights::open_file(&Path::new(DATA).join("mm_projector.bin")).unwrap();
    assert_eq!(projector.tensors().map(|t| t.name).collect::<Vec<_>>(), ["model.mm_projector.query"]);
}

fn refused(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "pytorch_model.bin", bytes);
    let error = Weights::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("pytorch_model.bin"), "{error}");
    error
}

fn read(name: &str) -> Vec<u8> {
    std::fs::read(PathBuf::from(DATA).join(name)).unwrap()
}

#[test]
fn other_files_are_refused_with_the_remedy() {
    let error = refused(&read("legacy.bin"));
    assert!(error.contains("before version 1.6") && error.contains("torch.save(torch.load(old"), "{error}");
    assert!(refused(b"something else").contains("is not a torch file"));
    let whole = read(FIRST);
    let error = refused(&whole[..whole.len() / 2]);
    assert!(error.contains("is not a complete torch file") && error.contains("it has 1453 bytes"), "{error}");
}

#[test]
fn a_pickle_that_candle_panics_over_is_refused() {
    let mut bytes = read("mm_projector.bin");
    let find = |part: &[u8]| bytes.windows(part.len()).position(|window| window == part).unwrap();
    let (start, end) = (find(b"X\x07\0\0\0storage"), find(b"FloatStorage\n") + 13);
    // The first string swallows the class after it: the tuple of the storage is one short.
    bytes[start + 1] = u8::try_from(end - start - 5).unwrap();
    let error = refused(&bytes);
    assert!(error.contains("not one of tensors (it is damaged)") && error.contains("as safetensors"), "{error}");
}

/// Whatever the bytes are, there is an answer: values or an error, never a panic beyond the unpickler's own.
#[test]
fn damaged_files_do_not_end_the_process() {
    let dir = tempfile::tempdir().unwrap();
    for name in [FIRST, SECOND, "mm_projector.bin"] {
        let whole = read(name);
        for at in (0..whole.len()).step_by(13) {
            for bit in [0, 6] {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << bit;
                put(dir.path(), "pytorch_model.bin", &bytes);
                if let Ok(weights) = Weights::open(dir.path()) {
                    let names: Vec<String> = weights.tensors().map(|t| t.name.to_owned()).collect();
                    for name in names.iter().filter(|name| weights.info(name).unwrap().bytes < 1 << 20) {
                        drop(weights.values(name));
                    }
                }
            }
        }
    }
}
