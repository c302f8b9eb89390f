//! Clusters that exchange what they are, over real TLS on loopback, each with an API server of its own.

#![allow(clippy::unwrap_used, reason = "the helpers of tests fail as tests do")]

mod healthy;
mod impostors;
mod line;
mod program;
mod renewal;
mod slow;
mod world;
