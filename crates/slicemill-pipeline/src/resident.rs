//! An image whose visual tokens are on a device, and the rows that come of it.

use slicemill_core::{ContentRow, Flops, RowError, RowOutcome, TaskKind, TimingRow, looped_tokens};

use crate::{
    AnnotateSpec, DeviceId, FinishReason, Generated, InputRef, VisualHandle, annotate::Job, batch::ImageFacts,
    outcomes::failed_row,
};

/// How an image was encoded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Encoding {
    pub(crate) batch_id: u32,
    pub(crate) batch_views: u32,
    /// Patches over the limit.
    pub(crate) batch_fill: f32,
    /// The whole batch.
    pub(crate) encode_ms: f32,
}

/// What became of one prompt.
#[derive(Debug)]
pub(crate) enum Answer {
    Generated(Generated),
    Failed { error: RowError, attempts: u32 },
}

/// An image on a device, and its answers so far.
pub(crate) struct Resident {
    pub(crate) handle: VisualHandle,
    pub(crate) facts: ImageFacts,
    encoding: Encoding,
    /// One per prompt.
    answers: Vec<Option<Answer>>,
}

impl Resident {
    pub(crate) fn new(handle: VisualHandle, facts: ImageFacts, encoding: Encoding, prompts: usize) -> Self {
        Self { handle, facts, encoding, answers: (0..prompts).map(|_| None).collect() }
    }

    /// Notes what became of a prompt; whether that was the last one.
    pub(crate) fn answer(&mut self, prompt: usize, answer: Answer) -> bool {
        if let Some(slot) = self.answers.get_mut(prompt) {
            *slot = Some(answer);
        }
        self.answers.iter().all(Option::is_some)
    }

    /// The row of an encode job.
    pub(crate) fn into_tokens_row(self, job: &Job, row: &InputRef, device: DeviceId, tokens: Vec<f32>) -> RowOutcome {
        let content = ContentRow {
            flops: self.image_flops(),
            finish_reason: FinishReason::None.as_str().into(),
            tokens: Some(tokens),
            ..self.content(&job.spec, row)
        };
        let timing = self.timing(row, device);
        RowOutcome::Ok { rows: vec![content], timing }
    }

    /// One row per prompt, or the failure of the first prompt that failed. Which prompt that is does not depend on
    /// the order in which they ran, because it is looked for only when all have ended.
    pub(crate) fn into_rows(mut self, job: &Job, row: &InputRef, device: DeviceId) -> RowOutcome {
        let mut timing = self.timing(row, device);
        let mut rows = Vec::with_capacity(self.answers.len());
        for (prompt, answer) in std::mem::take(&mut self.answers).into_iter().flatten().enumerate() {
            let generated = match answer {
                Answer::Generated(generated) => generated,
                Answer::Failed { error, attempts } => {
                    return RowOutcome::Failed(failed_row(row, error, attempts));
                }
            };
            timing.prefill_ms += generated.prefill_ms;
            timing.decode_ms += generated.decode_ms;
            let image_flops = if prompt == 0 { self.image_flops() } else { Flops::default() };
            rows.push(self.text_row(job, row, prompt, generated, image_flops));
        }
        RowOutcome::Ok { rows, timing }
    }

    fn text_row(
        &self,
        job: &Job,
        row: &InputRef,
        prompt: usize,
        generated: Generated,
        image_flops: Flops,
    ) -> ContentRow {
        let (shape, beams) = (&job.factory.card().shape, job.spec.generation.num_beams);
        let (prompt_tokens, output_tokens) = (generated.prompt_tokens, generated.token_ids.len());
        let item = row.prompts.get(prompt).filter(|_| job.spec.task == TaskKind::Ask);
        ContentRow {
            prompt_tokens,
            prompt_cut: generated.prompt_cut,
            output_tokens: u32::try_from(output_tokens).unwrap_or(u32::MAX),
            looped_tokens: looped_tokens(&generated.token_ids),
            flops: Flops {
                prefill: shape.prefill_flops(u64::from(prompt_tokens)),
                decode: shape.beam_flops(beams, u64::from(prompt_tokens), u64::from(generated.decode_steps)),
                ..image_flops
            },
            question_id: item.and_then(|item| item.question_id),
            question: item.map(|item| item.question.clone()),
            text: (generated.finish != FinishReason::None).then_some(generated.text),
            finish_reason: generated.finish.as_str().into(),
            token_ids: job.spec.token_ids.then_some(generated.token_ids),
            ..self.content(&job.spec, row)
        }
    }

    /// Vision and projector compute, which stands on the first row of an image.
    const fn image_flops(&self) -> Flops {
        let Flops { vision, projector, .. } = self.facts.planned.flops_max;
        Flops { vision, projector, prefill: 0, decode: 0 }
    }

    /// What all rows of an image have in common.
    fn content(&self, spec: &AnnotateSpec, row: &InputRef) -> ContentRow {
        let ImageFacts { header, planned, sha256, truncated, .. } = &self.facts;
        let plan = &planned.plan;
        ContentRow {
            key: row.key.clone(),
            source: row.source.clone(),
            sha256: sha256.clone(),
            width: plan.image.width,
            height: plan.image.height,
            orientation_applied: header.applied_orientation(spec.image.orientation).exif(),
            format: header.format.as_str().into(),
            policy: spec.policy.name.clone(),
            grid_cols: plan.grid.cols,
            grid_rows: plan.grid.rows,
            slices: plan.slices(),
            visual_tokens: planned.visual_tokens,
            truncated: *truncated,
            columns: row.columns.clone(),
            ..ContentRow::default()
        }
    }

    fn timing(&self, row: &InputRef, device: DeviceId) -> TimingRow {
        TimingRow {
            key: row.key.clone(),
            device: device.to_string(),
            batch_id: self.encoding.batch_id,
            batch_views: self.encoding.batch_views,
            batch_fill: self.encoding.batch_fill,
            fetch_ms: self.facts.fetch_ms,
            prepare_ms: self.facts.prepare_ms,
            encode_ms: self.encoding.encode_ms,
            prefill_ms: 0.0,
            decode_ms: 0.0,
        }
    }
}
