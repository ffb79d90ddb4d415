//! Questions of an ask job: the same for every image, or a file joined on the image key.
//!
//! ```text
//!  questions.jsonl ── key, question, question_id?, other columns ─┐
//!                                                                 ├─ join on key ─▶ prompts of each input row
//!  frozen inputs ── key ─────────────────────────────────────────┘      │
//!                                       images without a question are ──┘ not inputs of the job (counted)
//! ```
//!
//! A key of the file that no input has is an error: most often the keys were written in another form, and a silent
//! miss would look like a finished job. The joined questions are frozen next to the inputs and are part of the job's
//! fingerprint, so that a later change of the file is seen.

mod frozen;
mod join;
mod read;
mod template;

pub use frozen::{FrozenQuestions, QuestionsDigest};
pub use join::{QuestionTable, same_for_all};
pub use read::{QuestionRow, read_questions};
pub use template::{TEMPLATE_DEFAULT, Template, TemplateError};

use serde::{Deserialize, Serialize};

/// One question about one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prompt {
    /// Its number, unique for the image.
    pub question_id: u32,
    /// The question, as it stands in the output.
    pub question: String,
    /// What the model is asked: the question inside the job's template.
    pub prompt: String,
}

/// What is wrong with a questions file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuestionsError {
    /// The extension says nothing.
    #[error("{name}: cannot tell the form of a questions file by this name; call it .jsonl, .csv or .parquet")]
    Form {
        /// The file.
        name: String,
    },
    /// A row cannot be used.
    #[error("{name}, {place}: {message}")]
    Row {
        /// The file.
        name: String,
        /// Line or row.
        place: String,
        /// What is wrong.
        message: String,
    },
    /// No row at all.
    #[error("{name}: no questions; every row needs the columns key and question")]
    Empty {
        /// The file.
        name: String,
    },
    /// Keys that no input has.
    #[error("{name}: {count} of its keys are not among the inputs, first {}; {hint}", .examples.join(", "))]
    Unmatched {
        /// The file.
        name: String,
        /// How many.
        count: usize,
        /// The first few, with their places.
        examples: Vec<String>,
        /// What keys look like.
        hint: String,
    },
    /// The template names a column that the file lacks.
    #[error("{name}: the template names {{{column}}}, and no row has this column")]
    Column {
        /// The file.
        name: String,
        /// The column.
        column: String,
    },
}
