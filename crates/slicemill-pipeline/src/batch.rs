//! What travels from the host stage to a device: images with their pixels prepared, and what is known of them.

use std::sync::Arc;

use bytes::Bytes;
use slicemill_core::{Batch, BatchItem, BatchLimits, Normalisation, RowError, SlicePlan, plan_batches};
use slicemill_image::Header;

use crate::{AnnotateSpec, PlannedRow, PreparedImage, budget::ByteGrant};

/// What is known of an image before its pixels.
#[derive(Debug, Clone)]
pub(crate) struct ImageFacts {
    /// Its row in the chunk.
    pub(crate) index: usize,
    pub(crate) header: Header,
    pub(crate) planned: PlannedRow,
    pub(crate) sha256: String,
    pub(crate) fetch_ms: f32,
    pub(crate) prepare_ms: f32,
    /// Its bytes end before the image does; known when its pixels are.
    pub(crate) truncated: bool,
}

/// A row that was read and planned and waits for its pixels.
pub(crate) struct ReadRow {
    pub(crate) facts: ImageFacts,
    pub(crate) bytes: Bytes,
    /// The compressed bytes; freed when they are decoded.
    pub(crate) grant: ByteGrant,
}

/// Rows whose pixels are prepared together.
pub(crate) struct ReadBatch {
    pub(crate) rows: Vec<ReadRow>,
    pub(crate) shape: Batch,
}

/// Images that are encoded together.
pub(crate) struct PreparedBatch {
    /// Number in the chunk.
    pub(crate) id: u32,
    pub(crate) facts: Vec<ImageFacts>,
    /// In the order of `facts`.
    pub(crate) images: Vec<PreparedImage>,
    /// The prepared bytes; freed when all parts of the batch are encoded.
    pub(crate) grant: Arc<ByteGrant>,
}

impl PreparedBatch {
    pub(crate) fn views(&self) -> u64 {
        self.images.iter().map(|image| image.views.len() as u64).sum()
    }

    pub(crate) fn patches(&self) -> u64 {
        self.images.iter().map(|image| image.plan.patches()).sum()
    }

    /// The first and second half, for a batch that was too much.
    pub(crate) fn halves(mut self) -> (Self, Self) {
        let middle = self.images.len() / 2;
        let second = Self {
            id: self.id,
            facts: self.facts.split_off(middle),
            images: self.images.split_off(middle),
            grant: Arc::clone(&self.grant),
        };
        (self, second)
    }
}

/// Bytes of the prepared views of an image: three channels of f32.
pub(crate) fn prepared_bytes(plan: &SlicePlan) -> u64 {
    let patch = u64::from(plan.patch);
    plan.patches().saturating_mul(3 * 4).saturating_mul(patch.saturating_mul(patch))
}

/// The batches of one window, from plans alone.
pub(crate) fn batches_of(rows: Vec<ReadRow>, limits: BatchLimits) -> Vec<ReadBatch> {
    let item = |(position, row): (usize, &ReadRow)| {
        let plan = &row.facts.planned.plan;
        BatchItem::new(position, plan, prepared_bytes(plan))
    };
    let shapes = plan_batches(rows.iter().enumerate().map(item), limits);
    let mut rows: Vec<Option<ReadRow>> = rows.into_iter().map(Some).collect();
    let mut take = |position: usize| rows.get_mut(position).and_then(Option::take);
    shapes
        .into_iter()
        .map(|shape| ReadBatch { rows: shape.indices.iter().filter_map(|&at| take(at)).collect(), shape })
        .collect()
}

/// Decodes, cuts and normalises. Frees the compressed bytes. An image that is cut short fails here, so what comes out is
/// whole.
pub(crate) fn prepare_row(
    row: ReadRow,
    spec: &AnnotateSpec,
    normalisation: &Normalisation,
) -> (ImageFacts, Result<PreparedImage, RowError>) {
    let ReadRow { mut facts, bytes, grant } = row;
    let plan = Arc::clone(&facts.planned.plan);
    let prepared = slicemill_image::prepare(&bytes, &facts.header, &plan, &spec.image, normalisation);
    drop((bytes, grant));
    facts.truncated = prepared.as_ref().is_ok_and(|prepared| prepared.truncated);
    let image = prepared.map(|prepared| PreparedImage { plan, views: prepared.views });
    (facts, image)
}
