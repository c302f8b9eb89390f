//! Who owns an address or a CIDR that nodes claim: the older Node, then the smaller name.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use mesh_core::name::NodeName;

/// Claims, each with its claimants by age.
#[derive(Debug)]
pub(super) struct Claims<K> {
    by: BTreeMap<K, BTreeSet<(i64, NodeName)>>,
}

impl<K> Default for Claims<K> {
    fn default() -> Self {
        Self { by: BTreeMap::new() }
    }
}

impl<K: Ord + Copy> Claims<K> {
    /// Who owns it.
    pub(super) fn owner(&self, claimed: &K) -> Option<&NodeName> {
        self.by.get(claimed)?.first().map(|(_, name)| name)
    }

    /// Those of `all` that the node owns.
    pub(super) fn kept(&self, name: &NodeName, all: BTreeSet<K>) -> BTreeSet<K> {
        all.into_iter().filter(|claimed| self.owner(claimed) == Some(name)).collect()
    }

    /// A node claims these. Returns others that claim any of them, too.
    pub(super) fn put(&mut self, name: &NodeName, created: i64, all: &BTreeSet<K>) -> Vec<NodeName> {
        let mut others = Vec::new();
        for claimed in all {
            let claimants = self.by.entry(*claimed).or_default();
            others.extend(claimants.iter().map(|(_, other)| other.clone()));
            claimants.insert((created, name.clone()));
        }
        others
    }

    /// A node claims these no longer. Returns others that claim any of them, too.
    pub(super) fn remove(&mut self, name: &NodeName, created: i64, all: &BTreeSet<K>) -> Vec<NodeName> {
        let mut others = Vec::new();
        for claimed in all {
            let Some(claimants) = self.by.get_mut(claimed) else { continue };
            claimants.remove(&(created, name.clone()));
            others.extend(claimants.iter().map(|(_, other)| other.clone()));
            if claimants.is_empty() {
                self.by.remove(claimed);
            }
        }
        others
    }
}

/// CIDRs of nodes, by which an address is found.
#[derive(Debug, Default)]
pub(super) struct Cidrs {
    claims: Claims<IpNet>,
    /// How many prefixes there are of each length, for IPv6 (true) and IPv4: few lengths, so a look-up is short.
    lengths: BTreeMap<(bool, u8), usize>,
}

impl Cidrs {
    /// The node in whose CIDR an address lies, the longest first.
    pub(super) fn owner(&self, address: IpAddr) -> Option<&NodeName> {
        let six = address.is_ipv6();
        let lengths = self.lengths.range((six, 0)..=(six, 128)).rev();
        lengths.into_iter().find_map(|((_, length), _)| {
            let net = IpNet::new(address, *length).ok()?.trunc();
            self.claims.owner(&net)
        })
    }

    /// All of them with their owners.
    pub(super) fn all(&self) -> BTreeMap<IpNet, NodeName> {
        let owner = |(net, claimants): (&IpNet, &BTreeSet<(i64, NodeName)>)| {
            claimants.first().map(|(_, name)| (*net, name.clone()))
        };
        self.claims.by.iter().filter_map(owner).collect()
    }

    /// A node has these.
    pub(super) fn put(&mut self, name: &NodeName, created: i64, all: &BTreeSet<IpNet>) {
        for net in all {
            *self.lengths.entry(length(net)).or_insert(0) += 1;
        }
        self.claims.put(name, created, all);
    }

    /// A node has these no longer.
    pub(super) fn remove(&mut self, name: &NodeName, created: i64, all: &BTreeSet<IpNet>) {
        for net in all {
            let left = self.lengths.entry(length(net)).or_insert(1);
            *left -= 1;
            if *left == 0 {
                self.lengths.remove(&length(net));
            }
        }
        self.claims.remove(name, created, all);
    }
}

fn length(net: &IpNet) -> (bool, u8) {
    (net.addr().is_ipv6(), net.prefix_len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_that_claim_the_same_the_older_keeps_it_and_the_other_has_it_after_it() {
        let (old, new): (NodeName, NodeName) = ("b".parse().unwrap(), "a".parse().unwrap());
        let all = BTreeSet::from([1, 2]);
        let mut claims = Claims::default();
        assert!(claims.put(&new, 20, &all).is_empty());
        assert_eq!(claims.put(&old, 10, &BTreeSet::from([1])), vec![new.clone()]);
        assert_eq!(claims.kept(&new, all.clone()), BTreeSet::from([2]));
        assert_eq!(claims.kept(&old, all.clone()), BTreeSet::from([1]));
        assert_eq!(claims.remove(&old, 10, &BTreeSet::from([1])), vec![new.clone()]);
        assert_eq!(claims.kept(&new, all.clone()), all);
    }

    #[test]
    fn an_address_is_found_in_the_longest_cidr_of_its_family() {
        let net = |text: &str| BTreeSet::from([text.parse::<IpNet>().unwrap()]);
        let name = |text: &str| text.parse::<NodeName>().unwrap();
        let mut cidrs = Cidrs::default();
        for (node, cidr) in [("a", "10.1.0.0/16"), ("b", "10.1.2.0/24"), ("c", "fd00:1::/64")] {
            cidrs.put(&name(node), 1, &net(cidr));
        }
        let owner = |cidrs: &Cidrs, ip: &str| cidrs.owner(ip.parse().unwrap()).map(|n| n.as_str().to_owned());
        for (ip, node) in
            [("10.1.2.3", Some("b")), ("10.1.3.3", Some("a")), ("fd00:1::9", Some("c")), ("10.2.0.1", None)]
        {
            assert_eq!(owner(&cidrs, ip).as_deref(), node, "{ip}");
        }
        cidrs.remove(&name("b"), 1, &net("10.1.2.0/24"));
        assert_eq!(owner(&cidrs, "10.1.2.3").as_deref(), Some("a"));
        cidrs.remove(&name("a"), 1, &net("10.1.0.0/16"));
        assert_eq!(owner(&cidrs, "10.1.2.3"), None);
    }
}
