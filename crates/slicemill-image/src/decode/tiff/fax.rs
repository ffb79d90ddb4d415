//! Facsimile codes of black and white rows: ITU-T T.4 (Group 3, in one and two dimensions), T.6 (Group 4) and the bare
//! rows of TIFF 6.0, section 10.
//!
//! A row is held as the columns where its colour changes, white first: of a row that begins black the first is 0.
//! Codes that make no sense are an error, as is a row that is longer or shorter than the image is wide, and an end before
//! the last row: the rows that are missing would be white without anybody having coded them.

use std::borrow::Cow;

use super::Rows;
use super::fax_codes::{BLACK, CODE_BITS, WHITE};
use crate::fault::Fault;

/// Bits of an end-of-line code, without the zeros that may precede it.
const EOL_BITS: usize = 12;

/// As many end-of-line codes in a row are the end of Group 3 (T.4, 4.1.4).
const END_CODES: usize = 6;

/// How rows are coded and kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FaxKind {
    /// Runs; every row begins at a multiple of this many bits.
    Rows { align: usize },
    /// Runs, with an end-of-line code before every row.
    Group3,
    /// The same, and a bit behind the code tells whether the row is runs or changes from the row before.
    Group3TwoDimensional,
    /// Changes from the row before, without end-of-line codes.
    Group4,
}

/// Rows of 1 bit, of which black is 1.
pub(super) struct FaxRows<'a> {
    bits: Bits<'a>,
    kind: FaxKind,
    width: usize,
    /// Changes of the row before.
    reference: Vec<usize>,
    current: Vec<usize>,
    /// Blank rows that are still to come before the next that is coded.
    blank: usize,
}

impl<'a> FaxRows<'a> {
    pub(super) fn new(data: Cow<'a, [u8]>, kind: FaxKind, width: usize) -> Self {
        let bits = Bits { data, at: 0 };
        Self { bits, kind, width, reference: Vec::new(), current: Vec::new(), blank: 0 }
    }
}

impl Rows for FaxRows<'_> {
    fn next(&mut self, row: &mut [u8]) -> Result<(), Fault> {
        std::mem::swap(&mut self.reference, &mut self.current);
        self.current.clear();
        match self.kind {
            FaxKind::Rows { align } => {
                self.bits.at = self.bits.at.next_multiple_of(align);
                self.runs()?;
            }
            FaxKind::Group3 => {
                if self.new_line()? {
                    self.runs()?;
                }
            }
            FaxKind::Group3TwoDimensional => {
                if self.new_line()? {
                    if self.bits.take(1) == 1 { self.runs()? } else { self.changes()? }
                }
            }
            FaxKind::Group4 => self.changes()?,
        }
        row.fill(0);
        for black in self.current.chunks(2) {
            blacken(row, black[0], black.get(1).copied().unwrap_or(self.width));
        }
        Ok(())
    }
}

impl FaxRows<'_> {
    /// Steps over the end-of-line code, and the zeros that fill bytes before it. Each further code in a row is a blank
    /// row (as in libtiff), which is told by `false`, unless they are the end. The first row has a code before it too,
    /// but not in every file.
    fn new_line(&mut self) -> Result<bool, Fault> {
        if self.blank == 0 {
            let codes = self.end_of_line_codes();
            if codes >= END_CODES || (codes > 1 && self.bits.left() == 0) {
                return Err(ended());
            }
            self.blank = codes.max(1);
        }
        self.blank -= 1;
        Ok(self.blank == 0)
    }

    /// Steps over end-of-line codes and what fills bytes before and behind them, up to the number that is an end.
    fn end_of_line_codes(&mut self) -> usize {
        let mut codes = 0;
        while self.bits.peek(EOL_BITS - 1) == 0 && self.bits.left() > 0 {
            self.bits.skip_zeros();
            if self.bits.left() == 0 || codes == END_CODES {
                break;
            }
            self.bits.at += 1;
            codes += 1;
            // The bit behind the code, of an end that is made of codes alone.
            let two = self.kind == FaxKind::Group3TwoDimensional;
            if two && self.bits.peek(EOL_BITS) == 1 << (EOL_BITS - 1) {
                self.bits.at += 1;
            }
        }
        codes
    }

    /// A row of runs, white and black in turn.
    fn runs(&mut self) -> Result<(), Fault> {
        let (mut at, mut black) = (0, false);
        while at < self.width {
            at = self.run(at, black)?;
            self.change(at);
            black = !black;
        }
        Ok(())
    }

    /// Where a run ends that begins at a column.
    fn run(&mut self, mut at: usize, black: bool) -> Result<usize, Fault> {
        let table = if black { &BLACK } else { &WHITE };
        loop {
            let (len, run) = table[self.bits.peek(CODE_BITS)];
            if len == 0 {
                return Err(self.nonsense());
            }
            self.bits.take(usize::from(len));
            at += usize::from(run);
            if at > self.width {
                return Err(Fault::corrupt(format!("a row is longer than {} pixels", self.width)));
            }
            if run < 64 {
                return Ok(at);
            }
        }
    }

    fn change(&mut self, at: usize) {
        if at < self.width {
            self.current.push(at);
        }
    }

    /// A row of changes from the row before.
    fn changes(&mut self) -> Result<(), Fault> {
        // Columns count from before the first one; `above` is the change above that a code refers to.
        let (mut at, mut black, mut above) = (None, false, 0);
        while at.unwrap_or(0) < self.width {
            let from = at.unwrap_or(0);
            // The next change to the other colour, right of here.
            while self.reference.get(above).is_some_and(|&change| at.is_some_and(|at| change <= at)) {
                above += 2;
            }
            let next = self.reference.get(above).copied().unwrap_or(self.width);
            let mode = self.mode()?;
            match mode {
                Mode::Pass => at = Some(self.reference.get(above + 1).copied().unwrap_or(self.width)),
                Mode::Runs => {
                    let middle = self.run(from, black)?;
                    let end = self.run(middle, !black)?;
                    self.change(middle);
                    self.change(end);
                    at = Some(end);
                }
                Mode::Near(shift) => {
                    let to = next.checked_add_signed(shift).filter(|to| (from..=self.width).contains(to));
                    let to = to.ok_or_else(|| self.nonsense())?;
                    self.change(to);
                    black = !black;
                    above = if above > 0 { above - 1 } else { 1 };
                    at = Some(to);
                }
                Mode::End => return Err(if from == 0 { ended() } else { self.nonsense() }),
            }
            // Runs of no length make no row longer.
            if self.current.len() > self.width + 2 {
                return Err(self.nonsense());
            }
        }
        Ok(())
    }

    fn mode(&mut self) -> Result<Mode, Fault> {
        let window = self.bits.peek(7);
        let (len, mode) = match window {
            0b100_0000.. => (1, Mode::Near(0)),
            0b011_0000..=0b011_1111 => (3, Mode::Near(1)),
            0b010_0000..=0b010_1111 => (3, Mode::Near(-1)),
            0b001_0000..=0b001_1111 => (3, Mode::Runs),
            0b000_1000..=0b000_1111 => (4, Mode::Pass),
            0b000_0110 | 0b000_0111 => (6, Mode::Near(2)),
            0b000_0100 | 0b000_0101 => (6, Mode::Near(-2)),
            0b000_0011 => (7, Mode::Near(3)),
            0b000_0010 => (7, Mode::Near(-3)),
            0b000_0001 => return Err(Fault::unsupported("pixels without codes among facsimile codes")),
            _ if self.bits.peek(EOL_BITS) == 1 => (EOL_BITS, Mode::End),
            _ => return Err(self.nonsense()),
        };
        self.bits.take(len);
        Ok(mode)
    }

    fn nonsense(&self) -> Fault {
        if self.bits.left() < CODE_BITS {
            return Fault::truncated("the facsimile codes end before the last row");
        }
        Fault::corrupt("facsimile codes that make no sense")
    }
}

fn ended() -> Fault {
    Fault::truncated("the facsimile codes tell their end before the last row")
}

/// A code of two dimensions.
#[derive(Clone, Copy)]
enum Mode {
    /// The colour goes on below a run of the row before.
    Pass,
    /// Two runs with codes of their own.
    Runs,
    /// The colour changes near the change above.
    Near(isize),
    /// The end of the image.
    End,
}

/// Bits from the highest of a byte on; zeros follow the last.
struct Bits<'a> {
    data: Cow<'a, [u8]>,
    at: usize,
}

impl Bits<'_> {
    /// The next bits, 16 at most.
    fn peek(&self, bits: usize) -> usize {
        let byte = |index: usize| usize::from(self.data.get(self.at / 8 + index).copied().unwrap_or(0));
        let window = byte(0) << 16 | byte(1) << 8 | byte(2);
        (window >> (24 - self.at % 8 - bits)) & ((1 << bits) - 1)
    }

    fn take(&mut self, bits: usize) -> usize {
        let taken = self.peek(bits);
        self.at += bits;
        taken
    }

    fn left(&self) -> usize {
        (self.data.len() * 8).saturating_sub(self.at)
    }

    fn skip_zeros(&mut self) {
        while self.left() > 0 && self.peek(1) == 0 {
            self.at += if self.peek(8) == 0 { 8 } else { 1 };
        }
    }
}

/// Sets the bits of some columns.
fn blacken(row: &mut [u8], from: usize, to: usize) {
    let (first, last) = (from / 8, to / 8);
    let (head, tail) = (0xFF >> (from % 8), !(0xFF >> (to % 8)));
    match row.get_mut(first..) {
        Some([only, ..]) if first == last => *only |= head & tail,
        Some([byte, rest @ ..]) => {
            *byte |= head;
            let whole = last - first - 1;
            rest[..whole].fill(0xFF);
            if let Some(byte) = rest.get_mut(whole) {
                *byte |= tail;
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use slicemill_core::ErrorClass;

    use super::*;

    /// Bits as text to bytes.
    fn packed(bits: &str) -> Vec<u8> {
        let bits: Vec<u8> = bits.bytes().filter(|bit| *bit != b' ').map(|bit| bit - b'0').collect();
        bits.chunks(8).map(|byte| byte.iter().enumerate().fold(0, |sum, (at, bit)| sum | bit << (7 - at))).collect()
    }

    fn rows(bits: &str, kind: FaxKind, width: usize, height: usize) -> Result<Vec<u8>, Fault> {
        let mut rows = FaxRows::new(Cow::Owned(packed(bits)), kind, width);
        let mut out = vec![0xFF; width.div_ceil(8) * height];
        for row in out.chunks_exact_mut(width.div_ceil(8)) {
            rows.next(row)?;
        }
        Ok(out)
    }

    const EOL: &str = "000000000001";

    #[test]
    fn runs_alternate() {
        // 4 white, 3 black, 3 white; 0 white, 10 black.
        let first = "1011 10 1000";
        let second = "00110101 0000100";
        assert_eq!(
            rows(&format!("{first} 000000 {second}"), FaxKind::Rows { align: 8 }, 10, 2).unwrap(),
            [0x0E, 0, 0xFF, 0xC0]
        );
        for (start, fill) in [(EOL, ""), ("", ""), (EOL, "00000"), ("00000000000000000001", "0000")] {
            let text = format!("{start}{first}{fill}{EOL}{second}{}", EOL.repeat(6));
            assert_eq!(rows(&text, FaxKind::Group3, 10, 2).unwrap(), [0x0E, 0, 0xFF, 0xC0], "{text}");
            assert_eq!(rows(&text, FaxKind::Group3, 10, 3).unwrap_err().class, ErrorClass::Truncated);
        }
        // A row of changes, straight below; the bit behind the code tells.
        let text = format!("{EOL}1 {first} {EOL}0 1 1 1 {}", format!("{EOL}1").repeat(6));
        assert_eq!(rows(&text, FaxKind::Group3TwoDimensional, 10, 2).unwrap(), [0x0E, 0, 0x0E, 0]);
        assert_eq!(rows(&text, FaxKind::Group3TwoDimensional, 10, 3).unwrap_err().class, ErrorClass::Truncated);
    }

    /// What libtiff makes of the same codes: every end-of-line code behind the first is a blank row.
    #[test]
    fn codes_in_a_row_are_blank_rows_or_the_end() {
        let row = "1011 10 1000";
        for codes in 1..=5 {
            let mut expected = vec![0x0E, 0];
            expected.resize(2 * codes, 0);
            expected.extend([0x0E, 0, 0x0E, 0]);
            let text = format!("{EOL}{row}{}{row}{EOL}{row}", EOL.repeat(codes));
            assert_eq!(rows(&text, FaxKind::Group3, 10, codes + 2).unwrap(), expected, "{codes}");
            let (eol, behind) = (format!("{EOL}1"), format!("{EOL}0 1 1 1"));
            let text = format!("{eol}{row}{}{row}{behind}", eol.repeat(codes));
            assert_eq!(rows(&text, FaxKind::Group3TwoDimensional, 10, codes + 2).unwrap(), expected, "{codes}");
        }
        // As many as an end has, and some with nothing behind them.
        let text = |codes, behind: &str| format!("{EOL}{row}{}{behind}", EOL.repeat(codes));
        for (codes, behind) in [(6, row), (7, row), (2, ""), (5, ""), (2, "0000000000000000")] {
            let fault = rows(&text(codes, behind), FaxKind::Group3, 10, 9).unwrap_err();
            assert_eq!(fault.class, ErrorClass::Truncated, "{codes} {behind}");
        }
        // An image may begin with blank rows.
        let text = format!("{}{row}", EOL.repeat(3));
        assert_eq!(rows(&text, FaxKind::Group3, 10, 3).unwrap(), [0, 0, 0, 0, 0x0E, 0]);
    }

    #[test]
    fn changes_refer_to_the_row_before() {
        // Runs of 4, 3 and the rest; the same row one to the right at its begin and three to the left at its end; a row
        // that passes below the black run.
        let text = format!("001 1011 10 1  011 0000010 1  0001 1 {EOL}{EOL}");
        assert_eq!(rows(&text, FaxKind::Group4, 10, 3).unwrap_err().class, ErrorClass::Corrupt);
        let text = format!("001 1011 10 1  011 010 1  0001 1 {EOL}{EOL}");
        assert_eq!(rows(&text, FaxKind::Group4, 10, 3).unwrap(), [0x0E, 0, 0x04, 0, 0, 0]);
        // An end before the last row, or before the first.
        assert_eq!(rows(&text, FaxKind::Group4, 10, 4).unwrap_err().class, ErrorClass::Truncated);
        assert_eq!(rows(&format!("{EOL}{EOL}"), FaxKind::Group4, 10, 4).unwrap_err().class, ErrorClass::Truncated);
    }

    #[test]
    fn long_runs_are_sums() {
        // 2560 + 64 + 1 white, 1 black.
        let out = rows("000000011111 11011 000111 010", FaxKind::Rows { align: 8 }, 2626, 1).unwrap();
        assert_eq!((out[..328].iter().all(|&byte| byte == 0), out[328]), (true, 0x40));
    }

    #[test]
    fn what_makes_no_sense_is_an_error() {
        let class = |bits, kind, width| rows(bits, kind, width, 1).unwrap_err().class;
        // A run beyond the row, codes that do not exist, data that ends.
        assert_eq!(class("11011 10011", FaxKind::Rows { align: 8 }, 10), ErrorClass::Corrupt);
        assert_eq!(class("0000000011111111", FaxKind::Rows { align: 8 }, 10), ErrorClass::Corrupt);
        assert_eq!(class("0000001111111111", FaxKind::Group4, 10), ErrorClass::UnsupportedVariant);
        assert_eq!(class("1011 0000", FaxKind::Rows { align: 8 }, 1000), ErrorClass::Truncated);
        assert_eq!(class("", FaxKind::Group4, 10), ErrorClass::Truncated);
        // A change left of the row, and an endless line of runs of no length.
        assert_eq!(class("001 1011 1000 0000010 1111 1111 1111 1111", FaxKind::Group4, 0x100), ErrorClass::Corrupt);
        let empty = "001 00110101 0000110111".repeat(200);
        assert_eq!(class(&empty, FaxKind::Group4, 10), ErrorClass::Corrupt);
    }

    #[test]
    fn black_is_filled_from_column_to_column() {
        for from in 0..24 {
            for to in from + 1..=24 {
                let mut row = [0; 3];
                blacken(&mut row, from, to);
                let set: Vec<usize> = (0..24).filter(|x| row[x / 8] >> (7 - x % 8) & 1 == 1).collect();
                assert_eq!(set, (from..to).collect::<Vec<_>>());
            }
        }
    }
}
