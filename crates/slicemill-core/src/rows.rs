//! Rows of the output as plain types; the Arrow schemas are made from these in `slicemill-io`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Flops, RowError};

/// Text that rows share, stored as a plain string.
mod shared_text {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[allow(clippy::ref_option, reason = "serde gives a reference to the field")]
    pub(super) fn serialize<S: Serializer>(text: &Option<Arc<str>>, to: S) -> Result<S::Ok, S::Error> {
        text.as_deref().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Arc<str>>, D::Error> {
        Ok(Option::<String>::deserialize(from)?.map(Arc::from))
    }
}

/// A row of `captions/`, `answers/` or `tokens/`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ContentRow {
    /// Unique key of the image in the job.
    pub key: String,
    /// URL of the image.
    pub source: String,
    /// SHA-256 of the bytes, hex.
    pub sha256: String,
    /// Width after orientation, pixels.
    pub width: u32,
    /// Height after orientation, pixels.
    pub height: u32,
    /// EXIF orientation that was applied, 1 when none was.
    pub orientation_applied: u8,
    /// Image format, lower case (`jpeg`, `png`, …).
    pub format: String,
    /// Slicing policy.
    pub policy: String,
    /// Grid columns.
    pub grid_cols: u32,
    /// Grid rows.
    pub grid_rows: u32,
    /// Slices without the overview.
    pub slices: u32,
    /// Visual tokens.
    pub visual_tokens: u32,
    /// Prompt tokens: text, separators and visual tokens.
    pub prompt_tokens: u32,
    /// Prompt tokens beyond the model's longest prompt, which were cut off at its end.
    pub prompt_cut: u32,
    /// Generated tokens, the stop token not counted.
    pub output_tokens: u32,
    /// Generated tokens at the end that only repeat those before them, see [`looped_tokens`](crate::looped_tokens).
    #[serde(default)]
    pub looped_tokens: u32,
    /// Compute of this row; an image's vision and projector compute stands on its first row only.
    pub flops: Flops,
    /// Number of the question, from 0 (`answers` only).
    pub question_id: Option<u32>,
    /// The question (`answers` only).
    pub question: Option<String>,
    /// Caption or answer.
    pub text: Option<String>,
    /// `stop`, `length`, or `none` for encode jobs and the null model.
    pub finish_reason: String,
    /// Generated token ids, when asked for.
    pub token_ids: Option<Vec<u32>>,
    /// Visual tokens × width values in the order the language model sees them (`tokens` only).
    pub tokens: Option<Vec<f32>>,
    /// The image's bytes ended before the image did, and the job allows that.
    #[serde(default)]
    pub truncated: bool,
    /// The input's columns that the job keeps: a JSON object. All rows of an image share it.
    #[serde(default, with = "shared_text")]
    pub columns: Option<Arc<str>>,
}

/// A row of `failed/`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedRow {
    /// Key of the image.
    pub key: String,
    /// URL of the image.
    pub source: String,
    /// Class, stage and message.
    pub error: RowError,
    /// How often it was tried.
    pub attempts: u32,
    /// The input's columns that the job keeps: a JSON object.
    #[serde(default, with = "shared_text")]
    pub columns: Option<Arc<str>>,
}

/// An object that is not an image and does not claim to be one, or an input that the job leaves out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedRow {
    /// Key of the object.
    pub key: String,
    /// URL of the object.
    pub source: String,
    /// Why it was skipped.
    pub reason: String,
    /// The input's columns that the job keeps: a JSON object.
    #[serde(default, with = "shared_text")]
    pub columns: Option<Arc<str>>,
}

/// Wall clock of one input row; never part of the content.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct TimingRow {
    /// Key of the image.
    pub key: String,
    /// Device, as `cpu:0`.
    pub device: String,
    /// Encode batch inside the chunk.
    pub batch_id: u32,
    /// Views in that batch.
    pub batch_views: u32,
    /// Patches in that batch over the limit, 0 to 1.
    pub batch_fill: f32,
    /// Reading bytes.
    pub fetch_ms: f32,
    /// Decode to normalised slices.
    pub prepare_ms: f32,
    /// The whole batch's encoding.
    pub encode_ms: f32,
    /// This row's prefill (all its questions).
    pub prefill_ms: f32,
    /// From prefill to the last token, steps shared with other sequences.
    pub decode_ms: f32,
}

/// What became of one input row.
#[derive(Debug, Clone, PartialEq)]
pub enum RowOutcome {
    /// Content rows: one, or one per question.
    Ok {
        /// The rows.
        rows: Vec<ContentRow>,
        /// How long it took.
        timing: TimingRow,
    },
    /// A failed row.
    Failed(FailedRow),
    /// Not an image.
    Skipped(SkippedRow),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_plain_text_and_may_be_absent() {
        let row = SkippedRow {
            key: "k".into(),
            source: "s".into(),
            reason: "r".into(),
            columns: Some(r#"{"license":"cc0"}"#.into()),
        };
        let json = serde_json::to_string(&row).unwrap();
        assert!(json.contains(r#""columns":"{\"license\":\"cc0\"}""#), "{json}");
        assert_eq!(serde_json::from_str::<SkippedRow>(&json).unwrap(), row);
        let old: SkippedRow = serde_json::from_str(r#"{"key":"k","source":"s","reason":"r"}"#).unwrap();
        assert_eq!(old, SkippedRow { columns: None, ..row });
    }
}
