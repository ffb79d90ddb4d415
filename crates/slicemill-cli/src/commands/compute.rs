//! `slicemill plan --sizes FILE --compute`: visual tokens and compute of every size, for a model of which config.json is
//! enough.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;
use slicemill_core::{ComputeRecipe, Flops, ModelCard, Size, SlicingPolicy};

use crate::args::{Format, PlanArgs, Recipe};
use crate::exit::{Exit, Failure};
use crate::models;
use crate::printing::Printer;

/// A size and what it takes.
#[derive(Debug, Serialize)]
struct Row {
    width: u32,
    height: u32,
    slices: u32,
    visual_tokens: u64,
    text_tokens: u64,
    flops: Flops,
    flops_total: u64,
    error: String,
}

/// Prints a row per size.
pub fn run(args: &PlanArgs, sizes: &Path, printer: Printer) -> Result<Exit, Failure> {
    let card = models::card(args.job.model.as_deref().unwrap_or("embedded"))?;
    let policy = policy(args, &card)?;
    let recipe = match args.recipe {
        Recipe::Run => ComputeRecipe::RUN,
        Recipe::Paper => ComputeRecipe::PAPER,
    };
    let rows: Vec<Row> = super::plan::read_sizes(sizes)?
        .into_iter()
        .map(|size| row(&card, &policy, recipe, args.text_tokens, size))
        .collect();
    match args.format {
        Some(Format::Json) => printer.json(&rows)?,
        Some(Format::Csv) => printer.text(&csv(&rows))?,
        None | Some(Format::Text) => printer.text(&text(&rows))?,
    }
    Ok(Exit::Done)
}

/// The model's own policy, or the named one with the model's side and patch.
fn policy(args: &PlanArgs, card: &ModelCard) -> Result<SlicingPolicy, Failure> {
    let named = match &args.job.policy {
        None => card.policy.clone(),
        Some(name) => SlicingPolicy::named(name)
            .ok_or_else(|| Failure::usage(format!("no policy {name}: there are {}", SlicingPolicy::NAMES.join(", "))))?
            .with_overrides(Some(card.policy.side), Some(card.policy.patch), None)
            .map_err(Failure::usage)?,
    };
    named.with_overrides(args.job.side, args.job.patch, args.job.max_slices).map_err(Failure::usage)
}

fn row(card: &ModelCard, policy: &SlicingPolicy, recipe: ComputeRecipe, text_tokens: u64, size: Size) -> Row {
    let mut row = Row {
        width: size.width,
        height: size.height,
        slices: 0,
        visual_tokens: 0,
        text_tokens,
        flops: Flops::default(),
        flops_total: 0,
        error: String::new(),
    };
    match policy.plan(size) {
        Ok(plan) => {
            row.slices = plan.slices();
            row.visual_tokens = plan.visual_tokens(card.token_rule);
            row.flops = card.shape.prompt_flops_by(recipe, &plan, policy.side, card.token_rule, text_tokens);
            row.flops_total = row.flops.total();
        }
        Err(rejection) => row.error = rejection.to_string(),
    }
    row
}

fn csv(rows: &[Row]) -> String {
    let mut out = String::from(
        "width,height,slices,visual_tokens,text_tokens,vision_flops,projector_flops,prefill_flops,total_flops,error\n",
    );
    for row in rows {
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "{},{},{},{},{},{},{},{},{},{}",
            row.width,
            row.height,
            row.slices,
            row.visual_tokens,
            row.text_tokens,
            row.flops.vision,
            row.flops.projector,
            row.flops.prefill,
            row.flops_total,
            row.error.replace(',', ";")
        );
    }
    out
}

fn text(rows: &[Row]) -> String {
    let mut out = format!(
        "{:>13} {:>7} {:>8} {:>9} {:>9} {:>9} {:>9}\n",
        "size", "slices", "tokens", "vision", "projector", "prefill", "TFLOPs"
    );
    let tera = |flops: u64| flops as f64 / 1e12;
    for row in rows {
        let size = format!("{} x {}", row.width, row.height);
        let _ = match row.error.as_str() {
            "" => writeln!(
                out,
                "{size:>13} {:>7} {:>8} {:>9.2} {:>9.2} {:>9.2} {:>9.2}",
                row.slices,
                row.visual_tokens,
                tera(row.flops.vision),
                tera(row.flops.projector),
                tera(row.flops.prefill),
                tera(row.flops_total)
            ),
            error => writeln!(out, "{size:>13} {error}"),
        };
    }
    out
}
