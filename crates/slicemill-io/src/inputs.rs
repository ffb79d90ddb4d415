//! The frozen list of inputs: one Parquet file per generation, read by row ranges.

use std::ops::Range;

use futures::stream::BoxStream;

use crate::{InputEntry, IoError, OutputStore};

/// SHA-256 over all entries in order. Equal digests mean equal lists.
#[derive(Debug, Clone, Default)]
pub struct InputsDigest {
    rows: u64,
}

impl InputsDigest {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the next entry.
    pub fn add(&mut self, entry: &InputEntry) {
        let _ = entry;
        self.rows += 1;
    }

    /// Entries so far.
    pub const fn rows(&self) -> u64 {
        self.rows
    }

    /// The digest, hex.
    pub fn finish(self) -> String {
        String::new()
    }
}

/// Rows and digest of a listing, without writing it anywhere.
pub async fn digest_inputs(entries: BoxStream<'static, Result<InputEntry, IoError>>) -> Result<(u64, String), IoError> {
    let _ = entries;
    Err(crate::store::unwritten())
}

/// A frozen list. Cheap to clone; memory is a few bytes per thousand rows.
#[derive(Debug, Clone)]
pub struct FrozenInputs {
    rows: u64,
    digest: String,
}

impl FrozenInputs {
    /// Writes the list to `name` (replacing it), row groups aligned to `chunk_rows`.
    pub async fn write(
        output: &OutputStore,
        name: &str,
        entries: BoxStream<'static, Result<InputEntry, IoError>>,
        chunk_rows: u32,
    ) -> Result<Self, IoError> {
        let _ = (output, name, entries, chunk_rows);
        Err(crate::store::unwritten())
    }

    /// Opens the list in `name`.
    pub async fn open(output: &OutputStore, name: &str) -> Result<Self, IoError> {
        let _ = (output, name);
        Err(crate::store::unwritten())
    }

    /// Number of inputs.
    pub const fn rows(&self) -> u64 {
        self.rows
    }

    /// Digest of the list, hex; the same as [`InputsDigest::finish`] over its entries.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The entries of a row range.
    pub async fn read(&self, rows: Range<u64>) -> Result<Vec<InputEntry>, IoError> {
        let _ = rows;
        Err(crate::store::unwritten())
    }

    /// All entries in order.
    pub fn stream(&self) -> BoxStream<'static, Result<InputEntry, IoError>> {
        Box::pin(futures::stream::empty())
    }
}

/// How a listing differs from what was frozen. Counts, and a few keys of each kind for the message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InputsChange {
    /// In both, equal.
    pub unchanged: u64,
    /// Only in the listing.
    pub added: u64,
    /// Only in the frozen lists.
    pub removed: u64,
    /// In both with another URL, size or tag.
    pub changed: u64,
    /// Up to five keys each: added, removed, changed.
    pub examples: [Vec<String>; 3],
}

/// Compares a listing with the frozen lists of all generations, with flat memory.
pub async fn compare_inputs(
    frozen: &[FrozenInputs],
    listing: BoxStream<'static, Result<InputEntry, IoError>>,
) -> Result<InputsChange, IoError> {
    let _ = (frozen, listing);
    Err(crate::store::unwritten())
}

/// The entries of `listing` whose keys are in none of the frozen lists: the inputs of the next generation.
pub fn added_inputs(
    frozen: &[FrozenInputs],
    listing: BoxStream<'static, Result<InputEntry, IoError>>,
) -> BoxStream<'static, Result<InputEntry, IoError>> {
    let _ = frozen;
    listing
}
