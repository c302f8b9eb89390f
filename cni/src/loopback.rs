//! The loopback plugin, for nodes where nobody else has installed one: containerd runs it before ours.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use serde_json::{Value, json};

use crate::error::Error;
use crate::netns::{enter, open_netns};
use crate::plan::Loopback;
use crate::result::{address, interface};

/// Index of `lo` in every network namespace (`LOOPBACK_IFINDEX` of the kernel).
const LO: u32 = 1;

/// Does one verb of the loopback plugin.
///
/// # Errors
/// Codes 5, 8 and 100.
pub(crate) fn run(loopback: Loopback) -> Result<Option<Value>, Error> {
    match loopback {
        Loopback::Nothing => Ok(None),
        Loopback::Check { netns, own_netns_permitted } => {
            let up = inside(&netns, own_netns_permitted, "reading the state of lo", is_up)?;
            if up { Ok(None) } else { Err(Error::LoopbackChanged { path: netns, problem: "it is down" }) }
        }
        Loopback::Add { netns, own_netns_permitted, version, previous } => {
            inside(&netns, own_netns_permitted, "bringing lo up", set_up)?;
            if let Some(previous) = previous {
                return Ok(Some(previous.into_value(version)));
            }
            let addresses = inside(&netns, own_netns_permitted, "reading the addresses of lo", addresses)?;
            let ips: Vec<_> = addresses.into_iter().map(|net| address(version, net, None, 0)).collect();
            Ok(Some(json!({
                "cniVersion": version.as_str(),
                "interfaces": [interface(version, "lo", "00:00:00:00:00:00", None, Some(&netns))],
                "ips": ips,
                "dns": {},
            })))
        }
    }
}

fn inside<T: Send>(
    path: &str,
    own_permitted: bool,
    step: &'static str,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> Result<T, Error> {
    let netns = open_netns(path, own_permitted)?;
    let failed = |source| Error::InNetns { path: path.to_owned(), step, source };
    enter(netns.as_fd(), work).map_err(failed)?.map_err(failed)
}

fn set_up() -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = LO;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    exchange(RouteNetlinkMessage::SetLink(link), NLM_F_REQUEST | NLM_F_ACK).map(|_| ())
}

fn is_up() -> io::Result<bool> {
    let mut link = LinkMessage::default();
    link.header.index = LO;
    let answers = exchange(RouteNetlinkMessage::GetLink(link), NLM_F_REQUEST | NLM_F_ACK)?;
    let is_lo_up = |link: &LinkMessage| link.header.index == LO && link.header.flags.contains(LinkFlags::Up);
    let up = |answer: &RouteNetlinkMessage| {
        if let RouteNetlinkMessage::NewLink(link) = answer { is_lo_up(link) } else { false }
    };
    Ok(answers.iter().any(up))
}

/// The loopback addresses of `lo`, 127.0.0.1/8 first.
fn addresses() -> io::Result<Vec<IpNet>> {
    let answers =
        exchange(RouteNetlinkMessage::GetAddress(AddressMessage::default()), NLM_F_REQUEST | NLM_F_DUMP)?;
    let mut nets = Vec::new();
    for answer in answers {
        let RouteNetlinkMessage::NewAddress(message) = answer else { continue };
        if message.header.index != LO {
            continue;
        }
        let of = |attribute: &AddressAttribute| {
            if let AddressAttribute::Address(ip) = attribute { Some(*ip) } else { None }
        };
        let ip: Option<IpAddr> = message.attributes.iter().find_map(of);
        let net = ip.filter(IpAddr::is_loopback).map(|ip| IpNet::new(ip, message.header.prefix_len));
        nets.extend(net.transpose().map_err(io::Error::other)?);
    }
    nets.sort();
    Ok(nets)
}

/// One request to the kernel and every message of its answer.
fn exchange(message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut packet = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(message));
    packet.header.flags = flags;
    packet.header.sequence_number = 1;
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut answers = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while !rest.is_empty() {
            let answer =
                NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
            let length = usize::try_from(answer.header.length).map_err(io::Error::other)?;
            // Messages are aligned to four bytes (NLMSG_ALIGN).
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            if let NetlinkPayload::Error(error) = &answer.payload {
                return if error.code.is_none() { Ok(answers) } else { Err(error.to_io()) };
            }
            if matches!(answer.payload, NetlinkPayload::Done(_)) {
                return Ok(answers);
            }
            if let NetlinkPayload::InnerMessage(inner) = answer.payload {
                answers.push(inner);
            }
        }
    }
}
