//! WebP. Of an animation, the first frame on its canvas.

use std::io::Cursor;

use image_webp::{DecodingError, WebPDecoder};
use slicemill_core::Size;

use super::{Decoded, Layout, check_same_size};
use crate::fault::{Fault, io_fault, zeroed};
use crate::header::webp::{bitstream_size, chunks};

pub(super) fn decode(bytes: &[u8], stored: Size) -> Result<Decoded, Fault> {
    check_length(bytes)?;
    check_frame(bytes, stored)?;
    let mut decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(fault)?;
    let (width, height) = decoder.dimensions();
    check_same_size(Size::new(width, height), stored)?;
    let layout = if decoder.has_alpha() { Layout::Rgba } else { Layout::Rgb };
    let size = decoder.output_buffer_size().ok_or_else(|| Fault::too_many_pixels("pixels beyond the address space"))?;
    let mut data = zeroed(size)?;
    decoder.read_image(&mut data).map_err(fault)?;
    Ok(Decoded::whole(stored, layout, data))
}

/// The length in the RIFF header must be there, save for a byte of padding.
fn check_length(bytes: &[u8]) -> Result<(), Fault> {
    let announced = bytes.get(4..8).and_then(|field| field.try_into().ok()).map(u32::from_le_bytes);
    let announced = announced.map_or(0, |len| u64::from(len) + 8);
    if announced > bytes.len() as u64 + 1 {
        return Err(Fault::truncated(format!("{} of {announced} bytes are there", bytes.len())));
    }
    Ok(())
}

/// The decoder allocates for the size in the bit stream, so that must be the size that was checked: that of the image,
/// or of a frame inside the canvas.
fn check_frame(bytes: &[u8], stored: Size) -> Result<(), Fault> {
    for (kind, body) in chunks(bytes, 12) {
        match &kind {
            b"VP8 " | b"VP8L" => return check_same_size(bitstream_size(&kind, body)?, stored),
            b"ANMF" => return check_animation_frame(body, stored),
            _ => {}
        }
    }
    Err(Fault::truncated("the file ends before the image data"))
}

fn check_animation_frame(body: &[u8], canvas: Size) -> Result<(), Fault> {
    let short = || Fault::truncated("the file ends inside the first frame");
    let field = |at: usize| {
        let bytes = body.get(at..at + 3).ok_or_else(short)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], 0]))
    };
    let (x, y) = (2 * field(0)?, 2 * field(3)?);
    let frame = Size::new(field(6)? + 1, field(9)? + 1);
    if x + frame.width > canvas.width || y + frame.height > canvas.height {
        return Err(Fault::corrupt(format!("the first frame, {frame} at {x},{y}, is not inside {canvas}")));
    }
    for (kind, body) in chunks(body, 16) {
        if matches!(&kind, b"VP8 " | b"VP8L") {
            return check_same_size(bitstream_size(&kind, body)?, frame);
        }
    }
    Err(short())
}

fn fault(error: DecodingError) -> Fault {
    match error {
        DecodingError::IoError(error) => io_fault(&error),
        DecodingError::BitStreamError => Fault::corrupt("the bit stream makes no sense or ends too early"),
        DecodingError::UnsupportedFeature(feature) => Fault::unsupported(feature),
        error => Fault::corrupt(error.to_string()),
    }
}
