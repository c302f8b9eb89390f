//! Clusters that exchange what they are, over real TLS on loopback, each with an API server of its own.

#![allow(clippy::unwrap_used, reason = "the helpers of tests fail as tests do")]

mod doors;
mod expiry;
mod healthy;
mod impostors;
mod leaders;
mod line;
mod log;
mod program;
mod raw;
mod renewal;
mod slow;
mod versions;
mod watches;
mod world;
