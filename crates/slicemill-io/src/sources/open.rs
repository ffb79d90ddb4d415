//! Opening objects: what they are is seen by their bytes, and what is in them is listed.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use slicemill_core::ErrorClass;
use tokio::runtime::Handle;
use url::Url;

use super::counts::SourceCounts;
use super::found::Found;
use super::kinds::{HEAD_BYTES, Kind, Packing, Promise, is_container_name, is_tar, promise, sniff};
use super::object::{LocalObject, ReadAt, RemoteObject, Window};
use super::tar::{self, Archive as _, ArchiveName, Entries};
use super::unpack::Unpacked;
use super::{InputColumns, ListTable, TableFormat, TableObject};
use crate::tables::object::Object;
use crate::{InputEntry, IoError, IoErrorKind, RetryBudget, Stores, shown_url};

/// Rows of one object, some at a time, and at the end what was counted.
pub(crate) enum Part {
    Rows(Vec<InputEntry>),
    Counts(SourceCounts),
}

pub(crate) type Parts = BoxStream<'static, Result<Part, IoError>>;

/// What objects are opened with. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Opener {
    pub(crate) stores: Stores,
    pub(crate) budget: RetryBudget,
    pub(crate) columns: Arc<InputColumns>,
    pub(crate) tables: Option<Arc<dyn ListTable>>,
    /// What an archive may unpack to, in bytes.
    pub(crate) unpacked_max: u64,
}

/// An object that was looked into.
enum Opened {
    Object,
    Tar { object: Arc<dyn ReadAt>, packing: Option<Packing> },
    Table(TableFormat, Bytes),
}

impl Opener {
    /// The rows of `found`.
    pub(crate) async fn open(self, found: Found) -> Result<Parts, IoError> {
        let mut counts = SourceCounts { objects: 1, ..SourceCounts::default() };
        if found.marker {
            counts.leave_out("markers of folders");
            return Ok(parts(Vec::new(), counts));
        }
        if found.standard_input {
            return self.table(&found.entry, TableFormat::StandardInput, Bytes::new(), counts);
        }
        if !found.named && !is_container_name(&found.entry.key) {
            return Ok(plain(found.entry, counts));
        }
        let named = found.named;
        let (opener, entry) = (self.clone(), found.entry);
        let runtime = Handle::current();
        let looked = tokio::task::spawn_blocking(move || {
            let opened = opener.look(runtime, &entry, named, &mut counts);
            (opened, entry, counts)
        });
        let (opened, entry, mut counts) = looked
            .await
            .map_err(|error| IoError::fatal(IoErrorKind::Failed, "opening an input broke off").because(error))?;
        match opened? {
            Opened::Object => Ok(plain(entry, counts)),
            Opened::Table(format, head) => self.table(&entry, format, head, counts),
            Opened::Tar { object, packing } => {
                let what = packing.map_or("tar", |packing| match packing {
                    Packing::Gzip => "tar.gz",
                    Packing::Zstd => "tar.zst",
                });
                counts.containers.insert(what.to_owned(), 1);
                Ok(self.archive(entry, object, packing, counts))
            }
        }
    }

    /// Looks into an object, on a thread that may wait.
    fn look(
        &self,
        runtime: Handle,
        entry: &InputEntry,
        named: bool,
        counts: &mut SourceCounts,
    ) -> Result<Opened, IoError> {
        let object: Arc<dyn ReadAt> = match local_path(&entry.url) {
            // What leads nowhere fails as a row.
            Some(path) if !named && !path.is_file() => return Ok(Opened::Object),
            Some(path) => Arc::new(LocalObject::open(&path, &entry.tag)?),
            None => Arc::new(self.remote(&runtime, entry)?),
        };
        let head = head(&object)?;
        match sniff(&head) {
            Kind::Tar => Ok(Opened::Tar { object, packing: None }),
            Kind::Packed(packing) => {
                let mut unpacked = Unpacked::new(Arc::clone(&object), Some(packing), self.unpacked_max)?;
                let inside = Bytes::copy_from_slice(unpacked.at(0, HEAD_BYTES)?);
                if is_tar(&inside) || (inside.is_empty() && is_tar_name(&entry.key)) {
                    return Ok(Opened::Tar { object, packing: Some(packing) });
                }
                Ok(self.by_head(&inside, entry, named, Some(packing), counts))
            }
            Kind::Parquet => {
                // Of a stream the end is not to be had; its reader will see.
                let whole = object.streamed() || {
                    let end = object.read_at(object.length().saturating_sub(4), head.len().min(4))?;
                    end == "PAR1" && object.length() >= 12
                };
                if whole {
                    return Ok(Opened::Table(TableFormat::Parquet, head));
                }
                counts.note(format!(
                    "{} begins like Parquet but does not end so; it may be cut off",
                    shown_url(&entry.url)
                ));
                Ok(Opened::Object)
            }
            _ => Ok(self.by_head(&head, entry, named, None, counts)),
        }
    }

    fn remote(&self, runtime: &Handle, entry: &InputEntry) -> Result<RemoteObject, IoError> {
        let size = (!entry.estimated).then_some(entry.bytes);
        let opening = Object::open(&self.stores, self.budget, &entry.url, Some(size.unwrap_or(0)), &entry.tag);
        let object = runtime.block_on(opening)?;
        let web = entry.url.starts_with("http");
        let streamed = match size {
            None => true,
            // Servers need not know ranges.
            Some(bytes) if web && bytes > 1 => match object.range(1..bytes.min(2)) {
                Ok(_) => false,
                Err(error) if error.kind == IoErrorKind::Invalid => true,
                Err(error) => return Err(error),
            },
            Some(_) => false,
        };
        Ok(RemoteObject { object, streamed })
    }

    /// What is no archive: text that was given by name is a table, anything else an object.
    fn by_head(
        &self,
        head: &Bytes,
        entry: &InputEntry,
        named: bool,
        packing: Option<Packing>,
        counts: &mut SourceCounts,
    ) -> Opened {
        let kind = sniff(head);
        let text = named && promise(&entry.key) != Promise::Image;
        let format = match kind {
            Kind::JsonLines if text => Some(TableFormat::JsonLines),
            Kind::Text if text => Some(separated(head)),
            _ => None,
        };
        if is_container_name(&entry.key) {
            let packed =
                packing.map_or(String::new(), |packing| format!(" ({} data without an archive in it)", packing.name()));
            let what =
                if entry.key.to_ascii_lowercase().ends_with(".parquet") { "Parquet file" } else { "tar archive" };
            counts.note(format!("{} is not a {what}, whatever its name says{packed}", shown_url(&entry.url)));
        }
        format.map_or(Opened::Object, |format| Opened::Table(format, head.clone()))
    }

    fn table(
        &self,
        entry: &InputEntry,
        format: TableFormat,
        head: Bytes,
        mut counts: SourceCounts,
    ) -> Result<Parts, IoError> {
        let shown = shown_url(&entry.url);
        let Some(tables) = &self.tables else {
            let message = format!("{shown} is a table, and tables are not read here");
            return Err(IoError::fatal(IoErrorKind::Invalid, message));
        };
        let what = match format {
            TableFormat::Parquet => "parquet",
            TableFormat::JsonLines => "jsonl",
            TableFormat::Csv => "csv",
            TableFormat::Tsv => "tsv",
            TableFormat::StandardInput => "list",
        };
        counts.containers.insert(what.to_owned(), 1);
        let table = TableObject {
            key: entry.key.clone(),
            url: entry.url.clone(),
            bytes: if entry.estimated { u64::MAX } else { entry.bytes },
            tag: entry.tag.clone(),
            format,
            head,
        };
        let rows = tables.list(table, &self.columns);
        let state = (rows, Some(counts));
        let parts = futures::stream::try_unfold(state, |(mut rows, counts)| async move {
            /// Rows handed on together.
            const BATCH: usize = 256;
            let Some(mut counts) = counts else { return Ok(None) };
            let mut batch = Vec::new();
            while batch.len() < BATCH {
                let Some(entry) = rows.try_next().await? else { break };
                counts.rows += 1;
                if let crate::Place::Refused { class, .. } = crate::Place::split(&entry.url).1 {
                    counts.refuse(class);
                }
                batch.push(entry);
            }
            if batch.is_empty() {
                return Ok(Some((Part::Counts(counts), (rows, None))));
            }
            Ok(Some((Part::Rows(batch), (rows, Some(counts)))))
        });
        Ok(parts.boxed())
    }

    fn archive(
        &self,
        entry: InputEntry,
        object: Arc<dyn ReadAt>,
        packing: Option<Packing>,
        counts: SourceCounts,
    ) -> Parts {
        let name = ArchiveName {
            shown: local_path(&entry.url).map_or_else(|| shown_url(&entry.url), |path| path.display().to_string()),
            key: entry.key,
            url: entry.url,
            tag: entry.tag,
            unpacked: packing.is_some() || object.streamed(),
        };
        let mut entries = Entries::new(name, Arc::from(self.columns.names.clone()));
        entries.counts = counts;
        let unpacked_max = self.unpacked_max;
        in_background(move |out| {
            if packing.is_some() || object.streamed() {
                let mut unpacked = Unpacked::new(object, packing, unpacked_max)?;
                let walk = tar::list(&mut unpacked, &mut entries, out)?;
                if let Some(why) = unpacked.damage().map(str::to_owned) {
                    let at = unpacked.length().unwrap_or(0);
                    // After the end mark nothing was lost.
                    if walk.unmarked || !walk.begun() {
                        let mut rest = Vec::new();
                        let why = format!("{why}; members after that are lost");
                        entries.lost(at, ErrorClass::BadRecord, &why, &mut rest);
                        entries.finish(&tar::Walk::default(), &mut rest);
                        out(rest)?;
                    } else {
                        entries.counts.note(why);
                    }
                }
            } else {
                tar::list(&mut Window::new(&*object), &mut entries, out)?;
            }
            Ok(entries.counts)
        })
    }
}

/// One object that is one row.
fn plain(entry: InputEntry, mut counts: SourceCounts) -> Parts {
    counts.rows += 1;
    parts(vec![entry], counts)
}

fn parts(rows: Vec<InputEntry>, counts: SourceCounts) -> Parts {
    let rows = (!rows.is_empty()).then_some(Ok(Part::Rows(rows)));
    futures::stream::iter(rows.into_iter().chain([Ok(Part::Counts(counts))])).boxed()
}

/// The first bytes.
pub(crate) fn head(object: &Arc<dyn ReadAt>) -> Result<Bytes, IoError> {
    if object.streamed() {
        let mut stream = Unpacked::new(Arc::clone(object), None, u64::MAX)?;
        return Ok(Bytes::copy_from_slice(stream.at(0, HEAD_BYTES)?));
    }
    object.read_at(0, HEAD_BYTES.min(usize::try_from(object.length()).unwrap_or(usize::MAX)))
}

pub(crate) fn local_path(url: &str) -> Option<PathBuf> {
    let url = Url::parse(url).ok().filter(|url| url.scheme() == "file")?;
    url.to_file_path().ok()
}

fn is_tar_name(key: &str) -> bool {
    is_container_name(key) && !key.to_ascii_lowercase().ends_with(".parquet")
}

/// Tabs or commas: whichever the first line has more of.
fn separated(head: &[u8]) -> TableFormat {
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let count = |wanted: u8| line.iter().filter(|byte| **byte == wanted).count();
    if count(b'\t') > count(b',') { TableFormat::Tsv } else { TableFormat::Csv }
}

type Out<'a> = &'a mut dyn FnMut(Vec<InputEntry>) -> Result<(), IoError>;

/// Runs `list` on a blocking thread, a few batches ahead of who takes them. It ends when nobody does.
fn in_background(list: impl FnOnce(Out<'_>) -> Result<SourceCounts, IoError> + Send + 'static) -> Parts {
    /// Batches that wait.
    const AHEAD: usize = 2;
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Part, IoError>>(AHEAD);
    let work = tokio::task::spawn_blocking(move || {
        let mut out = |rows: Vec<InputEntry>| {
            let gone = |_| IoError::fatal(IoErrorKind::Failed, "nobody takes the list any more");
            if rows.is_empty() { Ok(()) } else { sender.blocking_send(Ok(Part::Rows(rows))).map_err(gone) }
        };
        let end = list(&mut out).map(Part::Counts);
        let _gone = sender.blocking_send(end);
    });
    futures::stream::unfold((receiver, Some(work)), |(mut receiver, work)| async move {
        if let Some(part) = receiver.recv().await {
            return Some((part, (receiver, work)));
        }
        // A listing that panicked must not look like one that ended.
        match work?.await {
            Ok(()) => None,
            Err(error) => {
                let error = IoError::fatal(IoErrorKind::Failed, "listing an archive broke off").because(error);
                Some((Err(error), (receiver, None)))
            }
        }
    })
    .boxed()
}
