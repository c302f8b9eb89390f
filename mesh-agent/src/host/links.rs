//! Links and addresses of the host, and whether the kernel has WireGuard.

use std::net::IpAddr;
use std::path::Path;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use rustix::io::Errno;

use crate::nft::{Channel, NftError, parse_error};

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// MTU in bytes.
    pub mtu: u32,
}

/// An address on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkAddress {
    /// Index of the interface.
    pub link: u32,
    /// The address.
    pub address: IpAddr,
}

/// The link that carries one of the node's own InternalIPs: WireGuard's packets leave by it, so its MTU bounds the
/// tunnel's. With InternalIPs on several links the one with the smallest MTU; of equals, that of the first InternalIP.
#[must_use]
pub fn uplink(links: &[Link], addresses: &[LinkAddress], own: &[IpAddr]) -> Option<Link> {
    let carriers = own.iter().flat_map(|ip| addresses.iter().filter(move |found| found.address == *ip));
    let carriers = carriers.filter_map(|found| links.iter().find(|link| link.index == found.link));
    carriers.min_by_key(|link| link.mtu).cloned()
}

const NETLINK_ROUTE: isize = 0;
/// A dump that changes are interrupting is repeated this often.
const ATTEMPTS: u32 = 8;

/// All links and addresses in the network namespace of the calling thread.
pub(crate) fn observe() -> Result<(Vec<Link>, Vec<LinkAddress>), NftError> {
    let mut channel = Channel::open(NETLINK_ROUTE)?;
    let links = dump(&mut channel, &RouteNetlinkMessage::GetLink(LinkMessage::default()), "links")?;
    let links = links.iter().filter_map(|message| {
        if let RouteNetlinkMessage::NewLink(link) = message { parse_link(link) } else { None }
    });
    let links = links.collect();
    let addresses =
        dump(&mut channel, &RouteNetlinkMessage::GetAddress(AddressMessage::default()), "addresses")?;
    let addresses = addresses.iter().filter_map(|message| {
        if let RouteNetlinkMessage::NewAddress(address) = message { parse_address(address) } else { None }
    });
    Ok((links, addresses.collect()))
}

fn parse_link(link: &LinkMessage) -> Option<Link> {
    let name = link
        .attributes
        .iter()
        .find_map(|attr| if let LinkAttribute::IfName(name) = attr { Some(name.clone()) } else { None });
    let mtu = link
        .attributes
        .iter()
        .find_map(|attr| if let LinkAttribute::Mtu(mtu) = attr { Some(*mtu) } else { None });
    Some(Link { index: link.header.index, name: name?, mtu: mtu? })
}

/// `IFA_LOCAL` is the own end on point-to-point links; IPv6 has `IFA_ADDRESS` alone.
fn parse_address(message: &AddressMessage) -> Option<LinkAddress> {
    let local = message
        .attributes
        .iter()
        .find_map(|attr| if let AddressAttribute::Local(address) = attr { Some(*address) } else { None });
    let plain = message
        .attributes
        .iter()
        .find_map(|attr| if let AddressAttribute::Address(address) = attr { Some(*address) } else { None });
    Some(LinkAddress { link: message.header.index, address: local.or(plain)? })
}

fn dump(
    channel: &mut Channel,
    request: &RouteNetlinkMessage,
    what: &'static str,
) -> Result<Vec<RouteNetlinkMessage>, NftError> {
    for _ in 0..ATTEMPTS {
        let seq = channel.next_seq();
        channel.send(&serialized(request.clone(), NLM_F_REQUEST | NLM_F_DUMP, seq))?;
        let Some(all) = channel.collect(seq, what)? else { continue };
        let parsed = all.into_iter().map(|received| {
            let mut header = NetlinkHeader::default();
            header.message_type = received.kind;
            let message = <RouteNetlinkMessage as netlink_packet_core::NetlinkDeserializable>::deserialize(
                &header,
                &received.body,
            );
            message.map_err(|_| NftError::Malformed { what })
        });
        return parsed.collect();
    }
    Err(NftError::Unsteady { attempts: ATTEMPTS })
}

fn serialized(message: RouteNetlinkMessage, flags: u16, seq: u32) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = seq;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// Whether the kernel has WireGuard: its module is loaded or built in, or loads when a link of that kind is made (made
/// and removed here, down and without an address).
///
/// # Errors
/// It could not be found out, such as without CAP_NET_ADMIN.
pub(crate) fn kernel_wireguard(sys_module: &Path) -> Result<bool, NftError> {
    if sys_module.join("wireguard").is_dir() {
        return Ok(true);
    }
    let mut channel = Channel::open(NETLINK_ROUTE)?;
    let mut probe = LinkMessage::default();
    // Unique among processes of the namespace, and no name that rules of ours or others' match.
    probe.attributes.push(LinkAttribute::IfName(format!("wgprobe{}", std::process::id())));
    let name = probe.attributes.clone();
    probe.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Wireguard)]));
    let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    match ask(&mut channel, RouteNetlinkMessage::NewLink(probe), flags)? {
        Some(error) if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => return Ok(false),
        Some(source) => {
            return Err(NftError::List { what: "whether the kernel makes WireGuard links", source });
        }
        None => {}
    }
    let mut gone = LinkMessage::default();
    gone.attributes = name;
    match ask(&mut channel, RouteNetlinkMessage::DelLink(gone), NLM_F_REQUEST | NLM_F_ACK)? {
        Some(source) => {
            Err(NftError::List { what: "the removal of the WireGuard link made as a probe", source })
        }
        None => Ok(true),
    }
}

/// Sends a request; the kernel's error, if it refused.
fn ask(
    channel: &mut Channel,
    message: RouteNetlinkMessage,
    flags: u16,
) -> Result<Option<std::io::Error>, NftError> {
    let seq = channel.next_seq();
    channel.send(&serialized(message, flags, seq))?;
    loop {
        let mut answers = channel.receive()?.into_iter();
        if let Some(received) = answers.find(|received| received.seq == seq) {
            return parse_error(&received).map(|(error, _)| error);
        }
    }
}
