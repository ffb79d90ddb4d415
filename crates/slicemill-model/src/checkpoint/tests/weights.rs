//! Safetensors in all arrangements.

use candle_core::{DType, Device};
use safetensors::tensor::{Dtype, TensorView};

use super::super::Weights;
use super::{index, put, ramp, safetensors};
use crate::manifest::Manifest;

const FIRST: &str = "model-00001-of-00002.safetensors";
const SECOND: &str = "model-00002-of-00002.safetensors";
const INDEX: &str = "model.safetensors.index.json";

fn manifest(tensors: &[(&str, &[usize])]) -> Manifest {
    tensors.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect()
}

fn refused(dir: &std::path::Path, parts: &[&str]) {
    let error = Weights::open(dir).unwrap_err().to_string();
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}

#[test]
fn one_file_an_index_and_numbers_give_the_same() {
    let [a, b]: [(&str, &[usize]); 2] = [("a", &[2, 3]), ("b.weight", &[4])];
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    put(dirs[0].path(), "model.safetensors", safetensors(&[a, b]));
    for dir in &dirs[1..] {
        put(dir.path(), FIRST, safetensors(&[a]));
        put(dir.path(), SECOND, safetensors(&[b]));
    }
    put(dirs[1].path(), INDEX, index(&[("a", FIRST), ("b.weight", SECOND)]));
    for dir in &dirs {
        let weights = Weights::open(dir.path()).unwrap();
        weights.check(&manifest(&[a, b])).unwrap();
        assert_eq!(weights.values("a").unwrap(), ramp(&[2, 3]));
        let tensor = weights.tensor("b.weight", DType::F32, &Device::Cpu).unwrap();
        assert_eq!(tensor.to_vec1::<f32>().unwrap(), ramp(&[4]));
        assert!(weights.contains("a") && !weights.contains("c"));
        let all: Vec<_> = weights.tensors().map(|t| (t.name, t.shape, t.dtype, t.bytes)).collect();
        assert_eq!(all, [("a", &[2, 3][..], Dtype::F32, 24), ("b.weight", &[4][..], Dtype::F32, 16)]);
    }
}

#[test]
fn half_precision_is_widened() {
    let half: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect();
    let brain: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect();
    let views = [
        ("h", TensorView::new(Dtype::F16, vec![2], &half).unwrap()),
        ("b", TensorView::new(Dtype::BF16, vec![2], &brain).unwrap()),
        ("i", TensorView::new(Dtype::I16, vec![2], &brain).unwrap()),
    ];
    let bytes: &'static [u8] = safetensors::serialize(views, None).unwrap().leak();
    let weights = Weights::embedded(bytes).unwrap();
    assert_eq!(weights.values("h").unwrap(), [1.5, -2.0]);
    assert_eq!(weights.values("b").unwrap(), [1.5, -2.0]);
    assert!(weights.values("i").unwrap_err().to_string().contains("expected F32, F16 or BF16, found I16"));
    assert!(Weights::embedded(&bytes[..60]).unwrap_err().to_string().contains("the embedded model"));
}

#[test]
fn missing_shards_are_named() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "model-00002-of-00004.safetensors", safetensors(&[("a", &[1])]));
    put(dir.path(), "other-00001-of-00002.safetensors", safetensors(&[("x", &[1])]));
    refused(dir.path(), &["model-00001-of-00004.safetensors: is missing", "00003-of-00004", "00004-of-00004"]);
    for i in [1, 3, 4] {
        put(dir.path(), &format!("model-0000{i}-of-00004.safetensors"), safetensors(&[("b", &[1])]));
    }
    assert_eq!(Weights::open(dir.path()).unwrap().files().len(), 4);
    put(dir.path(), "model-00001-of-00005.safetensors", "left over");
    assert_eq!(Weights::open(dir.path()).unwrap().files().len(), 4, "the complete ones");
    put(dir.path(), INDEX, index(&[("a", FIRST), ("b", SECOND)]));
    refused(dir.path(), &[FIRST, "is missing", SECOND]);
    put(dir.path(), INDEX, index(&[("a", "../elsewhere.safetensors")]));
    refused(dir.path(), &["must lie beside the index"]);
    put(dir.path(), INDEX, "{}");
    refused(dir.path(), &[INDEX, "is not an index"]);
}

#[test]
fn a_directory_without_weights_says_what_it_holds() {
    let dir = tempfile::tempdir().unwrap();
    refused(dir.path(), &["holds neither model.safetensors", INDEX, "pytorch_model.bin"]);
    put(dir.path(), "llava-q4.gguf", "");
    refused(dir.path(), &["there is llava-q4.gguf, which cannot be read"]);
    put(dir.path(), "adapter_model.safetensors", "");
    refused(dir.path(), &["is an adapter"]);
    refused(&dir.path().join("nowhere"), &["cannot be read as a directory"]);
}

#[test]
fn a_file_that_is_cut_off_says_how_much_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let whole = safetensors(&[("a", &[100])]);
    let cut = |n: usize| put(dir.path(), "model.safetensors", &whole[..n]);
    let expected = format!("expected {} bytes, found {}", whole.len(), whole.len() - 1);
    cut(whole.len() - 1);
    refused(dir.path(), &["model.safetensors: is not a complete safetensors file", &expected, "again"]);
    cut(20);
    refused(dir.path(), &["is not a complete safetensors file: expected more than", "found 20"]);
    cut(5);
    refused(dir.path(), &["expected more than 8 bytes, found 5"]);
    cut(0);
    refused(dir.path(), &["is empty"]);
    let longer = [&whole[..], b"x"].concat();
    put(dir.path(), "model.safetensors", &longer);
    refused(dir.path(), &[&format!("expected {} bytes, found {}", whole.len(), longer.len())]);
    put(dir.path(), "model.safetensors", b"<!DOCTYPE html><html>a page</html>");
    refused(dir.path(), &["is not a complete safetensors file", "again"]);
    put(dir.path(), "model.safetensors", b"version https://git-lfs.example/spec/v1\noid sha256:00\nsize 1\n");
    refused(dir.path(), &["Git LFS pointer", "git lfs pull"]);
}

#[test]
fn one_error_lists_all_that_does_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), FIRST, safetensors(&[("m.a", &[2]), ("m.extra", &[7]), ("other", &[1])]));
    put(dir.path(), SECOND, safetensors(&[("m.b", &[3, 1])]));
    let placed = [("m.a", FIRST), ("m.b", SECOND), ("m.lost", SECOND), ("m.gone", FIRST), ("other", SECOND)];
    put(dir.path(), INDEX, index(&placed));
    let weights = Weights::open(dir.path()).unwrap();
    assert_eq!(weights.values("other").unwrap(), [0.0], "the index is wrong, the file is right");
    weights.check(&manifest(&[("m.a", &[2])])).unwrap();
    let wanted = manifest(&[("m.a", &[2]), ("m.b", &[3]), ("m.lost", &[9]), ("m.none", &[1, 2])]);
    let error = weights.check_all(&wanted, |name| name.starts_with("m.")).unwrap_err().to_string();
    for line in [
        "5 tensors do not fit config.json",
        "m.b: expected [3], found [3, 1]",
        "m.lost: missing, expected [9]; the index places it in model-00002-of-00002.safetensors, which does not hold it",
        "m.none: missing, expected [1, 2]",
        "m.extra: not expected, found [7]",
        "m.gone: not expected, and model-00001-of-00002.safetensors does not hold it",
    ] {
        assert!(error.contains(line), "{line}\n{error}");
    }
    assert!(!error.contains("other"), "{error}");
}

#[test]
fn a_long_list_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "model.safetensors", safetensors(&[("a", &[1])]));
    let wanted: Manifest = (0..100).map(|i| (format!("t{i:03}"), vec![i])).collect();
    let error = Weights::open(dir.path()).unwrap().check(&wanted).unwrap_err().to_string();
    assert!(error.contains("100 tensors") && error.contains("t039") && !error.contains("t040"), "{error}");
    assert!(error.ends_with("… and 60 more"), "{error}");
}

#[test]
fn two_checkpoints_join_under_new_names() {
    let (model, tower) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    put(model.path(), "model.safetensors", safetensors(&[("model.norm", &[2]), ("tower.vision_model.kept", &[1])]));
    let there: [(&str, &[usize]); 3] = [("vision_model.a", &[3]), ("vision_model.kept", &[5]), ("text_model.b", &[1])];
    put(tower.path(), "model.safetensors", safetensors(&there));
    let rename = |name: &str| name.starts_with("vision_model.").then(|| format!("tower.{name}"));
    let joined = Weights::open(model.path()).unwrap().with(Weights::open(tower.path()).unwrap(), rename);
    let names: Vec<_> = joined.tensors().map(|t| (t.name, t.shape.to_vec())).collect();
    let expected = [("model.norm", vec![2]), ("tower.vision_model.a", vec![3]), ("tower.vision_model.kept", vec![1])];
    assert_eq!(names, expected);
    assert_eq!(joined.values("tower.vision_model.a").unwrap(), ramp(&[3]));
    assert_eq!(joined.info("tower.vision_model.a").unwrap().file, Some(&*tower.path().join("model.safetensors")));
    assert_eq!(joined.files().len(), 2);
    let error = joined.check(&manifest(&[("gone", &[1])])).unwrap_err().to_string();
    assert!(error.contains(&model.path().display().to_string()) && error.contains(" with "), "{error}");
}

#[test]
fn the_projector_beside_the_shards_is_used_unless_they_hold_it() {
    let source =
        std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/torch_bin/mm_projector.bin"));
    let name = "model.mm_projector.query";
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(source, dir.path().join("mm_projector.bin")).unwrap();
    put(dir.path(), "model.safetensors", safetensors(&[("model.norm", &[2])]));
    let weights = Weights::open(dir.path()).unwrap();
    assert_eq!(weights.values(name).unwrap(), [0.0, 0.25, 0.5, 0.75]);
    assert_eq!(weights.files().len(), 2);
    put(dir.path(), "model.safetensors", safetensors(&[(name, &[3])]));
    let weights = Weights::open(dir.path()).unwrap();
    assert_eq!((weights.values(name).unwrap(), weights.files().len()), (ramp(&[3]), 1));
}
