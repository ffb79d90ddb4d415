//! Strips or tiles that are JPEG streams, which may share tables.

use slicemill_core::Size;

use super::shape::{Block, Compression, Shape};
use super::{Rows, old_jpeg, stop};
use crate::RgbImage;
use crate::exif::{Directory, tag};
use crate::fault::Fault;
use crate::jpeg::{self, ColourSpace, Embedded, Ending};

/// What the streams of a file have in common.
pub(super) enum Tables {
    /// They are no JPEG streams.
    None,
    /// A stream of tables alone.
    Shared(Vec<u8>),
    Old(old_jpeg::Parts),
}

impl Tables {
    pub(super) fn read(bytes: &[u8], directory: &Directory<'_>, shape: &Shape) -> Result<Self, Fault> {
        let tables = match shape.compression {
            Compression::Jpeg => {
                let tables = directory.values(tag::JPEG_TABLES).map_err(stop)?;
                Self::Shared(tables.iter().map(|&byte| byte as u8).collect())
            }
            Compression::OldJpeg => Self::Old(old_jpeg::Parts::read(bytes, directory, shape)?),
            _ => Self::None,
        };
        shape.check_repeated(tables.len(), bytes.len())?;
        Ok(tables)
    }

    fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Shared(tables) => tables.len(),
            Self::Old(parts) => parts.len(),
        }
    }

    fn stream(&self, data: &[u8], size: Size) -> Vec<u8> {
        match self {
            Self::None => data.to_vec(),
            Self::Shared(tables) => joined(tables, data),
            Self::Old(parts) => parts.stream(data, size),
        }
    }
}

/// The rows of a decoded stream.
pub(super) struct JpegRows {
    image: RgbImage,
    samples: usize,
    at: usize,
}

impl JpegRows {
    pub(super) fn new(data: &[u8], tables: &Tables, shape: &Shape, block: &Block) -> Result<Self, Fault> {
        // Some writers fill up the last strip to the height of the others.
        let rows_max = shape.block.height;
        let rows = if shape.tiled { rows_max } else { shape.rows_of(block) };
        let size = Size::new(shape.block.width, rows);
        let stream = tables.stream(data, size);
        let embedded = Embedded { colour: shape.components, rows_max };
        let (image, _) = jpeg::decode(&stream, size, Some(embedded), Ending::Complete)?;
        Ok(Self { image, samples: if shape.components == ColourSpace::Gray { 1 } else { 3 }, at: 0 })
    }
}

impl Rows for JpegRows {
    fn next(&mut self, row: &mut [u8]) -> Result<(), Fault> {
        let stride = self.image.stride();
        let pixels = self.image.as_bytes().get(self.at..self.at + stride);
        let pixels = pixels.ok_or_else(|| Fault::truncated("a JPEG stream ends before its last row"))?;
        self.at += stride;
        for (to, from) in row.chunks_exact_mut(self.samples).zip(pixels.chunks_exact(3)) {
            to.copy_from_slice(&from[..self.samples]);
        }
        Ok(())
    }
}

/// Tables up to their end marker, behind which some writers leave a byte, then the stream without its start marker.
fn joined(tables: &[u8], stream: &[u8]) -> Vec<u8> {
    let end = tables.windows(2).rposition(|pair| pair == [0xFF, 0xD9]);
    match (end, stream.strip_prefix(&[0xFF, 0xD8])) {
        (Some(end), Some(rest)) => [&tables[..end], rest].concat(),
        _ => stream.to_vec(),
    }
}
