//! Sources: what turns locations into a list of inputs.
//!
//! A source only lists. What it lists is frozen (see [`FrozenInputs`](crate::FrozenInputs)) before anything is read,
//! so that the work does not change under a run, and bytes are read later by [`ObjectFetch`](crate::ObjectFetch).

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use futures::StreamExt as _;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};

use crate::sources::SourceCounts;
use crate::walk::{Listing, Root, key_part};
use crate::{IoError, IoErrorKind, Location};

/// One row of the input list: an object, or something inside one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct InputEntry {
    /// Unique in the job.
    pub key: String,
    /// Where it is; `file://` URLs carry any bytes a name has, percent-encoded. A fragment says where inside the
    /// object, see [`Place`](crate::Place).
    pub url: String,
    /// Size when it was listed, or the size to reserve memory for when `estimated`.
    pub bytes: u64,
    /// Etag or modification time of the object when it was listed; empty when unknown, and then not checked when read.
    pub tag: String,
    /// The size is not known before it is read (a URL of a manifest, a value in a table).
    pub estimated: bool,
    /// How many bytes of the key name the object it comes from; 0 when that is the whole key. Inputs are ordered by
    /// this part of the key, then by `position`.
    pub container: u32,
    /// Position in the container, from 0.
    pub position: u64,
    /// Columns of the input that the job keeps or filters by: a JSON object.
    pub columns: Option<String>,
}

impl InputEntry {
    /// A whole object of known size.
    pub fn object(key: impl Into<String>, url: impl Into<String>, bytes: u64, tag: impl Into<String>) -> Self {
        Self { key: key.into(), url: url.into(), bytes, tag: tag.into(), ..Self::default() }
    }

    /// What the list is ordered by.
    pub fn rank(&self) -> (&str, u64) {
        let whole = self.container == 0;
        let container = if whole { None } else { self.key.get(..self.container as usize) };
        (container.unwrap_or(&self.key), self.position)
    }
}

/// Something that lists inputs: sorted by [`InputEntry::rank`] (bytewise, then by position), keys and ranks unique, the
/// same list for the same objects.
pub trait Source: Send + Sync {
    /// The inputs. A stream, so that a hundred million need no memory. Ends at the first error.
    fn list(&self) -> BoxStream<'static, Result<InputEntry, IoError>>;

    /// The source in words, for logs and the job record.
    fn describe(&self) -> String;

    /// To be asked when a listing has come to its end: what only the whole list can be wrong about.
    ///
    /// # Errors
    /// As a column that was asked for and is in no table.
    fn check(&self) -> Result<(), IoError> {
        Ok(())
    }

    /// What the last whole listing found, one for each input.
    fn counts(&self) -> Vec<SourceCounts> {
        Vec::new()
    }
}

impl Source for std::sync::Arc<dyn Source> {
    fn list(&self) -> BoxStream<'static, Result<InputEntry, IoError>> {
        self.as_ref().list()
    }

    fn describe(&self) -> String {
        self.as_ref().describe()
    }

    fn check(&self) -> Result<(), IoError> {
        self.as_ref().check()
    }

    fn counts(&self) -> Vec<SourceCounts> {
        self.as_ref().counts()
    }
}

/// Files and folders, recursively.
///
/// - **Keys.** One folder: the path relative to it. One file: its name. Several inputs: `<folder name>/<path>` and
///   `<file name>`. Two inputs with the same key are an error that names both. Names that are not UTF-8 are spelled
///   with `%XX` for the bytes in question.
/// - **Order.** By key, bytewise, whatever order the file system gives.
/// - **Left out.** Files and folders whose name begins with a dot (unless given themselves), pipes, sockets and
///   devices, and the folders named with [`excluding`](Self::excluding). Every other file is listed; whether it is an
///   image is found out from its bytes.
/// - **Links** are followed, save one that leads back to a folder it stands in. A link that leads nowhere is listed,
///   and fails as a row when it is read.
/// - A folder that cannot be listed is an error: leaving it out would lose rows without a word.
#[derive(Debug, Clone)]
pub struct FolderSource {
    roots: Vec<Root>,
    excluded: Vec<PathBuf>,
}

impl FolderSource {
    /// One or more files or folders, as paths or `file://` URLs. Missing ones are an error that names them.
    pub fn new(inputs: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<Self, IoError> {
        let inputs: Vec<_> = inputs.into_iter().collect();
        let several = inputs.len() > 1;
        let roots = inputs.iter().map(|input| root(input.as_ref(), several)).collect::<Result<Vec<_>, _>>()?;
        if roots.is_empty() {
            return Err(IoError::fatal(IoErrorKind::Invalid, "no input was given; name a file or a folder"));
        }
        Ok(Self { roots, excluded: Vec::new() })
    }

    /// These, whose keys are known.
    pub(crate) const fn of(roots: Vec<Root>, excluded: Vec<PathBuf>) -> Self {
        Self { roots, excluded }
    }

    /// The same without what lies below `folder` (the job's own output).
    #[must_use]
    pub fn excluding(mut self, folder: &Path) -> Self {
        self.excluded.push(folder.to_owned());
        self
    }
}

fn root(input: &OsStr, several: bool) -> Result<Root, IoError> {
    let location = Location::parse(input)?;
    let shown = Path::new(input).display();
    let path = location
        .local_path()
        .ok_or_else(|| IoError::fatal(IoErrorKind::Invalid, format!("'{shown}' is not a local file or folder")))?;
    let metadata = std::fs::metadata(&path).map_err(|error| {
        let message = format!("cannot read the input '{shown}': {error}");
        IoError::fatal(IoErrorKind::NotFound, message).because(error)
    })?;
    let name = path.file_name().map(key_part).unwrap_or_default();
    if metadata.is_dir() {
        let prefix = if several && !name.is_empty() { format!("{name}/") } else { String::new() };
        Ok(Root::Folder { path, prefix, depth: usize::MAX })
    } else if metadata.is_file() {
        Ok(Root::File { path, key: name })
    } else {
        let message = format!("the input '{shown}' is neither a file nor a folder");
        Err(IoError::fatal(IoErrorKind::Invalid, message))
    }
}

impl Source for FolderSource {
    fn list(&self) -> BoxStream<'static, Result<InputEntry, IoError>> {
        /// Entries listed in one visit to the blocking threads.
        const BATCH: usize = 512;
        let start = (None, self.clone());
        futures::stream::try_unfold(start, |(listing, source): (Option<Listing>, Self)| async move {
            let walked = tokio::task::spawn_blocking(move || {
                let mut listing = match listing {
                    Some(listing) => listing,
                    None => Listing::start(&source.roots, &source.excluded)?,
                };
                let batch = listing.by_ref().take(BATCH).collect::<Result<Vec<_>, IoError>>()?;
                Ok::<_, IoError>((batch, listing, source))
            });
            let (batch, listing, source) = walked.await.map_err(|error| {
                IoError::fatal(IoErrorKind::Failed, "listing the inputs broke off").because(error)
            })??;
            let batch = (!batch.is_empty()).then_some(batch);
            Ok(batch.map(|batch| (batch, (Some(listing), source))))
        })
        .flat_map(|batch: Result<Vec<InputEntry>, IoError>| match batch {
            Ok(batch) => futures::stream::iter(batch.into_iter().map(Ok).collect::<Vec<_>>()),
            Err(error) => futures::stream::iter(vec![Err(error)]),
        })
        .boxed()
    }

    fn describe(&self) -> String {
        const SHOWN: usize = 3;
        let names: Vec<_> = self.roots.iter().take(SHOWN).map(|root| root.path().display().to_string()).collect();
        let more = self.roots.len() - names.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        names.join(", ") + &more
    }
}

#[cfg(test)]
mod tests;
