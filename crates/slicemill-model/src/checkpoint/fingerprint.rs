//! What a checkpoint is called in jobs and ledgers: a hash that is the same on every machine.
//!
//! A part of up to 64 MiB is hashed whole. A larger one is sampled: its length, its beginning (the header of a
//! safetensors file, which names all tensors, types and shapes), and sixteen pieces of 1 MiB at places that depend on
//! the length only, among them the last one (where a torch file keeps the checksums of all its storages). So two
//! checkpoints of the same layout that differ only between the samples have the same fingerprint. Training or
//! converting changes values everywhere and is seen; a single flipped bit in a large file most likely is not. It is a
//! name, not a check of integrity: downloads are checked against the hub's SHA-256 instead.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::error::ModelError;

/// Larger files are sampled.
const WHOLE_MAX: u64 = 64 << 20;
const SAMPLE: u64 = 1 << 20;
const SAMPLES: u64 = 16;
/// Most of a header that is hashed.
const HEADER_MAX: u64 = 32 << 20;
/// Distinguishes a sampled part from a whole one with these bytes.
const SAMPLED: &[u8] = b"slicemill sampled file 1\0";

/// A part of a checkpoint that its fingerprint covers.
#[derive(Debug, Clone, Copy)]
pub enum Part<'a> {
    /// In memory.
    Bytes(&'a [u8]),
    /// On disk.
    Path(&'a Path),
}

/// SHA-256 over the names and the SHA-256 of all parts, hex; of files larger than 64 MiB over samples of them, see the
/// module. Parts are hashed side by side.
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
    Ok(hex(&whole.finalize()))
}

/// Bytes in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn digest(part: Part<'_>) -> Result<[u8; 32], ModelError> {
    match part {
        Part::Bytes(bytes) => Ok(Sha256::digest(bytes).into()),
        Part::Path(path) => digest_file(path).map_err(|e| ModelError::File {
            origin: path.display().to_string(),
            message: format!("cannot be read: {e}"),
        }),
    }
}

fn digest_file(path: &Path) -> std::io::Result<[u8; 32]> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    if length <= WHOLE_MAX { whole(&mut file) } else { sampled(&mut file, length) }
}

/// SHA-256 of what is left of a reader.
pub(super) fn whole(reader: &mut impl Read) -> std::io::Result<[u8; 32]> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match reader.read(&mut buffer)? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    Ok(hash.finalize().into())
}

fn sampled(file: &mut File, length: u64) -> std::io::Result<[u8; 32]> {
    let mut hash = Sha256::new();
    hash.update(SAMPLED);
    hash.update(length.to_le_bytes());
    let mut header = [0; 8];
    file.read_exact(&mut header)?;
    let header = u64::from_le_bytes(header).saturating_add(8).min(HEADER_MAX).min(length);
    let mut piece = |start: u64, bytes: u64| {
        file.seek(SeekFrom::Start(start))?;
        whole(&mut Read::by_ref(file).take(bytes)).map(|digest| hash.update(digest))
    };
    piece(0, header)?;
    for i in 0..SAMPLES - 1 {
        piece((length - SAMPLE) / (SAMPLES - 1) * i, SAMPLE)?;
    }
    piece(length - SAMPLE, SAMPLE)?;
    Ok(hash.finalize().into())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

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

    #[test]
    fn large_files_are_sampled_at_both_ends_and_between() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("large.safetensors");
        let length = WHOLE_MAX + 12_345;
        let write = |at: u64, bytes: &[u8]| {
            let mut file = File::options().create(true).truncate(false).write(true).open(&path).unwrap();
            file.set_len(length).unwrap();
            file.seek(SeekFrom::Start(at)).unwrap();
            file.write_all(bytes).unwrap();
            fingerprint(&[("w", Part::Path(&path))]).unwrap()
        };
        let mut seen = vec![write(0, &300u64.to_le_bytes())];
        let step = (length - SAMPLE) / (SAMPLES - 1);
        for at in [100, 7 * step, 7 * step + SAMPLE - 1, length - 1] {
            seen.push(write(at, b"x"));
        }
        let between = write(7 * step + SAMPLE, b"x");
        assert_eq!(between, *seen.last().unwrap(), "between samples nothing is seen, as documented");
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 5);
    }
}
