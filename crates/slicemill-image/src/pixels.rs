//! RGB images.

use slicemill_core::Size;

/// An image of 8-bit RGB pixels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RgbImage {
    size: Size,
    data: Vec<u8>,
}

impl RgbImage {
    /// An image from `[height, width, 3]` bytes, or `None` when their number is not height · width · 3.
    pub fn from_raw(size: Size, data: Vec<u8>) -> Option<Self> {
        (data.len() as u64 == size.pixels() * 3).then_some(Self { size, data })
    }

    /// An image of one colour.
    pub fn filled(size: Size, colour: [u8; 3]) -> Self {
        let pixels = size.width as usize * size.height as usize;
        let mut data = Vec::with_capacity(pixels * 3);
        for _ in 0..pixels {
            data.extend_from_slice(&colour);
        }
        Self { size, data }
    }

    /// Width and height.
    pub const fn size(&self) -> Size {
        self.size
    }

    /// The pixels: `[height, width, 3]`, row-major.
    pub fn as_bytes(&self) -> &[u8] {
        &self.data
    }

    /// The pixels, by value.
    pub fn into_bytes(self) -> Vec<u8> {
        self.data
    }

    /// The pixel in column `x` of row `y`, or `None` outside the image.
    pub fn pixel(&self, x: u32, y: u32) -> Option<[u8; 3]> {
        if x >= self.size.width || y >= self.size.height {
            return None;
        }
        let at = (y as usize * self.size.width as usize + x as usize) * 3;
        self.data.get(at..at + 3)?.try_into().ok()
    }

    /// Bytes in one row.
    pub(crate) const fn stride(&self) -> usize {
        self.size.width as usize * 3
    }
}
