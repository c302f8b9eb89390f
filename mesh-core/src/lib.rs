//! Every decision of the mesh, as pure functions: no I/O, no clock, no randomness, no async. Time is an argument.
//!
//! Facts come in as plain data ([`view::ClusterView`]), decisions go out as plain data
//! ([`plan::Desired`], [`diff::Op`], [`problem::Problem`]). Collections are ordered, so equal facts give
//! equal plans, byte for byte.

pub mod announcement;
pub mod cache;
pub mod clusters;
pub mod diff;
pub mod evidence;
pub mod host;
pub mod ipam;
pub mod key;
pub mod leftover;
pub mod mcs;
pub mod name;
pub mod numbers;
pub mod pair;
pub mod plan;
pub mod policy;
pub mod prefix;
pub mod problem;
pub mod psk;
pub mod retired;
pub mod service;
pub mod slot;
pub mod view;
