//! What objects are, by their bytes; and what their names make one expect.

use std::ffi::OsStr;

use super::tar::header::is_header;

/// How much of an object is looked at.
pub(crate) const HEAD_BYTES: usize = 512;

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// One input: an image, or whatever else it turns out to be.
    Object,
    /// An archive.
    Tar,
    /// Compressed; what is inside is seen when it is unpacked.
    Packed(Packing),
    /// `PAR1` at the beginning. The end decides.
    Parquet,
    /// Text whose first line is the beginning of a JSON object.
    JsonLines,
    /// Any other text.
    Text,
}

/// How an object is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Packing {
    /// One or more gzip members.
    Gzip,
    /// One or more zstd frames.
    Zstd,
}

impl Packing {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    /// By the first bytes.
    pub(crate) fn of(head: &[u8]) -> Option<Self> {
        match head {
            [0x1f, 0x8b, 0x08, ..] => Some(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstd),
            // A frame that is skipped may come first.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// What an object is by its first [`HEAD_BYTES`] bytes.
pub(crate) fn sniff(head: &[u8]) -> Kind {
    if let Some(packing) = Packing::of(head) {
        return Kind::Packed(packing);
    }
    if head.starts_with(b"PAR1") {
        return Kind::Parquet;
    }
    if is_tar(head) {
        return Kind::Tar;
    }
    if looks_like_image(head) || head.is_empty() {
        return Kind::Object;
    }
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    if text.trim_ascii_start().starts_with(b"{") {
        return Kind::JsonLines;
    }
    let valid = match std::str::from_utf8(text) {
        Ok(_) => true,
        // The head may end within a letter.
        Err(error) => error.error_len().is_none(),
    };
    let control = |byte: &u8| *byte < b' ' && !matches!(byte, b'\t' | b'\n' | b'\r' | 0x0c);
    if valid && !text.iter().any(control) { Kind::Text } else { Kind::Object }
}

/// A header with the right checksum, or the mark of a header whose checksum was damaged.
pub(crate) fn is_tar(head: &[u8]) -> bool {
    is_header(head.get(..512).unwrap_or_default()) || head.get(257..262).is_some_and(|mark| mark == b"ustar")
}

/// Whether the bytes begin like an image of any format that is known, supported or not.
pub(crate) fn looks_like_image(head: &[u8]) -> bool {
    match head {
        [0xff, 0xd8, 0xff, ..] => true,
        [0x89, b'P', b'N', b'G', ..] => true,
        [b'G', b'I', b'F', b'8', ..] => true,
        [b'B', b'M', ..] => head.get(6..10).is_some_and(|reserved| reserved == [0; 4]),
        [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => true,
        [b'R', b'I', b'F', b'F', ..] => head.get(8..12).is_some_and(|form| form == b"WEBP"),
        [0, 0, 0, 12, b'j', b'P', b' ', b' ', ..] | [0xff, 0x0a, ..] | [b'8', b'B', b'P', b'S', ..] => true,
        [0, 0, 0, _, b'f', b't', b'y', b'p', ..] => head.get(8..12).is_some_and(|brand| {
            matches!(brand, b"avif" | b"avis" | b"heic" | b"heix" | b"hevc" | b"mif1" | b"msf1" | b"heim" | b"heis")
        }),
        [0, 0, 0, 12, b'J', b'X', b'L', b' ', ..] => true,
        _ => false,
    }
}

/// The last extension of a name, in small letters.
pub(crate) fn extension(name: &OsStr) -> Option<String> {
    let name = name.as_encoded_bytes();
    let file = name.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let dot = file.iter().rposition(|byte| *byte == b'.').filter(|dot| *dot > 0)?;
    let extension = std::str::from_utf8(&file[dot + 1..]).ok().filter(|extension| !extension.is_empty())?;
    Some(extension.to_ascii_lowercase())
}

/// What the name of a member promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Promise {
    Image,
    /// Text, arrays, sound, video, archives.
    Other,
    Nothing,
}

/// What `name` promises.
pub(crate) fn promise(name: &str) -> Promise {
    let Some(extension) = extension(OsStr::new(name)) else { return Promise::Nothing };
    match extension.as_str() {
        "jpg" | "jpeg" | "jpe" | "jfif" | "jif" | "png" | "apng" | "gif" | "webp" | "bmp" | "dib" | "tif" | "tiff"
        | "avif" | "heic" | "heif" | "jp2" | "j2k" | "jxl" | "ppm" | "pgm" | "pbm" | "pnm" | "tga" | "ico" | "psd" => {
            Promise::Image
        }
        "json" | "jsonl" | "txt" | "text" | "caption" | "cls" | "cls2" | "id" | "index" | "inx" | "csv" | "tsv"
        | "xml" | "yaml" | "yml" | "html" | "md" | "npy" | "npz" | "pt" | "pth" | "pyd" | "pkl" | "pickle" | "bin"
        | "ten" | "tensor" | "safetensors" | "mp4" | "avi" | "mkv" | "webm" | "mov" | "wav" | "mp3" | "flac"
        | "ogg" | "tar" | "gz" | "zst" | "zip" | "parquet" | "url" | "score" | "transcript" => Promise::Other,
        _ => Promise::Nothing,
    }
}

/// Whether an object of a folder is opened to see if it is a container: the name ends like one's.
pub(crate) fn is_container_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst", ".parquet"].iter().any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_told_apart_by_their_bytes() {
        for (head, kind) in [
            (&b"\x1f\x8b\x08\0"[..], Kind::Packed(Packing::Gzip)),
            (b"\x28\xb5\x2f\xfd", Kind::Packed(Packing::Zstd)),
            (b"\x50\x2a\x4d\x18", Kind::Packed(Packing::Zstd)),
            (b"PAR1\x15", Kind::Parquet),
            (b"{\"a\":1}", Kind::JsonLines),
            (b"\xef\xbb\xbf \n{\"a\"", Kind::JsonLines),
            (b"url,caption\nx,y\n", Kind::Text),
            (b"caf\xc3", Kind::Text),
            (b"", Kind::Object),
            (b"\xff\xd8\xff\xe0", Kind::Object),
            (b"\x89PNG\r\n", Kind::Object),
            (b"\xff\xfe\x00", Kind::Object),
            (b"a\0b", Kind::Object),
        ] {
            assert_eq!(sniff(head), kind, "{}", head.escape_ascii());
        }
    }

    #[test]
    fn old_archives_without_a_mark_are_archives() {
        let mut header = ::tar::Header::new_old();
        header.set_path("a.jpg").unwrap();
        header.set_size(3);
        header.set_cksum();
        assert_eq!(sniff(header.as_bytes()), Kind::Tar);
        let mut marked = ::tar::Header::new_ustar();
        marked.set_path("a.jpg").unwrap();
        assert_eq!(sniff(marked.as_bytes()), Kind::Tar, "the checksum is wrong, the mark is there");
        let mut damaged = *header.as_bytes();
        damaged[0] = 0xff;
        assert_eq!(sniff(&damaged), Kind::Object);
        assert_eq!(sniff(&[0; 512]), Kind::Object);
    }

    #[test]
    fn containers_are_looked_for_by_name() {
        for name in ["a.tar", "A.TAR.GZ", "a.tgz", "x/a.tar.zst", "a.tzst", "a.parquet"] {
            assert!(is_container_name(name), "{name}");
        }
        for name in ["a.jsonl", "a.csv", "a.gz", "tar", "a.tar.jpg"] {
            assert!(!is_container_name(name), "{name}");
        }
    }
}
