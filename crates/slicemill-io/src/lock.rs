//! One process per local output.

use std::fs::{File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};

use crate::{IoError, IoErrorKind, OutputStore};

/// The lock file below the output root.
const LOCK: &str = "_slicemill/lock";

/// The right of this process to write to a local output, given back when dropped or when the process ends, however
/// it ends: the operating system holds the lock (`flock`, `LockFileEx`), so nothing is stale after a kill or a power
/// loss. The file `_slicemill/lock` stays; it says who has, or had, the output.
///
/// Other stores have no lock. There a second process is harmless: staged files carry their digest in the name and
/// ledger entries are put only if absent, so the first entry stands and the second is refused.
#[derive(Debug)]
pub struct OutputLock {
    _file: Option<File>,
}

impl OutputLock {
    pub(crate) fn take(output: &OutputStore) -> Result<Self, IoError> {
        let Some(root) = output.local_root() else { return Ok(Self { _file: None }) };
        let path = root.join(LOCK);
        let refused = |error: std::io::Error| {
            let message = format!("cannot lock the output with {}: {error}", path.display());
            IoError::fatal(IoErrorKind::Refused, message).because(error)
        };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(refused)?;
        }
        let mut file =
            File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(refused)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(locked(output, &mut file)),
            Err(TryLockError::Error(error)) if error.kind() == std::io::ErrorKind::Unsupported => {
                tracing::warn!(path = %path.display(), "this file system has no locks; do not start a second process");
                return Ok(Self { _file: None });
            }
            Err(TryLockError::Error(error)) => return Err(refused(error)),
        }
        let owner = format!("process {} on {}\n", std::process::id(), host());
        let written = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(owner.as_bytes()));
        written.map_err(refused)?;
        Ok(Self { _file: Some(file) })
    }
}

fn locked(output: &OutputStore, file: &mut File) -> IoError {
    let mut owner = String::new();
    let known = file.read_to_string(&mut owner).is_ok() && !owner.trim().is_empty();
    let owner = if known { owner.trim() } else { "another process" };
    let message = format!("{owner} is writing to {}; wait for it, or give another output", output.url());
    IoError::fatal(IoErrorKind::Locked, message)
}

fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "this host".to_owned() } else { name.trim().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Location;

    #[test]
    fn a_second_holder_is_refused_and_told_who_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        let output = OutputStore::create(&Location::parse(folder.path()).unwrap()).unwrap();
        let first = output.lock().unwrap();
        let error = output.lock().unwrap_err();
        assert_eq!(error.kind, IoErrorKind::Locked);
        assert!(error.message.contains(&format!("process {}", std::process::id())), "{}", error.message);
        drop(first);
        output.lock().unwrap();
    }

    #[test]
    fn a_lock_file_left_by_a_dead_process_does_not_lock() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("_slicemill")).unwrap();
        std::fs::write(folder.path().join(LOCK), "process 1 on elsewhere\n").unwrap();
        let output = OutputStore::create(&Location::parse(folder.path()).unwrap()).unwrap();
        let _lock = output.lock().unwrap();
        let owner = std::fs::read_to_string(folder.path().join(LOCK)).unwrap();
        assert!(owner.starts_with(&format!("process {} on ", std::process::id())), "{owner}");
    }
}
