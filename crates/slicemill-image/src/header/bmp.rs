//! BMP: file and information header.

use slicemill_core::Size;

use super::Header;
use crate::fault::Fault;
use crate::window::{Stop, Window};
use crate::{ImageFormat, Orientation};

/// Largest side that a signed 32-bit field can hold.
const SIDE_MAX: i64 = i32::MAX as i64;

/// Reads size and alpha mask; a negative height means that rows run downwards.
pub(super) fn parse(window: Window<'_>) -> Result<Header, Stop> {
    let header_bytes = u32::from_le_bytes(window.array(14, "information header")?);
    let (width, height) = if header_bytes == 12 {
        let [w0, w1, h0, h1] = window.array(18, "information header")?;
        (i64::from(u16::from_le_bytes([w0, w1])), i64::from(u16::from_le_bytes([h0, h1])))
    } else {
        let width: [u8; 4] = window.array(18, "information header")?;
        let height: [u8; 4] = window.array(22, "information header")?;
        (i64::from(i32::from_le_bytes(width)), i64::from(i32::from_le_bytes(height)).abs())
    };
    if !(0..=SIDE_MAX).contains(&width) || height > SIDE_MAX {
        return Err(Fault::bad_header(format!("a size of {width}x{height}")).into());
    }
    // 64 bytes are OS/2's, which has no masks.
    let has_alpha =
        header_bytes >= 56 && header_bytes != 64 && u32::from_le_bytes(window.array(66, "colour masks")?) != 0;
    let stored = Size::new(u32::try_from(width).unwrap_or(0), u32::try_from(height).unwrap_or(0));
    Ok(Header { format: ImageFormat::Bmp, stored, orientation: Orientation::Upright, has_alpha })
}
