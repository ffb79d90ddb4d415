//! TIFF: the first directory (TIFF 6.0, BigTIFF).

use slicemill_core::Size;

use super::Header;
use crate::exif::{Directory, tag};
use crate::fault::Fault;
use crate::window::{Stop, Window};
use crate::{ImageFormat, Orientation, xmp};

/// The longest beginning of an XMP packet in which the orientation is looked for.
const XMP_BYTES_MAX: u64 = 1 << 20;

/// Reads size, orientation and whether an extra sample is alpha.
pub(super) fn parse(window: Window<'_>) -> Result<Header, Stop> {
    let directory = Directory::open(window)?;
    let width = required(&directory, tag::IMAGE_WIDTH, "width")?;
    let height = required(&directory, tag::IMAGE_LENGTH, "height")?;
    Ok(Header {
        format: ImageFormat::Tiff,
        stored: Size::new(width, height),
        orientation: orientation(&directory)?,
        has_alpha: Alpha::of(&directory)? != Alpha::None,
    })
}

/// The orientation of the directory, or where that has none of its XMP packet. (As in Pillow's `exif_transpose`.)
fn orientation(directory: &Directory<'_>) -> Result<Orientation, Stop> {
    if let Some(told) = directory.orientation()? {
        return Ok(told);
    }
    Ok(directory.bytes(tag::XMP, XMP_BYTES_MAX)?.and_then(xmp::orientation).unwrap_or_default())
}

/// What the samples beyond the colours are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alpha {
    /// No transparency.
    None,
    /// Colours are as they are.
    Straight,
    /// Colours have been multiplied by the alpha value.
    Premultiplied,
}

impl Alpha {
    /// The first extra sample tells; where nothing tells of a fourth sample of RGB it is straight alpha (as in Pillow, and
    /// as with the 999 of an old drawing program).
    pub(crate) fn of(directory: &Directory<'_>) -> Result<Self, Stop> {
        let samples = directory.get(tag::SAMPLES_PER_PIXEL)?.unwrap_or(1);
        let colours = match directory.get(tag::PHOTOMETRIC)? {
            Some(2 | 6 | 8 | 9) => 3,
            Some(5) => 4,
            _ => 1,
        };
        Ok(match directory.get(tag::EXTRA_SAMPLES)? {
            Some(1) if samples > colours => Self::Premultiplied,
            Some(2 | 999) if samples > colours => Self::Straight,
            None if samples == 4 && colours == 3 => Self::Straight,
            _ => Self::None,
        })
    }
}

fn required(directory: &Directory<'_>, tag: u16, what: &str) -> Result<u32, Stop> {
    let value = directory.get(tag)?.ok_or_else(|| Fault::bad_header(format!("the directory has no {what}")))?;
    u32::try_from(value).map_err(|_| Fault::bad_header(format!("a {what} of {value}")).into())
}
