//! Sources made of rows: tables with images in them, and manifests that say where images are.
//!
//! ```text
//!  train-000.parquet ─ footer ─ pick a column ─┬─ bytes ──────▶ one entry a row, Place::Cell ─▶ CellReader ─▶ bytes
//!                                              └─ locations ─┐
//!  list.jsonl  list.csv  list.tsv  (plain, gzip, zstd) ──────┼─▶ one entry a record ─▶ read like any object
//!  standard input: paths and URLs, or JSONL ─────────────────┘
//! ```
//!
//! A row that cannot be an input (a line that is not JSON, a location that may not be read) is an entry all the same,
//! with [`Place::Refused`](crate::Place::Refused): every row is accounted for. What is wrong with the whole file
//! (no such column, two that could be meant) ends the listing with a message that lists the columns.

mod cells;
pub(crate) mod columns;
mod csv_rows;
mod entries;
mod footer;
mod json_values;
mod jsonl;
mod lines;
mod list;
mod locate;
pub(crate) mod object;
mod pages;
mod parquet_rows;
mod pick;
mod text;
mod types;

pub use cells::CellReader;
pub use entries::TableCounts;
#[doc(hidden)]
pub use list::list_bytes;
pub use list::{TableOptions, Tables};
pub use types::{ColumnType, ColumnTypes, columns_batch};

#[cfg(test)]
mod tests;
