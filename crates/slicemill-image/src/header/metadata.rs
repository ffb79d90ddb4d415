//! Where files keep the orientation: EXIF, and where that has none, XMP. (As in Pillow's `exif_transpose`.)

use crate::{Orientation, exif, xmp};

/// What a file says of its orientation.
#[derive(Debug, Default)]
pub(super) struct Metadata {
    exif: Option<Option<Orientation>>,
    xmp: Option<Orientation>,
}

impl Metadata {
    /// An EXIF block; the first one counts.
    pub(super) fn exif(&mut self, block: &[u8]) {
        self.exif.get_or_insert_with(|| exif::orientation(block));
    }

    /// An XMP packet; the last one counts.
    pub(super) fn xmp(&mut self, packet: &[u8]) {
        self.xmp = xmp::orientation(packet);
    }

    /// Whether EXIF has told, so that XMP no longer matters.
    pub(super) const fn exif_tells(&self) -> bool {
        matches!(self.exif, Some(Some(_)))
    }

    /// The orientation; upright when nothing tells of another.
    pub(super) fn orientation(&self) -> Orientation {
        self.exif.flatten().or(self.xmp).unwrap_or_default()
    }
}
