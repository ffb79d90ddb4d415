//! CSV and TSV: a header, then one record a row; values may be quoted and span lines.

use std::io::{BufRead, Read};
use std::ops::ControlFlow;

use csv::{ByteRecord, ReaderBuilder};

use super::columns::{object, spell_untyped};
use super::entries::{Entries, Row, Target};
use super::jsonl::{Emit, Wanted};
use super::pick::{Column, Picked, Use, no_column, pick};
use super::text::{Input, read_error};
use crate::{IoError, IoErrorKind};

/// Gives at most so many bytes for one record, then says that the file ends. What would follow is read by the next
/// reader, from the next line on.
struct Bounded<'a> {
    input: &'a mut Input,
    left: usize,
    /// More was asked for.
    cut: bool,
}

impl Read for Bounded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.cut |= self.left == 0;
        let most = buffer.len().min(self.left);
        let read = self.input.read(&mut buffer[..most])?;
        self.left -= read;
        Ok(read)
    }
}

/// Where the columns stand that are wanted.
struct Header {
    fields: usize,
    image: (String, usize),
    key: Option<(String, usize)>,
    /// The position of every name that is asked for and there.
    names: Vec<(String, Option<usize>)>,
}

/// Lists the records of `input`.
pub(crate) fn list(
    mut input: Input,
    delimiter: u8,
    bytes_max: usize,
    wanted: &Wanted,
    entries: &mut Entries,
    emit: &mut Emit<'_>,
) -> Result<(), IoError> {
    let mut header = None;
    let mut number = 0;
    // One round, save when a record is longer than the limit.
    loop {
        match records(&mut input, delimiter, bytes_max, wanted, &mut header, &mut number, entries, emit)? {
            End::Done => return Ok(()),
            End::TooLong if header.is_none() => {
                let message = format!("the header of {} is longer than {bytes_max} bytes", entries.shown());
                return Err(IoError::fatal(IoErrorKind::Invalid, message));
            }
            End::TooLong => {
                number += 1;
                let why = format!("it is longer than {bytes_max} bytes; is a quote left open? It ends with its line");
                if emit(entries.entry(Row::bad(number - 1, number, why))).is_break() {
                    return Ok(());
                }
                skip_line(&mut input).map_err(|error| read_error(entries.shown(), "record", number, error))?;
            }
        }
    }
}

enum End {
    Done,
    TooLong,
}

/// The records up to the end, or up to one that is too long.
#[allow(clippy::too_many_arguments, reason = "the state of one listing, taken up again behind a long record")]
fn records(
    input: &mut Input,
    delimiter: u8,
    bytes_max: usize,
    wanted: &Wanted,
    header: &mut Option<Header>,
    number: &mut u64,
    entries: &mut Entries,
    emit: &mut Emit<'_>,
) -> Result<End, IoError> {
    let bounded = Bounded { input, left: bytes_max, cut: false };
    let mut reader = ReaderBuilder::new().delimiter(delimiter).has_headers(false).flexible(true).from_reader(bounded);
    let mut record = ByteRecord::new();
    loop {
        // What the reader has read ahead counts for the record, a few KiB.
        reader.get_mut().left = bytes_max;
        let read = reader.read_byte_record(&mut record).map_err(|error| csv_error(entries.shown(), *number, error))?;
        if reader.get_ref().cut {
            return Ok(End::TooLong);
        }
        if !read {
            return Ok(End::Done);
        }
        // A record of one empty field is what white space leaves at the end of a file.
        if record.len() == 1 && record.get(0).is_some_and(|field| field.trim_ascii().is_empty()) {
            continue;
        }
        let Some(header) = header.as_ref() else {
            *header = Some(Header::new(&record, wanted, entries)?);
            continue;
        };
        *number += 1;
        let row = header.row(*number, &record, &wanted.names);
        if let ControlFlow::Break(()) = emit(entries.entry(row)) {
            return Ok(End::Done);
        }
    }
}

fn csv_error(shown: &str, number: u64, error: csv::Error) -> IoError {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => read_error(shown, "record", number, error),
        other => {
            let message = format!("{shown} cannot be read behind record {number}: {other:?}");
            IoError::fatal(IoErrorKind::Corrupt, message)
        }
    }
}

fn skip_line(input: &mut Input) -> std::io::Result<()> {
    loop {
        let bytes = input.fill_buf()?;
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let used = end.map_or(bytes.len(), |end| end + 1);
        let over = bytes.is_empty() || end.is_some();
        input.consume(used);
        if over {
            return Ok(());
        }
    }
}

impl Header {
    fn new(record: &ByteRecord, wanted: &Wanted, entries: &Entries) -> Result<Self, IoError> {
        let shown = entries.shown();
        let invalid = |message: String| IoError::fatal(IoErrorKind::Invalid, message);
        let mut names = Vec::new();
        for (index, name) in record.iter().enumerate() {
            match std::str::from_utf8(name) {
                Ok(name) => names.push(name.to_owned()),
                Err(_) => return Err(invalid(format!("the name of column {} of {shown} is not UTF-8", index + 1))),
            }
        }
        let column = |name: &String| Column { name: name.clone(), usable: Use::Text, shown: "text".to_owned() };
        let columns: Vec<_> = names.iter().map(column).collect();
        let (Picked::Location(image) | Picked::Bytes(image)) = pick(shown, &columns, wanted.image.as_deref())?;
        let _all = entries.tally().found(names.iter().map(String::as_str), &wanted.names);
        let find = |name: &String| -> Result<Option<usize>, IoError> {
            let mut found = names.iter().enumerate().filter(|(_, other)| *other == name).map(|(index, _)| index);
            match (found.next(), found.next()) {
                (Some(_), Some(_)) => Err(invalid(format!("{shown} has two columns '{name}'; give one another name"))),
                (found, _) => Ok(found),
            }
        };
        find(&names[image])?;
        let key = match &wanted.key {
            None => None,
            Some(name) => match find(name)? {
                Some(index) => Some((name.clone(), index)),
                None => return Err(no_column(shown, &columns, name)),
            },
        };
        let asked = wanted.names.iter().map(|name| Ok((name.clone(), find(name)?))).collect::<Result<_, IoError>>()?;
        Ok(Self { fields: names.len(), image: (names[image].clone(), image), key, names: asked })
    }

    fn row(&self, number: u64, record: &ByteRecord, names: &[String]) -> Row {
        let position = number - 1;
        if record.len() != self.fields {
            let why = format!("it has {} fields, the header has {}", record.len(), self.fields);
            return Row::bad(position, number, why);
        }
        let text = |name: &str, index: usize| match record.get(index).map(std::str::from_utf8) {
            Some(Ok(text)) => Ok(text),
            _ => Err(format!("its '{name}' is not UTF-8")),
        };
        let mut wrong = None;
        let mut texts = Vec::with_capacity(self.names.len());
        for (name, index) in &self.names {
            let value = index.map(|index| text(name, index)).transpose();
            texts.push(value.unwrap_or_else(|why| {
                wrong.get_or_insert(why);
                None
            }));
        }
        let mut values = self.names.iter().zip(texts);
        let columns = object(names, |_| values.next().and_then(|(_, text)| text).map(spell_untyped));
        let key = self.key.as_ref().map(|(name, index)| text(name, *index).map(ToOwned::to_owned));
        let (name, index) = &self.image;
        let location = wrong.map_or_else(|| text(name, *index), Err);
        let target = match location {
            Ok("") => Target::Refused(slicemill_core::ErrorClass::BadRecord, format!("its '{name}' is empty")),
            Ok(location) => Target::Location(location.as_bytes().to_vec()),
            Err(why) => Target::Refused(slicemill_core::ErrorClass::BadRecord, why),
        };
        Row { position, number, key, target, columns }
    }
}
