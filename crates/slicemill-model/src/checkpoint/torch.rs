//! Torch's `.bin` files: a zip archive with a pickle that describes the tensors and one stored entry per storage.
//!
//! The pickle is read by candle's unpickler, which knows the few classes that tensors need and runs nothing. The values
//! are not read through it: they are used where they lie in the mapped file, also when tensors share a storage.

use std::collections::{BTreeMap, HashMap};
use std::io::{Cursor, Read};
use std::ops::Range;
use std::path::Path;

use candle_core::DType;
use candle_core::pickle::{PthTensors, TensorInfo};
use safetensors::tensor::Dtype;
use zip::{CompressionMethod, ZipArchive};

use super::shard::{Entry, Place};

const ZIP: &[u8] = b"PK\x03\x04";
/// Protocol 2, the opcode for a long of ten bytes, and torch's magic number.
const LEGACY: &[u8] = &[0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// Where training scripts put the tensors when they save more than those.
const NESTED: [&str; 3] = ["state_dict", "model", "module"];

type Archive<'a> = ZipArchive<Cursor<&'a [u8]>>;

/// Where the tensors of a torch file are.
pub(super) fn entries(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, Entry>, String> {
    if bytes.starts_with(LEGACY) {
        return Err("is in the format that torch wrote before version 1.6; convert it with \
                    torch.save(torch.load(old, map_location='cpu'), new), or save it as safetensors"
            .to_owned());
    }
    if !bytes.starts_with(ZIP) {
        return Err("is not a torch file; give weights that torch.save wrote, or safetensors".to_owned());
    }
    let incomplete = |e: &dyn std::fmt::Display| {
        format!("is not a complete torch file ({e}; it has {} bytes); copy or download it again", bytes.len())
    };
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(|e| incomplete(&e))?;
    little_endian(&mut archive)?;
    let infos = unpickle(path)?;
    let mut storages: HashMap<String, Range<usize>> = HashMap::new();
    let mut entries = BTreeMap::new();
    for (name, info) in infos {
        let storage = match storages.get(&info.path) {
            Some(known) => known.clone(),
            None => storage(&mut archive, &info.path, bytes.len()).map_err(|e| incomplete(&e))?,
        };
        storages.insert(info.path.clone(), storage.clone());
        let entry = entry(&info, storage).map_err(|e| format!("describes the tensor {name} wrongly: {e}"))?;
        entries.insert(name, entry);
    }
    Ok(entries)
}

fn little_endian(archive: &mut Archive<'_>) -> Result<(), String> {
    let Some(name) = archive.file_names().flatten().find(|name| name.ends_with("/byteorder")).map(String::from) else {
        return Ok(());
    };
    let mut order = String::new();
    let read = archive.by_name(&name).map(|file| file.take(16).read_to_string(&mut order));
    match read {
        Ok(Ok(_)) if order.trim() == "big" => {
            Err("was written on a big-endian machine; save it as safetensors there".to_owned())
        }
        _ => Ok(()),
    }
}

/// What the pickle says. A file that holds more than tensors has them one level down.
fn unpickle(path: &Path) -> Result<HashMap<String, TensorInfo>, String> {
    let read = |key: Option<&str>| {
        // The unpickler indexes into tuples without looking at their lengths: a damaged file would end the process.
        let read = std::panic::catch_unwind(|| PthTensors::new(path, key).map(|file| file.tensor_infos().clone()));
        match read {
            Ok(Ok(infos)) => Ok(infos),
            // What follows the first line is where the unpickler was.
            Ok(Err(e)) => Err(e.to_string().lines().next().unwrap_or_default().to_owned()),
            Err(_) => Err("it is damaged".to_owned()),
        }
    };
    let refuse =
        |e: String| format!("holds a pickle that is not one of tensors ({e}); save the weights as safetensors");
    let infos = read(None).map_err(refuse)?;
    if !infos.is_empty() {
        return Ok(infos);
    }
    let nested = NESTED.iter().find_map(|key| read(Some(key)).ok().filter(|infos| !infos.is_empty()));
    nested.ok_or_else(|| refuse("there are none in it".to_owned()))
}

/// The bytes of a storage in the file.
fn storage(archive: &mut Archive<'_>, name: &str, length: usize) -> Result<Range<usize>, String> {
    let file = archive.by_name(name).map_err(|e| format!("{name}: {e}"))?;
    if file.compression() != CompressionMethod::Stored {
        return Err(format!("{name} is compressed"));
    }
    let range = || {
        let start = usize::try_from(file.data_start()?).ok()?;
        let end = start.checked_add(usize::try_from(file.size()).ok()?)?;
        (end <= length).then_some(start..end)
    };
    range().ok_or_else(|| format!("{name} is cut off"))
}

fn entry(info: &TensorInfo, storage: Range<usize>) -> Result<Entry, String> {
    let dtype = match info.dtype {
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::F64 => Dtype::F64,
        DType::I64 => Dtype::I64,
        DType::U8 => Dtype::U8,
        other => return Err(format!("type {other:?}")),
    };
    let size = dtype.bitsize() / 8;
    let (shape, strides) = (info.layout.dims().to_vec(), info.layout.stride().to_vec());
    // The unpickler counts the offset in bytes, the strides in elements.
    let start = info.layout.start_offset();
    let end = end(&shape, &strides, start / size).and_then(|end| end.checked_mul(size));
    if end.is_none_or(|end| end > storage.len()) {
        return Err(format!("shape {shape:?}, strides {strides:?} and offset {start} leave its storage"));
    }
    let count: usize = shape.iter().product();
    let place = if info.layout.is_contiguous() || count == 0 {
        Place::Plain(storage.start + start..storage.start + start + count * size)
    } else {
        Place::Strided { storage, first: start / size, strides }
    };
    Ok(Entry { dtype, shape, place })
}

/// The element after the last one that a tensor uses; `None` when it cannot be counted.
fn end(shape: &[usize], strides: &[usize], first: usize) -> Option<usize> {
    if shape.len() != strides.len() {
        return None;
    }
    shape.iter().try_fold(1usize, |count, &n| count.checked_mul(n))?.checked_mul(size_of::<f64>())?;
    if shape.contains(&0) {
        return Some(first);
    }
    let last =
        shape.iter().zip(strides).try_fold(first, |at, (&n, &stride)| at.checked_add((n - 1).checked_mul(stride)?));
    last?.checked_add(1)
}
