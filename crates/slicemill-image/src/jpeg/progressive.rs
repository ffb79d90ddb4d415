//! Scans of the progressive process (T.81, annex G).

use super::bits::{BitReader, extend};
use super::frame::{NATURAL, Scan};
use super::huffman::Huffman;

/// First scan of a DC coefficient.
pub(super) fn dc_first(
    reader: &mut BitReader<'_>,
    dc: &Huffman,
    predictor: &mut i32,
    low: u32,
    coefficients: &mut [i16; 64],
) {
    reader.ensure_32();
    *predictor = predictor.wrapping_add(dc.dc_difference(reader));
    coefficients[0] = predictor.wrapping_shl(low) as i16;
}

/// Refinement of a DC coefficient by one bit.
pub(super) fn dc_refine(reader: &mut BitReader<'_>, low: u32, coefficients: &mut [i16; 64]) {
    if reader.bit() {
        coefficients[0] |= 1 << low;
    }
}

/// First scan of a band of AC coefficients; `band_run` counts blocks that have ended already. `false` when a run
/// leaves the band.
pub(super) fn ac_first(
    reader: &mut BitReader<'_>,
    ac: &Huffman,
    band_run: &mut u32,
    scan: &Scan,
    coefficients: &mut [i16; 64],
) -> bool {
    if *band_run > 0 {
        *band_run -= 1;
        return true;
    }
    let mut position = scan.first;
    while position <= scan.last {
        reader.ensure_32();
        let symbol = ac.symbol(reader);
        let (run, size) = (u32::from(symbol >> 4), u32::from(symbol & 15));
        if size > 0 {
            position += run as usize;
            let value = extend(reader.take(size), size) << scan.low;
            coefficients[usize::from(NATURAL[position] & 63)] = value as i16;
            position += 1;
        } else if run == 15 {
            position += 16;
        } else {
            *band_run = (1 << run) - 1 + reader.take(run);
            break;
        }
    }
    position <= 64
}

/// Refinement of a band of AC coefficients by one bit. `false` when a run leaves the band or a new coefficient is not
/// ±1.
pub(super) fn ac_refine(
    reader: &mut BitReader<'_>,
    ac: &Huffman,
    band_run: &mut u32,
    scan: &Scan,
    coefficients: &mut [i16; 64],
) -> bool {
    let one = 1i16 << scan.low;
    let mut position = scan.first;
    let mut sound = true;
    while *band_run == 0 && position <= scan.last {
        reader.ensure_32();
        let symbol = ac.symbol(reader);
        let (run, size) = (u32::from(symbol >> 4), symbol & 15);
        sound &= size <= 1;
        let mut fresh = 0;
        if size > 0 {
            fresh = if reader.bit() { one } else { -one };
        } else if run < 15 {
            *band_run = (1 << run) + reader.take(run);
            break;
        }
        position = refine_until(reader, one, position, scan.last, Some(run), coefficients);
        if fresh != 0 {
            sound &= position <= scan.last;
            coefficients[usize::from(NATURAL[position.min(63)] & 63)] = fresh;
        }
        position += 1;
    }
    if *band_run > 0 {
        refine_until(reader, one, position, scan.last, None, coefficients);
        *band_run -= 1;
    }
    sound
}

/// Refines the coefficients that are not zero, until `zeros` zeros have been passed and another is reached, or to the
/// end of the band. Returns where it stopped.
fn refine_until(
    reader: &mut BitReader<'_>,
    one: i16,
    first: usize,
    last: usize,
    zeros: Option<u32>,
    coefficients: &mut [i16; 64],
) -> usize {
    let mut left = zeros;
    for position in first..=last {
        let coefficient = &mut coefficients[usize::from(NATURAL[position] & 63)];
        if *coefficient != 0 {
            if reader.bit() && *coefficient & one == 0 {
                let step = if *coefficient > 0 { one } else { -one };
                *coefficient = coefficient.wrapping_add(step);
            }
        } else if let Some(left) = &mut left {
            if *left == 0 {
                return position;
            }
            *left -= 1;
        }
    }
    last + 1
}
