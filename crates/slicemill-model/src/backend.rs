//! The candle backend: one model on one device, images in its memory, sequences in flight.
//!
//! ```text
//!   encode   views of all images ─▶ tower ─▶ projector ─▶ visual tokens, kept by handle
//!   admit    pieces of the prompt ─▶ embeddings ─▶ prefill into a slot ─▶ first token
//!   step     last token of every sequence ─▶ one pass, each at its own position ─▶ next tokens
//! ```
//!
//! A slot remembers which image's prefix it holds (everything up to the end of the visual tokens), also after its
//! sequence has ended. The next question about the same image copies that prefix and prefills only what follows. The
//! result is the same to the bit: a token's keys and values do not depend on what comes after it.

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
use crate::kernels::{self, Isa};
use crate::kv_cache::{Batch, DeviceBatch, DeviceCache, HostSlot, HostSpan};
use crate::model::Model;
use crate::ops::Engine;
use crate::prompt::{Piece, PromptAssembler, Sequence};
use crate::sampler::Sampler;

/// A step whose weights fit in caches is split over threads by sequences, which then run without waiting for each other.
const CACHED_BYTES: usize = 32 << 20;

/// A model on one device.
pub struct CandleBackend {
    model: Arc<Model>,
    prompts: Arc<PromptAssembler>,
    limits: BackendLimits,
    context: usize,
    pool: Option<rayon::ThreadPool>,
    state: State,
}

/// Everything that changes.
struct State {
    cache: Cache,
    slots: Vec<SlotState>,
    images: BTreeMap<u64, Image>,
    next_image: u64,
    next_sequence: u64,
    /// In order of admission.
    in_flight: Vec<InFlight>,
    finished: Vec<Generated>,
    failed: VecDeque<(SequenceId, BackendError)>,
}

enum Cache {
    Host(Isa, Vec<HostSlot>),
    Device(DeviceCache),
}

#[derive(Clone, Default)]
struct SlotState {
    busy: bool,
    /// Image and number of tokens of the prefix that the slot holds.
    prefix: Option<(u64, usize)>,
}

struct Image {
    /// `[visual tokens, width]`.
    tokens: Tensor,
    plan: Arc<SlicePlan>,
}

struct InFlight {
    id: SequenceId,
    slot: usize,
    sampler: Sampler,
    produced: Vec<u32>,
    prompt_tokens: usize,
    /// Tokens that were cut off the prompt.
    prompt_cut: usize,
    tokens_max: usize,
    prefill_ms: f32,
    decode_start: Instant,
}

/// What became of a sequence after a token.
enum Progress {
    Goes,
    Ends(FinishReason),
}

impl InFlight {
    /// Position of the last produced token, which has not been run.
    fn position(&self) -> usize {
        self.prompt_tokens + self.produced.len() - 1
    }

    fn advance(&mut self, logits: &[f32], eos: &[u32], context: usize) -> Result<Progress, String> {
        let token = self.sampler.next(logits)?;
        if eos.contains(&token) {
            return Ok(Progress::Ends(FinishReason::Stop));
        }
        self.produced.push(token);
        let full = self.produced.len() >= self.tokens_max || self.prompt_tokens + self.produced.len() >= context;
        Ok(if full { Progress::Ends(FinishReason::Length) } else { Progress::Goes })
    }
}

impl CandleBackend {
    pub(crate) fn new(
        model: Arc<Model>,
        prompts: Arc<PromptAssembler>,
        context: usize,
        options: &BackendOptions,
    ) -> Result<Self, BackendError> {
        let sequences = options.sequences_max.max(1) as usize;
        let config = &model.decoder.config;
        let cache = match model.place.engine {
            Engine::Kernels(isa) => Cache::Host(isa, (0..sequences).map(|_| HostSlot::default()).collect()),
            Engine::Candle => Cache::Device(
                DeviceCache::new(&model.place, config.attention, config.layers, sequences, context).map_err(|e| {
                    fatal(format!(
                        "no room for {sequences} sequences of {context} tokens: {e}; lower the number of sequences"
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
            prompts,
            limits: BackendLimits {
                batch_views_max: options.batch_views_max.max(1),
                batch_patches_max: options.batch_patches_max.max(1),
                sequences_max: small(sequences),
            },
            context,
            pool,
            state: State {
                cache,
                slots: vec![SlotState::default(); sequences],
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
        let sampler =
            Sampler::new(&request.params, request.seed).map_err(|message| row(ErrorClass::ModelFailed, message))?;
        let tokens_max = request.params.max_new_tokens as usize;
        let room = tokens.saturating_add(tokens_max).min(self.context);
        let slot = self.state.take_slot(request.image.0, sequence.shared, room, &self.model)?;
        let logits = match self.prefill(slot, request.image.0, &sequence) {
            Ok(logits) => logits,
            Err(error) => {
                self.state.slots[slot] = SlotState::default();
                return Err(error);
            }
        };
        let mut new = InFlight {
            id: SequenceId(self.state.next_sequence),
            slot,
            sampler,
            produced: Vec::new(),
            prompt_tokens: tokens,
            prompt_cut: sequence.cut,
            tokens_max,
            prefill_ms: start.elapsed().as_secs_f32() * 1e3,
            decode_start: Instant::now(),
        };
        let progress = if tokens_max == 0 {
            Ok(Progress::Ends(FinishReason::Length))
        } else {
            new.advance(logits.of(0), self.prompts.eos(), self.context)
        };
        let id = new.id;
        match progress {
            Ok(Progress::Goes) => self.state.in_flight.push(new),
            Ok(Progress::Ends(finish)) => {
                self.state.slots[slot].busy = false;
                self.finish(&new, finish)?;
            }
            Err(message) => {
                self.state.spoil(slot);
                return Err(row(ErrorClass::ModelFailed, message));
            }
        }
        self.state.next_sequence += 1;
        Ok(id)
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

    fn finish(&mut self, done: &InFlight, finish: FinishReason) -> Result<(), BackendError> {
        let text = self.prompts.decode(&done.produced).map_err(|message| row(ErrorClass::ModelFailed, message))?;
        self.state.finished.push(Generated {
            sequence: done.id,
            token_ids: done.produced.clone(),
            text,
            finish,
            prompt_tokens: small(done.prompt_tokens),
            prompt_cut: small(done.prompt_cut),
            prefill_ms: done.prefill_ms,
            decode_ms: done.decode_start.elapsed().as_secs_f32() * 1e3,
        });
        Ok(())
    }

    /// One pass over the last token of every sequence in flight.
    fn decode(&mut self) -> candle_core::Result<Vec<Logits>> {
        let ids: Vec<u32> = self.state.in_flight.iter().filter_map(|s| s.produced.last().copied()).collect();
        let x = self.model.decoder.embed(&ids)?;
        let decoder = &self.model.decoder;
        match &mut self.state.cache {
            Cache::Device(cache) => {
                let slots = self.state.in_flight.iter().map(|s| s.slot).collect();
                let positions = self.state.in_flight.iter().map(InFlight::position).collect();
                Ok(vec![decoder.forward(&x, &mut Batch::Device(DeviceBatch::decode(cache, slots, positions)))?])
            }
            Cache::Host(isa, slots) => {
                let mut free: Vec<Option<&mut HostSlot>> = slots.iter_mut().map(Some).collect();
                let spans = self.state.in_flight.iter().filter_map(|sequence| {
                    let slot = free[sequence.slot].take()?;
                    Some(HostSpan { slot, start: sequence.position(), tokens: 1 })
                });
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
            let rows: Vec<&[f32]> = logits.iter().flat_map(Logits::rows).collect();
            let sequences = std::mem::take(&mut self.state.in_flight);
            for (mut sequence, logits) in sequences.into_iter().zip(rows) {
                let (id, slot) = (sequence.id, sequence.slot);
                let ended = match sequence.advance(logits, self.prompts.eos(), self.context) {
                    Ok(Progress::Goes) => {
                        self.state.in_flight.push(sequence);
                        continue;
                    }
                    Ok(Progress::Ends(finish)) => {
                        self.state.slots[slot].busy = false;
                        self.finish(&sequence, finish)
                    }
                    Err(message) => {
                        self.state.spoil(slot);
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

impl State {
    /// A free slot with room for `room` tokens. When some slot holds the prefix of the same image, so does this one
    /// afterwards.
    fn take_slot(&mut self, image: u64, shared: usize, room: usize, model: &Model) -> Result<usize, BackendError> {
        let holds = |slot: &SlotState| shared > 0 && slot.prefix.is_some_and(|(of, n)| of == image && n >= shared);
        let free = |want: &dyn Fn(&SlotState) -> bool| self.slots.iter().position(|slot| !slot.busy && want(slot));
        let useful = |slot: &SlotState| slot.prefix.is_some_and(|(of, _)| self.images.contains_key(&of));
        let Some(slot) = free(&holds).or_else(|| free(&|slot| !useful(slot))).or_else(|| free(&|_| true)) else {
            return Err(fatal("all sequences are in flight; step before another is admitted"));
        };
        let source = if holds(&self.slots[slot]) { Some(slot) } else { self.slots.iter().position(holds) };
        let (attention, layers) = (model.decoder.config.attention, model.decoder.config.layers);
        let no_memory =
            |e: &dyn std::fmt::Display| row(ErrorClass::OutOfMemory, format!("no memory for {room} tokens: {e}"));
        let mut prefix = None;
        match &mut self.cache {
            Cache::Host(_, slots) => {
                let grows = slots[slot].capacity() < room;
                self.slots[slot].prefix = self.slots[slot].prefix.filter(|_| !grows);
                slots[slot].reserve(attention, layers, room).map_err(|e| no_memory(&e))?;
                match source {
                    Some(from) if from != slot => {
                        if let Ok([to, from]) = slots.get_disjoint_mut([slot, from]) {
                            to.copy_prefix(from, attention, layers, shared);
                            prefix = Some((image, shared));
                        }
                    }
                    Some(_) if !grows => prefix = Some((image, shared)),
                    _ => {}
                }
            }
            Cache::Device(cache) => {
                if let Some(from) = source {
                    if from != slot {
                        cache.copy_prefix(from, slot, shared).map_err(|e| runtime(&e))?;
                    }
                    prefix = Some((image, shared));
                }
            }
        }
        self.slots[slot] = SlotState { busy: true, prefix };
        Ok(slot)
    }

    /// Frees a slot whose numbers are not finite.
    fn spoil(&mut self, slot: usize) {
        self.slots[slot] = SlotState::default();
        if let Cache::Device(cache) = &self.cache
            && let Err(error) = cache.clear(slot)
        {
            tracing::warn!(%error, slot, "a slot of the KV cache could not be cleared");
        }
    }
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
        small(self.state.slots.iter().filter(|slot| !slot.busy).count())
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
            let slot = state.in_flight.remove(at).slot;
            state.slots[slot].busy = false;
        }
        state.finished.retain(|generated| generated.sequence != sequence);
        state.failed.retain(|(id, _)| *id != sequence);
    }

    fn release(&mut self, image: VisualHandle) {
        self.state.images.remove(&image.0);
    }
}
