//! The daemon: serves what its cluster tells, mirrors the clusters that are joined, and tells its own agents of all.

pub mod feed;
pub mod store;
