//! `slicemill slices`: pictures of exactly what the model will see, before normalisation.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use slicemill_core::{ImageOptions, ModelCard, RowError, SlicePlan, SlicingPolicy, ViewKind};
use slicemill_image::RgbImage;

use crate::args::SlicesArgs;
use crate::exit::{Exit, Failure};
use crate::printing::Printer;

/// Writes `DIR/<file stem>/overview.png`, `slice-01.png` … row by row, and `plan.json`.
pub fn run(args: &SlicesArgs, printer: &Printer) -> Result<Exit, Failure> {
    let draft = super::annotate::draft_of_flags(crate::document::slices(args))?;
    let factory = crate::models::open(draft.model_name(), draft.windows(), crate::models::Runtime::default())?;
    let job = draft.resolve(factory.card()).map_err(Failure::usage)?;
    let folders = folders(&args.images, &args.output)?;
    let mut exit = Exit::Done;
    for (image, folder) in args.images.iter().zip(folders) {
        match write_views(image, &folder, &job.image, &job.policy, factory.card()) {
            Ok(plan) => printer.line(&format!(
                "{}: {} slices ({}x{}) of {} and an overview of {} in {}",
                image.display(),
                plan.slices(),
                plan.grid.cols,
                plan.grid.rows,
                plan.slice,
                plan.overview,
                folder.display()
            ))?,
            Err(failure) => {
                tracing::error!(target: "slicemill", "{failure}");
                exit = Exit::RowsFailed;
            }
        }
    }
    Ok(exit)
}

/// One folder per image; images of the same stem would overwrite each other.
fn folders(images: &[PathBuf], output: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut seen: BTreeMap<PathBuf, &Path> = BTreeMap::new();
    let mut folders = Vec::with_capacity(images.len());
    for image in images {
        let Some(stem) = image.file_stem() else {
            return Err(Failure::usage(format!("{} is not a file", image.display())));
        };
        let folder = output.join(stem);
        if let Some(other) = seen.insert(folder.clone(), image) {
            return Err(Failure::usage(format!(
                "{} and {} would both be written to {}: give them in two calls with different -o",
                other.display(),
                image.display(),
                folder.display()
            )));
        }
        folders.push(folder);
    }
    Ok(folders)
}

fn write_views(
    path: &Path,
    folder: &Path,
    options: &ImageOptions,
    policy: &SlicingPolicy,
    card: &ModelCard,
) -> Result<SlicePlan, Failure> {
    let name = path.display().to_string();
    let failed = |error: &dyn std::fmt::Display| Failure::failed(format!("{name}: {error}"));
    let row_failed = |error: RowError| failed(&error);
    let bytes = fs::read(path).map_err(|error| failed(&error))?;
    let header = slicemill_image::read_header(&bytes, &name, options).map_err(row_failed)?;
    let plan = policy.plan(header.oriented_size(options.orientation)).map_err(|error| failed(&error))?;
    let decoded = slicemill_image::decode(&bytes, &header, options).map_err(row_failed)?;
    let views = slicemill_image::cut_views(&decoded.image, &plan, slicemill_image::pad_colour(&card.normalisation))
        .map_err(row_failed)?;
    fs::create_dir_all(folder).map_err(|error| Failure::failed(format!("{}: {error}", folder.display())))?;
    for (view, pixels) in plan.views().iter().zip(&views) {
        let file = match view.kind {
            ViewKind::Overview => "overview.png".to_owned(),
            ViewKind::Slice { col, row } => format!("slice-{:02}.png", row * plan.grid.cols + col + 1),
        };
        write_png(&folder.join(file), pixels)?;
    }
    let json = serde_json::to_string_pretty(&described(&name, policy, card, &plan)).map_err(|error| failed(&error))?;
    fs::write(folder.join("plan.json"), json + "\n").map_err(|error| failed(&error))?;
    Ok(plan)
}

/// The plan as people and programs read it.
fn described(name: &str, policy: &SlicingPolicy, card: &ModelCard, plan: &SlicePlan) -> serde_json::Value {
    serde_json::json!({
        "source": name,
        "policy": policy,
        "image": plan.image,
        "working": plan.working,
        "grid": plan.grid,
        "slice": plan.slice,
        "overview": plan.overview,
        "slices": plan.slices(),
        "visual_tokens": plan.visual_tokens(card.token_rule),
        "views": plan.views(),
    })
}

fn write_png(path: &Path, pixels: &RgbImage) -> Result<(), Failure> {
    let size = pixels.size();
    image::save_buffer(path, pixels.as_bytes(), size.width, size.height, image::ExtendedColorType::Rgb8)
        .map_err(|error| Failure::failed(format!("{}: {error}", path.display())))
}
