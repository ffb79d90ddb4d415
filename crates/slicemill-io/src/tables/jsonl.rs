//! JSON lines: one object a line.

use std::borrow::Cow;
use std::io::BufRead;
use std::ops::ControlFlow;

use super::columns::{check_value, field, fields, object};
use super::entries::{Entries, Row, Target, key_value, text_value, value_kind};
use super::pick::{Column, Picked, Use, no_column, pick, says_location};
use super::text::{Line, Lines, read_error};
use crate::{InputEntry, IoError, IoErrorKind};

/// What is wanted from a manifest.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted {
    /// Column of locations or bytes, when it was named.
    pub image: Option<String>,
    /// Column of keys.
    pub key: Option<String>,
    /// Columns that travel with the entries.
    pub names: Vec<String>,
}

/// Takes entries; says when no more are wanted.
pub(crate) type Emit<'a> = dyn FnMut(InputEntry) -> ControlFlow<()> + 'a;

/// Objects whose names are noted for messages.
const TOLD_MAX: u64 = 1000;

/// The state of a listing.
struct Listing<'a> {
    wanted: &'a Wanted,
    /// Column of locations, once it is known.
    image: Option<String>,
    /// Objects so far, and whether one had the image column and the key column.
    objects: u64,
    has_image: bool,
    has_key: bool,
    /// All columns that are asked for were in some object.
    all_found: bool,
    /// Names and kinds of the first object, for messages.
    first: Vec<Column>,
    /// Why the column is not known yet.
    unknown: Option<IoError>,
}

/// Lists the lines of `reader`.
pub(crate) fn list(
    reader: impl BufRead,
    zero_separated: bool,
    bytes_max: usize,
    wanted: &Wanted,
    entries: &mut Entries,
    emit: &mut Emit<'_>,
) -> Result<(), IoError> {
    let mut lines = Lines::new(reader, zero_separated, bytes_max);
    let mut listing = Listing::new(wanted);
    let mut number = 0;
    loop {
        let line = lines.next().map_err(|error| read_error(entries.shown(), "line", number, error))?;
        let Some(line) = line else { break };
        number += 1;
        let row = match line {
            Line::TooLong => Row::bad(number - 1, number, format!("it is longer than {bytes_max} bytes")),
            Line::Text(text) if text.iter().all(u8::is_ascii_whitespace) => continue,
            Line::Text(text) => listing.row(number, text, entries)?,
        };
        if emit(entries.entry(row)).is_break() {
            return Ok(());
        }
    }
    listing.check(entries.shown())
}

impl<'a> Listing<'a> {
    fn new(wanted: &'a Wanted) -> Self {
        let (image, first) = (wanted.image.clone(), Vec::new());
        let (has_image, has_key, all_found) = (false, false, false);
        Self { wanted, image, objects: 0, has_image, has_key, all_found, first, unknown: None }
    }

    fn row(&mut self, number: u64, text: &[u8], entries: &Entries) -> Result<Row, IoError> {
        let position = number - 1;
        if number == 1 && text.trim_ascii_start().starts_with(b"[") {
            let message = format!("{} is one JSON list; write one object a line", entries.shown());
            return Err(IoError::fatal(IoErrorKind::Invalid, message));
        }
        let text = match std::str::from_utf8(text) {
            Ok(text) => text,
            Err(error) => {
                let why = format!("it is not UTF-8 from byte {} on", error.valid_up_to());
                return Ok(Row::bad(position, number, why));
            }
        };
        let values = match fields(text) {
            Ok(values) => values,
            Err(why) => return Ok(Row::bad(position, number, why)),
        };
        if self.objects < TOLD_MAX || !self.all_found {
            self.all_found = entries.tally().found(values.iter().map(|(name, _)| name.as_str()), &self.wanted.names);
        }
        let image = self.image(entries.shown(), &values)?;
        let image = image.as_deref();
        let key = self.wanted.key.as_ref().map(|name| {
            self.has_key |= field(&values, name).is_some();
            key_value(name, field(&values, name))
        });
        let mut wrong = None;
        let columns = object(&self.wanted.names, |name| {
            let value = field(&values, name)?;
            match check_value(value) {
                Ok(()) => Some(Cow::Borrowed(value)),
                Err(why) => {
                    wrong = Some(format!("its '{name}': {why}"));
                    None
                }
            }
        });
        self.has_image |= image.is_some_and(|image| field(&values, image).is_some());
        let location = || match image {
            Some(image) => text_value(image, field(&values, image)),
            None => Err("it has no column that says where an image is".to_owned()),
        };
        let location = wrong.map_or_else(location, Err);
        let target = match location {
            Ok(location) => Target::Location(location.into_bytes()),
            Err(why) => Target::Refused(slicemill_core::ErrorClass::BadRecord, why),
        };
        Ok(Row { position, number, key, target, columns })
    }

    /// The column of locations: the one that was named, else chosen by the first object that has one.
    fn image(&mut self, shown: &str, values: &[(String, &str)]) -> Result<Option<String>, IoError> {
        /// As many objects may come before it.
        const UNKNOWN_MAX: u64 = 1000;
        self.objects += 1;
        if self.first.is_empty() {
            self.first = values.iter().map(|(name, value)| column(name, value)).collect();
        }
        if self.image.is_some() {
            return Ok(self.image.clone());
        }
        let columns: Vec<_> = values.iter().map(|(name, value)| column(name, value)).collect();
        match pick(shown, &columns, None) {
            Ok(Picked::Location(index) | Picked::Bytes(index)) => {
                (self.image, self.unknown) = (Some(columns[index].name.clone()), None);
                Ok(self.image.clone())
            }
            Err(error) if self.objects > UNKNOWN_MAX || columns.iter().any(|column| says_location(&column.name)) => {
                Err(self.unknown.take().unwrap_or(error))
            }
            Err(error) => {
                self.unknown.get_or_insert(error);
                Ok(None)
            }
        }
    }

    /// A column that was named and is in no object is a mistake of the command, not of the rows.
    fn check(self, shown: &str) -> Result<(), IoError> {
        if let Some(error) = self.unknown {
            return Err(error);
        }
        if self.objects == 0 {
            return Ok(());
        }
        let named = [(self.has_image, &self.wanted.image), (self.has_key, &self.wanted.key)];
        for (found, name) in named {
            if let (false, Some(name)) = (found, name) {
                return Err(no_column(shown, &self.first, name));
            }
        }
        Ok(())
    }
}

fn column(name: &str, value: &str) -> Column {
    let kind = value_kind(value);
    let usable = if matches!(kind, "text" | "null") { Use::Text } else { Use::Other };
    Column { name: name.to_owned(), usable, shown: kind.to_owned() }
}
