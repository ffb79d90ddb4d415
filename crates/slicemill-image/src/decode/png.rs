//! PNG. Of an APNG, the default image: that in `IDAT`.

use std::io::Cursor;

use png::{BitDepth, ColorType, Decoder, DecodingError, Transformations};
use slicemill_core::Size;

use super::{Decoded, Layout, check_same_size};
use crate::fault::{Fault, io_fault, zeroed};

/// Deflate makes at most this many bytes of one.
const INFLATION_MAX: u64 = 1032;

pub(super) fn decode(bytes: &[u8], stored: Size) -> Result<Decoded, Fault> {
    let mut decoder = Decoder::new(Cursor::new(bytes));
    decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
    // Texts and profiles are not needed and may be bombs.
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let mut reader = decoder.read_info().map_err(fault)?;
    let (width, height) = reader.info().size();
    check_same_size(Size::new(width, height), stored)?;
    let raw_bytes = reader.info().raw_bytes() as u64;
    if raw_bytes > INFLATION_MAX * bytes.len() as u64 {
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
    let frame = reader.next_frame(&mut data).map_err(fault)?;
    check_same_size(Size::new(frame.width, frame.height), stored)?;
    // Frames of an animation may follow; whether they are whole does not matter. A still image ends with IEND.
    if reader.info().animation_control.is_none() {
        reader.finish().map_err(fault)?;
    }
    Ok(Decoded { size: stored, layout, data })
}

fn fault(error: DecodingError) -> Fault {
    match error {
        DecodingError::IoError(error) => io_fault(&error),
        DecodingError::LimitsExceeded => Fault::corrupt("a chunk is larger than any real one"),
        DecodingError::Format(error) => Fault::corrupt(error.to_string()),
        DecodingError::Parameter(error) => Fault::corrupt(error.to_string()),
    }
}
