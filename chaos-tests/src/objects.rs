//! Objects of the API, as a user writes them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, anyhow};
use kubeapi::Patch;
use serde_json::{Value, json};

use crate::cluster::node_name;
use crate::pod::NAMESPACE;
use crate::{Lab, Pod};

/// `kubectl apply`: replaces the object, or makes it.
///
/// # Errors
/// The API refused.
pub fn apply(lab: &Lab, object: &Value) -> Result<()> {
    let store = lab.api().store();
    let replaced: Result<Value, _> = store.update(object);
    if let Err(refused) = replaced {
        let created: Result<Value, _> = store.create(object);
        created.map_err(|error| anyhow!("not replaced: {refused}; not created: {error}"))?;
    }
    Ok(())
}

/// A NetworkPolicy of the namespace `default`.
pub fn network_policy(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec,
    })
}

/// A ClusterNetworkPolicy.
pub fn cluster_policy(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": name}, "spec": spec,
    })
}

/// Selects by one label.
pub fn selector(key: &str, value: &str) -> Value {
    json!({"matchLabels": {key: value}})
}

/// Pods with the label `app`, of the policy's own namespace, as a peer.
pub fn peer(app: &str) -> Value {
    json!({"podSelector": selector("app", app)})
}

/// Isolates the pod `app` for ingress, but for these peers.
pub fn ingress_only(app: &str, from: &[&str]) -> Value {
    let peers: Vec<Value> = from.iter().map(|app| peer(app)).collect();
    let rules = if peers.is_empty() { json!([]) } else { json!([{"from": peers}]) };
    json!({"podSelector": selector("app", app), "policyTypes": ["Ingress"], "ingress": rules})
}

/// Deletes a NetworkPolicy of the namespace `default`.
///
/// # Errors
/// The API refused.
pub fn delete_policy(lab: &Lab, name: &str) -> Result<()> {
    let store = lab.api().store();
    store.delete_now("networkpolicies", Some(NAMESPACE), name).map_err(|error| anyhow!("{error}"))
}

/// Deletes a ClusterNetworkPolicy.
///
/// # Errors
/// The API refused.
pub fn delete_cluster_policy(lab: &Lab, name: &str) -> Result<()> {
    let store = lab.api().store();
    store.delete_now("clusternetworkpolicies", None, name).map_err(|error| anyhow!("{error}"))
}

/// Deletes a Service of the namespace `default`.
///
/// # Errors
/// The API refused.
pub fn delete_service(lab: &Lab, name: &str) -> Result<()> {
    let store = lab.api().store();
    store.delete_now("services", Some(NAMESPACE), name).map_err(|error| anyhow!("{error}"))
}

/// Changes labels of a pod.
///
/// # Errors
/// The API refused.
pub fn label_pod(lab: &Lab, name: &str, labels: &Value) -> Result<()> {
    let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
    lab.api().store().patch("pods", Some(NAMESPACE), name, &patch).map_err(|error| anyhow!("{error}"))?;
    Ok(())
}

/// A Service of the namespace `default` with these fields of its spec; ports `tcp` and `udp` 80 unless `spec` has some.
pub fn service(name: &str, spec: &Value) -> Value {
    let mut whole = json!({
        "type": "ClusterIP", "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"],
        "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
        "ports": [
            {"name": "tcp", "protocol": "TCP", "port": SERVICE_PORT, "targetPort": BACKEND_PORT},
            {"name": "udp", "protocol": "UDP", "port": SERVICE_PORT, "targetPort": BACKEND_PORT},
        ],
    });
    if let (Some(whole), Some(spec)) = (whole.as_object_mut(), spec.as_object()) {
        whole.extend(spec.clone());
    }
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE}, "spec": whole,
    })
}

/// Port of [`service`].
pub const SERVICE_PORT: u16 = 80;
/// Port of its backends.
pub const BACKEND_PORT: u16 = 8080;

/// Both cluster addresses of service number `number`.
pub fn cluster_ips(number: u8) -> [IpAddr; 2] {
    [
        Ipv4Addr::new(10, 96, 0, number).into(),
        Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, u16::from(number)).into(),
    ]
}

/// `clusterIP` and `clusterIPs` of service number `number`.
pub fn with_cluster_ips(number: u8) -> Value {
    let ips = cluster_ips(number);
    json!({"clusterIP": ips[0], "clusterIPs": ips})
}

/// What an EndpointSlice says of one endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint<'a> {
    /// Its pod.
    pub pod: &'a Pod,
    /// Takes new connections.
    pub ready: bool,
    /// Is on its way out.
    pub terminating: bool,
}

impl<'a> Endpoint<'a> {
    /// One that takes new connections.
    pub const fn ready(pod: &'a Pod) -> Self {
        Self { pod, ready: true, terminating: false }
    }

    /// On its way out, and serving until then.
    pub const fn terminating(pod: &'a Pod) -> Self {
        Self { pod, ready: false, terminating: true }
    }
}

/// Sets the endpoints of a service, in one slice of each family, as the controller would.
///
/// # Errors
/// The API refused.
pub fn set_endpoints(lab: &Lab, service: &str, endpoints: &[Endpoint<'_>]) -> Result<()> {
    for v4 in [true, false] {
        let entry = |endpoint: &Endpoint<'_>| {
            let Endpoint { pod, ready, terminating } = endpoint;
            json!({
                "addresses": [pod.ip(v4)], "nodeName": node_name(pod.node),
                "conditions": {"ready": ready, "serving": true, "terminating": terminating},
                "targetRef": {"kind": "Pod", "namespace": NAMESPACE, "name": pod.name},
            })
        };
        let family = if v4 { "IPv4" } else { "IPv6" };
        apply(
            lab,
            &json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "name": format!("{service}-{}", family.to_lowercase()), "namespace": NAMESPACE,
                    "labels": {
                        "kubernetes.io/service-name": service,
                        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                    },
                },
                "addressType": family,
                "ports": [
                    {"name": "tcp", "protocol": "TCP", "port": BACKEND_PORT},
                    {"name": "udp", "protocol": "UDP", "port": BACKEND_PORT},
                ],
                "endpoints": endpoints.iter().map(entry).collect::<Vec<_>>(),
            }),
        )?;
    }
    Ok(())
}

/// A ServiceExport of the service.
pub fn export(service: &str) -> Value {
    json!({"apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
        "metadata": {"name": service, "namespace": NAMESPACE}})
}

/// The first ClusterSetIP of its import.
///
/// # Errors
/// There is none yet.
pub fn imported_address(lab: &Lab, service: &str) -> Result<IpAddr, String> {
    let import: Value = lab
        .api()
        .store()
        .get("serviceimports.multicluster.x-k8s.io", Some(NAMESPACE), service)
        .map_err(|error| error.to_string())?;
    let first = import["spec"]["ips"][0].as_str().ok_or_else(|| format!("no address yet: {import}"))?;
    first.parse().map_err(|error| format!("{first}: {error}"))
}

/// Backends that an imported service has here, by cluster; IPv4 alone.
///
/// # Errors
/// The API refused.
pub fn imported_backends(lab: &Lab, service: &str) -> Result<BTreeMap<String, BTreeSet<String>>, String> {
    let slices: Vec<Value> = lab
        .api()
        .store()
        .list("endpointslices.discovery.k8s.io", Some(NAMESPACE))
        .map_err(|error| error.to_string())?;
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for slice in &slices {
        let labels = &slice["metadata"]["labels"];
        let ours =
            labels["multicluster.kubernetes.io/service-name"] == service && slice["addressType"] == "IPv4";
        let Some(cluster) = labels["multicluster.kubernetes.io/source-cluster"].as_str().filter(|_| ours)
        else {
            continue;
        };
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            let address = endpoint["addresses"][0].as_str().unwrap_or_default();
            found.entry(cluster.to_owned()).or_default().insert(address.to_owned());
        }
    }
    Ok(found)
}
