//! What `netns` shows of devices whose packets one thread carries, of devices with four; and what only those have.
//!
//! Needs what `netns` needs.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a helper that cannot do its part fails the test, too; how long a return took is to be seen"
)]

#[path = "../netns/alive.rs"]
mod alive;
#[path = "../netns/configuration.rs"]
mod configuration;
#[path = "../netns/interop.rs"]
mod interop;
#[path = "../netns/lab.rs"]
mod lab;
mod lanes;
#[path = "../netns/lifecycle.rs"]
mod lifecycle;
#[path = "../netns/offload.rs"]
mod offload;
#[path = "../netns/path.rs"]
mod path;
#[path = "../netns/peers.rs"]
mod peers;
#[path = "../netns/traffic.rs"]
mod traffic;

/// Threads that carry the packets of each of our devices.
pub(crate) const THREADS: u8 = 4;
/// Threads that help them.
pub(crate) const HELPERS: u8 = 2;
