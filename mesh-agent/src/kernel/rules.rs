//! Rules as the kernel has them.

use ipnet::IpNet;
use mesh_core::numbers::ROUTE_PROTOCOL;
use mesh_core::plan::{Action, Port, Rule};
use mesh_core::prefix::Family;
use mesh_core::slot::Slot;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::IpProtocol;
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};

/// One of ours; what it says that no rule of ours does is left out.
pub(super) fn rule(message: &RuleMessage) -> Option<Rule> {
    let ours = RuleAttribute::Protocol(RouteProtocol::Other(ROUTE_PROTOCOL));
    if !message.attributes.contains(&ours) {
        return None;
    }
    let family = match message.header.family {
        AddressFamily::Inet => Family::V4,
        AddressFamily::Inet6 => Family::V6,
        _ => return None,
    };
    let mut rule = Rule::new(0, family);
    let mut table = u32::from(message.header.table);
    let (mut target, mut protocol, mut port, mut to) = (None, None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(value) => rule.priority = *value,
            RuleAttribute::Table(id) => table = *id,
            RuleAttribute::Source(ip) => rule.from = IpNet::new(*ip, message.header.src_len).ok(),
            RuleAttribute::Destination(ip) => rule.to = IpNet::new(*ip, message.header.dst_len).ok(),
            RuleAttribute::Iifname(name) => {
                rule.local = name == LOOPBACK;
                rule.slot = Slot::ALL.into_iter().find(|slot| slot.device() == name);
            }
            // The kernel leaves out a mark of zero.
            RuleAttribute::FwMask(mask) => rule.unmarked = Some(*mask),
            RuleAttribute::IpProtocol(value) => protocol = Some(*value),
            RuleAttribute::SourcePortRange(range) => port = Some(Port::Source(range.start)),
            RuleAttribute::DestinationPortRange(range) => {
                port = Some(Port::Destination(range.start));
                to = Some((range.start, range.end));
            }
            RuleAttribute::Goto(priority) => target = Some(*priority),
            _ => {}
        }
    }
    rule.tcp = port.filter(|_| protocol == Some(IpProtocol::Tcp));
    let is_icmp = protocol == Some(icmp(family));
    rule.icmp = to.filter(|_| is_icmp).map(|(first, last)| [first, last].map(|port| port.to_be_bytes()[0]));
    rule.action = match message.header.action {
        RuleAction::ToTable => Action::Table(table),
        RuleAction::Goto => Action::Goto(target?),
        RuleAction::Nop => Action::Nothing,
        _ => return None,
    };
    Some(rule)
}

const fn icmp(family: Family) -> IpProtocol {
    match family {
        Family::V4 => IpProtocol::Icmp,
        Family::V6 => IpProtocol::Other(58),
    }
}

/// The device by which, for rules, comes what this node itself sends.
pub(super) const LOOPBACK: &str = "lo";

/// What asks for a rule, to be added or removed.
pub(super) fn rule_message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = match rule.family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    let attributes = &mut message.attributes;
    match rule.action {
        Action::Table(table) => {
            message.header.action = RuleAction::ToTable;
            attributes.push(RuleAttribute::Table(table));
        }
        Action::Goto(priority) => {
            message.header.action = RuleAction::Goto;
            attributes.push(RuleAttribute::Goto(priority));
        }
        Action::Nothing => message.header.action = RuleAction::Nop,
    }
    if let Some(from) = rule.from {
        message.header.src_len = from.prefix_len();
        attributes.push(RuleAttribute::Source(from.addr()));
    }
    if let Some(to) = rule.to {
        message.header.dst_len = to.prefix_len();
        attributes.push(RuleAttribute::Destination(to.addr()));
    }
    if let Some(mask) = rule.unmarked {
        attributes.extend([RuleAttribute::FwMark(0), RuleAttribute::FwMask(mask)]);
    }
    let device = rule.slot.map_or(LOOPBACK, Slot::device);
    if rule.local || rule.slot.is_some() {
        attributes.push(RuleAttribute::Iifname(device.to_owned()));
    }
    if let Some(port) = rule.tcp {
        let range = |port| RulePortRange { start: port, end: port };
        attributes.push(RuleAttribute::IpProtocol(IpProtocol::Tcp));
        attributes.push(match port {
            Port::Source(port) => RuleAttribute::SourcePortRange(range(port)),
            Port::Destination(port) => RuleAttribute::DestinationPortRange(range(port)),
        });
    }
    if let Some([first, last]) = rule.icmp {
        // Of ICMP the kernel keeps type and code where others have the destination's port (`union flowi_uli`), of what it sends itself.
        let range =
            RulePortRange { start: u16::from_be_bytes([first, 0]), end: u16::from_be_bytes([last, u8::MAX]) };
        attributes.extend([
            RuleAttribute::IpProtocol(icmp(rule.family)),
            RuleAttribute::DestinationPortRange(range),
        ]);
    }
    attributes.push(RuleAttribute::Priority(rule.priority));
    attributes.push(RuleAttribute::Protocol(RouteProtocol::Other(ROUTE_PROTOCOL)));
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_read_back_as_the_same() {
        let plain = |family| Rule::lookup(51, family, 51_881);
        for family in Family::BOTH {
            let net: IpNet = if family == Family::V4 { "10.1.0.0/16" } else { "fd01::/48" }.parse().unwrap();
            let rules = [
                plain(family),
                Rule { from: Some(net), ..plain(family) },
                Rule { to: Some(net), unmarked: Some(0x40), local: true, ..plain(family) },
                Rule { tcp: Some(Port::Source(6443)), action: Action::Goto(54), ..plain(family) },
                Rule { tcp: Some(Port::Destination(6443)), action: Action::Nothing, ..plain(family) },
                Rule { icmp: Some([3, 5]), ..plain(family) },
                Rule { slot: Some(Slot::One), ..plain(family) },
            ];
            for wanted in rules {
                assert_eq!(rule(&rule_message(&wanted)), Some(wanted));
            }
        }
    }
}
