//! Bytes to upright RGB pixels.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use slicemill_core::{ImageOptions, RowError, Size, Stage};

use crate::fault::Fault;
use crate::header::check_pixels;
use crate::{Header, ImageFormat, RgbImage, alpha, jpeg, orientation};

/// Decodes an image whose header was read from the same bytes: pixels, then alpha, then orientation.
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
    let format = match header.format {
        ImageFormat::Jpeg => {
            let image = jpeg::decode(bytes)?;
            return orientation::upright(image, header.applied_orientation(options.orientation));
        }
        ImageFormat::Png => image::ImageFormat::Png,
        ImageFormat::WebP => image::ImageFormat::WebP,
        ImageFormat::Gif => image::ImageFormat::Gif,
        ImageFormat::Bmp => image::ImageFormat::Bmp,
        ImageFormat::Tiff => image::ImageFormat::Tiff,
    };
    let decoded = image::ImageReader::with_format(Cursor::new(bytes), format)
        .decode()
        .map_err(|error| Fault::corrupt(error.to_string()))?;
    let size = Size::new(decoded.width(), decoded.height());
    let mut data = decoded.into_rgba8().into_raw();
    alpha::flatten(&mut data, options.alpha);
    let image = RgbImage::from_raw(size, data).ok_or_else(|| Fault::corrupt("the pixels do not fill the image"))?;
    orientation::upright(image, header.applied_orientation(options.orientation))
}
