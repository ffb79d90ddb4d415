//! JPEG: markers up to the first scan (ITU-T T.81, annex B).

use slicemill_core::Size;

use super::Header;
use super::metadata::Metadata;
use crate::ImageFormat;
use crate::fault::Fault;
use crate::window::{Stop, Window};

/// Walks the markers. EXIF and XMP stand in APP1 segments before the image data.
pub(super) fn parse(window: Window<'_>) -> Result<Header, Stop> {
    let mut at = 2;
    let mut metadata = Metadata::default();
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
            0xE1 => application(window, at + 4, len - 2, &mut metadata)?,
            0xDA => break,
            _ => {}
        }
        at += 2 + len;
    }
    let stored = stored.ok_or_else(|| Fault::bad_header("image data without a frame header"))?;
    Ok(Header { format: ImageFormat::Jpeg, stored, orientation: metadata.orientation(), has_alpha: false })
}

/// Takes in an APP1 segment.
fn application(window: Window<'_>, at: u64, len: u64, metadata: &mut Metadata) -> Result<(), Stop> {
    const EXIF: &[u8] = b"Exif\0\0";
    const XMP: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";
    let begins = |name: &[u8]| {
        let what = "EXIF or XMP segment";
        Ok::<_, Stop>(len >= name.len() as u64 && window.bytes(at, name.len() as u64, what)? == name)
    };
    if begins(EXIF)? {
        metadata.exif(window.bytes(at, len, "EXIF segment")?);
    } else if begins(XMP)? {
        metadata.xmp(window.bytes(at, len, "XMP segment")?);
    }
    Ok(())
}

/// The size in a frame header, for the processes that can be decoded: 8 bits, 1, 3 or 4 components.
fn frame_size(code: u8, frame: &[u8]) -> Result<Size, Fault> {
    let &[precision, h1, h0, w1, w0, components, ..] = frame else {
        return Err(Fault::bad_header("the frame header is too short"));
    };
    match code {
        0xC0..=0xC3 | 0xC9 | 0xCA => {}
        0xCB => return Err(Fault::unsupported("lossless JPEG with arithmetic coding")),
        _ => return Err(Fault::unsupported("hierarchical JPEG")),
    }
    if precision != 8 {
        return Err(Fault::unsupported(format!("{precision} bits per sample")));
    }
    if !matches!(components, 1 | 3 | 4) {
        return Err(Fault::unsupported(format!("{components} components")));
    }
    Ok(Size::new(u32::from(u16::from_be_bytes([w1, w0])), u32::from(u16::from_be_bytes([h1, h0]))))
}
