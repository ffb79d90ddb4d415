//! Weights: safetensors, one file or several, mapped from a directory or compiled into the program.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use candle_core::safetensors::{Load, MmapedSafetensors, SliceSafetensors};
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use sha2::{Digest, Sha256};

use crate::error::ModelError;
use crate::manifest::Manifest;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The tensors of a checkpoint.
pub struct Weights {
    shards: Vec<Shard>,
    /// Tensor name → shard.
    index: BTreeMap<String, usize>,
    origin: String,
}

enum Shard {
    Mapped(MmapedSafetensors),
    Embedded(SliceSafetensors<'static>),
}

impl Shard {
    fn names(&self) -> Vec<String> {
        let tensors = match self {
            Self::Mapped(file) => file.tensors(),
            Self::Embedded(bytes) => bytes.tensors(),
        };
        tensors.into_iter().map(|(name, _)| name).collect()
    }

    fn get(&self, name: &str) -> candle_core::Result<TensorView<'_>> {
        match self {
            Self::Mapped(file) => file.get(name),
            Self::Embedded(bytes) => bytes.get(name),
        }
    }
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Weights({}: {} tensors in {} files)", self.origin, self.index.len(), self.shards.len())
    }
}

impl Weights {
    /// Maps the weights of a checkpoint directory.
    ///
    /// # Errors
    /// When there are none, or a file is not complete.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        let shards = weight_files(dir)?.iter().map(|path| map_file(path)).collect::<Result<_, _>>()?;
        Ok(Self::index(shards, dir.display().to_string()))
    }

    /// Reads weights that are part of the program.
    ///
    /// # Errors
    /// When they are not complete.
    pub fn embedded(bytes: &'static [u8]) -> Result<Self, ModelError> {
        let origin = "the embedded model".to_owned();
        match SliceSafetensors::new(bytes) {
            Ok(shard) => Ok(Self::index(vec![Shard::Embedded(shard)], origin)),
            Err(e) => Err(ModelError::File { origin, message: format!("its weights are not complete ({e})") }),
        }
    }

    fn index(shards: Vec<Shard>, origin: String) -> Self {
        let index = shards.iter().enumerate().flat_map(|(i, s)| s.names().into_iter().map(move |n| (n, i))).collect();
        Self { shards, index, origin }
    }

    /// Checks that all tensors of `manifest` are there, with their shapes, in a type that can be read.
    ///
    /// # Errors
    /// One error that lists every tensor that does not fit, with what was expected and what was found.
    pub fn check(&self, manifest: &Manifest) -> Result<(), ModelError> {
        let mut problems = Vec::new();
        for (name, expected) in manifest {
            match self.find(name) {
                None => problems.push(format!("{name}: missing, expected {expected:?}")),
                Some(Err(e)) => problems.push(format!("{name}: {e}")),
                Some(Ok(view)) if view.shape() != expected => {
                    problems.push(format!("{name}: expected {expected:?}, found {:?}", view.shape()));
                }
                Some(Ok(view)) if !matches!(view.dtype(), Dtype::F32 | Dtype::F16 | Dtype::BF16) => {
                    problems.push(format!("{name}: expected F32, F16 or BF16, found {:?}", view.dtype()));
                }
                Some(Ok(_)) => {}
            }
        }
        if !problems.is_empty() {
            return Err(ModelError::Tensors { origin: self.origin.clone(), problems });
        }
        let unused = self.index.keys().filter(|name| !manifest.contains_key(*name)).count();
        if unused > 0 {
            tracing::debug!(origin = %self.origin, unused, "the checkpoint has tensors that the model does not use");
        }
        Ok(())
    }

    fn find(&self, name: &str) -> Option<candle_core::Result<TensorView<'_>>> {
        self.index.get(name).map(|&shard| self.shards[shard].get(name))
    }

    fn view(&self, name: &str) -> Result<TensorView<'_>, ModelError> {
        let problem = |what: String| ModelError::Tensors {
            origin: self.origin.clone(),
            problems: vec![format!("{name}: {what}")],
        };
        self.find(name).ok_or_else(|| problem("missing".to_owned()))?.map_err(|e| problem(e.to_string()))
    }

    /// A tensor's values as f32, row-major.
    ///
    /// # Errors
    /// When it is missing or not of a floating point type.
    pub fn values(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        let view = self.view(name)?;
        let data = view.data();
        Ok(match view.dtype() {
            Dtype::F32 => data.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
            Dtype::F16 => data.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
            Dtype::BF16 => data.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
            other => {
                return Err(ModelError::Tensors {
                    origin: self.origin.clone(),
                    problems: vec![format!("{name}: expected F32, F16 or BF16, found {other:?}")],
                });
            }
        })
    }

    /// A tensor on a device.
    ///
    /// # Errors
    /// When it is missing, or the device has no room for it.
    pub fn tensor(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor, ModelError> {
        Ok(self.view(name)?.load(&Device::Cpu)?.to_dtype(dtype)?.to_device(device)?)
    }
}

/// The safetensors files of a directory, in order of their names.
///
/// # Errors
/// When there are none, or the index cannot be read.
pub fn weight_files(dir: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let single = dir.join(SINGLE);
    if single.is_file() {
        return Ok(vec![single]);
    }
    let path = dir.join(INDEX);
    let problem = |message: String| ModelError::File { origin: path.display().to_string(), message };
    if !path.is_file() {
        return Err(ModelError::File {
            origin: dir.display().to_string(),
            message: format!("holds neither {SINGLE} nor {INDEX}; give the directory of a checkpoint in safetensors"),
        });
    }
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let bytes = std::fs::read(&path).map_err(|e| problem(e.to_string()))?;
    let index: Index = serde_json::from_slice(&bytes).map_err(|e| problem(e.to_string()))?;
    let names: BTreeSet<&String> = index.weight_map.values().collect();
    if let Some(name) = names.iter().find(|name| Path::new(name.as_str()).file_name() != Some(name.as_ref())) {
        return Err(problem(format!("names the file {name:?}; shards must lie beside the index")));
    }
    Ok(names.into_iter().map(|name| dir.join(name)).collect())
}

fn map_file(path: &Path) -> Result<Shard, ModelError> {
    let problem = |message: String| ModelError::File { origin: path.display().to_string(), message };
    if !path.is_file() {
        return Err(problem("is missing, though the checkpoint's index names it".to_owned()));
    }
    #[allow(unsafe_code, reason = "a file can only be mapped under the assumption that nobody changes it")]
    // SAFETY: a checkpoint is not written to while it is read; the documentation of `from_dir` demands it.
    let mapped = unsafe { MmapedSafetensors::new(path) };
    mapped.map(Shard::Mapped).map_err(|e| problem(format!("is not a complete safetensors file ({e}); copy it again")))
}

/// A part of a checkpoint that its fingerprint covers.
#[derive(Debug, Clone, Copy)]
pub enum Part<'a> {
    /// In memory.
    Bytes(&'a [u8]),
    /// On disk.
    Path(&'a Path),
}

/// SHA-256 over the names and the SHA-256 of all parts, hex. Parts are hashed side by side.
///
/// # Errors
/// When a file cannot be read.
pub fn fingerprint(parts: &[(&str, Part<'_>)]) -> Result<String, ModelError> {
    let digests: Vec<_> = parts.par_iter().map(|(_, part)| digest(*part)).collect::<Result<_, _>>()?;
    let mut whole = Sha256::new();
    for ((name, _), digest) in parts.iter().zip(digests) {
        whole.update(name.as_bytes());
        whole.update([0]);
        whole.update(digest);
    }
    Ok(whole.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn digest(part: Part<'_>) -> Result<[u8; 32], ModelError> {
    let mut hash = Sha256::new();
    match part {
        Part::Bytes(bytes) => hash.update(bytes),
        Part::Path(path) => {
            let problem = |e: std::io::Error| ModelError::File {
                origin: path.display().to_string(),
                message: format!("cannot be read: {e}"),
            };
            let mut file = File::open(path).map_err(problem)?;
            let mut buffer = vec![0; 1 << 20];
            loop {
                match file.read(&mut buffer).map_err(problem)? {
                    0 => break,
                    n => hash.update(&buffer[..n]),
                }
            }
        }
    }
    Ok(hash.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_covers_names_and_bytes_wherever_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b");
        std::fs::write(&path, b"two").unwrap();
        let one = |name, bytes| fingerprint(&[(name, Part::Bytes(bytes)), ("b", Part::Path(&path))]).unwrap();
        let base = one("a", b"one");
        assert_eq!(base.len(), 64);
        assert_eq!(base, fingerprint(&[("a", Part::Bytes(b"one")), ("b", Part::Bytes(b"two"))]).unwrap());
        assert_ne!(base, one("c", b"one"));
        assert_ne!(base, one("a", b"onE"));
    }
}
