//! PNG: chunks up to the image data (W3C PNG, third edition).

use slicemill_core::Size;

use super::Header;
use super::metadata::Metadata;
use super::text::{self, Keyword, Texts};
use crate::ImageFormat;
use crate::fault::Fault;
use crate::window::{Stop, Window};

/// Walks the chunks before `IDAT`, where the standard puts `tRNS` and `eXIf`. Texts that tell no orientation, and
/// profiles, are stepped over, never inflated. What stands behind the image data is not looked for: a plan would then
/// need the whole file.
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
    let mut metadata = Metadata::default();
    // EXIF in a text counts where there is no chunk of its own.
    let mut raw_exif = None;
    let mut texts = Texts::new();
    let mut at = 8 + 12 + 13;
    loop {
        let head: [u8; 8] = window.array(at, "chunks before the image data")?;
        let (len, kind) = (u64::from(u32::from_be_bytes([head[0], head[1], head[2], head[3]])), &head[4..]);
        match kind {
            b"IDAT" => break,
            b"IEND" => return Err(Fault::bad_header("the image ends before its data").into()),
            b"tRNS" => has_alpha = true,
            b"eXIf" => metadata.exif(window.bytes(at + 8, len, "eXIf chunk")?),
            _ => match orienting_text(&mut texts, window, (at + 8, len), kind)? {
                Some((Keyword::Xmp, packet)) => metadata.xmp(&packet),
                Some((Keyword::RawExif, profile)) => raw_exif = Some(text::raw_exif(&profile)),
                None => {}
            },
        }
        if len > 0x7FFF_FFFF {
            return Err(Fault::bad_header(format!("the chunk at byte {at} has a length of {len}")).into());
        }
        at += 12 + len;
    }
    if let Some(block) = raw_exif {
        metadata.exif(&block);
    }
    Ok(Header { format: ImageFormat::Png, stored, orientation: metadata.orientation(), has_alpha })
}

/// The text of a chunk of `len` bytes at `at` whose keyword says that it tells the orientation.
fn orienting_text(
    texts: &mut Texts,
    window: Window<'_>,
    (at, len): (u64, u64),
    kind: &[u8],
) -> Result<Option<(Keyword, Vec<u8>)>, Stop> {
    if !kind.ends_with(b"Xt") {
        return Ok(None);
    }
    let start = window.bytes(at, len.min(Keyword::BYTES), "text chunk")?;
    let Some((keyword, skipped)) = Keyword::of(kind, start) else { return Ok(None) };
    let rest = window.bytes(at + skipped, Keyword::bytes_max(len - skipped), "text chunk")?;
    Ok(texts.text(kind, rest).map(|text| (keyword, text)))
}

fn image_header(ihdr: &[u8; 13]) -> Result<(Size, bool), Fault> {
    // The compression is deflate, whatever number stands for it: the data tell.
    let &[w3, w2, w1, w0, h3, h2, h1, h0, depth, colour, _, filter, interlace] = ihdr;
    let valid = match colour {
        0 => matches!(depth, 1 | 2 | 4 | 8 | 16),
        3 => matches!(depth, 1 | 2 | 4 | 8),
        2 | 4 | 6 => matches!(depth, 8 | 16),
        _ => false,
    };
    if !valid || filter != 0 || interlace > 1 {
        return Err(Fault::bad_header(format!(
            "colour type {colour} with {depth} bits, filter method {filter}, interlacing {interlace}: there is no such PNG"
        )));
    }
    let size = Size::new(u32::from_be_bytes([w3, w2, w1, w0]), u32::from_be_bytes([h3, h2, h1, h0]));
    Ok((size, matches!(colour, 4 | 6)))
}
