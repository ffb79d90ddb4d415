//! TIFF: the first directory (TIFF 6.0, BigTIFF).

use slicemill_core::Size;

use super::Header;
use crate::ImageFormat;
use crate::exif::{Directory, tag};
use crate::fault::Fault;
use crate::window::{Stop, Window};

/// Reads size, orientation and whether an extra sample is alpha.
pub(super) fn parse(window: Window<'_>) -> Result<Header, Stop> {
    let directory = Directory::open(window)?;
    let width = required(&directory, tag::IMAGE_WIDTH, "width")?;
    let height = required(&directory, tag::IMAGE_LENGTH, "height")?;
    let samples = directory.get(tag::SAMPLES_PER_PIXEL)?.unwrap_or(1);
    let extra = directory.get(tag::EXTRA_SAMPLES)?.unwrap_or(0);
    Ok(Header {
        format: ImageFormat::Tiff,
        stored: Size::new(width, height),
        orientation: directory.orientation()?,
        has_alpha: matches!(samples, 2 | 4) && matches!(extra, 1 | 2),
    })
}

fn required(directory: &Directory<'_>, tag: u16, what: &str) -> Result<u32, Stop> {
    let value = directory.get(tag)?.ok_or_else(|| Fault::bad_header(format!("the directory has no {what}")))?;
    u32::try_from(value).map_err(|_| Fault::bad_header(format!("a {what} of {value}")).into())
}
