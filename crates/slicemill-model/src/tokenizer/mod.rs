//! A checkpoint's tokenizer: from text to ids and back, as transformers has it.
//!
//! ```text
//!   tokenizer.json ────────────────────────────▶ `tokenizers` ──┐
//!   tokenizer.model ─▶ sentencepiece BPE ─▶ LLaMA's own rules ──┴─▶ TextTokenizer
//!   tokenizer_config.json, special_tokens_map.json, added_tokens.json ─▶ special and added tokens, flags
//! ```
//!
//! A directory may hold both vocabularies, which are not the same to the last detail: `tokenizer.json` puts a space in
//! front of every stretch between special tokens, `tokenizer.model` does so where `legacy` says; they also differ in
//! what stays of bytes that are no character. [`Prefer`] says which one the model was made with.

use std::path::{Path, PathBuf};

use crate::error::ModelError;

mod files;
mod json;
mod llama;
mod normalize;
mod proto;
mod sentencepiece;

#[cfg(test)]
mod tests;

pub(crate) use files::Files;
use files::{VOCABULARY_JSON, VOCABULARY_MODEL, broken, read};
use json::Json;
use llama::Llama;
use sentencepiece::SentencePiece;

/// Which vocabulary is read when a directory holds both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Prefer {
    /// `tokenizer.json`, like transformers unless it is told otherwise.
    #[default]
    Json,
    /// `tokenizer.model`, like transformers with `use_fast=False`, which LLaVA and LLaVA-UHD say.
    Model,
}

/// The tokenizer of a checkpoint.
#[derive(Debug, Clone)]
pub struct TextTokenizer {
    vocabulary: Vocabulary,
    bos: Option<u32>,
    eos: Option<u32>,
    unk: Option<u32>,
    pad: Option<u32>,
    adds_bos: bool,
    files: Vec<PathBuf>,
}

#[derive(Debug, Clone)]
enum Vocabulary {
    Json(Box<Json>),
    /// And whether spaces before punctuation go when ids become text.
    Model(Box<Llama>, bool),
}

impl TextTokenizer {
    /// Reads the tokenizer of a checkpoint directory.
    ///
    /// # Errors
    /// When there is none, a file is damaged, or its kind is not supported. The error names the file and the remedy.
    pub fn open(dir: &Path, prefer: Prefer) -> Result<Self, ModelError> {
        let (json, model) = (dir.join(VOCABULARY_JSON), dir.join(VOCABULARY_MODEL));
        match (json.is_file(), model.is_file(), prefer) {
            (true, true, Prefer::Model) | (false, true, _) => Self::open_model(dir, &model),
            (true, ..) => Self::open_json(dir, &json),
            (false, false, _) => Err(ModelError::File {
                origin: dir.display().to_string(),
                message: format!(
                    "holds neither {VOCABULARY_JSON} nor {VOCABULARY_MODEL}; copy the tokenizer files of the model \
                     beside its weights (a vocab.json alone becomes a tokenizer.json when transformers saves it)"
                ),
            }),
        }
    }

    /// Reads a tokenizer.json from memory; it names no special tokens. `origin` stands for it in errors.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn from_json(bytes: &[u8], origin: &str) -> Result<Self, ModelError> {
        let json = Json::new(bytes).map_err(|what| broken(Path::new(origin), what))?;
        Ok(Self::new(Vocabulary::Json(Box::new(json)), Files::default()))
    }

    fn open_json(dir: &Path, path: &Path) -> Result<Self, ModelError> {
        let mut files = Files::open(dir, VOCABULARY_JSON)?;
        let json = Json::new(&read(path)?).and_then(|json| json.with(&files)).map_err(|what| broken(path, what))?;
        files.note(path);
        Ok(Self::new(Vocabulary::Json(Box::new(json)), files))
    }

    fn open_model(dir: &Path, path: &Path) -> Result<Self, ModelError> {
        let mut files = Files::open(dir, VOCABULARY_MODEL)?;
        if !files.fits_model() {
            return Err(broken(
                path,
                format!(
                    "belongs to a {}, whose rules are not known; only LLaMA's are. Give a {VOCABULARY_JSON} instead \
                     (transformers writes one when the fast tokenizer is saved)",
                    files.class()
                ),
            ));
        }
        let model = SentencePiece::new(&read(path)?).map_err(|what| broken(path, what))?;
        let cleans_up = files.cleans_up();
        let llama = Llama::new(model, &files);
        files.note(path);
        Ok(Self::new(Vocabulary::Model(Box::new(llama), cleans_up), files))
    }

    fn new(vocabulary: Vocabulary, files: Files) -> Self {
        let mut new =
            Self { vocabulary, bos: None, eos: None, unk: None, pad: None, adds_bos: false, files: Vec::new() };
        let role = |role: &str| files.role(role).and_then(|token| new.id_of(token));
        let (bos, eos, unk, pad) = (role("bos_token"), role("eos_token"), role("unk_token"), role("pad_token"));
        (new.bos, new.eos, new.unk, new.pad) = (bos, eos, unk, pad);
        new.adds_bos = bos.is_some_and(|bos| match &new.vocabulary {
            Vocabulary::Json(json) if !files.llama => json.begins_with(bos),
            _ => files.flag("add_bos_token").unwrap_or(true),
        });
        new.files = files.read;
        new.files.sort();
        new
    }

    /// The ids of a text, without any that begin or end a sequence; the text of special tokens becomes their ids.
    ///
    /// # Errors
    /// When the text cannot be tokenised.
    pub fn ids(&self, text: &str) -> Result<Vec<u32>, String> {
        match &self.vocabulary {
            Vocabulary::Json(json) => json.ids(text),
            Vocabulary::Model(llama, _) => Ok(llama.ids(text)),
        }
    }

    /// The text of ids, with or without special tokens. Ids without a token have no text.
    ///
    /// # Errors
    /// When the tokens cannot be joined.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, String> {
        match &self.vocabulary {
            Vocabulary::Json(json) => json.decode(ids, skip_special),
            Vocabulary::Model(llama, cleans_up) => {
                let text = llama.decode(ids, skip_special);
                Ok(if *cleans_up { json::clean_up(text) } else { text })
            }
        }
    }

    /// The id of a token, added or not.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        match &self.vocabulary {
            Vocabulary::Json(json) => json.id_of(token),
            Vocabulary::Model(llama, _) => llama.id_of(token),
        }
    }

    /// The id that the files name as the beginning of a sequence.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The id that the files name as the end of a sequence.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The id that the files name for what is unknown.
    pub fn unk(&self) -> Option<u32> {
        self.unk
    }

    /// The id that the files name for padding.
    pub fn pad(&self) -> Option<u32> {
        self.pad
    }

    /// Whether a sequence begins with [`Self::bos`] unless somebody says otherwise.
    pub fn adds_bos(&self) -> bool {
        self.adds_bos
    }

    /// The largest id + 1.
    pub fn vocab_len(&self) -> usize {
        match &self.vocabulary {
            Vocabulary::Json(json) => json.len(),
            Vocabulary::Model(llama, _) => llama.len(),
        }
    }

    /// The files that decide about ids and text, in order of their names.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }
}
