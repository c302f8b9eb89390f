//! The embedded API against kube's own clients and kubectl, over real TLS.

#![allow(clippy::unwrap_used, reason = "the helpers of tests fail as tests do")]

mod access;
mod admission;
mod clients;
mod faults;
mod kubectl;
mod patches;
mod restart;
mod support;
mod watches;
