//! Tests of the whole model: against references, and against itself in other batches.

mod batching;
mod bridge;
mod embedded;
mod loading;
mod numeric;
mod oracle;
mod random;
