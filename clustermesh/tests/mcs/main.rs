//! Multi-Cluster Services: what is written, against a model of an API server and against the lab's; names, by sockets.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod conformance;
mod definitions;
mod dns;
mod failures;
mod lab;
mod model;
mod model_api;
mod wire;
