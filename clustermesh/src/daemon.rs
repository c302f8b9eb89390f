//! The daemon: serves what its cluster tells, mirrors the clusters that are joined, and tells its own agents of all.

pub mod authority;
pub mod feed;
pub mod hub;
pub mod judge;
pub mod metrics;
pub mod own;
pub mod publish;
pub mod server;
pub mod store;
pub mod tls;
pub mod tokens;
pub mod watch;

pub use hub::Hub;
