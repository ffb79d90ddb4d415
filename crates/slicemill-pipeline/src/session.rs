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
//!
//! An image for which there is no memory beside others is put aside and has the device to itself later, in a session of
//! its own. Only there it fails as `out_of_memory`, so that this too does not depend on its company.
//!
//! Every call of the backend goes through the [`Pulse`], which says what the device is at. A session that was abandoned
//! because a call took too long learns it when the call ends, as a fatal error, and touches nothing any more.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::atomic::Ordering::Relaxed,
    time::Instant,
};

use slicemill_core::{ErrorClass, Fate, RowError, RowOutcome, Stage, TaskKind, row_seed};
use tokio::sync::mpsc::{UnboundedReceiver, error::TryRecvError};

use crate::{
    Backend, BackendError, BusyStage, DeviceCall, DeviceId, GenerateRequest, Generated, InputRef, PipelineError, Pulse,
    SequenceId, VisualHandle,
    annotate::{Job, millis},
    batch::PreparedBatch,
    outcomes::Outcomes,
    plan::question_error,
    progress::Waiting,
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
    pulse: &'a Pulse,
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
    /// Rows for which there was no memory beside others.
    aside: Vec<usize>,
}

/// What a call of the backend gave, and how often it was tried.
type Tried<T> = (Result<T, (Option<SequenceId>, BackendError)>, u32);

impl<'a> Session<'a> {
    pub(crate) fn new(
        backend: &'a mut dyn Backend,
        pulse: &'a Pulse,
        device: DeviceId,
        job: &'a Job,
        rows: &'a [InputRef],
        outcomes: &'a Outcomes,
        patches_max: u64,
    ) -> Self {
        let sequences_full = job.limits.sequences_max.min(backend.limits().sequences_max).max(1) as usize;
        Self {
            backend,
            pulse,
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
            aside: Vec::new(),
        }
    }

    /// Works until the last batch is done, an error is fatal, or nobody waits any more. In every case nothing of the
    /// chunk stays on the device. Gives the rows for which there was no memory beside others.
    pub(crate) fn run(
        mut self,
        first: PreparedBatch,
        mut batches: UnboundedReceiver<PreparedBatch>,
    ) -> Result<Vec<usize>, PipelineError> {
        self.at_hand.push_back(first);
        let ended = self.work(&mut batches);
        for (sequence, ask) in std::mem::take(&mut self.in_flight) {
            self.abandon(sequence, ask);
        }
        for (index, image) in std::mem::take(&mut self.images) {
            self.release(index, image.handle);
        }
        ended.map(|()| self.aside)
    }

    fn work(&mut self, batches: &mut UnboundedReceiver<PreparedBatch>) -> Result<(), PipelineError> {
        while !self.pulse.is_cancelled() {
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
            let started = Instant::now();
            let next = batches.blocking_recv().map_or(Next::End, Next::Batch);
            self.job.progress.waited(Waiting::Device, started.elapsed());
            return next;
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
        let rows = batch.facts.iter().map(|facts| facts.index).collect();
        let (encoded, attempts) = self.tried(DeviceCall::Encode, rows, |backend| named(backend.encode(&batch.images)));
        let time = started.elapsed();
        let handles = match encoded {
            Ok(handles) => handles,
            Err((_, error)) => return self.encode_failed(batch, error, attempts),
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
            self.note_memory(&error);
            let (first, second) = batch.halves();
            self.at_hand.push_front(second);
            self.at_hand.push_front(first);
            return Ok(());
        }
        for facts in &batch.facts {
            if error.class == ErrorClass::OutOfMemory && !self.images.is_empty() {
                self.note_memory(&error);
                self.aside.push(facts.index);
                continue;
            }
            let error = RowError::new(error.class, Stage::Encode, error.message.clone());
            self.fail(facts.index, error, attempts);
        }
        Ok(())
    }

    /// Reads the visual tokens of an encode job's image.
    fn read_out(&mut self, index: usize) -> Result<(), PipelineError> {
        let Some(image) = self.images.get(&index) else { return Ok(()) };
        let handle = image.handle;
        let expected = u64::from(image.facts.planned.visual_tokens) * u64::from(self.job.factory.card().width);
        let (read, attempts) =
            self.tried(DeviceCall::ReadTokens, vec![index], |backend| named(backend.read_tokens(handle)));
        let short_of_memory = matches!(&read, Err((_, error)) if is_out_of_memory(error));
        if short_of_memory && self.images.len() > 1 {
            self.put_aside(index);
            return Ok(());
        }
        let Some(image) = self.take_image(index) else { return Ok(()) };
        match read {
            Ok(tokens) if tokens.len() as u64 == expected => {
                let outcome = image.into_tokens_row(self.job, &self.rows[index], self.device, tokens);
                self.put(index, outcome);
                Ok(())
            }
            Ok(tokens) => {
                let (key, got) = (&self.rows[index].key, tokens.len());
                Err(self.fatal(&format!("{key} was planned with {expected} values of visual tokens and has {got}")))
            }
            Err((_, error)) if error.fate == Fate::Fatal => Err(self.fatal(&error.message)),
            Err((_, error)) => {
                self.fail(index, RowError::new(error.class, Stage::Encode, error.message), attempts);
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
        let (admitted, attempts) =
            self.tried(DeviceCall::Admit, vec![ask.image], |backend| named(backend.admit(request.clone())));
        match admitted {
            Ok(sequence) => {
                self.in_flight.push((sequence, ask));
                Ok(())
            }
            Err((_, error)) if error.fate == Fate::Fatal => Err(self.fatal(&error.message)),
            Err((_, error)) if is_out_of_memory(&error) && !self.in_flight.is_empty() => {
                // It will fit when others have finished; if not even alone, it fails.
                self.note_memory(&error);
                self.sequences_max = self.in_flight.len();
                self.waiting.push_front(ask);
                Ok(())
            }
            Err((_, error)) => self.answer(ask, Err(error), attempts),
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
        let rows = self.in_flight.iter().map(|(_, ask)| ask.image).collect();
        let (stepped, attempts) = self.tried(DeviceCall::Step, rows, |backend| backend.step());
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
            self.abandon(sequence, ask);
        }
        if is_out_of_memory(&error) && !self.in_flight.is_empty() {
            self.note_memory(&error);
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
            self.abandon(sequence, ask);
            // It was this one; the others may run together again.
            self.sequences_max = self.sequences_full;
            return self.answer(ask, Err(error), attempts);
        }
        tracing::debug!(device = %self.device, sequences = self.in_flight.len(), %error, "a step failed and is halved");
        for (sequence, ask) in self.in_flight.split_off(keep).into_iter().rev() {
            self.abandon(sequence, ask);
            self.waiting.push_front(ask);
        }
        self.note_memory(&error);
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
        let short_of_memory = matches!(&answer, Err(error) if is_out_of_memory(error));
        if short_of_memory && self.images.len() > 1 {
            self.put_aside(ask.image);
            return Ok(());
        }
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
        self.put(ask.image, outcome);
        Ok(())
    }

    /// Leaves an image, for which there is no memory beside others, for a session of its own.
    fn put_aside(&mut self, index: usize) {
        tracing::debug!(device = %self.device, key = self.rows[index].key, "no memory for this row beside others");
        self.job.progress.oom_halvings.fetch_add(1, Relaxed);
        self.waiting.retain(|ask| ask.image != index);
        let (of_it, others) = std::mem::take(&mut self.in_flight).into_iter().partition(|(_, ask)| ask.image == index);
        self.in_flight = others;
        let of_it: Vec<_> = of_it;
        for (sequence, ask) in of_it {
            self.abandon(sequence, ask);
        }
        if self.take_image(index).is_some() {
            self.aside.push(index);
        }
    }

    /// Counts that less runs together because memory is short.
    fn note_memory(&self, error: &BackendError) {
        if is_out_of_memory(error) {
            self.job.progress.oom_halvings.fetch_add(1, Relaxed);
        }
    }

    fn put(&self, index: usize, outcome: RowOutcome) {
        self.outcomes.put(index, outcome, &self.job.progress);
        self.pulse.row_done();
    }

    fn fail(&self, index: usize, error: RowError, attempts: u32) {
        self.outcomes.fail(index, &self.rows[index], error, attempts, &self.job.progress);
        self.pulse.row_done();
    }

    /// Takes an image off the device.
    fn take_image(&mut self, index: usize) -> Option<Resident> {
        let image = self.images.remove(&index)?;
        self.release(index, image.handle);
        Some(image)
    }

    fn release(&mut self, index: usize, image: VisualHandle) {
        let backend = &mut *self.backend;
        self.pulse.during(DeviceCall::Release, vec![index], || backend.release(image));
    }

    fn abandon(&mut self, sequence: SequenceId, ask: Ask) {
        let backend = &mut *self.backend;
        self.pulse.during(DeviceCall::Release, vec![ask.image], || backend.abandon(sequence));
    }

    fn take_sequence(&mut self, sequence: SequenceId) -> Result<Ask, PipelineError> {
        match self.in_flight.iter().position(|(id, _)| *id == sequence) {
            Some(position) => Ok(self.in_flight.remove(position).1),
            None => Err(self.fatal(&format!("sequence {} is not in flight", sequence.0))),
        }
    }

    /// Calls the backend for these rows, again while its error is transient. With the number of attempts.
    fn tried<T>(
        &mut self,
        call: DeviceCall,
        rows: Vec<usize>,
        mut work: impl FnMut(&mut dyn Backend) -> Result<T, (Option<SequenceId>, BackendError)>,
    ) -> Tried<T> {
        let mut attempts = 1;
        loop {
            let started = Instant::now();
            let backend = &mut *self.backend;
            let Some(done) = self.pulse.during(call, rows.clone(), || work(backend)) else {
                return (Err((None, abandoned())), attempts);
            };
            let progress = &self.job.progress;
            let generates = matches!(call, DeviceCall::Admit | DeviceCall::Step);
            let stage = if generates { BusyStage::Generate } else { BusyStage::Encode };
            progress.busy(stage, started.elapsed());
            match done {
                Err((_, error))
                    if error.fate == Fate::Transient && attempts <= self.job.limits.transient_retries_max =>
                {
                    tracing::debug!(device = %self.device, %call, %error, attempts, "a device call is tried again");
                    progress.device_retries.fetch_add(1, Relaxed);
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

fn named<T>(done: Result<T, BackendError>) -> Result<T, (Option<SequenceId>, BackendError)> {
    done.map_err(|error| (None, error))
}

fn is_out_of_memory(error: &BackendError) -> bool {
    error.class == ErrorClass::OutOfMemory && error.fate != Fate::Fatal
}

/// Ends a session that does not count any more; nobody reads it.
fn abandoned() -> BackendError {
    let message = "its worker was given up because a call took too long".into();
    BackendError { fate: Fate::Fatal, class: ErrorClass::DeviceHung, message }
}
