//! Bytes to upright RGB pixels.

mod bmp;
mod gif;
mod png;
mod tiff;
mod webp;

use std::panic::{AssertUnwindSafe, catch_unwind};

use slicemill_core::{ImageOptions, RowError, Size, Stage};

use crate::fault::Fault;
use crate::header::check_pixels;
use crate::{Header, ImageFormat, RgbImage, alpha, jpeg, orientation};

/// Decodes an image whose header was read from the same bytes: pixels, then alpha, then orientation.
///
/// Samples of 16 bits lose their lower byte. (Pillow does the same for colours; its conversion of 16-bit gray clips
/// instead, which turns nearly every such image white.) Colour profiles are not applied.
///
/// # Errors
/// `truncated` when the bytes end before the image does (never a grey rest), `corrupt`, `unsupported_variant`,
/// `too_many_pixels`, `out_of_memory`. A decoder that panics has met corrupt bytes.
pub fn decode(bytes: &[u8], header: &Header, options: &ImageOptions) -> Result<RgbImage, RowError> {
    let attempt = catch_unwind(AssertUnwindSafe(|| decode_upright(bytes, header, options)));
    let outcome = attempt.unwrap_or_else(|_| Err(Fault::corrupt("the decoder gave up on bytes that make no sense")));
    outcome.map_err(|fault| fault.at(Stage::Decode, header.format))
}

fn decode_upright(bytes: &[u8], header: &Header, options: &ImageOptions) -> Result<RgbImage, Fault> {
    check_pixels(header.stored, options)?;
    let image = match header.format {
        ImageFormat::Jpeg => jpeg::decode(bytes, header.stored, None)?,
        ImageFormat::Png => png::decode(bytes, header.stored)?.flatten(options)?,
        ImageFormat::WebP => webp::decode(bytes, header.stored)?.flatten(options)?,
        ImageFormat::Gif => gif::decode(bytes, header.stored)?.flatten(options)?,
        ImageFormat::Bmp => bmp::decode(bytes, header.stored)?.flatten(options)?,
        ImageFormat::Tiff => tiff::decode(bytes, header.stored)?.flatten(options)?,
    };
    orientation::upright(image, header.applied_orientation(options.orientation))
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
}

impl Decoded {
    /// RGB pixels; transparency becomes colour.
    fn flatten(self, options: &ImageOptions) -> Result<RgbImage, Fault> {
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
        RgbImage::from_raw(self.size, data).ok_or_else(|| Fault::corrupt("the pixels do not fill the image"))
    }
}

/// The decoder must see the size that was planned for and checked against the limit.
fn check_same_size(decoder: Size, header: Size) -> Result<(), Fault> {
    if decoder == header {
        return Ok(());
    }
    Err(Fault::corrupt(format!("the image data is {decoder}, the header says {header}")))
}
