//! A check in the making.

use super::Check;

/// Wrong things that a check names.
const NAMED_MAX: usize = 5;

/// Collects what is wrong with one statement.
#[derive(Debug)]
pub(super) struct Finding {
    name: &'static str,
    named: Vec<String>,
    count: u64,
}

impl Finding {
    /// Nothing is wrong yet.
    pub(super) const fn new(name: &'static str) -> Self {
        Self { name, named: Vec::new(), count: 0 }
    }

    /// One thing is wrong.
    pub(super) fn wrong(&mut self, what: impl FnOnce() -> String) {
        self.count += 1;
        if self.named.len() < NAMED_MAX {
            self.named.push(what());
        }
    }

    /// Wrong unless `holds`.
    pub(super) fn expect(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.wrong(what);
        }
    }

    /// Takes over what another finding has.
    pub(super) fn take(&mut self, (named, count): (Vec<String>, u64)) {
        self.count += count;
        let room = NAMED_MAX.saturating_sub(self.named.len());
        self.named.extend(named.into_iter().take(room));
    }

    /// The check, with the figures it rests on.
    pub(super) fn done(mut self, evidence: String) -> Check {
        let unnamed = self.count.saturating_sub(self.named.len() as u64);
        if unnamed > 0 {
            self.named.push(format!("and {unnamed} more"));
        }
        Check { name: self.name.to_owned(), ok: self.count == 0, evidence, wrong: self.named }
    }
}
