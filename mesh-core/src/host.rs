//! A node's own traffic to other nodes' addresses ("host traffic"): which of it goes into the tunnel, where an
//! administrator wants that, and what is refused instead of sent in plaintext.
//!
//! One table of routes ([`TABLE_HOSTS`]) holds the InternalIPs of peers, and rules lead to it what this node sends from
//! its own InternalIPs, and what it passes on for a peer. WireGuard's packets bear [`MARK_WIREGUARD`], which no rule to that table matches; there is no second
//! rule without which they would.
//!
//! ```text
//!            both want it, and a handshake                     the peer wants it no more, or we do not
//!            is confirmed where we send                                        │
//!  Plain ──► Waiting ─────────► Tunnel ◄──────────► Dead   nobody answers      ▼
//!              ▲                  ▲                                          Plain
//!              │                  └───────────────► Cut    no announcement, no pre-shared key, no mark
//!              └─ only until the pair has been in the tunnel once: from then on it is closed, through restarts of the
//!                 agent and of the node ([`Remembered`], and the kernel's routes)
//! ```
//!
//! Peers accept before routes lead there: a node's InternalIPs are among its allowed IPs at every peer, in every version and
//! whatever that peer wants itself, and the slot that is sent by is one on which both sides have seen a handshake. What comes
//! in plain is accepted for as long as the two disagree.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use crate::numbers::{MARK_WIREGUARD, RULE_EXEMPT, RULE_HOSTS, RULE_HOSTS_END, TABLE_HOSTS};
use crate::plan::{Action, Port, Route, Rule, Target};
use crate::prefix::{self, Family};
use crate::slot::Slot;

mod remembered;
pub use remembered::{Closings, FORGET, Remembered};

/// What the administrator wants of host traffic.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostTraffic {
    /// It goes through the tunnel to every peer that wants it so, too.
    pub on: bool,
    /// And what such a peer sends in plaintext is refused, once the pair is closed here: it would not be sent by an agent,
    /// only in the name of one.
    pub require: bool,
    /// TCP ports of nodes with which everybody talks outside the tunnel: without the API server no agent learns of a peer.
    /// They bring encryption of their own.
    pub exempt_tcp: BTreeSet<u16>,
}

/// TCP ports that are exempt unless configured: the API server, and etcd for its clients and its peers, without whom an API
/// server that was just booted answers nobody (ports of the Kubernetes documentation, "Ports and Protocols").
pub const EXEMPT_TCP: [u16; 3] = [2379, 2380, 6443];

/// What the kernel shows of it, and what was kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostState {
    /// Every slot's device that exists marks what it sends.
    pub marked: bool,
    /// Addresses of other nodes that have a route in [`TABLE_HOSTS`], be it one that refuses.
    pub closed: BTreeSet<IpAddr>,
    /// What was closed before.
    pub remembered: Remembered,
    /// IPv6 addresses of this node that are neither InternalIPs nor mesh addresses: what is sent from them is left alone.
    pub others: BTreeSet<IpAddr>,
    /// InternalIPs of this node that its kernel has, too: routes may name no other as a source.
    pub present: BTreeSet<IpAddr>,
    /// Addresses from which it speaks to its pods at present, at most one of each family: what goes on while its Node is not known.
    pub homes: BTreeSet<IpAddr>,
}

/// How this node's own traffic to one peer goes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "camelCase")]
pub enum HostPath {
    /// Outside the tunnel: one of the two does not want it otherwise.
    #[default]
    Plain,
    /// Outside the tunnel, until a handshake is confirmed.
    Waiting,
    /// Through the tunnel.
    Tunnel,
    /// Into the tunnel, where nobody answers.
    Dead,
    /// Refused: by a slot that has no such allowed IP, or beneath.
    Cut,
}

impl HostPath {
    /// Does nothing leave in plaintext, exempt ports apart?
    pub const fn closed(self) -> bool {
        match self {
            Self::Plain | Self::Waiting => false,
            Self::Tunnel | Self::Dead | Self::Cut => true,
        }
    }

    /// Does what is sent get into the tunnel, whether or not somebody answers there?
    pub const fn routed(self) -> bool {
        match self {
            Self::Tunnel | Self::Dead => true,
            Self::Plain | Self::Waiting | Self::Cut => false,
        }
    }
}

/// What is asked to choose a [`HostPath`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HostFacts {
    /// This node wants it.
    pub wanted: bool,
    /// The peer wants it. None: it has no announcement, or one that is refused.
    pub announced: Option<bool>,
    /// The pair has been closed before.
    pub closed: bool,
    /// What is sent may go by a slot: marks are set, and a pre-shared key is not waited for.
    pub able: bool,
    /// A handshake is confirmed on the slot that is sent by.
    pub confirmed: bool,
    /// That slot is known to carry nothing.
    pub dead: bool,
}

/// Chooses.
pub const fn path(facts: HostFacts) -> HostPath {
    let HostFacts { wanted, announced, closed, able, confirmed, dead } = facts;
    match announced {
        _ if !wanted => HostPath::Plain,
        // Somebody's slip must not open what was closed.
        None => {
            if closed {
                HostPath::Cut
            } else {
                HostPath::Plain
            }
        }
        Some(false) => HostPath::Plain,
        Some(true) if !able => {
            if closed {
                HostPath::Cut
            } else {
                HostPath::Waiting
            }
        }
        Some(true) if confirmed => HostPath::Tunnel,
        Some(true) => match (closed, dead) {
            (true, true) => HostPath::Dead,
            (true, false) => HostPath::Tunnel,
            (false, _) => HostPath::Waiting,
        },
    }
}

/// Rules that keep the exempt ports out of [`TABLE_HOSTS`], from the configuration alone: an agent that starts must reach
/// the API server whatever its former life left behind.
pub fn exemptions(settings: &HostTraffic) -> BTreeSet<Rule> {
    if !settings.on {
        return BTreeSet::new();
    }
    let mut rules = BTreeSet::new();
    for family in Family::BOTH {
        let skip = Rule { action: Action::Goto(RULE_HOSTS_END), ..Rule::new(RULE_EXEMPT, family) };
        for port in &settings.exempt_tcp {
            // Both ends: what the server answers goes the way of the question.
            for port in [Port::Source(*port), Port::Destination(*port)] {
                rules.insert(Rule { tcp: Some(port), ..skip.clone() });
            }
        }
        rules.insert(Rule { action: Action::Nothing, ..Rule::new(RULE_HOSTS_END, family) });
    }
    rules
}

/// Rules that lead this node's own traffic to [`TABLE_HOSTS`], and all before them.
///
/// IPv4: from own InternalIPs, and from the unspecified address, which is what a socket has that is not bound; so what is
/// bound to another address of this node goes on as before. The kernel knows no such rule in IPv6, so there it is everything
/// but what comes from other addresses.
pub fn rules(settings: &HostTraffic, own: &BTreeSet<IpAddr>, state: &HostState) -> BTreeSet<Rule> {
    if !settings.on || own.is_empty() {
        return exemptions(settings);
    }
    let mut rules = exemptions(settings);
    let lead = |family| Rule {
        unmarked: Some(MARK_WIREGUARD),
        local: true,
        action: Action::Table(TABLE_HOSTS),
        ..Rule::new(RULE_HOSTS, family)
    };
    let own_v4 = own.iter().filter(|address| address.is_ipv4()).copied();
    for source in own_v4.chain([Ipv4Addr::UNSPECIFIED.into()]) {
        rules.insert(Rule { from: Some(prefix::host(source)), ..lead(Family::V4) });
    }
    rules.insert(lead(Family::V6));
    // What comes out of the tunnel for a node's address and is not this node's own had that translated here: it asked a node port of
    // this node, and its backend is on a third one's host network; or is the answer to that.
    for family in Family::BOTH {
        let lead = Rule { action: Action::Table(TABLE_HOSTS), ..Rule::new(RULE_HOSTS, family) };
        rules.extend(Slot::ALL.map(|slot| Rule { slot: Some(slot), ..lead.clone() }));
    }
    for other in state.others.iter().filter(|address| address.is_ipv6()) {
        let skip = Rule { action: Action::Goto(RULE_HOSTS_END), ..Rule::new(RULE_EXEMPT, Family::V6) };
        rules.insert(Rule { from: Some(prefix::host(*other)), ..skip });
    }
    rules
}

/// Routes of this node's own traffic to one peer. `device` is the slot that it is sent by, `own` are this node's InternalIPs
/// and, after them, its mesh addresses: the first of a family is the source, so that the peer accepts it.
///
/// A slot may be named where the pair is [`HostPath::Cut`], too, if it marks what it sends: it refuses what is no allowed IP.
/// With nothing but the refusing route `rp_filter`, loose as well, would drop what comes from the peer, WireGuard's handshakes
/// and questions for neighbours among it, and the pair could not mend.
pub fn routes(path: HostPath, addresses: &[IpAddr], device: Option<&str>, own: &[IpAddr]) -> Vec<Route> {
    let route =
        |address: &IpAddr, target| Route { table: TABLE_HOSTS, prefix: prefix::host(*address), target };
    let into = |address: &IpAddr| {
        let source = own.iter().copied().find(|own| prefix::same_family(*own, *address));
        Some(route(address, Target::Device { device: device?.to_owned(), source }))
    };
    let carrying = addresses.iter().filter(|_| path.closed()).filter_map(into);
    let beneath = addresses.iter().filter(|_| path.closed()).map(|a| route(a, Target::Unreachable));
    carrying.chain(beneath).collect()
}

#[cfg(test)]
mod tests;
