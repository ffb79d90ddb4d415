//! What is wrong with a job, where it stands, and what to do about it.

use std::fmt;

/// Where a problem stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a job file.
    File {
        /// Name of the file.
        name: String,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// The line itself.
        text: String,
        /// Characters of it that are meant.
        length: usize,
    },
    /// In a job file, by what it does not say.
    Absent {
        /// Name of the file.
        name: String,
    },
    /// In a `--set`.
    Set(String),
    /// In a flag.
    Flag(String),
}

/// One thing that is wrong with a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// What.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::File { name, line, column, text, length } => {
                let margin = " ".repeat(line.to_string().len());
                writeln!(f, "{name}:{line}:{column}: {}", self.message)?;
                writeln!(f, " {line} | {text}")?;
                let indent: String =
                    text.chars().take(column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
                write!(f, " {margin} | {indent}{}", "^".repeat((*length).max(1)))?;
            }
            Place::Absent { name } => write!(f, "{name}: {}", self.message)?,
            Place::Set(argument) => write!(f, "--set {argument}: {}", self.message)?,
            Place::Flag(flag) => write!(f, "{flag}: {}", self.message)?,
        }
        if self.remedy.is_empty() { Ok(()) } else { write!(f, "\n  {}", self.remedy) }
    }
}

/// Everything that is wrong with a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobError {
    /// At least one.
    pub problems: Vec<Problem>,
}

impl fmt::Display for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, problem) in self.problems.iter().enumerate() {
            if number > 0 {
                writeln!(f)?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for JobError {}

/// The place of the bytes `span` of `text`.
pub fn place_of(name: &str, text: &str, span: std::ops::Range<usize>) -> Place {
    let start = floor_boundary(text, span.start);
    let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
    let line_end = text[start..].find('\n').map_or(text.len(), |newline| start + newline);
    let end = floor_boundary(text, span.end).clamp(start, line_end);
    Place::File {
        name: name.to_owned(),
        line: text[..start].matches('\n').count() + 1,
        column: text[line_start..start].chars().count() + 1,
        text: text[line_start..line_end].trim_end_matches('\r').to_owned(),
        length: text[start..end].chars().count(),
    }
}

fn floor_boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0)
}
