//! Walking folders in the order of keys, with memory for the open folders only.
//!
//! Within a folder names are sorted, folders as if their name ended in `/`. Walked depth first, the paths then come
//! out in bytewise order, because `/` is what follows the name in every path below the folder.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use url::Url;

use crate::local_files::modification_tag;
use crate::{InputEntry, IoError, IoErrorKind};

/// Where a walk starts.
#[derive(Debug, Clone)]
pub(crate) enum Root {
    /// One file and its key.
    File { path: PathBuf, key: String },
    /// A folder and what its keys begin with.
    /// Files more than `depth` folders below are not looked for.
    Folder { path: PathBuf, prefix: String, depth: usize },
}

impl Root {
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::File { path, .. } | Self::Folder { path, .. } => path,
        }
    }
}

/// A name as part of a key: itself when it is UTF-8, else with `%XX` for the bytes that are not.
pub(crate) fn key_part(name: &OsStr) -> String {
    let mut key = String::new();
    for chunk in name.as_encoded_bytes().utf8_chunks() {
        key.push_str(chunk.valid());
        for byte in chunk.invalid() {
            key.push_str(&format!("%{byte:02X}"));
        }
    }
    key
}

/// All roots, merged by key.
#[derive(Debug)]
pub(crate) struct Listing {
    walks: Vec<Walk>,
    /// The next entry of each walk that has one, smallest key first.
    heads: BinaryHeap<Reverse<Head>>,
    last: Option<InputEntry>,
    failed: bool,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Head {
    key: String,
    walk: usize,
    entry: HeadEntry,
}

/// Keys decide the order; the rest of an entry does not take part in it.
#[derive(Debug)]
struct HeadEntry(InputEntry);

impl PartialEq for HeadEntry {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl Eq for HeadEntry {}
impl PartialOrd for HeadEntry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for HeadEntry {
    fn cmp(&self, _: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

impl Listing {
    /// Opens the roots. `excluded` folders are left out where the walk meets them.
    pub(crate) fn start(roots: &[Root], excluded: &[PathBuf]) -> Result<Self, IoError> {
        let excluded: Vec<PathBuf> = excluded.iter().filter_map(|folder| folder.canonicalize().ok()).collect();
        let mut files = Vec::new();
        let mut walks = Vec::new();
        for root in roots {
            match root {
                Root::File { path, key } => files.push(entry(path, key.clone())?),
                Root::Folder { path, prefix, depth } => {
                    walks.push(Walk::start(path, prefix, *depth, excluded.clone())?)
                }
            }
        }
        files.sort_by(|a, b| a.key.cmp(&b.key));
        walks.push(Walk { files: files.into_iter(), ..Walk::default() });
        let mut listing = Self { walks, heads: BinaryHeap::new(), last: None, failed: false };
        for walk in 0..listing.walks.len() {
            listing.refill(walk)?;
        }
        Ok(listing)
    }

    fn refill(&mut self, walk: usize) -> Result<(), IoError> {
        if let Some(entry) = self.walks[walk].next_entry()? {
            self.heads.push(Reverse(Head { key: entry.key.clone(), walk, entry: HeadEntry(entry) }));
        }
        Ok(())
    }

    fn next_entry(&mut self) -> Result<Option<InputEntry>, IoError> {
        let Some(Reverse(head)) = self.heads.pop() else { return Ok(None) };
        self.refill(head.walk)?;
        let entry = head.entry.0;
        if let Some(last) = &self.last
            && last.key >= entry.key
        {
            return Err(duplicate(&entry.key, &last.url, &entry.url));
        }
        self.last = Some(entry.clone());
        Ok(Some(entry))
    }
}

impl Iterator for Listing {
    type Item = Result<InputEntry, IoError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.next_entry();
        self.failed = next.is_err();
        next.transpose()
    }
}

pub(crate) fn duplicate(key: &str, first: &str, second: &str) -> IoError {
    let message = format!(
        "two inputs have the same key '{key}': {first} and {second}; \
         rename one, or give a folder above both as the one input"
    );
    IoError::fatal(IoErrorKind::Invalid, message)
}

/// One root, depth first.
#[derive(Debug, Default)]
struct Walk {
    files: std::vec::IntoIter<InputEntry>,
    open: Vec<OpenFolder>,
    excluded: Vec<PathBuf>,
    depth: usize,
}

#[derive(Debug)]
struct OpenFolder {
    path: PathBuf,
    /// Without links: what tells that a link leads back here.
    canonical: PathBuf,
    /// What the keys below begin with.
    prefix: String,
    /// Sorted.
    items: std::vec::IntoIter<Item>,
}

#[derive(Debug)]
struct Item {
    /// Key part; of folders with `/` at the end.
    key: String,
    name: OsString,
    folder: bool,
    link: bool,
}

impl Walk {
    fn start(path: &Path, prefix: &str, depth: usize, excluded: Vec<PathBuf>) -> Result<Self, IoError> {
        let canonical = path.canonicalize().map_err(|error| unlistable(path, error))?;
        let mut walk = Self { excluded, depth, ..Self::default() };
        if !walk.excluded.contains(&canonical) {
            walk.open.push(OpenFolder::open(path.to_owned(), canonical, prefix.to_owned())?);
        }
        Ok(walk)
    }

    fn next_entry(&mut self) -> Result<Option<InputEntry>, IoError> {
        if let Some(file) = self.files.next() {
            return Ok(Some(file));
        }
        loop {
            let depth = self.open.len();
            let Some(folder) = self.open.last_mut() else { return Ok(None) };
            let Some(item) = folder.items.next() else {
                self.open.pop();
                continue;
            };
            let path = folder.path.join(&item.name);
            let key = format!("{}{}", folder.prefix, item.key);
            if !item.folder {
                return entry(&path, key).map(Some);
            }
            if depth > self.depth {
                continue;
            }
            let canonical = if item.link {
                path.canonicalize().map_err(|error| unlistable(&path, error))?
            } else {
                folder.canonical.join(&item.name)
            };
            if self.open.iter().any(|open| open.canonical == canonical) {
                tracing::warn!(link = %path.display(), "left out: the link leads back to a folder it stands in");
            } else if !self.excluded.contains(&canonical) {
                self.open.push(OpenFolder::open(path, canonical, key)?);
            }
        }
    }
}

impl OpenFolder {
    fn open(path: PathBuf, canonical: PathBuf, prefix: String) -> Result<Self, IoError> {
        let mut items = Vec::new();
        for found in std::fs::read_dir(&path).map_err(|error| unlistable(&path, error))? {
            let found = found.map_err(|error| unlistable(&path, error))?;
            items.extend(Item::look(&found)?);
        }
        items.sort_by(|a, b| a.key.cmp(&b.key));
        if let Some(pair) = items.windows(2).find(|pair| pair[0].key == pair[1].key) {
            let [first, second] = [&pair[0], &pair[1]].map(|item| path.join(&item.name).display().to_string());
            return Err(duplicate(&format!("{prefix}{}", pair[0].key), &first, &second));
        }
        Ok(Self { path, canonical, prefix, items: items.into_iter() })
    }
}

impl Item {
    /// What is walked or listed of a folder's content; `None` for what is left out.
    fn look(found: &std::fs::DirEntry) -> Result<Option<Self>, IoError> {
        let path = found.path();
        let name = found.file_name();
        if name.as_encoded_bytes().starts_with(b".") {
            return Ok(None);
        }
        let kind = found.file_type().map_err(|error| unlistable(&path, error))?;
        let link = kind.is_symlink();
        // A link that leads nowhere is listed: it fails as a row, and so is accounted for.
        let target = if link { std::fs::metadata(&path).ok().map(|metadata| metadata.file_type()) } else { Some(kind) };
        let folder = target.is_some_and(|target| target.is_dir());
        if target.is_some_and(|target| !target.is_dir() && !target.is_file()) {
            tracing::warn!(path = %path.display(), "left out: neither a file nor a folder");
            return Ok(None);
        }
        let mut key = key_part(&name);
        if folder {
            key.push('/');
        }
        Ok(Some(Self { key, name, folder, link }))
    }
}

fn entry(path: &Path, key: String) -> Result<InputEntry, IoError> {
    let url = Url::from_file_path(path).map_err(|()| {
        IoError::fatal(IoErrorKind::Invalid, format!("'{}' cannot be written as a URL", path.display()))
    })?;
    // What cannot be looked at is listed without size and tag, and fails as a row when it is read.
    let (bytes, tag) = match std::fs::metadata(path) {
        Ok(metadata) => (metadata.len(), modification_tag(&metadata)),
        Err(_) => (0, String::new()),
    };
    Ok(InputEntry::object(key, url, bytes, tag))
}

fn unlistable(path: &Path, error: std::io::Error) -> IoError {
    let message = format!("cannot list '{}': {error}; make it readable, or leave it out of the input", path.display());
    IoError::fatal(IoErrorKind::Refused, message).because(error)
}
