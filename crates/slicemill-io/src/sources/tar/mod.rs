//! Archives (tar): an index of the members, made without unpacking anything.
//!
//! ```text
//!  bytes ─▶ Walk ─▶ members, damage ─▶ Entries ─▶ InputEntry with Place::At or Place::Unpacked
//!           headers only, past damage    images, keys, columns of samples
//! ```
//!
//! Read are the formats of old tar, POSIX (ustar, PAX) and GNU. **Damage** costs what is damaged: after a header whose
//! checksum is wrong, and inside of what a member claims when no header follows it, the walk goes on at the next block
//! that is a header. What cannot be read is a row that says so.

mod entries;
pub(crate) mod header;
mod names;
mod walk;

use std::sync::Arc;

pub(crate) use entries::{ArchiveName, Entries};
pub(crate) use walk::{Archive, Walk};

use super::counts::SourceCounts;
use crate::{InputEntry, IoError};

/// Lists an archive, some entries at a time. An error is one of reading or of `out`.
pub(crate) fn list(
    archive: &mut impl Archive,
    entries: &mut Entries,
    out: &mut dyn FnMut(Vec<InputEntry>) -> Result<(), IoError>,
) -> Result<Walk, IoError> {
    /// Entries handed on together.
    const BATCH: usize = 512;
    let mut walk = Walk::default();
    let mut batch = Vec::new();
    while let Some(item) = walk.next(archive, &mut |name, bytes| entries.wanted(name, bytes))? {
        entries.take(item, &mut batch);
        if batch.len() >= BATCH {
            out(std::mem::take(&mut batch))?;
        }
    }
    entries.finish(&walk, &mut batch);
    out(batch)?;
    Ok(walk)
}

/// The rows of a plain archive in memory, with the columns `columns`. Total: any bytes have a list.
#[doc(hidden)]
pub fn index(bytes: &[u8], columns: &[&str]) -> (Vec<InputEntry>, SourceCounts) {
    let (key, url) = ("a.tar".to_owned(), "file:///a.tar".to_owned());
    let name = ArchiveName { key, url: url.clone(), tag: String::new(), shown: url, unpacked: false };
    let columns: Vec<String> = columns.iter().map(ToString::to_string).collect();
    let mut entries = Entries::new(name, Arc::from(columns));
    let mut rows = Vec::new();
    let listed = list(&mut &bytes[..], &mut entries, &mut |batch| {
        rows.extend(batch);
        Ok(())
    });
    debug_assert!(listed.is_ok(), "reading memory cannot fail");
    (rows, entries.counts)
}

#[cfg(test)]
mod tests;
