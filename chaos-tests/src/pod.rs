//! A pod: an object in the API, a namespace pinned on its node, and what the CNI plugin made of it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result, anyhow};
use netlab::{LabDir, Namespace};
use serde_json::{Value, json};

use crate::cluster::{Lab, node_name};
use crate::runtime::{Runtime, Sandbox};

/// Namespace of all pods of the lab that name no other.
pub const NAMESPACE: &str = "default";

/// What a pod is made from.
#[derive(Clone, Debug)]
pub struct PodSpec {
    /// Number of its node.
    pub node: u8,
    /// Its name.
    pub name: String,
    /// Its namespace in the API, which has to be there.
    pub project: String,
    /// Its labels; `app` is its name unless said otherwise.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// `ports` of its container.
    pub ports: Vec<Value>,
    /// What the runtime supplies for capabilities.
    pub runtime_config: Value,
}

impl PodSpec {
    /// A pod of the namespace [`NAMESPACE`].
    pub fn new(node: u8, name: impl Into<String>) -> Self {
        let name = name.into();
        Self {
            node,
            labels: BTreeMap::from([("app".to_owned(), name.clone())]),
            name,
            project: NAMESPACE.to_owned(),
            annotations: BTreeMap::new(),
            ports: Vec::new(),
            runtime_config: json!({}),
        }
    }

    /// In another namespace of the API.
    #[must_use]
    pub fn project(self, project: &str) -> Self {
        Self { project: project.to_owned(), ..self }
    }

    /// With a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// With an annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// With a port that its container names.
    #[must_use]
    pub fn port(mut self, name: &str, protocol: &str, port: u16) -> Self {
        self.ports.push(json!({"name": name, "protocol": protocol, "containerPort": port}));
        self
    }

    /// With what the runtime supplies for capabilities.
    #[must_use]
    pub fn runtime_config(self, runtime_config: Value) -> Self {
        Self { runtime_config, ..self }
    }

    /// Makes its object in the API; its UID.
    ///
    /// # Errors
    /// The API refused.
    pub fn create_object(&self, lab: &Lab) -> Result<String> {
        let container = json!({"name": "c", "image": "lab.local/none:1", "ports": self.ports});
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": self.name, "namespace": self.project,
                "labels": self.labels, "annotations": self.annotations,
            },
            "spec": {"nodeName": node_name(self.node), "containers": [container]},
        });
        let created: Value = lab.api().store().create(&object).map_err(|e| anyhow!("{e}"))?;
        Ok(created["metadata"]["uid"].as_str().context("a pod without UID")?.to_owned())
    }
}

/// A pod that runs.
#[derive(Debug)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its namespace in the API.
    pub project: String,
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

/// Writes the status that a kubelet writes once the sandbox runs.
///
/// # Errors
/// The API refused.
pub fn report_running(lab: &Lab, project: &str, name: &str, ips: &[IpAddr]) -> Result<()> {
    let status: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    let patch = kubeapi::Patch::Merge(
        json!({"status": {"phase": "Running", "podIP": ips.first(), "podIPs": status}}),
    );
    lab.api().store().patch_status("pods", Some(project), name, &patch).map_err(|e| anyhow!("{e}"))?;
    Ok(())
}

impl Pod {
    pub(crate) fn create(lab: &Lab, spec: &PodSpec) -> Result<Self> {
        let PodSpec { node, name, project, runtime_config, .. } = spec;
        let uid = spec.create_object(lab)?;
        let host = &lab.node(*node).namespace;
        let container_id = netlab::unique_name("c");
        let (namespace, path) = make_namespace(host, &lab.dir, &container_id)?;
        let mut sandbox = Sandbox::of_pod(&container_id, &path, project, name, &uid);
        sandbox.runtime_config = runtime_config.clone();
        let result = Runtime::of(host)?.add(host, &sandbox).with_context(|| format!("ADD of pod {name}"))?;
        let ips = addresses(&result);
        report_running(lab, project, name, &ips)?;
        let (name, project) = (name.clone(), project.clone());
        Ok(Self { name, project, node: *node, namespace, sandbox, result, ips })
    }

    /// DEL, and the object's end.
    ///
    /// # Errors
    /// As the plugin or the API says.
    pub fn remove(self, lab: &Lab) -> Result<()> {
        let host = &lab.node(self.node).namespace;
        Runtime::of(host)?.del(host, &self.sandbox, Some(&self.result))?;
        Namespace::unpin(host, &self.sandbox.netns)?;
        lab.api().store().delete_now("pods", Some(&self.project), &self.name).map_err(|e| anyhow!("{e}"))?;
        Ok(self.namespace.close()?)
    }

    /// Its address of a family.
    pub fn ip(&self, v4: bool) -> Option<IpAddr> {
        self.ips.iter().copied().find(|ip| ip.is_ipv4() == v4)
    }
}
