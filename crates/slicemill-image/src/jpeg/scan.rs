//! One pass over the entropy-coded data of a scan.

use super::arithmetic::{Arithmetic, Conditioning, Job};
use super::bits::BitReader;
use super::frame::{Frame, Scan, Tables};
use super::huffman::Huffman;
use super::{baseline, progressive};
use crate::fault::Fault;
use crate::kernel::kernel;

/// A component of the scan, with its tables and coefficients.
pub(super) struct Part<'t> {
    /// Index in the frame.
    pub(super) index: usize,
    /// Blocks per MCU, across.
    h: usize,
    /// Blocks per MCU, down.
    pub(super) v: usize,
    /// Blocks in a row of `coefficients`.
    pub(super) stride: usize,
    dc: Option<&'t Huffman>,
    ac: Option<&'t Huffman>,
    dc_table: usize,
    ac_table: usize,
    predictor: i32,
    /// `[rows of blocks, stride, 64]`.
    pub(super) coefficients: Vec<i16>,
}

/// What a scan does to a block.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Process {
    Sequential,
    DcFirst,
    DcRefine,
    AcFirst,
    AcRefine,
}

impl Process {
    const fn of(frame: &Frame, scan: &Scan) -> Self {
        match (frame.progressive, scan.first, scan.high) {
            (false, _, _) => Self::Sequential,
            (true, 0, 0) => Self::DcFirst,
            (true, 0, _) => Self::DcRefine,
            (true, _, 0) => Self::AcFirst,
            (true, _, _) => Self::AcRefine,
        }
    }

    const fn needs_dc_table(self) -> bool {
        matches!(self, Self::Sequential | Self::DcFirst)
    }

    const fn needs_ac_table(self) -> bool {
        matches!(self, Self::Sequential | Self::AcFirst | Self::AcRefine)
    }
}

/// What is left of a restart interval.
struct Restarts {
    interval: usize,
    left: usize,
    number: u8,
}

/// How a row of MCUs ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum RowEnd {
    Sound,
    /// Codes that make no sense.
    Nonsense,
    /// Bits that are not there. The MCU in which they ran out was completed with zeros, those after it were left alone.
    Overread,
    /// No restart marker where one must be.
    NoRestart,
}

/// Decodes a scan row by row.
pub(super) struct Pass<'t> {
    pub(super) parts: Vec<Part<'t>>,
    /// Rows of MCUs.
    pub(super) rows: usize,
    mcus: usize,
    scan: &'t Scan,
    process: Process,
    reader: BitReader<'t>,
    /// Decodes in place of the reader.
    arithmetic: Option<Box<Arithmetic<'t>>>,
    conditioning: &'t Conditioning,
    restarts: Restarts,
    /// Blocks of a band that have ended already.
    band_run: u32,
}

impl<'t> Pass<'t> {
    /// For the scan whose data begins at byte `at`. Coefficients are given to the parts by the caller.
    pub(super) fn new(
        bytes: &'t [u8],
        at: usize,
        frame: &'t Frame,
        scan: &'t Scan,
        tables: &'t Tables,
    ) -> Result<Self, Fault> {
        let process = Process::of(frame, scan);
        let alone = scan.components.len() == 1;
        let mut parts = Vec::new();
        for part in &scan.components {
            let component = &frame.components[part.index];
            let dc = tables.dc[part.dc_table].as_deref().filter(|_| process.needs_dc_table());
            let ac = tables.ac[part.ac_table].as_deref().filter(|_| process.needs_ac_table());
            let missing = dc.is_none() && process.needs_dc_table() || ac.is_none() && process.needs_ac_table();
            if missing && !frame.arithmetic {
                return Err(Fault::corrupt(format!("a Huffman table of component {} is missing", component.id)));
            }
            let (h, v) = if alone { (1, 1) } else { (component.h, component.v) };
            let stride = component.block_stride;
            let (index, dc_table, ac_table) = (part.index, part.dc_table, part.ac_table);
            let coefficients = Vec::new();
            parts.push(Part { index, h, v, stride, dc, ac, dc_table, ac_table, predictor: 0, coefficients });
        }
        let (mcus, rows) = match scan.components.as_slice() {
            [only] => (frame.components[only.index].blocks_wide, frame.components[only.index].blocks_high),
            _ => (frame.mcus_wide, frame.mcus_high),
        };
        let interval = tables.restart_interval;
        let restarts = Restarts { interval, left: interval, number: 0 };
        let (reader, conditioning) = (BitReader::new(bytes, at), &tables.conditioning);
        let arithmetic = frame.arithmetic.then(|| Box::new(Arithmetic::new(bytes, at)));
        Ok(Self { parts, rows, mcus, scan, process, reader, arithmetic, conditioning, restarts, band_run: 0 })
    }

    /// Decodes a row of MCUs into row `to` (counted in rows of MCUs of this scan) of the coefficients.
    pub(super) fn decode_row(&mut self, row: usize, to: usize) -> Result<(), Fault> {
        let end = match &mut self.arithmetic {
            Some(_) => self.arithmetic_row(to),
            None if self.process == Process::Sequential => sequential_row(self, to),
            None => progressive_row(self, to),
        };
        let place = || format!("in row {} of {} rows of blocks", row + 1, self.rows);
        if matches!(end, RowEnd::Overread | RowEnd::NoRestart) {
            let at_end = self.arithmetic.as_ref().map_or_else(|| self.reader.at_end(), |decoder| decoder.starved());
            return Err(if at_end {
                Fault::truncated(format!("the image data ends {}", place()))
            } else {
                Fault::corrupt(format!("the image data is interrupted {}", place()))
            });
        }
        match end {
            RowEnd::Sound => Ok(()),
            _ => Err(Fault::corrupt(format!("the image data makes no sense {}", place()))),
        }
    }

    /// The coefficients of a component of the frame, when it is in this scan.
    pub(super) fn coefficients(&self, index: usize) -> Option<&[i16]> {
        self.parts.iter().find(|part| part.index == index).map(|part| part.coefficients.as_slice())
    }

    /// Where the next segment is looked for.
    pub(super) fn position(&self) -> usize {
        self.arithmetic.as_ref().map_or_else(|| self.reader.position(), |decoder| decoder.position())
    }

    /// A row of MCUs out of the arithmetic decoder.
    fn arithmetic_row(&mut self, to: usize) -> RowEnd {
        for mcu in 0..self.mcus {
            if !self.begin_mcu() {
                return RowEnd::NoRestart;
            }
            let Some(decoder) = &mut self.arithmetic else { return RowEnd::Nonsense };
            for (component, part) in self.parts.iter_mut().enumerate() {
                let (dc_table, ac_table) = (part.dc_table, part.ac_table);
                let job = Job { scan: self.scan, conditioning: self.conditioning, component, dc_table, ac_table };
                let (blocks, _) = part.coefficients.as_chunks_mut::<64>();
                for y in 0..part.v {
                    let first = (to * part.v + y) * part.stride + mcu * part.h;
                    for block in &mut blocks[first..first + part.h] {
                        let sound = match self.process {
                            Process::Sequential => decoder.block(job, &mut part.predictor, block),
                            Process::DcFirst => decoder.dc_first(job, &mut part.predictor, block),
                            Process::DcRefine => {
                                decoder.dc_refine(job, block);
                                true
                            }
                            Process::AcFirst => decoder.ac_first(job, block),
                            Process::AcRefine => decoder.ac_refine(job, block),
                        };
                        if !sound {
                            return RowEnd::Nonsense;
                        }
                    }
                }
            }
            if decoder.starved() {
                return RowEnd::Overread;
            }
        }
        RowEnd::Sound
    }

    /// Counts an MCU; at the end of an interval, steps over the restart marker.
    #[inline(always)]
    fn begin_mcu(&mut self) -> bool {
        if self.restarts.interval == 0 {
            return true;
        }
        if self.restarts.left == 0 && !self.restart() {
            return false;
        }
        self.restarts.left -= 1;
        true
    }

    #[cold]
    fn restart(&mut self) -> bool {
        let number = self.restarts.number;
        let found = match &mut self.arithmetic {
            Some(decoder) => decoder.restart(number),
            None => self.reader.restart(number),
        };
        if !found {
            return false;
        }
        self.restarts.left = self.restarts.interval;
        self.restarts.number = (self.restarts.number + 1) & 7;
        self.band_run = 0;
        self.parts.iter_mut().for_each(|part| part.predictor = 0);
        true
    }
}

kernel! {
    fn sequential_row(pass: &mut Pass<'_>, to: usize) -> RowEnd {
        let mut sound = true;
        for mcu in 0..pass.mcus {
            if !pass.begin_mcu() {
                return RowEnd::NoRestart;
            }
            for part in &mut pass.parts {
                let (Some(dc), Some(ac)) = (part.dc, part.ac) else { return RowEnd::Nonsense };
                let (blocks, _) = part.coefficients.as_chunks_mut::<64>();
                for y in 0..part.v {
                    let first = (to * part.v + y) * part.stride + mcu * part.h;
                    for block in &mut blocks[first..first + part.h] {
                        sound &= baseline::block(&mut pass.reader, dc, ac, &mut part.predictor, block);
                    }
                }
            }
            if pass.reader.overread() {
                return RowEnd::Overread;
            }
        }
        if sound && !pass.reader.bad_code() { RowEnd::Sound } else { RowEnd::Nonsense }
    }
}

kernel! {
    fn progressive_row(pass: &mut Pass<'_>, to: usize) -> RowEnd {
        let mut sound = true;
        for mcu in 0..pass.mcus {
            if !pass.begin_mcu() {
                return RowEnd::NoRestart;
            }
            let (reader, run, scan) = (&mut pass.reader, &mut pass.band_run, pass.scan);
            for part in &mut pass.parts {
                let (blocks, _) = part.coefficients.as_chunks_mut::<64>();
                for y in 0..part.v {
                    let first = (to * part.v + y) * part.stride + mcu * part.h;
                    for block in &mut blocks[first..first + part.h] {
                        match (pass.process, part.dc, part.ac) {
                            (Process::DcFirst, Some(dc), _) => {
                                progressive::dc_first(reader, dc, &mut part.predictor, scan.low, block);
                            }
                            (Process::DcRefine, _, _) => progressive::dc_refine(reader, scan.low, block),
                            (Process::AcFirst, _, Some(ac)) => {
                                sound &= progressive::ac_first(reader, ac, run, scan, block);
                            }
                            (Process::AcRefine, _, Some(ac)) => {
                                sound &= progressive::ac_refine(reader, ac, run, scan, block);
                            }
                            _ => return RowEnd::Nonsense,
                        }
                    }
                }
            }
            if pass.reader.overread() {
                return RowEnd::Overread;
            }
        }
        if sound && !pass.reader.bad_code() { RowEnd::Sound } else { RowEnd::Nonsense }
    }
}

/// Which bits of which coefficients the scans have brought so far.
pub(super) struct Progress {
    /// For every component and coefficient the lowest bit that is known.
    low: Vec<[u32; 64]>,
}

impl Progress {
    /// Nothing is known yet.
    pub(super) fn new(components: usize) -> Self {
        Self { low: vec![[u32::MAX; 64]; components] }
    }

    /// A scan was decoded.
    pub(super) fn note(&mut self, scan: &Scan) {
        for part in &scan.components {
            self.low[part.index][scan.first..=scan.last].fill(scan.low);
        }
    }

    /// Every component has at least its mean brightness: what an image that ends properly must have.
    pub(super) fn begun(&self) -> bool {
        self.low.iter().all(|bits| bits[0] != u32::MAX)
    }

    /// Every bit is known: what an image that just ends must have.
    pub(super) fn complete(&self) -> bool {
        self.low.iter().flatten().all(|&low| low == 0)
    }
}
