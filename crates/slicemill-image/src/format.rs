//! Image formats, found by magic bytes and never by the extension of a name.

/// A format that can be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ImageFormat {
    /// JPEG: baseline, extended and progressive, Huffman or arithmetic coding, and lossless, with 8 bits per sample.
    Jpeg,
    /// PNG, and APNG, of which the default image is read.
    Png,
    /// WebP: lossy and lossless; of an animation the first frame.
    WebP,
    /// GIF: the first frame on its canvas.
    Gif,
    /// Windows bitmap.
    Bmp,
    /// TIFF: the first image of the file.
    Tiff,
}

impl ImageFormat {
    /// The stored name: lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Jpeg => "jpeg",
            Self::Png => "png",
            Self::WebP => "webp",
            Self::Gif => "gif",
            Self::Bmp => "bmp",
            Self::Tiff => "tiff",
        }
    }

    /// The name as people write it.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::WebP => "WebP",
            Self::Gif => "GIF",
            Self::Bmp => "BMP",
            Self::Tiff => "TIFF",
        }
    }
}

impl std::fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Bytes from the start of an object that [`sniff`] looks at.
pub const SNIFF_BYTES: usize = 32;

/// Sizes of the bitmap information headers that exist; "BM" alone is too common a beginning of a text.
const BMP_HEADER_SIZES: [u32; 8] = [12, 16, 40, 52, 56, 64, 108, 124];

/// The format that the first bytes announce, or `None` when they announce none that can be decoded.
pub fn sniff(bytes: &[u8]) -> Option<ImageFormat> {
    if bytes.starts_with(&[0xFF, 0xD8, 0xFF]) {
        return Some(ImageFormat::Jpeg);
    }
    if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        return Some(ImageFormat::Png);
    }
    if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
        return Some(ImageFormat::WebP);
    }
    if bytes.starts_with(b"GIF87a") || bytes.starts_with(b"GIF89a") {
        return Some(ImageFormat::Gif);
    }
    if [b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"].iter().any(|magic| bytes.starts_with(*magic)) {
        return Some(ImageFormat::Tiff);
    }
    is_bmp(bytes).then_some(ImageFormat::Bmp)
}

fn is_bmp(bytes: &[u8]) -> bool {
    let size = bytes.get(14..18).and_then(|field| field.try_into().ok()).map(u32::from_le_bytes);
    bytes.starts_with(b"BM") && size.is_some_and(|size| BMP_HEADER_SIZES.contains(&size))
}

/// The name of an image format that is recognised but cannot be decoded.
pub fn sniff_unsupported(bytes: &[u8]) -> Option<&'static str> {
    if bytes.get(4..8) == Some(b"ftyp") {
        return match bytes.get(8..12)? {
            b"avif" | b"avis" => Some("AVIF"),
            b"heic" | b"heix" | b"hevc" | b"heim" | b"heis" | b"mif1" | b"msf1" => Some("HEIF"),
            _ => None,
        };
    }
    let table: [(&[u8], &str); 8] = [
        (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\xff\x0a", "JPEG XL"),
        (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\xff\x4f\xff\x51", "JPEG 2000"),
        (b"8BPS", "Photoshop"),
        (b"\x00\x00\x01\x00", "ICO"),
        (b"v/1\x01", "OpenEXR"),
        (b"qoif", "QOI"),
    ];
    table.iter().find(|(magic, _)| bytes.starts_with(magic)).map(|&(_, name)| name)
}

/// Extensions of the formats that can be decoded, lower case.
pub const IMAGE_EXTENSIONS: [&str; 12] =
    ["jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "gif", "bmp", "dib", "tif", "tiff"];

/// Whether a name claims to be an image. It decides only what an object with unknown first bytes becomes: a failed row
/// or something that was never meant to be an image.
pub fn has_image_extension(name: &str) -> bool {
    let last = name.rsplit(['/', '\\']).next().unwrap_or(name);
    let Some((_, extension)) = last.rsplit_once('.') else { return false };
    IMAGE_EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_found_by_their_first_bytes() {
        let bmp = [b"BM\0\0\0\0\0\0\0\0\0\0\0\0".as_slice(), &40u32.to_le_bytes()].concat();
        let cases: [(&[u8], Option<ImageFormat>); 12] = [
            (&[0xFF, 0xD8, 0xFF, 0xE0], Some(ImageFormat::Jpeg)),
            (b"\x89PNG\r\n\x1a\n....", Some(ImageFormat::Png)),
            (b"RIFF\0\0\0\0WEBPVP8 ", Some(ImageFormat::WebP)),
            (b"RIFF\0\0\0\0WAVEfmt ", None),
            (b"GIF87a", Some(ImageFormat::Gif)),
            (b"GIF89a", Some(ImageFormat::Gif)),
            (b"GIF88a", None),
            (b"II*\0", Some(ImageFormat::Tiff)),
            (b"MM\0*", Some(ImageFormat::Tiff)),
            (&bmp, Some(ImageFormat::Bmp)),
            (b"BM is how this text begins, and it is no image.", None),
            (b"", None),
        ];
        for (bytes, expected) in cases {
            assert_eq!(sniff(bytes), expected, "{bytes:?}");
        }
    }

    #[test]
    fn extensions_are_compared_without_case_and_path() {
        for name in ["a.jpg", "a/b.c/d.JPEG", "x.TIF", ".png", "a\\b.webp"] {
            assert!(has_image_extension(name), "{name}");
        }
        for name in ["a", "a.txt", "jpg", "a.jpg/readme", "a.jpg.txt", ""] {
            assert!(!has_image_extension(name), "{name}");
        }
    }

    #[test]
    fn unsupported_formats_have_names() {
        assert_eq!(sniff_unsupported(b"\0\0\0\x18ftypavif"), Some("AVIF"));
        assert_eq!(sniff_unsupported(b"\0\0\0\x18ftypheic"), Some("HEIF"));
        assert_eq!(sniff_unsupported(b"\0\0\0\x18ftypmp42"), None);
        assert_eq!(sniff_unsupported(b"8BPS\0\x01"), Some("Photoshop"));
    }
}
