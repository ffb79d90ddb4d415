//! Proving an output: everything is read again and compared with the frozen inputs, the job, and the ledger.
//!
//! ```text
//!  job.json ─────▶ fingerprint
//!  ledger ───────▶ shards = sum of their chunks ─▶ _SUCCESS
//!  files ────────▶ there, no others, size, SHA-256, schema
//!  inputs ─┐
//!          ├─▶ every key once in content, failed or skipped ─▶ rows in = ok + failed + skipped
//!  rows ───┴─▶ planned again from width, height and policy: grid, slices, visual tokens, compute
//!          └─▶ sums of the columns = _SUCCESS
//! ```
//!
//! Nothing is sorted; a 128-bit hash of every key is held in memory.

mod check;
mod content;
mod files;
mod keys;

use std::sync::Arc;

use futures::TryStreamExt;
use serde::{Deserialize, Serialize};
use slicemill_core::TaskKind;
use slicemill_io::{
    Counts, Dataset, DatasetReader, FrozenInputs, Ledger, OutputStore, Stores, Success, failed_rows, skipped_rows,
};

use crate::ExecError;
use crate::freeze::FrozenJob;
use crate::nodes::Prompts;
use crate::questions::FrozenQuestions;
use crate::run::same_prompts;

use check::Finding;
use content::ContentCheck;
use keys::{Keys, Seen};

/// One proven, or refuted, statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// The statement.
    pub name: String,
    /// Whether it holds.
    pub ok: bool,
    /// The figures that say so.
    pub evidence: String,
    /// What is wrong, the first few things by name.
    pub wrong: Vec<String>,
}

/// All checks of an output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    /// URL of the output.
    pub output: String,
    /// The checks, in order.
    pub checks: Vec<Check>,
}

impl Verification {
    /// Whether everything holds.
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|check| check.ok)
    }

    /// For people.
    pub fn to_text(&self) -> String {
        let mut text = format!("{}\n", self.output);
        let width = self.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
        for check in &self.checks {
            let mark = if check.ok { "ok    " } else { "FAILED" };
            text.push_str(&format!("  {mark} {:<width$}  {}\n", check.name, check.evidence));
            for wrong in &check.wrong {
                text.push_str(&format!("         {wrong}\n"));
            }
        }
        text.push_str(if self.passed() { "verified\n" } else { "NOT VERIFIED\n" });
        text
    }
}

/// Reads the output in `location` again and checks everything it should be.
///
/// # Errors
/// When there is no job, or its records cannot be read at all. What is wrong with the output itself is a check that
/// does not hold.
pub async fn verify_output(location: &str, stores: &Stores) -> Result<Verification, ExecError> {
    let (output, job) = FrozenJob::open(location, stores).await?;
    let ledger = job.ledger(&output);
    let mut checks = vec![fingerprint(&job)];
    let success = Ledger::success(&output).await?;
    checks.push(complete(&ledger, success.as_ref()).await?);
    checks.extend(files::check(&output, &job, &ledger).await?);
    if let Some(success) = success {
        checks.push(shards(&ledger, &success).await?);
        checks.extend(rows(&output, &job, &ledger, &success).await?);
    }
    Ok(Verification { output: output.url().to_owned(), checks })
}

fn fingerprint(job: &FrozenJob) -> Check {
    let mut finding = Finding::new("job.json is the job its fingerprint says");
    let now = job.job.fingerprint();
    finding
        .expect(now == job.fingerprint, || format!("the job hashes to {now}, the fingerprint is {}", job.fingerprint));
    let (card, named) = (&job.card.fingerprint, &job.job.model_fingerprint);
    finding.expect(card == named, || format!("the model card has fingerprint {card}, the job names {named}"));
    finding.done(job.fingerprint.clone())
}

async fn complete(ledger: &Ledger, success: Option<&Success>) -> Result<Check, ExecError> {
    let mut finding = Finding::new("the job is complete");
    let generations = ledger.generations().await?;
    let shards: u32 = generations.iter().map(|generation| generation.shards().len() as u32).sum();
    let Some(success) = success else {
        let state = ledger.state().await?;
        let done = crate::nodes::committed(&state).inputs;
        let rows: u64 = generations.iter().map(|generation| generation.rows).sum();
        finding.wrong(|| "there is no _SUCCESS; run the job again to go on".to_owned());
        return Ok(finding.done(format!("{done} of {rows} rows, {} of {shards} shards", state.shards.len())));
    };
    let (said, frozen) = ((success.generations, success.shards), (generations.len() as u32, shards));
    finding.expect(said == frozen, || format!("_SUCCESS has (generations, shards) {said:?}, the ledger {frozen:?}"));
    for pass in ledger.retries().await? {
        finding.expect(pass.done, || format!("retry {} is not finished", pass.number));
    }
    Ok(finding.done(format!("{} generations, {shards} shards, {} retries", generations.len(), success.retries)))
}

/// Shards are the sums of their chunks, and without retries `_SUCCESS` is the sum of the shards.
async fn shards(ledger: &Ledger, success: &Success) -> Result<Check, ExecError> {
    let mut finding = Finding::new("ledger entries add up");
    let state = ledger.state().await?;
    let mut total = Counts::default();
    for (number, shard) in &state.shards {
        let mut sum = Counts::default();
        shard.chunks.iter().for_each(|chunk| sum.add(chunk));
        finding.expect(sum == shard.counts, || format!("shard {number} is not the sum of its chunks"));
        finding.expect(shard.counts.conserved(), || format!("shard {number} does not conserve its rows"));
        total.add(&shard.counts);
    }
    if success.retries == 0 {
        finding.expect(total == success.counts, || "_SUCCESS is not the sum of the shards".to_owned());
    }
    finding.expect(success.counts.conserved(), || "_SUCCESS does not conserve its rows".to_owned());
    let counts = &success.counts;
    Ok(finding
        .done(format!("{} = {} ok + {} failed + {} skipped", counts.inputs, counts.ok, counts.failed, counts.skipped)))
}

/// Everything that needs the rows.
async fn rows(
    output: &OutputStore,
    job: &FrozenJob,
    ledger: &Ledger,
    success: &Success,
) -> Result<Vec<Check>, ExecError> {
    let lists = input_lists(ledger).await?;
    let mut inputs = Finding::new("keys of inputs are unique");
    let mut keys = Keys::default();
    for list in &lists {
        let mut entries = list.stream();
        while let Some(entry) = entries.try_next().await? {
            let new = keys.add_input(&entry.key);
            inputs.expect(new, || format!("{} is an input twice", entry.key));
        }
    }
    let inputs = inputs.done(format!("{} inputs", keys.len()));
    let mut content = ContentCheck::new(job, expected_prompts(output, job, ledger).await?);
    let mut batches = DatasetReader::new(output.clone(), Dataset::of_task(job.job.task)).stream();
    while let Some(batch) = read(&mut content.read, batches.try_next().await) {
        content.batch(&batch, &mut keys).await?;
    }
    content.finish(&mut keys).await?;
    rejected(output, &mut content, &mut keys).await?;
    let mut conserved = Finding::new("every input is content, failed or skipped, once");
    conserved.take(keys.wrong());
    if keys.unseen() > 0 {
        name_unseen(&lists, &keys, &mut conserved).await?;
    }
    let evidence = format!("{} inputs, {} without a row", keys.len(), keys.unseen());
    let mut checks = vec![inputs, conserved.done(evidence)];
    checks.extend(content.into_checks(success));
    Ok(checks)
}

/// Failed and skipped rows: their keys, and their counts.
async fn rejected(output: &OutputStore, content: &mut ContentCheck<'_>, keys: &mut Keys) -> Result<(), ExecError> {
    let mut batches = DatasetReader::new(output.clone(), Dataset::Failed).stream();
    while let Some(batch) = read(&mut content.read, batches.try_next().await) {
        for row in failed_rows(&batch)? {
            keys.see(&row.key, Seen::Failed);
            content.sums.inputs += 1;
            content.sums.failed += 1;
            *content.sums.failed_by_class.entry(row.error.class.as_str().to_owned()).or_default() += 1;
        }
    }
    let mut batches = DatasetReader::new(output.clone(), Dataset::Skipped).stream();
    while let Some(batch) = read(&mut content.read, batches.try_next().await) {
        for row in skipped_rows(&batch)? {
            keys.see(&row.key, Seen::Skipped);
            content.sums.inputs += 1;
            content.sums.skipped += 1;
        }
    }
    Ok(())
}

/// The next batch; a file that cannot be read is a finding, and ends its dataset.
fn read<T>(finding: &mut Finding, next: Result<Option<T>, slicemill_io::IoError>) -> Option<T> {
    match next {
        Ok(batch) => batch,
        Err(error) => {
            finding.wrong(|| error.to_string());
            None
        }
    }
}

async fn input_lists(ledger: &Ledger) -> Result<Vec<FrozenInputs>, ExecError> {
    let mut lists = Vec::new();
    for generation in ledger.generations().await? {
        lists.push(ledger.inputs(&generation).await?);
    }
    Ok(lists)
}

async fn name_unseen(lists: &[FrozenInputs], keys: &Keys, finding: &mut Finding) -> Result<(), ExecError> {
    for list in lists {
        let mut entries = list.stream();
        while let Some(entry) = entries.try_next().await? {
            finding.expect(keys.is_seen(&entry.key), || format!("{} has no row", entry.key));
        }
    }
    Ok(())
}

/// The prompts that every image must have rows for; none for other tasks than ask.
async fn expected_prompts(
    output: &OutputStore,
    job: &FrozenJob,
    ledger: &Ledger,
) -> Result<Option<Prompts>, ExecError> {
    if job.job.task != TaskKind::Ask {
        return Ok(None);
    }
    if let Some(same) = same_prompts(&job.job)? {
        return Ok(Some(Prompts::Same(Arc::clone(&same))));
    }
    let mut files = Vec::new();
    for generation in ledger.generations().await? {
        files.push(FrozenQuestions::open(output, generation.number).await?);
    }
    Ok(Some(Prompts::Frozen(files)))
}
