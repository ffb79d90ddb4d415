//! Checkpoints: where they are, and their weights, whatever format they are in.
//!
//! [`locate`] turns what the user names into a directory, from the disk, the hub's cache or the hub. [`Weights`] maps the
//! weights of a directory, or those compiled into the program.

mod check;
mod fetch;
mod files;
mod fingerprint;
mod hub;
mod locate;
mod shard;
mod torch;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::safetensors::Load;
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView};

pub use fingerprint::{Part, fingerprint};
pub use hub::{HubOptions, OnProgress};
pub(crate) use locate::tower_places;
pub use locate::{Located, locate, locate_tower};

use crate::error::ModelError;
use files::capped;
use shard::{Entry, Shard};

/// The tensors of a checkpoint.
pub struct Weights {
    shards: Vec<Shard>,
    /// Tensor name → shard, and its name there.
    index: BTreeMap<String, (usize, String)>,
    /// Tensors that an index promises and no file holds → the file that should.
    promised: BTreeMap<String, String>,
    origin: String,
}

/// What is known of a tensor without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorInfo<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its shape.
    pub shape: &'a [usize],
    /// Its type.
    pub dtype: Dtype,
    /// Bytes of its values.
    pub bytes: u64,
    /// Its file; `None` when it is part of the program.
    pub file: Option<&'a Path>,
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Weights({}: {} tensors in {} files)", self.origin, self.index.len(), self.shards.len())
    }
}

impl Weights {
    /// Maps the weights of a checkpoint directory: safetensors or torch files, one or several, with an index or with
    /// numbers in their names. The files must not change while they are in use.
    ///
    /// # Errors
    /// When there are none, or a file is missing or not complete.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        let survey = files::survey(dir)?;
        if let [first, others @ ..] = survey.missing.as_slice() {
            let also = if others.is_empty() { String::new() } else { format!("; so are {}", capped(others, 8)) };
            let message = format!("is missing, though the checkpoint names it{also}; copy or download them again");
            return Err(ModelError::File { origin: dir.join(first).display().to_string(), message });
        }
        let mut weights = Self::from_files(&survey.files, dir.display().to_string())?;
        weights.place(survey.placed);
        if let Some(path) = survey.projector
            && !files::has_projector(weights.index.keys())
        {
            weights = weights.with(Self::open_file(&path)?, |name| Some(name.to_owned()));
            weights.origin = dir.display().to_string();
        }
        Ok(weights)
    }

    /// Maps a single file of weights, such as `mm_projector.bin`.
    ///
    /// # Errors
    /// When it is missing or not complete.
    pub fn open_file(path: &Path) -> Result<Self, ModelError> {
        Self::from_files(&[path.to_owned()], path.display().to_string())
    }

    /// Reads weights that are part of the program.
    ///
    /// # Errors
    /// When they are not complete.
    pub fn embedded(bytes: &'static [u8]) -> Result<Self, ModelError> {
        let origin = "the embedded model".to_owned();
        match Shard::embedded(bytes) {
            Ok(shard) => Ok(Self::index(vec![shard], origin)),
            Err(message) => Err(ModelError::File { origin, message: format!("its weights: {message}") }),
        }
    }

    fn from_files(paths: &[PathBuf], origin: String) -> Result<Self, ModelError> {
        let shards = paths.iter().map(|path| Shard::open(path)).collect::<Result<_, _>>()?;
        Ok(Self::index(shards, origin))
    }

    fn index(shards: Vec<Shard>, origin: String) -> Self {
        let names = |(i, shard): (usize, &Shard)| {
            shard.tensors.keys().map(|name| (name.clone(), (i, name.clone()))).collect::<Vec<_>>()
        };
        let index = shards.iter().enumerate().flat_map(names).collect();
        Self { shards, index, promised: BTreeMap::new(), origin }
    }

    /// Follows an index where its file holds the tensor, and keeps what it promises and no file holds.
    fn place(&mut self, placed: BTreeMap<String, String>) {
        for (name, file) in placed {
            let is_it = |shard: &Shard| shard.path.as_ref().and_then(|p| p.file_name()) == Some(file.as_ref());
            match self.shards.iter().position(is_it) {
                Some(i) if self.shards[i].tensors.contains_key(&name) => {
                    self.index.insert(name.clone(), (i, name));
                }
                _ if !self.index.contains_key(&name) => drop(self.promised.insert(name, file)),
                _ => {}
            }
        }
    }

    /// These weights and those of `other`, whose names are mapped; what `rename` gives no name is left out. Of two
    /// tensors with the same name, the one that was there first stays.
    #[must_use]
    pub fn with(mut self, other: Self, rename: impl Fn(&str) -> Option<String>) -> Self {
        let before = self.shards.len();
        for (name, (shard, there)) in other.index {
            if let Some(name) = rename(&name) {
                self.index.entry(name).or_insert((before + shard, there));
            }
        }
        for (name, file) in other.promised {
            if let Some(name) = rename(&name).filter(|name| !self.index.contains_key(name)) {
                self.promised.entry(name).or_insert(file);
            }
        }
        self.promised.retain(|name, _| !self.index.contains_key(name));
        self.shards.extend(other.shards);
        self.origin = format!("{} with {}", self.origin, other.origin);
        self
    }

    /// The files, in order; none when the weights are part of the program.
    pub fn files(&self) -> Vec<PathBuf> {
        self.shards.iter().filter_map(|shard| shard.path.clone()).collect()
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// All tensors, in order of their names.
    pub fn tensors(&self) -> impl Iterator<Item = TensorInfo<'_>> {
        self.index.keys().filter_map(|name| self.info(name))
    }

    /// What is known of a tensor.
    pub fn info(&self, name: &str) -> Option<TensorInfo<'_>> {
        let ((name, _), (shard, entry)) = (self.index.get_key_value(name)?, self.find(name)?);
        let file = shard.path.as_deref();
        Some(TensorInfo { name, shape: &entry.shape, dtype: entry.dtype, bytes: entry.bytes(), file })
    }

    fn find(&self, name: &str) -> Option<(&Shard, &Entry)> {
        let (shard, name) = self.index.get(name)?;
        let shard = self.shards.get(*shard)?;
        Some((shard, shard.tensors.get(name)?))
    }

    fn data(&self, name: &str) -> Result<(&Entry, Cow<'_, [u8]>), ModelError> {
        let (shard, entry) = self.find(name).ok_or_else(|| self.problem(name, "missing"))?;
        Ok((entry, shard.data(entry)))
    }

    fn problem(&self, name: &str, what: impl std::fmt::Display) -> ModelError {
        ModelError::Tensors { origin: self.origin.clone(), problems: vec![format!("{name}: {what}")] }
    }

    /// A tensor's values as f32, row-major.
    ///
    /// # Errors
    /// When it is missing or not of a floating point type.
    pub fn values(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        let (entry, data) = self.data(name)?;
        Ok(match entry.dtype {
            Dtype::F32 => data.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
            Dtype::F16 => data.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
            Dtype::BF16 => data.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
            other => return Err(self.problem(name, format!("expected F32, F16 or BF16, found {other:?}"))),
        })
    }

    /// A tensor on a device.
    ///
    /// # Errors
    /// When it is missing, or the device has no room for it.
    pub fn tensor(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor, ModelError> {
        let (entry, data) = self.data(name)?;
        let view = TensorView::new(entry.dtype, entry.shape.clone(), &data).map_err(|e| self.problem(name, e))?;
        Ok(view.load(&Device::Cpu)?.to_dtype(dtype)?.to_device(device)?)
    }
}
