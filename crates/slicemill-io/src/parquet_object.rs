//! Parquet files in an output, read by ranges.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use object_store::ObjectMeta;
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};

use crate::parquet_file::corrupt;
use crate::{IoError, OutputStore};

/// An [`AsyncFileReader`] whose reads are retried like all others of the output.
#[derive(Debug, Clone)]
pub struct ParquetObject {
    output: OutputStore,
    name: Arc<str>,
    bytes: u64,
}

impl ParquetObject {
    /// Reads the object of `meta`, which is in `output`.
    pub fn new(output: OutputStore, meta: &ObjectMeta) -> Self {
        Self { output, name: meta.location.as_ref().into(), bytes: meta.size }
    }

    /// What a Parquet error says about this file: the store's own error, or that the file is damaged.
    pub fn error(&self, error: ParquetError) -> IoError {
        match error {
            ParquetError::External(source) => match source.downcast::<IoError>() {
                Ok(error) => *error,
                Err(source) => corrupt(&self.output.show(&self.name), ParquetError::External(source)),
            },
            other => corrupt(&self.output.show(&self.name), other),
        }
    }
}

fn external(error: IoError) -> ParquetError {
    ParquetError::External(Box::new(error))
}

impl AsyncFileReader for ParquetObject {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, ParquetError>> {
        async move {
            let pieces = self.output.get_ranges(&self.name, &[range]).await.map_err(external)?;
            Ok(pieces.into_iter().next().unwrap_or_default())
        }
        .boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<Vec<Bytes>, ParquetError>> {
        async move { self.output.get_ranges(&self.name, &ranges).await.map_err(external) }.boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>, ParquetError>> {
        async move {
            let bytes = self.bytes;
            let metadata = ParquetMetaDataReader::new().with_arrow_reader_options(options);
            Ok(Arc::new(metadata.load_and_finish(self, bytes).await?))
        }
        .boxed()
    }
}
