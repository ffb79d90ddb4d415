//! Names of objects in an output.

use crate::Dataset;

pub(crate) const JOB: &str = "_slicemill/job.json";
pub(crate) const SUCCESS: &str = "_SUCCESS";
pub(crate) const RETRIES: &str = "_slicemill/retry";

/// Where a ledger keeps its objects: a job's, or those of a retry pass inside the same output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    base: String,
    retry: Option<u32>,
}

impl Layout {
    pub(crate) fn job() -> Self {
        Self { base: "_slicemill".to_owned(), retry: None }
    }

    pub(crate) fn retry(pass: u32) -> Self {
        Self { base: format!("{RETRIES}/{pass:03}"), retry: Some(pass) }
    }

    /// The frozen inputs of a generation; `writer` tells processes apart that freeze at the same time.
    pub(crate) fn inputs(&self, generation: u32, writer: Option<&str>) -> String {
        let writer = writer.map(|writer| format!(".{writer}")).unwrap_or_default();
        format!("{}/inputs-{generation:05}{writer}.parquet", self.base)
    }

    /// The record of a generation, written after its inputs.
    pub(crate) fn generation(&self, generation: u32) -> String {
        format!("{}/inputs-{generation:05}.json", self.base)
    }

    /// Staged files of a shard's chunks.
    pub(crate) fn staged_folder(&self, shard: u32) -> String {
        format!("{}/chunks/{shard:05}", self.base)
    }

    /// All staged files.
    pub(crate) fn staged_root(&self) -> String {
        format!("{}/chunks", self.base)
    }

    /// A staged file. The digest in the name keeps two processes that work on the same chunk apart.
    pub(crate) fn staged(&self, shard: u32, chunk: u32, dataset: Dataset, sha256: &str) -> String {
        let digest = sha256.get(..16).unwrap_or(sha256);
        format!("{}/{chunk:05}.{}.{digest}.parquet", self.staged_folder(shard), dataset.name())
    }

    /// All ledger entries.
    pub(crate) fn ledger_root(&self) -> String {
        format!("{}/ledger", self.base)
    }

    /// Ledger entries of a shard.
    pub(crate) fn ledger_folder(&self, shard: u32) -> String {
        format!("{}/ledger/{shard:05}", self.base)
    }

    pub(crate) fn chunk_entry(&self, shard: u32, chunk: u32) -> String {
        format!("{}/{chunk:05}.json", self.ledger_folder(shard))
    }

    pub(crate) fn shard_entry(&self, shard: u32) -> String {
        format!("{}/shard.json", self.ledger_folder(shard))
    }

    /// A final file. What fails again in a retry pass is kept apart until the pass replaces the files of `failed/`.
    pub(crate) fn part(&self, dataset: Dataset, shard: u32) -> String {
        match self.retry {
            None => format!("{}/part-{shard:05}.parquet", dataset.name()),
            Some(_) if dataset == Dataset::Failed => format!("{}/failed/part-{shard:05}.parquet", self.base),
            Some(pass) => format!("{}/part-r{pass:03}-{shard:05}.parquet", dataset.name()),
        }
    }

    /// What `failed/` will consist of after a retry pass.
    pub(crate) fn replacement(&self, name: &str) -> String {
        format!("{}/replacement/{}", self.base, name.rsplit('/').next().unwrap_or(name))
    }

    /// The plan of the replacement.
    pub(crate) fn replacement_plan(&self) -> String {
        format!("{}/replacement.json", self.base)
    }

    /// The record that a retry pass is finished.
    pub(crate) fn done(&self) -> String {
        format!("{}/done.json", self.base)
    }

    /// Whether the name belongs to files that a finished retry pass no longer needs.
    pub(crate) fn is_leftover(&self, name: &str) -> bool {
        ["replacement/", "failed/", "chunks/"]
            .iter()
            .any(|folder| name.strip_prefix(&self.base).is_some_and(|rest| rest.starts_with(&format!("/{folder}"))))
    }

    pub(crate) fn base(&self) -> &str {
        &self.base
    }
}

/// What a name in the ledger's folder stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LedgerName {
    Chunk(u32, u32),
    Shard(u32),
}

impl LedgerName {
    /// The shard it belongs to.
    pub(crate) const fn shard(self) -> u32 {
        match self {
            Self::Chunk(shard, _) | Self::Shard(shard) => shard,
        }
    }

    /// Reads `…/<shard>/<chunk>.json` and `…/<shard>/shard.json`.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let mut parts = name.rsplit('/');
        let file = parts.next()?.strip_suffix(".json")?;
        let shard = parts.next()?.parse().ok()?;
        match file {
            "shard" => Some(Self::Shard(shard)),
            chunk => Some(Self::Chunk(shard, chunk.parse().ok()?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ledger_names_parse_back() {
        for layout in [Layout::job(), Layout::retry(2)] {
            assert_eq!(LedgerName::parse(&layout.chunk_entry(3, 123_456)), Some(LedgerName::Chunk(3, 123_456)));
            assert_eq!(LedgerName::parse(&layout.shard_entry(7)), Some(LedgerName::Shard(7)));
        }
        assert_eq!(LedgerName::parse("_slicemill/ledger/00001/notes.txt"), None);
    }

    #[test]
    fn retry_passes_keep_apart_what_fails_again() {
        let retry = Layout::retry(1);
        assert_eq!(retry.part(Dataset::Captions, 0), "captions/part-r001-00000.parquet");
        assert_eq!(retry.part(Dataset::Failed, 0), "_slicemill/retry/001/failed/part-00000.parquet");
        assert_eq!(Layout::job().part(Dataset::Failed, 0), "failed/part-00000.parquet");
        assert!(retry.is_leftover("_slicemill/retry/001/failed/part-00000.parquet"));
        assert!(!retry.is_leftover("_slicemill/retry/001/done.json"));
    }
}
