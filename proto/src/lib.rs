//! Contracts on the wire. Today: the frames between the CNI plugin and the node agent ([`cni`]).

pub mod cni;
