//! The chunks of a PNG that make its pixels, put together anew.
//!
//! ```text
//!   file      signature  IHDR  gAMA  tEXt  PLTE  tRNS  tRNS  IDAT  IDAT  IDA          (cut)
//!   decoder   signature  IHDR  PLTE  tRNS                    IDAT  IDAT  IDA' IEND
//! ```
//!
//! Files that bend the rules around their pixels (a palette given twice, or in an image that has none, more
//! transparencies than colours, unknown chunks, no end) are common enough, and their pixels are whole. So the decoder
//! never sees texts, profiles, the frames of an animation, or anything else that it could refuse or that could be a bomb.
//!
//! Checksums: those of IHDR, PLTE and tRNS must be right. Image data whose own is wrong or has not come counts as whole
//! when the zlib stream inside ends as it should, with its Adler-32.

use std::io::{self, BufRead, Read, Seek, SeekFrom};

use flate2::{Crc, Decompress, FlushDecompress, Status};

use crate::fault::Fault;

const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

/// Bytes around the body of a chunk.
const FRAME_BYTES: usize = 12;

/// What follows the last body: a checksum, which is not looked at, and the end.
const TAIL: &[u8] = b"\0\0\0\0\0\0\0\0IEND\xae\x42\x60\x82";

/// Whether the image data are what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Soundness {
    /// Every checksum is right.
    Checked,
    /// A checksum is wrong.
    Doubtful,
    /// The file ends inside the image data, or right behind a chunk of them.
    Cut,
}

/// The parts of a file that the decoder needs.
pub(super) struct Chunks<'a> {
    /// Signature, IHDR, PLTE and tRNS, with checksums that are not looked at.
    head: Vec<u8>,
    /// IDAT chunks that are whole.
    whole: &'a [u8],
    /// The head of an IDAT chunk that is cut, made to fit what is there of it.
    cut_head: [u8; 8],
    cut_body: Option<&'a [u8]>,
    /// Everything from the first IDAT chunk on.
    rest: &'a [u8],
    pub(super) soundness: Soundness,
}

/// One chunk.
struct Chunk<'a> {
    kind: [u8; 4],
    body: &'a [u8],
    /// Length in the file, with head and checksum.
    len: usize,
    checked: bool,
    cut: bool,
}

impl<'a> Chunk<'a> {
    /// The chunk at the beginning of `rest`; `None` when not even its head is there.
    fn first(rest: &'a [u8]) -> Option<Self> {
        let (head, after) = rest.split_first_chunk::<8>()?;
        let [l3, l2, l1, l0, kind @ ..] = *head;
        let len = u32::from_be_bytes([l3, l2, l1, l0]) as usize;
        let body = &after[..len.min(after.len())];
        let sum: Option<[u8; 4]> = after.get(len..).and_then(|after| after.first_chunk().copied());
        let checked = sum.is_some_and(|sum| {
            let mut crc = Crc::new();
            crc.update(&kind);
            crc.update(body);
            crc.sum() == u32::from_be_bytes(sum)
        });
        Some(Self { kind, body, len: FRAME_BYTES.saturating_add(len), checked, cut: sum.is_none() })
    }
}

/// Palette and transparencies as a file gives them.
#[derive(Default)]
struct Colours<'a> {
    palette: Option<&'a [u8]>,
    transparency: Option<&'a [u8]>,
}

impl<'a> Chunks<'a> {
    /// Finds the chunks of a file whose header has been read.
    pub(super) fn find(bytes: &'a [u8]) -> Result<Self, Fault> {
        let mut at = SIGNATURE.len();
        let mut colours = Colours::default();
        let mut image_header = None;
        loop {
            let rest = bytes.get(at..).unwrap_or_default();
            let chunk = Chunk::first(rest).ok_or_else(|| Fault::truncated("the file ends before the image data"))?;
            let name = String::from_utf8_lossy(&chunk.kind);
            let sound = || if chunk.checked { Ok(chunk.body) } else { Err(damaged(&name)) };
            match &chunk.kind {
                b"IDAT" => break,
                _ if chunk.cut => return Err(Fault::truncated(format!("the file ends inside chunk {name}"))),
                b"IHDR" if image_header.is_none() => image_header = Some(sound()?),
                // Of several, the last counts, as in Pillow.
                b"PLTE" => colours.palette = Some(sound()?),
                b"tRNS" => colours.transparency = sound().ok().or(colours.transparency),
                b"IEND" => return Err(Fault::truncated("the image has no data")),
                _ => {}
            }
            at = at.saturating_add(chunk.len);
        }
        let image_header = image_header.ok_or_else(|| Fault::corrupt("the file has no chunk IHDR"))?;
        Ok(Self::image_data(bytes, at, head(image_header, &colours)?))
    }

    /// Walks the run of image data that begins at byte `start`.
    fn image_data(bytes: &'a [u8], start: usize, head: Vec<u8>) -> Self {
        let rest = bytes.get(start..).unwrap_or_default();
        let mut chunks =
            Self { head, whole: &[], cut_head: [0; 8], cut_body: None, rest, soundness: Soundness::Checked };
        let mut at = start;
        while let Some(chunk) = bytes.get(at..).and_then(Chunk::first).filter(|chunk| &chunk.kind == b"IDAT") {
            if chunk.cut {
                chunks.soundness = Soundness::Cut;
                chunks.cut_head[..4].copy_from_slice(&(chunk.body.len() as u32).to_be_bytes());
                chunks.cut_head[4..].copy_from_slice(b"IDAT");
                chunks.cut_body = Some(chunk.body);
                break;
            }
            if !chunk.checked {
                chunks.soundness = Soundness::Doubtful;
            }
            at = at.saturating_add(chunk.len);
        }
        if bytes.len() < at.saturating_add(8) {
            chunks.soundness = Soundness::Cut;
        }
        chunks.whole = bytes.get(start..at).unwrap_or_default();
        chunks
    }

    /// The file for the decoder; one that is `truncated` ends where it ends.
    pub(super) fn file(&self, truncated: bool) -> Parts<'_> {
        Parts(match self.cut_body {
            _ if truncated => [&self.head, self.rest, &[], &[], &[]],
            Some(body) => [&self.head, self.whole, &self.cut_head, body, TAIL],
            // Whole chunks bring their own checksum.
            None => [&self.head, self.whole, &[], &[], &TAIL[4..]],
        })
    }

    /// Whether the zlib stream ends as it should, after at most `bytes_max` bytes. Costs inflating it, so that it is
    /// asked of doubtful data only.
    pub(super) fn stream_is_whole(&self, bytes_max: u64) -> bool {
        let mut stream = Decompress::new(true);
        let mut made = vec![0; 1 << 15];
        for mut body in self.bodies() {
            while !body.is_empty() {
                let before = stream.total_in();
                match stream.decompress(body, &mut made, FlushDecompress::None) {
                    Ok(Status::StreamEnd) => return true,
                    Ok(_) if stream.total_out() <= bytes_max => {}
                    Ok(_) | Err(_) => return false,
                }
                body = &body[(stream.total_in() - before) as usize..];
            }
        }
        // The last bytes are taken before what they stand for is made.
        while stream.total_out() <= bytes_max {
            let before = stream.total_out();
            match stream.decompress(&[], &mut made, FlushDecompress::None) {
                Ok(Status::StreamEnd) => return true,
                Ok(_) if stream.total_out() > before => {}
                Ok(_) | Err(_) => return false,
            }
        }
        false
    }

    /// The bodies of the image data.
    fn bodies(&self) -> impl Iterator<Item = &'a [u8]> {
        let mut rest = self.whole;
        let whole = std::iter::from_fn(move || {
            let (head, after) = rest.split_first_chunk::<8>()?;
            let (body, after) =
                after.split_at_checked(u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize)?;
            rest = after.get(4..)?;
            Some(body)
        });
        whole.chain(self.cut_body)
    }
}

fn damaged(name: &str) -> Fault {
    Fault::corrupt(format!("the checksum of chunk {name} is wrong"))
}

/// Signature, image header, palette and transparencies, as long as this kind of image has them.
fn head(image_header: &[u8], colours: &Colours<'_>) -> Result<Vec<u8>, Fault> {
    let mut header: [u8; 13] =
        image_header.try_into().map_err(|_| Fault::bad_header("the chunk IHDR does not have 13 bytes"))?;
    header[10] = 0;
    let [.., depth, colour, _, _, _] = header;
    let mut head = SIGNATURE.to_vec();
    append(&mut head, *b"IHDR", &header);
    let transparencies = match colour {
        3 => {
            let entries = 1usize << depth.min(8);
            let mut palette = colours.palette.ok_or_else(|| Fault::corrupt("the image has no palette"))?.to_vec();
            // Colours that are not there are black, as in Pillow.
            palette.resize(entries * 3, 0);
            append(&mut head, *b"PLTE", &palette);
            entries
        }
        0 => 2,
        2 => 6,
        _ => 0,
    };
    let transparency = colours.transparency.map(|values| &values[..transparencies.min(values.len())]);
    let usable = |values: &&[u8]| !values.is_empty() && (colour == 3 || values.len() == transparencies);
    if let Some(values) = transparency.filter(usable) {
        append(&mut head, *b"tRNS", values);
    }
    Ok(head)
}

fn append(file: &mut Vec<u8>, kind: [u8; 4], body: &[u8]) {
    file.extend((body.len() as u32).to_be_bytes());
    file.extend(kind);
    file.extend(body);
    file.extend([0; 4]);
}

/// Slices, read one after the other.
pub(super) struct Parts<'a>([&'a [u8]; 5]);

impl Read for Parts<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Parts<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        Ok(self.0.iter().find(|part| !part.is_empty()).copied().unwrap_or_default())
    }

    fn consume(&mut self, count: usize) {
        if let Some(part) = self.0.iter_mut().find(|part| !part.is_empty()) {
            *part = part.get(count..).unwrap_or_default();
        }
    }
}

/// The decoder asks for it, but reads from the beginning to the end.
impl Seek for Parts<'_> {
    fn seek(&mut self, _: SeekFrom) -> io::Result<u64> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
