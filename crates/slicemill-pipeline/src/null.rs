//! The null model: decodes, plans and packs everything, encodes and says nothing. For measuring the pipeline itself.

use std::sync::Arc;

use slicemill_core::{
    ErrorClass, Fate, GenerationParams, ModelCard, ModelShape, Normalisation, Schema, SlicePlan, SlicingPolicy,
    TokenRule,
};

use crate::{
    Backend, BackendError, BackendFactory, BackendLimits, DeviceId, FinishReason, GenerateRequest, Generated,
    PreparedImage, SequenceId, VisualHandle,
};

/// Opens null backends on any device.
///
/// Visual tokens are counted by plan and are the whole prompt. Text is absent, `finish_reason` is `none`, and an encode
/// job's tokens are empty because the width of a token is 0.
#[derive(Debug, Clone)]
pub struct NullFactory {
    card: ModelCard,
}

impl NullFactory {
    /// Limits that no batch of the pipeline's own defaults reaches.
    const LIMITS: BackendLimits =
        BackendLimits { batch_views_max: 4096, batch_patches_max: 1 << 22, sequences_max: 4096 };

    /// A null model that plans as a model with this policy, token rule and normalisation does.
    pub fn new(policy: SlicingPolicy, token_rule: TokenRule, normalisation: Normalisation) -> Self {
        let card = ModelCard {
            name: "null".into(),
            fingerprint: "00000000".into(),
            family: "null model: no weights, no text".into(),
            policy,
            token_rule,
            width: 0,
            schema: Schema::Plain,
            normalisation,
            shape: ModelShape::NOTHING,
            context_tokens_max: u32::MAX,
            default_prompt: "Describe the image.".into(),
            generation: GenerationParams::default(),
        };
        Self { card }
    }
}

impl BackendFactory for NullFactory {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn prompt_tokens(&self, _prompt: &str, plan: &SlicePlan) -> Result<u32, BackendError> {
        let tokens = plan.visual_tokens(self.card.token_rule);
        u32::try_from(tokens).map_err(|_| {
            let message = format!("{tokens} visual tokens are more than any model takes");
            BackendError { fate: Fate::Row, class: ErrorClass::PromptTooLong, message }
        })
    }

    fn open(&self, _device: DeviceId) -> Result<Box<dyn Backend>, BackendError> {
        let token_rule = self.card.token_rule;
        Ok(Box::new(NullBackend { token_rule, next: 0, images: Vec::new(), in_flight: Vec::new() }))
    }
}

/// Keeps handles and sequences, and no tensors.
struct NullBackend {
    token_rule: TokenRule,
    next: u64,
    /// Images in the order of their handles.
    images: Vec<(VisualHandle, Arc<SlicePlan>)>,
    /// Sequences with their prompt tokens, in order of admission.
    in_flight: Vec<(SequenceId, u32)>,
}

impl NullBackend {
    const fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn plan(&self, image: VisualHandle) -> Result<&SlicePlan, BackendError> {
        let at = self.images.binary_search_by_key(&image, |(handle, _)| *handle);
        at.map(|at| &*self.images[at].1).map_err(|_| BackendError {
            fate: Fate::Fatal,
            class: ErrorClass::ModelFailed,
            message: format!("image {} is not on the device", image.0),
        })
    }
}

impl Backend for NullBackend {
    fn limits(&self) -> BackendLimits {
        NullFactory::LIMITS
    }

    fn encode(&mut self, images: &[PreparedImage]) -> Result<Vec<VisualHandle>, BackendError> {
        let handles: Vec<_> = images.iter().map(|_| VisualHandle(self.next())).collect();
        self.images.extend(handles.iter().copied().zip(images.iter().map(|image| Arc::clone(&image.plan))));
        Ok(handles)
    }

    fn read_tokens(&mut self, image: VisualHandle) -> Result<Vec<f32>, BackendError> {
        self.plan(image).map(|_| Vec::new())
    }

    fn free_sequences(&self) -> u32 {
        let in_flight = u32::try_from(self.in_flight.len()).unwrap_or(u32::MAX);
        NullFactory::LIMITS.sequences_max.saturating_sub(in_flight)
    }

    fn admit(&mut self, request: GenerateRequest) -> Result<SequenceId, BackendError> {
        let tokens = self.plan(request.image)?.visual_tokens(self.token_rule);
        let sequence = SequenceId(self.next());
        self.in_flight.push((sequence, u32::try_from(tokens).unwrap_or(u32::MAX)));
        Ok(sequence)
    }

    fn step(&mut self) -> Result<Vec<Generated>, (Option<SequenceId>, BackendError)> {
        let finished = self.in_flight.drain(..).map(|(sequence, prompt_tokens)| Generated {
            sequence,
            token_ids: Vec::new(),
            decode_steps: 0,
            text: String::new(),
            finish: FinishReason::None,
            prompt_tokens,
            prompt_cut: 0,
            prefill_ms: 0.0,
            decode_ms: 0.0,
        });
        Ok(finished.collect())
    }

    fn abandon(&mut self, sequence: SequenceId) {
        self.in_flight.retain(|(id, _)| *id != sequence);
    }

    fn release(&mut self, image: VisualHandle) {
        if let Ok(at) = self.images.binary_search_by_key(&image, |(handle, _)| *handle) {
            self.images.remove(at);
        }
    }
}
