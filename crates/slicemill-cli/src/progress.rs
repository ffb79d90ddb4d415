//! Progress on standard error: a bar in slices on a terminal, a line every few seconds elsewhere.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use slicemill_exec::{RunObserver, RunTotals};
use slicemill_pipeline::{Progress, ProgressSnapshot};

use crate::args::{OutputFlags, ProgressMode};

/// How often the bar is drawn.
const TICK: Duration = Duration::from_millis(200);
/// How often a line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Rates are taken over about this long.
const RATE_WINDOW: Duration = Duration::from_secs(10);

/// Shows a run's progress from its start to [`finish`](Self::finish).
pub struct Display {
    flags: OutputFlags,
    bars: MultiProgress,
    stop: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Display {
    /// A display that shows nothing until the run starts.
    pub fn new(flags: OutputFlags, bars: MultiProgress) -> Self {
        Self { flags, bars, stop: Arc::default(), thread: Mutex::default() }
    }

    /// Takes the display away.
    pub fn finish(&self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Ok(mut thread) = self.thread.lock()
            && let Some(thread) = thread.take()
        {
            thread.thread().unpark();
            // The display's own failure must not hide the run's result.
            drop(thread.join());
        }
    }
}

impl RunObserver for Display {
    fn started(&self, totals: &RunTotals, counters: &Arc<Progress>) {
        let rows = totals.rows - totals.rows_before;
        if totals.rows_before > 0 {
            tracing::info!(target: "slicemill", "resuming: {} of {} rows are done", totals.rows_before, totals.rows);
        }
        let bar = match self.flags.progress {
            _ if self.flags.quiet => return,
            ProgressMode::Off => return,
            ProgressMode::Bar => true,
            ProgressMode::Lines => false,
            ProgressMode::Auto => std::io::stderr().is_terminal(),
        };
        let (bars, stop) = (self.bars.clone(), Arc::clone(&self.stop));
        let watch = Watch::new(Arc::clone(counters), rows);
        let body = move || if bar { draw_bar(&bars, watch, &stop) } else { write_lines(watch, &stop) };
        // Without a thread there is no display, which is no reason to end a run.
        if let (Ok(started), Ok(mut thread)) =
            (std::thread::Builder::new().name("progress".to_owned()).spawn(body), self.thread.lock())
        {
            *thread = Some(started);
        }
    }
}

/// Counters with rates.
struct Watch {
    progress: Arc<Progress>,
    rows: u64,
    started: Instant,
    window: Vec<(Instant, ProgressSnapshot)>,
}

/// One look at a run.
struct Look {
    now: ProgressSnapshot,
    rows: u64,
    views_total: u64,
    images_per_second: f64,
    tokens_per_second: f64,
    limit: &'static str,
    left: Option<Duration>,
    elapsed: Duration,
}

impl Watch {
    fn new(progress: Arc<Progress>, rows: u64) -> Self {
        let now = Instant::now();
        let first = progress.snapshot();
        Self { progress, rows, started: now, window: vec![(now, first)] }
    }

    fn look(&mut self) -> Look {
        let (at, now) = (Instant::now(), self.progress.snapshot());
        self.window.push((at, now));
        while self.window.len() > 2 && at.duration_since(self.window[1].0) > RATE_WINDOW {
            self.window.remove(0);
        }
        let (since, before) = self.window[0];
        let seconds = at.duration_since(since).as_secs_f64().max(0.001);
        let recent = now.since(&before);
        let elapsed = at.duration_since(self.started);
        let rows = self.rows;
        let views_total = estimated_views(&now, rows);
        Look {
            rows,
            views_total,
            images_per_second: recent.images_done() as f64 / seconds,
            tokens_per_second: recent.output_tokens as f64 / seconds,
            limit: recent.limiting_stage().or(now.limiting_stage()).map_or("starting", |stage| stage.as_str()),
            left: time_left(&now, views_total, elapsed),
            elapsed,
            now,
        }
    }
}

/// Views of the whole run: those known, and for the rest as many per image as so far.
fn estimated_views(now: &ProgressSnapshot, rows: u64) -> u64 {
    let planned = now.images_planned + now.images_failed + now.images_skipped;
    if now.images_planned == 0 {
        return rows.max(now.views_planned);
    }
    let unseen = rows.saturating_sub(planned) as f64;
    let per_image = now.views_planned as f64 / planned.max(1) as f64;
    now.views_planned + (unseen * per_image).round() as u64
}

/// At the rate since the start, in views, because images differ in slices by a factor of eight.
fn time_left(now: &ProgressSnapshot, views_total: u64, elapsed: Duration) -> Option<Duration> {
    if now.views_encoded == 0 || elapsed < Duration::from_secs(1) {
        return None;
    }
    let left = views_total.saturating_sub(now.views_encoded) as f64;
    Some(elapsed.mul_f64((left / now.views_encoded as f64).min(1e6)))
}

/// `1:02:03` or `2:03`.
fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

fn draw_bar(bars: &MultiProgress, mut watch: Watch, stop: &AtomicBool) {
    bars.set_draw_target(ProgressDrawTarget::stderr());
    let bar = bars.add(ProgressBar::new(0));
    let style = ProgressStyle::with_template("{bar:24.cyan/dim} {pos}/{len} slices  {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    loop {
        let look = watch.look();
        bar.set_length(look.views_total.max(look.now.views_encoded));
        bar.set_position(look.now.views_encoded);
        let left = look.left.map_or_else(|| "…".to_owned(), clock);
        let failed =
            if look.now.images_failed > 0 { format!("  {} failed", look.now.images_failed) } else { String::new() };
        bar.set_message(format!(
            "eta {left}  {}/{} images  {:.1} images/s  {:.0} tokens/s{failed}  limit: {}",
            look.now.images_done(),
            look.rows,
            look.images_per_second,
            look.tokens_per_second,
            look.limit,
        ));
        if stop.load(Ordering::Relaxed) {
            break;
        }
        std::thread::park_timeout(TICK);
    }
    bar.finish_and_clear();
}

fn write_lines(mut watch: Watch, stop: &AtomicBool) {
    let mut next = LINE_EVERY;
    while !stop.load(Ordering::Relaxed) {
        std::thread::park_timeout(TICK);
        if watch.started.elapsed() < next {
            continue;
        }
        next += LINE_EVERY;
        let look = watch.look();
        tracing::info!(
            target: "slicemill",
            slices = look.now.views_encoded,
            slices_total = look.views_total,
            images = look.now.images_done(),
            images_total = look.rows,
            failed = look.now.images_failed,
            images_per_second = format_args!("{:.1}", look.images_per_second),
            tokens_per_second = format_args!("{:.0}", look.tokens_per_second),
            limit = look.limit,
            elapsed = %clock(look.elapsed),
            eta = %look.left.map_or_else(|| "?".to_owned(), clock),
            "progress"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks() {
        assert_eq!(clock(Duration::from_secs(59)), "0:59");
        assert_eq!(clock(Duration::from_secs(3723)), "1:02:03");
    }

    #[test]
    fn views_of_unseen_images_are_estimated() {
        let now = ProgressSnapshot {
            images_planned: 10,
            views_planned: 50,
            views_encoded: 25,
            ..ProgressSnapshot::default()
        };
        assert_eq!(estimated_views(&now, 10), 50);
        assert_eq!(estimated_views(&now, 30), 150);
        assert_eq!(time_left(&now, 150, Duration::from_secs(10)), Some(Duration::from_secs(50)));
        assert_eq!(time_left(&ProgressSnapshot::default(), 150, Duration::from_secs(10)), None);
    }
}
