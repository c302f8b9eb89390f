//! The eBPF data path: the programs in `src/bpf`, compiled by `build.rs`, and what loads, attaches and feeds them.
//!
//! This crate is one of the two that may use `unsafe`: it lives in [`abi`] (plain data for the kernel) and in `sys`
//! (the `bpf` system call).

pub mod abi;
pub mod bank;
