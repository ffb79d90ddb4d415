//! Cutting an image into the views of its plan: exactly what the model sees, before normalisation.

use slicemill_core::{Cut, ErrorClass, Normalisation, Rect, RowError, Size, SlicePlan, Stage, ViewKind};

use crate::fault::{Fault, zeroed};
use crate::{RgbImage, resize};

/// The colour that [`Cut::PadSquare`] pads with: `int(255 · mean)`, as LLaVA-1.5's `expand2square` is called.
pub fn pad_colour(normalisation: &Normalisation) -> [u8; 3] {
    // f32 means such as 0.48145466 must become the f64 that Python computes with, whose product is truncated.
    normalisation.mean.map(|mean| (shortest_f64(mean) * 255.0) as u8)
}

/// The f64 with the same shortest decimal form.
fn shortest_f64(value: f32) -> f64 {
    value.to_string().parse().unwrap_or_else(|_| f64::from(value))
}

/// Cuts an upright image into the views of `plan`, in the order of [`SlicePlan::views`].
///
/// * [`Cut::ResizeThenCut`]: the image is resized to `plan.working` when that differs; of the working image, one
///   resize to `plan.refined()` is cut into equal tiles, another is the overview.
/// * [`Cut::CutThenResize`]: the working image is cut into `plan.crop_boxes()`, each is resized to the slice size.
/// * [`Cut::PadSquare`]: the working image is centred on a square of `pad`; from there as in the first case.
///
/// # Errors
/// `plan_rejected` when the plan is not one of this image; `out_of_memory`.
pub fn cut_views(image: &RgbImage, plan: &SlicePlan, pad: [u8; 3]) -> Result<Vec<RgbImage>, RowError> {
    if image.size() != plan.image {
        return Err(rejected(format!("the image is {}, its plan is for {}", image.size(), plan.image)));
    }
    cut(image, plan, pad)
        .map_err(|fault| RowError::new(fault.class, Stage::Slice, format!("{}; use a smaller side", fault.what)))
}

fn rejected(message: String) -> RowError {
    RowError::new(ErrorClass::PlanRejected, Stage::Slice, format!("{message}; plan the image again"))
}

fn cut(image: &RgbImage, plan: &SlicePlan, pad: [u8; 3]) -> Result<Vec<RgbImage>, Fault> {
    let resized;
    let mut working = image;
    if plan.working != plan.image {
        resized = resize::resize(image, plan.working)?;
        working = &resized;
    }
    let padded;
    if plan.cut == Cut::PadSquare && plan.working.width != plan.working.height {
        padded = pad_square(working, pad)?;
        working = &padded;
    }
    let mut slices = slices(working, plan)?.into_iter();
    let mut views = Vec::with_capacity(plan.view_count() as usize);
    for view in plan.views() {
        views.push(match view.kind {
            ViewKind::Overview => resize::resize(working, plan.overview)?,
            ViewKind::Slice { .. } => {
                slices.next().ok_or_else(|| Fault::plan_rejected("the plan has too few slices"))?
            }
        });
    }
    Ok(views)
}

/// The slices, row by row.
fn slices(working: &RgbImage, plan: &SlicePlan) -> Result<Vec<RgbImage>, Fault> {
    if plan.slices() == 0 {
        return Ok(Vec::new());
    }
    let boxes = plan.crop_boxes();
    if plan.cut == Cut::CutThenResize {
        return boxes.iter().map(|&area| resize::resize(&crop(working, area)?, plan.slice)).collect();
    }
    let refined = resize::resize(working, plan.refined())?;
    boxes.iter().map(|&area| crop(&refined, area)).collect()
}

/// Copies a rectangle.
fn crop(image: &RgbImage, area: Rect) -> Result<RgbImage, Fault> {
    let Rect { x, y, size } = area;
    let outside = || Fault::plan_rejected(format!("the crop {size} at {x},{y} is not inside {}", image.size()));
    let right = u64::from(x) + u64::from(size.width);
    let bottom = u64::from(y) + u64::from(size.height);
    let (whole, empty) = (image.size(), size.pixels() == 0);
    if empty || right > u64::from(whole.width) || bottom > u64::from(whole.height) {
        return Err(outside());
    }
    let row_bytes = size.width as usize * 3;
    let mut data = zeroed::<u8>(row_bytes * size.height as usize)?;
    let rows = image.as_bytes().chunks_exact(image.stride()).skip(y as usize);
    for (row, out) in rows.zip(data.chunks_exact_mut(row_bytes)) {
        out.copy_from_slice(&row[x as usize * 3..][..row_bytes]);
    }
    RgbImage::from_raw(size, data).ok_or_else(outside)
}

/// Centres an image on a square (LLaVA-1.5, `expand2square`: the smaller half of an odd border comes first).
fn pad_square(image: &RgbImage, pad: [u8; 3]) -> Result<RgbImage, Fault> {
    let Size { width, height } = image.size();
    let side = width.max(height);
    let square = Size::new(side, side);
    let mut data = zeroed::<u8>(side as usize * side as usize * 3)?;
    for pixel in data.chunks_exact_mut(3) {
        pixel.copy_from_slice(&pad);
    }
    let (left, top) = ((side - width) as usize / 2 * 3, (side - height) as usize / 2);
    let rows = data.chunks_exact_mut(side as usize * 3).skip(top);
    for (row, out) in image.as_bytes().chunks_exact(image.stride()).zip(rows) {
        out[left..left + row.len()].copy_from_slice(row);
    }
    RgbImage::from_raw(square, data).ok_or_else(|| Fault::corrupt("the pixels do not fill the image"))
}
