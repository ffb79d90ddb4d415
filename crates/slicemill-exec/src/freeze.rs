//! Freezing a job into its output, and the check that a later run is the same job.
//!
//! ```text
//!  no job.json ─▶ write job.json ─▶ questions of generation 0 ─▶ inputs of generation 0 ─▶ run
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

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use serde::{Deserialize, Serialize};
use slicemill_core::{ModelCard, TaskKind, TokenDtype};
use slicemill_io::{
    ContentSpec, FolderSource, FrozenInputs, Generation, InputEntry, InputsChange, IoError, Ledger, Location,
    OutputStore, Source, Stores, added_inputs, compare_inputs,
};

use crate::ExecError;
use crate::job::{Difference, Job, diff};
use crate::questions::{FrozenQuestions, QuestionTable, QuestionsDigest, Template, read_questions};

/// Version of `job.json`.
pub const JOB_FORMAT: u32 = 1;

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
}

impl FrozenJob {
    /// The frozen form of `job` for the model of `card`.
    pub fn new(job: &Job, card: &ModelCard) -> Self {
        Self {
            format: JOB_FORMAT,
            slicemill: env!("CARGO_PKG_VERSION").to_owned(),
            fingerprint: job.fingerprint(),
            job: job.clone(),
            card: card.clone(),
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
        let frozen: Self = serde_json::from_slice(&bytes).map_err(|error| corrupt(error.to_string()))?;
        if frozen.format != JOB_FORMAT {
            return Err(corrupt(format!("it has format {}, this program knows {JOB_FORMAT}", frozen.format)));
        }
        Ok(Some(frozen))
    }

    /// Reads the job in `location`, a folder that a job wrote to.
    ///
    /// # Errors
    /// Those of the store, and when there is no job.
    pub async fn open(location: &str) -> Result<(OutputStore, Self), ExecError> {
        let output = OutputStore::open(&Location::parse(location)?)?;
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
        }
    }

    fn to_json(&self) -> Result<Bytes, ExecError> {
        let mut text = serde_json::to_string_pretty(self)
            .map_err(|error| ExecError::Corrupt { name: "job.json".to_owned(), message: error.to_string() })?;
        text.push('\n');
        Ok(text.into())
    }
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

/// Lists the inputs of `job`, without what lies in its own output.
///
/// # Errors
/// When an input is not there.
pub fn source_of(job: &Job, output: Option<&OutputStore>) -> Result<FolderSource, ExecError> {
    let source = FolderSource::new(&job.inputs).map_err(ExecError::Inputs)?;
    Ok(match output.and_then(OutputStore::local_root) {
        Some(root) => source.excluding(root),
        None => source,
    })
}

/// Freezes `job` into `output`, or checks that it is the job that is frozen there.
///
/// # Errors
/// [`ExecError::Different`] when it is another job or other inputs; errors of inputs, questions and stores.
pub async fn freeze(
    job: &Job,
    card: &ModelCard,
    output: &OutputStore,
    source: &dyn Source,
    extend: bool,
) -> Result<Frozen, ExecError> {
    let existing = FrozenJob::read(output).await?;
    if let Some(existing) = &existing {
        let fields = diff(&existing.job, job);
        if !fields.is_empty() {
            return Err(different(output, Different { fields, ..Different::nothing() }));
        }
    }
    let mut asked = Asked::load(job, source).await?;
    let job_json = match existing {
        Some(existing) => existing,
        None => {
            if asked.list(source).next().await.transpose()?.is_none() {
                return Err(ExecError::NoInputs(job.inputs.join(", ")));
            }
            let frozen = FrozenJob::new(job, card);
            frozen.ledger(output).write_job(frozen.to_json()?).await?;
            frozen
        }
    };
    let ledger = job_json.ledger(output);
    ledger.recover().await?;
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
    if let Some(table) = &asked.table {
        let number = u32::try_from(generations.len()).unwrap_or(u32::MAX);
        questions.push(FrozenQuestions::write(output, number, table).await?);
    }
    let shard_chunks = job.shard_rows / job.chunk_rows.max(1);
    generations.push(ledger.freeze(new, job.chunk_rows, shard_chunks).await?);
    Ok(Frozen { job: job_json, ledger, generations, questions, unasked: asked.unasked })
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
    async fn load(job: &Job, source: &dyn Source) -> Result<Self, ExecError> {
        let spec = job.questions.as_ref().filter(|_| job.task == TaskKind::Ask);
        let Some((spec, file)) = spec.and_then(|spec| Some((spec, spec.file.as_ref()?))) else {
            return Ok(Self { table: None, unasked: 0 });
        };
        let template = Template::parse(&spec.template).map_err(|error| ExecError::Corrupt {
            name: "questions.template".to_owned(),
            message: error.to_string(),
        })?;
        let rows = read_questions(file, &read_object(file).await?)?;
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
    fn list(&self, source: &dyn Source) -> BoxStream<'static, Result<InputEntry, IoError>> {
        filtered(source.list(), self.table.as_ref().map(QuestionTable::keys))
    }

    fn digest(&self) -> QuestionsDigest {
        digest_of(self.table.as_ref())
    }
}

/// The questions file of an ask job, checked against the listing; `None` for jobs without one.
pub(crate) async fn question_table(job: &Job, source: &dyn Source) -> Result<Option<QuestionTable>, ExecError> {
    Ok(Asked::load(job, source).await?.table)
}

fn digest_of(table: Option<&QuestionTable>) -> QuestionsDigest {
    let mut digest = QuestionsDigest::default();
    table.into_iter().flat_map(QuestionTable::iter).for_each(|(key, prompts)| digest.add(key, prompts));
    digest
}

fn filtered(
    listing: BoxStream<'static, Result<InputEntry, IoError>>,
    keys: Option<HashSet<String>>,
) -> BoxStream<'static, Result<InputEntry, IoError>> {
    match keys {
        None => listing,
        Some(keys) => listing.try_filter(move |entry| std::future::ready(keys.contains(&entry.key))).boxed(),
    }
}

/// All bytes of a path or URL.
async fn read_object(location: &str) -> Result<Bytes, ExecError> {
    let location = Location::parse(location)?;
    let name = location.url().to_string();
    let (store, path) = Stores::new().resolve(location.url())?;
    let result = store.get(&path).await.map_err(|error| IoError::from_store("read", &name, error))?;
    Ok(result.bytes().await.map_err(|error| IoError::from_store("read", &name, error))?)
}
