//! One cluster, or two that are joined: what is read of each, and what each knows of the other.
//!
//! Agents know a pod of a joined cluster only where policy asks for it. To policy that is the same as knowing all of them
//! (`AskedClusters`), so here each cluster is told of every pod that the other's ClusterPeer allows it to have.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{ApiResource, DynamicObject};
use mesh_core::clusters::{ClusterPeer, ClusterPeerSpec};
use mesh_core::numbers::NAMESPACE;
use mesh_core::policy::model::{
    NamespaceFacts, ObjectName, PodFacts, foreign_namespace, foreign_namespace_labels,
};
use mesh_core::psk::ClusterName;

use super::facts::{self, Objects, World};
use super::{End, ExplainArgs, ExplainError, Party, cluster_policies, compiler};
use crate::agents::{AgentAddress, Answer, Targets};
use crate::api::{Access, ApiError, Cluster, OPERATOR};
use crate::clustermesh;

/// Agents that are asked before the ConfigMap has to do: all have the same configuration.
const AGENTS: usize = 3;

/// A cluster as it was read.
#[derive(Debug, Default)]
pub struct Read {
    /// What policy is decided from.
    pub world: World,
    /// Its ClusterPeers, where another cluster was wanted.
    pub peers: Vec<ClusterPeer>,
}

/// The clusters that were read.
#[derive(Debug)]
pub struct Worlds {
    here: World,
    there: Option<World>,
}

impl Worlds {
    /// Tells each cluster of the other's pods.
    ///
    /// # Errors
    /// They are not joined, or their names are not known.
    pub fn new(mut here: Read, there: Option<Read>) -> Result<Self, ExplainError> {
        let Some(mut there) = there else { return Ok(Self { here: here.world, there: None }) };
        let (Some(own), Some(other)) = (here.world.cluster.clone(), there.world.cluster.clone()) else {
            return Err(ExplainError::NoName("no agent, and no ConfigMap hawser-config".to_owned()));
        };
        if own == other {
            return Err(ExplainError::SameCluster(own));
        }
        let cidrs_there = cidrs(&here.peers, &own, &other)?;
        let cidrs_here = cidrs(&there.peers, &other, &own)?;
        let (pods_here, pods_there) = (Told::by(&here.world, &own), Told::by(&there.world, &other));
        pods_there.to(&mut here.world, cidrs_there);
        pods_here.to(&mut there.world, cidrs_here);
        Ok(Self { here: here.world, there: Some(there.world) })
    }

    /// The nodes on which policy about these ends is in force or is not: of this cluster, and of the joined one.
    ///
    /// # Errors
    /// An end is nobody.
    pub fn enforcers(&self, ends: [&End; 2]) -> Result<[BTreeSet<String>; 2], ExplainError> {
        let mut nodes = [BTreeSet::new(), BTreeSet::new()];
        let worlds = [self.of(ends[0])?, self.of(ends[1])?];
        for (world, end) in worlds.into_iter().zip(ends) {
            let pod = world.pod_at(&world.addresses(&end.party)?);
            let joined = self.there.as_ref().is_some_and(|there| std::ptr::eq(there, world));
            nodes[usize::from(joined)].extend(pod.and_then(|pod| world.node_of.get(&pod).cloned()));
        }
        Ok(nodes)
    }

    /// Takes in what the agents of those nodes say.
    pub fn told(&mut self, [here, there]: [BTreeMap<String, Answer>; 2]) {
        self.here.told(&here);
        if let Some(world) = &mut self.there {
            world.told(&there);
        }
    }

    /// The cluster of an end.
    ///
    /// # Errors
    /// It was not read.
    pub fn of(&self, end: &End) -> Result<&World, ExplainError> {
        let other = |world: &&World| match (&end.cluster, &end.party) {
            (Some(cluster), _) => world.cluster.as_ref() == Some(cluster),
            (None, Party::Address(address)) => world.owns(*address),
            (None, Party::Pod(_) | Party::Node(_)) => false,
        };
        if let Some(there) = self.there.as_ref().filter(other) {
            return Ok(there);
        }
        let here = self.here.cluster.as_ref();
        match &end.cluster {
            Some(cluster) if here != Some(cluster) => Err(ExplainError::NoCluster {
                end: end.to_string(),
                cluster: cluster.clone(),
                known: self.names(),
            }),
            Some(_) | None => Ok(&self.here),
        }
    }

    fn names(&self) -> String {
        let worlds = [Some(&self.here), self.there.as_ref()].into_iter().flatten();
        let names: Vec<String> =
            worlds.filter_map(|world| world.cluster.as_ref()).map(ToString::to_string).collect();
        if names.is_empty() {
            "none by its name".to_owned()
        } else {
            format!("only those of {}", names.join(" and "))
        }
    }

    /// What is not known about a flow between two ends, and what follows.
    pub fn doubts(&self, ends: [&End; 2]) -> Vec<String> {
        let Some(there) = &self.there else {
            let mut doubts = self.here.doubts.clone();
            let outside = |end: &&End| matches!(end.party, Party::Address(ip) if !self.here.is_guarded(ip));
            if ends.iter().any(outside) && !compiler(&self.here).asked_clusters().nobody() {
                doubts.push(
                    "policies ask for pods of joined clusters, which were not read: an address of one of them is taken for the world's; give --remote-context NAME or --remote-kubeconfig FILE of that cluster"
                        .to_owned(),
                );
            }
            return doubts;
        };
        let of = |world: &World| {
            let name = world.cluster.as_ref().map(ToString::to_string).unwrap_or_default();
            world.doubts.iter().map(move |doubt| format!("cluster {name}: {doubt}")).collect::<Vec<_>>()
        };
        [of(&self.here), of(there)].concat()
    }
}

impl World {
    fn owns(&self, address: IpAddr) -> bool {
        self.pod_at(&[address].into()).is_some()
            || self.facts.nodes.values().any(|node| node.ips.contains(&address))
    }
}

/// The CIDRs in which `cluster` believes pods of `other`.
fn cidrs(
    peers: &[ClusterPeer],
    cluster: &ClusterName,
    other: &ClusterName,
) -> Result<Vec<IpNet>, ExplainError> {
    let peer = peers.iter().find(|peer| peer.name == *other);
    let cidrs = peer.map(|peer| peer.pod_cidrs.clone()).unwrap_or_default();
    let missing = || ExplainError::NotJoined { cluster: cluster.clone(), other: other.clone() };
    if cidrs.is_empty() { Err(missing()) } else { Ok(cidrs) }
}

/// What a cluster tells another one.
struct Told {
    namespaces: Vec<(String, NamespaceFacts)>,
    pods: Vec<(ObjectName, PodFacts)>,
}

impl Told {
    fn by(world: &World, cluster: &ClusterName) -> Self {
        let namespaces = world.facts.namespaces.iter().map(|(name, facts)| {
            let labels = foreign_namespace_labels(&facts.labels, cluster);
            (foreign_namespace(name, cluster), NamespaceFacts { labels, audit: false })
        });
        let pods = world.facts.pods.iter().map(|(name, facts)| {
            let namespace = foreign_namespace(&name.namespace, cluster);
            (ObjectName { namespace, name: name.name.clone() }, facts.clone())
        });
        Self { namespaces: namespaces.collect(), pods: pods.collect() }
    }

    fn to(self, world: &mut World, cidrs: Vec<IpNet>) {
        let believed = |ip: &IpAddr| cidrs.iter().any(|net| net.contains(ip));
        world.facts.namespaces.extend(self.namespaces);
        for (name, mut pod) in self.pods {
            pod.ips.retain(believed);
            if !pod.ips.is_empty() {
                world.facts.pods.insert(name, pod);
            }
        }
        // Where some of them are denied, whom nobody tells of could be meant, as agents have it.
        if compiler(world).asked_clusters().everybody() {
            world.facts.guarded.extend(&cidrs);
        }
        world.beyond = cidrs;
    }
}

/// How the joined cluster is reached; none: none is wanted.
pub(super) fn remote(args: &ExplainArgs) -> Option<Access> {
    let wanted = args.remote_kubeconfig.is_some() || args.remote_context.is_some();
    wanted.then(|| Access {
        kubeconfig: args.remote_kubeconfig.clone().or_else(|| args.access.kubeconfig.clone()),
        context: args.remote_context.clone(),
    })
}

/// Reads a cluster, and where its agents are; `joined`: with its name and its ClusterPeers.
///
/// # Errors
/// What cannot be read.
pub(super) async fn read(
    access: &Access,
    args: &ExplainArgs,
    agents: &[AgentAddress],
    pod_cidrs: &[IpNet],
    joined: bool,
) -> Result<(Read, Targets), ExplainError> {
    let cluster = access.cluster(OPERATOR, args.agents.deadline()).await?;
    let nodes: Vec<Node> = cluster.all_of_cluster("nodes").await?;
    let mut targets = Targets::named_by_hand(agents)?;
    targets.find(&cluster, args.agents.agent_port).await;
    let mut known = Known::default();
    if joined || pod_cidrs.is_empty() {
        known = asked(args, &targets, &cluster, &nodes).await;
    }
    if !pod_cidrs.is_empty() {
        known.pod_cidrs = pod_cidrs.to_vec();
        known.doubt = None;
    }
    let objects = Objects {
        cluster: known.name,
        pod_cidrs: known.pod_cidrs,
        nodes,
        pods: cluster.all::<Pod>(("pods", None), None).await?,
        namespaces: cluster.all_metadata::<Namespace>("namespaces").await?,
        services: cluster.all::<Service>(("services", None), None).await?,
        policies: cluster
            .all_dynamic(&ApiResource::erase::<NetworkPolicy>(&()), ("networkpolicies", None))
            .await?,
        cluster_policies: cluster_policies(&cluster).await?,
    };
    let mut world = facts::world(&objects);
    world.doubts.extend(known.doubt);
    let peers = if joined { peers(&cluster).await? } else { Vec::new() };
    Ok((Read { world, peers }, targets))
}

/// ClusterPeers that can be read; none where the kind is not installed.
async fn peers(cluster: &Cluster) -> Result<Vec<ClusterPeer>, ApiError> {
    let asked = ("clusterpeers.hawser.dev", None);
    let objects = match cluster.all_dynamic(&clustermesh::resource(), asked).await {
        Err(ApiError::Absent { .. }) => Vec::new(),
        listed => listed?,
    };
    Ok(objects.iter().filter_map(peer).collect())
}

fn peer(object: &DynamicObject) -> Option<ClusterPeer> {
    let spec = serde_json::from_value::<ClusterPeerSpec>(object.data.get("spec")?.clone()).ok()?;
    ClusterPeer::parse(object.metadata.name.as_deref()?, 0, &spec).0
}

/// What a cluster calls itself, and its pod CIDRs.
#[derive(Default)]
struct Known {
    name: Option<ClusterName>,
    pod_cidrs: Vec<IpNet>,
    doubt: Option<String>,
}

/// An agent says with what it runs; without one the ConfigMap says what was configured, and the Nodes what they have.
async fn asked(args: &ExplainArgs, targets: &Targets, cluster: &Cluster, nodes: &[Node]) -> Known {
    let mut why = targets.nobody.clone();
    for way in targets.ways.values().chain(&targets.unnamed).take(AGENTS) {
        match way.ask(args.agents.deadline()).await {
            Ok(evidence) => {
                let (name, pod_cidrs) = (evidence.settings.cluster.parse().ok(), evidence.settings.pod_cidrs);
                return Known { name, pod_cidrs, doubt: None };
            }
            Err(said) => why = said,
        }
    }
    let maps = cluster.all::<ConfigMap>(("configmaps", Some(NAMESPACE)), None).await.unwrap_or_default();
    if let Some((name, pod_cidrs)) = maps.iter().find_map(clustermesh::configured) {
        return Known { name: Some(name), pod_cidrs, doubt: None };
    }
    let doubt = format!(
        "the cluster's pod CIDRs are not known ({why}): an address in none of its nodes' CIDRs is taken for the world's; give --pod-cidr"
    );
    let pod_cidrs = nodes.iter().flat_map(facts::cidrs_of).collect();
    Known { name: None, pod_cidrs, doubt: Some(doubt) }
}
