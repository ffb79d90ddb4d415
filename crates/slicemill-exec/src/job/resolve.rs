//! From a [`JobDraft`] and a model card to a [`Job`]: defaults, and refusals of what does not go together.

use slicemill_core::{GenerationParams, ImageOptions, ModelCard, SlicingPolicy, TaskKind, TokenDtype};

use super::draft::JobDraft;
use super::problem::{JobError, Problem};
use super::{Job, QuestionSpec, Selection, ShardSize};
use crate::questions;

/// Rows of a chunk when the job does not say and its rows are small.
const CHUNK_ROWS_DEFAULT: u32 = 64;
/// Least chunks of a shard when the job does not say.
const SHARD_CHUNKS_DEFAULT: u32 = 64;
/// Bytes of visual tokens that a chunk of an encode job holds at most when the job does not say.
const CHUNK_TOKEN_BYTES: u64 = 64 << 20;
/// Least chunks of a shard of an encode job when the job does not say: at most 1 GiB of visual tokens.
const SHARD_TOKEN_CHUNKS: u32 = 16;

impl JobDraft {
    /// The job for the model of `card`.
    ///
    /// # Errors
    /// Everything that is missing or does not go together, with its place and remedy.
    pub fn resolve(&self, card: &ModelCard) -> Result<Job, JobError> {
        let mut check = Check { draft: self, card, problems: Vec::new() };
        let job = check.job();
        match job {
            Some(job) if check.problems.is_empty() => Ok(job),
            _ => Err(JobError { problems: check.problems }),
        }
    }
}

struct Check<'a> {
    draft: &'a JobDraft,
    card: &'a ModelCard,
    problems: Vec<Problem>,
}

impl Check<'_> {
    fn refuse(&mut self, path: &'static str, message: impl Into<String>, remedy: impl Into<String>) {
        self.problems.push(Problem { place: self.draft.place(path), message: message.into(), remedy: remedy.into() });
    }

    fn job(&mut self) -> Option<Job> {
        let Some(task) = self.draft.file.task else {
            self.refuse("task", "no task", "add task = \"caption\", \"ask\" or \"encode\" at the top");
            return None;
        };
        if self.draft.file.input.paths.is_empty() {
            self.refuse("input.paths", "nothing to read", "name files or folders in [input] paths");
        }
        let output = self.draft.file.output.path.clone();
        if output.is_none() {
            self.refuse("output.path", "no output", "name a folder in [output] path");
        }
        self.refuse_foreign_sections(task);
        let policy = self.policy();
        let generation = self.generation(task);
        let questions = self.questions(task);
        let rows = policy.as_ref().and_then(|policy| self.rows(task, policy));
        let (chunk_rows, shards) = rows?;
        let image = &self.draft.file.image;
        let default = ImageOptions::default();
        Some(Job {
            task,
            inputs: self.draft.file.input.paths.clone(),
            select: self.selection(),
            output: output?,
            model: self.card.name.clone(),
            model_fingerprint: self.card.fingerprint.clone(),
            windows: self.draft.windows(),
            policy: policy?,
            image: ImageOptions {
                orientation: image.orientation.unwrap_or(default.orientation),
                alpha: image.alpha.unwrap_or(default.alpha),
                pixels_max: image.pixels_max.unwrap_or(default.pixels_max),
                truncated: image.truncated.unwrap_or(default.truncated),
            },
            prompt: (task == TaskKind::Caption)
                .then(|| self.draft.file.prompt.text.clone().unwrap_or_else(|| self.card.default_prompt.clone())),
            questions,
            generation,
            dtype: (task == TaskKind::Encode).then(|| self.draft.file.encode.dtype.unwrap_or(TokenDtype::F32)),
            token_ids: self.draft.file.output.columns.iter().any(|column| column == "+token_ids"),
            chunk_rows,
            shards,
        })
    }

    /// Which inputs are taken and what is carried along.
    fn selection(&mut self) -> Selection {
        let input = &self.draft.file.input;
        let mut selection = Selection {
            keep: Vec::new(),
            filter: input.filter.clone(),
            sample: None,
            limit: input.limit,
            image_column: input.image_column.clone(),
            key_column: input.key_column.clone(),
            root: input.root.clone(),
        };
        for name in &input.keep {
            if !selection.keep.contains(name) {
                selection.keep.push(name.clone());
            }
        }
        if let Some(text) = &input.sample {
            selection.sample = parse_share(text);
            if selection.sample.is_none() {
                self.refuse(
                    "input.sample",
                    format!("\"{text}\" is not a share of the inputs"),
                    "write it as 1% or 0.01, above 0 and at most 100%",
                );
            }
        }
        selection
    }

    /// Sections that mean nothing for this task would be read past in silence, so they are refused.
    fn refuse_foreign_sections(&mut self, task: TaskKind) {
        let file = &self.draft.file;
        let given: [(&'static str, bool, &[TaskKind], &str); 15] = [
            (
                "prompt.text",
                file.prompt.text.is_some(),
                &[TaskKind::Caption],
                "remove it; an ask job has [questions] template",
            ),
            ("questions.ask", !file.questions.ask.is_empty(), &[TaskKind::Ask], "set task = \"ask\""),
            ("questions.file", file.questions.file.is_some(), &[TaskKind::Ask], "set task = \"ask\""),
            ("questions.template", file.questions.template.is_some(), &[TaskKind::Ask], "use [prompt] text"),
            ("generation.max_new_tokens", file.generation.max_new_tokens.is_some(), GENERATES, NO_TEXT),
            ("generation.temperature", file.generation.temperature.is_some(), GENERATES, NO_TEXT),
            ("generation.top_k", file.generation.top_k.is_some(), GENERATES, NO_TEXT),
            ("generation.top_p", file.generation.top_p.is_some(), GENERATES, NO_TEXT),
            ("generation.repetition_penalty", file.generation.repetition_penalty.is_some(), GENERATES, NO_TEXT),
            ("generation.num_beams", file.generation.num_beams.is_some(), GENERATES, NO_TEXT),
            ("generation.length_penalty", file.generation.length_penalty.is_some(), GENERATES, NO_TEXT),
            ("generation.early_stopping", file.generation.early_stopping.is_some(), GENERATES, NO_TEXT),
            ("generation.seed", file.generation.seed.is_some(), GENERATES, NO_TEXT),
            ("output.columns", !file.output.columns.is_empty(), GENERATES, NO_TEXT),
            ("encode.dtype", file.encode.dtype.is_some(), &[TaskKind::Encode], "remove it, or set task = \"encode\""),
        ];
        for (path, present, tasks, remedy) in given {
            if present && !tasks.contains(&task) {
                self.refuse(path, format!("{} has no meaning in {} job", self.draft.spelled(path), a(task)), remedy);
            }
        }
    }

    /// The model's own policy, or the named one; side and patch are the model's unless overridden, since its tower was
    /// trained on them. The null model has no tower and takes any policy as it is.
    fn policy(&mut self) -> Option<SlicingPolicy> {
        let slicing = &self.draft.file.slicing;
        let towerless = self.card.name == "null";
        let mut policy = match &slicing.policy {
            None => self.card.policy.clone(),
            Some(name) => SlicingPolicy::named(name)?,
        };
        if slicing.policy.is_some() && !towerless {
            policy.side = self.card.policy.side;
            policy.patch = self.card.policy.patch;
        }
        if !towerless && slicing.patch.is_some_and(|patch| patch != self.card.policy.patch) {
            self.refuse(
                "slicing.patch",
                format!("the vision tower of {} has patches of {} pixels", self.card.name, self.card.policy.patch),
                format!("remove {}", self.draft.spelled("slicing.patch")),
            );
            return None;
        }
        if let Err(error) = policy.clone().with_overrides(None, None, slicing.max_slices) {
            self.refuse("slicing.max_slices", error.to_string(), "");
            return None;
        }
        match policy.with_overrides(slicing.side, slicing.patch, slicing.max_slices) {
            Ok(policy) => Some(policy),
            Err(error) => {
                self.refuse(
                    if slicing.side.is_some() { "slicing.side" } else { "slicing.patch" },
                    error.to_string(),
                    "",
                );
                None
            }
        }
    }

    fn generation(&mut self, task: TaskKind) -> Option<GenerationParams> {
        if task == TaskKind::Encode {
            return None;
        }
        let given = &self.draft.file.generation;
        let model = &self.card.generation;
        let temperature = given.temperature.unwrap_or(model.temperature);
        let greedy = temperature == 0.0;
        for (path, present) in
            [("generation.top_k", given.top_k.is_some()), ("generation.top_p", given.top_p.is_some())]
        {
            if greedy && present {
                let temperature = self.draft.spelled("generation.temperature");
                self.refuse(
                    path,
                    format!("{} has no effect at temperature 0, which is greedy", self.draft.spelled(path)),
                    format!("remove it, or set {temperature} above 0"),
                );
            }
        }
        let num_beams = self.draft.num_beams();
        self.refuse_beams(num_beams, temperature);
        let max_new_tokens = given.max_new_tokens.unwrap_or(model.max_new_tokens);
        if max_new_tokens >= self.card.context_tokens_max {
            self.refuse(
                "generation.max_new_tokens",
                format!(
                    "{max_new_tokens} output tokens leave no room for a prompt in the {} tokens that {} can hold",
                    self.card.context_tokens_max, self.card.name
                ),
                "choose fewer output tokens",
            );
        }
        Some(GenerationParams {
            max_new_tokens,
            temperature,
            top_k: given.top_k.or(model.top_k).filter(|_| !greedy),
            top_p: given.top_p.or(model.top_p).filter(|_| !greedy),
            repetition_penalty: given.repetition_penalty.unwrap_or(model.repetition_penalty),
            num_beams,
            length_penalty: given.length_penalty.unwrap_or(model.length_penalty),
            early_stopping: given.early_stopping.unwrap_or(model.early_stopping),
            seed: given.seed.unwrap_or(model.seed),
        })
    }

    /// A beam search is not sampled, and its parameters mean nothing without it.
    fn refuse_beams(&mut self, num_beams: u32, temperature: f64) {
        let given = &self.draft.file.generation;
        let beams = self.draft.spelled("generation.num_beams");
        if num_beams > 1 && temperature > 0.0 {
            let spelled = self.draft.spelled("generation.temperature");
            self.refuse(
                "generation.num_beams",
                format!("a beam search takes the most likely tokens, and temperature {temperature} draws them"),
                format!("set {spelled} to 0, or {beams} to 1"),
            );
        }
        for (path, present) in [
            ("generation.length_penalty", given.length_penalty.is_some()),
            ("generation.early_stopping", given.early_stopping.is_some()),
        ] {
            if num_beams <= 1 && present {
                self.refuse(
                    path,
                    format!("{} has no effect without a beam search", self.draft.spelled(path)),
                    format!("remove it, or set {beams} above 1"),
                );
            }
        }
    }

    fn questions(&mut self, task: TaskKind) -> Option<QuestionSpec> {
        if task != TaskKind::Ask {
            return None;
        }
        let given = &self.draft.file.questions;
        let (ask, file) = (self.draft.spelled("questions.ask"), self.draft.spelled("questions.file"));
        if !given.ask.is_empty() && given.file.is_some() {
            self.refuse("questions.file", format!("{ask} and {file} exclude each other"), "keep one of them");
        }
        if given.ask.is_empty() && given.file.is_none() {
            self.refuse("questions.ask", "an ask job without a question", format!("give {ask}, or {file}"));
        }
        let template = given.template.clone().unwrap_or_else(|| questions::TEMPLATE_DEFAULT.to_owned());
        let checked = questions::Template::parse(&template);
        match checked {
            Ok(template) if given.file.is_none() => {
                if let Some(column) = template.columns().find(|column| *column != "question") {
                    self.refuse(
                        "questions.template",
                        format!("{{{column}}} is a column of a questions file, and there is none"),
                        format!("use {{question}} only, or give {file}"),
                    );
                }
            }
            Ok(_) => {}
            Err(error @ questions::TemplateError::NoQuestion) => {
                self.refuse("questions.template", error.to_string(), "add {question} where the question goes");
            }
            Err(error) => {
                self.refuse("questions.template", error.to_string(), "write braces that are text as {{ and }}");
            }
        }
        Some(QuestionSpec { ask: given.ask.clone(), file: given.file.clone(), template })
    }

    /// Rows of a chunk, and the size of a shard. Visual tokens are large, so chunks of encode jobs are as small as they need.
    fn rows(&mut self, task: TaskKind, policy: &SlicingPolicy) -> Option<(u32, ShardSize)> {
        let output = &self.draft.file.output;
        let chunk_default = match task {
            TaskKind::Encode => {
                let bytes = (CHUNK_TOKEN_BYTES / row_token_bytes_max(self.card, policy).max(1)).max(1);
                u32::try_from(bytes).unwrap_or(u32::MAX).min(CHUNK_ROWS_DEFAULT)
            }
            TaskKind::Caption | TaskKind::Ask => CHUNK_ROWS_DEFAULT,
        };
        let least_chunks = if task == TaskKind::Encode { SHARD_TOKEN_CHUNKS } else { SHARD_CHUNKS_DEFAULT };
        let chunk_rows = match (output.chunk_rows, output.shard_rows) {
            (Some(chunk_rows), _) => chunk_rows,
            (None, Some(shard_rows)) => divisor_up_to(shard_rows, chunk_default),
            (None, None) => chunk_default,
        };
        let shard_rows = match (output.shard_rows, output.shard_bytes) {
            (None, None) => {
                return Some((chunk_rows, ShardSize::Growing { least: chunk_rows.saturating_mul(least_chunks) }));
            }
            (None, Some(bytes)) => return Some((chunk_rows, ShardSize::Bytes(bytes))),
            (Some(rows), None) => rows,
            (Some(_), Some(_)) => {
                let (rows, bytes) = (self.draft.spelled("output.shard_rows"), self.draft.spelled("output.shard_bytes"));
                self.refuse(
                    "output.shard_bytes",
                    format!("{rows} and {bytes} both say how large a shard is"),
                    "keep one of them",
                );
                return None;
            }
        };
        if !shard_rows.is_multiple_of(chunk_rows) {
            let (shard, chunk) = (self.draft.spelled("output.shard_rows"), self.draft.spelled("output.chunk_rows"));
            self.refuse(
                "output.shard_rows",
                format!("{shard_rows} rows of a shard are not a multiple of the {chunk_rows} rows of a chunk"),
                format!("choose {shard} = {}, or another {chunk}", shard_rows.div_ceil(chunk_rows) * chunk_rows),
            );
            return None;
        }
        Some((chunk_rows, ShardSize::Rows(shard_rows)))
    }
}

const GENERATES: &[TaskKind] = &[TaskKind::Caption, TaskKind::Ask];
const NO_TEXT: &str = "an encode job generates no text; remove it";

fn a(task: TaskKind) -> &'static str {
    match task {
        TaskKind::Caption => "a caption",
        TaskKind::Ask => "an ask",
        TaskKind::Encode => "an encode",
    }
}

/// Bytes of the visual tokens of the largest image, in f32.
fn row_token_bytes_max(card: &ModelCard, policy: &SlicingPolicy) -> u64 {
    let patches_per_side = u64::from(policy.side / policy.patch.max(1)).max(1);
    let tokens_per_view = match card.token_rule {
        slicemill_core::TokenRule::Queries(queries) => u64::from(queries),
        slicemill_core::TokenRule::Patches => patches_per_side * patches_per_side,
    };
    (u64::from(policy.max_slices) + 2) * tokens_per_view * u64::from(card.width) * 4
}

/// `1%` or `0.01`: more than nothing, at most everything.
fn parse_share(text: &str) -> Option<f64> {
    let text = text.trim();
    let share = match text.strip_suffix('%') {
        Some(percent) => percent.trim().parse::<f64>().ok()? / 100.0,
        None => text.parse().ok()?,
    };
    (share > 0.0 && share <= 1.0).then_some(share)
}

/// The largest divisor of `rows` that is at most `limit`.
fn divisor_up_to(rows: u32, limit: u32) -> u32 {
    (1..=limit.min(rows)).rev().find(|divisor| rows.is_multiple_of(*divisor)).unwrap_or(1)
}
