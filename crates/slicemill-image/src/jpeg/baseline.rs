//! Sequential scans (T.81, F.2).

use super::bits::BitReader;
use super::frame::NATURAL;
use super::huffman::{AcStep, Huffman};

/// Decodes one block into zeroed `[64]` coefficients in natural order. `false` when a run leaves the block.
#[inline(always)]
pub(super) fn block(
    reader: &mut BitReader<'_>,
    dc: &Huffman,
    ac: &Huffman,
    predictor: &mut i32,
    coefficients: &mut [i16; 64],
) -> bool {
    reader.ensure_32();
    *predictor = predictor.wrapping_add(dc.dc_difference(reader));
    coefficients[0] = *predictor as i16;
    let mut position = 1;
    while position < 64 {
        reader.ensure_32();
        match ac.ac(reader) {
            AcStep::Value { run, value } => {
                position += run;
                coefficients[usize::from(NATURAL[position] & 63)] = value;
                position += 1;
            }
            AcStep::Run { run: 15 } => position += 16,
            AcStep::Run { .. } => break,
        }
    }
    position <= 64
}
