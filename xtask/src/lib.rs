//! What the project's tools share with its benches and its lab.

pub mod bench;
pub mod deploy;
pub mod elf;
pub mod image;
pub mod linked;
pub mod notices;
pub mod openapi;
pub mod sbom;
pub mod template;
pub mod values;

/// With this a test says in its output that it was not run, after which come its name and what was missing.
pub const NOT_RUN: &str = "[not run] ";
