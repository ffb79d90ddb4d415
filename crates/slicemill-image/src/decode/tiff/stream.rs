//! Compressions of plain bytes.

use std::borrow::Cow;
use std::io::{self, BufRead, Read};

use flate2::{Decompress, FlushDecompress, Status};
use weezl::{BitOrder, LzwStatus};
use zstd::zstd_safe::{DCtx, DParameter, ResetDirective};

use super::shape::Shape;
use super::{Rows, xz};
use crate::fault::{Fault, io_fault};

/// The history that a Zstandard stream may ask for, as a power of two: 32 MiB, which all but its slowest levels keep to.
const ZSTD_WINDOW_LOG_MAX: u32 = 25;

/// A compression of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Codec {
    Stored,
    Lzw,
    Deflate,
    PackBits,
    Zstd,
    Xz,
}

/// Decoders that serve one strip or tile after the other: to set one up may cost more than to unpack a short strip.
#[derive(Default)]
pub(super) struct Decoders {
    zstd: Option<DCtx<'static>>,
    deflate: Option<Decompress>,
}

impl Decoders {
    fn zstd(&mut self) -> Result<&mut DCtx<'static>, Fault> {
        let fault = |code| Fault::corrupt(zstd::zstd_safe::get_error_name(code));
        if self.zstd.is_none() {
            let mut made = DCtx::try_create().ok_or_else(|| Fault::out_of_memory(1 << 18))?;
            made.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX)).map_err(fault)?;
            self.zstd = Some(made);
        }
        let decoder = self.zstd.as_mut().ok_or_else(|| Fault::out_of_memory(1 << 18))?;
        decoder.reset(ResetDirective::SessionOnly).map_err(fault)?;
        Ok(decoder)
    }

    fn deflate(&mut self) -> &mut Decompress {
        let decoder = self.deflate.get_or_insert_with(|| Decompress::new(true));
        decoder.reset(true);
        decoder
    }
}

/// Opens a strip or tile.
pub(super) fn open<'a>(
    data: Cow<'a, [u8]>,
    codec: Codec,
    shape: &Shape,
    decoders: &'a mut Decoders,
) -> Result<Box<dyn Rows + 'a>, Fault> {
    let source = Source { data, at: 0 };
    Ok(match codec {
        Codec::Stored => Box::new(Stream(source)),
        Codec::Lzw => Box::new(Stream(Lzw::new(source))),
        Codec::Deflate => Box::new(Stream(Deflate { source, decoder: decoders.deflate() })),
        Codec::PackBits => Box::new(Stream(PackBits { source, run: None })),
        Codec::Zstd => {
            check_zstd_window(&source.data)?;
            Box::new(Stream(zstd::stream::read::Decoder::with_context(source, decoders.zstd()?)))
        }
        Codec::Xz => {
            // These are unpacked at once.
            let bytes = shape.block_bytes()?;
            Box::new(Stream(io::Cursor::new(xz::decode(&source.data, bytes)?)))
        }
    })
}

fn check_zstd_window(data: &[u8]) -> Result<(), Fault> {
    match zstd_window(data) {
        Some(bytes) if bytes > 1 << ZSTD_WINDOW_LOG_MAX => {
            let limit = 1u64 << ZSTD_WINDOW_LOG_MAX;
            Err(Fault::unsupported(format!("a Zstandard window of {bytes} bytes, more than the limit of {limit}")))
        }
        _ => Ok(()),
    }
}

/// The history that the header of a Zstandard frame asks for (RFC 8878, 3.1.1.1); what is no frame is left to the
/// decoder.
fn zstd_window(data: &[u8]) -> Option<u64> {
    let (&descriptor, rest) = data.strip_prefix(&[0x28, 0xB5, 0x2F, 0xFD])?.split_first()?;
    if descriptor & 0x20 == 0 {
        let window = *rest.first()?;
        let exponent = 10 + u32::from(window >> 3);
        return Some((1 << exponent) + u64::from(window & 7) * (1 << (exponent - 3)));
    }
    // A frame that is its own history tells its length, behind the number of a dictionary.
    let dictionary_bytes = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let length = rest.get(dictionary_bytes..)?.get(..1 << (descriptor >> 6))?;
    Some(length.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte)))
}

/// Rows one after the other.
struct Stream<R>(R);

impl<R: Read> Rows for Stream<R> {
    fn next(&mut self, row: &mut [u8]) -> Result<(), Fault> {
        self.0.read_exact(row).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Fault::truncated("a strip or tile ends before its last row"),
            _ => io_fault(&error),
        })
    }
}

/// The bytes of a strip or tile.
struct Source<'a> {
    data: Cow<'a, [u8]>,
    at: usize,
}

impl Source<'_> {
    fn rest(&self) -> &[u8] {
        &self.data[self.at..]
    }

    fn byte(&mut self) -> Option<u8> {
        let byte = self.rest().first().copied()?;
        self.at += 1;
        Some(byte)
    }
}

impl Read for Source<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.rest().read(out)?;
        self.at += read;
        Ok(read)
    }
}

impl BufRead for Source<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        Ok(self.rest())
    }

    fn consume(&mut self, bytes: usize) {
        self.at += bytes;
    }
}

/// A zlib stream.
struct Deflate<'a> {
    source: Source<'a>,
    decoder: &'a mut Decompress,
}

impl Read for Deflate<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            let (before_in, before_out) = (self.decoder.total_in(), self.decoder.total_out());
            let rest = self.source.rest();
            let ends = rest.is_empty();
            let flush = if ends { FlushDecompress::Finish } else { FlushDecompress::None };
            let status = self.decoder.decompress(rest, out, flush);
            let taken = (self.decoder.total_in() - before_in) as usize;
            self.source.at += taken;
            let given = (self.decoder.total_out() - before_out) as usize;
            let status = status.map_err(|_| io::Error::other("deflate codes that make no sense"))?;
            if given > 0 || taken == 0 || ends || out.is_empty() || status == Status::StreamEnd {
                return Ok(given);
            }
        }
    }
}

/// LZW with codes of 9 to 12 bits.
struct Lzw<'a> {
    source: Source<'a>,
    decoder: weezl::decode::Decoder,
}

impl<'a> Lzw<'a> {
    fn new(source: Source<'a>) -> Self {
        // The first code clears the table; where its bits stand tells the order of files from before TIFF 6.0.
        let old = matches!(source.rest(), [0, second, ..] if second & 1 == 1);
        let decoder = if old {
            weezl::decode::Decoder::new(BitOrder::Lsb, 8)
        } else {
            weezl::decode::Decoder::with_tiff_size_switch(BitOrder::Msb, 8)
        };
        Self { source, decoder }
    }
}

impl Read for Lzw<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            let step = self.decoder.decode_bytes(self.source.rest(), out);
            self.source.at += step.consumed_in;
            let status = step.status.map_err(|_| io::Error::other("LZW codes that make no sense"))?;
            if step.consumed_out > 0 || out.is_empty() || !matches!(status, LzwStatus::Ok) {
                return Ok(step.consumed_out);
            }
        }
    }
}

/// Runs of bytes that are stored or repeated.
struct PackBits<'a> {
    source: Source<'a>,
    /// What the current run still gives, and the byte that it repeats.
    run: Option<(usize, Option<u8>)>,
}

impl Read for PackBits<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < out.len() {
            let Some((left, repeated)) = self.run.take() else {
                match self.source.byte() {
                    None => break,
                    Some(0x80) => {}
                    Some(head @ 0..0x80) => self.run = Some((usize::from(head) + 1, None)),
                    Some(head) => match self.source.byte() {
                        None => break,
                        repeated => self.run = Some((257 - usize::from(head), repeated)),
                    },
                }
                continue;
            };
            let room = &mut out[filled..];
            let wanted = left.min(room.len());
            let given = match repeated {
                Some(byte) => {
                    room[..wanted].fill(byte);
                    wanted
                }
                None => self.source.read(&mut room[..wanted])?,
            };
            if given == 0 {
                break;
            }
            filled += given;
            if given < left {
                self.run = Some((left - given, repeated));
            }
        }
        Ok(filled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpacked(data: &[u8], chunk: usize) -> Vec<u8> {
        let mut reader = PackBits { source: Source { data: Cow::Borrowed(data), at: 0 }, run: None };
        let (mut out, mut part) = (Vec::new(), vec![0; chunk]);
        loop {
            match reader.read(&mut part).unwrap() {
                0 => return out,
                read => out.extend(&part[..read]),
            }
        }
    }

    #[test]
    fn packed_bits_are_the_example_of_the_format() {
        let packed = [0xFE, 0xAA, 2, 0x80, 0, 0x2A, 0xFD, 0xAA, 3, 0x80, 0, 0x2A, 0x22, 0x80, 0xF7, 0xAA];
        let expected =
            [&[0xAA, 0xAA, 0xAA, 0x80, 0, 0x2A, 0xAA, 0xAA, 0xAA, 0xAA, 0x80, 0, 0x2A, 0x22][..], &[0xAA; 10]];
        for chunk in [1, 2, 3, 7, 100] {
            assert_eq!(unpacked(&packed, chunk), expected.concat());
        }
        // What ends inside a run gives what there is.
        assert_eq!(unpacked(&[5, 1, 2], 4), [1, 2]);
        assert_eq!(unpacked(&[0xFE], 4), []);
    }
}
