//! Sources, stores, Parquet schemas and files, and the ledger of slicemill.
//!
//! ```text
//!  paths, URLs ─▶ SourceSet ────▶ InputEntry … ─▶ FrozenInputs   _slicemill/inputs-<generation>.parquet
//!                                                     │ row ranges
//!                                                     ▼
//!                       InputEntry ─▶ ObjectFetch ─▶ bytes ─▶ (annotated elsewhere) ─▶ RowOutcome
//!                                                                                         │
//!  captions/ failed/ skipped/ timings/ ◀─ finish_shard ◀─ commit_chunk ◀─ ChunkStager ◀───┘
//!                    │                        ledger entry last
//!                    ▼
//!               DatasetReader (verify, report, retry, SQL)
//! ```
//!
//! Everything is read and written through `object_store`: local files, S3 and compatibles, GCS, Azure, http(s).
//! Nothing here knows models, slicing or DataFusion.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking"))]

mod error;
pub mod fault;
mod fetch;
mod inputs;
pub mod ledger;
mod local_files;
mod lock;
mod parquet_file;
mod parquet_object;
mod place;
mod read;
mod retry;
mod rows;
mod schema;
mod sink;
mod source;
pub mod sources;
mod store;
mod stores;
pub mod tables;
mod walk;

pub use error::{IoError, IoErrorKind};
pub use fetch::{InnerReader, ObjectFetch};
pub use inputs::{FrozenInputs, InputsChange, InputsDigest, added_inputs, compare_inputs, digest_inputs};
pub use ledger::{
    ChunkEntry, ChunkStager, Counts, FileRecord, FlopSums, Generation, Ledger, LedgerState, NewInputs, RetryPass,
    ShardEntry, StagedChunk, Success,
};
pub use lock::OutputLock;
pub use parquet_file::{ParquetEncoder, RowGroupLimits, read_parquet, write_parquet};
pub use parquet_object::ParquetObject;
pub use place::Place;
pub use read::{DatasetReader, dataset_parts};
pub use retry::RetryBudget;
pub use rows::{
    content_batch, content_rows, failed_batch, failed_rows, skipped_batch, skipped_rows, timing_batch, timing_rows,
};
pub use schema::{ContentSpec, Dataset, INPUT_PREFIX, SCHEMA_VERSION, arrow_schema, schema_sha256, schema_text};
pub use source::{FolderSource, InputEntry, Source};
pub use sources::{InputColumns, Spool};
pub use store::{Location, OutputStore, Stores};
pub use stores::{ConnectionLimit, HttpGuard, IoCounters, IoSnapshot, StoreOptions, object_url, shown_url};
pub use tables::{ColumnTypes, columns_batch};
