//! Connection tracking's entries (`linux/netfilter/nfnetlink_conntrack.h`), over the same kind of socket as nf_tables.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::socket::{Channel, NftError};
use super::wire::{self, Attr, NETLINK_NETFILTER};

const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_GET: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const NLA_F_NESTED: u16 = 1 << 15;

/// One direction of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tuple {
    pub(crate) protocol: u8,
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
}

/// A flow: as its first packet was sent, and as its answers come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flow {
    pub(crate) original: Tuple,
    pub(crate) reply: Tuple,
}

impl Flow {
    /// Is an end of it another one for each side?
    pub(crate) fn is_translated(&self) -> bool {
        self.original.source != self.reply.destination || self.original.destination != self.reply.source
    }
}

/// Forgets the flows of which `which` says so, in the network namespace of the calling thread. What has no ports is not asked
/// about. Returns how many.
pub(crate) fn forget(which: impl Fn(&Flow) -> bool) -> Result<usize, NftError> {
    const ATTEMPTS: u32 = 8;
    let mut channel = Channel::open(NETLINK_NETFILTER)?;
    let subsystem = NFNL_SUBSYS_CTNETLINK << 8;
    let mut answers = None;
    for _ in 0..ATTEMPTS {
        answers = channel.dump_of(subsystem | IPCTNL_MSG_CT_GET, 0, &[], "flows")?;
        if answers.is_some() {
            break;
        }
    }
    let answers = answers.ok_or(NftError::Unsteady { attempts: ATTEMPTS })?;
    let mut count = 0;
    for answer in &answers {
        let Some(attrs) = wire::parse(&answer.attrs) else { continue };
        if !flow(&attrs).is_some_and(|flow| which(&flow)) {
            continue;
        }
        // By the number, too: what has taken its tuple meanwhile is another flow.
        let same = [CTA_TUPLE_ORIG | NLA_F_NESTED, CTA_ID, CTA_ZONE];
        let name = |kind: u16| Some(Attr::bytes(kind, wire::find(&attrs, kind & !NLA_F_NESTED)?));
        let named: Vec<Attr> = same.into_iter().filter_map(name).collect();
        count +=
            usize::from(channel.command(subsystem | IPCTNL_MSG_CT_DELETE, answer.family, &named, "flows")?);
    }
    Ok(count)
}

fn flow(attrs: &[(u16, &[u8])]) -> Option<Flow> {
    let of = |kind| tuple(wire::find(attrs, kind)?);
    Some(Flow { original: of(CTA_TUPLE_ORIG)?, reply: of(CTA_TUPLE_REPLY)? })
}

fn tuple(bytes: &[u8]) -> Option<Tuple> {
    let parts = wire::parse(bytes)?;
    let ips = wire::parse(wire::find(&parts, CTA_TUPLE_IP)?)?;
    let proto = wire::parse(wire::find(&parts, CTA_TUPLE_PROTO)?)?;
    let ip = |end: u16| -> Option<IpAddr> {
        if let Some(v4) = wire::find(&ips, CTA_IP_V4_SRC + end) {
            return Some(Ipv4Addr::from(<[u8; 4]>::try_from(v4).ok()?).into());
        }
        let v6 = wire::find(&ips, CTA_IP_V6_SRC + end)?;
        Some(Ipv6Addr::from(<[u8; 16]>::try_from(v6).ok()?).into())
    };
    let port = |kind| Some(u16::from_be_bytes(wire::find(&proto, kind)?.try_into().ok()?));
    Some(Tuple {
        protocol: *wire::find(&proto, CTA_PROTO_NUM)?.first()?,
        source: SocketAddr::new(ip(0)?, port(CTA_PROTO_SRC_PORT)?),
        destination: SocketAddr::new(ip(1)?, port(CTA_PROTO_DST_PORT)?),
    })
}
