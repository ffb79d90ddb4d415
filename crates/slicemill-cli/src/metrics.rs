//! Counters of a run for Prometheus: over HTTP at `/metrics`, and as a file for a collector of text files.
//!
//! Names follow the rules of the text format 0.0.4: base units, `_total` for what only grows. Labels have few values;
//! keys and URLs are never among them.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use slicemill_exec::{RunTotals, resident_bytes};
use slicemill_io::{Counts, IoCounters, IoSnapshot};
use slicemill_pipeline::{Progress, ProgressSnapshot};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::exit::Failure;

/// How often the file is written.
const FILE_EVERY: Duration = Duration::from_secs(5);
/// A client that sends its request more slowly is left.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What the counters of a run come from. Before the run starts there are only those of the stores.
#[derive(Debug, Clone)]
pub struct Metrics {
    io: IoCounters,
    run: Arc<Mutex<Option<Started>>>,
}

#[derive(Debug)]
struct Started {
    totals: RunTotals,
    counters: Arc<Progress>,
    committed: u64,
    finished: bool,
}

impl Metrics {
    /// Counters of a run that reads and writes through stores with these counters.
    pub fn new(io: IoCounters) -> Self {
        Self { io, run: Arc::default() }
    }

    /// The run has started.
    pub fn started(&self, totals: &RunTotals, counters: &Arc<Progress>) {
        let started =
            Started { totals: *totals, counters: Arc::clone(counters), committed: totals.rows_before, finished: false };
        *self.run.lock().unwrap_or_else(PoisonError::into_inner) = Some(started);
    }

    /// A chunk was committed.
    pub fn committed(&self, counts: &Counts) {
        if let Some(run) = &mut *self.run.lock().unwrap_or_else(PoisonError::into_inner) {
            run.committed += counts.inputs;
        }
    }

    /// The run has ended, well or not.
    pub fn finished(&self) {
        if let Some(run) = &mut *self.run.lock().unwrap_or_else(PoisonError::into_inner) {
            run.finished = true;
        }
    }

    /// All counters in the text format.
    pub fn text(&self) -> String {
        let mut page = Page::default();
        page.metric("slicemill_info", "gauge", "Version of the program.");
        page.sample("slicemill_info", &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
        if let Some(run) = &*self.run.lock().unwrap_or_else(PoisonError::into_inner) {
            page.run(run);
            page.progress(&run.counters.snapshot());
        }
        page.io(&self.io.snapshot());
        if let Some(bytes) = resident_bytes() {
            page.one("process_resident_memory_bytes", "gauge", "Resident memory.", bytes as f64);
        }
        page.text
    }

    /// Serves the counters at `address` until the returned task is dropped; the address it listens on.
    pub async fn serve(&self, address: SocketAddr) -> Result<(SocketAddr, Task), Failure> {
        let cannot = |error| Failure::failed(format!("--metrics {address}: cannot listen: {error}"));
        let listener = TcpListener::bind(address).await.map_err(cannot)?;
        let listening = listener.local_addr().map_err(cannot)?;
        let metrics = self.clone();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    Some(_) = connections.join_next() => continue,
                };
                let Ok((stream, _)) = accepted else {
                    // Out of file descriptors, most likely: the run goes on, and so does this after a pause.
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    continue;
                };
                connections.spawn(connection(metrics.clone(), stream));
            }
        });
        Ok((listening, Task(task)))
    }

    /// Writes the counters to `file` now.
    pub fn write(&self, file: &Path) -> std::io::Result<()> {
        // Beside it and then renamed, so that a collector never reads half a page.
        let mut beside = file.as_os_str().to_owned();
        beside.push(".tmp");
        let beside = PathBuf::from(beside);
        std::fs::write(&beside, self.text())?;
        std::fs::rename(&beside, file)
    }

    /// Writes the counters to `file` every few seconds until the returned task is dropped.
    pub fn write_to(&self, file: PathBuf) -> Result<Task, Failure> {
        let cannot = |error| Failure::usage(format!("--metrics-file {}: cannot write: {error}", file.display()));
        self.write(&file).map_err(cannot)?;
        let metrics = self.clone();
        let mut task = JoinSet::new();
        task.spawn(async move {
            loop {
                tokio::time::sleep(FILE_EVERY).await;
                if let Err(error) = metrics.write(&file) {
                    tracing::warn!(target: "slicemill", "{}: cannot write the counters: {error}", file.display());
                }
            }
        });
        Ok(Task(task))
    }
}

/// A task that ends when this is dropped.
#[derive(Debug)]
pub struct Task(#[allow(dead_code, reason = "held for what dropping it does")] JoinSet<()>);

async fn connection(metrics: Metrics, stream: TcpStream) {
    let service = service_fn(move |request| answer(metrics.clone(), request));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(hyper_util::rt::TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    // A client that breaks off is its own affair.
    drop(connection.await);
}

async fn answer(metrics: Metrics, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::http::Error> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => (StatusCode::OK, metrics.text()),
        (&Method::GET | &Method::HEAD, _) => (StatusCode::NOT_FOUND, "the counters are at /metrics\n".to_owned()),
        _ => (StatusCode::METHOD_NOT_ALLOWED, "GET /metrics\n".to_owned()),
    };
    Response::builder().status(status).header(header::CONTENT_TYPE, CONTENT_TYPE).body(Full::new(text.into()))
}

/// A page in the making.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn metric(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.text.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.text, "{}{label}=\"{escaped}\"", if at == 0 { "{" } else { "," });
        }
        self.text.push_str(if labels.is_empty() { " " } else { "} " });
        let _ = writeln!(self.text, "{value}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.metric(name, kind, help);
        self.sample(name, &[], value);
    }

    fn by_label<'a>(
        &mut self,
        (name, kind, help): (&str, &str, &str),
        label: &str,
        values: impl IntoIterator<Item = (&'a str, f64)>,
    ) {
        self.metric(name, kind, help);
        for (text, value) in values {
            self.sample(name, &[(label, text)], value);
        }
    }

    fn run(&mut self, run: &Started) {
        self.one(
            "slicemill_rows",
            "gauge",
            "Input rows of the job, or of this process's part.",
            run.totals.rows as f64,
        );
        self.one(
            "slicemill_rows_committed",
            "gauge",
            "Input rows whose chunk is committed, those of earlier runs included.",
            run.committed as f64,
        );
        self.one("slicemill_run_finished", "gauge", "1 when the run has ended.", f64::from(u8::from(run.finished)));
    }

    fn progress(&mut self, now: &ProgressSnapshot) {
        let rows = [("ok", now.images_ok), ("failed", now.images_failed), ("skipped", now.images_skipped)];
        self.by_label(
            ("slicemill_rows_done_total", "counter", "Input rows done by this run, by what became of them."),
            "outcome",
            rows.map(|(name, value)| (name, value as f64)),
        );
        self.by_label(
            ("slicemill_rows_failed_total", "counter", "Failed rows by class."),
            "class",
            now.failed_by_class.iter().map(|(class, rows)| (class.as_str(), rows as f64)),
        );
        for (name, help, value) in [
            ("slicemill_views_planned_total", "Views (slices and overviews) of planned images.", now.views_planned),
            ("slicemill_views_encoded_total", "Views encoded.", now.views_encoded),
            ("slicemill_visual_tokens_total", "Visual tokens of encoded images.", now.visual_tokens),
            ("slicemill_output_tokens_total", "Generated tokens.", now.output_tokens),
            ("slicemill_input_bytes_total", "Bytes of inputs read.", now.bytes_fetched),
            ("slicemill_oom_halvings_total", "Batches made smaller for want of device memory.", now.oom_halvings),
            ("slicemill_device_retries_total", "Device calls tried again.", now.device_retries),
            ("slicemill_rows_rerun_total", "Rows run again because a worker was lost.", now.rows_rerun),
            ("slicemill_worker_deaths_total", "Device workers that died.", now.worker_deaths),
            ("slicemill_worker_hangs_total", "Device workers that gave no sign for too long.", now.worker_hangs),
            ("slicemill_worker_restarts_total", "Devices opened anew.", now.worker_restarts),
        ] {
            self.one(name, "counter", help, value as f64);
        }
        self.one("slicemill_held_bytes", "gauge", "Compressed and prepared bytes held.", now.bytes_held as f64);
        self.one("slicemill_held_bytes_peak", "gauge", "The most of them at once.", now.bytes_held_peak as f64);
        let busy = [
            ("fetch", now.fetch_busy),
            ("prepare", now.prepare_busy),
            ("encode", now.encode_busy),
            ("generate", now.generate_busy),
        ];
        self.by_label(
            ("slicemill_busy_seconds_total", "counter", "Time at work by stage, summed over its workers."),
            "stage",
            busy.map(|(stage, time)| (stage, time.as_secs_f64())),
        );
        let waiting = [
            ("fetch", now.fetch_waiting),
            ("prepare", now.prepare_waiting),
            ("lease", now.lease_waiting),
            ("device", now.device_waiting),
        ];
        self.by_label(
            ("slicemill_waiting_seconds_total", "counter", "Time waiting by stage, summed over what waits."),
            "stage",
            waiting.map(|(stage, time)| (stage, time.as_secs_f64())),
        );
        let workers = [("fetch", now.fetch_workers), ("prepare", now.prepare_workers), ("device", now.devices)];
        self.by_label(
            ("slicemill_workers", "gauge", "Workers by stage."),
            "stage",
            workers.map(|(stage, workers)| (stage, f64::from(workers))),
        );
    }

    fn io(&mut self, io: &IoSnapshot) {
        for (name, help, value) in [
            ("slicemill_store_requests_total", "Requests sent to stores.", io.requests),
            ("slicemill_store_read_bytes_total", "Bytes of bodies read from stores.", io.bytes_read),
            ("slicemill_store_written_bytes_total", "Bytes of objects written to stores.", io.bytes_written),
            ("slicemill_store_retries_total", "Store operations tried again.", io.retries),
            ("slicemill_store_resumed_total", "Broken bodies continued where they broke.", io.resumed),
        ] {
            self.one(name, "counter", help, value as f64);
        }
        self.by_label(
            ("slicemill_store_errors_total", "counter", "Errors of stores by code, mended ones included."),
            "code",
            io.by_code.iter().map(|(code, count)| (code.as_str(), *count as f64)),
        );
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn get(address: SocketAddr, request: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn counters_are_served_and_written() {
        let metrics = Metrics::new(IoCounters::default());
        let counters = Arc::<Progress>::default();
        metrics.started(&RunTotals { rows: 10, rows_before: 4, unasked: 0 }, &counters);
        metrics.committed(&Counts { inputs: 3, ..Counts::default() });
        let (address, task) = metrics.serve(([127, 0, 0, 1], 0).into()).await.unwrap();
        let answer = get(address, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        for line in
            ["slicemill_rows 10\n", "slicemill_rows_committed 7\n", "slicemill_rows_done_total{outcome=\"ok\"} 0\n"]
        {
            assert!(answer.contains(line), "{line} in {answer}");
        }
        assert!(get(address, "GET / HTTP/1.0\r\n\r\n").await.starts_with("HTTP/1.0 404"));
        assert!(get(address, "POST /metrics HTTP/1.0\r\n\r\n").await.starts_with("HTTP/1.0 405"));
        let busy = metrics.serve(address).await.unwrap_err();
        assert!(busy.message.contains(&address.to_string()), "{}", busy.message);
        drop(task);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("slicemill.prom");
        metrics.finished();
        metrics.write(&file).unwrap();
        assert!(std::fs::read_to_string(&file).unwrap().contains("slicemill_run_finished 1\n"));
    }

    /// Every sample belongs to a metric that was declared before it, and every metric is declared once.
    #[test]
    fn the_page_is_well_formed() {
        let metrics = Metrics::new(IoCounters::default());
        metrics.started(&RunTotals { rows: 1, rows_before: 0, unasked: 0 }, &Arc::default());
        let text = metrics.text();
        let mut declared: Vec<&str> = Vec::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let name = rest.split(' ').next().unwrap();
                assert!(!declared.contains(&name), "{name} twice");
                declared.push(name);
            } else if !line.starts_with('#') {
                let name = line.split(['{', ' ']).next().unwrap();
                assert_eq!(declared.last(), Some(&name), "{line}");
                assert!(line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(), "{line}");
            }
        }
        assert!(declared.len() > 20);
    }
}
