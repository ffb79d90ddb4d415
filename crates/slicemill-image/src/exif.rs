//! TIFF directories: the header of a TIFF file and, in the same form, EXIF.
//!
//! Only numbers of the first directory are read, one entry at a time, so that a broken entry elsewhere does not
//! hide the orientation. (Pillow reads EXIF as lazily.)

use crate::Orientation;
use crate::fault::Fault;
use crate::window::{Stop, Window};

/// Tags of the first directory that matter here.
pub(crate) mod tag {
    pub(crate) const IMAGE_WIDTH: u16 = 256;
    pub(crate) const IMAGE_LENGTH: u16 = 257;
    pub(crate) const BITS_PER_SAMPLE: u16 = 258;
    pub(crate) const COMPRESSION: u16 = 259;
    pub(crate) const PHOTOMETRIC: u16 = 262;
    pub(crate) const FILL_ORDER: u16 = 266;
    pub(crate) const STRIP_OFFSETS: u16 = 273;
    pub(crate) const ORIENTATION: u16 = 274;
    pub(crate) const SAMPLES_PER_PIXEL: u16 = 277;
    pub(crate) const ROWS_PER_STRIP: u16 = 278;
    pub(crate) const STRIP_BYTE_COUNTS: u16 = 279;
    pub(crate) const PLANAR_CONFIGURATION: u16 = 284;
    pub(crate) const T4_OPTIONS: u16 = 292;
    pub(crate) const PREDICTOR: u16 = 317;
    pub(crate) const COLOR_MAP: u16 = 320;
    pub(crate) const TILE_WIDTH: u16 = 322;
    pub(crate) const TILE_LENGTH: u16 = 323;
    pub(crate) const TILE_OFFSETS: u16 = 324;
    pub(crate) const TILE_BYTE_COUNTS: u16 = 325;
    pub(crate) const EXTRA_SAMPLES: u16 = 338;
    pub(crate) const SAMPLE_FORMAT: u16 = 339;
    pub(crate) const JPEG_TABLES: u16 = 347;
    pub(crate) const JPEG_STREAM: u16 = 513;
    pub(crate) const JPEG_STREAM_BYTES: u16 = 514;
    pub(crate) const JPEG_QUANTISATION_TABLES: u16 = 519;
    pub(crate) const JPEG_DC_TABLES: u16 = 520;
    pub(crate) const JPEG_AC_TABLES: u16 = 521;
    pub(crate) const YCBCR_COEFFICIENTS: u16 = 529;
    pub(crate) const YCBCR_SUBSAMPLING: u16 = 530;
    pub(crate) const REFERENCE_BLACK_WHITE: u16 = 532;
    pub(crate) const XMP: u16 = 700;
}

/// Most entries that are looked at: real directories have a few dozen.
const ENTRIES_MAX: u64 = 4096;

/// The type of values that are two numbers of 4 bytes, one over the other.
const RATIONAL: u64 = 5;

/// Most values of a tag that are taken into memory: no table is nearly as long.
const VALUES_MAX: u64 = 1 << 18;

/// Values of a list that a message shows.
const SHOWN_MAX: usize = 8;

/// What a value is called in messages.
const VALUE: &str = "value of a directory entry";

/// Values of one tag.
struct Entry {
    kind: u64,
    value_bytes: u64,
    count: u64,
    /// Where the first stands.
    at: u64,
}

/// Whole numbers of one tag, read where they stand.
pub(crate) struct List<'a> {
    bytes: &'a [u8],
    value_bytes: usize,
    little_endian: bool,
    /// How many the directory has, which may be more than were asked for.
    pub(crate) count: u64,
}

impl List<'_> {
    /// A value, where there are as many and it was asked for.
    pub(crate) fn get(&self, index: usize) -> Option<u64> {
        let start = index.checked_mul(self.value_bytes)?;
        let bytes = self.bytes.get(start..)?.get(..self.value_bytes)?;
        Some(whole(bytes, self.little_endian))
    }

    /// The values that were asked for.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.bytes.chunks_exact(self.value_bytes).map(|bytes| whole(bytes, self.little_endian))
    }

    /// The first values and how many there are, for messages: a list may be as long as the file.
    pub(crate) fn shown(&self) -> String {
        let first: Vec<u64> = self.iter().take(SHOWN_MAX).collect();
        let more = self.count.saturating_sub(first.len() as u64);
        if more == 0 { format!("{first:?}") } else { format!("{first:?} and {more} more") }
    }
}

/// An unsigned number.
fn whole(bytes: &[u8], little_endian: bool) -> u64 {
    let fold = |number: u64, &byte: &u8| (number << 8) | u64::from(byte);
    if little_endian { bytes.iter().rev().fold(0, fold) } else { bytes.iter().fold(0, fold) }
}

/// The first directory of a TIFF file or EXIF block.
pub(crate) struct Directory<'a> {
    window: Window<'a>,
    little_endian: bool,
    big_tiff: bool,
    first_entry: u64,
    entries: u64,
}

impl<'a> Directory<'a> {
    /// Finds the first directory of a block that begins with `II` or `MM`.
    pub(crate) fn open(window: Window<'a>) -> Result<Self, Stop> {
        let magic: [u8; 4] = window.array(0, "byte order")?;
        let (little_endian, big_tiff) = match &magic {
            b"II*\0" => (true, false),
            b"MM\0*" => (false, false),
            b"II+\0" => (true, true),
            b"MM\0+" => (false, true),
            _ => return Err(Fault::bad_header("the byte order is neither II nor MM").into()),
        };
        let mut directory = Self { window, little_endian, big_tiff, first_entry: 0, entries: 0 };
        let what = "first directory";
        let (start, count_bytes) =
            if big_tiff { (directory.number(8, 8, what)?, 8) } else { (directory.number(4, 4, what)?, 2) };
        directory.entries = directory.number(start, count_bytes, what)?;
        directory.first_entry = start.saturating_add(count_bytes);
        if directory.entries == 0 || directory.entries > ENTRIES_MAX {
            return Err(Fault::bad_header(format!("the first directory has {} entries", directory.entries)).into());
        }
        Ok(directory)
    }

    /// An unsigned number of 1, 2, 4 or 8 bytes.
    fn number(&self, offset: u64, len: u64, what: &str) -> Result<u64, Stop> {
        Ok(whole(self.window.bytes(offset, len, what)?, self.little_endian))
    }

    /// Finds the entry of a tag whose values are whole numbers.
    fn find_whole(&self, wanted: u16) -> Result<Option<Entry>, Stop> {
        Ok(self.find(wanted)?.filter(|entry| entry.kind != RATIONAL))
    }

    /// Finds the entry of a tag.
    fn find(&self, wanted: u16) -> Result<Option<Entry>, Stop> {
        let (entry_bytes, value_at, inline_bytes) = if self.big_tiff { (20, 12, 8) } else { (12, 8, 4) };
        let what = "first directory";
        for index in 0..self.entries {
            let entry = self.first_entry.saturating_add(index * entry_bytes);
            if self.number(entry, 2, what)? != u64::from(wanted) {
                continue;
            }
            let kind = self.number(entry + 2, 2, what)?;
            let value_bytes = match kind {
                1 | 7 => 1,
                3 => 2,
                4 => 4,
                16 | RATIONAL => 8,
                _ => return Ok(None),
            };
            let count = self.number(entry + 4, value_at - 4, what)?;
            let inline = count.saturating_mul(value_bytes) <= inline_bytes;
            let at = if inline { entry + value_at } else { self.number(entry + value_at, inline_bytes, what)? };
            return Ok((count > 0).then_some(Entry { kind, value_bytes, count, at }));
        }
        Ok(None)
    }

    /// Checks that the values of some tags are inside the file, so that a value is not taken from nowhere.
    pub(crate) fn check_lengths(&self, tags: &[u16]) -> Result<(), Stop> {
        for &tag in tags {
            if let Some(entry) = self.find(tag)?
                && entry.count > self.window.total()
            {
                return Err(Fault::corrupt(format!("a directory entry with {} values", entry.count)).into());
            }
        }
        Ok(())
    }

    /// The first value of a whole-number tag, or `None` when the directory does not have it.
    pub(crate) fn get(&self, tag: u16) -> Result<Option<u64>, Stop> {
        let Some(entry) = self.find_whole(tag)? else { return Ok(None) };
        self.number(entry.at, entry.value_bytes, VALUE).map(Some)
    }

    /// The first values of a whole-number tag, `wanted` at most; none when the directory does not have it.
    pub(crate) fn list(&self, tag: u16, wanted: u64) -> Result<List<'a>, Stop> {
        let little_endian = self.little_endian;
        let Some(entry) = self.find_whole(tag)? else {
            return Ok(List { bytes: &[], value_bytes: 1, little_endian, count: 0 });
        };
        let taken = entry.count.min(wanted).saturating_mul(entry.value_bytes);
        let bytes = self.window.bytes(entry.at, taken, VALUE)?;
        Ok(List { bytes, value_bytes: entry.value_bytes as usize, little_endian, count: entry.count })
    }

    /// All values of a whole-number tag, of which no image needs many; none when the directory does not have it.
    pub(crate) fn values(&self, tag: u16) -> Result<Vec<u64>, Stop> {
        let list = self.list(tag, VALUES_MAX)?;
        if list.count > VALUES_MAX {
            return Err(Fault::corrupt(format!("a table of {} values", list.count)).into());
        }
        Ok(list.iter().collect())
    }

    /// The bytes of a tag, `wanted` at most: `None` when the directory does not have it or the file ends before them.
    pub(crate) fn bytes(&self, tag: u16, wanted: u64) -> Result<Option<&'a [u8]>, Stop> {
        let Some(entry) = self.find(tag)?.filter(|entry| entry.value_bytes == 1) else { return Ok(None) };
        match self.window.bytes(entry.at, entry.count.min(wanted), VALUE) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Stop::Fault(_)) => Ok(None),
            Err(need) => Err(need),
        }
    }

    /// `N` fractions (which may divide by zero) or whole numbers, or `None` when the directory does not have as many under this tag.
    pub(crate) fn fractions<const N: usize>(&self, tag: u16) -> Result<Option<[f32; N]>, Stop> {
        let Some(entry) = self.find(tag)?.filter(|entry| entry.count == N as u64) else { return Ok(None) };
        let mut out = [0.0; N];
        for (out, at) in out.iter_mut().zip((entry.at..).step_by(entry.value_bytes as usize)) {
            *out = if entry.kind == RATIONAL {
                let (over, under) = (self.number(at, 4, VALUE)?, self.number(at.saturating_add(4), 4, VALUE)?);
                (over as f64 / under as f64) as f32
            } else {
                self.number(at, entry.value_bytes, VALUE)? as f32
            };
        }
        Ok(Some(out))
    }

    /// Whether the least significant byte comes first.
    pub(crate) const fn little_endian(&self) -> bool {
        self.little_endian
    }

    /// The orientation, if the directory has one; anything but 1 to 8 is upright.
    pub(crate) fn orientation(&self) -> Result<Option<Orientation>, Stop> {
        let known = |number| u32::try_from(number).ok().and_then(Orientation::from_exif).unwrap_or_default();
        Ok(self.get(tag::ORIENTATION)?.map(known))
    }
}

/// The orientation in an EXIF block, with or without the leading `Exif\0\0`. `None` when it tells none; EXIF that cannot
/// be read is no fault of the image.
pub(crate) fn orientation(block: &[u8]) -> Option<Orientation> {
    let block = block.strip_prefix(b"Exif\0\0").unwrap_or(block);
    let directory = Directory::open(Window::new(block, block.len() as u64)).ok()?;
    directory.orientation().ok()?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(little_endian: bool, kind: u16, value: u32) -> Vec<u8> {
        let u16s = |n: u16| if little_endian { n.to_le_bytes() } else { n.to_be_bytes() };
        let u32s = |n: u32| if little_endian { n.to_le_bytes() } else { n.to_be_bytes() };
        let mut out = if little_endian { b"II*\0".to_vec() } else { b"MM\0*".to_vec() };
        out.extend(u32s(8));
        out.extend(u16s(2));
        for (tag, kind, value) in [(271, 2, 7), (tag::ORIENTATION, kind, value)] {
            out.extend(u16s(tag));
            out.extend(u16s(kind));
            out.extend(u32s(1));
            if kind == 3 {
                out.extend(u16s(value as u16));
                out.extend([0, 0]);
            } else {
                out.extend(u32s(value));
            }
        }
        out
    }

    #[test]
    fn orientation_is_read_in_both_byte_orders() {
        for little_endian in [true, false] {
            for number in 1..=8 {
                let plain = block(little_endian, 3, number);
                assert_eq!(u32::from(orientation(&plain).unwrap().exif()), number);
                let prefixed = [b"Exif\0\0".as_slice(), &plain].concat();
                assert_eq!(u32::from(orientation(&prefixed).unwrap().exif()), number);
                assert_eq!(u32::from(orientation(&block(little_endian, 4, number)).unwrap().exif()), number);
            }
        }
    }

    #[test]
    fn unreadable_exif_tells_nothing() {
        let good = block(true, 3, 6);
        assert_eq!(orientation(&block(true, 3, 0)), Some(Orientation::Upright));
        assert_eq!(orientation(&block(true, 3, 9)), Some(Orientation::Upright));
        assert_eq!(orientation(&block(true, 5, 6)), None);
        assert_eq!(orientation(b""), None);
        for len in 0..good.len() - 4 {
            assert_eq!(orientation(&good[..len]), None, "{len}");
        }
    }
}
