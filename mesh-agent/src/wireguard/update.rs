//! Changes an entry of a kernel device and leaves its allowed IPs in force. defguard replaces them with every call, and the
//! kernel takes them all away before it puts the first one back: what is sent or received between the two is dropped, and
//! refused with an error to its sender.

use std::io;
use std::net::SocketAddr;

use ipnet::IpNet;
use mesh_core::key::PublicKey;
use netlink_packet_core::NetlinkDeserializable;
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload, NetlinkSerializable};
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::{GenlFamily, GenlMessage};
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute, WireguardCmd,
    WireguardMessage, WireguardPeer, WireguardPeerAttribute, WireguardPeerFlags,
};
use netlink_sys::{Socket, SocketAddr as NetlinkAddress, protocols::NETLINK_GENERIC};

/// What is to be different.
#[derive(Debug)]
pub(super) struct Update<'a> {
    /// Name of the device.
    pub(super) device: &'a str,
    /// Whose entry.
    pub(super) peer: &'a PublicKey,
    /// Where it is, if that is to be set.
    pub(super) endpoint: Option<SocketAddr>,
    /// Persistent keepalive in seconds; 0: none.
    pub(super) keepalive: u16,
    /// Allowed IPs that come in addition.
    pub(super) more: &'a [IpNet],
}

impl Update<'_> {
    /// Does it.
    ///
    /// # Errors
    /// The kernel refused it, or has no WireGuard. An entry that is not there is none: the next look finds it missing.
    pub(super) fn send(&self) -> io::Result<()> {
        let mut message = self.message();
        message.set_resolved_family_id(family::<WireguardMessage>()?);
        request(message).map(drop)
    }

    fn message(&self) -> GenlMessage<WireguardMessage> {
        let mut peer = vec![
            WireguardPeerAttribute::PublicKey(*self.peer.as_bytes()),
            WireguardPeerAttribute::Flags(WireguardPeerFlags::UpdateOnly),
            WireguardPeerAttribute::PersistentKeepalive(self.keepalive),
        ];
        peer.extend(self.endpoint.map(WireguardPeerAttribute::Endpoint));
        if !self.more.is_empty() {
            peer.push(WireguardPeerAttribute::AllowedIps(self.more.iter().map(allowed).collect()));
        }
        GenlMessage::from_payload(WireguardMessage {
            cmd: WireguardCmd::SetDevice,
            attributes: vec![
                WireguardAttribute::IfName(self.device.to_owned()),
                WireguardAttribute::Peers(vec![WireguardPeer(peer)]),
            ],
        })
    }
}

fn allowed(net: &IpNet) -> WireguardAllowedIp {
    let family = match net {
        IpNet::V4(_) => WireguardAddressFamily::Ipv4,
        IpNet::V6(_) => WireguardAddressFamily::Ipv6,
    };
    WireguardAllowedIp(vec![
        WireguardAllowedIpAttr::Family(family),
        WireguardAllowedIpAttr::IpAddr(net.network()),
        WireguardAllowedIpAttr::Cidr(net.prefix_len()),
    ])
}

/// The number of a family of generic netlink.
fn family<F: GenlFamily>() -> io::Result<u16> {
    let name = GenlCtrlAttrs::FamilyName(F::family_name().to_owned());
    let question = GenlMessage::from_payload(GenlCtrl { cmd: GenlCtrlCmd::GetFamily, nlas: vec![name] });
    let answer = request(question)?.ok_or_else(|| io::Error::other("no answer about the family"))?;
    let id = answer.payload.nlas.iter().find_map(|nla| {
        let GenlCtrlAttrs::FamilyId(id) = nla else { return None };
        Some(*id)
    });
    id.ok_or_else(|| io::Error::other("the family has no number"))
}

/// Longest answer that is read: a family with its operations.
const ANSWER: usize = 16 * 1024;

/// One request, acknowledged; its answer, if it has one.
fn request<F>(message: GenlMessage<F>) -> io::Result<Option<GenlMessage<F>>>
where
    F: GenlFamily + std::fmt::Debug,
    GenlMessage<F>: NetlinkSerializable + NetlinkDeserializable,
{
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    let socket = Socket::new(NETLINK_GENERIC)?;
    socket.connect(&NetlinkAddress::new(0, 0))?;
    socket.send(&bytes, 0)?;
    let mut found = None;
    loop {
        let mut buffer = Vec::with_capacity(ANSWER);
        let length = socket.recv(&mut buffer, 0)?;
        let mut rest = buffer.get(..length).unwrap_or_default();
        while !rest.is_empty() {
            let answer = NetlinkMessage::<GenlMessage<F>>::deserialize(rest).map_err(io::Error::other)?;
            let taken = usize::try_from(answer.header.length).unwrap_or(usize::MAX).next_multiple_of(4);
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => found = Some(message),
                NetlinkPayload::Error(error) if error.code.is_none() => return Ok(found),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                NetlinkPayload::Done(_) | NetlinkPayload::Noop | NetlinkPayload::Overrun(_) | _ => {}
            }
            rest = rest.get(taken..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_never_replaces_allowed_ips_nor_makes_an_entry() {
        let key = PublicKey::from_bytes([7; 32]);
        let nets = ["10.1.2.0/24".parse().unwrap(), "fd01::/64".parse().unwrap()];
        for more in [&nets[..], &[]] {
            let update = Update { device: "hawser0", peer: &key, endpoint: None, keepalive: 0, more };
            let attributes = update.message().payload.attributes;
            let [WireguardAttribute::IfName(name), WireguardAttribute::Peers(peers)] = &attributes[..] else {
                panic!("{attributes:?}")
            };
            assert_eq!((name.as_str(), peers.len()), ("hawser0", 1));
            let flags = peers[0].0.iter().filter_map(|nla| {
                let WireguardPeerAttribute::Flags(flags) = nla else { return None };
                Some(*flags)
            });
            assert_eq!(flags.collect::<Vec<_>>(), [WireguardPeerFlags::UpdateOnly]);
            let listed = |nla: &WireguardPeerAttribute| matches!(nla, WireguardPeerAttribute::AllowedIps(_));
            assert_eq!(peers[0].0.iter().any(listed), !more.is_empty());
        }
    }

    #[test]
    fn the_kernel_tells_the_number_of_a_family() {
        assert_eq!(family::<GenlCtrl>().unwrap(), 16, "GENL_ID_CTRL");
    }
}
