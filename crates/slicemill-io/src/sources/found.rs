//! Objects as they are found, before it is known what they are: every input a sorted stream, all of them merged.

use std::collections::BTreeMap;
use std::path::PathBuf;

use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};

use super::inputs::{Input, Origin};
use super::listing::{Metas, Prefix};
use crate::walk::{Root, duplicate};
use crate::{
    FolderSource, InputEntry, IoError, IoErrorKind, Location, ObjectFetch, RetryBudget, Source as _, Stores, object_url,
};

/// An object of an input.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    /// As a whole object.
    pub(crate) entry: InputEntry,
    /// Which input it belongs to.
    pub(crate) input: usize,
    /// Whether it was given by name or pattern, not found in a folder.
    pub(crate) named: bool,
    /// Standard input, which is no object.
    pub(crate) standard_input: bool,
    /// A marker of a folder, which is left out.
    pub(crate) marker: bool,
}

pub(crate) type Objects = BoxStream<'static, Result<Found, IoError>>;

/// What objects are found with.
#[derive(Debug, Clone)]
pub(crate) struct Finder {
    pub(crate) stores: Stores,
    pub(crate) fetch: ObjectFetch,
    pub(crate) excluded: Vec<PathBuf>,
    pub(crate) excluded_urls: Vec<String>,
    /// There are several inputs.
    pub(crate) several: bool,
}

impl Finder {
    /// The objects of an input in the order of their keys.
    pub(crate) fn find(&self, index: usize, input: &Input) -> Objects {
        let prefix = if self.several { input.folder.clone() } else { String::new() };
        let found = move |entry| Found { entry, input: index, named: false, standard_input: false, marker: false };
        let named = move |entry| Found { named: true, ..found(entry) };
        match &input.origin {
            Origin::StandardInput => {
                let entry = InputEntry::object("stdin", "-", 0, "");
                futures::stream::iter([Ok(Found { standard_input: true, ..named(entry) })]).boxed()
            }
            Origin::One { location, key } => self.one(location.clone(), key.clone(), prefix, index),
            Origin::Folder(location) => match location.local_path() {
                Some(path) => self.walk(path, prefix, usize::MAX).map_ok(found).boxed(),
                None => self.remote(location.clone(), prefix, index),
            },
            Origin::Matching { location, matcher, depth } => {
                let (matcher, skip) = (matcher.clone(), prefix.len());
                let below = match location.local_path() {
                    Some(path) => self.walk(path, prefix, *depth).map_ok(found).boxed(),
                    None => self.remote(location.clone(), prefix, index),
                };
                let matches =
                    move |found: &Found| matcher.is_match(&found.entry.key[skip.min(found.entry.key.len())..]);
                below
                    .try_filter(move |found| std::future::ready(matches(found)))
                    .map_ok(|found| Found { named: true, ..found })
                    .boxed()
            }
            Origin::Listed { location, names } => {
                let (finder, location) = (self.clone(), location.clone());
                futures::stream::iter(names.clone())
                    .map(move |name| {
                        let (finder, location, key) = (finder.clone(), location.clone(), format!("{prefix}{name}"));
                        async move { finder.listed(&location, &name, key).await.map(named) }
                    })
                    .buffered(16)
                    .boxed()
            }
        }
    }

    fn walk(&self, path: PathBuf, prefix: String, depth: usize) -> BoxStream<'static, Result<InputEntry, IoError>> {
        FolderSource::of(vec![Root::Folder { path, prefix, depth }], self.excluded.clone()).list()
    }

    /// An object that was named; what lies below the name when there is no such object.
    fn one(&self, location: Location, key: String, prefix: String, index: usize) -> Objects {
        let finder = self.clone();
        futures::stream::once(async move {
            let found = move |entry| Found { entry, input: index, named: true, standard_input: false, marker: false };
            if let Some(path) = location.local_path() {
                let entries = FolderSource::of(vec![Root::File { path, key }], Vec::new()).list();
                return Ok::<Objects, IoError>(entries.map_ok(found).boxed());
            }
            match finder.fetch.describe(&key, location.url().as_str()).await {
                Ok(entry) => Ok(futures::stream::iter([Ok(found(entry))]).boxed()),
                Err(error) if error.kind == IoErrorKind::NotFound && !is_web(&location) => {
                    let mut below = finder.remote(location.clone(), prefix, index).peekable();
                    if std::pin::Pin::new(&mut below).peek().await.is_none() {
                        let message =
                            format!("there is no object {} and nothing below {0}/; check the name", location.shown());
                        return Err(IoError::fatal(IoErrorKind::NotFound, message));
                    }
                    Ok(below.boxed())
                }
                Err(error) => Err(error.with_fate(slicemill_core::Fate::Fatal)),
            }
        })
        .try_flatten()
        .boxed()
    }

    async fn listed(&self, location: &Location, name: &str, key: String) -> Result<InputEntry, IoError> {
        let missing = |error: IoError| error.with_fate(slicemill_core::Fate::Fatal);
        if let Some(folder) = location.local_path() {
            let path = folder.join(name);
            if !path.exists() {
                let message = format!("there is no '{}', which the input names", path.display());
                return Err(IoError::fatal(IoErrorKind::NotFound, message));
            }
            let mut entries = FolderSource::of(vec![Root::File { path, key }], Vec::new()).list();
            let none = || IoError::fatal(IoErrorKind::NotFound, format!("there is no '{name}'"));
            return entries.try_next().await?.ok_or_else(none);
        }
        let text = format!("{}/{name}", location.url().as_str().trim_end_matches('/'));
        let location = Location::parse(text)?;
        self.fetch.describe(&key, location.url().as_str()).await.map_err(missing)
    }

    /// All objects below a location in a store.
    fn remote(&self, location: Location, prefix: String, index: usize) -> Objects {
        let finder = self.clone();
        futures::stream::once(async move {
            let (store, path) = finder.stores.resolve(location.url())?;
            let shown = location.shown();
            let budget = finder.stores.budget(location.url(), RetryBudget::default());
            let prefix_of_store = Prefix { store, path: path.clone(), shown: shown.clone(), budget };
            let listed = list_sorted(prefix_of_store, &location).await?;
            let root = if path.as_ref().is_empty() { String::new() } else { format!("{path}/") };
            let excluded = finder.excluded_urls;
            let entries = listed.try_filter_map(move |meta| {
                let url = object_url(&location.store_url(), &meta.location);
                let below = meta.location.as_ref().strip_prefix(&root).map(str::to_owned);
                let own =
                    excluded.iter().any(|output| url.strip_prefix(output).is_some_and(|rest| rest.starts_with('/')));
                let found = below.filter(|_| !own).map(|key| {
                    // A marker of a folder is an empty object; its slash is lost on the way here.
                    let last = key.rsplit('/').next().unwrap_or_default();
                    let marker = meta.size == 0 && !last.contains('.');
                    let tag = crate::fetch::tag(&meta);
                    let entry = InputEntry::object(format!("{prefix}{key}"), url, meta.size, tag);
                    Found { entry, input: index, named: false, standard_input: false, marker }
                });
                std::future::ready(Ok(found))
            });
            Ok::<Objects, IoError>(in_order(entries.boxed(), shown))
        })
        .try_flatten()
        .boxed()
    }
}

fn is_web(location: &Location) -> bool {
    matches!(location.url().scheme(), "http" | "https")
}

/// What a store lists below `path`, in bytewise order. S3, Google Cloud Storage and Azure list so, save for S3's
/// directory buckets; other stores are sorted in memory.
async fn list_sorted(prefix: Prefix, location: &Location) -> Result<Metas, IoError> {
    let host = location.url().host_str().unwrap_or_default();
    let sorted = matches!(location.url().scheme(), "s3" | "s3a" | "gs" | "az" | "azure" | "abfs" | "abfss");
    if sorted && !host.ends_with("--x-s3") {
        return Ok(prefix.in_order());
    }
    Ok(futures::stream::iter(prefix.sorted().await?.into_iter().map(Ok)).boxed())
}

/// Checks that keys ascend; a marker may stand where its folder does.
fn in_order(objects: Objects, shown: String) -> Objects {
    let mut last = String::new();
    objects
        .and_then(move |found| {
            let key = &found.entry.key;
            let right = found.marker || *key > last || last.is_empty();
            let answer = if right {
                Ok(())
            } else {
                let message = format!(
                    "the store lists {shown} out of order: '{key}' after '{last}'; list the objects in a file and give that"
                );
                Err(IoError::fatal(IoErrorKind::Failed, message))
            };
            if !found.marker {
                key.clone_into(&mut last);
            }
            std::future::ready(answer.map(|()| found))
        })
        .boxed()
}

/// Several sorted streams as one. Two objects with one key are an error.
pub(crate) fn merge(streams: Vec<Objects>) -> Objects {
    struct Merge {
        streams: Vec<Objects>,
        heads: BTreeMap<(String, usize), Found>,
        begun: bool,
        last: Option<(String, String)>,
    }
    impl Merge {
        async fn refill(&mut self, index: usize) -> Result<(), IoError> {
            if let Some(found) = self.streams[index].try_next().await? {
                self.heads.insert((found.entry.key.clone(), index), found);
            }
            Ok(())
        }
    }
    let start = Merge { streams, heads: BTreeMap::new(), begun: false, last: None };
    futures::stream::try_unfold(start, |mut merge| async move {
        if !merge.begun {
            merge.begun = true;
            for index in 0..merge.streams.len() {
                merge.refill(index).await?;
            }
        }
        let Some(((key, index), found)) = merge.heads.pop_first() else { return Ok(None) };
        merge.refill(index).await?;
        if !found.marker {
            if let Some((last, url)) = &merge.last
                && *last == key
            {
                let shown = crate::shown_url;
                return Err(duplicate(&key, &shown(url), &shown(&found.entry.url)));
            }
            merge.last = Some((key, found.entry.url.clone()));
        }
        Ok(Some((found, merge)))
    })
    .boxed()
}
