//! Walking an archive from member to member without reading what is in between, and past what is damaged.

use slicemill_core::ErrorClass;

use super::header::{BLOCK, Extension, Head, Kind, before_zero, is_header, parse};
use crate::IoError;

/// Names and records before a member are read up to this size.
const EXTENSION_BYTES_MAX: u64 = 1 << 20;
/// More zeros than this between members are not the padding of archives that were put one after the other.
const PADDING_MAX: u64 = 20 * BLOCK;

/// Bytes that are read from front to back, mostly.
pub(crate) trait Archive {
    /// `bytes` bytes at `offset`; fewer only at the end.
    fn at(&mut self, offset: u64, bytes: usize) -> Result<&[u8], IoError>;

    /// The length, when it is known.
    fn length(&self) -> Option<u64>;

    /// Whether [`at`](Self::at) may still be asked for what lies before what was read last.
    fn can_go_back(&self) -> bool;
}

impl Archive for &[u8] {
    fn at(&mut self, offset: u64, bytes: usize) -> Result<&[u8], IoError> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.len());
        Ok(&self[start..start.saturating_add(bytes).min(self.len())])
    }

    fn length(&self) -> Option<u64> {
        Some(self.len() as u64)
    }

    fn can_go_back(&self) -> bool {
        true
    }
}

/// What the walk comes by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Item {
    Member(Member),
    /// Bytes that belong to no member that could be made out.
    Damage {
        at: u64,
        bytes: u64,
        class: ErrorClass,
        why: String,
    },
}

/// A member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) kind: Kind,
    /// As it is stored.
    pub(crate) name: Vec<u8>,
    /// Where its header is.
    pub(crate) header_at: u64,
    /// Where its contents are.
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    /// The beginning of its contents, as much as was asked for.
    pub(crate) beginning: Vec<u8>,
    /// Why it cannot be read.
    pub(crate) broken: Option<(ErrorClass, String)>,
}

/// A walk through one archive.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    at: u64,
    global: Extension,
    next: Extension,
    /// Where the zeros began that end before `at`.
    zeros: Option<u64>,
    begun: bool,
    ended: bool,
    /// Bytes after the end mark that are no members.
    pub(crate) trailing: u64,
    /// Whether the archive ended without its mark.
    pub(crate) unmarked: bool,
}

impl Walk {
    /// Whether there was anything like a member.
    pub(crate) const fn begun(&self) -> bool {
        self.begun
    }

    /// The next member or damage. Of a member that is a file, `wanted(name, bytes)` says how much of its beginning
    /// is read. An error is one of reading, not of the archive.
    pub(crate) fn next(
        &mut self,
        archive: &mut impl Archive,
        wanted: &mut dyn FnMut(&[u8], u64) -> usize,
    ) -> Result<Option<Item>, IoError> {
        while !self.ended {
            let at = self.at;
            let block = archive.at(at, BLOCK as usize)?;
            if block.is_empty() {
                self.ended = true;
                let short = self.zeros.is_none_or(|from| at - from < 2 * BLOCK);
                self.unmarked = self.begun && short;
                return Ok(self.dangling(at));
            }
            if block.iter().all(|byte| *byte == 0) {
                self.zeros.get_or_insert(at);
                self.at += block.len() as u64;
                continue;
            }
            let Some(head) = parse(block) else { return self.damaged(archive, at) };
            if let Some(from) = self.zeros.take()
                && self.begun
                && at - from > PADDING_MAX
            {
                let why = format!("{} bytes of zeros where members were expected", at - from);
                return Ok(Some(Item::Damage { at: from, bytes: at - from, class: ErrorClass::BadRecord, why }));
            }
            self.begun = true;
            if let Some(item) = self.member(archive, head, wanted)? {
                return Ok(Some(item));
            }
        }
        Ok(None)
    }

    /// Records at the end of the archive that no member follows.
    fn dangling(&mut self, at: u64) -> Option<Item> {
        let next = std::mem::take(&mut self.next);
        (next != Extension::default()).then(|| {
            let name = next.name.unwrap_or_default();
            let why = format!("the archive ends before the contents of '{}'", shown(&name));
            Item::Damage { at, bytes: 0, class: ErrorClass::Truncated, why }
        })
    }

    /// Goes to the next header after the damaged one at `at`.
    fn damaged(&mut self, archive: &mut impl Archive, at: u64) -> Result<Option<Item>, IoError> {
        self.next = Extension::default();
        let block = archive.at(at, BLOCK as usize)?;
        let cut = block.len() < BLOCK as usize;
        let name = shown(before_zero(&block[..block.len().min(100)]));
        let after_end = self.zeros.take().is_some_and(|from| at - from >= 2 * BLOCK);
        let (found, end) = seek(archive, at + BLOCK, u64::MAX)?;
        self.at = found.unwrap_or(end);
        let bytes = self.at.saturating_sub(at);
        if found.is_none() && after_end {
            (self.trailing, self.ended) = (bytes, true);
            return Ok(None);
        }
        self.begun = true;
        let (class, what) = match cut {
            true => (ErrorClass::Truncated, "the archive ends within a header".to_owned()),
            false => (ErrorClass::BadRecord, format!("a header is damaged (it may have been '{name}')")),
        };
        let why = format!("{what}; {bytes} bytes are skipped");
        Ok(Some(Item::Damage { at, bytes, class, why }))
    }

    fn member(
        &mut self,
        archive: &mut impl Archive,
        head: Head,
        wanted: &mut dyn FnMut(&[u8], u64) -> usize,
    ) -> Result<Option<Item>, IoError> {
        let header_at = self.at;
        let mut offset = header_at + BLOCK;
        let mut continued = head.continued;
        while continued {
            let block = archive.at(offset, BLOCK as usize)?;
            continued = block.get(504).is_some_and(|byte| *byte != 0);
            offset += BLOCK;
        }
        let extends = matches!(head.kind, Kind::LongName | Kind::LongLink | Kind::Extended | Kind::Global);
        let (said, broken) = if extends { Default::default() } else { self.extension() };
        let no_contents = matches!(head.kind, Kind::Directory | Kind::Link | Kind::Special);
        let bytes = match said.bytes.filter(|_| !no_contents).map_or(head.bytes, Ok) {
            Ok(bytes) => bytes,
            Err(why) => return self.sizeless(archive, head.kind, said.name.unwrap_or(head.name), why).map(Some),
        };
        if extends {
            return self.extend(archive, head.kind, offset, bytes);
        }
        let name = said.name.unwrap_or(head.name);
        let mut member = Member { kind: head.kind, name, header_at, offset, bytes, beginning: Vec::new(), broken };
        if said.sparse || head.kind == Kind::Sparse {
            let why = "it is stored with holes (sparse), which is not supported; make the archive without --sparse";
            member.broken.get_or_insert((ErrorClass::BadRecord, why.to_owned()));
        }
        if head.kind == Kind::File && member.broken.is_none() {
            let beginning = wanted(&member.name, bytes).min(usize::try_from(bytes).unwrap_or(usize::MAX));
            if beginning > 0 {
                member.beginning = archive.at(offset, beginning)?.to_vec();
            }
        }
        self.at = self.after(archive, &mut member)?;
        Ok(Some(Item::Member(member)))
    }

    fn extension(&mut self) -> (Extension, Option<(ErrorClass, String)>) {
        let mut said = std::mem::take(&mut self.next).or(&self.global);
        let broken = said.broken.take().map(|why| (ErrorClass::BadRecord, why));
        (said, broken)
    }

    /// A member whose size is not known: what follows is found by its header.
    fn sizeless(
        &mut self,
        archive: &mut impl Archive,
        kind: Kind,
        name: Vec<u8>,
        why: String,
    ) -> Result<Item, IoError> {
        let (header_at, offset) = (self.at, self.at + BLOCK);
        let (found, end) = seek(archive, offset, u64::MAX)?;
        self.at = found.unwrap_or(end);
        self.next = Extension::default();
        let why = format!("{why}; {} bytes are skipped", self.at - header_at);
        if matches!(kind, Kind::LongName | Kind::LongLink | Kind::Extended | Kind::Global) {
            let bytes = self.at - header_at;
            return Ok(Item::Damage { at: header_at, bytes, class: ErrorClass::BadRecord, why });
        }
        let broken = Some((ErrorClass::BadRecord, why));
        Ok(Item::Member(Member { kind, name, header_at, offset, bytes: 0, beginning: Vec::new(), broken }))
    }

    /// Reads the name or the records that belong to the next member.
    fn extend(
        &mut self,
        archive: &mut impl Archive,
        kind: Kind,
        offset: u64,
        bytes: u64,
    ) -> Result<Option<Item>, IoError> {
        let header_at = self.at;
        let contents = match usize::try_from(bytes) {
            Ok(length) if bytes <= EXTENSION_BYTES_MAX => archive.at(offset, length)?.to_vec(),
            _ => Vec::new(),
        };
        let beginning = Vec::new();
        let mut member = Member { kind, name: Vec::new(), header_at, offset, bytes, beginning, broken: None };
        self.at = self.after(archive, &mut member)?;
        if let Some((class, why)) = member.broken {
            self.next = Extension::default();
            return Ok(Some(Item::Damage { at: header_at, bytes: self.at - header_at, class, why }));
        }
        match kind {
            _ if bytes > EXTENSION_BYTES_MAX => {
                self.next.broken = Some(format!("its name takes {bytes} bytes, more than {EXTENSION_BYTES_MAX}"));
            }
            Kind::LongName => self.next.name = Some(before_zero(&contents).to_owned()),
            Kind::Extended => self.next.read_records(&contents),
            Kind::Global => {
                self.global.read_records(&contents);
                // What is damaged here is no reason to give up every member.
                self.global.broken = None;
            }
            _ => {}
        }
        Ok(None)
    }

    /// Where the walk goes on after `member`, whose size may lie: then it is marked as broken, and the walk goes on
    /// at the first header inside of what it claims.
    fn after(&self, archive: &mut impl Archive, member: &mut Member) -> Result<u64, IoError> {
        let (offset, bytes) = (member.offset, member.bytes);
        let end = padded_end(offset, bytes).unwrap_or(u64::MAX);
        let contents_end = offset.saturating_add(bytes);
        // Reading the last byte finds the end of an archive of unknown length.
        let there = match archive.length() {
            Some(length) => contents_end <= length,
            None => bytes == 0 || !archive.at(contents_end - 1, 1)?.is_empty(),
        };
        if there {
            let next = archive.at(end, BLOCK as usize)?;
            let plausible = next.iter().all(|byte| *byte == 0) || is_header(next);
            // An archive in the archive has headers of its own.
            if plausible || bytes < BLOCK || !archive.can_go_back() || is_header(archive.at(offset, BLOCK as usize)?) {
                return Ok(end);
            }
            let Some(found) = seek(archive, offset, end)?.0 else { return Ok(end) };
            let why = format!("its header says {bytes} bytes, but another member begins after {}", found - offset);
            member.broken = Some((ErrorClass::BadRecord, why));
            return Ok(found);
        }
        let length = archive.length().unwrap_or(contents_end);
        let present = length.saturating_sub(offset);
        if archive.can_go_back()
            && let Some(found) = seek(archive, offset, u64::MAX)?.0
        {
            let why = format!(
                "its header says {bytes} bytes, more than the archive has; another member begins after {}",
                found - offset
            );
            member.broken = Some((ErrorClass::BadRecord, why));
            return Ok(found);
        }
        let why = format!("the archive ends after {present} of its {bytes} bytes");
        member.broken = Some((ErrorClass::Truncated, why));
        Ok(length)
    }
}

/// The end of contents, rounded up to whole blocks.
fn padded_end(offset: u64, bytes: u64) -> Option<u64> {
    offset.checked_add(bytes.checked_next_multiple_of(BLOCK)?)
}

/// The first block from `from` on, before `until`, that is a header; and where the search ended.
fn seek(archive: &mut impl Archive, from: u64, until: u64) -> Result<(Option<u64>, u64), IoError> {
    const STRIDE: usize = 64 << 10;
    let mut at = from;
    while at < until {
        let piece = archive.at(at, STRIDE)?;
        for (index, block) in piece.chunks(BLOCK as usize).enumerate() {
            let here = at + index as u64 * BLOCK;
            if here >= until {
                return Ok((None, until));
            }
            if is_header(block) {
                return Ok((Some(here), here));
            }
        }
        if piece.len() < STRIDE {
            // The search may begin past the end.
            let end = if piece.is_empty() { archive.length().unwrap_or(at).min(at) } else { at + piece.len() as u64 };
            return Ok((None, end));
        }
        at += piece.len() as u64;
    }
    Ok((None, until))
}

/// A name for messages: what is printable of it, shortened.
pub(crate) fn shown(name: &[u8]) -> String {
    const SHOWN: usize = 80;
    let text = String::from_utf8_lossy(name);
    let mut shown: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}
