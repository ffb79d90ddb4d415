//! The seam between the pipeline and a model: [`Backend`] is owned by one thread per device, [`BackendFactory`] is
//! shared and opens backends.

use std::sync::Arc;

use slicemill_core::{Fate, GenerationParams, ModelCard, SlicePlan};

pub use crate::device::DeviceId;

/// What one device can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackendLimits {
    /// Views (slices and overviews) in one encode batch.
    pub batch_views_max: u32,
    /// Patches in one encode batch.
    pub batch_patches_max: u64,
    /// Sequences decoded together.
    pub sequences_max: u32,
}

impl BackendLimits {
    /// The lesser of each limit.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        Self {
            batch_views_max: self.batch_views_max.min(other.batch_views_max),
            batch_patches_max: self.batch_patches_max.min(other.batch_patches_max),
            sequences_max: self.sequences_max.min(other.sequences_max),
        }
    }
}

/// One normalised view of an image, as patches.
pub use slicemill_image::NormalisedView as PreparedView;

/// All views of one image in the order the language model sees them.
#[derive(Debug, Clone, PartialEq)]
pub struct PreparedImage {
    /// Its plan.
    pub plan: Arc<SlicePlan>,
    /// Its views, in the order of [`SlicePlan::views`].
    pub views: Vec<PreparedView>,
}

/// Visual tokens of one image, resident on the device of the backend that made them. Released by [`Backend::release`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VisualHandle(pub u64);

/// A sequence in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// One prompt about one image.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateRequest {
    /// The image.
    pub image: VisualHandle,
    /// The question or instruction, before the model's prompt template.
    pub prompt: String,
    /// Parameters of the job.
    pub params: GenerationParams,
    /// Seed of this row, derived from the job seed, the key and the question number.
    pub seed: u64,
}

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// The model produced a stop token.
    Stop,
    /// The cap on output tokens or the context was reached.
    Length,
    /// Nothing was generated (null model).
    None,
}

impl FinishReason {
    /// The stored name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::None => "none",
        }
    }
}

/// A finished sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// Which.
    pub sequence: SequenceId,
    /// Output token ids, the stop token not included.
    pub token_ids: Vec<u32>,
    /// Steps of decoding that its compute counts: as many as output tokens, or more in a beam search.
    pub decode_steps: u32,
    /// Decoded and trimmed text.
    pub text: String,
    /// Why it ended.
    pub finish: FinishReason,
    /// Prompt tokens that were run: text, separators and visual tokens.
    pub prompt_tokens: u32,
    /// Prompt tokens beyond the model's longest prompt, which were cut off at its end.
    pub prompt_cut: u32,
    /// Time of this sequence's prefill.
    pub prefill_ms: f32,
    /// Time from the end of prefill to the last token.
    pub decode_ms: f32,
}

/// An error of a backend and its fate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BackendError {
    /// What the pipeline does about it.
    pub fate: Fate,
    /// The class a failed row gets when the fate is `Row`.
    pub class: slicemill_core::ErrorClass,
    /// In words.
    pub message: String,
}

/// A model on one device. Blocking; owned by one OS thread, which may not be the one that opened the factory.
///
/// The protocol: [`encode`](Self::encode) a packed batch, read tokens or [`admit`](Self::admit) one sequence per
/// prompt while [`free_sequences`](Self::free_sequences) allows, call [`step`](Self::step) until nothing is in
/// flight, [`release`](Self::release) every handle. A handle is released once, after the last sequence about it has
/// finished or was abandoned. A call that fails leaves the backend as it was before the call. On the CPU the results
/// must not depend, not by a bit, on what else is in the batch or in flight.
pub trait Backend {
    /// What one batch may hold.
    fn limits(&self) -> BackendLimits;

    /// Encodes the views of all images, packed along the patch axis without padding. One handle per image, in order.
    fn encode(&mut self, images: &[PreparedImage]) -> Result<Vec<VisualHandle>, BackendError>;

    /// Visual tokens `[visual_tokens, width]` in the order the language model sees them, without separators.
    fn read_tokens(&mut self, image: VisualHandle) -> Result<Vec<f32>, BackendError>;

    /// Sequences that can be admitted now, each with as many beams as the backend was opened for.
    fn free_sequences(&self) -> u32;

    /// Prefills one sequence and puts it in flight. The image stays valid for further prompts. More beams than the
    /// backend was opened for are a fatal error.
    fn admit(&mut self, request: GenerateRequest) -> Result<SequenceId, BackendError>;

    /// Decodes one token for every sequence in flight (for every beam of it) and returns those that finished, in order
    /// of admission.
    /// An error of fate `Row` names its sequence in the tuple and leaves the others in flight.
    fn step(&mut self) -> Result<Vec<Generated>, (Option<SequenceId>, BackendError)>;

    /// Drops a sequence in flight and frees its slots; `step` never returns it. Unknown sequences are ignored.
    fn abandon(&mut self, sequence: SequenceId);

    /// Frees an image's visual tokens.
    fn release(&mut self, image: VisualHandle);
}

/// Opens backends and answers what planning asks about the model. Cheap to share; holds no device memory.
pub trait BackendFactory: Send + Sync {
    /// The model as planning sees it.
    fn card(&self) -> &ModelCard;

    /// Tokens of the whole prompt around an image with this plan: template, question, separators and visual tokens.
    fn prompt_tokens(&self, prompt: &str, plan: &SlicePlan) -> Result<u32, BackendError>;

    /// Loads the model onto a device. Called on the thread that will own the backend.
    fn open(&self, device: DeviceId) -> Result<Box<dyn Backend>, BackendError>;
}
