//! The programs of the data path, packet by packet, in the kernel by `BPF_PROG_TEST_RUN`. Needs root.

#[path = "../support/mod.rs"]
mod support;

mod delivery;
mod flows;
mod fragments;
mod guard;
mod icmp;
mod malformed;
mod policy;
mod revocation;
mod services;
mod spoofing;
