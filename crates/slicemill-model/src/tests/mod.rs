//! Tests of the whole model: against references, and against itself in other batches.

mod batching;
mod beams;
mod embedded;
mod golden;
mod golden_beams;
mod loading;
mod numeric;
mod oracle;
mod random;
#[path = "../../../../tests/recipe.rs"]
pub mod recipe;
