//! The JPEG of TIFF 6.0 itself (compression 6), given up since but still found.
//!
//! Either one whole stream stands somewhere in the file, or its tables do and the strips hold bare entropy-coded data;
//! streams are put together here from what there is. Chroma is repeated and converted as in libtiff, which treats
//! it like that of uncompressed pixels.

use slicemill_core::Size;

use super::shape::Shape;
use super::{colour, stop};
use crate::decode::Decoded;
use crate::exif::{Directory, tag};
use crate::fault::Fault;
use crate::jpeg::{self, ColourSpace, Embedded, Ending};
use crate::window::Window;

const START: u8 = 0xD8;
const END: u8 = 0xD9;
const SCAN: u8 = 0xDA;
const QUANTISATION: u8 = 0xDB;
const HUFFMAN: u8 = 0xC4;
const BASELINE: u8 = 0xC0;
const EXTENDED: u8 = 0xC1;

/// Decodes an image of which the file has a whole stream; `None` where it has strips that need tables.
pub(super) fn decode_whole(bytes: &[u8], directory: &Directory<'_>, shape: &Shape) -> Result<Option<Decoded>, Fault> {
    let Some(stream) = stream(bytes, directory)? else { return Ok(None) };
    let whole = Segments { bytes: stream, at: 2 }.any(|segment| segment.marker == SCAN && !segment.rest.is_empty());
    if !whole || shape.planar {
        return Ok(None);
    }
    let embedded = Embedded { colour: shape.components, rows_max: shape.size.height };
    let (image, _) = jpeg::decode(stream, shape.size, Some(embedded), Ending::Complete)?;
    let mut data = image.into_bytes();
    if shape.components == ColourSpace::Gray {
        data = data.into_iter().step_by(3).collect();
    }
    colour::decoded(data, shape, directory).map(Some)
}

/// The stream that a tag points to, or as much of one as there is.
fn stream<'a>(bytes: &'a [u8], directory: &Directory<'_>) -> Result<Option<&'a [u8]>, Fault> {
    let Some(start) = directory.get(tag::JPEG_STREAM).map_err(stop)? else { return Ok(None) };
    let rest = usize::try_from(start).ok().and_then(|start| bytes.get(start..)).unwrap_or_default();
    let len = directory.get(tag::JPEG_STREAM_BYTES).map_err(stop)?.filter(|&len| len > 0).unwrap_or(u64::MAX);
    let stream = &rest[..rest.len().min(usize::try_from(len).unwrap_or(usize::MAX))];
    Ok(stream.starts_with(&[0xFF, START]).then_some(stream))
}

/// The segments of a stream, one after the other, up to the first that is none.
struct Segments<'a> {
    bytes: &'a [u8],
    at: usize,
}

struct Segment<'a> {
    marker: u8,
    /// The segment with its marker.
    whole: &'a [u8],
    /// What follows it.
    rest: &'a [u8],
}

impl<'a> Iterator for Segments<'a> {
    type Item = Segment<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let here = self.bytes.get(self.at..)?;
        let &[0xFF, marker, high, low, ..] = here else { return None };
        let len = 2 + usize::from(u16::from_be_bytes([high, low]));
        self.at += len;
        let (whole, rest) = here.split_at_checked(len)?;
        (marker != END).then_some(Segment { marker, whole, rest })
    }
}

/// What streams are put together from, each with its markers.
pub(super) struct Parts {
    tables: Vec<u8>,
    frame: Vec<u8>,
    scan: Vec<u8>,
}

impl Parts {
    /// The segments of the stream before its data, or else what the tags point to.
    pub(super) fn read(bytes: &[u8], directory: &Directory<'_>, shape: &Shape) -> Result<Self, Fault> {
        let mut parts = Self { tables: Vec::new(), frame: Vec::new(), scan: Vec::new() };
        if let Some(stream) = stream(bytes, directory)? {
            for segment in (Segments { bytes: stream, at: 2 }) {
                match segment.marker {
                    BASELINE | EXTENDED => parts.frame = segment.whole.to_vec(),
                    SCAN => {
                        parts.scan = segment.whole.to_vec();
                        break;
                    }
                    _ => parts.tables.extend_from_slice(segment.whole),
                }
            }
        }
        if parts.tables.is_empty() {
            parts.read_tables(bytes, directory)?;
        }
        let components = if shape.components == ColourSpace::Gray { 1 } else { 3 };
        if parts.frame.is_empty() {
            parts.frame = frame(directory, components)?;
        }
        // A scan header that stands before the first strip alone is that of the others too.
        let first = shape.blocks().next().map(|block| block.data(bytes)).transpose()?.unwrap_or_default();
        if let Some(segment) = (Segments { bytes: first, at: 0 }).next().filter(|segment| segment.marker == SCAN) {
            parts.scan = segment.whole.to_vec();
        }
        if parts.scan.is_empty() {
            parts.scan = scan(components);
        }
        Ok(parts)
    }

    fn read_tables(&mut self, bytes: &[u8], directory: &Directory<'_>) -> Result<(), Fault> {
        let file = Window::new(bytes, bytes.len() as u64);
        let tables = |tag| directory.values(tag).map_err(stop);
        for (index, &at) in (0u8..4).zip(&tables(tag::JPEG_QUANTISATION_TABLES)?) {
            self.segment(QUANTISATION, index, &[file.bytes(at, 64, "quantisation tables").map_err(stop)?]);
        }
        for (class, tag) in [(0x00, tag::JPEG_DC_TABLES), (0x10, tag::JPEG_AC_TABLES)] {
            for (index, &at) in (0u8..4).zip(&tables(tag)?) {
                let counts = file.bytes(at, 16, "Huffman tables").map_err(stop)?;
                let codes = counts.iter().map(|&count| u64::from(count)).sum();
                let values = file.bytes(at.saturating_add(16), codes, "Huffman tables").map_err(stop)?;
                self.segment(HUFFMAN, class | index, &[counts, values]);
            }
        }
        if self.tables.is_empty() {
            return Err(Fault::corrupt("JPEG data without tables"));
        }
        Ok(())
    }

    fn segment(&mut self, marker: u8, first: u8, rest: &[&[u8]]) {
        let len = 3 + rest.iter().map(|part| part.len()).sum::<usize>();
        self.tables.extend([0xFF, marker]);
        self.tables.extend((len as u16).to_be_bytes());
        self.tables.push(first);
        self.tables.extend(rest.concat());
    }

    pub(super) fn len(&self) -> usize {
        self.tables.len() + self.frame.len() + self.scan.len()
    }

    /// The stream of a strip or tile of a size.
    pub(super) fn stream(&self, data: &[u8], size: Size) -> Vec<u8> {
        let mut frame = self.frame.clone();
        if let Some(sides) = frame.get_mut(5..9) {
            sides[..2].copy_from_slice(&(size.height as u16).to_be_bytes());
            sides[2..].copy_from_slice(&(size.width as u16).to_be_bytes());
        }
        let scan = if data.starts_with(&[0xFF, SCAN]) { &[][..] } else { &self.scan };
        [&[0xFF, START], self.tables.as_slice(), &frame, scan, data, &[0xFF, END]].concat()
    }
}

/// A frame header whose size is filled in later.
fn frame(directory: &Directory<'_>, components: u8) -> Result<Vec<u8>, Fault> {
    let shared = directory.values(tag::YCBCR_SUBSAMPLING).map_err(stop)?;
    let (h, v) = match shared.as_slice() {
        _ if components == 1 => (1, 1),
        [h @ 1..=4, v @ 1..=4, ..] => (*h as u8, *v as u8),
        _ => (2, 2),
    };
    let mut frame = vec![0xFF, BASELINE, 0, 8 + 3 * components, 8, 0, 0, 0, 0, components];
    for index in 0..components {
        frame.extend([index, if index == 0 { h << 4 | v } else { 0x11 }, index]);
    }
    Ok(frame)
}

/// The header of a scan of all components.
fn scan(components: u8) -> Vec<u8> {
    let mut scan = vec![0xFF, SCAN, 0, 6 + 2 * components, components];
    for index in 0..components {
        scan.extend([index, index << 4 | index]);
    }
    scan.extend([0, 63, 0]);
    scan
}
