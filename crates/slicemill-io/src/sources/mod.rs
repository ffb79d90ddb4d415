//! Sources: everything inputs can come from, told apart by its bytes.

mod counts;
mod found;
mod inputs;
mod kinds;
mod listing;
mod object;
mod open;
mod reader;
mod sample;
mod set;
mod spool;
#[doc(hidden)]
pub mod tar;
mod unpack;

use std::sync::Arc;

use futures::stream::BoxStream;

pub use counts::SourceCounts;
pub use reader::PlaceReader;
pub use sample::{Limited, Sampled, in_sample};
pub use set::{SourceOptions, SourceSet};
pub use spool::{Segment, SegmentIndex, SegmentKey, Spool, SpoolWriter};

use crate::tables::columns;
use crate::{InputEntry, IoError};

/// The input columns a job keeps or filters by, in the order of the job.
///
/// Entries carry them as `columns: Some(text)`, a JSON object with exactly these names in this order, `null` where an
/// input has none; `None` when no column is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InputColumns {
    /// Names, unique.
    pub names: Vec<String>,
}

impl InputColumns {
    /// These columns.
    pub fn new(names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { names: names.into_iter().map(Into::into).collect() }
    }

    /// Whether no column is asked for.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

/// A table that was recognised by its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TableFormat {
    /// `PAR1` at both ends.
    Parquet,
    /// A JSON object on the first line.
    JsonLines,
    /// Lines with the same number of commas.
    Csv,
    /// Lines with the same number of tabs.
    Tsv,
    /// Standard input: JSON lines, CSV or one location a line; the reader finds out.
    StandardInput,
}

/// A table to list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableObject {
    /// Key of the table: what the keys of its rows begin with, where a row has none of its own.
    pub key: String,
    /// Where it is, without a place; `-` for standard input.
    pub url: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Etag or modification time.
    pub tag: String,
    /// What its bytes say it is.
    pub format: TableFormat,
    /// The first bytes, at most 512.
    pub head: bytes::Bytes,
}

/// Lists the rows of tables: Parquet with image bytes or locations, JSON lines, CSV.
///
/// Entries come in the order of the table with `container` = the length of `table.key` and `position` = the row, so
/// that they stand in the list where the table's key does. A row that cannot be read is an entry with
/// [`Place::Refused`](crate::Place), not an error; an error ends the job.
pub trait ListTable: Send + Sync + std::fmt::Debug {
    /// The rows of `table`.
    fn list(&self, table: TableObject, columns: &Arc<InputColumns>) -> BoxStream<'static, Result<InputEntry, IoError>>;
}
