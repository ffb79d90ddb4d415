//! The candle backend: one model on one device, images in its memory, sequences in flight.
//!
//! ```text
//!   encode   views of all images ─▶ tower ─▶ projector ─▶ visual tokens, kept by handle
//!   admit    pieces of the prompt ─▶ embeddings ─▶ prefill into a slot ─▶ first token
//!   step     last token of every sequence ─▶ one pass, each at its own position ─▶ next tokens
//! ```
//!
//! A sequence has one slot, or as many as its beam search has beams. Its prompt is run once and copied to the others;
//! after a step, a beam that continues another's takes over its slot, and only where two continue the same one is
//! anything copied: the tokens in which their slots differ.
//!
//! A slot remembers which image's prefix it holds (everything up to the end of the visual tokens), also after its
//! sequence has ended. The next question about the same image copies that prefix and prefills only what follows. The
//! result is the same to the bit: a token's keys and values do not depend on what comes after it.

mod sequence;
mod slots;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use candle_core::Tensor;
use rayon::prelude::*;
use slicemill_core::{ErrorClass, SlicePlan};
use slicemill_pipeline::{
    Backend, BackendError, BackendLimits, FinishReason, GenerateRequest, Generated, PreparedImage, SequenceId,
    VisualHandle,
};

use crate::config::small;
use crate::decoder::Logits;
use crate::error::{fatal, row, runtime};
use crate::factory::BackendOptions;
use crate::kernels;
use crate::kv_cache::{Batch, DeviceBatch, DeviceCache, HostSlot, HostSpan, SlotCopy};
use crate::model::Model;
use crate::ops::Engine;
use crate::prompt::{Piece, PromptAssembler, Sequence};

use self::sequence::{Choice, InFlight, Output, Progress};
use self::slots::{Cache, SlotState, State};

/// A step whose weights fit in caches is split over threads by sequences, which then run without waiting for each other.
const CACHED_BYTES: usize = 32 << 20;

/// A model on one device.
pub struct CandleBackend {
    model: Arc<Model>,
    prompts: Arc<PromptAssembler>,
    /// Tokens that end the output.
    pub(crate) eos: Vec<u32>,
    limits: BackendLimits,
    /// Most beams of a sequence.
    beams_max: usize,
    context: usize,
    pool: Option<rayon::ThreadPool>,
    state: State,
}

struct Image {
    /// `[visual tokens, width]`.
    tokens: Tensor,
    plan: Arc<SlicePlan>,
}

impl CandleBackend {
    pub(crate) fn new(
        model: Arc<Model>,
        prompts: Arc<PromptAssembler>,
        context: usize,
        options: &BackendOptions,
    ) -> Result<Self, BackendError> {
        let (sequences, beams_max) = (options.sequences_max.max(1) as usize, options.beams_max.max(1) as usize);
        let slots = sequences.saturating_mul(beams_max);
        let config = &model.decoder.config;
        let cache = match model.place.engine {
            Engine::Kernels(isa) => Cache::Host(isa, (0..slots).map(|_| HostSlot::default()).collect()),
            Engine::Candle => Cache::Device(
                DeviceCache::new(&model.place, config.attention, config.layers, slots, context).map_err(|e| {
                    let beams = if beams_max > 1 { format!(" with {beams_max} beams") } else { String::new() };
                    fatal(format!(
                        "no room for {sequences} sequences of {context} tokens{beams}: {e}; lower the number of sequences"
                    ))
                })?,
            ),
        };
        let pool = match options.cpu_threads {
            None => None,
            Some(threads) => Some(
                rayon::ThreadPoolBuilder::new()
                    .num_threads(threads.max(1))
                    .build()
                    .map_err(|e| fatal(format!("{threads} threads cannot be started: {e}")))?,
            ),
        };
        Ok(Self {
            model,
            eos: prompts.eos().to_vec(),
            prompts,
            limits: BackendLimits {
                batch_views_max: options.batch_views_max.max(1),
                batch_patches_max: options.batch_patches_max.max(1),
                sequences_max: small(sequences),
            },
            beams_max,
            context,
            pool,
            state: State {
                cache,
                slots: vec![SlotState::default(); slots],
                images: BTreeMap::new(),
                next_image: 0,
                next_sequence: 0,
                in_flight: Vec::new(),
                finished: Vec::new(),
                failed: VecDeque::new(),
            },
        })
    }

    fn check(&self, image: &PreparedImage) -> Result<(), BackendError> {
        let values = 3 * (image.plan.patch as usize).pow(2);
        let expected = image.plan.views();
        let fits = image.views.len() == expected.len()
            && image.views.iter().zip(&expected).all(|(view, plan)| {
                (view.patches_wide, view.patches_high) == (plan.patches_wide, plan.patches_high)
                    && view.patches.len() == plan.patches() as usize * values
            });
        if fits { Ok(()) } else { Err(row(ErrorClass::ModelFailed, "the views do not have the sizes of their plan")) }
    }

    fn encode_all(&mut self, images: &[PreparedImage]) -> Result<Vec<VisualHandle>, BackendError> {
        images.iter().try_for_each(|image| self.check(image))?;
        let views: Vec<_> = images.iter().flat_map(|image| &image.views).collect();
        let tokens = self.model.encode(&views).map_err(|e| runtime(&e))?;
        let mut start = 0;
        let mut kept = Vec::with_capacity(images.len());
        for image in images {
            let count: usize = image.views.iter().map(|view| self.model.tokens_of(view)).sum();
            // Copied, so that an image that is released frees its memory.
            let tokens = tokens.narrow(0, start, count).and_then(|t| t.force_contiguous()).map_err(|e| runtime(&e))?;
            kept.push(Image { tokens, plan: Arc::clone(&image.plan) });
            start += count;
        }
        let handles = kept.into_iter().map(|image| {
            let handle = self.state.next_image;
            self.state.next_image += 1;
            self.state.images.insert(handle, image);
            VisualHandle(handle)
        });
        Ok(handles.collect())
    }

    fn admit_one(&mut self, request: &GenerateRequest) -> Result<SequenceId, BackendError> {
        let start = Instant::now();
        self.check_beams(request.params.num_beams)?;
        let Some(image) = self.state.images.get(&request.image.0) else {
            return Err(fatal(format!("image {} is not on this device", request.image.0)));
        };
        let mut sequence = self
            .prompts
            .assemble(&request.prompt, &image.plan)
            .map_err(|message| row(ErrorClass::ModelFailed, message))?;
        if self.model.decoder.prefix_depends_on_length(sequence.tokens) {
            sequence.shared = 0;
        }
        let tokens = sequence.tokens;
        if tokens >= self.context {
            return Err(too_long(tokens, image.tokens.dim(0).unwrap_or(0), self.context));
        }
        let tokens_max = (request.params.max_new_tokens as usize).min(self.context - tokens);
        let choice = Choice::new(&request.params, request.seed, tokens_max)
            .map_err(|message| row(ErrorClass::ModelFailed, message))?;
        let slot = self.state.take_slot(request.image.0, sequence.shared, tokens + tokens_max, &self.model)?;
        let logits = match self.prefill(slot, request.image.0, &sequence) {
            Ok(logits) => logits,
            Err(error) => {
                self.state.slots[slot] = SlotState::default();
                return Err(error);
            }
        };
        let new = InFlight {
            id: SequenceId(self.state.next_sequence),
            slots: vec![slot],
            copies: Vec::new(),
            choice,
            prompt_tokens: tokens,
            prompt_cut: sequence.cut,
            prefill_ms: start.elapsed().as_secs_f32() * 1e3,
            decode_start: Instant::now(),
        };
        let id = new.id;
        self.begin(new, &logits, (request.image.0, sequence.shared), tokens_max)?;
        self.state.next_sequence += 1;
        Ok(id)
    }

    /// Whether so many beams can be admitted now.
    fn check_beams(&self, beams: u32) -> Result<(), BackendError> {
        if beams as usize > self.beams_max {
            return Err(fatal(format!(
                "a prompt asks for {beams} beams and the model was opened for at most {}: open it with the number of \
                 beams of the job",
                self.beams_max
            )));
        }
        let (vocab, ends) = (self.model.decoder.config.vocab, self.eos.len());
        if beams > 1 && beams as usize + ends > vocab {
            return Err(fatal(format!("{beams} beams are more than a vocabulary of {vocab} tokens can start")));
        }
        if (beams as usize) > self.state.free() {
            return Err(fatal("all sequences are in flight; step before another is admitted"));
        }
        Ok(())
    }

    /// Takes the first tokens of a sequence from the logits after its prompt, and puts it in flight when it goes on.
    fn begin(
        &mut self,
        mut new: InFlight,
        logits: &Logits,
        prefix: (u64, usize),
        tokens_max: usize,
    ) -> Result<(), BackendError> {
        let first = new.slots[0];
        let progress = if tokens_max == 0 {
            Ok(Progress::Ends(Output { ids: Vec::new(), finish: FinishReason::Length, steps: 0 }))
        } else {
            new.advance(&[logits.of(0)], &self.eos)
        };
        match progress {
            Ok(Progress::Goes) => {
                let lengths = (new.prompt_tokens, new.prompt_tokens + tokens_max);
                let more = new.choice.last_tokens().len() - 1;
                match self.state.take_twins(first, more, prefix, lengths, &self.model) {
                    Ok(twins) => new.slots.extend(twins),
                    Err(error) => {
                        self.state.release(&new.slots);
                        return Err(error);
                    }
                }
                self.state.in_flight.push(new);
                Ok(())
            }
            Ok(Progress::Ends(output)) => {
                self.state.release(&new.slots);
                self.finish(&new, output)
            }
            Err(message) => {
                self.state.spoil(&new.slots);
                Err(row(ErrorClass::ModelFailed, message))
            }
        }
    }

    /// Runs a prompt into its slot, from the prefix that the slot holds already.
    fn prefill(&mut self, slot: usize, image: u64, sequence: &Sequence) -> Result<Logits, BackendError> {
        let held = self.state.slots[slot].prefix.map_or(0, |(_, tokens)| tokens);
        let start = held.min(sequence.shared).min(sequence.tokens - 1);
        let Some(visual) = self.state.images.get(&image).map(|image| image.tokens.clone()) else {
            return Err(fatal("the image is gone"));
        };
        let embedded = self.embed(sequence, start, &visual).map_err(|e| runtime(&e))?;
        let tokens = sequence.tokens - start;
        let mut batch = match &mut self.state.cache {
            Cache::Host(isa, slots) => Batch::Host(*isa, vec![HostSpan { slot: &mut slots[slot], start, tokens }]),
            Cache::Device(cache) => Batch::Device(DeviceBatch::prefill(cache, slot, start, tokens)),
        };
        let logits = self.model.decoder.forward(&embedded, &mut batch).map_err(|e| runtime(&e))?;
        if sequence.shared > 0 {
            self.state.slots[slot].prefix = Some((image, sequence.shared));
        }
        Ok(logits)
    }

    /// Embeddings of a sequence from token `start` on, `[tokens − start, width]`.
    fn embed(&self, sequence: &Sequence, start: usize, visual: &Tensor) -> candle_core::Result<Tensor> {
        let (mut position, mut next_visual, mut parts) = (0, 0, Vec::with_capacity(sequence.pieces.len()));
        for piece in &sequence.pieces {
            let length = piece.tokens();
            let skipped = start.saturating_sub(position).min(length);
            if skipped < length {
                parts.push(match piece {
                    Piece::Tokens(ids) => self.model.decoder.embed(&ids[skipped..])?,
                    Piece::View(_) => visual.narrow(0, next_visual + skipped, length - skipped)?,
                });
            }
            if matches!(piece, Piece::View(_)) {
                next_visual += length;
            }
            position += length;
        }
        Tensor::cat(&parts, 0)
    }

    fn finish(&mut self, done: &InFlight, output: Output) -> Result<(), BackendError> {
        let text = self.prompts.decode(&output.ids).map_err(|message| row(ErrorClass::ModelFailed, message))?;
        self.state.finished.push(Generated {
            sequence: done.id,
            token_ids: output.ids,
            decode_steps: small(output.steps),
            text,
            finish: output.finish,
            prompt_tokens: small(done.prompt_tokens),
            prompt_cut: small(done.prompt_cut),
            prefill_ms: done.prefill_ms,
            decode_ms: done.decode_start.elapsed().as_secs_f32() * 1e3,
        });
        Ok(())
    }

    /// Copies what beams have in common to the slots in which they go on.
    fn copy_beams(&mut self) -> candle_core::Result<()> {
        let copies: Vec<SlotCopy> = self.state.in_flight.iter().flat_map(|s| &s.copies).cloned().collect();
        if !copies.is_empty() {
            let config = &self.model.decoder.config;
            self.state.cache.copy(&copies, config.attention, config.layers)?;
            self.state.in_flight.iter_mut().for_each(|sequence| sequence.copies.clear());
        }
        Ok(())
    }

    /// One pass over the last token of every beam of every sequence in flight: the logits of each beam, in order.
    fn decode(&mut self) -> candle_core::Result<Vec<Logits>> {
        self.copy_beams()?;
        let mut ids = Vec::new();
        let (mut slots_of_rows, mut positions) = (Vec::new(), Vec::new());
        for sequence in &self.state.in_flight {
            let last = sequence.choice.last_tokens();
            slots_of_rows.extend(&sequence.slots[..last.len()]);
            positions.extend(std::iter::repeat_n(sequence.position(), last.len()));
            ids.extend(last);
        }
        let x = self.model.decoder.embed(&ids)?;
        let decoder = &self.model.decoder;
        match &mut self.state.cache {
            Cache::Device(cache) => {
                Ok(vec![decoder.forward(&x, &mut Batch::Device(DeviceBatch::decode(cache, slots_of_rows, positions)))?])
            }
            Cache::Host(isa, slots) => {
                let mut free: Vec<Option<&mut HostSlot>> = slots.iter_mut().map(Some).collect();
                let spans = slots_of_rows
                    .iter()
                    .zip(&positions)
                    .filter_map(|(&slot, &start)| Some(HostSpan { slot: free[slot].take()?, start, tokens: 1 }));
                let mut spans: VecDeque<HostSpan<'_>> = spans.collect();
                let threads = if decoder.step_bytes() <= CACHED_BYTES { kernels::threads() } else { 1 };
                let size = spans.len().div_ceil(threads);
                let mut groups = Vec::new();
                let mut start = 0;
                while !spans.is_empty() {
                    let group: Vec<HostSpan<'_>> = spans.drain(..size.min(spans.len())).collect();
                    let count = group.len();
                    groups.push((x.narrow(0, start, count)?, Batch::Host(*isa, group)));
                    start += count;
                }
                if let [(x, batch)] = groups.as_mut_slice() {
                    return Ok(vec![decoder.forward(x, batch)?]);
                }
                groups
                    .into_par_iter()
                    .map(|(x, mut batch)| kernels::alone(|| decoder.forward(&x, &mut batch)))
                    .collect()
            }
        }
    }

    fn step_all(&mut self) -> Result<Vec<Generated>, (Option<SequenceId>, BackendError)> {
        if self.state.failed.is_empty() && !self.state.in_flight.is_empty() {
            let logits = self.decode().map_err(|e| (None, runtime(&e)))?;
            for (sequence, progress) in self.advance_all(&logits) {
                let (id, slots) = (sequence.id, &sequence.slots);
                let ended = match progress {
                    Ok(Progress::Goes) => {
                        self.state.in_flight.push(sequence);
                        continue;
                    }
                    Ok(Progress::Ends(output)) => {
                        self.state.release(slots);
                        self.finish(&sequence, output)
                    }
                    Err(message) => {
                        self.state.spoil(slots);
                        Err(row(ErrorClass::ModelFailed, message))
                    }
                };
                if let Err(error) = ended {
                    self.state.failed.push_back((id, error));
                }
            }
        }
        if let Some((id, error)) = self.state.failed.pop_front() {
            return Err((Some(id), error));
        }
        let mut finished = std::mem::take(&mut self.state.finished);
        finished.sort_by_key(|generated| generated.sequence);
        Ok(finished)
    }

    /// Takes all sequences out of flight and lets each choose from its own logits.
    fn advance_all(&mut self, logits: &[Logits]) -> Vec<(InFlight, Result<Progress, String>)> {
        let eos = self.eos.as_slice();
        let mut rows = logits.iter().flat_map(Logits::rows);
        let sequences = std::mem::take(&mut self.state.in_flight).into_iter();
        let jobs: Vec<(InFlight, Vec<&[f32]>)> = sequences
            .map(|sequence| {
                let beams = sequence.choice.last_tokens().len();
                (sequence, rows.by_ref().take(beams).collect())
            })
            .collect();
        let advance = |(mut sequence, rows): (InFlight, Vec<&[f32]>)| {
            let progress = sequence.advance(&rows, eos);
            (sequence, progress)
        };
        jobs.into_par_iter().map(advance).collect()
    }

    /// Runs `f` on this backend's threads.
    fn on_pool<R: Send>(&mut self, f: impl FnOnce(&mut Self) -> R + Send) -> R {
        match self.pool.take() {
            None => f(self),
            Some(pool) => {
                let result = pool.install(|| f(self));
                self.pool = Some(pool);
                result
            }
        }
    }
}

fn too_long(tokens: usize, visual: usize, context: usize) -> BackendError {
    row(
        ErrorClass::PromptTooLong,
        format!(
            "the prompt has {tokens} tokens, {visual} of them visual, and the model takes {context} with its answer; \
             shorten the question or lower --max-slices"
        ),
    )
}

impl Backend for CandleBackend {
    fn limits(&self) -> BackendLimits {
        self.limits
    }

    fn encode(&mut self, images: &[PreparedImage]) -> Result<Vec<VisualHandle>, BackendError> {
        if images.is_empty() {
            return Ok(Vec::new());
        }
        self.on_pool(|backend| backend.encode_all(images))
    }

    fn read_tokens(&mut self, image: VisualHandle) -> Result<Vec<f32>, BackendError> {
        let Some(image) = self.state.images.get(&image.0) else {
            return Err(fatal(format!("image {} is not on this device", image.0)));
        };
        let values: candle_core::Result<Vec<f32>> =
            image.tokens.to_dtype(candle_core::DType::F32).and_then(|t| t.flatten_all()?.to_vec1());
        let values = values.map_err(|e| runtime(&e))?;
        if values.iter().any(|x| !x.is_finite()) {
            return Err(row(ErrorClass::ModelFailed, "the visual tokens are not finite numbers"));
        }
        Ok(values)
    }

    fn free_sequences(&self) -> u32 {
        small(self.state.free() / self.beams_max)
    }

    fn admit(&mut self, request: GenerateRequest) -> Result<SequenceId, BackendError> {
        self.on_pool(|backend| backend.admit_one(&request))
    }

    fn step(&mut self) -> Result<Vec<Generated>, (Option<SequenceId>, BackendError)> {
        self.on_pool(Self::step_all)
    }

    fn abandon(&mut self, sequence: SequenceId) {
        let state = &mut self.state;
        if let Some(at) = state.in_flight.iter().position(|known| known.id == sequence) {
            let slots = state.in_flight.remove(at).slots;
            state.release(&slots);
        }
        state.finished.retain(|generated| generated.sequence != sequence);
        state.failed.retain(|(id, _)| *id != sequence);
    }

    fn release(&mut self, image: VisualHandle) {
        self.state.images.remove(&image.0);
    }
}
