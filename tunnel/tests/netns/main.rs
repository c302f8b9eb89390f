//! Devices in network namespaces, driven from outside. Needs root, /dev/net/tun and the packages iproute2,
//! iputils-ping, util-linux, wireguard-tools, nftables and wireguard-go.
//!
//! With `HAWSER_SLOW=1` sessions are renewed under traffic, which takes two and a half minutes. With `HAWSER_PEER=boringtun-cli`
//! (in PATH) that is the other end where tests speak with a program that is not ours; with `HAWSER_PEER=kernel` the kernel's module
//! (`cargo xtask vm`).
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a helper that cannot do its part fails the test, too; how long a return took is to be seen"
)]

mod alive;
mod configuration;
mod interop;
mod lab;
mod lifecycle;
mod offload;
mod path;
mod peers;
mod traffic;

/// Threads that carry the packets of each of our devices.
pub(crate) const THREADS: u8 = 1;
/// Threads that help it.
pub(crate) const HELPERS: u8 = 0;
