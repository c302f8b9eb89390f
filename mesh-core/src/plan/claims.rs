//! Who owns which key, CIDR and address. Of two that claim the same, the older Node keeps it (then the smaller
//! name), on every node alike; the other is refused and reported. So a newcomer can take nothing from anybody, and a node
//! of another cluster nothing from one of ours, however old it says that it is.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::key::PublicKey;
use crate::name::NodeName;
use crate::prefix;
use crate::problem::Problem;
use crate::psk::ClusterName;
use crate::slot::Slot;
use crate::view::{AnnouncementFact, ClusterView, EndpointFact, NodeFacts};

/// What was accepted of one node.
#[derive(Clone, Debug, Default)]
pub(super) struct Claim {
    pub(super) cidrs: Vec<IpNet>,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) keys_accepted: bool,
}

pub(super) struct Claims {
    by_node: BTreeMap<NodeName, Claim>,
    addresses: BTreeMap<IpAddr, NodeName>,
    nothing: Claim,
    pub(super) problems: Vec<Problem>,
}

impl Claims {
    pub(super) fn of(&self, name: &NodeName) -> &Claim {
        self.by_node.get(name).unwrap_or(&self.nothing)
    }

    /// Whose InternalIP an address is.
    pub(super) fn holder(&self, address: IpAddr) -> Option<&NodeName> {
        self.addresses.get(&address)
    }

    pub(super) fn judge(view: &ClusterView) -> Self {
        let mut by_age: Vec<(&NodeName, &NodeFacts)> = view.nodes.iter().collect();
        by_age.sort_by_key(|(name, node)| (name.is_foreign(), node.created, *name));
        let mut judge = Judge {
            view,
            guarded: view.settings.guarded(),
            keys: BTreeMap::new(),
            cidrs: BTreeMap::new(),
            addresses: BTreeMap::new(),
        };
        let mut claims = Self {
            by_node: BTreeMap::new(),
            addresses: BTreeMap::new(),
            nothing: Claim::default(),
            problems: Vec::new(),
        };
        // This node's keys are facts of its own disk, not claims: another Node that shows them is wrong, however old.
        for slot in Slot::ALL {
            let key = view.local.announcement.slot(slot).public_key;
            judge.keys.insert(key, view.local.name.clone());
        }
        for (name, node) in by_age {
            let claim = judge.node(name, node, &mut claims.problems);
            claims.by_node.insert(name.clone(), claim);
        }
        claims.addresses = judge.addresses;
        claims
    }
}

struct Judge<'a> {
    view: &'a ClusterView,
    /// Pods' prefixes, of joined clusters, too: no node is there.
    guarded: Vec<IpNet>,
    keys: BTreeMap<PublicKey, NodeName>,
    /// By their first address. None overlaps another's, so one that overlaps a new one begins in it or is the last before.
    cidrs: BTreeMap<IpAddr, (IpNet, NodeName)>,
    addresses: BTreeMap<IpAddr, NodeName>,
}

impl Judge<'_> {
    fn node(&mut self, name: &NodeName, node: &NodeFacts, problems: &mut Vec<Problem>) -> Claim {
        for bad in &node.malformed {
            problems.push(Problem::FieldMalformed {
                node: name.clone(),
                field: bad.field.clone(),
                value: bad.value.clone(),
                reason: bad.reason.clone(),
            });
        }
        if let EndpointFact::Malformed { value, reason } = &node.endpoint {
            let (value, reason) = (value.clone(), reason.clone());
            problems.push(Problem::EndpointMalformed { node: name.clone(), value, reason });
        }
        let keys_accepted = self.keys(name, node, problems);
        let cidrs = node.pod_cidrs.iter().filter(|c| self.cidr(name, **c, problems)).copied().collect();
        // Addresses of other clusters' nodes are no business of ours, and may be the same as ours.
        let own = node.internal_ips.iter().filter(|_| !name.is_foreign());
        let addresses = own.filter(|a| self.address(name, **a, problems)).copied().collect();
        Claim { cidrs, addresses, keys_accepted }
    }

    fn keys(&mut self, name: &NodeName, node: &NodeFacts, problems: &mut Vec<Problem>) -> bool {
        if *name == self.view.local.name {
            return true;
        }
        let announcement = match &node.announcement {
            AnnouncementFact::Valid(announcement) => announcement,
            AnnouncementFact::Missing => {
                problems.push(Problem::KeyMissing { node: name.clone() });
                return false;
            }
            AnnouncementFact::Malformed { reason } => {
                let reason = reason.clone();
                problems.push(Problem::AnnouncementMalformed { node: name.clone(), reason });
                return false;
            }
        };
        let holder = |key: &PublicKey| self.keys.get(key).filter(|holder| *holder != name).cloned();
        for slot in Slot::ALL {
            let key = announcement.slot(slot).public_key;
            if let Some(holder) = holder(&key) {
                problems.push(Problem::KeyDuplicated { node: name.clone(), slot, key, holder });
                return false;
            }
        }
        for slot in Slot::ALL {
            self.keys.insert(announcement.slot(slot).public_key, name.clone());
        }
        true
    }

    fn cidr(&mut self, name: &NodeName, cidr: IpNet, problems: &mut Vec<Problem>) -> bool {
        let node = name.clone();
        let settings = &self.view.settings;
        let configured = match name.cluster().map(str::parse::<ClusterName>) {
            None => settings.pod_cidrs.as_slice(),
            Some(cluster) => {
                cluster.ok().and_then(|cluster| settings.joined.get(&cluster)).map_or(&[][..], Vec::as_slice)
            }
        };
        let problem = if !prefix::inside(configured, &cidr) {
            let configured = configured.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            Problem::CidrOutsidePrefixes { node, cidr, configured }
        } else if prefix::mesh_address(&cidr).is_none() {
            Problem::CidrTooSmall { node, cidr }
        } else if let Some((other, holder)) = self.overlapping(&cidr).find(|(_, holder)| holder != name) {
            Problem::CidrClaimedTwice { node, cidr, holder: holder.clone(), other: *other }
        } else {
            // A node may name one inside another: the wider one stands for both.
            let own: Vec<IpNet> = self.overlapping(&cidr).map(|(own, _)| *own).collect();
            if !own.iter().any(|own| own.contains(&cidr)) {
                for inner in own {
                    self.cidrs.remove(&inner.network());
                }
                self.cidrs.insert(cidr.network(), (cidr, node));
            }
            return true;
        };
        problems.push(problem);
        false
    }

    /// Those that share addresses with this one.
    fn overlapping(&self, cidr: &IpNet) -> impl Iterator<Item = &(IpNet, NodeName)> {
        let before = self.cidrs.range(..cidr.network()).next_back();
        let within = self.cidrs.range(cidr.network()..=cidr.broadcast());
        let cidr = *cidr;
        let near = before.into_iter().chain(within).map(|(_, held)| held);
        near.filter(move |(other, _)| prefix::overlap(other, &cidr))
    }

    fn address(&mut self, name: &NodeName, address: IpAddr, problems: &mut Vec<Problem>) -> bool {
        let node = name.clone();
        let pods = self.guarded.iter().find(|cidr| cidr.contains(&address));
        let problem = if !prefix::is_unicast(address) {
            Problem::AddressUnusable { node, address }
        } else if let Some(cidr) = pods {
            Problem::AddressClaimedTwice { node, address, holder: format!("the pods in {cidr}") }
        } else if let Some(holder) = self.addresses.get(&address).filter(|holder| *holder != name) {
            Problem::AddressClaimedTwice { node, address, holder: format!("node {holder} (older)") }
        } else {
            self.addresses.insert(address, node);
            return true;
        };
        problems.push(problem);
        false
    }
}
