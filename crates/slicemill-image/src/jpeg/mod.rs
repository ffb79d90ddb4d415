//! JPEG decoding: baseline, extended sequential and progressive, Huffman or arithmetic coding, and lossless, 8 bits
//! (ITU-T T.81).
//!
//! The pixels are those of libjpeg-turbo's default settings, to the bit: its accurate integer inverse DCT, its "fancy"
//! chroma upsampling, its colour conversion; inks become RGB as in Pillow. Vision models were trained and are compared
//! on such pixels, and decoders that only round differently are off by up to four levels in ordinary photographs, and
//! by dozens at the right and lower edges.
//!
//! ```text
//!   segments ─▶ tables, frame, scan ─▶ bits ─▶ Huffman ─▶ coefficients of one row of MCUs   (one sequential scan)
//!                                    or arithmetic      coefficients of the whole image   (many scans)
//!                                                              │
//!      RGB rows ◀─ colour ◀─ upsampling ◀─ samples ◀─ inverse DCT
//! ```
//!
//! An image whose bits run out is `truncated`, one whose codes make no sense is `corrupt`; there are no grey rests,
//! unless the caller asks for what there is ([`Ending::Anywhere`]). That is then what libjpeg-turbo makes of it: blocks
//! that never came have no coefficients, so they are grey, or in a progressive scan what the scans before have left.
//! (It also smoothes a progressive image whose scans did not all come, which is not done here.) Not decoded:
//! hierarchical processes, 12 bits, lossless with arithmetic coding.

mod arithmetic;
mod baseline;
mod bits;
mod colour;
mod frame;
mod huffman;
mod idct;
mod lossless;
mod paint;
mod progressive;
mod scan;
mod standard;
mod upsample;

pub(crate) use colour::{ColourSpace, ink_to_rgb};
use frame::{Frame, Scan, Tables};
use lossless::Samples;
use paint::Painter;
use scan::{Pass, Progress};

use slicemill_core::{ErrorClass, Size};

use crate::RgbImage;
use crate::fault::{Fault, zeroed};

/// Scans of one image: real ones have about ten; each costs time for the whole image.
const SCANS_MAX: usize = 200;

/// Scans of an arithmetic-coded image, which cost more and need not have a byte of data.
const ARITHMETIC_SCANS_MAX: usize = 50;

/// Where the data may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Behind the last block.
    Complete,
    /// In any scan.
    Anywhere,
}

/// What the file that a stream is part of says of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Embedded {
    /// What its components mean, whatever it says itself.
    pub(crate) colour: ColourSpace,
    /// Most rows that it may have; those beyond the expected ones are of no use.
    pub(crate) rows_max: u32,
}

/// Decodes an image to RGB, whatever its orientation. Its size must be `expected`, which the caller has checked against
/// the limit, but for rows that `embedded` permits. Also tells whether the data ended too early.
pub(crate) fn decode(
    bytes: &[u8],
    expected: Size,
    embedded: Option<Embedded>,
    ending: Ending,
) -> Result<(RgbImage, bool), Fault> {
    let colour = embedded.map(|embedded| embedded.colour);
    let mut decoder =
        Decoder { bytes, at: 2, tables: Tables::default(), frame: None, colour, ending, truncated: false };
    let first = match decoder.next_scan()? {
        Next::Scan(scan) => scan,
        Next::End | Next::DataEnds => return Err(Fault::truncated("the file ends before the image data")),
    };
    let Some(frame) = decoder.frame.take() else { return Err(Fault::corrupt("image data without a frame header")) };
    check_frame(&frame, expected, embedded)?;
    let bits = (bytes.len() - decoder.at.min(bytes.len())) as u64 * 8;
    if bits < frame.bits_min() && ending == Ending::Complete {
        let (have, need) = (bits / 8, frame.bits_min() / 8);
        return Err(Fault::truncated(format!(
            "{have} bytes of image data, where {} needs at least {need}",
            frame.size
        )));
    }
    let image = if frame.lossless {
        decoder.decode_lossless(frame, first)?
    } else if !frame.progressive && first.components.len() == frame.components.len() {
        decoder.decode_streaming(&frame, &first)?
    } else {
        decoder.decode_buffered(frame, first)?
    };
    Ok((image, decoder.truncated))
}

/// The frame must be what was planned for, before anything is allocated for it.
fn check_frame(frame: &Frame, expected: Size, embedded: Option<Embedded>) -> Result<(), Fault> {
    let rows = expected.height..=embedded.map_or(expected.height, |embedded| embedded.rows_max.max(expected.height));
    if frame.size.width != expected.width || !rows.contains(&frame.size.height) {
        return Err(Fault::corrupt(format!("the image data is {}, the header says {expected}", frame.size)));
    }
    let found = frame.components.len();
    match embedded.map(|embedded| embedded.colour.components()) {
        Some(told) if told != found => {
            Err(Fault::corrupt(format!("the JPEG data has {found} components, where the header says {told}")))
        }
        _ => Ok(()),
    }
}

struct Decoder<'a> {
    bytes: &'a [u8],
    at: usize,
    tables: Tables,
    frame: Option<Frame>,
    colour: Option<ColourSpace>,
    ending: Ending,
    /// The data ended too early, and what there is was asked for.
    truncated: bool,
}

enum Next {
    /// A scan, whose entropy-coded data begins here.
    Scan(Scan),
    /// The end-of-image marker.
    End,
    /// The end of the bytes.
    DataEnds,
}

impl<'a> Decoder<'a> {
    /// Reads segments up to the next scan.
    fn next_scan(&mut self) -> Result<Next, Fault> {
        loop {
            let Some(code) = self.next_marker() else { return Ok(Next::DataEnds) };
            match code {
                0xD9 => return Ok(Next::End),
                0x01 | 0xD0..=0xD8 => continue,
                _ => {}
            }
            let Some(segment) = self.segment() else { return Ok(Next::DataEnds) };
            match code {
                0xDA => {
                    let frame = self.frame.as_mut().ok_or_else(|| Fault::corrupt("a scan before the frame header"))?;
                    let scan = Scan::parse(segment, frame)?;
                    if !frame.lossless {
                        self.tables.latch_quantisation(frame, &scan)?;
                    }
                    if !frame.arithmetic {
                        self.tables.fill_in_standard(&scan)?;
                    }
                    return Ok(Next::Scan(scan));
                }
                0xC0..=0xC3 | 0xC9 | 0xCA if self.frame.is_some() => {
                    return Err(Fault::corrupt("a second frame header"));
                }
                0xC0..=0xC3 | 0xC9 | 0xCA => self.frame = Some(Frame::parse(segment, code)?),
                0xC5..=0xC7 | 0xCB | 0xCD..=0xCF => {
                    return Err(Fault::unsupported(format!("coding process {}", code - 0xC0)));
                }
                _ => self.tables.take(code, segment)?,
            }
        }
    }

    /// Steps over anything that is no marker, as libjpeg does, and takes the next marker.
    fn next_marker(&mut self) -> Option<u8> {
        loop {
            let rest = self.bytes.get(self.at..)?;
            self.at += rest.iter().position(|&byte| byte == 0xFF)?;
            self.at += self.bytes[self.at..].iter().position(|&byte| byte != 0xFF)?;
            self.at += 1;
            match self.bytes[self.at - 1] {
                0 => {}
                code => return Some(code),
            }
        }
    }

    /// The body of the segment that begins here; `None` when the file ends inside it.
    fn segment(&mut self) -> Option<&'a [u8]> {
        let rest = self.bytes.get(self.at..)?;
        let (len, _) = rest.split_first_chunk::<2>()?;
        let len = usize::from(u16::from_be_bytes(*len)).max(2);
        self.at += len;
        rest.get(2..len)
    }

    /// One scan that holds the whole image: pixels are made row by row.
    fn decode_streaming(&mut self, frame: &Frame, scan: &Scan) -> Result<RgbImage, Fault> {
        let mut painter = Painter::new(frame, self.colour_space(frame)?, self.ending)?;
        let mut pass = Pass::new(self.bytes, self.at, frame, scan, &self.tables)?;
        for part in &mut pass.parts {
            part.coefficients = zeroed(part.v * part.stride * 64)?;
        }
        for row in 0..pass.rows {
            for part in &mut pass.parts {
                part.coefficients.fill(0);
            }
            if !self.truncated {
                self.truncated = self.ends_early(pass.decode_row(row, 0))?;
            }
            painter.push((0..frame.components.len()).filter_map(|index| pass.coefficients(index)));
        }
        painter.finish(frame.size)
    }

    /// Whether a row of MCUs ended too early where it may.
    fn ends_early(&self, row: Result<(), Fault>) -> Result<bool, Fault> {
        match row {
            Ok(()) => Ok(false),
            Err(fault) if self.ending == Ending::Anywhere && fault.class == ErrorClass::Truncated => Ok(true),
            Err(fault) => Err(fault),
        }
    }

    /// Many scans: coefficients of the whole image are gathered first.
    fn decode_buffered(&mut self, mut frame: Frame, mut scan: Scan) -> Result<RgbImage, Fault> {
        let mut coefficients = Vec::new();
        for index in 0..frame.components.len() {
            let blocks = frame.block_rows(index) * frame.components[index].block_stride;
            coefficients.push(zeroed::<i16>(blocks * 64)?);
        }
        let mut progress = Progress::new(frame.components.len());
        let scans_max = if frame.arithmetic { ARITHMETIC_SCANS_MAX } else { SCANS_MAX };
        for _ in 0..scans_max {
            self.at = self.decode_scan(&frame, &scan, &mut coefficients)?;
            if self.truncated {
                return self.paint(&frame, &coefficients);
            }
            progress.note(&scan);
            self.frame = Some(frame);
            let next = self.next_scan();
            frame = self.frame.take().ok_or_else(|| Fault::corrupt("image data without a frame header"))?;
            match next? {
                Next::Scan(next) => scan = next,
                Next::End if progress.begun() => return self.paint(&frame, &coefficients),
                Next::DataEnds if progress.complete() => return self.paint(&frame, &coefficients),
                Next::End | Next::DataEnds if self.ending == Ending::Anywhere => {
                    self.truncated = true;
                    return self.paint(&frame, &coefficients);
                }
                Next::End | Next::DataEnds => return Err(Fault::truncated("the file ends before its last scan")),
            }
        }
        Err(Fault::corrupt(format!("more than {scans_max} scans")))
    }

    /// Decodes one scan into the coefficients of the image. Returns where the next segment is looked for.
    fn decode_scan(&mut self, frame: &Frame, scan: &Scan, coefficients: &mut [Vec<i16>]) -> Result<usize, Fault> {
        let mut pass = Pass::new(self.bytes, self.at, frame, scan, &self.tables)?;
        for part in &mut pass.parts {
            part.coefficients = std::mem::take(&mut coefficients[part.index]);
        }
        for row in 0..pass.rows {
            self.truncated = self.ends_early(pass.decode_row(row, row))?;
            if self.truncated {
                break;
            }
        }
        for part in &mut pass.parts {
            coefficients[part.index] = std::mem::take(&mut part.coefficients);
        }
        Ok(pass.position())
    }

    /// Samples instead of coefficients. What ends too early is refused, even where it may.
    fn decode_lossless(&mut self, mut frame: Frame, mut scan: Scan) -> Result<RgbImage, Fault> {
        let mut samples = Samples::new(&frame)?;
        for _ in 0..frame.components.len() {
            self.at = samples.decode(self.bytes, self.at, &scan, &self.tables)?;
            if samples.complete() {
                return samples.image(&frame, self.colour_space(&frame)?);
            }
            self.frame = Some(frame);
            let next = self.next_scan();
            frame = self.frame.take().ok_or_else(|| Fault::corrupt("image data without a frame header"))?;
            match next? {
                Next::Scan(next) => scan = next,
                Next::End | Next::DataEnds => return Err(Fault::truncated("the file ends before its last scan")),
            }
        }
        Err(Fault::corrupt("a component comes twice"))
    }

    fn colour_space(&self, frame: &Frame) -> Result<ColourSpace, Fault> {
        self.colour.map_or_else(|| ColourSpace::of(frame, &self.tables), Ok)
    }

    fn paint(&self, frame: &Frame, coefficients: &[Vec<i16>]) -> Result<RgbImage, Fault> {
        let mut painter = Painter::new(frame, self.colour_space(frame)?, self.ending)?;
        for row in 0..frame.mcus_high {
            painter.push(frame.components.iter().zip(coefficients).map(|(component, coefficients)| {
                let band = component.v * component.block_stride * 64;
                &coefficients[row * band..][..band]
            }));
        }
        painter.finish(frame.size)
    }
}
