//! Contracts on the wire: the frames between the CNI plugin and the node agent ([`cni`]), the lines that the agent
//! tells of flows ([`flows`]), and, with the feature `grpc`, how two agents agree on a pre-shared key (`keys`) and what clusters
//! tell each other (`clustermesh`).

#[cfg(feature = "grpc")]
pub mod clustermesh;
pub mod cni;
pub mod flows;
#[cfg(feature = "grpc")]
pub mod keys;
