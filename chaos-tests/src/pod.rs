//! A pod: an object in the API, a namespace pinned on its node, and what the CNI plugin made of it.

use std::net::IpAddr;

use anyhow::{Context, Result, anyhow};
use netlab::{LabDir, Namespace};
use serde_json::{Value, json};

use crate::cluster::{Lab, node_name};
use crate::runtime::{Runtime, Sandbox};

/// Namespace of all pods of the lab.
pub const NAMESPACE: &str = "default";

/// A pod that runs.
#[derive(Debug)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Number of its node.
    pub node: u8,
    /// Its network namespace.
    pub namespace: Namespace,
    /// What the runtime knows of it.
    pub sandbox: Sandbox,
    /// Result of ADD.
    pub result: Value,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
}

/// A pod's object in the API, not connected yet.
///
/// # Errors
/// The API refused.
pub fn create_object(lab: &Lab, node: u8, name: &str, annotations: &Value) -> Result<String> {
    let object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": name}, "annotations": annotations},
        "spec": {"nodeName": node_name(node), "containers": [{"name": "c", "image": "lab.local/none:1"}]},
    });
    let created: Value = lab.api().store().create(&object).map_err(|e| anyhow!("{e}"))?;
    Ok(created["metadata"]["uid"].as_str().context("a pod without UID")?.to_owned())
}

/// A network namespace for a pod, pinned on its node as a runtime does.
///
/// # Errors
/// As the kernel says.
pub fn make_namespace(node: &Namespace, dir: &LabDir, name: &str) -> Result<(Namespace, String)> {
    let namespace = Namespace::net_only(name).lab(dir).build_within(node)?;
    let path = format!("/run/netns/{name}");
    node.run(|| std::fs::create_dir_all("/run/netns"))?;
    namespace.pin_at(node, &path)?;
    Ok((namespace, path))
}

/// Addresses in a CNI result.
pub fn addresses(result: &Value) -> Vec<IpAddr> {
    let ips = result["ips"].as_array().into_iter().flatten();
    let address = |ip: &Value| ip["address"].as_str()?.split('/').next()?.parse().ok();
    ips.filter_map(address).collect()
}

impl Pod {
    pub(crate) fn create(lab: &Lab, node: u8, name: &str) -> Result<Self> {
        let uid = create_object(lab, node, name, &json!({}))?;
        let host = &lab.node(node).namespace;
        let container_id = netlab::unique_name("c");
        let (namespace, path) = make_namespace(host, &lab.dir, &container_id)?;
        let sandbox = Sandbox::of_pod(&container_id, &path, NAMESPACE, name, &uid);
        let result = Runtime::of(host)?.add(host, &sandbox).with_context(|| format!("ADD of pod {name}"))?;
        let ips = addresses(&result);
        let status: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
        let patch = kubeapi::Patch::Merge(
            json!({"status": {"phase": "Running", "podIP": ips.first(), "podIPs": status}}),
        );
        lab.api().store().patch_status("pods", Some(NAMESPACE), name, &patch).map_err(|e| anyhow!("{e}"))?;
        Ok(Self { name: name.to_owned(), node, namespace, sandbox, result, ips })
    }

    /// DEL, and the object's end.
    ///
    /// # Errors
    /// As the plugin or the API says.
    pub fn remove(self, lab: &Lab) -> Result<()> {
        let host = &lab.node(self.node).namespace;
        Runtime::of(host)?.del(host, &self.sandbox, Some(&self.result))?;
        Namespace::unpin(host, &self.sandbox.netns)?;
        lab.api().store().delete_now("pods", Some(NAMESPACE), &self.name).map_err(|e| anyhow!("{e}"))?;
        Ok(self.namespace.close()?)
    }

    /// Its address of a family.
    pub fn ip(&self, v4: bool) -> Option<IpAddr> {
        self.ips.iter().copied().find(|ip| ip.is_ipv4() == v4)
    }
}
