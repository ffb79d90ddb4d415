//! All inputs of a job as one source.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};

use super::counts::SourceCounts;
use super::found::{Finder, merge};
use super::inputs::{Input, Origin};
use super::open::{Opener, Part, Parts};
use super::{InputColumns, ListTable, Spool};
use crate::{InputEntry, IoError, IoErrorKind, Location, ObjectFetch, RetryBudget, Source, Stores};

/// What a [`SourceSet`] reads with.
#[derive(Debug, Clone)]
pub struct SourceOptions {
    /// Where prefixes are listed.
    pub stores: Stores,
    /// Looks at objects that are given by name.
    pub fetch: ObjectFetch,
    /// How long one object is tried.
    pub budget: RetryBudget,
    /// Lists Parquet, JSON lines, CSV and standard input; without it they are an error.
    pub tables: Option<Arc<dyn ListTable>>,
    /// Input columns that entries carry.
    pub columns: Arc<InputColumns>,
    /// The most bytes an archive may unpack to: [`Spool::segment_bytes_max`].
    pub unpacked_max: u64,
}

impl SourceOptions {
    /// Without tables and columns.
    pub fn new(stores: Stores, budget: RetryBudget) -> Self {
        let fetch = ObjectFetch::new(stores.clone(), budget);
        let unpacked_max = Spool::BYTES_MAX_DEFAULT / 2;
        Self { stores, fetch, budget, tables: None, columns: Arc::default(), unpacked_max }
    }
}

/// Files, folders, prefixes, patterns, archives, tables and standard input, in any mixture.
///
/// - **Inputs.** Paths and `file://` URLs; objects and prefixes in stores (a name that is no object, or ends in `/`, is
///   a prefix); http(s) URLs of one object; patterns (`photos/**/*.jpg`, `s3://b/train-{000..127}.tar`); `-` for
///   standard input. A local name that exists is never a pattern. Names a pattern spells out must exist.
/// - **What they are** is seen by their bytes. An input given by name or pattern is opened: tar, plain or packed with
///   gzip or zstd; Parquet; text, which is a manifest unless its name is that of an image; anything else is one row. In
///   folders and prefixes only names ending in `.tar`, `.tar.gz`, `.tgz`, `.tar.zst`, `.tzst` or `.parquet` are
///   opened; when the bytes say otherwise the object is a row, and a note says so.
/// - **Keys.** One input: relative to it. Several: `<folder name>/<path>` and `<file name>`. Members of containers:
///   `<key of the container>/<member>`. The same key twice is an error that names both.
/// - **Order.** By [`InputEntry::rank`].
/// - **Nothing at all** to work on is an error that says what was seen.
#[derive(Debug, Clone)]
pub struct SourceSet {
    inputs: Arc<[Input]>,
    options: SourceOptions,
    excluded: Vec<PathBuf>,
    excluded_urls: Vec<String>,
    counts: Arc<Mutex<Option<Vec<SourceCounts>>>>,
}

impl SourceSet {
    /// These inputs. Local ones that are missing, and patterns that cannot be understood, are an error at once; what
    /// is in a store is looked for when it is listed.
    pub fn new(inputs: impl IntoIterator<Item = impl AsRef<OsStr>>, options: SourceOptions) -> Result<Self, IoError> {
        let inputs = inputs.into_iter().map(|input| Input::parse(input.as_ref())).collect::<Result<Vec<_>, _>>()?;
        if inputs.is_empty() {
            return Err(IoError::fatal(IoErrorKind::Invalid, "no input was given; name a file or a folder"));
        }
        if inputs.iter().filter(|input| matches!(input.origin, Origin::StandardInput)).count() > 1 {
            return Err(IoError::fatal(IoErrorKind::Invalid, "standard input was given twice"));
        }
        let (excluded, excluded_urls, counts) = Default::default();
        Ok(Self { inputs: inputs.into(), options, excluded, excluded_urls, counts })
    }

    /// The same without what lies below `output` (the job's own).
    #[must_use]
    pub fn excluding(mut self, output: &Location) -> Self {
        match output.local_path() {
            Some(path) => self.excluded.push(path),
            None => self.excluded_urls.push(output.url().as_str().trim_end_matches('/').to_owned()),
        }
        self
    }

    /// What the last listing that came to its end found, one for each input; `None` before.
    pub fn counts(&self) -> Option<Vec<SourceCounts>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Source for SourceSet {
    fn list(&self) -> BoxStream<'static, Result<InputEntry, IoError>> {
        /// Objects that are opened ahead, in order.
        const AHEAD: usize = 4;
        let finder = Finder {
            stores: self.options.stores.clone(),
            fetch: self.options.fetch.clone(),
            excluded: self.excluded.clone(),
            excluded_urls: self.excluded_urls.clone(),
            several: self.inputs.len() > 1,
        };
        let opener = Opener {
            stores: self.options.stores.clone(),
            budget: self.options.budget,
            columns: Arc::clone(&self.options.columns),
            tables: self.options.tables.clone(),
            unpacked_max: self.options.unpacked_max,
        };
        let objects = merge(self.inputs.iter().enumerate().map(|(index, input)| finder.find(index, input)).collect());
        let opened = objects
            .map_ok(move |found| {
                let (input, key, opener) = (found.input, found.entry.key.clone(), opener.clone());
                async move { Ok((input, key, opener.open(found).await?)) }
            })
            .try_buffered(AHEAD)
            .boxed();
        let counts = self.inputs.iter().map(|input| SourceCounts::new(&input.shown)).collect();
        let listing = Listing { opened, current: None, containers: Vec::new(), counts, kept: Arc::clone(&self.counts) };
        futures::stream::try_unfold(listing, |mut listing| async move {
            Ok::<_, IoError>(listing.next().await?.map(|rows| (rows, listing)))
        })
        .map_ok(|rows| futures::stream::iter(rows.into_iter().map(Ok)))
        .try_flatten()
        .boxed()
    }

    fn describe(&self) -> String {
        const SHOWN: usize = 3;
        let names: Vec<_> = self.inputs.iter().take(SHOWN).map(|input| input.shown.as_str()).collect();
        let more = self.inputs.len() - names.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        names.join(", ") + &more
    }
}

struct Listing {
    opened: BoxStream<'static, Result<(usize, String, Parts), IoError>>,
    current: Option<(usize, String, Parts)>,
    /// Keys of containers that keys to come may still begin with.
    containers: Vec<String>,
    counts: Vec<SourceCounts>,
    kept: Arc<Mutex<Option<Vec<SourceCounts>>>>,
}

impl Listing {
    async fn next(&mut self) -> Result<Option<Vec<InputEntry>>, IoError> {
        loop {
            let Some((input, key, parts)) = &mut self.current else {
                let Some(next) = self.opened.try_next().await? else { return self.end().map(|()| None) };
                self.check(&next.1)?;
                self.current = Some(next);
                continue;
            };
            match parts.try_next().await? {
                Some(Part::Rows(rows)) => return Ok(Some(rows)),
                Some(Part::Counts(counts)) => {
                    if !counts.containers.is_empty() {
                        self.containers.push(std::mem::take(key));
                    }
                    self.counts[*input].add(counts);
                }
                None => self.current = None,
            }
        }
    }

    /// Members of `a.tar` have keys below `a.tar/`: no object may have one of them.
    fn check(&mut self, key: &str) -> Result<(), IoError> {
        let below = |container: &str| key.strip_prefix(container).and_then(|rest| rest.strip_prefix('/')).is_some();
        if let Some(container) = self.containers.iter().find(|container| below(container)) {
            let message = format!(
                "'{key}' stands below the container '{container}', whose members have such keys too; \
                 rename one, or give them as separate inputs"
            );
            return Err(IoError::fatal(IoErrorKind::Invalid, message));
        }
        self.containers
            .retain(|container| key.starts_with(container.as_str()) || format!("{container}/").as_str() > key);
        Ok(())
    }

    fn end(&mut self) -> Result<(), IoError> {
        let counts = std::mem::take(&mut self.counts);
        let rows: u64 = counts.iter().map(|counts| counts.rows).sum();
        let seen: Vec<_> = counts.iter().take(10).map(ToString::to_string).collect();
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(counts);
        if rows == 0 {
            let message = format!(
                "there is nothing to work on: {}; give images, folders of them, archives, tables or lists",
                seen.join("; ")
            );
            return Err(IoError::fatal(IoErrorKind::NotFound, message));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
