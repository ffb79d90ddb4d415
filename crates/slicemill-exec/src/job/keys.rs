//! The keys of a job file as one table: name, flag, kind of value and meaning. Checks of names and values read this
//! table, so a file, `--set` and a flag are refused in the same words.

use slicemill_core::{GenerationParams, SlicingPolicy};

/// What values a key takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Any text that is not blank.
    Text,
    /// A list of texts that are not blank.
    TextList,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A list of some of these words.
    ChoiceList(&'static [&'static str]),
    /// Yes or no.
    Switch,
    /// A whole number between two limits.
    Count {
        /// Smallest.
        min: i64,
        /// Largest.
        max: i64,
    },
    /// A number between two limits.
    Real {
        /// Smallest.
        min: f64,
        /// Largest.
        max: f64,
    },
}

impl Kind {
    /// What the key takes, in words.
    pub fn expects(self) -> String {
        match self {
            Self::Text => "a text".to_owned(),
            Self::TextList => "a list of texts, as [\"a\", \"b\"]".to_owned(),
            Self::Choice(words) => format!("one of {}", words.join(", ")),
            Self::ChoiceList(words) => format!("a list of {}", words.join(", ")),
            Self::Switch => "true or false".to_owned(),
            Self::Count { min, max: i64::MAX } => format!("a whole number, {min} or more"),
            Self::Count { min, max } => format!("a whole number from {min} to {max}"),
            Self::Real { min, max } if max == f64::MAX => format!("a number, {min} or more"),
            Self::Real { min, max } => format!("a number from {min} to {max}"),
        }
    }
}

/// A key of the job file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Key {
    /// Dotted path, as `slicing.policy`.
    pub path: &'static str,
    /// The flag of `caption`, `ask` and `encode` that says the same; empty when there is none.
    pub flag: &'static str,
    /// Values it takes.
    pub kind: Kind,
    /// Its meaning, one line.
    pub about: &'static str,
}

const fn key(path: &'static str, flag: &'static str, kind: Kind, about: &'static str) -> Key {
    Key { path, flag, kind, about }
}

const fn count(min: i64, max: i64) -> Kind {
    Kind::Count { min, max }
}

const U32_MAX: i64 = u32::MAX as i64;

/// Every key, in the order of the documentation.
pub const KEYS: &[Key] = &[
    key("task", "", Kind::Choice(&["caption", "ask", "encode"]), "what the job produces"),
    key(
        "input.paths",
        "INPUT",
        Kind::TextList,
        "folders, files, archives, tables, lists and globs, as paths or URLs; - is a list on standard input",
    ),
    key("input.keep", "--keep", Kind::TextList, "columns of the input that the output carries as input_<name>"),
    key("input.where", "--where", Kind::Text, "SQL condition over columns of the plan and of the input"),
    key("input.sample", "--sample", Kind::Text, "share of the inputs, as 1%; the same inputs every time"),
    key("input.limit", "--limit", count(1, i64::MAX), "take this many inputs, the first in order"),
    key("input.image_column", "--image-column", Kind::Text, "column of a table with the images or their locations"),
    key("input.key_column", "--key-column", Kind::Text, "column of a table that names its rows"),
    key(
        "input.root",
        "--root",
        Kind::Text,
        "folder that local files named by a list may lie in; a list's own otherwise",
    ),
    key("output.path", "--output", Kind::Text, "folder of the output, a path or URL"),
    key("output.columns", "--columns", Kind::ChoiceList(&["+token_ids"]), "further columns of the content"),
    key("output.chunk_rows", "--chunk-rows", count(1, 65_536), "input rows of a chunk, the unit of resume"),
    key("output.shard_rows", "--shard-rows", count(1, 16_777_216), "input rows of a shard, the unit of output files"),
    key("output.shard_bytes", "--shard-bytes", count(1, i64::MAX), "bytes of content that a shard is to reach"),
    key("model.name", "--model", Kind::Text, "embedded, null, the path of a checkpoint, or org/name on the hub"),
    key(
        "model.windows",
        "--windows",
        Kind::Choice(&["f32", "f16"]),
        "rounding of LLaVA-UHD v1's windows; f16 is what its released evaluation does",
    ),
    key("slicing.policy", "--policy", Kind::Choice(SlicingPolicy::NAMES), "slicing policy"),
    key(
        "slicing.side",
        "--side",
        count(1, SlicingPolicy::SIDE_MAX as i64),
        "side of the square the vision tower was trained on, pixels",
    ),
    key("slicing.patch", "--patch", count(1, SlicingPolicy::PATCH_MAX as i64), "patch size, pixels"),
    key(
        "slicing.max_slices",
        "--max-slices",
        count(1, SlicingPolicy::SLICES_MAX as i64),
        "largest number of slices, without the overview",
    ),
    key("image.orientation", "--orientation", Kind::Choice(&["apply", "ignore"]), "EXIF orientation"),
    key("image.alpha", "--alpha", Kind::Choice(&["white", "black", "drop"]), "what becomes of an alpha channel"),
    key("image.pixels_max", "--pixels-max", count(1, i64::MAX), "largest accepted width × height"),
    key(
        "image.truncated",
        "--allow-truncated",
        Kind::Choice(&["fail", "allow"]),
        "what becomes of images that end early",
    ),
    key("prompt.text", "--prompt", Kind::Text, "the instruction of a caption job"),
    key("questions.ask", "--ask", Kind::TextList, "questions asked about every image"),
    key("questions.file", "--questions", Kind::Text, "questions by image key: jsonl, csv or parquet"),
    key("questions.template", "--template", Kind::Text, "prompt around a question, with {question} and other columns"),
    key("generation.max_new_tokens", "--max-new-tokens", count(1, U32_MAX), "cap on output tokens"),
    key("generation.temperature", "--temperature", Kind::Real { min: 0.0, max: 100.0 }, "0 is greedy"),
    key("generation.top_k", "--top-k", count(1, U32_MAX), "sample from the k most likely tokens"),
    key(
        "generation.top_p",
        "--top-p",
        Kind::Real { min: 0.000_001, max: 1.0 },
        "sample from the smallest set with probability p",
    ),
    key("generation.repetition_penalty", "--repetition-penalty", Kind::Real { min: 0.01, max: 100.0 }, "1 is off"),
    key(
        "generation.num_beams",
        "--num-beams",
        count(1, GenerationParams::BEAMS_MAX as i64),
        "beams of a beam search; 1 is none",
    ),
    key(
        "generation.length_penalty",
        "--length-penalty",
        Kind::Real { min: -10.0, max: 10.0 },
        "power of the length that a beam's log-probability is divided by; above 0 long answers gain",
    ),
    key(
        "generation.early_stopping",
        "--early-stopping",
        Kind::Switch,
        "end a beam search when as many beams have finished as there are beams",
    ),
    key("generation.seed", "--seed", count(0, i64::MAX), "seed of the job; each row derives its own"),
    key("encode.dtype", "--dtype", Kind::Choice(&["f32", "f16"]), "element type of stored visual tokens"),
];

/// The key at `path`.
pub fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// Whether `path` is a section, as `slicing`.
pub fn is_section(path: &str) -> bool {
    KEYS.iter().any(|key| key.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

/// What to do about an unknown `path`: the key that was probably meant, or the keys there are.
pub fn remedy_for_unknown(path: &str) -> String {
    let last = path.rsplit('.').next().unwrap_or(path);
    if let Some(moved) = KEYS.iter().find(|key| key.path != path && key.path.rsplit('.').next() == Some(last)) {
        return format!("did you mean {}?", moved.path);
    }
    let names = KEYS.iter().map(|key| key.path).chain(sections());
    if let Some(near) = nearest(path, names) {
        return format!("did you mean {near}?");
    }
    let section = path.rsplit_once('.').map(|(section, _)| section).filter(|section| is_section(section));
    match section {
        Some(section) => {
            let keys: Vec<&str> =
                KEYS.iter().filter_map(|key| key.path.strip_prefix(section)?.strip_prefix('.')).collect();
            format!("[{section}] takes {}", keys.join(", "))
        }
        None => format!("a job has task and the sections {}", sections().collect::<Vec<_>>().join(", ")),
    }
}

fn sections() -> impl Iterator<Item = &'static str> {
    let mut last = "";
    KEYS.iter().filter_map(|key| key.path.split_once('.')).map(|(section, _)| section).filter(move |section| {
        let new = *section != last;
        last = section;
        new
    })
}

/// The candidate nearest to `word`, when it is near enough to be meant: at most a third of its letters differ.
pub fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|candidate| (edit_distance(word, candidate), candidate))
        .filter(|(distance, candidate)| distance * 3 <= candidate.chars().count().max(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance in characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_have_remedies() {
        for (path, remedy) in [
            ("slicing.polcy", "did you mean slicing.policy?"),
            ("max_new_tokens", "did you mean generation.max_new_tokens?"),
            ("slicng", "did you mean slicing?"),
            ("image.zzzzzzzz", "[image] takes orientation, alpha, pixels_max, truncated"),
            (
                "xyzzy",
                "a job has task and the sections input, output, model, slicing, image, prompt, questions, generation, encode",
            ),
        ] {
            assert_eq!(remedy_for_unknown(path), remedy, "{path}");
        }
    }

    #[test]
    fn distances() {
        for (a, b, distance) in [("", "abc", 3), ("abc", "abc", 0), ("kitten", "sitting", 3), ("ab", "ba", 2)] {
            assert_eq!(edit_distance(a, b), distance, "{a} {b}");
        }
    }
}
