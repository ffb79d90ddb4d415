//! A look at the beginning of an object, so that the header of a remote image can be read without its pixels.

use crate::fault::Fault;

/// Why a parser stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The object goes on, but this many bytes from its start must be at hand.
    Need(u64),
    /// The object is at fault.
    Fault(Fault),
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// The first bytes of an object and its total length.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window<'a> {
    prefix: &'a [u8],
    total: u64,
}

impl<'a> Window<'a> {
    /// The first bytes of an object of `total` bytes.
    pub(crate) fn new(prefix: &'a [u8], total: u64) -> Self {
        Self { prefix, total: total.max(prefix.len() as u64) }
    }

    /// `len` bytes from `offset`; `what` names them when the object ends before.
    pub(crate) fn bytes(&self, offset: u64, len: u64, what: &str) -> Result<&'a [u8], Stop> {
        let end = offset.saturating_add(len);
        if end > self.total {
            return Err(Stop::Fault(Fault::truncated(format!(
                "the file ends after {} bytes, inside the {what}, which needs {end}",
                self.total
            ))));
        }
        let range = usize::try_from(offset).ok().zip(usize::try_from(end).ok());
        range.and_then(|(start, end)| self.prefix.get(start..end)).ok_or(Stop::Need(end))
    }

    /// `N` bytes from `offset`.
    pub(crate) fn array<const N: usize>(&self, offset: u64, what: &str) -> Result<[u8; N], Stop> {
        let bytes = self.bytes(offset, N as u64, what)?;
        bytes.try_into().map_err(|_| Stop::Need(offset.saturating_add(N as u64)))
    }

    /// Length of the whole object.
    pub(crate) const fn total(&self) -> u64 {
        self.total
    }
}
