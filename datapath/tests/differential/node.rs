//! One node: the real loader, the real maps, the real programs, and pods behind its links.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use datapath::{
    Capacities, Change, Datapath, Endpoint, LinkKind, LoadOptions, Local, PolicyBanks, Program, abi,
};
use mesh_core::policy::compile::Compiler;
use mesh_core::policy::model::{Flow, ObjectName, PolicyFacts};
use mesh_core::policy::tables::Delta;

use crate::support::kernel::{self, Context, SHOT};
use crate::support::names::LOCAL_PODS;
use crate::support::object;
use crate::support::packet::{ACK, Body, Packet, SCTP, SYN, TCP, UDP};
use crate::support::pins::PinDir;
use crate::support::stage::{Stage, host_mac, pod_mac};

/// Seconds from one world to the next: what was left of the one before is forgotten.
const WORLD: u64 = 10_000;

/// A pod behind one of the node's links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) link: &'static str,
    pub(crate) ips: BTreeSet<IpAddr>,
}

pub(crate) type Places = BTreeMap<ObjectName, Place>;

pub(crate) struct Node {
    stage: Stage,
    datapath: Datapath,
    banks: PolicyBanks,
    /// Seconds.
    now: u64,
    places: Places,
    _pins: PinDir,
}

/// A packet on its way: which program sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Sent by the pod behind this link.
    Pod(&'static str),
    /// Out of the tunnel.
    Tunnel,
    /// Delivered by the stack to the pod behind this link, from the uplink.
    Stack(&'static str),
}

impl Node {
    pub(crate) fn new() -> Self {
        let (stage, pins) = (Stage::new(), PinDir::new());
        stage.enter();
        let capacities = Capacities {
            addresses: 4096,
            blocks: 4096,
            rows: 65_536,
            ports: 65_536,
            endpoints: 64,
            flows: 65_536,
            places: 8192,
            events: 1 << 20,
            ..Capacities::default()
        };
        let object = Some(object::bytes().to_vec());
        let options = LoadOptions { pin_dir: pins.path().to_owned(), capacities, object, attach: None };
        let datapath = Datapath::open(&options).unwrap_or_else(|error| panic!("needs root: {error:#?}"));
        let banks = PolicyBanks::read(&datapath).expect("maps of our own can be read");
        for (link, kind) in [("uplink", LinkKind::Uplink), ("slot", LinkKind::Slot)] {
            datapath.attach(kind, stage.device(link)).expect("links of our own take programs");
        }
        Self { stage, datapath, banks, now: 0, places: Places::new(), _pins: pins }
    }

    /// Another world: no pods, no flows, and a compiler that begins as after a restart of the agent.
    pub(crate) fn begin(&mut self, facts: &PolicyFacts, subjects: &BTreeSet<ObjectName>) -> Compiler {
        self.now += WORLD;
        self.place(Places::new());
        let flows = self.datapath.maps().flows.entries().expect("maps of our own can be read");
        let keys: Vec<_> = flows.into_iter().map(|(key, _)| key).collect();
        self.datapath.maps().flows.delete_all(&keys).expect("maps of our own can be written");
        self.banks = PolicyBanks::read(&self.datapath).expect("maps of our own can be read");
        let mut compiler = Compiler::new(facts.guarded.clone()).starting_at(self.banks.first_numbers());
        compiler.set_subjects(subjects.clone());
        for (name, facts) in &facts.namespaces {
            compiler.set_namespace(name.clone(), Some(facts.clone()));
        }
        for (name, facts) in &facts.pods {
            compiler.set_pod(name.clone(), Some(facts.clone()));
        }
        for (name, facts) in &facts.nodes {
            compiler.set_node(name.clone(), Some(facts.clone()));
        }
        for (name, spec) in &facts.network_policies {
            compiler.set_network_policy(name.clone(), Some(spec.clone()));
        }
        for (name, spec) in &facts.cluster_policies {
            compiler.set_cluster_policy(name.clone(), Some(spec.clone()));
        }
        compiler
    }

    /// Puts pods behind links, as the agent does before it applies their policy.
    pub(crate) fn place(&mut self, places: Places) {
        for (name, place) in &self.places {
            if places.get(name) != Some(place) {
                self.datapath.remove_endpoint(self.stage.device(place.link)).expect("maps can be written");
                for ip in &place.ips {
                    self.datapath.remove_local(*ip).expect("maps can be written");
                }
            }
        }
        for (name, place) in &places {
            if self.places.get(name) == Some(place) {
                continue;
            }
            let mut endpoint = Endpoint {
                pod_mac: pod_mac(place.link),
                host_mac: host_mac(place.link),
                ..Endpoint::default()
            };
            for ip in &place.ips {
                match ip {
                    IpAddr::V4(ip) => endpoint.ip4 = Some(*ip),
                    IpAddr::V6(ip) => endpoint.ip6 = Some(*ip),
                }
                let local = Local::Pod(self.stage.device(place.link));
                self.datapath.put_local(*ip, local).expect("maps can be written");
            }
            self.datapath
                .put_endpoint(self.stage.device(place.link), &endpoint)
                .expect("maps can be written");
        }
        self.places = places;
    }

    /// Applies what the compiler has made, by the real transaction. Returns whether flows are judged again.
    pub(crate) fn apply(&mut self, compiler: &mut Compiler) -> bool {
        let forgotten = self.banks.expired(self.now);
        for address in &forgotten {
            compiler.forget(*address);
        }
        let delta: Delta = compiler.commit();
        let links = self.places.iter().map(|(name, place)| (name.clone(), self.stage.device(place.link)));
        let links = links.collect();
        let (state, now) = (compiler.state(), self.now);
        let change = Change { state, delta: &delta, links: &links, forgotten: &forgotten, now };
        let applied = self.banks.apply(&self.datapath, &change).expect("the maps have room");
        applied.epoch.is_some()
    }

    /// Lets the program of a way see the first packet of a flow, or a later one, or an answer. Whether it passed.
    pub(crate) fn send(&self, way: &Way, packet: &Packet) -> bool {
        let (program, link, from) = match way {
            Way::Pod(link) => (Program::FromPod, *link, "slot"),
            Way::Tunnel => (Program::FromTunnel, "slot", "slot"),
            Way::Stack(link) => (Program::ToPod, *link, "uplink"),
        };
        let ingress_ifindex = if program == Program::ToPod { self.stage.device(from) } else { 0 };
        let context = Context { ifindex: self.stage.device(link), ingress_ifindex, mark: 0 };
        let frame = packet.frame([2, 0, 0, 0, 9, 1], [2, 0, 0, 0, 9, 2]);
        let program = self.datapath.program(program).expect("it is loaded");
        kernel::run(program, &frame, context).verdict != SHOT
    }

    /// What is known of a flow without ports is forgotten, so that the next of its kind is a new one.
    pub(crate) fn forget(&self, packet: &Packet) {
        let tuple = |src: IpAddr, dst: IpAddr| abi::Tuple {
            src: src.into(),
            dst: dst.into(),
            protocol: packet.protocol(),
            ..abi::Tuple::default()
        };
        for key in [tuple(packet.src, packet.dst), tuple(packet.dst, packet.src)] {
            self.datapath.maps().flows.delete(&key).expect("maps of our own can be written");
        }
    }

    /// What the maps say of a flow's ends, for a failing case.
    pub(crate) fn describe(&self, flow: Flow) -> String {
        let maps = self.datapath.maps();
        let ends = [flow.source, flow.destination];
        let known = ends.map(|ip| maps.addresses.get(&ip.into()));
        let blocks = maps.blocks.entries().unwrap_or_default();
        let blocks: Vec<_> = blocks
            .iter()
            .filter(|(prefix, _)| prefix.net().is_some_and(|net| ends.iter().any(|ip| net.contains(ip))))
            .collect();
        let endpoints: Vec<_> = maps.endpoints.entries().unwrap_or_default();
        let epoch = self.datapath.epoch();
        format!("epoch {epoch:?}, addresses {known:?}, blocks {blocks:?}, endpoints {endpoints:?}")
    }

    /// Drops by reason, so far.
    pub(crate) fn drops(&self) -> BTreeMap<abi::DropReason, u64> {
        self.datapath.counters().expect("counters can be read").drops.into_iter().collect()
    }
}

/// Who of the subjects is behind which link, by what is known of them: those with an address, as many as there are links.
pub(crate) fn places(facts: &PolicyFacts, subjects: &BTreeSet<ObjectName>) -> Places {
    let mut taken = BTreeSet::new();
    let mut places = Places::new();
    for (name, link) in subjects.iter().zip(LOCAL_PODS) {
        let ips = facts.pods.get(name).map(|pod| pod.ips.clone()).unwrap_or_default();
        let first = |four: bool| ips.iter().copied().find(|ip| ip.is_ipv4() == four && !taken.contains(ip));
        let ips: BTreeSet<IpAddr> = [first(true), first(false)].into_iter().flatten().collect();
        taken.extend(ips.iter().copied());
        places.insert(name.clone(), Place { link, ips });
    }
    places
}

/// The first packet of a flow.
pub(crate) fn opening(flow: Flow, sport: u16) -> Packet {
    let dport = flow.port.unwrap_or(0);
    let icmp = if flow.source.is_ipv4() { 1 } else { 58 };
    let body = match flow.protocol {
        TCP => Body::Tcp { sport, dport, flags: SYN },
        UDP => Body::Udp { sport, dport, sum: true },
        SCTP => Body::Sctp { sport, dport },
        protocol if protocol == icmp => Body::Echo { id: sport, answer: false },
        protocol => Body::Other { protocol },
    };
    Packet::new(flow.source, flow.destination, body)
}

/// A later one, and the answer to it.
pub(crate) fn later(packet: &Packet) -> (Packet, Packet) {
    let (mut again, mut answer) = (packet.clone(), packet.clone());
    (answer.src, answer.dst) = (packet.dst, packet.src);
    match packet.body {
        Body::Tcp { sport, dport, .. } => {
            again.body = Body::Tcp { sport, dport, flags: ACK };
            answer.body = Body::Tcp { sport: dport, dport: sport, flags: ACK };
        }
        Body::Udp { sport, dport, sum } => answer.body = Body::Udp { sport: dport, dport: sport, sum },
        Body::Sctp { sport, dport } => answer.body = Body::Sctp { sport: dport, dport: sport },
        Body::Echo { id, .. } => answer.body = Body::Echo { id, answer: true },
        Body::Error { .. } | Body::Icmp { .. } | Body::Other { .. } => {}
    }
    (again, answer)
}
