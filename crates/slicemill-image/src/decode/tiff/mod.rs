//! TIFF: the first image of the file.
//!
//! ```text
//!   directory ─▶ Shape                                    what samples there are, in which strips or tiles
//!                  │ for every strip or tile
//!                  ▼
//!   bytes ─▶ stream · fax · jpeg ─▶ rows of packed samples ─▶ predictor ─▶ samples ─▶ Canvas
//!            inflate, LZW, …                                  differences  8 bits       │ of the whole image
//!                                                                                       ▼
//!                                          Gray, GrayAlpha, Rgb, Rgba ◀─ colour ◀─ [h, w, kept samples]
//! ```
//!
//! A strip is unpacked row by row, so that what is held at once is the image at 8 bits per sample and a row. The pixels
//! are those of Pillow, whose rules for what a file may leave out are followed; what is damaged or missing is an error,
//! where libtiff warns and goes on.
//!
//! How samples become 8 bits: those of more keep their upper 8, those of fewer are stretched. Signed samples of 16 and
//! more bits are shifted first, so that the lowest value is black and the highest white; signed samples of 8 bits are
//! taken for unsigned, as in Pillow. Floating-point samples are white at 1, as image editors write them, where most
//! colours above 0 are not above 1; otherwise at 255, as Pillow reads them.

mod colour;
mod fax;
mod fax_codes;
mod jpeg;
mod old_jpeg;
mod predictor;
mod samples;
mod shape;
mod stream;
mod xz;

use slicemill_core::Size;

use super::{Decoded, check_same_size};
use crate::exif::Directory;
use crate::fault::{Fault, zeroed};
use crate::window::{Stop, Window};
use predictor::Predictor;
use samples::Unpacker;
use shape::{Block, Compression, Shape};

/// The rows of a strip or tile.
trait Rows {
    /// The packed samples of the next row, or of the next rows that share colours.
    fn next(&mut self, row: &mut [u8]) -> Result<(), Fault>;
}

pub(super) fn decode(bytes: &[u8], stored: Size) -> Result<Decoded, Fault> {
    let file = Window::new(bytes, bytes.len() as u64);
    let directory = Directory::open(file).map_err(stop)?;
    let mut shape = Shape::read(&directory, file.total()).map_err(stop)?;
    check_same_size(shape.size, stored)?;
    if shape.compression == Compression::OldJpeg
        && let Some(decoded) = old_jpeg::decode_whole(bytes, &directory, &shape)?
    {
        return Ok(decoded);
    }
    let (mut canvas, (small, large)) = paint(bytes, &directory, &shape)?;
    if shape.floating() && small >= large {
        shape.white = 1.0;
        canvas = paint(bytes, &directory, &shape)?.0;
    }
    colour::decoded(canvas.data, &shape, &directory)
}

fn stop(stop: Stop) -> Fault {
    match stop {
        Stop::Fault(fault) => fault,
        Stop::Need(bytes) => Fault::truncated(format!("the file ends before byte {bytes}")),
    }
}

/// The kept samples of every pixel: `[height, width, kept]`.
struct Canvas {
    size: Size,
    kept: usize,
    data: Vec<u8>,
}

impl Canvas {
    fn new(size: Size, kept: usize) -> Result<Self, Fault> {
        let data = zeroed(size.width as usize * size.height as usize * kept)?;
        Ok(Self { size, kept, data })
    }

    /// The pixels of row `y` from column `x` on.
    fn row(&mut self, x: usize, y: usize) -> &mut [u8] {
        let stride = self.size.width as usize * self.kept;
        &mut self.data[y * stride..][..stride][x * self.kept..]
    }
}

/// All strips or tiles, and how many samples are up to 1 and how many above where they are floating-point numbers.
fn paint(bytes: &[u8], directory: &Directory<'_>, shape: &Shape) -> Result<(Canvas, (u64, u64)), Fault> {
    let mut raw = zeroed(shape.row_bytes()?)?;
    let tables = jpeg::Tables::read(bytes, directory, shape)?;
    let mut unpacker = Unpacker::new(shape)?;
    let mut canvas = Canvas::new(shape.size, shape.kept)?;
    let mut decoders = stream::Decoders::default();
    for block in shape.blocks() {
        let mut rows = open(bytes, &tables, shape, &block, &mut decoders)?;
        if shape.shares_colours() {
            paint_shared(rows.as_mut(), shape, &block, &mut raw, &mut canvas)?;
        } else {
            paint_block(rows.as_mut(), shape, &block, &mut unpacker, &mut raw, &mut canvas)?;
        }
    }
    Ok((canvas, unpacker.seen))
}

fn open<'a>(
    bytes: &'a [u8],
    tables: &jpeg::Tables,
    shape: &Shape,
    block: &Block,
    decoders: &'a mut stream::Decoders,
) -> Result<Box<dyn Rows + 'a>, Fault> {
    let data = block.data(bytes)?;
    match shape.compression {
        Compression::Jpeg | Compression::OldJpeg => Ok(Box::new(jpeg::JpegRows::new(data, tables, shape, block)?)),
        Compression::Fax(kind) => {
            Ok(Box::new(fax::FaxRows::new(shape.ordered(data), kind, shape.block.width as usize)))
        }
        Compression::Stream(codec) => stream::open(shape.ordered(data), codec, shape, decoders),
    }
}

fn paint_block(
    rows: &mut dyn Rows,
    shape: &Shape,
    block: &Block,
    unpacker: &mut Unpacker,
    raw: &mut [u8],
    canvas: &mut Canvas,
) -> Result<(), Fault> {
    let predictor = Predictor::of(shape)?;
    let (per_pixel, kept) = (shape.samples_in_row(), canvas.kept);
    let width = shape.block.width.min(shape.size.width - block.x) as usize;
    let colours = shape.colours.samples().saturating_sub(block.plane.unwrap_or(0));
    for y in block.y..block.y + shape.rows_of(block) {
        rows.next(raw)?;
        predictor.undo(raw);
        let samples = unpacker.unpack(raw, width, colours);
        let out = &mut canvas.row(block.x as usize, y as usize)[..width * kept];
        match block.plane {
            Some(plane) => {
                for (pixel, &sample) in out.chunks_exact_mut(kept).zip(samples) {
                    pixel[plane] = sample;
                }
            }
            None if per_pixel == kept => out.copy_from_slice(&samples[..width * kept]),
            None => {
                for (pixel, samples) in out.chunks_exact_mut(kept).zip(samples.chunks_exact(per_pixel)) {
                    pixel.copy_from_slice(&samples[..kept]);
                }
            }
        }
    }
    Ok(())
}

/// Groups of some brightnesses and the two colour differences that they share: `h` across, `v` down.
fn paint_shared(
    rows: &mut dyn Rows,
    shape: &Shape,
    block: &Block,
    raw: &mut [u8],
    canvas: &mut Canvas,
) -> Result<(), Fault> {
    let (h, v) = shape.shared;
    let width = shape.block.width.min(shape.size.width - block.x) as usize;
    let end = block.y + shape.rows_of(block);
    for top in (block.y..end).step_by(v) {
        rows.next(raw)?;
        for y in top..(top + v as u32).min(end) {
            let line = (y - top) as usize * h;
            let out = &mut canvas.row(block.x as usize, y as usize)[..width * 3];
            for (pixels, group) in out.chunks_mut(h * 3).zip(raw.chunks_exact(h * v + 2)) {
                for (pixel, &brightness) in pixels.as_chunks_mut::<3>().0.iter_mut().zip(&group[line..]) {
                    *pixel = [brightness, group[h * v], group[h * v + 1]];
                }
            }
        }
    }
    Ok(())
}
