//! Raw sockets of those who ask peers by echoes.

use std::io;
use std::net::{IpAddr, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

/// `IPPROTO_RAW`: a socket that sends whole packets, headers and all.
const WHOLE_PACKETS: i32 = 255;

/// A socket for ICMP of a family. The standard library's type of UDP sends and receives whole datagrams by it, which is all that is needed.
pub(crate) fn socket(v4: bool) -> io::Result<Socket> {
    raw(v4, if v4 { Protocol::ICMPV4 } else { Protocol::ICMPV6 })
}

/// One that only sends, whole packets with headers of the sender's making.
pub(crate) fn whole_packets(v4: bool) -> io::Result<Socket> {
    raw(v4, Protocol::from(WHOLE_PACKETS))
}

fn raw(v4: bool, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(if v4 { Domain::IPV4 } else { Domain::IPV6 }, Type::RAW, Some(protocol))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// The next packet, if there is one: who sent it, and its length.
pub(crate) fn receive(ear: &UdpSocket, buffer: &mut [u8]) -> io::Result<Option<(IpAddr, usize)>> {
    match ear.recv_from(buffer) {
        Ok((length, from)) => Ok(Some((from.ip(), length))),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
