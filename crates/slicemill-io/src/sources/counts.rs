//! What a listing came by, for the report and the job record: every object that is no row is here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use slicemill_core::ErrorClass;

/// What was found in one input of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceCounts {
    /// The input as it was given, without secrets.
    pub input: String,
    /// Objects looked at, containers included.
    pub objects: u64,
    /// Objects that are containers, by what they are: `tar`, `tar.gz`, `tar.zst`, `parquet`, `jsonl`, `csv`, `tsv`.
    pub containers: BTreeMap<String, u64>,
    /// Rows, refused ones included.
    pub rows: u64,
    /// Rows that were refused when they were listed, by class.
    pub refused: BTreeMap<ErrorClass, u64>,
    /// What is no row, by what it is: `links`, `folders`, `devices`, `noise of archivers`, and members of archives
    /// that are no images by their extension (`.json`, `.txt`, `other`).
    pub left_out: BTreeMap<String, u64>,
    /// What is odd, in words; the first few.
    pub notes: Vec<String>,
    /// How many more notes there were.
    pub notes_more: u64,
}

impl SourceCounts {
    /// Nothing yet of `input`.
    pub(crate) fn new(input: impl Into<String>) -> Self {
        Self { input: input.into(), ..Self::default() }
    }

    pub(crate) fn leave_out(&mut self, what: &str) {
        /// A hostile archive may have a new extension for every member.
        const KINDS_MAX: usize = 64;
        let full = self.left_out.len() >= KINDS_MAX && !self.left_out.contains_key(what);
        *self.left_out.entry(if full { "other" } else { what }.to_owned()).or_default() += 1;
    }

    pub(crate) fn refuse(&mut self, class: ErrorClass) {
        *self.refused.entry(class).or_default() += 1;
    }

    pub(crate) fn note(&mut self, note: String) {
        const NOTES_MAX: usize = 20;
        tracing::debug!(input = %self.input, note, "while listing");
        if self.notes.len() < NOTES_MAX {
            self.notes.push(note);
        } else {
            self.notes_more += 1;
        }
    }

    /// Adds what was found in one object.
    pub(crate) fn add(&mut self, other: Self) {
        self.objects += other.objects;
        self.rows += other.rows;
        self.notes_more += other.notes_more;
        for (class, count) in other.refused {
            *self.refused.entry(class).or_default() += count;
        }
        for (what, count) in other.containers {
            *self.containers.entry(what).or_default() += count;
        }
        for (what, count) in other.left_out {
            *self.left_out.entry(what).or_default() += count;
        }
        for note in other.notes {
            self.note(note);
        }
    }
}

impl std::fmt::Display for SourceCounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} objects, {} rows", self.input, self.objects, self.rows)?;
        let refused: u64 = self.refused.values().sum();
        if refused > 0 {
            write!(f, " ({refused} refused)")?;
        }
        for (what, count) in &self.containers {
            write!(f, ", {count} × {what}")?;
        }
        if !self.left_out.is_empty() {
            let left_out: Vec<_> = self.left_out.iter().map(|(what, count)| format!("{count} {what}")).collect();
            write!(f, "; no rows: {}", left_out.join(", "))?;
        }
        Ok(())
    }
}
