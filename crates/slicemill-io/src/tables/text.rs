//! Text manifests as streams: unpacking, lines of bounded length.

use std::io::{BufRead, BufReader, Cursor, Read};

use crate::{IoError, IoErrorKind};

/// Longer lines and records are refused, in bytes.
pub(crate) const LINE_BYTES_MAX: usize = 16 << 20;

/// What a manifest is read from.
pub(crate) type Input = Box<dyn BufRead + Send>;

/// The text of `reader`, unpacked when it begins as gzip or Zstandard do, without a byte order mark.
pub(crate) fn unpacked(reader: impl Read + Send + 'static) -> std::io::Result<Input> {
    const BUFFER: usize = 1 << 16;
    let (first, reader) = peek(reader, 4)?;
    let unpacked: Input = match first.as_slice() {
        [0x1f, 0x8b, ..] => {
            let reader = BufReader::with_capacity(BUFFER, reader);
            Box::new(BufReader::with_capacity(BUFFER, flate2::bufread::MultiGzDecoder::new(reader)))
        }
        [0x28, 0xb5, 0x2f, 0xfd] => {
            let decoder = zstd::stream::read::Decoder::new(reader)?;
            Box::new(BufReader::with_capacity(BUFFER, decoder))
        }
        _ => Box::new(BufReader::with_capacity(BUFFER, reader)),
    };
    let (first, reader) = peek(unpacked, 3)?;
    if first == [0xef, 0xbb, 0xbf] {
        let (_, rest) = reader.into_inner();
        return Ok(rest);
    }
    Ok(Box::new(reader))
}

/// A reader after its first bytes were looked at.
pub(crate) type Peeked<R> = std::io::Chain<Cursor<Vec<u8>>, R>;

/// The first bytes of `reader`, and a reader of all of them.
pub(crate) fn peek<R: Read>(mut reader: R, bytes: u64) -> std::io::Result<(Vec<u8>, Peeked<R>)> {
    let mut first = Vec::new();
    reader.by_ref().take(bytes).read_to_end(&mut first)?;
    Ok((first.clone(), Cursor::new(first).chain(reader)))
}

/// One line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line<'a> {
    /// Without its end.
    Text(&'a [u8]),
    /// Longer than the limit.
    TooLong,
}

/// Lines, with memory for one.
pub(crate) struct Lines<R> {
    reader: R,
    separator: u8,
    bytes_max: usize,
    line: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    /// Lines end in `\n` or `\r\n`, or in a zero byte.
    pub(crate) fn new(reader: R, zero_separated: bool, bytes_max: usize) -> Self {
        Self { reader, separator: if zero_separated { 0 } else { b'\n' }, bytes_max, line: Vec::new() }
    }

    /// The next line; `None` at the end.
    pub(crate) fn next(&mut self) -> std::io::Result<Option<Line<'_>>> {
        // What one long line took is not kept for all that follow.
        if self.line.capacity() > 1 << 20 {
            self.line = Vec::new();
        }
        self.line.clear();
        let (mut any, mut too_long) = (false, false);
        loop {
            let bytes = match self.reader.fill_buf() {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if bytes.is_empty() {
                break;
            }
            any = true;
            let end = bytes.iter().position(|byte| *byte == self.separator);
            let part = &bytes[..end.unwrap_or(bytes.len())];
            too_long |= self.line.len() + part.len() > self.bytes_max;
            if !too_long {
                self.line.extend_from_slice(part);
            }
            let used = end.map_or(bytes.len(), |end| end + 1);
            self.reader.consume(used);
            if end.is_some() {
                break;
            }
        }
        if !any {
            return Ok(None);
        }
        if too_long {
            return Ok(Some(Line::TooLong));
        }
        let line = self.line.as_slice();
        let line = if self.separator == b'\n' { line.strip_suffix(b"\r").unwrap_or(line) } else { line };
        Ok(Some(Line::Text(line)))
    }
}

/// What reading the manifest `shown` ended with, behind line or record `number`: the store's own error, or that the
/// file is damaged.
pub(crate) fn read_error(shown: &str, unit: &str, number: u64, error: std::io::Error) -> IoError {
    if error.get_ref().is_some_and(|inner| inner.is::<IoError>())
        && let Some(inner) = error.into_inner()
    {
        return match inner.downcast::<IoError>() {
            Ok(error) => *error,
            Err(other) => broken(shown, unit, number, &std::io::Error::other(other)),
        };
    }
    IoError::fatal(IoErrorKind::Corrupt, format!("{shown} cannot be read behind {unit} {number}"))
}

fn broken(shown: &str, unit: &str, number: u64, error: &std::io::Error) -> IoError {
    let message = format!("{shown} cannot be read behind {unit} {number}: {error}; the file is damaged");
    IoError::fatal(IoErrorKind::Corrupt, message)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn all(bytes: &[u8], zero: bool, bytes_max: usize) -> Vec<Option<Vec<u8>>> {
        let mut lines = Lines::new(BufReader::with_capacity(3, bytes), zero, bytes_max);
        let mut found = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            found.push(match line {
                Line::Text(text) => Some(text.to_vec()),
                Line::TooLong => None,
            });
        }
        found
    }

    fn text(text: &str) -> Option<Vec<u8>> {
        Some(text.as_bytes().to_vec())
    }

    #[test]
    fn lines_end_in_any_way() {
        assert_eq!(all(b"a\r\n\nb\rc\n", false, 99), [text("a"), text(""), text("b\rc")]);
        assert_eq!(all(b"a\nb", false, 99), [text("a"), text("b")]);
        assert_eq!(all(b"a\nb\r\n\0c\0", true, 99), [text("a\nb\r\n"), text("c")]);
        assert_eq!(all(b"", false, 99), [] as [Option<Vec<u8>>; 0]);
    }

    #[test]
    fn long_lines_are_passed_over() {
        assert_eq!(all(b"12345\n123456\n1\n", false, 5), [text("12345"), None, text("1")]);
        assert_eq!(all(b"123456", false, 5), [None]);
    }

    fn read(bytes: Vec<u8>) -> std::io::Result<String> {
        let mut text = String::new();
        unpacked(Cursor::new(bytes))?.read_to_string(&mut text)?;
        Ok(text)
    }

    #[test]
    fn packed_text_is_unpacked_and_marks_are_left_out() {
        let plain = "\u{feff}{\"a\":1}\nä\n";
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(plain.as_bytes()).unwrap();
        let mut members = gzip.finish().unwrap();
        // Two members, as `cat a.gz b.gz` makes them.
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(b"more").unwrap();
        members.extend(gzip.finish().unwrap());
        assert_eq!(read(members.clone()).unwrap(), "{\"a\":1}\nä\nmore");
        assert_eq!(read(zstd::encode_all(plain.as_bytes(), 1).unwrap()).unwrap(), "{\"a\":1}\nä\n");
        assert_eq!(read(plain.as_bytes().to_vec()).unwrap(), "{\"a\":1}\nä\n");
        assert_eq!(read(b"\xef".to_vec()).unwrap_err().kind(), std::io::ErrorKind::InvalidData);
        assert_eq!(read(Vec::new()).unwrap(), "");
        members.truncate(members.len() - 3);
        assert!(read(members).is_err());
    }

    proptest! {
        #[test]
        fn lines_are_those_of_split(bytes in proptest::collection::vec(0u8..14, 0..60), max in 0usize..8) {
            let mut expected: Vec<_> = bytes.split(|byte| *byte == b'\n').collect();
            if expected.last().is_some_and(|last| last.is_empty()) {
                expected.pop();
            }
            let expected: Vec<_> = expected
                .into_iter()
                .map(|line| (line.len() <= max).then(|| line.strip_suffix(b"\r").unwrap_or(line).to_vec()))
                .collect();
            prop_assert_eq!(all(&bytes, false, max), expected);
        }
    }
}
