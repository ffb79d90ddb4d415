//! Which inputs have been seen where.

use std::collections::HashMap;

use sha2::{Digest, Sha256};

/// Wrong keys that are kept by name.
const NAMED_MAX: usize = 5;

/// Where the rows of an input stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// Nowhere yet.
    Nowhere,
    /// In the content.
    Content,
    /// In `failed/`.
    Failed,
    /// In `skipped/`.
    Skipped,
}

impl Seen {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Nowhere => "nowhere",
            Self::Content => "the content",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }
}

/// Inputs by the first 128 bits of the SHA-256 of their keys.
#[derive(Debug, Default)]
pub(super) struct Keys {
    seen: HashMap<u128, Seen>,
    unseen: u64,
    named: Vec<String>,
    wrong: u64,
}

fn hash(key: &str) -> u128 {
    let digest = Sha256::digest(key);
    digest.iter().take(16).fold(0, |value, byte| (value << 8) | u128::from(*byte))
}

impl Keys {
    /// Adds an input; `false` when its key is there already.
    pub(super) fn add_input(&mut self, key: &str) -> bool {
        let new = self.seen.insert(hash(key), Seen::Nowhere).is_none();
        self.unseen += u64::from(new);
        new
    }

    /// The rows of `key` stand in `place`.
    pub(super) fn see(&mut self, key: &str, place: Seen) {
        let before = self.seen.get_mut(&hash(key)).map(|seen| std::mem::replace(seen, place));
        match before {
            Some(Seen::Nowhere) => self.unseen -= 1,
            Some(before) => self.note(format!("{key} is in {} and in {}", before.as_str(), place.as_str())),
            None => self.note(format!("{key} in {} is not an input", place.as_str())),
        }
    }

    fn note(&mut self, what: String) {
        self.wrong += 1;
        if self.named.len() < NAMED_MAX {
            self.named.push(what);
        }
    }

    /// Inputs.
    pub(super) fn len(&self) -> usize {
        self.seen.len()
    }

    /// Inputs without a row.
    pub(super) const fn unseen(&self) -> u64 {
        self.unseen
    }

    /// Whether the input `key` has a row.
    pub(super) fn is_seen(&self, key: &str) -> bool {
        self.seen.get(&hash(key)).is_some_and(|seen| *seen != Seen::Nowhere)
    }

    /// Keys that are doubled or unknown: the first few, and how many.
    pub(super) fn wrong(&self) -> (Vec<String>, u64) {
        (self.named.clone(), self.wrong)
    }
}
