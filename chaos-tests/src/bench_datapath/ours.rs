//! Ours: labs with the real agent, policies and services, and pods that they are about.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use netlab::Process;
use serde_json::{Value, json};

use super::rounds::{Path, await_path};
use super::{BACKEND_PORT, PORT, add_nodes, options, serve};
use crate::cluster::{Lab, node_name};
use crate::pod::{NAMESPACE, Pod, PodSpec};

/// Label whose value is the number of rules that a pod has.
const LABEL: &str = "rules";
/// Rules of one NetworkPolicy.
const RULES_EACH: u32 = 100;
/// Port of the services.
const SERVICE_PORT: u16 = 80;

/// Whom rule `number` is about: an address that nobody has, and a port.
pub(super) fn peer(number: u32) -> (Ipv4Addr, u16) {
    let port = 10_000 + u16::try_from(number % 50_000).unwrap_or(0);
    (Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 0)) + number), port)
}

/// A lab in whose API the objects are before its nodes: two nodes for each group of pods, or one node.
pub(super) fn lab(name: &str, services: u32, groups: &[u32]) -> Result<Lab> {
    let mut lab = Lab::up(options(name))?;
    for number in 0..services {
        let ip = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 97, 0, 0)) + number);
        let backend = Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 19, 0, 0)) + number);
        service(&lab, &format!("other-{number}"), ip, backend, None)?;
    }
    for rules in groups {
        policies(&lab, *rules)?;
    }
    let nodes = u8::try_from(groups.len() * 2).context("few groups")?;
    add_nodes(&mut lab, nodes.max(1))?;
    Ok(lab)
}

fn create(lab: &Lab, object: &Value) -> Result<()> {
    let created: Result<Value, _> = lab.api().store().create(object);
    created.map(drop).map_err(|error| anyhow!("{}: {error}", object["metadata"]["name"]))
}

/// A service with one endpoint.
fn service(lab: &Lab, name: &str, ip: Ipv4Addr, backend: Ipv4Addr, pod: Option<&Pod>) -> Result<()> {
    create(
        lab,
        &json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ipFamilyPolicy": "SingleStack",
                "ipFamilies": ["IPv4"], "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
                "ports": [{"name": "tcp", "protocol": "TCP", "port": SERVICE_PORT, "targetPort": BACKEND_PORT}],
            },
        }),
    )?;
    let mut endpoint = json!({
        "addresses": [backend], "conditions": {"ready": true, "serving": true, "terminating": false},
    });
    if let Some(pod) = pod {
        endpoint["nodeName"] = json!(node_name(pod.node));
        endpoint["targetRef"] = json!({"kind": "Pod", "namespace": NAMESPACE, "name": pod.name});
    }
    create(
        lab,
        &json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{name}-ipv4"), "namespace": NAMESPACE,
                "labels": {
                    "kubernetes.io/service-name": name,
                    "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                },
            },
            "addressType": "IPv4",
            "ports": [{"name": "tcp", "protocol": "TCP", "port": BACKEND_PORT}],
            "endpoints": [endpoint],
        }),
    )
}

/// So many rules for each direction of a pod with the label, and one that lets such pods talk to each other.
fn policies(lab: &Lab, rules: u32) -> Result<()> {
    if rules == 0 {
        return Ok(());
    }
    let selector = json!({"matchLabels": {LABEL: rules.to_string()}});
    let policy = |name: String, ingress: Value, egress: Value| {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "podSelector": selector, "policyTypes": ["Ingress", "Egress"],
                "ingress": ingress, "egress": egress,
            },
        })
    };
    for first in (0..rules).step_by(RULES_EACH as usize) {
        let each = |direction: &str| -> Value {
            (first..rules.min(first + RULES_EACH))
                .map(|number| {
                    let (address, port) = peer(number);
                    json!({
                        direction: [{"ipBlock": {"cidr": format!("{address}/32")}}],
                        "ports": [{"protocol": "TCP", "port": port}],
                    })
                })
                .collect()
        };
        create(lab, &policy(format!("rules-{rules}-{first}"), each("from"), each("to")))?;
    }
    let friends = |direction: &str| {
        let ports = [PORT, BACKEND_PORT].map(|port| json!({"protocol": "TCP", "port": port}));
        json!([{direction: [{"podSelector": selector}], "ports": ports}])
    };
    create(lab, &policy(format!("rules-{rules}-friends"), friends("from"), friends("to")))
}

/// A client with a server on its node and one on the next.
pub(super) struct Group {
    rules: u32,
    client: Pod,
    here: Pod,
    there: Option<Pod>,
    service: Ipv4Addr,
    _servers: Vec<Process>,
}

fn ip4(pod: &Pod) -> Result<Ipv4Addr> {
    match pod.ip(true) {
        Some(IpAddr::V4(ip)) => Ok(ip),
        Some(IpAddr::V6(_)) | None => Err(anyhow!("{} has no IPv4 address", pod.name)),
    }
}

impl Group {
    /// Its pods on `node` and, where there is one, the next; with a service for the server on `node`.
    pub(super) fn new(lab: &Lab, rules: u32, node: u8) -> Result<Self> {
        let pod = |name: &str, node| {
            let spec = PodSpec::new(node, format!("{name}-{rules}")).label(LABEL, &rules.to_string());
            lab.add_pod_of(&spec)
        };
        let (client, here) = (pod("client", node)?, pod("here", node)?);
        let there = lab.nodes.iter().any(|other| other.number == node + 1);
        let there = if there { Some(pod("there", node + 1)?) } else { None };
        let server = |pod: &Pod, port| serve(&pod.namespace, SocketAddr::new(ip4(pod)?.into(), port));
        let mut servers = vec![server(&here, PORT)?, server(&here, BACKEND_PORT)?];
        if let Some(there) = &there {
            servers.push(server(there, PORT)?);
        }
        let service_ip = Ipv4Addr::new(10, 96, 0, node);
        service(lab, &format!("asked-{rules}"), service_ip, ip4(&here)?, Some(&here))?;
        let group = Self { rules, client, here, there, service: service_ip, _servers: servers };
        await_path(&group.way_here())?;
        if group.there.is_some() {
            await_path(&group.way_there())?;
        }
        await_path(&group.way_to_service())?;
        group.check(lab, node)?;
        Ok(group)
    }

    /// The rules are in force: as many rows as they make, and what none of them allows does not pass.
    fn check(&self, lab: &Lab, node: u8) -> Result<()> {
        let rows = lab.node(node).metric("hawser_policy_size{kind=\"rows\"}")?;
        ensure!(
            rows >= 2.0 * f64::from(self.rules),
            "{} has {rows} rows of policy for {} rules in each direction",
            node_name(node),
            self.rules
        );
        let to = SocketAddr::new(ip4(&self.here)?.into(), BACKEND_PORT + 1);
        let error = self.client.namespace.run(move || {
            std::net::TcpStream::connect_timeout(&to, Duration::from_millis(300))
                .map(drop)
                .map_err(|e| e.kind())
        });
        let closed = error == Err(std::io::ErrorKind::TimedOut);
        ensure!(
            closed == (self.rules > 0),
            "with {} rules a connection to {to} ended with {error:?}",
            self.rules
        );
        Ok(())
    }

    fn path(&self, to: IpAddr, port: u16) -> Path<'_> {
        let name = format!("hawser, {} rules", self.rules);
        Path { name, from: &self.client.namespace, to: SocketAddr::new(to, port) }
    }

    /// To the server on the client's node.
    pub(super) fn way_here(&self) -> Path<'_> {
        self.path(self.here.ip(true).unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), PORT)
    }

    /// To the server on the other node.
    pub(super) fn way_there(&self) -> Path<'_> {
        let there = self.there.as_ref().and_then(|pod| pod.ip(true));
        self.path(there.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), PORT)
    }

    /// To the service of the server on the client's node.
    pub(super) fn way_to_service(&self) -> Path<'_> {
        self.path(self.service.into(), SERVICE_PORT)
    }
}

/// What the agents say of the size of policy and services.
pub(super) fn sizes(lab: &Lab) -> Result<String> {
    let mut text = String::new();
    for node in &lab.nodes {
        let size = |beginning: &str| node.metric(beginning);
        text.push_str(&format!(
            "{}{}: {} rows, {} port functions, {} blocks, {} frontends",
            if text.is_empty() { "" } else { "\n" },
            node.name,
            size("hawser_policy_size{kind=\"rows\"}")?,
            size("hawser_policy_size{kind=\"functions\"}")?,
            size("hawser_policy_size{kind=\"blocks\"}")?,
            size("hawser_service_size{kind=\"frontends\"}")?,
        ));
    }
    Ok(text)
}
