//! `hawser`: what an operator asks of the agents.
//!
//! Synchronous and small: one thread waits for all sockets. [`merge`] and [`render`] decide, [`client`] and [`flows`] do.

pub mod client;
pub mod flows;
pub mod merge;
pub mod render;
