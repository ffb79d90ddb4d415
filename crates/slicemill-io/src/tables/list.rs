//! Tables as sources: every row an entry.

use std::io::Read;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use url::Url;

use super::entries::{Entries, Table, TableCounts, Tally};
use super::jsonl::{Emit, Wanted};
use super::locate::Locations;
use super::object::Object;
use super::text::{LINE_BYTES_MAX, read_error, unpacked};
use super::{csv_rows, jsonl, lines, parquet_rows};
use crate::sources::{InputColumns, ListTable, TableFormat, TableObject};
use crate::{InputEntry, IoError, IoErrorKind, RetryBudget, Stores};

/// How tables are read, as the user says it.
#[derive(Debug, Clone, Default)]
pub struct TableOptions {
    /// Column of the images or of their locations; chosen by name and type when there is none.
    pub image_column: Option<String>,
    /// Column that the rows' keys come from; else they are numbers.
    pub key_column: Option<String>,
    /// A folder whose files any manifest may name, absolute.
    pub root: Option<PathBuf>,
    /// Standard input is separated by zero bytes.
    pub zero_separated: bool,
    /// Standard input, kept in a file: it is listed more than once.
    pub standard_input: Option<PathBuf>,
    /// What relative paths on standard input belong to, absolute.
    pub working_folder: Option<PathBuf>,
}

/// Lists the rows of Parquet files, JSON lines, CSV, TSV and lists of locations; Parquet and text are read as they
/// come, in memory that does not grow with the table. Cheap to clone; clones share counts.
#[derive(Debug, Clone)]
pub struct Tables {
    stores: Stores,
    budget: RetryBudget,
    options: Arc<TableOptions>,
    tally: Arc<Tally>,
}

impl Tables {
    /// Tables in `stores`.
    pub fn new(stores: Stores, budget: RetryBudget, options: TableOptions) -> Self {
        Self { stores, budget, options: Arc::new(options), tally: Arc::default() }
    }

    /// Rows so far, of all tables and listings.
    pub fn counts(&self) -> TableCounts {
        self.tally.counts()
    }

    /// To be called when everything was listed: an error that lists the columns there are when one of `columns` was
    /// in no table.
    ///
    /// # Errors
    /// `Invalid`.
    pub fn check_columns(&self, columns: &InputColumns) -> Result<(), IoError> {
        self.tally.check(&columns.names)
    }

    fn wanted(&self, columns: &InputColumns) -> Wanted {
        Wanted {
            image: self.options.image_column.clone(),
            key: self.options.key_column.clone(),
            names: columns.names.clone(),
        }
    }

    /// What reads the rows of `table`, to be run on a blocking thread.
    async fn reading(self, table: TableObject, wanted: Wanted) -> Result<Reading, IoError> {
        let keyed = wanted.key.is_some();
        if table.format == TableFormat::StandardInput {
            let (Some(file), Some(folder)) = (&self.options.standard_input, &self.options.working_folder) else {
                return Err(IoError::fatal(IoErrorKind::Invalid, "standard input was not kept in a file"));
            };
            let shown = Table { shown: "standard input".to_owned(), ..Table::new(&table.key, "stdin:", "") };
            let entries =
                Entries::new(shown, "line", Locations::anywhere(folder), keyed, true, Arc::clone(&self.tally));
            let zero = self.options.zero_separated;
            return Ok(Reading { wanted, entries, from: From::Lines(file.clone(), zero) });
        }
        let parsed = Url::parse(&table.url).map_err(|error| {
            let message = format!("'{}' is not a URL: {error}", crate::shown_url(&table.url));
            IoError::fatal(IoErrorKind::Invalid, message)
        })?;
        let size = (table.bytes != u64::MAX).then_some(table.bytes);
        let needs_size = table.format == TableFormat::Parquet;
        let size = if needs_size { size } else { Some(size.unwrap_or(0)) };
        let object = Object::open(&self.stores, self.budget, &table.url, size, &table.tag).await?;
        let locations = Locations::of(&parsed, self.options.root.as_deref());
        let unit = match table.format {
            TableFormat::Parquet => "row",
            TableFormat::Csv | TableFormat::Tsv => "record",
            TableFormat::JsonLines | TableFormat::StandardInput => "line",
        };
        let shown = Table::new(&table.key, &table.url, &table.tag);
        let entries = Entries::new(shown, unit, locations, keyed, true, Arc::clone(&self.tally));
        Ok(Reading { wanted, entries, from: From::Object(object, table.format) })
    }
}

/// A listing that is ready to run.
struct Reading {
    wanted: Wanted,
    entries: Entries,
    from: From,
}

enum From {
    Lines(PathBuf, bool),
    Object(Object, TableFormat),
}

impl Reading {
    fn run(mut self, emit: &mut Emit<'_>) -> Result<(), IoError> {
        let shown = self.entries.shown().to_owned();
        let failed = |error| read_error(&shown, "line", 0, error);
        let (wanted, entries) = (&self.wanted, &mut self.entries);
        match self.from {
            From::Lines(path, zero) => {
                let file = std::fs::File::open(&path).map_err(failed)?;
                let input = unpacked(file).map_err(failed)?;
                lines::list(input, zero, LINE_BYTES_MAX, wanted, entries, emit)
            }
            From::Object(object, TableFormat::Parquet) => parquet_rows::list(object, wanted, entries, emit),
            From::Object(object, TableFormat::Csv) => {
                let input = unpacked(object.reader()).map_err(failed)?;
                csv_rows::list(input, b',', LINE_BYTES_MAX, wanted, entries, emit)
            }
            From::Object(object, TableFormat::Tsv) => {
                let input = unpacked(object.reader()).map_err(failed)?;
                csv_rows::list(input, b'\t', LINE_BYTES_MAX, wanted, entries, emit)
            }
            From::Object(object, TableFormat::JsonLines | TableFormat::StandardInput) => {
                let input = unpacked(object.reader()).map_err(failed)?;
                jsonl::list(input, false, LINE_BYTES_MAX, wanted, entries, emit)
            }
        }
    }
}

type Batch = Result<Vec<InputEntry>, IoError>;

/// Runs `reading` on a blocking thread, a few batches ahead of who takes them.
fn batches(reading: Reading) -> BoxStream<'static, Batch> {
    /// Entries of a batch, and batches that wait.
    const BATCH: usize = 256;
    const AHEAD: usize = 2;
    let (sender, receiver) = tokio::sync::mpsc::channel::<Batch>(AHEAD);
    let work = tokio::task::spawn_blocking(move || {
        let mut batch = Vec::with_capacity(BATCH);
        let mut emit = |entry| {
            batch.push(entry);
            if batch.len() < BATCH {
                return ControlFlow::Continue(());
            }
            let full = std::mem::replace(&mut batch, Vec::with_capacity(BATCH));
            match sender.blocking_send(Ok(full)) {
                Ok(()) => ControlFlow::Continue(()),
                // Nobody listens any more.
                Err(_) => ControlFlow::Break(()),
            }
        };
        let end = reading.run(&mut emit);
        let last = sender.blocking_send(Ok(batch));
        if let (Ok(()), Err(error)) = (last, end) {
            let _gone = sender.blocking_send(Err(error));
        }
    });
    futures::stream::unfold((receiver, Some(work)), |(mut receiver, work)| async move {
        if let Some(batch) = receiver.recv().await {
            return Some((batch, (receiver, work)));
        }
        // A listing that panicked must not look like one that ended.
        match work?.await {
            Ok(()) => None,
            Err(error) => {
                let error = IoError::fatal(IoErrorKind::Failed, "listing a table broke off").because(error);
                Some((Err(error), (receiver, None)))
            }
        }
    })
    .boxed()
}

impl ListTable for Tables {
    fn list(&self, table: TableObject, columns: &Arc<InputColumns>) -> BoxStream<'static, Result<InputEntry, IoError>> {
        let (tables, wanted) = (self.clone(), self.wanted(columns));
        futures::stream::once(async move { tables.reading(table, wanted).await })
            .flat_map(|reading| match reading {
                Ok(reading) => batches(reading),
                Err(error) => futures::stream::iter([Err(error)]).boxed(),
            })
            .flat_map(|batch| match batch {
                Ok(batch) => futures::stream::iter(batch.into_iter().map(Ok).collect::<Vec<_>>()),
                Err(error) => futures::stream::iter(vec![Err(error)]),
            })
            .boxed()
    }
}

/// Lists what `bytes` would list as a manifest of `format` at `file:///fuzz/manifest`, without looking at any file.
/// For fuzzing: a function of its arguments.
#[doc(hidden)]
pub fn list_bytes(format: TableFormat, bytes: &[u8], columns: &InputColumns) -> Result<Vec<InputEntry>, IoError> {
    /// Short, so that a fuzzer finds it.
    const LINE_MAX: usize = 4096;
    let wanted = Wanted { image: None, key: columns.names.first().cloned(), names: columns.names.clone() };
    let url = "file:///fuzz/manifest";
    let table = Table::new("manifest", url, "");
    let parsed = Url::parse(url).map_err(|error| IoError::fatal(IoErrorKind::Invalid, error.to_string()))?;
    let locations = match format {
        TableFormat::StandardInput => Locations::anywhere(Path::new("/fuzz")),
        _ => Locations::of(&parsed, None),
    };
    let mut entries = Entries::new(table, "line", locations, wanted.key.is_some(), false, Arc::default());
    let mut found = Vec::new();
    let mut emit = |entry| {
        found.push(entry);
        ControlFlow::Continue(())
    };
    let input: Box<dyn Read + Send> = Box::new(std::io::Cursor::new(bytes.to_vec()));
    let input = unpacked(input).map_err(|error| read_error("the manifest", "line", 0, error))?;
    match format {
        TableFormat::Csv => csv_rows::list(input, b',', LINE_MAX, &wanted, &mut entries, &mut emit),
        TableFormat::Tsv => csv_rows::list(input, b'\t', LINE_MAX, &wanted, &mut entries, &mut emit),
        TableFormat::JsonLines => jsonl::list(input, false, LINE_MAX, &wanted, &mut entries, &mut emit),
        TableFormat::StandardInput => {
            let wanted = Wanted { key: None, ..wanted };
            lines::list(input, bytes.contains(&0), LINE_MAX, &wanted, &mut entries, &mut emit)
        }
        TableFormat::Parquet => Err(IoError::fatal(IoErrorKind::Invalid, "Parquet is no text")),
    }?;
    Ok(found)
}
