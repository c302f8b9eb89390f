//! What one object wants of the tables, by itself: its addresses and who is behind each. Whether it gets them is decided
//! elsewhere, among all.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::model::HostPortFacts;
use super::problem::{Owner, ServiceProblem};
use super::tables::FrontendKey;
use crate::policy::model::Protocol;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub(super) const fn of(addr: IpAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// Which policy chose the backends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reach {
    Cluster,
    Local,
    /// The node of this name alone: it was asked by its NodePort, under `externalTrafficPolicy: Local`.
    Node(String),
    /// A node that has no endpoint was asked in that way.
    NoNode,
}

/// Backends that frontends share, named within their owner.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PoolKey {
    pub(super) port: String,
    pub(super) protocol: Protocol,
    pub(super) family: Family,
    pub(super) reach: Reach,
}

/// Who is in a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Members {
    pub(super) chosen: BTreeSet<SocketAddr>,
    pub(super) leaving: BTreeSet<SocketAddr>,
    /// While nobody is chosen, clients hear nothing, instead of being refused.
    pub(super) silent: bool,
}

/// Which claim to an address is stronger, the strongest first: what the API server allocates, before what people write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    ClusterIp,
    NodePort,
    LoadBalancer,
    External,
    HostPort,
    /// A NodePort at the address of one node: beneath all that is said of that address by itself, as a NodePort is at all nodes.
    NodePortOfNode,
}

impl Rank {
    pub(super) const fn field(self) -> &'static str {
        match self {
            Self::ClusterIp => "spec.clusterIPs",
            Self::NodePort | Self::NodePortOfNode => "spec.ports[].nodePort",
            Self::LoadBalancer => "status.loadBalancer.ingress",
            Self::External => "spec.externalIPs",
            Self::HostPort => "hostPort",
        }
    }
}

/// What an address leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Pool(PoolKey),
    /// Nowhere for this node's pods.
    Nowhere,
    /// Key of the whole address. `refuse`: what has no frontend is refused; else it is left to the stack.
    Rest {
        refuse: bool,
    },
}

/// One address wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) rank: Rank,
    pub(super) target: Target,
    pub(super) affinity: u32,
}

/// What an object wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) pools: BTreeMap<PoolKey, Members>,
    pub(super) claims: BTreeMap<FrontendKey, Claim>,
    pub(super) problems: BTreeSet<ServiceProblem>,
}

/// Sentences about one object that are kept: a thousand wrong endpoints need no thousand Events.
const MOST_PROBLEMS: usize = 16;

impl Wanted {
    /// Of two claims of one object to one key the stronger one counts.
    pub(super) fn claim(&mut self, key: FrontendKey, claim: Claim) {
        match self.claims.get(&key) {
            Some(had) if had.rank <= claim.rank => {}
            _ => {
                self.claims.insert(key, claim);
            }
        }
    }

    /// Pools that no claim leads to are no pools.
    pub(super) fn prune(&mut self) {
        let leads_to = |claim: &Claim| match &claim.target {
            Target::Pool(pool) => Some(pool.clone()),
            Target::Nowhere | Target::Rest { .. } => None,
        };
        let used: BTreeSet<PoolKey> = self.claims.values().filter_map(leads_to).collect();
        self.pools.retain(|pool, _| used.contains(pool));
    }

    pub(super) fn complain(&mut self, problem: ServiceProblem) {
        if self.problems.len() < MOST_PROBLEMS {
            self.problems.insert(problem);
        }
    }
}

/// What a pod's hostPorts want, on a node with these addresses.
pub(super) fn of_pod(owner: &Owner, ports: &[&HostPortFacts], node: &BTreeSet<IpAddr>) -> Wanted {
    let mut wanted = Wanted::default();
    for facts in ports {
        let only = facts.host_ip.filter(|ip| !ip.is_unspecified());
        for family in Family::BOTH {
            // hostIP 0.0.0.0 means every address of IPv4 alone, as for a socket; :: and none mean both.
            if facts.host_ip.is_some_and(|ip| ip.is_ipv4() && family == Family::V6) {
                continue;
            }
            let Some(pod) = facts.pod_ips.iter().find(|ip| Family::of(**ip) == family) else { continue };
            let at: Vec<IpAddr> = node
                .iter()
                .copied()
                .filter(|addr| Family::of(*addr) == family && only.is_none_or(|only| only == *addr))
                .collect();
            if !at.is_empty() {
                host_port(&mut wanted, owner, facts, SocketAddr::new(*pod, facts.container_port), &at);
            }
        }
    }
    wanted.prune();
    wanted
}

fn host_port(wanted: &mut Wanted, owner: &Owner, facts: &HostPortFacts, backend: SocketAddr, at: &[IpAddr]) {
    if facts.protocol == Protocol::Sctp && facts.host_port != facts.container_port {
        wanted.complain(ServiceProblem::SctpPortChanged {
            owner: owner.clone(),
            field: "hostPort".to_owned(),
            port: facts.host_port,
            endpoint: backend,
        });
        return;
    }
    let name = match facts.host_ip {
        Some(ip) => format!("hostPort {}", SocketAddr::new(ip, facts.host_port)),
        None => format!("hostPort {}", facts.host_port),
    };
    let pool = PoolKey {
        port: name,
        protocol: facts.protocol,
        family: Family::of(backend.ip()),
        reach: Reach::Local,
    };
    for addr in at {
        let key = FrontendKey { addr: *addr, port: facts.host_port, protocol: Some(facts.protocol) };
        let target = Target::Pool(pool.clone());
        wanted.claim(key, Claim { rank: Rank::HostPort, target, affinity: 0 });
    }
    let members = Members { chosen: BTreeSet::from([backend]), ..Members::default() };
    wanted.pools.insert(pool, members);
}
