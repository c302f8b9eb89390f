//! Who has which address, for people who read flows, and which node to ask for one that nobody has. Written by the thread that
//! decides policy, after the data path knows it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use ipnet::IpNet;
use mesh_core::name::NodeName;
use mesh_core::policy::model::ObjectName;

/// Whose an address is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A pod's.
    Pod(ObjectName),
    /// A node's.
    Node(NodeName),
}

/// Everything that has a name.
#[derive(Debug, Default)]
pub struct Names {
    /// Pod CIDRs of the cluster.
    pub guarded: Vec<IpNet>,
    /// Pods and nodes.
    pub owners: BTreeMap<IpAddr, Owner>,
    /// Addresses of Services.
    pub services: BTreeMap<IpAddr, ObjectName>,
    /// Rules of policies by their number.
    pub rules: BTreeMap<u32, String>,
    /// Names of links by their index.
    pub links: BTreeMap<u32, String>,
    /// Pod CIDRs of nodes.
    pub cidrs: BTreeMap<IpNet, NodeName>,
}

impl Names {
    /// Is it inside a pod CIDR of the cluster?
    pub fn is_guarded(&self, address: IpAddr) -> bool {
        self.guarded.iter().any(|net| net.contains(&address))
    }

    /// Is nothing to be learnt about it: does somebody have it, or nobody of the cluster?
    pub fn is_known(&self, address: IpAddr) -> bool {
        self.owners.contains_key(&address) || !self.is_guarded(address)
    }

    /// The node in whose CIDR it lies.
    pub fn node_of(&self, address: IpAddr) -> Option<&NodeName> {
        mesh_core::policy::tables::longest_match(&self.cidrs, address).map(|(_, name)| name)
    }
}

/// Names, shared.
#[derive(Debug, Default)]
pub struct Register(RwLock<Names>);

impl Register {
    /// Of a cluster with these pod CIDRs.
    pub fn new(guarded: Vec<IpNet>) -> Self {
        Self(RwLock::new(Names { guarded, ..Names::default() }))
    }

    /// To look names up.
    pub fn read(&self) -> RwLockReadGuard<'_, Names> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes them.
    pub fn write(&self, change: impl FnOnce(&mut Names)) {
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_address_inside_the_cluster_that_nobody_has_is_worth_a_question() {
        let register = Register::new(vec!["10.0.0.0/8".parse().unwrap()]);
        let (pod, free, world): (IpAddr, IpAddr, IpAddr) =
            ("10.2.0.5".parse().unwrap(), "10.2.0.6".parse().unwrap(), "192.0.2.1".parse().unwrap());
        register.write(|names| {
            names.owners.insert(pod, Owner::Pod(ObjectName { namespace: "a".into(), name: "p".into() }));
            names.cidrs.insert("10.2.0.0/24".parse().unwrap(), "n2".parse().unwrap());
        });
        let names = register.read();
        assert_eq!([pod, free, world].map(|address| names.is_known(address)), [true, false, true]);
        assert_eq!(names.node_of(free).map(NodeName::as_str), Some("n2"));
        assert_eq!(names.node_of(world), None);
    }
}
