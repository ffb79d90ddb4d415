//! Wall clock by stage and device, from `timings/`.

use std::collections::BTreeMap;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::UInt32Type;
use futures::TryStreamExt;
use serde::{Deserialize, Serialize};
use slicemill_io::{Dataset, DatasetReader, OutputStore, timing_rows};

use crate::ExecError;

/// Wall clock of all images with content.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Timings {
    /// Images.
    pub images: u64,
    /// Reading bytes, seconds, summed over images that were read at the same time.
    pub fetch_s: f64,
    /// Decode to normalised slices, seconds, summed over threads.
    pub prepare_s: f64,
    /// Encode batches.
    pub batches: u64,
    /// Views (slices and overviews) encoded.
    pub views: u64,
    /// Mean fill of encode batches: patches over the limit, 0 to 1.
    pub batch_fill: f64,
    /// By device.
    pub devices: BTreeMap<String, DeviceTimes>,
}

/// Wall clock of one device.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct DeviceTimes {
    /// Images.
    pub images: u64,
    /// Encode batches.
    pub batches: u64,
    /// Vision tower and projector, seconds.
    pub encode_s: f64,
    /// Language model over prompts, seconds.
    pub prefill_s: f64,
    /// From prefill to the last token, seconds, summed over sequences that ran at the same time.
    pub decode_s: f64,
}

/// Reads `timings/`.
pub(super) async fn read(output: &OutputStore) -> Result<Timings, ExecError> {
    let mut timings = Timings::default();
    let mut fill = 0.0;
    let mut last_batch = None;
    let mut batches = DatasetReader::new(output.clone(), Dataset::Timings).stream();
    while let Some(batch) = batches.try_next().await? {
        let (shards, chunks) = (numbers(&batch, "shard"), numbers(&batch, "chunk"));
        // Rows of one encode batch need not stand together: they are in input order within their chunk.
        for (at, row) in timing_rows(&batch)?.into_iter().enumerate() {
            let device = timings.devices.entry(row.device.clone()).or_default();
            timings.images += 1;
            timings.fetch_s += seconds(row.fetch_ms);
            timings.prepare_s += seconds(row.prepare_ms);
            device.images += 1;
            device.prefill_s += seconds(row.prefill_ms);
            device.decode_s += seconds(row.decode_ms);
            let chunk = (shards.get(at).copied(), chunks.get(at).copied());
            let (of_chunk, seen) = last_batch.get_or_insert_with(|| (chunk, std::collections::BTreeSet::new()));
            if *of_chunk != chunk {
                *of_chunk = chunk;
                seen.clear();
            }
            if seen.insert(row.batch_id) {
                timings.batches += 1;
                timings.views += u64::from(row.batch_views);
                fill += f64::from(row.batch_fill);
                device.batches += 1;
                device.encode_s += seconds(row.encode_ms);
            }
        }
    }
    timings.batch_fill = fill / timings.batches.max(1) as f64;
    Ok(timings)
}

fn seconds(milliseconds: f32) -> f64 {
    f64::from(milliseconds) / 1000.0
}

fn numbers(batch: &RecordBatch, column: &str) -> Vec<u32> {
    let values = batch.column_by_name(column).and_then(|column| column.as_primitive_opt::<UInt32Type>());
    values.map(|values| values.values().to_vec()).unwrap_or_default()
}
