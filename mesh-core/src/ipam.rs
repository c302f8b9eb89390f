//! Addresses for pods out of the node's pod CIDRs, one per family.
//!
//! Reserved: the network address (in IPv6 the subnet-router anycast address, RFC 4291 section 2.6.1), the mesh
//! address after it, and IPv4's broadcast address. Addresses never handed out go first, in order; then the one that
//! was freed longest ago. A freed address rests for [`QUARANTINE`], so that no packet, conntrack entry or policy meant
//! for its last pod meets the next one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::name::NodeName;
use crate::prefix;
use crate::problem::Problem;

/// Rest of a freed address in milliseconds: longer than an API watch usually lags, short enough that a node of 254
/// addresses can replace its pods every half minute.
pub const QUARANTINE: u64 = 30_000;
/// From this share of a pool on, it is a [`Problem`]: percent.
pub const WARN_PERCENT: u64 = 90;

/// Pools with more addresses than this are not remembered address by address.
const LARGE: u64 = 1 << 20;

/// Milliseconds on any clock that does not go back; only differences matter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(pub u64);

/// Why there is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IpamError {
    /// The node has no pod CIDR.
    #[error("node {node} has no pod CIDR (spec.podCIDRs is empty or refused)")]
    NoPool {
        /// The node.
        node: NodeName,
    },
    /// All addresses are taken.
    #[error(
        "node {node}: pod CIDR {cidr} is exhausted: {used} of {capacity} addresses in use, {resting} more in quarantine"
    )]
    Exhausted {
        /// The node.
        node: NodeName,
        /// Its pod CIDR.
        cidr: IpNet,
        /// Addresses of pods.
        used: u64,
        /// Addresses that pods can have.
        capacity: u64,
        /// Addresses freed less than [`QUARANTINE`] ago.
        resting: u64,
    },
    /// The address asked for is outside the pod CIDRs or reserved.
    #[error("address {address} asked for is not one that a pod of node {node} can have ({cidrs})")]
    NotOurs {
        /// The node.
        node: NodeName,
        /// The address.
        address: IpAddr,
        /// Its pod CIDRs.
        cidrs: String,
    },
    /// The address asked for is taken or resting.
    #[error("address {address} asked for is in use on node {node}, or was until a moment ago")]
    Taken {
        /// The node.
        node: NodeName,
        /// The address.
        address: IpAddr,
    },
    /// Two addresses of one family were asked for.
    #[error("two addresses of one family asked for: {first} and {second}")]
    TwoOfOneFamily {
        /// One.
        first: IpAddr,
        /// The other.
        second: IpAddr,
    },
}

/// The pools of a node. All state can be rebuilt: [`Ipam::claim`] what attachments hold, [`Ipam::rest`] what was freed.
#[derive(Clone, Debug)]
pub struct Ipam {
    node: NodeName,
    pools: Vec<Pool>,
    used: BTreeSet<IpAddr>,
    /// Freed addresses by the time of it.
    resting: BTreeSet<(Millis, IpAddr)>,
    freed_at: BTreeMap<IpAddr, Millis>,
}

#[derive(Clone, Debug)]
struct Pool {
    cidr: IpNet,
    /// First and last address that a pod may have.
    first: u128,
    last: u128,
    /// Where to look next for an address that was never handed out.
    next: u128,
}

/// How full a pool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Usage {
    /// The pod CIDR.
    pub cidr: IpNet,
    /// Addresses of pods.
    pub used: u64,
    /// Addresses in quarantine.
    pub resting: u64,
    /// Addresses that pods can have (saturating: an IPv6 pool has more than a `u64` holds).
    pub capacity: u64,
}

impl Ipam {
    /// Pools over the accepted pod CIDRs of a node (`mesh_core::plan::Desired::own_pod_cidrs`), at most one per family.
    pub fn new(node: NodeName, cidrs: &[IpNet]) -> Self {
        let mut ipam = Self {
            node,
            pools: Vec::new(),
            used: BTreeSet::new(),
            resting: BTreeSet::new(),
            freed_at: BTreeMap::new(),
        };
        ipam.set_cidrs(cidrs);
        ipam
    }

    /// Changes the pools; what is in use stays in use.
    pub fn set_cidrs(&mut self, cidrs: &[IpNet]) {
        let same =
            cidrs.len() == self.pools.len() && cidrs.iter().zip(&self.pools).all(|(c, p)| *c == p.cidr);
        if !same {
            self.pools = cidrs.iter().filter_map(|cidr| Pool::new(*cidr)).collect();
        }
    }

    /// Takes note of an address that a pod already has. False: another has it too.
    pub fn claim(&mut self, address: IpAddr) -> bool {
        self.unrest(address);
        self.used.insert(address)
    }

    /// Takes note of an address freed at `at`.
    pub fn rest(&mut self, address: IpAddr, at: Millis) {
        if !self.used.contains(&address) {
            self.unrest(address);
            self.resting.insert((at, address));
            self.freed_at.insert(address, at);
        }
    }

    /// One address of each family that the node has, or nothing. `asked`: particular ones, at most one per family.
    ///
    /// # Errors
    /// See [`IpamError`]; then nothing is taken.
    pub fn allocate(&mut self, asked: &[IpAddr], now: Millis) -> Result<Vec<IpAddr>, IpamError> {
        if self.pools.is_empty() {
            return Err(IpamError::NoPool { node: self.node.clone() });
        }
        self.check_asked(asked, now)?;
        let mut taken = Vec::with_capacity(self.pools.len());
        for index in 0..self.pools.len() {
            let family = self.pools[index].cidr.addr();
            let wish = asked.iter().copied().find(|address| prefix::same_family(*address, family));
            match wish.or_else(|| self.pick(index, now)) {
                Some(address) => {
                    taken.push(address);
                }
                None => return Err(self.exhausted(index, now)),
            }
        }
        for address in &taken {
            self.claim(*address);
        }
        Ok(taken)
    }

    /// Frees an address; it rests from `now`.
    pub fn release(&mut self, address: IpAddr, now: Millis) {
        if self.used.remove(&address) {
            self.rest(address, now);
        }
        self.forget(now);
    }

    /// In a pool so large that it is never walked through, a rested address need not be remembered.
    fn forget(&mut self, now: Millis) {
        let large = |a: &IpAddr| self.pools.iter().any(|pool| pool.holds(*a) && pool.capacity() > LARGE);
        let rested: Vec<_> = self
            .resting
            .iter()
            .take_while(|(at, _)| rested(*at, now))
            .filter(|(_, a)| large(a))
            .copied()
            .collect();
        for (_, address) in rested {
            self.unrest(address);
        }
    }

    /// How full each pool is.
    pub fn usage(&self, now: Millis) -> Vec<Usage> {
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let usage = |pool: &Pool| Usage {
            cidr: pool.cidr,
            used: count(self.used.iter().filter(|a| pool.holds(**a)).count()),
            resting: count(self.resting.iter().filter(|(at, a)| pool.holds(*a) && !rested(*at, now)).count()),
            capacity: pool.capacity(),
        };
        self.pools.iter().map(usage).collect()
    }

    /// A problem for each pool that is at least [`WARN_PERCENT`] full.
    pub fn problems(&self, now: Millis) -> Vec<Problem> {
        let full = |usage: &Usage| {
            let used = usage.used.saturating_add(usage.resting);
            u128::from(used) * 100 >= u128::from(usage.capacity) * u128::from(WARN_PERCENT)
        };
        let problem = |usage: Usage| Problem::PoolNearlyFull {
            node: self.node.clone(),
            cidr: usage.cidr,
            used: usage.used.saturating_add(usage.resting),
            capacity: usage.capacity,
        };
        self.usage(now).into_iter().filter(full).map(problem).collect()
    }

    fn check_asked(&self, asked: &[IpAddr], now: Millis) -> Result<(), IpamError> {
        for (index, address) in asked.iter().enumerate() {
            let twin = asked[..index].iter().find(|other| prefix::same_family(**other, *address));
            if let Some(first) = twin {
                return Err(IpamError::TwoOfOneFamily { first: *first, second: *address });
            }
            let (node, address) = (self.node.clone(), *address);
            if !self.pools.iter().any(|pool| pool.holds(address)) {
                let cidrs = self.pools.iter().map(|p| p.cidr.to_string()).collect::<Vec<_>>().join(", ");
                return Err(IpamError::NotOurs { node, address, cidrs });
            }
            let resting = self.freed_at.get(&address).is_some_and(|at| !rested(*at, now));
            if self.used.contains(&address) || resting {
                return Err(IpamError::Taken { node, address });
            }
        }
        Ok(())
    }

    fn pick(&mut self, index: usize, now: Millis) -> Option<IpAddr> {
        let pool = &mut self.pools[index];
        while pool.next <= pool.last {
            let address = pool.address(pool.next);
            if !self.used.contains(&address) && !self.freed_at.contains_key(&address) {
                return Some(address);
            }
            pool.next += 1;
        }
        let pool = &self.pools[index];
        let oldest = self.resting.iter().find(|(_, address)| pool.holds(*address));
        oldest.filter(|(at, _)| rested(*at, now)).map(|(_, address)| *address)
    }

    fn exhausted(&self, index: usize, now: Millis) -> IpamError {
        let usage = self.usage(now)[index];
        let node = self.node.clone();
        let Usage { cidr, used, resting, capacity } = usage;
        IpamError::Exhausted { node, cidr, used, capacity, resting }
    }

    fn unrest(&mut self, address: IpAddr) {
        if let Some(at) = self.freed_at.remove(&address) {
            self.resting.remove(&(at, address));
        }
    }
}

fn rested(freed: Millis, now: Millis) -> bool {
    now.0.saturating_sub(freed.0) >= QUARANTINE
}

impl Pool {
    fn new(cidr: IpNet) -> Option<Self> {
        prefix::mesh_address(&cidr)?;
        let (network, last) = match cidr {
            IpNet::V4(net) => {
                (u128::from(u32::from(net.network())), u128::from(u32::from(net.broadcast())) - 1)
            }
            IpNet::V6(net) => (u128::from(net.network()), u128::from(net.broadcast())),
        };
        let first = network + 2;
        Some(Self { cidr, first, last, next: first })
    }

    fn address(&self, number: u128) -> IpAddr {
        match self.cidr {
            IpNet::V4(_) => {
                IpAddr::V4(u32::try_from(number).expect("a pool's numbers fit its family").into())
            }
            IpNet::V6(_) => IpAddr::V6(number.into()),
        }
    }

    fn holds(&self, address: IpAddr) -> bool {
        let number = match (self.cidr, address) {
            (IpNet::V4(_), IpAddr::V4(v4)) => u128::from(u32::from(v4)),
            (IpNet::V6(_), IpAddr::V6(v6)) => u128::from(v6),
            (IpNet::V4(_), IpAddr::V6(_)) | (IpNet::V6(_), IpAddr::V4(_)) => return false,
        };
        (self.first..=self.last).contains(&number)
    }

    fn capacity(&self) -> u64 {
        u64::try_from(self.last - self.first).map_or(u64::MAX, |n| n.saturating_add(1))
    }
}

#[cfg(test)]
mod tests;
