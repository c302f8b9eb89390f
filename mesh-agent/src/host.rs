//! The host's environment: what must be so for the mesh to work, observed, judged (pure) and set.
//!
//! [`Host::observe`] reads, [`judge`] decides what to set ([`HostFix`]) and what to report ([`HostFinding`]),
//! [`Host::apply`] sets one thing. All of it blocks, and concerns the network namespace of the calling thread.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rustix::fs::StatVfsMountFlags;

use crate::nft::NftError;

pub(crate) mod before;
mod firewall;
mod judge;
mod links;
mod networkd;
mod sysctl;
#[cfg(test)]
mod tests;

pub use before::Before;
pub use firewall::{AcceptRule, ChainHook, DropsBy, ForeignChain};
pub(crate) use firewall::{ours as accept_rules, remove as remove_accept_rule};
pub use judge::{HostFinding, Severity, judge};
pub use links::{Link, LinkAddress, uplink};
pub use networkd::Networkd;
pub use sysctl::{Sysctl, SysctlError, pod_veth_sysctls, slot_sysctls};

/// How the host should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostWant {
    /// Names of the WireGuard devices.
    pub slots: [String; 2],
    /// How the host side of every pod's veth begins.
    pub pod_veth_prefix: String,
    /// UDP ports of the slots.
    pub tunnel_ports: [u16; 2],
    /// Whether the node has IPv4 pods.
    pub ipv4: bool,
    /// Whether the node has IPv6 pods.
    pub ipv6: bool,
    /// Whether there are IPv6 prefixes among those that are to be guarded.
    pub ipv6_guarded: bool,
    /// Addresses whose interfaces must not check the way back strictly: peers' packets come in by them while this node's
    /// own go into the tunnel, and so do WireGuard's and ARP.
    pub loose: Vec<IpAddr>,
}

/// How the host is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// Whether `/proc/sys` is mounted writable.
    pub proc_sys_writable: bool,
    /// Values by path below `/proc/sys`: forwarding, and `rp_filter`, `forwarding`, `accept_ra` of each interface.
    pub sysctls: BTreeMap<String, String>,
    /// Interfaces with an address or default route that a router advertised.
    pub advertised: BTreeSet<String>,
    /// Chains of others that drop by default; or why they could not be read.
    pub foreign_chains: Result<Vec<ForeignChain>, String>,
    /// Whether the legacy (not nf_tables) iptables table `filter` is loaded.
    pub legacy_filter_v4: bool,
    /// The same of ip6tables.
    pub legacy_filter_v6: bool,
    /// systemd-networkd's settings, if it runs.
    pub networkd: Option<Networkd>,
    /// Whether connection tracking is loaded.
    pub conntrack: bool,
    /// Links.
    pub links: Vec<Link>,
    /// Addresses on them.
    pub addresses: Vec<LinkAddress>,
}

impl HostFacts {
    /// Whether the kernel has IPv6 (it has not when booted with `ipv6.disable=1`).
    #[must_use]
    pub fn has_ipv6(&self) -> bool {
        self.sysctls.contains_key("net/ipv6/conf/all/forwarding")
    }
}

/// Something that we set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostFix {
    /// A kernel setting.
    Sysctl(Sysctl),
    /// Rules at the head of a chain that would drop what pods forward.
    AcceptPods {
        /// The chain, with what it has already.
        chain: ForeignChain,
        /// How the veths begin.
        veth_prefix: String,
    },
}

impl std::fmt::Display for HostFix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sysctl(sysctl) => write!(f, "{sysctl}"),
            Self::AcceptPods { chain, veth_prefix } => {
                write!(f, "accept {veth_prefix}* in nf_tables chain {}", chain.name())
            }
        }
    }
}

/// Why the host could not be read or set.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A kernel setting.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// The links and addresses could not be listed, or the WireGuard probe failed.
    #[error(transparent)]
    Netlink(NftError),
    /// A chain of somebody else.
    #[error(
        "cannot let pods through nf_tables chain {chain}: {source}; allow forwarding for {veth_prefix}* in the \
             firewall that owns it"
    )]
    Chain {
        /// Family, table and name.
        chain: String,
        /// How the veths begin.
        veth_prefix: String,
        /// The refusal.
        source: Box<NftError>,
    },
}

/// Where the host is to be found; tests point it elsewhere.
#[derive(Debug, Clone)]
pub struct Host {
    kernel: PathBuf,
    files: PathBuf,
    proc_sys: PathBuf,
}

impl Default for Host {
    fn default() -> Self {
        Self { proc_sys: crate::container::proc_sys().to_owned(), ..Self::new("/", "/") }
    }
}

impl Host {
    /// `kernel`: the directory that holds `proc` and `sys`; `files`: the one that holds the host's `etc`, `run` and `usr`
    /// (where an agent in a container has them mounted).
    pub fn new(kernel: impl Into<PathBuf>, files: impl Into<PathBuf>) -> Self {
        let kernel = kernel.into();
        Self { proc_sys: kernel.join("proc/sys"), kernel, files: files.into() }
    }

    /// Reads everything that [`judge`] looks at.
    ///
    /// # Errors
    /// Links or addresses could not be listed. What else cannot be read is a fact of its own.
    pub fn observe(&self, want: &HostWant) -> Result<HostFacts, HostError> {
        let (links, addresses) = links::observe().map_err(HostError::Netlink)?;
        let foreign_chains = firewall::observe(&want.pod_veth_prefix).map_err(|error| error.to_string());
        Ok(HostFacts { links, addresses, foreign_chains, ..self.observe_files() })
    }

    /// What is read from files alone.
    fn observe_files(&self) -> HostFacts {
        let proc_sys = &self.proc_sys;
        // The calling thread's own namespace, not its process's.
        let proc_net = self.kernel.join("proc/thread-self/net");
        let has_filter = |file| {
            let names = std::fs::read_to_string(proc_net.join(file)).unwrap_or_default();
            names.lines().any(|name| name == "filter")
        };
        HostFacts {
            // Of all of it, what concerns networks: in a container that is what is mounted writable.
            proc_sys_writable: rustix::fs::statvfs(proc_sys.join("net"))
                .is_ok_and(|mount| !mount.f_flag.contains(StatVfsMountFlags::RDONLY)),
            sysctls: sysctls(proc_sys),
            advertised: advertised(&std::fs::read_to_string(proc_net.join("ipv6_route")).unwrap_or_default()),
            foreign_chains: Ok(Vec::new()),
            legacy_filter_v4: has_filter("ip_tables_names"),
            legacy_filter_v6: has_filter("ip6_tables_names"),
            networkd: networkd::observe(&self.files),
            conntrack: proc_sys.join("net/netfilter/nf_conntrack_max").exists(),
            links: Vec::new(),
            addresses: Vec::new(),
        }
    }

    /// Sets one thing. Doing it twice is no error.
    ///
    /// # Errors
    /// It could not be set; the error says where, from what, to what, and the remedy.
    pub fn apply(&self, fix: &HostFix) -> Result<(), HostError> {
        match fix {
            HostFix::Sysctl(sysctl) => Ok(sysctl::write(&self.proc_sys, sysctl)?),
            HostFix::AcceptPods { chain, veth_prefix } => firewall::let_pods_through(chain, veth_prefix)
                .map_err(|source| HostError::Chain {
                    chain: chain.name(),
                    veth_prefix: veth_prefix.clone(),
                    source: Box::new(source),
                }),
        }
    }

    /// Makes settings such as [`pod_veth_sysctls`] and [`slot_sysctls`], in order; the first failure ends it.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn set(&self, sysctls: &[Sysctl]) -> Result<(), SysctlError> {
        sysctls.iter().try_for_each(|sysctl| sysctl::write(&self.proc_sys, sysctl))
    }

    /// Whether the kernel has WireGuard: its module is loaded or built in, or loads when a link of that kind is made
    /// (one is made for a moment, down and without an address).
    ///
    /// # Errors
    /// It could not be found out, such as without CAP_NET_ADMIN.
    pub fn kernel_wireguard(&self) -> Result<bool, HostError> {
        links::kernel_wireguard(&self.kernel.join("sys/module")).map_err(HostError::Netlink)
    }
}

/// The settings that [`judge`] looks at.
fn sysctls(proc_sys: &Path) -> BTreeMap<String, String> {
    let mut keys = vec!["net/ipv4/ip_forward".to_owned(), "net/ipv6/conf/all/forwarding".to_owned()];
    for (directory, settings) in
        [("net/ipv4/conf", ["rp_filter", "forwarding"]), ("net/ipv6/conf", ["accept_ra", "forwarding"])]
    {
        let entries = std::fs::read_dir(proc_sys.join(directory)).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        keys.extend(names.flat_map(|name| settings.map(|setting| format!("{directory}/{name}/{setting}"))));
    }
    keys.into_iter().filter_map(|key| Some((key.clone(), sysctl::read(proc_sys, &key)?))).collect()
}

/// Interfaces in `/proc/net/ipv6_route` with a route that a router advertised: the last column is the interface, the one
/// before it the flags.
fn advertised(routes: &str) -> BTreeSet<String> {
    /// `RTF_ADDRCONF` of `linux/ipv6_route.h`: learnt by a router advertisement.
    const RTF_ADDRCONF: u32 = 0x0004_0000;
    let learnt = routes.lines().filter_map(|line| {
        let mut words = line.split_whitespace().rev();
        let (interface, flags) = (words.next()?, u32::from_str_radix(words.next()?, 16).ok()?);
        (flags & RTF_ADDRCONF != 0).then(|| interface.to_owned())
    });
    learnt.collect()
}
