//! Contracts on the wire: the frames between the CNI plugin and the node agent ([`cni`]), and the lines that the agent
//! tells of flows ([`flows`]).

pub mod cni;
pub mod flows;
