//! A deterministic model for tests: counts calls, checks the protocol of [`Backend`], fails on demand.
//!
//! What it answers depends on the pixels, the prompt and the seed alone, so content can be compared across limits,
//! devices and failures. It never answers the same for different pixels.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use slicemill_core::{
    DecoderShape, ErrorClass, Fate, GenerationParams, ModelCard, ModelShape, Normalisation, ProjectorShape, Schema,
    SlicePlan, SlicingPolicy, TokenRule, VisionShape,
};

use crate::{
    Backend, BackendError, BackendFactory, BackendLimits, DeviceId, FinishReason, GenerateRequest, Generated,
    PreparedImage, SequenceId, VisualHandle,
};

mod gate;

use gate::Gate;

/// Calls that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FakeCall {
    /// [`BackendFactory::open`].
    Open,
    /// [`Backend::encode`].
    Encode,
    /// [`Backend::read_tokens`].
    ReadTokens,
    /// [`Backend::admit`].
    Admit,
    /// [`Backend::step`], without naming a sequence.
    Step,
    /// [`Backend::step`], naming the oldest sequence in flight.
    StepOldest,
}

/// How a call fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FakeFailure {
    /// With an error.
    Error(Fate, ErrorClass),
    /// With a panic.
    Panic,
    /// It does not return until [`FakeFactory::release_hangs`], or for half a minute; then it goes on as if nothing had
    /// been.
    Hang,
}

/// Failure of the calls `nth` to `nth + times − 1` of a kind, counted from 1 over all devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FakeFault {
    /// Which call.
    pub call: FakeCall,
    /// The first one that fails.
    pub nth: u64,
    /// How many fail.
    pub times: u64,
    /// How.
    pub failure: FakeFailure,
}

/// An image that makes calls fail, wherever it is and whatever is beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FakePoison {
    /// Its width.
    pub width: u32,
    /// [`FakeCall::Encode`], [`FakeCall::ReadTokens`], [`FakeCall::Admit`] or [`FakeCall::Step`].
    pub call: FakeCall,
    /// How many calls fail before it is harmless.
    pub times: u64,
    /// How.
    pub failure: FakeFailure,
}

/// A call runs out of memory when more than this is on its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FakeMemory {
    /// [`FakeCall::Encode`], [`FakeCall::ReadTokens`], [`FakeCall::Admit`] or [`FakeCall::Step`].
    pub call: FakeCall,
    /// Views of all images on the device; for an encode with those of its batch.
    pub views_max: usize,
}

/// How the fake behaves.
#[derive(Debug, Clone)]
pub struct FakeOptions {
    /// Limits of every device.
    pub limits: BackendLimits,
    /// Calls that fail.
    pub faults: Vec<FakeFault>,
    /// Images that make calls fail.
    pub poison: Vec<FakePoison>,
    /// Limits of the device's memory.
    pub memory: Vec<FakeMemory>,
    /// More views than this in one encode run out of memory, even those of one image.
    pub views_memory_max: Option<u32>,
    /// A step of more sequences than this runs out of memory.
    pub sequences_memory_max: Option<u32>,
    /// Prompts that contain this fail at their third token.
    pub bad_prompt: Option<String>,
    /// Images of exactly this plan size (width) cannot be encoded.
    pub bad_width: Option<u32>,
    /// Time every encode and step takes.
    pub call_time: Duration,
}

impl Default for FakeOptions {
    fn default() -> Self {
        Self {
            limits: BackendLimits { batch_views_max: 1024, batch_patches_max: 1 << 20, sequences_max: 64 },
            faults: Vec::new(),
            poison: Vec::new(),
            memory: Vec::new(),
            views_memory_max: None,
            sequences_memory_max: None,
            bad_prompt: None,
            bad_width: None,
            call_time: Duration::ZERO,
        }
    }
}

/// What the fake saw, over all devices.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FakeCounts {
    /// Calls by kind, the failed ones too.
    pub calls: BTreeMap<FakeCall, u64>,
    /// Faults and poison that struck, by call.
    pub fired: BTreeMap<FakeCall, u64>,
    /// Calls that ran out of memory.
    pub out_of_memory: u64,
    /// Times each poison struck, in the order of the options.
    pub poisoned: BTreeMap<usize, u64>,
    /// Calls that hang now.
    pub hanging: usize,
    /// Backends that were opened.
    pub opened: usize,
    /// Backends that were dropped.
    pub closed: usize,
    /// How often each image (hash of its pixels) was encoded with success.
    pub encoded: BTreeMap<u64, u64>,
    /// Views of every successful encode.
    pub batches: Vec<u64>,
    /// Sequences in flight at every step, and sequences that had finished before it.
    pub occupancy: Vec<(usize, usize)>,
    /// Sequences finished.
    pub finished: usize,
    /// Sequences abandoned.
    pub abandoned: usize,
    /// Most images on one device at the same time.
    pub images_peak: usize,
    /// Images that are on a device now.
    pub images_live: usize,
    /// Sequences that are in flight now.
    pub sequences_live: usize,
    /// Breaches of the protocol, in words.
    pub breaches: Vec<String>,
}

/// Opens fake backends and keeps what they count.
#[derive(Debug)]
pub struct FakeFactory {
    card: ModelCard,
    options: FakeOptions,
    counts: Arc<Mutex<FakeCounts>>,
    gate: Arc<Gate>,
}

impl FakeFactory {
    /// A fake with this policy: 4 visual tokens of width 3 per view.
    pub fn new(policy: SlicingPolicy, options: FakeOptions) -> Self {
        let shape = ModelShape {
            vision: VisionShape { width: 8, layers: 2, mlp: 16, patch: policy.patch, class_tokens: 1 },
            projector: ProjectorShape::Resampler { queries: 4 },
            decoder: DecoderShape { width: 3, layers: 2, mlp: 12, heads: 1, kv_heads: 1, head_dim: 3, vocab: 50 },
        };
        let card = ModelCard {
            name: "fake".into(),
            fingerprint: "fa4e".into(),
            family: "fake".into(),
            policy,
            token_rule: TokenRule::Queries(4),
            width: 3,
            schema: Schema::Plain,
            normalisation: Normalisation::HALF,
            shape,
            context_tokens_max: 4096,
            default_prompt: "Describe.".into(),
            generation: GenerationParams { max_new_tokens: 12, ..GenerationParams::default() },
        };
        Self { card, options, counts: Arc::default(), gate: Arc::default() }
    }

    /// Lets calls that hang go on; none hangs from now on.
    pub fn release_hangs(&self) {
        self.gate.open();
    }

    /// What was counted so far.
    pub fn counts(&self) -> FakeCounts {
        lock(&self.counts).clone()
    }

    /// Changes the card, for example its context.
    pub const fn card_mut(&mut self) -> &mut ModelCard {
        &mut self.card
    }
}

fn lock(counts: &Mutex<FakeCounts>) -> MutexGuard<'_, FakeCounts> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

fn text_tokens(prompt: &str) -> u32 {
    u32::try_from(prompt.split_whitespace().count()).unwrap_or(u32::MAX)
}

impl BackendFactory for FakeFactory {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn prompt_tokens(&self, prompt: &str, plan: &SlicePlan) -> Result<u32, BackendError> {
        let visual = u32::try_from(plan.visual_tokens(self.card.token_rule)).unwrap_or(u32::MAX);
        Ok(visual.saturating_add(text_tokens(prompt)))
    }

    fn open(&self, device: DeviceId) -> Result<Box<dyn Backend>, BackendError> {
        lock(&self.counts).opened += 1;
        let mut backend = FakeBackend {
            device,
            options: self.options.clone(),
            counts: Arc::clone(&self.counts),
            gate: Arc::clone(&self.gate),
            next: 0,
            images: BTreeMap::new(),
            in_flight: Vec::new(),
            broken: false,
        };
        backend.count(FakeCall::Open)?;
        Ok(Box::new(backend))
    }
}

struct FakeImage {
    hash: u64,
    width: u32,
    visual_tokens: u32,
    views: usize,
}

struct FakeSequence {
    id: SequenceId,
    image: VisualHandle,
    request: GenerateRequest,
    prompt_tokens: u32,
    token_ids: Vec<u32>,
    /// Tokens it will have.
    length: usize,
    state: u64,
}

struct FakeBackend {
    device: DeviceId,
    options: FakeOptions,
    counts: Arc<Mutex<FakeCounts>>,
    gate: Arc<Gate>,
    next: u64,
    images: BTreeMap<VisualHandle, FakeImage>,
    in_flight: Vec<FakeSequence>,
    /// It panicked or hung, so it need not be empty when it is closed.
    broken: bool,
}

impl FakeBackend {
    fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn breach(&self, what: String) {
        lock(&self.counts).breaches.push(format!("{}: {what}", self.device));
    }

    /// Counts a call and fails it when it is its turn.
    fn count(&mut self, call: FakeCall) -> Result<(), BackendError> {
        let number = {
            let mut counts = lock(&self.counts);
            let number = counts.calls.entry(call).or_default();
            *number += 1;
            *number
        };
        let turn = |fault: &&FakeFault| fault.call == call && (fault.nth..fault.nth + fault.times).contains(&number);
        match self.options.faults.iter().find(turn).map(|fault| fault.failure.clone()) {
            None => Ok(()),
            Some(failure) => self.strike(call, &format!("{call:?} {number}"), &failure),
        }
    }

    /// Fails a call that has poison in it.
    fn poisoned(&mut self, call: FakeCall, widths: &[u32]) -> Result<(), BackendError> {
        let mut counts = lock(&self.counts);
        let strikes = self.options.poison.iter().enumerate().find(|(at, poison)| {
            let struck = counts.poisoned.get(at).copied().unwrap_or_default();
            poison.call == call && widths.contains(&poison.width) && struck < poison.times
        });
        let Some((at, poison)) = strikes else { return Ok(()) };
        *counts.poisoned.entry(at).or_default() += 1;
        drop(counts);
        let (what, failure) = (format!("{call:?} of an image {} pixels wide", poison.width), poison.failure.clone());
        self.strike(call, &what, &failure)
    }

    #[allow(clippy::panic, reason = "the fake panics on demand, to test what the pipeline does about it")]
    fn strike(&mut self, call: FakeCall, what: &str, failure: &FakeFailure) -> Result<(), BackendError> {
        *lock(&self.counts).fired.entry(call).or_default() += 1;
        match failure {
            FakeFailure::Error(fate, class) => {
                Err(BackendError { fate: *fate, class: *class, message: format!("{what} failed on demand") })
            }
            FakeFailure::Panic => {
                self.broken = true;
                panic!("{what} panicked on demand")
            }
            FakeFailure::Hang => {
                // Who gave it up does not take off it what the call made.
                self.broken = true;
                lock(&self.counts).hanging += 1;
                self.gate.wait();
                lock(&self.counts).hanging -= 1;
                Ok(())
            }
        }
    }

    /// Runs out of memory when there is too much on the device, with `more` views.
    fn remember(&self, call: FakeCall, more: usize) -> Result<(), BackendError> {
        let views = more + self.images.values().map(|image| image.views).sum::<usize>();
        if self.options.memory.iter().any(|memory| memory.call == call && views > memory.views_max) {
            return Err(self.out_of_memory(&format!("no memory for {call:?} with {views} views on the device")));
        }
        Ok(())
    }

    fn out_of_memory(&self, message: &str) -> BackendError {
        lock(&self.counts).out_of_memory += 1;
        Self::row_error(ErrorClass::OutOfMemory, message)
    }

    fn row_error(class: ErrorClass, message: &str) -> BackendError {
        BackendError { fate: Fate::Row, class, message: message.into() }
    }

    /// Whether the batch keeps to the limits: one image may be more than they allow.
    fn check_batch(&self, images: &[PreparedImage]) {
        let views: usize = images.iter().map(|image| image.views.len()).sum();
        let patches: u64 = images.iter().map(|image| image.plan.patches()).sum();
        let limits = self.options.limits;
        let fits = views <= limits.batch_views_max as usize && patches <= limits.batch_patches_max;
        if images.is_empty() || (images.len() > 1 && !fits) {
            self.breach(format!("a batch of {} images, {views} views and {patches} patches", images.len()));
        }
    }
}

impl Backend for FakeBackend {
    fn limits(&self) -> BackendLimits {
        self.options.limits
    }

    fn encode(&mut self, images: &[PreparedImage]) -> Result<Vec<VisualHandle>, BackendError> {
        self.count(FakeCall::Encode)?;
        self.check_batch(images);
        std::thread::sleep(self.options.call_time);
        let widths: Vec<u32> = images.iter().map(|image| image.plan.image.width).collect();
        self.poisoned(FakeCall::Encode, &widths)?;
        let views: usize = images.iter().map(|image| image.views.len()).sum();
        self.remember(FakeCall::Encode, views)?;
        if self.options.views_memory_max.is_some_and(|most| views > most as usize) {
            return Err(self.out_of_memory("no memory for so many views"));
        }
        if images.iter().any(|image| Some(image.plan.image.width) == self.options.bad_width) {
            return Err(Self::row_error(ErrorClass::ModelFailed, "an image cannot be encoded"));
        }
        let mut handles = Vec::new();
        for image in images {
            let handle = VisualHandle(self.next());
            let (hash, views) = (pixel_hash(image), image.views.len());
            let visual_tokens = u32::try_from(image.plan.visual_tokens(TokenRule::Queries(4))).unwrap_or(u32::MAX);
            self.images.insert(handle, FakeImage { hash, width: image.plan.image.width, visual_tokens, views });
            handles.push(handle);
        }
        let mut counts = lock(&self.counts);
        for handle in &handles {
            *counts.encoded.entry(self.images[handle].hash).or_default() += 1;
        }
        counts.batches.push(views as u64);
        counts.images_live += handles.len();
        counts.images_peak = counts.images_peak.max(self.images.len());
        Ok(handles)
    }

    fn read_tokens(&mut self, image: VisualHandle) -> Result<Vec<f32>, BackendError> {
        self.count(FakeCall::ReadTokens)?;
        let Some((hash, width, views)) = self.images.get(&image).map(|known| (known.hash, known.width, known.views))
        else {
            self.breach(format!("tokens of image {} were read, which is not here", image.0));
            return Err(Self::row_error(ErrorClass::ModelFailed, "no such image"));
        };
        self.poisoned(FakeCall::ReadTokens, &[width])?;
        self.remember(FakeCall::ReadTokens, 0)?;
        let mut state = hash;
        let values = views * 4 * 3;
        Ok((0..values).map(|_| (mix(&mut state) >> 40) as f32 / (1 << 24) as f32).collect())
    }

    fn free_sequences(&self) -> u32 {
        let in_flight = u32::try_from(self.in_flight.len()).unwrap_or(u32::MAX);
        self.options.limits.sequences_max.saturating_sub(in_flight)
    }

    fn admit(&mut self, request: GenerateRequest) -> Result<SequenceId, BackendError> {
        self.count(FakeCall::Admit)?;
        if self.free_sequences() == 0 {
            self.breach("a sequence was admitted though none was free".into());
        }
        if let Some(width) = self.images.get(&request.image).map(|image| image.width) {
            self.poisoned(FakeCall::Admit, &[width])?;
        }
        self.remember(FakeCall::Admit, 0)?;
        let Some(image) = self.images.get(&request.image) else {
            self.breach(format!("a prompt about image {} was admitted, which is not here", request.image.0));
            return Err(Self::row_error(ErrorClass::ModelFailed, "no such image"));
        };
        let mut state = image.hash ^ request.seed;
        for byte in request.prompt.bytes() {
            state = (state ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        let length = (mix(&mut state) % (u64::from(request.params.max_new_tokens) + 1)) as usize;
        let prompt_tokens = image.visual_tokens.saturating_add(text_tokens(&request.prompt));
        let id = SequenceId(self.next());
        let (image, token_ids) = (request.image, Vec::new());
        self.in_flight.push(FakeSequence { id, image, request, prompt_tokens, token_ids, length, state });
        lock(&self.counts).sequences_live += 1;
        Ok(id)
    }

    fn step(&mut self) -> Result<Vec<Generated>, (Option<SequenceId>, BackendError)> {
        self.count(FakeCall::Step).map_err(|error| (None, error))?;
        std::thread::sleep(self.options.call_time);
        if let Some(oldest) = self.in_flight.first() {
            let id = oldest.id;
            if let Err(error) = self.count(FakeCall::StepOldest) {
                if error.fate == Fate::Row {
                    self.drop_sequence(id);
                }
                return Err((Some(id), error));
            }
        } else {
            self.breach("a step without sequences".into());
        }
        let widths = self.in_flight.iter().filter_map(|sequence| self.images.get(&sequence.image));
        let widths: Vec<u32> = widths.map(|image| image.width).collect();
        self.poisoned(FakeCall::Step, &widths).map_err(|error| (None, error))?;
        self.remember(FakeCall::Step, 0).map_err(|error| (None, error))?;
        if self.options.sequences_memory_max.is_some_and(|most| self.in_flight.len() > most as usize) {
            return Err((None, self.out_of_memory("no memory for so many sequences")));
        }
        let is_bad = |sequence: &FakeSequence| {
            let bad = self.options.bad_prompt.as_ref();
            sequence.token_ids.len() >= 2 && bad.is_some_and(|bad| sequence.request.prompt.contains(bad.as_str()))
        };
        if let Some(id) = self.in_flight.iter().find(|sequence| is_bad(sequence)).map(|sequence| sequence.id) {
            self.drop_sequence(id);
            return Err((Some(id), Self::row_error(ErrorClass::ModelFailed, "the model gave no number")));
        }
        Ok(self.decode())
    }

    fn abandon(&mut self, sequence: SequenceId) {
        if self.drop_sequence(sequence) {
            lock(&self.counts).abandoned += 1;
        }
    }

    fn release(&mut self, image: VisualHandle) {
        if self.in_flight.iter().any(|sequence| sequence.image == image) {
            self.breach(format!("image {} was released while a prompt about it is in flight", image.0));
        }
        match self.images.remove(&image) {
            Some(_) => lock(&self.counts).images_live -= 1,
            None => self.breach(format!("image {} was released, which is not here", image.0)),
        }
    }
}

impl FakeBackend {
    fn drop_sequence(&mut self, sequence: SequenceId) -> bool {
        let Some(at) = self.in_flight.iter().position(|known| known.id == sequence) else { return false };
        self.in_flight.remove(at);
        lock(&self.counts).sequences_live -= 1;
        true
    }

    /// One token for everybody; who is done goes.
    fn decode(&mut self) -> Vec<Generated> {
        let mut counts = lock(&self.counts);
        let before = (self.in_flight.len(), counts.finished);
        counts.occupancy.push(before);
        let mut finished = Vec::new();
        self.in_flight.retain_mut(|sequence| {
            if sequence.token_ids.len() < sequence.length {
                sequence.token_ids.push((mix(&mut sequence.state) % 50) as u32);
            }
            let done = sequence.token_ids.len() >= sequence.length;
            if done {
                finished.push(sequence.finish());
            }
            !done
        });
        counts.finished += finished.len();
        counts.sequences_live -= finished.len();
        finished
    }
}

impl FakeSequence {
    fn finish(&mut self) -> Generated {
        let token_ids = std::mem::take(&mut self.token_ids);
        let words: Vec<String> = token_ids.iter().map(|id| format!("w{id}")).collect();
        // A beam search goes on for a while after its answer.
        let (tokens, cap) = (self.length as u32, self.request.params.max_new_tokens);
        let decode_steps = if self.request.params.num_beams > 1 { tokens.midpoint(cap) } else { tokens };
        let capped = token_ids.len() >= self.request.params.max_new_tokens as usize;
        Generated {
            sequence: self.id,
            text: format!("{:08x} {}", self.state >> 32, words.join(" ")),
            decode_steps,
            token_ids,
            finish: if capped { FinishReason::Length } else { FinishReason::Stop },
            prompt_tokens: self.prompt_tokens,
            prompt_cut: 0,
            prefill_ms: 0.25,
            decode_ms: 0.5,
        }
    }
}

impl Drop for FakeBackend {
    fn drop(&mut self) {
        let (images, sequences) = (self.images.len(), self.in_flight.len());
        if images + sequences > 0 && !self.broken {
            self.breach(format!("closed with {images} images and {sequences} sequences"));
        }
        let mut counts = lock(&self.counts);
        counts.images_live -= images;
        counts.sequences_live -= sequences;
        counts.closed += 1;
    }
}

/// A hash of all pixels of all views.
fn pixel_hash(image: &PreparedImage) -> u64 {
    let mut state = 0xcbf2_9ce4_8422_2325;
    for view in &image.views {
        state ^= u64::from(view.patches_wide) << 32 | u64::from(view.patches_high);
        for value in &view.patches {
            state = (state ^ u64::from(value.to_bits())).wrapping_mul(0x0000_0100_0000_01b3);
        }
        mix(&mut state);
    }
    state
}

/// A step of SplitMix64.
const fn mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
