//! What an output holds: rows, failures, slices, tokens, compute, sizes, and how long it took.
//!
//! Everything is computed from the files of the output, so that every figure can be computed again with SQL. The data
//! ([`Report`]) is apart from its forms; JSON is its serde form, text is [`Report::to_text`].

mod text;
mod timings;

use std::collections::BTreeMap;

use futures::TryStreamExt;
use serde::{Deserialize, Serialize};
use slicemill_core::TaskKind;
use slicemill_io::{
    Counts, Dataset, DatasetReader, Ledger, OutputStore, Stores, content_rows, dataset_parts, failed_rows, skipped_rows,
};

use crate::ExecError;
use crate::freeze::FrozenJob;
use crate::job::Job;
use crate::nodes::committed;
use crate::run::RunRecord;

pub use timings::{DeviceTimes, Timings};

/// Failed rows shown per class.
const EXAMPLES: usize = 3;

/// What an output holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// URL of the output.
    pub output: String,
    /// Whether the job is complete. If not, finished shards are reported.
    pub complete: bool,
    /// The job: task, inputs, policy, prompts, generation.
    pub job: Job,
    /// Fingerprint of the job.
    pub fingerprint: String,
    /// Input rows frozen.
    pub inputs: u64,
    /// Generations of inputs.
    pub generations: u64,
    /// Retry passes.
    pub retries: u64,
    /// Counts and sums of what is committed.
    pub counts: Counts,
    /// The first few failed rows of each class.
    pub failed: BTreeMap<String, Vec<FailedExample>>,
    /// The first few skipped rows.
    pub skipped: Vec<String>,
    /// Images by number of slices (without the overview).
    pub slices: BTreeMap<u32, u64>,
    /// Images by format.
    pub formats: BTreeMap<String, u64>,
    /// Visual tokens encoded, once per image.
    pub visual_tokens_encoded: u64,
    /// Content rows by finish reason.
    pub finish_reasons: BTreeMap<String, u64>,
    /// Files and bytes by dataset.
    pub sizes: BTreeMap<String, DatasetSize>,
    /// Wall clock by stage and device.
    pub timings: Timings,
    /// Runs that ended by themselves, oldest first.
    pub runs: Vec<RunRecord>,
}

/// A failed row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedExample {
    /// Key.
    pub key: String,
    /// Stage.
    pub stage: String,
    /// Message.
    pub message: String,
}

/// Size of a dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DatasetSize {
    /// Files.
    pub files: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Report {
    /// For people.
    pub fn to_text(&self) -> String {
        text::render(self)
    }
}

/// Reads the output in `location`.
///
/// # Errors
/// When there is no job, or a file cannot be read.
pub async fn read_report(location: &str, stores: &Stores) -> Result<Report, ExecError> {
    let (output, job) = FrozenJob::open(location, stores).await?;
    let ledger = job.ledger(&output);
    let generations = ledger.generations().await?;
    let success = Ledger::success(&output).await?;
    let counts = match &success {
        Some(success) => success.counts.clone(),
        None => committed(&ledger.state().await?),
    };
    let mut report = Report {
        output: output.url().to_owned(),
        complete: success.is_some(),
        fingerprint: job.fingerprint.clone(),
        inputs: generations.iter().map(|generation| generation.rows).sum(),
        generations: generations.len() as u64,
        retries: ledger.retries().await?.len() as u64,
        counts,
        failed: BTreeMap::new(),
        skipped: Vec::new(),
        slices: BTreeMap::new(),
        formats: BTreeMap::new(),
        visual_tokens_encoded: 0,
        finish_reasons: BTreeMap::new(),
        sizes: sizes(&output).await?,
        timings: timings::read(&output).await?,
        runs: RunRecord::read_all(&output).await?,
        job: job.job,
    };
    add_content(&output, &mut report).await?;
    add_rejected(&output, &mut report).await?;
    Ok(report)
}

async fn sizes(output: &OutputStore) -> Result<BTreeMap<String, DatasetSize>, ExecError> {
    let mut sizes = BTreeMap::new();
    for dataset in Dataset::ALL {
        let parts = dataset_parts(output, *dataset).await?;
        if !parts.is_empty() {
            let bytes = parts.iter().map(|part| part.size).sum();
            sizes.insert(dataset.name().to_owned(), DatasetSize { files: parts.len() as u64, bytes });
        }
    }
    Ok(sizes)
}

/// What the columns of the content say; of an image with several questions only the first row counts as the image.
async fn add_content(output: &OutputStore, report: &mut Report) -> Result<(), ExecError> {
    const COLUMNS: &[&str] = &["key", "format", "slices", "visual_tokens", "finish_reason"];
    let dataset = Dataset::of_task(report.job.task);
    let mut batches = DatasetReader::new(output.clone(), dataset).with_columns(COLUMNS).stream();
    let mut last_key = String::new();
    while let Some(batch) = batches.try_next().await? {
        for row in content_rows(&batch)? {
            if report.job.task != TaskKind::Encode {
                *report.finish_reasons.entry(row.finish_reason).or_default() += 1;
            }
            if row.key == last_key {
                continue;
            }
            *report.slices.entry(row.slices).or_default() += 1;
            *report.formats.entry(row.format).or_default() += 1;
            report.visual_tokens_encoded += u64::from(row.visual_tokens);
            last_key = row.key;
        }
    }
    Ok(())
}

async fn add_rejected(output: &OutputStore, report: &mut Report) -> Result<(), ExecError> {
    let mut batches = DatasetReader::new(output.clone(), Dataset::Failed).stream();
    while let Some(batch) = batches.try_next().await? {
        for row in failed_rows(&batch)? {
            let examples = report.failed.entry(row.error.class.as_str().to_owned()).or_default();
            if examples.len() < EXAMPLES {
                let stage = row.error.stage.as_str().to_owned();
                examples.push(FailedExample { key: row.key, stage, message: row.error.message });
            }
        }
    }
    let mut batches = DatasetReader::new(output.clone(), Dataset::Skipped).stream();
    while report.skipped.len() < EXAMPLES
        && let Some(batch) = batches.try_next().await?
    {
        let room = EXAMPLES - report.skipped.len();
        report.skipped.extend(skipped_rows(&batch)?.into_iter().take(room).map(|row| row.key));
    }
    Ok(())
}
