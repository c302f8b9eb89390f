//! What the project's tools share with its benches and its lab.

pub mod bench;
pub mod deploy;
pub mod elf;
pub mod image;
pub mod openapi;
pub mod sbom;
pub mod template;
pub mod values;
