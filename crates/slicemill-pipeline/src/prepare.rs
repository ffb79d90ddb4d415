//! Stage two of a chunk: batches with their pixels, just ahead of the device.

use std::{sync::Arc, time::Instant};

use futures::{StreamExt, TryStreamExt, future, stream};
use slicemill_core::Stage;
use tokio::sync::mpsc;

use crate::{
    Annotator, BusyStage, Fault, InputRef, PipelineError, PreparedImage,
    annotate::{Attempt, millis, panicked},
    batch::{ImageFacts, PreparedBatch, ReadBatch, ReadRow, batches_of, prepare_row},
    budget::ByteGrant,
    progress::Waiting,
};

/// Pixels in work: decoded RGB, what the decoder keeps beside it, and a turned copy. An estimate that keeps many large
/// images from being decoded at the same time; small ones hardly notice it.
const DECODE_BYTES_PER_PIXEL: u64 = 8;

impl Annotator {
    /// Stage two: batches with their pixels, in order. Several are in preparation at the same time, as many as their
    /// bytes allow.
    pub(crate) async fn prepare_windows(
        &self,
        attempt: &Attempt<'_>,
        windows: mpsc::UnboundedReceiver<Vec<ReadRow>>,
        out: mpsc::UnboundedSender<PreparedBatch>,
    ) -> Result<(), PipelineError> {
        let windows = stream::unfold(windows, |mut windows| async move { Some((windows.recv().await?, windows)) });
        let batches = windows.flat_map(|rows| stream::iter(batches_of(rows, self.batch_limits)));
        let (budget, progress) = (attempt.prepared.clone(), self.job.progress.clone());
        let granted = batches.zip(stream::iter(0_u32..)).then(move |(batch, id)| {
            let (budget, progress) = (budget.clone(), progress.clone());
            async move {
                let started = Instant::now();
                let grant = budget.acquire(batch.shape.bytes).await;
                progress.waited(Waiting::Prepare, started.elapsed());
                (id, batch, grant)
            }
        });
        // Batches of one image each still keep every thread of the pool busy.
        let ahead = self.host.threads().saturating_mul(2).max(2);
        let prepared = granted.map(|(id, batch, grant)| self.prepare_batch(attempt, id, batch, grant)).buffered(ahead);
        prepared
            .try_for_each(|batch| {
                // An error means that the device stage has ended with an error, which is what the caller gets.
                if !batch.images.is_empty() {
                    drop(out.send(batch));
                }
                future::ready(Ok(()))
            })
            .await
    }

    async fn prepare_batch(
        &self,
        attempt: &Attempt<'_>,
        id: u32,
        batch: ReadBatch,
        grant: ByteGrant,
    ) -> Result<PreparedBatch, PipelineError> {
        let rows = batch.rows.into_iter().map(|row| self.prepare_one(attempt, row));
        let prepared = future::try_join_all(rows).await?;
        let (facts, images) = prepared.into_iter().flatten().unzip();
        Ok(PreparedBatch { id, facts, images, grant: Arc::new(grant) })
    }

    /// The pixels of one image. `None` when it failed, which leaves its batch as it is.
    async fn prepare_one(
        &self,
        attempt: &Attempt<'_>,
        row: ReadRow,
    ) -> Result<Option<(ImageFacts, PreparedImage)>, PipelineError> {
        let index = row.facts.index;
        let pixels = row.facts.header.stored.pixels();
        let waiting = Instant::now();
        let in_work = self.decode.acquire(pixels.saturating_mul(DECODE_BYTES_PER_PIXEL)).await;
        self.job.progress.waited(Waiting::Prepare, waiting.elapsed());
        let job = Arc::clone(&self.job);
        let prepared = self.host.run(attempt.number, move || {
            let started = Instant::now();
            let (mut facts, image) = prepare_row(row, &job.spec, &job.factory.card().normalisation);
            let time = started.elapsed();
            drop(in_work);
            job.progress.busy(BusyStage::Prepare, time);
            facts.prepare_ms = millis(time);
            image.map(|image| (facts, image))
        });
        let prepared = match prepared.await {
            Ok(prepared) => prepared.map_err(Fault::Row),
            Err(panic) => Err(panicked(panic, Stage::Decode)),
        };
        match prepared {
            Ok((facts, image)) => {
                check_views(&attempt.rows[index], &image)?;
                Ok(Some((facts, image)))
            }
            Err(Fault::Row(error)) => {
                attempt.outcomes.fail(index, &attempt.rows[index], error, 1, &self.job.progress);
                Ok(None)
            }
            Err(Fault::Fatal(message)) => Err(PipelineError::Fatal(message)),
        }
    }
}

/// The prepared views must be those of the plan, or planned and produced tokens would differ.
fn check_views(row: &InputRef, image: &PreparedImage) -> Result<(), PipelineError> {
    let patch_len = 3 * image.plan.patch as usize * image.plan.patch as usize;
    let planned = image.plan.views();
    let equal = planned.len() == image.views.len()
        && planned.iter().zip(&image.views).all(|(view, prepared)| {
            (view.patches_wide, view.patches_high) == (prepared.patches_wide, prepared.patches_high)
                && prepared.patches.len() == view.patches() as usize * patch_len
        });
    if equal {
        return Ok(());
    }
    Err(PipelineError::Fatal(format!(
        "the prepared views of {} are not those of its plan; this is a defect of slicemill",
        row.source
    )))
}
