//! Freezing a job into its output, and the check that a later run is the same job.
//!
//! ```text
//!  no job.json ─▶ questions, inputs of generation 0 ─▶ job.json ─▶ record of generation 0 ─▶ run
//!  job.json ────▶ same job? ──no──▶ error that shows the difference
//!                    │ yes
//!                    ▼
//!                 same inputs and questions? ──only new ones, and --extend──▶ next generation ─▶ run
//!                    │ yes                    ──else──▶ error that shows the difference
//!                    ▼
//!                 resume, or nothing to do
//! ```
//!
//! Every step may be cut off: the record of a generation is written last, and what was written before it is written
//! again by the next run.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use slicemill_core::{ModelCard, TaskKind, TokenDtype};
use slicemill_io::{
    ColumnTypes, ContentSpec, FrozenInputs, Generation, InputEntry, InputsChange, IoError, IoErrorKind, Ledger,
    Location, ObjectFetch, OutputStore, RetryBudget, Source, Stores, added_inputs, compare_inputs,
};
use slicemill_pipeline::BackendFactory;

use crate::ExecError;
use crate::condition::{Condition, input_columns_of};
use crate::job::{Difference, Job, Part, RunOptions, diff};
use crate::plan_summary::content_bytes_per_input;
use crate::questions::{FrozenQuestions, QuestionTable, QuestionsDigest, Template, read_questions};

/// Inputs as a source lists them.
type Listing = BoxStream<'static, Result<InputEntry, IoError>>;

/// Version of `job.json`.
pub const JOB_FORMAT: u32 = 3;

/// The contents of `_slicemill/job.json`: a job with everything that commands about its output need to know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FrozenJob {
    /// Version of this format.
    pub format: u32,
    /// Version of slicemill that froze it, for people.
    pub slicemill: String,
    /// What the content depends on besides the inputs, hashed.
    pub fingerprint: String,
    /// The job.
    pub job: Job,
    /// The model as planning sees it.
    pub card: ModelCard,
    /// The columns of the input that are kept or filtered by, with their types.
    #[serde(default)]
    pub columns: ColumnTypes,
}

impl FrozenJob {
    /// The frozen form of `job` for the model of `card`, over inputs with these columns.
    pub fn new(job: &Job, card: &ModelCard, columns: ColumnTypes) -> Self {
        Self {
            format: JOB_FORMAT,
            slicemill: env!("CARGO_PKG_VERSION").to_owned(),
            fingerprint: job.fingerprint(),
            job: job.clone(),
            card: card.clone(),
            columns,
        }
    }

    /// Reads the job of an output, `None` when there is none.
    ///
    /// # Errors
    /// Those of the store, and when the file cannot be understood.
    pub async fn read(output: &OutputStore) -> Result<Option<Self>, ExecError> {
        let Some(bytes) = Ledger::read_job(output).await? else { return Ok(None) };
        let corrupt =
            |message: String| ExecError::Corrupt { name: format!("{}/_slicemill/job.json", output.url()), message };
        // The format first: another one has other fields.
        let Versioned { format } = serde_json::from_slice(&bytes).map_err(|error| corrupt(error.to_string()))?;
        if format != JOB_FORMAT {
            return Err(corrupt(format!(
                "it has format {format}, this program knows {JOB_FORMAT}; go on with the version that wrote it, or \
                 choose another output"
            )));
        }
        serde_json::from_slice(&bytes).map(Some).map_err(|error| corrupt(error.to_string()))
    }

    /// Reads the job in `location`, a folder that a job wrote to.
    ///
    /// # Errors
    /// Those of the store, and when there is no job.
    pub async fn open(location: &str, stores: &Stores) -> Result<(OutputStore, Self), ExecError> {
        let output = OutputStore::open(&Location::parse(location)?, stores)?;
        match Self::read(&output).await? {
            Some(frozen) => Ok((output, frozen)),
            None => Err(ExecError::NotAnOutput(location.to_owned())),
        }
    }

    /// The ledger of this job in `output`.
    pub fn ledger(&self, output: &OutputStore) -> Ledger {
        let metadata = [("slicemill.job", &self.fingerprint), ("slicemill.model", &self.job.model_fingerprint)];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value.clone())).to_vec();
        Ledger::new(output.clone(), self.content_spec(), metadata)
    }

    /// What of the job the content schema depends on.
    pub fn content_spec(&self) -> ContentSpec {
        ContentSpec {
            task: self.job.task,
            token_ids: self.job.token_ids,
            token_dtype: self.job.dtype.unwrap_or(TokenDtype::F32),
            token_width: self.card.width,
            model_fingerprint: self.job.model_fingerprint.clone(),
            // Those that rows are filtered by as well: a failed row is asked the condition again when it is retried.
            input: self.columns.clone(),
        }
    }

    fn to_json(&self) -> Result<Bytes, ExecError> {
        let mut text = serde_json::to_string_pretty(self)
            .map_err(|error| ExecError::Corrupt { name: "job.json".to_owned(), message: error.to_string() })?;
        text.push('\n');
        Ok(text.into())
    }
}

/// What every format of `job.json` has.
#[derive(Deserialize)]
struct Versioned {
    format: u32,
}

/// How a job differs from the one that an output holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Different {
    /// The output.
    pub output: String,
    /// Choices that differ.
    pub fields: Vec<Difference>,
    /// Inputs that differ.
    pub inputs: Option<InputsChange>,
    /// Questions that differ, in words.
    pub questions: Option<(String, String)>,
    /// Whether `--extend` would take the new inputs in.
    pub extend: bool,
}

impl std::fmt::Display for Different {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} holds a different job:", self.output)?;
        for difference in &self.fields {
            write!(f, "\n  {difference}")?;
        }
        if let Some(change) = &self.inputs {
            write!(f, "\n  inputs: {} as before", change.unchanged)?;
            let kinds = [("new", change.added), ("missing", change.removed), ("changed", change.changed)];
            for ((kind, count), examples) in kinds.into_iter().zip(&change.examples) {
                if count > 0 {
                    write!(
                        f,
                        ", {count} {kind} ({}{})",
                        examples.join(", "),
                        if count > examples.len() as u64 { ", …" } else { "" }
                    )?;
                }
            }
        }
        if let Some((was, now)) = &self.questions {
            write!(f, "\n  questions: was {was}, now {now}")?;
        }
        let extend = if self.extend { ", or add --extend to take the new inputs in" } else { "" };
        write!(f, "\nchoose another output{extend}")
    }
}

impl std::error::Error for Different {}

/// A job that is ready to run in its output.
#[derive(Debug, Clone)]
pub struct Frozen {
    /// The frozen job.
    pub job: FrozenJob,
    /// Its ledger.
    pub ledger: Ledger,
    /// Its generations, in order.
    pub generations: Vec<Generation>,
    /// Frozen questions by generation; empty unless the job has a questions file.
    pub questions: Vec<FrozenQuestions>,
    /// Inputs that are left out because no question is about them.
    pub unasked: u64,
}

/// Freezes `job` into `output`, or checks that it is the job that is frozen there.
///
/// # Errors
/// [`ExecError::Different`] when it is another job or other inputs; errors of inputs, questions and stores.
pub async fn freeze(
    job: &Job,
    factory: &Arc<dyn BackendFactory>,
    output: &OutputStore,
    source: &dyn Source,
    options: &RunOptions,
) -> Result<Frozen, ExecError> {
    let (extend, part) = (options.extend, options.part);
    let existing = FrozenJob::read(output).await?;
    if let Some(existing) = &existing {
        let fields = diff(&existing.job, job);
        if !fields.is_empty() {
            return Err(different(output, Different { fields, ..Different::nothing() }));
        }
    }
    let mut asked = Asked::load(job, source, &options.stores).await?;
    let job_json = match existing {
        Some(existing) => existing,
        None => return freeze_first(job, factory, output, source, &asked, options).await,
    };
    let ledger = job_json.ledger(output);
    match part {
        None => ledger.recover().await?,
        Some(part) => ledger.recover_part(move |shard| part.has(shard)).await?,
    }
    if ledger.retries().await?.last().is_some_and(|pass| !pass.done) {
        let url = output.url();
        return Err(ExecError::Incomplete(format!(
            "a retry of {url} was interrupted; run `slicemill retry` on it first"
        )));
    }
    let mut generations = ledger.generations().await?;
    let mut questions = Vec::new();
    if asked.table.is_some() {
        for generation in &generations {
            questions.push(FrozenQuestions::open(output, generation.number).await?);
        }
    }
    let mut lists = Vec::new();
    for generation in &generations {
        lists.push(ledger.inputs(generation).await?);
    }
    let new = match generations.len() {
        0 => asked.list(source),
        _ => match check_same(output, &lists, &questions, &mut asked, source, extend).await? {
            false => return Ok(Frozen { job: job_json, ledger, generations, questions, unasked: asked.unasked }),
            true => added_inputs(&lists, asked.list(source)),
        },
    };
    questions.extend(asked.freeze(output, generations.len()).await?);
    let seen = Arc::new(Mutex::new(job_json.columns.clone()));
    let number = u32::try_from(generations.len()).unwrap_or(u32::MAX);
    let new = ledger.write_inputs(number, observed(new, &seen), job.chunk_rows, writer_of(part).as_deref()).await?;
    source.check().map_err(of_inputs)?;
    let now = taken(&seen);
    if now != job_json.columns {
        return Err(ExecError::Incomplete(format!(
            "columns of the new inputs have other types than those of the inputs before: was {}, now {}; mend the new \
             inputs, or start a new output for them",
            job_json.columns, now
        )));
    }
    let shard_chunks = shard_chunks(job, new.rows(), source, factory, options).await?;
    generations.push(ledger.record_inputs(new, shard_chunks).await?);
    Ok(Frozen { job: job_json, ledger, generations, questions, unasked: asked.unasked })
}

/// Freezes a job into an output that holds none: inputs, then the job, then the record that makes both stand. The
/// inputs are listed first because the job says what types their columns have.
async fn freeze_first(
    job: &Job,
    factory: &Arc<dyn BackendFactory>,
    output: &OutputStore,
    source: &dyn Source,
    asked: &Asked,
    options: &RunOptions,
) -> Result<Frozen, ExecError> {
    let mut frozen = FrozenJob::new(job, factory.card(), ColumnTypes::new(wanted_columns(job)?));
    let questions = asked.freeze(output, 0).await?.into_iter().collect();
    let seen = Arc::new(Mutex::new(frozen.columns.clone()));
    let listing = observed(asked.list(source), &seen);
    let new = frozen.ledger(output).write_inputs(0, listing, job.chunk_rows, writer_of(options.part).as_deref()).await;
    let new = new.map_err(of_inputs)?;
    source.check().map_err(of_inputs)?;
    if new.rows() == 0 {
        return Err(ExecError::NoInputs(job.inputs.join(", ")));
    }
    frozen.columns = taken(&seen);
    // A condition that cannot be asked is a mistake in the command: it is found before the job stands.
    if let Some(text) = &job.select.filter {
        Condition::new(text, &frozen.columns.fields())?;
    }
    let shard_chunks = shard_chunks(job, new.rows(), source, factory, options).await?;
    let ledger = frozen.ledger(output);
    ledger.write_job(frozen.to_json()?).await?;
    let generations = vec![ledger.record_inputs(new, shard_chunks).await?];
    Ok(Frozen { job: frozen, ledger, generations, questions, unasked: asked.unasked })
}

/// Errors of listing that a person mends in the command.
fn of_inputs(error: IoError) -> ExecError {
    match error.kind {
        IoErrorKind::NotFound | IoErrorKind::Invalid => ExecError::Inputs(error),
        _ => ExecError::Io(error),
    }
}

/// The input columns that a job keeps or filters by.
///
/// # Errors
/// When its condition is none.
pub(crate) fn wanted_columns(job: &Job) -> Result<Vec<String>, ExecError> {
    let mut names = job.select.keep.clone();
    if let Some(text) = &job.select.filter {
        names.extend(input_columns_of(text)?.into_iter().filter(|name| !job.select.keep.contains(name)));
    }
    Ok(names)
}

/// Chunks of a shard of `rows` new inputs. Where that depends on the bytes that a row becomes, the headers of the first
/// inputs say how many.
async fn shard_chunks(
    job: &Job,
    rows: u64,
    source: &dyn Source,
    factory: &Arc<dyn BackendFactory>,
    options: &RunOptions,
) -> Result<u32, ExecError> {
    let row_bytes = match job.shards.asks_for_bytes(rows) {
        true => content_bytes_per_input(job, source, Arc::clone(factory), options).await?,
        false => 0.0,
    };
    Ok(job.shards.chunks(rows, job.chunk_rows, row_bytes))
}

/// What names a process among those that freeze at the same time.
fn writer_of(part: Option<Part>) -> Option<String> {
    part.map(|part| format!("{}-of-{}", part.number, part.of))
}

/// `listing`, while the types of its columns are noted in `seen`.
fn observed(listing: Listing, seen: &Arc<Mutex<ColumnTypes>>) -> Listing {
    let seen = Arc::clone(seen);
    let noted = listing.map(move |entry| {
        let entry = entry?;
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.observe(entry.columns.as_deref())?;
        Ok(entry)
    });
    noted.boxed()
}

fn taken(seen: &Mutex<ColumnTypes>) -> ColumnTypes {
    seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Whether there are new inputs to take in. Anything else that differs is an error. On return the questions of
/// `asked` are those of the new inputs only.
async fn check_same(
    output: &OutputStore,
    lists: &[FrozenInputs],
    questions: &[FrozenQuestions],
    asked: &mut Asked,
    source: &dyn Source,
    extend: bool,
) -> Result<bool, ExecError> {
    let change = compare_inputs(lists, asked.list(source)).await?;
    let only_added = change.removed == 0 && change.changed == 0;
    let mut was = QuestionsDigest::default();
    questions.iter().for_each(|frozen| was.merge(frozen.digest()));
    let all = asked.digest();
    let mut known = all;
    if let Some(table) = &mut asked.table
        && change.added > 0
    {
        let mut added = added_inputs(lists, filtered(source.list(), Some(table.keys())));
        let mut of_added = HashSet::new();
        while let Some(entry) = added.try_next().await? {
            of_added.insert(entry.key);
        }
        let mut rest = table.clone();
        of_added.iter().for_each(|key| drop(rest.remove(key)));
        known = digest_of(Some(&rest));
        table.retain(&of_added);
    }
    let same_questions = known == was;
    if change.added == 0 && only_added && same_questions {
        return Ok(false);
    }
    if extend && only_added && same_questions {
        return Ok(true);
    }
    let questions = (!same_questions).then(|| (was.to_string(), all.to_string()));
    let inputs = (change.added > 0 || !only_added).then_some(change);
    let extend = only_added && same_questions;
    Err(different(output, Different { inputs, questions, extend, ..Different::nothing() }))
}

impl Different {
    const fn nothing() -> Self {
        Self { output: String::new(), fields: Vec::new(), inputs: None, questions: None, extend: false }
    }
}

fn different(output: &OutputStore, difference: Different) -> ExecError {
    ExecError::Different(Box::new(Different { output: output.url().to_owned(), ..difference }))
}

/// Which inputs are asked about, and what.
struct Asked {
    table: Option<QuestionTable>,
    unasked: u64,
}

impl Asked {
    /// Reads the questions file of an ask job and checks that its keys are among the inputs.
    async fn load(job: &Job, source: &dyn Source, stores: &Stores) -> Result<Self, ExecError> {
        let spec = job.questions.as_ref().filter(|_| job.task == TaskKind::Ask);
        let Some((spec, file)) = spec.and_then(|spec| Some((spec, spec.file.as_ref()?))) else {
            return Ok(Self { table: None, unasked: 0 });
        };
        let template = Template::parse(&spec.template).map_err(|error| ExecError::Corrupt {
            name: "questions.template".to_owned(),
            message: error.to_string(),
        })?;
        let rows = read_questions(file, &read_object(file, stores).await?)?;
        let table = QuestionTable::new(file, &rows, &template)?;
        let (mut matched, mut unasked, mut example) = (HashSet::new(), 0, None);
        let mut listing = source.list();
        while let Some(entry) = listing.try_next().await? {
            if table.get(&entry.key).is_some() {
                matched.insert(entry.key.clone());
            } else {
                unasked += 1;
            }
            example.get_or_insert(entry.key);
        }
        table.check_matched(&matched, example.as_deref())?;
        Ok(Self { table: Some(table), unasked })
    }

    /// The inputs of the job: all that are listed, or those with a question.
    fn list(&self, source: &dyn Source) -> Listing {
        filtered(source.list(), self.table.as_ref().map(QuestionTable::keys))
    }

    /// Writes the questions of generation `number`, when there is a file of them.
    async fn freeze(&self, output: &OutputStore, number: usize) -> Result<Option<FrozenQuestions>, ExecError> {
        let Some(table) = &self.table else { return Ok(None) };
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        Ok(Some(FrozenQuestions::write(output, number, table).await?))
    }

    fn digest(&self) -> QuestionsDigest {
        digest_of(self.table.as_ref())
    }
}

/// The questions file of an ask job, checked against the listing; `None` for jobs without one.
pub(crate) async fn question_table(
    job: &Job,
    source: &dyn Source,
    stores: &Stores,
) -> Result<Option<QuestionTable>, ExecError> {
    Ok(Asked::load(job, source, stores).await?.table)
}

fn digest_of(table: Option<&QuestionTable>) -> QuestionsDigest {
    let mut digest = QuestionsDigest::default();
    table.into_iter().flat_map(QuestionTable::iter).for_each(|(key, prompts)| digest.add(key, prompts));
    digest
}

fn filtered(listing: Listing, keys: Option<HashSet<String>>) -> Listing {
    match keys {
        None => listing,
        Some(keys) => listing.try_filter(move |entry| std::future::ready(keys.contains(&entry.key))).boxed(),
    }
}

/// All bytes of a path or URL.
async fn read_object(location: &str, stores: &Stores) -> Result<Bytes, ExecError> {
    let location = Location::parse(location)?;
    let fetch = ObjectFetch::new(stores.clone(), RetryBudget::default());
    let entry = fetch.describe("", location.url().as_str()).await.map_err(of_inputs)?;
    fetch.read(&entry).await.map_err(of_inputs)
}
