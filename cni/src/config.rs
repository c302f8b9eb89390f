//! The network configuration on stdin (SPEC.md "Section 1"; CONVENTIONS.md for `runtimeConfig` and `args`).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use proto::cni::{self, AttachmentId, Bandwidth, PortMapping};
use serde_json::{Map, Value, json};

use crate::agent::AgentOptions;
use crate::environment::{Args, is_identifier};
use crate::error::{Error, shown};
use crate::json::{self, Field, Object};
use crate::version::SpecVersion;

/// Longest stdin in bytes, that of a frame: a GC request of 10,000 attachments is under 1 MiB.
pub const MAX_STDIN: u64 = cni::MAX_FRAME as u64;

/// Longest path of a unix socket in bytes, `sizeof(sun_path)` less the final zero.
const MAX_SOCKET_PATH: usize = 107;

/// A configuration of a version that we speak.
#[derive(Clone, Debug)]
pub struct Config {
    /// `cniVersion`.
    pub version: SpecVersion,
    /// `type` is `loopback`.
    pub is_loopback: bool,
    raw: Map<String, Value>,
}

/// What ADD and CHECK read besides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Addresses asked for, at most one per family.
    pub ips: Vec<IpAddr>,
    /// MAC address asked for.
    pub mac: Option<String>,
    /// Host ports.
    pub port_mappings: Vec<PortMapping>,
    /// Rate limits.
    pub bandwidth: Option<Bandwidth>,
    /// Annotations of the pod.
    pub pod_annotations: BTreeMap<String, String>,
    /// The `dns` of the result.
    pub dns: Map<String, Value>,
}

/// `cniVersion` of a configuration that may be anything, for the error about it.
pub(crate) fn version_of(stdin: &[u8]) -> Option<SpecVersion> {
    let value: Value = serde_json::from_slice(stdin).ok()?;
    SpecVersion::parse(Object::root(value.as_object()?).get("cniVersion")?.string().ok()?)
}

impl Config {
    /// Reads the configuration of any verb.
    ///
    /// # Errors
    /// Code 6 for what is not a JSON object, code 1 for a version that we do not speak.
    pub fn parse(stdin: &[u8]) -> Result<Self, Error> {
        let raw: Map<String, Value> = serde_json::from_slice(stdin)?;
        let root = Object::root(&raw);
        // libcni's default for a configuration without a version.
        let name = root.get("cniVersion").map_or(Ok("0.1.0"), |field| field.string())?;
        let version = SpecVersion::parse(name).ok_or_else(|| Error::Version { version: shown(name) })?;
        let is_loopback = root.get("type").map_or(Ok(""), |field| field.string())? == "loopback";
        Ok(Self { version, is_loopback, raw })
    }

    fn root(&self) -> Object<'_> {
        Object::root(&self.raw)
    }

    /// Name of the network.
    ///
    /// # Errors
    /// Code 7 when it is missing or malformed.
    pub fn network(&self) -> Result<String, Error> {
        let field = self.root().required("name", "give the network a name")?;
        let name = field.string()?;
        if is_identifier(name) {
            return Ok(name.to_owned());
        }
        Err(field.wrong("a name that starts with a letter or digit and has only those, '_', '.' and '-'"))
    }

    /// How the agent is reached: `agentSocket`, `pendingDeletes` and `agentTimeoutSeconds`.
    ///
    /// # Errors
    /// Code 7 for a path that is not absolute or too long, or a time outside 1 to 110 seconds.
    pub fn agent(&self) -> Result<AgentOptions, Error> {
        let root = self.root();
        let path = |key: &str, default: &str, expected: &'static str, limit: usize| {
            let Some(field) = root.get(key) else { return Ok(PathBuf::from(default)) };
            let path = field.string()?;
            let fits = path.starts_with('/') && path.len() <= limit && !path.contains('\0');
            if fits { Ok(PathBuf::from(path)) } else { Err(field.wrong(expected)) }
        };
        let socket =
            path("agentSocket", cni::SOCKET, "an absolute path of at most 107 bytes", MAX_SOCKET_PATH)?;
        let pending_deletes =
            path("pendingDeletes", cni::PENDING_DELETES, "an absolute path of at most 4000 bytes", 4000)?;
        let timeout = root.get("agentTimeoutSeconds").map(|field| match field.value().as_u64() {
            Some(seconds @ 1..=110) => Ok(Duration::from_secs(seconds)),
            _ => Err(field.wrong("a whole number of seconds from 1 to 110")),
        });
        Ok(AgentOptions { socket, pending_deletes, timeout: timeout.transpose()? })
    }

    /// Refuses keys that would silently not come true.
    fn refuse_unsupported(&self) -> Result<(), Error> {
        let root = self.root();
        if let Some(field) = root.get("ipam").filter(|field| !field.is_empty()) {
            return Err(
                field.unsupported("remove it: Hawser's agent assigns addresses from the node's podCIDRs")
            );
        }
        if let Some(field) = root.get("ipMasq")
            && !field.boolean()?
        {
            return Err(field.unsupported("remove it: masquerading is set in the agent's configuration"));
        }
        if let Some(field) = root.get("mtu") {
            return Err(field.unsupported("remove it: the agent derives the MTU from the tunnel"));
        }
        let Some(runtime) = root.get("runtimeConfig") else { return Ok(()) };
        let runtime = runtime.object()?;
        for key in ["ipRanges", "deviceID", "infinibandGUID"] {
            if let Some(field) = runtime.get(key).filter(|field| !field.is_empty()) {
                return Err(field.unsupported("remove this capability from the network configuration"));
            }
        }
        Ok(())
    }

    /// What the runtime asks for: `runtimeConfig` before `args.cni` before `CNI_ARGS` (CONVENTIONS.md).
    ///
    /// # Errors
    /// Code 2 for keys that we cannot honour, code 7 for malformed ones.
    pub fn wishes(&self, args: &Args) -> Result<Wishes, Error> {
        self.refuse_unsupported()?;
        let empty = Map::new();
        let root = self.root();
        let runtime = root.get("runtimeConfig").map(|field| field.object()).transpose()?;
        let runtime = runtime.unwrap_or(Object::root(&empty));
        let cni_args = match root.get("args").map(|field| field.object()).transpose()? {
            Some(object) => object.get("cni").map(|field| field.object()).transpose()?,
            None => None,
        };
        let cni_args = cni_args.unwrap_or(Object::root(&empty));
        let asked =
            |key: &str| [&runtime, &cni_args].into_iter().find_map(|o| o.get(key).filter(|f| !f.is_empty()));
        Ok(Wishes {
            ips: asked("ips").map_or_else(|| Ok(args.ips.clone()), |field| ips(&field))?,
            mac: asked("mac").map_or_else(|| Ok(args.mac.clone()), |field| mac(&field).map(Some))?,
            port_mappings: port_mappings(&runtime)?,
            bandwidth: bandwidth(&runtime)?,
            pod_annotations: pod_annotations(&runtime)?,
            dns: dns(&root, &runtime)?,
        })
    }

    /// `prevResult`.
    ///
    /// # Errors
    /// Code 7 when it is not an object.
    pub(crate) fn previous(&self) -> Result<Option<Field<'_>>, Error> {
        let field = self.root().get("prevResult");
        field.map(|field| field.object().map(|_| field.clone())).transpose()
    }

    /// The attachments that GC keeps. The key of the specification and libcni's old misspelling are one list.
    ///
    /// # Errors
    /// Code 7 when neither key is there, so that a runtime which says nothing deletes nothing, or an entry is malformed.
    pub fn valid_attachments(&self) -> Result<Vec<AttachmentId>, Error> {
        let root = self.root();
        let keys = ["cni.dev/valid-attachments", "cni.dev/attachments"];
        // Null is said, too: Go writes a list that was never filled so, as for a node without pods.
        if !keys.iter().any(|key| root.has(key)) {
            let remedy = "pass the list of attachments to keep; an empty list removes all of this network";
            return Err(Error::Missing { key: "cni.dev/valid-attachments".to_owned(), remedy });
        }
        let mut valid = Vec::new();
        for field in keys.into_iter().filter_map(|key| root.get(key)) {
            for entry in field.array()? {
                let entry = entry.object()?;
                let text =
                    |key| entry.required(key, "name containerID and ifname of each attachment")?.string();
                let (container_id, ifname) = (text("containerID")?.to_owned(), text("ifname")?.to_owned());
                valid.push(AttachmentId { container_id, ifname });
            }
        }
        valid.sort();
        valid.dedup();
        Ok(valid)
    }
}

fn ips(field: &Field<'_>) -> Result<Vec<IpAddr>, Error> {
    let parse = |entry: &Field<'_>| {
        json::ip(entry.string()?).ok_or_else(|| entry.wrong("an IP address with an optional /length"))
    };
    let ips = field.array()?.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    if json::one_per_family(&ips) { Ok(ips) } else { Err(field.wrong("at most one address per family")) }
}

fn mac(field: &Field<'_>) -> Result<String, Error> {
    json::mac(field.string()?).ok_or_else(|| field.wrong("a unicast MAC address such as 02:00:00:00:00:01"))
}

/// Host ports. Entries with host port 0 are containers' ports that are not published.
fn port_mappings(runtime: &Object<'_>) -> Result<Vec<PortMapping>, Error> {
    let Some(list) = runtime.get("portMappings") else { return Ok(Vec::new()) };
    let mut mappings = Vec::new();
    for entry in list.array()? {
        let entry = entry.object()?;
        let remedy = "name hostPort, containerPort and protocol of each port mapping";
        let host_port = entry.get("hostPort").map_or(Ok(0), |field| field.port())?;
        if host_port == 0 {
            continue;
        }
        let container = entry.required("containerPort", remedy)?;
        let container_port = container.port()?;
        if container_port == 0 {
            return Err(container.wrong("a port number from 1 to 65535"));
        }
        let protocol = match entry.get("protocol").filter(|field| !field.is_empty()) {
            None => "tcp".to_owned(),
            Some(field) => match field.string()?.to_ascii_lowercase() {
                known if ["tcp", "udp", "sctp"].contains(&known.as_str()) => known,
                _ => return Err(field.unsupported("use protocol tcp, udp or sctp")),
            },
        };
        let host_ip = entry.get("hostIP").filter(|field| !field.is_empty());
        let host_ip = host_ip.map(|field| {
            let ip = field.string()?.parse::<IpAddr>();
            let ip = ip.map_err(|_| field.wrong("an IP address, or empty for all"))?;
            if ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) {
                return Err(field.wrong("an address that one node can have, or empty for all"));
            }
            if ip == IpAddr::V6(Ipv6Addr::LOCALHOST) {
                // Packets with it do not leave the loopback.
                return Err(field.unsupported("use 127.0.0.1 or another address of the node"));
            }
            Ok(ip)
        });
        let host_ip = host_ip.transpose()?;
        mappings.push(PortMapping { host_port, container_port, protocol, host_ip });
    }
    Ok(mappings)
}

/// Least and greatest rate in bit/s: those of the kubelet and of the reference plugin (1k and 1P).
const RATES: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;
/// Greatest burst in bit: what the kernel counts is bytes in 32 bits.
const MAX_BURST: u64 = 8 * 0xffff_ffff;

/// Rate limits; a rate of 0 is none. A burst may be left out, but not its rate.
fn bandwidth(runtime: &Object<'_>) -> Result<Option<Bandwidth>, Error> {
    let Some(field) = runtime.get("bandwidth") else { return Ok(None) };
    let object = field.object()?;
    let direction = |rate_key, burst_key| -> Result<(u64, u64), Error> {
        let (rate, burst) = (object.get(rate_key), object.get(burst_key));
        let number = |field: &Option<Field<'_>>| field.as_ref().map_or(Ok(0), Field::unsigned);
        let (bits, burst_bits) = (number(&rate)?, number(&burst)?);
        if let Some(field) = rate.filter(|_| bits != 0 && !RATES.contains(&bits)) {
            return Err(field.wrong("0 for no limit, or 1000 (1k) to 1000000000000000 (1P) bit/s"));
        }
        match burst {
            Some(field) if burst_bits > MAX_BURST => Err(field.wrong("at most 34359738360 bit (4 GiB)")),
            Some(field) if burst_bits > 0 && bits == 0 => Err(field.wrong("0 or absent without a rate")),
            Some(_) | None => Ok((bits, burst_bits)),
        }
    };
    let (ingress_rate, ingress_burst) = direction("ingressRate", "ingressBurst")?;
    let (egress_rate, egress_burst) = direction("egressRate", "egressBurst")?;
    let limited = ingress_rate != 0 || egress_rate != 0;
    Ok(limited.then_some(Bandwidth { ingress_rate, ingress_burst, egress_rate, egress_burst }))
}

fn pod_annotations(runtime: &Object<'_>) -> Result<BTreeMap<String, String>, Error> {
    let Some(field) = runtime.get("io.kubernetes.cri.pod-annotations") else {
        return Ok(BTreeMap::new());
    };
    let mut annotations = BTreeMap::new();
    for (key, value) in field.object()?.map() {
        let value = value.as_str().ok_or_else(|| field.wrong("an object of strings"))?;
        annotations.insert(key.clone(), value.to_owned());
    }
    Ok(annotations)
}

/// `dns` of the configuration; what the runtime passes as a capability comes before it.
fn dns(root: &Object<'_>, runtime: &Object<'_>) -> Result<Map<String, Value>, Error> {
    let strings = |field: &Field<'_>| -> Result<Value, Error> {
        let texts = field
            .array()?
            .iter()
            .map(|entry| entry.string().map(str::to_owned))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(json!(texts))
    };
    let mut dns = Map::new();
    let configured = root.get("dns").map(|field| field.object()).transpose()?;
    let passed = runtime.get("dns").map(|field| field.object()).transpose()?;
    let sources = [(configured, "nameservers", "search"), (passed, "servers", "searches")];
    for (source, nameservers, search) in sources {
        let Some(source) = source else { continue };
        for (from, to) in [(nameservers, "nameservers"), (search, "search"), ("options", "options")] {
            if let Some(field) = source.get(from).filter(|field| !field.is_empty()) {
                dns.insert(to.to_owned(), strings(&field)?);
            }
        }
        if let Some(field) = source.get("domain").filter(|field| !field.is_empty()) {
            dns.insert("domain".to_owned(), json!(field.string()?));
        }
    }
    Ok(dns)
}
