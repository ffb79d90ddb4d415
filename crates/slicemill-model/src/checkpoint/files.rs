//! Which files of a checkpoint are needed: in a directory, and in a list of names that a hub gives.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::error::ModelError;

/// One file with all weights, and the index of several, in order of preference.
const SETS: [Set; 2] = [
    Set { single: "model.safetensors", index: "model.safetensors.index.json", stem: "model", end: ".safetensors" },
    Set { single: "pytorch_model.bin", index: "pytorch_model.bin.index.json", stem: "pytorch_model", end: ".bin" },
];
/// Weights of the projector, where a checkpoint keeps them apart.
pub(super) const PROJECTOR_FILE: &str = "mm_projector.bin";
/// What the names of the projector's tensors contain.
const PROJECTOR_TENSORS: &str = "mm_projector.";
/// Any of them is a tokenizer.
const TOKENIZERS: [&str; 3] = ["tokenizer.json", "tokenizer.model", "vocab.json"];
const SMALL: [&str; 7] = [
    "config.json",
    "preprocessor_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
];
const SMALL_STARTS: [&str; 2] = ["tokenizer", "chat_template"];
/// Ends of files that hold weights in formats that may not be readable.
const WEIGHT_ENDS: [&str; 11] =
    [".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".h5", ".msgpack", ".onnx", ".npz"];

struct Set {
    single: &'static str,
    index: &'static str,
    stem: &'static str,
    end: &'static str,
}

/// What a checkpoint is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// A whole model.
    Model,
    /// A vision tower: configuration and weights.
    Tower,
}

/// How the weights are kept.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Choice {
    Single(String),
    /// Shards that an index names.
    Indexed(String),
    /// Shards without an index, by their numbers, with the names of those that are not there.
    Numbered(Vec<String>, Vec<String>),
}

/// The weight files of a directory.
#[derive(Debug)]
pub(super) struct Survey {
    pub(super) files: Vec<PathBuf>,
    /// Names of files that should be there and are not.
    pub(super) missing: Vec<String>,
    /// Tensor → file name, as the index has it.
    pub(super) placed: BTreeMap<String, String>,
    /// [`PROJECTOR_FILE`], when it is there and the index does not say that it is not needed.
    pub(super) projector: Option<PathBuf>,
}

/// How the weights among `names` are kept: safetensors before torch files.
pub(super) fn choose(names: &BTreeSet<String>) -> Option<Choice> {
    SETS.iter().find_map(|set| {
        if names.contains(set.single) {
            return Some(Choice::Single(set.single.to_owned()));
        }
        if names.contains(set.index) {
            return Some(Choice::Indexed(set.index.to_owned()));
        }
        numbered(names, set)
    })
}

/// Files such as `model-00001-of-00003.safetensors`. Of several groups a complete one is taken before others, and one
/// with the usual stem before others.
fn numbered(names: &BTreeSet<String>, set: &Set) -> Option<Choice> {
    let mut groups: BTreeMap<(&str, &str), BTreeSet<usize>> = BTreeMap::new();
    for name in names {
        let parts = name.strip_suffix(set.end).and_then(|name| name.rsplit_once("-of-"));
        let Some(((stem, number), count)) = parts.and_then(|(rest, count)| Some((rest.rsplit_once('-')?, count)))
        else {
            continue;
        };
        if let Some(number) = digits(number)
            && digits(count).is_some_and(|count| (1..=count).contains(&number))
        {
            groups.entry((stem, count)).or_default().insert(number);
        }
    }
    let complete = |count: &str, found: &BTreeSet<usize>| digits(count) == Some(found.len());
    let ((stem, count), _) =
        groups.into_iter().max_by_key(|((stem, count), found)| (complete(count, found), *stem == set.stem))?;
    let name = |number: usize| format!("{stem}-{number:0width$}-of-{count}{}", set.end, width = count.len());
    let (files, missing) = (1..=digits(count)?).map(name).partition(|name| names.contains(name));
    Some(Choice::Numbered(files, missing))
}

/// A number of five digits, as shards have.
fn digits(text: &str) -> Option<usize> {
    if text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// Looks for the weights of a directory.
///
/// # Errors
/// When there are none, or the index cannot be read.
pub(super) fn survey(dir: &Path) -> Result<Survey, ModelError> {
    let names = names(dir)?;
    let none = || ModelError::File { origin: dir.display().to_string(), message: no_weights(&names) };
    let (mut files, mut missing, mut placed) = (Vec::new(), Vec::new(), BTreeMap::new());
    match choose(&names).ok_or_else(none)? {
        Choice::Single(name) => files.push(name),
        Choice::Indexed(name) => {
            placed = read_index(&dir.join(name))?;
            files = placed.values().cloned().collect::<BTreeSet<_>>().into_iter().collect();
        }
        Choice::Numbered(found, not_found) => (files, missing) = (found, not_found),
    }
    // A name may be there and lead nowhere: caches keep links.
    files.retain(|name| {
        let is_there = dir.join(name).is_file();
        if !is_there {
            missing.push(name.clone());
        }
        is_there
    });
    let projector = Some(dir.join(PROJECTOR_FILE)).filter(|path| !has_projector(placed.keys()) && path.is_file());
    Ok(Survey { files: files.into_iter().map(|name| dir.join(name)).collect(), missing, placed, projector })
}

/// Whether tensors of the projector are among `names`.
pub(super) fn has_projector<'a>(mut names: impl Iterator<Item = &'a String>) -> bool {
    names.any(|name| name.contains(PROJECTOR_TENSORS))
}

fn names(dir: &Path) -> Result<BTreeSet<String>, ModelError> {
    let problem = |e: std::io::Error| ModelError::File {
        origin: dir.display().to_string(),
        message: format!("cannot be read as a directory: {e}; give the directory of a checkpoint"),
    };
    let entries = std::fs::read_dir(dir).map_err(problem)?.collect::<Result<Vec<_>, _>>().map_err(problem)?;
    Ok(entries.into_iter().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

/// The message for files among which there are no weights.
pub(super) fn no_weights(names: &BTreeSet<String>) -> String {
    let [safetensors, torch] = &SETS;
    let found: Vec<&str> =
        names.iter().map(String::as_str).filter(|name| WEIGHT_ENDS.iter().any(|end| name.ends_with(end))).collect();
    let found = match found.as_slice() {
        [] => String::new(),
        [name, ..] if name.starts_with("adapter_model.") => {
            format!(" ({name} is an adapter: merge it into its base model first)")
        }
        some => format!(" (there is {}, which cannot be read)", capped(some, 6)),
    };
    format!(
        "holds neither {} nor {}, nor {} nor {}{found}; give the directory of a checkpoint in safetensors",
        safetensors.single, safetensors.index, torch.single, torch.index
    )
}

/// Tensor → file name.
///
/// # Errors
/// When the index cannot be read, or names files elsewhere.
pub(super) fn read_index(path: &Path) -> Result<BTreeMap<String, String>, ModelError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let problem = |message: String| ModelError::File { origin: path.display().to_string(), message };
    let bytes = std::fs::read(path).map_err(|e| problem(format!("cannot be read: {e}")))?;
    let index: Index = serde_json::from_slice(&bytes)
        .map_err(|e| problem(format!("is not an index of weights ({e}); copy or download it again")))?;
    if let Some(name) = index.weight_map.values().find(|name| !is_plain(name)) {
        return Err(problem(format!("names the file {name:?}; shards must lie beside the index")));
    }
    Ok(index.weight_map)
}

/// Whether a name is that of a file in the same directory.
pub(super) fn is_plain(name: &str) -> bool {
    Path::new(name).file_name() == Some(name.as_ref()) && !name.contains(['/', '\\'])
}

/// The files beside the weights that are needed, in order.
pub(super) fn small(names: &BTreeSet<String>, need: Need) -> Vec<String> {
    let wanted = |name: &&String| match need {
        Need::Tower => SMALL[..2].contains(&name.as_str()),
        Need::Model => {
            is_plain(name)
                && (SMALL.contains(&name.as_str()) || SMALL_STARTS.iter().any(|start| name.starts_with(start)))
        }
    };
    names.iter().filter(wanted).cloned().collect()
}

/// What a directory still needs, as far as it can be told from the directory alone; empty when it is complete.
///
/// # Errors
/// When its index cannot be read.
pub(super) fn incomplete(dir: &Path, need: Need) -> Result<Vec<String>, ModelError> {
    let names: BTreeSet<String> = names(dir)?.into_iter().filter(|name| dir.join(name).exists()).collect();
    let mut missing = Vec::new();
    if !names.contains("config.json") {
        missing.push("config.json".to_owned());
    }
    if need == Need::Model && !TOKENIZERS.iter().any(|name| names.contains(*name)) {
        missing.push(TOKENIZERS[0].to_owned());
    }
    if choose(&names).is_none() {
        missing.push(SETS[0].single.to_owned());
        return Ok(missing);
    }
    let survey = survey(dir)?;
    missing.extend(survey.missing);
    let apart = need == Need::Model && !survey.placed.is_empty() && !has_projector(survey.placed.keys());
    if apart && survey.projector.is_none() && wants_projector(dir) {
        missing.push(PROJECTOR_FILE.to_owned());
    }
    Ok(missing)
}

/// Whether config.json is that of a model with a projector of this kind.
fn wants_projector(dir: &Path) -> bool {
    std::fs::read_to_string(dir.join("config.json")).is_ok_and(|text| text.contains("\"mm_projector_type\""))
}

/// The first `most` names and how many there are beyond them.
pub(super) fn capped<T: AsRef<str>>(names: &[T], most: usize) -> String {
    let shown: Vec<&str> = names.iter().take(most).map(AsRef::as_ref).collect();
    let more = names.len().saturating_sub(most);
    if more > 0 { format!("{} and {more} more", shown.join(", ")) } else { shown.join(", ") }
}
