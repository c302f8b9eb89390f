//! Configuration: the file of the agents (ConfigMap `hawser-config`), read once at start; flags override it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use mesh_core::clusters::ClusterName;
use mesh_core::numbers::{NAMESPACE, PORT_CLUSTERMESH, PORT_HEALTH, PORT_METRICS};
use serde::Deserialize;

/// What is read of the file. Fields that are not here are the agents', which refuse those that nobody knows.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConfigFile {
    cluster_name: Option<String>,
    #[serde(default, rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
    #[serde(default, rename = "clustermesh")]
    mesh: MeshFile,
}

/// `clustermesh` of the file. Unknown fields are refused.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct MeshFile {
    listen_address: Option<String>,
    health_address: Option<String>,
    metrics_address: Option<String>,
    agents: Option<Vec<String>>,
    dns_address: Option<String>,
    // What follows is for the agents, which read the same file.
    #[serde(rename = "addresses")]
    _addresses: Option<Vec<String>>,
    #[serde(rename = "caFile")]
    _ca_file: Option<PathBuf>,
    #[serde(rename = "tokenFile")]
    _token_file: Option<PathBuf>,
}

/// The configuration, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Name of this cluster.
    pub cluster: ClusterName,
    /// Its pod CIDRs.
    pub pod_cidrs: Vec<IpNet>,
    /// Where it serves.
    pub listen: SocketAddr,
    /// Health endpoint.
    pub health: SocketAddr,
    /// Metrics endpoint.
    pub metrics: SocketAddr,
    /// Users whose tokens are let in.
    pub agents: Vec<String>,
    /// Where names of `clusterset.local` are served; none: nowhere.
    pub dns: Option<SocketAddr>,
}

/// Flags that go before the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `listenAddress`.
    pub listen: Option<SocketAddr>,
    /// `healthAddress`.
    pub health: Option<SocketAddr>,
    /// `metricsAddress`.
    pub metrics: Option<SocketAddr>,
    /// `dnsAddress`.
    pub dns: Option<SocketAddr>,
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
        reason: &'static str,
    },
}

impl Config {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(path: &Path, overrides: &Overrides) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text, overrides)
    }

    /// Checks a text; `path` is for errors.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn parse(path: &Path, text: &str, overrides: &Overrides) -> Result<Self, ConfigError> {
        let file: ConfigFile = serde_saphyr::from_str(text).map_err(|error| {
            let reason = error.to_string().lines().next().unwrap_or_default().chars().take(300).collect();
            ConfigError::Parse { path: path.to_owned(), reason }
        })?;
        let wrong = |field, value: &str, reason| ConfigError::Field {
            path: path.to_owned(),
            field,
            value: value.to_owned(),
            reason,
        };
        // Two clusters of one name could not be joined.
        let name = file.cluster_name.as_deref().unwrap_or("default");
        let cluster = name.parse().map_err(|_| {
            wrong(
                "clusterName",
                name,
                "must be 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit",
            )
        })?;
        let mut pod_cidrs: Vec<IpNet> = Vec::new();
        for text in &file.pod_cidrs {
            let net = text.parse::<IpNet>().ok().filter(|net| *net == net.trunc() && net.prefix_len() > 0);
            let net = net.ok_or_else(|| {
                wrong(
                    "podCIDRs",
                    text,
                    "is not a prefix of pods; write it as 10.244.0.0/16 or fd00:10:244::/56",
                )
            })?;
            pod_cidrs.push(net);
        }
        if pod_cidrs.is_empty() {
            return Err(wrong(
                "podCIDRs",
                "[]",
                "must name the pod CIDRs of the cluster: other clusters are told of nothing else",
            ));
        }
        let address = |field, text: &Option<String>, given: Option<SocketAddr>, default: SocketAddr| match (
            given, text,
        ) {
            (Some(given), _) => Ok(given),
            (None, None) => Ok(default),
            (None, Some(text)) => {
                listen_address(text).map_err(|NotAnAddress| wrong(field, text, NOT_AN_ADDRESS))
            }
        };
        let mesh = &file.mesh;
        let listen = "clustermesh.listenAddress";
        Ok(Self {
            listen: address(listen, &mesh.listen_address, overrides.listen, everywhere(PORT_CLUSTERMESH))?,
            health: address(
                "clustermesh.healthAddress",
                &mesh.health_address,
                overrides.health,
                everywhere(PORT_HEALTH),
            )?,
            metrics: address(
                "clustermesh.metricsAddress",
                &mesh.metrics_address,
                overrides.metrics,
                SocketAddr::from(([127, 0, 0, 1], PORT_METRICS)),
            )?,
            dns: match (overrides.dns, &mesh.dns_address) {
                (None, None) => None,
                (given, text) => Some(address("clustermesh.dnsAddress", text, given, everywhere(0))?),
            },
            agents: mesh
                .agents
                .clone()
                .unwrap_or_else(|| vec![format!("system:serviceaccount:{NAMESPACE}:mesh-agent")]),
            cluster,
            pod_cidrs,
        })
    }
}

const NOT_AN_ADDRESS: &str = "is not an address and port; write it as '*:51893' (every address of the pod), '0.0.0.0:51893' or '[::]:51893', in quotes";

/// Why a text is not where to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{NOT_AN_ADDRESS}")]
pub struct NotAnAddress;

/// Reads `ADDRESS:PORT`; an address of `*` is all there are, of both families.
///
/// # Errors
/// It is neither.
pub fn listen_address(text: &str) -> Result<SocketAddr, NotAnAddress> {
    match text.strip_prefix("*:") {
        Some(port) => port.parse().map(everywhere).map_err(|_| NotAnAddress),
        None => text.parse().map_err(|_| NotAnAddress),
    }
}

/// Every address of both families; of one, where the kernel has no IPv6.
fn everywhere(port: u16) -> SocketAddr {
    let has_six = std::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok();
    let any = if has_six { IpAddr::from(Ipv6Addr::UNSPECIFIED) } else { Ipv4Addr::UNSPECIFIED.into() };
    SocketAddr::new(any, port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("c.yaml"), text, &Overrides::default()).map_err(|error| error.to_string())
    }

    #[test]
    fn everywhere_is_where_both_families_get_through() {
        assert_eq!(listen_address("192.0.2.1:7").unwrap().to_string(), "192.0.2.1:7");
        assert!(["", "*", "*:x", "*:70000", "51893"].iter().all(|text| listen_address(text).is_err()));
        let everywhere = listen_address("*:7").unwrap();
        assert!(everywhere.ip().is_unspecified() && everywhere.port() == 7);
        let listener = std::net::TcpListener::bind(listen_address("*:0").unwrap()).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        if everywhere.is_ipv6() {
            std::net::TcpStream::connect((Ipv6Addr::LOCALHOST, port)).unwrap();
        }
    }

    #[test]
    fn what_an_error_advises_is_taken() {
        for advised in NOT_AN_ADDRESS.split(' ').filter(|word| word.starts_with('\'')) {
            let advised = advised.trim_end_matches(',');
            parse(&format!("podCIDRs: [10.1.0.0/16]\nclustermesh: {{listenAddress: {advised}}}")).unwrap();
        }
    }

    #[test]
    fn the_agents_file_is_read_and_the_own_part_is_checked() {
        let config = parse(
            "clusterName: east\npodCIDRs: [10.1.0.0/16]\nmtu: null\nclustermesh: {listenAddress: '[::]:1'}",
        )
        .unwrap();
        assert_eq!((config.cluster.as_str(), config.listen.to_string().as_str()), ("east", "[::]:1"));
        assert_eq!(config.agents, ["system:serviceaccount:hawser-system:mesh-agent"]);
        for (text, expected) in [
            ("clusterName: E\npodCIDRs: [10.1.0.0/16]", "field clusterName: \"E\" must be"),
            ("podCIDRs: []", "field podCIDRs: \"[]\" must name"),
            ("podCIDRs: [10.1.0.1/16]", "field podCIDRs: \"10.1.0.1/16\" is not"),
            (
                "podCIDRs: [10.1.0.0/16]\nclustermesh: {listenAddress: x}",
                "field clustermesh.listenAddress: \"x\" is not",
            ),
            ("podCIDRs: [10.1.0.0/16]\nclustermesh: {listen: x}", "unknown field"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
