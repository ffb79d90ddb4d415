//! Reading the datasets of an output, for verify, report and retry.

use arrow::record_batch::RecordBatch;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::ObjectMeta;
use parquet::arrow::{ParquetRecordBatchStreamBuilder, ProjectionMask};

use crate::parquet_object::ParquetObject;
use crate::{Dataset, IoError, OutputStore};

/// The part files of a dataset in row order: by shard, parts of retry passes after those of the job.
pub async fn dataset_parts(output: &OutputStore, dataset: Dataset) -> Result<Vec<ObjectMeta>, IoError> {
    let mut parts = output.list(dataset.name()).await?;
    parts.retain(|part| {
        let name = part.location.filename().unwrap_or_default();
        name.starts_with("part-") && name.ends_with(".parquet")
    });
    // Names are padded to five digits; beyond that, longer means later.
    parts.sort_by(|a, b| {
        let (a, b) = (a.location.as_ref(), b.location.as_ref());
        a.len().cmp(&b.len()).then_with(|| a.cmp(b))
    });
    Ok(parts)
}

/// Streams the rows of a dataset, one batch per row group at most.
#[derive(Debug, Clone)]
pub struct DatasetReader {
    output: OutputStore,
    dataset: Dataset,
    columns: Option<Vec<String>>,
}

impl DatasetReader {
    /// All columns of `dataset`.
    pub const fn new(output: OutputStore, dataset: Dataset) -> Self {
        Self { output, dataset, columns: None }
    }

    /// Only these columns; names that a file lacks are left out.
    #[must_use]
    pub fn with_columns(mut self, columns: &[&str]) -> Self {
        self.columns = Some(columns.iter().map(ToString::to_string).collect());
        self
    }

    /// The batches of all part files in row order. Empty when the dataset is not there.
    pub fn stream(&self) -> BoxStream<'static, Result<RecordBatch, IoError>> {
        let reader = self.clone();
        futures::stream::once(async move {
            let parts = dataset_parts(&reader.output, reader.dataset).await?;
            let parts = futures::stream::iter(parts.into_iter().map(Ok::<_, IoError>));
            Ok::<_, IoError>(parts.map_ok(move |part| reader.clone().part(part)).try_flatten())
        })
        .try_flatten()
        .boxed()
    }

    /// The batches of one part file.
    fn part(self, part: ObjectMeta) -> BoxStream<'static, Result<RecordBatch, IoError>> {
        let file = ParquetObject::new(self.output.clone(), &part);
        futures::stream::once(async move {
            let builder =
                ParquetRecordBatchStreamBuilder::new(file.clone()).await.map_err(|error| file.error(error))?;
            let projection = match &self.columns {
                None => ProjectionMask::all(),
                Some(names) => ProjectionMask::columns(builder.parquet_schema(), names.iter().map(String::as_str)),
            };
            let rows_max = builder.metadata().row_groups().iter().map(|group| group.num_rows()).max();
            let batches = builder
                .with_projection(projection)
                .with_batch_size(usize::try_from(rows_max.unwrap_or(1)).unwrap_or(1).max(1))
                .build()
                .map_err(|error| file.error(error))?;
            Ok::<_, IoError>(batches.map_err(move |error| file.error(error)))
        })
        .try_flatten()
        .boxed()
    }
}

#[cfg(test)]
mod tests;
