//! Tests of `rows`.

use slicemill_core::TaskKind;

use super::*;
use crate::parquet_file::{read_parquet, write_parquet};

fn spec(task: TaskKind, token_dtype: TokenDtype) -> ContentSpec {
    ContentSpec {
        task,
        token_ids: true,
        token_dtype,
        token_width: 2,
        model_fingerprint: "abc".to_owned(),
        input: crate::ColumnTypes::default(),
    }
}

fn row(number: u32) -> ContentRow {
    ContentRow {
        key: format!("é {number}.jpg"),
        source: format!("file:///%C3%A9%20{number}.jpg"),
        sha256: "00ff".to_owned(),
        width: number,
        height: u32::MAX,
        orientation_applied: 6,
        format: "jpeg".to_owned(),
        policy: "llava-uhd".to_owned(),
        grid_cols: 2,
        grid_rows: 3,
        slices: 6,
        visual_tokens: 2,
        prompt_tokens: 500,
        prompt_cut: number,
        output_tokens: 7,
        looped_tokens: number / 2,
        flops: Flops { vision: u64::MAX, projector: 1, prefill: 2, decode: 3 },
        question_id: None,
        question: None,
        text: number.is_multiple_of(2).then(|| "two \"red\" circles\nand 🟦".to_owned()),
        finish_reason: "stop".to_owned(),
        token_ids: (!number.is_multiple_of(3)).then(|| vec![1, number, u32::MAX]),
        tokens: None,
        truncated: number == 4,
        columns: None,
    }
}

fn through_a_file(batch: &RecordBatch) -> RecordBatch {
    let bytes = write_parquet([batch], &batch.schema(), &[]).unwrap();
    let read = read_parquet("test", bytes).unwrap().remove(0);
    assert_eq!(read.schema(), batch.schema());
    read
}

#[test]
fn captions_round_trip() {
    let rows: Vec<_> = (0..10).map(row).collect();
    let batch = content_batch(&spec(TaskKind::Caption, TokenDtype::F32), &rows).unwrap();
    assert_eq!(content_rows(&batch).unwrap(), rows);
    assert_eq!(content_rows(&through_a_file(&batch)).unwrap(), rows);
}

#[test]
fn answers_round_trip() {
    let answer =
        |number| ContentRow { question_id: Some(number), question: Some("how many?".to_owned()), ..row(number) };
    let rows: Vec<_> = (0..10).map(answer).collect();
    let spec = spec(TaskKind::Ask, TokenDtype::F32);
    assert_eq!(content_rows(&through_a_file(&content_batch(&spec, &rows).unwrap())).unwrap(), rows);
    let error = content_batch(&spec, &[row(3)]).unwrap_err();
    assert!(error.message.contains("é 3.jpg") && error.message.contains("question"), "{}", error.message);
}

#[test]
fn tokens_round_trip_in_both_types() {
    let with_tokens = |number: u32| ContentRow {
        text: None,
        token_ids: None,
        finish_reason: "none".to_owned(),
        tokens: Some(vec![0.5, -1.0, number as f32, 65504.0]),
        ..row(number)
    };
    let rows: Vec<_> = (0..10).map(with_tokens).collect();
    for dtype in [TokenDtype::F32, TokenDtype::F16] {
        let batch = content_batch(&spec(TaskKind::Encode, dtype), &rows).unwrap();
        assert_eq!(content_rows(&through_a_file(&batch)).unwrap(), rows);
    }
    let precise = ContentRow { tokens: Some(vec![0.1; 4]), ..with_tokens(0) };
    let rows = content_rows(&content_batch(&spec(TaskKind::Encode, TokenDtype::F16), &[precise]).unwrap()).unwrap();
    assert_eq!(rows[0].tokens.as_deref().unwrap()[0], 0.099_975_586);

    let short = ContentRow { tokens: Some(vec![0.0; 3]), ..with_tokens(5) };
    let error = content_batch(&spec(TaskKind::Encode, TokenDtype::F32), &[short]).unwrap_err();
    assert!(error.message.contains("é 5.jpg: 3 values"), "{}", error.message);
    assert!(content_batch(&spec(TaskKind::Encode, TokenDtype::F32), &[row(0)]).is_err());
}

#[test]
fn columns_that_are_not_read_are_left_at_their_defaults() {
    let rows: Vec<_> = (0..4).map(row).collect();
    let batch = content_batch(&spec(TaskKind::Caption, TokenDtype::F32), &rows).unwrap();
    let columns: Vec<_> = ["key", "width"].iter().map(|name| batch.schema().index_of(name).unwrap()).collect();
    let read = content_rows(&batch.project(&columns).unwrap()).unwrap();
    let expected =
        rows.iter().map(|row| ContentRow { key: row.key.clone(), width: row.width, ..ContentRow::default() });
    assert_eq!(read, expected.collect::<Vec<_>>());
}

#[test]
fn a_column_of_another_type_is_an_error() {
    let batch = RecordBatch::try_from_iter([("key", u32s([1].into_iter()))]).unwrap();
    let error = content_rows(&batch).unwrap_err();
    assert_eq!(error.kind, IoErrorKind::Corrupt);
    assert!(error.message.contains("'key' is UInt32"), "{}", error.message);
}

#[test]
fn failed_skipped_and_timings_round_trip() {
    let failed: Vec<_> = ErrorClass::ALL
        .iter()
        .zip(Stage::ALL.iter().cycle())
        .map(|(class, stage)| FailedRow {
            key: "k".to_owned(),
            source: "s".to_owned(),
            error: RowError::new(*class, *stage, "message"),
            attempts: 5,
            columns: None,
        })
        .collect();
    assert_eq!(
        failed_rows(&through_a_file(&failed_batch(&spec(TaskKind::Caption, TokenDtype::F32), &failed).unwrap()))
            .unwrap(),
        failed
    );

    let skipped = [SkippedRow { key: "k".to_owned(), source: "s".to_owned(), reason: "r".to_owned(), columns: None }];
    assert_eq!(
        skipped_rows(&through_a_file(&skipped_batch(&spec(TaskKind::Caption, TokenDtype::F32), &skipped).unwrap()))
            .unwrap(),
        skipped
    );

    let timings = [TimingRow {
        key: "k".to_owned(),
        device: "cpu:0".to_owned(),
        batch_id: 1,
        batch_views: 2,
        batch_fill: 0.5,
        fetch_ms: 1.5,
        prepare_ms: 2.5,
        encode_ms: 3.5,
        prefill_ms: 4.5,
        decode_ms: 5.5,
    }];
    let batch = through_a_file(&timing_batch(7, 8, &timings).unwrap());
    assert_eq!(timing_rows(&batch).unwrap(), timings);
    let chunks = batch.column_by_name("chunk").unwrap().as_primitive::<UInt32Type>();
    assert_eq!(chunks.values(), &[8]);
}

#[test]
fn carried_columns_round_trip_with_their_types() {
    let texts = [
        Some(r#"{"license":"cc0","faces":3,"score":0.5,"ok":true,"more":1}"#),
        Some(r#"{"license":null,"faces":-9223372036854775808,"score":1,"ok":null}"#),
        None,
    ];
    let mut input = crate::ColumnTypes::new(["license", "faces", "score", "ok"]);
    texts.iter().for_each(|text| input.observe(*text).unwrap());
    let spec = ContentSpec { input, ..spec(TaskKind::Caption, TokenDtype::F32) };
    let rows: Vec<_> =
        (0..).zip(texts).map(|(number, text)| ContentRow { columns: text.map(Into::into), ..row(number) }).collect();
    let batch = through_a_file(&content_batch(&spec, &rows).unwrap());
    let names: Vec<_> = batch.schema().fields().iter().rev().take(4).map(|field| field.name().clone()).collect();
    assert_eq!(names, ["input_ok", "input_score", "input_faces", "input_license"]);
    let back = content_rows(&batch).unwrap();
    let columns: Vec<_> = back.iter().map(|row| row.columns.as_deref().unwrap()).collect();
    assert_eq!(
        columns,
        [
            r#"{"license":"cc0","faces":3,"score":0.5,"ok":true}"#,
            r#"{"license":null,"faces":-9223372036854775808,"score":1.0,"ok":null}"#,
            r#"{"license":null,"faces":null,"score":null,"ok":null}"#,
        ]
    );
    let again = content_batch(&spec, &back).unwrap();
    assert_eq!(again, content_batch(&spec, &rows).unwrap());
    let failed: Vec<_> = back
        .iter()
        .map(|row| FailedRow {
            key: row.key.clone(),
            source: row.source.clone(),
            error: RowError::new(ErrorClass::Corrupt, Stage::Decode, "x"),
            attempts: 1,
            columns: row.columns.clone(),
        })
        .collect();
    assert_eq!(failed_rows(&through_a_file(&failed_batch(&spec, &failed).unwrap())).unwrap(), failed);
}
