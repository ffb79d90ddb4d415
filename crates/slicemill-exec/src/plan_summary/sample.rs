//! A rate measured on this machine: a few images through the whole dataflow, into memory.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use serde::{Deserialize, Serialize};
use slicemill_core::TaskKind;
use slicemill_io::{InputEntry, IoError, OutputStore, Source};
use slicemill_pipeline::BackendFactory;

use crate::freeze::question_table;
use crate::job::{Job, RunOptions, ShardSize};
use crate::run::run_in;
use crate::{ExecError, StopSignal};

use super::{PlanSummary, planned_source};

/// A measured rate and what follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MeasuredRate {
    /// Objects that were run.
    pub rows: u64,
    /// Images among them with content.
    pub images: u64,
    /// Slices of these images, without overviews.
    pub slices: u64,
    /// Time they took, models loaded, seconds.
    pub elapsed_s: f64,
    /// Images per second.
    pub images_per_s: f64,
    /// Views (slices and overviews) per second.
    pub views_per_s: f64,
    /// Time for the views of the whole job at this rate, seconds.
    pub job_s: f64,
}

/// Runs `count` inputs of `job`, spread evenly over the list, and says how long all of `summary` would take at the
/// same views per second. Nothing is written anywhere.
///
/// # Errors
/// As a run's; and when none of the sampled images has content.
pub async fn measure_rate(
    job: &Job,
    summary: &PlanSummary,
    count: u64,
    options: &RunOptions,
    factory: Arc<dyn BackendFactory>,
    stop: StopSignal,
) -> Result<MeasuredRate, ExecError> {
    let source = planned_source(job, options).await?;
    let asked = question_table(job, source.as_ref(), &options.stores).await?.map(|table| table.keys());
    let entries = spread(source.as_ref(), asked.as_ref(), summary.inputs, count).await?;
    let sample = Sample { entries };
    // In small jobs one chunk per device would leave devices idle that a large job keeps busy.
    let chunks = 2 * options.devices.len().max(1);
    let chunk_rows = u32::try_from(sample.entries.len().div_ceil(chunks)).unwrap_or(u32::MAX);
    let chunk_rows = chunk_rows.clamp(1, job.chunk_rows);
    let mut job = Job { chunk_rows, shards: ShardSize::Rows(chunk_rows), ..job.clone() };
    restrict_questions(&mut job, summary);
    let output = OutputStore::with_store(Arc::new(InMemory::new()), "memory:///sample");
    let run = run_in(&job, &output, &sample, options, factory, stop, Arc::new(())).await?;
    let counts = &run.total;
    // Every content row of an image repeats its slices.
    let questions = counts.content_rows.max(1) as f64 / counts.ok.max(1) as f64;
    let slices = (counts.slices as f64 / questions).round() as u64;
    let views = slices + counts.ok;
    let elapsed_s = run.elapsed.as_secs_f64();
    if counts.ok == 0 || elapsed_s <= 0.0 {
        return Err(ExecError::Incomplete(format!(
            "none of the {} sampled objects became content, so there is no rate; sample more of them",
            sample.entries.len()
        )));
    }
    let views_per_s = views as f64 / elapsed_s;
    Ok(MeasuredRate {
        rows: counts.inputs,
        images: counts.ok,
        slices,
        elapsed_s,
        images_per_s: counts.ok as f64 / elapsed_s,
        views_per_s,
        job_s: summary.views as f64 / views_per_s,
    })
}

/// A few inputs that are known by name.
struct Sample {
    entries: Vec<InputEntry>,
}

impl Source for Sample {
    fn list(&self) -> BoxStream<'static, Result<InputEntry, IoError>> {
        futures::stream::iter(self.entries.clone().into_iter().map(Ok)).boxed()
    }

    fn describe(&self) -> String {
        format!("a sample of {} inputs", self.entries.len())
    }
}

/// `count` of the `inputs` entries, spread evenly.
async fn spread(
    source: &dyn Source,
    asked: Option<&std::collections::HashSet<String>>,
    inputs: u64,
    count: u64,
) -> Result<Vec<InputEntry>, ExecError> {
    let count = count.clamp(1, inputs.max(1));
    let wanted: BTreeSet<u64> = (0..count).map(|number| number * inputs / count).collect();
    let mut entries = Vec::new();
    let mut at = 0;
    let mut listing = source.list();
    while let Some(entry) = listing.try_next().await? {
        if asked.is_some_and(|asked| !asked.contains(&entry.key)) {
            continue;
        }
        if wanted.contains(&at) {
            entries.push(entry);
        }
        at += 1;
    }
    Ok(entries)
}

/// A questions file names keys that are not in the sample, which a job refuses; a sample asks as many questions per
/// image, of its own.
fn restrict_questions(job: &mut Job, summary: &PlanSummary) {
    let per_image = summary.content_rows.div_ceil(summary.images.max(1));
    if let Some(questions) = job.questions.as_mut().filter(|_| job.task == TaskKind::Ask)
        && questions.file.take().is_some()
    {
        questions.ask = (0..per_image.max(1)).map(|_| "What is in the image?".to_owned()).collect();
        questions.template = crate::questions::TEMPLATE_DEFAULT.to_owned();
    }
}
