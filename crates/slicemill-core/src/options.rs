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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ImageOptions {
    /// EXIF orientation.
    pub orientation: OrientationRule,
    /// Alpha channel.
    pub alpha: Alpha,
    /// Largest accepted width × height, checked before any allocation.
    pub pixels_max: u64,
}

impl ImageOptions {
    /// Pillow's decompression-bomb warning limit doubled, the size at which Pillow refuses: 178,956,970 pixels.
    pub const PIXELS_MAX_DEFAULT: u64 = 178_956_970;
}

impl Default for ImageOptions {
    fn default() -> Self {
        Self { orientation: OrientationRule::Apply, alpha: Alpha::White, pixels_max: Self::PIXELS_MAX_DEFAULT }
    }
}

/// How text is generated. Temperature 0 is greedy.
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
    /// Divide positive and multiply negative logits of tokens already produced (1 = off).
    pub repetition_penalty: f32,
    /// Seed of the job; each row derives its own from this and its key.
    pub seed: u64,
}

impl Default for GenerationParams {
    fn default() -> Self {
        Self { max_new_tokens: 128, temperature: 0.0, top_k: None, top_p: None, repetition_penalty: 1.0, seed: 0 }
    }
}
