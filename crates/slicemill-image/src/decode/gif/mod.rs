//! GIF: the first frame on its canvas. What follows it may be damaged or missing.
//!
//! As in Pillow, the canvas around the frame has the transparent colour when there is one, otherwise colour 0; colours
//! beyond the end of the palette are black, and where there is no palette at all, indices are levels of gray.

mod lzw;

use slicemill_core::Size;

use super::{Decoded, Layout};
use crate::fault::{Fault, zeroed};
use crate::header::gif::first_frame;
use crate::jpeg::Ending;
use crate::window::{Stop, Window};

/// LZW codes of 12 bits stand for at most 4096 pixels.
const PIXELS_PER_BYTE_MAX: u64 = 4096 * 8 / 12 + 1;

pub(super) fn decode(bytes: &[u8], stored: Size, ending: Ending) -> Result<Decoded, Fault> {
    let frame = first_frame(Window::new(bytes, bytes.len() as u64)).map_err(|stop| match stop {
        Stop::Fault(fault) => fault,
        Stop::Need(_) => Fault::truncated("the file ends before the first frame"),
    })?;
    let (left, top) = (frame.left as usize, frame.top as usize);
    let (width, height) = (frame.size.width as usize, frame.size.height as usize);
    if left + width > stored.width as usize || top + height > stored.height as usize {
        return Err(Fault::corrupt(format!("the first frame is not inside {stored}")));
    }
    if (width * height) as u64 > PIXELS_PER_BYTE_MAX * bytes.len() as u64 && ending == Ending::Complete {
        return Err(Fault::truncated(format!("{} bytes cannot hold {width}x{height} pixels", bytes.len())));
    }
    let slice = |at: u64| usize::try_from(at).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
    let mut indices = zeroed::<u8>(width * height)?;
    let done = lzw::decode(slice(frame.data_at), &mut indices)?;
    let truncated = done < indices.len();
    if truncated {
        if ending == Ending::Complete {
            let (have, need) = (done, indices.len());
            return Err(Fault::truncated(format!("{have} of the {need} pixels of the first frame are there")));
        }
        // Rows that are not whole are as if nothing had come of them.
        indices[done / width * width..].fill(frame.transparent.unwrap_or(0));
    }
    let palette = frame.palette.map(|(at, colours)| &slice(at)[..3 * colours.min(slice(at).len() / 3)]);
    let table = colours(palette, frame.transparent);
    let background = table[usize::from(frame.transparent.unwrap_or(0))];
    let mut data = zeroed::<u8>(stored.width as usize * stored.height as usize * 4)?;
    data.as_chunks_mut::<4>().0.fill(background);
    let mut rows: Vec<&mut [u8]> = data.chunks_exact_mut(stored.width as usize * 4).skip(top).take(height).collect();
    for (y, indices) in row_order(height, frame.interlaced).zip(indices.chunks_exact(width.max(1))) {
        for (pixel, &index) in rows[y].as_chunks_mut::<4>().0[left..].iter_mut().zip(indices) {
            *pixel = table[usize::from(index)];
        }
    }
    Ok(Decoded { size: stored, layout: Layout::Rgba, data, truncated })
}

/// Rows in the order in which they are stored: as they are, or every eighth, the fourths between them, and so on.
fn row_order(height: usize, interlaced: bool) -> impl Iterator<Item = usize> {
    let passes: &[(usize, usize)] = if interlaced { &[(0, 8), (4, 8), (2, 4), (1, 2)] } else { &[(0, 1)] };
    passes.iter().flat_map(move |&(first, step)| (first..height).step_by(step))
}

/// RGBA of every index.
fn colours(palette: Option<&[u8]>, transparent: Option<u8>) -> [[u8; 4]; 256] {
    let mut table = [[0; 4]; 256];
    for (index, colour) in (0u8..=255).zip(&mut table) {
        let entry = match palette {
            Some(palette) => palette.as_chunks::<3>().0.get(usize::from(index)).copied().unwrap_or_default(),
            None => [index; 3],
        };
        let alpha = if transparent == Some(index) { 0 } else { 255 };
        *colour = [entry[0], entry[1], entry[2], alpha];
    }
    table
}
