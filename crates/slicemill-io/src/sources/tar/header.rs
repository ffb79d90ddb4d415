//! Headers of archive members: 512 bytes with a checksum, and the records that extend them.

use tar::Header;

/// Headers and contents begin at multiples of this.
pub(crate) const BLOCK: u64 = 512;

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    /// A file stored with holes, in one of the ways of GNU tar.
    Sparse,
    Directory,
    Link,
    /// Devices and pipes.
    Special,
    /// The name of the next member (GNU).
    LongName,
    /// The link target of the next member (GNU).
    LongLink,
    /// Records for the next member (PAX).
    Extended,
    /// Records for all members that follow (PAX).
    Global,
    /// Anything else with contents: volume labels, vendors' own.
    Other,
}

/// A header whose checksum is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) kind: Kind,
    pub(crate) name: Vec<u8>,
    /// Bytes of contents, or what is wrong with the field.
    pub(crate) bytes: Result<u64, String>,
    /// The header of a sparse file goes on in the next block.
    pub(crate) continued: bool,
}

/// Whether the block is a header with the right checksum. Blocks of zeros are not.
pub(crate) fn is_header(block: &[u8]) -> bool {
    let Some(header) = as_header(block) else { return false };
    let Ok(stored) = header.cksum() else { return false };
    let field = 148..156;
    let bytes =
        || header.as_bytes().iter().enumerate().map(|(at, byte)| if field.contains(&at) { b' ' } else { *byte });
    let unsigned: u32 = bytes().map(u32::from).sum();
    // Some old programs added up signed bytes.
    let signed: i32 = bytes().map(|byte| i32::from(byte.cast_signed())).sum();
    unsigned != 8 * u32::from(b' ') && (stored == unsigned || i64::from(stored) == i64::from(signed))
}

fn as_header(block: &[u8]) -> Option<&Header> {
    (block.len() == BLOCK as usize).then(|| Header::from_byte_slice(block))
}

/// The header in `block`; `None` when it is damaged.
pub(crate) fn parse(block: &[u8]) -> Option<Head> {
    let header = as_header(block).filter(|_| is_header(block))?;
    let name = header.path_bytes().into_owned();
    let kind = match header.as_bytes()[156] {
        // Before there was a type for folders, their names ended in a slash.
        0 | b'0' | b'7' if name.ends_with(b"/") => Kind::Directory,
        0 | b'0' | b'7' => Kind::File,
        b'1' | b'2' => Kind::Link,
        b'3' | b'4' | b'6' => Kind::Special,
        b'5' => Kind::Directory,
        b'L' => Kind::LongName,
        b'K' => Kind::LongLink,
        b'x' | b'X' => Kind::Extended,
        b'g' => Kind::Global,
        b'S' => Kind::Sparse,
        _ => Kind::Other,
    };
    // Folders, links and devices have no contents, whatever their headers say.
    let bytes = if matches!(kind, Kind::Directory | Kind::Link | Kind::Special) { Ok(0) } else { size(header) };
    Some(Head { kind, name, bytes, continued: kind == Kind::Sparse && block[482] != 0 })
}

fn size(header: &Header) -> Result<u64, String> {
    let field = &header.as_bytes()[124..136];
    if field[0] & 0x80 != 0 {
        if field[0] & 0x40 != 0 {
            return Err("its size is negative".to_owned());
        }
        if field[0] & 0x3f != 0 || field[1..4].iter().any(|byte| *byte != 0) {
            return Err("its size does not fit 64 bits".to_owned());
        }
    }
    header
        .entry_size()
        .map_err(|_| format!("its size '{}' is not a number", String::from_utf8_lossy(field).escape_debug()))
}

/// What the records before a member say about it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Extension {
    pub(crate) name: Option<Vec<u8>>,
    pub(crate) bytes: Option<u64>,
    pub(crate) sparse: bool,
    /// Why they cannot be trusted.
    pub(crate) broken: Option<String>,
}

impl Extension {
    /// Takes in PAX records: `<length> <key>=<value>\n`, one after the other.
    pub(crate) fn read_records(&mut self, mut records: &[u8]) {
        while !records.is_empty() && records.iter().any(|byte| *byte != 0) {
            let Some((key, value, rest)) = record(records) else {
                self.broken = Some("the records before it are damaged".to_owned());
                return;
            };
            records = rest;
            match key {
                b"path" => self.name = Some(value.to_owned()),
                b"size" => match std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()) {
                    Some(bytes) => self.bytes = Some(bytes),
                    None => self.broken = Some("the size in the records before it is not a number".to_owned()),
                },
                b"GNU.sparse.name" => {
                    self.sparse = true;
                    self.name = Some(value.to_owned());
                }
                _ => self.sparse |= key.starts_with(b"GNU.sparse."),
            }
        }
    }

    /// This, and where it says nothing what `global` says.
    pub(crate) fn or(self, global: &Self) -> Self {
        Self {
            name: self.name.or_else(|| global.name.clone()),
            bytes: self.bytes.or(global.bytes),
            sparse: self.sparse || global.sparse,
            broken: self.broken.or_else(|| global.broken.clone()),
        }
    }
}

fn record(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let digits = records.iter().take(20).position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&records[..digits]).ok()?.parse().ok()?;
    let pair = records.get(digits + 1..length)?.strip_suffix(b"\n")?;
    let equals = pair.iter().position(|byte| *byte == b'=')?;
    Some((&pair[..equals], &pair[equals + 1..], &records[length..]))
}

/// The text before the first zero byte.
pub(crate) fn before_zero(text: &[u8]) -> &[u8] {
    text.split(|byte| *byte == 0).next().unwrap_or_default()
}
