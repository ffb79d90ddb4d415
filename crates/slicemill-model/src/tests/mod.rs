//! Tests of the whole model: against references, and against itself in other batches.

mod batching;
mod embedded;
mod golden;
mod loading;
mod numeric;
mod oracle;
mod random;
#[path = "../../../../tests/recipe.rs"]
mod recipe;
