//! `hawser`: what an operator asks of the agents.
//!
//! For flows one thread waits for all sockets; [`merge`] and [`render`] decide, [`client`] and [`flows`] do. [`keys`] and
//! [`audit`] speak with the API server.

pub mod agents;
pub mod api;
pub mod audit;
pub mod client;
pub mod clustermesh;
pub mod completion;
pub mod connectivity;
pub mod doctor;
pub mod flows;
pub mod keys;
pub mod merge;
pub mod output;
pub mod plan;
pub mod policy;
pub mod render;
mod signals;
pub mod status;
pub mod sysdump;
