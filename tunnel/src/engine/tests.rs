use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;
use ipnet::IpNet;
use proptest::prelude::*;

use super::*;
use crate::keys::{PresharedKey, PrivateKey};
use crate::noise::QUEUE_LIMIT;
use crate::offload::{Offloads, split};
use crate::packet;
use crate::uapi::{PeerRequest, PrefixOp, SetRequest};
use std::time::Duration;

mod batches;
mod flood;
mod lanes;
mod path;
mod sessions;

#[derive(Default)]
struct FakeUnderlay {
    port: Cell<u16>,
    mark: Cell<u32>,
    taken: RefCell<Vec<u16>>,
}

impl Underlay for FakeUnderlay {
    fn bind(&self, port: u16) -> std::io::Result<()> {
        if self.taken.borrow().contains(&port) {
            return Err(std::io::Error::from_raw_os_error(98));
        }
        self.port.set(if port == 0 { 40000 } else { port });
        Ok(())
    }
    fn set_fwmark(&self, fwmark: u32) -> std::io::Result<()> {
        self.mark.set(fwmark);
        Ok(())
    }
    fn port(&self) -> u16 {
        self.port.get()
    }
    fn fwmark(&self) -> u32 {
        self.mark.get()
    }
}

#[derive(Default)]
struct Out {
    udp: Vec<(SocketAddr, Vec<u8>)>,
    /// Super-packets are cut again.
    tun: Vec<Vec<u8>>,
    /// Of how many pieces each write was.
    pieces: Vec<usize>,
    /// It takes no super-packets, as some kernels do not.
    picky: bool,
    /// What its device has at present, if that is to be had.
    mtu: Option<usize>,
    /// Its socket has no room.
    full: bool,
}

impl Sink for Out {
    fn send_datagram(&mut self, to: SocketAddr, datagram: &[u8]) -> std::io::Result<()> {
        if self.full {
            return Err(std::io::ErrorKind::WouldBlock.into());
        }
        self.udp.push((to, datagram.to_vec()));
        Ok(())
    }
    fn write_tun(&mut self, header: &vnet::Header, pieces: &[&[u8]]) -> std::io::Result<()> {
        if self.picky && *header != vnet::Header::PLAIN {
            return Err(std::io::Error::from_raw_os_error(nix::libc::EINVAL));
        }
        self.pieces.push(pieces.len());
        self.tun.extend(split::tests::all(header, pieces.concat()).expect("what is delivered can be cut"));
        Ok(())
    }
    fn tun_mtu(&self) -> Option<usize> {
        self.mtu
    }
}

/// A device at an address, in memory.
struct Node {
    engine: Engine,
    net: FakeUnderlay,
    addr: SocketAddr,
    private: PrivateKey,
}

fn v4(source: [u8; 4], destination: [u8; 4], payload: usize) -> Vec<u8> {
    let mut p = vec![0xaa; 20 + payload];
    p[..20].fill(0);
    p[0] = 0x45;
    p[2..4].copy_from_slice(&u16::try_from(20 + payload).unwrap().to_be_bytes());
    p[12..16].copy_from_slice(&source);
    p[16..20].copy_from_slice(&destination);
    p
}

impl Node {
    fn new(n: u8) -> Self {
        let node = Self {
            engine: Engine::new(1420),
            net: FakeUnderlay::default(),
            addr: format!("192.0.2.{n}:51880").parse().unwrap(),
            private: PrivateKey::new([n; 32]).unwrap(),
        };
        node.set(SetRequest {
            private_key: Some(Some(node.private.clone())),
            listen_port: Some(51880),
            ..SetRequest::default()
        });
        node
    }

    fn public(&self) -> PublicKey {
        derive_public(&self.private)
    }

    fn set(&self, request: SetRequest) {
        self.engine.set(&request, &self.net).unwrap();
    }

    fn peer(&self, other: PublicKey, change: impl FnOnce(&mut PeerRequest)) {
        let mut peer = PeerRequest::new(other);
        change(&mut peer);
        self.set(SetRequest { peers: vec![peer], ..SetRequest::default() });
    }

    fn knows(&self, other: &Self, prefixes: &[&str]) {
        self.peer(other.public(), |p| {
            p.endpoint = Some(other.addr);
            p.prefixes = prefixes.iter().map(|t| PrefixOp::Add(t.parse().unwrap())).collect();
        });
    }

    fn transmit(&self, packet: &[u8]) -> Out {
        self.transmit_super(&vnet::Header::PLAIN, packet)
    }

    fn transmit_super(&self, header: &vnet::Header, packet: &[u8]) -> Out {
        let (mut out, mut outbox) = (Out::default(), Outbox::new());
        let mut buffer = vec![0xee; MAX_PACKET];
        buffer[..packet.len()].copy_from_slice(packet);
        self.engine.handle_tun_packet(header, &mut buffer, packet.len(), &mut outbox, &mut out);
        self.engine.flush(&mut outbox, &mut out);
        out
    }

    fn receive(&self, datagram: &[u8], from: SocketAddr) -> Out {
        self.receive_many(datagram, datagram.len(), from)
    }

    fn receive_many(&self, datagrams: &[u8], segment: usize, from: SocketAddr) -> Out {
        let (mut out, mut inbox) = (Out::default(), Inbox::new(Offloads::ALL));
        self.engine.handle_datagrams(datagrams, segment, from, &mut inbox, &mut out);
        self.engine.deliver(&mut inbox, &mut out);
        out
    }

    fn count(&self, counter: Counter) -> u64 {
        self.engine.counters().get(counter)
    }

    fn endpoint_of(&self, peer: PublicKey) -> Option<SocketAddr> {
        self.engine.view(&self.net).peers.iter().find(|p| p.public_key == peer).unwrap().endpoint
    }
}

/// Carries datagrams between nodes until none is left; returns what reached each node's host.
fn settle(nodes: &[&Node], from: usize, first: Out) -> BTreeMap<usize, Vec<Vec<u8>>> {
    let mut delivered: BTreeMap<usize, Vec<Vec<u8>>> = BTreeMap::new();
    let mut wire: std::collections::VecDeque<_> = first.udp.into_iter().map(|d| (from, d)).collect();
    while let Some((from, (to, datagram))) = wire.pop_front() {
        let Some(at) = nodes.iter().position(|n| n.addr == to) else { continue };
        let out = nodes[at].receive(&datagram, nodes[from].addr);
        wire.extend(out.udp.into_iter().map(|d| (at, d)));
        delivered.entry(at).or_default().extend(out.tun);
    }
    delivered
}

/// Two nodes that know each other, with a confirmed session.
fn pair() -> (Node, Node) {
    let (a, b) = (Node::new(1), Node::new(2));
    a.knows(&b, &["10.0.0.2/32", "10.0.9.0/24"]);
    b.knows(&a, &["10.0.0.1/32"]);
    let ping = v4([10, 0, 0, 1], [10, 0, 0, 2], 8);
    let got = settle(&[&a, &b], 0, a.transmit(&ping));
    assert_eq!(got[&1], [ping], "the packet that waited for the handshake arrives");
    (a, b)
}

fn psk(n: u8) -> Option<Option<PresharedKey>> {
    Some(PresharedKey::new([n; 32]))
}

#[test]
fn packets_that_wait_for_a_handshake_arrive_in_order_and_both_sides_note_it() {
    let (a, b) = (Node::new(1), Node::new(2));
    a.knows(&b, &["10.0.0.2/32"]);
    b.knows(&a, &["10.0.0.1/32"]);
    let packets: Vec<_> = (0..20).map(|n| v4([10, 0, 0, 1], [10, 0, 0, 2], n)).collect();
    let mut first = Out::default();
    for p in &packets {
        first.udp.extend(a.transmit(p).udp);
    }
    assert_eq!(first.udp.len(), 1, "one initiation for all");
    assert_eq!(settle(&[&a, &b], 0, first)[&1], packets);
    for (node, other) in [(&a, &b), (&b, &a)] {
        assert_eq!(node.count(Counter::HandshakeDone), 1);
        let view = node.engine.view(&node.net);
        assert_eq!(view.peers[0].public_key, other.public());
        assert!(view.peers[0].last_handshake > Duration::from_secs(1_600_000_000));
        assert!(view.peers[0].tx_bytes > 0 && view.peers[0].rx_bytes > 0);
    }
}

#[test]
fn a_full_queue_is_counted() {
    let (a, b) = (Node::new(1), Node::new(2));
    a.knows(&b, &["10.0.0.2/32"]);
    for _ in 0..300 {
        a.transmit(&v4([10, 0, 0, 1], [10, 0, 0, 2], 0));
    }
    assert_eq!(a.count(Counter::QueueFull), 300 - QUEUE_LIMIT as u64);
}

#[test]
fn a_replayed_packet_is_dropped_and_counted() {
    let (a, b) = pair();
    let sent = a.transmit(&v4([10, 0, 0, 1], [10, 0, 0, 2], 8)).udp.remove(0).1;
    assert_eq!(b.receive(&sent, a.addr).tun.len(), 1);
    let before = b.count(Counter::ReplayOrAuth);
    assert!(b.receive(&sent, a.addr).tun.is_empty());
    assert_eq!(b.count(Counter::ReplayOrAuth), before + 1);
}

#[test]
fn inner_packets_are_padded_on_the_wire_and_exact_at_the_other_end() {
    let (a, b) = pair();
    for payload in [0, 1, 11, 12, 13, 1395, 1399, 1400] {
        let packet = v4([10, 0, 0, 1], [10, 0, 0, 2], payload);
        let datagram = a.transmit(&packet).udp.remove(0).1;
        let inner = datagram.len() - 32;
        assert!(inner.is_multiple_of(16) || inner == 1420, "{inner}");
        assert!((packet.len()..=1420).contains(&inner));
        assert_eq!(b.receive(&datagram, a.addr).tun, [packet]);
    }
}

#[test]
fn a_moved_prefix_belongs_to_its_new_peer_alone_even_for_packets_under_way() {
    let (a, b, c) = (Node::new(1), Node::new(2), Node::new(3));
    a.knows(&b, &["10.0.9.0/24"]);
    a.knows(&c, &["10.0.3.0/24"]);
    for n in [&b, &c] {
        n.knows(&a, &["10.0.0.1/32"]);
    }
    let nodes = [&a, &b, &c];
    let from_moved = v4([10, 0, 9, 1], [10, 0, 0, 1], 0);
    let to_moved = v4([10, 0, 0, 1], [10, 0, 9, 1], 0);
    assert_eq!(settle(&nodes, 1, b.transmit(&from_moved))[&0].len(), 1);
    assert_eq!(settle(&nodes, 0, a.transmit(&to_moved))[&1].len(), 1);
    let under_way = b.transmit(&from_moved);
    a.peer(c.public(), |p| p.prefixes = vec![PrefixOp::Add("10.0.9.0/24".parse().unwrap())]);
    assert!(settle(&nodes, 1, under_way)[&0].is_empty());
    assert_eq!(a.count(Counter::WrongSource), 1);
    assert_eq!(settle(&nodes, 2, c.transmit(&from_moved))[&0].len(), 1);
    assert_eq!(settle(&nodes, 0, a.transmit(&to_moved))[&2].len(), 1);
    assert!(
        a.engine
            .view(&a.net)
            .peers
            .iter()
            .find(|p| p.public_key == b.public())
            .unwrap()
            .allowed_ips
            .is_empty()
    );
}

#[test]
fn a_changed_peer_keeps_its_session() {
    let (a, b) = pair();
    b.peer(a.public(), |p| {
        p.persistent_keepalive = Some(25);
        p.endpoint = Some(a.addr);
        p.prefixes = vec![PrefixOp::Clear, PrefixOp::Add("10.0.0.0/24".parse().unwrap())];
    });
    b.set(SetRequest { private_key: Some(Some(b.private.clone())), ..SetRequest::default() });
    let packet = v4([10, 0, 0, 7], [10, 0, 0, 2], 0);
    assert_eq!(settle(&[&a, &b], 0, a.transmit(&packet))[&1], [packet]);
    assert_eq!((a.count(Counter::HandshakeDone), b.count(Counter::HandshakeDone)), (1, 1));
}

#[test]
fn traffic_needs_the_same_pre_shared_key_on_both_sides() {
    let (a, b) = pair();
    let packet = v4([10, 0, 0, 1], [10, 0, 0, 2], 0);
    a.peer(b.public(), |p| p.preshared_key = psk(7));
    assert!(settle(&[&a, &b], 0, a.transmit(&packet)).get(&1).is_none_or(Vec::is_empty));
    assert!(a.count(Counter::ReplayOrAuth) > 0, "the response does not authenticate");
    let (a, b) = pair();
    a.peer(b.public(), |p| p.preshared_key = psk(7));
    b.peer(a.public(), |p| p.preshared_key = psk(7));
    assert_eq!(settle(&[&a, &b], 0, a.transmit(&packet))[&1], [packet]);
}

#[test]
fn a_removed_peer_can_neither_send_nor_receive() {
    let (a, b) = pair();
    let old = a.transmit(&v4([10, 0, 0, 1], [10, 0, 0, 2], 0)).udp.remove(0).1;
    b.peer(a.public(), |p| p.remove = true);
    assert!(b.receive(&old, a.addr).tun.is_empty());
    assert_eq!(b.count(Counter::UnknownSession), 1);
    assert!(b.transmit(&v4([10, 0, 0, 2], [10, 0, 0, 1], 0)).udp.is_empty());
    assert_eq!(b.count(Counter::NoPeer), 1);
    let stranger = Node::new(9);
    stranger.knows(&b, &["10.0.0.2/32"]);
    let knock = stranger.transmit(&v4([10, 0, 0, 9], [10, 0, 0, 2], 0)).udp.remove(0).1;
    assert!(b.receive(&knock, stranger.addr).udp.is_empty(), "a stranger gets no answer");
    assert_eq!(b.count(Counter::UnknownPeer), 1);
}

#[test]
fn another_private_key_ends_all_sessions_and_removes_the_peer_with_that_key() {
    let (a, b) = pair();
    let c = Node::new(3);
    a.knows(&c, &["10.0.3.0/24"]);
    let old = b.transmit(&v4([10, 0, 0, 2], [10, 0, 0, 1], 0)).udp.remove(0).1;
    a.set(SetRequest { private_key: Some(Some(c.private.clone())), ..SetRequest::default() });
    assert!(a.receive(&old, b.addr).tun.is_empty());
    assert_eq!(a.engine.owner_of("10.0.3.1".parse().unwrap()), None);
    assert_eq!(a.engine.view(&a.net).peers.len(), 1);
    a.set(SetRequest { private_key: Some(None), ..SetRequest::default() });
    assert!(a.transmit(&v4([10, 0, 0, 1], [10, 0, 0, 2], 0)).udp.is_empty());
    assert_eq!(a.count(Counter::NoKey), 1);
}

#[test]
fn the_endpoint_follows_data_but_not_an_initiation_that_may_be_a_replay() {
    let (a, b) = pair();
    let elsewhere: SocketAddr = "198.51.100.1:9".parse().unwrap();
    let initiation = {
        let fresh = Node::new(1);
        fresh.knows(&b, &["10.0.0.2/32"]);
        fresh.transmit(&v4([10, 0, 0, 1], [10, 0, 0, 2], 0)).udp.remove(0).1
    };
    let answer = b.receive(&initiation, elsewhere);
    assert_eq!(answer.udp[0].0, elsewhere, "it is answered");
    assert_eq!(b.endpoint_of(a.public()), Some(a.addr));
    let mut broken = a.transmit(&v4([10, 0, 0, 1], [10, 0, 0, 2], 0)).udp.remove(0).1;
    broken[20] ^= 1;
    b.receive(&broken, elsewhere);
    assert_eq!(b.endpoint_of(a.public()), Some(a.addr));
    let good = a.transmit(&v4([10, 0, 0, 1], [10, 0, 0, 2], 0)).udp.remove(0).1;
    b.receive(&good, elsewhere);
    assert_eq!(b.endpoint_of(a.public()), Some(elsewhere));
    assert_eq!(b.count(Counter::Roamed), 1);
}

#[test]
fn without_an_endpoint_packets_are_dropped_and_counted() {
    let (a, b) = (Node::new(1), Node::new(2));
    a.peer(b.public(), |p| p.prefixes = vec![PrefixOp::Add("10.0.0.2/32".parse().unwrap())]);
    assert!(a.transmit(&v4([10, 0, 0, 1], [10, 0, 0, 2], 0)).udp.is_empty());
    assert_eq!(a.count(Counter::NoEndpoint), 1);
}

#[test]
fn a_key_of_low_order_is_no_way_in() {
    let b = Node::new(2);
    b.peer(PublicKey::new([0; 32]), |p| {
        p.endpoint = Some("192.0.2.9:1".parse().unwrap());
        p.prefixes = vec![PrefixOp::Add("10.0.0.9/32".parse().unwrap())];
    });
    assert!(b.transmit(&v4([10, 0, 0, 2], [10, 0, 0, 9], 0)).udp.is_empty());
    assert_eq!(b.count(Counter::NoKey), 1);
}

#[test]
fn a_keepalive_interval_set_on_a_living_peer_is_kept() {
    let (a, b) = pair();
    let start = Moment::now();
    let tick = |at: u64| {
        let mut out = Out::default();
        a.engine.handle_timers(start + Duration::from_millis(at), &mut vec![0; SCRATCH], &mut out);
        out.udp.len()
    };
    assert_eq!(tick(0), 0);
    a.peer(b.public(), |p| p.persistent_keepalive = Some(2));
    assert_eq!(tick(100), 1, "the first is due at once");
    assert_eq!(tick(200), 0, "sending it was activity");
    assert_eq!(tick(2000), 0);
    assert_eq!(tick(2200), 1);
    a.peer(b.public(), |p| p.persistent_keepalive = Some(0));
    assert_eq!(tick(9000), 0);
}

#[test]
fn an_initiation_that_found_no_room_is_made_anew_soon() {
    let (a, b) = (Node::new(1), Node::new(2));
    a.knows(&b, &["10.0.0.2/32"]);
    b.knows(&a, &["10.0.0.1/32"]);
    a.peer(b.public(), |p| p.persistent_keepalive = Some(25));
    let start = Moment::now();
    let tick = |at: u64, full: bool| {
        let mut out = Out { full, ..Out::default() };
        a.engine.handle_timers(start + Duration::from_millis(at), &mut vec![0; SCRATCH], &mut out);
        out.udp
    };
    assert!(tick(0, true).is_empty());
    assert_eq!(a.count(Counter::UdpSend), 1);
    assert!(tick(1, false).is_empty(), "a full socket stays full for a while");
    assert!(tick(5000, true).is_empty());
    assert_eq!(a.count(Counter::UdpSend), 2);
    let again = tick(9000, false).remove(0).1;
    let answer = b.receive(&again, a.addr).udp.remove(0).1;
    a.receive(&answer, b.addr);
    assert_eq!(a.count(Counter::HandshakeDone), 1);
    assert!(tick(9500, false).is_empty(), "it was answered");
}

#[test]
fn an_initiation_for_a_packet_of_the_host_that_found_no_room_is_made_anew_too() {
    let (a, b) = (Node::new(1), Node::new(2));
    a.knows(&b, &["10.0.0.2/32"]);
    let (mut full, mut outbox) = (Out { full: true, ..Out::default() }, Outbox::new());
    let mut packet = v4([10, 0, 0, 1], [10, 0, 0, 2], 8);
    let len = packet.len();
    packet.resize(len + 16, 0);
    a.engine.handle_tun_packet(&vnet::Header::PLAIN, &mut packet, len, &mut outbox, &mut full);
    a.engine.flush(&mut outbox, &mut full);
    assert_eq!((a.count(Counter::UdpSend), a.count(Counter::InitiationSent)), (1, 0));
    let mut out = Out::default();
    a.engine.handle_timers(Moment::now() + Duration::from_secs(4), &mut vec![0; SCRATCH], &mut out);
    assert_eq!((out.udp.len(), a.count(Counter::InitiationSent)), (1, 1));
}

#[test]
fn a_port_that_is_taken_leaves_everything_as_it_was() {
    let (a, b) = pair();
    a.net.taken.borrow_mut().push(7);
    let request = SetRequest {
        private_key: Some(None),
        listen_port: Some(7),
        fwmark: Some(9),
        replace_peers: true,
        peers: vec![],
    };
    assert_eq!(a.engine.set(&request, &a.net).unwrap_err().errno(), -98);
    let view = a.engine.view(&a.net);
    assert!(view.private_key.is_some());
    assert_eq!((view.listen_port, view.fwmark, view.peers.len()), (51880, 0, 1));
    let packet = v4([10, 0, 0, 1], [10, 0, 0, 2], 0);
    assert_eq!(settle(&[&a, &b], 0, a.transmit(&packet))[&1], [packet]);
}

/// One line of a request, for the comparison with the naive device below.
#[derive(Clone, Debug)]
enum Step {
    Create(u8),
    Remove(u8),
    UpdateOnly(u8, Option<u8>),
    Add(u8, IpNet),
    Drop(u8, IpNet),
    Clear(u8),
    Psk(u8, u8),
    Keepalive(u8, u16),
}

fn step() -> impl Strategy<Value = Step> {
    let prefix = prop_oneof![
        Just("10.0.0.0/8"),
        Just("10.1.0.0/16"),
        Just("10.1.2.0/24"),
        Just("fd00::/8"),
        Just("fd00::/64"),
    ]
    .prop_map(|t| t.parse::<IpNet>().unwrap());
    let key = 1u8..5;
    prop_oneof![
        key.clone().prop_map(Step::Create),
        key.clone().prop_map(Step::Remove),
        (key.clone(), proptest::option::of(0u8..3)).prop_map(|(k, p)| Step::UpdateOnly(k, p)),
        (key.clone(), prefix.clone()).prop_map(|(k, p)| Step::Add(k, p)),
        (key.clone(), prefix.clone()).prop_map(|(k, p)| Step::Add(k, p)),
        (key.clone(), prefix).prop_map(|(k, p)| Step::Drop(k, p)),
        key.clone().prop_map(Step::Clear),
        (key.clone(), 0u8..3).prop_map(|(k, p)| Step::Psk(k, p)),
        (key, 0u16..3).prop_map(|(k, s)| Step::Keepalive(k, s)),
    ]
}

fn key_of(n: u8) -> PublicKey {
    derive_public(&PrivateKey::new([n; 32]).unwrap())
}

impl Step {
    fn section(&self) -> PeerRequest {
        let with = |k: u8, change: &dyn Fn(&mut PeerRequest)| {
            let mut p = PeerRequest::new(key_of(k));
            change(&mut p);
            p
        };
        match *self {
            Self::Create(k) => with(k, &|_| ()),
            Self::Remove(k) => with(k, &|p| p.remove = true),
            Self::UpdateOnly(k, psk) => with(k, &|p| {
                p.update_only = true;
                p.preshared_key = psk.map(|n| PresharedKey::new([n; 32]));
            }),
            Self::Add(k, n) => with(k, &|p| p.prefixes = vec![PrefixOp::Add(n)]),
            Self::Drop(k, n) => with(k, &|p| p.prefixes = vec![PrefixOp::Remove(n)]),
            Self::Clear(k) => with(k, &|p| p.prefixes = vec![PrefixOp::Clear]),
            Self::Psk(k, n) => with(k, &|p| p.preshared_key = Some(PresharedKey::new([n; 32]))),
            Self::Keepalive(k, s) => with(k, &|p| p.persistent_keepalive = Some(s)),
        }
    }
}

/// The protocol's text, taken literally: one line after the other, on plain maps.
#[derive(Clone, Debug, Default, PartialEq)]
struct Naive(BTreeMap<PublicKey, (u8, u16, BTreeSet<IpNet>)>);

impl Naive {
    fn step(&mut self, step: &Step) {
        match *step {
            Step::Create(k) => drop(self.0.entry(key_of(k)).or_default()),
            Step::Remove(k) => drop(self.0.remove(&key_of(k))),
            Step::UpdateOnly(k, psk) => {
                if let (Some(p), Some(n)) = (self.0.get_mut(&key_of(k)), psk) {
                    p.0 = n;
                }
            }
            Step::Add(k, n) => {
                self.0.values_mut().for_each(|p| p.2.retain(|q| *q != n));
                self.0.entry(key_of(k)).or_default().2.insert(n);
            }
            Step::Drop(k, n) => self.0.entry(key_of(k)).or_default().2.retain(|q| *q != n),
            Step::Clear(k) => self.0.entry(key_of(k)).or_default().2.clear(),
            Step::Psk(k, n) => self.0.entry(key_of(k)).or_default().0 = n,
            Step::Keepalive(k, s) => self.0.entry(key_of(k)).or_default().1 = s,
        }
    }
}

proptest! {
    #[test]
    fn a_device_is_configured_as_if_its_requests_were_executed_line_by_line(
        requests in proptest::collection::vec((any::<bool>(), proptest::collection::vec(step(), 0..8)), 1..6),
    ) {
        let node = Node::new(9);
        let mut naive = Naive::default();
        for (replace, steps) in requests {
            if replace {
                naive.0.clear();
            }
            steps.iter().for_each(|s| naive.step(s));
            node.set(SetRequest {
                replace_peers: replace,
                peers: steps.iter().map(Step::section).collect(),
                ..SetRequest::default()
            });
            let got = Naive(node.engine.view(&node.net).peers.into_iter().map(|p| {
                let psk = p.preshared_key.map_or(0, |k| k.expose()[0]);
                (p.public_key, (psk, p.persistent_keepalive, p.allowed_ips.into_iter().collect()))
            }).collect());
            prop_assert_eq!(&got, &naive);
            let registry = read(&node.engine.registry);
            prop_assert_eq!(registry.by_key.len(), naive.0.len());
            prop_assert_eq!(read(&node.engine.lanes[0].by_index).len(), naive.0.len());
        }
    }

    #[test]
    fn no_datagram_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0u8..6) {
        let node = Node::new(1);
        let mut bytes = bytes;
        if let Some(head) = bytes.first_chunk_mut::<4>() {
            *head = [kind, 0, 0, 0];
        }
        let len = [bytes.len(), 148, 92, 64, 32, 33][usize::from(kind)];
        bytes.resize(len, 7);
        prop_assert!(node.receive(&bytes, "[2001:db8::1]:1".parse().unwrap()).tun.is_empty());
    }

    #[test]
    fn no_altered_datagram_of_a_real_session_panics_or_is_delivered(
        at in 0usize..92, flip in 1u8..=255, cut in 0usize..92,
    ) {
        let (a, b) = pair();
        let datagram = a.transmit(&v4([10, 0, 0, 1], [10, 0, 0, 2], 40)).udp.remove(0).1;
        let mut altered = datagram.clone();
        altered[at] ^= flip;
        prop_assert!(b.receive(&altered, a.addr).tun.is_empty());
        prop_assert!(b.receive(&datagram[..cut], a.addr).tun.is_empty());
        prop_assert_eq!(b.receive(&datagram, a.addr).tun.len(), 1);
    }

    #[test]
    fn no_packet_from_the_host_or_from_a_peer_panics(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        let (a, b) = pair();
        a.transmit(&bytes);
        // What a hostile peer encrypts: anything. boringtun's `Tunn` stands in for it.
        let c = Node::new(3);
        b.knows(&c, &["0.0.0.0/0", "::/0"]);
        let mut tunn = Tunn::new(
            x25519::StaticSecret::from([3; 32]), x25519::PublicKey::from(*b.public().as_bytes()), None, None, 1, None,
        );
        let mut buf = vec![0; 2048];
        let TunnResult::WriteToNetwork(init) = tunn.format_handshake_initiation(&mut buf, false) else { panic!() };
        let response = b.receive(init, c.addr).udp.remove(0).1;
        let TunnResult::WriteToNetwork(keepalive) = tunn.decapsulate(None, &response, &mut buf) else { panic!() };
        b.receive(keepalive, c.addr);
        let TunnResult::WriteToNetwork(data) = tunn.encapsulate(&bytes, &mut buf) else { panic!() };
        let out = b.receive(data, c.addr);
        for packet in out.tun {
            prop_assert_eq!(packet::parse(&packet).map(|h| h.len), Some(packet.len()));
        }
    }
}
