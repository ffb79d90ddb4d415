//! Tests of the whole dataflow, on images of a few pixels and the fake model.

mod bounds;
mod content;
mod estimates;
mod faults;
mod filter;
mod lost;
mod memory;
mod pool;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use slicemill_core::{
    BatchLimits, ContentRow, ErrorClass, FailedRow, GenerationParams, ImageOptions, RowError, RowOutcome,
    SlicingPolicy, Stage, TaskKind, TimingRow, TokenDtype,
};

use crate::{
    AnnotateSpec, Annotator, BackendFactory, DevicePool, Fetch, FetchError, Fetched, HostPool, InputRef, PipelineError,
    Progress, PromptItem, RuntimeLimits,
    fake::{FakeFactory, FakeOptions},
    parse_devices,
};

/// Objects in memory. Keys that begin with `missing` are not there, a `fatal` one ends the job.
#[derive(Default)]
struct MemoryStore {
    objects: BTreeMap<String, Bytes>,
    reads: AtomicUsize,
    reads_peak: AtomicUsize,
}

impl Fetch for MemoryStore {
    fn fetch<'a>(&'a self, row: &'a InputRef) -> BoxFuture<'a, Result<Fetched, FetchError>> {
        async move {
            let reads = self.reads.fetch_add(1, SeqCst) + 1;
            self.reads_peak.fetch_max(reads, SeqCst);
            tokio::task::yield_now().await;
            self.reads.fetch_sub(1, SeqCst);
            if row.key.starts_with("fatal") {
                return Err(FetchError::Fatal("the store is gone".into()));
            }
            match self.objects.get(&row.key) {
                Some(bytes) => Ok(Fetched { bytes: bytes.clone(), attempts: 1 }),
                None => {
                    let error = RowError::new(ErrorClass::NotFound, Stage::Fetch, "not there");
                    Err(FetchError::Row { error, attempts: 4 })
                }
            }
        }
        .boxed()
    }
}

/// A PNG of this size whose pixels depend on `seed`.
fn png(width: u32, height: u32, seed: u32) -> Vec<u8> {
    let pixels = image::RgbImage::from_fn(width, height, |x, y| {
        let value = x.wrapping_mul(7).wrapping_add(y.wrapping_mul(13)).wrapping_add(seed.wrapping_mul(31));
        image::Rgb([value as u8, (value >> 3) as u8, (seed % 251) as u8])
    });
    let mut bytes = std::io::Cursor::new(Vec::new());
    pixels.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// Slices of 28 pixels, so that images of some ten pixels are sliced.
fn small_policy() -> SlicingPolicy {
    SlicingPolicy { side: 28, patch: 14, max_slices: 6, ..SlicingPolicy::named("llava-uhd-raw").unwrap() }
}

fn spec(task: TaskKind) -> AnnotateSpec {
    AnnotateSpec {
        task,
        image: ImageOptions::default(),
        policy: small_policy(),
        generation: GenerationParams { max_new_tokens: 12, temperature: 1.0, seed: 9, ..GenerationParams::default() },
        prompt_template: None,
        token_ids: true,
        dtype: TokenDtype::F32,
    }
}

fn prompts(task: TaskKind) -> Arc<[PromptItem]> {
    let item = |question_id, question: &str| PromptItem { question_id, question: question.into(), prompt: None };
    match task {
        TaskKind::Caption => Arc::new([item(None, "Describe it.")]),
        TaskKind::Ask => {
            Arc::new([item(Some(0), "How many?"), item(Some(1), "Which colour is it?"), item(Some(2), "What text?")])
        }
        TaskKind::Encode => Arc::new([]),
    }
}

/// A chunk of rows with the store that has their objects.
#[derive(Default)]
struct Input {
    rows: Vec<InputRef>,
    store: MemoryStore,
}

impl Input {
    fn add(&mut self, key: &str, object: Option<Vec<u8>>, task: TaskKind) {
        let bytes = object.as_ref().map_or(100, Vec::len) as u64;
        if let Some(object) = object {
            self.store.objects.insert(key.into(), object.into());
        }
        let source = format!("memory:///{key}");
        self.rows.push(InputRef {
            key: key.into(),
            source,
            bytes,
            estimated: false,
            tag: String::new(),
            prompts: prompts(task),
            columns: Some(format!("{{\"key\":\"{key}\"}}").into()),
        });
    }

    /// `count` images of many sizes.
    fn images(count: u32, task: TaskKind) -> Self {
        let mut input = Self::default();
        for number in 0..count {
            let (width, height) = (8 + number * 37 % 120, 8 + number * 53 % 90);
            input.add(&format!("image-{number:03}.png"), Some(png(width, height, number)), task);
        }
        input
    }

    /// The same object as [`Input::images`] with what goes wrong in between.
    fn with_trouble(task: TaskKind) -> Self {
        let mut input = Self::images(12, task);
        let whole = png(50, 60, 99);
        let trouble: [(&str, Option<Vec<u8>>); 6] = [
            ("truncated.png", Some(whole[..whole.len() * 2 / 3].to_vec())),
            ("notes.txt", Some(b"no picture, only a text that is long enough to be looked at".to_vec())),
            ("fake.jpg", Some(b"a text that is called a picture and is not one".to_vec())),
            ("empty.jpg", Some(Vec::new())),
            ("empty", Some(Vec::new())),
            ("missing.png", None),
        ];
        for (position, (key, object)) in trouble.into_iter().enumerate() {
            input.add(key, object, task);
            let row = input.rows.pop().unwrap();
            input.rows.insert(position * 2, row);
        }
        input
    }

    fn store(self) -> (Vec<InputRef>, Arc<MemoryStore>) {
        (self.rows, Arc::new(self.store))
    }
}

/// Small limits, so that a few rows make many windows and batches.
fn limits() -> RuntimeLimits {
    RuntimeLimits {
        batch: BatchLimits { views_max: 16, patches_max: 200, held_bytes_max: 1 << 20 },
        sequences_max: 5,
        fetch_concurrency: 3,
        window_bytes_max: 64 << 10,
        prepared_bytes_max: 256 << 10,
        decode_bytes_max: 1 << 20,
        ..RuntimeLimits::default()
    }
}

/// An annotator with its fake.
struct Rig {
    factory: Arc<FakeFactory>,
    pool: Arc<DevicePool>,
    annotator: Annotator,
    progress: Arc<Progress>,
}

impl Rig {
    fn new(task: TaskKind, devices: &str, limits: RuntimeLimits, options: FakeOptions) -> Self {
        let factory = Arc::new(FakeFactory::new(small_policy(), options));
        Self::with_factory(factory, spec(task), devices, limits)
    }

    fn with_factory(factory: Arc<FakeFactory>, spec: AnnotateSpec, devices: &str, limits: RuntimeLimits) -> Self {
        let shared: Arc<dyn BackendFactory> = factory.clone();
        let pool = Arc::new(DevicePool::start(&shared, &parse_devices(devices).unwrap()).unwrap());
        let host = Arc::new(HostPool::new(2).unwrap());
        let progress = Arc::new(Progress::default());
        let annotator = Annotator::new(shared, pool.clone(), host, spec, limits, progress.clone()).unwrap();
        Self { factory, pool, annotator, progress }
    }

    /// Annotates one chunk.
    fn run(&self, input: Input) -> Result<Vec<RowOutcome>, PipelineError> {
        let (rows, store) = input.store();
        wait(self.annotator.annotate_chunk(rows, store))
    }

    /// Ends the devices and checks that the protocol was kept.
    fn close(self) -> crate::fake::FakeCounts {
        let Self { factory, pool, annotator, .. } = self;
        drop(annotator);
        factory.release_hangs();
        Arc::into_inner(pool).expect("nothing else holds the pool").join();
        until(|| factory.counts().closed == factory.counts().opened, "a worker left behind has not ended");
        let counts = factory.counts();
        assert_eq!(counts.breaches, Vec::<String>::new());
        assert_eq!((counts.images_live, counts.sequences_live), (0, 0), "something stayed on a device");
        counts
    }
}

/// Waits for something that happens soon on another thread.
fn until(happened: impl Fn() -> bool, otherwise: &str) {
    let soon = (0..1000).any(|_| {
        let now = happened();
        if !now {
            std::thread::sleep(Duration::from_millis(5));
        }
        now
    });
    assert!(soon, "{otherwise}");
}

/// Drives a future; a hang is a failure.
fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    let waited = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), future).await });
    waited.expect("it hangs")
}

/// Outcomes without wall clock.
fn content(outcomes: Vec<RowOutcome>) -> Vec<RowOutcome> {
    let strip = |outcome| match outcome {
        RowOutcome::Ok { rows, .. } => RowOutcome::Ok { rows, timing: TimingRow::default() },
        other => other,
    };
    outcomes.into_iter().map(strip).collect()
}

/// The content of a run with these limits and this fake, which must keep to the protocol.
fn run(task: TaskKind, devices: &str, limits: RuntimeLimits, options: FakeOptions, input: Input) -> Vec<RowOutcome> {
    let rig = Rig::new(task, devices, limits, options);
    let outcomes = rig.run(input).unwrap();
    rig.close();
    content(outcomes)
}

fn rows_of(outcomes: &[RowOutcome]) -> Vec<&ContentRow> {
    outcomes
        .iter()
        .flat_map(|outcome| match outcome {
            RowOutcome::Ok { rows, .. } => &rows[..],
            _ => &[],
        })
        .collect()
}

fn failures(outcomes: &[RowOutcome]) -> Vec<&FailedRow> {
    outcomes
        .iter()
        .filter_map(|outcome| match outcome {
            RowOutcome::Failed(failed) => Some(failed),
            _ => None,
        })
        .collect()
}

fn key_of(outcome: &RowOutcome) -> &str {
    match outcome {
        RowOutcome::Ok { rows, .. } => &rows[0].key,
        RowOutcome::Failed(failed) => &failed.key,
        RowOutcome::Skipped(skipped) => &skipped.key,
    }
}

const TASKS: [TaskKind; 3] = [TaskKind::Caption, TaskKind::Ask, TaskKind::Encode];
