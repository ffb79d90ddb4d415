//! Choices that are part of a job: how pixels are read and how text is generated.

use serde::{Deserialize, Serialize};

/// What the job produces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskKind {
    /// One caption per image (`captions/`).
    Caption,
    /// One answer per image and question (`answers/`).
    Ask,
    /// Visual tokens per image (`tokens/`).
    Encode,
}

impl TaskKind {
    /// Its name in job files.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Caption => "caption",
            Self::Ask => "ask",
            Self::Encode => "encode",
        }
    }

    /// Name of the dataset directory and SQL table.
    pub const fn dataset(self) -> &'static str {
        match self {
            Self::Caption => "captions",
            Self::Ask => "answers",
            Self::Encode => "tokens",
        }
    }
}

/// Whether the EXIF orientation is applied before planning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrientationRule {
    /// Rotate and mirror as the tag says (default).
    #[default]
    Apply,
    /// Use the stored pixels.
    Ignore,
}

/// What becomes of an alpha channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Alpha {
    /// Composite on white (default).
    #[default]
    White,
    /// Composite on black.
    Black,
    /// Drop the channel and keep the colours, as Pillow's RGB conversion does.
    Drop,
}

/// What becomes of an image whose bytes end before it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Truncated {
    /// The row fails as `truncated` (default).
    #[default]
    Fail,
    /// It is decoded as far as it goes, and its row says so.
    Allow,
}

impl Truncated {
    // serde passes what it asks about by reference.
    const fn is_fail(&self) -> bool {
        matches!(self, Self::Fail)
    }
}

/// Element type of stored visual tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenDtype {
    /// 32-bit floats.
    #[default]
    F32,
    /// 16-bit floats.
    F16,
}

/// Rounding of the corners of the windows that the spatial resampler of LLaVA-UHD v1 pools; other projectors have none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WindowRounding {
    /// To f32 (default).
    #[default]
    F32,
    /// To f16 first, as the released evaluation does because it runs in half precision.
    F16,
}

/// How bytes become RGB pixels.
///
/// What is off by default and came later is left out when this is written, so a job without it has the identity it
/// always had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ImageOptions {
    /// EXIF orientation.
    pub orientation: OrientationRule,
    /// Alpha channel.
    pub alpha: Alpha,
    /// Largest accepted width × height, checked before any allocation.
    pub pixels_max: u64,
    /// Images that end too early.
    #[serde(default, skip_serializing_if = "Truncated::is_fail")]
    pub truncated: Truncated,
}

impl ImageOptions {
    /// Pillow's decompression-bomb warning limit doubled, the size at which Pillow refuses: 178,956,970 pixels.
    pub const PIXELS_MAX_DEFAULT: u64 = 178_956_970;
}

impl Default for ImageOptions {
    fn default() -> Self {
        Self {
            orientation: OrientationRule::Apply,
            alpha: Alpha::White,
            pixels_max: Self::PIXELS_MAX_DEFAULT,
            truncated: Truncated::Fail,
        }
    }
}

/// How text is generated: greedy at temperature 0, sampled above, by beam search with several beams.
///
/// What says "no beam search" is left out when this is written, so a job without it has the identity it always had.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerationParams {
    /// Cap on output tokens.
    pub max_new_tokens: u32,
    /// 0 is greedy; above, logits are divided by it.
    pub temperature: f64,
    /// Keep the k most likely tokens.
    pub top_k: Option<u32>,
    /// Keep the smallest set of tokens whose probability reaches p.
    pub top_p: Option<f64>,
    /// Divide positive and multiply negative logits of tokens already produced (1 = off). A beam search does so with
    /// log-probabilities.
    pub repetition_penalty: f32,
    /// Beams of a beam search, at most [`BEAMS_MAX`](Self::BEAMS_MAX); 1 is no search.
    #[serde(default = "one_beam", skip_serializing_if = "is_one_beam")]
    pub num_beams: u32,
    /// A finished beam's log-probability is divided by its length to this power: above 0 long answers gain.
    #[serde(default = "neutral_length_penalty", skip_serializing_if = "is_neutral_length_penalty")]
    pub length_penalty: f64,
    /// Whether a beam search ends as soon as there are as many finished beams as beams; otherwise when no other can get
    /// among them.
    #[serde(default, skip_serializing_if = "is_false")]
    pub early_stopping: bool,
    /// Seed of the job; each row derives its own from this and its key.
    pub seed: u64,
}

impl GenerationParams {
    /// Most beams of a beam search.
    pub const BEAMS_MAX: u32 = 64;
}

impl Default for GenerationParams {
    fn default() -> Self {
        Self {
            max_new_tokens: 128,
            temperature: 0.0,
            top_k: None,
            top_p: None,
            repetition_penalty: 1.0,
            num_beams: one_beam(),
            length_penalty: neutral_length_penalty(),
            early_stopping: false,
            seed: 0,
        }
    }
}

const fn one_beam() -> u32 {
    1
}

const fn neutral_length_penalty() -> f64 {
    1.0
}

// serde passes what it asks about by reference.
const fn is_one_beam(beams: &u32) -> bool {
    *beams == one_beam()
}

const fn is_neutral_length_penalty(penalty: &f64) -> bool {
    *penalty == neutral_length_penalty()
}

const fn is_false(value: &bool) -> bool {
    !*value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_without_a_beam_search_is_written_as_it_always_was() {
        let old =
            r#"{"max_new_tokens":128,"temperature":0.0,"top_k":null,"top_p":null,"repetition_penalty":1.0,"seed":0}"#;
        assert_eq!(serde_json::to_string(&GenerationParams::default()).unwrap(), old);
        assert_eq!(serde_json::from_str::<GenerationParams>(old).unwrap(), GenerationParams::default());
    }

    #[test]
    fn images_that_must_be_whole_are_written_as_they_always_were() {
        let old = r#"{"orientation":"apply","alpha":"white","pixels_max":178956970}"#;
        assert_eq!(serde_json::to_string(&ImageOptions::default()).unwrap(), old);
        assert_eq!(serde_json::from_str::<ImageOptions>(old).unwrap(), ImageOptions::default());
        let allow = ImageOptions { truncated: Truncated::Allow, ..ImageOptions::default() };
        let json = serde_json::to_string(&allow).unwrap();
        assert!(json.ends_with(r#","truncated":"allow"}"#), "{json}");
        assert_eq!(serde_json::from_str::<ImageOptions>(&json).unwrap(), allow);
    }

    #[test]
    fn a_beam_search_is_written_and_read_back() {
        let params = GenerationParams { num_beams: 5, length_penalty: 0.5, early_stopping: true, ..Default::default() };
        let json = serde_json::to_string(&params).unwrap();
        assert!(json.contains(r#""num_beams":5,"length_penalty":0.5,"early_stopping":true"#), "{json}");
        assert_eq!(serde_json::from_str::<GenerationParams>(&json).unwrap(), params);
    }
}
