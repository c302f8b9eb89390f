//! EndpointSlices with endpoints of other clusters ([`LABEL_REMOTE`]): whoever wrote them, this agent believes only addresses
//! inside the pod CIDRs of the cluster that they name, and uses those alone that are on nodes which are its peers: to any other
//! no packet finds a way. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use mesh_core::clusters::Reach;
use mesh_core::mcs::{LABEL_SLICE_MANAGED_BY, MANAGER};
use mesh_core::policy::model::ObjectName;
use mesh_core::psk::ClusterName;
use mesh_core::service::model::{EndpointSliceFacts, LABEL_REMOTE};

/// Such slices, as they were written, and how far each cluster reaches.
#[derive(Debug, Default)]
pub(super) struct RemoteSlices {
    /// Own pod CIDRs: how far those reach that `clustermesh` writes without the label.
    own: Vec<IpNet>,
    reach: Arc<BTreeMap<ClusterName, Reach>>,
    slices: BTreeMap<ObjectName, EndpointSliceFacts>,
    refused: BTreeMap<ObjectName, String>,
    without_way: BTreeMap<ObjectName, usize>,
}

impl RemoteSlices {
    /// Of a cluster with these pod CIDRs, and joined ones as far as they reached before.
    pub(super) fn new(own: Vec<IpNet>, reach: Arc<BTreeMap<ClusterName, Reach>>) -> Self {
        Self { own, reach, ..Self::default() }
    }

    /// A slice is so now, or gone; what is believed of it.
    pub(super) fn put(
        &mut self,
        name: &ObjectName,
        slice: Option<EndpointSliceFacts>,
    ) -> Option<EndpointSliceFacts> {
        let (Some(slice), true) = (&slice, slice.as_ref().is_some_and(is_remote)) else {
            self.slices.remove(name);
            self.refused.remove(name);
            self.without_way.remove(name);
            return slice;
        };
        let believed = self.judge(name, slice.clone());
        self.slices.insert(name.clone(), slice.clone());
        Some(believed)
    }

    /// Clusters reach as far as this now; what is believed of slices for which that changes something.
    pub(super) fn reach(
        &mut self,
        reach: Arc<BTreeMap<ClusterName, Reach>>,
    ) -> Vec<(ObjectName, EndpointSliceFacts)> {
        let before = std::mem::replace(&mut self.reach, reach);
        let names: BTreeSet<&ClusterName> = before.keys().chain(self.reach.keys()).collect();
        let moved: BTreeSet<String> = names
            .into_iter()
            .filter(|name| before.get(name) != self.reach.get(name))
            .map(ToString::to_string)
            .collect();
        let concerned = |slice: &EndpointSliceFacts| {
            slice.metadata.labels.get(LABEL_REMOTE).is_some_and(|cluster| moved.contains(cluster))
        };
        let found: Vec<_> = self.slices.iter().filter(|(_, slice)| concerned(slice)).collect();
        let found: Vec<_> = found.into_iter().map(|(name, slice)| (name.clone(), slice.clone())).collect();
        found.into_iter().map(|(name, slice)| (name.clone(), self.judge(&name, slice))).collect()
    }

    /// What is not believed, by slice: a sentence.
    pub(super) fn refused(&self) -> impl Iterator<Item = (&ObjectName, &String)> {
        self.refused.iter()
    }

    /// How many endpoints are left out since their nodes are no peers of this one: beyond the bound of peers, refused, or not
    /// told of yet.
    pub(super) fn without_way(&self) -> usize {
        self.without_way.values().sum()
    }

    fn judge(&mut self, name: &ObjectName, mut slice: EndpointSliceFacts) -> EndpointSliceFacts {
        let label = slice.metadata.labels.get(LABEL_REMOTE).cloned();
        let reach = label.as_ref().and_then(|cluster| {
            self.reach.iter().find(|(known, _)| known.as_str() == cluster).map(|(_, reach)| reach)
        });
        let allowed = if label.is_some() { reach.map(|reach| &reach.cidrs) } else { Some(&self.own) };
        let cluster = label.unwrap_or_else(|| "of this cluster".to_owned());
        let inside = |text: &String| {
            let address: Option<IpAddr> = text.parse().ok();
            // What is no address is refused where slices are read.
            address.is_none_or(|at| allowed.is_some_and(|cidrs| cidrs.iter().any(|cidr| cidr.contains(&at))))
        };
        let all = slice.endpoints.len();
        let mut first = None;
        slice.endpoints.retain(|endpoint| {
            let outside = endpoint.addresses.iter().find(|text| !inside(text));
            if let Some(outside) = outside.filter(|_| first.is_none()) {
                first = Some(outside.clone());
            }
            outside.is_none()
        });
        let count = all - slice.endpoints.len();
        if let Some(reach) = reach {
            let has_way = |text: &String| text.parse().is_ok_and(|address| reach.peers.contain(address));
            slice.endpoints.retain(|endpoint| endpoint.addresses.iter().all(has_way));
        }
        let without_way = all - count - slice.endpoints.len();
        if without_way > 0 {
            self.without_way.insert(name.clone(), without_way);
        } else {
            self.without_way.remove(name);
        }
        let Some(first) = first else {
            self.refused.remove(name);
            return slice;
        };
        let allowed = allowed.map_or("nothing: there is no such ClusterPeer".to_owned(), |cidrs| {
            cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        });
        let text = format!(
            "EndpointSlice {}/{}: endpoints[].addresses {first:?} is outside what ClusterPeer {cluster:?} allows ({allowed}), which label \
             {LABEL_REMOTE} names; {count} of {all} endpoints are refused; find out who wrote it, or correct spec.podCIDRs of the ClusterPeer",
            name.namespace, name.name
        );
        self.refused.insert(name.clone(), text);
        slice
    }
}

fn is_remote(slice: &EndpointSliceFacts) -> bool {
    let labels = &slice.metadata.labels;
    labels.contains_key(LABEL_REMOTE) || labels.get(LABEL_SLICE_MANAGED_BY).is_some_and(|by| by == MANAGER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn slice(remote: Option<&str>, addresses: &[&str]) -> EndpointSliceFacts {
        let labels = remote.map_or(json!({}), |cluster| json!({ LABEL_REMOTE: cluster }));
        let endpoints: Vec<_> = addresses.iter().map(|address| json!({"addresses": [address]})).collect();
        let value = json!({"metadata": {"labels": labels}, "addressType": "IPv4", "ports": [], "endpoints": endpoints});
        serde_json::from_value(value).unwrap()
    }

    fn shown(slice: &EndpointSliceFacts) -> Vec<&str> {
        slice.endpoints.iter().map(|endpoint| endpoint.addresses[0].as_str()).collect()
    }

    /// Every address of the CIDR is on a peer.
    fn cidrs(all: &[(&str, &str)]) -> Arc<BTreeMap<ClusterName, Reach>> {
        let reach = |cidr: &str| {
            let cidr: IpNet = cidr.parse().unwrap();
            Reach { cidrs: vec![cidr], peers: [cidr].into_iter().collect() }
        };
        Arc::new(all.iter().map(|(name, cidr)| (name.parse().unwrap(), reach(cidr))).collect())
    }

    #[test]
    fn endpoints_on_nodes_that_are_no_peers_are_left_out_until_they_are() {
        let reach = |peers: &[&str]| {
            let peers = peers.iter().map(|cidr| cidr.parse().unwrap()).collect();
            let reach = Reach { cidrs: vec!["10.2.0.0/16".parse().unwrap()], peers };
            Arc::new(BTreeMap::from([("east".parse().unwrap(), reach)]))
        };
        let mut slices = RemoteSlices::new(Vec::new(), reach(&["10.2.1.0/24"]));
        let name = ObjectName { namespace: "a".into(), name: "remote".into() };
        let told = slice(Some("east"), &["10.2.1.7", "10.2.2.7", "10.2.3.7", "10.3.0.1"]);
        assert_eq!(shown(&slices.put(&name, Some(told)).unwrap()), ["10.2.1.7"]);
        assert_eq!(slices.without_way(), 2);
        assert!(slices.refused().next().unwrap().1.contains("1 of 4 endpoints are refused"));
        let now = slices.reach(reach(&["10.2.1.0/24", "10.2.3.0/24"]));
        assert_eq!(shown(&now[0].1), ["10.2.1.7", "10.2.3.7"]);
        assert_eq!(slices.without_way(), 1);
        assert!(slices.reach(reach(&["10.2.1.0/24", "10.2.3.0/24"])).is_empty());
        slices.put(&name, None);
        assert_eq!(slices.without_way(), 0);
    }

    #[test]
    fn endpoints_of_other_clusters_count_inside_their_clusters_prefixes_alone() {
        let mut slices = RemoteSlices::new(vec!["10.1.0.0/16".parse().unwrap()], Arc::default());
        let name = |name: &str| ObjectName { namespace: "a".into(), name: name.into() };
        let own = slices.put(&name("own"), Some(slice(None, &["10.9.0.1"]))).unwrap();
        assert_eq!(shown(&own), ["10.9.0.1"], "that of nobody's label is not ours to judge");
        let east = slice(Some("east"), &["10.2.0.1", "10.3.0.1", "10.1.0.1"]);
        assert!(shown(&slices.put(&name("east"), Some(east)).unwrap()).is_empty());
        assert!(slices.refused().next().unwrap().1.contains("3 of 3 endpoints are refused"));
        let now = slices.reach(cidrs(&[("east", "10.2.0.0/16"), ("north", "10.3.0.0/16")]));
        assert_eq!(now.len(), 1);
        assert_eq!(shown(&now[0].1), ["10.2.0.1"]);
        let text = slices.refused().next().unwrap().1.clone();
        assert!(
            text.contains("a/east") && text.contains("\"10.3.0.1\"") && text.contains("2 of 3"),
            "{text}"
        );
        // Whom it does not concern is not told of.
        assert!(slices.reach(cidrs(&[("east", "10.2.0.0/16")])).is_empty());
        let now = slices.reach(cidrs(&[("east", "10.0.0.0/8")]));
        assert_eq!(shown(&now[0].1).len(), 3);
        assert!(slices.refused().next().is_none());
        // Without the label clustermesh speaks for own pods.
        let mut ours = slice(None, &["10.1.0.1", "10.2.0.1", "192.0.2.1"]);
        ours.metadata.labels.insert(LABEL_SLICE_MANAGED_BY.to_owned(), MANAGER.to_owned());
        assert_eq!(shown(&slices.put(&name("ours"), Some(ours)).unwrap()), ["10.1.0.1"]);
        assert!(slices.put(&name("ours"), None).is_none());
        assert!(slices.put(&name("east"), None).is_none());
        assert!(slices.reach(cidrs(&[])).is_empty());
        // A label that is taken away makes it an own one.
        slices.put(&name("x"), Some(slice(Some("east"), &["10.2.0.1"])));
        assert_eq!(shown(&slices.put(&name("x"), Some(slice(None, &["10.2.0.1"]))).unwrap()), ["10.2.0.1"]);
        assert!(slices.refused().next().is_none());
    }
}
