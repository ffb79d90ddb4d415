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

/// Reads up to the first frame: a frame that reaches beyond the screen enlarges it, as in Pillow.
pub(super) fn parse(window: Window<'_>) -> Result<Header, Stop> {
    let screen: [u8; 7] = window.array(6, "screen descriptor")?;
    let (width, height) = (le16(screen[0], screen[1]), le16(screen[2], screen[3]));
    let mut at = 13 + colour_table_bytes(screen[4]);
    let mut has_alpha = false;
    loop {
        let [introducer] = window.array(at, "blocks before the first frame")?;
        match introducer {
            EXTENSION => at = extension(window, at, &mut has_alpha)?,
            IMAGE => break,
            TRAILER => return Err(Fault::bad_header("the file has no frame").into()),
            // Pillow steps over anything else.
            _ => at += 1,
        }
    }
    let frame: [u8; 8] = window.array(at + 1, "frame descriptor")?;
    let right = le16(frame[0], frame[1]) + le16(frame[4], frame[5]);
    let bottom = le16(frame[2], frame[3]) + le16(frame[6], frame[7]);
    let stored = Size::new(width.max(right), height.max(bottom));
    Ok(Header { format: ImageFormat::Gif, stored, orientation: Orientation::Upright, has_alpha })
}

fn le16(low: u8, high: u8) -> u32 {
    u32::from(u16::from_le_bytes([low, high]))
}

const fn colour_table_bytes(flags: u8) -> u64 {
    if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) }
}

/// Steps over an extension and its sub-blocks; a graphic control extension tells of transparency.
fn extension(window: Window<'_>, at: u64, has_alpha: &mut bool) -> Result<u64, Stop> {
    let what = "blocks before the first frame";
    let [label, mut len] = window.array(at + 1, what)?;
    if label == GRAPHIC_CONTROL && len >= 1 {
        let [flags] = window.array(at + 3, what)?;
        *has_alpha = flags & 1 != 0;
    }
    let mut at = at + 2;
    while len != 0 {
        at += 1 + u64::from(len);
        [len] = window.array(at, what)?;
    }
    Ok(at + 1)
}
