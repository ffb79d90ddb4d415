//! BMP.

use std::io::Cursor;

use image::codecs::bmp::BmpDecoder;
use image::{ColorType, ImageDecoder, ImageError};
use slicemill_core::Size;

use super::{Decoded, Layout, check_same_size};
use crate::fault::{Fault, io_fault, zeroed};

pub(super) fn decode(bytes: &[u8], stored: Size) -> Result<Decoded, Fault> {
    let decoder = BmpDecoder::new(Cursor::new(bytes)).map_err(fault)?;
    let (width, height) = decoder.dimensions();
    check_same_size(Size::new(width, height), stored)?;
    check_length(bytes, stored)?;
    let layout = match decoder.color_type() {
        ColorType::L8 => Layout::Gray,
        ColorType::Rgb8 => Layout::Rgb,
        ColorType::Rgba8 => Layout::Rgba,
        colour => return Err(Fault::unsupported(format!("{colour:?} pixels"))),
    };
    let mut data = zeroed(usize::try_from(decoder.total_bytes()).map_err(|_| Fault::out_of_memory(usize::MAX))?)?;
    decoder.read_image(&mut data).map_err(fault)?;
    Ok(Decoded { size: stored, layout, data })
}

/// Rows that are not compressed must all be there before a buffer is taken for them.
fn check_length(bytes: &[u8], stored: Size) -> Result<(), Fault> {
    let field = |at: usize| bytes.get(at..at + 2).map_or(0, |field| u16::from_le_bytes([field[0], field[1]]));
    let core_header = field(14) == 12;
    let (depth, compression) = if core_header { (field(24), 0) } else { (field(28), field(30)) };
    let row_bytes = (u64::from(stored.width) * u64::from(depth)).div_ceil(32) * 4;
    let (need, have) = (row_bytes * u64::from(stored.height), bytes.len() as u64);
    if matches!(compression, 0 | 3) && need > have {
        return Err(Fault::truncated(format!("{have} bytes, where the pixels alone need {need}")));
    }
    Ok(())
}

fn fault(error: ImageError) -> Fault {
    match error {
        ImageError::IoError(error) => io_fault(&error),
        ImageError::Unsupported(error) => Fault::unsupported(error.to_string()),
        error => Fault::corrupt(error.to_string()),
    }
}
