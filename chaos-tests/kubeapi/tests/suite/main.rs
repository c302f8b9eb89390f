//! The embedded API against kube's own clients and kubectl, over real TLS.

mod access;
mod clients;
mod faults;
mod kubectl;
mod patches;
mod restart;
mod support;
mod watches;
