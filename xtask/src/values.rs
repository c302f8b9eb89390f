//! What whoever installs Hawser may choose, in one place: the values of the chart, from which the plain manifests are rendered,
//! too. Names are as in YAML; the documentation of each field is its description in `values.schema.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Addresses and prefixes as JSON Schema can tell them; `deploy::check` says the rest.
const CIDR: &str = r"^([0-9]{1,3}(\.[0-9]{1,3}){3}/([1-9]|[12][0-9]|3[0-2])|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*/([1-9]|[1-9][0-9]|1[01][0-9]|12[0-8]))$";
const SERVER: &str = r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+):[1-9][0-9]{0,4}$";
const LISTEN: &str = r"^([0-9]{1,3}(\.[0-9]{1,3}){3}|\[[0-9a-fA-F:.]+\])$";

/// All values. Unknown ones are refused: a misspelt one would be a cluster that is not as somebody believes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Values {
    /// The container image.
    pub image: Image,
    /// Names of Secrets in hawser-system by which the image is pulled.
    pub image_pull_secrets: Vec<String>,
    /// Name of this cluster, 1 to 63 of a-z, 0-9 and '-'; pre-shared keys of nodes are bound to it.
    #[schemars(regex(pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"))]
    pub cluster_name: String,
    /// Pod CIDRs of the cluster, both families where it has two: what is protected. The controller manager's --cluster-cidr.
    #[serde(rename = "podCIDRs")]
    #[schemars(length(min = 1), inner(regex(pattern = CIDR)))]
    pub pod_cidrs: Vec<String>,
    /// Destinations to which pods talk with their own address, in plaintext.
    #[serde(rename = "nonMasqueradeCIDRs")]
    #[schemars(inner(regex(pattern = CIDR)))]
    pub non_masquerade_cidrs: Vec<String>,
    /// Where Services have their addresses (the API server's --service-cluster-ip-range), for clusters without ServiceCIDR objects, which
    /// Kubernetes has from 1.33 on: what pods send to such an address that no Service has does not leave the node.
    #[serde(rename = "serviceCIDRs")]
    #[schemars(inner(regex(pattern = CIDR)))]
    pub service_cidrs: Vec<String>,
    /// Addresses host:port of API servers, tried before the Service `kubernetes`, in this order, though not every node begins with
    /// the first. Needed where kube-proxy does not serve that Service on every node before there is a pod network; the API server's
    /// certificate has to name the host.
    #[schemars(inner(regex(pattern = SERVER)))]
    pub api_servers: Vec<String>,
    /// MTU of the tunnel in bytes, 1280 to 65455; null: the uplink's less 80.
    #[schemars(range(min = 1280, max = 65455))]
    pub mtu: Option<u32>,
    /// Keepalive in seconds towards every peer; 0 is off, null: 25 where a node seems to be behind NAT.
    pub keepalive_seconds: Option<u16>,
    /// `enforce`: network policy, services and guards in eBPF. `off`: none of these, for kernels that cannot.
    pub data_path: DataPath,
    /// Post-quantum pre-shared keys.
    pub post_quantum: PostQuantum,
    /// Traffic of nodes themselves to each other.
    pub host_traffic: HostTraffic,
    /// Replacement of WireGuard keys.
    pub rotation: Rotation,
    /// Metrics and evidence of the agents.
    pub metrics: Metrics,
    /// The agent, mesh-agent.
    pub agent: Agent,
    /// Userspace WireGuard, mesh-tunnel.
    pub tunnel: Tunnel,
    /// Joined clusters, clustermesh.
    pub clustermesh: Clustermesh,
    /// Where the container runtime looks for plugins.
    pub cni: Cni,
    /// The node's BPF file system.
    pub bpffs: Bpffs,
    /// Labels that a node must have to get Hawser, besides kubernetes.io/os: linux; none: every node does.
    #[schemars(extend("propertyNames" = {"not": {"const": "kubernetes.io/os"}}))]
    pub node_selector: BTreeMap<String, String>,
    /// Rights of people and programs that use the command line, hawser.
    pub operators: Operators,
    /// Type of our processes under SELinux, one that may use the node's devices and files; empty: the runtime's. Nothing where there
    /// is no SELinux.
    pub se_linux_type: String,
    /// OpenShift.
    pub openshift: Openshift,
    /// Removal of Hawser from its nodes: see "Remove" in deploy/README.md.
    pub uninstall: Uninstall,
    /// Helm's, where this chart is a part of another one. Nothing of it is used.
    pub global: BTreeMap<String, Value>,
}

/// OpenShift.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Openshift {
    /// Lets our accounts use the SecurityContextConstraints that their pods need: privileged for agent and tunnel, nonroot-v2 for
    /// clustermesh.
    pub enabled: bool,
}

/// Rights of people and programs that use the command line, hawser.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Operators {
    /// ServiceAccounts hawser-viewer, hawser-operator, hawser-tester and hawser-auditor that have the roles of these names, for
    /// programs. Off: there are the roles, for an administrator to bind; who may make pods in hawser-system could use the accounts.
    pub service_accounts: bool,
}

/// Removal of Hawser from its nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Uninstall {
    /// On: agent and tunnel end, and in their place a DaemonSet takes everything of Hawser off each node. Drain the nodes before.
    pub enabled: bool,
    /// Pods that are still connected lose their links at once. Off: a node with such pods stays protected until they are gone.
    pub cut_pods: bool,
    /// The record of destroyed keys, /var/lib/hawser/audit/keys.jsonl, stays on the nodes.
    pub keep_audit: bool,
    /// Forwarding (ip_forward, forwarding, accept_ra) is set back to what it was before Hawser, where it is still as Hawser set it.
    /// Off: it stays on, since the next network, containers or virtual machines may rest on it by now.
    pub reset_forwarding: bool,
}

/// The container image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Image {
    /// Its whole name with tag or digest.
    pub name: String,
    /// When a node pulls it. `Never` for an image that was put on every node by hand.
    pub pull_policy: PullPolicy,
}

/// When an image is pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[expect(missing_docs, reason = "as Kubernetes calls them")]
pub enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

/// Whether there is a data path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "Values::data_path says it")]
pub enum DataPath {
    Enforce,
    Off,
}

/// Post-quantum pre-shared keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PostQuantum {
    /// `prefer`: agreed with every node that takes part; `require`: no pod traffic without one; `off`.
    pub mode: PostQuantumMode,
}

/// See [`PostQuantum::mode`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "PostQuantum::mode says it")]
pub enum PostQuantumMode {
    Prefer,
    Require,
    Off,
}

/// Traffic of nodes themselves to each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HostTraffic {
    /// `off`: outside the tunnel; `on`: through it with every node that has it on, too; `require`: plaintext of such nodes is refused.
    pub mode: HostTrafficMode,
    /// TCP ports of nodes that stay outside, 16 at most; ports of apiServers always do.
    #[serde(rename = "exemptTCPPorts")]
    #[schemars(length(max = 16), inner(range(min = 1)))]
    pub exempt_tcp_ports: Vec<u16>,
}

/// See [`HostTraffic::mode`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "HostTraffic::mode says it")]
pub enum HostTrafficMode {
    Off,
    On,
    Require,
}

/// Replacement of WireGuard keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Rotation {
    /// No key gets older, in seconds, at least 600; 0: keys are replaced on demand alone (hawser keys rotate).
    #[schemars(extend("anyOf" = [{"const": 0}, {"minimum": 600}]))]
    pub period_seconds: u64,
    /// For how long a slot has to be silent before its key goes, in seconds, at least 1.
    #[schemars(range(min = 1))]
    pub quiet_seconds: u64,
    /// When a key is replaced whoever still uses it, in seconds, at least 20 and more than quietSeconds.
    #[schemars(range(min = 20))]
    pub deadline_seconds: u64,
    /// For how long a node's kubelet has to be away before nobody waits for its agent any more, in seconds; 0: it is waited for
    /// until the deadline.
    pub gone_seconds: u64,
}

/// Metrics and evidence of the agents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(extend("if" = {"required": ["podMonitor"], "properties": {"podMonitor": {"const": true}}}))]
#[schemars(extend("then" = {"required": ["address"], "properties": {"address": {"not": {"pattern": "^(127\\.|\\[::1\\]$)"}}}}))]
pub struct Metrics {
    /// Address of the agents' /metrics, /audit and /debug/plan, plain HTTP. The default is for the node alone; 0.0.0.0 or [::] let
    /// Prometheus and the API server's proxy (hawser audit) in, and whoever reaches nodes.
    #[schemars(regex(pattern = LISTEN))]
    pub address: String,
    /// Its port, not 51890. Other than 51891: tell hawser by --agent-port.
    #[schemars(range(min = 1), extend("not" = {"const": 51890}))]
    pub port: u16,
    /// PodMonitors (prometheus-operator) for the agents and clustermesh; they need an address that Prometheus reaches.
    pub pod_monitor: bool,
    /// More labels of these PodMonitors, by which a Prometheus chooses its own (release: kube-prometheus-stack).
    #[schemars(extend("propertyNames" = {"not": {"enum": ["app.kubernetes.io/name", "app.kubernetes.io/part-of"]}}))]
    pub pod_monitor_labels: BTreeMap<String, String>,
    /// The namespace from which clustermesh is asked for its metrics, by a NetworkPolicy; empty: nobody in a pod asks it.
    #[schemars(regex(pattern = "^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)?$"))]
    pub prometheus_namespace: String,
    /// A ConfigMap with a dashboard that Grafana's sidecar finds by its label grafana_dashboard.
    pub dashboard: bool,
}

/// The agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Agent {
    /// What is logged, in the words of tracing's EnvFilter.
    pub log: String,
    /// Which share of nodes' agents an upgrade replaces at once, at least one. Pods' traffic goes on meanwhile, new pods wait.
    #[schemars(regex(pattern = "^([1-9][0-9]?|100)%$"))]
    pub max_unavailable: String,
    /// What a node keeps free for it.
    pub requests: Requests,
    /// Most memory that it may use, as Kubernetes writes it; empty: no limit.
    pub memory_limit: String,
}

/// What a node keeps free for a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Requests {
    /// As Kubernetes writes it, such as 100m.
    pub cpu: String,
    /// As Kubernetes writes it, such as 64Mi.
    pub memory: String,
}

/// Userspace WireGuard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Tunnel {
    /// Off where every node's kernel has WireGuard: that is used then. Not to be changed while a node has pods: drain it, and
    /// restart it or remove hawser0 and hawser1 in between.
    pub enabled: bool,
    /// What is logged, in the words of tracing's EnvFilter.
    pub log: String,
    /// What a node keeps free for it.
    pub requests: Requests,
}

/// The daemon that joins clusters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Clustermesh {
    /// On in clusters that are joined to others.
    pub enabled: bool,
    /// How many there are. One leads and serves; another takes over within 15 s.
    #[schemars(range(min = 1, max = 5))]
    pub replicas: u8,
    /// What is logged, in the words of tracing's EnvFilter.
    pub log: String,
    /// What a node keeps free for it.
    pub requests: Requests,
    /// How other clusters reach it, TCP port 51893.
    pub service: ClustermeshService,
}

/// The Service of clustermesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(extend("if" = {"required": ["type"], "properties": {"type": {"const": "ClusterIP"}}}))]
#[schemars(extend("then" = {"properties": {"nodePort": {"const": null}}}))]
pub struct ClustermeshService {
    /// `ClusterIP`, where something else leads to it; `NodePort` or `LoadBalancer`.
    #[serde(rename = "type")]
    pub kind: ServiceType,
    /// Its port on every node, 30000 to 32767; null: the API server chooses. Not with ClusterIP.
    #[schemars(range(min = 30000, max = 32767))]
    pub node_port: Option<u16>,
}

/// Type of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[expect(missing_docs, reason = "as Kubernetes calls them")]
pub enum ServiceType {
    ClusterIP,
    NodePort,
    LoadBalancer,
}

/// Where the container runtime looks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Cni {
    /// Directory of plugins.
    #[schemars(regex(pattern = "^/"))]
    pub bin_dir: String,
    /// Directory of configurations.
    #[schemars(regex(pattern = "^/"))]
    pub conf_dir: String,
    /// File name of ours, which ends in .conflist; runtimes take the first in alphabetical order.
    #[schemars(regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._-]*\.conflist$"))]
    pub conf_name: String,
    /// Reference plugins (portmap, bandwidth, tuning) that run after ours and serve their capability in its place.
    #[schemars(extend("uniqueItems" = true))]
    pub chain: Vec<Chained>,
}

/// A plugin that runs after ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "as the reference plugins are called")]
pub enum Chained {
    Portmap,
    Bandwidth,
    Tuning,
}

/// The node's BPF file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Bpffs {
    /// Mount /sys/fs/bpf on nodes that have not: a container that enters the runtime's mount namespace, before the agent. Off where
    /// systemd has mounted it on every node, and nobody should have the capabilities for that.
    pub mount: bool,
    /// Where maps and programs are pinned, beneath /sys/fs/bpf. Not to be changed while nodes have pods: what is pinned elsewhere
    /// stays in force.
    #[schemars(regex(pattern = "^/sys/fs/bpf/[A-Za-z0-9][A-Za-z0-9._-]*$"))]
    pub pin_directory: String,
}

impl Default for Values {
    fn default() -> Self {
        Self {
            image: Image::default(),
            image_pull_secrets: Vec::new(),
            cluster_name: "default".to_owned(),
            pod_cidrs: vec!["10.244.0.0/16".to_owned(), "fd00:10:244::/56".to_owned()],
            non_masquerade_cidrs: Vec::new(),
            service_cidrs: Vec::new(),
            api_servers: Vec::new(),
            mtu: None,
            keepalive_seconds: None,
            data_path: DataPath::Enforce,
            post_quantum: PostQuantum::default(),
            host_traffic: HostTraffic::default(),
            rotation: Rotation::default(),
            metrics: Metrics::default(),
            agent: Agent::default(),
            tunnel: Tunnel::default(),
            clustermesh: Clustermesh::default(),
            cni: Cni::default(),
            bpffs: Bpffs::default(),
            node_selector: BTreeMap::new(),
            operators: Operators::default(),
            se_linux_type: "spc_t".to_owned(),
            openshift: Openshift::default(),
            uninstall: Uninstall::default(),
            global: BTreeMap::new(),
        }
    }
}

impl Default for Clustermesh {
    fn default() -> Self {
        Self {
            enabled: false,
            replicas: 2,
            log: "info,kube=warn".to_owned(),
            requests: Requests { cpu: "50m".to_owned(), memory: "64Mi".to_owned() },
            service: ClustermeshService::default(),
        }
    }
}

impl Default for ClustermeshService {
    fn default() -> Self {
        Self { kind: ServiceType::NodePort, node_port: None }
    }
}

impl Default for Image {
    fn default() -> Self {
        let name = concat!("hawser.dev/hawser:", env!("CARGO_PKG_VERSION")).to_owned();
        Self { name, pull_policy: PullPolicy::IfNotPresent }
    }
}

impl Default for PostQuantum {
    fn default() -> Self {
        Self { mode: PostQuantumMode::Prefer }
    }
}

impl Default for HostTraffic {
    fn default() -> Self {
        Self { mode: HostTrafficMode::Off, exempt_tcp_ports: vec![2379, 2380, 6443] }
    }
}

impl Default for Rotation {
    fn default() -> Self {
        Self { period_seconds: 0, quiet_seconds: 15, deadline_seconds: 600, gone_seconds: 300 }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            address: "127.0.0.1".to_owned(),
            port: 51891,
            pod_monitor: false,
            pod_monitor_labels: BTreeMap::new(),
            prometheus_namespace: "monitoring".to_owned(),
            dashboard: false,
        }
    }
}

impl Default for Agent {
    fn default() -> Self {
        Self {
            log: "info,kube=warn".to_owned(),
            max_unavailable: "10%".to_owned(),
            requests: Requests { cpu: "50m".to_owned(), memory: "64Mi".to_owned() },
            memory_limit: String::new(),
        }
    }
}

impl Default for Tunnel {
    fn default() -> Self {
        Self {
            enabled: true,
            log: "info".to_owned(),
            requests: Requests { cpu: "50m".to_owned(), memory: "32Mi".to_owned() },
        }
    }
}

impl Default for Cni {
    fn default() -> Self {
        Self {
            bin_dir: "/opt/cni/bin".to_owned(),
            conf_dir: "/etc/cni/net.d".to_owned(),
            conf_name: "05-hawser.conflist".to_owned(),
            chain: Vec::new(),
        }
    }
}

impl Default for Bpffs {
    fn default() -> Self {
        Self { mount: true, pin_directory: "/sys/fs/bpf/hawser".to_owned() }
    }
}
