//! Listens to the kernel for changes to what is ours, so that drift is repaired at once and not only every minute.
#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "netlink has more attributes and messages than concern us"
)]

use futures::StreamExt;
use mesh_core::numbers::ROUTE_PROTOCOL;
use mesh_core::slot::Slot;
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::RuleAttribute;
use rtnetlink::MulticastGroup;
use tokio::sync::mpsc;

/// Sends a nudge for every change that may concern us, and one to `links` for every link that came or changed and is no
/// pod's; ends with the receiver.
///
/// # Errors
/// No netlink socket.
pub async fn run(nudge: mpsc::Sender<()>, links: mpsc::Sender<()>) -> std::io::Result<()> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
        MulticastGroup::Ipv4Rule,
        MulticastGroup::Ipv6Rule,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
    ];
    let (connection, _handle, mut messages) = rtnetlink::new_multicast_connection(&groups)?;
    tokio::spawn(connection);
    while let Some((message, _)) = messages.next().await {
        let concerns = match &message.payload {
            NetlinkPayload::InnerMessage(inner) => concerns(inner),
            // Overrun: something was lost, so look.
            NetlinkPayload::Overrun(_) | NetlinkPayload::Error(_) => true,
            _ => false,
        };
        let lost = matches!(&message.payload, NetlinkPayload::Overrun(_) | NetlinkPayload::Error(_));
        if lost || matches!(&message.payload, NetlinkPayload::InnerMessage(inner) if is_foreign_link(inner)) {
            // A full queue is a nudge that is already there.
            let _full = links.try_send(());
        }
        if concerns && matches!(nudge.try_send(()), Err(mpsc::error::TrySendError::Closed(()))) {
            return Ok(());
        }
    }
    Ok(())
}

fn concerns(message: &Message) -> bool {
    let ours = RouteProtocol::Other(ROUTE_PROTOCOL);
    match message {
        Message::DelRoute(route) => route.header.protocol == ours,
        Message::DelRule(rule) => rule.attributes.contains(&RuleAttribute::Protocol(ours)),
        Message::NewLink(link) | Message::DelLink(link) => is_slot(link),
        // Addresses come and go rarely on a node; which of them is the uplink's is not known here.
        Message::DelAddress(_) | Message::NewAddress(_) => true,
        _ => false,
    }
}

/// A link that is no pod's: those are the CNI server's.
fn is_foreign_link(message: &Message) -> bool {
    let (Message::NewLink(link) | Message::DelLink(link)) = message else { return false };
    let pod = |a: &LinkAttribute| matches!(a, LinkAttribute::IfName(name) if crate::cni::is_pod_veth(name));
    !link.attributes.iter().any(pod)
}

fn is_slot(link: &LinkMessage) -> bool {
    let slot = |name: &String| Slot::ALL.iter().any(|slot| slot.device() == name);
    link.attributes.iter().any(|a| matches!(a, LinkAttribute::IfName(name) if slot(name)))
}
