//! SQL over an output: tables `captions`, `answers`, `tokens`, `failed`, `skipped` and `timings`.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::util::pretty::pretty_format_batches;
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl};
use datafusion::execution::context::SQLOptions;
use datafusion::prelude::SessionContext;
use slicemill_core::{TaskKind, TokenDtype};
use slicemill_io::{ContentSpec, Dataset, OutputStore, Stores, arrow_schema, dataset_parts};
use url::Url;

use crate::ExecError;
use crate::freeze::FrozenJob;

/// The rows that a query gave.
#[derive(Debug, Clone)]
pub struct QueryResult {
    schema: SchemaRef,
    batches: Vec<RecordBatch>,
}

impl QueryResult {
    /// Columns.
    pub const fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Rows.
    pub fn batches(&self) -> &[RecordBatch] {
        &self.batches
    }

    /// A table for people.
    ///
    /// # Errors
    /// When a column has no text form.
    pub fn to_text(&self) -> Result<String, ExecError> {
        if self.batches.is_empty() {
            return Ok(pretty_format_batches(&[RecordBatch::new_empty(Arc::clone(&self.schema))])?.to_string());
        }
        Ok(pretty_format_batches(&self.batches)?.to_string())
    }

    /// A JSON array of objects.
    ///
    /// # Errors
    /// When a column has no JSON form.
    pub fn to_json(&self) -> Result<String, ExecError> {
        let mut writer = arrow::json::ArrayWriter::new(Vec::new());
        writer.write_batches(&self.batches.iter().collect::<Vec<_>>())?;
        writer.finish()?;
        let text = String::from_utf8_lossy(&writer.into_inner()).into_owned();
        // Without batches the writer writes nothing at all.
        Ok(if text.is_empty() { "[]".to_owned() } else { text })
    }

    /// CSV with a header.
    ///
    /// # Errors
    /// When a column has no CSV form, as lists.
    pub fn to_csv(&self) -> Result<String, ExecError> {
        let mut text = Vec::new();
        let mut writer = arrow::csv::Writer::new(&mut text);
        if self.batches.is_empty() {
            writer.write(&RecordBatch::new_empty(Arc::clone(&self.schema)))?;
        }
        for batch in &self.batches {
            writer.write(batch)?;
        }
        drop(writer);
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// Runs `query` over the output in `location`. It reads only: statements that would change anything are refused.
///
/// # Errors
/// When there is no job, or the query is wrong.
pub async fn query_output(location: &str, query: &str, stores: &Stores) -> Result<QueryResult, ExecError> {
    let (output, job) = FrozenJob::open(location, stores).await?;
    let session = session_of(&output, &job).await?;
    let read_only = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    let wrong = |error: datafusion::common::DataFusionError| ExecError::Query(error.strip_backtrace());
    let frame = session.sql_with_options(query, read_only).await.map_err(wrong)?;
    let schema = Arc::new(frame.schema().as_arrow().clone());
    let batches = frame.collect().await.map_err(wrong)?;
    Ok(QueryResult { schema, batches })
}

/// A session with the tables of an output. Datasets without files are empty tables.
///
/// # Errors
/// Those of the store.
pub async fn session_of(output: &OutputStore, job: &FrozenJob) -> Result<SessionContext, ExecError> {
    let session = SessionContext::new();
    let root = Url::parse("slicemill://output/").map_err(|error| ExecError::Query(error.to_string()))?;
    session.register_object_store(&root, Arc::clone(output.object_store()));
    for dataset in Dataset::ALL {
        let schema = arrow_schema(*dataset, &spec_for(*dataset, job));
        session.register_table(dataset.name(), table(output, &root, *dataset, schema).await?)?;
    }
    Ok(session)
}

async fn table(
    output: &OutputStore,
    root: &Url,
    dataset: Dataset,
    schema: SchemaRef,
) -> Result<Arc<dyn TableProvider>, ExecError> {
    let parts = dataset_parts(output, dataset).await?;
    if parts.is_empty() {
        return Ok(Arc::new(MemTable::try_new(schema, vec![Vec::new()])?));
    }
    let urls = parts
        .iter()
        .map(|part| ListingTableUrl::parse(format!("{root}{}", part.location)))
        .collect::<Result<Vec<_>, _>>()?;
    let options = ListingOptions::new(Arc::new(ParquetFormat::default())).with_file_extension(".parquet");
    let config = ListingTableConfig::new_with_multi_paths(urls).with_listing_options(options).with_schema(schema);
    Ok(Arc::new(ListingTable::try_new(config)?))
}

/// The spec under which `dataset` has its columns: that of the job, or a plain one for datasets of other tasks.
fn spec_for(dataset: Dataset, job: &FrozenJob) -> ContentSpec {
    let plain = |task| ContentSpec {
        task,
        token_ids: false,
        token_dtype: TokenDtype::F32,
        token_width: 0,
        model_fingerprint: String::new(),
        input: slicemill_io::ColumnTypes::default(),
    };
    let own = job.content_spec();
    match dataset {
        _ if dataset == Dataset::of_task(own.task) => own,
        Dataset::Answers => plain(TaskKind::Ask),
        Dataset::Tokens => plain(TaskKind::Encode),
        _ => ContentSpec { input: own.input, ..plain(TaskKind::Caption) },
    }
}
