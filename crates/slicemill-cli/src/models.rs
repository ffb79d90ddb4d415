//! From the name of a model to the factory that opens it on devices.

use std::path::Path;
use std::sync::Arc;

use slicemill_core::{Normalisation, SlicingPolicy, TokenRule};
use slicemill_model::{BackendOptions, CandleFactory};
use slicemill_pipeline::{BackendFactory, NullFactory};

use crate::exit::Failure;

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

/// Opens the model called `name`: `embedded`, `null`, or the directory of a checkpoint.
pub fn open(name: &str, runtime: Runtime) -> Result<Arc<dyn BackendFactory>, Failure> {
    let mut options = BackendOptions::default();
    options.batch_views_max = runtime.batch_views.unwrap_or(options.batch_views_max);
    options.beams_max = runtime.beams.unwrap_or(options.beams_max).max(1);
    // Unless it is said how many, beams take the places of sequences: the same memory, the same width of a step.
    options.sequences_max = runtime.sequences.unwrap_or((options.sequences_max / options.beams_max).max(1));
    let factory: Arc<dyn BackendFactory> = match name {
        "null" => Arc::new(null_model()),
        "embedded" => Arc::new(CandleFactory::embedded(options).map_err(Failure::failed)?),
        path if Path::new(path).is_dir() => {
            Arc::new(CandleFactory::from_dir(Path::new(path), options).map_err(Failure::failed)?)
        }
        other => {
            return Err(Failure::usage(format!(
                "no model {other}: give embedded, null, or a directory that holds config.json, tokenizer.json and \
                 model.safetensors"
            )));
        }
    };
    Ok(factory)
}

/// The null model plans like the released LLaVA-UHD: 144 visual tokens a view.
fn null_model() -> NullFactory {
    let policy = SlicingPolicy::llava_uhd();
    NullFactory::new(policy, TokenRule::Queries(144), Normalisation::CLIP)
}
