//! Slice-count buckets and when they close. Pure: no clock, so the same rows always make the same batches.
//!
//! ```text
//!   image ─▶ bucket of its slice count ─▶ full in views or patches ──▶ batch of one slice count
//!                    │                 └▶ too many bytes are held ───▶ the bucket that holds most closes
//!                    └────────────────── end of the chunk ───────────▶ leftovers share batches
//! ```

use std::collections::BTreeMap;

use crate::SlicePlan;

/// Images with the same key have the same visual length, so their prefill needs no padding.
pub type BucketKey = u32;

/// When a batch is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// Views (slices and overviews) in one encode batch.
    pub views_max: u32,
    /// Patches in one encode batch.
    pub patches_max: u64,
    /// Bytes of prepared views held in all open buckets together; the fullest bucket closes when they are exceeded.
    pub held_bytes_max: u64,
}

/// An image that waits for a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchItem {
    /// Position of the image in its chunk; comes back in [`Batch::indices`].
    pub index: usize,
    /// Slices without the overview: the bucket's key.
    pub slices: u32,
    /// Views, the overview included.
    pub views: u32,
    /// Patches of all views.
    pub patches: u64,
    /// Bytes that its prepared views hold.
    pub bytes: u64,
}

impl BatchItem {
    /// The image at `index` with this plan, whose prepared views hold `bytes`.
    pub const fn new(index: usize, plan: &SlicePlan, bytes: u64) -> Self {
        Self { index, slices: plan.slices(), views: plan.view_count(), patches: plan.patches(), bytes }
    }
}

/// Images that are encoded together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The slice count that all of them have; `None` in a batch of leftovers of several.
    pub key: Option<BucketKey>,
    /// Their indices, in the order they came; leftovers bucket by bucket.
    pub indices: Vec<usize>,
    /// Views in the batch.
    pub views: u64,
    /// Patches in the batch.
    pub patches: u64,
    /// Bytes its prepared views hold.
    pub bytes: u64,
}

impl Batch {
    fn of(item: &BatchItem) -> Self {
        Self {
            key: Some(item.slices),
            indices: vec![item.index],
            views: u64::from(item.views),
            patches: item.patches,
            bytes: item.bytes,
        }
    }

    fn add(&mut self, item: &BatchItem) {
        if self.key != Some(item.slices) {
            self.key = None;
        }
        self.indices.push(item.index);
        self.views = self.views.saturating_add(u64::from(item.views));
        self.patches = self.patches.saturating_add(item.patches);
        self.bytes = self.bytes.saturating_add(item.bytes);
    }

    /// Whether `item` still fits.
    fn has_room(&self, item: &BatchItem, limits: &BatchLimits) -> bool {
        self.views.saturating_add(u64::from(item.views)) <= u64::from(limits.views_max)
            && self.patches.saturating_add(item.patches) <= limits.patches_max
    }

    /// Whether nothing can be added, because every image has a view and a patch.
    fn is_full(&self, limits: &BatchLimits) -> bool {
        self.views >= u64::from(limits.views_max) || self.patches >= limits.patches_max
    }
}

/// The open buckets of one chunk.
///
/// An image larger than the limits makes a batch alone: a device must take any one image.
#[derive(Debug)]
pub struct Bucketer {
    limits: BatchLimits,
    open: BTreeMap<BucketKey, Bucket>,
    held_bytes: u64,
}

/// An open bucket. The items stay, because leftovers are shared out one by one.
#[derive(Debug)]
struct Bucket {
    batch: Batch,
    items: Vec<BatchItem>,
}

impl Bucketer {
    /// No bucket is open.
    pub const fn new(limits: BatchLimits) -> Self {
        Self { limits, open: BTreeMap::new(), held_bytes: 0 }
    }

    /// Bytes of prepared views in all open buckets.
    pub const fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// Puts an image into its bucket and returns the batches that this closes, in the order they are to be encoded.
    ///
    /// A bucket closes when the image would not fit any more, when it is exactly full, and, while more bytes are held
    /// than allowed, when it is the one that holds most of them (of equals the one with fewest slices).
    pub fn push(&mut self, item: BatchItem) -> Vec<Batch> {
        let mut closed = Vec::new();
        let key = item.slices;
        if self.open.get(&key).is_some_and(|bucket| !bucket.batch.has_room(&item, &self.limits)) {
            closed.extend(self.close(key));
        }
        self.held_bytes = self.held_bytes.saturating_add(item.bytes);
        let bucket = self
            .open
            .entry(key)
            .and_modify(|bucket| {
                bucket.batch.add(&item);
                bucket.items.push(item);
            })
            .or_insert_with(|| Bucket { batch: Batch::of(&item), items: vec![item] });
        if bucket.batch.is_full(&self.limits) {
            closed.extend(self.close(key));
        }
        while self.held_bytes > self.limits.held_bytes_max {
            let Some(fullest) = self.fullest() else { break };
            closed.extend(self.close(fullest));
        }
        closed
    }

    /// Ends the chunk: the leftovers, in order of slice count, fill as few batches as the limits allow.
    pub fn finish(self) -> Vec<Batch> {
        let mut batches: Vec<Batch> = Vec::new();
        for item in self.open.into_values().flat_map(|bucket| bucket.items) {
            match batches.last_mut() {
                Some(batch) if batch.has_room(&item, &self.limits) => batch.add(&item),
                _ => batches.push(Batch::of(&item)),
            }
        }
        batches
    }

    fn close(&mut self, key: BucketKey) -> Option<Batch> {
        let batch = self.open.remove(&key)?.batch;
        self.held_bytes = self.held_bytes.saturating_sub(batch.bytes);
        Some(batch)
    }

    fn fullest(&self) -> Option<BucketKey> {
        let mut fullest: Option<(BucketKey, u64)> = None;
        for (&key, bucket) in &self.open {
            if fullest.is_none_or(|(_, bytes)| bucket.batch.bytes > bytes) {
                fullest = Some((key, bucket.batch.bytes));
            }
        }
        fullest.map(|(key, _)| key)
    }
}

/// The batches of a whole chunk. Every image is in exactly one.
pub fn plan_batches(items: impl IntoIterator<Item = BatchItem>, limits: BatchLimits) -> Vec<Batch> {
    let mut bucketer = Bucketer::new(limits);
    let mut batches = Vec::new();
    for item in items {
        batches.extend(bucketer.push(item));
    }
    batches.extend(bucketer.finish());
    batches
}

#[cfg(test)]
mod tests;
