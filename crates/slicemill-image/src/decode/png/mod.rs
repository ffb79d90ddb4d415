//! PNG. Of an APNG, the default image: that in `IDAT`.

mod chunks;

use std::io::{BufRead, Seek};

use png::{BitDepth, ColorType, DecodeOptions, Decoder, DecodingError, Info, Reader, Transformations};
use slicemill_core::{ErrorClass, Size};

use super::{Decoded, Layout, check_same_size};
use crate::fault::{Fault, io_fault, zeroed};
use crate::jpeg::Ending;
use chunks::{Chunks, Soundness};

/// Deflate makes at most this many bytes of one.
const INFLATION_MAX: u64 = 1032;

pub(super) fn decode(bytes: &[u8], stored: Size, ending: Ending) -> Result<Decoded, Fault> {
    let chunks = Chunks::find(bytes)?;
    let truncated = is_truncated(&chunks, stored, ending)?;
    // Checksums have been looked at.
    let mut checks = DecodeOptions::default();
    checks.set_ignore_checksums(true);
    let mut decoder = Decoder::new_with_options(chunks.file(truncated), checks);
    decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
    let mut reader = decoder.read_info().map_err(fault)?;
    let (width, height) = reader.info().size();
    check_same_size(Size::new(width, height), stored)?;
    let raw_bytes = reader.info().raw_bytes() as u64;
    if raw_bytes > INFLATION_MAX * bytes.len() as u64 && ending == Ending::Complete {
        return Err(Fault::truncated(format!("{} bytes cannot hold {raw_bytes} bytes of pixels", bytes.len())));
    }
    let layout = match reader.output_color_type() {
        (ColorType::Grayscale, BitDepth::Eight) => Layout::Gray,
        (ColorType::GrayscaleAlpha, BitDepth::Eight) => Layout::GrayAlpha,
        (ColorType::Rgb, BitDepth::Eight) => Layout::Rgb,
        (ColorType::Rgba, BitDepth::Eight) => Layout::Rgba,
        (colour, depth) => return Err(Fault::unsupported(format!("{colour:?} pixels of {depth:?} bits"))),
    };
    let size = reader.output_buffer_size().ok_or_else(|| Fault::too_many_pixels("pixels beyond the address space"))?;
    let mut data = zeroed(size)?;
    if ending == Ending::Anywhere {
        fill(&mut data, reader.info(), &layout);
    }
    match read_frame(&mut reader, &mut data, stored) {
        Ok(()) => {}
        // All rows that came whole have been written.
        Err(fault) if truncated && fault.class == ErrorClass::Truncated => {}
        Err(fault) => return Err(fault),
    }
    Ok(Decoded { size: stored, layout, data, truncated })
}

fn read_frame<R: BufRead + Seek>(reader: &mut Reader<R>, data: &mut [u8], stored: Size) -> Result<(), Fault> {
    let frame = reader.next_frame(data).map_err(fault)?;
    check_same_size(Size::new(frame.width, frame.height), stored)
}

/// Whether the image data end too early, which is an error where they must be complete. Data that came without a right
/// checksum may be whole all the same.
fn is_truncated(chunks: &Chunks<'_>, stored: Size, ending: Ending) -> Result<bool, Fault> {
    // Twice what eight bytes for every pixel and one for every row take: some streams go on a little.
    let bytes_max = 2 * (8 * stored.pixels() + u64::from(stored.height)) + (1 << 16);
    match chunks.soundness {
        Soundness::Checked => Ok(false),
        _ if chunks.stream_is_whole(bytes_max) => Ok(false),
        Soundness::Doubtful => Err(Fault::corrupt("the checksums of the image data are wrong")),
        Soundness::Cut if ending == Ending::Anywhere => Ok(true),
        Soundness::Cut => Err(Fault::truncated("the file ends inside the image data")),
    }
}

/// Fills an image with what samples of zero stand for: the first colour of the palette, otherwise black, transparent
/// where that is the transparent colour.
fn fill(data: &mut [u8], info: &Info<'_>, layout: &Layout) {
    let transparency = info.trns.as_deref();
    let palette = info.palette.as_deref().filter(|_| info.color_type == ColorType::Indexed);
    let colour: [u8; 3] = palette.and_then(|palette| palette.first_chunk().copied()).unwrap_or_default();
    let alpha = match (info.color_type, transparency) {
        (ColorType::GrayscaleAlpha | ColorType::Rgba, _) => 0,
        (ColorType::Indexed, Some(alphas)) => alphas.first().copied().unwrap_or(255),
        (_, Some(transparent)) if transparent.iter().all(|&byte| byte == 0) => 0,
        _ => 255,
    };
    let [red, green, blue] = colour;
    match layout {
        Layout::Gray => data.fill(red),
        Layout::GrayAlpha => data.as_chunks_mut().0.fill([red, alpha]),
        Layout::Rgb => data.as_chunks_mut().0.fill(colour),
        Layout::Rgba => data.as_chunks_mut().0.fill([red, green, blue, alpha]),
    }
}

fn fault(error: DecodingError) -> Fault {
    match error {
        DecodingError::IoError(error) => io_fault(&error),
        DecodingError::LimitsExceeded => Fault::corrupt("a chunk is larger than any real one"),
        DecodingError::Format(error) => Fault::corrupt(error.to_string()),
        DecodingError::Parameter(error) => Fault::corrupt(error.to_string()),
    }
}
