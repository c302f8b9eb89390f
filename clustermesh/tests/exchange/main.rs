//! Clusters that exchange what they are, over real TLS on loopback, each with an API server of its own.

mod healthy;
mod impostors;
mod program;
mod renewal;
mod world;
