//! From the name of a model to the factory that opens it on devices.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use slicemill_core::{ModelCard, Normalisation, SlicingPolicy, TokenRule, WindowRounding};
use slicemill_model::{BackendOptions, CandleFactory, CheckpointFiles, HubOptions, ModelError, locate, locate_tower};
use slicemill_pipeline::{BackendFactory, NullFactory};

use crate::exit::Failure;

/// Between two lines about one file.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// How backends behave in this run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Runtime {
    /// Views encoded together, when given.
    pub batch_views: Option<u32>,
    /// Sequences decoded together, when given.
    pub sequences: Option<u32>,
    /// Beams of the job's beam search, when it has one.
    pub beams: Option<u32>,
}

/// Opens the model called `name`: `embedded`, `null`, the directory of a checkpoint, or its name on the hub.
pub fn open(name: &str, windows: WindowRounding, runtime: Runtime) -> Result<Arc<dyn BackendFactory>, Failure> {
    let mut options = BackendOptions { windows, ..BackendOptions::default() };
    options.batch_views_max = runtime.batch_views.unwrap_or(options.batch_views_max);
    options.beams_max = runtime.beams.unwrap_or(options.beams_max).max(1);
    // Unless it is said how many, beams take the places of sequences: the same memory, the same width of a step.
    options.sequences_max = runtime.sequences.unwrap_or((options.sequences_max / options.beams_max).max(1));
    let factory: Arc<dyn BackendFactory> = match name {
        "null" if windows != WindowRounding::F32 => {
            return Err(Failure::usage("the null model has no windows to round; leave out --windows"));
        }
        "null" => Arc::new(null_model()),
        "embedded" => Arc::new(CandleFactory::embedded(options).map_err(Failure::failed)?),
        other => {
            let place = Place::find(other)?;
            let opened = CandleFactory::from_files(&place.dir, &place.name, &|tower| place.tower(tower), options);
            Arc::new(opened.map_err(Failure::failed)?)
        }
    };
    Ok(factory)
}

/// The model called `name` as planning sees it. Weights are looked at only where the config leaves something open, and
/// need not be there.
pub fn card(name: &str) -> Result<ModelCard, Failure> {
    match name {
        "null" => Ok(null_model().card().clone()),
        "embedded" => Ok(CandleFactory::embedded(BackendOptions::default()).map_err(Failure::failed)?.card().clone()),
        other => {
            let files = files(other)?;
            let config = match files.weights(&|_| Ok(None)) {
                Ok((config, _)) => config,
                Err(_) => files.model_config(&|_| false).map_err(Failure::failed)?,
            };
            Ok(ModelCard { name: other.to_owned(), ..config.card() })
        }
    }
}

/// The files of a checkpoint, or a config.json alone.
pub fn files(name: &str) -> Result<CheckpointFiles, Failure> {
    if Path::new(name).is_file() {
        return CheckpointFiles::read(Path::new(name), &|_| Ok(None)).map_err(Failure::failed);
    }
    let place = Place::find(name)?;
    CheckpointFiles::read(&place.dir, &|tower| place.tower(tower)).map_err(Failure::failed)
}

/// Where a checkpoint lies.
struct Place {
    dir: PathBuf,
    /// Its path, or `org/name@commit`.
    name: String,
    hub: HubOptions,
}

impl Place {
    fn find(name: &str) -> Result<Self, Failure> {
        #[allow(clippy::disallowed_methods, reason = "this is the one place where the hub's variables are read")]
        let hub = HubOptions::from_env(|name| std::env::var_os(name));
        let located = locate(name, &hub, &announce).map_err(|error| match Path::new(name).exists() {
            true => Failure::failed(error),
            false => Failure::usage(format!(
                "no model {name}: {error}; give embedded, null, a directory with config.json, tokenizer and weights, or \
                 org/name on the hub"
            )),
        })?;
        let name = match located.source {
            Some((repository, commit)) => format!("{repository}@{commit}"),
            None => name.to_owned(),
        };
        Ok(Self { dir: located.dir, name, hub })
    }

    /// A vision tower that the checkpoint needs and does not hold.
    fn tower(&self, reference: &str) -> Result<Option<PathBuf>, ModelError> {
        locate_tower(reference, &self.dir, &self.hub, &announce).map(|located| Some(located.dir))
    }
}

/// Says what is fetched: every file when it begins and when it is there, and how far a large one is.
fn announce(file: &str, done: u64, total: u64) {
    static SAID: Mutex<Option<Instant>> = Mutex::new(None);
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    let due = said.is_none_or(|said| said.elapsed() >= SAY_EVERY);
    if done == 0 || done == total || due {
        *said = Some(Instant::now());
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        match done {
            0 => tracing::info!(target: "slicemill", "fetching {file} ({:.1} MiB)", mib(total)),
            _ if done == total => tracing::info!(target: "slicemill", "fetched {file}"),
            _ => tracing::info!(target: "slicemill", "fetching {file}: {:.0} of {:.0} MiB", mib(done), mib(total)),
        }
    }
}

/// The null model plans like the released LLaVA-UHD: 144 visual tokens a view.
fn null_model() -> NullFactory {
    let policy = SlicingPolicy::llava_uhd();
    NullFactory::new(policy, TokenRule::Queries(144), Normalisation::CLIP)
}
