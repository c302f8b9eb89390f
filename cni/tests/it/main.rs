//! The real binary against a test agent, real namespaces, real directories. Needs root.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking, as the tests do")]

mod agent;
mod chain;
mod chroot;
mod deletes;
mod install;
mod loopback;
mod support;
mod table;
