//! One weight file: its bytes, and where each tensor lies in them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata};

use super::torch;
use crate::error::ModelError;

/// What a Git LFS pointer starts with.
const LFS_POINTER: &[u8] = b"version https://git-lfs";
/// Bytes before the header of a safetensors file: its length.
const LENGTH: usize = 8;
/// Longest header; longer ones are refused by the format itself.
const HEADER_MAX: u64 = 100_000_000;

/// The tensors of one file.
pub(super) struct Shard {
    /// Where it is; `None` when it is part of the program.
    pub(super) path: Option<PathBuf>,
    bytes: Bytes,
    /// By name.
    pub(super) tensors: BTreeMap<String, Entry>,
}

enum Bytes {
    Mapped(Mmap),
    Embedded(&'static [u8]),
}

/// A tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) place: Place,
}

/// Where the values of a tensor are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// Row-major, at these bytes of the file.
    Plain(Range<usize>),
    /// Spread over a storage that other tensors may share. Elements, not bytes; all of them lie within the storage.
    Strided { storage: Range<usize>, first: usize, strides: Vec<usize> },
}

impl Entry {
    /// Bytes of its values.
    pub(super) fn bytes(&self) -> u64 {
        self.shape.iter().map(|&n| n as u64).product::<u64>() * self.dtype.bitsize() as u64 / 8
    }
}

impl Shard {
    /// Maps a file: safetensors by its name, else a torch file.
    pub(super) fn open(path: &Path) -> Result<Self, ModelError> {
        let problem = |message: String| ModelError::File { origin: path.display().to_string(), message };
        let mapped = map(path).map_err(problem)?;
        if mapped.starts_with(LFS_POINTER) {
            let message = "is a Git LFS pointer and not the file it stands for; run `git lfs pull` where it came from";
            return Err(problem(message.to_owned()));
        }
        let is_safetensors = path.extension().is_some_and(|extension| extension == "safetensors");
        let entries = if is_safetensors { entries(&mapped) } else { torch::entries(path, &mapped) };
        Ok(Self { path: Some(path.to_owned()), tensors: entries.map_err(problem)?, bytes: Bytes::Mapped(mapped) })
    }

    /// Safetensors that are part of the program.
    pub(super) fn embedded(bytes: &'static [u8]) -> Result<Self, String> {
        Ok(Self { path: None, tensors: entries(bytes)?, bytes: Bytes::Embedded(bytes) })
    }

    /// The values of one of its tensors, row-major, little-endian.
    pub(super) fn data(&self, entry: &Entry) -> Cow<'_, [u8]> {
        let bytes = match &self.bytes {
            Bytes::Mapped(mapped) => &mapped[..],
            Bytes::Embedded(bytes) => bytes,
        };
        match &entry.place {
            Place::Plain(range) => Cow::Borrowed(&bytes[range.clone()]),
            Place::Strided { storage, first, strides } => {
                Cow::Owned(gather(&bytes[storage.clone()], entry, *first, strides))
            }
        }
    }
}

fn map(path: &Path) -> Result<Mmap, String> {
    if !path.is_file() {
        return Err("is missing, though it is a part of the checkpoint; copy or download it again".to_owned());
    }
    let file = File::open(path).map_err(|e| format!("cannot be read: {e}"))?;
    if file.metadata().is_ok_and(|metadata| metadata.len() == 0) {
        return Err("is empty; copy or download it again".to_owned());
    }
    #[allow(unsafe_code, reason = "a file can only be mapped under the assumption that nobody changes it")]
    // SAFETY: a checkpoint is not written to while it is read; the documentation of `Weights::open` demands it.
    let mapped = unsafe { Mmap::map(&file) };
    mapped.map_err(|e| format!("cannot be mapped into memory: {e}"))
}

/// Where the tensors of a safetensors file are.
fn entries(bytes: &[u8]) -> Result<BTreeMap<String, Entry>, String> {
    let (header, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| incomplete(bytes, &e.to_string()))?;
    let start = LENGTH + header;
    let entry = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
        let place = Place::Plain(start + info.data_offsets.0..start + info.data_offsets.1);
        (name, Entry { dtype: info.dtype, shape: info.shape.clone(), place })
    };
    Ok(metadata.tensors().into_iter().map(entry).collect())
}

/// Why a safetensors file is refused: with the bytes it should have, as far as they can be told.
fn incomplete(bytes: &[u8], error: &str) -> String {
    let found = bytes.len() as u64;
    let remedy = "copy or download it again";
    let at_least =
        |n: u64| format!("is not a complete safetensors file: expected more than {n} bytes, found {found}; {remedy}");
    let Some(length) = bytes.first_chunk::<LENGTH>() else { return at_least(LENGTH as u64) };
    let length = u64::from_le_bytes(*length);
    if length > HEADER_MAX {
        return format!("is not a complete safetensors file ({error}); {remedy}");
    }
    let start = LENGTH as u64 + length;
    if start > found {
        return at_least(start);
    }
    let header = usize::try_from(start).ok().and_then(|start| bytes.get(LENGTH..start)).unwrap_or_default();
    match serde_json::from_slice::<Metadata>(header).map(|metadata| start + metadata.data_len() as u64) {
        Ok(expected) if expected > found => {
            format!("is not a complete safetensors file: expected {expected} bytes, found {found}; {remedy}")
        }
        Ok(expected) if expected < found => {
            format!("is not a safetensors file: expected {expected} bytes, found {found}; {remedy}")
        }
        _ => format!("is not a complete safetensors file ({error}); {remedy}"),
    }
}

/// Copies a strided tensor into row-major order.
fn gather(storage: &[u8], entry: &Entry, first: usize, strides: &[usize]) -> Vec<u8> {
    let size = entry.dtype.bitsize() / 8;
    let count: usize = entry.shape.iter().product();
    let mut out = Vec::with_capacity(count * size);
    let mut at = vec![0; entry.shape.len()];
    let mut element = first;
    for _ in 0..count {
        out.extend_from_slice(&storage[element * size..(element + 1) * size]);
        for dim in (0..at.len()).rev() {
            at[dim] += 1;
            element += strides[dim];
            if at[dim] < entry.shape[dim] {
                break;
            }
            element -= strides[dim] * at[dim];
            at[dim] = 0;
        }
    }
    out
}
