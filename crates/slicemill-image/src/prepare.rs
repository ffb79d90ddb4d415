//! The whole host stage of one image.

use slicemill_core::{ImageOptions, Normalisation, RowError, SlicePlan};

use crate::{Header, NormalisationTable, NormalisedView, cut_views, decode, pad_colour};

/// Decodes, cuts and normalises one image: its views in the order of [`SlicePlan::views`], as patches.
///
/// # Errors
/// As [`decode`] and [`cut_views`].
pub fn prepare(
    bytes: &[u8],
    header: &Header,
    plan: &SlicePlan,
    options: &ImageOptions,
    normalisation: &Normalisation,
) -> Result<Vec<NormalisedView>, RowError> {
    let image = decode(bytes, header, options)?;
    let views = cut_views(&image, plan, pad_colour(normalisation))?;
    let table = NormalisationTable::new(normalisation);
    Ok(views.iter().map(|view| table.apply(view, plan.patch)).collect())
}
