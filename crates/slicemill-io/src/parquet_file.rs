//! Parquet files whose bytes are a function of their rows, schema and metadata.
//!
//! The writer closes a row group when it reaches a number of rows or of bytes before compression, counted row by row,
//! and hands each row group to the Parquet encoder as one batch. So the bytes do not depend on how the rows were
//! batched on the way here. Compression, encodings, page sizes, statistics and `created_by` are fixed below; there is
//! no clock and no random number. Changing any of them changes the bytes of every output.
//!
//! The Arrow schema is not embedded: the Parquet types say everything there is to say about these columns.

use std::sync::Arc;

use arrow::array::{Array, AsArray as _};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use parquet::schema::types::ColumnPath;

use crate::{IoError, IoErrorKind};

/// Name and version of this file layout, in the form that readers parse.
const CREATED_BY: &str = "slicemill version 1.0.0";
const ZSTD_LEVEL: i32 = 3;

/// Columns of many distinct values, for which a dictionary would be built and thrown away.
const PLAIN_COLUMNS: [&str; 7] = ["key", "source", "url", "tag", "sha256", "text", "message"];
/// Columns of lists: no dictionary, and no statistics either.
const LIST_COLUMNS: [&str; 2] = ["tokens", "token_ids"];

/// Where row groups end. A row group has at least one row, however large.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowGroupLimits {
    /// Rows.
    pub rows_max: usize,
    /// Bytes before compression.
    pub bytes_max: usize,
}

impl Default for RowGroupLimits {
    fn default() -> Self {
        Self { rows_max: 16_384, bytes_max: 64 << 20 }
    }
}

fn properties(metadata: &[(String, String)]) -> Result<WriterProperties, ParquetError> {
    let metadata = metadata.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone())).collect();
    let mut properties = WriterProperties::builder()
        .set_created_by(CREATED_BY.to_owned())
        .set_writer_version(WriterVersion::PARQUET_1_0)
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(ZSTD_LEVEL)?))
        .set_max_row_group_row_count(None)
        .set_data_page_size_limit(1 << 20)
        .set_data_page_row_count_limit(20_000)
        .set_dictionary_page_size_limit(1 << 20)
        .set_write_batch_size(1024)
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_statistics_truncate_length(Some(64))
        .set_column_index_truncate_length(Some(64))
        .set_key_value_metadata(Some(metadata));
    for name in PLAIN_COLUMNS {
        properties = properties.set_column_dictionary_enabled(ColumnPath::from(name), false);
    }
    for name in LIST_COLUMNS {
        let values = ColumnPath::new(vec![name.to_owned(), "list".to_owned(), "element".to_owned()]);
        properties = properties
            .set_column_dictionary_enabled(values.clone(), false)
            .set_column_statistics_enabled(values, EnabledStatistics::None);
    }
    Ok(properties.build())
}

/// Encodes batches to Parquet bytes, row group by row group.
pub struct ParquetEncoder {
    writer: ArrowWriter<Vec<u8>>,
    schema: SchemaRef,
    limits: RowGroupLimits,
    /// Rows of the open row group.
    open: Vec<RecordBatch>,
    open_rows: usize,
    open_bytes: usize,
    rows: u64,
}

impl std::fmt::Debug for ParquetEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ParquetEncoder").field("rows", &self.rows).finish_non_exhaustive()
    }
}

impl ParquetEncoder {
    /// A file of `schema` with this key-value metadata, in this order.
    pub fn new(schema: SchemaRef, metadata: &[(String, String)], limits: RowGroupLimits) -> Result<Self, IoError> {
        let options = properties(metadata)
            .map(|properties| ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(true));
        let writer = options
            .and_then(|options| ArrowWriter::try_new_with_options(Vec::new(), Arc::clone(&schema), options))
            .map_err(unwritable)?;
        Ok(Self { writer, schema, limits, open: Vec::new(), open_rows: 0, open_bytes: 0, rows: 0 })
    }

    /// Adds rows.
    pub fn push(&mut self, batch: &RecordBatch) -> Result<(), IoError> {
        let sizes = row_sizes(batch)?;
        let mut start = 0;
        for (row, size) in sizes.into_iter().enumerate() {
            let full =
                self.open_rows >= self.limits.rows_max || self.open_bytes.saturating_add(size) > self.limits.bytes_max;
            if full && self.open_rows > 0 {
                self.keep(batch, start, row);
                self.close_row_group()?;
                start = row;
            }
            self.open_rows += 1;
            self.open_bytes = self.open_bytes.saturating_add(size);
        }
        self.keep(batch, start, batch.num_rows());
        self.rows += batch.num_rows() as u64;
        Ok(())
    }

    fn keep(&mut self, batch: &RecordBatch, start: usize, end: usize) {
        if end > start {
            self.open.push(batch.slice(start, end - start));
        }
    }

    fn close_row_group(&mut self) -> Result<(), IoError> {
        let rows = concat_batches(&self.schema, &self.open)
            .map_err(|error| IoError::fatal(IoErrorKind::Invalid, format!("cannot join batches: {error}")))?;
        self.open.clear();
        (self.open_rows, self.open_bytes) = (0, 0);
        self.writer.write(&rows).map_err(unwritable)?;
        self.writer.flush().map_err(unwritable)
    }

    /// Rows so far.
    pub const fn rows(&self) -> u64 {
        self.rows
    }

    /// The bytes that are final by now and were not taken yet.
    pub fn take_bytes(&mut self) -> Bytes {
        std::mem::take(self.writer.inner_mut()).into()
    }

    /// Adds metadata that is known only at the end.
    pub fn append_metadata(&mut self, key: &str, value: String) {
        self.writer.append_key_value_metadata(KeyValue::new(key.to_owned(), value));
    }

    /// The rest of the bytes.
    pub fn finish(mut self) -> Result<Bytes, IoError> {
        if self.open_rows > 0 {
            self.close_row_group()?;
        }
        self.writer.finish().map_err(unwritable)?;
        Ok(self.take_bytes())
    }
}

fn unwritable(error: ParquetError) -> IoError {
    IoError::fatal(IoErrorKind::Invalid, format!("cannot encode Parquet: {error}")).because(error)
}

/// Bytes of every row before compression: values, without offsets and null flags.
fn row_sizes(batch: &RecordBatch) -> Result<Vec<usize>, IoError> {
    let mut sizes = vec![0_usize; batch.num_rows()];
    for column in batch.columns() {
        let unsupported = || {
            let message = format!("cannot write a column of {}", column.data_type());
            IoError::fatal(IoErrorKind::Invalid, message)
        };
        match column.data_type() {
            DataType::Utf8 => {
                let texts = column.as_string::<i32>();
                add_each(&mut sizes, |row| usize::try_from(texts.value_length(row)).unwrap_or(0));
            }
            DataType::Boolean => add_each(&mut sizes, |_| 1),
            DataType::List(values) => {
                let width = values.data_type().primitive_width().ok_or_else(unsupported)?;
                let lists = column.as_list::<i32>();
                add_each(&mut sizes, |row| usize::try_from(lists.value_length(row)).unwrap_or(0) * width);
            }
            other => {
                let width = other.primitive_width().ok_or_else(unsupported)?;
                add_each(&mut sizes, |_| width);
            }
        }
    }
    Ok(sizes)
}

fn add_each(sizes: &mut [usize], size: impl Fn(usize) -> usize) {
    for (row, sum) in sizes.iter_mut().enumerate() {
        *sum += size(row);
    }
}

/// A whole file in memory, with the default limits of row groups.
pub fn write_parquet<'a>(
    batches: impl IntoIterator<Item = &'a RecordBatch>,
    schema: &SchemaRef,
    metadata: &[(String, String)],
) -> Result<Bytes, IoError> {
    let mut encoder = ParquetEncoder::new(Arc::clone(schema), metadata, RowGroupLimits::default())?;
    for batch in batches {
        encoder.push(batch)?;
    }
    encoder.finish()
}

/// The batches of a file in memory, one per row group. `name` is for messages.
pub fn read_parquet(name: &str, bytes: Bytes) -> Result<Vec<RecordBatch>, IoError> {
    let broken = |error: ParquetError| corrupt(name, error);
    let metadata = ArrowReaderMetadata::load(&bytes, ArrowReaderOptions::new()).map_err(broken)?;
    let mut batches = Vec::new();
    for (group, rows) in metadata.metadata().row_groups().iter().enumerate() {
        let rows = usize::try_from(rows.num_rows()).unwrap_or(0);
        let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(bytes.clone(), metadata.clone())
            .with_row_groups(vec![group])
            .with_batch_size(rows.max(1))
            .build()
            .map_err(broken)?;
        for batch in reader {
            batches.push(batch.map_err(|error| corrupt(name, error))?);
        }
    }
    Ok(batches)
}

pub(crate) fn corrupt(name: &str, error: impl std::error::Error + Send + Sync + 'static) -> IoError {
    IoError::fatal(IoErrorKind::Corrupt, format!("{name} is not the Parquet file it should be: {error}")).because(error)
}

#[cfg(test)]
mod tests;
