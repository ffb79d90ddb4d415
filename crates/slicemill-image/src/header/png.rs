//! PNG: chunks up to the image data (W3C PNG, third edition).

use slicemill_core::Size;

use super::Header;
use crate::fault::Fault;
use crate::window::{Stop, Window};
use crate::{ImageFormat, Orientation, exif};

/// Walks the chunks before `IDAT`, where the standard puts `tRNS` and `eXIf`. Texts and profiles are stepped over,
/// never inflated.
pub(super) fn parse(window: Window<'_>) -> Result<Header, Stop> {
    let first: [u8; 8] = window.array(8, "first chunk")?;
    if &first[4..] == b"CgBI" {
        return Err(Fault::unsupported("Apple's CgBI variant of PNG").into());
    }
    if first != *b"\0\0\0\x0dIHDR" {
        return Err(Fault::bad_header("the first chunk is not IHDR").into());
    }
    let ihdr: [u8; 13] = window.array(16, "IHDR chunk")?;
    let (stored, mut has_alpha) = image_header(&ihdr)?;
    let mut orientation = Orientation::Upright;
    let mut at = 8 + 12 + 13;
    loop {
        let head: [u8; 8] = window.array(at, "chunks before the image data")?;
        let (len, kind) = (u64::from(u32::from_be_bytes([head[0], head[1], head[2], head[3]])), &head[4..]);
        match kind {
            b"IDAT" => break,
            b"IEND" => return Err(Fault::bad_header("the image ends before its data").into()),
            b"tRNS" => has_alpha = true,
            b"eXIf" => orientation = exif::orientation(window.bytes(at + 8, len, "eXIf chunk")?),
            _ => {}
        }
        if len > 0x7FFF_FFFF {
            return Err(Fault::bad_header(format!("the chunk at byte {at} has a length of {len}")).into());
        }
        at += 12 + len;
    }
    Ok(Header { format: ImageFormat::Png, stored, orientation, has_alpha })
}

fn image_header(ihdr: &[u8; 13]) -> Result<(Size, bool), Fault> {
    let &[w3, w2, w1, w0, h3, h2, h1, h0, depth, colour, compression, filter, interlace] = ihdr;
    let valid = match colour {
        0 => matches!(depth, 1 | 2 | 4 | 8 | 16),
        3 => matches!(depth, 1 | 2 | 4 | 8),
        2 | 4 | 6 => matches!(depth, 8 | 16),
        _ => false,
    };
    if !valid || compression != 0 || filter != 0 || interlace > 1 {
        return Err(Fault::bad_header(format!(
            "colour type {colour} with {depth} bits, or its coding, does not exist"
        )));
    }
    let size = Size::new(u32::from_be_bytes([w3, w2, w1, w0]), u32::from_be_bytes([h3, h2, h1, h0]));
    Ok((size, matches!(colour, 4 | 6)))
}
