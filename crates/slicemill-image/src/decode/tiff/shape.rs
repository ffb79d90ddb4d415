//! What a directory says of its image: samples, strips or tiles, compression.
//!
//! Everything is checked here against the size of the image and of the file, before anything is allocated for pixels.

use std::borrow::Cow;

use slicemill_core::Size;

use super::fax::FaxKind;
use super::stream::Codec;
use crate::exif::{Directory, List, tag};
use crate::fault::Fault;
use crate::header::tiff::Alpha;
use crate::jpeg::ColourSpace;
use crate::window::Stop;

/// Samples per pixel that make sense: real images have up to a few dozen bands.
const SAMPLES_MAX: u64 = 64;

/// What tiles may cover beyond four times the image, and what rows may have beyond some bytes for each of its pixels.
const SPARE: u64 = 16 << 20;

/// What must have as many values as it says.
const CHECKED: [u16; 16] = [
    tag::IMAGE_WIDTH,
    tag::IMAGE_LENGTH,
    tag::BITS_PER_SAMPLE,
    tag::COMPRESSION,
    tag::PHOTOMETRIC,
    tag::FILL_ORDER,
    tag::STRIP_OFFSETS,
    tag::SAMPLES_PER_PIXEL,
    tag::ROWS_PER_STRIP,
    tag::STRIP_BYTE_COUNTS,
    tag::PLANAR_CONFIGURATION,
    tag::PREDICTOR,
    tag::TILE_WIDTH,
    tag::TILE_LENGTH,
    tag::SAMPLE_FORMAT,
    tag::EXTRA_SAMPLES,
];

/// How often the strips of a file may be the same bytes: some writers share those that are blank, but work must not
/// grow with the square of the file.
const SHARED_MAX: u64 = 16;

/// What tiles that are JPEG streams may have beyond the pixels of the image: one of 2048 x 2048.
const STREAM_PIXELS_SPARE: u64 = 1 << 22;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    Stream(Codec),
    Fax(FaxKind),
    Jpeg,
    /// The JPEG of TIFF 6.0 itself, whose tables stand anywhere in the file.
    OldJpeg,
}

impl Compression {
    fn read(directory: &Directory<'_>) -> Result<Self, Stop> {
        let options = directory.get(tag::T4_OPTIONS)?.unwrap_or(0);
        Ok(match directory.get(tag::COMPRESSION)?.unwrap_or(1) {
            1 => Self::Stream(Codec::Stored),
            2 => Self::Fax(FaxKind::Rows { align: 8 }),
            3 if options & 1 == 1 => Self::Fax(FaxKind::Group3TwoDimensional),
            3 => Self::Fax(FaxKind::Group3),
            4 => Self::Fax(FaxKind::Group4),
            5 => Self::Stream(Codec::Lzw),
            6 => Self::OldJpeg,
            7 => Self::Jpeg,
            8 | 32946 => Self::Stream(Codec::Deflate),
            32771 => Self::Fax(FaxKind::Rows { align: 16 }),
            32773 => Self::Stream(Codec::PackBits),
            34925 => Self::Stream(Codec::Xz),
            50000 => Self::Stream(Codec::Zstd),
            other => return Err(Fault::unsupported(format!("compression {other} is not decoded")).into()),
        })
    }
}

/// What the samples mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Colours {
    Gray { inverted: bool },
    Rgb,
    Palette,
    Inks,
    YCbCr,
    Lab { signed: bool },
}

impl Colours {
    fn read(directory: &Directory<'_>, compression: Compression, samples: u64) -> Result<Self, Stop> {
        // A file that does not say is white at 0 in Pillow; colours of the old JPEG are brightness and differences.
        Ok(match (directory.get(tag::PHOTOMETRIC)?.unwrap_or(0), compression) {
            (0..=3 | 6, Compression::OldJpeg) if samples >= 3 => Self::YCbCr,
            (6, Compression::Stream(_)) if samples < 3 => Self::Gray { inverted: false },
            (photometric @ (0 | 1), _) => Self::Gray { inverted: photometric == 0 },
            (2, _) => Self::Rgb,
            (3, Compression::Stream(_) | Compression::Fax(_)) => Self::Palette,
            (5, _) => Self::Inks,
            (6, _) => Self::YCbCr,
            (photometric @ (8 | 9), Compression::Stream(_)) => Self::Lab { signed: photometric == 8 },
            (other, _) => return Err(Fault::unsupported(format!("colours of kind {other}")).into()),
        })
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Gray { .. } => "gray",
            Self::Rgb => "RGB",
            Self::Palette => "a palette",
            Self::Inks => "inks",
            Self::YCbCr => "YCbCr",
            Self::Lab { .. } => "CIELab",
        }
    }

    pub(super) const fn samples(self) -> usize {
        match self {
            Self::Gray { .. } | Self::Palette => 1,
            Self::Rgb | Self::YCbCr | Self::Lab { .. } => 3,
            Self::Inks => 4,
        }
    }
}

/// How the bits of a sample are a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Unsigned,
    Signed,
    Floating,
}

impl Format {
    const fn name(self) -> &'static str {
        match self {
            Self::Unsigned => "unsigned",
            Self::Signed => "signed",
            Self::Floating => "floating-point",
        }
    }
}

/// An image as its directory describes it.
pub(super) struct Shape {
    pub(super) size: Size,
    pub(super) compression: Compression,
    pub(super) colours: Colours,
    /// What the components of JPEG streams are; they arrive as the colours above.
    pub(super) components: ColourSpace,
    pub(super) alpha: Alpha,
    pub(super) format: Format,
    pub(super) bits: usize,
    /// Samples of a pixel in the file.
    pub(super) samples: usize,
    /// The first samples of a pixel, which make the image: colours, then alpha.
    pub(super) kept: usize,
    pub(super) planar: bool,
    pub(super) predictor: u64,
    pub(super) little_endian: bool,
    /// Bytes have their lowest bit first.
    reversed: bool,
    /// Size of a strip or tile.
    pub(super) block: Size,
    pub(super) tiled: bool,
    /// Pixels across and down that share colour differences.
    pub(super) shared: (usize, usize),
    /// The floating-point value that is white.
    pub(super) white: f64,
    places: Vec<(u64, u64)>,
}

/// One strip or tile.
pub(super) struct Block {
    pub(super) x: u32,
    pub(super) y: u32,
    /// The sample it holds, where each has strips or tiles of its own.
    pub(super) plane: Option<usize>,
    offset: u64,
    len: u64,
}

impl Block {
    /// Its bytes, as far as the file has them.
    pub(super) fn data<'a>(&self, bytes: &'a [u8]) -> Result<&'a [u8], Fault> {
        let start = usize::try_from(self.offset).ok().and_then(|start| bytes.get(start..));
        let rest =
            start.ok_or_else(|| Fault::truncated(format!("the file ends before its data at {}", self.offset)))?;
        Ok(&rest[..rest.len().min(usize::try_from(self.len).unwrap_or(usize::MAX))])
    }
}

impl Shape {
    pub(super) fn read(directory: &Directory<'_>, file_bytes: u64) -> Result<Self, Stop> {
        directory.check_lengths(&CHECKED)?;
        let get = |tag, default| directory.get(tag).map(|value| value.unwrap_or(default));
        let side = |tag| get(tag, 0).map(|side| u32::try_from(side).unwrap_or(u32::MAX));
        let size = Size::new(side(tag::IMAGE_WIDTH)?, side(tag::IMAGE_LENGTH)?);
        let compression = Compression::read(directory)?;
        let photometric = get(tag::PHOTOMETRIC, 0)?;
        let coloured = compression == Compression::OldJpeg && matches!(photometric, 2 | 6);
        let samples = get(tag::SAMPLES_PER_PIXEL, if coloured { 3 } else { 1 })?;
        let colours = Colours::read(directory, compression, samples)?;
        if samples < colours.samples() as u64 || samples > SAMPLES_MAX {
            return Err(Fault::corrupt(format!(
                "{samples} samples per pixel, of which {} are colours",
                colours.samples()
            ))
            .into());
        }
        let planar = samples > 1 && get(tag::PLANAR_CONFIGURATION, 1)? == 2;
        let (components, colours, samples) = components(compression, colours, samples as usize, planar)?;
        let alpha = if samples > colours.samples() { Alpha::of(directory)? } else { Alpha::None };
        let mut shape = Self {
            size,
            compression,
            colours,
            components,
            alpha,
            format: format(directory)?,
            bits: bits(directory, samples)?,
            samples,
            kept: colours.samples() + usize::from(alpha != Alpha::None),
            planar,
            predictor: get(tag::PREDICTOR, 1)?,
            little_endian: directory.little_endian(),
            reversed: get(tag::FILL_ORDER, 1)? == 2,
            block: size,
            tiled: false,
            shared: (1, 1),
            white: 255.0,
            places: Vec::new(),
        };
        shape.read_sharing(directory)?;
        shape.read_blocks(directory, file_bytes)?;
        shape.check()?;
        Ok(shape)
    }

    /// Which pixels share colours: only where they are stored so; JPEG streams tell themselves.
    fn read_sharing(&mut self, directory: &Directory<'_>) -> Result<(), Stop> {
        if self.colours != Colours::YCbCr || !matches!(self.compression, Compression::Stream(_)) {
            return Ok(());
        }
        // Two by two is what holds where nothing is said.
        let told = directory.list(tag::YCBCR_SUBSAMPLING, 2)?;
        let shared = match (told.get(0), told.get(1)) {
            (None, _) => (2, 2),
            (Some(h @ (1 | 2 | 4)), Some(v @ (1 | 2 | 4))) => (h as usize, v as usize),
            _ => return Err(Fault::corrupt(format!("colours shared by {} pixels", told.shown())).into()),
        };
        self.shared = shared;
        if self.shares_colours() && (self.planar || self.samples != 3 || self.bits != 8 || self.predictor != 1) {
            return Err(Fault::unsupported(
                "shared colours in planes, with a predictor or of another kind than 8 bits",
            )
            .into());
        }
        Ok(())
    }

    fn read_blocks(&mut self, directory: &Directory<'_>, file_bytes: u64) -> Result<(), Stop> {
        let side =
            |tag| directory.get(tag).map(|side| side.and_then(|side| u32::try_from(side).ok()).filter(|&n| n > 0));
        let tile = side(tag::TILE_WIDTH)?.zip(side(tag::TILE_LENGTH)?);
        if let Some((width, height)) = tile {
            (self.tiled, self.block) = (true, Size::new(width, height));
        } else {
            self.block.height = side(tag::ROWS_PER_STRIP)?.unwrap_or(u32::MAX).min(self.size.height);
        }
        let count = self.check_grid(file_bytes)?;
        let tiles = directory.list(tag::TILE_OFFSETS, count + 1)?;
        let (offsets, lengths) = if self.tiled && tiles.count > 0 {
            (tiles, directory.list(tag::TILE_BYTE_COUNTS, count)?)
        } else {
            (directory.list(tag::STRIP_OFFSETS, count + 1)?, directory.list(tag::STRIP_BYTE_COUNTS, count)?)
        };
        if offsets.count < count {
            return Err(
                Fault::corrupt(format!("{} strips or tiles, where the image has {count}", offsets.count)).into()
            );
        }
        self.places = self.located(&offsets, &lengths, count as usize, file_bytes)?;
        self.check_sharing(file_bytes)
    }

    /// How many strips or tiles the image must have, where their size and number make sense for it and the file.
    fn check_grid(&self, file_bytes: u64) -> Result<u64, Fault> {
        let (across, down) = self.grid();
        let covered = (across * down).saturating_mul(self.block.pixels());
        // A JPEG stream is decoded at once, and takes several times its pixels.
        let streams = matches!(self.compression, Compression::Jpeg | Compression::OldJpeg);
        let large = streams && self.block.pixels() > self.size.pixels() + STREAM_PIXELS_SPARE;
        if large || covered > self.size.pixels() * 4 + SPARE {
            return Err(Fault::corrupt(format!("tiles of {} for an image of {}", self.block, self.size)));
        }
        let count = (across * down).saturating_mul(if self.planar { self.kept as u64 } else { 1 });
        if count.saturating_mul(self.least_work()) > work_max(file_bytes) {
            return Err(Fault::corrupt(format!("{count} strips or tiles in a file of {file_bytes} bytes")));
        }
        Ok(count)
    }

    /// What a strip or tile costs however short it is, in bytes of its data. A real one has 8 bytes and more, and about as
    /// many in the directory: `SHARED_MAX` times both are never less than this, however many there are.
    const fn least_work(&self) -> u64 {
        match self.compression {
            Compression::Stream(Codec::Stored) => 64,
            Compression::Stream(_) | Compression::Fax(_) => 192,
            Compression::Jpeg | Compression::OldJpeg => 2048,
        }
    }

    /// Where strips or tiles begin, and how long they are.
    fn located(
        &self,
        offsets: &List<'_>,
        lengths: &List<'_>,
        count: usize,
        file_bytes: u64,
    ) -> Result<Vec<(u64, u64)>, Fault> {
        let stored = match self.compression {
            Compression::Stream(Codec::Stored) => {
                Some((self.row_bytes()? as u64).saturating_mul(self.block.height.into()))
            }
            _ => None,
        };
        let place = |(index, at): (usize, u64)| {
            // Where the file does not tell how long a strip is, it may go on to the next, or to the end.
            let told = lengths.get(index).filter(|&len| len > 0);
            let next = offsets.get(index + 1).and_then(|next| next.checked_sub(at)).filter(|&len| len > 0);
            (at, stored.or(told).or(next).unwrap_or(u64::MAX).min(file_bytes.saturating_sub(at)))
        };
        Ok(offsets.iter().take(count).enumerate().map(place).collect())
    }

    /// Stored samples are as long as they have to be, whatever the file says; others must not be the same bytes over and
    /// over.
    fn check_sharing(&self, file_bytes: u64) -> Result<(), Stop> {
        if self.compression == Compression::Stream(Codec::Stored) {
            return Ok(());
        }
        let least = self.least_work();
        let total = self.places.iter().fold(0, |sum: u64, &(_, len)| sum.saturating_add(len.max(least)));
        if total > work_max(file_bytes) {
            return Err(Fault::corrupt(format!("{total} bytes of image data in a file of {file_bytes}")).into());
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Stop> {
        let whole_bytes = matches!(self.bits, 8 | 16 | 32 | 64);
        let known = match (self.format, self.compression) {
            (_, Compression::Jpeg | Compression::OldJpeg) => self.bits == 8,
            (_, Compression::Fax(_)) => self.bits == 1 && (self.samples == 1 || self.planar),
            (Format::Unsigned, _) => matches!(self.bits, 1..=32 | 64),
            (Format::Signed, _) => whole_bytes,
            (Format::Floating, _) => matches!(self.bits, 16 | 32 | 64),
        };
        let known = known
            && match self.colours {
                Colours::Palette => matches!(self.bits, 1 | 2 | 4 | 8) && self.format != Format::Floating,
                Colours::YCbCr => self.bits == 8,
                Colours::Lab { .. } => matches!(self.bits, 8 | 16) && self.format != Format::Floating,
                _ => true,
            };
        if known {
            return Ok(());
        }
        let (bits, format, colours) = (self.bits, self.format.name(), self.colours.name());
        Err(Fault::unsupported(format!("{format} samples of {bits} bits for {colours}, or in this compression")).into())
    }

    /// Strips or tiles across and down.
    fn grid(&self) -> (u64, u64) {
        (self.size.width.div_ceil(self.block.width).into(), self.size.height.div_ceil(self.block.height).into())
    }

    /// All strips or tiles that hold something of the image.
    pub(super) fn blocks(&self) -> impl Iterator<Item = Block> + '_ {
        let (across, down) = self.grid();
        self.places.iter().zip(0u64..).map(move |(&(offset, len), index)| Block {
            x: (index % across) as u32 * self.block.width,
            y: (index / across % down) as u32 * self.block.height,
            plane: self.planar.then_some((index / (across * down)) as usize),
            offset,
            len,
        })
    }

    /// Rows of a strip or tile that are inside the image.
    pub(super) fn rows_of(&self, block: &Block) -> u32 {
        self.block.height.min(self.size.height - block.y)
    }

    /// Samples that stand together for every pixel of a strip or tile.
    pub(super) const fn samples_in_row(&self) -> usize {
        if self.planar { 1 } else { self.samples }
    }

    /// Bytes of a row, or of the rows that share colours.
    pub(super) fn row_bytes(&self) -> Result<usize, Fault> {
        let width = u64::from(self.block.width);
        let (h, v) = (self.shared.0 as u64, self.shared.1 as u64);
        let bytes = if self.shares_colours() {
            width.div_ceil(h) * (h * v + 2)
        } else {
            (width * self.samples_in_row() as u64 * self.bits as u64).div_ceil(8)
        };
        // One-bit samples take more room unpacked.
        self.bounded(bytes.max(width * self.samples_in_row() as u64), 4)?;
        Ok(bytes as usize)
    }

    /// Bytes of a whole strip or tile, for what is unpacked at once.
    pub(super) fn block_bytes(&self) -> Result<usize, Fault> {
        self.bounded((self.row_bytes()? as u64).saturating_mul(self.block.height.into()), 8)
    }

    /// A number of bytes, where it is not too large for the pixels of the image.
    fn bounded(&self, bytes: u64, per_pixel: u64) -> Result<usize, Fault> {
        if bytes > self.size.pixels().saturating_mul(per_pixel).saturating_add(SPARE) {
            return Err(Fault::unsupported(format!("rows or strips of {bytes} bytes for an image of {}", self.size)));
        }
        Ok(bytes as usize)
    }

    /// Tables that go before every strip or tile must not be most of the work.
    pub(super) fn check_repeated(&self, table_bytes: usize, file_bytes: usize) -> Result<(), Fault> {
        let total = (table_bytes as u64).saturating_mul(self.places.len() as u64);
        if total > work_max(file_bytes as u64) {
            return Err(Fault::corrupt(format!("tables of {table_bytes} bytes for {} strips", self.places.len())));
        }
        Ok(())
    }

    pub(super) fn shares_colours(&self) -> bool {
        self.shared != (1, 1)
    }

    pub(super) fn floating(&self) -> bool {
        self.format == Format::Floating
    }

    /// Bytes with their highest bit first.
    pub(super) fn ordered<'a>(&self, data: &'a [u8]) -> Cow<'a, [u8]> {
        if self.reversed {
            Cow::Owned(data.iter().map(|byte| byte.reverse_bits()).collect())
        } else {
            Cow::Borrowed(data)
        }
    }
}

/// The bytes of image data that a file may be worth, where some of its strips are the same bytes.
const fn work_max(file_bytes: u64) -> u64 {
    file_bytes.saturating_mul(SHARED_MAX).saturating_add(SPARE)
}

/// What the components of a JPEG stream are, and the colours and samples that it is decoded to.
fn components(
    compression: Compression,
    colours: Colours,
    samples: usize,
    planar: bool,
) -> Result<(ColourSpace, Colours, usize), Fault> {
    let space = match (compression, colours) {
        (Compression::Jpeg | Compression::OldJpeg, _) if planar || samples == 1 => ColourSpace::Gray,
        (Compression::OldJpeg, _) => ColourSpace::Stored,
        (Compression::Jpeg, Colours::Rgb) => ColourSpace::Rgb,
        (Compression::Jpeg, Colours::Inks) => ColourSpace::Inks,
        _ => ColourSpace::YCbCr,
    };
    if !matches!(compression, Compression::Jpeg | Compression::OldJpeg) || space == ColourSpace::Gray {
        return Ok((space, colours, samples));
    }
    if samples != colours.samples() {
        return Err(Fault::unsupported(format!(
            "JPEG streams of {samples} samples, of which {} are colours",
            colours.samples()
        )));
    }
    Ok((space, if space == ColourSpace::Stored { Colours::YCbCr } else { Colours::Rgb }, 3))
}

/// Bits per sample: one number for all samples, or a number for each that is the same.
fn bits(directory: &Directory<'_>, samples: usize) -> Result<usize, Stop> {
    let all = directory.list(tag::BITS_PER_SAMPLE, SAMPLES_MAX)?;
    let Some(first) = all.get(0) else { return Ok(1) };
    if (all.count < samples as u64 && all.count > 1) || first == 0 || first > 64 {
        return Err(Fault::corrupt(format!("bits per sample {} of {samples} samples", all.shown())).into());
    }
    if all.iter().take(samples).any(|bits| bits != first) {
        return Err(Fault::unsupported(format!("samples of different bits, {}", all.shown())).into());
    }
    Ok(first as usize)
}

fn format(directory: &Directory<'_>) -> Result<Format, Stop> {
    let all = directory.list(tag::SAMPLE_FORMAT, SAMPLES_MAX)?;
    let first = all.get(0).unwrap_or(1);
    match first {
        _ if all.iter().any(|format| format != first) => {}
        1 | 4 => return Ok(Format::Unsigned),
        2 => return Ok(Format::Signed),
        3 => return Ok(Format::Floating),
        _ => {}
    }
    Err(Fault::unsupported(format!("samples of the formats {}", all.shown())).into())
}
