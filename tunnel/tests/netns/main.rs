//! Devices in network namespaces, driven from outside. Needs root, /dev/net/tun and the packages iproute2,
//! iputils-ping, util-linux, wireguard-tools, nftables and wireguard-go.
#![allow(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

mod configuration;
mod interop;
mod lab;
mod lifecycle;
mod peers;
mod traffic;
