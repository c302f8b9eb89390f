//! What each of two clusters tells the other's administrator, and whether the two fit together. Pure.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Service};
use kube::api::DynamicObject;
use mesh_core::clusters::peer::MAX_ADDRESSES;
use mesh_core::clusters::{
    Borders, ClusterName, ClusterPeer, ClusterPeerSpec, Host, OwnCluster, Refusal, ServerAddress,
};
use mesh_core::name::NodeName;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Place, object};
use crate::status::Known;

/// The ConfigMap of agents' configuration.
const CONFIG: &str = "hawser-config";
/// Port of `clustermesh` behind a load balancer.
const PORT: u16 = mesh_core::numbers::PORT_CLUSTERMESH;

/// Something that is missing or does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinProblem {
    /// In which cluster.
    pub place: Place,
    /// What, with its remedy.
    pub text: String,
}

impl fmt::Display for JoinProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.text)
    }
}

/// One cluster, as far as another one's administrator has to know it.
#[derive(Clone, Debug)]
pub struct Side {
    place: Place,
    own: Option<OwnCluster>,
    trust: String,
    addresses: Vec<ServerAddress>,
    peers: Vec<ClusterPeer>,
    problems: Vec<String>,
}

/// What is read of the agents' configuration.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    #[serde(default)]
    cluster_name: Option<String>,
    #[serde(default, rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
}

impl Side {
    /// Reads a cluster's objects; `given` addresses go before those of its Service.
    pub fn read(
        place: Place,
        config: Option<&ConfigMap>,
        trust: Option<&ConfigMap>,
        service: Option<&Service>,
        nodes: &[Node],
        peers: &[DynamicObject],
        given: &[ServerAddress],
    ) -> Self {
        let mut problems = Vec::new();
        let text = config.and_then(|map| map.data.as_ref()?.get("config.yaml"));
        let own = match text.map(|text| serde_saphyr::from_str::<Config>(text)) {
            None => {
                problems.push(
                    "there is no ConfigMap hawser-config in hawser-system; is Hawser installed there?"
                        .to_owned(),
                );
                None
            }
            Some(Err(error)) => {
                problems.push(format!("ConfigMap hawser-config: config.yaml cannot be read: {error}"));
                None
            }
            Some(Ok(config)) => own(&config, nodes, &mut problems),
        };
        let trust = trust.and_then(|map| map.data.as_ref()?.get("ca.crt")).cloned();
        if trust.is_none() {
            problems.push("clustermesh has made no authority yet (ConfigMap hawser-clustermesh-trust); install it (clustermesh.enabled, deploy/clustermesh) and wait until it is ready".to_owned());
        }
        let addresses = if given.is_empty() { found(service, nodes) } else { given.to_vec() };
        if addresses.is_empty() {
            let flag = match place {
                Place::Here => "--address",
                Place::Remote => "--remote-address",
            };
            let has = match service.and_then(node_port) {
                Some(_) => "a node port, and no node with an address of its families is Ready",
                None => "neither a load balancer nor a node port",
            };
            problems.push(format!("its clustermesh has no address for others: Service clustermesh in hawser-system has {has}; give {flag} HOST:PORT"));
        }
        let read = |object: &DynamicObject| {
            let spec = serde_json::from_value::<ClusterPeerSpec>(object.data["spec"].clone()).ok()?;
            let created =
                object.metadata.creation_timestamp.as_ref().map_or(i64::MAX, |time| time.0.as_second());
            ClusterPeer::parse(object.metadata.name.as_deref()?, created, &spec).0
        };
        let peers = peers.iter().filter_map(read).collect();
        Self { place, own, trust: trust.unwrap_or_default(), addresses, peers, problems }
    }

    /// Its name; empty where it could not be read.
    pub fn name(&self) -> String {
        self.own.as_ref().map(|own| own.name.to_string()).unwrap_or_default()
    }

    /// `spec` of a ClusterPeer for it.
    pub(super) fn spec(&self) -> Value {
        let cidrs = self.own.as_ref().map(|own| own.pod_cidrs.clone()).unwrap_or_default();
        let addresses: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
        json!({"podCIDRs": cidrs, "addresses": addresses, "trustBundle": self.trust})
    }

    /// What this cluster would refuse of another one that joined last.
    fn refuses(&self, other: &Self) -> Vec<Refusal> {
        let (Some(own), Some(name)) = (&self.own, other.own.as_ref().map(|own| own.name.clone())) else {
            return Vec::new();
        };
        let spec = serde_json::from_value::<ClusterPeerSpec>(other.spec()).unwrap_or_default();
        let (peer, mut refusals) = ClusterPeer::parse(name.as_str(), i64::MAX, &spec);
        let mut all: Vec<ClusterPeer> =
            self.peers.iter().filter(|known| known.name != name).cloned().collect();
        let (_, before) = Borders::judge(own, &all);
        all.extend(peer);
        let (_, after) = Borders::judge(own, &all);
        refusals.extend(after.into_iter().filter(|refusal| !before.contains(refusal)));
        refusals
    }
}

/// The name and pod CIDRs of a cluster, where the ConfigMap is that of its agents and can be read.
pub(crate) fn configured(map: &ConfigMap) -> Option<(ClusterName, Vec<IpNet>)> {
    let named = map.metadata.name.as_deref() == Some(CONFIG);
    let text = map.data.as_ref().filter(|_| named)?.get("config.yaml")?;
    let config = serde_saphyr::from_str::<Config>(text).ok()?;
    let mut problems = Vec::new();
    let own = own(&config, &[], &mut problems)?;
    problems.is_empty().then_some((own.name, own.pod_cidrs))
}

fn own(config: &Config, nodes: &[Node], problems: &mut Vec<String>) -> Option<OwnCluster> {
    let name = config.cluster_name.as_deref().unwrap_or("default");
    let name: ClusterName = match name.parse() {
        Ok(name) => name,
        Err(error) => {
            problems.push(format!("ConfigMap hawser-config: clusterName: {error}"));
            return None;
        }
    };
    let mut pod_cidrs = Vec::new();
    for text in &config.pod_cidrs {
        match text.parse::<IpNet>() {
            Ok(cidr) => pod_cidrs.push(cidr),
            Err(_) => problems
                .push(format!("ConfigMap hawser-config: podCIDRs: {text:?} is not a CIDR; correct it")),
        }
    }
    let mut cluster = OwnCluster { name, pod_cidrs, keys: Default::default(), addresses: Default::default() };
    for node in nodes {
        let Some(name) = node.metadata.name.as_deref().and_then(|name| name.parse::<NodeName>().ok()) else {
            continue;
        };
        cluster.addresses.extend(internal_ips(node).map(|address| (address, name.clone())));
    }
    Some(cluster)
}

fn internal_ips(node: &Node) -> impl Iterator<Item = IpAddr> + '_ {
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    addresses
        .filter(|address| address.type_ == "InternalIP")
        .filter_map(|address| address.address.parse().ok())
}

/// Where the Service leads to from outside: its load balancer, else its node port on nodes that are Ready, in each family.
fn found(service: Option<&Service>, nodes: &[Node]) -> Vec<ServerAddress> {
    let Some(service) = service else { return Vec::new() };
    let ingress = service
        .status
        .iter()
        .filter_map(|status| status.load_balancer.as_ref())
        .flat_map(|balancer| balancer.ingress.iter().flatten());
    let balanced = ingress.filter_map(|point| match (&point.ip, &point.hostname) {
        (Some(ip), _) => Some(ServerAddress { host: Host::Address(ip.parse().ok()?), port: PORT }),
        (None, Some(name)) => format!("{name}:{PORT}").parse().ok(),
        (None, None) => None,
    });
    let mut addresses: Vec<ServerAddress> = balanced.collect();
    if let (true, Some(port)) = (addresses.is_empty(), node_port(service)) {
        // A node port is open in the families of its Service alone.
        let families = service.spec.as_ref().and_then(|spec| spec.ip_families.clone()).unwrap_or_default();
        let served = |ip: &IpAddr| {
            let own = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
            families.is_empty() || families.iter().any(|family| family == own)
        };
        for node in nodes.iter().filter(|node| Known::of(node).ready == Some(true)) {
            for v4 in [true, false] {
                let ip = internal_ips(node).find(|ip| ip.is_ipv4() == v4 && served(ip));
                addresses.extend(ip.map(|ip| ServerAddress { host: Host::Address(ip), port }));
            }
        }
    }
    addresses.truncate(MAX_ADDRESSES);
    addresses
}

fn node_port(service: &Service) -> Option<u16> {
    let mut ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    ports.find_map(|port| u16::try_from(port.node_port?).ok().filter(|port| *port != 0))
}

/// The ClusterPeers: of the second cluster in the first, and of the first in the second.
///
/// # Errors
/// What is missing or does not fit, all of it.
pub fn peers(a: &Side, b: &Side) -> Result<[Value; 2], Vec<JoinProblem>> {
    let mut problems = Vec::new();
    for side in [a, b] {
        problems
            .extend(side.problems.iter().map(|text| JoinProblem { place: side.place, text: text.clone() }));
    }
    if problems.is_empty() {
        if a.name() == b.name() {
            let text = format!(
                "both clusters are called {:?}; give one of them another clusterName (and restart its agents) first",
                a.name()
            );
            problems.push(JoinProblem { place: b.place, text });
        } else {
            for (side, other) in [(a, b), (b, a)] {
                let refused = side.refuses(other).into_iter();
                problems.extend(
                    refused.map(|refusal| JoinProblem { place: side.place, text: refusal.to_string() }),
                );
            }
        }
    }
    if problems.is_empty() { Ok([object(b), object(a)]) } else { Err(problems) }
}

#[cfg(test)]
mod tests;
