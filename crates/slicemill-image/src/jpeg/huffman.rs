//! Huffman tables (T.81, annex C and F.2.2.3).

use super::bits::{BitReader, extend};
use crate::fault::Fault;

/// Codes up to this length are found in one step.
const LOOKUP_BITS: u32 = 10;

/// Set in a lookup entry that holds a whole coefficient: run, value and the length of code and value together.
const COMPLETE: u32 = 0x80;

/// A code of up to 256 symbols.
pub(super) struct Huffman {
    /// By the next [`LOOKUP_BITS`] bits. 0: the code is longer. Otherwise bits 0 to 4 are the length, bits 8 to 15 the
    /// symbol, and with [`COMPLETE`] bits 16 to 31 the value.
    lookup: [u32; 1 << LOOKUP_BITS],
    /// For every length, the end (exclusive) of its codes, left-aligned in 16 bits.
    ends: [u32; 17],
    /// For every length, what is added to a code to find its symbol.
    offsets: [i32; 17],
    symbols: [u8; 256],
}

/// What a lookup of an AC coefficient finds.
pub(super) enum AcStep {
    /// After `run` zeros, a coefficient.
    Value { run: usize, value: i16 },
    /// A symbol with no value of its own: end of block, sixteen zeros, or (progressive) an end-of-band run.
    Run { run: u32 },
}

impl Huffman {
    /// Builds a table from the number of codes of each length 1 to 16 and the symbols in order of their codes.
    pub(super) fn new(counts: &[u8; 16], listed: &[u8]) -> Result<Box<Self>, Fault> {
        let mut table =
            Box::new(Self { lookup: [0; 1 << LOOKUP_BITS], ends: [0; 17], offsets: [0; 17], symbols: [0; 256] });
        for (symbol, &listed) in table.symbols.iter_mut().zip(listed) {
            *symbol = listed;
        }
        let (mut code, mut index) = (0u32, 0u32);
        for (len, &count) in (1u32..=16).zip(counts) {
            let slot = len as usize;
            table.offsets[slot] = index as i32 - code as i32;
            for _ in 0..count {
                if code >= 1 << len || index as usize >= listed.len() {
                    return Err(Fault::corrupt("a Huffman table has more codes than fit"));
                }
                if len <= LOOKUP_BITS {
                    table.fill(code, len, listed[index as usize]);
                }
                code += 1;
                index += 1;
            }
            table.ends[slot] = code << (16 - len);
            code <<= 1;
        }
        Ok(table)
    }

    /// Enters a code into all lookup slots that begin with it.
    fn fill(&mut self, code: u32, len: u32, symbol: u8) {
        let free = LOOKUP_BITS - len;
        let size = u32::from(symbol & 15);
        for rest in 0..1u32 << free {
            let mut entry = (u32::from(symbol) << 8) | len;
            if size > 0 && size <= free {
                let value = extend(rest >> (free - size), size);
                entry = ((value as u32) << 16) | (u32::from(symbol) << 8) | COMPLETE | (len + size);
            }
            self.lookup[((code << free) | rest) as usize] = entry;
        }
    }

    /// Decodes a symbol; needs 16 valid bits. A code that does not exist gives symbol 0 and is remembered by the
    /// reader.
    #[inline(always)]
    pub(super) fn symbol(&self, reader: &mut BitReader<'_>) -> u8 {
        let entry = self.lookup[reader.peek(LOOKUP_BITS) as usize];
        if entry == 0 {
            return self.long_symbol(reader);
        }
        let symbol = (entry >> 8) as u8;
        let size = if entry & COMPLETE == 0 { 0 } else { u32::from(symbol & 15) };
        reader.skip((entry & 0x1F) - size);
        symbol
    }

    /// A symbol whose code is longer than the lookup.
    #[cold]
    #[inline(never)]
    fn long_symbol(&self, reader: &mut BitReader<'_>) -> u8 {
        let next = reader.peek(16);
        for len in LOOKUP_BITS + 1..=16 {
            if next < self.ends[len as usize] {
                reader.skip(len);
                let index = (next >> (16 - len)) as i32 + self.offsets[len as usize];
                return self.symbols[(index & 255) as usize];
            }
        }
        reader.reject_code(16);
        0
    }

    /// Decodes the difference of a DC coefficient; needs 32 valid bits.
    #[inline(always)]
    pub(super) fn dc_difference(&self, reader: &mut BitReader<'_>) -> i32 {
        let entry = self.lookup[reader.peek(LOOKUP_BITS) as usize];
        if entry & COMPLETE != 0 {
            reader.skip(entry & 0x1F);
            return (entry as i32) >> 16;
        }
        let size = u32::from(self.symbol(reader) & 15);
        extend(reader.take(size), size)
    }

    /// Decodes run and value of an AC coefficient; needs 32 valid bits.
    #[inline(always)]
    pub(super) fn ac(&self, reader: &mut BitReader<'_>) -> AcStep {
        let entry = self.lookup[reader.peek(LOOKUP_BITS) as usize];
        if entry & COMPLETE != 0 {
            reader.skip(entry & 0x1F);
            return AcStep::Value { run: ((entry >> 12) & 15) as usize, value: (entry >> 16) as i16 };
        }
        let symbol = self.symbol(reader);
        let (run, size) = (u32::from(symbol >> 4), u32::from(symbol & 15));
        if size == 0 {
            return AcStep::Run { run };
        }
        AcStep::Value { run: run as usize, value: extend(reader.take(size), size) as i16 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long_codes_are_found() {
        // 0 → 0x01, 10 → 0x02, 110 → 0x00, then one code of 12 bits: 1110 0000 0000 → 0x35.
        let mut counts = [0u8; 16];
        (counts[0], counts[1], counts[2], counts[11]) = (1, 1, 1, 1);
        let table = Huffman::new(&counts, &[0x01, 0x02, 0x00, 0x35]).unwrap();
        // 0 1 | 10 01 | 110 | 111000000000 10101
        let bits = "01100111011100000000010101";
        let data: Vec<u8> = bits
            .as_bytes()
            .chunks(8)
            .map(|byte| byte.iter().fold(0u8, |sum, &bit| (sum << 1) | (bit - b'0')) << (8 - byte.len()))
            .collect();
        let mut reader = BitReader::new(&data, 0);
        reader.ensure_32();
        assert!(matches!(table.ac(&mut reader), AcStep::Value { run: 0, value: 1 }));
        assert!(matches!(table.ac(&mut reader), AcStep::Value { run: 0, value: -2 }));
        assert!(matches!(table.ac(&mut reader), AcStep::Run { run: 0 }));
        assert!(matches!(table.ac(&mut reader), AcStep::Value { run: 3, value: 21 }));
        assert!(!reader.overread());
    }

    #[test]
    fn overfull_tables_are_refused() {
        let mut counts = [0u8; 16];
        counts[0] = 3;
        assert!(Huffman::new(&counts, &[1, 2, 3]).is_err());
        counts[0] = 2;
        assert!(Huffman::new(&counts, &[1]).is_err());
    }
}
