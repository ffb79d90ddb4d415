//! The inputs of a job: what lists them and what reads them.

use std::path::PathBuf;
use std::sync::Arc;

use futures::stream::BoxStream;
use slicemill_io::sources::{Limited, PlaceReader, Sampled, SourceCounts, SourceOptions, SourceSet};
use slicemill_io::tables::{CellReader, TableOptions, Tables};
use slicemill_io::{
    InputColumns, InputEntry, IoError, Location, ObjectFetch, OutputStore, RetryBudget, Source, Spool, Stores,
};

use crate::ExecError;
use crate::freeze::wanted_columns;
use crate::job::{Job, RunOptions};

/// The inputs of a job, of which some may be chosen.
struct JobInputs {
    set: SourceSet,
    chosen: Arc<dyn Source>,
    tables: Tables,
    columns: InputColumns,
}

impl Source for JobInputs {
    fn list(&self) -> BoxStream<'static, Result<InputEntry, IoError>> {
        self.chosen.list()
    }

    fn describe(&self) -> String {
        self.chosen.describe()
    }

    fn check(&self) -> Result<(), IoError> {
        // What stands beside the members of an archive is no column of a table; a listing that was cut short by a limit
        // has not seen everything.
        let archives = |counts: &SourceCounts| counts.containers.keys().any(|kind| kind.starts_with("tar"));
        match self.set.counts() {
            Some(counts) if !counts.iter().any(archives) => self.tables.check_columns(&self.columns),
            _ => Ok(()),
        }
    }

    fn counts(&self) -> Vec<SourceCounts> {
        self.set.counts().unwrap_or_default()
    }
}

/// Lists the inputs of `job`, without what lies in its own output.
///
/// # Errors
/// When an input is not there, or a path cannot be understood.
pub fn source_of(job: &Job, options: &RunOptions, output: Option<&OutputStore>) -> Result<Arc<dyn Source>, ExecError> {
    let stores = stores_of(job, options);
    let select = &job.select;
    let root = select.root.as_ref().map(|root| local_folder(root)).transpose()?;
    let table_options = TableOptions {
        image_column: select.image_column.clone(),
        key_column: select.key_column.clone(),
        root,
        zero_separated: options.standard_input.as_ref().is_some_and(|input| input.zero_separated),
        standard_input: options.standard_input.as_ref().map(|input| input.file.clone()),
        working_folder: std::env::current_dir().ok(),
    };
    let tables = Tables::new(stores.clone(), RetryBudget::default(), table_options);
    let columns = InputColumns::new(wanted_columns(job)?);
    let spool = spool_of(options);
    let source_options = SourceOptions {
        tables: Some(Arc::new(tables.clone())),
        columns: Arc::new(columns.clone()),
        unpacked_max: spool.segment_bytes_max(),
        ..SourceOptions::new(stores, RetryBudget::default())
    };
    let mut set = SourceSet::new(&job.inputs, source_options).map_err(ExecError::Inputs)?;
    if output.is_some() {
        set = set.excluding(&Location::parse(&job.output)?);
    }
    let sampled: Arc<dyn Source> = match select.sample {
        Some(share) => Arc::new(Sampled::new(set.clone(), share)),
        None => Arc::new(set.clone()),
    };
    let chosen: Arc<dyn Source> = match select.limit {
        Some(limit) => Arc::new(Limited::new(sampled, limit)),
        None => sampled,
    };
    Ok(Arc::new(JobInputs { set, chosen, tables, columns }))
}

/// Reads the inputs of `job`.
pub fn fetch_of(options: &RunOptions, job: &Job) -> ObjectFetch {
    let (stores, budget, spool) = (stores_of(job, options), RetryBudget::default(), spool_of(options));
    let cells = CellReader::new(stores.clone(), budget, spool.clone(), ObjectFetch::BYTES_MAX_DEFAULT);
    let inner = PlaceReader::new(stores.clone(), budget, spool).with_cells(cells);
    ObjectFetch::new(stores, budget).with_inner(Arc::new(inner))
}

/// The stores of this run. Web servers that the command names may be in private networks; those that only the data
/// names may not.
fn stores_of(job: &Job, options: &RunOptions) -> Stores {
    let named: Vec<_> = job.inputs.iter().filter_map(|input| Location::parse(input).ok()).collect();
    options.stores.clone().allowing(named.iter().map(Location::url))
}

fn spool_of(options: &RunOptions) -> Spool {
    let folder = options.spool.folder.clone().unwrap_or_else(std::env::temp_dir);
    Spool::new(folder, options.spool.bytes_max.unwrap_or(Spool::BYTES_MAX_DEFAULT))
}

fn local_folder(root: &str) -> Result<PathBuf, ExecError> {
    Location::parse(root)?.local_path().ok_or_else(|| {
        let message = format!("--root {root} is not a local folder; it says which local files a list may name");
        ExecError::Inputs(IoError::fatal(slicemill_io::IoErrorKind::Invalid, message))
    })
}
