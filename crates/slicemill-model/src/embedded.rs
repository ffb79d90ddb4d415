//! The model that is compiled into the program: a tiny LLaVA-UHD, in the layout of any checkpoint.

/// config.json.
pub(crate) static CONFIG: &[u8] = include_bytes!("../embedded/config.json");
/// model.safetensors, f16.
pub(crate) static WEIGHTS: &[u8] = include_bytes!("../embedded/model.safetensors");
/// tokenizer.json.
pub(crate) static TOKENIZER: &[u8] = include_bytes!("../embedded/tokenizer.json");
