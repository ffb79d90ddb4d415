//! Texts of PNG files that tell the orientation: XMP, and EXIF in hexadecimal digits, as ImageMagick writes it.

use std::io::Read;

use flate2::read::ZlibDecoder;

/// Most bytes of a text that are looked at, as stored and inflated: what Pillow takes, too.
const TEXT_BYTES_MAX: u64 = 1 << 20;

/// Most bytes that the compressed texts of a file may inflate to, all together.
const INFLATED_BYTES_MAX: u64 = 8 << 20;

/// What a compressed text counts for at least: beginning to inflate costs about as much as so many bytes.
const INFLATED_BYTES_MIN: u64 = 4 << 10;

/// Bytes of EXIF that are looked at: the first directory stands at its beginning.
const EXIF_BYTES_MAX: usize = 1 << 16;

/// Texts that matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keyword {
    Xmp,
    RawExif,
}

impl Keyword {
    const ALL: [(Self, &[u8]); 2] = [(Self::Xmp, b"XML:com.adobe.xmp\0"), (Self::RawExif, b"Raw profile type exif\0")];

    /// Bytes of a chunk that [`Self::of`] needs to see.
    pub(super) const BYTES: u64 = 22;

    /// The keyword with which a text chunk begins, and its length with the zero behind it.
    pub(super) fn of(kind: &[u8], start: &[u8]) -> Option<(Self, u64)> {
        let text = matches!(kind, b"tEXt" | b"zTXt" | b"iTXt");
        let found = Self::ALL.iter().find(|(_, name)| text && start.starts_with(name))?;
        Some((found.0, found.1.len() as u64))
    }

    /// Bytes behind the keyword that are looked at.
    pub(super) fn bytes_max(rest: u64) -> u64 {
        rest.min(TEXT_BYTES_MAX)
    }
}

/// Reads the texts of one file, which cost no more than a few large ones, however many there are.
pub(super) struct Texts {
    /// Bytes that may still be inflated.
    left: u64,
}

impl Texts {
    pub(super) const fn new() -> Self {
        Self { left: INFLATED_BYTES_MAX }
    }

    /// The text of a chunk, given what stands behind the keyword; `None` when it cannot be read.
    pub(super) fn text(&mut self, kind: &[u8], rest: &[u8]) -> Option<Vec<u8>> {
        match kind {
            b"tEXt" => Some(rest.to_vec()),
            b"zTXt" => self.inflated(rest.strip_prefix(&[0])?),
            b"iTXt" => {
                let (&[flag, method], rest) = rest.split_first_chunk()?;
                // Language and translated keyword stand before the text.
                let mut parts = rest.splitn(3, |&byte| byte == 0);
                let text = parts.nth(2)?;
                match (flag, method) {
                    (0, _) => Some(text.to_vec()),
                    (_, 0) => self.inflated(text),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    fn inflated(&mut self, stream: &[u8]) -> Option<Vec<u8>> {
        if self.left == 0 {
            return None;
        }
        let mut text = Vec::new();
        // What comes before damage or the limit may tell enough.
        let _ = ZlibDecoder::new(stream).take(TEXT_BYTES_MAX.min(self.left)).read_to_end(&mut text);
        self.left = self.left.saturating_sub((text.len() as u64).max(INFLATED_BYTES_MIN));
        (!text.is_empty()).then_some(text)
    }
}

/// The EXIF block in a raw profile: an empty line, its name, its length, then digits.
pub(super) fn raw_exif(text: &[u8]) -> Vec<u8> {
    let digits = text.splitn(4, |&byte| byte == b'\n').nth(3).unwrap_or_default();
    let values = digits.iter().filter(|byte| !byte.is_ascii_whitespace());
    let mut values = values.map_while(|&byte| char::from(byte).to_digit(16)).take(2 * EXIF_BYTES_MAX);
    let mut block = Vec::new();
    while let (Some(high), Some(low)) = (values.next(), values.next()) {
        block.push((high << 4 | low) as u8);
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_found_in_every_kind_of_chunk() {
        assert_eq!(Keyword::of(b"iTXt", b"XML:com.adobe.xmp\0\0\0"), Some((Keyword::Xmp, 18)));
        assert_eq!(Keyword::of(b"zTXt", b"Raw profile type exif\0\0"), Some((Keyword::RawExif, 22)));
        assert_eq!(Keyword::of(b"tEXt", b"Comment\0"), None);
        assert_eq!(Keyword::of(b"iCCP", b"XML:com.adobe.xmp\0"), None);
        let text = |kind: &[u8], rest: &[u8]| Texts::new().text(kind, rest);
        assert_eq!(text(b"tEXt", b"abc"), Some(b"abc".to_vec()));
        assert_eq!(text(b"iTXt", b"\0\0en\0name\0abc\0d"), Some(b"abc\0d".to_vec()));
        assert_eq!(text(b"iTXt", b"\0\0en"), None);
        assert_eq!(text(b"zTXt", b"\0no zlib"), None);
    }

    #[test]
    fn raw_profiles_are_digits_behind_three_lines() {
        assert_eq!(raw_exif(b"\nexif\n      4\n45786966\n0000"), b"Exif\0\0");
        assert_eq!(raw_exif(b"\nexif\n 4\n4578zz"), b"Ex");
        assert_eq!(raw_exif(b"exif 4"), b"");
    }
}
