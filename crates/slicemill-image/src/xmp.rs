//! The orientation in an XMP packet, which tools write beside EXIF or in its place.
//!
//! Found as Pillow finds it: the first `tiff:Orientation="6"` or `tiff:Orientation>6`. The packet is not parsed, so that
//! one that is no XML, or cut short, costs nothing but its orientation.

use crate::Orientation;

const NAME: &[u8] = b"tiff:Orientation";

/// The orientation of a packet; `None` when it tells none. Numbers outside the standard are upright.
pub(crate) fn orientation(packet: &[u8]) -> Option<Orientation> {
    let digit = packet.windows(NAME.len() + 3).find_map(|place| match place.strip_prefix(NAME)? {
        [b'=', b'"', digit @ b'0'..=b'9'] | [b'>', digit @ b'0'..=b'9', _] => Some(digit - b'0'),
        _ => None,
    })?;
    Some(Orientation::from_exif(u32::from(digit)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_and_elements_are_found() {
        let found = |packet: &str| orientation(packet.as_bytes()).map(Orientation::exif);
        assert_eq!(found(r#"<rdf:Description tiff:Orientation="6"/>"#), Some(6));
        assert_eq!(found("<tiff:Orientation>8</tiff:Orientation>"), Some(8));
        assert_eq!(found("tiff:Orientation='3' <tiff:Orientation>8</tiff:Orientation>"), Some(8));
        assert_eq!(found(r#"tiff:Orientation="9""#), Some(1));
        assert_eq!(found(r#"tiff:Orientation="x""#), None);
        assert_eq!(found("tiff:Orientation"), None);
        assert_eq!(found(""), None);
    }
}
