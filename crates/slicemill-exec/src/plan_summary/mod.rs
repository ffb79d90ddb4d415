//! What a job will take, from headers alone: no pixel is decoded and no weight is loaded.
//!
//! ```text
//!  inputs ─▶ first bytes ─▶ header ─▶ plan, costs ─┬─▶ totals: images, tokens, compute, bytes
//!             (more when the header asks)          └─▶ --measure: N images run in memory ─▶ time
//! ```
//!
//! Tokens and compute come from the same function that the run uses ([`slicemill_pipeline::planned_costs`]), so
//! planned visual tokens equal the run's, except for images whose damage shows only when their pixels are decoded:
//! those are planned and then fail.

mod sample;
mod text;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use futures::TryStreamExt;
use serde::{Deserialize, Serialize};
use slicemill_core::{TaskKind, TokenDtype};
use slicemill_io::{ColumnTypes, FlopSums, InputEntry, Ledger, Location, ObjectFetch, OutputStore, Source};
use slicemill_pipeline::{
    AnnotateSpec, BackendFactory, Fault, InputRef, Inspected, PlannedRow, PromptItem, inspect_kept,
};

use crate::ExecError;
use crate::freeze::{question_table, wanted_columns};
use crate::inputs::{fetch_of, source_of};
use crate::job::{Job, RunOptions};
use crate::nodes::{RowCondition, input_ref, items};
use crate::run::{annotate_spec, same_prompts};

pub use sample::{MeasuredRate, measure_rate};

/// First bytes that are read of an object. Most headers end within.
const PREFIX_BYTES: u64 = 64 << 10;
/// Prefixes that are read before giving up: each is at least twice the last.
const PREFIXES_MAX: u32 = 16;
/// Failed images that a summary names.
const EXAMPLES: usize = 5;
/// Objects read at once when nothing else is said.
const FETCHES_DEFAULT: usize = 16;

/// What a job will take.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct PlanSummary {
    /// What the job produces.
    pub task: String,
    /// Model.
    pub model: String,
    /// Slicing policy.
    pub policy: String,
    /// Listed objects that the job takes in.
    pub inputs: u64,
    /// Objects without a question, which the job leaves out.
    pub unasked: u64,
    /// Images with a plan.
    pub images: u64,
    /// Objects that are not images.
    pub skipped: u64,
    /// Images that will fail, by class.
    pub failed: BTreeMap<String, u64>,
    /// The first few of them: key and reason.
    pub failed_examples: Vec<String>,
    /// Images by number of slices (without the overview).
    pub slices: BTreeMap<u32, u64>,
    /// Views to encode: slices and overviews.
    pub views: u64,
    /// Visual tokens to encode, once per image.
    pub visual_tokens: u64,
    /// Content rows: one per image, or one per image and question.
    pub content_rows: u64,
    /// Sum of column `visual_tokens`; more than `visual_tokens` when images have several questions.
    pub visual_tokens_in_rows: u64,
    /// Sum of column `prompt_tokens`.
    pub prompt_tokens: u64,
    /// Output tokens when every row reaches the cap.
    pub output_tokens_max: u64,
    /// Compute by stage when every row reaches the cap.
    pub flops_max: FlopSums,
    /// Bytes of the inputs.
    pub input_bytes: u64,
    /// Shards; each has a file of content.
    pub shards: u64,
    /// Bytes of the output, an estimate.
    pub output_bytes_estimate: u64,
    /// How `output_bytes_estimate` is made.
    pub output_bytes_formula: String,
    /// The rate on this machine and the time it gives, when it was measured.
    pub measured: Option<MeasuredRate>,
}

// The constants below are fitted to outputs of some hundred rows; a test compares estimate and output.

/// Bytes of an image after compression: its hash, which does not compress, and its timings.
const IMAGE_BYTES: u64 = 45;
/// Names are much alike: what one letter in so many adds after compression.
const NAME_LETTERS_PER_BYTE: u64 = 8;
/// Bytes of the short values of a row after compression.
const ROW_BYTES: u64 = 10;
/// Bytes of an output token's text after compression.
const TEXT_BYTES: u64 = 1;
/// Bytes of a shard's footers: schema and statistics of four files.
const SHARD_BYTES: u64 = 15_000;

/// How output bytes are estimated.
fn output_bytes_formula(task: TaskKind) -> String {
    let fixed = format!(
        "{IMAGE_BYTES} + names / {NAME_LETTERS_PER_BYTE} per image, {ROW_BYTES} per row, {SHARD_BYTES} per shard"
    );
    match task {
        TaskKind::Encode => format!("visual tokens x width x bytes per value, {fixed}"),
        TaskKind::Caption | TaskKind::Ask => format!("{fixed}, {TEXT_BYTES} per output token at the cap"),
    }
}

impl PlanSummary {
    /// For people.
    pub fn to_text(&self) -> String {
        text::render(self)
    }
}

/// Plans `job` from the headers of its inputs. `fetches` objects are read at once.
///
/// # Errors
/// Those of inputs and questions, and when the model cannot count prompt tokens. An image that cannot be planned is
/// counted as failed.
pub async fn plan_job(
    job: &Job,
    factory: Arc<dyn BackendFactory>,
    options: &RunOptions,
) -> Result<PlanSummary, ExecError> {
    let source = planned_source(job, options).await?;
    plan_source(job, source.as_ref(), factory, options).await
}

/// The inputs of `job`, without what lies in its output when that holds a job already.
async fn planned_source(job: &Job, options: &RunOptions) -> Result<Arc<dyn Source>, ExecError> {
    let output = OutputStore::open(&Location::parse(&job.output)?, &options.stores).ok();
    let holds_job = match &output {
        Some(output) => Ledger::read_job(output).await?.is_some(),
        None => false,
    };
    source_of(job, options, output.as_ref().filter(|_| holds_job))
}

/// [`plan_job`] over any source.
///
/// # Errors
/// As [`plan_job`].
pub async fn plan_source(
    job: &Job,
    source: &dyn Source,
    factory: Arc<dyn BackendFactory>,
    options: &RunOptions,
) -> Result<PlanSummary, ExecError> {
    let mut summary = plan_first(job, source, u64::MAX, factory, options).await?;
    if summary.inputs == 0 {
        return Err(ExecError::NoInputs(job.inputs.join(", ")));
    }
    let row_bytes = summary.output_bytes_estimate as f64 / summary.inputs as f64;
    let chunks = job.shards.chunks(summary.inputs, job.chunk_rows, row_bytes);
    summary.shards = summary.inputs.div_ceil(u64::from(chunks) * u64::from(job.chunk_rows.max(1)));
    summary.output_bytes_estimate += SHARD_BYTES * summary.shards;
    Ok(summary)
}

/// Inputs whose headers say how many bytes of content an input becomes.
const INPUTS_OF_AN_ESTIMATE: u64 = 256;

/// Bytes of content that an input of `job` becomes, on average, as far as the headers of the first inputs tell.
pub(crate) async fn content_bytes_per_input(
    job: &Job,
    source: &dyn Source,
    factory: Arc<dyn BackendFactory>,
    options: &RunOptions,
) -> Result<f64, ExecError> {
    let summary = plan_first(job, source, INPUTS_OF_AN_ESTIMATE, factory, options).await?;
    Ok(summary.output_bytes_estimate as f64 / summary.inputs.max(1) as f64)
}

/// Plans the first `inputs_max` inputs of `job`, without what shards add.
async fn plan_first(
    job: &Job,
    source: &dyn Source,
    inputs_max: u64,
    factory: Arc<dyn BackendFactory>,
    options: &RunOptions,
) -> Result<PlanSummary, ExecError> {
    let planner = Arc::new(Planner::new(job, source, factory, options).await?);
    let mut summary = PlanSummary {
        task: job.task.as_str().to_owned(),
        model: job.model.clone(),
        policy: job.policy.name.clone(),
        output_bytes_formula: output_bytes_formula(job.task),
        ..PlanSummary::default()
    };
    let planned = source.list().map_err(ExecError::from).map_ok(|entry| {
        let planner = Arc::clone(&planner);
        async move { planner.plan(entry).await }
    });
    let mut planned = std::pin::pin!(planned.try_buffered(options.fetches.unwrap_or(FETCHES_DEFAULT).max(1)));
    while let Some(row) = planned.try_next().await? {
        planner.add(&mut summary, &row);
        if summary.inputs >= inputs_max {
            break;
        }
    }
    Ok(summary)
}

/// What became of one listed object.
struct PlannedInput {
    entry: InputEntry,
    fate: InputFate,
}

enum InputFate {
    Planned(Box<PlannedRow>),
    Skipped,
    Failed(slicemill_core::RowError),
    Unasked,
}

/// The types of the input columns that the condition of `job` names, from all its inputs.
async fn column_types(job: &Job, source: &dyn Source) -> Result<ColumnTypes, ExecError> {
    let mut types = ColumnTypes::new(wanted_columns(job)?);
    if job.select.filter.is_some() && !types.columns().is_empty() {
        let mut entries = source.list();
        while let Some(entry) = entries.try_next().await? {
            types.observe(entry.columns.as_deref())?;
        }
    }
    Ok(types)
}

struct Planner {
    spec: AnnotateSpec,
    fetch: ObjectFetch,
    condition: Option<Arc<RowCondition>>,
    factory: Arc<dyn BackendFactory>,
    same: Option<Arc<[PromptItem]>>,
    by_key: HashMap<String, Arc<[PromptItem]>>,
    token_bytes: u64,
}

impl Planner {
    async fn new(
        job: &Job,
        source: &dyn Source,
        factory: Arc<dyn BackendFactory>,
        options: &RunOptions,
    ) -> Result<Self, ExecError> {
        let by_key = match question_table(job, source, &options.stores).await? {
            Some(table) => table.iter().map(|(key, prompts)| (key.to_owned(), items(prompts))).collect(),
            None => HashMap::new(),
        };
        let value_bytes = match job.dtype {
            None => 0,
            Some(TokenDtype::F16) => 2,
            Some(TokenDtype::F32) => 4,
        };
        Ok(Self {
            spec: annotate_spec(job),
            fetch: fetch_of(options, job),
            condition: RowCondition::new(job.select.filter.as_deref(), &column_types(job, source).await?)?
                .map(Arc::new),
            token_bytes: value_bytes * u64::from(factory.card().width),
            factory,
            same: same_prompts(job)?,
            by_key,
        })
    }

    async fn plan(&self, entry: InputEntry) -> Result<PlannedInput, ExecError> {
        if let Some(condition) = &self.condition
            && condition.of_entries(std::slice::from_ref(&entry))? == [false]
        {
            return Ok(PlannedInput { entry, fate: InputFate::Skipped });
        }
        let prompts = match &self.same {
            Some(same) => Arc::clone(same),
            None => match self.by_key.get(&entry.key) {
                Some(prompts) => Arc::clone(prompts),
                None => return Ok(PlannedInput { entry, fate: InputFate::Unasked }),
            },
        };
        let row = input_ref(entry.clone(), prompts);
        let fate = self.look(&entry, &row).await?;
        Ok(PlannedInput { entry, fate })
    }

    /// Reads as much of the object as its header needs.
    async fn look(&self, entry: &InputEntry, row: &InputRef) -> Result<InputFate, ExecError> {
        let filter = RowCondition::filter(self.condition.as_ref());
        let mut wanted = PREFIX_BYTES;
        for _ in 0..PREFIXES_MAX {
            let prefix = match self.fetch.read_prefix(entry, wanted).await {
                Ok(prefix) => prefix,
                Err(error) => return Ok(InputFate::Failed(error.row_error())),
            };
            let ended = (prefix.len() as u64) < wanted;
            let total = match entry.estimated {
                true if ended => prefix.len() as u64,
                true => u64::MAX,
                false => entry.bytes,
            };
            match inspect_kept(&prefix, total, row, &self.spec, self.factory.as_ref(), filter.as_deref()) {
                Ok(Inspected::Planned { row, .. }) => return Ok(InputFate::Planned(Box::new(row))),
                Ok(Inspected::Skipped(_)) => return Ok(InputFate::Skipped),
                Ok(Inspected::NeedMore { bytes }) => wanted = bytes.max(wanted.saturating_mul(2)),
                Err(Fault::Row(error)) => return Ok(InputFate::Failed(error)),
                Err(Fault::Fatal(message)) => return Err(slicemill_pipeline::PipelineError::Fatal(message).into()),
            }
        }
        Ok(InputFate::Failed(slicemill_core::RowError::new(
            slicemill_core::ErrorClass::BadHeader,
            slicemill_core::Stage::Header,
            format!("the header of {} does not end", entry.url),
        )))
    }

    fn add(&self, summary: &mut PlanSummary, planned: &PlannedInput) {
        if matches!(planned.fate, InputFate::Unasked) {
            summary.unasked += 1;
            return;
        }
        summary.inputs += 1;
        summary.input_bytes += planned.entry.bytes;
        match &planned.fate {
            InputFate::Unasked => {}
            InputFate::Skipped => summary.skipped += 1,
            InputFate::Failed(error) => {
                *summary.failed.entry(error.class.as_str().to_owned()).or_default() += 1;
                if summary.failed_examples.len() < EXAMPLES {
                    summary.failed_examples.push(format!("{}: {error}", planned.entry.key));
                }
            }
            InputFate::Planned(row) => self.add_image(summary, &planned.entry, row),
        }
    }

    fn add_image(&self, summary: &mut PlanSummary, entry: &InputEntry, row: &PlannedRow) {
        let encodes = self.spec.task == TaskKind::Encode;
        let rows = if encodes { 1 } else { row.prompt_tokens.len() as u64 };
        let tokens = u64::from(row.visual_tokens);
        let cap = u64::from(self.spec.generation.max_new_tokens);
        let room = |prompt: &u32| u64::from(self.factory.card().context_tokens_max.saturating_sub(*prompt));
        let output: u64 = row.prompt_tokens.iter().map(|prompt| cap.min(room(prompt))).sum();
        summary.images += 1;
        *summary.slices.entry(row.plan.slices()).or_default() += 1;
        summary.views += u64::from(row.plan.view_count());
        summary.visual_tokens += tokens;
        summary.content_rows += rows;
        summary.visual_tokens_in_rows += tokens * rows;
        summary.prompt_tokens += row.prompt_tokens.iter().map(|tokens| u64::from(*tokens)).sum::<u64>();
        summary.output_tokens_max += output;
        summary.flops_max.add_row(&row.flops_max);
        let names = (entry.key.len() + entry.url.len()) as u64 / NAME_LETTERS_PER_BYTE;
        summary.output_bytes_estimate +=
            IMAGE_BYTES + names + ROW_BYTES * rows + TEXT_BYTES * output + tokens * self.token_bytes;
    }
}
