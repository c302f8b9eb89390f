//! What facts say of names, remembered until the data path knows the facts, too.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use mesh_core::name::NodeName;
use mesh_core::policy::model::ObjectName;
use mesh_core::service::model::ServiceFacts;

use super::view::Fact;
use crate::names::{Names, Owner};

/// Whose addresses are whose.
#[derive(Debug, Default)]
pub(super) struct Book {
    pods: BTreeMap<ObjectName, BTreeSet<IpAddr>>,
    nodes: BTreeMap<NodeName, BTreeSet<IpAddr>>,
    services: BTreeMap<ObjectName, BTreeSet<IpAddr>>,
    owners: BTreeMap<IpAddr, Option<Owner>>,
    addresses: BTreeMap<IpAddr, Option<ObjectName>>,
}

impl Book {
    /// Takes note of a fact.
    pub(super) fn note(&mut self, fact: &Fact) {
        match fact {
            Fact::Pod(name, known) => {
                let now = known.as_ref().map(|known| known.ips.clone()).unwrap_or_default();
                change(&mut self.pods, name, now, &mut self.owners, || Owner::Pod(name.clone()));
            }
            Fact::Node(name, known) => {
                let now = known.as_ref().map(|known| known.ips.clone()).unwrap_or_default();
                change(&mut self.nodes, name, now, &mut self.owners, || Owner::Node(name.clone()));
            }
            Fact::Service(name, known) => {
                let now = known.as_ref().map(addresses).unwrap_or_default();
                change(&mut self.services, name, now, &mut self.addresses, || name.clone());
            }
            Fact::Namespace(..)
            | Fact::NetworkPolicy(..)
            | Fact::ClusterPolicy(..)
            | Fact::Slice(..)
            | Fact::Subjects(_)
            | Fact::OwnNode(_)
            | Fact::HostPorts(_) => {}
        }
    }

    /// Writes what was noted into the register's names.
    pub(super) fn publish(&mut self, names: &mut Names) {
        publish(&mut self.owners, &mut names.owners);
        publish(&mut self.addresses, &mut names.services);
    }

    /// Is anything noted?
    pub(super) fn is_empty(&self) -> bool {
        self.owners.is_empty() && self.addresses.is_empty()
    }
}

fn publish<V>(changes: &mut BTreeMap<IpAddr, Option<V>>, all: &mut BTreeMap<IpAddr, V>) {
    for (address, change) in std::mem::take(changes) {
        match change {
            Some(value) => drop(all.insert(address, value)),
            None => drop(all.remove(&address)),
        }
    }
}

fn change<K: Ord + Clone, V>(
    known: &mut BTreeMap<K, BTreeSet<IpAddr>>,
    key: &K,
    now: BTreeSet<IpAddr>,
    changes: &mut BTreeMap<IpAddr, Option<V>>,
    value: impl Fn() -> V,
) {
    let before = known.remove(key).unwrap_or_default();
    for address in before.difference(&now) {
        // Somebody else may have taken it over in the same turn.
        changes.entry(*address).or_insert(None);
    }
    for address in &now {
        changes.insert(*address, Some(value()));
    }
    if !now.is_empty() {
        known.insert(key.clone(), now);
    }
}

fn addresses(service: &ServiceFacts) -> BTreeSet<IpAddr> {
    let spec = &service.spec;
    let balancer = service.status.load_balancer.ingress.iter().map(|ingress| &ingress.ip);
    let all = spec.cluster_ips.iter().chain([&spec.cluster_ip]).chain(&spec.external_ips).chain(balancer);
    all.filter_map(|text| text.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_core::policy::model::PodFacts;

    #[test]
    fn an_address_that_passes_from_one_pod_to_another_is_the_others_in_whatever_order_it_is_told() {
        let name = |name: &str| ObjectName { namespace: "a".into(), name: name.into() };
        let has = |pod: &str, ip: &str| {
            let ips = [ip.parse().unwrap()].into();
            Fact::Pod(name(pod), Some(PodFacts { ips, ..PodFacts::default() }))
        };
        let gone = |pod: &str| Fact::Pod(name(pod), None);
        for second in [[gone("p"), has("q", "10.1.0.2")], [has("q", "10.1.0.2"), gone("p")]] {
            let (mut book, mut names) = (Book::default(), Names::default());
            book.note(&has("p", "10.1.0.2"));
            book.publish(&mut names);
            second.iter().for_each(|fact| book.note(fact));
            assert!(!book.is_empty());
            book.publish(&mut names);
            assert_eq!(names.owners.values().collect::<Vec<_>>(), [&Owner::Pod(name("q"))]);
        }
    }
}
