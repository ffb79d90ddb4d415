//! Arithmetic coding (T.81, annexes D, F.1.4, F.2.4 and G.1.3).
//!
//! Every binary decision has a context, whose bin knows the likelier answer and how much likelier it is, and learns from
//! every decision. There are no codes that do not exist, and an encoder may leave out zeros at the end: damage shows only
//! as magnitudes that are too large, and an early end only where the file itself ends, or an image with restarts.

mod blocks;
mod states;

pub(super) use blocks::Job;
use states::STATES;

/// The settings that a DAC segment changes.
#[derive(Debug, Clone, Copy)]
pub(in crate::jpeg) struct Conditioning {
    /// Bounds of small and large DC differences, as exponents of 2.
    pub(in crate::jpeg) dc: [(u8, u8); 4],
    /// The last AC coefficient that counts as low.
    pub(in crate::jpeg) ac: [u8; 4],
}

impl Default for Conditioning {
    fn default() -> Self {
        Self { dc: [(0, 1); 4], ac: [5; 4] }
    }
}

/// A context: the number of its state, and in the lowest bit the likelier answer.
type Bin = u8;

/// Bins for the DC coefficients of one table.
const DC_BINS: usize = 64;

/// Bins for the AC coefficients of one table.
const AC_BINS: usize = 256;

/// The marker at the end of an image.
const END_OF_IMAGE: u8 = 0xD9;

/// The state of answers that are always as likely as not.
const EVEN: Bin = 113 << 1;

/// The arithmetic decoder of one scan.
pub(super) struct Arithmetic<'a> {
    data: &'a [u8],
    /// Next byte.
    at: usize,
    /// The code register: 16 bits that are compared and up to 16 that follow.
    code: u32,
    interval: u32,
    /// Bits until another byte is needed.
    bits: u32,
    /// The file ended where a byte was needed, or the image where it must go on.
    starved: bool,
    dc_bins: [[Bin; DC_BINS]; 4],
    ac_bins: [[Bin; AC_BINS]; 4],
    /// For every component of the scan, how large its last DC difference was.
    dc_contexts: [usize; 4],
}

impl<'a> Arithmetic<'a> {
    /// Starts at byte `at`.
    pub(super) fn new(data: &'a [u8], at: usize) -> Self {
        let mut decoder = Self {
            data,
            at,
            code: 0,
            interval: 0x1_0000,
            bits: 0,
            starved: false,
            dc_bins: [[0; DC_BINS]; 4],
            ac_bins: [[0; AC_BINS]; 4],
            dc_contexts: [0; 4],
        };
        // The first two bytes fill the part that is compared.
        for _ in 0..2 {
            decoder.code = (decoder.code | decoder.byte() << 8) << 8;
        }
        decoder
    }

    /// The next byte; zeros from a marker or the end of the file on.
    fn byte(&mut self) -> u32 {
        let Some(&byte) = self.data.get(self.at) else {
            self.starved = true;
            return 0;
        };
        if byte != 0xFF {
            self.at += 1;
            return u32::from(byte);
        }
        let fill = self.data[self.at..].iter().take_while(|&&byte| byte == 0xFF).count();
        match self.data.get(self.at + fill) {
            Some(0) => {
                self.at += fill + 1;
                0xFF
            }
            // A marker, which every byte from now on stops at: what fills up before it is stepped over once.
            marker => {
                self.at += fill - 1;
                self.starved = marker.is_none();
                0
            }
        }
    }

    /// Decodes one decision (D.2.4 to D.2.6).
    #[inline]
    fn decide(&mut self, bin: Bin) -> (bool, Bin) {
        let likely = bin & 1;
        let state = &STATES[usize::from(bin >> 1)];
        let width = u32::from(state.width);
        self.interval -= width;
        let upper = self.code >> 16 >= self.interval;
        if !upper && self.interval >= 0x8000 {
            return (likely != 0, bin);
        }
        // The answers change places where the likelier one would have the smaller interval.
        let exchanged = self.interval < width;
        if upper {
            self.code -= self.interval << 16;
            self.interval = width;
        }
        let (answer, next) = if upper == exchanged {
            (likely, state.after_likely << 1 | likely)
        } else {
            (1 - likely, state.after_unlikely << 1 | (likely ^ u8::from(state.switches)))
        };
        self.renormalise();
        (answer != 0, next)
    }

    fn renormalise(&mut self) {
        while self.interval < 0x8000 {
            if self.bits == 0 {
                self.code |= self.byte() << 8;
                self.bits = 8;
            }
            self.interval <<= 1;
            self.code <<= 1;
            self.bits -= 1;
        }
    }

    /// A decision of a DC context.
    fn dc(&mut self, table: usize, bin: usize) -> bool {
        let (answer, next) = self.decide(self.dc_bins[table][bin]);
        self.dc_bins[table][bin] = next;
        answer
    }

    /// A decision of an AC context.
    fn ac(&mut self, table: usize, bin: usize) -> bool {
        let (answer, next) = self.decide(self.ac_bins[table][bin]);
        self.ac_bins[table][bin] = next;
        answer
    }

    /// A decision between equals.
    fn even(&mut self) -> bool {
        self.decide(EVEN).0
    }

    /// Whether bytes were needed that are not there.
    pub(super) const fn starved(&self) -> bool {
        self.starved
    }

    /// Where the next marker is looked for.
    pub(super) const fn position(&self) -> usize {
        self.at
    }

    /// Goes on behind the marker `RST0 + number`, knowing nothing; `false` when it does not stand here.
    pub(super) fn restart(&mut self, number: u8) -> bool {
        let rest = self.data.get(self.at..).unwrap_or_default();
        // What is left of an interval is of no use.
        let Some(start) = rest.windows(2).position(|pair| pair[0] == 0xFF && !matches!(pair[1], 0 | 0xFF)) else {
            self.starved = true;
            return false;
        };
        let marker = rest[start + 1];
        if marker != 0xD0 + number {
            self.starved = marker == END_OF_IMAGE;
            return false;
        }
        *self = Self::new(self.data, self.at + start + 2);
        true
    }
}
