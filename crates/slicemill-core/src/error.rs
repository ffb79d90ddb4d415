//! The error type of a row, and the three fates of an error.

use serde::{Deserialize, Serialize};

/// What happens to the run when an error occurs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// The row is written to `failed/`, the run goes on.
    Row,
    /// The operation is tried again, then the row fails.
    Transient,
    /// The job ends with a clear message and can be resumed.
    Fatal,
}

/// Where in the dataflow a row failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Reading bytes from the store.
    Fetch,
    /// Reading the image header.
    Header,
    /// Slicing plan.
    Plan,
    /// Decoding pixels.
    Decode,
    /// Resizing, cutting and normalising.
    Slice,
    /// Vision tower and projector.
    Encode,
    /// Prompt assembly and the language model.
    Generate,
}

/// Why a row failed, in a word a person understands. Stored as its snake_case name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorClass {
    /// The object is not there (any more).
    NotFound,
    /// The store broke off, and went on doing so.
    ReadFailed,
    /// The store refused: permissions or credentials.
    AccessDenied,
    /// A location in the data that may not be read: a private address, a path that leads out of its folder.
    LocationRefused,
    /// A record of a manifest, an archive or a table that cannot be read or holds no image.
    BadRecord,
    /// The same name stands in its container twice; the first one counts.
    DuplicateKey,
    /// The object changed between planning and reading.
    SourceChanged,
    /// The object is larger than the limit on bytes.
    ObjectTooLarge,
    /// Zero bytes.
    Empty,
    /// The name says image, the bytes do not.
    NotAnImage,
    /// An image format that is not supported.
    UnsupportedFormat,
    /// An image of a supported format in a variant that is not supported.
    UnsupportedVariant,
    /// The header is broken.
    BadHeader,
    /// The bytes end before the image does.
    Truncated,
    /// The bytes are damaged.
    Corrupt,
    /// More pixels than the limit.
    TooManyPixels,
    /// The slicing policy rejects this size.
    PlanRejected,
    /// The prompt with its visual tokens does not fit the model's context.
    PromptTooLong,
    /// The device had no memory left for this row alone.
    OutOfMemory,
    /// The model failed on this row.
    ModelFailed,
    /// The device's worker died over this row, alone, and again after a fresh start.
    WorkerDied,
    /// The device gave no sign over this row for longer than the watchdog waits.
    DeviceHung,
}

macro_rules! snake_names {
    ($ty:ident { $($variant:ident = $name:literal),* $(,)? }) => {
        impl $ty {
            /// The stored name.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }
            /// Every value, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];
            /// The value of a stored name.
            pub fn parse(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)* _ => None }
            }
        }
        impl std::fmt::Display for $ty {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

snake_names!(Stage {
    Fetch = "fetch", Header = "header", Plan = "plan", Decode = "decode", Slice = "slice",
    Encode = "encode", Generate = "generate",
});

snake_names!(ErrorClass {
    NotFound = "not_found", ReadFailed = "read_failed", AccessDenied = "access_denied",
    LocationRefused = "location_refused", BadRecord = "bad_record", DuplicateKey = "duplicate_key", SourceChanged = "source_changed",
    ObjectTooLarge = "object_too_large", Empty = "empty", NotAnImage = "not_an_image",
    UnsupportedFormat = "unsupported_format",
    UnsupportedVariant = "unsupported_variant", BadHeader = "bad_header", Truncated = "truncated",
    Corrupt = "corrupt", TooManyPixels = "too_many_pixels", PlanRejected = "plan_rejected",
    PromptTooLong = "prompt_too_long", OutOfMemory = "out_of_memory", ModelFailed = "model_failed",
    WorkerDied = "worker_died", DeviceHung = "device_hung",
});

/// A row that could not be annotated: class, stage and a message that names the remedy where there is one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{stage}: {class}: {message}")]
pub struct RowError {
    /// Why.
    pub class: ErrorClass,
    /// Where.
    pub stage: Stage,
    /// In words.
    pub message: String,
}

impl RowError {
    /// A row error of `class` in `stage`.
    pub fn new(class: ErrorClass, stage: Stage, message: impl Into<String>) -> Self {
        Self { class, stage, message: message.into() }
    }
}
