//! WebP: RIFF chunks (RFC 9649).

use slicemill_core::Size;

use super::Header;
use super::metadata::Metadata;
use crate::fault::Fault;
use crate::window::{Stop, Window};
use crate::{ImageFormat, Orientation};

/// The extended header announces transparency.
pub(crate) const ALPHA_FLAG: u8 = 0x10;
const EXIF_FLAG: u8 = 0x08;
const XMP_FLAG: u8 = 0x04;

/// Reads the first chunk; EXIF and XMP are looked for only when the extended header announces them.
pub(super) fn parse(window: Window<'_>) -> Result<Header, Stop> {
    let kind: [u8; 4] = window.array(12, "first chunk")?;
    let mut orientation = Orientation::Upright;
    let (stored, has_alpha) = match &kind {
        b"VP8 " => (lossy_size(window, 20)?, false),
        b"VP8L" => lossless_size(window, 20)?,
        b"VP8X" => {
            let extended: [u8; 10] = window.array(20, "VP8X chunk")?;
            let [flags, _, _, _, w0, w1, w2, h0, h1, h2] = extended;
            if flags & (EXIF_FLAG | XMP_FLAG) != 0 {
                orientation = find_orientation(window, flags)?;
            }
            let side = |bytes: [u8; 3]| 1 + u32::from_le_bytes([bytes[0], bytes[1], bytes[2], 0]);
            (Size::new(side([w0, w1, w2]), side([h0, h1, h2])), flags & ALPHA_FLAG != 0)
        }
        _ => return Err(Fault::bad_header("the first chunk is none of VP8, VP8L and VP8X").into()),
    };
    Ok(Header { format: ImageFormat::WebP, stored, orientation, has_alpha })
}

fn lossy_size(window: Window<'_>, at: u64) -> Result<Size, Stop> {
    let frame: [u8; 10] = window.array(at, "VP8 frame header")?;
    if frame[0] & 1 != 0 || frame[3..6] != [0x9D, 0x01, 0x2A] {
        return Err(Fault::bad_header("the VP8 frame is no key frame").into());
    }
    let side = |low: u8, high: u8| u32::from(u16::from_le_bytes([low, high]) & 0x3FFF);
    Ok(Size::new(side(frame[6], frame[7]), side(frame[8], frame[9])))
}

fn lossless_size(window: Window<'_>, at: u64) -> Result<(Size, bool), Stop> {
    let [signature, b0, b1, b2, b3] = window.array(at, "VP8L header")?;
    let bits = u32::from_le_bytes([b0, b1, b2, b3]);
    if signature != 0x2F || bits >> 29 != 0 {
        return Err(Fault::bad_header("the VP8L header is not that of version 0").into());
    }
    Ok((Size::new(1 + (bits & 0x3FFF), 1 + ((bits >> 14) & 0x3FFF)), bits & (1 << 28) != 0))
}

/// The chunks of a buffer from byte `at` on; the last may be cut short.
pub(crate) fn chunks(bytes: &[u8], mut at: usize) -> impl Iterator<Item = ([u8; 4], &[u8])> {
    std::iter::from_fn(move || {
        let (head, rest) = bytes.get(at..)?.split_first_chunk::<8>()?;
        let len = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        at = at.saturating_add(8).saturating_add(len).saturating_add(len & 1);
        Some(([head[0], head[1], head[2], head[3]], &rest[..len.min(rest.len())]))
    })
}

/// The size in a `VP8 ` or `VP8L` bit stream.
pub(crate) fn bitstream_size(kind: &[u8; 4], body: &[u8]) -> Result<Size, Fault> {
    let window = Window::new(body, body.len() as u64);
    let size = if kind == b"VP8L" { lossless_size(window, 0).map(|(size, _)| size) } else { lossy_size(window, 0) };
    size.map_err(|stop| match stop {
        Stop::Fault(fault) => fault,
        Stop::Need(_) => Fault::truncated("the file ends inside the header of the bit stream"),
    })
}

/// EXIF and XMP stand after the image data. A file that ends before them is truncated, which decoding will find out.
fn find_orientation(window: Window<'_>, flags: u8) -> Result<Orientation, Stop> {
    let mut metadata = Metadata::default();
    let mut at = 12;
    while at + 8 <= window.total() {
        let head: [u8; 8] = window.array(at, "chunks")?;
        let len = u64::from(u32::from_le_bytes([head[4], head[5], head[6], head[7]]));
        let there = len.min(window.total() - at - 8);
        match &head[..4] {
            b"EXIF" if flags & EXIF_FLAG != 0 => metadata.exif(window.bytes(at + 8, there, "EXIF chunk")?),
            b"XMP " if flags & XMP_FLAG != 0 => metadata.xmp(window.bytes(at + 8, there, "XMP chunk")?),
            _ => {}
        }
        // What follows is not needed, and may be far away.
        if metadata.exif_tells() {
            break;
        }
        at += 8 + len + (len & 1);
    }
    Ok(metadata.orientation())
}
