//! Slice-count buckets and when they close. Pure: no clock, so the same rows always make the same batches.

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
