//! A small job that is interrupted everywhere.

mod crash;
mod protocol;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use object_store::ObjectStore;
use object_store::memory::InMemory;
use slicemill_core::{
    ContentRow, ErrorClass, FailedRow, Flops, RowError, RowOutcome, SkippedRow, Stage, TaskKind, TimingRow, TokenDtype,
};

use super::*;
use crate::{DatasetReader, InputEntry, RetryBudget, content_rows, failed_rows};

fn spec() -> ContentSpec {
    ContentSpec {
        task: TaskKind::Caption,
        token_ids: true,
        token_dtype: TokenDtype::F32,
        token_width: 0,
        model_fingerprint: "model".to_owned(),
        input: crate::ColumnTypes::default(),
    }
}

fn ledger_on(store: Arc<dyn ObjectStore>) -> Ledger {
    let output = OutputStore::with_store(store, "memory:").with_budget(RetryBudget::ONCE);
    Ledger::new(output, spec(), vec![("slicemill.job".to_owned(), "fingerprint".to_owned())])
}

fn entry(number: u64) -> InputEntry {
    let key = format!("{number:05}.jpg");
    InputEntry::object(key.clone(), format!("file:///photos/{key}"), number, "1.0")
}

/// What becomes of an input: a function of the input, save for the timing. On a retry (`pass` above 0) some of the
/// failed rows succeed, some turn out to be no images, some fail again.
fn outcome(input: &InputEntry, pass: u32, run: u32) -> RowOutcome {
    let number = input.bytes;
    let (key, source) = (input.key.clone(), input.url.clone());
    let failing = match pass {
        0 => number % 3 == 1,
        1 => number % 3 == 1 && !number.is_multiple_of(4),
        _ => number % 3 == 1 && number % 8 == 1,
    };
    if failing {
        let class = if number.is_multiple_of(2) { ErrorClass::Truncated } else { ErrorClass::ReadFailed };
        let error = RowError::new(class, Stage::Decode, format!("pass {pass}"));
        return RowOutcome::Failed(FailedRow { key, source, error, attempts: 1, columns: None });
    }
    if number % 7 == 5 {
        return RowOutcome::Skipped(SkippedRow { key, source, reason: "a text".to_owned(), columns: None });
    }
    let row = ContentRow {
        sha256: format!("{number:064x}"),
        slices: 2,
        visual_tokens: 24,
        prompt_tokens: 30,
        output_tokens: 5,
        looped_tokens: 0,
        flops: Flops { vision: u64::MAX, projector: number, prefill: 3, decode: 4 },
        text: Some(format!("{number} circles")),
        finish_reason: "stop".to_owned(),
        token_ids: Some(vec![1, 2, 3]),
        key: key.clone(),
        source,
        ..ContentRow::default()
    };
    RowOutcome::Ok { rows: vec![row], timing: TimingRow { key, encode_ms: run as f32, ..TimingRow::default() } }
}

/// How a job is divided, and how often it is retried.
#[derive(Debug, Clone, Copy)]
struct Job {
    /// Inputs of every generation.
    rows: [u64; 2],
    chunk_rows: u32,
    shard_chunks: u32,
    retries: u32,
}

const JOB: Job = Job { rows: [23, 0], chunk_rows: 4, shard_chunks: 2, retries: 0 };

impl Job {
    fn inputs(&self, generation: usize) -> Vec<InputEntry> {
        let start: u64 = self.rows[..generation].iter().sum();
        (start..start + self.rows[generation]).map(entry).collect()
    }

    /// Does whatever is left to do. `run` distinguishes runs in the timings, as a clock does.
    async fn run(&self, ledger: &Ledger, run: u32) -> Result<Success, IoError> {
        ledger.recover().await?;
        ledger.write_job(Bytes::from_static(b"{}\n")).await?;
        for generation in 0..2 {
            if ledger.generations().await?.len() > generation || (generation > 0 && self.rows[generation] == 0) {
                continue;
            }
            let inputs = futures::stream::iter(self.inputs(generation).into_iter().map(Ok)).boxed();
            ledger.freeze(inputs, self.chunk_rows, self.shard_chunks).await?;
        }
        for generation in ledger.generations().await? {
            work(ledger, &generation, 0, run).await?;
        }
        for pass in 1..=self.retries {
            self.retry(ledger, pass, run).await?;
        }
        ledger.commit().await
    }

    async fn retry(&self, ledger: &Ledger, number: u32, run: u32) -> Result<(), IoError> {
        let pass = match ledger.retries().await?.into_iter().find(|pass| pass.number == number) {
            Some(pass) if pass.done => return ledger.finish_retry(&pass).await,
            Some(pass) => Some(pass),
            None => {
                let failed = read_failed(ledger).await?;
                let entries = failed.into_iter().map(|row| {
                    let number = row.key.trim_end_matches(".jpg").parse().unwrap();
                    Ok(InputEntry::object(row.key, row.source, number, "2.0"))
                });
                let entries = futures::stream::iter(entries.collect::<Vec<_>>()).boxed();
                ledger.begin_retry(entries, self.chunk_rows, self.shard_chunks).await?
            }
        };
        let Some(pass) = pass else { return Ok(()) };
        work(&ledger.of_retry(&pass), &pass.generation, pass.number, run).await?;
        ledger.finish_retry(&pass).await
    }
}

async fn work(ledger: &Ledger, generation: &Generation, pass: u32, run: u32) -> Result<(), IoError> {
    let inputs = ledger.inputs(generation).await?;
    let state = ledger.state().await?;
    for shard in generation.shards() {
        if state.shards.contains_key(&shard) {
            continue;
        }
        for chunk in 0..generation.chunks(shard) {
            if !state.chunks.contains_key(&(shard, chunk)) {
                ledger.commit_chunk(stage(ledger, &inputs, generation, (shard, chunk), pass, run).await?).await?;
            }
        }
        ledger.finish_shard(shard, generation.chunks(shard)).await?;
    }
    Ok(())
}

async fn stage(
    ledger: &Ledger,
    inputs: &crate::FrozenInputs,
    generation: &Generation,
    (shard, chunk): (u32, u32),
    pass: u32,
    run: u32,
) -> Result<StagedChunk, IoError> {
    let mut stager = ledger.stager(shard, chunk);
    for input in inputs.read(generation.chunk_range(shard, chunk)).await? {
        stager.push(outcome(&input, pass, run))?;
    }
    stager.finish()
}

async fn read_failed(ledger: &Ledger) -> Result<Vec<FailedRow>, IoError> {
    let batches: Vec<_> = DatasetReader::new(ledger.output.clone(), Dataset::Failed).stream().try_collect().await?;
    Ok(batches.iter().map(failed_rows).collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
}

/// All objects and their bytes; timings, which differ from run to run, by name only. Records that name timings by
/// digest are compared without it.
async fn contents(store: &Arc<dyn ObjectStore>) -> BTreeMap<String, Bytes> {
    let output = OutputStore::with_store(Arc::clone(store), "memory:");
    let mut contents = BTreeMap::new();
    for object in store.list(None).try_collect::<Vec<_>>().await.unwrap() {
        let name = object.location.to_string();
        let mut bytes = output.get(&name).await.unwrap();
        if name.starts_with("timings/") {
            bytes = Bytes::new();
        } else if name.ends_with("/shard.json") {
            let mut entry: ShardEntry = serde_json::from_slice(&bytes).unwrap();
            entry.files.remove("timings");
            bytes = json(&entry).unwrap();
        }
        contents.insert(name, bytes);
    }
    contents
}

/// Rows are conserved, keys are unique over content, failed and skipped, and the records say what the files hold.
async fn check_sound(ledger: &Ledger, job: Job) {
    let success = Ledger::success(&ledger.output).await.unwrap().unwrap();
    let rows: u64 = job.rows.iter().sum();
    assert!(success.counts.conserved());
    assert_eq!(success.counts.inputs, rows);
    let mut keys = Vec::new();
    let mut flops = FlopSums::default();
    let content = DatasetReader::new(ledger.output.clone(), Dataset::Captions).stream();
    for batch in content.try_collect::<Vec<_>>().await.unwrap() {
        for row in content_rows(&batch).unwrap() {
            flops.add_row(&row.flops);
            keys.push(row.key);
        }
    }
    assert_eq!(keys.len() as u64, success.counts.ok);
    assert_eq!(flops, success.counts.flops);
    let failed = read_failed(ledger).await.unwrap();
    assert_eq!(failed.len() as u64, success.counts.failed);
    assert_eq!(failed.len() as u64, success.counts.failed_by_class.values().sum::<u64>());
    keys.extend(failed.into_iter().map(|row| row.key));
    let skipped = DatasetReader::new(ledger.output.clone(), Dataset::Skipped).stream();
    for batch in skipped.try_collect::<Vec<_>>().await.unwrap() {
        keys.extend(crate::skipped_rows(&batch).unwrap().into_iter().map(|row| row.key));
    }
    keys.sort();
    assert_eq!(keys, (0..rows).map(|number| entry(number).key).collect::<Vec<_>>());
    check_files(ledger).await;
}

/// The files that are there are the files that must be there, byte for byte.
async fn check_files(ledger: &Ledger) {
    let expected = ledger.files().await.unwrap();
    let mut there = Vec::new();
    for dataset in Dataset::ALL {
        there.extend(crate::dataset_parts(&ledger.output, *dataset).await.unwrap());
    }
    let mut names: Vec<_> = there.iter().map(|object| object.location.to_string()).collect();
    names.sort();
    assert_eq!(names, expected.keys().cloned().collect::<Vec<_>>());
    for file in expected.values() {
        assert_eq!(crate::sink::digest_of(&ledger.output, &file.name).await.unwrap(), file.sha256, "{}", file.name);
    }
}
