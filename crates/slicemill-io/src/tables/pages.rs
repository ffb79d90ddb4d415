//! The values of one row group, page by page.
//!
//! Row groups of images may have gigabytes, and readers that take a row group at a time need all of them at once. Here
//! one page is in memory, packed and unpacked, and the dictionary where there is one. Some writers (Arrow's in C++)
//! close a page only after a thousand values, so that a page of large images may have a gigabyte itself.

use std::io::Read as _;
use std::sync::Arc;

use bytes::Bytes;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl, get_column_reader};
use parquet::data_type::{AsBytes, DataType};
use parquet::errors::ParquetError;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::serialized_reader::SerializedPageReader;
use slicemill_core::Fate;

use super::footer::{guarded, is_damage, parquet_error};
use super::object::{BlockReader, Blocks};
use crate::sources::SegmentIndex;
use crate::{IoError, IoErrorKind};

/// Pages of a file, each within the limit on bytes, packed and unpacked.
#[derive(Debug, Clone)]
pub(crate) struct PageChunks {
    blocks: Blocks,
    page_bytes_max: u64,
}

impl PageChunks {
    pub(crate) const fn new(blocks: Blocks, page_bytes_max: u64) -> Self {
        Self { blocks, page_bytes_max }
    }

    /// Looks at the page header at `start` before the reader makes room for what it says.
    fn check(&self, start: u64) -> Result<(), ParquetError> {
        let mut head = [0; 24];
        let mut read = 0;
        let mut reader = self.blocks.get_read(start)?;
        while read < head.len() {
            match reader.read(&mut head[read..])? {
                0 => break,
                more => read += more,
            }
        }
        let Some((unpacked, packed)) = page_sizes(&head[..read]) else { return Ok(()) };
        let largest = unpacked.max(packed);
        if largest <= self.page_bytes_max {
            return Ok(());
        }
        let message = format!(
            "{} has a page of {largest} bytes, more than the limit of {}; write the file with smaller pages",
            self.blocks.object().shown(),
            self.page_bytes_max
        );
        self.blocks.fail(IoError::fatal(IoErrorKind::TooLarge, message));
        Err(ParquetError::General("a page is too large".to_owned()))
    }
}

/// Bytes unpacked and packed, from the first three fields of a page header in Thrift's compact protocol: type,
/// uncompressed size, compressed size, each an `i32`. `None` when they do not stand there.
fn page_sizes(head: &[u8]) -> Option<(u64, u64)> {
    const NEXT_I32: u8 = 0x15;
    let mut rest = head;
    let mut field = || -> Option<u64> {
        let (&first, after) = rest.split_first()?;
        (first == NEXT_I32).then_some(())?;
        let length = after.iter().position(|byte| byte & 0x80 == 0)?;
        let zigzag = after[..=length]
            .iter()
            .rev()
            .try_fold(0_u64, |value, byte| value.checked_mul(128).map(|value| value | u64::from(byte & 0x7f)))?;
        rest = &after[length + 1..];
        Some(zigzag / 2)
    };
    let (_kind, unpacked, packed) = (field()?, field()?, field()?);
    Some((unpacked, packed))
}

impl Length for PageChunks {
    fn len(&self) -> u64 {
        self.blocks.len()
    }
}

impl ChunkReader for PageChunks {
    type T = BlockReader;

    fn get_read(&self, start: u64) -> Result<BlockReader, ParquetError> {
        self.check(start)?;
        self.blocks.get_read(start)
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        self.blocks.get_bytes(start, length)
    }
}

/// Entry of a row that has no value.
const NULL: (u64, u64) = (u64::MAX, 0);
/// Rows of a row group that are taken: their index stays in memory, 16 bytes each.
pub(crate) const GROUP_ROWS_MAX: i64 = 8 << 20;

/// A value in what [`unpack`] wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cell {
    /// Offset and length.
    Value(u64, u64),
    /// The row has none.
    Null,
    /// The row group could not be read up to there; offset and length of why.
    Damaged(u64, u64),
}

/// The cell of the row `row` of a row group.
pub(crate) fn cell(index: &[(u64, u64)], row: u64) -> Cell {
    let Some((why, values)) = index.split_last() else { return Cell::Damaged(0, 0) };
    match usize::try_from(row).ok().and_then(|row| values.get(row)) {
        Some(&NULL) => Cell::Null,
        Some(&(offset, bytes)) => Cell::Value(offset, bytes),
        None => Cell::Damaged(why.0, why.1),
    }
}

/// Writes the values of leaf `leaf` of a row group to `sink`, one after the other, then what is wrong with the row
/// group when it could not be read to its end. Returns where they are: one entry a row up to there, and one for what
/// is wrong.
///
/// # Errors
/// Those of the store, of fate `Row`, and those of the sink. Damage is none: the rows before it can be read.
pub(crate) fn unpack(
    blocks: &Blocks,
    group: &RowGroupMetaData,
    number: usize,
    leaf: usize,
    page_bytes_max: u64,
    sink: &mut dyn FnMut(&[u8]) -> Result<(), IoError>,
) -> Result<SegmentIndex, IoError> {
    let mut values = Values { sink, index: Vec::new(), written: 0, failure: None };
    let read = guarded(|| read_values(blocks, group, leaf, page_bytes_max, &mut values));
    if let Some(failure) = values.failure {
        return Err(failure);
    }
    let mut why = String::new();
    if let Err(error) = read {
        let shown = blocks.object().shown();
        let error = parquet_error(blocks, &format!("row group {number} of {shown} is damaged"), &error);
        if !is_damage(&error) {
            return Err(error.with_fate(Fate::Row));
        }
        why = error.message;
    }
    let mut index = values.index;
    (values.sink)(why.as_bytes())?;
    index.push((values.written, why.len() as u64));
    Ok(index)
}

struct Values<'a> {
    sink: &'a mut dyn FnMut(&[u8]) -> Result<(), IoError>,
    index: SegmentIndex,
    written: u64,
    failure: Option<IoError>,
}

impl Values<'_> {
    fn push(&mut self, value: Option<&[u8]>) -> Result<(), ParquetError> {
        let Some(value) = value else {
            self.index.push(NULL);
            return Ok(());
        };
        if let Err(error) = (self.sink)(value) {
            self.failure = Some(error);
            return Err(ParquetError::General("the values cannot be kept".to_owned()));
        }
        self.index.push((self.written, value.len() as u64));
        self.written += value.len() as u64;
        Ok(())
    }
}

fn read_values(
    blocks: &Blocks,
    group: &RowGroupMetaData,
    leaf: usize,
    page_bytes_max: u64,
    values: &mut Values<'_>,
) -> Result<(), ParquetError> {
    let chunk = group.columns().get(leaf).ok_or_else(|| ParquetError::General("it lacks the column".to_owned()))?;
    let rows = usize::try_from(group.num_rows()).unwrap_or(0);
    if group.num_rows() > GROUP_ROWS_MAX {
        return Err(ParquetError::General(format!("it has {rows} rows, more than {GROUP_ROWS_MAX}")));
    }
    let chunks = Arc::new(PageChunks::new(blocks.clone(), page_bytes_max));
    let pages = SerializedPageReader::new(chunks, chunk, rows, None)?;
    match get_column_reader(chunk.column_descr_ptr(), Box::new(pages)) {
        ColumnReader::ByteArrayColumnReader(reader) => {
            read_column(reader, chunk.column_descr().max_def_level(), rows, values)
        }
        ColumnReader::FixedLenByteArrayColumnReader(reader) => {
            read_column(reader, chunk.column_descr().max_def_level(), rows, values)
        }
        _ => Err(ParquetError::General("its values are not bytes".to_owned())),
    }
}

/// Value by value, so that none holds its page in memory when the next page comes.
fn read_column<T: DataType>(
    mut reader: ColumnReaderImpl<T>,
    defined: i16,
    rows: usize,
    out: &mut Values<'_>,
) -> Result<(), ParquetError> {
    let (mut levels, mut values) = (Vec::new(), Vec::new());
    for row in 0..rows {
        levels.clear();
        values.clear();
        let (records, _, _) = reader.read_records(1, Some(&mut levels), None, &mut values)?;
        if records == 0 {
            return Err(ParquetError::General(format!("it has {row} values for {rows} rows")));
        }
        let there = defined == 0 || levels.first() == Some(&defined);
        match (there, values.first()) {
            (true, Some(value)) => out.push(Some(value.as_bytes()))?,
            (true, None) => return Err(ParquetError::General(format!("value {row} is missing"))),
            (false, _) => out.push(None)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_from_page_headers() {
        // type 0, uncompressed 300, compressed 200, then more.
        assert_eq!(page_sizes(&[0x15, 0, 0x15, 0xd8, 0x04, 0x15, 0x90, 0x03, 0x2c]), Some((300, 200)));
        assert_eq!(page_sizes(&[0x15, 0, 0x15, 0xff, 0xff, 0xff, 0xff, 0x0f, 0x15, 2]), Some((0x7fff_ffff, 1)));
        for bytes in [&[][..], &[0x15], &[0x16, 0], &[0x15, 0x80], &[0x15, 0, 0x15, 0xff, 0xff]] {
            assert_eq!(page_sizes(bytes), None);
        }
        assert_eq!(page_sizes(&[&[0x15, 0, 0x15][..], &[0xff; 20], &[0]].concat()), None);
    }

    #[test]
    fn cells_are_found_in_the_index() {
        let index = [(0, 5), NULL, (5, 0), (5, 9)];
        assert_eq!(cell(&index, 0), Cell::Value(0, 5));
        assert_eq!(cell(&index, 1), Cell::Null);
        assert_eq!(cell(&index, 2), Cell::Value(5, 0));
        assert_eq!(cell(&index, 3), Cell::Damaged(5, 9));
        assert_eq!(cell(&[], u64::MAX), Cell::Damaged(0, 0));
    }
}
