//! The files of a checkpoint directory: which there are, what they say together, and what of them makes its fingerprint.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use slicemill_core::WindowRounding;

use crate::chat_template::ChatTemplate;
use crate::checkpoint::{Part, Weights, fingerprint, tower_places};
use crate::config::{ConfigFile, ConfigFiles, Family, ModelConfig, Template, tower_is_known};
use crate::error::ModelError;
use crate::tokenizer::{Prefer, TextTokenizer};

const CONFIG: &str = "config.json";
const PREPROCESSOR: &str = "preprocessor_config.json";
const GENERATION: &str = "generation_config.json";
/// Before the names of a tower's tensors, in a checkpoint of its own.
const TOWER_PREFIX: &str = "vision_model.";

/// Finds the directory of a vision tower that is needed and lies neither in nor beside its checkpoint; nothing when there
/// is none.
pub type TowerFinder<'a> = &'a dyn Fn(&str) -> Result<Option<PathBuf>, ModelError>;

/// A checkpoint whose files were read and whose weights are mapped.
#[derive(Debug)]
pub struct Checkpoint {
    /// What it says about itself.
    pub config: ModelConfig,
    /// Its tokenizer.
    pub tokenizer: TextTokenizer,
    /// What names the tokenizer in errors.
    pub tokenizer_origin: String,
    /// Its chat template, where prompts need one.
    pub chat: Option<ChatTemplate>,
    /// Its tensors, those of its vision tower included.
    pub weights: Weights,
}

/// A file that was read.
#[derive(Debug, Clone)]
struct Read {
    path: PathBuf,
    bytes: Vec<u8>,
    origin: String,
}

impl Read {
    /// Nothing when there is no such file.
    fn optional(dir: &Path, name: &str) -> Result<Option<Self>, ModelError> {
        let path = dir.join(name);
        if path.is_file() { Self::needed(path).map(Some) } else { Ok(None) }
    }

    fn needed(path: PathBuf) -> Result<Self, ModelError> {
        let origin = path.display().to_string();
        if path.exists() && !path.is_file() {
            return Err(ModelError::File { origin, message: "is not a file".to_owned() });
        }
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Self { path, bytes, origin }),
            Err(e) => Err(ModelError::File {
                message: format!("cannot be read: {e}; a checkpoint is a directory with {CONFIG} and its weights"),
                origin,
            }),
        }
    }

    fn file(&self) -> ConfigFile<'_> {
        ConfigFile { bytes: &self.bytes, origin: &self.origin }
    }
}

/// What config.json of the published layout says about where its vision tower is.
#[derive(Debug, Deserialize)]
struct TowerReference {
    mm_vision_tower: String,
    vision_config: Option<serde_json::Value>,
}

/// The files of a checkpoint directory that say what it is.
#[derive(Debug, Clone)]
pub struct CheckpointFiles {
    dir: PathBuf,
    config: Read,
    preprocessor: Option<Read>,
    generation: Option<Read>,
    tower: Option<(PathBuf, Read)>,
}

impl CheckpointFiles {
    /// Reads the files of `dir`, or of a config.json alone. A model of another family is refused here, before weights
    /// are looked for.
    ///
    /// # Errors
    /// When a file is missing or broken, or the model is not supported.
    pub fn read(dir: &Path, tower: TowerFinder<'_>) -> Result<Self, ModelError> {
        let (dir, config) = if dir.is_file() {
            (dir.parent().unwrap_or_else(|| Path::new(".")), Read::needed(dir.to_owned())?)
        } else {
            (dir, Read::needed(dir.join(CONFIG))?)
        };
        let mut files = Self {
            preprocessor: Read::optional(dir, PREPROCESSOR)?,
            generation: Read::optional(dir, GENERATION)?,
            tower: None,
            dir: dir.to_owned(),
            config,
        };
        if let Some(reference) = files.tower_reference() {
            let mut found = local_tower(&reference.mm_vision_tower, dir);
            // It can be a large download: only where the config cannot be understood without it.
            if found.is_none() && reference.vision_config.is_none() && !tower_is_known(&reference.mm_vision_tower) {
                found = tower(&reference.mm_vision_tower)?;
            }
            files.take_tower(found)?;
        }
        files.model_config(&|_| false)?;
        Ok(files)
    }

    /// What the files say, with what the tensors say where the files leave it open.
    ///
    /// # Errors
    /// When the files are broken or the model is not supported.
    pub fn model_config(&self, has: &dyn Fn(&str) -> bool) -> Result<ModelConfig, ModelError> {
        let files = ConfigFiles {
            config: self.config.file(),
            preprocessor: self.preprocessor.as_ref().map(Read::file),
            generation: self.generation.as_ref().map(Read::file),
            tower: self.tower.as_ref().map(|(_, config)| config.file()),
        };
        ModelConfig::read(&files, has)
    }

    fn take_tower(&mut self, found: Option<PathBuf>) -> Result<(), ModelError> {
        let Some(found) = found else { return Ok(()) };
        if self.preprocessor.is_none() {
            // The published code takes the tower's own.
            self.preprocessor = Read::optional(&found, PREPROCESSOR)?;
        }
        self.tower = Read::optional(&found, CONFIG)?.map(|config| (found, config));
        Ok(())
    }

    /// The vision tower that the published layout refers to.
    fn tower_reference(&self) -> Option<TowerReference> {
        serde_json::from_slice(&self.config.bytes).ok()
    }

    /// Maps the weights. A tower that is not among them comes from its own directory, which `tower` finds when it is
    /// neither in nor beside the checkpoint.
    ///
    /// # Errors
    /// When there are none, or they are not complete, and those of `tower`.
    pub fn weights(&self, tower: TowerFinder<'_>) -> Result<(ModelConfig, Weights), ModelError> {
        let mut weights = Weights::open(&self.dir)?;
        let config = self.model_config(&|name| weights.contains(name))?;
        let prefix = &config.names.vision;
        if !weights.contains(&format!("{prefix}.embeddings.patch_embedding.weight")) {
            let dir = match (&self.tower, &config.names.tower) {
                (Some((dir, _)), _) => Some(dir.clone()),
                (None, Some(reference)) => tower(reference)?,
                (None, None) => None,
            };
            if let Some(dir) = dir {
                let renamed = |name: &str| Some(format!("{prefix}.{}", name.strip_prefix(TOWER_PREFIX)?));
                weights = weights.with(Weights::open(&dir)?, renamed);
            }
        }
        Ok((config, weights))
    }

    /// Reads the tokenizer and maps the weights.
    ///
    /// # Errors
    /// When a file is missing or broken, and those of `tower`.
    pub fn open(&self, tower: TowerFinder<'_>) -> Result<Checkpoint, ModelError> {
        let (config, weights) = self.weights(tower)?;
        let prefer = match config.family {
            // Their code says use_fast=False.
            Family::LlavaUhd | Family::LlavaUhd64 | Family::Llava15 => Prefer::Model,
            _ => Prefer::Json,
        };
        let tokenizer = TextTokenizer::open(&self.dir, prefer)?;
        let chat = match config.prompt.template {
            Template::Chat => ChatTemplate::open(&self.dir)?,
            Template::Text(_) => None,
        };
        let vocabulary =
            |path: &&PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("tokenizer."));
        let origin = tokenizer.files().iter().find(vocabulary).unwrap_or(&self.dir).display().to_string();
        Ok(Checkpoint { config, tokenizer, tokenizer_origin: origin, chat, weights })
    }

    /// Covers all files that decide what the model does, by their names, wherever they lie.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn fingerprint(&self, checkpoint: &Checkpoint, windows: WindowRounding) -> Result<String, ModelError> {
        let read = [Some(&self.config), self.preprocessor.as_ref(), self.generation.as_ref()];
        let mut paths: Vec<PathBuf> = read.into_iter().flatten().map(|read| read.path.clone()).collect();
        paths.extend(self.tower.iter().map(|(_, config)| config.path.clone()));
        paths.extend(checkpoint.tokenizer.files().iter().cloned());
        paths.extend(checkpoint.chat.iter().flat_map(|chat| chat.files().iter().cloned()));
        paths.extend(checkpoint.weights.files());
        let mut named: Vec<(String, PathBuf)> = paths.into_iter().map(|path| (self.part_name(&path), path)).collect();
        named.sort();
        named.dedup();
        let mut parts: Vec<(&str, Part<'_>)> =
            named.iter().map(|(name, path)| (name.as_str(), Part::Path(path.as_path()))).collect();
        if windows == WindowRounding::F16 {
            parts.push(("windows", Part::Bytes(b"f16")));
        }
        fingerprint(&parts)
    }

    /// The name of a file in the fingerprint, which does not depend on where the checkpoint lies.
    fn part_name(&self, path: &Path) -> String {
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        if path.parent() == Some(&self.dir) { name } else { format!("vision_tower/{name}") }
    }
}

/// The tower that `reference` names, in or beside the checkpoint.
fn local_tower(reference: &str, dir: &Path) -> Option<PathBuf> {
    tower_places(reference, dir).into_iter().find(|place| place.join(CONFIG).is_file())
}
