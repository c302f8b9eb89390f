//! Pods through the real CNI plugin and the real agent: many at once, in the wrong order, with the agent, the API or
//! the disk gone, and what is left afterwards, which must be nothing.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod common;
mod damage;
mod delete;
mod identity;
mod parallel;
mod pool;
mod verbs;
