//! What the footer of a Parquet file says: columns, row groups, and whether they can be read.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field};
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData};

use super::object::Blocks;
use super::pick::{Column, Use};
use crate::{IoError, IoErrorKind};

/// A footer that was read. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Footer {
    /// Schema in Arrow's types, as the Parquet types say it, and the row groups.
    pub metadata: ArrowReaderMetadata,
}

/// Runs what reads other people's Parquet: a panic of the reader is damage of the file.
pub(crate) fn guarded<T>(work: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, ParquetError> {
    std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("the reader gave up");
        Err(ParquetError::General(text.to_owned()))
    })
}

/// What `doing` ended with: what the store said, else that the file is damaged.
pub(crate) fn parquet_error(blocks: &Blocks, doing: &str, error: &ParquetError) -> IoError {
    blocks.take_failure().unwrap_or_else(|| {
        let text: String = error.to_string().chars().take(300).collect();
        IoError::fatal(IoErrorKind::Corrupt, format!("{doing}: {text}"))
    })
}

/// Whether an error says something about the file, not about the store.
pub(crate) const fn is_damage(error: &IoError) -> bool {
    matches!(error.kind, IoErrorKind::Corrupt | IoErrorKind::TooLarge)
}

impl Footer {
    /// Reads the footer; `Corrupt` when there is none that can be read.
    pub(crate) fn read(blocks: &Blocks) -> Result<Self, IoError> {
        let metadata = guarded(|| {
            let metadata = ParquetMetaDataReader::new().parse_and_finish(blocks)?;
            // What a writer noted about its own types is left out: it may contradict the file's.
            let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
            ArrowReaderMetadata::try_new(Arc::new(metadata), options)
        });
        let metadata = metadata.map_err(|error| {
            let shown = blocks.object().shown();
            parquet_error(blocks, &format!("the footer of {shown} cannot be read"), &error)
        })?;
        Ok(Self { metadata })
    }

    /// All metadata.
    pub(crate) fn file(&self) -> &Arc<ParquetMetaData> {
        self.metadata.metadata()
    }

    /// The row groups.
    pub(crate) fn groups(&self) -> &[RowGroupMetaData] {
        self.file().row_groups()
    }

    /// The columns, for the choice among them.
    pub(crate) fn columns(&self) -> Vec<Column> {
        let column = |field: &Arc<Field>| Column {
            name: field.name().clone(),
            usable: usable(field.data_type()),
            shown: field.data_type().to_string(),
        };
        self.metadata.schema().fields().iter().map(column).collect()
    }

    /// Type of the column `name`.
    pub(crate) fn data_type(&self, name: &str) -> Option<&DataType> {
        self.metadata.schema().fields().iter().find(|field| field.name() == name).map(|field| field.data_type())
    }

    /// The leaf column at `path`, where it has no more than one value a row.
    pub(crate) fn leaf(&self, path: &[&str]) -> Option<usize> {
        let columns = self.file().file_metadata().schema_descr().columns();
        columns.iter().position(|column| column.path().parts() == path && column.max_rep_level() == 0)
    }

    /// The leaf column with this dotted path.
    pub(crate) fn leaf_named(&self, dotted: &str) -> Option<usize> {
        let columns = self.file().file_metadata().schema_descr().columns();
        columns.iter().position(|column| column.path().string() == dotted && column.max_rep_level() == 0)
    }

    /// Whether all values of a leaf are null, as far as the statistics say it.
    pub(crate) fn all_null(&self, leaf: usize) -> bool {
        let null = |chunk: &ColumnChunkMetaData| {
            let nulls = chunk.statistics().and_then(|statistics| statistics.null_count_opt());
            nulls.is_some_and(|nulls| i64::try_from(nulls) == Ok(chunk.num_values()))
        };
        let mut groups = self.groups().iter().filter(|group| group.num_rows() > 0).peekable();
        groups.peek().is_some() && groups.all(|group| group.columns().get(leaf).is_some_and(null))
    }

    /// An error when a leaf is compressed in a way that is not built in.
    pub(crate) fn check_codec(&self, shown: &str, leaf: usize) -> Result<(), IoError> {
        let chunks = self.groups().iter().filter_map(|group| group.columns().get(leaf));
        for chunk in chunks {
            let compression = chunk.compression();
            if matches!(compression, Compression::LZO) {
                let message = format!(
                    "the column '{}' of {shown} is compressed with {compression:?}, which is not supported; write the \
                     file again with zstd or snappy",
                    chunk.column_path().string()
                );
                return Err(IoError::fatal(IoErrorKind::Invalid, message));
            }
        }
        Ok(())
    }
}

fn usable(data_type: &DataType) -> Use {
    match data_type {
        DataType::Struct(fields) => {
            let bytes = fields.iter().find(|field| field.name() == "bytes");
            match bytes.map(|field| field.data_type()) {
                Some(DataType::Binary | DataType::LargeBinary | DataType::BinaryView) => Use::ImageStruct,
                _ => Use::Other,
            }
        }
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => Use::Bytes,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => Use::Text,
        _ => Use::Other,
    }
}

/// Whether a type holds bytes that are no text, at any depth.
pub(crate) fn holds_binary(data_type: &DataType) -> bool {
    match data_type {
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => true,
        DataType::Struct(fields) => fields.iter().any(|field| holds_binary(field.data_type())),
        DataType::List(field)
        | DataType::LargeList(field)
        | DataType::FixedSizeList(field, _)
        | DataType::ListView(field)
        | DataType::LargeListView(field)
        | DataType::Map(field, _) => holds_binary(field.data_type()),
        DataType::Dictionary(_, values) => holds_binary(values),
        _ => false,
    }
}
