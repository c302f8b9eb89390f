//! Somebody at the addresses of a pod, a node or the world: answers everything with its name, and asks others.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use chaos_tests::raw::sctp;
use netlab::Namespace;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, UdpSocket};
use tokio::sync::{mpsc, watch};

use crate::ledger::{Ledger, Token};
use crate::probe::{Probe, What};

/// What is asked at once.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) questions: Vec<Question>,
    /// Nobody listens to answers any more when its other end is gone.
    pub(crate) open: watch::Receiver<()>,
}

/// A probe and its number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question {
    pub(crate) token: Token,
    pub(crate) probe: Probe,
    /// Said to a Service. From a socket of its own: what comes from one port to a backend by its Service and past it could not
    /// be told apart.
    pub(crate) service: bool,
}

/// Answers until dropped.
#[derive(Debug)]
pub(crate) struct Party {
    name: String,
    batches: Option<mpsc::UnboundedSender<Batch>>,
    thread: Option<JoinHandle<()>>,
}

/// An idle connection's end: longer than any pass.
const IDLE: Duration = Duration::from_secs(20);
/// Protocols without a listener of the kernel: SCTP, and GRE for those without ports.
const RAW: [u8; 2] = [sctp::PROTOCOL, 47];
/// Ports of an INIT. They come again, so that no table fills up with associations: policy is asked anew about each.
const SCTP_PORTS: std::ops::Range<u16> = 40_000..40_064;
/// The same for what is said to a Service.
const SCTP_SERVICE_PORTS: std::ops::Range<u16> = 41_000..41_064;

/// What a party's tasks share.
#[derive(Debug)]
struct Us {
    name: String,
    ledger: Arc<Ledger>,
    /// Raw ones: to send to and hear from an address is all the same to them.
    raw: BTreeMap<(IpAddr, u8), Arc<UdpSocket>>,
}

impl Party {
    /// Answers at all of `ips` on the ports of `listen`, and to every echo request and INIT.
    ///
    /// # Errors
    /// A port is taken.
    pub(crate) fn new(
        namespace: &Namespace,
        name: &str,
        ips: &[IpAddr],
        listen: &[What],
        ledger: &Arc<Ledger>,
    ) -> Result<Self> {
        namespace.sysctl("net.ipv4.ping_group_range", "0 2147483647")?;
        let (batches, inbox) = mpsc::unbounded_channel();
        let (ready, bound) = sync_channel(1);
        let (ips, listen, ledger) = (ips.to_vec(), listen.to_vec(), Arc::clone(ledger));
        let owned = name.to_owned();
        let thread = namespace.thread(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let result = runtime.and_then(|runtime| {
                runtime.block_on(async {
                    let us = Us::new(owned, ledger, &ips, &listen).await?;
                    let _ = ready.send(Ok(()));
                    us.work(inbox).await;
                    Ok(())
                })
            });
            if let Err(error) = result {
                // The receiver waits below, or has got its word.
                let _ = ready.send(Err(error));
            }
        });
        bound.recv().context("a party's thread ended")?.with_context(|| format!("{name} cannot listen"))?;
        Ok(Self { name: name.to_owned(), batches: Some(batches), thread: Some(thread) })
    }

    /// Asks, without waiting.
    pub(crate) fn ask(&self, batch: Batch) {
        let sent = self.batches.as_ref().map(|batches| batches.send(batch));
        assert!(matches!(sent, Some(Ok(()))), "{} has ended", self.name);
    }
}

impl Drop for Party {
    fn drop(&mut self) {
        drop(self.batches.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!(party = self.name, "a party panicked");
        }
    }
}

impl Us {
    async fn new(
        name: String,
        ledger: Arc<Ledger>,
        ips: &[IpAddr],
        listen: &[What],
    ) -> io::Result<Arc<Self>> {
        let mut raw = BTreeMap::new();
        for (ip, protocol) in ips.iter().flat_map(|ip| RAW.map(|protocol| (*ip, protocol))) {
            raw.insert((ip, protocol), Arc::new(raw_socket(ip, protocol)?));
        }
        let us = Arc::new(Self { name, ledger, raw });
        for ((ip, protocol), socket) in &us.raw {
            tokio::spawn(Arc::clone(&us).answer_raw(Arc::clone(socket), ip.is_ipv4(), *protocol));
        }
        for ip in ips {
            for what in listen {
                let at = SocketAddr::new(*ip, what.port());
                match what {
                    What::Tcp(_) => drop(tokio::spawn(Arc::clone(&us).greet(TcpListener::bind(at).await?))),
                    What::Udp(_) => drop(tokio::spawn(Arc::clone(&us).echo(UdpSocket::bind(at).await?))),
                    What::Sctp(_) | What::Icmp | What::Other(_) => {}
                }
            }
        }
        Ok(us)
    }

    async fn work(self: Arc<Self>, mut inbox: mpsc::UnboundedReceiver<Batch>) {
        while let Some(batch) = inbox.recv().await {
            self.ask(batch).await;
            self.ledger.sent();
        }
    }

    // -------------------------------------------------------------- answering

    async fn greet(self: Arc<Self>, listener: TcpListener) {
        loop {
            // A failed accept concerns one connection.
            let Ok((mut stream, _)) = listener.accept().await else { continue };
            let name = self.name.clone();
            tokio::spawn(async move {
                if stream.write_all(name.as_bytes()).await.is_ok() && stream.shutdown().await.is_ok() {
                    // Whoever asks ends it.
                    drop(tokio::time::timeout(IDLE, stream.read(&mut [0])).await);
                }
            });
        }
    }

    async fn echo(self: Arc<Self>, socket: UdpSocket) {
        let mut buffer = [0; 64];
        loop {
            // Errors are those of earlier answers that came back as ICMP.
            let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
            let Some(token) = buffer[..length].first_chunk() else { continue };
            self.ledger.arrived(Token::from_be_bytes(*token));
            drop(socket.send_to(&[&token[..], self.name.as_bytes()].concat(), from).await);
        }
    }

    async fn answer_raw(self: Arc<Self>, socket: Arc<UdpSocket>, v4: bool, protocol: u8) {
        let mut buffer = [0; 2048];
        loop {
            let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
            // A raw socket of IPv4 hears the header, one of IPv6 does not (raw(7), ipv6(7)).
            let header = if v4 { usize::from(buffer[0] & 15) * 4 } else { 0 };
            let Some(body) = buffer[..length].get(header..) else { continue };
            let answer =
                if protocol == sctp::PROTOCOL { self.hear_sctp(body) } else { self.hear_other(body) };
            if let Some(answer) = answer {
                send_raw(&socket, &answer, from.ip()).await;
            }
        }
    }

    fn hear_sctp(&self, body: &[u8]) -> Option<Vec<u8>> {
        let packet = sctp::Packet::read(body)?;
        match &packet.kind {
            sctp::Kind::Init => {
                self.ledger.arrived(packet.tag);
                Some(packet.answer(1, self.name.as_bytes()).bytes())
            }
            sctp::Kind::InitAck { to, cookie } => {
                self.ledger.answered(*to, String::from_utf8_lossy(cookie).into_owned());
                None
            }
        }
    }

    fn hear_other(&self, body: &[u8]) -> Option<Vec<u8>> {
        let (token, asks, rest) = read_other(body)?;
        if asks {
            self.ledger.arrived(token);
            return Some(other(token, false, &self.name));
        }
        self.ledger.answered(token, String::from_utf8_lossy(rest).into_owned());
        None
    }

    // ----------------------------------------------------------------- asking

    async fn ask(self: &Arc<Self>, batch: Batch) {
        let mut groups: BTreeMap<(IpAddr, bool, Option<IpAddr>), Vec<Question>> = BTreeMap::new();
        for question in batch.questions {
            let Question { token, probe, service } = question;
            match probe.what {
                What::Tcp(_) => drop(tokio::spawn(Arc::clone(self).connect(question, batch.open.clone()))),
                What::Udp(_) => {
                    groups
                        .entry((probe.source, false, service.then_some(probe.to)))
                        .or_default()
                        .push(question);
                }
                What::Icmp => groups.entry((probe.source, true, None)).or_default().push(question),
                What::Sctp(port) => {
                    let ports = if service { SCTP_SERVICE_PORTS } else { SCTP_PORTS };
                    let turn = u16::try_from(token % u32::from(ports.end - ports.start)).unwrap_or_default();
                    let init = sctp::Packet::init(ports.start + turn, port, token);
                    self.send_from(probe, sctp::PROTOCOL, &init.bytes()).await;
                }
                What::Other(protocol) => self.send_from(probe, protocol, &other(token, true, "")).await,
            }
        }
        for ((source, echo, _), questions) in groups {
            let socket = if echo { ping_socket(source) } else { UdpSocket::bind((source, 0)).await };
            match socket {
                Ok(socket) => {
                    for Question { token, probe, .. } in questions {
                        let payload =
                            if echo { echo_request(source, token) } else { token.to_be_bytes().to_vec() };
                        // What the kernel refuses to send is not answered.
                        drop(socket.send_to(&payload, (probe.to, probe.what.port())).await);
                    }
                    tokio::spawn(Arc::clone(self).listen(socket, echo, batch.open.clone()));
                }
                Err(error) => tracing::warn!(party = self.name, %source, %error, "no socket to ask from"),
            }
        }
    }

    async fn connect(self: Arc<Self>, question: Question, mut open: watch::Receiver<()>) {
        let Question { token, probe, .. } = question;
        let attempt = async {
            let socket = if probe.to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            // No connection is left behind in anybody's tables.
            socket.set_zero_linger()?;
            socket.bind((probe.source, 0).into())?;
            let mut stream = socket.connect((probe.to, probe.what.port()).into()).await?;
            let mut name = String::new();
            stream.read_to_string(&mut name).await?;
            io::Result::Ok(name)
        };
        tokio::select! {
            result = attempt => match result {
                Ok(name) => self.ledger.answered(token, name),
                // Somebody said no: it came to somebody.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    self.ledger.answered(token, "a refusal".to_owned());
                }
                Err(_) => {}
            },
            _ = open.changed() => {}
        }
    }

    /// Answers to datagrams and echo requests from one socket.
    async fn listen(self: Arc<Self>, socket: UdpSocket, echo: bool, mut open: watch::Receiver<()>) {
        let mut buffer = [0; 128];
        loop {
            let received = tokio::select! {
                received = socket.recv_from(&mut buffer) => received,
                _ = open.changed() => return,
            };
            let Ok((length, from)) = received else { continue };
            let skipped = if echo { ECHO_HEADER } else { 0 };
            let Some((token, name)) =
                buffer[..length].get(skipped..).and_then(|body| body.split_first_chunk())
            else {
                continue;
            };
            // An echo reply tells no name; its address does.
            let name = if echo { from.ip().to_string() } else { String::from_utf8_lossy(name).into_owned() };
            self.ledger.answered(Token::from_be_bytes(*token), name);
        }
    }

    async fn send_from(&self, probe: Probe, protocol: u8, body: &[u8]) {
        match self.raw.get(&(probe.source, protocol)) {
            Some(socket) => send_raw(socket, body, probe.to).await,
            None => tracing::warn!(party = self.name, ?probe, "no raw socket for this protocol"),
        }
    }
}

fn raw_socket(ip: IpAddr, protocol: u8) -> io::Result<UdpSocket> {
    let socket = bound(ip, Type::RAW, Protocol::from(i32::from(protocol)))?;
    // All that a pass sends to one address.
    socket.set_recv_buffer_size(1 << 20)?;
    UdpSocket::from_std(socket.into())
}

fn ping_socket(source: IpAddr) -> io::Result<UdpSocket> {
    let protocol = if source.is_ipv4() { Protocol::ICMPV4 } else { Protocol::ICMPV6 };
    UdpSocket::from_std(bound(source, Type::DGRAM, protocol)?.into())
}

fn bound(ip: IpAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let domain = if ip.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::new(ip, 0).into())?;
    Ok(socket)
}

async fn send_raw(socket: &UdpSocket, body: &[u8], to: IpAddr) {
    // What the kernel refuses to send is not answered.
    drop(socket.send_to(body, (to, 0)).await);
}

/// Type, code, checksum, identifier (both the kernel's), sequence number.
const ECHO_HEADER: usize = 8;

fn echo_request(source: IpAddr, token: Token) -> Vec<u8> {
    let kind = if source.is_ipv4() { 8 } else { 128 };
    [&[kind, 0, 0, 0, 0, 0, 0, 1], &token.to_be_bytes()[..]].concat()
}

/// A packet of GRE (RFC 2784) with the experimental EtherType (IEEE 802), as all protocols without ports are asked.
fn other(token: Token, asks: bool, name: &str) -> Vec<u8> {
    [&[0, 0, 0x88, 0xb5, u8::from(asks)], &token.to_be_bytes()[..], name.as_bytes()].concat()
}

fn read_other(body: &[u8]) -> Option<(Token, bool, &[u8])> {
    let ([_, _, _, _, asks], rest) = body.split_first_chunk()?;
    let (token, rest) = rest.split_first_chunk()?;
    Some((Token::from_be_bytes(*token), *asks == 1, rest))
}
