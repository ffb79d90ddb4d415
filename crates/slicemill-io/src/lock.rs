//! One process per local output.

use crate::{IoError, OutputStore};

/// The right of this process to write to a local output, given back when dropped or when the process ends, however
/// it ends. Other stores have no lock: there the ledger makes a second process harmless.
#[derive(Debug)]
pub struct OutputLock {}

impl OutputLock {
    pub(crate) fn take(output: &OutputStore) -> Result<Self, IoError> {
        let _ = output;
        Err(crate::store::unwritten())
    }
}
