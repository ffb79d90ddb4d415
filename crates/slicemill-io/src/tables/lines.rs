//! Lists of locations, one a line: what is typed or piped into standard input.

use super::entries::{Entries, Row, Target};
use super::jsonl::{self, Emit, Wanted};
use super::text::{Input, Line, Lines, peek, read_error};
use crate::{IoError, IoErrorKind};

/// Lists the lines of `input`: JSON lines when the first byte that is no white space is `{` (among the first 4096), else locations, ended by
/// line ends or by zero bytes.
pub(crate) fn list(
    input: Input,
    zero_separated: bool,
    bytes_max: usize,
    wanted: &Wanted,
    entries: &mut Entries,
    emit: &mut Emit<'_>,
) -> Result<(), IoError> {
    let failed = |error| read_error("standard input", "line", 0, error);
    let (first, input) = peek(input, 4096).map_err(failed)?;
    let first = first.iter().find(|byte| !byte.is_ascii_whitespace());
    if first == Some(&b'{') {
        return jsonl::list(input, zero_separated, bytes_max, wanted, entries, emit);
    }
    let asked = [(&wanted.image, "--image-column"), (&wanted.key, "--key")];
    let asked = asked.iter().find_map(|(name, flag)| name.as_ref().map(|_| *flag));
    if let Some(flag) = asked {
        let message = format!("{flag} needs columns; standard input is a list of locations, not JSON lines");
        return Err(IoError::fatal(IoErrorKind::Invalid, message));
    }
    let mut lines = Lines::new(input, zero_separated, bytes_max);
    let mut number = 0;
    loop {
        let line = lines.next().map_err(|error| read_error("standard input", "line", number, error))?;
        let Some(line) = line else { return Ok(()) };
        number += 1;
        let row = match line {
            Line::Text(text) if text.iter().all(u8::is_ascii_whitespace) => continue,
            Line::Text(text) => {
                let target = Target::Location(text.to_vec());
                let columns = super::columns::object(&wanted.names, |_| None);
                Row { position: number - 1, number, key: None, target, columns }
            }
            Line::TooLong => Row::bad(number - 1, number, format!("it is longer than {bytes_max} bytes")),
        };
        if emit(entries.entry(row)).is_break() {
            return Ok(());
        }
    }
}
