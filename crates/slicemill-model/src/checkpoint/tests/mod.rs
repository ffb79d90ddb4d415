//! Checkpoints on the disk, in a cache and on a hub of the tests' own.

mod hub;
mod locate;
mod server;
mod torch;
mod weights;

use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};

/// A safetensors file with tensors of f32: name, shape; the values count up.
fn safetensors(tensors: &[(&str, &[usize])]) -> Vec<u8> {
    let data: Vec<Vec<u8>> =
        tensors.iter().map(|(_, shape)| ramp(shape).iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
    let views = tensors.iter().zip(&data);
    let views = views.map(|((name, shape), data)| (*name, TensorView::new(Dtype::F32, shape.to_vec(), data).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

fn ramp(shape: &[usize]) -> Vec<f32> {
    (0..shape.iter().product()).map(|i| i as f32).collect()
}

/// An index of tensors in files.
fn index(placed: &[(&str, &str)]) -> String {
    let map: serde_json::Map<_, _> = placed.iter().map(|(name, file)| ((*name).to_owned(), (*file).into())).collect();
    serde_json::json!({"metadata": {}, "weight_map": map}).to_string()
}

fn put(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}
