//! The UDP sockets of a device: one for IPv4 and one for IPv6, on the same port, for each lane.
//!
//! Those of several lanes share the port (`SO_REUSEPORT`), and the kernel is told which datagram is whose
//! ([`steering`]). The first of a group is bound alone, so that a port in use is found to be in use; who binds it afterwards with
//! that option, too, must be root as we are, and gets nothing.

use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, ip_mtu, ipv6_mtu, set_ip_mtu_discover, set_ipv6_mtu_discover,
    set_socket_recv_buffer_size_force,
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::engine::lanes::{Lanes, steering};
use crate::engine::lock;
use crate::offload::Techniques;

/// Room for about 60 ms of a 1 Gbit/s stream while the receiving thread waits for a processor.
const RECEIVE_BUFFER: usize = 8 << 20;
/// Room for what waits in queues of the uplink; the kernel doubles it. A socket is writable with half of it free, and that
/// holds a burst with the kernel's own overhead: so who waits for it is never kept waiting by a send.
const SEND_BUFFER: usize = 1 << 20;
/// What both sockets surely take once each has half of that buffer free, as the kernel counts it, a burst more included.
const CREDIT: i64 = (SEND_BUFFER / 2) as i64;
/// What the kernel counts for a datagram at most beside its bytes.
const PER_DATAGRAM: usize = 1024;
/// How long an endpoint gets no trains after one was refused: routes and devices change.
const SINGLE: Duration = Duration::from_mins(10);
/// Attempts to find a port that is free in both families.
const PORT_ATTEMPTS: usize = 32;

/// Sockets bound to one port.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) v4: Option<UdpSocket>,
    pub(super) v6: Option<UdpSocket>,
    pub(super) port: u16,
    /// Whether trains leave in one call at all.
    trains: bool,
    /// Whether any of these have been found.
    some_single: AtomicBool,
    /// Who gets no trains, and since when: the way there is by a device that cannot sum what it would cut.
    singles: Mutex<HashMap<SocketAddr, Instant>>,
    /// What may be sent before somebody looks again whether there is room: a look costs as much as sending a small packet does.
    credit: AtomicI64,
    /// After a look; 0 where the buffers are smaller than was asked for.
    whole: i64,
}

/// Datagrams of one source that lie in a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Received {
    pub(super) from: SocketAddr,
    /// Bytes of all.
    pub(super) len: usize,
    /// Bytes of each but the last.
    pub(super) segment: usize,
}

/// Receives, without waiting, what the kernel has joined of one source: at most an IP packet full, which `buffer` holds.
/// `control` has [`control_room`].
pub(super) fn receive(
    socket: &UdpSocket,
    buffer: &mut [u8],
    control: &mut [u8],
) -> nix::Result<Option<Received>> {
    let mut pieces = [IoSliceMut::new(buffer)];
    let message =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut pieces, Some(control), MsgFlags::MSG_DONTWAIT)?;
    let len = message.bytes;
    let mut segment = len;
    for said in message.cmsgs()? {
        if let ControlMessageOwned::UdpGroSegments(bytes) = said {
            segment = usize::try_from(bytes).unwrap_or(len);
        }
    }
    let from = message.address.as_ref().and_then(|address| {
        let v4 = address.as_sockaddr_in().map(|a| SocketAddr::V4((*a).into()));
        v4.or_else(|| address.as_sockaddr_in6().map(|a| SocketAddr::V6((*a).into())))
    });
    Ok(from.map(|from| Received { from, len, segment }))
}

/// Room for what the kernel says beside the datagrams.
pub(super) fn control_room() -> Vec<u8> {
    nix::cmsg_space!(i32)
}

impl Sockets {
    /// Binds a port, or any if it is 0, in the families that the host has: sockets for each lane.
    pub(super) fn bind(
        port: u16,
        fwmark: u32,
        techniques: Techniques,
        lanes: Lanes,
    ) -> io::Result<Vec<Self>> {
        let attempts = if port == 0 { PORT_ATTEMPTS } else { 1 };
        let mut last = None;
        for _ in 0..attempts {
            match Self::bind_once(port, fwmark, techniques, lanes) {
                Err(e) if e.kind() == io::ErrorKind::AddrInUse => last = Some(e),
                other => return other,
            }
        }
        Err(last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
    }

    fn bind_once(port: u16, fwmark: u32, techniques: Techniques, lanes: Lanes) -> io::Result<Vec<Self>> {
        let group = |at: IpAddr, port| bind_group(SocketAddr::from((at, port)), fwmark, techniques, lanes);
        let v4 = optional(group(Ipv4Addr::UNSPECIFIED.into(), port))?;
        let port = port_of(&v4)?.unwrap_or(port);
        let v6 = optional(group(Ipv6Addr::UNSPECIFIED.into(), port))?;
        if v4.is_empty() && v6.is_empty() {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        let port = port_of(&v4)?.or(port_of(&v6)?).unwrap_or(port);
        let (mut v4, mut v6) = (v4.into_iter(), v6.into_iter());
        let trains = techniques.trains_out;
        let lanes = (0..lanes.count()).map(|_| {
            let (v4, v6) = (v4.next(), v6.next());
            let size = |socket: &UdpSocket| socket2::SockRef::from(socket).send_buffer_size();
            let large = v4.iter().chain(&v6).all(|s| size(s).is_ok_and(|size| size >= 2 * SEND_BUFFER));
            let whole = if large { CREDIT } else { 0 };
            let (some_single, singles) = (AtomicBool::new(false), Mutex::default());
            Self { v4, v6, port, trains, some_single, singles, credit: AtomicI64::new(whole), whole }
        });
        Ok(lanes.collect())
    }

    /// Sets the mark of packets sent from now on.
    pub(super) fn set_fwmark(&self, fwmark: u32) -> io::Result<()> {
        for socket in self.v4.iter().chain(&self.v6) {
            socket2::SockRef::from(socket).set_mark(fwmark)?;
        }
        Ok(())
    }

    /// Whether a burst surely has room, with nobody looking.
    pub(super) fn has_credit(&self) -> bool {
        self.credit.load(Ordering::Relaxed) > 0
    }

    /// Somebody has looked, and both sockets have half of their buffer free.
    pub(super) fn have_room(&self) {
        self.credit.store(self.whole, Ordering::Relaxed);
    }

    fn charge(&self, bytes: usize, datagrams: usize) {
        let cost = bytes.saturating_add(datagrams.saturating_mul(PER_DATAGRAM));
        self.credit.fetch_sub(i64::try_from(cost).unwrap_or(i64::MAX / 2), Ordering::Relaxed);
    }

    /// Sends a datagram from the socket of the destination's family.
    pub(super) fn send(&self, to: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        self.charge(datagram.len(), 1);
        let socket = if to.is_ipv4() { &self.v4 } else { &self.v6 };
        match socket {
            Some(socket) => socket.send_to(datagram, to).map(|_| ()),
            None => Err(io::ErrorKind::AddrNotAvailable.into()),
        }
    }
}

impl Sockets {
    /// Sends datagrams that lie in a row, each of `segment` bytes but the last: in one call where the kernel can
    /// (Linux 4.18). How many it took.
    pub(super) fn send_train(&self, to: SocketAddr, datagrams: &[u8], segment: usize) -> usize {
        let one_by_one = || datagrams.chunks(segment).filter(|d| self.send(to, d).is_ok()).count();
        let socket = if to.is_ipv4() { &self.v4 } else { &self.v6 };
        let (Some(socket), Ok(bytes)) = (socket, u16::try_from(segment)) else { return one_by_one() };
        if datagrams.len() <= segment || !self.trains || self.is_single(to) {
            return one_by_one();
        }
        // One buffer for all until they are cut.
        self.charge(datagrams.len(), datagrams.len().div_ceil(segment));
        let address = SockaddrStorage::from(to);
        let pieces = [IoSlice::new(datagrams)];
        let control = [ControlMessage::UdpGsoSegments(&bytes)];
        match sendmsg(socket.as_raw_fd(), &pieces, &control, MsgFlags::empty(), Some(&address)) {
            Ok(_) => datagrams.len().div_ceil(segment),
            Err(Errno::EIO) => {
                // The device cannot sum what the kernel would cut.
                tracing::debug!(endpoint = %to, "the way there takes no trains of datagrams (EIO): sending one by one for a while");
                self.note_single(to);
                one_by_one()
            }
            // A datagram is longer than the path takes: by itself it is fragmented. That is so until the next look at paths, and
            // for packets whose senders allow it or could not be told.
            Err(Errno::EINVAL | Errno::EMSGSIZE) => one_by_one(),
            Err(_) => 0,
        }
    }
}

impl Sockets {
    fn note_single(&self, to: SocketAddr) {
        let mut singles = lock(&self.singles);
        singles.retain(|_, since| since.elapsed() < SINGLE);
        singles.insert(to, Instant::now());
        if !self.some_single.swap(true, Ordering::Relaxed) {
            tracing::info!(endpoint = %to, "a way of the underlay takes no trains of datagrams (EIO): sending one by one");
        }
    }

    fn is_single(&self, to: SocketAddr) -> bool {
        self.some_single.load(Ordering::Relaxed)
            && lock(&self.singles).get(&to).is_some_and(|since| since.elapsed() < SINGLE)
    }
}

/// Asks the kernel how long datagrams to an endpoint may be, without sending any.
///
/// It knows by the route's device and by what routers said of our datagrams (RFC 1191, RFC 8201), which it checks to be about
/// one of our sockets' and forgets after 10 minutes (`mtu_expires`).
#[derive(Debug)]
pub(super) struct Paths {
    fwmark: u32,
}

impl Paths {
    /// For datagrams with this mark, which may have routes of their own.
    pub(super) const fn new(fwmark: u32) -> Self {
        Self { fwmark }
    }

    /// Bytes of an IP packet; `None` where there is no route.
    pub(super) fn mtu_to(&self, to: SocketAddr) -> Option<usize> {
        // One for each question: a socket keeps the address that its first connection gave it, and with it the routes from there.
        let socket = Socket::new(Domain::for_address(to), Type::DGRAM, None).ok()?;
        if self.fwmark != 0 {
            socket.set_mark(self.fwmark).ok()?;
        }
        socket.connect(&to.into()).ok()?;
        let socket = &UdpSocket::from(socket);
        let mtu = match to {
            SocketAddr::V4(_) => ip_mtu(socket),
            SocketAddr::V6(_) => ipv6_mtu(socket),
        };
        usize::try_from(mtu.ok()?).ok()
    }
}

/// The port of a group, if there is one.
fn port_of(group: &[UdpSocket]) -> io::Result<Option<u16>> {
    group.first().map(|socket| Ok(socket.local_addr()?.port())).transpose()
}

/// A family that the host does not have is no error.
fn optional(bound: io::Result<Vec<UdpSocket>>) -> io::Result<Vec<UdpSocket>> {
    match bound {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) => {
            Ok(Vec::new())
        }
        other => other,
    }
}

/// A socket for each lane at one address, in their order.
fn bind_group(
    addr: SocketAddr,
    fwmark: u32,
    techniques: Techniques,
    lanes: Lanes,
) -> io::Result<Vec<UdpSocket>> {
    let first = bind_one(addr, fwmark, techniques, false)?;
    let addr = first.local_addr()?;
    let mut group = vec![first];
    if lanes.is_one() {
        return Ok(group);
    }
    socket2::SockRef::from(&group[0]).set_reuse_port(true)?;
    for _ in 1..lanes.count() {
        group.push(bind_one(addr, fwmark, techniques, true)?);
    }
    let mut program = steering(lanes).map(|(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k });
    let len = libc::c_ushort::try_from(program.len()).expect("invariant: the program is short");
    let program = libc::sock_fprog { len, filter: program.as_mut_ptr() };
    // Without it the kernel goes by addresses, and lanes pass on to each other what is not theirs.
    if let Err(e) = setsockopt(&group[0], sockopt::AttachReusePortCbpf, &program) {
        tracing::warn!(error = %e, "the kernel cannot be told which thread a datagram is for: threads will pass them on");
    }
    Ok(group)
}

fn bind_one(addr: SocketAddr, fwmark: u32, techniques: Techniques, shared: bool) -> io::Result<UdpSocket> {
    let buffers = techniques.buffers;
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    // Not to be fragmented on the way, so that its narrowest link becomes known ([`Paths`]); by the kernel, which knows it, where
    // it must be. Said whatever the host's `ip_no_pmtu_disc` is.
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
        set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::WANT)?;
    } else {
        set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::WANT)?;
    }
    // What finds no room is counted and lost: whoever sends waits for room, but not for ever (`carry`).
    socket.set_nonblocking(true)?;
    // The forced sizes pass the host's limits and need CAP_NET_ADMIN; the plain ones are capped by them.
    if buffers && set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER).is_err() {
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    }
    if buffers && setsockopt(&socket, sockopt::SndBufForce, &SEND_BUFFER).is_err() {
        socket.set_send_buffer_size(SEND_BUFFER)?;
    }
    if fwmark != 0 {
        socket.set_mark(fwmark)?;
    }
    if techniques.trains_in
        // Linux 5.0; without it each datagram comes by itself.
        && let Err(e) = setsockopt(&socket, sockopt::UdpGroSegment, &true)
    {
        tracing::debug!(error = %e, "datagrams are received one by one");
    }
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&addr.into())?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_no_trains_gets_datagrams_one_by_one_and_others_get_trains() {
        let bound = || {
            let loopback = (Ipv4Addr::LOCALHOST, 0).into();
            let socket = bind_one(loopback, 0, Techniques::ALL, false).unwrap();
            let at = socket.local_addr().unwrap();
            (socket, at)
        };
        let sockets = Sockets::bind(0, 0, Techniques::ALL, Lanes::ONE).unwrap().remove(0);
        let [(one, to_one), (other, to_other)] = [bound(), bound()];
        let lengths = |socket: &UdpSocket, to| {
            assert_eq!(sockets.send_train(to, &[7; 950], 100), 10);
            let (mut buffer, mut control) = (vec![0; 2000], control_room());
            let (mut lengths, begun) = (Vec::new(), Instant::now());
            while lengths.iter().sum::<usize>() < 950 {
                socket.set_nonblocking(true).unwrap();
                match receive(socket, &mut buffer, &mut control) {
                    Ok(received) => lengths.push(received.unwrap().len),
                    Err(Errno::EAGAIN) if begun.elapsed() < Duration::from_secs(10) => {
                        std::thread::yield_now()
                    }
                    Err(e) => panic!("after {lengths:?}: {e}"),
                }
            }
            lengths
        };
        assert_eq!(lengths(&one, to_one), [950]);
        sockets.note_single(to_one);
        assert_eq!(lengths(&one, to_one).len(), 10);
        assert_eq!(lengths(&other, to_other), [950]);
    }
}
