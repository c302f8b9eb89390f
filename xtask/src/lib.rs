//! What the project's tools share with its benches.

pub mod bench;
