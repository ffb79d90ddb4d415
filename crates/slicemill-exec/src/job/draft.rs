//! From text, `--set` and flags to a [`JobFile`] whose names and values are right; every problem is reported at once.

use std::collections::BTreeMap;
use std::ops::Range;

use slicemill_core::WindowRounding;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::file::JobFile;
use super::keys::{self, KEYS, Key, Kind};
use super::problem::{JobError, Place, Problem, place_of};

/// Where the job was written.
#[derive(Debug, Clone)]
enum Origin {
    /// In a file of this name and text.
    File { name: String, text: String },
    /// In flags.
    Flags,
}

/// A job whose keys and values are right; [`JobDraft::resolve`](super::JobDraft::resolve) checks it against a model.
#[derive(Debug, Clone)]
pub struct JobDraft {
    /// The keys that were given.
    pub file: JobFile,
    origin: Origin,
    spans: BTreeMap<String, Range<usize>>,
    sets: BTreeMap<String, String>,
}

impl JobDraft {
    /// Reads the text of a job file called `name` and applies `sets`, each `key=value` with a dotted key.
    ///
    /// # Errors
    /// Every unknown key, bad value and bad `--set`, with its line and remedy.
    pub fn from_text(name: &str, text: &str, sets: &[String]) -> Result<Self, JobError> {
        let origin = Origin::File { name: name.to_owned(), text: text.to_owned() };
        let parsed = DeTable::parse(text).map_err(|error| syntax_error(name, text, &error))?;
        let mut spans = BTreeMap::new();
        let mut unknown = Vec::new();
        collect_spans(parsed.get_ref(), "", &mut spans, &mut unknown);
        let mut problems: Vec<Problem> = unknown
            .into_iter()
            .map(|(path, span)| Problem {
                place: place_of(name, text, span),
                message: format!("unknown key {path}"),
                remedy: keys::remedy_for_unknown(&path),
            })
            .collect();
        let mut table: Table = text.parse().map_err(|error| syntax_error(name, text, &error))?;
        let mut applied = BTreeMap::new();
        for set in sets {
            match apply_set(&mut table, set) {
                Ok(path) => drop(applied.insert(path.to_owned(), set.clone())),
                Err(problem) => problems.push(problem),
            }
        }
        Self::checked(table, origin, spans, applied, problems)
    }

    /// Checks a job that flags describe, as the document a job file would hold.
    ///
    /// # Errors
    /// Every bad value, with its flag and remedy.
    pub fn from_flags(document: Table) -> Result<Self, JobError> {
        let mut problems = Vec::new();
        for (section, value) in &document {
            let names: Vec<String> = match value {
                Value::Table(inner) => inner.keys().map(|name| format!("{section}.{name}")).collect(),
                _ => vec![section.clone()],
            };
            problems.extend(names.into_iter().filter(|path| keys::find(path).is_none()).map(|path| Problem {
                remedy: keys::remedy_for_unknown(&path),
                message: "unknown key".to_owned(),
                place: Place::Flag(path),
            }));
        }
        Self::checked(document, Origin::Flags, BTreeMap::new(), BTreeMap::new(), problems)
    }

    fn checked(
        table: Table,
        origin: Origin,
        spans: BTreeMap<String, Range<usize>>,
        sets: BTreeMap<String, String>,
        mut problems: Vec<Problem>,
    ) -> Result<Self, JobError> {
        let mut draft = Self { file: JobFile::default(), origin, spans, sets };
        for key in KEYS {
            if let Some(value) = lookup(&table, key.path)
                && let Err((message, remedy)) = check_value(key, value)
            {
                problems.push(Problem { place: draft.place(key.path), message, remedy });
            }
        }
        if !problems.is_empty() {
            return Err(JobError { problems });
        }
        draft.file = table.try_into().map_err(|error: toml::de::Error| JobError {
            problems: vec![Problem {
                place: draft.place(""),
                message: error.message().to_owned(),
                remedy: String::new(),
            }],
        })?;
        Ok(draft)
    }

    /// Rounding of the windows of a spatial resampler, which the model is loaded with.
    pub fn windows(&self) -> WindowRounding {
        self.file.model.windows.unwrap_or_default()
    }

    /// The model to load, before anything else is resolved.
    pub fn model_name(&self) -> &str {
        self.file.model.name.as_deref().unwrap_or("embedded")
    }

    /// Beams of the job's beam search, for which its model is opened; 1 without one.
    pub fn num_beams(&self) -> u32 {
        self.file.generation.num_beams.unwrap_or(1)
    }

    /// Where the value of the key `path` was given.
    pub fn place(&self, path: &str) -> Place {
        if let Some(set) = self.sets.get(path) {
            return Place::Set(set.clone());
        }
        match &self.origin {
            Origin::File { name, text } => match self.spans.get(path) {
                Some(span) => place_of(name, text, span.clone()),
                None => Place::Absent { name: name.clone() },
            },
            Origin::Flags => {
                let flag = keys::find(path).map_or("", |key| key.flag);
                Place::Flag(if flag.is_empty() { path.to_owned() } else { flag.to_owned() })
            }
        }
    }

    /// How a person names the key `path` here: its flag, or the key itself.
    pub fn spelled(&self, path: &'static str) -> &'static str {
        match (&self.origin, keys::find(path)) {
            (Origin::Flags, Some(key)) if !key.flag.is_empty() => key.flag,
            _ => path,
        }
    }
}

fn syntax_error(name: &str, text: &str, error: &toml::de::Error) -> JobError {
    let place = match error.span() {
        Some(span) => place_of(name, text, span),
        None => Place::Absent { name: name.to_owned() },
    };
    let message = format!("not TOML: {}", error.message().replace('\n', ", "));
    JobError { problems: vec![Problem { place, message, remedy: "see https://toml.io for the syntax".to_owned() }] }
}

/// Records where every known value stands, and every key that is not known.
fn collect_spans(
    table: &DeTable<'_>,
    prefix: &str,
    spans: &mut BTreeMap<String, Range<usize>>,
    unknown: &mut Vec<(String, Range<usize>)>,
) {
    for (name, value) in table {
        let path = if prefix.is_empty() { name.get_ref().to_string() } else { format!("{prefix}.{}", name.get_ref()) };
        match value.get_ref() {
            DeValue::Table(inner) if keys::is_section(&path) => collect_spans(inner, &path, spans, unknown),
            _ if keys::find(&path).is_some() => drop(spans.insert(path, Spanned::span(value))),
            _ if keys::is_section(&path) => unknown.push((format!("{path} (a section)"), name.span())),
            _ => unknown.push((path, name.span())),
        }
    }
}

/// Puts one `key=value` into the table and returns the key. The value is TOML where it reads as TOML, else a text.
fn apply_set(table: &mut Table, set: &str) -> Result<&'static str, Problem> {
    let problem = |message: String, remedy: String| Problem { place: Place::Set(set.to_owned()), message, remedy };
    let Some((path, text)) = set.split_once('=') else {
        return Err(problem(
            "no value".to_owned(),
            "write --set key=value with a dotted key, as --set slicing.policy=whole".to_owned(),
        ));
    };
    let path = path.trim();
    let Some(key) = keys::find(path) else {
        return Err(problem(format!("unknown key {path}"), keys::remedy_for_unknown(path)));
    };
    let value = set_value(key, text.trim());
    let (section, name) = key.path.split_once('.').unwrap_or(("", key.path));
    if section.is_empty() {
        table.insert(name.to_owned(), value);
        return Ok(key.path);
    }
    let entry = table.entry(section.to_owned()).or_insert_with(|| Value::Table(Table::new()));
    match entry {
        Value::Table(inner) => drop(inner.insert(name.to_owned(), value)),
        other => *other = Value::Table(Table::from_iter([(name.to_owned(), value)])),
    }
    Ok(key.path)
}

fn set_value(key: &Key, text: &str) -> Value {
    let parsed = format!("value = {text}").parse::<Table>().ok().and_then(|mut table| table.remove("value"));
    let literal = Value::String(text.to_owned());
    match (key.kind, parsed) {
        (Kind::Text | Kind::Choice(_), Some(value @ Value::String(_))) => value,
        (Kind::Text | Kind::Choice(_), _) => literal,
        (Kind::TextList | Kind::ChoiceList(_), Some(value @ Value::Array(_))) => value,
        (Kind::TextList | Kind::ChoiceList(_), Some(value @ Value::String(_))) => Value::Array(vec![value]),
        (Kind::TextList | Kind::ChoiceList(_), _) => Value::Array(vec![literal]),
        (Kind::Switch | Kind::Count { .. } | Kind::Real { .. }, Some(value)) => value,
        (Kind::Switch | Kind::Count { .. } | Kind::Real { .. }, None) => literal,
    }
}

fn lookup<'a>(table: &'a Table, path: &str) -> Option<&'a Value> {
    match path.split_once('.') {
        Some((section, name)) => table.get(section)?.as_table()?.get(name),
        None => table.get(path),
    }
}

/// Whether `value` is one that `key` takes; else what is wrong and the remedy.
fn check_value(key: &Key, value: &Value) -> Result<(), (String, String)> {
    let wrong = |shown: &Value| (format!("{} is not {}", shorten(&shown.to_string()), key.kind.expects()), about(key));
    match (key.kind, value) {
        (Kind::Text, Value::String(text)) if !text.trim().is_empty() => Ok(()),
        (Kind::Choice(words), Value::String(text)) => check_word(key, words, text),
        (Kind::TextList, Value::Array(items)) if !items.is_empty() => {
            match items.iter().find(|item| item.as_str().is_none_or(|text| text.trim().is_empty())) {
                Some(item) => {
                    Err((format!("{} in {} is not a text", shorten(&item.to_string()), key.path), about(key)))
                }
                None => Ok(()),
            }
        }
        (Kind::ChoiceList(words), Value::Array(items)) => items.iter().try_for_each(|item| match item.as_str() {
            Some(text) => check_word(key, words, text),
            None => Err(wrong(item)),
        }),
        (Kind::Switch, Value::Boolean(_)) => Ok(()),
        (Kind::Count { min, max }, Value::Integer(number)) if (min..=max).contains(number) => Ok(()),
        (Kind::Real { min, max }, Value::Integer(number)) if (min..=max).contains(&(*number as f64)) => Ok(()),
        (Kind::Real { min, max }, Value::Float(number)) if (min..=max).contains(number) => Ok(()),
        _ => Err(wrong(value)),
    }
}

fn check_word(key: &Key, words: &[&str], text: &str) -> Result<(), (String, String)> {
    if words.contains(&text) {
        return Ok(());
    }
    let remedy = match keys::nearest(text, words.iter().copied()) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => about(key),
    };
    Err((format!("\"{}\" is not {}", shorten(text), key.kind.expects()), remedy))
}

fn about(key: &Key) -> String {
    format!("{} is: {}", key.path, key.about)
}

/// At most 60 characters of `text`.
fn shorten(text: &str) -> String {
    if text.chars().count() <= 60 { text.to_owned() } else { text.chars().take(57).chain("...".chars()).collect() }
}
