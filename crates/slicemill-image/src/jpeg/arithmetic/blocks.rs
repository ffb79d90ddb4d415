//! Blocks of coefficients out of decisions.

use super::{Arithmetic, Conditioning};
use crate::jpeg::frame::{NATURAL, Scan};

/// Where the bins for the magnitudes of DC differences begin (X1).
const DC_MAGNITUDE: usize = 20;

/// Where the bins for the magnitudes of low and of high AC coefficients begin (X2).
const AC_MAGNITUDE: [usize; 2] = [189, 217];

/// How far the bins for the lower bits of a magnitude (M) are behind those for its size (X).
const LOWER_BITS: usize = 14;

/// Magnitudes end below this.
const MAGNITUDE_MAX: i32 = 0x8000;

/// What a block belongs to.
#[derive(Clone, Copy)]
pub(in crate::jpeg) struct Job<'s> {
    pub(in crate::jpeg) scan: &'s Scan,
    pub(in crate::jpeg) conditioning: &'s Conditioning,
    /// Number of the component in the scan.
    pub(in crate::jpeg) component: usize,
    pub(in crate::jpeg) dc_table: usize,
    pub(in crate::jpeg) ac_table: usize,
}

impl Arithmetic<'_> {
    /// All coefficients of a block of a sequential scan. `false` when they make no sense.
    pub(in crate::jpeg) fn block(&mut self, job: Job<'_>, predictor: &mut i32, coefficients: &mut [i16; 64]) -> bool {
        let sound = self.difference(job, predictor);
        coefficients[0] = *predictor as i16;
        sound && self.band(job, 1, 63, 0, coefficients)
    }

    /// First scan of a DC coefficient.
    pub(in crate::jpeg) fn dc_first(
        &mut self,
        job: Job<'_>,
        predictor: &mut i32,
        coefficients: &mut [i16; 64],
    ) -> bool {
        let sound = self.difference(job, predictor);
        coefficients[0] = predictor.wrapping_shl(job.scan.low) as i16;
        sound
    }

    /// Refinement of a DC coefficient by one bit.
    pub(in crate::jpeg) fn dc_refine(&mut self, job: Job<'_>, coefficients: &mut [i16; 64]) {
        if self.even() {
            coefficients[0] |= 1 << job.scan.low;
        }
    }

    /// First scan of a band of AC coefficients.
    pub(in crate::jpeg) fn ac_first(&mut self, job: Job<'_>, coefficients: &mut [i16; 64]) -> bool {
        self.band(job, job.scan.first, job.scan.last, job.scan.low, coefficients)
    }

    /// Refinement of a band of AC coefficients by one bit (G.1.3.3).
    pub(in crate::jpeg) fn ac_refine(&mut self, job: Job<'_>, coefficients: &mut [i16; 64]) -> bool {
        let (first, last, table) = (job.scan.first, job.scan.last, job.ac_table);
        let one = 1i16 << job.scan.low;
        let place = |position: usize| usize::from(NATURAL[position] & 63);
        // The block goes on at least to where it went on before.
        let known = (first..=last).rev().find(|&position| coefficients[place(position)] != 0);
        let mut position = first;
        while position <= last {
            if known.is_none_or(|known| position > known) && self.ac(table, 3 * (position - 1)) {
                break;
            }
            loop {
                let bin = 3 * (position - 1);
                let coefficient = &mut coefficients[place(position)];
                if *coefficient != 0 {
                    if self.ac(table, bin + 2) {
                        *coefficient = coefficient.wrapping_add(if *coefficient < 0 { -one } else { one });
                    }
                    break;
                }
                if self.ac(table, bin + 1) {
                    *coefficient = if self.even() { -one } else { one };
                    break;
                }
                position += 1;
                if position > last {
                    return false;
                }
            }
            position += 1;
        }
        true
    }

    /// The difference of a DC coefficient from the one before (F.2.4.1).
    fn difference(&mut self, job: Job<'_>, predictor: &mut i32) -> bool {
        let table = job.dc_table;
        let context = self.dc_contexts[job.component];
        if !self.dc(table, context) {
            self.dc_contexts[job.component] = 0;
            return true;
        }
        let negative = self.dc(table, context + 1);
        let mut bin = context + 2 + usize::from(negative);
        let mut size = i32::from(self.dc(table, bin));
        if size != 0 {
            bin = DC_MAGNITUDE;
            while self.dc(table, bin) {
                size <<= 1;
                bin += 1;
                if size == MAGNITUDE_MAX {
                    return false;
                }
            }
        }
        let (small, large) = job.conditioning.dc[table];
        self.dc_contexts[job.component] = match size {
            _ if size < (1 << small) >> 1 => 0,
            _ if size > (1 << large) >> 1 => 12 + 4 * usize::from(negative),
            _ => 4 + 4 * usize::from(negative),
        };
        let mut magnitude = size;
        let mut bit = size >> 1;
        while bit != 0 {
            if self.dc(table, bin + LOWER_BITS) {
                magnitude |= bit;
            }
            bit >>= 1;
        }
        let value = magnitude + 1;
        *predictor = predictor.wrapping_add(if negative { -value } else { value });
        true
    }

    /// The coefficients of a band that are not zero (F.2.4.2), shifted by `low` bits.
    fn band(&mut self, job: Job<'_>, first: usize, last: usize, low: u32, coefficients: &mut [i16; 64]) -> bool {
        let table = job.ac_table;
        let mut position = first;
        while position <= last {
            if self.ac(table, 3 * (position - 1)) {
                break;
            }
            while !self.ac(table, 3 * (position - 1) + 1) {
                position += 1;
                if position > last {
                    return false;
                }
            }
            let negative = self.even();
            let Some(value) = self.magnitude(job, position) else { return false };
            let value = if negative { -value } else { value };
            coefficients[usize::from(NATURAL[position] & 63)] = value.wrapping_shl(low) as i16;
            position += 1;
        }
        true
    }

    /// How large the AC coefficient at a position is; `None` when larger than any.
    fn magnitude(&mut self, job: Job<'_>, position: usize) -> Option<i32> {
        let table = job.ac_table;
        let mut bin = 3 * (position - 1) + 2;
        let mut size = i32::from(self.ac(table, bin));
        if size != 0 && self.ac(table, bin) {
            size <<= 1;
            bin = AC_MAGNITUDE[usize::from(position > usize::from(job.conditioning.ac[table]))];
            while self.ac(table, bin) {
                size <<= 1;
                bin += 1;
                if size == MAGNITUDE_MAX {
                    return None;
                }
            }
        }
        let mut magnitude = size;
        let mut bit = size >> 1;
        while bit != 0 {
            if self.ac(table, bin + LOWER_BITS) {
                magnitude |= bit;
            }
            bit >>= 1;
        }
        Some(magnitude + 1)
    }
}
