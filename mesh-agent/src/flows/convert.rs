//! One record of the ring, in words.

use std::net::IpAddr;

use datapath::abi::{
    DropReason, Event, HW_EVENT_AUDIT, HW_EVENT_CHANGED, HW_EVENT_DROP, HW_EVENT_NEW, HW_EVENT_REVOKED,
    HW_EVENT_UNKNOWN, HW_INGRESS,
};
use jiff::{SignedDuration, Timestamp};
use proto::flows::{Direction, Flow, Kind, Peer, Protocol, Service, TcpFlags, Verdict};

use crate::names::{Names, Owner};

/// What a record says.
#[derive(Debug, PartialEq, Eq)]
pub enum Told {
    /// Something happened to a flow.
    Flow(Box<Flow>),
    /// Somebody has this address and nobody has told us who.
    Unknown(IpAddr),
    /// A kind that we do not know.
    Nothing,
}

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

/// Reads a record.
pub fn convert(event: &Event, names: &Names, here: &Here) -> Told {
    let (kind, verdict) = match event.kind {
        HW_EVENT_NEW => (Kind::New, Verdict::Forwarded),
        HW_EVENT_DROP => (Kind::Drop, Verdict::Dropped),
        HW_EVENT_CHANGED => (Kind::Changed, Verdict::Forwarded),
        HW_EVENT_REVOKED => (Kind::Revoked, Verdict::Revoked),
        HW_EVENT_AUDIT => (Kind::Audit, Verdict::Audited),
        HW_EVENT_UNKNOWN => {
            let address = if u32::from(event.direction) == HW_INGRESS { event.src } else { event.dst };
            return Told::Unknown(address.ip());
        }
        _ => return Told::Nothing,
    };
    let has_ports = matches!(event.protocol, 6 | 17 | 132);
    let port = |port: u16| has_ports.then_some(port);
    let age = i64::try_from(here.monotonic.saturating_sub(event.at)).unwrap_or(i64::MAX);
    let time = here.now.checked_sub(SignedDuration::from_nanos(age)).unwrap_or(here.now);
    let passed = matches!(verdict, Verdict::Forwarded);
    Told::Flow(Box::new(Flow {
        time,
        node_name: here.node.clone(),
        verdict,
        kind,
        drop_reason: (!passed).then(|| reason(event.reason)),
        traffic_direction: if u32::from(event.direction) == HW_INGRESS {
            Direction::Ingress
        } else {
            Direction::Egress
        },
        source: peer(names, event.src.ip(), port(event.sport.get())),
        destination: peer(names, event.dst.ip(), port(event.dport.get())),
        protocol: Protocol(event.protocol),
        service: event.service.some_ip().map(|ip| service(names, ip, event.service_port.get())),
        tcp_flags: if event.protocol == 6 { TcpFlags(event.tcp_flags) } else { TcpFlags::NONE },
        is_reply: event.flags & 1 == 1,
        rule: names.rules.get(&event.rule).filter(|_| event.rule != 0).cloned(),
        interface: names.links.get(&event.ifindex).cloned(),
        length: event.length,
        epoch: event.epoch,
    }))
}

fn reason(number: u8) -> String {
    DropReason::from_number(number)
        .map_or_else(|| format!("reason-{number}"), |reason| reason.name().to_owned())
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

    fn event() -> Event {
        Event {
            at: 900,
            src: ip("10.1.0.2").into(),
            dst: ip("198.51.100.1").into(),
            service: ip("10.96.0.1").into(),
            sport: 4000.into(),
            dport: 80.into(),
            service_port: 8080.into(),
            protocol: 6,
            kind: HW_EVENT_DROP,
            reason: DropReason::PolicyEgress as u8,
            direction: 1,
            tcp_flags: 2,
            rule: 7,
            length: 60,
            ..Event::default()
        }
    }

    fn here() -> Here {
        Here { node: "n1".into(), now: Timestamp::from_nanosecond(1_000_000).unwrap(), monotonic: 1000 }
    }

    fn flow(event: &Event) -> Flow {
        let Told::Flow(flow) = convert(event, &names(), &here()) else { panic!("{event:?}") };
        *flow
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
        let flow = flow(&Event {
            protocol: 1,
            kind: HW_EVENT_NEW,
            service: Default::default(),
            dst: ip("10.9.0.1").into(),
            rule: 8,
            ..event()
        });
        assert_eq!((flow.source.port, flow.service, flow.rule, flow.drop_reason), (None, None, None, None));
        assert!(!flow.destination.world && flow.destination.pod_name.is_none());
        assert!(flow.tcp_flags.is_none());
    }

    #[test]
    fn an_unknown_address_is_that_of_the_side_that_was_asked_for() {
        let unknown = |direction| Event { kind: HW_EVENT_UNKNOWN, direction, ..event() };
        let told = |direction| convert(&unknown(direction), &names(), &here());
        assert_eq!(told(0), Told::Unknown(ip("10.1.0.2")));
        assert_eq!(told(1), Told::Unknown(ip("198.51.100.1")));
        assert_eq!(convert(&Event { kind: 99, ..event() }, &names(), &here()), Told::Nothing);
    }
}
