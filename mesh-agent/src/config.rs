//! Configuration: one YAML file (ConfigMap `hawser-config`), read once at start; flags override it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use mesh_core::clusters::ServerAddressError;
use mesh_core::host::{EXEMPT_TCP, HostTraffic};
use mesh_core::numbers::{PORT_HEALTH, PORT_METRICS};
use mesh_core::psk::ClusterName;
use mesh_core::view::Settings;
use serde::Deserialize;

use crate::service_cidrs::MIN_PREFIX;

/// The file as written. Unknown fields are refused: a misspelt `podCIDRs` would be a cluster without protection.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConfigFile {
    /// Name of this cluster.
    pub cluster_name: Option<String>,
    /// Pod CIDRs of the cluster, both families. Mandatory.
    #[serde(default, rename = "podCIDRs")]
    pub pod_cidrs: Vec<String>,
    /// Destinations to which pods talk with their own address, in plaintext.
    #[serde(default, rename = "nonMasqueradeCIDRs")]
    pub non_masquerade_cidrs: Vec<String>,
    /// Where Services have their addresses, besides what ServiceCIDR objects say: of what pods send there nothing leaves by an uplink.
    #[serde(default, rename = "serviceCIDRs")]
    pub service_cidrs: Vec<String>,
    /// MTU of the tunnel in bytes; absent: the uplink's less 80.
    pub mtu: Option<u32>,
    /// Keepalive in seconds towards every peer; 0 is off, absent: 25 where this node seems to be behind NAT.
    pub keepalive_seconds: Option<u16>,
    /// `auto` (default), `kernel` or `userspace`.
    pub wireguard: Option<String>,
    /// Addresses `host:port` of the API servers, tried before the Service address; the kubeconfig's when absent. Not every node
    /// begins with the first.
    #[serde(default)]
    pub api_servers: Vec<String>,
    /// Address of `/healthz` and `/readyz`.
    pub health_address: Option<String>,
    /// Address of `/metrics`, `/debug/plan` and `/audit`.
    pub metrics_address: Option<String>,
    /// Where keys and attachments live.
    pub state_dir: Option<PathBuf>,
    /// Where the CNI plugin's socket is made.
    pub cni_socket: Option<PathBuf>,
    /// `enforce` (default): eBPF programs on every link; pods are connected only with them. `off`: neither policy nor
    /// services, for kernels that cannot.
    pub data_path: Option<String>,
    /// Where maps and programs are pinned, on a BPF file system.
    pub bpf_pin_dir: Option<PathBuf>,
    /// Where readers of flows are served; absent: `flows.sock` beside the CNI socket.
    pub flows_socket: Option<PathBuf>,
    /// When and how WireGuard keys are replaced.
    #[serde(default)]
    pub rotation: RotationFile,
    /// Post-quantum pre-shared keys.
    #[serde(default)]
    pub post_quantum: PostQuantumFile,
    /// What nodes themselves say to each other.
    #[serde(default)]
    pub host_traffic: HostTrafficFile,
    /// How the agent reaches its cluster's `clustermesh`; nobody is called before there is a ClusterPeer.
    #[serde(default)]
    pub clustermesh: ClustermeshFile,
}

/// `clustermesh` of the file. All are optional.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClustermeshFile {
    /// Addresses `host:port`, best first; absent: ready endpoints of the Service `clustermesh` in `hawser-system`.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// PEM certificates of this cluster's own authority; absent: `/var/run/secrets/hawser.dev/clustermesh/ca.crt`.
    pub ca_file: Option<PathBuf>,
    /// The agent's token for audience `clustermesh.hawser.dev`; absent: `/var/run/secrets/hawser.dev/clustermesh/token`.
    pub token_file: Option<PathBuf>,
    // What follows is for the daemon itself, which reads the same file.
    #[serde(rename = "listenAddress")]
    _listen_address: Option<String>,
    #[serde(rename = "healthAddress")]
    _health_address: Option<String>,
    #[serde(rename = "metricsAddress")]
    _metrics_address: Option<String>,
    #[serde(rename = "dnsAddress")]
    _dns_address: Option<String>,
    #[serde(rename = "agents")]
    _agents: Option<Vec<String>>,
}

/// `hostTraffic` of the file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HostTrafficFile {
    /// `off` (default): outside the tunnel; `on`: through the tunnel with every node that has it on, too; `require`: and what
    /// such a node sends in plaintext is refused. From `off` to `require` and back by way of `on` on all nodes: else what is
    /// on its way between the two is lost.
    pub mode: Option<String>,
    /// TCP ports of nodes that stay outside; absent: 2379, 2380 and 6443. Those of `apiServers`, and of the API
    /// server in the agent's kubeconfig, always do.
    #[serde(rename = "exemptTCPPorts")]
    pub exempt_tcp_ports: Option<Vec<u16>>,
}

/// `postQuantum` of the file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PostQuantumFile {
    /// `prefer` (default): agreed with every node that takes part; `require`: no pod traffic in a session made without
    /// one; `off`: no new ones.
    pub mode: Option<String>,
}

/// `rotation` of the file. All are optional.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RotationFile {
    /// No key gets older, in seconds; 0 or absent: keys are replaced on demand alone (annotation `hawser.dev/rotate`).
    pub period_seconds: Option<u64>,
    /// For how long a slot has to be silent before its key goes, in seconds, at least 1; absent: 15.
    pub quiet_seconds: Option<u64>,
    /// When a key is replaced whoever still uses it, in seconds from the announcement; absent: 600.
    pub deadline_seconds: Option<u64>,
    /// For how long a Node's condition Ready has to be Unknown before a peer that answers nothing, either, is no longer waited
    /// for, in seconds; 0: whoever is silent is waited for until the deadline; absent: 300.
    pub gone_seconds: Option<u64>,
    /// `answers` (default): every peer's kernel has to answer an ICMP echo by the other slot; `silence`: for nodes that
    /// answer none.
    pub proof: Option<String>,
}

/// Whether there is a data path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataPath {
    /// Pods are connected only with it.
    Enforce,
    /// There is none.
    Off,
}

/// Which WireGuard to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// The kernel's where the module is there, else `mesh-tunnel`.
    Auto,
    /// The kernel's.
    Kernel,
    /// `mesh-tunnel`.
    Userspace,
}

/// The configuration, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of this cluster.
    pub cluster_name: ClusterName,
    /// What plans need.
    pub settings: Settings,
    /// Which WireGuard to use.
    pub engine: Engine,
    /// API servers to try.
    pub api_servers: Vec<String>,
    /// Health endpoint.
    pub health_address: SocketAddr,
    /// Metrics endpoint.
    pub metrics_address: SocketAddr,
    /// State directory.
    pub state_dir: PathBuf,
    /// CNI socket.
    pub cni_socket: PathBuf,
    /// Whether there is a data path.
    pub data_path: DataPath,
    /// Where maps and programs are pinned.
    pub bpf_pin_dir: PathBuf,
    /// Whether the agent mounts a BPF file system where it finds none. Not in a container: it would end with it.
    pub mounts_bpffs: bool,
    /// Socket for readers of flows.
    pub flows_socket: PathBuf,
    /// When and how WireGuard keys are replaced.
    pub rotation: keyring::rotation::Settings,
    /// Whether sessions have post-quantum pre-shared keys.
    pub post_quantum: keyring::psk::Mode,
    /// How `clustermesh` is reached.
    pub clustermesh: crate::joined::follow::Settings,
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration {path}: {source}; mount the ConfigMap hawser-config there or give --config")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not the YAML expected.
    #[error("configuration {path}: {reason}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What and where.
        reason: String,
    },
    /// A field has a value that cannot be.
    #[error("configuration {path}: field {field}: {value:?} {reason}")]
    Field {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
}

impl Config {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// Checks a text; `path` is for errors.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let file: ConfigFile = serde_saphyr::from_str(text).map_err(|error| {
            let reason = first_line(&error.to_string());
            ConfigError::Parse { path: path.to_owned(), reason }
        })?;
        file.check(path)
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(300).collect()
}

impl ConfigFile {
    fn check(self, path: &Path) -> Result<Config, ConfigError> {
        let wrong = |field, value: &str, reason: String| ConfigError::Field {
            path: path.to_owned(),
            field,
            value: value.to_owned(),
            reason,
        };
        let prefixes = |field, list: &[String]| -> Result<Vec<IpNet>, ConfigError> {
            let mut nets: Vec<IpNet> = Vec::new();
            for text in list {
                let net: IpNet = text.parse().map_err(|_| {
                    wrong(
                        field,
                        text,
                        "is not a prefix; write it as 10.244.0.0/16 or fd00:10:244::/56".into(),
                    )
                })?;
                if net != net.trunc() {
                    return Err(wrong(field, text, format!("has host bits set; write {}", net.trunc())));
                }
                if net.prefix_len() == 0 {
                    return Err(wrong(
                        field,
                        text,
                        "covers every address; name the cluster's own prefix".into(),
                    ));
                }
                if let Some(twin) = nets.iter().find(|other| mesh_core::prefix::overlap(other, &net)) {
                    return Err(wrong(field, text, format!("overlaps {twin}; name each prefix once")));
                }
                nets.push(net);
            }
            Ok(nets)
        };
        let address = |field, text: Option<String>, default: SocketAddr| match text {
            None => Ok(default),
            Some(text) => text.parse::<SocketAddr>().map_err(|_| {
                wrong(field, &text, "is not an address and port; write it as 127.0.0.1:9000".into())
            }),
        };
        let pod_cidrs = prefixes("podCIDRs", &self.pod_cidrs)?;
        if pod_cidrs.is_empty() {
            let reason = "must name the pod CIDRs of the cluster (the controller manager's --cluster-cidr): they are what is protected";
            return Err(wrong("podCIDRs", "[]", reason.into()));
        }
        let non_masquerade = prefixes("nonMasqueradeCIDRs", &self.non_masquerade_cidrs)?;
        for net in &non_masquerade {
            if let Some(pods) = pod_cidrs.iter().find(|pods| mesh_core::prefix::overlap(pods, net)) {
                let reason = format!("overlaps the pod CIDR {pods}, which is never plaintext; remove it");
                return Err(wrong("nonMasqueradeCIDRs", &net.to_string(), reason));
            }
        }
        let service_cidrs = prefixes("serviceCIDRs", &self.service_cidrs)?;
        for net in &service_cidrs {
            if net.prefix_len() < MIN_PREFIX {
                let reason = format!(
                    "is larger than a /{MIN_PREFIX}; write the API server's --service-cluster-ip-range"
                );
                return Err(wrong("serviceCIDRs", &net.to_string(), reason));
            }
            if let Some(pods) = pod_cidrs.iter().find(|pods| mesh_core::prefix::overlap(pods, net)) {
                let reason = format!(
                    "overlaps the pod CIDR {pods}: no address is both; write the API server's --service-cluster-ip-range"
                );
                return Err(wrong("serviceCIDRs", &net.to_string(), reason));
            }
        }
        if let Some(mtu) = self.mtu.filter(|mtu| !(1280..=65_455).contains(mtu)) {
            return Err(wrong("mtu", &mtu.to_string(), "is outside 1280 to 65455".into()));
        }
        let engine = match self.wireguard.as_deref() {
            None | Some("auto") => Engine::Auto,
            Some("kernel") => Engine::Kernel,
            Some("userspace") => Engine::Userspace,
            Some(other) => {
                return Err(wrong("wireguard", other, "is none of auto, kernel, userspace".into()));
            }
        };
        let data_path = match self.data_path.as_deref() {
            None | Some("enforce") => DataPath::Enforce,
            Some("off") => DataPath::Off,
            Some(other) => return Err(wrong("dataPath", other, "is none of enforce, off".into())),
        };
        let rotation = rotation(&self.rotation, &wrong)?;
        let name = self.cluster_name.unwrap_or_else(|| "default".to_owned());
        let cluster_name = name.parse().map_err(|_| {
            let reason = "must be 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit";
            wrong("clusterName", &name, reason.into())
        })?;
        let post_quantum = match self.post_quantum.mode.as_deref() {
            None | Some("prefer") => keyring::psk::Mode::Prefer,
            Some("require") => keyring::psk::Mode::Require,
            Some("off") => keyring::psk::Mode::Off,
            Some(other) => {
                return Err(wrong("postQuantum.mode", other, "is none of off, prefer, require".into()));
            }
        };
        let cni_socket = self.cni_socket.unwrap_or_else(|| PathBuf::from(proto::cni::SOCKET));
        let flows_socket = self.flows_socket.unwrap_or_else(|| cni_socket.with_file_name("flows.sock"));
        let local = IpAddr::from([127, 0, 0, 1]);
        let health_address =
            address("healthAddress", self.health_address, SocketAddr::new(local, PORT_HEALTH))?;
        let metrics_address =
            address("metricsAddress", self.metrics_address, SocketAddr::new(local, PORT_METRICS))?;
        let mut addresses = Vec::new();
        for text in &self.clustermesh.addresses {
            let parsed = text.parse().map_err(|error: ServerAddressError| {
                wrong("clustermesh.addresses", text, format!("is no address: {error}"))
            })?;
            addresses.push(parsed);
        }
        let path = |given: Option<PathBuf>, default: &str| given.unwrap_or_else(|| PathBuf::from(default));
        let clustermesh = crate::joined::follow::Settings {
            addresses,
            ca_file: path(self.clustermesh.ca_file, "/var/run/secrets/hawser.dev/clustermesh/ca.crt"),
            token_file: path(self.clustermesh.token_file, "/var/run/secrets/hawser.dev/clustermesh/token"),
        };
        let host_traffic = host_traffic(&self.host_traffic, &self.api_servers, &wrong)?;
        let (mtu, keepalive) = (self.mtu, self.keepalive_seconds);
        let settings = Settings {
            pod_cidrs,
            joined: BTreeMap::new(),
            disputed: Vec::new(),
            non_masquerade,
            service_cidrs,
            mtu,
            keepalive,
            host_traffic,
        };
        Ok(Config {
            cluster_name,
            settings,
            engine,
            api_servers: self.api_servers,
            health_address,
            metrics_address,
            state_dir: self.state_dir.unwrap_or_else(|| PathBuf::from("/var/lib/hawser")),
            cni_socket,
            data_path,
            bpf_pin_dir: self.bpf_pin_dir.unwrap_or_else(|| PathBuf::from("/sys/fs/bpf/hawser")),
            mounts_bpffs: true,
            flows_socket,
            rotation,
            post_quantum,
            clustermesh,
        })
    }
}

/// Most exempt ports: each is four rules, which every packet asks.
const MOST_EXEMPT: usize = 16;

fn host_traffic(
    file: &HostTrafficFile,
    api_servers: &[String],
    wrong: &impl Fn(&'static str, &str, String) -> ConfigError,
) -> Result<HostTraffic, ConfigError> {
    let (on, require) = match file.mode.as_deref() {
        None | Some("off") => (false, false),
        Some("on") => (true, false),
        Some("require") => (true, true),
        Some(other) => return Err(wrong("hostTraffic.mode", other, "is none of off, on, require".into())),
    };
    let given = file.exempt_tcp_ports.as_deref().unwrap_or(&EXEMPT_TCP);
    if given.contains(&0) {
        let reason = "is no port; write 1 to 65535";
        return Err(wrong("hostTraffic.exemptTCPPorts", "0", reason.into()));
    }
    if given.len() > MOST_EXEMPT {
        let reason = format!("are more than {MOST_EXEMPT}; leave more to the tunnel");
        return Err(wrong("hostTraffic.exemptTCPPorts", &given.len().to_string(), reason));
    }
    let port = |server: &String| server.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    let exempt_tcp = given.iter().copied().chain(api_servers.iter().filter_map(port)).collect();
    Ok(HostTraffic { on, require, exempt_tcp })
}

/// Least deadline: before it every peer is asked twice.
const LEAST_DEADLINE: Duration = Duration::from_secs(20);
/// Least period: a rotation takes about a minute, and every peer is told three times.
const LEAST_PERIOD: u64 = 600;

fn rotation(
    file: &RotationFile,
    wrong: &impl Fn(&'static str, &str, String) -> ConfigError,
) -> Result<keyring::rotation::Settings, ConfigError> {
    use keyring::rotation::{Proof, Settings};
    let default = Settings::DEFAULT;
    let seconds = |given: Option<u64>, default: Duration| given.map_or(default, Duration::from_secs);
    let period = seconds(file.period_seconds, default.period);
    let quiet = seconds(file.quiet_seconds, default.quiet);
    let deadline = seconds(file.deadline_seconds, default.deadline);
    if let Some(period) = file.period_seconds.filter(|period| (1..LEAST_PERIOD).contains(period)) {
        let reason = format!("is under {LEAST_PERIOD}; write 604800 for a week, 0 for never");
        return Err(wrong("rotation.periodSeconds", &period.to_string(), reason));
    }
    if quiet.is_zero() {
        let reason = "must be at least 1: nobody is told in no time; 15 is usual".into();
        return Err(wrong("rotation.quietSeconds", "0", reason));
    }
    if deadline < LEAST_DEADLINE || deadline <= quiet {
        let (least, quiet) = (LEAST_DEADLINE.as_secs(), quiet.as_secs());
        let reason = format!("must be at least {least} and more than quietSeconds ({quiet}); 600 is usual");
        return Err(wrong("rotation.deadlineSeconds", &deadline.as_secs().to_string(), reason));
    }
    let proof = match file.proof.as_deref() {
        None | Some("answers") => Proof::Answers,
        Some("silence") => Proof::Silence,
        Some(other) => return Err(wrong("rotation.proof", other, "is none of answers, silence".into())),
    };
    let gone = seconds(file.gone_seconds, default.gone);
    Ok(Settings { period, quiet, deadline, proof, gone })
}

#[cfg(test)]
mod tests;
