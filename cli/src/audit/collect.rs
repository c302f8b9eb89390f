//! What the audit asks of the API.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Namespace as NamespaceObject, Node as NodeObject};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::ResourceExt;
use mesh_core::numbers::ANNOTATION_WIREGUARD;

use super::judge::Announced;
use super::namespaces;
use super::report::Namespace;
use crate::api::{ApiError, Cluster};
use crate::clustermesh;
use crate::status::Known;

/// What the API says of Nodes.
#[derive(Clone, Debug, Default)]
pub struct Nodes {
    /// What each announces.
    pub announced: BTreeMap<String, Announced>,
    /// Those that are not Ready.
    pub not_ready: BTreeSet<String>,
}

impl Nodes {
    /// Reads them.
    pub fn of(nodes: &[NodeObject]) -> Self {
        let dead = nodes.iter().filter(|node| Known::of(node).ready == Some(false));
        Self {
            announced: nodes.iter().map(|node| (node.name_any(), announced(node))).collect(),
            not_ready: dead.map(ResourceExt::name_any).collect(),
        }
    }
}

/// The API's Nodes, as a whole: whether one is Ready is in none of their metadata.
///
/// # Errors
/// They cannot be listed.
pub async fn nodes(cluster: &Cluster) -> Result<Nodes, ApiError> {
    let nodes: Vec<NodeObject> = cluster.all_of_cluster("nodes").await?;
    Ok(Nodes::of(&nodes))
}

/// Why joined clusters are not connected, by their names: what the conditions of their ClusterPeers say.
///
/// # Errors
/// They cannot be listed.
pub async fn clusters(cluster: &Cluster) -> Result<BTreeMap<String, String>, ApiError> {
    let asked = ("clusterpeers.hawser.dev", None);
    let peers = match cluster.all_dynamic(&clustermesh::resource(), asked).await {
        // Who joins no clusters may do without the kind.
        Err(ApiError::Absent { .. }) => Vec::new(),
        listed => listed?,
    };
    let apart = peers.iter().filter_map(|peer| Some((peer.name_any(), clustermesh::unconnected(peer)?)));
    Ok(apart.collect())
}

/// What a Node announces.
fn announced(node: &NodeObject) -> Announced {
    match node.annotations().get(ANNOTATION_WIREGUARD) {
        None => Announced::Missing,
        Some(text) => match keyring::decode(text) {
            Ok(_) => Announced::Valid,
            Err(error) => Announced::Malformed(error.to_string()),
        },
    }
}

/// Namespaces and what they deny by default.
///
/// # Errors
/// Namespaces or NetworkPolicies cannot be listed.
pub async fn namespaces(cluster: &Cluster, exempt: &BTreeSet<String>) -> Result<Vec<Namespace>, ApiError> {
    let objects = cluster.all_metadata::<NamespaceObject>("namespaces").await?;
    let policies: Vec<NetworkPolicy> = cluster.all(("networkpolicies", None), None).await?;
    let objects: BTreeMap<String, BTreeMap<String, String>> =
        objects.into_iter().map(|object| (object.name_any(), object.annotations().clone())).collect();
    Ok(namespaces::judge(&objects, &policies, exempt))
}
