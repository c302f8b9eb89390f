//! The API's objects of a case, as a case changes them and as the API has them, and who is where according to them.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, anyhow, bail};
use chaos_tests::Lab;
use mesh_core::policy::fixture::{World, cases};
use mesh_core::policy::model::PolicyFacts;
use serde_json::{Value, json};

use crate::probe::What;

/// Of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) kind: String,
    /// Empty for what has none.
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Key {
    pub(crate) fn of(object: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let metadata = &object["metadata"];
        Self {
            kind: text(&object["kind"]),
            namespace: text(&metadata["namespace"]),
            name: text(&metadata["name"]),
        }
    }

    /// Reads `Kind name` or `Kind namespace/name`.
    pub(crate) fn read(text: &str) -> Result<Self> {
        let (kind, rest) = text.split_once(' ').with_context(|| format!("{text:?} is no Kind and name"))?;
        let (namespace, name) = rest.split_once('/').unwrap_or(("", rest));
        Ok(Self { kind: kind.to_owned(), namespace: namespace.to_owned(), name: name.to_owned() })
    }

    /// The API's word for its kind.
    pub(crate) fn resource(&self) -> Result<&'static str> {
        let known = KINDS.iter().find(|(kind, ..)| *kind == self.kind);
        known.map(|(_, resource, _)| *resource).with_context(|| format!("no case has a {}", self.kind))
    }

    pub(crate) fn namespace(&self) -> Option<&str> {
        Some(&*self.namespace).filter(|namespace| !namespace.is_empty())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace() {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

/// What cases are made of: kind, resource, version.
const KINDS: [(&str, &str, &str); 7] = [
    ("Namespace", "namespaces", "v1"),
    ("Node", "nodes", "v1"),
    ("Pod", "pods", "v1"),
    ("NetworkPolicy", "networkpolicies", "networking.k8s.io/v1"),
    ("ClusterNetworkPolicy", "clusternetworkpolicies", "policy.networking.k8s.io/v1alpha2"),
    ("Service", "services", "v1"),
    ("EndpointSlice", "endpointslices", "discovery.k8s.io/v1"),
];

/// Objects by kind and name.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Objects(pub(crate) BTreeMap<Key, Value>);

impl Objects {
    /// Three namespaces of three pods on three nodes: the world of the verdicts by hand in mesh-core, with the lab's names
    /// and addresses of nodes.
    pub(crate) fn base() -> Self {
        let mut all = Self::default();
        for object in cases::base().objects {
            all.apply(&in_the_lab(&object));
        }
        all
    }

    /// What the API has.
    pub(crate) fn of_api(lab: &Lab) -> Result<Self> {
        let mut all = Self::default();
        for (kind, resource, version) in KINDS {
            let found: Vec<Value> = lab.api().store().list(resource, None).map_err(|e| anyhow!("{e}"))?;
            for mut object in found {
                object["kind"] = json!(kind);
                object["apiVersion"] = json!(version);
                all.0.insert(Key::of(&object), object);
            }
        }
        Ok(all)
    }

    /// Creates an object, or changes it: a policy, Service or slice is replaced, of others the fields are merged (RFC 7386).
    pub(crate) fn apply(&mut self, object: &Value) {
        let key = Key::of(object);
        let mut object = object.clone();
        if let Some((_, _, version)) = KINDS.iter().find(|(kind, ..)| *kind == key.kind) {
            object["apiVersion"] = json!(version);
        }
        let merged = matches!(&*key.kind, "Namespace" | "Node" | "Pod");
        match self.0.get_mut(&key).filter(|_| merged) {
            Some(known) => merge(known, &object),
            None => drop(self.0.insert(key, object)),
        }
    }

    /// What policy is decided from, as the oracle reads it.
    pub(crate) fn facts(&self) -> Result<PolicyFacts> {
        let policy = |key: &Key| !matches!(&*key.kind, "Service" | "EndpointSlice");
        let objects =
            self.0.iter().filter(|(key, _)| policy(key)).map(|(_, object)| object.clone()).collect();
        Ok(World { guarded: cases::base().guarded, objects }.facts()?)
    }

    /// Who has which address, with the node that this is on. Pods of a node's network are their node.
    pub(crate) fn parties(&self) -> BTreeMap<IpAddr, Place> {
        let mut all = BTreeMap::new();
        for (key, object) in &self.0 {
            let node = match &*key.kind {
                "Pod" if object["spec"]["hostNetwork"] == true => continue,
                "Pod" => object["spec"]["nodeName"].as_str().map(str::to_owned),
                "Node" => Some(key.name.clone()),
                _ => continue,
            };
            let place = Place {
                name: if key.kind == "Pod" {
                    format!("{}/{}", key.namespace, key.name)
                } else {
                    key.name.clone()
                },
                node,
                pod: key.kind == "Pod",
            };
            all.extend(addresses(object).into_iter().map(|ip| (ip, place.clone())));
        }
        all
    }

    /// Where a Service leads: address, protocol and port to the one endpoint.
    ///
    /// # Errors
    /// A Service has several endpoints: which one a probe meets could not be said.
    pub(crate) fn services(&self) -> Result<BTreeMap<(IpAddr, What), SocketAddr>> {
        let mut all = BTreeMap::new();
        for (key, service) in self.0.iter().filter(|(key, _)| key.kind == "Service") {
            for (_, slice) in self.0.iter().filter(|(k, s)| is_slice_of(k, s, key)) {
                let ip = slice_address(slice).with_context(|| format!("the slice of {key}"))?;
                for port in service["spec"]["ports"].as_array().into_iter().flatten() {
                    let same = |p: &&Value| p["name"] == port["name"];
                    let target = slice["ports"].as_array().into_iter().flatten().find(same);
                    let number =
                        |port: &Value, field: &str| port[field].as_u64().and_then(|n| n.try_into().ok());
                    let protocol = port["protocol"].as_str().unwrap_or("TCP");
                    let (Some(front), Some(behind)) =
                        (number(port, "port"), target.and_then(|t| number(t, "port")))
                    else {
                        bail!("{key}: a port without a target");
                    };
                    let what = What::of(protocol, front).with_context(|| format!("{key}: {protocol}"))?;
                    for address in service["spec"]["clusterIPs"].as_array().into_iter().flatten() {
                        let address: IpAddr = serde_json::from_value(address.clone())?;
                        if address.is_ipv4() == ip.is_ipv4() {
                            all.insert((address, what), SocketAddr::new(ip, behind));
                        }
                    }
                }
            }
        }
        Ok(all)
    }
}

/// Somebody at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// `x/a`, or a node's name.
    pub(crate) name: String,
    /// The node that it is on, or is.
    pub(crate) node: Option<String>,
    pub(crate) pod: bool,
}

fn is_slice_of(key: &Key, slice: &Value, service: &Key) -> bool {
    key.kind == "EndpointSlice"
        && key.namespace == service.namespace
        && slice["metadata"]["labels"]["kubernetes.io/service-name"] == *service.name
}

fn slice_address(slice: &Value) -> Result<IpAddr> {
    match slice["endpoints"].as_array().map(Vec::as_slice) {
        Some([endpoint]) => Ok(serde_json::from_value(endpoint["addresses"][0].clone())?),
        other => bail!("one endpoint, not {other:?}"),
    }
}

/// Addresses of a pod, or of a node: InternalIPs and the first host address of each pod CIDR.
pub(crate) fn addresses(object: &Value) -> Vec<IpAddr> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let read = |value: &Value| value.as_str().and_then(|text| text.parse().ok());
    let pod = list(&object["status"]["podIPs"]);
    let node = list(&object["status"]["addresses"]).into_iter().filter(|a| a["type"] == "InternalIP");
    let mesh = list(&object["spec"]["podCIDRs"]);
    let mesh = mesh.iter().filter_map(|cidr| mesh_core::prefix::mesh_address(&cidr.as_str()?.parse().ok()?));
    let written = pod.iter().filter_map(|ip| read(&ip["ip"])).collect::<Vec<_>>();
    written.into_iter().chain(node.filter_map(|a| read(&a["address"]))).chain(mesh).collect()
}

/// The same with the lab's names and addresses of nodes: `n1` is `node-1`, and its InternalIPs are those on the switch.
pub(crate) fn in_the_lab(object: &Value) -> Value {
    let mut object = object.clone();
    if object["kind"] == "Node" {
        let name = object["metadata"]["name"].as_str().unwrap_or_default().replacen('n', "node-", 1);
        object["metadata"]["name"] = json!(name);
    }
    if object["kind"] == "Pod"
        && object["spec"]["nodeName"].is_null()
        && let Some(IpAddr::V4(ip)) = addresses(&object).first()
    {
        let [.., third, last] = ip.octets();
        // In the lab a pod has both families, and one of its node's network has what that has.
        let (number, network) = match object["spec"]["hostNetwork"] == true {
            true => (last, "fd00:77:".to_owned()),
            false => (third, format!("fd00:10:244:{third}:")),
        };
        object["spec"]["nodeName"] = json!(format!("node-{number}"));
        object["status"]["podIPs"] = json!([{ "ip": ip }, {"ip": format!("{network}:{last}")}]);
    }
    rewrite(&mut object);
    object
}

/// InternalIPs of nodes in any text.
pub(crate) fn node_addresses(text: &str) -> String {
    text.replace("192.168.77.", "192.0.2.").replace("fd00:77::", "2001:db8::")
}

fn rewrite(value: &mut Value) {
    match value {
        Value::String(text) => *text = node_addresses(text),
        Value::Array(items) => items.iter_mut().for_each(rewrite),
        Value::Object(fields) => fields.values_mut().for_each(rewrite),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else { return *target = patch.clone() };
    if !target.is_object() {
        *target = json!({});
    }
    for (field, value) in fields {
        if value.is_null() {
            drop(target.as_object_mut().and_then(|t| t.remove(field)));
        } else {
            merge(&mut target[field], value);
        }
    }
}
