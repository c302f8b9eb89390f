//! What of the host's environment is wrong: what we set ourselves, and what only the administrator can.

use std::collections::BTreeSet;
use std::fmt;

use super::firewall::{ChainHook, DropsBy, ForeignChain};
use super::networkd::{DROP_IN, DROP_IN_TEXT};
use super::sysctl::{Sysctl, slot_sysctls};
use super::{HostFacts, HostFix, HostWant, LinkAddress};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Something may not work.
    Warning,
    /// Something does not work until it is remedied.
    Error,
}

/// Something about the host that is not as wanted and that we do not change ourselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFinding {
    /// Stable name of the kind of finding, in kebab-case.
    pub code: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// The thing.
    pub object: String,
    /// What about it.
    pub field: String,
    /// How it is.
    pub found: String,
    /// How it should be.
    pub wanted: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for HostFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { object, field, found, wanted, remedy, .. } = self;
        write!(f, "{object}: {field} is {found}, wanted {wanted}; {remedy}")
    }
}

const FORWARD_V4: &str = "net/ipv4/ip_forward";
const FORWARD_V6: &str = "net/ipv6/conf/all/forwarding";

/// What to set, in order, and what to report.
#[must_use]
pub fn judge(facts: &HostFacts, want: &HostWant) -> (Vec<HostFix>, Vec<HostFinding>) {
    let mut findings = Vec::new();
    let mut wanted = Vec::new();
    if want.ipv4 {
        wanted.push(Sysctl::new(FORWARD_V4, "1"));
    }
    if want.ipv6 && facts.has_ipv6() {
        // A host that forwards ignores router advertisements, unless told otherwise first.
        wanted.extend(accept_ra(facts, want));
        wanted.push(Sysctl::new(FORWARD_V6, "1"));
    }
    if !facts.has_ipv6() {
        findings.extend(no_ipv6(want));
    }
    let present = |slot: &&String| facts.links.iter().any(|link| link.name == **slot);
    wanted.extend(want.slots.iter().filter(present).flat_map(|slot| slot_sysctls(slot, facts.has_ipv6())));
    wanted.extend(loosened(facts, want));

    let mut fixes = Vec::new();
    for sysctl in wanted {
        let found = facts.sysctls.get(&sysctl.key);
        match found {
            Some(found) if *found == sysctl.value => {}
            Some(_) if facts.proc_sys_writable => fixes.push(HostFix::Sysctl(sysctl)),
            Some(_) | None => findings.push(not_settable(&sysctl, found, facts.proc_sys_writable)),
        }
    }
    match &facts.foreign_chains {
        Ok(chains) => {
            for chain in chains {
                match chain.hook {
                    ChainHook::Forward if chain.accepts_from_pods && chain.accepts_to_pods => {}
                    ChainHook::Forward => fixes.push(HostFix::AcceptPods {
                        chain: chain.clone(),
                        veth_prefix: want.pod_veth_prefix.clone(),
                    }),
                    ChainHook::Input => findings.push(input_drops(chain, want)),
                }
            }
        }
        Err(reason) => findings.push(chains_unread(reason)),
    }
    findings.extend(legacy(facts, want));
    findings.extend(networkd(facts));
    if !facts.conntrack {
        findings.push(no_conntrack());
    }
    (fixes, findings)
}

/// Interfaces that listen to routers (`accept_ra` 1) and would stop, or already did, once the host forwards: 2 keeps
/// them listening. On a host that forwards already only those that hold what a router gave them.
fn accept_ra(facts: &HostFacts, want: &HostWant) -> Vec<Sysctl> {
    let forwards = facts.sysctls.get(FORWARD_V6).is_some_and(|value| value == "1");
    let ours = |name: &str| {
        name == "lo" || name.starts_with(&want.pod_veth_prefix) || want.slots.iter().any(|slot| slot == name)
    };
    let names: BTreeSet<&str> =
        facts.sysctls.keys().filter_map(|key| interface_of(key, "accept_ra")).collect();
    let listening = names.into_iter().filter(|name| {
        let key = format!("net/ipv6/conf/{name}/accept_ra");
        facts.sysctls.get(&key).is_some_and(|value| value == "1")
            && !ours(name)
            && (!forwards || facts.advertised.contains(*name))
    });
    listening.map(|name| Sysctl::new(format!("net/ipv6/conf/{name}/accept_ra"), "2")).collect()
}

/// Interfaces with one of these addresses that check the way back strictly (`rp_filter` 1; the greater of `all` and the
/// interface's own counts): its own packets go by a slot, so the kernel would drop what still comes by the interface, and
/// leave questions of ARP unanswered. 2 asks only for any way back; 0 is somebody's wish and stays.
fn loosened(facts: &HostFacts, want: &HostWant) -> Vec<Sysctl> {
    let value = |name: &str| {
        let text = facts.sysctls.get(&format!("net/ipv4/conf/{name}/rp_filter"))?;
        text.parse::<u8>().ok()
    };
    let holds = |found: &&LinkAddress| found.address.is_ipv4() && want.loose.contains(&found.address);
    let indexes: BTreeSet<u32> = facts.addresses.iter().filter(holds).map(|found| found.link).collect();
    let carriers = facts.links.iter().filter(|link| indexes.contains(&link.index));
    let strict = carriers.filter(|link| value(&link.name).max(value("all")) == Some(1));
    strict.map(|link| Sysctl::new(format!("net/ipv4/conf/{}/rp_filter", link.name), "2")).collect()
}

fn interface_of<'a>(key: &'a str, setting: &str) -> Option<&'a str> {
    let name = key.strip_prefix("net/ipv6/conf/")?.strip_suffix(setting)?.strip_suffix('/')?;
    (name != "all" && name != "default").then_some(name)
}

fn no_ipv6(want: &HostWant) -> Option<HostFinding> {
    let (severity, wanted, remedy) = if want.ipv6 {
        (
            Severity::Error,
            "present: the node has an IPv6 pod CIDR",
            "boot without ipv6.disable=1, or have the Node made anew with IPv4 pod CIDRs only (they cannot be changed)",
        )
    } else if want.ipv6_guarded {
        (
            Severity::Warning,
            "present: podCIDRs has IPv6 prefixes",
            "this node leaves them out, and no IPv6 packet leaves or reaches it; before it is given an IPv6 pod CIDR, boot without \
             ipv6.disable=1",
        )
    } else {
        return None;
    };
    Some(HostFinding {
        code: "ipv6-unavailable",
        severity,
        object: "kernel".to_owned(),
        field: "/proc/sys/net/ipv6".to_owned(),
        found: "absent (IPv6 is disabled at boot)".to_owned(),
        wanted: wanted.to_owned(),
        remedy: remedy.to_owned(),
    })
}

fn not_settable(sysctl: &Sysctl, found: Option<&String>, writable: bool) -> HostFinding {
    let (code, remedy) = if found.is_none() {
        (
            "sysctl-absent",
            "the kernel lacks this setting: check its configuration and the pod's view of /proc/sys".into(),
        )
    } else {
        debug_assert!(!writable);
        let key = sysctl.key.replace('.', "\u{0}").replace('/', ".").replace('\u{0}', "/");
        let line = format!("{key} = {}", sysctl.value);
        (
            "sysctl-read-only",
            format!(
                "mount the host's /proc/sys/net writable and name its place with --proc-sys, or put `{line}` into /etc/sysctl.d/90-hawser.conf on the \
            host and run `sysctl --system`"
            ),
        )
    };
    HostFinding {
        code,
        severity: Severity::Error,
        object: format!("/proc/sys/{}", sysctl.key),
        field: "value".to_owned(),
        found: found
            .map_or_else(|| "absent".to_owned(), |found| format!("{found:?} and /proc/sys is read-only")),
        wanted: format!("{:?}", sysctl.value),
        remedy,
    }
}

fn input_drops(chain: &ForeignChain, want: &HostWant) -> HostFinding {
    let [a, b] = want.tunnel_ports;
    HostFinding {
        code: "input-firewall-drops",
        severity: Severity::Warning,
        object: format!("nf_tables chain {}", chain.name()),
        field: "hook input".to_owned(),
        found: drops(chain.drops).to_owned(),
        wanted: format!("UDP {a} and {b} accepted from the other nodes"),
        remedy: format!(
            "if it is not allowed already: `nft insert rule {} udp dport {{ {a}, {b} }} accept`, made lasting in the \
             firewall's own configuration",
            chain.name()
        ),
    }
}

fn drops(by: DropsBy) -> &'static str {
    match by {
        DropsBy::Policy => "policy drop",
        DropsBy::LastRule => "a last rule that drops or rejects everything",
    }
}

fn chains_unread(reason: &str) -> HostFinding {
    HostFinding {
        code: "nftables-unread",
        severity: Severity::Warning,
        object: "nf_tables".to_owned(),
        field: "base chains of other programs".to_owned(),
        found: format!("not readable: {reason}"),
        wanted: "no chain that drops what pods forward".to_owned(),
        remedy: "check `nft list ruleset` for a forward or input chain with policy drop".to_owned(),
    }
}

fn legacy<'a>(facts: &'a HostFacts, want: &'a HostWant) -> impl Iterator<Item = HostFinding> + 'a {
    let tools = [(facts.legacy_filter_v4, "iptables", "IPv4"), (facts.legacy_filter_v6, "ip6tables", "IPv6")];
    tools.into_iter().filter(|(loaded, ..)| *loaded).map(|(_, tool, family)| {
        let prefix = &want.pod_veth_prefix;
        let [a, b] = want.tunnel_ports;
        HostFinding {
            code: "legacy-iptables-unread",
            severity: Severity::Warning,
            object: format!("legacy {tool} ({family})"),
            field: "table filter".to_owned(),
            found: "loaded, which this agent cannot read".to_owned(),
            wanted: format!("FORWARD accepts {prefix}+ in and out, INPUT accepts UDP {a} and {b}"),
            remedy: format!(
                "check `{tool}-legacy -S FORWARD` and `{tool}-legacy -S INPUT`; where they drop: `{tool}-legacy -I FORWARD \
                 -i {prefix}+ -j ACCEPT`, `{tool}-legacy -I FORWARD -o {prefix}+ -j ACCEPT`, `{tool}-legacy -I INPUT -p \
                 udp -m multiport --dports {a},{b} -j ACCEPT`"
            ),
        }
    })
}

fn networkd(facts: &HostFacts) -> Option<HostFinding> {
    let found = facts.networkd?;
    let word = |manages| if manages { "yes" } else { "no" };
    (found.manages_foreign_routes || found.manages_foreign_rules).then(|| HostFinding {
        code: "networkd-removes-foreign-routes",
        severity: Severity::Warning,
        object: "systemd-networkd".to_owned(),
        field: "ManageForeignRoutes, ManageForeignRoutingPolicyRules".to_owned(),
        found: format!("{}, {}", word(found.manages_foreign_routes), word(found.manages_foreign_rules)),
        wanted: "no, no: it removes the mesh's routes and rules when it restarts".to_owned(),
        remedy: format!("write {DROP_IN} and run `systemctl restart systemd-networkd`:\n{DROP_IN_TEXT}"),
    })
}

fn no_conntrack() -> HostFinding {
    HostFinding {
        code: "conntrack-missing",
        severity: Severity::Error,
        object: "kernel module nf_conntrack".to_owned(),
        field: "state".to_owned(),
        found: "not loaded".to_owned(),
        wanted: "loaded: pods reach the world by masquerade".to_owned(),
        remedy: "`modprobe nf_conntrack`, and name it in /etc/modules-load.d/hawser.conf".to_owned(),
    }
}
