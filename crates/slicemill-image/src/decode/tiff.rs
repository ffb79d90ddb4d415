//! TIFF: the first image of the file.
//!
//! Strips and tiles are unpacked by the `tiff` crate, those that hold JPEG streams by our own decoder. Palettes are
//! looked up here.

use std::io::Cursor;

use slicemill_core::Size;
use tiff::decoder::{Decoder, DecodingResult, Limits};
use tiff::{ColorType, TiffError};

use super::{Decoded, Layout, check_same_size};
use crate::exif::{Directory, tag};
use crate::fault::{Fault, io_fault, zeroed};
use crate::header::tiff::Alpha;
use crate::jpeg::{self, ColourSpace, Ending};
use crate::window::{Stop, Window};

const PALETTE: u64 = 3;
const BLACK_IS_ZERO: u16 = 1;
const STRAIGHT_ALPHA: u16 = 2;
const JPEG: u64 = 7;
const LOWEST_BIT_FIRST: u64 = 2;

pub(super) fn decode(bytes: &[u8], stored: Size) -> Result<Decoded, Fault> {
    let directory = Directory::open(Window::new(bytes, bytes.len() as u64)).map_err(stop)?;
    directory.check_lengths().map_err(stop)?;
    if directory.get(tag::FILL_ORDER).map_err(stop)? == Some(LOWEST_BIT_FIRST) {
        let reversed = with_bits_reversed(bytes, &directory)?;
        let directory = Directory::open(Window::new(&reversed, reversed.len() as u64)).map_err(stop)?;
        return decode_ordered(&reversed, &directory, stored);
    }
    decode_ordered(bytes, &directory, stored)
}

/// A copy of the file in which every byte of the image data has its highest bit first; JPEG streams have so anyway.
fn with_bits_reversed(bytes: &[u8], directory: &Directory<'_>) -> Result<Vec<u8>, Fault> {
    let mut copy = bytes.to_vec();
    if directory.get(tag::COMPRESSION).map_err(stop)? == Some(JPEG) {
        return Ok(copy);
    }
    for (offsets, lengths) in [(tag::STRIP_OFFSETS, tag::STRIP_BYTE_COUNTS), (tag::TILE_OFFSETS, tag::TILE_BYTE_COUNTS)]
    {
        let (offsets, lengths) = (directory.values(offsets).map_err(stop)?, directory.values(lengths).map_err(stop)?);
        let total = lengths.iter().fold(0, |sum: u64, &len| sum.saturating_add(len));
        if total > bytes.len() as u64 {
            return Err(Fault::truncated(format!("{} bytes, where the image data alone has {total}", bytes.len())));
        }
        for (&offset, &len) in offsets.iter().zip(&lengths) {
            let range = usize::try_from(offset).ok().zip(usize::try_from(offset.saturating_add(len)).ok());
            let data = range.and_then(|(start, end)| copy.get_mut(start..end));
            let data = data.ok_or_else(|| Fault::truncated("the file ends inside the image data"))?;
            data.iter_mut().for_each(|byte| *byte = byte.reverse_bits());
        }
    }
    Ok(copy)
}

fn decode_ordered(bytes: &[u8], directory: &Directory<'_>, stored: Size) -> Result<Decoded, Fault> {
    if directory.get(tag::COMPRESSION).map_err(stop)? == Some(JPEG) {
        return decode_jpeg(bytes, directory, stored);
    }
    if directory.get(tag::PHOTOMETRIC).map_err(stop)? == Some(PALETTE) {
        return decode_palette(bytes, directory, stored);
    }
    let alpha = Alpha::of(directory).map_err(stop)?;
    let kept = with_extra_sample_kept(bytes, directory)?;
    let (colour, samples) = read_samples(kept.as_deref().unwrap_or(bytes), stored)?;
    let predicted = directory.get(tag::PREDICTOR).map_err(stop)?.is_some_and(|predictor| predictor != 1);
    let stored_samples = directory.get(tag::SAMPLES_PER_PIXEL).map_err(stop)?.unwrap_or(1);
    if predicted && u64::from(colour.num_samples()) != stored_samples {
        return Err(Fault::unsupported(format!("{stored_samples} samples of {colour:?} with a predictor")));
    }
    arrange(colour, samples, stored, alpha)
}

/// A copy that calls a fourth sample of RGB alpha, where the file does not say what it is: the `tiff` crate drops what it
/// does not know before it undoes the predictor, which then makes other colours of it.
fn with_extra_sample_kept(bytes: &[u8], directory: &Directory<'_>) -> Result<Option<Vec<u8>>, Fault> {
    let get = |tag| directory.get(tag).map_err(stop);
    if (get(tag::PHOTOMETRIC)?, get(tag::SAMPLES_PER_PIXEL)?, get(tag::EXTRA_SAMPLES)?) != (Some(2), Some(4), Some(0)) {
        return Ok(None);
    }
    with_short(bytes, directory, tag::EXTRA_SAMPLES, STRAIGHT_ALPHA).map(Some)
}

/// A copy in which the value of a tag is another.
fn with_short(bytes: &[u8], directory: &Directory<'_>, tag: u16, value: u16) -> Result<Vec<u8>, Fault> {
    let mut copy = bytes.to_vec();
    let at = directory.position(tag).map_err(stop)?.and_then(|at| usize::try_from(at).ok());
    let field = at.and_then(|at| copy.get_mut(at..at + 2)).ok_or_else(|| Fault::corrupt("the directory is broken"))?;
    field.copy_from_slice(&if directory.little_endian() { value.to_le_bytes() } else { value.to_be_bytes() });
    Ok(copy)
}

fn stop(stop: Stop) -> Fault {
    match stop {
        Stop::Fault(fault) => fault,
        Stop::Need(bytes) => Fault::truncated(format!("the file ends before byte {bytes}")),
    }
}

fn fault(error: TiffError) -> Fault {
    match error {
        TiffError::IoError(error) => io_fault(&error),
        TiffError::UnsupportedError(error) => Fault::unsupported(error.to_string()),
        TiffError::LimitsExceeded => Fault::corrupt("strips, tiles or tables larger than the image"),
        error => Fault::corrupt(error.to_string()),
    }
}

/// All samples, 8 bits each or packed below that.
fn read_samples(bytes: &[u8], stored: Size) -> Result<(ColorType, Vec<u8>), Fault> {
    let mut decoder = Decoder::new(Cursor::new(bytes)).map_err(fault)?;
    let (width, height) = decoder.dimensions().map_err(fault)?;
    check_same_size(Size::new(width, height), stored)?;
    // No sample layout that is decoded has more than 8 bytes per pixel; tiles may reach over the edge.
    let mut limits = Limits::default();
    limits.decoding_buffer_size = usize::try_from(stored.pixels() * 8).unwrap_or(usize::MAX);
    limits.intermediate_buffer_size = limits.decoding_buffer_size.saturating_mul(2).max(16 << 20);
    decoder = decoder.with_limits(limits);
    let colour = decoder.colortype().map_err(fault)?;
    let mut samples = DecodingResult::U8(Vec::new());
    let layout = decoder.read_image_to_buffer(&mut samples).map_err(fault)?;
    if layout.planes > 1 {
        return Err(Fault::unsupported("colours in separate planes"));
    }
    let samples = match samples {
        DecodingResult::U8(samples) => samples,
        DecodingResult::U16(samples) => samples.iter().map(|&sample| (sample >> 8) as u8).collect(),
        DecodingResult::U32(samples) => samples.iter().map(|&sample| (sample >> 24) as u8).collect(),
        _ => return Err(Fault::unsupported("signed or floating-point samples")),
    };
    Ok((colour, samples))
}

/// Samples to one of the layouts.
fn arrange(colour: ColorType, samples: Vec<u8>, stored: Size, alpha: Alpha) -> Result<Decoded, Fault> {
    let straight = alpha == Alpha::Straight;
    let (layout, data) = match colour {
        ColorType::Gray(bits @ (1 | 2 | 4)) => (Layout::Gray, scaled(&unpacked(&samples, stored, bits)?, bits)),
        ColorType::Gray(8 | 16 | 32) => (Layout::Gray, samples),
        ColorType::Multiband { bit_depth: 8 | 16, num_samples: 2 } if straight => (Layout::GrayAlpha, samples),
        ColorType::RGB(8 | 16) => (Layout::Rgb, samples),
        ColorType::RGBA(8 | 16) if straight => (Layout::Rgba, samples),
        ColorType::RGBA(8 | 16) if alpha == Alpha::Premultiplied => (Layout::Rgba, divided_by_alpha(samples)),
        ColorType::RGBA(8 | 16) if alpha == Alpha::None => (Layout::Rgb, without_fourth(&samples)),
        ColorType::CMYK(8 | 16) => (Layout::Rgb, inks(&samples)),
        colour => return Err(Fault::unsupported(format!("{colour:?} pixels"))),
    };
    Ok(Decoded::whole(stored, layout, data))
}

/// One byte per sample, from rows of packed samples that begin at whole bytes.
fn unpacked(samples: &[u8], stored: Size, bits: u8) -> Result<Vec<u8>, Fault> {
    let (width, bits) = (stored.width as usize, usize::from(bits));
    let row_bytes = (width * bits).div_ceil(8);
    let mut out = zeroed::<u8>(width * stored.height as usize)?;
    let mask = (1u16 << bits) - 1;
    for (row, packed) in out.chunks_exact_mut(width).zip(samples.chunks_exact(row_bytes)) {
        for (x, sample) in row.iter_mut().enumerate() {
            let (byte, shift) = (x * bits / 8, 8 - bits - x * bits % 8);
            *sample = ((u16::from(packed[byte]) >> shift) & mask) as u8;
        }
    }
    Ok(out)
}

/// Stretches samples of a few bits to 0 to 255.
fn scaled(samples: &[u8], bits: u8) -> Vec<u8> {
    let factor = (255 / ((1u16 << bits) - 1)) as u8;
    samples.iter().map(|sample| sample * factor).collect()
}

/// RGB and a fourth sample that means nothing, to RGB.
fn without_fourth(samples: &[u8]) -> Vec<u8> {
    samples.as_chunks::<4>().0.iter().flat_map(|&[red, green, blue, _]| [red, green, blue]).collect()
}

/// Undoes the multiplication of colours by alpha, rounding down as Pillow does.
fn divided_by_alpha(mut samples: Vec<u8>) -> Vec<u8> {
    for [red, green, blue, alpha] in samples.as_chunks_mut::<4>().0 {
        let divisor = u16::from(*alpha);
        for colour in [red, green, blue] {
            *colour = (u16::from(*colour) * 255).checked_div(divisor).unwrap_or(0).min(255) as u8;
        }
    }
    samples
}

/// Four inks (255 is full) to RGB, as in Pillow.
fn inks(samples: &[u8]) -> Vec<u8> {
    let inverted: Vec<u8> = samples.iter().map(|sample| 255 - sample).collect();
    inverted.as_chunks::<4>().0.iter().flat_map(|&pixel| jpeg::ink_to_rgb(pixel)).collect()
}

/// The tiff crate does not know palettes: it reads the indices of a copy that claims to be gray.
fn decode_palette(bytes: &[u8], directory: &Directory<'_>, stored: Size) -> Result<Decoded, Fault> {
    let map = directory.values(tag::COLOR_MAP).map_err(stop)?;
    let bits = directory.get(tag::BITS_PER_SAMPLE).map_err(stop)?.unwrap_or(1);
    let entries = 1usize << bits.min(8);
    if !matches!(bits, 1 | 2 | 4 | 8) || map.len() != 3 * entries {
        return Err(Fault::unsupported(format!("a palette of {} values for {bits} bits", map.len())));
    }
    let gray = with_short(bytes, directory, tag::PHOTOMETRIC, BLACK_IS_ZERO)?;
    let (colour, samples) = read_samples(&gray, stored)?;
    let indices = match colour {
        ColorType::Gray(8) => samples,
        ColorType::Gray(bits @ (1 | 2 | 4)) => unpacked(&samples, stored, bits)?,
        colour => return Err(Fault::unsupported(format!("a palette of {colour:?} indices"))),
    };
    let component = |index: u8, plane: usize| (map[plane * entries + usize::from(index)] >> 8) as u8;
    let data = indices.iter().flat_map(|&index| [0, 1, 2].map(|plane| component(index, plane))).collect();
    Ok(Decoded::whole(stored, Layout::Rgb, data))
}

/// Strips or tiles that are JPEG streams, which may share tables.
fn decode_jpeg(bytes: &[u8], directory: &Directory<'_>, stored: Size) -> Result<Decoded, Fault> {
    let get = |tag| directory.get(tag).map_err(stop);
    let colour = match get(tag::PHOTOMETRIC)? {
        Some(0 | 1) => ColourSpace::Gray,
        Some(2) => ColourSpace::Rgb,
        Some(6) => ColourSpace::YCbCr,
        other => return Err(Fault::unsupported(format!("JPEG compression of colour kind {other:?}"))),
    };
    if get(tag::PLANAR_CONFIGURATION)?.is_some_and(|planar| planar != 1) {
        return Err(Fault::unsupported("JPEG compression of separate planes"));
    }
    let tiled = get(tag::TILE_WIDTH)?.is_some();
    let (offsets, lengths, width, height) = if tiled {
        (tag::TILE_OFFSETS, tag::TILE_BYTE_COUNTS, get(tag::TILE_WIDTH)?, get(tag::TILE_LENGTH)?)
    } else {
        (tag::STRIP_OFFSETS, tag::STRIP_BYTE_COUNTS, Some(u64::from(stored.width)), get(tag::ROWS_PER_STRIP)?)
    };
    let side = |side: Option<u64>, whole: u32| side.and_then(|side| u32::try_from(side).ok()).unwrap_or(whole).max(1);
    let chunk = Size::new(side(width, stored.width), side(height, stored.height));
    let chunk = if tiled { chunk } else { Size::new(chunk.width, chunk.height.min(stored.height)) };
    let (offsets, lengths) = (directory.values(offsets).map_err(stop)?, directory.values(lengths).map_err(stop)?);
    let tables: Vec<u8> = directory.values(tag::JPEG_TABLES).map_err(stop)?.iter().map(|&byte| byte as u8).collect();
    let across = stored.width.div_ceil(chunk.width) as usize;
    let count = across * stored.height.div_ceil(chunk.height) as usize;
    if offsets.len() < count || lengths.len() < count || chunk.pixels() > stored.pixels() * 4 + (1 << 20) {
        return Err(Fault::corrupt(format!("{} strips or tiles of {chunk} for {stored}", offsets.len())));
    }
    let mut data = zeroed::<u8>(stored.width as usize * stored.height as usize * 3)?;
    for (index, (&offset, &length)) in offsets.iter().zip(&lengths).take(count).enumerate() {
        let stream = Window::new(bytes, bytes.len() as u64).bytes(offset, length, "image data").map_err(stop)?;
        let (x, y) = (index % across * chunk.width as usize, index / across * chunk.height as usize);
        let rows = if tiled { chunk.height } else { chunk.height.min(stored.height - y as u32) };
        let expected = Size::new(chunk.width, rows);
        let (part, _) = jpeg::decode(&joined(&tables, stream), expected, Some(colour), Ending::Complete)?;
        let len = (stored.width as usize - x).min(chunk.width as usize) * 3;
        let rows = data.chunks_exact_mut(stored.width as usize * 3).skip(y);
        for (row, part) in rows.zip(part.as_bytes().chunks_exact(part.stride())) {
            row[x * 3..x * 3 + len].copy_from_slice(&part[..len]);
        }
    }
    Ok(Decoded::whole(stored, Layout::Rgb, data))
}

/// Tables without their end marker, then the stream without its start marker.
fn joined(tables: &[u8], stream: &[u8]) -> Vec<u8> {
    match (tables.strip_suffix(&[0xFF, 0xD9]), stream.strip_prefix(&[0xFF, 0xD8])) {
        (Some(tables), Some(rest)) => [tables, rest].concat(),
        _ => stream.to_vec(),
    }
}
