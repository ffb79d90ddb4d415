//! Tests of the whole dataflow.
