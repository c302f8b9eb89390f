//! Services, for what pods originate (design D8): ClusterIP, NodePort, external and load-balancer IPs, hostPort.
//!
//! [`model`] is what the API says, [`tables`] what the data path is told. Between them stands [`Compiler`]: pure, with one
//! service's work for one service's change. Who gets traffic is kube-proxy's answer (KEP-1669, KEP-1672, KEP-2086,
//! KEP-2433, KEP-4444), so that both can serve one node beside each other; `select` says how.
//!
//! Endpoints of other clusters ([`crate::mcs`]) are those of slices with [`model::LABEL_REMOTE`]: the same table with more
//! backends, chosen after this cluster's own.
//!
//! What pods send to external addresses never leaves the cluster, so it follows the `Cluster` policy even where
//! `externalTrafficPolicy` is `Local`.

mod claims;
pub mod compile;
mod expand;
pub mod maglev;
pub mod model;
pub mod places;
mod pools;
pub mod problem;
mod select;
pub mod tables;
mod wanted;

pub use compile::{AdoptError, Compiler, Work};
pub use problem::{Owner, ServiceProblem};
pub use tables::{Backend, BackendId, Delta, Frontend, FrontendKey, Limits, PlaceRun, ServiceNumber, State};

#[cfg(test)]
mod tests;
