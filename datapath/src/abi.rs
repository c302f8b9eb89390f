//! What `bpf/abi.h` says, in Rust: layouts and numbers of all maps. `tests/layout.rs` compares both by the C compiler.
//!
//! Addresses are 16 bytes, IPv4 mapped. Fields of C's type `__be16` are [`Be16`]; everything else is in the host's order.

#![allow(unsafe_code, reason = "promises that these types are plain data for the kernel")]

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

pub mod counters;

pub use counters::{CountIndex, DropReason};

/// `HW_ABI`: names the directory of the pins.
pub const HW_ABI: u32 = 3;

/// `HW_FN_DENY`, what a table says of a class: nothing may pass.
pub const HW_FN_DENY: u32 = 0;
/// `HW_FN_ALLOW`: everything may pass.
pub const HW_FN_ALLOW: u32 = 1;
/// `HW_FN_FIRST`: from here on keys of `ports`.
pub const HW_FN_FIRST: u32 = 2;

/// `HW_CLASS_UNKNOWN`: inside a guarded prefix, and nobody's that we know.
pub const HW_CLASS_UNKNOWN: u32 = 1;
/// `HW_CLASS_WORLD`: outside, and in no block.
pub const HW_CLASS_WORLD: u32 = 2;
/// `HW_CLASS_FIRST`: the first that stands for a signature.
pub const HW_CLASS_FIRST: u32 = 16;

/// `HW_ADDRESS_GONE`: its pod is gone; judges flows that were there, opens none.
pub const HW_ADDRESS_GONE: u32 = 1;
/// `HW_ADDRESS_NODE`: of a node.
pub const HW_ADDRESS_NODE: u32 = 2;

/// `HW_INGRESS`.
pub const HW_INGRESS: u32 = 0;
/// `HW_EGRESS`.
pub const HW_EGRESS: u32 = 1;

/// `HW_ALLOW`: bit of what `ports` says; the rest is the rule's number.
pub const HW_ALLOW: u32 = 1;

/// `HW_SIDE_AUDIT`: what policy denies is reported and passes.
pub const HW_SIDE_AUDIT: u32 = 1;
/// `HW_SIDE_CLOSED`: no policy known yet.
pub const HW_SIDE_CLOSED: u32 = 2;

/// `HW_ENDPOINT_SLOW`: everything by the stack.
pub const HW_ENDPOINT_SLOW: u32 = 1;

/// `HW_DEVICE_SLOT`.
pub const HW_DEVICE_SLOT: u32 = 1;
/// `HW_DEVICE_UPLINK`.
pub const HW_DEVICE_UPLINK: u32 = 2;
/// `HW_DEVICE_POD`.
pub const HW_DEVICE_POD: u32 = 3;
/// `HW_DEVICE_HOLD`.
pub const HW_DEVICE_HOLD: u32 = 4;

/// `HW_STATE_FLOWS`: write flow events.
pub const HW_STATE_FLOWS: u32 = 1;

/// `HW_SCOPE_FLOW`: the tuple after translation, the smaller end as source.
pub const HW_SCOPE_FLOW: u8 = 0;
/// `HW_SCOPE_SERVICE`: the tuple as the client says it.
pub const HW_SCOPE_SERVICE: u8 = 1;

/// `HW_FLOW_STACK`: goes by the stack, both ways.
pub const HW_FLOW_STACK: u8 = 1;
/// `HW_FLOW_SERVICE`: translated.
pub const HW_FLOW_SERVICE: u8 = 2;
/// `HW_FLOW_HAIRPIN`: from a pod to itself by a service.
pub const HW_FLOW_HAIRPIN: u8 = 4;
/// `HW_FLOW_SWAPPED`: the first packet went from the key's destination to its source.
pub const HW_FLOW_SWAPPED: u8 = 8;
/// `HW_FLOW_HOST`: opened by the pod's own node.
pub const HW_FLOW_HOST: u8 = 16;
/// `HW_FLOW_FIN_WITH`: FIN seen in the direction of the first packet.
pub const HW_FLOW_FIN_WITH: u8 = 32;
/// `HW_FLOW_FIN_AGAINST`: in the other.
pub const HW_FLOW_FIN_AGAINST: u8 = 64;
/// `HW_FLOW_MOVED`: its source port is not the client's own.
pub const HW_FLOW_MOVED: u8 = 128;

/// `HW_NEW`: one direction seen.
pub const HW_NEW: u8 = 0;
/// `HW_ESTABLISHED`: both.
pub const HW_ESTABLISHED: u8 = 1;
/// `HW_CLOSING`: FINs or RST seen.
pub const HW_CLOSING: u8 = 2;

/// `HW_FRONT_DROP`: nobody there, and not a word about it.
pub const HW_FRONT_DROP: u32 = 1;
/// `HW_FRONT_ADDRESS`: stands for what a service's address does not serve.
pub const HW_FRONT_ADDRESS: u32 = 2;
/// `HW_BACKEND_LEAVING`: keeps its flows, gets no new ones.
pub const HW_BACKEND_LEAVING: u16 = 1;

/// `HW_MARK_REJECT`: the stack shall refuse the packet.
pub const HW_MARK_REJECT: u32 = 0x20;

/// `HW_EVENT_NEW`: a new flow.
pub const HW_EVENT_NEW: u8 = 1;
/// `HW_EVENT_DROP`.
pub const HW_EVENT_DROP: u8 = 2;
/// `HW_EVENT_CHANGED`: judged again, another verdict that passes.
pub const HW_EVENT_CHANGED: u8 = 3;
/// `HW_EVENT_REVOKED`: judged again, and cut.
pub const HW_EVENT_REVOKED: u8 = 4;
/// `HW_EVENT_UNKNOWN`: an address that nobody has told us of.
pub const HW_EVENT_UNKNOWN: u8 = 5;
/// `HW_EVENT_AUDIT`: denied by policy, passes.
pub const HW_EVENT_AUDIT: u8 = 6;

/// A number of 16 bits in network order: a port.
#[repr(transparent)]
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Be16([u8; 2]);

impl Be16 {
    /// The number in the host's order.
    pub const fn get(self) -> u16 {
        u16::from_be_bytes(self.0)
    }
}

impl From<u16> for Be16 {
    fn from(number: u16) -> Self {
        Self(number.to_be_bytes())
    }
}

impl fmt::Debug for Be16 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

/// `struct hw_addr`: 16 bytes in network order, IPv4 as `::ffff:a.b.c.d`.
#[repr(C, align(4))]
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Addr {
    /// The bytes as in a packet.
    pub w: [u8; 16],
}

impl Addr {
    /// All zeros: no address.
    pub const NONE: Self = Self { w: [0; 16] };

    /// Is it all zeros?
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }

    /// The address; a mapped one is IPv4.
    pub fn ip(self) -> IpAddr {
        let long = Ipv6Addr::from(self.w);
        long.to_ipv4_mapped().map_or(IpAddr::V6(long), IpAddr::V4)
    }

    /// The address; `None` for zeros.
    pub fn some_ip(self) -> Option<IpAddr> {
        (!self.is_none()).then(|| self.ip())
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => ip.into(),
            IpAddr::V6(ip) => ip.into(),
        }
    }
}

impl From<Ipv4Addr> for Addr {
    fn from(ip: Ipv4Addr) -> Self {
        Self { w: ip.to_ipv6_mapped().octets() }
    }
}

impl From<Ipv6Addr> for Addr {
    fn from(ip: Ipv6Addr) -> Self {
        Self { w: ip.octets() }
    }
}

impl fmt::Debug for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.ip(), f)
    }
}

/// `struct hw_prefix`: key of the longest-prefix maps over addresses.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    /// Length in bits: 96 and that of the prefix for IPv4.
    pub bits: u32,
    /// The network's address.
    pub addr: Addr,
}

impl Prefix {
    /// The prefix; `None` if `bits` is none of IPv4's or of IPv6's lengths, which no map of ours holds.
    pub fn net(self) -> Option<IpNet> {
        match self.addr.ip() {
            IpAddr::V4(ip) => {
                let bits = u8::try_from(self.bits.checked_sub(96)?).ok()?;
                IpNet::new(IpAddr::V4(ip), bits).ok()
            }
            IpAddr::V6(ip) => IpNet::new(IpAddr::V6(ip), u8::try_from(self.bits).ok()?).ok(),
        }
    }
}

impl From<IpNet> for Prefix {
    fn from(net: IpNet) -> Self {
        let offset = match net {
            IpNet::V4(_) => 96,
            IpNet::V6(_) => 0,
        };
        Self { bits: offset + u32::from(net.prefix_len()), addr: net.network().into() }
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.net() {
            Some(net) => fmt::Display::fmt(&net, f),
            None => write!(f, "{:?}/{}", self.addr, self.bits),
        }
    }
}

/// `struct hw_address`: value of `addresses`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// Class by bank.
    pub class: [u32; 2],
    /// `HW_ADDRESS_*`.
    pub flags: u32,
    /// Zero.
    pub pad: u32,
}

/// `struct hw_block`: value of `blocks`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block {
    /// Class by bank.
    pub class: [u32; 2],
}

/// `struct hw_row_key`: key of `rows`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowKey {
    /// Number of the table.
    pub table: u32,
    /// Class of the other end.
    pub class: u32,
    /// `HW_INGRESS` or `HW_EGRESS`.
    pub direction: u32,
}

/// `struct hw_port_key`: key of `ports`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortKey {
    /// 32: any protocol; 48: that protocol; 48 and n: a prefix of its ports.
    pub bits: u32,
    /// Number of the port function.
    pub r#fn: u32,
    /// IANA number.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
    /// First port of the prefix.
    pub port: Be16,
}

/// `struct hw_side`: an endpoint's policy in one bank.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Side {
    /// Number of the table.
    pub table: u32,
    /// Port function by direction, for classes without a row.
    pub fallback: [u32; 2],
    /// `HW_SIDE_*`.
    pub flags: u32,
}

impl Side {
    /// No policy known yet: nothing but its own node's traffic.
    pub const CLOSED: Self = Self { table: 0, fallback: [HW_FN_DENY; 2], flags: HW_SIDE_CLOSED };
}

/// `struct hw_endpoint`: value of `endpoints`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Its IPv4 address; zeros: none.
    pub ip4: Addr,
    /// Its IPv6 address; zeros: none.
    pub ip6: Addr,
    /// Of the pod's interface.
    pub pod_mac: [u8; 6],
    /// Of the host's end.
    pub host_mac: [u8; 6],
    /// `HW_ENDPOINT_*`.
    pub flags: u32,
    /// Policy by bank.
    pub side: [Side; 2],
}

/// `struct hw_local`: value of `locals`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Local {
    /// Of the host's end of the pod's link; 0: the node's own.
    pub ifindex: u32,
    /// Zero.
    pub flags: u32,
}

/// `struct hw_state`: the one entry of `state`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct State {
    /// From 1; its last bit is the bank in use.
    pub epoch: u32,
    /// `HW_STATE_*`.
    pub flags: u32,
    /// Device that holds first packets of unknown peers; 0: none.
    pub hold: u32,
    /// Zero.
    pub pad: u32,
}

/// `struct hw_tuple`: key of `flows`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// Source.
    pub src: Addr,
    /// Destination.
    pub dst: Addr,
    /// Source port, or the identifier of an echo.
    pub sport: Be16,
    /// Destination port, or the identifier of an echo.
    pub dport: Be16,
    /// IANA number.
    pub protocol: u8,
    /// `HW_SCOPE_*`.
    pub scope: u8,
    /// Zero.
    pub pad: u16,
}

/// `struct hw_flow`: value of `flows`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// Nanoseconds of the monotonic clock at which it is forgotten.
    pub until: u64,
    /// By direction: the epoch at which it was judged, shifted by one, and 1 if denied; 0: never.
    pub judged: [u32; 2],
    /// `HW_NEW`, `HW_ESTABLISHED`, `HW_CLOSING`.
    pub state: u8,
    /// `HW_FLOW_*`.
    pub flags: u8,
    /// Port that belongs to `nat`.
    pub nat_port: Be16,
    /// Number of the backend; 0: said to a pod itself, from another source port.
    pub service: u32,
    /// The service's address; with `HW_SCOPE_SERVICE` the backend's.
    pub nat: Addr,
    /// Of a hairpin: the pod.
    pub client: Addr,
    /// Of a flow to a service: the client's source port; with `HW_SCOPE_SERVICE` the flow's.
    pub client_port: Be16,
    /// By direction: 1 if its peer was nobody that is known when it was judged.
    pub stranger: [u8; 2],
    /// Directions in which it went on after a reset: 1 that of its first packet, 2 the other.
    pub revived: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// `struct hw_fragment_key`: key of `fragments`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FragmentKey {
    /// Source.
    pub src: Addr,
    /// Destination.
    pub dst: Addr,
    /// Identification.
    pub id: u32,
    /// IANA number; of IPv6: 0.
    pub protocol: u32,
}

/// `struct hw_fragment`: value of `fragments`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fragment {
    /// Source port.
    pub sport: Be16,
    /// Destination port.
    pub dport: Be16,
    /// IANA number.
    pub protocol: u32,
    /// Nanoseconds of the monotonic clock.
    pub until: u64,
}

/// `struct hw_frontend_key`: key of `frontends`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendKey {
    /// The service's address; unspecified (of IPv4: mapped): any node's.
    pub addr: Addr,
    /// Its port; 0 with `HW_FRONT_ADDRESS`.
    pub port: Be16,
    /// IANA number; 0 with `HW_FRONT_ADDRESS`.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
}

/// `struct hw_frontend`: value of `frontends`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// First place of its table.
    pub base: u32,
    /// Places; 0: nobody there.
    pub count: u32,
    /// Number for affinities and flows.
    pub service: u32,
    /// Seconds; 0: none.
    pub affinity: u32,
    /// `HW_FRONT_*`.
    pub flags: u32,
    /// Zero.
    pub pad: u32,
}

/// `struct hw_backend`: value of `backends`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// Its address.
    pub addr: Addr,
    /// Its port.
    pub port: Be16,
    /// `HW_BACKEND_*`.
    pub flags: u16,
    /// Zero.
    pub pad: u32,
}

/// `struct hw_affinity_key`: key of `affinities`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AffinityKey {
    /// Who asks.
    pub client: Addr,
    /// Number of the service's port.
    pub service: u32,
    /// Zero.
    pub pad: u32,
}

/// `struct hw_affinity`: value of `affinities`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Affinity {
    /// Nanoseconds of the monotonic clock.
    pub until: u64,
    /// Number of the backend.
    pub backend: u32,
    /// Zero.
    pub pad: u32,
}

/// `struct hw_event`: one record of the ring.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Event {
    /// Nanoseconds of the monotonic clock.
    pub at: u64,
    /// Source.
    pub src: Addr,
    /// Destination, after translation.
    pub dst: Addr,
    /// What the client called it; zeros: no service.
    pub service: Addr,
    /// Source port.
    pub sport: Be16,
    /// Destination port.
    pub dport: Be16,
    /// The service's port.
    pub service_port: Be16,
    /// IANA number.
    pub protocol: u8,
    /// `HW_EVENT_*`.
    pub kind: u8,
    /// [`DropReason`].
    pub reason: u8,
    /// Of the policy that judged.
    pub direction: u8,
    /// As in the packet.
    pub tcp_flags: u8,
    /// 1: against the first packet of its flow.
    pub flags: u8,
    /// Of the pod's link concerned, or of the device.
    pub ifindex: u32,
    /// Number of the rule; 0: none.
    pub rule: u32,
    /// Classes of source and destination, where they were looked up.
    pub classes: [u32; 2],
    /// Of the packet, bytes from the IP header on.
    pub length: u32,
    /// At which it was judged.
    pub epoch: u32,
}

impl Event {
    /// The record in `bytes`; `None` if there are fewer than it has.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < size_of::<Self>() {
            return None;
        }
        // SAFETY: enough bytes, any of them are a value, and nothing is said of their alignment.
        Some(unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) })
    }
}

macro_rules! plain {
    ($($name:ident),* $(,)?) => {$(
        // SAFETY: repr(C) of integers and arrays of them, so any bytes are a value. No padding: every gap has a name,
        // which tests/layout.rs proves by the sum of the fields' sizes.
        unsafe impl aya::Pod for $name {}
    )*};
}

plain!(
    Be16,
    Addr,
    Prefix,
    Address,
    Block,
    RowKey,
    PortKey,
    Side,
    Endpoint,
    Local,
    State,
    Tuple,
    Flow,
    FragmentKey,
    Fragment,
    FrontendKey,
    Frontend,
    Backend,
    AffinityKey,
    Affinity,
);

#[cfg(test)]
mod tests;
