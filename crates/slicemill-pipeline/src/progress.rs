//! Counters of a run, cheap enough to touch per row: relaxed atomics, no lock.

use std::{
    fmt,
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// A stage that can limit a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BusyStage {
    /// Reading objects.
    Fetch,
    /// Headers, plans, decoding, slicing and normalising on the CPU pool.
    Prepare,
    /// Vision tower and projector.
    Encode,
    /// Prefill and decode.
    Generate,
}

impl BusyStage {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fetch => "fetch",
            Self::Prepare => "prepare",
            Self::Encode => "encode",
            Self::Generate => "generate",
        }
    }
}

impl fmt::Display for BusyStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Counters of a run, shared by all chunks in flight.
#[derive(Debug, Default)]
pub struct Progress {
    pub(crate) images_ok: AtomicU64,
    pub(crate) images_failed: AtomicU64,
    pub(crate) images_skipped: AtomicU64,
    pub(crate) images_planned: AtomicU64,
    pub(crate) views_planned: AtomicU64,
    pub(crate) views_encoded: AtomicU64,
    pub(crate) visual_tokens: AtomicU64,
    pub(crate) output_tokens: AtomicU64,
    pub(crate) bytes_fetched: AtomicU64,
    busy_us: [AtomicU64; 4],
    workers: [AtomicU32; 3],
}

impl Progress {
    /// Adds the time one worker of `stage` was busy.
    pub(crate) fn busy(&self, stage: BusyStage, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.busy_us[stage as usize].fetch_add(micros, Relaxed);
    }

    /// Workers of fetch, CPU pool and devices, for the limiting stage.
    pub(crate) fn set_workers(&self, fetches: u32, threads: u32, devices: u32) {
        for (counter, value) in self.workers.iter().zip([fetches, threads, devices]) {
            counter.store(value, Relaxed);
        }
    }

    /// The counters now. Not one instant for all of them, which a display does not need.
    pub fn snapshot(&self) -> ProgressSnapshot {
        let busy = |stage: BusyStage| Duration::from_micros(self.busy_us[stage as usize].load(Relaxed));
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
            fetch_busy: busy(BusyStage::Fetch),
            prepare_busy: busy(BusyStage::Prepare),
            encode_busy: busy(BusyStage::Encode),
            generate_busy: busy(BusyStage::Generate),
            fetch_workers: self.workers[0].load(Relaxed),
            prepare_workers: self.workers[1].load(Relaxed),
            devices: self.workers[2].load(Relaxed),
        }
    }
}

/// What [`Progress`] counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProgressSnapshot {
    /// Images with content rows.
    pub images_ok: u64,
    /// Images that failed.
    pub images_failed: u64,
    /// Objects that are not images.
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
    /// Time in reads, summed over all that ran at the same time.
    pub fetch_busy: Duration,
    /// Time on the CPU pool, summed over its threads.
    pub prepare_busy: Duration,
    /// Time in vision towers and projectors, summed over devices.
    pub encode_busy: Duration,
    /// Time in language models, summed over devices.
    pub generate_busy: Duration,
    /// Reads that may run at the same time.
    pub fetch_workers: u32,
    /// Threads of the CPU pool.
    pub prepare_workers: u32,
    /// Devices.
    pub devices: u32,
}

impl ProgressSnapshot {
    /// Images that are done, whatever became of them.
    pub const fn images_done(&self) -> u64 {
        self.images_ok + self.images_failed + self.images_skipped
    }

    /// What happened between `earlier` and this.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            images_ok: self.images_ok.saturating_sub(earlier.images_ok),
            images_failed: self.images_failed.saturating_sub(earlier.images_failed),
            images_skipped: self.images_skipped.saturating_sub(earlier.images_skipped),
            images_planned: self.images_planned.saturating_sub(earlier.images_planned),
            views_planned: self.views_planned.saturating_sub(earlier.views_planned),
            views_encoded: self.views_encoded.saturating_sub(earlier.views_encoded),
            visual_tokens: self.visual_tokens.saturating_sub(earlier.visual_tokens),
            output_tokens: self.output_tokens.saturating_sub(earlier.output_tokens),
            bytes_fetched: self.bytes_fetched.saturating_sub(earlier.bytes_fetched),
            fetch_busy: self.fetch_busy.saturating_sub(earlier.fetch_busy),
            prepare_busy: self.prepare_busy.saturating_sub(earlier.prepare_busy),
            encode_busy: self.encode_busy.saturating_sub(earlier.encode_busy),
            generate_busy: self.generate_busy.saturating_sub(earlier.generate_busy),
            ..*self
        }
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
    use super::*;

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
}
