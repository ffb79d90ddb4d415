//! Bytes to upright RGB pixels.

mod bmp;
mod gif;
mod png;
mod tiff;
mod webp;

use std::panic::{AssertUnwindSafe, catch_unwind};

use slicemill_core::{ImageOptions, RowError, Size, Stage, Truncated};

use crate::fault::Fault;
use crate::header::check_pixels;
use crate::jpeg::{self, Ending};
use crate::{Header, ImageFormat, RgbImage, alpha, orientation};

/// An upright image and whether all of it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodedImage {
    /// The pixels.
    pub image: RgbImage,
    /// The bytes end before the image does, which [`Truncated::Allow`] permits: what did not come is gray in a JPEG and
    /// holds zeros (black, or the first colour of the palette, or transparent) in other formats, as in Pillow.
    pub truncated: bool,
}

/// Decodes an image whose header was read from the same bytes: pixels, then alpha, then orientation.
///
/// Samples of 16 bits lose their lower byte. (Pillow does the same for colours; its conversion of 16-bit gray clips
/// instead, which turns nearly every such image white.) Signed samples of more than 8 bits are shifted first, so that the
/// lowest is black; floating-point samples are white at 1 where most of those above 0 are not above 1, otherwise at 255.
/// Colour profiles are not applied.
///
/// # Errors
/// `truncated` when the bytes end before the image does, `corrupt`, `unsupported_variant`, `too_many_pixels`,
/// `out_of_memory`. A decoder that panics has met corrupt bytes. With [`Truncated::Allow`], JPEG, PNG, GIF and BMP without
/// compression are decoded as far as they go; WebP, TIFF and run-length coded BMP that end too early are `truncated` all
/// the same, and so are lossless JPEG and an image of which not even the beginning of its data is there.
pub fn decode(bytes: &[u8], header: &Header, options: &ImageOptions) -> Result<DecodedImage, RowError> {
    let attempt = catch_unwind(AssertUnwindSafe(|| decode_upright(bytes, header, options)));
    let outcome = attempt.unwrap_or_else(|_| Err(Fault::corrupt("the decoder gave up on bytes that make no sense")));
    outcome.map_err(|fault| fault.at(Stage::Decode, header.format))
}

fn decode_upright(bytes: &[u8], header: &Header, options: &ImageOptions) -> Result<DecodedImage, Fault> {
    check_pixels(header.stored, options)?;
    let ending = match options.truncated {
        Truncated::Fail => Ending::Complete,
        Truncated::Allow => Ending::Anywhere,
    };
    let decoded = match header.format {
        ImageFormat::Jpeg => {
            let (image, truncated) = jpeg::decode(bytes, header.stored, None, ending)?;
            DecodedImage { image, truncated }
        }
        ImageFormat::Png => png::decode(bytes, header.stored, ending)?.flatten(options)?,
        ImageFormat::WebP => webp::decode(bytes, header.stored)?.flatten(options)?,
        ImageFormat::Gif => gif::decode(bytes, header.stored, ending)?.flatten(options)?,
        ImageFormat::Bmp => bmp::decode(bytes, header.stored, ending)?.flatten(options)?,
        ImageFormat::Tiff => tiff::decode(bytes, header.stored)?.flatten(options)?,
    };
    let image = orientation::upright(decoded.image, header.applied_orientation(options.orientation))?;
    Ok(DecodedImage { image, truncated: decoded.truncated })
}

/// The sample layouts that decoders hand over, 8 bits per sample.
enum Layout {
    Gray,
    GrayAlpha,
    Rgb,
    Rgba,
}

/// Decoded pixels, not yet RGB: `[height, width, samples]`.
struct Decoded {
    size: Size,
    layout: Layout,
    data: Vec<u8>,
    /// The bytes ended too early, and what there is was asked for.
    truncated: bool,
}

impl Decoded {
    /// All of an image.
    const fn whole(size: Size, layout: Layout, data: Vec<u8>) -> Self {
        Self { size, layout, data, truncated: false }
    }

    /// RGB pixels; transparency becomes colour.
    fn flatten(self, options: &ImageOptions) -> Result<DecodedImage, Fault> {
        let mut data = self.data;
        let data = match self.layout {
            Layout::Rgb => data,
            Layout::Gray => data.iter().flat_map(|&gray| [gray; 3]).collect(),
            Layout::GrayAlpha => alpha::flatten_gray(&data, options.alpha),
            Layout::Rgba => {
                alpha::flatten(&mut data, options.alpha);
                data
            }
        };
        let image =
            RgbImage::from_raw(self.size, data).ok_or_else(|| Fault::corrupt("the pixels do not fill the image"))?;
        Ok(DecodedImage { image, truncated: self.truncated })
    }
}

/// The decoder must see the size that was planned for and checked against the limit.
fn check_same_size(decoder: Size, header: Size) -> Result<(), Fault> {
    if decoder == header {
        return Ok(());
    }
    Err(Fault::corrupt(format!("the image data is {decoder}, the header says {header}")))
}
