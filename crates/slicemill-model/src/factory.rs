//! Opens backends from a checkpoint: the embedded one, or a directory.

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use candle_core::{DType, Device};
use slicemill_core::{ModelCard, Schema, SlicePlan, TokenRule};
use slicemill_pipeline::{Backend, BackendError, BackendFactory, DeviceId};

use crate::backend::CandleBackend;
use crate::checkpoint::{Part, Weights, fingerprint, weight_files};
use crate::config::{ModelConfig, small};
use crate::embedded;
use crate::error::{ModelError, fatal, row};
use crate::manifest::manifest;
use crate::model::Model;
use crate::ops::Place;
use crate::prompt::PromptAssembler;

/// How backends behave in this run. Never changes results on the CPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendOptions {
    /// Views encoded together.
    pub batch_views_max: u32,
    /// Patches encoded together; 64 Ki patches of 14 × 14 pixels are 150 MiB.
    pub batch_patches_max: u64,
    /// Sequences decoded together.
    pub sequences_max: u32,
    /// Longest sequence, when shorter than the model's; bounds the KV cache on GPUs.
    pub context_tokens_max: Option<u32>,
    /// Threads of every CPU device; `None` shares the process's pool among them.
    pub cpu_threads: Option<usize>,
}

impl Default for BackendOptions {
    fn default() -> Self {
        Self {
            batch_views_max: 64,
            batch_patches_max: 1 << 16,
            sequences_max: 32,
            context_tokens_max: None,
            cpu_threads: None,
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

/// The three parts of a checkpoint and what names them.
struct Parts<'a> {
    name: String,
    config: (&'a [u8], String),
    tokenizer: (&'a [u8], String),
    weights: Weights,
    fingerprint: String,
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
        Self::new(
            Parts {
                name: "embedded".to_owned(),
                config: (embedded::CONFIG, "config.json of the embedded model".to_owned()),
                tokenizer: (embedded::TOKENIZER, "tokenizer.json of the embedded model".to_owned()),
                weights: Weights::embedded(embedded::WEIGHTS)?,
                fingerprint,
            },
            options,
        )
    }

    /// A directory with config.json, tokenizer.json and model.safetensors (or shards and their index). The weights are
    /// mapped: do not change the files while the factory or a backend of it lives.
    ///
    /// # Errors
    /// When a file is missing or broken, or when they do not fit together.
    pub fn from_dir(dir: &Path, options: BackendOptions) -> Result<Self, ModelError> {
        let read = |name: &str| {
            let path = dir.join(name);
            let origin = path.display().to_string();
            match std::fs::read(&path) {
                Ok(bytes) => Ok((bytes, origin)),
                Err(e) => Err(ModelError::File { origin, message: format!("cannot be read: {e}") }),
            }
        };
        let (config, tokenizer) = (read("config.json")?, read("tokenizer.json")?);
        // Before the weights are read: a model of another family is refused at once.
        ModelConfig::parse(&config.0, &config.1)?;
        let (files, weights) = (weight_files(dir)?, Weights::open(dir)?);
        let names: Vec<String> = files
            .iter()
            .map(|path| path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned()))
            .collect();
        let mut parts = vec![("config.json", Part::Bytes(&config.0)), ("tokenizer.json", Part::Bytes(&tokenizer.0))];
        parts.extend(names.iter().zip(&files).map(|(name, path)| (name.as_str(), Part::Path(path.as_path()))));
        Self::new(
            Parts {
                name: dir.display().to_string(),
                fingerprint: fingerprint(&parts)?,
                config: (&config.0, config.1),
                tokenizer: (&tokenizer.0, tokenizer.1),
                weights,
            },
            options,
        )
    }

    fn new(parts: Parts<'_>, options: BackendOptions) -> Result<Self, ModelError> {
        let config = ModelConfig::parse(parts.config.0, &parts.config.1)?;
        parts.weights.check(&manifest(&config))?;
        let prompts = PromptAssembler::new(&config, parts.tokenizer.0, &parts.tokenizer.1)?;
        let context = options
            .context_tokens_max
            .map_or(config.context_tokens_max, |n| config.context_tokens_max.min((n as usize).max(1)));
        let card = ModelCard {
            name: parts.name,
            fingerprint: parts.fingerprint,
            family: "llava-uhd".to_owned(),
            policy: config.policy.clone(),
            token_rule: TokenRule::Queries(small(config.tokens_per_view())),
            width: small(config.decoder.width),
            schema: Schema::CommaNewline,
            normalisation: config.normalisation,
            shape: config.shape(),
            context_tokens_max: small(context),
            default_prompt: config.prompt.default_prompt.clone(),
            generation: config.generation.clone(),
        };
        Ok(Self {
            card,
            config,
            weights: parts.weights,
            prompts: Arc::new(prompts),
            options,
            context,
            on_cpu: Mutex::default(),
        })
    }

    /// The model on a device.
    ///
    /// # Errors
    /// When the device cannot be opened or has no room.
    pub fn load(&self, place: &Place) -> Result<Model, ModelError> {
        Model::load(&self.config, &self.weights, self.context, place)
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
        let eos = self.config.prompt.eos.clone();
        Ok(Box::new(CandleBackend::new(model, Arc::clone(&self.prompts), eos, self.context, &self.options)?))
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
