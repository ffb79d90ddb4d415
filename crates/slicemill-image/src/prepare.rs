//! The whole host stage of one image.

use slicemill_core::{ImageOptions, Normalisation, RowError, SlicePlan};

use crate::{Header, NormalisationTable, NormalisedView, cut_views, decode, pad_colour};

/// What the model sees of an image.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepared {
    /// Its views in the order of [`SlicePlan::views`], as patches.
    pub views: Vec<NormalisedView>,
    /// The bytes end before the image does, see [`DecodedImage::truncated`](crate::DecodedImage::truncated).
    pub truncated: bool,
}

/// Decodes, cuts and normalises one image.
///
/// # Errors
/// As [`decode`] and [`cut_views`].
pub fn prepare(
    bytes: &[u8],
    header: &Header,
    plan: &SlicePlan,
    options: &ImageOptions,
    normalisation: &Normalisation,
) -> Result<Prepared, RowError> {
    let decoded = decode(bytes, header, options)?;
    let views = cut_views(&decoded.image, plan, pad_colour(normalisation))?;
    let table = NormalisationTable::new(normalisation);
    let views = views.iter().map(|view| table.apply(view, plan.patch)).collect();
    Ok(Prepared { views, truncated: decoded.truncated })
}
