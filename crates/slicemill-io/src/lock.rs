//! One process per output, or one per part of it.
//!
//! | output | whole output | part `p` of a job that several processes share |
//! |---|---|---|
//! | local | `_slicemill/lock`, exclusive | `_slicemill/lock`, shared, and `_slicemill/lock-p`, exclusive |
//! | object store | `_slicemill/lease.json` | `_slicemill/lease-p.json` |
//!
//! The whole output excludes the parts and the other way round. Locally the operating system sees to that. In an
//! object store each first takes its own lease and then looks for the other kind: of two that begin together at least
//! one sees the other, and both may give way.

use std::fs::{File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;

use crate::stores::lease::{Lease, refuse_if_held};
use crate::{IoError, IoErrorKind, OutputStore};

/// The lock file below a local output's root.
const LOCK: &str = "_slicemill/lock";
/// What the leases' names begin with.
const LEASE: &str = "_slicemill/lease";

/// The right of this process to write to an output, or to one part of it.
///
/// On a local output it is given back when dropped or when the process ends, however it ends: the operating system
/// holds the lock (`flock`, `LockFileEx`), so nothing is stale after a kill or a power loss. The file
/// `_slicemill/lock` stays; it says who has, or had, the output.
///
/// In an object store it is a lease that is renewed while this value lives. Give it back with
/// [`release`](Self::release); otherwise the next process waits half a minute, unless it runs on the same machine and
/// sees that this one is gone. A process whose lease was taken over gets `Locked` from its next write.
#[derive(Debug)]
pub struct OutputLock {
    _files: Vec<File>,
    lease: Option<Lease>,
}

/// A lock of the operating system.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hold {
    Exclusive,
    Shared,
}

impl OutputLock {
    /// Takes the whole output. `Locked` when another process has it or a part of it.
    pub async fn take(output: &OutputStore) -> Result<Self, IoError> {
        if let Some(root) = output.local_root() {
            return Ok(Self {
                _files: lock_file(output, root, LOCK, Hold::Exclusive)?.into_iter().collect(),
                lease: None,
            });
        }
        if output.is_private() {
            return Ok(Self { _files: Vec::new(), lease: None });
        }
        let name = format!("{LEASE}.json");
        let lease = Lease::take(output, &name).await?;
        let parts = part_leases(output).await?;
        for part in parts {
            if let Err(error) = refuse_if_held(output, &part).await {
                lease.release().await?;
                return Err(error);
            }
        }
        Ok(Self { _files: Vec::new(), lease: Some(lease) })
    }

    /// Takes the part `part` (say `3-of-8`), which other processes' parts do not touch. `Locked` when another process
    /// has this part or the whole output; `Invalid` when the name has other characters than letters, digits and `-`.
    pub async fn take_part(output: &OutputStore, part: &str) -> Result<Self, IoError> {
        if part.is_empty() || !part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            return Err(IoError::fatal(IoErrorKind::Invalid, format!("'{part}' cannot be the name of a part")));
        }
        if let Some(root) = output.local_root() {
            let shared = lock_file(output, root, LOCK, Hold::Shared)?;
            let own = lock_file(output, root, &format!("{LOCK}-{part}"), Hold::Exclusive)?;
            return Ok(Self { _files: shared.into_iter().chain(own).collect(), lease: None });
        }
        if output.is_private() {
            return Ok(Self { _files: Vec::new(), lease: None });
        }
        let lease = Lease::take(output, &format!("{LEASE}-{part}.json")).await?;
        if let Err(error) = refuse_if_held(output, &format!("{LEASE}.json")).await {
            lease.release().await?;
            return Err(error);
        }
        Ok(Self { _files: Vec::new(), lease: Some(lease) })
    }

    /// Gives the output back.
    pub async fn release(self) -> Result<(), IoError> {
        match self.lease {
            Some(lease) => lease.release().await,
            None => Ok(()),
        }
    }
}

async fn part_leases(output: &OutputStore) -> Result<Vec<String>, IoError> {
    let objects = output.list_direct("_slicemill").await?;
    let names = objects.into_iter().map(|object| object.location.to_string());
    Ok(names.filter(|name| name.starts_with(&format!("{LEASE}-"))).collect())
}

/// `None` where the file system has no locks.
fn lock_file(output: &OutputStore, root: &Path, name: &str, hold: Hold) -> Result<Option<File>, IoError> {
    let path = root.join(name);
    let refused = |error: std::io::Error| {
        let full = matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded);
        let (kind, remedy) = match full {
            true => (IoErrorKind::StorageFull, ". Free space, then run the same command again"),
            false => (IoErrorKind::Refused, ""),
        };
        let message = format!("cannot lock the output with {}: {error}{remedy}", path.display());
        IoError::fatal(kind, message).because(error)
    };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(refused)?;
    }
    let mut file = File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(refused)?;
    let locked = match hold {
        Hold::Exclusive => file.try_lock(),
        Hold::Shared => file.try_lock_shared(),
    };
    match locked {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(held(output, &mut file)),
        Err(TryLockError::Error(error)) if error.kind() == std::io::ErrorKind::Unsupported => {
            tracing::warn!(path = %path.display(), "this file system has no locks; do not start a second process");
            return Ok(None);
        }
        Err(TryLockError::Error(error)) => return Err(refused(error)),
    }
    let owner = match hold {
        Hold::Exclusive => format!("process {} on {}\n", std::process::id(), crate::stores::host()),
        Hold::Shared => "a process that works on a part of the job\n".to_owned(),
    };
    let written = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(owner.as_bytes()));
    written.map_err(refused)?;
    Ok(Some(file))
}

fn held(output: &OutputStore, file: &mut File) -> IoError {
    let mut owner = String::new();
    let known = file.read_to_string(&mut owner).is_ok() && !owner.trim().is_empty();
    let owner = if known { owner.trim() } else { "another process" };
    let message = format!("{owner} is writing to {}; wait for it, or give another output", output.url());
    IoError::fatal(IoErrorKind::Locked, message)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;

    use super::*;
    use crate::{Location, Stores};

    fn local(folder: &Path) -> OutputStore {
        OutputStore::create(&Location::parse(folder).unwrap(), &Stores::default()).unwrap()
    }

    #[tokio::test]
    async fn a_second_holder_is_refused_and_told_who_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        let output = local(folder.path());
        let first = output.lock().await.unwrap();
        let error = output.lock().await.unwrap_err();
        assert_eq!(error.kind, IoErrorKind::Locked);
        assert!(error.message.contains(&format!("process {}", std::process::id())), "{}", error.message);
        drop(first);
        output.lock().await.unwrap();
    }

    #[tokio::test]
    async fn a_lock_file_left_by_a_dead_process_does_not_lock() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("_slicemill")).unwrap();
        std::fs::write(folder.path().join(LOCK), "process 1 on elsewhere\n").unwrap();
        let _lock = local(folder.path()).lock().await.unwrap();
        let owner = std::fs::read_to_string(folder.path().join(LOCK)).unwrap();
        assert!(owner.starts_with(&format!("process {} on ", std::process::id())), "{owner}");
    }

    async fn check_parts(output: &OutputStore) {
        let one = OutputLock::take_part(output, "1-of-2").await.unwrap();
        let two = OutputLock::take_part(output, "2-of-2").await.unwrap();
        assert_eq!(OutputLock::take_part(output, "1-of-2").await.unwrap_err().kind, IoErrorKind::Locked);
        assert_eq!(output.lock().await.unwrap_err().kind, IoErrorKind::Locked);
        one.release().await.unwrap();
        two.release().await.unwrap();
        let whole = output.lock().await.unwrap();
        assert_eq!(OutputLock::take_part(output, "1-of-2").await.unwrap_err().kind, IoErrorKind::Locked);
        whole.release().await.unwrap();
        OutputLock::take_part(output, "1-of-2").await.unwrap().release().await.unwrap();
        assert_eq!(OutputLock::take_part(output, "a/b").await.unwrap_err().kind, IoErrorKind::Invalid);
    }

    #[tokio::test]
    async fn parts_and_the_whole_exclude_each_other_in_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        check_parts(&local(folder.path())).await;
    }

    #[tokio::test]
    async fn parts_and_the_whole_exclude_each_other_in_a_store() {
        let output = OutputStore::with_store(Arc::new(InMemory::new()), "memory:").leased();
        check_parts(&output.with_lease_period(std::time::Duration::from_millis(30))).await;
    }
}
