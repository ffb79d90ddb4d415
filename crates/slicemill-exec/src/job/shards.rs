//! How large a shard is, the unit of output files.

use serde::{Deserialize, Serialize};

/// Bytes of content that files grow to when the job does not say: large enough to be read at the speed of a store,
/// small enough to be fetched by a person.
const FILE_BYTES_DEFAULT: u64 = 128 << 20;
/// Shards that there are at least before files grow, so that many processes can share a job.
const SHARDS_BEFORE_GROWTH: u64 = 1024;
/// Most rows of a shard: as many as `output.shard_rows` takes.
const ROWS_MAX: u64 = 16_777_216;

/// How many inputs make a shard. It is decided once, when inputs are frozen, so that files do not depend on the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShardSize {
    /// So many rows; a multiple of the rows of a chunk.
    Rows(u32),
    /// As many rows as are likely to make this many bytes of content.
    Bytes(u64),
    /// `least` rows; more when there would be many more than a thousand shards, until they hold 128 MiB of content.
    Growing {
        /// A multiple of the rows of a chunk.
        least: u32,
    },
}

impl ShardSize {
    /// Whether [`chunks`](Self::chunks) depends on the bytes of a row, when there are `rows` of them.
    pub fn asks_for_bytes(self, rows: u64) -> bool {
        match self {
            Self::Rows(_) => false,
            Self::Bytes(_) => true,
            Self::Growing { least } => rows > SHARDS_BEFORE_GROWTH * u64::from(least),
        }
    }

    /// Chunks of `chunk_rows` rows that make a shard of `rows` inputs, each of which becomes `row_bytes` bytes of
    /// content.
    pub fn chunks(self, rows: u64, chunk_rows: u32, row_bytes: f64) -> u32 {
        let chunk_rows = u64::from(chunk_rows.max(1));
        let rows_for =
            |bytes: u64| (bytes as f64 / row_bytes.max(f64::MIN_POSITIVE)).min(ROWS_MAX as f64).ceil() as u64;
        let shard_rows = match self {
            Self::Rows(rows) => u64::from(rows),
            Self::Bytes(bytes) => rows_for(bytes),
            Self::Growing { least } if self.asks_for_bytes(rows) => {
                let least = u64::from(least);
                (rows / SHARDS_BEFORE_GROWTH).min(rows_for(FILE_BYTES_DEFAULT)).max(least)
            }
            Self::Growing { least } => u64::from(least),
        };
        let chunks = match self {
            // A file is to reach its size; the last chunk may take it over.
            Self::Bytes(_) => shard_rows.div_ceil(chunk_rows),
            Self::Rows(_) | Self::Growing { .. } => shard_rows / chunk_rows,
        };
        u32::try_from(chunks.max(1)).unwrap_or(u32::MAX)
    }
}

impl std::fmt::Display for ShardSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Rows(rows) => write!(f, "{rows} rows"),
            Self::Bytes(bytes) => write!(f, "{bytes} bytes"),
            Self::Growing { least } => write!(f, "{least} rows or more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_taken_as_they_are() {
        assert_eq!(ShardSize::Rows(4096).chunks(1_000_000_000, 64, 0.0), 64);
        assert!(!ShardSize::Rows(4096).asks_for_bytes(u64::MAX));
    }

    #[test]
    fn a_size_in_bytes_is_reached_and_hardly_exceeded() {
        let size = ShardSize::Bytes(100_000_000);
        for (row_bytes, chunk_rows) in [(300.0, 64), (999.5, 7), (2_000_000.0, 3), (7e9, 64), (0.01, 64)] {
            let rows = f64::from(size.chunks(1 << 40, chunk_rows, row_bytes)) * f64::from(chunk_rows);
            let reached = rows * row_bytes >= 1e8 || rows >= ROWS_MAX as f64;
            assert!(reached && rows - f64::from(chunk_rows) <= 1e8 / row_bytes, "{rows} rows of {row_bytes} bytes");
        }
        // Nothing becomes content: the shard is as large as one may be, not infinite.
        assert_eq!(size.chunks(10, 64, 0.0), 262_144);
    }

    #[test]
    fn files_grow_with_the_dataset_until_they_are_large() {
        let size = ShardSize::Growing { least: 4096 };
        let shards = |rows: u64| rows.div_ceil(u64::from(size.chunks(rows, 64, 320.0)) * 64);
        assert_eq!((shards(1), shards(4096), shards(4_194_304)), (1, 1, 1024));
        assert!((1024..1040).contains(&shards(20_000_000)), "{}", shards(20_000_000));
        let largest = u64::from(size.chunks(1 << 40, 64, 320.0)) * 64 * 320;
        assert!((FILE_BYTES_DEFAULT - 64 * 320..=FILE_BYTES_DEFAULT).contains(&largest), "{largest}");
        assert_eq!(size.chunks(1 << 40, 64, 1e9), 64, "never less than the least");
    }
}
