//! What the ledger records.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use slicemill_core::{Flops, RowOutcome};

use crate::Dataset;

/// Sums of compute. 128 bits: a hundred million rows of 10¹³ operations do not fit 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FlopSums {
    /// Vision tower.
    pub vision: u128,
    /// Projector.
    pub projector: u128,
    /// Language model over prompts.
    pub prefill: u128,
    /// Language model over outputs.
    pub decode: u128,
}

impl FlopSums {
    /// Adds one row.
    pub fn add_row(&mut self, row: &Flops) {
        self.vision += u128::from(row.vision);
        self.projector += u128::from(row.projector);
        self.prefill += u128::from(row.prefill);
        self.decode += u128::from(row.decode);
    }

    /// Adds other sums.
    pub fn add(&mut self, other: &Self) {
        self.vision += other.vision;
        self.projector += other.projector;
        self.prefill += other.prefill;
        self.decode += other.decode;
    }
}

/// What became of input rows, and the sums of the content columns.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Input rows.
    pub inputs: u64,
    /// Input rows with content.
    pub ok: u64,
    /// Input rows in `failed/`.
    pub failed: u64,
    /// Input rows in `skipped/`.
    pub skipped: u64,
    /// Content rows: one per input, or one per input and question.
    pub content_rows: u64,
    /// Sum of column `slices`.
    pub slices: u64,
    /// Sum of column `visual_tokens`.
    pub visual_tokens: u64,
    /// Sum of column `prompt_tokens`.
    pub prompt_tokens: u64,
    /// Content rows whose prompt was cut (column `prompt_cut` above 0).
    #[serde(default)]
    pub prompts_cut: u64,
    /// Sum of column `output_tokens`.
    pub output_tokens: u64,
    /// Content rows that end in a loop (column `looped_tokens` above 0).
    #[serde(default)]
    pub looped: u64,
    /// Sums of the FLOPs columns.
    pub flops: FlopSums,
    /// Failed rows by class.
    pub failed_by_class: BTreeMap<String, u64>,
}

impl Counts {
    /// Whether every input row is accounted for: inputs = ok + failed + skipped.
    pub const fn conserved(&self) -> bool {
        self.inputs == self.ok + self.failed + self.skipped
    }

    /// Adds one outcome.
    pub fn add_outcome(&mut self, outcome: &RowOutcome) {
        self.inputs += 1;
        match outcome {
            RowOutcome::Ok { rows, .. } => {
                self.ok += 1;
                for row in rows {
                    self.content_rows += 1;
                    self.slices += u64::from(row.slices);
                    self.visual_tokens += u64::from(row.visual_tokens);
                    self.prompt_tokens += u64::from(row.prompt_tokens);
                    self.prompts_cut += u64::from(row.prompt_cut > 0);
                    self.output_tokens += u64::from(row.output_tokens);
                    self.looped += u64::from(row.looped_tokens > 0);
                    self.flops.add_row(&row.flops);
                }
            }
            RowOutcome::Failed(row) => {
                self.failed += 1;
                *self.failed_by_class.entry(row.error.class.as_str().to_owned()).or_default() += 1;
            }
            RowOutcome::Skipped(_) => self.skipped += 1,
        }
    }

    /// Adds other counts.
    pub fn add(&mut self, other: &Self) {
        self.inputs += other.inputs;
        self.ok += other.ok;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.content_rows += other.content_rows;
        self.slices += other.slices;
        self.visual_tokens += other.visual_tokens;
        self.prompt_tokens += other.prompt_tokens;
        self.prompts_cut += other.prompts_cut;
        self.output_tokens += other.output_tokens;
        self.looped += other.looped;
        self.flops.add(&other.flops);
        for (class, count) in &other.failed_by_class {
            *self.failed_by_class.entry(class.clone()).or_default() += count;
        }
    }
}

/// A file of the output as the ledger knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Name below the output root.
    pub name: String,
    /// Rows.
    pub rows: u64,
    /// Size.
    pub bytes: u64,
    /// SHA-256, hex.
    pub sha256: String,
}

/// A committed chunk: its counts and its staged files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkEntry {
    /// Shard.
    pub shard: u32,
    /// Number in the shard, from 0.
    pub chunk: u32,
    /// Counts and sums.
    pub counts: Counts,
    /// Staged files by dataset name; datasets without rows have none.
    pub files: BTreeMap<String, FileRecord>,
}

impl ChunkEntry {
    /// Whether both say the same of the same content. Timings differ from run to run and do not count.
    pub(super) fn same_content(&self, other: &Self) -> bool {
        let content = |entry: &Self| {
            let files = entry.files.clone().into_iter();
            files.filter(|(dataset, _)| dataset != Dataset::Timings.name()).collect::<BTreeMap<_, _>>()
        };
        (self.shard, self.chunk) == (other.shard, other.chunk)
            && self.counts == other.counts
            && content(self) == content(other)
    }
}

/// A committed shard: its counts, its final files and the counts of its chunks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardEntry {
    /// Shard.
    pub shard: u32,
    /// Counts and sums.
    pub counts: Counts,
    /// Final files by dataset name; datasets without rows have none.
    pub files: BTreeMap<String, FileRecord>,
    /// Counts of its chunks, in order.
    pub chunks: Vec<Counts>,
}

/// A set of inputs frozen together, and how it is divided. Generation 0 is the first run, `--extend` adds more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// From 0.
    pub number: u32,
    /// Inputs.
    pub rows: u64,
    /// Digest of the inputs, hex.
    pub digest: String,
    /// Inputs per chunk (the unit of resume); the last chunk may have fewer.
    pub chunk_rows: u32,
    /// Chunks per shard (the unit of output files); the last shard may have fewer.
    pub shard_chunks: u32,
    /// Number of its first shard.
    pub shard_first: u32,
    /// The file of its inputs when it is not the usual one, because several processes froze at the same time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
}

impl Generation {
    /// Its shard numbers.
    pub fn shards(&self) -> Range<u32> {
        let rows_per_shard = u64::from(self.chunk_rows.max(1)) * u64::from(self.shard_chunks.max(1));
        let shards = u32::try_from(self.rows.div_ceil(rows_per_shard)).unwrap_or(u32::MAX);
        self.shard_first..self.shard_first.saturating_add(shards)
    }

    /// Chunks of one of its shards; 0 for a shard that is not its.
    pub fn chunks(&self, shard: u32) -> u32 {
        let rows = self.shard_rows(shard);
        u32::try_from((rows.end - rows.start).div_ceil(u64::from(self.chunk_rows.max(1)))).unwrap_or(u32::MAX)
    }

    /// Rows of a shard in the generation's inputs; empty for a shard that is not its.
    pub fn shard_rows(&self, shard: u32) -> Range<u64> {
        if !self.shards().contains(&shard) {
            return 0..0;
        }
        let rows_per_shard = u64::from(self.chunk_rows.max(1)) * u64::from(self.shard_chunks.max(1));
        let start = u64::from(shard - self.shard_first) * rows_per_shard;
        start..(start + rows_per_shard).min(self.rows)
    }

    /// Rows of a chunk in the generation's inputs.
    pub fn chunk_range(&self, shard: u32, chunk: u32) -> Range<u64> {
        let shard_rows = self.shard_rows(shard);
        let chunk_rows = u64::from(self.chunk_rows.max(1));
        let start = (shard_rows.start + u64::from(chunk) * chunk_rows).min(shard_rows.end);
        start..(start + chunk_rows).min(shard_rows.end)
    }
}

/// A retry pass: failed rows run again, as a small job of its own inside the output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryPass {
    /// From 1.
    pub number: u32,
    /// Its inputs and how they are divided (`shard_first` is 0).
    pub generation: Generation,
    /// Whether it is finished: all its rows run and `failed/` replaced.
    pub done: bool,
}

/// The contents of `_SUCCESS`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Success {
    /// Generations of inputs.
    pub generations: u32,
    /// Retry passes.
    pub retries: u32,
    /// Shards.
    pub shards: u32,
    /// Counts and sums over everything, retries included.
    pub counts: Counts,
}

/// What is committed so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LedgerState {
    /// Committed shards.
    pub shards: BTreeMap<u32, ShardEntry>,
    /// Committed chunks of shards that are not committed, by shard and chunk.
    pub chunks: BTreeMap<(u32, u32), ChunkEntry>,
}
