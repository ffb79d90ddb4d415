//! `slicemill plan`: what a job will take, from headers or from sizes alone.

use std::path::Path;
use std::sync::Arc;

use slicemill_core::{PlanRow, Size, SlicingPolicy};
use slicemill_exec::{JobDraft, RunOptions, StopSignal};

use crate::args::{Format, OutputFlags, PlanArgs, ShareFlags};
use crate::exit::{Exit, Failure};
use crate::models;
use crate::printing::Printer;

use super::annotate::{KeptInput, draft_of_file, draft_of_flags, failure_of, run_options, runtime, runtime_of, stores};

/// Plans sizes, inputs or a job file.
pub fn run(args: &PlanArgs, flags: &OutputFlags, printer: Printer) -> Result<Exit, Failure> {
    if let Some(sizes) = &args.sizes {
        return if args.compute { super::compute::run(args, sizes, printer) } else { plan_sizes(args, sizes, printer) };
    }
    let draft = match &args.job_file {
        Some(file) => draft_of_file(file, &args.set)?,
        None => draft_of_flags(crate::document::plan(args))?,
    };
    plan_draft(args, flags, &draft, printer)
}

fn plan_sizes(args: &PlanArgs, path: &Path, printer: Printer) -> Result<Exit, Failure> {
    let policy = sizes_policy(args)?;
    let rows: Vec<PlanRow> = read_sizes(path)?.into_iter().map(|size| PlanRow::new(size, &policy.plan(size))).collect();
    match args.format {
        Some(Format::Json) => printer.json(&rows.iter().map(json_row).collect::<Vec<_>>())?,
        _ => {
            let mut text = String::with_capacity(64 * (rows.len() + 1));
            for line in std::iter::once(PlanRow::CSV_HEADER.to_owned()).chain(rows.iter().map(PlanRow::to_csv_line)) {
                text.push_str(&line);
                text.push('\n');
            }
            printer.text(&text)?;
        }
    }
    Ok(Exit::Done)
}

/// The columns `width` and `height` of a CSV file; further columns are read past.
pub(super) fn read_sizes(path: &Path) -> Result<Vec<Size>, Failure> {
    let name = path.display();
    let wrong = |error: csv::Error| Failure::usage(format!("{name}: {error}"));
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).flexible(true).from_path(path).map_err(wrong)?;
    let headers = reader.headers().map_err(wrong)?.clone();
    let column = |wanted: &str| {
        headers.iter().position(|header| header == wanted).ok_or_else(|| {
            Failure::usage(format!("{name}: no column {wanted}; the first line names the columns, as: width,height"))
        })
    };
    let (width, height) = (column("width")?, column("height")?);
    let mut sizes = Vec::new();
    for record in reader.records() {
        let record = record.map_err(wrong)?;
        let line = record.position().map_or(0, csv::Position::line);
        let number = |at: usize| {
            let text = record.get(at).unwrap_or_default();
            text.parse::<u32>().map_err(|_| {
                Failure::usage(format!(
                    "{name}, line {line}: {text:?} is not a number of pixels; mend or remove the line"
                ))
            })
        };
        sizes.push(Size::new(number(width)?, number(height)?));
    }
    Ok(sizes)
}

/// A policy of its own, without a model: sizes and patches are the policy's unless overridden.
fn sizes_policy(args: &PlanArgs) -> Result<SlicingPolicy, Failure> {
    let policy = match &args.job.policy {
        Some(name) => SlicingPolicy::named(name).ok_or_else(|| {
            Failure::usage(format!("no policy {name}: there are {}", SlicingPolicy::NAMES.join(", ")))
        })?,
        None => {
            let name = args.job.model.as_deref().unwrap_or("embedded");
            models::card(name)?.policy
        }
    };
    policy.with_overrides(args.job.side, args.job.patch, args.job.max_slices).map_err(Failure::usage)
}

fn json_row(row: &PlanRow) -> serde_json::Value {
    serde_json::json!({
        "width": row.width, "height": row.height, "num_slices": row.num_slices,
        "grid_cols": row.grid_cols, "grid_rows": row.grid_rows, "slice_w": row.slice_w, "slice_h": row.slice_h,
        "overview_w": row.overview_w, "overview_h": row.overview_h,
        "error": (!row.error.is_empty()).then_some(&row.error),
    })
}

fn plan_draft(args: &PlanArgs, flags: &OutputFlags, draft: &JobDraft, printer: Printer) -> Result<Exit, Failure> {
    let options = run_options(&args.run, &ShareFlags::default(), stores(flags)?)?;
    let factory = models::open(draft.model_name(), draft.windows(), runtime_of(&options, draft.num_beams()))?;
    let job = draft.resolve(factory.card()).map_err(Failure::usage)?;
    let kept = KeptInput::of(&job.inputs)?;
    let options = RunOptions { standard_input: kept.as_ref().map(KeptInput::input), ..options };
    let summary = runtime()?.block_on(async {
        let mut summary = slicemill_exec::plan_job(&job, Arc::clone(&factory), &options).await?;
        if let Some(count) = args.measure {
            let rate = slicemill_exec::measure_rate(&job, &summary, count, &options, factory, StopSignal::new());
            summary.measured = Some(rate.await?);
        }
        Ok(summary)
    });
    let summary = summary.map_err(failure_of)?;
    match args.format {
        None | Some(Format::Text) => printer.line(summary.to_text().trim_end())?,
        Some(Format::Json) => printer.json(&summary)?,
        Some(Format::Csv) => return Err(Failure::usage("--format csv goes with --sizes; choose text or json")),
    }
    Ok(Exit::Done)
}
