//! JPEG: markers up to the first scan (ITU-T T.81, annex B).

use slicemill_core::Size;

use super::Header;
use crate::fault::Fault;
use crate::window::{Stop, Window};
use crate::{ImageFormat, Orientation, exif};

/// Walks the markers. EXIF stands in an APP1 segment before the frame header.
pub(super) fn parse(window: Window<'_>) -> Result<Header, Stop> {
    let mut at = 2;
    let mut orientation = None;
    let mut stored = None;
    loop {
        let [mark, code] = window.array(at, "markers before the image data")?;
        match code {
            // Bytes between segments are stepped over, as in libjpeg: some cameras leave a few.
            _ if mark != 0xFF || code == 0xFF => {
                at += 1;
                continue;
            }
            // No marker, or one without a segment.
            0x00 | 0x01 | 0xD0..=0xD8 => {
                at += 2;
                continue;
            }
            0xD9 => return Err(Fault::bad_header("the image ends before its data").into()),
            _ => {}
        }
        let len = u64::from(u16::from_be_bytes(window.array(at + 2, "markers before the image data")?));
        if len < 2 {
            return Err(Fault::bad_header(format!("the segment at byte {at} has a length of {len}")).into());
        }
        match code {
            0xC0..=0xCF if !matches!(code, 0xC4 | 0xC8 | 0xCC) => {
                stored = Some(frame_size(code, window.bytes(at + 4, len - 2, "frame header")?)?);
            }
            0xE1 if orientation.is_none() => orientation = exif_orientation(window, at + 4, len - 2)?,
            0xDA => break,
            _ => {}
        }
        at += 2 + len;
    }
    let stored = stored.ok_or_else(|| Fault::bad_header("image data without a frame header"))?;
    Ok(Header { format: ImageFormat::Jpeg, stored, orientation: orientation.unwrap_or_default(), has_alpha: false })
}

fn exif_orientation(window: Window<'_>, at: u64, len: u64) -> Result<Option<Orientation>, Stop> {
    const PREFIX: &[u8] = b"Exif\0\0";
    if len < PREFIX.len() as u64 || window.bytes(at, PREFIX.len() as u64, "EXIF segment")? != PREFIX {
        return Ok(None);
    }
    Ok(Some(exif::orientation(window.bytes(at, len, "EXIF segment")?)))
}

/// The size in a frame header, for the processes that can be decoded: Huffman coding, 8 bits, 1, 3 or 4 components.
fn frame_size(code: u8, frame: &[u8]) -> Result<Size, Fault> {
    let &[precision, h1, h0, w1, w0, components, ..] = frame else {
        return Err(Fault::bad_header("the frame header is too short"));
    };
    match code {
        0xC0..=0xC2 => {}
        0xC3 | 0xC7 | 0xCB | 0xCF => return Err(Fault::unsupported("lossless JPEG")),
        0xC5 | 0xC6 | 0xCD | 0xCE => return Err(Fault::unsupported("hierarchical JPEG")),
        _ => return Err(Fault::unsupported("arithmetic coding")),
    }
    if precision != 8 {
        return Err(Fault::unsupported(format!("{precision} bits per sample")));
    }
    if !matches!(components, 1 | 3 | 4) {
        return Err(Fault::unsupported(format!("{components} components")));
    }
    Ok(Size::new(u32::from(u16::from_be_bytes([w1, w0])), u32::from(u16::from_be_bytes([h1, h0]))))
}
