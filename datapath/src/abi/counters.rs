//! Numbers of counters and of reasons to drop, and the names that metrics and flow events give them.

use std::fmt;

/// `HW_REASONS`: room for reasons.
pub const HW_REASONS: u32 = 40;
/// `HW_COUNT_DROP`: where in `counters` the drops begin, by reason.
pub const HW_COUNT_DROP: u32 = 24;
/// `HW_COUNTERS`: entries of `counters`.
pub const HW_COUNTERS: u32 = HW_COUNT_DROP + HW_REASONS;

macro_rules! numbered {
    (
        $(#[$meta:meta])* $name:ident : $repr:ty, prefix $prefix:literal {
            $( $(#[$doc:meta])* $variant:ident = $number:literal, $c:literal, $text:literal; )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr($repr)]
        pub enum $name { $( $(#[$doc])* $variant = $number, )* }

        impl $name {
            /// All of them, by number.
            pub const ALL: &[Self] = &[$( Self::$variant ),*];

            /// The one with this number.
            pub const fn from_number(number: $repr) -> Option<Self> {
                match number {
                    $( $number => Some(Self::$variant), )*
                    _ => None,
                }
            }

            /// In words with hyphens, for people, metrics and flow events.
            pub const fn name(self) -> &'static str {
                match self { $( Self::$variant => $text, )* }
            }

            /// As `abi.h` calls it.
            pub const fn c_name(self) -> &'static str {
                match self { $( Self::$variant => concat!($prefix, $c), )* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }
    };
}

numbered! {
    /// `enum hw_count`: what is counted besides drops.
    CountIndex: u32, prefix "HW_COUNT_" {
        /// Events that found the ring full.
        FlowsLost = 0, "FLOWS_LOST", "flow-events-lost";
        /// Ingress policy asked between two pods of this node.
        IngressFast = 1, "INGRESS_FAST", "ingress-fast";
        /// Ingress policy asked for what came out of the tunnel.
        IngressTunnel = 2, "INGRESS_TUNNEL", "ingress-tunnel";
        /// Ingress policy asked for what the stack delivers.
        IngressStack = 3, "INGRESS_STACK", "ingress-stack";
        /// From the pod's own node: not asked.
        IngressHost = 4, "INGRESS_HOST", "ingress-host";
        /// Egress policy asked.
        Egress = 5, "EGRESS", "egress";
        /// Delivered past the host's end of a link.
        ToPeer = 6, "TO_PEER", "to-peer";
        /// Redirected into a slot.
        ToTunnel = 7, "TO_TUNNEL", "to-tunnel";
        /// Left to the stack.
        ToStack = 8, "TO_STACK", "to-stack";
        /// Known flows that were judged again.
        Rejudged = 9, "REJUDGED", "rejudged";
        /// Of those, cut.
        Revoked = 10, "REVOKED", "revoked";
        /// Conntrack had no room.
        FlowsFull = 11, "FLOWS_FULL", "flows-full";
        /// New flows to a service.
        Translated = 12, "TRANSLATED", "translated";
        /// To a service without endpoints: handed to the stack to be refused.
        Rejected = 13, "REJECTED", "rejected";
        /// Passed the guard because of the other end.
        Exempt = 14, "EXEMPT", "exempt";
        /// Denied by policy, and passed because of an audit.
        Audited = 15, "AUDITED", "audited";
        /// First packets given to the device that holds them.
        Held = 16, "HELD", "held";
        /// New flows that got another source port, since another flow had theirs at the backend.
        PortMoved = 17, "PORT_MOVED", "port-moved";
    }
}

numbered! {
    /// `enum hw_reason`: why a packet was dropped.
    DropReason: u8, prefix "HW_DROP_" {
        /// It was not.
        None = 0, "NONE", "none";
        /// Headers that cannot be read.
        Malformed = 1, "MALFORMED", "malformed";
        /// Neither IPv4, IPv6 nor ARP from a pod.
        Ethertype = 2, "ETHERTYPE", "ethertype";
        /// Not an address of the attachment.
        SpoofedSource = 3, "SPOOFED_SOURCE", "spoofed-source";
        /// The same in ARP.
        SpoofedArp = 4, "SPOOFED_ARP", "spoofed-arp";
        /// The same in neighbour discovery.
        SpoofedNd = 5, "SPOOFED_ND", "spoofed-nd";
        /// An IPv6 packet with an IPv4-mapped address.
        Mapped = 6, "MAPPED", "mapped-address";
        /// A link of ours without an endpoint.
        Endpoint = 7, "ENDPOINT", "no-endpoint";
        /// The source's policy.
        PolicyEgress = 8, "POLICY_EGRESS", "policy-egress";
        /// The destination's policy.
        PolicyIngress = 9, "POLICY_INGRESS", "policy-ingress";
        /// A flow that was allowed before.
        Revoked = 10, "REVOKED", "revoked";
        /// A fragment whose first was not seen.
        Fragment = 11, "FRAGMENT", "fragment";
        /// Out of the tunnel, and for nobody here.
        TunnelForeign = 12, "TUNNEL_FOREIGN", "tunnel-foreign";
        /// To a pod from a link without a guard.
        Unguarded = 13, "UNGUARDED", "unguarded";
        /// A guarded address in clear, leaving.
        GuardOut = 14, "GUARD_OUT", "guard-out";
        /// A guarded address in clear, arriving.
        GuardIn = 15, "GUARD_IN", "guard-in";
        /// A service whose local policy leaves no backend.
        NoBackend = 16, "NO_BACKEND", "no-backend";
        /// Two flows would be one after translation, and no source port was free.
        Collision = 17, "COLLISION", "collision";
        /// No policy known yet for the pod.
        Closed = 18, "CLOSED", "no-policy-yet";
        /// The kernel refused to change the packet.
        Translate = 19, "TRANSLATE", "translate";
        /// Out of the tunnel with an address of this node.
        SourceLocal = 20, "SOURCE_LOCAL", "source-local";
        /// An ICMP error about nothing we know.
        IcmpUnrelated = 21, "ICMP_UNRELATED", "icmp-unrelated";
        /// The source's policy, and the destination is nobody we know.
        UnknownEgress = 22, "UNKNOWN_EGRESS", "unknown-egress";
        /// The destination's policy, and the source is nobody we know.
        UnknownIngress = 23, "UNKNOWN_INGRESS", "unknown-ingress";
    }
}
