//! The agent against an API server that misbehaves, Nodes that lie, and a start with bad input; and the lab's own
//! command line. Needs root; every lab is isolated and named for itself.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a failed step fails the test, and numbers are for people"
)]

mod condition;
mod faults;
mod nodes;
mod program;
mod start;
mod support;
