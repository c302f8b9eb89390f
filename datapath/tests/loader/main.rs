//! The loader against the kernel: pins, links, maps, policy as a transaction, events. Needs root.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

mod attach;
mod events;
mod flows;
mod lab;
mod pins;
mod policy;
mod services;
