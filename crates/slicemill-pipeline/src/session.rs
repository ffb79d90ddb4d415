//! The device's part of a chunk: encode, admit, step, release. Runs on the device's thread under the chunk's lease.
//!
//! ```text
//!   batches ──encode──▶ images on the device ──one per prompt──▶ waiting ──admit──▶ in flight ──step──▶ finished
//!      ▲                     release after the last prompt ◀──────────────────────────────────────────────┘
//!      └─ the next batch is encoded when a sequence could start and none waits
//! ```
//!
//! A finished sequence is replaced before the next step. Since encoding waits until nobody waits, at most
//! `sequences_max` images and those of one batch have visual tokens on the device.
//!
//! A batch that fails is halved until the image that fails is alone. When decoding runs out of memory, the sequences
//! admitted last go back to the head of the queue and fewer run together from then on. Neither changes content,
//! because a sequence depends on its image, its prompt and its seed alone.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::atomic::Ordering::Relaxed,
    time::Instant,
};

use slicemill_core::{ErrorClass, Fate, RowError, Stage, TaskKind, row_seed};
use tokio::sync::mpsc::{UnboundedReceiver, error::TryRecvError};

use crate::{
    Backend, BackendError, BusyStage, Cancel, DeviceId, GenerateRequest, Generated, InputRef, PipelineError,
    SequenceId, VisualHandle,
    annotate::{Job, millis},
    batch::PreparedBatch,
    outcomes::Outcomes,
    plan::question_error,
    resident::{Answer, Encoding, Resident},
};

/// A prompt of an image on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ask {
    /// Row of the image in the chunk.
    image: usize,
    /// Number of the prompt in the row.
    prompt: usize,
}

/// What the host stage has ready.
enum Next {
    Batch(PreparedBatch),
    NotReady,
    End,
}

/// One chunk on one device.
pub(crate) struct Session<'a> {
    backend: &'a mut dyn Backend,
    cancel: &'a Cancel<'a>,
    device: DeviceId,
    job: &'a Job,
    rows: &'a [InputRef],
    outcomes: &'a Outcomes,
    patches_max: u64,
    /// Sequences that may be in flight by the limits.
    sequences_full: usize,
    /// Sequences that may be in flight now: fewer after the device ran out of memory.
    sequences_max: usize,
    /// Batches, or halves of them, that are at hand.
    at_hand: VecDeque<PreparedBatch>,
    images: BTreeMap<usize, Resident>,
    waiting: VecDeque<Ask>,
    /// In order of admission.
    in_flight: Vec<(SequenceId, Ask)>,
}

impl<'a> Session<'a> {
    pub(crate) fn new(
        backend: &'a mut dyn Backend,
        cancel: &'a Cancel<'a>,
        device: DeviceId,
        job: &'a Job,
        rows: &'a [InputRef],
        outcomes: &'a Outcomes,
        patches_max: u64,
    ) -> Self {
        let sequences_full = job.limits.sequences_max.min(backend.limits().sequences_max).max(1) as usize;
        Self {
            backend,
            cancel,
            device,
            job,
            rows,
            outcomes,
            patches_max,
            sequences_full,
            sequences_max: sequences_full,
            at_hand: VecDeque::new(),
            images: BTreeMap::new(),
            waiting: VecDeque::new(),
            in_flight: Vec::new(),
        }
    }

    /// Works until the last batch is done, an error is fatal, or nobody waits any more. In every case nothing of the
    /// chunk stays on the device.
    pub(crate) fn run(
        mut self,
        first: PreparedBatch,
        mut batches: UnboundedReceiver<PreparedBatch>,
    ) -> Result<(), PipelineError> {
        self.at_hand.push_back(first);
        let ended = self.work(&mut batches);
        for (sequence, _) in self.in_flight.drain(..) {
            self.backend.abandon(sequence);
        }
        for (_, image) in std::mem::take(&mut self.images) {
            self.backend.release(image.handle);
        }
        ended
    }

    fn work(&mut self, batches: &mut UnboundedReceiver<PreparedBatch>) -> Result<(), PipelineError> {
        while !self.cancel.is_cancelled() {
            self.admit_waiting()?;
            if self.waiting.is_empty() && self.in_flight.len() < self.sequences_max {
                match self.next_batch(batches) {
                    Next::Batch(batch) => {
                        self.encode(batch)?;
                        continue;
                    }
                    Next::End if self.in_flight.is_empty() => return Ok(()),
                    Next::End | Next::NotReady => {}
                }
            }
            self.step()?;
        }
        Ok(())
    }

    /// The next batch; waits for it only when the device has nothing else to do.
    fn next_batch(&mut self, batches: &mut UnboundedReceiver<PreparedBatch>) -> Next {
        if let Some(batch) = self.at_hand.pop_front() {
            return Next::Batch(batch);
        }
        if self.in_flight.is_empty() {
            return batches.blocking_recv().map_or(Next::End, Next::Batch);
        }
        match batches.try_recv() {
            Ok(batch) => Next::Batch(batch),
            Err(TryRecvError::Empty) => Next::NotReady,
            Err(TryRecvError::Disconnected) => Next::End,
        }
    }

    /// Encodes a batch; its images are then read out (encode jobs) or their prompts wait.
    fn encode(&mut self, batch: PreparedBatch) -> Result<(), PipelineError> {
        let started = Instant::now();
        let (encoded, attempts) = self.tried(|backend| backend.encode(&batch.images));
        let time = started.elapsed();
        self.job.progress.busy(BusyStage::Encode, time);
        let handles = match encoded {
            Ok(handles) => handles,
            Err(error) => return self.encode_failed(batch, error, attempts),
        };
        if handles.len() != batch.images.len() {
            handles.iter().for_each(|&handle| self.backend.release(handle));
            let (images, handles) = (batch.images.len(), handles.len());
            return Err(self.fatal(&format!("{images} images were encoded and {handles} came back")));
        }
        let (views, patches) = (batch.views(), batch.patches());
        let encoding = Encoding {
            batch_id: batch.id,
            batch_views: u32::try_from(views).unwrap_or(u32::MAX),
            batch_fill: patches as f32 / self.patches_max as f32,
            encode_ms: millis(time),
        };
        self.job.progress.views_encoded.fetch_add(views, Relaxed);
        let mut arrived = Vec::with_capacity(handles.len());
        for (facts, handle) in batch.facts.into_iter().zip(handles) {
            self.job.progress.visual_tokens.fetch_add(u64::from(facts.planned.visual_tokens), Relaxed);
            let index = facts.index;
            let prompts = if self.job.spec.task == TaskKind::Encode { 0 } else { self.rows[index].prompts.len() };
            self.images.insert(index, Resident::new(handle, facts, encoding, prompts));
            arrived.push(index);
        }
        // The prepared pixels are not needed any more; their bytes go back to the host stage.
        drop((batch.images, batch.grant));
        for index in arrived {
            match self.job.spec.task {
                TaskKind::Encode => self.read_out(index)?,
                TaskKind::Caption | TaskKind::Ask => {
                    let prompts = 0..self.rows[index].prompts.len();
                    self.waiting.extend(prompts.map(|prompt| Ask { image: index, prompt }));
                }
            }
        }
        Ok(())
    }

    /// Halves the batch; an image that fails alone fails its row.
    fn encode_failed(&mut self, batch: PreparedBatch, error: BackendError, attempts: u32) -> Result<(), PipelineError> {
        if error.fate == Fate::Fatal {
            return Err(self.fatal(&error.message));
        }
        if batch.images.len() > 1 {
            tracing::debug!(device = %self.device, images = batch.images.len(), %error, "a batch failed and is halved");
            let (first, second) = batch.halves();
            self.at_hand.push_front(second);
            self.at_hand.push_front(first);
            return Ok(());
        }
        for facts in &batch.facts {
            let error = RowError::new(error.class, Stage::Encode, error.message.clone());
            self.outcomes.fail(facts.index, &self.rows[facts.index], error, attempts, &self.job.progress);
        }
        Ok(())
    }

    /// Reads the visual tokens of an encode job's image.
    fn read_out(&mut self, index: usize) -> Result<(), PipelineError> {
        let Some(image) = self.images.get(&index) else { return Ok(()) };
        let handle = image.handle;
        let expected = u64::from(image.facts.planned.visual_tokens) * u64::from(self.job.factory.card().width);
        let started = Instant::now();
        let (read, attempts) = self.tried(|backend| backend.read_tokens(handle));
        self.job.progress.busy(BusyStage::Encode, started.elapsed());
        let Some(image) = self.take_image(index) else { return Ok(()) };
        match read {
            Ok(tokens) if tokens.len() as u64 == expected => {
                let outcome = image.into_tokens_row(self.job, &self.rows[index], self.device, tokens);
                self.outcomes.put(index, outcome, &self.job.progress);
                Ok(())
            }
            Ok(tokens) => {
                let (key, got) = (&self.rows[index].key, tokens.len());
                Err(self.fatal(&format!("{key} was planned with {expected} values of visual tokens and has {got}")))
            }
            Err(error) if error.fate == Fate::Fatal => Err(self.fatal(&error.message)),
            Err(error) => {
                let error = RowError::new(error.class, Stage::Encode, error.message);
                self.outcomes.fail(index, &self.rows[index], error, attempts, &self.job.progress);
                Ok(())
            }
        }
    }

    /// Fills the free places with waiting prompts.
    fn admit_waiting(&mut self) -> Result<(), PipelineError> {
        while self.in_flight.len() < self.sequences_max {
            let Some(&ask) = self.waiting.front() else { return Ok(()) };
            if self.backend.free_sequences() == 0 {
                if self.in_flight.is_empty() {
                    return Err(self.fatal("no sequence is in flight and none can be admitted"));
                }
                return Ok(());
            }
            self.waiting.pop_front();
            self.admit(ask)?;
        }
        Ok(())
    }

    fn admit(&mut self, ask: Ask) -> Result<(), PipelineError> {
        let Some(image) = self.images.get(&ask.image) else { return Ok(()) };
        let (row, handle) = (&self.rows[ask.image], image.handle);
        let request = self.request(row, ask.prompt, handle);
        let started = Instant::now();
        let (admitted, attempts) = self.tried(|backend| backend.admit(request.clone()));
        self.job.progress.busy(BusyStage::Generate, started.elapsed());
        match admitted {
            Ok(sequence) => {
                self.in_flight.push((sequence, ask));
                Ok(())
            }
            Err(error) if error.fate == Fate::Fatal => Err(self.fatal(&error.message)),
            Err(error) if error.class == ErrorClass::OutOfMemory && !self.in_flight.is_empty() => {
                // It will fit when others have finished; if not even alone, it fails.
                self.sequences_max = self.in_flight.len();
                self.waiting.push_front(ask);
                Ok(())
            }
            Err(error) => self.answer(ask, Err(error), attempts),
        }
    }

    fn request(&self, row: &InputRef, prompt: usize, image: VisualHandle) -> GenerateRequest {
        let item = &row.prompts[prompt];
        let params = self.job.spec.generation.clone();
        let seed = row_seed(params.seed, &row.key, item.question_id.unwrap_or(0));
        GenerateRequest { image, prompt: self.job.spec.prompt(item), params, seed }
    }

    /// One token for every sequence in flight.
    fn step(&mut self) -> Result<(), PipelineError> {
        let started = Instant::now();
        let mut attempts = 1;
        let stepped = loop {
            match self.backend.step() {
                Err((_, error))
                    if error.fate == Fate::Transient && attempts <= self.job.limits.transient_retries_max =>
                {
                    attempts += 1;
                }
                stepped => break stepped,
            }
        };
        self.job.progress.busy(BusyStage::Generate, started.elapsed());
        match stepped {
            Ok(finished) => finished.into_iter().try_for_each(|generated| self.finished(generated)),
            Err((_, error)) if error.fate == Fate::Fatal => Err(self.fatal(&error.message)),
            Err((Some(sequence), error)) => self.sequence_failed(sequence, error, attempts),
            Err((None, error)) => self.step_failed(error, attempts),
        }
    }

    fn finished(&mut self, generated: Generated) -> Result<(), PipelineError> {
        let ask = self.take_sequence(generated.sequence)?;
        let planned = self.images.get(&ask.image).and_then(|image| image.facts.planned.prompt_tokens.get(ask.prompt));
        if planned != Some(&generated.prompt_tokens) {
            let (key, planned, ran) = (&self.rows[ask.image].key, planned.copied(), generated.prompt_tokens);
            let planned = planned.unwrap_or_default();
            return Err(self.fatal(&format!("{key} was planned with {planned} prompt tokens and ran with {ran}")));
        }
        self.job.progress.output_tokens.fetch_add(generated.token_ids.len() as u64, Relaxed);
        self.answer(ask, Ok(generated), 1)
    }

    /// One sequence failed and has left the others in flight.
    fn sequence_failed(
        &mut self,
        sequence: SequenceId,
        error: BackendError,
        attempts: u32,
    ) -> Result<(), PipelineError> {
        let ask = self.take_sequence(sequence)?;
        if error.fate == Fate::Transient {
            // After a row error the backend has forgotten the sequence, after a transient one it has not.
            self.backend.abandon(sequence);
        }
        if error.class == ErrorClass::OutOfMemory && !self.in_flight.is_empty() {
            self.sequences_max = self.in_flight.len();
            self.waiting.push_front(ask);
            return Ok(());
        }
        self.answer(ask, Err(error), attempts)
    }

    /// The step failed as a whole: fewer sequences at a time find out whether it was too much or which one it was.
    fn step_failed(&mut self, error: BackendError, attempts: u32) -> Result<(), PipelineError> {
        let keep = self.in_flight.len() / 2;
        if keep == 0 {
            let Some((sequence, ask)) = self.in_flight.pop() else {
                return Err(self.fatal(&format!("a step without sequences failed: {}", error.message)));
            };
            self.backend.abandon(sequence);
            // It was this one; the others may run together again.
            self.sequences_max = self.sequences_full;
            return self.answer(ask, Err(error), attempts);
        }
        tracing::debug!(device = %self.device, sequences = self.in_flight.len(), %error, "a step failed and is halved");
        for (sequence, ask) in self.in_flight.split_off(keep).into_iter().rev() {
            self.backend.abandon(sequence);
            self.waiting.push_front(ask);
        }
        self.sequences_max = keep;
        Ok(())
    }

    /// Notes an answer, or why there is none; the image's row is made when all its prompts have one.
    fn answer(
        &mut self,
        ask: Ask,
        answer: Result<Generated, BackendError>,
        attempts: u32,
    ) -> Result<(), PipelineError> {
        let item = &self.rows[ask.image].prompts[ask.prompt];
        let answer = match answer {
            Ok(generated) => Answer::Generated(generated),
            Err(error) => {
                let error = question_error(item, error.class, Stage::Generate, &error.message);
                Answer::Failed { error, attempts }
            }
        };
        let Some(image) = self.images.get_mut(&ask.image) else {
            return Err(self.fatal("a prompt was answered about an image that is not there"));
        };
        if !image.answer(ask.prompt, answer) {
            return Ok(());
        }
        let Some(image) = self.take_image(ask.image) else { return Ok(()) };
        let outcome = image.into_rows(self.job, &self.rows[ask.image], self.device);
        self.outcomes.put(ask.image, outcome, &self.job.progress);
        Ok(())
    }

    /// Takes an image off the device.
    fn take_image(&mut self, index: usize) -> Option<Resident> {
        let image = self.images.remove(&index)?;
        self.backend.release(image.handle);
        Some(image)
    }

    fn take_sequence(&mut self, sequence: SequenceId) -> Result<Ask, PipelineError> {
        match self.in_flight.iter().position(|(id, _)| *id == sequence) {
            Some(position) => Ok(self.in_flight.remove(position).1),
            None => Err(self.fatal(&format!("sequence {} is not in flight", sequence.0))),
        }
    }

    /// Calls the backend, again while its error is transient. With the number of attempts.
    fn tried<T>(
        &mut self,
        mut call: impl FnMut(&mut dyn Backend) -> Result<T, BackendError>,
    ) -> (Result<T, BackendError>, u32) {
        let mut attempts = 1;
        loop {
            match call(self.backend) {
                Err(error) if error.fate == Fate::Transient && attempts <= self.job.limits.transient_retries_max => {
                    tracing::debug!(device = %self.device, %error, attempts, "a device call is tried again");
                    attempts += 1;
                }
                done => return (done, attempts),
            }
        }
    }

    fn fatal(&self, message: &str) -> PipelineError {
        PipelineError::Fatal(format!("device {}: {message}", self.device))
    }
}
