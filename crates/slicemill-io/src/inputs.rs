//! The frozen list of inputs: one Parquet file per generation, read by row ranges.
//!
//! Freezing first makes a job resumable: chunk 17 means the same rows on every run, whatever happened to the folder in
//! the meantime. Row groups are whole chunks, so that a chunk is read from one row group; nothing but the file's
//! footer (some hundred bytes per row group of at least [`ROW_GROUP_ROWS`] rows) stays in memory.
//!
//! The digest over all entries stands in the file's metadata and is what a job's fingerprint takes in.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray as _, BooleanArray, StringArray, UInt32Array, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt32Type, UInt64Type};
use arrow::record_batch::RecordBatch;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use parquet::arrow::ParquetRecordBatchStreamBuilder;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use sha2::{Digest as _, Sha256};

use crate::parquet_object::ParquetObject;
use crate::schema::hex;
use crate::sink::{Existing, ObjectSink, PART_BYTES};
use crate::{InputEntry, IoError, IoErrorKind, OutputStore, ParquetEncoder, RowGroupLimits};

/// Rows of a row group, rounded to whole chunks.
const ROW_GROUP_ROWS: usize = 8192;
const DIGEST: &str = "slicemill.inputs_sha256";

type Listing = BoxStream<'static, Result<InputEntry, IoError>>;

/// SHA-256 over all entries in order. Equal digests mean equal lists.
#[derive(Debug, Clone, Default)]
pub struct InputsDigest {
    rows: u64,
    hash: Sha256,
}

impl InputsDigest {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the next entry. Every text is preceded by its length, so that no two lists run together.
    pub fn add(&mut self, entry: &InputEntry) {
        for text in [entry.key.as_str(), &entry.url, &entry.tag, entry.columns.as_deref().unwrap_or_default()] {
            self.hash.update((text.len() as u64).to_le_bytes());
            self.hash.update(text);
        }
        self.hash.update(entry.bytes.to_le_bytes());
        self.hash.update([u8::from(entry.estimated), u8::from(entry.columns.is_some())]);
        self.hash.update(entry.container.to_le_bytes());
        self.hash.update(entry.position.to_le_bytes());
        self.rows += 1;
    }

    /// Entries so far.
    pub const fn rows(&self) -> u64 {
        self.rows
    }

    /// The digest, hex.
    pub fn finish(self) -> String {
        hex(&self.hash.finalize())
    }
}

/// Rows and digest of a listing, without writing it anywhere.
pub async fn digest_inputs(mut entries: Listing) -> Result<(u64, String), IoError> {
    let mut digest = InputsDigest::new();
    while let Some(entry) = entries.try_next().await? {
        digest.add(&entry);
    }
    Ok((digest.rows(), digest.finish()))
}

/// A frozen list. Cheap to clone.
#[derive(Clone)]
pub struct FrozenInputs {
    file: ParquetObject,
    /// Name with the output's root, for messages.
    shown: Arc<str>,
    digest: Arc<str>,
    rows: u64,
    /// Rows of every row group but the last.
    group_rows: u64,
    metadata: ArrowReaderMetadata,
}

impl std::fmt::Debug for FrozenInputs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrozenInputs").field("file", &self.shown).field("rows", &self.rows).finish_non_exhaustive()
    }
}

fn inputs_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("key", DataType::Utf8, false),
        Field::new("url", DataType::Utf8, false),
        Field::new("bytes", DataType::UInt64, false),
        Field::new("tag", DataType::Utf8, false),
        Field::new("estimated", DataType::Boolean, false),
        Field::new("container", DataType::UInt32, false),
        Field::new("position", DataType::UInt64, false),
        Field::new("columns", DataType::Utf8, true),
    ]))
}

fn inputs_batch(entries: &[InputEntry]) -> Result<RecordBatch, IoError> {
    let texts = |text: fn(&InputEntry) -> &String| StringArray::from_iter_values(entries.iter().map(text));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(texts(|entry| &entry.key)),
        Arc::new(texts(|entry| &entry.url)),
        Arc::new(UInt64Array::from_iter_values(entries.iter().map(|entry| entry.bytes))),
        Arc::new(texts(|entry| &entry.tag)),
        Arc::new(BooleanArray::from_iter(entries.iter().map(|entry| Some(entry.estimated)))),
        Arc::new(UInt32Array::from_iter_values(entries.iter().map(|entry| entry.container))),
        Arc::new(UInt64Array::from_iter_values(entries.iter().map(|entry| entry.position))),
        Arc::new(StringArray::from_iter(entries.iter().map(|entry| entry.columns.as_ref()))),
    ];
    RecordBatch::try_new(inputs_schema(), columns)
        .map_err(|error| IoError::fatal(IoErrorKind::Invalid, format!("cannot make a batch of inputs: {error}")))
}

fn entries_of(name: &str, batch: &RecordBatch) -> Result<Vec<InputEntry>, IoError> {
    let missing = || IoError::fatal(IoErrorKind::Corrupt, format!("{name} is not a list of inputs"));
    let column = |name: &str| batch.column_by_name(name).ok_or_else(missing);
    let texts = |name: &str| column(name)?.as_string_opt::<i32>().ok_or_else(missing);
    let numbers = |name: &str| column(name)?.as_primitive_opt::<UInt64Type>().ok_or_else(missing);
    let (keys, urls, tags, columns) = (texts("key")?, texts("url")?, texts("tag")?, texts("columns")?);
    let (bytes, positions) = (numbers("bytes")?, numbers("position")?);
    let estimated = column("estimated")?.as_boolean_opt().ok_or_else(missing)?;
    let containers = column("container")?.as_primitive_opt::<UInt32Type>().ok_or_else(missing)?;
    let entry = |row| InputEntry {
        key: keys.value(row).to_owned(),
        url: urls.value(row).to_owned(),
        bytes: bytes.value(row),
        tag: tags.value(row).to_owned(),
        estimated: estimated.value(row),
        container: containers.value(row),
        position: positions.value(row),
        columns: columns.is_valid(row).then(|| columns.value(row).to_owned()),
    };
    Ok((0..batch.num_rows()).map(entry).collect())
}

impl FrozenInputs {
    /// Writes the list to `name` (replacing it), row groups aligned to `chunk_rows`.
    pub async fn write(output: &OutputStore, name: &str, entries: Listing, chunk_rows: u32) -> Result<Self, IoError> {
        let chunk_rows = usize::try_from(chunk_rows.max(1)).unwrap_or(usize::MAX);
        let rows_max = (ROW_GROUP_ROWS / chunk_rows).max(1).saturating_mul(chunk_rows);
        let limits = RowGroupLimits { rows_max, bytes_max: usize::MAX };
        let mut encoder = ParquetEncoder::new(inputs_schema(), &[], limits)?;
        let mut sink = ObjectSink::new(output.clone(), name, PART_BYTES);
        let mut digest = InputsDigest::new();
        let mut batches = entries.chunks(1024);
        while let Some(batch) = batches.next().await {
            let batch = batch.into_iter().collect::<Result<Vec<_>, IoError>>()?;
            batch.iter().for_each(|entry| digest.add(entry));
            encoder.push(&inputs_batch(&batch)?)?;
            sink.write(encoder.take_bytes()).await?;
        }
        encoder.append_metadata(DIGEST, digest.finish());
        sink.write(encoder.finish()?).await?;
        sink.finish(Existing::Replace).await?;
        Self::open(output, name).await
    }

    /// Opens the list in `name`.
    pub async fn open(output: &OutputStore, name: &str) -> Result<Self, IoError> {
        let shown = output.show(name);
        let head = output.head(name).await?;
        let head = head.ok_or_else(|| IoError::fatal(IoErrorKind::NotFound, format!("there is no {shown}")))?;
        let file = ParquetObject::new(output.clone(), &head);
        let metadata = ArrowReaderMetadata::load_async(&mut file.clone(), ArrowReaderOptions::new())
            .await
            .map_err(|error| file.error(error))?;
        let footer = metadata.metadata().file_metadata();
        let pairs = footer.key_value_metadata().map_or(&[][..], Vec::as_slice);
        let digest = pairs.iter().find(|pair| pair.key == DIGEST).and_then(|pair| pair.value.as_deref());
        let digest = digest
            .ok_or_else(|| IoError::fatal(IoErrorKind::Corrupt, format!("{shown} has no digest of the inputs")))?;
        Ok(Self {
            digest: digest.into(),
            rows: u64::try_from(footer.num_rows()).unwrap_or(0),
            group_rows: metadata.metadata().row_groups().first().map_or(1, |group| group.num_rows().unsigned_abs()),
            shown: shown.into(),
            file,
            metadata,
        })
    }

    /// Number of inputs.
    pub const fn rows(&self) -> u64 {
        self.rows
    }

    /// Digest of the list, hex; the same as [`InputsDigest::finish`] over its entries.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The entries of a row range; rows beyond the end are left out.
    pub async fn read(&self, rows: Range<u64>) -> Result<Vec<InputEntry>, IoError> {
        let rows = rows.start.min(self.rows)..rows.end.min(self.rows);
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let groups = rows.start / self.group_rows..=(rows.end - 1) / self.group_rows;
        let offset = index(rows.start - groups.start() * self.group_rows);
        let batches = ParquetRecordBatchStreamBuilder::new_with_metadata(self.file.clone(), self.metadata.clone())
            .with_row_groups(groups.map(index).collect())
            .with_offset(offset)
            .with_limit(index(rows.end - rows.start))
            .with_batch_size(ROW_GROUP_ROWS)
            .build()
            .map_err(|error| self.file.error(error))?;
        let batches: Vec<RecordBatch> = batches.try_collect().await.map_err(|error| self.file.error(error))?;
        let mut entries = Vec::with_capacity(index(rows.end - rows.start));
        for batch in &batches {
            entries.extend(entries_of(&self.shown, batch)?);
        }
        if entries.len() as u64 != rows.end - rows.start {
            return Err(IoError::fatal(
                IoErrorKind::Corrupt,
                format!("{} has fewer rows than its footer says", self.shown),
            ));
        }
        Ok(entries)
    }

    /// All entries in order, a row group at a time.
    pub fn stream(&self) -> Listing {
        let start = (self.clone(), 0);
        futures::stream::try_unfold(start, |(inputs, row)| async move {
            if row >= inputs.rows {
                return Ok::<_, IoError>(None);
            }
            let end = (row / inputs.group_rows + 1) * inputs.group_rows;
            let entries = inputs.read(row..end).await?;
            Ok(Some((futures::stream::iter(entries.into_iter().map(Ok)), (inputs, end))))
        })
        .try_flatten()
        .boxed()
    }
}

fn index(row: u64) -> usize {
    usize::try_from(row).unwrap_or(usize::MAX)
}

/// How a listing differs from what was frozen. Counts, and a few keys of each kind for the message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InputsChange {
    /// In both, equal.
    pub unchanged: u64,
    /// Only in the listing.
    pub added: u64,
    /// Only in the frozen lists.
    pub removed: u64,
    /// In both with another URL, size or tag.
    pub changed: u64,
    /// Up to five keys each: added, removed, changed.
    pub examples: [Vec<String>; 3],
}

impl InputsChange {
    /// Whether the listing is what was frozen.
    pub const fn is_none(&self) -> bool {
        self.added == 0 && self.removed == 0 && self.changed == 0
    }

    fn note(&mut self, kind: usize, key: String) {
        const EXAMPLES: usize = 5;
        let [added, removed, changed] = [&mut self.added, &mut self.removed, &mut self.changed];
        *[added, removed, changed][kind] += 1;
        if self.examples[kind].len() < EXAMPLES {
            self.examples[kind].push(key);
        }
    }
}

impl std::fmt::Display for InputsChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} unchanged", self.unchanged)?;
        let counts = [self.added, self.removed, self.changed];
        for ((count, word), examples) in counts.into_iter().zip(["added", "removed", "changed"]).zip(&self.examples) {
            if count > 0 {
                let more = if count > examples.len() as u64 { ", ..." } else { "" };
                write!(f, "; {count} {word}: {}{more}", examples.join(", "))?;
            }
        }
        Ok(())
    }
}

/// Compares a listing with the frozen lists of all generations, with flat memory.
pub async fn compare_inputs(frozen: &[FrozenInputs], listing: Listing) -> Result<InputsChange, IoError> {
    let mut change = InputsChange::default();
    let mut pairs = Pairs::new(frozen, listing);
    while let Some(pair) = pairs.next().await? {
        match pair {
            (Some(old), Some(new)) if old == new => change.unchanged += 1,
            (Some(_), Some(new)) => change.note(2, new.key),
            (Some(old), None) => change.note(1, old.key),
            (None, Some(new)) => change.note(0, new.key),
            (None, None) => {}
        }
    }
    Ok(change)
}

/// The entries of `listing` whose ranks are in none of the frozen lists: the inputs of the next generation.
pub fn added_inputs(frozen: &[FrozenInputs], listing: Listing) -> Listing {
    futures::stream::try_unfold(Pairs::new(frozen, listing), |mut pairs| async move {
        while let Some(pair) = pairs.next().await? {
            if let (None, Some(new)) = pair {
                return Ok(Some((new, pairs)));
            }
        }
        Ok(None)
    })
    .boxed()
}

/// Frozen and listed entries side by side. All are sorted by rank.
struct Pairs {
    frozen: Vec<Sorted>,
    listing: Sorted,
}

struct Sorted {
    rest: Listing,
    head: Option<InputEntry>,
    started: bool,
}

impl Sorted {
    const fn new(rest: Listing) -> Self {
        Self { rest, head: None, started: false }
    }

    async fn peek(&mut self) -> Result<Option<(&str, u64)>, IoError> {
        if !self.started {
            self.started = true;
            self.advance().await?;
        }
        Ok(self.head.as_ref().map(InputEntry::rank))
    }

    async fn advance(&mut self) -> Result<Option<InputEntry>, IoError> {
        let next = self.rest.try_next().await?;
        Ok(std::mem::replace(&mut self.head, next))
    }
}

impl Pairs {
    fn new(frozen: &[FrozenInputs], listing: Listing) -> Self {
        let frozen = frozen.iter().map(|inputs| Sorted::new(inputs.stream())).collect();
        Self { frozen, listing: Sorted::new(listing) }
    }

    /// The next entries of one rank: frozen, listed, or both.
    async fn next(&mut self) -> Result<Option<(Option<InputEntry>, Option<InputEntry>)>, IoError> {
        let mut first: Option<((String, u64), usize)> = None;
        for (index, sorted) in self.frozen.iter_mut().enumerate() {
            if let Some((container, position)) = sorted.peek().await?
                && first.as_ref().is_none_or(|((least, at), _)| (container, position) < (least.as_str(), *at))
            {
                first = Some(((container.to_owned(), position), index));
            }
        }
        let listed = self.listing.peek().await?;
        match (first, listed) {
            (None, None) => Ok(None),
            (Some(((container, position), index)), listed)
                if listed.is_none_or(|listed| (container.as_str(), position) <= listed) =>
            {
                let both = listed == Some((container.as_str(), position));
                let old = self.frozen[index].advance().await?;
                let new = if both { self.listing.advance().await? } else { None };
                Ok(Some((old, new)))
            }
            _ => Ok(Some((None, self.listing.advance().await?))),
        }
    }
}

#[cfg(test)]
mod tests;
