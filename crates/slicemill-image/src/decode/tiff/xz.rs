//! The container and the compression of xz (LZMA2), as far as libtiff writes them: one stream, differences of bytes at a
//! distance, then LZMA2.
//!
//! The history is the output itself, whose length is bounded by the caller: what a header asks for is not allocated.
//! Checksums are not looked at: damage that the codes do not show stays, as in compressions that have none.

use crate::fault::Fault;

const MAGIC: [u8; 6] = [0xFD, b'7', b'z', b'X', b'Z', 0];
const DELTA: u64 = 3;
const LZMA2: u64 = 0x21;

/// The most that a chunk gives, by which there may be more than is wanted.
const CHUNK_MAX: usize = 1 << 21;

/// At least `wanted` bytes, unless the stream ends before.
pub(super) fn decode(data: &[u8], wanted: usize) -> Result<Vec<u8>, Fault> {
    if data.len() < 12 || data[..6] != MAGIC {
        return Err(Fault::corrupt("the data is no xz stream"));
    }
    let check_bytes = [0, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64][usize::from(data[7] & 15)];
    let mut input = Input { data, at: 12 };
    let mut out = Vec::new();
    let room = wanted.saturating_add(CHUNK_MAX);
    out.try_reserve_exact(room).map_err(|_| Fault::out_of_memory(room))?;
    while out.len() < wanted {
        let start = input.at;
        let header_bytes = (usize::from(input.byte()?) + 1) * 4;
        if header_bytes == 4 {
            break; // the index, behind the last block
        }
        let distance = block_header(&mut input)?;
        input.at = start + header_bytes;
        let from = out.len();
        let begin = input.at;
        Lzma2::new(from).decode(&mut input, &mut out, wanted)?;
        if let Some(distance) = distance {
            for index in from + distance..out.len() {
                out[index] = out[index].wrapping_add(out[index - distance]);
            }
        }
        input.at = begin + (input.at - begin).next_multiple_of(4) + check_bytes;
    }
    Ok(out)
}

/// The distance of differences, where there are any.
fn block_header(input: &mut Input<'_>) -> Result<Option<usize>, Fault> {
    let flags = input.byte()?;
    for size in [0x40, 0x80] {
        if flags & size != 0 {
            input.number()?;
        }
    }
    let mut distance = None;
    for _ in 0..=flags & 3 {
        let (filter, len) = (input.number()?, input.number()?);
        let first = input.byte()?;
        match (filter, len) {
            (DELTA, 1) if distance.is_some() => return Err(Fault::unsupported("xz with differences of differences")),
            (DELTA, 1) => distance = Some(usize::from(first) + 1),
            (LZMA2, 1) => {}
            _ => return Err(Fault::unsupported(format!("xz filter {filter}"))),
        }
    }
    Ok(distance)
}

struct Input<'a> {
    data: &'a [u8],
    at: usize,
}

impl Input<'_> {
    fn byte(&mut self) -> Result<u8, Fault> {
        let byte = self.data.get(self.at).copied();
        self.at += 1;
        byte.ok_or_else(|| Fault::truncated("the xz stream ends too early"))
    }

    fn pair(&mut self) -> Result<usize, Fault> {
        Ok(usize::from(self.byte()?) << 8 | usize::from(self.byte()?))
    }

    /// Seven bits a byte, lowest first.
    fn number(&mut self) -> Result<u64, Fault> {
        let mut number = 0;
        for shift in (0..63).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(nonsense())
    }
}

fn nonsense() -> Fault {
    Fault::corrupt("xz codes that make no sense")
}

/// A bit is about as probable as it was before: 11 bits, of which one half is even.
type Chance = u16;

const EVEN: Chance = 1 << 10;

/// Lengths of copies: 2 to 9, 10 to 17, or more.
struct Lengths {
    longer: [Chance; 2],
    short: [[Chance; 8]; 16],
    middle: [[Chance; 8]; 16],
    long: [Chance; 256],
}

impl Lengths {
    const fn new() -> Self {
        Self { longer: [EVEN; 2], short: [[EVEN; 8]; 16], middle: [[EVEN; 8]; 16], long: [EVEN; 256] }
    }

    fn take(&mut self, range: &mut Range<'_>, place: usize) -> Result<usize, Fault> {
        Ok(if !range.bit(&mut self.longer[0])? {
            2 + range.tree(&mut self.short[place])?
        } else if !range.bit(&mut self.longer[1])? {
            10 + range.tree(&mut self.middle[place])?
        } else {
            18 + range.tree(&mut self.long)?
        })
    }
}

/// The state of LZMA, after Igor Pavlov's specification.
struct Lzma2 {
    /// Where the history begins.
    floor: usize,
    context_bits: u32,
    position_bits: u32,
    literal_position_bits: u32,
    state: usize,
    distances: [usize; 4],
    literals: Vec<[Chance; 0x300]>,
    is_copy: [[Chance; 16]; 12],
    is_repeat: [Chance; 12],
    is_older: [[Chance; 12]; 3],
    is_long: [[Chance; 16]; 12],
    slots: [[Chance; 64]; 4],
    far: [Chance; 128],
    low: [Chance; 16],
    lengths: Lengths,
    repeat_lengths: Lengths,
    known: bool,
}

impl Lzma2 {
    fn new(floor: usize) -> Self {
        Self {
            floor,
            context_bits: 0,
            position_bits: 0,
            literal_position_bits: 0,
            state: 0,
            distances: [0; 4],
            literals: Vec::new(),
            is_copy: [[EVEN; 16]; 12],
            is_repeat: [EVEN; 12],
            is_older: [[EVEN; 12]; 3],
            is_long: [[EVEN; 16]; 12],
            slots: [[EVEN; 64]; 4],
            far: [EVEN; 128],
            low: [EVEN; 16],
            lengths: Lengths::new(),
            repeat_lengths: Lengths::new(),
            known: false,
        }
    }

    /// Forgets everything but what the properties are.
    fn reset(&mut self) {
        let (context_bits, literal_position_bits) = (self.context_bits, self.literal_position_bits);
        let literals = vec![[EVEN; 0x300]; 1 << (context_bits + literal_position_bits)];
        let position_bits = self.position_bits;
        *self =
            Self { context_bits, literal_position_bits, position_bits, literals, known: true, ..Self::new(self.floor) };
    }

    fn properties(&mut self, byte: u8) -> Result<(), Fault> {
        let (position, rest) = (u32::from(byte) / 45, u32::from(byte) % 45);
        (self.position_bits, self.literal_position_bits, self.context_bits) = (position, rest / 9, rest % 9);
        if position > 4 || self.context_bits + self.literal_position_bits > 4 {
            return Err(nonsense());
        }
        Ok(())
    }

    /// Chunks up to the end of the block, or until there is enough.
    fn decode(&mut self, input: &mut Input<'_>, out: &mut Vec<u8>, wanted: usize) -> Result<(), Fault> {
        while out.len() < wanted {
            let control = input.byte()?;
            match control {
                0 => return Ok(()),
                1 | 2 => {
                    let len = input.pair()? + 1;
                    if control == 1 {
                        self.floor = out.len();
                    }
                    let stored = input.data.get(input.at..).and_then(|rest| rest.get(..len));
                    out.extend(stored.ok_or_else(|| Fault::truncated("the xz stream ends too early"))?);
                    input.at += len;
                }
                3..0x80 => return Err(nonsense()),
                _ => {
                    let len = (usize::from(control & 0x1F) << 16) + input.pair()? + 1;
                    let packed = input.pair()? + 1;
                    if control >= 0xE0 {
                        self.floor = out.len();
                    }
                    if control >= 0xC0 {
                        self.properties(input.byte()?)?;
                    }
                    if control >= 0xA0 {
                        self.reset();
                    }
                    let rest = input.data.get(input.at..).unwrap_or_default();
                    self.chunk(&rest[..rest.len().min(packed)], out, len)?;
                    input.at += packed;
                }
            }
        }
        Ok(())
    }

    fn chunk(&mut self, data: &[u8], out: &mut Vec<u8>, len: usize) -> Result<(), Fault> {
        if !self.known {
            return Err(nonsense());
        }
        let mut range = Range::new(data)?;
        let end = out.len() + len;
        while out.len() < end {
            let place = (out.len() - self.floor) & ((1 << self.position_bits) - 1);
            if !range.bit(&mut self.is_copy[self.state][place])? {
                self.literal(&mut range, out)?;
                continue;
            }
            let len = if range.bit(&mut self.is_repeat[self.state])? {
                self.repeat(&mut range, place)?
            } else {
                self.copy(&mut range, place)?
            };
            let distance = self.distances[0] + 1;
            if distance > out.len() - self.floor || len > end - out.len() {
                return Err(nonsense());
            }
            for _ in 0..len {
                out.push(out[out.len() - distance]);
            }
        }
        Ok(())
    }

    fn literal(&mut self, range: &mut Range<'_>, out: &mut Vec<u8>) -> Result<(), Fault> {
        let back = |distance: usize| {
            if out.len() - self.floor > distance { usize::from(out[out.len() - 1 - distance]) } else { 0 }
        };
        let place = (out.len() - self.floor) & ((1 << self.literal_position_bits) - 1);
        let context = (place << self.context_bits) + (back(0) >> (8 - self.context_bits));
        let mut expected = back(self.distances[0]);
        let chances = &mut self.literals[context];
        let mut symbol = 1;
        // Behind a copy, the byte that would have followed is unlikely.
        let mut matched = self.state >= 7;
        while symbol < 0x100 {
            expected <<= 1;
            let hint = expected >> 8 & 1;
            let index = if matched { ((1 + hint) << 8) + symbol } else { symbol };
            let bit = usize::from(range.bit(&mut chances[index])?);
            symbol = symbol << 1 | bit;
            matched &= bit == hint;
        }
        out.push(symbol as u8);
        self.state = match self.state {
            0..=3 => 0,
            state @ 4..=9 => state - 3,
            state => state - 6,
        };
        Ok(())
    }

    /// The length of a copy from a distance that was used before.
    fn repeat(&mut self, range: &mut Range<'_>, place: usize) -> Result<usize, Fault> {
        let before = self.state < 7;
        if !range.bit(&mut self.is_older[0][self.state])? {
            if !range.bit(&mut self.is_long[self.state][place])? {
                self.state = if before { 9 } else { 11 };
                return Ok(1);
            }
        } else {
            let older = match range.bit(&mut self.is_older[1][self.state])? {
                false => 1,
                true => 2 + usize::from(range.bit(&mut self.is_older[2][self.state])?),
            };
            self.distances[..=older].rotate_right(1);
        }
        self.state = if before { 8 } else { 11 };
        self.repeat_lengths.take(range, place)
    }

    /// The length of a copy from a new distance.
    fn copy(&mut self, range: &mut Range<'_>, place: usize) -> Result<usize, Fault> {
        self.distances.rotate_right(1);
        let len = self.lengths.take(range, place)?;
        self.state = if self.state < 7 { 7 } else { 10 };
        let slot = range.tree(&mut self.slots[(len - 2).min(3)])?;
        self.distances[0] = match slot {
            0..=3 => slot,
            4..=13 => {
                let bits = slot / 2 - 1;
                let base = (2 | slot & 1) << bits;
                base + range.reverse_tree(&mut self.far, base - slot, bits)?
            }
            _ => {
                let bits = slot / 2 - 1;
                let base = (2 | slot & 1) << bits;
                let high = range.direct(bits - 4)? << 4;
                base + high + range.reverse_tree(&mut self.low, 0, 4)?
            }
        };
        Ok(len)
    }
}

/// The range decoder.
struct Range<'a> {
    data: &'a [u8],
    at: usize,
    range: u32,
    code: u32,
}

impl<'a> Range<'a> {
    fn new(data: &'a [u8]) -> Result<Self, Fault> {
        match data {
            &[0, a, b, c, d, ..] => Ok(Self { data, at: 5, range: u32::MAX, code: u32::from_be_bytes([a, b, c, d]) }),
            [] | [0, ..] => Err(Fault::truncated("the xz stream ends too early")),
            _ => Err(nonsense()),
        }
    }

    fn fill(&mut self) -> Result<(), Fault> {
        if self.range < 1 << 24 {
            let byte = self.data.get(self.at).ok_or_else(|| Fault::truncated("the xz stream ends too early"))?;
            self.at += 1;
            self.range <<= 8;
            self.code = self.code << 8 | u32::from(*byte);
        }
        Ok(())
    }

    fn bit(&mut self, chance: &mut Chance) -> Result<bool, Fault> {
        self.fill()?;
        let bound = (self.range >> 11) * u32::from(*chance);
        let bit = self.code >= bound;
        if bit {
            self.range -= bound;
            self.code -= bound;
            *chance -= *chance >> 5;
        } else {
            self.range = bound;
            *chance += (2048 - *chance) >> 5;
        }
        Ok(bit)
    }

    /// As many bits as the length is a power of two, highest first.
    fn tree(&mut self, chances: &mut [Chance]) -> Result<usize, Fault> {
        let mut symbol = 1;
        while symbol < chances.len() {
            symbol = symbol << 1 | usize::from(self.bit(&mut chances[symbol])?);
        }
        Ok(symbol - chances.len())
    }

    /// Lowest bit first; the chances of the tree stand behind `base`.
    fn reverse_tree(&mut self, chances: &mut [Chance], base: usize, bits: usize) -> Result<usize, Fault> {
        let (mut symbol, mut number) = (1, 0);
        for index in 0..bits {
            let bit = usize::from(self.bit(&mut chances[base + symbol])?);
            symbol = symbol << 1 | bit;
            number |= bit << index;
        }
        Ok(number)
    }

    fn direct(&mut self, bits: usize) -> Result<usize, Fault> {
        let mut number = 0;
        for _ in 0..bits {
            self.fill()?;
            self.range >>= 1;
            let bit = self.code >= self.range;
            if bit {
                self.code -= self.range;
            }
            number = number << 1 | usize::from(bit);
        }
        Ok(number)
    }
}
