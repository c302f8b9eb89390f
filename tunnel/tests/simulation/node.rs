//! One machine of the simulated world: an engine, its clocks and its address.

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;
use tunnel::clock::Moment;
use tunnel::engine::{Engine, Inbox, MAX_PACKET, Outbox, SCRATCH, Sink, Underlay};
use tunnel::keys::{PresharedKey, PrivateKey, PublicKey};
use tunnel::offload::{Offloads, vnet};
use tunnel::uapi::{PeerRequest, PrefixOp, SetRequest};

use crate::clock::{self, Clocks};
use crate::random::Random;

/// The wall clock's reading when the world begins: far from any real one.
const EPOCH: Duration = Duration::from_secs(2_500_000_000);
/// Persistent keepalives are off: nothing but the protocol's own timers may heal a pair.
const NO_KEEPALIVE: u16 = 0;

/// What an engine handed out in one call.
#[derive(Default)]
pub(crate) struct Out {
    pub(crate) datagrams: Vec<(SocketAddr, Vec<u8>)>,
    pub(crate) packets: Vec<Vec<u8>>,
}

impl Sink for Out {
    fn send_datagram(&mut self, to: SocketAddr, datagram: &[u8]) -> std::io::Result<()> {
        self.datagrams.push((to, datagram.to_vec()));
        Ok(())
    }
    fn write_tun(&mut self, header: &vnet::Header, pieces: &[&[u8]]) -> std::io::Result<()> {
        assert_eq!(*header, vnet::Header::PLAIN, "nothing is joined without offloads");
        self.packets.push(pieces.concat());
        Ok(())
    }
}

#[derive(Default)]
struct Port(Cell<u16>);

impl Underlay for Port {
    fn bind(&self, port: u16) -> std::io::Result<()> {
        self.0.set(port);
        Ok(())
    }
    fn set_fwmark(&self, _: u32) -> std::io::Result<()> {
        Ok(())
    }
    fn port(&self) -> u16 {
        self.0.get()
    }
    fn fwmark(&self) -> u32 {
        0
    }
}

/// What a node is told of another.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) node: usize,
    pub(crate) address: SocketAddr,
    /// 0 is none.
    pub(crate) psk: u8,
}

pub(crate) struct Node {
    pub(crate) engine: Engine,
    pub(crate) address: SocketAddr,
    number: usize,
    port: Port,
    inbox: Inbox,
    outbox: Outbox,
    buffer: Vec<u8>,
    scratch: Vec<u8>,
    /// What the wall clock is ahead of the truth, or behind, in seconds.
    pub(crate) wall_error: i64,
    /// How long the machine has slept.
    pub(crate) slept: Duration,
    pub(crate) asleep_since: Option<Duration>,
}

fn private_key(number: usize) -> PrivateKey {
    let byte = u8::try_from(number + 1).expect("few nodes");
    PrivateKey::new([byte; 32]).expect("not zero").clamped()
}

fn public_key(number: usize) -> PublicKey {
    let secret = x25519::StaticSecret::from(*private_key(number).expose());
    PublicKey::new(x25519::PublicKey::from(&secret).to_bytes())
}

fn inner_address(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, u8::try_from(number + 1).expect("few nodes"))
}

impl Node {
    /// A machine whose tunnel is not configured yet.
    pub(crate) fn new(number: usize, address: SocketAddr) -> Self {
        Self {
            engine: Engine::new(1420),
            address,
            number,
            port: Port::default(),
            inbox: Inbox::new(Offloads::NONE),
            outbox: Outbox::new(),
            buffer: vec![0; MAX_PACKET],
            scratch: vec![0; SCRATCH],
            wall_error: 0,
            slept: Duration::ZERO,
            asleep_since: None,
        }
    }

    /// A new process: nothing is left of the old one.
    pub(crate) fn start(&mut self, now: Duration, peers: &[Known]) {
        self.show_clocks(now);
        self.engine = Engine::new(1420);
        (self.inbox, self.outbox) = (Inbox::new(Offloads::NONE), Outbox::new());
        let peers = peers.iter().map(|known| {
            let mut peer = PeerRequest::new(public_key(known.node));
            peer.endpoint = Some(known.address);
            peer.preshared_key = Some(PresharedKey::new([known.psk; 32]));
            peer.persistent_keepalive = Some(NO_KEEPALIVE);
            peer.prefixes = vec![PrefixOp::Add(IpAddr::V4(inner_address(known.node)).into())];
            peer
        });
        self.set(SetRequest {
            private_key: Some(Some(private_key(self.number))),
            listen_port: Some(51880),
            peers: peers.collect(),
            ..SetRequest::default()
        });
    }

    fn set(&self, request: SetRequest) {
        self.engine.set(&request, &self.port).expect("a request without faults");
    }

    pub(crate) fn set_psk(&self, now: Duration, peer: usize, psk: u8) {
        self.show_clocks(now);
        let mut request = PeerRequest::new(public_key(peer));
        request.preshared_key = Some(PresharedKey::new([psk; 32]));
        self.set(SetRequest { peers: vec![request], ..SetRequest::default() });
    }

    pub(crate) fn set_endpoint(&self, now: Duration, peer: usize, address: SocketAddr) {
        self.show_clocks(now);
        let mut request = PeerRequest::new(public_key(peer));
        request.endpoint = Some(address);
        self.set(SetRequest { peers: vec![request], ..SetRequest::default() });
    }

    /// Makes this machine's clocks those that code reads from now on. `now` is the world's time.
    fn show_clocks(&self, now: Duration) {
        let wall = (EPOCH + now).as_secs().checked_add_signed(self.wall_error).expect("small errors");
        clock::show(Clocks {
            steady: now.saturating_sub(self.slept),
            boot: now,
            wall: Duration::new(wall, now.subsec_nanos()),
        });
    }

    pub(crate) fn tick(&mut self, now: Duration) -> Out {
        self.show_clocks(now);
        let mut out = Out::default();
        self.engine.handle_timers(Moment::now(), &mut self.scratch, &mut out);
        out
    }

    pub(crate) fn transmit(&mut self, now: Duration, packet: &[u8]) -> Out {
        self.show_clocks(now);
        let mut out = Out::default();
        self.buffer[..packet.len()].copy_from_slice(packet);
        let plain = vnet::Header::PLAIN;
        self.engine.handle_tun_packet(&plain, &mut self.buffer, packet.len(), &mut self.outbox, &mut out);
        self.engine.flush(&mut self.outbox, &mut out);
        out
    }

    pub(crate) fn receive(&mut self, now: Duration, datagram: &[u8], from: SocketAddr) -> Out {
        self.show_clocks(now);
        let mut out = Out::default();
        self.engine.handle_datagrams(datagram, datagram.len(), from, &mut self.inbox, &mut out);
        self.engine.deliver(&mut self.inbox, &mut out);
        out
    }

    pub(crate) fn wake(&mut self, now: Duration) {
        if let Some(since) = self.asleep_since.take() {
            self.slept += now.saturating_sub(since);
        }
    }
}

/// What a host sends: it can be told from its number alone.
pub(crate) fn packet(from: usize, to: usize, serial: usize) -> Vec<u8> {
    let mut random = Random::new(serial as u64, 0);
    let len = 28 + random.below(200);
    let mut packet: Vec<u8> = (0..len).map(|_| random.next().to_le_bytes()[0]).collect();
    packet[..20].fill(0);
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&u16::try_from(len).expect("short").to_be_bytes());
    packet[12..16].copy_from_slice(&inner_address(from).octets());
    packet[16..20].copy_from_slice(&inner_address(to).octets());
    packet[20..28].copy_from_slice(&(serial as u64).to_be_bytes());
    packet
}

/// Initiations for a node, from somebody whom it does not know.
pub(crate) fn knocks(at: usize) -> Vec<Vec<u8>> {
    let secret = x25519::StaticSecret::from([99; 32]);
    let public = x25519::PublicKey::from(*public_key(at).as_bytes());
    let mut tunn = Tunn::new(secret, public, None, None, 7, None);
    let mut buffer = [0; 148];
    let mut knock = || {
        let TunnResult::WriteToNetwork(datagram) = tunn.format_handshake_initiation(&mut buffer, true) else {
            panic!("no initiation")
        };
        datagram.to_vec()
    };
    (0..16).map(|_| knock()).collect()
}
