//! WebP. Of an animation, the first frame on its canvas.
//!
//! The first frame has nothing to be blended with: its pixels stand on the transparent black canvas as they are, with
//! whatever colours they have under their transparency. (As in libwebp's animation decoder, through which Pillow reads.)

use std::io::Cursor;

use image_webp::{DecodingError, WebPDecoder};
use slicemill_core::Size;

use super::{Decoded, Layout, check_same_size};
use crate::fault::{Fault, io_fault, zeroed};
use crate::header::webp::{ALPHA_FLAG, bitstream_size, chunks};

pub(super) fn decode(bytes: &[u8], stored: Size) -> Result<Decoded, Fault> {
    check_length(bytes)?;
    match first_picture(bytes, stored)? {
        Picture::Still => still(bytes, stored),
        Picture::Frame(frame) => {
            let picture = still(&frame.file()?, frame.size)?;
            frame.on_canvas(&picture, stored, has_alpha_flag(bytes))
        }
    }
}

/// An image that is no animation.
fn still(bytes: &[u8], expected: Size) -> Result<Decoded, Fault> {
    let mut decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(fault)?;
    let (width, height) = decoder.dimensions();
    check_same_size(Size::new(width, height), expected)?;
    let layout = if decoder.has_alpha() { Layout::Rgba } else { Layout::Rgb };
    let size = decoder.output_buffer_size().ok_or_else(|| Fault::too_many_pixels("pixels beyond the address space"))?;
    let mut data = zeroed(size)?;
    decoder.read_image(&mut data).map_err(fault)?;
    Ok(Decoded::whole(expected, layout, data))
}

/// What a file begins with.
enum Picture<'a> {
    Still,
    Frame(Frame<'a>),
}

/// A frame of an animation.
struct Frame<'a> {
    x: u32,
    y: u32,
    size: Size,
    alpha: Option<&'a [u8]>,
    kind: [u8; 4],
    body: &'a [u8],
}

impl Frame<'_> {
    /// The frame as a file of its own.
    fn file(&self) -> Result<Vec<u8>, Fault> {
        let side = |side: u32| (side - 1).to_le_bytes();
        let (w, h) = (side(self.size.width), side(self.size.height));
        let alpha = self.alpha.filter(|_| &self.kind == b"VP8 ");
        let lossless_alpha = &self.kind == b"VP8L" && self.body.get(4).is_some_and(|bits| bits & 0x10 != 0);
        let flags = if alpha.is_some() || lossless_alpha { ALPHA_FLAG } else { 0 };
        let mut file = b"RIFF\0\0\0\0WEBP".to_vec();
        append(&mut file, *b"VP8X", &[flags, 0, 0, 0, w[0], w[1], w[2], h[0], h[1], h[2]])?;
        if let Some(alpha) = alpha {
            append(&mut file, *b"ALPH", alpha)?;
        }
        append(&mut file, self.kind, self.body)?;
        let len = u32::try_from(file.len() - 8).map_err(|_| Fault::corrupt("a frame of more than 4 GB"))?;
        file[4..8].copy_from_slice(&len.to_le_bytes());
        Ok(file)
    }

    /// Its pixels on a transparent canvas, or on a black one where the animation has no transparency.
    fn on_canvas(&self, picture: &Decoded, canvas: Size, has_alpha: bool) -> Result<Decoded, Fault> {
        let opaque = matches!(picture.layout, Layout::Rgb);
        let (from, to) = (if opaque { 3 } else { 4 }, if has_alpha { 4 } else { 3 });
        let mut data = zeroed::<u8>(canvas.width as usize * canvas.height as usize * to)?;
        let rows = data.chunks_exact_mut(canvas.width as usize * to).skip(self.y as usize);
        for (row, source) in rows.zip(picture.data.chunks_exact(self.size.width as usize * from)) {
            let pixels = row[self.x as usize * to..].chunks_exact_mut(to).zip(source.chunks_exact(from));
            for (pixel, source) in pixels {
                pixel[..3].copy_from_slice(&source[..3]);
                if let Some(alpha) = pixel.get_mut(3) {
                    *alpha = source.get(3).copied().unwrap_or(255);
                }
            }
        }
        Ok(Decoded::whole(canvas, if has_alpha { Layout::Rgba } else { Layout::Rgb }, data))
    }
}

/// Adds a chunk, padded to an even length.
fn append(file: &mut Vec<u8>, kind: [u8; 4], body: &[u8]) -> Result<(), Fault> {
    let len = u32::try_from(body.len()).map_err(|_| Fault::corrupt("a chunk of more than 4 GB"))?;
    file.extend(kind);
    file.extend(len.to_le_bytes());
    file.extend(body);
    file.resize(file.len().next_multiple_of(2), 0);
    Ok(())
}

/// Whether the extended header announces transparency.
fn has_alpha_flag(bytes: &[u8]) -> bool {
    bytes.get(12..16) == Some(b"VP8X") && bytes.get(20).is_some_and(|flags| flags & ALPHA_FLAG != 0)
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

/// Finds the image or the first frame. The decoder allocates for the size in the bit stream, so that must be the size
/// that was checked: that of the image, or of a frame inside the canvas.
fn first_picture(bytes: &[u8], stored: Size) -> Result<Picture<'_>, Fault> {
    for (kind, body) in chunks(bytes, 12) {
        match &kind {
            b"VP8 " | b"VP8L" => {
                check_same_size(bitstream_size(&kind, body)?, stored)?;
                return Ok(Picture::Still);
            }
            b"ANMF" => return first_frame(body, stored).map(Picture::Frame),
            _ => {}
        }
    }
    Err(Fault::truncated("the file ends before the image data"))
}

fn first_frame(body: &[u8], canvas: Size) -> Result<Frame<'_>, Fault> {
    let short = || Fault::truncated("the file ends inside the first frame");
    let field = |at: usize| {
        let bytes = body.get(at..at + 3).ok_or_else(short)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], 0]))
    };
    let (x, y) = (2 * field(0)?, 2 * field(3)?);
    let size = Size::new(field(6)? + 1, field(9)? + 1);
    if x + size.width > canvas.width || y + size.height > canvas.height {
        return Err(Fault::corrupt(format!("the first frame, {size} at {x},{y}, is not inside {canvas}")));
    }
    let mut alpha = None;
    for (kind, body) in chunks(body, 16) {
        match &kind {
            b"VP8 " | b"VP8L" => {
                check_same_size(bitstream_size(&kind, body)?, size)?;
                return Ok(Frame { x, y, size, alpha, kind, body });
            }
            b"ALPH" => alpha = Some(body),
            _ => {}
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
