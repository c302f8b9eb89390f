//! Looks up addresses that packets bore and nobody had told us of: a pod may send before the watch has shown it. Its address
//! lies in the CIDR of a node, so that node's pods are asked for, at most once in [`PAUSE`] for each node, whatever is sent.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client};
use mesh_core::name::NodeName;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::facts::pod::{RemotePod, name_of};
use crate::names::Register;
use crate::watch::mail::Mailbox;

/// Between two questions for one node's pods.
const PAUSE: Duration = Duration::from_millis(500);
/// For one question.
const DEADLINE: Duration = Duration::from_secs(3);
/// Addresses that may wait; more are lost, and asked for again by the next packet.
pub const QUEUE: usize = 256;
/// Nodes that are remembered; a cluster has few that are asked for.
const REMEMBERED: usize = 1024;
/// Questions under way at once.
const CONCURRENT: usize = 4;

/// When a node was asked for last. Pure.
#[derive(Debug, Default)]
struct Pace {
    asked: BTreeMap<NodeName, Instant>,
}

impl Pace {
    /// May it be asked for now? If so it counts as done.
    fn may(&mut self, node: &NodeName, now: Instant) -> bool {
        if self.asked.get(node).is_some_and(|at| now.duration_since(*at) < PAUSE) {
            return false;
        }
        if self.asked.len() >= REMEMBERED {
            self.asked.retain(|_, at| now.duration_since(*at) < PAUSE);
        }
        self.asked.insert(node.clone(), now);
        true
    }
}

/// Looks up what comes until the senders are gone.
pub async fn run(
    client: Client,
    own: NodeName,
    register: Arc<Register>,
    mailbox: Arc<Mailbox>,
    mut unknown: mpsc::Receiver<IpAddr>,
) {
    let mut pace = Pace::default();
    let slots = Arc::new(tokio::sync::Semaphore::new(CONCURRENT));
    while let Some(address) = unknown.recv().await {
        let node = {
            let names = register.read();
            if names.is_known(address) { None } else { names.node_of(address).cloned() }
        };
        // Of this node's own pods nobody knows more than we do.
        let Some(node) = node.filter(|node| *node != own) else { continue };
        if !pace.may(&node, Instant::now()) {
            continue;
        }
        let Ok(permit) = Arc::clone(&slots).acquire_owned().await else { return };
        let (client, mailbox) = (client.clone(), Arc::clone(&mailbox));
        tokio::spawn(async move {
            match tokio::time::timeout(DEADLINE, pods_of(&client, &node)).await {
                Ok(Ok(found)) => {
                    tracing::debug!(%address, %node, pods = found.len(), "Looked up an unknown address");
                    mailbox.post(|mail| mail.found.extend(found));
                }
                Ok(Err(error)) => tracing::warn!(%node, err = %error, "Could not look up an unknown address"),
                Err(_) => tracing::warn!(%node, "Looking up an unknown address took too long"),
            }
            drop(permit);
        });
    }
}

async fn pods_of(
    client: &Client,
    node: &NodeName,
) -> kube::Result<BTreeMap<mesh_core::policy::model::ObjectName, Arc<RemotePod>>> {
    let api: Api<Pod> = Api::all(client.clone());
    let list = api.list_metadata(&ListParams::default().fields(&format!("spec.nodeName={node}"))).await?;
    let read = |pod: &kube::api::PartialObjectMeta<Pod>| {
        Some((name_of(&pod.metadata)?, Arc::new(RemotePod::of(&pod.metadata))))
    };
    Ok(list.items.iter().filter_map(read).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_node_is_asked_for_once_in_a_while_however_many_packets_come() {
        let (a, b): (NodeName, NodeName) = ("a".parse().unwrap(), "b".parse().unwrap());
        let (mut pace, start) = (Pace::default(), Instant::now());
        assert!(pace.may(&a, start) && !pace.may(&a, start) && pace.may(&b, start));
        assert!(!pace.may(&a, start + PAUSE / 2) && pace.may(&a, start + PAUSE));
    }
}
