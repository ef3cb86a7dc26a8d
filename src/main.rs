//! The `blackhole` command.
fn main() {}
