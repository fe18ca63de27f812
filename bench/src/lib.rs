//! Benchmarks: programs that measure what the machine allows on an image (`src/bin`), and
//! micro-benchmarks of the stages (`benches`) on inputs that are made here.

pub mod input;
