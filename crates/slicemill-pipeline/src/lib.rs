//! The typed stream of slicemill: backends, device threads and leases, buckets and batches.
pub mod backend;
