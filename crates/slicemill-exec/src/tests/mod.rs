//! Whole jobs in temporary folders, on a deterministic model.

mod corruption;
mod job_files;
mod outputs;
mod questions;
mod runs;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use slicemill_core::SlicingPolicy;
use slicemill_io::{StoreOptions, Stores};
use slicemill_pipeline::fake::{FakeFactory, FakeOptions};
use slicemill_pipeline::{BackendFactory, DeviceId};
use tempfile::TempDir;

use crate::{ExecError, Job, JobDraft, RunObserver, RunOptions, RunSummary, StopSignal, run_job};

/// Stores without options.
pub(super) fn stores() -> Stores {
    Stores::new(StoreOptions::new())
}

/// Sizes of the readable images.
const SIZES: [(u32, u32); 9] =
    [(40, 30), (100, 20), (28, 28), (20, 90), (120, 60), (33, 47), (64, 64), (90, 30), (15, 80)];

/// A folder of inputs and room for outputs.
pub(super) struct Place {
    folder: TempDir,
}

/// An image whose pixels differ from those of every other seed.
pub(super) fn png(width: u32, height: u32, seed: u32) -> Vec<u8> {
    let pixels = image::RgbImage::from_fn(width, height, |x, y| {
        let value = x.wrapping_mul(7).wrapping_add(y.wrapping_mul(13)).wrapping_add(seed.wrapping_mul(29));
        image::Rgb([value as u8, (value >> 3) as u8, (seed * 11) as u8])
    });
    let mut bytes = std::io::Cursor::new(Vec::new());
    pixels.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

impl Place {
    /// Nine readable images in two folders, three broken ones, one text file.
    pub(super) fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        for (number, (width, height)) in (0..).zip(SIZES) {
            let folder = if number % 2 == 0 { "even" } else { "odd" };
            place.write(&format!("{folder}/image-{number}.png"), &png(width, height, number));
        }
        let whole = png(50, 50, 77);
        place.write("broken/cut.png", &whole[..whole.len() / 2]);
        place.write("broken/empty.jpg", b"");
        place.write("broken/text.jpg", b"this is not an image");
        place.write("notes.txt", b"nothing to see");
        place
    }

    pub(super) fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.input().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    pub(super) fn input(&self) -> PathBuf {
        self.folder.path().join("in")
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(super) fn at(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// A job over all inputs: four rows a chunk, eight rows a shard.
    pub(super) fn job(&self, task: &str, output: &str, more: &str) -> Job {
        self.job_with(task, output, &format!("output.chunk_rows = 4\noutput.shard_rows = 8\n{more}"))
    }

    /// A job that says its own rows of chunks and shards.
    pub(super) fn job_with(&self, task: &str, output: &str, more: &str) -> Job {
        let factory = fake(FakeOptions::default());
        let (input, output) = (self.input(), self.at(output));
        let text = format!("task = '{task}'\ninput.paths = ['{}']\noutput.path = '{output}'\n{more}", input.display());
        JobDraft::from_text("job.toml", &text, &[]).unwrap().resolve(factory.card()).unwrap()
    }

    /// Names and bytes of all files that do not depend on the clock.
    pub(super) fn content(&self, output: &str) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        for dataset in ["captions", "answers", "tokens", "failed", "skipped"] {
            let folder = self.path(output).join(dataset);
            for entry in fs::read_dir(folder).into_iter().flatten() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap();
                files.insert(format!("{dataset}/{name}"), fs::read(&path).unwrap());
            }
        }
        files
    }
}

/// A deterministic model with small slices.
pub(super) fn fake(options: FakeOptions) -> Arc<FakeFactory> {
    let policy = SlicingPolicy::named("llava-uhd-raw").unwrap().with_overrides(Some(28), Some(14), None).unwrap();
    Arc::new(FakeFactory::new(policy, options))
}

pub(super) fn cpus(count: u32) -> RunOptions {
    RunOptions { devices: (0..count).map(DeviceId::Cpu).collect(), threads: Some(2), ..RunOptions::default() }
}

/// Runs a job that nobody watches.
pub(super) async fn run(job: &Job) -> Result<RunSummary, ExecError> {
    run_with(job, &cpus(1), fake(FakeOptions::default())).await
}

pub(super) async fn run_with(
    job: &Job,
    options: &RunOptions,
    factory: Arc<FakeFactory>,
) -> Result<RunSummary, ExecError> {
    let factory: Arc<dyn BackendFactory> = factory;
    let observer: Arc<dyn RunObserver> = Arc::new(());
    run_job(job, options, factory, StopSignal::new(), observer).await
}

/// Replaces the text `from` in a file.
pub(super) fn edit(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{} has no {from}", path.display());
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}
