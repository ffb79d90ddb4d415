//! Compressions of plain bytes.

use std::borrow::Cow;
use std::io::{self, BufRead, Read};

use weezl::{BitOrder, LzwStatus};

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

/// Opens a strip or tile.
pub(super) fn open<'a>(data: Cow<'a, [u8]>, codec: Codec, shape: &Shape) -> Result<Box<dyn Rows + 'a>, Fault> {
    let source = Source { data, at: 0 };
    Ok(match codec {
        Codec::Stored => Box::new(Stream(source)),
        Codec::Lzw => Box::new(Stream(Lzw::new(source))),
        Codec::Deflate => Box::new(Stream(flate2::bufread::ZlibDecoder::new(source))),
        Codec::PackBits => Box::new(Stream(PackBits { source, run: None })),
        Codec::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(source).map_err(|error| io_fault(&error))?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(|error| io_fault(&error))?;
            Box::new(Stream(decoder))
        }
        Codec::Xz => {
            // These are unpacked at once.
            let bytes = shape.block_bytes()?;
            Box::new(Stream(io::Cursor::new(xz::decode(&source.data, bytes)?)))
        }
    })
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
