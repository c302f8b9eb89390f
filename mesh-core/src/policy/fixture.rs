//! Worlds as users write them, for tests: a list of API objects becomes [`PolicyFacts`] and back, and a line such as
//! `x/a,x/b > y/c TCP/80,ICMP deny` becomes flows with the verdict that somebody wrote by hand.
//!
//! Only tests use this (feature `fixtures`): the agent has its own way from the API, which is not trusted here.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::model::{
    Flow, Labels, NamedPort, NamespaceFacts, NodePolicyFacts, ObjectName, PodFacts, PolicyFacts, Protocol,
    Verdict,
};

pub mod cases;

/// The label that the control plane sets on every namespace (row 17 of the corner cases).
pub const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";
/// Annotation of a namespace: `audit` reports what policy denies and lets it pass.
pub const POLICY_MODE: &str = "hawser.dev/policy";

/// A world in text: what is configured and what the API holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct World {
    /// Pod CIDRs of the cluster.
    pub guarded: Vec<IpNet>,
    /// API objects: Namespace, Pod, Node, NetworkPolicy, ClusterNetworkPolicy.
    pub objects: Vec<Value>,
}

/// Why a text is no world, or a line no probe.
#[derive(Debug, thiserror::Error)]
pub enum FixtureError {
    /// A field is missing or of another type.
    #[error("{object}: {field}: {problem}")]
    Field {
        /// Kind and name.
        object: String,
        /// Path.
        field: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// A kind that policy does not read.
    #[error("{object}: policy does not read this kind; remove it from the fixture")]
    Kind {
        /// Kind and name.
        object: String,
    },
    /// A line that cannot be read.
    #[error("{line:?}: {word:?} is not {wanted}")]
    Line {
        /// The line.
        line: String,
        /// The part.
        word: String,
        /// What would fit.
        wanted: &'static str,
    },
}

impl World {
    /// What policy is decided from in this world.
    ///
    /// # Errors
    /// An object cannot be read.
    pub fn facts(&self) -> Result<PolicyFacts, FixtureError> {
        let mut facts = PolicyFacts { guarded: self.guarded.clone(), ..PolicyFacts::default() };
        for object in &self.objects {
            put(&mut facts, object)?;
        }
        Ok(facts)
    }

    /// The world that these facts are of.
    pub fn of(facts: &PolicyFacts) -> Self {
        let named = |api: &str, kind: &str, namespace: Option<&str>, name: &str| {
            let mut metadata = json!({"name": name});
            if let Some(namespace) = namespace {
                metadata["namespace"] = json!(namespace);
            }
            json!({"apiVersion": api, "kind": kind, "metadata": metadata})
        };
        let mut objects = Vec::new();
        for (name, namespace) in &facts.namespaces {
            let mut object = named("v1", "Namespace", None, name);
            object["metadata"]["labels"] = json!(namespace.labels);
            if namespace.audit {
                object["metadata"]["annotations"] = json!({POLICY_MODE: "audit"});
            }
            objects.push(object);
        }
        for (name, node) in &facts.nodes {
            let mut object = named("v1", "Node", None, name.as_str());
            object["metadata"]["labels"] = json!(node.labels);
            let address = |ip: &IpAddr| json!({"type": "InternalIP", "address": ip});
            object["status"]["addresses"] = node.ips.iter().map(address).collect();
            objects.push(object);
        }
        for (name, pod) in &facts.pods {
            let mut object = named("v1", "Pod", Some(&name.namespace), &name.name);
            object["metadata"]["labels"] = json!(pod.labels);
            let port =
                |p: &NamedPort| json!({"name": p.name, "protocol": p.protocol, "containerPort": p.port});
            let ports: Vec<Value> = pod.ports.iter().map(port).collect();
            object["spec"] = json!({"containers": [{"name": "c", "ports": ports}]});
            let ip = |ip: &IpAddr| json!({"ip": ip});
            object["status"]["podIPs"] = pod.ips.iter().map(ip).collect();
            objects.push(object);
        }
        for (name, spec) in &facts.network_policies {
            let mut object =
                named("networking.k8s.io/v1", "NetworkPolicy", Some(&name.namespace), &name.name);
            object["spec"] = json!(spec);
            objects.push(object);
        }
        for (name, spec) in &facts.cluster_policies {
            let mut object = named("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy", None, name);
            object["spec"] = json!(spec);
            objects.push(object);
        }
        Self { guarded: facts.guarded.clone(), objects }
    }
}

/// `Kind namespace/name` of an object.
pub fn describe(object: &Value) -> String {
    let text = |v: &Value| v.as_str().unwrap_or("?").to_owned();
    let metadata = &object["metadata"];
    match metadata["namespace"].as_str() {
        Some(namespace) => format!("{} {namespace}/{}", text(&object["kind"]), text(&metadata["name"])),
        None => format!("{} {}", text(&object["kind"]), text(&metadata["name"])),
    }
}

/// Reads one field of an object; null and absent are the default.
fn field<T: DeserializeOwned + Default>(
    object: &Value,
    value: &Value,
    field: &'static str,
) -> Result<T, FixtureError> {
    if value.is_null() {
        return Ok(T::default());
    }
    serde_json::from_value(value.clone()).map_err(|error| FixtureError::Field {
        object: describe(object),
        field,
        problem: error.to_string(),
    })
}

fn object_name(object: &Value) -> Result<ObjectName, FixtureError> {
    let metadata = &object["metadata"];
    Ok(ObjectName {
        namespace: field(object, &metadata["namespace"], "metadata.namespace")?,
        name: field(object, &metadata["name"], "metadata.name")?,
    })
}

/// Creates or replaces `object` in the facts, as the API would after this write.
///
/// # Errors
/// The object cannot be read.
pub fn put(facts: &mut PolicyFacts, object: &Value) -> Result<(), FixtureError> {
    let name = object_name(object)?;
    let labels: Labels = field(object, &object["metadata"]["labels"], "metadata.labels")?;
    match object["kind"].as_str().unwrap_or_default() {
        "Namespace" => {
            let mut labels = labels;
            let own = name.name.split('@').next().unwrap_or_default();
            labels.insert(NAMESPACE_NAME.to_owned(), own.to_owned());
            let audit = object["metadata"]["annotations"][POLICY_MODE] == "audit";
            facts.namespaces.insert(name.name, NamespaceFacts { labels, audit });
        }
        "Node" => {
            let key =
                field::<Option<crate::name::NodeName>>(object, &object["metadata"]["name"], "metadata.name")?;
            let key = key.ok_or_else(|| FixtureError::Field {
                object: describe(object),
                field: "metadata.name",
                problem: "required".into(),
            })?;
            facts.nodes.insert(key, NodePolicyFacts { labels, ips: node_ips(object)? });
        }
        "Pod" => match pod(object, labels)? {
            Some(pod) => drop(facts.pods.insert(name, pod)),
            None => drop(facts.pods.remove(&name)),
        },
        "NetworkPolicy" => {
            facts.network_policies.insert(name, field(object, &object["spec"], "spec")?);
        }
        "ClusterNetworkPolicy" => {
            facts.cluster_policies.insert(name.name, field(object, &object["spec"], "spec")?);
        }
        _ => return Err(FixtureError::Kind { object: describe(object) }),
    }
    Ok(())
}

/// Deletes the object of this kind and name; its other fields do not matter.
///
/// # Errors
/// The object's kind or name cannot be read.
pub fn remove(facts: &mut PolicyFacts, object: &Value) -> Result<(), FixtureError> {
    let name = object_name(object)?;
    match object["kind"].as_str().unwrap_or_default() {
        "Namespace" => drop(facts.namespaces.remove(&name.name)),
        "Node" => facts.nodes.retain(|node, _| node.as_str() != name.name),
        "Pod" => drop(facts.pods.remove(&name)),
        "NetworkPolicy" => drop(facts.network_policies.remove(&name)),
        "ClusterNetworkPolicy" => drop(facts.cluster_policies.remove(&name.name)),
        _ => return Err(FixtureError::Kind { object: describe(object) }),
    }
    Ok(())
}

/// InternalIPs, and the mesh address of each pod CIDR, which is its first host address.
fn node_ips(object: &Value) -> Result<std::collections::BTreeSet<IpAddr>, FixtureError> {
    let mut ips = std::collections::BTreeSet::new();
    for address in object["status"]["addresses"].as_array().into_iter().flatten() {
        if address["type"] == "InternalIP" {
            ips.extend(field::<Option<IpAddr>>(object, &address["address"], "status.addresses[].address")?);
        }
    }
    for cidr in field::<Vec<IpNet>>(object, &object["spec"]["podCIDRs"], "spec.podCIDRs")? {
        ips.extend(cidr.hosts().find(|host| *host != cidr.network()));
    }
    Ok(ips)
}

/// A pod with addresses of its own that has not ended.
fn pod(object: &Value, labels: Labels) -> Result<Option<PodFacts>, FixtureError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Port {
        #[serde(default)]
        name: String,
        protocol: Option<Protocol>,
        container_port: u16,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Container {
        ports: Vec<Port>,
    }
    #[derive(Deserialize)]
    struct PodIp {
        ip: IpAddr,
    }
    let ended = matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if ended || object["spec"]["hostNetwork"] == true {
        return Ok(None);
    }
    let containers: Vec<Container> = field(object, &object["spec"]["containers"], "spec.containers")?;
    let named = containers.into_iter().flat_map(|c| c.ports).filter(|p| !p.name.is_empty());
    let ports = named
        .map(|p| NamedPort {
            name: p.name,
            protocol: p.protocol.unwrap_or(Protocol::Tcp),
            port: p.container_port,
        })
        .collect();
    let ips: Vec<PodIp> = field(object, &object["status"]["podIPs"], "status.podIPs")?;
    Ok(Some(PodFacts { labels, ips: ips.into_iter().map(|p| p.ip).collect(), ports }))
}

/// Reads a line `SOURCES > DESTINATIONS WHAT VERDICT`.
///
/// Ends are `namespace/pod`, `node:NAME`, or an address, with `:v4` or `:v6` for one family alone; what is `TCP/80`,
/// `UDP/53`, `SCTP/9`, `ICMP` or a protocol's number; each may be a list with commas; the verdict is `allow` or `deny`.
/// The line means every combination, in each family in which both ends have an address.
///
/// # Errors
/// A part cannot be read, or nobody bears that name.
pub fn flows(facts: &PolicyFacts, line: &str) -> Result<Vec<(Flow, Verdict)>, FixtureError> {
    let error =
        |word: &str, wanted| FixtureError::Line { line: line.to_owned(), word: word.to_owned(), wanted };
    let words: Vec<&str> = line.split_whitespace().collect();
    let [sources, ">", destinations, what, verdict] = words.as_slice() else {
        return Err(error(line, "SOURCES > DESTINATIONS WHAT VERDICT"));
    };
    let verdict = match *verdict {
        "allow" => Verdict::Allow,
        "deny" => Verdict::Deny,
        other => return Err(error(other, "allow or deny")),
    };
    let ends = |words: &str| -> Result<Vec<IpAddr>, FixtureError> {
        let mut all = Vec::new();
        for word in words.split(',') {
            let found = end(facts, word);
            if found.is_empty() {
                return Err(error(word, "an address, or the namespace/name of a pod, or node:NAME"));
            }
            all.extend(found);
        }
        Ok(all)
    };
    let mut out = Vec::new();
    for word in what.split(',') {
        for source in ends(sources)? {
            for destination in ends(destinations)? {
                if source.is_ipv4() != destination.is_ipv4() {
                    continue;
                }
                let (protocol, port) = transport(word, source.is_ipv4())
                    .ok_or_else(|| error(word, "TCP/PORT, UDP/PORT, SCTP/PORT, ICMP or a number"))?;
                out.push((Flow { source, destination, protocol, port }, verdict));
            }
        }
    }
    if out.is_empty() {
        return Err(error(line, "a line with a family that both ends have"));
    }
    Ok(out)
}

fn end(facts: &PolicyFacts, word: &str) -> Vec<IpAddr> {
    if let Ok(address) = word.parse() {
        return vec![address];
    }
    for (family, ipv4) in [(":v4", true), (":v6", false)] {
        if let Some(word) = word.strip_suffix(family) {
            return end(facts, word).into_iter().filter(|ip| ip.is_ipv4() == ipv4).collect();
        }
    }
    if let Some(node) = word.strip_prefix("node:") {
        let of_node = facts.nodes.iter().filter(|(name, _)| name.as_str() == node);
        return of_node.flat_map(|(_, node)| &node.ips).copied().collect();
    }
    let Some((namespace, name)) = word.split_once('/') else { return Vec::new() };
    let name = ObjectName { namespace: namespace.to_owned(), name: name.to_owned() };
    facts.pods.get(&name).map(|pod| pod.ips.iter().copied().collect()).unwrap_or_default()
}

fn transport(word: &str, ipv4: bool) -> Option<(u8, Option<u16>)> {
    if word == "ICMP" {
        return Some((if ipv4 { 1 } else { 58 }, None));
    }
    if let Ok(number) = word.parse() {
        return Some((number, None));
    }
    let (protocol, port) = word.split_once('/')?;
    let protocol = Protocol::ALL.into_iter().find(|p| format!("{p:?}").eq_ignore_ascii_case(protocol))?;
    Some((protocol.number(), Some(port.parse().ok()?)))
}

#[cfg(test)]
mod tests;
