//! The counters at one time, as plain data.

use std::{collections::BTreeMap, sync::atomic::Ordering::Relaxed, time::Duration};

use serde::{Deserialize, Serialize};
use slicemill_core::ErrorClass;

use super::{BusyStage, Progress, Waiting};

/// Position of a class in [`ErrorClass::ALL`].
pub(super) fn class_number(class: ErrorClass) -> Option<usize> {
    ErrorClass::ALL.iter().position(|known| *known == class)
}

/// Failed rows of every class. Stored as a map of the classes that occurred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(into = "BTreeMap<ErrorClass, u64>", from = "BTreeMap<ErrorClass, u64>")]
pub struct FailedByClass([u64; ErrorClass::ALL.len()]);

impl FailedByClass {
    /// Failed rows of `class`.
    pub fn get(&self, class: ErrorClass) -> u64 {
        class_number(class).and_then(|number| self.0.get(number)).copied().unwrap_or_default()
    }

    /// The classes that occurred, in the order of [`ErrorClass::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = (ErrorClass, u64)> + '_ {
        ErrorClass::ALL.iter().copied().zip(self.0).filter(|(_, count)| *count > 0)
    }

    fn since(&self, earlier: &Self) -> Self {
        Self(std::array::from_fn(|number| self.0[number].saturating_sub(earlier.0[number])))
    }
}

impl From<FailedByClass> for BTreeMap<ErrorClass, u64> {
    fn from(counts: FailedByClass) -> Self {
        counts.iter().collect()
    }
}

impl From<BTreeMap<ErrorClass, u64>> for FailedByClass {
    fn from(map: BTreeMap<ErrorClass, u64>) -> Self {
        Self(std::array::from_fn(|number| map.get(&ErrorClass::ALL[number]).copied().unwrap_or_default()))
    }
}

/// Durations are stored as seconds.
mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(time.as_secs_f64())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        Duration::try_from_secs_f64(f64::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

/// What [`Progress`] counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ProgressSnapshot {
    /// Images with content rows.
    pub images_ok: u64,
    /// Images that failed.
    pub images_failed: u64,
    /// Objects that are not images, and inputs that the job leaves out.
    pub images_skipped: u64,
    /// Images whose plan is known.
    pub images_planned: u64,
    /// Views (slices and overviews) of images whose plan is known.
    pub views_planned: u64,
    /// Views encoded.
    pub views_encoded: u64,
    /// Visual tokens of encoded images.
    pub visual_tokens: u64,
    /// Generated tokens.
    pub output_tokens: u64,
    /// Bytes read.
    pub bytes_fetched: u64,
    /// Batches and groups of sequences that were made smaller because a device had no memory for them.
    pub oom_halvings: u64,
    /// Calls of a device that were tried again after a transient error.
    pub device_retries: u64,
    /// Rows that were read and run again because their device's worker was lost, or to have a device to themselves.
    pub rows_rerun: u64,
    /// Workers that panicked or ended.
    pub worker_deaths: u64,
    /// Workers that gave no sign for too long.
    pub worker_hangs: u64,
    /// Times a device was opened anew, the failed ones too.
    pub worker_restarts: u64,
    /// Failed images by class; their sum is `images_failed`.
    pub failed_by_class: FailedByClass,
    /// Compressed and prepared bytes held now.
    pub bytes_held: u64,
    /// The most compressed and prepared bytes that were held at the same time, since the run began.
    pub bytes_held_peak: u64,
    /// Time in reads, summed over all that ran at the same time.
    #[serde(with = "seconds")]
    pub fetch_busy: Duration,
    /// Time on the CPU pool, summed over its threads.
    #[serde(with = "seconds")]
    pub prepare_busy: Duration,
    /// Time in vision towers and projectors, summed over devices.
    #[serde(with = "seconds")]
    pub encode_busy: Duration,
    /// Time in language models, summed over devices.
    #[serde(with = "seconds")]
    pub generate_busy: Duration,
    /// Time in which the next read waited for memory (for the stages behind it) or for a place, summed over chunks
    /// and reads.
    #[serde(with = "seconds")]
    pub fetch_waiting: Duration,
    /// Time in which the next batch waited for memory for its prepared bytes, or an image for memory for its pixels,
    /// summed over chunks and images.
    #[serde(with = "seconds")]
    pub prepare_waiting: Duration,
    /// Time in which chunks with a batch ready waited for a device, summed over chunks.
    #[serde(with = "seconds")]
    pub lease_waiting: Duration,
    /// Time in which leased devices waited for a batch with nothing else to do, summed over devices.
    #[serde(with = "seconds")]
    pub device_waiting: Duration,
    /// Reads that may run at the same time.
    pub fetch_workers: u32,
    /// Threads of the CPU pool.
    pub prepare_workers: u32,
    /// Devices.
    pub devices: u32,
}

impl Progress {
    /// The counters now. Not one instant for all of them, which a display does not need.
    pub fn snapshot(&self) -> ProgressSnapshot {
        let busy = |stage: BusyStage| Duration::from_micros(self.busy_us[stage as usize].load(Relaxed));
        let waiting = |what: Waiting| Duration::from_micros(self.waiting_us[what as usize].load(Relaxed));
        ProgressSnapshot {
            images_ok: self.images_ok.load(Relaxed),
            images_failed: self.images_failed.load(Relaxed),
            images_skipped: self.images_skipped.load(Relaxed),
            images_planned: self.images_planned.load(Relaxed),
            views_planned: self.views_planned.load(Relaxed),
            views_encoded: self.views_encoded.load(Relaxed),
            visual_tokens: self.visual_tokens.load(Relaxed),
            output_tokens: self.output_tokens.load(Relaxed),
            bytes_fetched: self.bytes_fetched.load(Relaxed),
            oom_halvings: self.oom_halvings.load(Relaxed),
            device_retries: self.device_retries.load(Relaxed),
            rows_rerun: self.rows_rerun.load(Relaxed),
            worker_deaths: self.worker_deaths.load(Relaxed),
            worker_hangs: self.worker_hangs.load(Relaxed),
            worker_restarts: self.worker_restarts.load(Relaxed),
            failed_by_class: FailedByClass(std::array::from_fn(|number| self.failed_by_class[number].load(Relaxed))),
            bytes_held: self.gauge.held_bytes(),
            bytes_held_peak: self.gauge.peak_bytes(),
            fetch_busy: busy(BusyStage::Fetch),
            prepare_busy: busy(BusyStage::Prepare),
            encode_busy: busy(BusyStage::Encode),
            generate_busy: busy(BusyStage::Generate),
            fetch_waiting: waiting(Waiting::Fetch),
            prepare_waiting: waiting(Waiting::Prepare),
            lease_waiting: waiting(Waiting::Lease),
            device_waiting: waiting(Waiting::Device),
            fetch_workers: self.workers[0].load(Relaxed),
            prepare_workers: self.workers[1].load(Relaxed),
            devices: self.workers[2].load(Relaxed),
        }
    }
}

impl ProgressSnapshot {
    /// Images that are done, whatever became of them.
    pub const fn images_done(&self) -> u64 {
        self.images_ok + self.images_failed + self.images_skipped
    }

    /// What happened between `earlier` and this. Bytes held, their peak and the numbers of workers are those of this.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        macro_rules! differences {
            ($($field:ident),* $(,)?) => {
                Self { $($field: self.$field.saturating_sub(earlier.$field),)*
                    failed_by_class: self.failed_by_class.since(&earlier.failed_by_class), ..*self }
            };
        }
        differences!(
            images_ok,
            images_failed,
            images_skipped,
            images_planned,
            views_planned,
            views_encoded,
            visual_tokens,
            output_tokens,
            bytes_fetched,
            oom_halvings,
            device_retries,
            rows_rerun,
            worker_deaths,
            worker_hangs,
            worker_restarts,
            fetch_busy,
            prepare_busy,
            encode_busy,
            generate_busy,
            fetch_waiting,
            prepare_waiting,
            lease_waiting,
            device_waiting,
        )
    }

    /// The stage whose workers were busiest: the one to give more of. None before anything ran.
    ///
    /// Encode and generate share the devices, so they count together and the larger of the two names the limit.
    pub fn limiting_stage(&self) -> Option<BusyStage> {
        let load = |busy: Duration, workers: u32| busy.as_secs_f64() / f64::from(workers.max(1));
        let device_stage = if self.encode_busy > self.generate_busy { BusyStage::Encode } else { BusyStage::Generate };
        let loads = [
            (BusyStage::Fetch, load(self.fetch_busy, self.fetch_workers)),
            (BusyStage::Prepare, load(self.prepare_busy, self.prepare_workers)),
            (device_stage, load(self.encode_busy + self.generate_busy, self.devices)),
        ];
        let busiest = loads.into_iter().max_by(|a, b| a.1.total_cmp(&b.1));
        busiest.filter(|(_, load)| *load > 0.0).map(|(stage, _)| stage)
    }
}

#[cfg(test)]
mod tests {
    use slicemill_core::{FailedRow, RowError, RowOutcome, Stage};

    use super::*;
    use crate::{FailureLimit, PipelineError};

    #[test]
    fn the_busiest_workers_name_the_limiting_stage() {
        let progress = Progress::default();
        progress.set_workers(10, 2, 1);
        assert_eq!(progress.snapshot().limiting_stage(), None);
        progress.busy(BusyStage::Fetch, Duration::from_secs(9));
        assert_eq!(progress.snapshot().limiting_stage(), Some(BusyStage::Fetch));
        progress.busy(BusyStage::Prepare, Duration::from_secs(3));
        assert_eq!(progress.snapshot().limiting_stage(), Some(BusyStage::Prepare));
        progress.busy(BusyStage::Encode, Duration::from_secs(1));
        progress.busy(BusyStage::Generate, Duration::from_millis(900));
        assert_eq!(progress.snapshot().limiting_stage(), Some(BusyStage::Encode));
        let earlier = progress.snapshot();
        progress.busy(BusyStage::Generate, Duration::from_secs(1));
        assert_eq!(progress.snapshot().since(&earlier).limiting_stage(), Some(BusyStage::Generate));
    }

    fn fail(progress: &Progress, key: &str, class: ErrorClass) {
        let error = RowError::new(class, Stage::Fetch, "no");
        let row = FailedRow { key: key.into(), source: String::new(), error, attempts: 1, columns: None };
        progress.outcome(&RowOutcome::Failed(row));
    }

    fn ok(progress: &Progress) {
        progress.outcome(&RowOutcome::Ok { rows: Vec::new(), timing: slicemill_core::TimingRow::default() });
    }

    #[test]
    fn snapshots_are_plain_data() {
        let progress = Progress::default();
        progress.busy(BusyStage::Encode, Duration::from_millis(1500));
        progress.waited(Waiting::Device, Duration::from_millis(250));
        for (key, class) in [("a", ErrorClass::Corrupt), ("b", ErrorClass::NotFound), ("c", ErrorClass::Corrupt)] {
            fail(&progress, key, class);
        }
        let snapshot = progress.snapshot();
        let json = serde_json::to_value(snapshot).unwrap();
        assert_eq!(json["encode_busy"], 1.5);
        assert_eq!(json["device_waiting"], 0.25);
        assert_eq!(json["failed_by_class"], serde_json::json!({"not_found": 1, "corrupt": 2}));
        assert_eq!(serde_json::from_value::<ProgressSnapshot>(json).unwrap(), snapshot);
        assert_eq!(snapshot.failed_by_class.get(ErrorClass::Corrupt), 2);
        fail(&progress, "d", ErrorClass::Corrupt);
        let since = progress.snapshot().since(&snapshot);
        assert_eq!(since.failed_by_class.iter().collect::<Vec<_>>(), [(ErrorClass::Corrupt, 1)]);
    }

    #[test]
    fn too_many_failed_rows_are_said_with_counts_and_examples() {
        let progress = Progress::default();
        progress.set_failure_limit(FailureLimit { count: Some(4), share: None });
        for key in ["a", "b", "c", "d"] {
            fail(&progress, key, ErrorClass::Corrupt);
        }
        assert_eq!(progress.too_many_failed(), Ok(()));
        fail(&progress, "e", ErrorClass::NotFound);
        let Err(PipelineError::TooManyFailed { message }) = progress.too_many_failed() else { panic!("it goes on") };
        for part in [
            "more than 4 rows failed: 5 of 5 (corrupt 4, not_found 1)",
            "a: fetch: corrupt: no; e: fetch: not_found: no; b: fetch: corrupt: no. ",
            "--max-failed",
        ] {
            assert!(message.contains(part), "{message}");
        }
        assert_eq!(progress.failure_examples()[&ErrorClass::Corrupt].len(), 3);
    }

    #[test]
    fn a_share_is_judged_when_enough_rows_are_done() {
        let progress = Progress::default();
        progress.set_failure_limit(FailureLimit { count: None, share: Some(0.1) });
        (0..11).for_each(|number| fail(&progress, &number.to_string(), ErrorClass::Empty));
        (0..88).for_each(|_| ok(&progress));
        assert_eq!(progress.too_many_failed(), Ok(()), "99 rows say nothing yet");
        ok(&progress);
        let Err(error) = progress.too_many_failed() else { panic!("it goes on") };
        assert!(error.to_string().starts_with("more than 10 % of the rows failed: 11 of 100"), "{error}");

        let within = Progress::default();
        within.set_failure_limit(FailureLimit { count: None, share: Some(0.1) });
        (0..90).for_each(|_| ok(&within));
        (0..10).for_each(|number| fail(&within, &number.to_string(), ErrorClass::Empty));
        assert_eq!(within.too_many_failed(), Ok(()), "10 % are allowed");
    }
}
