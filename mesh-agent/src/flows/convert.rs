//! One record of the ring, in words.

use std::net::IpAddr;

use datapath::{EventKind, FlowEvent};
use jiff::{SignedDuration, Timestamp};
use mesh_core::policy::model::Direction as Side;
use proto::flows::{Direction, Flow, Kind, Peer, Protocol, Service, TcpFlags, Verdict};

use crate::names::{Names, Owner};

/// This node and its clocks.
#[derive(Clone, Debug)]
pub struct Here {
    /// Name of the Node.
    pub node: String,
    /// Wall clock.
    pub now: Timestamp,
    /// The same moment by the clock of the records, in nanoseconds.
    pub monotonic: u64,
}

/// The address that nobody has told us of; none: the event is of another kind.
pub fn unknown(event: &FlowEvent) -> Option<IpAddr> {
    (event.kind == EventKind::Unknown).then_some(match event.direction {
        Side::Ingress => event.source,
        Side::Egress => event.destination,
    })
}

/// An event in words; none: it is about no flow.
pub fn convert(event: &FlowEvent, names: &Names, here: &Here) -> Option<Flow> {
    let (kind, verdict) = match event.kind {
        EventKind::New => (Kind::New, Verdict::Forwarded),
        EventKind::Drop => (Kind::Drop, Verdict::Dropped),
        EventKind::Changed => (Kind::Changed, Verdict::Forwarded),
        EventKind::Revoked => (Kind::Revoked, Verdict::Revoked),
        EventKind::Audit => (Kind::Audit, Verdict::Audited),
        EventKind::Unknown => return None,
    };
    let has_ports = matches!(event.protocol, 6 | 17 | 132);
    let port = |port: u16| has_ports.then_some(port);
    let age = i64::try_from(here.monotonic.saturating_sub(event.at_ns)).unwrap_or(i64::MAX);
    let time = here.now.checked_sub(SignedDuration::from_nanos(age)).unwrap_or(here.now);
    let passed = matches!(verdict, Verdict::Forwarded);
    Some(Flow {
        time,
        node_name: here.node.clone(),
        verdict,
        kind,
        drop_reason: (!passed).then(|| event.reason.name().to_owned()),
        traffic_direction: match event.direction {
            Side::Ingress => Direction::Ingress,
            Side::Egress => Direction::Egress,
        },
        source: peer(names, event.source, port(event.source_port)),
        destination: peer(names, event.destination, port(event.destination_port)),
        protocol: Protocol(event.protocol),
        service: event.service.map(|(ip, port)| service(names, ip, port)),
        tcp_flags: if event.protocol == 6 { TcpFlags(event.tcp_flags) } else { TcpFlags::NONE },
        is_reply: event.reply,
        rule: names.rules.get(&event.rule).filter(|_| event.rule != 0).cloned(),
        interface: names.links.get(&event.ifindex).cloned(),
        length: event.length,
        epoch: event.epoch,
    })
}

fn peer(names: &Names, ip: IpAddr, port: Option<u16>) -> Peer {
    let mut peer = Peer::unknown(ip, port);
    match names.owners.get(&ip) {
        Some(Owner::Pod(pod)) => {
            peer.namespace = Some(pod.namespace.clone());
            peer.pod_name = Some(pod.name.clone());
        }
        Some(Owner::Node(node)) => peer.node_name = Some(node.to_string()),
        None => match names.services.get(&ip) {
            Some(service) => peer.service_name = Some(format!("{}/{}", service.namespace, service.name)),
            None => peer.world = !names.is_guarded(ip),
        },
    }
    peer
}

fn service(names: &Names, ip: IpAddr, port: u16) -> Service {
    let owner = names.services.get(&ip);
    Service {
        ip,
        port,
        namespace: owner.map(|owner| owner.namespace.clone()),
        name: owner.map(|owner| owner.name.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datapath::abi::DropReason;
    use mesh_core::policy::model::ObjectName;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn names() -> Names {
        let mut names = Names { guarded: vec!["10.0.0.0/8".parse().unwrap()], ..Names::default() };
        let pod = ObjectName { namespace: "a".into(), name: "p".into() };
        names.owners.insert(ip("10.1.0.2"), Owner::Pod(pod.clone()));
        names.owners.insert(ip("192.0.2.1"), Owner::Node("n1".parse().unwrap()));
        names.services.insert(ip("10.96.0.1"), pod);
        names.rules.insert(7, "NetworkPolicy a/x ingress[0]".into());
        names
    }

    fn event() -> FlowEvent {
        FlowEvent {
            at_ns: 900,
            kind: EventKind::Drop,
            reason: DropReason::PolicyEgress,
            source: ip("10.1.0.2"),
            destination: ip("198.51.100.1"),
            source_port: 4000,
            destination_port: 80,
            service: Some((ip("10.96.0.1"), 8080)),
            protocol: 6,
            direction: Side::Egress,
            tcp_flags: 2,
            reply: false,
            ifindex: 5,
            rule: 7,
            classes: [0; 2],
            length: 60,
            epoch: 1,
        }
    }

    fn here() -> Here {
        Here { node: "n1".into(), now: Timestamp::from_nanosecond(1_000_000).unwrap(), monotonic: 1000 }
    }

    fn flow(event: &FlowEvent) -> Flow {
        convert(event, &names(), &here()).unwrap()
    }

    #[test]
    fn ends_rules_and_times_are_in_words() {
        let flow = flow(&event());
        assert_eq!(flow.time.as_nanosecond(), 1_000_000 - 100);
        assert_eq!((flow.source.pod_name.as_deref(), flow.source.port), (Some("p"), Some(4000)));
        assert!(flow.destination.world && !flow.source.world);
        assert_eq!(flow.service.unwrap().name.as_deref(), Some("p"));
        assert_eq!(flow.drop_reason.as_deref(), Some("policy-egress"));
        assert_eq!(flow.rule.as_deref(), Some("NetworkPolicy a/x ingress[0]"));
        assert_eq!((flow.verdict, flow.traffic_direction), (Verdict::Dropped, Direction::Egress));
    }

    #[test]
    fn what_has_no_ports_no_service_and_no_name_shows_none() {
        let flow = flow(&FlowEvent {
            protocol: 1,
            kind: EventKind::New,
            service: None,
            destination: ip("10.9.0.1"),
            rule: 8,
            ..event()
        });
        assert_eq!((flow.source.port, flow.service, flow.rule, flow.drop_reason), (None, None, None, None));
        assert!(!flow.destination.world && flow.destination.pod_name.is_none());
        assert!(flow.tcp_flags.is_none());
    }

    #[test]
    fn an_unknown_address_is_that_of_the_side_that_was_asked_for() {
        let of = |direction| FlowEvent { kind: EventKind::Unknown, direction, ..event() };
        assert_eq!(unknown(&of(Side::Ingress)), Some(ip("10.1.0.2")));
        assert_eq!(unknown(&of(Side::Egress)), Some(ip("198.51.100.1")));
        assert_eq!(unknown(&event()), None);
        assert_eq!(convert(&of(Side::Egress), &names(), &here()), None);
    }
}
