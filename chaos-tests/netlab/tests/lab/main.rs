//! Tests of the laboratory in real namespaces. They need root and fail without it.

mod bridge;
mod namespace;
mod probe;
mod support;
mod wire;
