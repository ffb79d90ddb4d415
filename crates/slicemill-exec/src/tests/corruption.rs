//! Everything that can be wrong with an output is found by its proof, and named.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, UInt32Array, UInt64Array};
use arrow::compute::concat_batches;
use arrow::datatypes::{UInt32Type, UInt64Type};
use bytes::Bytes;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use sha2::{Digest, Sha256};
use slicemill_io::{read_parquet, write_parquet};
use slicemill_pipeline::BackendFactory;
use slicemill_pipeline::fake::FakeOptions;

use super::{Place, edit, fake, run, stores};
use crate::job::hex;
use crate::{Verification, verify_output};

const BYTES: &str = "files are the bytes that were committed";
const SCHEMAS: &str = "files have the schema of this job";
const STRANGERS: &str = "there are no other files";
const COMPLETE: &str = "the job is complete";
const FINGERPRINT: &str = "job.json is the job its fingerprint says";
const LEDGER: &str = "ledger entries add up";
const CONSERVED: &str = "every input is content, failed or skipped, once";
const READ: &str = "all rows can be read";
const PLANS: &str = "planned tokens are the tokens in the rows";
const COMPUTE: &str = "compute in the rows follows from plan and tokens";
const SUMS: &str = "sums of the columns are those of _SUCCESS";
const QUESTIONS: &str = "every question of every image has one answer";
const TOKENS: &str = "token lists have visual tokens x width values";

/// Runs a job, damages its output, and compares the checks that fail.
async fn check(task: &str, damage: impl Fn(&Path), failing: &[&str], named: &str) {
    let place = Place::new();
    let more = if task == "ask" { "questions.ask = ['How many?', 'Where?']\n" } else { "" };
    run(&place.job(task, "out", more)).await.unwrap();
    let before = verify_output(&place.at("out"), &stores()).await.unwrap();
    assert!(before.passed(), "{}", before.to_text());
    damage(&place.path("out"));
    let after: Verification = verify_output(&place.at("out"), &stores()).await.unwrap();
    let found: Vec<&str> = after.checks.iter().filter(|check| !check.ok).map(|check| check.name.as_str()).collect();
    assert_eq!(found, failing, "{}", after.to_text());
    assert!(after.to_text().contains(named), "no {named} in\n{}", after.to_text());
    assert!(after.to_text().ends_with("NOT VERIFIED\n"));
}

/// All files below `folder`.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut all: Vec<PathBuf> =
        entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect();
    all.sort();
    all
}

/// The ledger entry that names the file `name`.
fn entry_of(out: &Path, name: &str) -> PathBuf {
    let mut entries = files(&out.join("_slicemill/ledger"));
    entries.retain(|path| fs::read_to_string(path).unwrap().contains(name));
    assert_eq!(entries.len(), 1, "{entries:?}");
    entries.remove(0)
}

/// Rewrites the rows of a file and makes the ledger agree with its new bytes.
fn rewrite(out: &Path, name: &str, change: impl Fn(RecordBatch) -> RecordBatch) {
    let path = out.join(name);
    let bytes = Bytes::from(fs::read(&path).unwrap());
    let metadata = ArrowReaderMetadata::load(&bytes, ArrowReaderOptions::new()).unwrap();
    let pairs = metadata.metadata().file_metadata().key_value_metadata().unwrap().iter();
    let pairs: Vec<(String, String)> = pairs
        .filter(|pair| pair.key.starts_with("slicemill"))
        .map(|pair| (pair.key.clone(), pair.value.clone().unwrap()))
        .collect();
    let batches = read_parquet(name, bytes.clone()).unwrap();
    let schema = batches[0].schema();
    let changed = change(concat_batches(&schema, &batches).unwrap());
    let now = write_parquet([&changed], &changed.schema(), &pairs).unwrap();
    fs::write(&path, &now).unwrap();
    let entry = entry_of(out, name);
    let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&entry).unwrap()).unwrap();
    let dataset = name.split('/').next().unwrap();
    let file = &mut record["files"][dataset];
    file["bytes"] = now.len().into();
    file["rows"] = changed.num_rows().into();
    file["sha256"] = hex(&Sha256::digest(&now)).into();
    fs::write(&entry, serde_json::to_vec(&record).unwrap()).unwrap();
}

/// The batch with the first value of a column of numbers raised by one.
fn raised(batch: RecordBatch, column: &str) -> RecordBatch {
    let at = batch.schema().index_of(column).unwrap();
    let mut values = batch.column(at).as_primitive::<UInt32Type>().values().to_vec();
    values[0] += 1;
    let mut columns: Vec<ArrayRef> = batch.columns().to_vec();
    columns[at] = Arc::new(UInt32Array::from(values));
    RecordBatch::try_new(batch.schema(), columns).unwrap()
}

#[tokio::test]
async fn damaged_files() {
    let part = "captions/part-00000.parquet";
    let flip = |out: &Path| {
        let mut bytes = fs::read(out.join(part)).unwrap();
        let last = bytes.len() - 9;
        bytes[last] ^= 1;
        fs::write(out.join(part), bytes).unwrap();
    };
    let place = Place::new();
    run(&place.job("caption", "out", "")).await.unwrap();
    flip(&place.path("out"));
    let after = verify_output(&place.at("out"), &stores()).await.unwrap();
    assert!(after.checks.iter().any(|check| check.name == BYTES && !check.ok && check.wrong[0].starts_with(part)));
    let remove = |out: &Path| fs::remove_file(out.join(part)).unwrap();
    check("caption", remove, &[BYTES, CONSERVED, SUMS], "even/image-0.png has no row").await;
    let copy = |out: &Path| {
        fs::copy(out.join(part), out.join("captions/part-00007.parquet")).unwrap();
    };
    check("caption", copy, &[STRANGERS, CONSERVED, SUMS], "is in the content and in the content").await;
    let cut = |out: &Path| {
        let bytes = fs::read(out.join("failed/part-00000.parquet")).unwrap();
        fs::write(out.join("failed/part-00000.parquet"), &bytes[..bytes.len() / 2]).unwrap();
    };
    check("caption", cut, &[BYTES, SCHEMAS, CONSERVED, READ, SUMS], "failed/part-00000.parquet is not Parquet").await;
}

#[tokio::test]
async fn damaged_records() {
    let success = |out: &Path| edit(&out.join("_SUCCESS"), "\"ok\": 9", "\"ok\": 8");
    check("caption", success, &[LEDGER, SUMS], "ok: 9 in the rows, 8 in _SUCCESS").await;
    let gone = |out: &Path| fs::remove_file(out.join("_SUCCESS")).unwrap();
    check("caption", gone, &[COMPLETE], "13 of 13 rows, 2 of 2 shards").await;
    let job = |out: &Path| edit(&out.join("_slicemill/job.json"), "\"max_slices\": 7", "\"max_slices\": 1");
    check("caption", job, &[FINGERPRINT, PLANS, COMPUTE], "(visual tokens, slices, columns, rows) planned").await;
    let entry = |out: &Path| {
        let entry = entry_of(out, "captions/part-00001.parquet");
        edit(&entry, "\"inputs\": 5", "\"inputs\": 6");
    };
    check("caption", entry, &[LEDGER], "shard 1 is not the sum of its chunks").await;
}

#[tokio::test]
async fn rows_that_are_not_what_the_job_says() {
    let part = "captions/part-00000.parquet";
    let lost = |out: &Path| rewrite(out, part, |rows| rows.slice(1, rows.num_rows() - 1));
    check("caption", lost, &[CONSERVED, SUMS], "has no row").await;
    let doubled = |out: &Path| {
        rewrite(out, part, |rows| concat_batches(&rows.schema(), [&rows, &rows.slice(0, 1)]).unwrap());
    };
    check("caption", doubled, &[CONSERVED, SUMS], "is in the content and in the content").await;
    let tokens = |out: &Path| rewrite(out, part, |rows| raised(rows, "visual_tokens"));
    check("caption", tokens, &[PLANS, SUMS], "planned (").await;
    let prompt = |out: &Path| rewrite(out, part, |rows| raised(rows, "prompt_tokens"));
    check("caption", prompt, &[COMPUTE, SUMS], "expected Flops").await;
    let answer = |out: &Path| rewrite(out, "answers/part-00000.parquet", |rows| raised(rows, "question_id"));
    check("ask", answer, &[QUESTIONS], "asked questions [0, 1], answered [1, 1]").await;
    let width = |out: &Path| {
        edit(&out.join("_slicemill/job.json"), "\"width\": 3,\n    \"schema\"", "\"width\": 4,\n    \"schema\"")
    };
    check("encode", width, &[TOKENS], "values, expected").await;
}

#[test]
fn the_tampering_itself_works() {
    let column: ArrayRef = Arc::new(UInt32Array::from(vec![1, 2]));
    let batch = RecordBatch::try_from_iter([("n", column)]).unwrap();
    let raised = raised(batch, "n");
    assert_eq!(raised.column(0).as_primitive::<UInt32Type>().values(), &[2, 2]);
    assert_eq!(raised.column(0).len(), 2);
}

#[tokio::test]
async fn the_compute_of_a_beam_search_is_that_of_whole_steps_of_all_beams() {
    let place = Place::new();
    let job = |beams: u32| format!("generation.num_beams = {beams}\ngeneration.max_new_tokens = 40\n");
    run(&place.job("caption", "out", &job(3))).await.unwrap();
    let out = place.path("out");
    let verify = async || {
        let found = verify_output(&place.at("out"), &stores()).await.unwrap();
        found.checks.iter().filter(|check| !check.ok).map(|check| check.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(verify().await, [""; 0]);
    let part = "captions/part-00000.parquet";
    let written = fs::read(out.join(part)).unwrap();
    let entry = entry_of(&out, part);
    let ledger = fs::read(&entry).unwrap();
    // A little more than some number of steps, and a whole step more than the cap allows.
    for flops in [|flops: u64, _| flops + 1, |_, flops_of_41: u64| flops_of_41] {
        rewrite(&out, part, |rows| {
            let at = rows.schema().index_of("decode_flops").unwrap();
            let prompt = rows.column_by_name("prompt_tokens").unwrap().as_primitive::<UInt32Type>().value(0);
            let shape = fake(FakeOptions::default()).card().shape;
            let mut values = rows.column(at).as_primitive::<UInt64Type>().values().to_vec();
            values[0] = flops(values[0], shape.beam_flops(3, u64::from(prompt), 41));
            let mut columns: Vec<ArrayRef> = rows.columns().to_vec();
            columns[at] = Arc::new(UInt64Array::from(values));
            RecordBatch::try_new(rows.schema(), columns).unwrap()
        });
        assert_eq!(verify().await, [COMPUTE, SUMS]);
        fs::write(out.join(part), &written).unwrap();
        fs::write(&entry, &ledger).unwrap();
    }
    assert_eq!(verify().await, [""; 0]);
    // A search costs more than as many answers, because it goes on after its own.
    run(&place.job("caption", "greedy", &job(1))).await.unwrap();
    let flops = |name: &str| {
        let bytes = Bytes::from(fs::read(place.path(name).join(part)).unwrap());
        let rows = read_parquet(part, bytes).unwrap();
        let column = rows[0].column_by_name("decode_flops").unwrap().as_primitive::<UInt64Type>();
        column.values().iter().sum::<u64>()
    };
    assert!(flops("out") > 3 * flops("greedy"));
}
