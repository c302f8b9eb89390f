//! From what is to what shall be: an ordered list of small operations, each safe to repeat.
//!
//! Order: what refuses comes before what carries (unreachable routes and rules, addresses, devices, routes, peers),
//! and taking away comes last. A prefix that moves between peers is given to its new peer first, which takes it from the
//! old one in the same step; it is never without an owner that the plan did not name.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use crate::key::PublicKey;
use crate::numbers::TABLE_HOSTS;
use crate::plan::{Desired, DesiredPeer, Route, Rule, Target};
use crate::psk::PskId;
use crate::slot::Slot;

/// How this node is, as the kernel and the devices say.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Observed {
    /// Slots whose device exists.
    pub devices: BTreeMap<Slot, ObservedDevice>,
    /// Addresses on `lo` inside the cluster's pod CIDRs.
    pub mesh: BTreeSet<IpAddr>,
    /// Routes that bear our protocol number.
    pub routes: BTreeSet<Route>,
    /// Rules that bear our protocol number.
    pub rules: BTreeSet<Rule>,
    /// Every network device that exists: a route to one that does not would be refused.
    pub links: BTreeSet<String>,
}

/// One device.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObservedDevice {
    /// MTU in bytes.
    pub mtu: u32,
    /// Is it up?
    pub up: bool,
    /// Public half of the key it uses; none: it has none.
    pub public_key: Option<PublicKey>,
    /// UDP port.
    pub port: u16,
    /// Mark of what it sends; 0: none.
    pub mark: u32,
    /// Its peers.
    pub peers: BTreeMap<PublicKey, ObservedPeer>,
}

/// One peer of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObservedPeer {
    /// Where its packets come from, or were told to go.
    pub endpoint: Option<SocketAddr>,
    /// Its allowed IPs.
    pub allowed: BTreeSet<IpNet>,
    /// Persistent keepalive in seconds.
    pub keepalive: Option<u16>,
    /// Time since the last handshake.
    pub handshake_age: Option<Duration>,
    /// Bytes sent to it and received from it since its entry was made.
    pub bytes: (u64, u64),
    /// Name of its pre-shared key.
    pub psk: Option<PskId>,
}

/// May the difference take things away?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Before the first complete snapshot: what is missing may only be missing from our knowledge.
    AddOnly,
    /// Afterwards.
    Full,
}

/// One step. All but the removals create or replace; removals of what is gone succeed.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Op {
    /// Add or replace a route.
    PutRoute(Route),
    /// Remove a route.
    RemoveRoute(Route),
    /// Add a rule.
    PutRule(Rule),
    /// Remove a rule.
    RemoveRule(Rule),
    /// Put an address on `lo`.
    PutMesh(IpAddr),
    /// Take an address from `lo`.
    RemoveMesh(IpAddr),
    /// Set key, port and mark of a device; peers stay.
    Configure {
        /// The device.
        slot: Slot,
        /// UDP port.
        port: u16,
    },
    /// Set MTU of a device and bring it up.
    RaiseLink {
        /// The device.
        slot: Slot,
        /// MTU in bytes.
        mtu: u32,
    },
    /// Add or change a peer.
    PutPeer {
        /// The device.
        slot: Slot,
        /// The peer's key.
        key: PublicKey,
        /// Its settings; without endpoint, the present one stays.
        peer: DesiredPeer,
        /// Its entry is there and is to be made anew: sessions that were made with another pre-shared key end here.
        anew: bool,
    },
    /// Remove a peer.
    RemovePeer {
        /// The device.
        slot: Slot,
        /// The peer's key.
        key: PublicKey,
    },
}

impl Op {
    /// A word for metrics.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::PutRoute(_) => "put_route",
            Self::RemoveRoute(_) => "remove_route",
            Self::PutRule(_) => "put_rule",
            Self::RemoveRule(_) => "remove_rule",
            Self::PutMesh(_) => "put_mesh_address",
            Self::RemoveMesh(_) => "remove_mesh_address",
            Self::Configure { .. } => "configure_device",
            Self::RaiseLink { .. } => "raise_link",
            Self::PutPeer { .. } => "put_peer",
            Self::RemovePeer { .. } => "remove_peer",
        }
    }

    /// Every [`Op::kind`].
    pub const KINDS: [&'static str; 10] = [
        "put_route",
        "remove_route",
        "put_rule",
        "remove_rule",
        "put_mesh_address",
        "remove_mesh_address",
        "configure_device",
        "raise_link",
        "put_peer",
        "remove_peer",
    ];
}

/// A session is alive this long after its handshake (REJECT_AFTER_TIME of the WireGuard paper, section 6.1).
pub const SESSION: Duration = Duration::from_secs(180);

/// Endpoints as they were last set, by slot and key: what tells roaming from a new announcement.
pub type Endpoints = BTreeMap<(Slot, PublicKey), SocketAddr>;

/// What is left to do.
pub fn diff(desired: &Desired, observed: &Observed, set_before: &Endpoints, mode: Mode) -> Vec<Op> {
    let mut ops = Vec::new();
    let missing = desired.routes.difference(&observed.routes);
    let (refusing, carrying): (Vec<&Route>, Vec<&Route>) =
        missing.partition(|route| route.target == Target::Unreachable);
    // Host traffic that goes in plaintext until now goes into the slot before what is beneath refuses it.
    let (beneath, refusing): (Vec<&Route>, Vec<&Route>) =
        refusing.into_iter().partition(|route| opened(route, &carrying, observed));
    ops.extend(refusing.into_iter().cloned().map(Op::PutRoute));
    ops.extend(desired.rules.difference(&observed.rules).cloned().map(Op::PutRule));
    ops.extend(desired.mesh.difference(&observed.mesh).copied().map(Op::PutMesh));
    for (slot, want) in &desired.devices {
        let Some(have) = observed.devices.get(slot) else { continue };
        let unmarked = want.mark.is_some_and(|mark| mark != have.mark);
        if have.public_key != Some(want.public_key) || have.port != want.port || unmarked {
            ops.push(Op::Configure { slot: *slot, port: want.port });
        }
        // Before the first snapshot it is not known which uplink is ours, and the MTU of our former life is no guess.
        if (have.mtu != desired.mtu && mode == Mode::Full) || !have.up {
            ops.push(Op::RaiseLink { slot: *slot, mtu: desired.mtu });
        }
    }
    let exists = |route: &&Route| match &route.target {
        Target::Device { device, .. } => observed.links.contains(device),
        Target::Unreachable => true,
    };
    // A slot takes what is led there before that is led there, and until it is led elsewhere.
    let mut after = Vec::new();
    for (slot, want) in &desired.devices {
        let Some(have) = observed.devices.get(slot) else { continue };
        peers(*slot, &want.peers, &have.peers, set_before, mode, (&mut ops, &mut after));
    }
    ops.extend(carrying.into_iter().filter(exists).cloned().map(Op::PutRoute));
    ops.extend(beneath.into_iter().cloned().map(Op::PutRoute));
    ops.append(&mut after);
    if mode == Mode::Full {
        removals(desired, observed, &mut ops);
    }
    ops
}

/// Is this to lie beneath a route of host traffic that is to be made, too?
fn opened(route: &Route, carrying: &[&Route], observed: &Observed) -> bool {
    let into = |above: &&&Route| match &above.target {
        Target::Device { device, .. } => observed.links.contains(device),
        Target::Unreachable => false,
    };
    let above = |above: &&Route| above.table == route.table && above.prefix == route.prefix;
    route.table == TABLE_HOSTS && carrying.iter().filter(into).any(above)
}

/// Peers that take more than before go first, with what they take no more until that has gone.
fn peers(
    slot: Slot,
    want_all: &BTreeMap<PublicKey, DesiredPeer>,
    have: &BTreeMap<PublicKey, ObservedPeer>,
    set_before: &Endpoints,
    mode: Mode,
    (gaining, after): (&mut Vec<Op>, &mut Vec<Op>),
) {
    for (key, want) in want_all {
        let present = have.get(key);
        let endpoint = match present {
            Some(present) => endpoint_to_set(want, present, set_before.get(&(slot, *key))),
            None => want.endpoint,
        };
        let mut peer = DesiredPeer { endpoint, ..want.clone() };
        let Some(present) = present else {
            gaining.push(Op::PutPeer { slot, key: *key, peer, anew: false });
            continue;
        };
        if mode == Mode::AddOnly {
            peer.allowed.extend(present.allowed.iter().copied());
        }
        let same = peer.allowed == present.allowed && peer.keepalive == present.keepalive;
        if same && peer.psk == present.psk && endpoint.is_none() {
            continue;
        }
        let anew = present.psk != peer.psk;
        let gains = !peer.allowed.is_subset(&present.allowed);
        // What another peer takes now has gone over to it.
        let taken =
            |net: &&IpNet| want_all.iter().any(|(other, want)| other != key && want.allowed.contains(*net));
        let leaves = present.allowed.difference(&peer.allowed).filter(|net| gains && !taken(net));
        let leaves: Vec<IpNet> = leaves.copied().collect();
        if gains && !leaves.is_empty() {
            let mut both = peer.clone();
            both.allowed.extend(leaves);
            gaining.push(Op::PutPeer { slot, key: *key, peer: both, anew });
            after.push(Op::PutPeer { slot, key: *key, peer, anew: false });
        } else {
            let op = Op::PutPeer { slot, key: *key, peer, anew };
            if gains { gaining.push(op) } else { after.push(op) }
        }
    }
}

/// A peer's endpoint follows its packets (roaming), and we do not fight that: it is set where there is none, where
/// the announcement changed, and where the session is dead and somewhere else than announced.
fn endpoint_to_set(
    want: &DesiredPeer,
    have: &ObservedPeer,
    set_before: Option<&SocketAddr>,
) -> Option<SocketAddr> {
    let wanted = want.endpoint?;
    let Some(present) = have.endpoint else { return Some(wanted) };
    if present == wanted {
        return None;
    }
    let announced_anew = set_before.is_some_and(|before| *before != wanted);
    let dead = have.handshake_age.is_none_or(|age| age > SESSION);
    (announced_anew || dead).then_some(wanted)
}

fn removals(desired: &Desired, observed: &Observed, ops: &mut Vec<Op>) {
    let stale = |route: &&Route| !desired.routes.contains(*route);
    // A route to the same prefix in the same table with the same metric was replaced, not added beside.
    let key = |route: &Route| (route.table, route.prefix, route.metric());
    let kept: BTreeSet<_> = desired.routes.iter().map(key).collect();
    let (replaced, gone): (Vec<&Route>, Vec<&Route>) =
        observed.routes.iter().filter(stale).partition(|route| kept.contains(&key(route)));
    // Host traffic goes from the slot to plaintext: what refuses goes first, or it would for a moment.
    let (last, first): (Vec<&Route>, Vec<&Route>) =
        gone.into_iter().partition(|route| route.table == TABLE_HOSTS && route.target != Target::Unreachable);
    ops.extend(first.into_iter().chain(last).cloned().map(Op::RemoveRoute));
    // Where the replacement could not be made (its device is missing), the old route must still not lead astray.
    let possible = |route: &Route| match &route.target {
        Target::Device { device, .. } => observed.links.contains(device),
        Target::Unreachable => true,
    };
    if !replaced.is_empty() {
        let made: BTreeSet<_> = desired.routes.iter().filter(|new| possible(new)).map(key).collect();
        let astray = replaced.into_iter().filter(|old| !made.contains(&key(old)));
        ops.extend(astray.cloned().map(Op::RemoveRoute));
    }
    for (slot, have) in &observed.devices {
        let Some(want) = desired.devices.get(slot) else { continue };
        let gone = have.peers.keys().filter(|key| !want.peers.contains_key(*key));
        ops.extend(gone.map(|key| Op::RemovePeer { slot: *slot, key: *key }));
    }
    // The last first: what leads past others stays longer than they.
    let unwanted = observed.rules.iter().rev().filter(|rule| !desired.rules.contains(*rule));
    ops.extend(unwanted.cloned().map(Op::RemoveRule));
    ops.extend(observed.mesh.difference(&desired.mesh).copied().map(Op::RemoveMesh));
}

#[cfg(test)]
mod tests;
