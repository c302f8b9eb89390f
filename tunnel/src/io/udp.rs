//! The UDP sockets of a device: one for IPv4 and one for IPv6, on the same port.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

use super::Stop;

/// Room for about 60 ms of a 1 Gbit/s stream while the receiving thread waits for a processor.
const BUFFER: usize = 8 << 20;
/// Attempts to find a port that is free in both families.
const PORT_ATTEMPTS: usize = 32;

/// Sockets bound to one port, and the flag that ends the threads which read them.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) v4: Option<UdpSocket>,
    pub(super) v6: Option<UdpSocket>,
    pub(super) port: u16,
    pub(super) stop: Stop,
}

impl Sockets {
    /// Binds a port, or any if it is 0, in the families that the host has.
    pub(super) fn bind(port: u16, fwmark: u32) -> io::Result<Self> {
        let attempts = if port == 0 { PORT_ATTEMPTS } else { 1 };
        let mut last = None;
        for _ in 0..attempts {
            match Self::bind_once(port, fwmark) {
                Err(e) if e.kind() == io::ErrorKind::AddrInUse => last = Some(e),
                other => return other,
            }
        }
        Err(last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
    }

    fn bind_once(port: u16, fwmark: u32) -> io::Result<Self> {
        let v4 = optional(bind_one(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), fwmark))?;
        let port = match &v4 {
            Some(socket) => socket.local_addr()?.port(),
            None => port,
        };
        let v6 = optional(bind_one(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)), fwmark))?;
        let port = match (&v4, &v6) {
            (None, Some(socket)) => socket.local_addr()?.port(),
            (None, None) => return Err(io::ErrorKind::AddrNotAvailable.into()),
            (Some(_), _) => port,
        };
        Ok(Self { v4, v6, port, stop: Stop::new()? })
    }

    /// Sets the mark of packets sent from now on.
    pub(super) fn set_fwmark(&self, fwmark: u32) -> io::Result<()> {
        for socket in self.v4.iter().chain(&self.v6) {
            socket2::SockRef::from(socket).set_mark(fwmark)?;
        }
        Ok(())
    }

    /// Sends a datagram from the socket of the destination's family.
    pub(super) fn send(&self, to: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        let socket = if to.is_ipv4() { &self.v4 } else { &self.v6 };
        match socket {
            Some(socket) => socket.send_to(datagram, to).map(|_| ()),
            None => Err(io::ErrorKind::AddrNotAvailable.into()),
        }
    }
}

/// A family that the host does not have is no error.
fn optional(bound: io::Result<UdpSocket>) -> io::Result<Option<UdpSocket>> {
    match bound {
        Ok(socket) => Ok(Some(socket)),
        Err(e) if matches!(e.raw_os_error(), Some(nix::libc::EAFNOSUPPORT | nix::libc::EADDRNOTAVAIL)) => {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

fn bind_one(addr: SocketAddr, fwmark: u32) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // The forced sizes pass the host's limits and need CAP_NET_ADMIN; the plain ones are capped by them.
    if rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER).is_err() {
        socket.set_recv_buffer_size(BUFFER)?;
    }
    socket.set_send_buffer_size(BUFFER)?;
    if fwmark != 0 {
        socket.set_mark(fwmark)?;
    }
    socket.bind(&addr.into())?;
    Ok(socket.into())
}
