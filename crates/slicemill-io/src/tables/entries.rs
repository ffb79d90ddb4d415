//! From rows to entries: keys, sizes, refusals and counts.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest as _, Sha256};
use slicemill_core::ErrorClass;
use url::Url;

use super::locate::{Locations, shorten};
use crate::local_files::modification_tag;
use crate::{InputEntry, IoError, IoErrorKind, Place, shown_url};

/// Memory that is reserved for an object of unknown size, in bytes.
pub(crate) const OBJECT_BYTES_ESTIMATE: u64 = 512 << 10;
/// Longer keys are not taken, in bytes.
const KEY_BYTES_MAX: usize = 1024;

/// What was listed from tables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableCounts {
    /// Rows, refused ones included.
    pub rows: u64,
    /// Rows that were refused when they were listed, by class.
    pub refused: BTreeMap<ErrorClass, u64>,
}

/// Counts and the columns that were found, shared by all tables of a job.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    state: Mutex<TallyState>,
}

#[derive(Debug, Default)]
struct TallyState {
    counts: TableCounts,
    /// Names of columns, some of them: enough for a message.
    names: Vec<String>,
    /// Those asked for that some table has.
    found: HashSet<String>,
}

impl Tally {
    fn with<T>(&self, work: impl FnOnce(&mut TallyState) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn counts(&self) -> TableCounts {
        self.with(|state| state.counts.clone())
    }

    /// Notes that a table has the columns `names`, of which `wanted` are asked for. Returns whether all of those were
    /// found in some table by now.
    pub(crate) fn found<'a>(&self, names: impl Iterator<Item = &'a str>, wanted: &[String]) -> bool {
        const NAMES_MAX: usize = 60;
        self.with(|state| {
            for name in names {
                if state.names.len() < NAMES_MAX && !state.names.iter().any(|known| known == name) {
                    state.names.push(name.to_owned());
                }
                if wanted.iter().any(|wanted| wanted == name) && !state.found.contains(name) {
                    state.found.insert(name.to_owned());
                }
            }
            wanted.iter().all(|name| state.found.contains(name))
        })
    }

    /// An error that lists what there is when one of `wanted` was in no table.
    pub(crate) fn check(&self, wanted: &[String]) -> Result<(), IoError> {
        self.with(|state| {
            let Some(missing) = wanted.iter().find(|name| !state.found.contains(*name)) else { return Ok(()) };
            let names: Vec<_> = state.names.iter().map(|name| format!("'{}'", shorten(name))).collect();
            let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            let message = format!("no input has a column '{missing}'; the columns of the inputs are: {there}");
            Err(IoError::fatal(IoErrorKind::Invalid, message))
        })
    }
}

/// What a row says.
#[derive(Debug)]
pub(crate) enum Target {
    /// The image is there; the text may be anything.
    Location(Vec<u8>),
    /// The image is a value of this table, of about so many bytes.
    Cell { row: u64, column: Arc<str>, bytes: u64 },
    /// Nothing that could be an input.
    Refused(ErrorClass, String),
}

/// One row.
#[derive(Debug)]
pub(crate) struct Row {
    /// Position in the table, from 0.
    pub position: u64,
    /// As messages and keys name it: lines from 1, rows of Parquet from 0.
    pub number: u64,
    /// Its own key, when keys come from a column: the value, or what is wrong with it.
    pub key: Option<Result<String, String>>,
    /// What it says.
    pub target: Target,
    /// Columns asked for.
    pub columns: Option<String>,
}

impl Row {
    /// A row that cannot be read.
    pub(crate) fn bad(position: u64, number: u64, why: impl Into<String>) -> Self {
        let target = Target::Refused(ErrorClass::BadRecord, why.into());
        Self { position, number, key: None, target, columns: None }
    }
}

/// A table, as its rows need it.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    /// Key of the table.
    pub key: String,
    /// URL of the table, with its query: values are read there.
    pub url: String,
    /// In messages.
    pub shown: String,
    /// Etag or modification time of the table.
    pub tag: String,
}

impl Table {
    pub(crate) fn new(key: &str, url: &str, tag: &str) -> Self {
        let path = Url::parse(url).ok().filter(|url| url.scheme() == "file").and_then(|url| url.to_file_path().ok());
        let shown = path.map_or_else(|| shown_url(url), |path| path.display().to_string());
        Self { key: key.to_owned(), url: url.to_owned(), shown, tag: tag.to_owned() }
    }
}

/// Makes entries of the rows of one table.
#[derive(Debug)]
pub(crate) struct Entries {
    table: Table,
    /// What a row is called: `line`, `record`, `row`.
    unit: &'static str,
    locations: Locations,
    /// Hashes of the keys so far, when they come from a column.
    keys: Option<HashSet<u128>>,
    /// Whether local files are looked at.
    look: bool,
    tally: Arc<Tally>,
}

impl Entries {
    pub(crate) fn new(
        table: Table,
        unit: &'static str,
        locations: Locations,
        keyed: bool,
        look: bool,
        tally: Arc<Tally>,
    ) -> Self {
        Self { table, unit, locations, keys: keyed.then(HashSet::new), look, tally }
    }

    pub(crate) fn shown(&self) -> &str {
        &self.table.shown
    }

    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// The entry of `row`.
    pub(crate) fn entry(&mut self, row: Row) -> InputEntry {
        let (name, refused) = self.name(&row);
        let target = match (row.target, refused) {
            (target @ Target::Refused(..), _) | (target, None) => target,
            (_, Some((class, why))) => Target::Refused(class, why),
        };
        let mut entry = InputEntry {
            key: format!("{}/{name}", self.table.key),
            estimated: true,
            container: u32::try_from(self.table.key.len()).unwrap_or(0),
            position: row.position,
            columns: row.columns,
            ..InputEntry::default()
        };
        let refused = match target {
            Target::Location(text) => self.locate(&text, &mut entry).err(),
            Target::Cell { row, column, bytes } => {
                entry.url = Place::Cell { row, column: column.to_string() }.join(&self.table.url);
                entry.tag.clone_from(&self.table.tag);
                entry.bytes = bytes;
                None
            }
            Target::Refused(class, why) => Some((class, why)),
        };
        if let Some((class, why)) = &refused {
            let why = format!("{} {} of {}: {}", self.unit, row.number, self.table.shown, shorten_why(why));
            // Nothing is read there, so a signed query need not be kept.
            let object = self.table.url.split(['?', '#']).next().unwrap_or_default();
            entry.url = Place::Refused { class: *class, why }.join(object);
        }
        self.count(refused.map(|(class, _)| class));
        entry
    }

    /// The one entry of a table that cannot be listed.
    pub(crate) fn whole(&self, class: ErrorClass, why: String) -> InputEntry {
        self.count(Some(class));
        let object = self.table.url.split(['?', '#']).next().unwrap_or_default();
        let why = shorten_why(&why);
        let url = Place::Refused { class, why }.join(object);
        InputEntry { key: self.table.key.clone(), url, estimated: true, ..InputEntry::default() }
    }

    fn count(&self, refused: Option<ErrorClass>) {
        self.tally.with(|state| {
            state.counts.rows += 1;
            if let Some(class) = refused {
                *state.counts.refused.entry(class).or_default() += 1;
            }
        });
    }

    /// Sets URL, size and tag. A local file that is not there stays an entry, and fails when it is read.
    fn locate(&self, text: &[u8], entry: &mut InputEntry) -> Result<(), (ErrorClass, String)> {
        let url = self.locations.resolve(text)?;
        let local = (self.look && url.scheme() == "file").then(|| url.to_file_path().ok()).flatten();
        match local.as_deref().map(Path::metadata) {
            Some(Ok(metadata)) if metadata.is_file() => {
                entry.bytes = metadata.len();
                entry.tag = modification_tag(&metadata);
                entry.estimated = false;
            }
            _ => entry.bytes = OBJECT_BYTES_ESTIMATE,
        }
        entry.url = url.into();
        Ok(())
    }

    /// The row's part of the key, and why it is refused over it.
    fn name(&mut self, row: &Row) -> (String, Option<(ErrorClass, String)>) {
        let number = format!("{:09}", row.number);
        let Some(keys) = &mut self.keys else { return (number, None) };
        let (class, why) = match &row.key {
            Some(Ok(key)) if key.is_empty() => (ErrorClass::BadRecord, "its key is empty".to_owned()),
            Some(Ok(key)) if key.len() > KEY_BYTES_MAX => {
                let why = format!("its key has {} bytes, more than {KEY_BYTES_MAX}", key.len());
                (ErrorClass::BadRecord, why)
            }
            Some(Ok(key)) if keys.insert(hash(key)) => return (key.clone(), None),
            Some(Ok(key)) => {
                let why = format!("an earlier row has the key '{}' too; the first one counts", shorten(key));
                (ErrorClass::DuplicateKey, why)
            }
            Some(Err(why)) => (ErrorClass::BadRecord, why.clone()),
            None => (ErrorClass::BadRecord, "it has no key".to_owned()),
        };
        // A key that no earlier row has; a later row that has it is the duplicate.
        let mut name = number;
        while !keys.insert(hash(&name)) {
            name.push('~');
        }
        (name, Some((class, why)))
    }
}

/// 128 bits of the key: that two keys of a table share them will not happen.
fn hash(key: &str) -> u128 {
    let digest = Sha256::digest(key.as_bytes());
    digest.iter().take(16).fold(0, |hash, byte| (hash << 8) | u128::from(*byte))
}

fn shorten_why(why: &str) -> String {
    const SHOWN: usize = 800;
    if why.len() <= SHOWN { why.to_owned() } else { why.chars().take(SHOWN).chain(['…']).collect() }
}

/// A value that must be text, as JSON spells it: the text, or what is wrong.
pub(crate) fn text_value(name: &str, spelled: Option<&str>) -> Result<String, String> {
    let shown = shorten(name);
    let Some(spelled) = spelled else { return Err(format!("it has no '{shown}'")) };
    let kind = match spelled.as_bytes().first() {
        Some(b'"') => return serde_json::from_str(spelled).map_err(|error| format!("its '{shown}': {error}")),
        Some(b'n') => "null",
        Some(b't' | b'f') => "a boolean",
        Some(b'[') => "a list",
        Some(b'{') => "an object",
        _ => "a number",
    };
    Err(format!("its '{shown}' is {kind}, not text"))
}

/// A value that is a key: text, or a number or boolean as spelled.
pub(crate) fn key_value(name: &str, spelled: Option<&str>) -> Result<String, String> {
    match spelled {
        Some(spelled) if spelled.starts_with(['-', 't', 'f']) || spelled.starts_with(|c: char| c.is_ascii_digit()) => {
            Ok(spelled.to_owned())
        }
        other => text_value(name, other).map_err(|why| format!("{why}, and keys come from there")),
    }
}

/// The type of a value as JSON spells it, for messages.
pub(crate) fn value_kind(spelled: &str) -> &'static str {
    match spelled.as_bytes().first() {
        Some(b'"') => "text",
        Some(b'n') => "null",
        Some(b't' | b'f') => "boolean",
        Some(b'[') => "list",
        Some(b'{') => "object",
        _ => "number",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(keyed: bool) -> Entries {
        let url = "https://host/set/list.jsonl?sig=secret";
        let locations = Locations::of(&Url::parse(url).unwrap(), None);
        Entries::new(Table::new("list.jsonl", url, "tag"), "line", locations, keyed, true, Arc::default())
    }

    fn row(number: u64, key: Option<Result<String, String>>) -> Row {
        let target = Target::Location(b"x.jpg".to_vec());
        Row { position: number - 1, number, key, target, columns: None }
    }

    #[test]
    fn keys_come_from_the_number_or_a_column() {
        let entry = entries(false).entry(row(7, None));
        assert_eq!((entry.key.as_str(), entry.rank()), ("list.jsonl/000000007", ("list.jsonl", 6)));
        assert_eq!((entry.url.as_str(), entry.bytes, entry.estimated), ("https://host/set/x.jpg", 512 << 10, true));
        assert_eq!(entries(true).entry(row(7, Some(Ok("a b%/c".to_owned())))).key, "list.jsonl/a b%/c");
    }

    #[test]
    fn equal_keys_are_refused_and_stay_unique() {
        let mut entries = entries(true);
        let mut keys = HashSet::new();
        let given = ["a", "a", "000000002", "a", "", "000000005"];
        let mut refused = Vec::new();
        for (index, key) in given.iter().enumerate() {
            let entry = entries.entry(row(index as u64 + 1, Some(Ok(key.to_string()))));
            if let (object, Place::Refused { class, .. }) = Place::split(&entry.url) {
                assert_eq!(object, "https://host/set/list.jsonl");
                refused.push((index, class));
            }
            assert!(keys.insert(entry.key));
        }
        let duplicate = ErrorClass::DuplicateKey;
        assert_eq!(
            refused,
            [(1, duplicate), (2, duplicate), (3, duplicate), (4, ErrorClass::BadRecord), (5, duplicate)]
        );
        let counts = entries.tally().counts();
        assert_eq!((counts.rows, counts.refused[&duplicate], counts.refused[&ErrorClass::BadRecord]), (6, 4, 1));
    }

    #[test]
    fn columns_that_are_nowhere_are_an_error_that_lists_what_there_is() {
        let tally = Tally::default();
        let wanted = ["caption".to_owned(), "licence".to_owned()];
        assert!(!tally.found(["image", "caption", "license"].into_iter(), &wanted));
        let error = tally.check(&wanted).unwrap_err().message;
        assert!(error.contains("no input has a column 'licence'") && error.contains("'license'"), "{error}");
        tally.check(&wanted[..1]).unwrap();
    }

    #[test]
    fn values_that_are_no_text_are_said() {
        for (value, why) in
            [(None, "no 'url'"), (Some("null"), "null"), (Some("3"), "a number"), (Some("[]"), "a list")]
        {
            let error = text_value("url", value).unwrap_err();
            assert!(error.contains(why) && error.contains("'url'"), "{error}");
        }
        assert_eq!(text_value("url", Some("\"a\\u00e9\"")).unwrap(), "aé");
        assert_eq!(key_value("id", Some("17")).unwrap(), "17");
        assert!(key_value("id", Some("{}")).is_err());
    }
}
