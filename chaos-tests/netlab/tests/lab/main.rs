//! Tests of the laboratory in real namespaces. They need root and fail without it.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod bridge;
mod namespace;
mod probe;
mod support;
mod wire;
