//! What the JSON files beside a vocabulary say: special tokens, added tokens, class and flags.
//!
//! They are read as transformers reads them: tokenizer_config.json is the authority when it lists the added tokens;
//! when it does not, special_tokens_map.json overrides it and added_tokens.json (and tokenizer.json) list the tokens.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokenizers::AddedToken;

use crate::error::ModelError;

pub(super) const VOCABULARY_JSON: &str = "tokenizer.json";
pub(super) const VOCABULARY_MODEL: &str = "tokenizer.model";
const CONFIG: &str = "tokenizer_config.json";
const SPECIAL: &str = "special_tokens_map.json";
const ADDED: &str = "added_tokens.json";

/// The roles of special tokens, in the order in which transformers adds them.
const ROLES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
const ADDITIONAL: &str = "additional_special_tokens";

/// The files beside a vocabulary, put together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Files {
    config: Map<String, Value>,
    /// Whether the rules of LLaMA's tokenizer apply.
    pub llama: bool,
    /// Role → token.
    roles: BTreeMap<&'static str, String>,
    /// Further special tokens.
    pub additional: Vec<String>,
    /// Id → added token.
    pub added: BTreeMap<u32, AddedToken>,
    /// What was read.
    pub read: Vec<PathBuf>,
}

/// An added token as files have it; what is absent is false.
#[derive(Deserialize)]
#[serde(default)]
struct Added {
    content: String,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: Option<bool>,
    special: bool,
}

impl Default for Added {
    fn default() -> Self {
        let content = String::new();
        Self { content, single_word: false, lstrip: false, rstrip: false, normalized: None, special: false }
    }
}

impl Added {
    fn token(self) -> AddedToken {
        AddedToken::from(self.content, self.special)
            .single_word(self.single_word)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip)
            .normalized(self.normalized.unwrap_or(!self.special))
    }
}

impl Files {
    /// Reads what there is in `dir` beside a tokenizer.model or a tokenizer.json.
    pub fn open(dir: &Path, vocabulary: &str) -> Result<Self, ModelError> {
        let mut files = Self::default();
        files.config = files.json(&dir.join(CONFIG))?.unwrap_or_default();
        files.llama = files.class().contains("Llama") || vocabulary == VOCABULARY_MODEL;
        let mut tokens = files.config.clone();
        match files.config.get("added_tokens_decoder") {
            Some(listed) if !listed.is_null() => {
                let listed: BTreeMap<u32, Added> = Deserialize::deserialize(listed)
                    .map_err(|e| broken(&dir.join(CONFIG), format!("has added_tokens_decoder in another form: {e}")))?;
                files.added = listed.into_iter().map(|(id, added)| (id, added.token())).collect();
            }
            _ => {
                let mut map: Map<String, Value> = files.json(&dir.join(SPECIAL))?.unwrap_or_default();
                if let (Some(Value::Array(more)), Some(Value::Array(first))) =
                    (map.get_mut(ADDITIONAL), tokens.get(ADDITIONAL))
                {
                    let new = more.drain(..).filter(|token| !first.contains(token)).collect::<Vec<_>>();
                    more.extend(first.iter().cloned().chain(new));
                }
                tokens.extend(map);
                files.legacy(dir, &tokens)?;
            }
        }
        files.name(&tokens);
        Ok(files)
    }

    /// Reads what there is in `dir` beside the vocabulary that it has.
    pub fn beside(dir: &Path) -> Result<Self, ModelError> {
        let only_model = !dir.join(VOCABULARY_JSON).is_file() && dir.join(VOCABULARY_MODEL).is_file();
        Self::open(dir, if only_model { VOCABULARY_MODEL } else { VOCABULARY_JSON })
    }

    /// Special tokens by their roles, as chat templates know them.
    pub fn named(&self) -> BTreeMap<String, Value> {
        let roles = self.roles.iter().map(|(role, token)| ((*role).to_owned(), Value::from(token.as_str())));
        let more = (!self.additional.is_empty()).then(|| (ADDITIONAL.to_owned(), Value::from(self.additional.clone())));
        roles.chain(more).collect()
    }

    /// Added tokens where tokenizer_config.json does not list them.
    fn legacy(&mut self, dir: &Path, tokens: &Map<String, Value>) -> Result<(), ModelError> {
        let special: BTreeSet<&str> = ROLES
            .iter()
            .filter_map(|role| content(tokens.get(*role)?))
            .chain(tokens.get(ADDITIONAL).and_then(Value::as_array).into_iter().flatten().filter_map(content))
            .collect();
        let listed: BTreeMap<String, u32> = self.json(&dir.join(ADDED))?.unwrap_or_default();
        for (token, id) in listed {
            let special = special.contains(token.as_str());
            self.added.insert(id, AddedToken::from(token, special));
        }
        #[derive(Deserialize, Default)]
        struct Vocabulary {
            #[serde(default)]
            added_tokens: Vec<Numbered>,
        }
        #[derive(Deserialize)]
        struct Numbered {
            id: u32,
            #[serde(flatten)]
            added: Added,
        }
        let vocabulary: Vocabulary = self.json(&dir.join(VOCABULARY_JSON))?.unwrap_or_default();
        self.added.extend(vocabulary.added_tokens.into_iter().map(|token| (token.id, token.added.token())));
        Ok(())
    }

    /// Which token has which role; LLaMA's and Qwen2's classes have tokens that their files need not name.
    fn name(&mut self, tokens: &Map<String, Value>) {
        for role in ROLES {
            let token = match tokens.get(role) {
                Some(token) => content(token),
                None => self.default_of(role),
            };
            if let Some(token) = token.filter(|token| !token.is_empty()) {
                self.roles.insert(role, token.to_owned());
            }
        }
        let additional = tokens.get(ADDITIONAL).and_then(Value::as_array).into_iter().flatten();
        self.additional = additional.filter_map(content).map(str::to_owned).collect();
    }

    fn default_of(&self, role: &str) -> Option<&'static str> {
        match (self.llama, self.class().starts_with("Qwen2"), role) {
            (true, _, "bos_token") => Some("<s>"),
            (true, _, "eos_token") => Some("</s>"),
            (true, _, "unk_token") => Some("<unk>"),
            (_, true, "eos_token" | "unk_token" | "pad_token") => Some("<|endoftext|>"),
            _ => None,
        }
    }

    /// The token with a role like `bos_token`.
    pub fn role(&self, role: &str) -> Option<&str> {
        self.roles.get(role).map(String::as_str)
    }

    /// All special tokens, in the order of their roles.
    pub fn special(&self) -> impl Iterator<Item = &str> {
        ROLES.iter().filter_map(|role| self.role(role)).chain(self.additional.iter().map(String::as_str))
    }

    /// tokenizer_class, or nothing.
    pub fn class(&self) -> &str {
        self.config.get("tokenizer_class").and_then(Value::as_str).unwrap_or("")
    }

    /// Whether a tokenizer.model is read by LLaMA's rules: the class says so, or says nothing of its own.
    pub fn fits_model(&self) -> bool {
        let class = self.class();
        class.contains("Llama") || class.is_empty() || class.starts_with("MiniCPM")
    }

    /// A flag of tokenizer_config.json.
    pub fn flag(&self, name: &str) -> Option<bool> {
        self.config.get(name).and_then(Value::as_bool)
    }

    /// Whether spaces before punctuation go when ids become text.
    pub fn cleans_up(&self) -> bool {
        let default = !(self.llama || self.class().starts_with("Qwen2"));
        self.flag("clean_up_tokenization_spaces").unwrap_or(default)
    }

    /// Notes that a file was read.
    pub fn note(&mut self, path: &Path) {
        if !self.read.iter().any(|read| read == path) {
            self.read.push(path.to_owned());
        }
    }

    /// A JSON file, if it is there; it is noted as read.
    fn json<T: DeserializeOwned>(&mut self, path: &Path) -> Result<Option<T>, ModelError> {
        if !path.is_file() {
            return Ok(None);
        }
        let bytes = read(path)?;
        self.note(path);
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| broken(path, format!("is not as expected: {e}; copy it again")))
    }
}

/// A token is given as its text, or as an object with its text.
fn content(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

/// The bytes of a file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, ModelError> {
    std::fs::read(path)
        .map_err(|e| ModelError::File { origin: path.display().to_string(), message: format!("cannot be read: {e}") })
}

pub(super) fn broken(path: &Path, message: String) -> ModelError {
    ModelError::Tokenizer { origin: path.display().to_string(), message }
}
