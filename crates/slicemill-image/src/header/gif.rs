//! GIF: screen, extensions and the first frame's descriptor (GIF89a specification).

use slicemill_core::Size;

use super::Header;
use crate::fault::Fault;
use crate::window::{Stop, Window};
use crate::{ImageFormat, Orientation};

const EXTENSION: u8 = 0x21;
const IMAGE: u8 = 0x2C;
const TRAILER: u8 = 0x3B;
const GRAPHIC_CONTROL: u8 = 0xF9;

/// Reads up to the first frame.
pub(super) fn parse(window: Window<'_>) -> Result<Header, Stop> {
    let frame = first_frame(window)?;
    Ok(Header {
        format: ImageFormat::Gif,
        stored: frame.canvas,
        orientation: Orientation::Upright,
        has_alpha: frame.transparent.is_some(),
    })
}

/// The first frame and what stands before it.
pub(crate) struct FirstFrame {
    /// The screen: a frame that reaches beyond it enlarges it, as in Pillow.
    pub(crate) canvas: Size,
    pub(crate) left: u32,
    pub(crate) top: u32,
    pub(crate) size: Size,
    pub(crate) interlaced: bool,
    /// The index that is transparent.
    pub(crate) transparent: Option<u8>,
    /// Where its palette stands, its own or that of all frames, and how many colours it has.
    pub(crate) palette: Option<(u64, usize)>,
    /// Where its image data begin.
    pub(crate) data_at: u64,
}

/// Finds the first frame.
pub(crate) fn first_frame(window: Window<'_>) -> Result<FirstFrame, Stop> {
    let screen: [u8; 7] = window.array(6, "screen descriptor")?;
    let [w0, w1, h0, h1, flags, ..] = screen;
    let global = palette(13, flags);
    let mut at = 13 + global.map_or(0, bytes_of);
    let mut transparent = None;
    loop {
        let [introducer] = window.array(at, "blocks before the first frame")?;
        match introducer {
            EXTENSION => at = extension(window, at, &mut transparent)?,
            IMAGE => break,
            TRAILER => return Err(Fault::bad_header("the file has no frame").into()),
            // Pillow steps over anything else.
            _ => at += 1,
        }
    }
    let [l0, l1, t0, t1, fw0, fw1, fh0, fh1, flags] = window.array(at + 1, "frame descriptor")?;
    let (left, top) = (le16(l0, l1), le16(t0, t1));
    let size = Size::new(le16(fw0, fw1), le16(fh0, fh1));
    let local = palette(at + 10, flags);
    Ok(FirstFrame {
        canvas: Size::new(le16(w0, w1).max(left + size.width), le16(h0, h1).max(top + size.height)),
        left,
        top,
        size,
        interlaced: flags & 0x40 != 0,
        transparent,
        palette: local.or(global),
        data_at: at + 10 + local.map_or(0, bytes_of),
    })
}

fn le16(low: u8, high: u8) -> u32 {
    u32::from(u16::from_le_bytes([low, high]))
}

/// The palette at byte `at` that flags announce, and the number of its colours.
fn palette(at: u64, flags: u8) -> Option<(u64, usize)> {
    (flags & 0x80 != 0).then_some((at, 2 << (flags & 7)))
}

const fn bytes_of((_, colours): (u64, usize)) -> u64 {
    3 * colours as u64
}

/// Steps over an extension and its sub-blocks; a graphic control extension tells of transparency.
fn extension(window: Window<'_>, at: u64, transparent: &mut Option<u8>) -> Result<u64, Stop> {
    let what = "blocks before the first frame";
    let [label, mut len] = window.array(at + 1, what)?;
    if label == GRAPHIC_CONTROL && len >= 4 {
        let [flags, _, _, index] = window.array(at + 3, what)?;
        *transparent = (flags & 1 != 0).then_some(index);
    }
    let mut at = at + 2;
    while len != 0 {
        at += 1 + u64::from(len);
        [len] = window.array(at, what)?;
    }
    Ok(at + 1)
}
