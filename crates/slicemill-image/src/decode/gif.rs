//! GIF: the first frame on its canvas.
//!
//! As in Pillow, the canvas around the frame has the transparent colour when there is one, otherwise colour 0, and
//! colours beyond the end of the palette are black.

use std::io::{Cursor, Read};

use gif::{ColorOutput, DecodeOptions, Decoder, DecodingError, MemoryLimit};
use slicemill_core::{ErrorClass, Size};

use super::{Decoded, Layout};
use crate::fault::{Fault, io_fault, zeroed};
use crate::jpeg::Ending;

/// LZW codes of 12 bits stand for at most 4096 pixels.
const PIXELS_PER_BYTE_MAX: u64 = 4096 * 8 / 12 + 1;

pub(super) fn decode(bytes: &[u8], stored: Size, ending: Ending) -> Result<Decoded, Fault> {
    let mut decoder = reader(bytes)?;
    let frame = decoder.next_frame_info().map_err(fault)?.ok_or_else(|| Fault::corrupt("the file has no frame"))?;
    let (left, top) = (usize::from(frame.left), usize::from(frame.top));
    let (width, height) = (usize::from(frame.width), usize::from(frame.height));
    let (transparent, local, interlaced) = (frame.transparent, frame.palette.clone(), frame.interlaced);
    if left + width > stored.width as usize || top + height > stored.height as usize {
        return Err(Fault::corrupt(format!("the first frame is not inside {stored}")));
    }
    if (width * height) as u64 > PIXELS_PER_BYTE_MAX * bytes.len() as u64 && ending == Ending::Complete {
        return Err(Fault::truncated(format!("{} bytes cannot hold {width}x{height} pixels", bytes.len())));
    }
    let mut indices = zeroed::<u8>(width * height)?;
    let mut truncated = false;
    if !indices.is_empty() {
        // Whole frames are read at once: reading by rows fails on streams that are whole.
        match decoder.read_into_buffer(&mut indices).map_err(fault) {
            Ok(()) => {}
            Err(error) if ending == Ending::Anywhere && error.class == ErrorClass::Truncated => {
                truncated = true;
                indices.fill(transparent.unwrap_or(0));
                let mut rows: Vec<&mut [u8]> = indices.chunks_exact_mut(width).collect();
                let mut again = reader(bytes)?;
                again.next_frame_info().map_err(fault)?;
                for y in row_order(height, interlaced) {
                    if fill(&mut again, rows[y], transparent.unwrap_or(0)).is_err() {
                        break;
                    }
                }
            }
            Err(error) => return Err(error),
        }
    }
    let table = colours(local.as_deref().or_else(|| decoder.global_palette()).unwrap_or_default(), transparent);
    let background = table[usize::from(transparent.unwrap_or(0))];
    let mut data = zeroed::<u8>(stored.width as usize * stored.height as usize * 4)?;
    data.as_chunks_mut::<4>().0.fill(background);
    let rows = data.chunks_exact_mut(stored.width as usize * 4).skip(top);
    for (row, indices) in rows.zip(indices.chunks_exact(width.max(1))) {
        for (pixel, &index) in row.as_chunks_mut::<4>().0[left..].iter_mut().zip(indices) {
            *pixel = table[usize::from(index)];
        }
    }
    Ok(Decoded { size: stored, layout: Layout::Rgba, data, truncated })
}

fn reader(bytes: &[u8]) -> Result<Decoder<Cursor<&[u8]>>, Fault> {
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    // The only large buffer is ours; the frame is not larger than the canvas, which was checked.
    options.set_memory_limit(MemoryLimit::Unlimited);
    options.allow_unknown_blocks(true);
    options.read_info(Cursor::new(bytes)).map_err(fault)
}

/// Rows in the order in which they are stored: as they are, or every eighth, the fourths between them, and so on.
fn row_order(height: usize, interlaced: bool) -> impl Iterator<Item = usize> {
    let passes: &[(usize, usize)] = if interlaced { &[(0, 8), (4, 8), (2, 4), (1, 2)] } else { &[(0, 1)] };
    passes.iter().flat_map(move |&(first, step)| (first..height).step_by(step))
}

/// Reads one row; one that is not whole is left as the background.
fn fill<R: Read>(decoder: &mut Decoder<R>, row: &mut [u8], background: u8) -> Result<(), Fault> {
    let outcome = match decoder.fill_buffer(row) {
        Ok(true) => return Ok(()),
        Ok(false) => Fault::truncated("the first frame has fewer pixels than it says"),
        Err(error) => fault(error),
    };
    row.fill(background);
    Err(outcome)
}

/// RGBA of every index.
fn colours(palette: &[u8], transparent: Option<u8>) -> [[u8; 4]; 256] {
    let mut table = [[0; 4]; 256];
    for (index, colour) in (0u8..=255).zip(&mut table) {
        let entry = palette.as_chunks::<3>().0.get(usize::from(index));
        let [red, green, blue] = entry.copied().unwrap_or_default();
        let alpha = if transparent == Some(index) { 0 } else { 255 };
        *colour = [red, green, blue, alpha];
    }
    table
}

fn fault(error: DecodingError) -> Fault {
    match error {
        DecodingError::Io(error) => io_fault(&error),
        DecodingError::UnexpectedEof => Fault::truncated("the file ends inside the first frame"),
        DecodingError::OutOfMemory | DecodingError::MemoryLimit => Fault::out_of_memory(0),
        error => Fault::corrupt(error.to_string()),
    }
}
