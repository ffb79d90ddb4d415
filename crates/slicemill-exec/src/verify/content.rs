//! Content rows: planned again, compared, and added up.

use std::collections::BTreeMap;

use arrow::array::{Array, AsArray, RecordBatch};
use slicemill_core::{ContentRow, Flops, Size, TaskKind, looped_tokens};
use slicemill_io::{Counts, InputEntry, Success, content_rows};

use crate::ExecError;
use crate::freeze::FrozenJob;
use crate::nodes::Prompts;

use super::Check;
use super::check::Finding;
use super::keys::{Keys, Seen};

/// An image whose rows are being read.
struct Image {
    key: String,
    questions: Vec<u32>,
}

/// The checks of the content rows.
pub(super) struct ContentCheck<'a> {
    job: &'a FrozenJob,
    expected: Option<Prompts>,
    open: Option<Image>,
    /// Images whose last row was read, questions not yet compared.
    finished: Vec<Image>,
    /// What could be read.
    pub(super) read: Finding,
    plans: Finding,
    compute: Finding,
    ids: Finding,
    tokens: Finding,
    questions: Finding,
    /// Sums of the columns.
    pub(super) sums: Counts,
    values: u64,
}

impl<'a> ContentCheck<'a> {
    pub(super) fn new(job: &'a FrozenJob, expected: Option<Prompts>) -> Self {
        Self {
            job,
            expected,
            open: None,
            finished: Vec::new(),
            read: Finding::new("all rows can be read"),
            plans: Finding::new("planned tokens are the tokens in the rows"),
            compute: Finding::new("compute in the rows follows from plan and tokens"),
            ids: Finding::new("output and looped tokens are those of the token ids"),
            tokens: Finding::new("token lists have visual tokens x width values"),
            questions: Finding::new("every question of every image has one answer"),
            sums: Counts::default(),
            values: 0,
        }
    }

    /// Checks a batch of rows.
    pub(super) async fn batch(&mut self, batch: &RecordBatch, keys: &mut Keys) -> Result<(), ExecError> {
        let lengths = token_lengths(batch);
        let rows = match content_rows(&without_tokens(batch)?) {
            Ok(rows) => rows,
            Err(error) => {
                self.read.wrong(|| error.to_string());
                return Ok(());
            }
        };
        for (at, row) in rows.into_iter().enumerate() {
            let first = self.open.as_ref().is_none_or(|image| image.key != row.key);
            if first {
                self.close(keys);
                self.open = Some(Image { key: row.key.clone(), questions: Vec::new() });
                self.sums.inputs += 1;
                self.sums.ok += 1;
            }
            self.row(&row, first);
            if let Some(length) = lengths.as_ref().map(|lengths| lengths[at]) {
                self.token_list(&row, length);
            }
            if let Some(image) = &mut self.open {
                image.questions.extend(row.question_id);
            }
        }
        self.compare_questions().await
    }

    /// Closes the last image.
    pub(super) async fn finish(&mut self, keys: &mut Keys) -> Result<(), ExecError> {
        self.close(keys);
        self.compare_questions().await
    }

    fn close(&mut self, keys: &mut Keys) {
        if let Some(image) = self.open.take() {
            keys.see(&image.key, Seen::Content);
            if self.expected.is_some() {
                self.finished.push(image);
            }
        }
    }

    fn row(&mut self, row: &ContentRow, first: bool) {
        let sums = &mut self.sums;
        sums.content_rows += 1;
        sums.slices += u64::from(row.slices);
        sums.visual_tokens += u64::from(row.visual_tokens);
        sums.prompt_tokens += u64::from(row.prompt_tokens);
        sums.prompts_cut += u64::from(row.prompt_cut > 0);
        sums.output_tokens += u64::from(row.output_tokens);
        sums.looped += u64::from(row.looped_tokens > 0);
        sums.flops.add_row(&row.flops);
        let policy = &self.job.job.policy;
        let plan = match policy.plan(Size::new(row.width, row.height)) {
            Ok(plan) => plan,
            Err(error) => return self.plans.wrong(|| format!("{}: {error}", row.key)),
        };
        let planned = (plan.visual_tokens(self.job.card.token_rule), plan.slices(), plan.grid.cols, plan.grid.rows);
        let written = (u64::from(row.visual_tokens), row.slices, row.grid_cols, row.grid_rows);
        let same_policy = row.policy == policy.name;
        self.plans.expect(planned == written && same_policy, || {
            format!(
                "{} ({}x{}): (visual tokens, slices, columns, rows) planned {planned:?} by {}, written {written:?} by {}",
                row.key, row.width, row.height, policy.name, row.policy
            )
        });
        let shape = &self.job.card.shape;
        let generates = self.job.job.task != TaskKind::Encode;
        let prompt = u64::from(row.prompt_tokens);
        let expected = Flops {
            vision: if first { shape.vision_flops(&plan) } else { 0 },
            projector: if first { shape.projector_flops(&plan) } else { 0 },
            prefill: if generates { shape.prefill_flops(prompt) } else { 0 },
            decode: if generates { self.decode_flops(row) } else { 0 },
        };
        if let Some(ids) = &row.token_ids {
            let (found, written) = ((ids.len() as u64, looped_tokens(ids)), (row.output_tokens, row.looped_tokens));
            self.ids.expect(found == (u64::from(written.0), written.1), || {
                format!("{}: (output tokens, looped tokens) of its ids {found:?}, written {written:?}", row.key)
            });
        }
        self.compute
            .expect(expected == row.flops, || format!("{}: expected {expected:?}, written {:?}", row.key, row.flops));
    }

    /// What decoding must have cost. A beam search goes on after its answer is found, so the row must have the compute of
    /// some number of steps from its output tokens up to the cap: this is the least one that is not below what is written.
    fn decode_flops(&self, row: &ContentRow) -> u64 {
        let (shape, params) = (&self.job.card.shape, self.job.job.generation.as_ref());
        let (beams, cap) = params.map_or((1, 0), |params| (params.num_beams, params.max_new_tokens));
        let prompt = u64::from(row.prompt_tokens);
        let flops = |steps: u32| shape.beam_flops(beams, prompt, u64::from(steps));
        let mut least = row.output_tokens;
        if beams > 1 {
            let room = self.job.card.context_tokens_max.saturating_sub(row.prompt_tokens);
            let mut most = cap.min(room).max(least);
            while least < most {
                let middle = least + (most - least) / 2;
                (least, most) = if flops(middle) < row.flops.decode { (middle + 1, most) } else { (least, middle) };
            }
        }
        flops(least)
    }

    fn token_list(&mut self, row: &ContentRow, length: u64) {
        let expected = u64::from(row.visual_tokens) * u64::from(self.job.card.width);
        self.values += length;
        self.tokens.expect(length == expected, || format!("{}: {length} values, expected {expected}", row.key));
    }

    /// Compares the questions of finished images with those that were asked.
    async fn compare_questions(&mut self) -> Result<(), ExecError> {
        let Some(expected) = &self.expected else { return Ok(()) };
        let entry = |image: &Image| InputEntry::object(&image.key, "", 0, "");
        let entries: Vec<InputEntry> = self.finished.iter().map(entry).collect();
        let prompts = expected.of(&entries).await?;
        for (image, prompts) in self.finished.drain(..).zip(prompts) {
            let asked: Vec<u32> = prompts.iter().filter_map(|prompt| prompt.question_id).collect();
            self.questions.expect(asked == image.questions, || {
                format!("{}: asked questions {asked:?}, answered {:?}", image.key, image.questions)
            });
        }
        Ok(())
    }

    /// The checks, compared with `_SUCCESS`.
    pub(super) fn into_checks(self, success: &Success) -> Vec<Check> {
        let rows = format!("{} rows", self.sums.content_rows);
        let mut sums = Finding::new("sums of the columns are those of _SUCCESS");
        compare(&mut sums, &self.sums, &success.counts);
        let counts = &self.sums;
        let evidence = format!(
            "{} slices, {} visual, {} prompt, {} output tokens",
            counts.slices, counts.visual_tokens, counts.prompt_tokens, counts.output_tokens
        );
        let mut checks = vec![
            self.read.done(rows.clone()),
            self.plans.done(format!("{} visual tokens", counts.visual_tokens)),
            self.compute.done(rows.clone()),
            sums.done(evidence),
        ];
        if self.job.job.token_ids {
            checks.push(self.ids.done(format!("{} output tokens", counts.output_tokens)));
        }
        match self.job.job.task {
            TaskKind::Ask => checks.push(self.questions.done(rows)),
            TaskKind::Encode => checks.push(self.tokens.done(format!("{} values", self.values))),
            TaskKind::Caption => {}
        }
        checks
    }
}

fn compare(finding: &mut Finding, sums: &Counts, success: &Counts) {
    let figures = |counts: &Counts| -> BTreeMap<&'static str, u128> {
        BTreeMap::from([
            ("inputs", u128::from(counts.inputs)),
            ("ok", u128::from(counts.ok)),
            ("failed", u128::from(counts.failed)),
            ("skipped", u128::from(counts.skipped)),
            ("content_rows", u128::from(counts.content_rows)),
            ("slices", u128::from(counts.slices)),
            ("visual_tokens", u128::from(counts.visual_tokens)),
            ("prompt_tokens", u128::from(counts.prompt_tokens)),
            ("prompts_cut", u128::from(counts.prompts_cut)),
            ("looped", u128::from(counts.looped)),
            ("output_tokens", u128::from(counts.output_tokens)),
            ("vision_flops", counts.flops.vision),
            ("projector_flops", counts.flops.projector),
            ("prefill_flops", counts.flops.prefill),
            ("decode_flops", counts.flops.decode),
        ])
    };
    for ((name, rows), said) in figures(sums).into_iter().zip(figures(success).into_values()) {
        finding.expect(rows == said, || format!("{name}: {rows} in the rows, {said} in _SUCCESS"));
    }
    finding.expect(sums.failed_by_class == success.failed_by_class, || {
        format!(
            "failed rows by class: {:?} in the rows, {:?} in _SUCCESS",
            sums.failed_by_class, success.failed_by_class
        )
    });
}

/// Lengths of the lists in column `tokens`, when there is one.
fn token_lengths(batch: &RecordBatch) -> Option<Vec<u64>> {
    let lists = batch.column_by_name("tokens")?.as_list_opt::<i32>()?;
    Some((0..lists.len()).map(|at| lists.value_length(at).unsigned_abs().into()).collect())
}

/// The batch without column `tokens`, whose values are not looked at.
fn without_tokens(batch: &RecordBatch) -> Result<RecordBatch, ExecError> {
    let schema = batch.schema();
    let kept: Vec<usize> = (0..schema.fields().len()).filter(|at| schema.field(*at).name() != "tokens").collect();
    Ok(batch.project(&kept)?)
}
