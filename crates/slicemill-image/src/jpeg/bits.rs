//! Bits of entropy-coded segments.

/// Reads the bits of one entropy-coded segment, most significant first, and undoes byte stuffing (T.81, F.2.2.5).
///
/// At a marker or at the end of the data it goes on with zeros and counts them, so that the hot loops need no error
/// path; whoever asked must look at [`Self::overread`] before the result is used.
pub(super) struct BitReader<'a> {
    data: &'a [u8],
    /// Next byte to be loaded.
    at: usize,
    /// Loaded bits, left-aligned. Below the first `count` there may be a preview of what is loaded next.
    bits: u64,
    /// Loaded bits that are valid.
    count: u32,
    /// How many of all the bits ever loaded were made up; they are the last.
    padding: u64,
    bad_code: bool,
}

impl<'a> BitReader<'a> {
    /// Starts at byte `at`.
    pub(super) fn new(data: &'a [u8], at: usize) -> Self {
        Self { data, at, bits: 0, count: 0, padding: 0, bad_code: false }
    }

    /// Makes at least 32 bits valid: enough for a code of 16 bits and a value of 15.
    #[inline(always)]
    pub(super) fn ensure_32(&mut self) {
        if self.count < 32 {
            self.refill();
        }
    }

    #[inline(always)]
    fn refill(&mut self) {
        let word: Option<[u8; 8]> = self.data.get(self.at..self.at + 8).and_then(|bytes| bytes.try_into().ok());
        if let Some(word) = word.map(u64::from_be_bytes)
            && !has_ff(word)
        {
            self.bits |= word >> self.count;
            let taken = (63 - self.count) >> 3;
            self.at += taken as usize;
            self.count += taken * 8;
        } else {
            self.refill_bytewise();
        }
    }

    #[cold]
    #[inline(never)]
    fn refill_bytewise(&mut self) {
        self.bits &= !(u64::MAX >> self.count);
        while self.count <= 56 {
            let byte = self.next_byte().unwrap_or_else(|| {
                self.padding += 8;
                0
            });
            self.bits |= u64::from(byte) << (56 - self.count);
            self.count += 8;
        }
    }

    /// The next data byte, or `None` at a marker and at the end.
    fn next_byte(&mut self) -> Option<u8> {
        let byte = *self.data.get(self.at)?;
        if byte != 0xFF {
            self.at += 1;
            return Some(byte);
        }
        let fill = self.data[self.at..].iter().take_while(|&&byte| byte == 0xFF).count();
        if self.data.get(self.at + fill) != Some(&0) {
            // The rest is a marker. It is asked for again and again: what fills up before it is stepped over once.
            self.at += fill - 1;
            return None;
        }
        self.at += fill + 1;
        Some(0xFF)
    }

    /// The next `len` bits, 1 to 32, of those that are valid.
    #[inline(always)]
    pub(super) fn peek(&self, len: u32) -> u32 {
        (self.bits >> (64 - len)) as u32
    }

    /// Drops `len` valid bits.
    #[inline(always)]
    pub(super) fn skip(&mut self, len: u32) {
        self.bits <<= len;
        self.count -= len;
    }

    /// Takes `len` valid bits; 0 for none.
    #[inline(always)]
    pub(super) fn take(&mut self, len: u32) -> u32 {
        if len == 0 {
            return 0;
        }
        let value = self.peek(len);
        self.skip(len);
        value
    }

    /// Takes one bit.
    #[inline(always)]
    pub(super) fn bit(&mut self) -> bool {
        self.ensure_32();
        let bit = self.bits >> 63 != 0;
        self.skip(1);
        bit
    }

    /// Whether bits were used that are not there.
    pub(super) const fn overread(&self) -> bool {
        self.padding > self.count as u64
    }

    /// Remembers that a code was met that does not exist, and drops its bits.
    pub(super) fn reject_code(&mut self, len: u32) {
        self.skip(len);
        self.bad_code = true;
    }

    /// Whether a code was met that does not exist, here or before a restart.
    pub(super) const fn bad_code(&self) -> bool {
        self.bad_code
    }

    /// Where the marker after this segment is looked for.
    pub(super) const fn position(&self) -> usize {
        self.at
    }

    /// Whether the image ends here: no more bytes, or the end-of-image marker.
    pub(super) fn at_end(&self) -> bool {
        let rest = self.data.get(self.at..).unwrap_or_default();
        let fill = rest.iter().take_while(|&&byte| byte == 0xFF).count();
        matches!(rest.get(fill), None | Some(0xD9))
    }

    /// Goes on behind the marker `RST0 + number`; `false` when it does not stand here.
    pub(super) fn restart(&mut self, number: u8) -> bool {
        let rest = self.data.get(self.at..).unwrap_or_default();
        let fill = rest.iter().take_while(|&&byte| byte == 0xFF).count();
        let found = fill > 0 && rest.get(fill) == Some(&(0xD0 + number));
        if found {
            *self = Self { bad_code: self.bad_code, ..Self::new(self.data, self.at + fill + 1) };
        }
        found
    }
}

/// Whether one of the eight bytes is 0xFF.
#[inline(always)]
const fn has_ff(word: u64) -> bool {
    const LOW: u64 = 0x0101_0101_0101_0101;
    (!word).wrapping_sub(LOW) & word & (LOW << 7) != 0
}

/// The value of `size` bits in the code of T.81, F.1.2.1: the upper half is positive, the lower half negative.
#[inline(always)]
pub(super) const fn extend(bits: u32, size: u32) -> i32 {
    if size == 0 {
        return 0;
    }
    let value = bits as i32;
    if value < 1 << (size - 1) { value - (1 << size) + 1 } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stuffing_is_undone_and_the_end_is_noticed() {
        let data: Vec<u8> = (0..40u8).flat_map(|n| [n, 0xFF, 0x00]).chain([0xFF, 0xD9]).collect();
        let mut reader = BitReader::new(&data, 0);
        for n in 0..40 {
            reader.ensure_32();
            assert_eq!(reader.take(8), n);
            reader.ensure_32();
            assert_eq!(reader.take(8), 0xFF);
        }
        assert!(!reader.overread());
        reader.ensure_32();
        assert_eq!(reader.take(1), 0);
        assert!(reader.overread());
        assert_eq!(reader.position(), data.len() - 2);
        assert!(reader.at_end());
    }

    #[test]
    fn bytes_that_fill_up_before_a_marker_are_stepped_over_once() {
        for end in [&[0xD9][..], &[]] {
            let data = [&[0x12, 0x34], [0xFF; 1000].as_slice(), end].concat();
            let mut reader = BitReader::new(&data, 0);
            reader.ensure_32();
            assert_eq!(reader.take(32), 0x1234_0000);
            assert_eq!(reader.position(), 1001);
            assert!(reader.overread() && reader.at_end());
        }
        let data = [[0xFF; 1000].as_slice(), &[0, 7, 0xFF, 0xFF, 0xD0, 9]].concat();
        let mut reader = BitReader::new(&data, 0);
        reader.ensure_32();
        assert_eq!(reader.take(32), 0xFF07_0000);
        assert!(reader.restart(0));
        reader.ensure_32();
        assert_eq!(reader.take(8), 9);
    }

    #[test]
    fn values_are_extended_as_in_the_standard() {
        assert_eq!((extend(0, 1), extend(1, 1)), (-1, 1));
        assert_eq!((extend(0, 3), extend(3, 3), extend(4, 3), extend(7, 3)), (-7, -4, 4, 7));
        assert_eq!(extend(0, 0), 0);
    }

    #[test]
    fn bytes_of_ones_are_found() {
        for shift in (0..64).step_by(8) {
            assert!(has_ff(0x1234_5678_0000_FE01 & !(0xFF << shift) | (0xFF << shift)));
        }
        assert!(!has_ff(0xFEFE_FEFE_7F80_0001));
    }
}
