//! Headers: format, size, orientation and transparency without a pixel being decoded.

mod bmp;
pub(crate) mod gif;
mod jpeg;
mod metadata;
mod png;
mod text;
pub(crate) mod tiff;
pub(crate) mod webp;

use slicemill_core::{ErrorClass, ImageOptions, OrientationRule, RowError, Size, Stage};

use crate::fault::Fault;
use crate::format::{SNIFF_BYTES, has_image_extension, sniff, sniff_unsupported};
use crate::window::{Stop, Window};
use crate::{ImageFormat, Orientation};

/// What is known of an image before its pixels are decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Its format.
    pub format: ImageFormat,
    /// Size of the stored image; of animations, of the canvas.
    pub stored: Size,
    /// How it must be turned to stand upright, by EXIF or else XMP; upright when neither is there or can be read.
    pub orientation: Orientation,
    /// Whether it has an alpha channel, a transparent colour or a palette with transparency.
    pub has_alpha: bool,
}

impl Header {
    /// The size that is planned for: after orientation, when the job applies it.
    pub const fn oriented_size(&self, rule: OrientationRule) -> Size {
        self.applied_orientation(rule).upright_size(self.stored)
    }

    /// About the most bytes that [`crate::decode`] holds at once for this image: pixels in the layouts it passes
    /// through, and coefficients of a progressive JPEG.
    pub const fn decode_bytes_max(&self) -> u64 {
        let per_pixel = match self.format {
            ImageFormat::Jpeg => 11,
            ImageFormat::Png | ImageFormat::Bmp => 7,
            ImageFormat::Gif => 8,
            ImageFormat::WebP => 12,
            ImageFormat::Tiff => 16,
        };
        self.stored.pixels() * per_pixel
    }

    /// The orientation that [`crate::decode`] applies.
    pub const fn applied_orientation(&self, rule: OrientationRule) -> Orientation {
        match rule {
            OrientationRule::Apply => self.orientation,
            OrientationRule::Ignore => Orientation::Upright,
        }
    }
}

/// Outcome of reading the header of an object of which only the beginning is at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderRead {
    /// The header.
    Done(Header),
    /// The header reaches further.
    NeedMore {
        /// Bytes from the start of the object to have at hand for the next step: at least twice as many as before, but
        /// never more than the object has.
        bytes: u64,
    },
}

/// Bytes of a first ranged read that suffice for nearly all images. (EXIF and colour profiles of a JPEG stand before
/// its size; EXIF of a WebP and the directory of a TIFF may stand at the very end.)
pub const HEADER_PREFIX_BYTES: u64 = 64 * 1024;

/// The least that a further read is worth.
const STEP_BYTES: u64 = 4 * 1024;

/// Reads the header of an image that is completely in `bytes`.
///
/// `name` decides only whether bytes of unknown format are a broken image (`not_an_image`). The limit on pixels is
/// checked here. Messages name the format, what is wrong and the remedy; the caller adds the source.
///
/// # Errors
/// `empty`, `not_an_image`, `unsupported_format`, `unsupported_variant`, `bad_header`, `truncated`, `too_many_pixels`.
pub fn read_header(bytes: &[u8], name: &str, options: &ImageOptions) -> Result<Header, RowError> {
    match read_header_partial(bytes, bytes.len() as u64, name, options)? {
        HeaderRead::Done(header) => Ok(header),
        HeaderRead::NeedMore { bytes: needed } => Err(RowError::new(
            ErrorClass::BadHeader,
            Stage::Header,
            format!("the header asks for {needed} bytes of {}; export the image anew", bytes.len()),
        )),
    }
}

/// Reads the header of an object of `total_bytes` of which `prefix` is the beginning.
///
/// Call again with a longer prefix as long as it answers [`HeaderRead::NeedMore`]; with the whole object at hand the
/// answer is final.
///
/// # Errors
/// As [`read_header`].
pub fn read_header_partial(
    prefix: &[u8],
    total_bytes: u64,
    name: &str,
    options: &ImageOptions,
) -> Result<HeaderRead, RowError> {
    let window = Window::new(prefix, total_bytes);
    if window.total() == 0 {
        return Err(RowError::new(ErrorClass::Empty, Stage::Header, "the file has 0 bytes; copy or download it again"));
    }
    let sniffed_bytes = window.total().min(SNIFF_BYTES as u64);
    if (prefix.len() as u64) < sniffed_bytes {
        return Ok(HeaderRead::NeedMore { bytes: sniffed_bytes });
    }
    let Some(format) = sniff(prefix) else { return Err(unknown_format(prefix, name)) };
    let read = parse(format, window).and_then(|header| check_size(&header, options).map(|()| header));
    match read {
        Ok(header) => Ok(HeaderRead::Done(header)),
        // Some more than asked for, so that a header of many small parts does not take as many reads.
        Err(Stop::Need(bytes)) => {
            let worthwhile = bytes.max(2 * prefix.len() as u64).max(STEP_BYTES);
            Ok(HeaderRead::NeedMore { bytes: worthwhile.min(window.total()) })
        }
        Err(Stop::Fault(fault)) => Err(fault.at(Stage::Header, format)),
    }
}

fn parse(format: ImageFormat, window: Window<'_>) -> Result<Header, Stop> {
    match format {
        ImageFormat::Jpeg => jpeg::parse(window),
        ImageFormat::Png => png::parse(window),
        ImageFormat::WebP => webp::parse(window),
        ImageFormat::Gif => gif::parse(window),
        ImageFormat::Bmp => bmp::parse(window),
        ImageFormat::Tiff => tiff::parse(window),
    }
}

fn unknown_format(prefix: &[u8], name: &str) -> RowError {
    if let Some(format) = sniff_unsupported(prefix) {
        return RowError::new(
            ErrorClass::UnsupportedFormat,
            Stage::Header,
            format!("{format} images cannot be decoded; convert to JPEG, PNG, WebP, GIF, BMP or TIFF"),
        );
    }
    let claim = if has_image_extension(name) { "the name says image, the bytes do not" } else { "not an image" };
    RowError::new(
        ErrorClass::NotAnImage,
        Stage::Header,
        format!("{claim} (they begin with {}); copy it again or remove it", hex(prefix)),
    )
}

fn hex(prefix: &[u8]) -> String {
    let digits: Vec<String> = prefix.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    digits.join(" ")
}

/// Zero sizes and sizes above the limit end here, before anything is allocated for them.
fn check_size(header: &Header, options: &ImageOptions) -> Result<(), Stop> {
    let stored = header.stored;
    if stored.width == 0 || stored.height == 0 {
        return Err(Fault::bad_header(format!("the image has no pixels ({stored})")).into());
    }
    check_pixels(stored, options).map_err(Stop::Fault)
}

/// The limit on pixels.
pub(crate) fn check_pixels(size: Size, options: &ImageOptions) -> Result<(), Fault> {
    if size.pixels() <= options.pixels_max {
        return Ok(());
    }
    let (pixels, limit) = (size.pixels(), options.pixels_max);
    Err(Fault::too_many_pixels(format!("{size} is {pixels} pixels, more than the limit of {limit}")))
}
