//! BMP. Those with a palette and those of 16 bits are decoded here, others by the `image` crate.

mod palette;

use std::io::Cursor;

use image::codecs::bmp::BmpDecoder;
use image::{ColorType, ImageDecoder, ImageError};
use slicemill_core::Size;

use super::{Decoded, Layout, check_same_size};
use crate::fault::{Fault, io_fault, zeroed};
use crate::jpeg::Ending;

/// The longest side that the `image` crate decodes.
const SIDE_MAX: u32 = 65_535;

pub(super) fn decode(bytes: &[u8], stored: Size, ending: Ending) -> Result<Decoded, Fault> {
    if let Some(plain) = without_os2_header(bytes)? {
        return decode(&plain, stored, ending);
    }
    let fields = Fields::read(bytes);
    if ending == Ending::Anywhere
        && let Some(filled) = fields.filled_up(bytes, stored)?
    {
        let rest = decode(&filled, stored, Ending::Complete)?;
        return Ok(Decoded { truncated: true, ..rest });
    }
    fields.check_length(bytes, stored)?;
    if fields.has_palette() {
        return palette::decode(&fields, bytes, stored);
    }
    if stored.width.max(stored.height) > SIDE_MAX {
        return Err(Fault::unsupported(format!("a side of more than {SIDE_MAX} pixels")));
    }
    let decoder = BmpDecoder::new(Cursor::new(bytes)).map_err(fault)?;
    let (width, height) = decoder.dimensions();
    check_same_size(Size::new(width, height), stored)?;
    if fields.depth == 16 {
        return fields.decode_16_bits(bytes, stored);
    }
    let layout = match decoder.color_type() {
        ColorType::L8 => Layout::Gray,
        ColorType::Rgb8 => Layout::Rgb,
        ColorType::Rgba8 => Layout::Rgba,
        colour => return Err(Fault::unsupported(format!("{colour:?} pixels"))),
    };
    let mut data = zeroed(usize::try_from(decoder.total_bytes()).map_err(|_| Fault::out_of_memory(usize::MAX))?)?;
    decoder.read_image(&mut data).map_err(fault)?;
    Ok(Decoded::whole(stored, layout, data))
}

/// A copy in which the header of OS/2 2.x, long or short, has become the usual one of 40 bytes, of which it is a variant;
/// `None` for all others.
fn without_os2_header(bytes: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
    const USUAL: usize = 40;
    let (Some(&file), Some(info)) = (bytes.first_chunk::<14>(), bytes.get(14..)) else { return Ok(None) };
    let len = match info.first_chunk() {
        Some([16, 0, 0, 0]) => 16,
        Some([64, 0, 0, 0]) => 64,
        _ => return Ok(None),
    };
    let (header, rest) =
        info.split_at_checked(len).ok_or_else(|| Fault::truncated("the file ends inside the header"))?;
    // 3 and 4 are other compressions there.
    if header.get(16).is_some_and(|&compression| compression > 2) {
        return Err(Fault::unsupported("a compression that only OS/2 has"));
    }
    let mut usual = [0; USUAL];
    let common = len.min(USUAL);
    usual[..common].copy_from_slice(&header[..common]);
    usual[0] = USUAL as u8;
    let [.., d0, d1, d2, d3] = file;
    let data_at = u32::from_le_bytes([d0, d1, d2, d3]).wrapping_add(USUAL as u32).wrapping_sub(len as u32);
    Ok(Some([&file[..10], &data_at.to_le_bytes(), &usual, rest].concat()))
}

/// Fields of the headers.
struct Fields {
    data_at: usize,
    top_down: bool,
    depth: u64,
    compression: u32,
    palette_at: usize,
    palette_entry_bytes: usize,
    /// Entries of the palette.
    colours: usize,
}

impl Fields {
    fn read(bytes: &[u8]) -> Self {
        let u32_at = |at: usize| {
            let field = bytes.get(at..at + 4).and_then(|field| field.try_into().ok());
            u32::from_le_bytes(field.unwrap_or_default())
        };
        let header_bytes = u32_at(14) as usize;
        let core = header_bytes == 12;
        let depth = u64::from(if core { u32_at(24) & 0xFFFF } else { u32_at(28) & 0xFFFF });
        let listed = if core { 0 } else { u32_at(46) as usize };
        let colours = if listed == 0 { 1 << depth.min(8) } else { listed };
        let palette_at = 14usize.saturating_add(header_bytes);
        let palette_entry_bytes = if core { 3 } else { 4 };
        let mut data_at = u32_at(10) as usize;
        // Pixels that are said to begin where the palette does begin behind it, as in Pillow.
        if depth <= 8 && (data_at == palette_at || data_at == 0) {
            data_at = palette_at.saturating_add(colours.saturating_mul(palette_entry_bytes));
        }
        Self {
            data_at,
            top_down: !core && u32_at(22) >> 31 != 0,
            depth,
            compression: if core { 0 } else { u32_at(30) },
            palette_at,
            palette_entry_bytes,
            colours,
        }
    }

    /// Whether the pixels are indices in a palette, coded in a way that is known.
    const fn has_palette(&self) -> bool {
        matches!(self.depth, 1 | 4 | 8) && matches!(self.compression, 0..=2)
    }

    fn row_bytes(&self, stored: Size) -> u64 {
        (u64::from(stored.width) * self.depth).div_ceil(32) * 4
    }

    /// Whether all rows have the same number of bytes.
    const fn rows_are_even(&self) -> bool {
        matches!(self.compression, 0 | 3)
    }

    /// A file that ends inside its pixels, with zeros for the rows that are not whole; `None` when they all are.
    fn filled_up(&self, bytes: &[u8], stored: Size) -> Result<Option<Vec<u8>>, Fault> {
        let Some(have) = bytes.len().checked_sub(self.data_at) else { return Ok(None) };
        let (row, rows) = (self.row_bytes(stored), u64::from(stored.height));
        if !self.rows_are_even() || row * rows <= have as u64 + 3 {
            return Ok(None);
        }
        let whole = self.data_at + (have as u64 / row * row) as usize;
        let len = usize::try_from(self.data_at as u64 + row * rows).map_err(|_| Fault::out_of_memory(usize::MAX))?;
        let mut filled = zeroed::<u8>(len)?;
        filled[..whole].copy_from_slice(&bytes[..whole]);
        Ok(Some(filled))
    }

    /// Rows that are not compressed must all be there before a buffer is taken for them.
    fn check_length(&self, bytes: &[u8], stored: Size) -> Result<(), Fault> {
        let need = (self.data_at as u64).saturating_add(self.row_bytes(stored) * u64::from(stored.height));
        let have = bytes.len() as u64;
        // The last row may lack its padding.
        if self.rows_are_even() && need > have + 3 {
            return Err(Fault::truncated(format!("{have} bytes, where {stored} pixels need {need}")));
        }
        Ok(())
    }

    /// 5 bits per colour, or 6 for green. (The `image` crate rounds their stretching to 8 bits; Pillow, like most
    /// readers, cuts it off.)
    fn decode_16_bits(&self, bytes: &[u8], stored: Size) -> Result<Decoded, Fault> {
        let mask = |index: usize| {
            let at = 14 + 40 + index * 4;
            bytes.get(at..at + 4).and_then(|field| field.try_into().ok()).map_or(0, u32::from_le_bytes)
        };
        let green_bits = match (self.compression, [mask(0), mask(1), mask(2)]) {
            (0, _) | (3, [0x7C00, 0x3E0, 0x1F]) => 5,
            (3, [0xF800, 0x7E0, 0x1F]) => 6,
            (3, masks) => return Err(Fault::unsupported(format!("16-bit pixels with the colour masks {masks:x?}"))),
            _ => return Err(Fault::unsupported("compressed 16-bit pixels")),
        };
        let stretched = |value: u16, bits: u32| {
            let limit = (1u16 << bits) - 1;
            ((value & limit) * 255 / limit) as u8
        };
        let row_bytes = usize::try_from(self.row_bytes(stored)).map_err(|_| Fault::out_of_memory(usize::MAX))?;
        let width = stored.width as usize;
        let mut data = zeroed::<u8>(width * stored.height as usize * 3)?;
        for (y, row) in data.chunks_exact_mut(width * 3).enumerate() {
            let line = if self.top_down { y } else { stored.height as usize - 1 - y };
            let source = bytes.get(self.data_at + line * row_bytes..).and_then(|rest| rest.get(..width * 2));
            let source = source.ok_or_else(|| Fault::truncated("the file ends inside the pixels"))?;
            for (pixel, &low_high) in row.as_chunks_mut::<3>().0.iter_mut().zip(source.as_chunks::<2>().0) {
                let value = u16::from_le_bytes(low_high);
                let (green, red) = (stretched(value >> 5, green_bits), stretched(value >> (5 + green_bits), 5));
                *pixel = [red, green, stretched(value, 5)];
            }
        }
        Ok(Decoded::whole(stored, Layout::Rgb, data))
    }
}

fn fault(error: ImageError) -> Fault {
    match error {
        ImageError::IoError(error) => io_fault(&error),
        ImageError::Unsupported(error) => Fault::unsupported(error.to_string()),
        error => Fault::corrupt(error.to_string()),
    }
}
