//! Attributes of our interface, by rtnetlink.

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// As the kernel's WireGuard has it: long enough for bursts, since the TUN reader is a thread that may wait.
const TX_QUEUE_LEN: u32 = 1000;

/// The index of an interface.
pub(super) fn index_of(name: &str) -> io::Result<u32> {
    Ok(nix::net::if_::if_nametoindex(name)?)
}

/// Sets the MTU and the queue length, and keeps IPv6 from making up a link-local address.
pub(super) fn configure(index: u32, mtu: u32) -> io::Result<()> {
    request(set(index, vec![LinkAttribute::Mtu(mtu), LinkAttribute::TxQueueLen(TX_QUEUE_LEN)]))?;
    let no_address = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
    match request(set(index, vec![LinkAttribute::AfSpecUnspec(vec![no_address])])) {
        // A host without IPv6 makes no link-local addresses.
        Err(e) if e.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) => Ok(()),
        other => other.map(|_| ()),
    }
}

/// The present MTU in bytes, asked by the lock that all changes of links take: who carries packets does not wait for that
/// ([`mtu_by_name`](super::tun::mtu_by_name)).
pub(super) fn mtu_of(index: u32) -> io::Result<usize> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    let answer = request(RouteNetlinkMessage::GetLink(message))?;
    let mtu = answer.iter().find_map(|message| {
        let RouteNetlinkMessage::NewLink(link) = message else { return None };
        link.attributes.iter().find_map(|attribute| {
            let LinkAttribute::Mtu(mtu) = attribute else { return None };
            usize::try_from(*mtu).ok()
        })
    });
    mtu.ok_or_else(|| io::Error::other("the kernel's answer has no IFLA_MTU"))
}

fn set(index: u32, attributes: Vec<LinkAttribute>) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    RouteNetlinkMessage::SetLink(message)
}

/// Sends one request and collects the answer up to its acknowledgement.
fn request(message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_ACK;
    let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut answers = Vec::new();
    loop {
        let (received, _) = socket.recv_from_full()?;
        let mut rest = &received[..];
        while !rest.is_empty() {
            let parsed =
                NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
            let len = usize::try_from(parsed.header.length).unwrap_or(usize::MAX).next_multiple_of(4);
            if let NetlinkPayload::Error(e) = parsed.payload {
                return e.code.map_or(Ok(answers), |_| Err(e.to_io()));
            }
            if let NetlinkPayload::InnerMessage(m) = parsed.payload {
                answers.push(m);
            }
            rest = rest.get(len..).unwrap_or_default();
        }
    }
}
