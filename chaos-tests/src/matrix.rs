//! Probes between everything in a lab: TCP, UDP and ICMP, both families, each with a random canary of its own.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use netlab::capture;
use netlab::classify::{Class, Policy};
use netlab::probe::{self, Canary, EchoServer};
use netlab::{Capture, Frame, Namespace};

use crate::cluster::Lab;
use crate::pod::Pod;

/// Port of the echo servers.
pub const ECHO_PORT: u16 = 7777;

/// One probe and how it went.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Probe {
    /// Who sent it.
    pub from: String,
    /// Who answered it.
    pub to: String,
    /// `tcp`, `udp` or `icmp`.
    pub protocol: &'static str,
    /// `v4` or `v6`.
    pub family: &'static str,
    /// What went wrong; none: the echo came back.
    pub error: Option<String>,
    /// What every frame was searched for.
    #[serde(skip)]
    pub canary: Vec<u8>,
}

/// Somebody who can be probed and who can probe.
#[derive(Debug)]
pub struct Party<'a> {
    /// For people.
    pub name: String,
    /// Where it is.
    pub namespace: &'a Namespace,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    servers: Vec<EchoServer>,
}

impl<'a> Party<'a> {
    /// With echo servers on all its addresses.
    ///
    /// # Errors
    /// A port is taken.
    pub fn new(name: &str, namespace: &'a Namespace, ips: Vec<IpAddr>) -> Result<Self> {
        let mut servers = Vec::new();
        for ip in &ips {
            servers.push(EchoServer::tcp(namespace, SocketAddr::new(*ip, ECHO_PORT))?);
            servers.push(EchoServer::udp(namespace, SocketAddr::new(*ip, ECHO_PORT))?);
        }
        Ok(Self { name: name.to_owned(), namespace, ips, servers })
    }

    /// A pod.
    ///
    /// # Errors
    /// A port is taken.
    pub fn pod(pod: &'a Pod) -> Result<Self> {
        Self::new(&pod.name, &pod.namespace, pod.ips.clone())
    }

    /// A node itself.
    ///
    /// # Errors
    /// A port is taken.
    pub fn host(lab: &'a Lab, number: u8) -> Result<Self> {
        let node = lab.node(number);
        Self::new(&node.name, &node.namespace, node.addresses()?)
    }

    /// How many echo servers run.
    pub fn servers(&self) -> usize {
        self.servers.len()
    }
}

/// A canary that no frame holds by chance: 32 random bytes, repeated so that a part of the payload shows it too.
pub fn canary() -> Vec<u8> {
    let one: [u8; 32] = rand::random();
    one.repeat(2)
}

/// Sends all three protocols to every address of `to`, three times at most.
pub fn probe(from: &Party<'_>, to: &Party<'_>) -> Vec<Probe> {
    probe_with(from, to, 3)
}

/// [`probe`] with this many tries of a second each.
pub fn probe_with(from: &Party<'_>, to: &Party<'_>, tries: u32) -> Vec<Probe> {
    let mut probes = Vec::new();
    for ip in &to.ips {
        let at = SocketAddr::new(*ip, ECHO_PORT);
        for protocol in ["tcp", "udp", "icmp"] {
            let bytes = canary();
            let canary = Canary::new(bytes.clone()).tries(tries);
            let result = match protocol {
                "tcp" => probe::tcp(from.namespace, at, &canary),
                "udp" => probe::udp(from.namespace, at, &canary),
                _ => probe::ping(from.namespace, *ip, &canary),
            };
            probes.push(Probe {
                from: from.name.clone(),
                to: to.name.clone(),
                protocol,
                family: if ip.is_ipv4() { "v4" } else { "v6" },
                error: result.err().map(|error| error.to_string()),
                canary: bytes,
            });
        }
    }
    probes
}

/// What a capture says of a set of probes.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Verdict {
    /// Frames that crossed.
    pub frames: u64,
    /// Frames of each class.
    pub classes: BTreeMap<String, u64>,
    /// Canaries found in a frame, with where.
    pub canaries: Vec<String>,
    /// Frames that are neither WireGuard nor the API nor the link's own business.
    pub strangers: Vec<String>,
    /// Frames that show an address of a pod outside WireGuard.
    pub pod_addresses: Vec<String>,
}

impl Verdict {
    /// Nothing in clear?
    pub fn is_clean(&self) -> bool {
        self.canaries.is_empty() && self.strangers.is_empty() && self.pod_addresses.is_empty()
    }
}

/// Judges every frame of a capture that lost none.
///
/// # Errors
/// The capture lost frames, so that nothing can be said.
pub fn verdict(lab: &Lab, capture: &Capture, probes: &[Probe]) -> Result<Verdict> {
    Ok(verdict_beside(&lab.policy(), lab, &capture.frames()?, (probes, &[])))
}

/// [`verdict`] of these frames, by this policy. The canaries of `outside` may be seen where the world talks to a node's port,
/// and only there.
pub fn verdict_beside(
    policy: &Policy,
    lab: &Lab,
    frames: &[Frame],
    (probes, outside): (&[Probe], &[Probe]),
) -> Verdict {
    let mut verdict = Verdict { frames: frames.len() as u64, ..Verdict::default() };
    for frame in frames {
        let class = policy.classify(&frame.data);
        let name = format!("{class:?}").split([' ', '(']).next().unwrap_or_default().to_owned();
        *verdict.classes.entry(name).or_default() += 1;
        if matches!(class, Class::Other(_)) {
            verdict.strangers.push(netlab::classify::summary(&frame.data));
        }
    }
    // One search for all: half a canary is enough to find, and every canary is its half twice.
    let all = probes.iter().map(|probe| (probe, false)).chain(outside.iter().map(|probe| (probe, true)));
    for (probe, outside) in all {
        for hit in capture::find(frames, &probe.canary[..32]) {
            if outside && policy.classify(&hit.frame.data) == Class::NodePort {
                continue;
            }
            let Probe { from, to, protocol, family, .. } = probe;
            verdict.canaries.push(format!("{from} to {to} {protocol} {family}: {hit}"));
        }
    }
    for (frame, seen) in capture::addresses_inside(frames, &lab.cluster_cidrs()) {
        verdict.pod_addresses.push(format!("{seen:?} in {}", netlab::classify::summary(&frame.data)));
    }
    verdict
}
