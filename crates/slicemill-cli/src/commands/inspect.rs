//! `verify`, `report`, `sql`, `sidecars` and `schema`: looking at an output.

use slicemill_core::{TaskKind, TokenDtype};
use slicemill_io::{ContentSpec, Dataset, schema_text};

use crate::args::{Format, OutArgs, OutputFlags, ReportArgs, SchemaArgs, SidecarArgs, SqlArgs};
use crate::exit::{Exit, Failure};
use crate::printing::Printer;

use super::annotate::{runtime, stores};

/// Shows a result in the form that was asked for.
fn show(text: &str, value: &impl serde::Serialize, format: Format, printer: Printer) -> Result<(), Failure> {
    match format {
        Format::Text => printer.line(text.trim_end()),
        Format::Json => printer.json(value),
        Format::Csv => Err(Failure::usage("csv is a form of rows; choose text or json here")),
    }
}

/// `slicemill verify OUT`.
pub fn verify(args: &OutArgs, flags: &OutputFlags, printer: Printer) -> Result<Exit, Failure> {
    let verification =
        runtime()?.block_on(slicemill_exec::verify_output(&args.out, &stores(flags)?)).map_err(Failure::failed)?;
    show(&verification.to_text(), &verification, args.format, printer)?;
    Ok(if verification.passed() { Exit::Done } else { Exit::NotVerified })
}

/// `slicemill report OUT`.
pub fn report(args: &ReportArgs, flags: &OutputFlags, printer: Printer) -> Result<Exit, Failure> {
    let report =
        runtime()?.block_on(slicemill_exec::read_report(&args.out, &stores(flags)?)).map_err(Failure::failed)?;
    show(&report.to_text(), &report, args.format, printer)?;
    Ok(Exit::Done)
}

/// `slicemill sql OUT "SELECT …"`.
pub fn sql(args: &SqlArgs, flags: &OutputFlags, printer: Printer) -> Result<Exit, Failure> {
    let result = runtime()?
        .block_on(slicemill_exec::query_output(&args.out, &args.query, &stores(flags)?))
        .map_err(Failure::failed)?;
    let text = match args.format {
        Format::Text => result.to_text(),
        Format::Json => result.to_json(),
        Format::Csv => result.to_csv(),
    };
    printer.line(text.map_err(Failure::failed)?.trim_end())?;
    Ok(Exit::Done)
}

/// `slicemill sidecars OUT FOLDER`.
pub fn sidecars(args: &SidecarArgs, flags: &OutputFlags, printer: Printer) -> Result<Exit, Failure> {
    let stores = stores(flags)?;
    let written = slicemill_exec::write_sidecars(&args.out, &args.folder, &args.suffix, args.replace, &stores);
    let summary = runtime()?.block_on(written).map_err(Failure::failed)?;
    show(&summary.to_text(), &summary, args.format, printer)?;
    Ok(if summary.complete() { Exit::Done } else { Exit::RowsFailed })
}

/// `slicemill schema`.
pub fn schema(args: &SchemaArgs, printer: Printer) -> Result<Exit, Failure> {
    let datasets = match &args.dataset {
        None => Dataset::ALL.to_vec(),
        Some(name) => vec![Dataset::parse(name).ok_or_else(|| {
            let names: Vec<_> = Dataset::ALL.iter().map(|dataset| dataset.name()).collect();
            Failure::usage(format!("no dataset {name}: there are {}", names.join(", ")))
        })?],
    };
    for (number, dataset) in datasets.into_iter().enumerate() {
        if number > 0 {
            printer.line("")?;
        }
        printer.text(&schema_text(dataset, &example_spec(dataset)))?;
    }
    Ok(Exit::Done)
}

/// The widest form of a dataset: with every column that can be asked for.
fn example_spec(dataset: Dataset) -> ContentSpec {
    let task = [TaskKind::Caption, TaskKind::Ask, TaskKind::Encode];
    let task = task.into_iter().find(|task| Dataset::of_task(*task) == dataset).unwrap_or(TaskKind::Caption);
    ContentSpec {
        task,
        token_ids: task != TaskKind::Encode,
        token_dtype: TokenDtype::F32,
        token_width: 0,
        model_fingerprint: String::new(),
        input: slicemill_io::ColumnTypes::default(),
    }
}
