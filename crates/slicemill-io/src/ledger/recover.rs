//! Clearing away what a process left that was killed, or that lost power.

use std::path::Path;

use super::layout::LedgerName;
use super::shard::names;
use super::{ChunkEntry, Ledger, ShardEntry};
use crate::{Dataset, IoError, IoErrorKind};

impl Ledger {
    /// Removes what a killed process left: temporary files of local writes, staged files of committed shards, ledger
    /// entries cut short by a power loss. Call once at the start, under the lock.
    pub async fn recover(&self) -> Result<(), IoError> {
        if let Some(root) = self.output.local_root() {
            for folder in Dataset::ALL.iter().map(|dataset| dataset.name()).chain(["_slicemill"]) {
                remove_temporary_files(&root.join(folder), true)?;
            }
            remove_temporary_files(root, false)?;
        }
        self.recover_entries(&|_| true).await?;
        for pass in self.retries().await? {
            let ledger = self.of_retry(&pass);
            ledger.recover_entries(&|_| true).await?;
            if pass.done {
                ledger.clear_leftovers().await?;
            }
        }
        Ok(())
    }

    /// The same for one of several processes that work on this output: only what belongs to its own shards, those for
    /// which `mine` is true. Temporary files may be another's and stay.
    pub async fn recover_part(&self, mine: impl Fn(u32) -> bool + Send + Sync) -> Result<(), IoError> {
        self.recover_entries(&mine).await
    }

    async fn recover_entries(&self, mine: &(dyn Fn(u32) -> bool + Send + Sync)) -> Result<(), IoError> {
        let names = self.entry_names(&self.layout.ledger_root()).await?;
        let names: Vec<LedgerName> = names.into_iter().filter(|name| mine(name.shard())).collect();
        let mut committed = Vec::new();
        for name in &names {
            if let LedgerName::Shard(shard) = name
                && !self.drop_torn::<ShardEntry>(&self.layout.shard_entry(*shard)).await?
            {
                committed.push(*shard);
            }
        }
        for name in names {
            match name {
                LedgerName::Chunk(shard, chunk) if !committed.contains(&shard) => {
                    self.recover_chunk(shard, chunk).await?;
                }
                _ => {}
            }
        }
        self.clear_committed(&committed).await
    }

    /// Deletes a record that does not parse. Records are written whole, so only a power loss can have cut it.
    async fn drop_torn<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<bool, IoError> {
        match self.find_json::<T>(name).await {
            Ok(_) => Ok(false),
            Err(error) if error.kind == IoErrorKind::Corrupt => {
                tracing::warn!(record = name, "a ledger entry was cut short; its work is done again");
                self.output.delete(name).await?;
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    /// Deletes a chunk's entry when it is cut short or one of its staged files is.
    async fn recover_chunk(&self, shard: u32, chunk: u32) -> Result<(), IoError> {
        let name = self.layout.chunk_entry(shard, chunk);
        if self.drop_torn::<ChunkEntry>(&name).await? {
            return Ok(());
        }
        // Another process may have finished the shard meanwhile.
        let Some(entry) = self.find_json::<ChunkEntry>(&name).await? else { return Ok(()) };
        for file in entry.files.values() {
            let there = self.output.head(&file.name).await?.map(|meta| meta.size);
            if there != Some(file.bytes) {
                tracing::warn!(file = file.name, "a staged file is missing or cut short; its chunk is done again");
                return self.output.delete(&name).await;
            }
        }
        Ok(())
    }

    /// Clears the staged files and chunk entries of shards that stand.
    async fn clear_committed(&self, committed: &[u32]) -> Result<(), IoError> {
        let mut left: Vec<u32> = Vec::new();
        for object in self.output.list(&self.layout.staged_root()).await? {
            let folder = object.location.as_ref().rsplit('/').nth(1);
            left.extend(folder.and_then(|folder| folder.parse::<u32>().ok()));
        }
        for name in self.entry_names(&self.layout.ledger_root()).await? {
            if let LedgerName::Chunk(shard, _) = name {
                left.push(shard);
            }
        }
        left.sort_unstable();
        left.dedup();
        for shard in left.into_iter().filter(|shard| committed.contains(shard)) {
            self.clear_staged(shard).await?;
        }
        Ok(())
    }

    /// Deletes what a finished retry pass no longer needs.
    pub(super) async fn clear_leftovers(&self) -> Result<(), IoError> {
        let mut leftovers = names(self.output.list(self.layout.base()).await?);
        leftovers.retain(|name| self.layout.is_leftover(name));
        self.output.delete_all(leftovers).await
    }
}

/// Deletes what local writes leave when they are killed: `<name>#<digits>`, for our own names only. Listings of the
/// store do not show these files, but readers of the folder would.
fn remove_temporary_files(folder: &Path, recursive: bool) -> Result<(), IoError> {
    let refused = |path: &Path, error: std::io::Error| {
        let message = format!("cannot clear '{}': {error}", path.display());
        IoError::fatal(IoErrorKind::Refused, message).because(error)
    };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(refused(folder, error)),
    };
    for entry in entries {
        let entry = entry.map_err(|error| refused(folder, error))?;
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if recursive {
                remove_temporary_files(&path, true)?;
            }
        } else if entry.file_name().to_str().is_some_and(is_temporary) {
            tracing::info!(file = %path.display(), "removing what a killed process left");
            match std::fs::remove_file(&path) {
                // It was the file of a write that is under way yet, and has its name now.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                removed => removed.map_err(|error| refused(&path, error))?,
            }
        }
    }
    Ok(())
}

fn is_temporary(name: &str) -> bool {
    name.rsplit_once('#').is_some_and(|(stem, digits)| {
        !digits.is_empty()
            && digits.bytes().all(|byte| byte.is_ascii_digit())
            && (stem.ends_with(".parquet") || stem.ends_with(".json") || stem == "_SUCCESS")
    })
}
