//! accuracy
fn main() {}
