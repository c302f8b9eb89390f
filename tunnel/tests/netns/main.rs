//! Devices in network namespaces, driven from outside. Needs root, /dev/net/tun and the packages iproute2,
//! iputils-ping, util-linux, wireguard-tools, nftables and wireguard-go.
#![allow(clippy::unwrap_used, reason = "a helper that cannot do its part fails the test, too")]

mod configuration;
mod interop;
mod lab;
mod lifecycle;
mod offload;
mod path;
mod peers;
mod traffic;
