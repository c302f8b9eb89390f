//! Clusters that are joined: `clustermesh` on the control host of a lab, and a ClusterPeer in each of two for the other.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use kubeapi::{Patch, User};
use mesh_core::numbers::{NAMESPACE, PORT_CLUSTERMESH};
use netlab::{Output, eventually};
use serde_json::{Value, json};

use crate::Lab;
use crate::cluster::node_name;

/// ConfigMap with the certificates of a cluster's own authority.
const TRUST: &str = "hawser-clustermesh-trust";
/// Where agents look for them, and for their token.
const SECRETS: &str = "/var/run/secrets/hawser.dev/clustermesh";
/// Audience of that token.
const AUDIENCE: &str = "clustermesh.hawser.dev";
/// Where `clustermesh` serves names of `clusterset.local`.
pub const NAMES_PORT: u16 = 1053;
/// For `clustermesh` to have made its authority.
const START: Duration = Duration::from_secs(30);

impl Lab {
    /// Starts `clustermesh` on the control host, with the rights that `deploy/` gives it, and lets agents know where it is.
    ///
    /// # Errors
    /// It cannot be started, or does not make its authority in time.
    pub fn start_clustermesh(&mut self) -> Result<()> {
        let directory = self.dir.path().join("clustermesh");
        std::fs::create_dir_all(&directory)?;
        let cidrs = self.cluster_cidrs().iter().map(ToString::to_string).collect::<Vec<_>>().join("', '");
        let config = format!("clusterName: {}\npodCIDRs: ['{cidrs}']\n", self.cluster_name());
        std::fs::write(directory.join("config.yaml"), &config)?;
        let patch = Patch::Merge(json!({"data": {"config.yaml": config}}));
        let store = self.api().store();
        let _: Value = store
            .patch("configmaps", Some(NAMESPACE), "hawser-config", &patch)
            .map_err(|error| anyhow!("ConfigMap hawser-config: {error}"))?;
        let user = User::service_account(NAMESPACE, "clustermesh");
        std::fs::write(directory.join("kubeconfig"), self.kubeconfig(&user))?;
        self.run_clustermesh()?;
        eventually(START, "clustermesh has made its authority", || {
            self.trust_bundle().map(drop).map_err(|error| format!("{error:#}"))
        })?;
        let (v4, _) = self.control_addresses();
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "clustermesh-lab", "namespace": NAMESPACE,
                "labels": {"kubernetes.io/service-name": "clustermesh"}},
            "addressType": "IPv4", "ports": [{"name": "grpc", "port": PORT_CLUSTERMESH, "protocol": "TCP"}],
            "endpoints": [{"addresses": [v4], "conditions": {"ready": true}}],
        });
        let _: Value = self.api().store().create(&slice).map_err(|error| anyhow!("{error}"))?;
        self.nodes.iter().try_for_each(|node| self.prepare_for_clustermesh(node.number))
    }

    /// Gives a node what the kubelet mounts: the agent's token for `clustermesh`, and its authority's certificates.
    ///
    /// # Errors
    /// There is no such node, or no authority yet.
    pub fn prepare_for_clustermesh(&self, number: u8) -> Result<()> {
        let name = node_name(number);
        let object: Value =
            self.api().store().get("nodes", None, &name).map_err(|error| anyhow!("{error}"))?;
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
        let token = self.api().tokens().issue_for(AUDIENCE, User::agent_of_node(&name, uid));
        self.node(number).write_file(&format!("{SECRETS}/token"), &token)?;
        self.node(number).write_file(&format!("{SECRETS}/ca.crt"), &self.trust_bundle()?)
    }

    /// Starts the process again, with what [`Lab::start_clustermesh`] has made.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run_clustermesh(&mut self) -> Result<()> {
        let directory = self.dir.path().join("clustermesh");
        let mut command = Command::new(self.binaries.clustermesh()?);
        command
            .arg("--config")
            .arg(directory.join("config.yaml"))
            .arg("--kubeconfig")
            .arg(directory.join("kubeconfig"))
            .args(["--identity", "lab"])
            .args(["--dns-address", &format!("{}:{NAMES_PORT}", self.control_addresses().0)])
            .env("NO_COLOR", "1");
        let log = directory.join("clustermesh.log");
        self.clustermesh = Some(self.control.spawn(command, Output::File(log)).context("clustermesh")?);
        Ok(())
    }

    /// SIGKILL to it.
    ///
    /// # Errors
    /// It is not running.
    pub fn kill_clustermesh(&mut self) -> Result<()> {
        self.clustermesh.take().context("no clustermesh is running")?.kill()?;
        Ok(())
    }

    /// Its log.
    pub fn clustermesh_log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("clustermesh/clustermesh.log")).unwrap_or_default()
    }

    /// Certificates of this cluster's own authority, PEM.
    ///
    /// # Errors
    /// There are none yet.
    pub fn trust_bundle(&self) -> Result<String> {
        let map: Value = self
            .api()
            .store()
            .get("configmaps", Some(NAMESPACE), TRUST)
            .map_err(|error| anyhow!("ConfigMap {TRUST}: {error}"))?;
        let text = map["data"]["ca.crt"].as_str().context("no ca.crt in it")?;
        Ok(text.to_owned())
    }

    /// The ClusterPeer by which others know this cluster.
    ///
    /// # Errors
    /// It has no authority yet.
    pub fn as_peer(&self) -> Result<Value> {
        let (v4, _) = self.control_addresses();
        Ok(json!({
            "apiVersion": "hawser.dev/v1alpha1", "kind": "ClusterPeer",
            "metadata": {"name": self.cluster_name()},
            "spec": {
                "podCIDRs": self.cluster_cidrs(),
                "addresses": [format!("{v4}:{PORT_CLUSTERMESH}")],
                "trustBundle": self.trust_bundle()?,
            },
        }))
    }

    /// Makes another cluster known here, by its ClusterPeer, which has so many nodes.
    ///
    /// # Errors
    /// The API refused.
    fn know(&mut self, peer: &Value, nodes: usize) -> Result<()> {
        let _: Value = self.api().store().create(peer).map_err(|error| anyhow!("{error}"))?;
        self.joined += nodes;
        Ok(())
    }

    /// Changes a ClusterPeer.
    ///
    /// # Errors
    /// The API refused.
    pub fn patch_peer(&self, name: &str, patch: &Value) -> Result<()> {
        let patch = Patch::Merge(patch.clone());
        let _: Value = self
            .api()
            .store()
            .patch("clusterpeers.hawser.dev", None, name, &patch)
            .map_err(|error| anyhow!("{error}"))?;
        Ok(())
    }
}

/// What a lab shows of its node 1 and of its `clustermesh` where something does not come to pass.
pub fn told(lab: &Lab) -> String {
    let tail = |text: &str| text.lines().rev().take(12).map(str::to_owned).collect::<Vec<_>>().join("\n");
    let log = lab.node(1).log("mesh-agent").unwrap_or_default();
    format!(
        "cluster {}; {} newest first: {}\nclustermesh: {}",
        lab.cluster_name(),
        node_name(1),
        tail(&log),
        tail(&lab.clustermesh_log())
    )
}

/// Two labs, each of which has `clustermesh` and knows the other: all their nodes are peers.
///
/// # Errors
/// What could not be made, or what is missing after `deadline`.
pub fn join_both(a: &mut Lab, b: &mut Lab, deadline: Duration) -> Result<()> {
    join_all(&mut [a, b], deadline)
}

/// As [`join_both`], of any number of labs.
///
/// # Errors
/// As [`join_both`].
pub fn join_all(labs: &mut [&mut Lab], deadline: Duration) -> Result<()> {
    labs.iter_mut().try_for_each(|lab| lab.start_clustermesh())?;
    let known = labs.iter().map(|lab| Ok((lab.as_peer()?, lab.nodes.len()))).collect::<Result<Vec<_>>>()?;
    for (at, lab) in labs.iter_mut().enumerate() {
        for (_, (peer, nodes)) in known.iter().enumerate().filter(|(other, _)| *other != at) {
            lab.know(peer, *nodes)?;
        }
    }
    labs.iter().try_for_each(|lab| lab.await_mesh(deadline).with_context(|| told(lab)))
}
