//! Opens backends from a checkpoint: the embedded one, or a directory.

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use candle_core::{DType, Device};
use slicemill_core::{ModelCard, SlicePlan, WindowRounding};
use slicemill_pipeline::{Backend, BackendError, BackendFactory, DeviceId};

use crate::backend::CandleBackend;
use crate::checkpoint::{Part, Weights, fingerprint};
use crate::checkpoint_files::{Checkpoint, CheckpointFiles, TowerFinder};
use crate::config::{ModelConfig, ProjectorConfig, small};
use crate::embedded;
use crate::error::{ModelError, fatal, row};
use crate::manifest::{manifest, would_be_missed};
use crate::model::Model;
use crate::ops::Place;
use crate::prompt::PromptAssembler;
use crate::summary::Summary;
use crate::tokenizer::TextTokenizer;

/// How backends behave in this run. But for `windows`, nothing here changes results on the CPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendOptions {
    /// Views encoded together.
    pub batch_views_max: u32,
    /// Patches encoded together; 64 Ki patches of 14 × 14 pixels are 150 MiB.
    pub batch_patches_max: u64,
    /// Sequences decoded together, each with up to `beams_max` beams: a backend has room for all of them.
    pub sequences_max: u32,
    /// Most beams of a sequence.
    pub beams_max: u32,
    /// Longest sequence, when shorter than the model's; bounds the KV cache on GPUs.
    pub context_tokens_max: Option<u32>,
    /// Threads of every CPU device; `None` shares the process's pool among them.
    pub cpu_threads: Option<usize>,
    /// Rounding of the windows of LLaVA-UHD's spatial resampler. It is part of the fingerprint, because it changes what
    /// comes out.
    pub windows: WindowRounding,
}

impl Default for BackendOptions {
    fn default() -> Self {
        Self {
            batch_views_max: 64,
            batch_patches_max: 1 << 16,
            sequences_max: 32,
            beams_max: 1,
            context_tokens_max: None,
            cpu_threads: None,
            windows: WindowRounding::F32,
        }
    }
}

/// A checkpoint, ready to be put on devices. Its weights stay where they are (mapped, or in the program) until a
/// device is opened; all CPU devices share one copy.
#[derive(Debug)]
pub struct CandleFactory {
    card: ModelCard,
    config: ModelConfig,
    weights: Weights,
    prompts: Arc<PromptAssembler>,
    options: BackendOptions,
    context: usize,
    on_cpu: Mutex<Weak<Model>>,
}

impl CandleFactory {
    /// The model that is part of the program.
    ///
    /// # Errors
    /// When the files it was built with do not fit together.
    pub fn embedded(options: BackendOptions) -> Result<Self, ModelError> {
        static FINGERPRINT: OnceLock<String> = OnceLock::new();
        let parts = [
            ("config.json", Part::Bytes(embedded::CONFIG)),
            ("model.safetensors", Part::Bytes(embedded::WEIGHTS)),
            ("tokenizer.json", Part::Bytes(embedded::TOKENIZER)),
        ];
        let fingerprint = match FINGERPRINT.get() {
            Some(known) => known.clone(),
            None => FINGERPRINT.get_or_init(|| fingerprint(&parts).unwrap_or_default()).clone(),
        };
        let origin = "tokenizer.json of the embedded model";
        Self::new(
            Checkpoint {
                config: ModelConfig::parse(embedded::CONFIG, "config.json of the embedded model")?,
                tokenizer: TextTokenizer::from_json(embedded::TOKENIZER, origin)?,
                tokenizer_origin: origin.to_owned(),
                chat: None,
                weights: Weights::embedded(embedded::WEIGHTS)?,
            },
            "embedded".to_owned(),
            fingerprint,
            options,
        )
    }

    /// A checkpoint directory in a published layout. The weights are mapped: do not change the files while the factory
    /// or a backend of it lives.
    ///
    /// # Errors
    /// When a file is missing or broken, or when they do not fit together.
    pub fn from_dir(dir: &Path, options: BackendOptions) -> Result<Self, ModelError> {
        Self::from_files(dir, &dir.display().to_string(), &|_| Ok(None), options)
    }

    /// As [`from_dir`](Self::from_dir), under a name of its own, and with a vision tower that lies neither in nor beside
    /// the checkpoint where `tower` finds it.
    ///
    /// # Errors
    /// As [`from_dir`](Self::from_dir), and those of `tower`.
    pub fn from_files(
        dir: &Path,
        name: &str,
        tower: TowerFinder<'_>,
        options: BackendOptions,
    ) -> Result<Self, ModelError> {
        let files = CheckpointFiles::read(dir, tower)?;
        let mut checkpoint = files.open(tower)?;
        if let ProjectorConfig::Spatial { rounding, .. } = &mut checkpoint.config.projector {
            *rounding = options.windows;
        }
        let fingerprint = files.fingerprint(&checkpoint, options.windows)?;
        Self::new(checkpoint, name.to_owned(), fingerprint, options)
    }

    fn new(
        checkpoint: Checkpoint,
        name: String,
        fingerprint: String,
        options: BackendOptions,
    ) -> Result<Self, ModelError> {
        let Checkpoint { config, tokenizer, tokenizer_origin, chat, weights } = checkpoint;
        if options.windows != WindowRounding::F32 && !matches!(config.projector, ProjectorConfig::Spatial { .. }) {
            return Err(ModelError::Config {
                origin: name,
                message: "has no windows to round; --windows is for LLaVA-UHD v1 with 144 queries, leave it out"
                    .to_owned(),
            });
        }
        weights.check_all(&manifest(&config), |name| would_be_missed(&config, name))?;
        let prompts = PromptAssembler::new(&config, tokenizer, chat, &tokenizer_origin)?;
        let context = options
            .context_tokens_max
            .map_or(config.context_tokens_max, |n| config.context_tokens_max.min((n as usize).max(1)));
        let card = ModelCard { name, fingerprint, context_tokens_max: small(context), ..config.card() };
        Ok(Self { card, config, weights, prompts: Arc::new(prompts), options, context, on_cpu: Mutex::default() })
    }

    /// The model on a device.
    ///
    /// # Errors
    /// When the device cannot be opened or has no room.
    pub fn load(&self, place: &Place) -> Result<Model, ModelError> {
        Model::load(&self.config, &self.weights, self.context, place)
    }

    /// What it is and what it needs.
    pub fn summary(&self) -> Summary {
        Summary::new(&self.config, Some(&self.weights))
    }

    /// What config.json says.
    pub const fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Tokenizer and template.
    pub fn prompts(&self) -> &PromptAssembler {
        &self.prompts
    }

    /// A backend in a place of choice; [`BackendFactory::open`] chooses by device.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn open_in(&self, place: &Place) -> Result<Box<dyn Backend>, BackendError> {
        self.backend(Arc::new(self.load(place)?))
    }

    fn backend(&self, model: Arc<Model>) -> Result<Box<dyn Backend>, BackendError> {
        Ok(Box::new(CandleBackend::new(model, Arc::clone(&self.prompts), self.context, &self.options)?))
    }

    /// A backend whose sequences end with these tokens instead of the model's own.
    #[cfg(test)]
    pub(crate) fn backend_ending_with(
        &self,
        eos: &[u32],
        model: Arc<Model>,
        options: &BackendOptions,
    ) -> CandleBackend {
        let mut backend = CandleBackend::new(model, Arc::clone(&self.prompts), self.context, options).unwrap();
        backend.eos = eos.to_vec();
        backend
    }

    /// Backends that hold the model that CPU devices share.
    #[cfg(test)]
    pub(crate) fn cpu_copies(&self) -> usize {
        self.on_cpu.lock().unwrap_or_else(PoisonError::into_inner).strong_count()
    }

    fn cpu_model(&self) -> Result<Arc<Model>, ModelError> {
        let mut shared = self.on_cpu.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(model) = shared.upgrade() {
            return Ok(model);
        }
        let model = Arc::new(self.load(&Place::cpu())?);
        *shared = Arc::downgrade(&model);
        Ok(model)
    }
}

impl BackendFactory for CandleFactory {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn prompt_tokens(&self, prompt: &str, plan: &SlicePlan) -> Result<u32, BackendError> {
        let sequence = self
            .prompts
            .assemble(prompt, plan)
            .map_err(|message| row(slicemill_core::ErrorClass::ModelFailed, message))?;
        Ok(small(sequence.tokens))
    }

    fn open(&self, device: DeviceId) -> Result<Box<dyn Backend>, BackendError> {
        match device {
            DeviceId::Cpu(_) => self.backend(self.cpu_model()?),
            DeviceId::Cuda(n) => self.open_in(&Place::candle(cuda(n)?, DType::BF16)),
        }
    }
}

/// The n-th GPU with a stream of its own: the default stream of candle is one per thread, and tensors that cross
/// threads on it race.
fn cuda(n: u32) -> Result<Device, BackendError> {
    if !cfg!(feature = "cuda") {
        return Err(fatal(format!(
            "cuda:{n} needs a program with CUDA: build it with --features cuda, or use --devices cpu"
        )));
    }
    Device::new_cuda_with_stream(n as usize).map_err(|e| fatal(format!("cuda:{n} cannot be opened: {e}")))
}
