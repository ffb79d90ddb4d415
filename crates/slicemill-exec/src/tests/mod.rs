//! Whole jobs in temporary folders.
