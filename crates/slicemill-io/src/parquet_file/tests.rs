//! Tests of `parquet_file`.

use parquet::file::metadata::ParquetMetaDataReader;
use slicemill_core::{ContentRow, TaskKind, TokenDtype};

use super::*;
use crate::{ContentSpec, Dataset, arrow_schema, content_batch};

fn spec(task: TaskKind) -> ContentSpec {
    ContentSpec {
        task,
        token_ids: true,
        token_dtype: TokenDtype::F32,
        token_width: 8,
        model_fingerprint: "abc".to_owned(),
        input: crate::ColumnTypes::default(),
    }
}

fn rows(count: u32) -> Vec<ContentRow> {
    let row = |number: u32| ContentRow {
        key: format!("{number:06}.jpg"),
        source: format!("file:///photos/{number:06}.jpg"),
        format: ["jpeg", "png"][number as usize % 2].to_owned(),
        width: number * 7919 % 4001,
        visual_tokens: number % 5,
        text: (!number.is_multiple_of(3)).then(|| format!("{number} circles")),
        token_ids: (!number.is_multiple_of(4)).then(|| (0..number % 9).collect()),
        tokens: Some((0..number % 5 * 8).map(|value| (value * number) as f32 / 7.0).collect()),
        ..ContentRow::default()
    };
    (0..count).map(row).collect()
}

fn encode(task: TaskKind, batches: &[RecordBatch], limits: RowGroupLimits) -> Bytes {
    let schema = arrow_schema(Dataset::of_task(task), &spec(task));
    let mut encoder = ParquetEncoder::new(schema, &[("job".to_owned(), "fingerprint".to_owned())], limits).unwrap();
    let mut bytes = Vec::new();
    for batch in batches {
        encoder.push(batch).unwrap();
        bytes.extend_from_slice(&encoder.take_bytes());
    }
    bytes.extend_from_slice(&encoder.finish().unwrap());
    bytes.into()
}

/// The same rows in batches of `size`; every second one is a slice of a larger batch.
fn batches(task: TaskKind, rows: &[ContentRow], size: usize) -> Vec<RecordBatch> {
    let batch = |(number, rows): (usize, &[ContentRow])| {
        let batch = content_batch(&spec(task), rows).unwrap();
        if number.is_multiple_of(2) {
            return batch;
        }
        let twice = concat_batches(&batch.schema(), [&batch, &batch]).unwrap();
        twice.slice(rows.len(), rows.len())
    };
    rows.chunks(size).enumerate().map(batch).collect()
}

#[test]
fn the_bytes_do_not_depend_on_batches() {
    let rows = rows(5000);
    for task in [TaskKind::Caption, TaskKind::Encode] {
        for limits in [
            RowGroupLimits::default(),
            RowGroupLimits { rows_max: 700, bytes_max: usize::MAX },
            RowGroupLimits { rows_max: usize::MAX, bytes_max: 40_000 },
        ] {
            let whole = encode(task, &batches(task, &rows, rows.len()), limits);
            for size in [1, 7, 512, 1024, 1025, 4999] {
                assert!(encode(task, &batches(task, &rows, size), limits) == whole, "{task:?} {limits:?} {size}");
            }
        }
    }
}

/// The bytes of this file are those of every output. When an upgrade changes them, running jobs can no longer be
/// resumed to equal bytes: say so in the change log.
#[test]
fn the_bytes_are_fixed() {
    use sha2::Digest as _;
    let rows = rows(1000);
    let digest = |task| {
        let bytes = encode(task, &batches(task, &rows, 100), RowGroupLimits { rows_max: 300, bytes_max: usize::MAX });
        crate::schema::hex(&sha2::Sha256::digest(bytes))
    };
    insta::assert_snapshot!(format!("captions {}\ntokens {}", digest(TaskKind::Caption), digest(TaskKind::Encode)));
}

fn group_rows(bytes: &Bytes) -> Vec<i64> {
    let metadata = ParquetMetaDataReader::new().parse_and_finish(bytes).unwrap();
    metadata.row_groups().iter().map(|group| group.num_rows()).collect()
}

#[test]
fn row_groups_are_bounded_in_rows_and_bytes() {
    let rows = rows(1000);
    let limits = RowGroupLimits { rows_max: 300, bytes_max: usize::MAX };
    assert_eq!(
        group_rows(&encode(TaskKind::Caption, &batches(TaskKind::Caption, &rows, 64), limits)),
        [300, 300, 300, 100]
    );

    let limits = RowGroupLimits { rows_max: usize::MAX, bytes_max: 30_000 };
    let batches = batches(TaskKind::Encode, &rows, 64);
    let groups = group_rows(&encode(TaskKind::Encode, &batches, limits));
    assert!(groups.len() > 3);
    let sizes: Vec<usize> = batches.iter().flat_map(|batch| row_sizes(batch).unwrap()).collect();
    let mut start = 0;
    for (number, rows) in groups.iter().enumerate() {
        let end = start + usize::try_from(*rows).unwrap();
        let bytes: usize = sizes[start..end].iter().sum();
        assert!(bytes <= 30_000, "row group {number} has {bytes} bytes");
        assert!(end == sizes.len() || bytes + sizes[end] > 30_000, "row group {number} is not full");
        start = end;
    }
    assert_eq!(start, sizes.len());

    let one_by_one = RowGroupLimits { rows_max: usize::MAX, bytes_max: 1 };
    assert_eq!(group_rows(&encode(TaskKind::Encode, &batches[..1], one_by_one)), [1; 64]);
}

#[test]
fn files_say_what_they_are() {
    let bytes = encode(TaskKind::Caption, &batches(TaskKind::Caption, &rows(10), 10), RowGroupLimits::default());
    let metadata = ParquetMetaDataReader::new().parse_and_finish(&bytes).unwrap();
    let file = metadata.file_metadata();
    assert_eq!(file.created_by(), Some("slicemill version 1.0.0"));
    let pairs = file.key_value_metadata().unwrap();
    let pairs: Vec<_> = pairs.iter().map(|pair| (pair.key.as_str(), pair.value.as_deref().unwrap())).collect();
    assert_eq!(pairs, [("job", "fingerprint")]);
}

#[test]
fn a_file_without_rows_is_a_file() {
    let bytes = encode(TaskKind::Caption, &[], RowGroupLimits::default());
    assert!(read_parquet("empty", bytes).unwrap().is_empty());
}

#[test]
fn damaged_files_are_errors_that_name_them() {
    let bytes = encode(TaskKind::Caption, &batches(TaskKind::Caption, &rows(100), 100), RowGroupLimits::default());
    let mut damaged = bytes.to_vec();
    damaged[100..140].fill(0);
    for bytes in [Bytes::new(), bytes.slice(..bytes.len() - 1), bytes.slice(1..), damaged.into()] {
        let error = read_parquet("captions/part-00000.parquet", bytes).unwrap_err();
        assert_eq!(error.kind, IoErrorKind::Corrupt);
        assert!(error.message.contains("captions/part-00000.parquet"), "{}", error.message);
    }
}
