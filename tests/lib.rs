//! The integration tests of slicemill live in the one test binary beside this file; the library is empty.
