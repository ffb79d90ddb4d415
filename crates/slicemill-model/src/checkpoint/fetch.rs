//! Fetches a repository into the hub's cache, in the layout that all clients of the hub share: `blobs/<etag>` hold the
//! contents, `snapshots/<commit>/<name>` point to them, `refs/<revision>` holds a commit.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::files::{self, Choice, Need, PROJECTOR_FILE};
use super::fingerprint::{hex, whole};
use super::hub::{Client, Failure, Head, HubOptions, OnProgress};

/// Bytes between two calls of the progress function.
const STEP: u64 = 1 << 20;
/// Longest wait between tries, as a power of two of the first.
const DOUBLINGS_MAX: u32 = 5;

/// One revision of one repository, on its way.
pub(super) struct Fetch<'a> {
    pub(super) options: &'a HubOptions,
    pub(super) client: Client,
    /// `org/name`.
    pub(super) repo: &'a str,
    /// Its folder in the cache.
    pub(super) folder: PathBuf,
    pub(super) progress: OnProgress<'a>,
}

/// What went wrong, and with which file.
pub(super) struct Stopped {
    pub(super) file: Option<String>,
    pub(super) failure: Failure,
}

impl From<Failure> for Stopped {
    fn from(failure: Failure) -> Self {
        Self { file: None, failure }
    }
}

impl Fetch<'_> {
    /// Fetches what is needed of a revision and is not there yet. Gives the commit and the snapshot.
    pub(super) fn revision(&self, revision: &str, need: Need) -> Result<(String, PathBuf), Stopped> {
        let (commit, names) = self.tried(None, |_| self.client.info(self.repo, revision))?;
        let snapshot = self.folder.join("snapshots").join(&commit);
        make_dir(&snapshot)?;
        if revision != commit {
            self.keep_ref(revision, &commit)?;
        }
        let choice = files::choose(&names).ok_or_else(|| Failure::Answer(files::no_weights(&names)))?;
        for name in files::small(&names, need) {
            self.file(&commit, &snapshot, &name)?;
        }
        for name in self.weights(&commit, &snapshot, &names, choice, need)? {
            self.file(&commit, &snapshot, &name)?;
        }
        Ok((commit, snapshot))
    }

    /// The names of the weight files; fetches the index.
    fn weights(
        &self,
        commit: &str,
        snapshot: &Path,
        names: &BTreeSet<String>,
        choice: Choice,
        need: Need,
    ) -> Result<Vec<String>, Stopped> {
        let mut has_projector = need == Need::Tower;
        let mut wanted = match choice {
            Choice::Single(name) => vec![name],
            Choice::Numbered(found, _) => found,
            Choice::Indexed(name) => {
                self.file(commit, snapshot, &name)?;
                let placed = files::read_index(&snapshot.join(name)).map_err(|e| Failure::Answer(e.to_string()))?;
                has_projector |= files::has_projector(placed.keys());
                placed.into_values().collect::<BTreeSet<_>>().into_iter().collect()
            }
        };
        if !has_projector && names.contains(PROJECTOR_FILE) {
            wanted.push(PROJECTOR_FILE.to_owned());
        }
        Ok(wanted)
    }

    fn keep_ref(&self, revision: &str, commit: &str) -> Result<(), Failure> {
        let path = self.folder.join("refs").join(revision);
        let dir = path.parent().unwrap_or(&self.folder);
        make_dir(dir)?;
        let _lock = self.lock("refs")?;
        let temporary = dir.join(format!(".{commit}.{}", std::process::id()));
        let written = std::fs::write(&temporary, commit).and_then(|()| std::fs::rename(&temporary, &path));
        written.map_err(|e| Failure::Disk(path, e))
    }

    /// Fetches one file, unless it is there.
    fn file(&self, commit: &str, snapshot: &Path, name: &str) -> Result<(), Stopped> {
        let stopped = |failure| Stopped { file: Some(name.to_owned()), failure };
        let pointer = snapshot.join(name);
        if pointer.is_file() {
            return Ok(());
        }
        let head = self.tried(Some(name), |_| self.client.head(self.repo, commit, name))?;
        let blob = self.folder.join("blobs").join(&head.etag);
        make_dir(&self.folder.join("blobs")).map_err(stopped)?;
        let _lock = self.lock(&head.etag).map_err(stopped)?;
        if pointer.is_file() {
            return Ok(()); // By the process that had the lock.
        }
        let is_there = std::fs::metadata(&blob).is_ok_and(|m| head.size.is_none_or(|size| m.len() == size));
        if !is_there {
            self.blob(commit, name, &head, &blob)?;
        }
        point(&pointer, &blob, &head.etag).map_err(|e| stopped(Failure::Disk(pointer.clone(), e)))
    }

    /// Keeps other processes from the same blob until it is dropped. A file system without locks does without: what
    /// arrives is checked in any case.
    fn lock(&self, etag: &str) -> Result<Option<File>, Failure> {
        let name = self.folder.file_name().unwrap_or_default();
        let dir = self.options.cache.join(".locks").join(name);
        make_dir(&dir)?;
        let path = dir.join(format!("{etag}.lock"));
        let open = File::options().create(true).truncate(false).write(true).open(&path);
        let file = open.map_err(|e| Failure::Disk(path, e))?;
        if matches!(file.try_lock(), Err(std::fs::TryLockError::WouldBlock)) {
            tracing::info!(repo = self.repo, "another process fetches the same file; waiting for it");
        }
        Ok(file.lock().is_ok().then_some(file))
    }

    /// Fetches the contents of a file, going on where an earlier try ended.
    fn blob(&self, commit: &str, name: &str, head: &Head, blob: &Path) -> Result<(), Stopped> {
        let partial = blob.with_file_name(format!("{}.incomplete", head.etag));
        self.tried(Some(name), |furthest| {
            let size = self.stream(commit, name, head.size, &partial, furthest)?;
            verify(&partial, head, size)?;
            std::fs::rename(&partial, blob).map_err(|e| Failure::Disk(blob.to_owned(), e))
        })
    }

    /// Appends to a partial file until it is complete; gives its size.
    fn stream(
        &self,
        commit: &str,
        name: &str,
        size: Option<u64>,
        partial: &Path,
        furthest: &mut u64,
    ) -> Result<u64, Failure> {
        let disk = |e| Failure::Disk(partial.to_owned(), e);
        let mut out = File::options().create(true).append(true).open(partial).map_err(disk)?;
        let mut done = out.metadata().map_err(disk)?.len();
        if size.is_none_or(|size| done > size) {
            out.set_len(0).map_err(disk)?;
            done = 0;
        }
        if size == Some(done) {
            return Ok(done);
        }
        let mut piece = self.client.get(self.repo, commit, name, done)?;
        if piece.start != done {
            out.set_len(piece.start).map_err(disk)?;
            done = piece.start;
        }
        let Some(size) = size.or(piece.size) else {
            return Err(Failure::Answer(format!("{name} comes without its size")));
        };
        let mut buffer = vec![0; 1 << 16];
        let mut told = done;
        (self.progress)(name, done, size);
        while done < size {
            let most = buffer.len().min(usize::try_from(size - done).unwrap_or(usize::MAX));
            let n = piece.body.read(&mut buffer[..most]).map_err(|e| cut(name, done, size, &e.to_string()))?;
            if n == 0 {
                return Err(cut(name, done, size, "the connection ended"));
            }
            out.write_all(&buffer[..n]).map_err(disk)?;
            done += n as u64;
            *furthest = done.max(*furthest);
            if done - told >= STEP || done == size {
                (self.progress)(name, done, size);
                told = done;
            }
        }
        out.sync_data().map_err(disk)?;
        Ok(size)
    }

    /// Tries again while that may help. A try that gets further than all before it counts as the first.
    fn tried<T>(
        &self,
        file: Option<&str>,
        mut attempt: impl FnMut(&mut u64) -> Result<T, Failure>,
    ) -> Result<T, Stopped> {
        let (mut tries, mut furthest) = (0, 0);
        loop {
            let before = furthest;
            let failure = match attempt(&mut furthest) {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            tries = if furthest > before { 1 } else { tries + 1 };
            if !failure.is_transient() || tries >= self.options.tries.max(1) {
                return Err(Stopped { file: file.map(str::to_owned), failure });
            }
            tracing::warn!(repo = self.repo, file, ?failure, "trying again");
            std::thread::sleep(self.options.wait * 2u32.pow((tries - 1).min(DOUBLINGS_MAX)));
        }
    }
}

fn cut(name: &str, done: u64, size: u64, why: &str) -> Failure {
    Failure::Network(format!("{name} was cut off after {done} of {size} bytes: {why}"))
}

fn make_dir(path: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(path).map_err(|e| Failure::Disk(path.to_owned(), e))
}

/// Compares a file with the SHA-256 that the hub names large files by. One that differs is removed.
fn verify(partial: &Path, head: &Head, size: u64) -> Result<(), Failure> {
    let disk = |e| Failure::Disk(partial.to_owned(), e);
    let mut file = File::open(partial).map_err(disk)?;
    let is_sha256 = head.etag.len() == 64 && head.etag.bytes().all(|b| b.is_ascii_hexdigit());
    let same = file.metadata().map_err(disk)?.len() == size
        && (!is_sha256 || hex(&whole(&mut file).map_err(disk)?).eq_ignore_ascii_case(&head.etag));
    if same {
        return Ok(());
    }
    std::fs::remove_file(partial).map_err(disk)?;
    Err(Failure::Answer("what arrived is not what the hub announced (length or SHA-256 differ)".to_owned()))
}

/// Makes a snapshot's name point to a blob: by a relative link, or by moving the blob where there are no links.
fn point(pointer: &Path, blob: &Path, etag: &str) -> io::Result<()> {
    let target = Path::new("../../blobs").join(etag);
    if pointer.symlink_metadata().is_ok() {
        std::fs::remove_file(pointer)?;
    }
    match link(&target, pointer) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::StorageFull => Err(e),
        Err(_) => std::fs::rename(blob, pointer),
    }
}

#[cfg(unix)]
fn link(target: &Path, pointer: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, pointer)
}

#[cfg(not(unix))]
fn link(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
