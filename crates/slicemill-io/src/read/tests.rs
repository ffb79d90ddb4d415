//! Tests of `read`.

use std::sync::Arc;

use object_store::memory::InMemory;
use slicemill_core::{ContentRow, TaskKind, TokenDtype};

use super::*;
use crate::{ContentSpec, ParquetEncoder, RowGroupLimits, content_batch, content_rows};

async fn write(output: &OutputStore, name: &str, keys: std::ops::Range<u32>) {
    let spec = ContentSpec {
        task: TaskKind::Caption,
        token_ids: false,
        token_dtype: TokenDtype::F32,
        token_width: 0,
        model_fingerprint: String::new(),
        input: crate::ColumnTypes::default(),
    };
    let rows: Vec<_> =
        keys.map(|key| ContentRow { key: key.to_string(), width: key, ..ContentRow::default() }).collect();
    let batch = content_batch(&spec, &rows).unwrap();
    let mut encoder =
        ParquetEncoder::new(batch.schema(), &[], RowGroupLimits { rows_max: 4, bytes_max: usize::MAX }).unwrap();
    encoder.push(&batch).unwrap();
    output.put(name, encoder.finish().unwrap()).await.unwrap();
}

async fn output() -> OutputStore {
    let output = OutputStore::with_store(Arc::new(InMemory::new()), "memory:");
    write(&output, "captions/part-100000.parquet", 20..25).await;
    write(&output, "captions/part-r001-00000.parquet", 25..30).await;
    write(&output, "captions/part-00002.parquet", 10..20).await;
    write(&output, "captions/part-00001.parquet", 0..10).await;
    output.put("captions/notes.txt", "not a part".into()).await.unwrap();
    output
}

#[tokio::test]
async fn parts_come_in_row_order_and_batches_within_row_groups() {
    let output = output().await;
    let batches: Vec<_> =
        DatasetReader::new(output.clone(), Dataset::Captions).stream().try_collect::<Vec<_>>().await.unwrap();
    let sizes: Vec<_> = batches.iter().map(RecordBatch::num_rows).collect();
    assert_eq!(sizes, [4, 4, 2, 4, 4, 2, 4, 1, 4, 1]);
    let rows = batches.iter().flat_map(|batch| content_rows(batch).unwrap());
    assert_eq!(rows.map(|row| row.width).collect::<Vec<_>>(), (0..30).collect::<Vec<_>>());
    assert_eq!(DatasetReader::new(output, Dataset::Failed).stream().try_collect::<Vec<_>>().await.unwrap().len(), 0);
}

#[tokio::test]
async fn only_the_columns_asked_for_are_read() {
    let reader = DatasetReader::new(output().await, Dataset::Captions).with_columns(&["width", "key", "nothing"]);
    let batches = reader.stream().try_collect::<Vec<_>>().await.unwrap();
    let names: Vec<_> = batches[0].schema().fields().iter().map(|field| field.name().clone()).collect();
    assert_eq!(names, ["key", "width"]);
}

#[tokio::test]
async fn a_damaged_part_is_named() {
    let output = output().await;
    output.put("captions/part-00002.parquet", "PAR1 nothing PAR1".into()).await.unwrap();
    let reader = DatasetReader::new(output, Dataset::Captions);
    let error = reader.stream().try_collect::<Vec<_>>().await.unwrap_err();
    assert!(error.message.contains("captions/part-00002.parquet"), "{}", error.message);
}
