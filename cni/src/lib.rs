//! The CNI plugin: thin, synchronous, static.
//!
//! `hawser-cni` validates what the container runtime passes, hands it to the node's agent over a unix socket
//! ([`proto::cni`]) and prints the answer in the shape of the configuration's version. It keeps no state and knows
//! nothing of addresses, routes or policies; the one thing it writes is a note for a DEL that the agent could not
//! take ([`pending`]).
//!
//! * [`plan::plan`] decides: environment and stdin in, [`plan::Plan`] out. Pure.
//! * [`run::run`] does: asks the agent, enters namespaces, writes notes.
//! * [`prepare`] mounts what the agent's container needs of its node.
//! * [`install`] puts binary and configuration where runtimes find them.
//!
//! # Chaining
//! Hawser is a main plugin. A `prevResult` on ADD that already has the interface `CNI_IFNAME` in a sandbox is refused
//! with code 7. Any other is kept, and our interfaces, addresses and routes are appended to it with their indexes
//! shifted. Plugins that adjust (portmap, bandwidth, tuning) come after us; what they added or took away stands in the
//! `prevResult` of CHECK, whose addresses and routes the agent gets.
//!
//! # Configuration
//! Besides the well-known keys: `agentSocket` (absolute path, default [`proto::cni::SOCKET`]), `pendingDeletes`
//! (absolute path, default [`proto::cni::PENDING_DELETES`]) and `agentTimeoutSeconds` (1 to 110, for every verb;
//! default 60 for ADD, 10 for STATUS, 30 for others).
//!
//! # Static binary
//! ```text
//! RUSTFLAGS='-C target-feature=+crt-static -C strip=debuginfo' \
//!     cargo build --release --target x86_64-unknown-linux-gnu -p cni --bin hawser-cni
//! ```
//! The explicit `--target` keeps the flag away from build scripts and procedural macros, which cannot be static.
//! The result needs no file of its root but the agent's socket, the namespace and `/proc`.

pub mod agent;
pub mod cli;
pub mod config;
pub mod environment;
pub mod error;
mod files;
mod fuzz;
pub mod install;
mod json;
mod loopback;
pub mod netns;
pub mod pending;
pub mod plan;
pub mod plugin;
pub mod prepare;
pub mod result;
pub mod run;
pub mod version;

pub use fuzz::{fuzz_frame, fuzz_stdin};

#[cfg(test)]
mod tests;
