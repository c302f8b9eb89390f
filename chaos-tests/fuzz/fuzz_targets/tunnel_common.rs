//! A device in memory with one peer, whose side is boringtun's `Tunn`.

use std::cell::Cell;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;
use tunnel::engine::{Engine, Inbox, Sink, Underlay};
use tunnel::offload::split::{self, Plan};
use tunnel::offload::{Offloads, vnet};
use tunnel::uapi::{self, Request};

/// The port is the only thing that these targets have of an underlay.
#[derive(Default)]
pub struct Net(Cell<u16>);

impl Underlay for Net {
    fn bind(&self, port: u16) -> std::io::Result<()> {
        self.0.set(port.max(1));
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

/// What the engine handed out.
#[derive(Default)]
pub struct Out {
    pub udp: Vec<(SocketAddr, Vec<u8>)>,
    pub tun: Vec<Vec<u8>>,
}

impl Sink for Out {
    fn send_datagram(&mut self, to: SocketAddr, datagram: &[u8]) -> std::io::Result<()> {
        self.udp.push((to, datagram.to_vec()));
        Ok(())
    }
    fn write_tun(&mut self, header: &vnet::Header, pieces: &[&[u8]]) -> std::io::Result<()> {
        self.tun.extend(cut(header, pieces.concat()).expect("what is delivered in one piece can be cut"));
        Ok(())
    }
}

/// The packets that a kernel would make of a super-packet.
#[must_use]
pub fn cut(header: &vnet::Header, mut packet: Vec<u8>) -> Option<Vec<Vec<u8>>> {
    match split::plan(header, &mut packet)? {
        Plan::Whole(len) => Some(vec![packet[..len].to_vec()]),
        Plan::Segments(mut segments) => {
            let mut made = Vec::new();
            while let Some(at) = segments.next_in(&mut packet) {
                made.push(packet[at].to_vec());
            }
            Some(made)
        }
    }
}

pub struct Pair {
    pub engine: Engine,
    pub net: Net,
    pub tunn: Tunn,
    pub inbox: Inbox,
    since: Instant,
}

pub fn peer_addr() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 2], 51880))
}

pub fn set(engine: &Engine, net: &Net, lines: &str) {
    let text = format!("set=1\n{lines}\n");
    if let Ok(Request::Set(request)) = uapi::parse(text.as_bytes(), &|_| None) {
        engine.set(&request, net).expect("invariant: the request is valid");
    }
}

impl Pair {
    /// A confirmed session; the peer owns 10.0.0.0/8 and fd00::/8.
    #[must_use]
    pub fn connected() -> Self {
        let hex = |b: &[u8; 32]| b.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let ours = x25519::StaticSecret::from([0x48; 32]);
        let theirs = x25519::StaticSecret::from([0x50; 32]);
        let (engine, net) = (Engine::new(1420), Net::default());
        let lines = format!(
            "private_key={}\nlisten_port=1\npublic_key={}\nendpoint={}\nallowed_ip=10.0.0.0/8\nallowed_ip=fd00::/8\n",
            hex(&ours.to_bytes()),
            hex(&x25519::PublicKey::from(&theirs).to_bytes()),
            peer_addr(),
        );
        set(&engine, &net, &lines);
        let tunn = Tunn::new(theirs, x25519::PublicKey::from(&ours), None, None, 1, None);
        let mut pair = Self { engine, net, tunn, inbox: Inbox::new(Offloads::ALL), since: Instant::now() };
        let mut buf = vec![0; 2048];
        let TunnResult::WriteToNetwork(initiation) = pair.tunn.format_handshake_initiation(&mut buf, false) else {
            unreachable!("invariant: a new Tunn starts a handshake")
        };
        let initiation = initiation.to_vec();
        let response = pair.receive(&initiation).udp.remove(0).1;
        let TunnResult::WriteToNetwork(keepalive) = pair.tunn.decapsulate(None, &response, &mut buf) else {
            unreachable!("invariant: the response authenticates")
        };
        let keepalive = keepalive.to_vec();
        pair.receive(&keepalive);
        pair
    }

    /// A new session where the present one is about to be renewed.
    pub fn refresh(&mut self) {
        if self.since.elapsed() > Duration::from_secs(60) {
            *self = Self::connected();
        }
    }

    pub fn receive(&mut self, datagram: &[u8]) -> Out {
        let mut out = Out::default();
        self.engine.handle_datagrams(datagram, datagram.len(), peer_addr(), &mut self.inbox, &mut out);
        self.engine.deliver(&mut self.inbox, &mut out);
        out
    }

    /// What the peer sends when it encrypts these bytes.
    #[must_use]
    pub fn encrypt(&mut self, inner: &[u8]) -> Vec<u8> {
        let mut buf = vec![0; inner.len() + 256];
        match self.tunn.encapsulate(inner, &mut buf) {
            TunnResult::WriteToNetwork(d) => d.to_vec(),
            other => unreachable!("invariant: there is a session: {other:?}"),
        }
    }
}
