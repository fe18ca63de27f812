//! The `esgz` binary.

fn main() {}
