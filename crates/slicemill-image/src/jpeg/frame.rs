//! Segments between the entropy-coded ones: tables, frame and scan headers (T.81, annex B).

use slicemill_core::Size;

use super::arithmetic::Conditioning;
use super::huffman::Huffman;
use super::standard;
use crate::fault::Fault;

/// Natural (row by row) position of every zigzag position; positions beyond the block, which a damaged run can reach,
/// fall on the last coefficient.
pub(super) const NATURAL: [u8; 80] = {
    let mut order = [63u8; 80];
    let (mut x, mut y, mut up) = (0i32, 0i32, true);
    let mut index = 0;
    while index < 64 {
        order[index] = (y * 8 + x) as u8;
        let (dx, dy) = if up { (1, -1) } else { (-1, 1) };
        let (nx, ny) = (x + dx, y + dy);
        if up && nx > 7 {
            (y, up) = (y + 1, false);
        } else if up && ny < 0 {
            (x, up) = (nx, false);
        } else if !up && ny > 7 {
            (x, up) = (x + 1, true);
        } else if !up && nx < 0 {
            (y, up) = (ny, true);
        } else {
            (x, y) = (nx, ny);
        }
        index += 1;
    }
    order
};

/// One colour component.
pub(super) struct Component {
    pub(super) id: u8,
    /// Horizontal sampling factor: blocks per MCU and row.
    pub(super) h: usize,
    /// Vertical sampling factor: rows of blocks per MCU.
    pub(super) v: usize,
    quant_index: usize,
    /// Quantisation in natural order; fixed when the first scan of the component begins.
    pub(super) quant: Option<[u16; 64]>,
    /// Blocks that carry the image.
    pub(super) blocks_wide: usize,
    /// Rows of blocks that carry the image.
    pub(super) blocks_high: usize,
    /// Blocks in a row, filled up to whole MCUs.
    pub(super) block_stride: usize,
    /// Samples per row that carry the image.
    pub(super) width: usize,
    /// Rows of samples that carry the image.
    pub(super) height: usize,
}

/// The frame header.
pub(super) struct Frame {
    pub(super) size: Size,
    pub(super) progressive: bool,
    /// Arithmetic coding instead of Huffman codes.
    pub(super) arithmetic: bool,
    /// Differences of samples instead of coefficients.
    pub(super) lossless: bool,
    pub(super) components: Vec<Component>,
    pub(super) h_max: usize,
    pub(super) v_max: usize,
    /// MCUs in a row of an interleaved scan.
    pub(super) mcus_wide: usize,
    /// Rows of MCUs of an interleaved scan.
    pub(super) mcus_high: usize,
}

impl Frame {
    /// Reads the header behind the marker `FF code`.
    pub(super) fn parse(segment: &[u8], code: u8) -> Result<Self, Fault> {
        let (progressive, lossless, arithmetic) = (code & 3 == 2, code & 3 == 3, code & 8 != 0);
        let short = || Fault::bad_header("the frame header is too short");
        let &[8, h1, h0, w1, w0, count, ref specs @ ..] = segment else { return Err(short()) };
        let size = Size::new(u32::from(u16::from_be_bytes([w1, w0])), u32::from(u16::from_be_bytes([h1, h0])));
        if !matches!(count, 1 | 3 | 4) {
            return Err(Fault::unsupported(format!("{count} components")));
        }
        let (specs, _) = specs.as_chunks::<3>();
        if specs.len() < usize::from(count) || size.pixels() == 0 {
            return Err(short());
        }
        let mut components = Vec::new();
        for &[id, factors, quant_index] in &specs[..usize::from(count)] {
            // The factors of a single component have no effect.
            let (h, v) = if count == 1 { (1, 1) } else { (usize::from(factors >> 4), usize::from(factors & 15)) };
            if !(1..=4).contains(&h) || !(1..=4).contains(&v) || quant_index > 3 {
                return Err(Fault::bad_header(format!("component {id} is sampled {h}x{v} with table {quant_index}")));
            }
            components.push(Component::new(id, h, v, usize::from(quant_index)));
        }
        let mut frame = Self {
            size,
            progressive,
            arithmetic,
            lossless,
            components,
            h_max: 1,
            v_max: 1,
            mcus_wide: 0,
            mcus_high: 0,
        };
        frame.lay_out()?;
        Ok(frame)
    }

    fn lay_out(&mut self) -> Result<(), Fault> {
        let (width, height) = (self.size.width as usize, self.size.height as usize);
        self.h_max = self.components.iter().map(|component| component.h).max().unwrap_or(1);
        self.v_max = self.components.iter().map(|component| component.v).max().unwrap_or(1);
        self.mcus_wide = width.div_ceil(8 * self.h_max);
        self.mcus_high = height.div_ceil(8 * self.v_max);
        for component in &mut self.components {
            if !self.h_max.is_multiple_of(component.h) || !self.v_max.is_multiple_of(component.v) {
                return Err(Fault::unsupported("components whose sampling is no whole fraction of another's"));
            }
            component.width = (width * component.h).div_ceil(self.h_max);
            component.height = (height * component.v).div_ceil(self.v_max);
            component.blocks_wide = component.width.div_ceil(8);
            component.blocks_high = component.height.div_ceil(8);
            component.block_stride = self.mcus_wide * component.h;
        }
        Ok(())
    }

    /// Rows of blocks of a component, filled up to whole MCUs.
    pub(super) fn block_rows(&self, component: usize) -> usize {
        self.mcus_high * self.components[component].v
    }

    /// The fewest bits that any coding of this frame takes: one code for every DC coefficient and, unless runs of
    /// blocks can end together, one for the end of the block; without loss, one for every sample. Arithmetic coding needs
    /// none for what it expects.
    pub(super) fn bits_min(&self) -> u64 {
        if self.arithmetic {
            return 0;
        }
        if self.lossless {
            return self.size.pixels() * self.components.len() as u64;
        }
        let blocks: usize = self.components.iter().map(|component| component.blocks_wide * component.blocks_high).sum();
        blocks as u64 * if self.progressive { 1 } else { 2 }
    }
}

impl Component {
    const fn new(id: u8, h: usize, v: usize, quant_index: usize) -> Self {
        Self {
            id,
            h,
            v,
            quant_index,
            quant: None,
            blocks_wide: 0,
            blocks_high: 0,
            block_stride: 0,
            width: 0,
            height: 0,
        }
    }
}

/// A component of a scan and its tables.
#[derive(Clone, Copy)]
pub(super) struct ScanComponent {
    /// Index in the frame.
    pub(super) index: usize,
    pub(super) dc_table: usize,
    pub(super) ac_table: usize,
}

/// The scan header.
pub(super) struct Scan {
    pub(super) components: Vec<ScanComponent>,
    /// First coefficient in zigzag order; of a lossless scan, the number of its predictor.
    pub(super) first: usize,
    /// Last coefficient.
    pub(super) last: usize,
    /// Bit position of the scan before that refined the same coefficients; 0 when there was none.
    pub(super) high: u32,
    /// Bit position of this scan.
    pub(super) low: u32,
}

impl Scan {
    pub(super) fn parse(segment: &[u8], frame: &Frame) -> Result<Self, Fault> {
        let bad = |what: &str| Fault::corrupt(format!("a scan header {what}"));
        let (&count, rest) = segment.split_first().ok_or_else(|| bad("is empty"))?;
        let (specs, bands) = rest.split_at_checked(usize::from(count) * 2).ok_or_else(|| bad("is too short"))?;
        let &[first, last, bits, ..] = bands else { return Err(bad("is too short")) };
        let mut components: Vec<ScanComponent> = Vec::new();
        for &[id, tables] in specs.as_chunks::<2>().0 {
            let index = frame.components.iter().position(|component| component.id == id);
            let index = index.ok_or_else(|| bad("names a component that does not exist"))?;
            if components.iter().any(|known| known.index == index) || tables >> 4 > 3 || tables & 15 > 3 {
                return Err(bad("names a component twice or a table that does not exist"));
            }
            let (dc_table, ac_table) = (usize::from(tables >> 4), usize::from(tables & 15));
            components.push(ScanComponent { index, dc_table, ac_table });
        }
        let (high, low) = (u32::from(bits >> 4), u32::from(bits & 15));
        let mut scan = Self { components, first: usize::from(first), last: usize::from(last), high, low };
        if frame.lossless {
            return scan.check_lossless().map(|()| scan);
        }
        if !frame.progressive {
            (scan.first, scan.last, scan.high, scan.low) = (0, 63, 0, 0);
        }
        scan.check(frame.progressive).map(|()| scan)
    }

    fn check_lossless(&self) -> Result<(), Fault> {
        if (1..=7).contains(&self.first) && (1..=4).contains(&self.components.len()) && self.low < 8 {
            return Ok(());
        }
        Err(Fault::corrupt(format!("a lossless scan with predictor {} does not exist", self.first)))
    }

    fn check(&self, progressive: bool) -> Result<(), Fault> {
        let dc = self.first == 0;
        let band = if progressive && dc { self.last == 0 } else { self.first <= self.last && self.last < 64 };
        let components = if dc { (1..=4).contains(&self.components.len()) } else { self.components.len() == 1 };
        let bits = self.low < 14 && (self.high == 0 || self.high == self.low + 1);
        if band && components && bits {
            return Ok(());
        }
        Err(Fault::corrupt(format!(
            "a scan of {} components, coefficients {} to {}, bits {} to {}, does not exist",
            self.components.len(),
            self.first,
            self.last,
            self.high,
            self.low
        )))
    }
}

/// Tables and settings that segments change.
#[derive(Default)]
pub(super) struct Tables {
    quant: [Option<[u16; 64]>; 4],
    pub(super) dc: [Option<Box<Huffman>>; 4],
    pub(super) ac: [Option<Box<Huffman>>; 4],
    pub(super) conditioning: Conditioning,
    /// MCUs between restart markers; 0: there are none.
    pub(super) restart_interval: usize,
    /// A JFIF segment was seen.
    pub(super) jfif: bool,
    /// Colour transform of an Adobe segment.
    pub(super) adobe: Option<u8>,
}

impl Tables {
    /// Takes in a segment that is neither frame nor scan header.
    pub(super) fn take(&mut self, code: u8, segment: &[u8]) -> Result<(), Fault> {
        match code {
            0xC4 => self.huffman(segment),
            0xCC => self.conditioning(segment),
            0xDB => self.quantisation(segment),
            0xDD => {
                let &[high, low, ..] = segment else { return Err(Fault::corrupt("the restart interval is missing")) };
                self.restart_interval = usize::from(u16::from_be_bytes([high, low]));
                Ok(())
            }
            0xE0 if segment.starts_with(b"JFIF\0") => {
                self.jfif = true;
                Ok(())
            }
            0xEE if segment.starts_with(b"Adobe") => {
                self.adobe = segment.get(11).copied();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn huffman(&mut self, mut segment: &[u8]) -> Result<(), Fault> {
        while let Some((&class, rest)) = segment.split_first() {
            let short = || Fault::corrupt("a Huffman table is too short");
            let (counts, rest) = rest.split_first_chunk::<16>().ok_or_else(short)?;
            let symbols: usize = counts.iter().map(|&count| usize::from(count)).sum();
            let (symbols, rest) = rest.split_at_checked(symbols).ok_or_else(short)?;
            let tables = if class >> 4 == 0 { &mut self.dc } else { &mut self.ac };
            let slot = tables.get_mut(usize::from(class & 15)).filter(|_| class >> 4 <= 1 && symbols.len() <= 256);
            let slot = slot.ok_or_else(|| Fault::corrupt("a Huffman table with a number that does not exist"))?;
            *slot = Some(Huffman::new(counts, symbols)?);
            segment = rest;
        }
        Ok(())
    }

    /// Settings of the arithmetic decoder (T.81, B.2.4.3).
    fn conditioning(&mut self, segment: &[u8]) -> Result<(), Fault> {
        for &[class, value] in segment.as_chunks::<2>().0 {
            let (table, low, high) = (usize::from(class & 15), value & 15, value >> 4);
            match class >> 4 {
                0 if table < 4 && low <= high => self.conditioning.dc[table] = (low, high),
                1 if table < 4 && (1..64).contains(&value) => self.conditioning.ac[table] = value,
                _ => return Err(Fault::corrupt("a setting of the arithmetic coding that does not exist")),
            }
        }
        Ok(())
    }

    fn quantisation(&mut self, mut segment: &[u8]) -> Result<(), Fault> {
        while let Some((&class, rest)) = segment.split_first() {
            let bytes = if class >> 4 == 0 { 64 } else { 128 };
            let short = || Fault::corrupt("a quantisation table is too short");
            let (values, rest) = rest.split_at_checked(bytes).ok_or_else(short)?;
            let slot = self.quant.get_mut(usize::from(class & 15)).filter(|_| class >> 4 <= 1);
            let slot = slot.ok_or_else(|| Fault::corrupt("a quantisation table with a number that does not exist"))?;
            let mut table = [0; 64];
            for (index, &natural) in NATURAL[..64].iter().enumerate() {
                table[usize::from(natural)] = match bytes {
                    64 => u16::from(values[index]),
                    _ => u16::from_be_bytes([values[index * 2], values[index * 2 + 1]]),
                };
            }
            *slot = Some(table);
            segment = rest;
        }
        Ok(())
    }

    /// Takes the standard's Huffman tables where a scan needs some that the file does not have.
    pub(super) fn fill_in_standard(&mut self, scan: &Scan) -> Result<(), Fault> {
        for part in &scan.components {
            if self.dc[part.dc_table].is_none() {
                self.dc[part.dc_table] = standard::dc(part.dc_table)?;
            }
            if self.ac[part.ac_table].is_none() {
                self.ac[part.ac_table] = standard::ac(part.ac_table)?;
            }
        }
        Ok(())
    }

    /// Fixes the quantisation of the components whose first scan this is.
    pub(super) fn latch_quantisation(&self, frame: &mut Frame, scan: &Scan) -> Result<(), Fault> {
        for part in &scan.components {
            let component = &mut frame.components[part.index];
            if component.quant.is_none() {
                component.quant = self.quant[component.quant_index];
            }
            if component.quant.is_none() {
                return Err(Fault::corrupt(format!("quantisation table {} is missing", component.quant_index)));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_have_one_three_or_four_components() {
        for count in 0..=255 {
            let header = [&[8, 0, 9, 0, 7, count], [1, 0x11, 0].repeat(count.into()).as_slice()].concat();
            assert_eq!(Frame::parse(&header, 0xC0).is_ok(), [1, 3, 4].contains(&count), "{count}");
        }
    }

    #[test]
    fn zigzag_visits_every_coefficient_once() {
        let mut seen: Vec<u8> = NATURAL[..64].to_vec();
        assert_eq!(&seen[..10], [0, 1, 8, 16, 9, 2, 3, 10, 17, 24]);
        assert_eq!(&seen[58..], [53, 60, 61, 54, 47, 55, 62, 63].split_at(2).1);
        seen.sort_unstable();
        assert!(seen.iter().copied().eq(0..64));
        assert!(NATURAL[64..].iter().all(|&position| position == 63));
    }
}
