//! A healthy cluster, for tests to break.

use std::collections::{BTreeMap, BTreeSet};

use mesh_core::announcement::Epoch;
use mesh_core::evidence::{
    CniEvidence, Configured, DataPath, Destroyed, Engine, Entry, Exemptions, Guard, HostEvidence,
    NodeEvidence, OwnSlot, PathEvidence, PathResult, PeerEvidence, PeerSlot, PoolEvidence, PskEvidence,
    PskState, Rotation, VERSION,
};
use mesh_core::host::HostPath;
use mesh_core::key::PublicKey;
use mesh_core::name::NodeName;
use mesh_core::psk::{Mode, PskId};
use mesh_core::slot::Slot;

use super::judge::{Announced, Collected, Inputs};
use super::report::{DefaultRule, Namespace, Shown};

/// When everybody was asked: 2026-11-28T10:00:00Z.
pub(crate) const NOW: u64 = 1_795_860_000;

fn key(node: u8, slot: Slot) -> PublicKey {
    let mut bytes = [node; 32];
    bytes[0] = if slot == Slot::Zero { 0 } else { 1 };
    PublicKey::from_bytes(bytes)
}

/// The name of the pre-shared key of two nodes.
fn psk(a: u8, b: u8, slot: Slot) -> PskId {
    PskId([a.min(b), a.max(b), if slot == Slot::Zero { 0 } else { 1 }, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9])
}

fn peer(us: u8, them: u8) -> PeerEvidence {
    let slot = |slot: Slot| PeerSlot {
        epoch: Epoch(u64::from(them) * 10),
        key: key(them, slot),
        known_since: Some(NOW - 600),
        entry: Some(Entry {
            handshake_at: Some(NOW - 30),
            confirmed: true,
            unanswered: None,
            received: 1000 + u64::from(us),
            sent: 2000 + u64::from(us),
            endpoint: Some(format!("192.0.2.{them}:51880").parse().unwrap()),
            psk: Some(psk(us, them, slot)),
        }),
        psk: PskEvidence {
            state: PskState::Open,
            id: Some(psk(us, them, slot)),
            recorded_at: Some(NOW - 300),
        },
    };
    PeerEvidence {
        sends_by: Some(Slot::Zero),
        moving: false,
        mode: Some(Mode::Prefer),
        host_path: HostPath::Plain,
        path: Some(PathEvidence { at: NOW - 60, size: 1420, result: PathResult::Fits }),
        slots: Slot::ALL.map(slot),
    }
}

fn name(node: u8) -> String {
    format!("node-{node}")
}

/// The evidence of a node of a healthy cluster of `nodes`.
pub(crate) fn evidence(node: u8, nodes: u8) -> NodeEvidence {
    let own = |slot: Slot| OwnSlot {
        device: slot.device().to_owned(),
        epoch: Epoch(u64::from(node) * 10),
        key: key(node, slot),
        made_at: Some(NOW - 3600),
        draining: false,
        device_key: Some(key(node, slot)),
    };
    let peers = (1..=nodes).filter(|other| *other != node);
    NodeEvidence {
        v: VERSION,
        node: name(node).parse().unwrap(),
        at: NOW,
        agent_version: "0.1.0".into(),
        agent_started_at: NOW - 7200,
        synced: true,
        pending: 0,
        wireguard: Engine::Kernel,
        settings: Configured {
            cluster: "lab".into(),
            pod_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
            non_masquerade_cidrs: Vec::new(),
            post_quantum: Mode::Prefer,
            rotation: Rotation {
                period_seconds: Some(604_800),
                quiet_seconds: 15,
                deadline_seconds: 600,
                answers: true,
            },
            data_path: true,
            host_traffic: false,
            host_traffic_required: false,
        },
        announced: true,
        slots: Slot::ALL.map(own),
        peers: peers.map(|other| (name(other).parse().unwrap(), peer(node, other))).collect(),
        guard: Guard {
            firewall: true,
            data_path: DataPath::Open,
            refused: BTreeMap::from([
                ("data-path/guard-out".into(), 0),
                ("firewall/refused_in_v4".into(), 0),
            ]),
            dropped: BTreeMap::new(),
            unread: Vec::new(),
        },
        exemptions: Exemptions {
            world_flows: Some(0),
            passed: Some(0),
            prefixes: Vec::new(),
            host_tcp_ports: BTreeSet::new(),
        },
        destroyed: Destroyed { count: Some(2), last: None, unread: None },
        problems: Vec::new(),
        host: Some(host(node)),
    }
}

fn host(node: u8) -> HostEvidence {
    HostEvidence {
        kernel: Some("6.12.48".into()),
        uplink_mtu: Some(1500),
        tunnel_mtu: 1420,
        pools: vec![PoolEvidence {
            cidr: format!("10.244.{node}.0/24").parse().unwrap(),
            used: 7,
            resting: 1,
            capacity: 253,
        }],
        cni: Some(CniEvidence {
            at: NOW - 5,
            every_seconds: Some(10),
            conf_name: "05-hawser.conflist".into(),
            ..CniEvidence::default()
        }),
        ..HostEvidence::default()
    }
}

/// A namespace that denies by default.
pub(crate) fn namespace(name: &str) -> Namespace {
    let rule = || DefaultRule { denied_by: vec!["default-deny".into()], opened_by: Vec::new() };
    Namespace { name: name.into(), ingress: rule(), egress: rule(), audited: false, exempt: false }
}

/// What is collected of a healthy cluster.
pub(crate) fn inputs(nodes: u8) -> Inputs {
    let collected = |node: u8| {
        let answer = Ok(Box::new(evidence(node, nodes)));
        (name(node), Collected { announced: Announced::Valid, answer, heard_at: NOW })
    };
    Inputs {
        generated_at: "2026-11-28T10:00:00Z".into(),
        generated_by: "hawser 0.1.0".into(),
        nodes: (1..=nodes).map(collected).collect(),
        nodes_unread: None,
        strangers: Vec::new(),
        clusters: Ok(BTreeMap::new()),
        namespaces: Ok(vec![namespace("shop")]),
        shown: Shown::All,
    }
}

/// The evidence of a node among what was collected.
pub(crate) fn of(inputs: &mut Inputs, node: u8) -> &mut NodeEvidence {
    inputs.nodes.get_mut(&name(node)).unwrap().answer.as_mut().unwrap()
}

/// What a node says of another.
pub(crate) fn says(inputs: &mut Inputs, node: u8, of_node: u8) -> &mut PeerEvidence {
    of(inputs, node).peers.get_mut(&name(of_node).parse().unwrap()).unwrap()
}

/// What a node says of the one node of the joined cluster `east`, which is as healthy as its own.
pub(crate) fn says_of_east(inputs: &mut Inputs, node: u8) -> &mut PeerEvidence {
    of(inputs, node).peers.entry(NodeName::read("gw@east").unwrap()).or_insert_with(|| peer(node, 99))
}
