//! Whether a pod may have the hostPorts that it wants: two pods of a node cannot share one.

use std::collections::BTreeMap;
use std::net::IpAddr;

use mesh_core::numbers::{PORT_HEALTH, PORT_KEY_EXCHANGE, PORT_METRICS, SLOT_PORTS};
use mesh_core::policy::model::Protocol;
use mesh_core::prefix::same_family;
use proto::cni::{AttachmentId, PodRef};

use crate::attachments::Attachment;
use crate::facts::pod::HostPort;

/// A hostPort that somebody has already.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{wanted} of {by} is taken: {holder} has {held} on this node")]
pub struct Taken {
    /// What was wanted.
    pub wanted: HostPort,
    /// By whom.
    pub by: String,
    /// What stands against it.
    pub held: HostPort,
    /// Whose that is.
    pub holder: String,
    /// It will never be free: the pod itself wants both, or Hawser has it.
    pub own: bool,
}

/// Who holds a port of the node that is ours: its tunnels', and the agent's own, at whichever address. A pod that had one would
/// cut off the node, or its agent by the probes of that.
fn of_hawser(port: &HostPort) -> Option<&'static str> {
    let is_ours = match port.protocol {
        Protocol::Udp => SLOT_PORTS.contains(&port.host_port),
        Protocol::Tcp => [PORT_HEALTH, PORT_METRICS, PORT_KEY_EXCHANGE].contains(&port.host_port),
        Protocol::Sctp => false,
    };
    is_ours.then_some("Hawser itself")
}

/// Do two hostPorts share an address of the node?
fn overlap(one: &HostPort, other: &HostPort) -> bool {
    let meet = match (one.host_ip, other.host_ip) {
        // The unspecified address of IPv4 stands for IPv4 alone, none and that of IPv6 for both.
        (None, _) | (_, None) => true,
        (Some(a), Some(b)) => {
            let wide = |ip: IpAddr| ip.is_unspecified() && ip.is_ipv6();
            let some = |ip: IpAddr| ip.is_unspecified();
            wide(a) || wide(b) || a == b || (same_family(a, b) && (some(a) || some(b)))
        }
    };
    meet && one.protocol == other.protocol && one.host_port == other.host_port
}

fn name(pod: Option<&PodRef>) -> String {
    pod.map_or_else(|| "a pod without a name".to_owned(), |pod| format!("pod {}/{}", pod.namespace, pod.name))
}

/// A former sandbox of this very pod, which nobody has taken down yet, as after a reboot. Its hostPorts are its successor's.
fn is_former(attachment: &Attachment, id: &AttachmentId, pod: Option<&PodRef>) -> bool {
    let same_pod = pod.is_some_and(|pod| pod.uid.is_some()) && attachment.pod.as_ref() == pod;
    same_pod && attachment.id.container_id != id.container_id
}

/// Is every one of `wanted` free for the sandbox `id` among those of `attachments`? The same port twice for the same port of
/// the pod is one.
///
/// # Errors
/// The first that is not, with who has it.
pub fn claim(
    wanted: &[HostPort],
    by: Option<&PodRef>,
    id: &AttachmentId,
    attachments: &BTreeMap<String, Attachment>,
) -> Result<(), Taken> {
    let taken = |wanted: &HostPort, held: &HostPort, holder: Option<&PodRef>, own| Taken {
        wanted: wanted.clone(),
        by: name(by),
        held: held.clone(),
        holder: name(holder),
        own,
    };
    for (place, port) in wanted.iter().enumerate() {
        if let Some(hawser) = of_hawser(port) {
            let held = HostPort { host_ip: None, ..port.clone() };
            return Err(Taken {
                wanted: port.clone(),
                by: name(by),
                held,
                holder: hawser.to_owned(),
                own: true,
            });
        }
        let mut before = wanted[..place].iter();
        if let Some(held) =
            before.find(|held| overlap(port, held) && held.container_port != port.container_port)
        {
            return Err(taken(port, held, by, true));
        }
        for attachment in attachments.values().filter(|attachment| !is_former(attachment, id, by)) {
            let mut held = attachment.port_mappings.iter().filter_map(HostPort::mapped);
            if let Some(held) = held.find(|held| overlap(port, held)) {
                return Err(taken(port, &held, attachment.pod.as_ref(), false));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proto::cni::PortMapping;

    fn mapping(text: &str) -> PortMapping {
        // protocol@address:port>port
        let (protocol, rest) = text.split_once('@').unwrap();
        let (at, container) = rest.split_once('>').unwrap();
        let (ip, port) = at.rsplit_once(':').unwrap();
        PortMapping {
            host_port: port.parse().unwrap(),
            container_port: container.parse().unwrap(),
            protocol: protocol.to_owned(),
            host_ip: ip.parse().ok(),
        }
    }

    fn attachment(ports: &[&str]) -> Attachment {
        Attachment {
            v: 1,
            id: AttachmentId { container_id: "c".into(), ifname: "eth0".into() },
            network: "hawser".into(),
            pod: Some(PodRef { namespace: "x".into(), name: "first".into(), uid: None }),
            netns: String::new(),
            ips: vec![],
            mac: None,
            port_mappings: ports.iter().map(|port| mapping(port)).collect(),
            bandwidth: None,
        }
    }

    fn ask(held: &[&str], wanted: &[&str]) -> Result<(), String> {
        let pod = PodRef { namespace: "x".into(), name: "second".into(), uid: None };
        let held = BTreeMap::from([("hw1".to_owned(), attachment(held))]);
        let wanted: Vec<HostPort> =
            wanted.iter().map(|port| HostPort::mapped(&mapping(port)).unwrap()).collect();
        let id = AttachmentId { container_id: "d".into(), ifname: "eth0".into() };
        claim(&wanted, Some(&pod), &id, &held).map_err(|taken| taken.to_string())
    }

    #[test]
    fn a_port_is_free_unless_somebody_has_it_at_the_same_address_and_protocol() {
        for (held, wanted, free) in [
            ("tcp@:80>80", "tcp@:80>8080", false),
            ("tcp@:80>80", "udp@:80>80", true),
            ("tcp@:80>80", "tcp@:81>80", true),
            ("tcp@192.0.2.1:80>80", "tcp@192.0.2.2:80>80", true),
            ("tcp@192.0.2.1:80>80", "tcp@192.0.2.1:80>80", false),
            ("tcp@192.0.2.1:80>80", "tcp@:80>80", false),
            ("tcp@0.0.0.0:80>80", "tcp@192.0.2.1:80>80", false),
            ("tcp@0.0.0.0:80>80", "tcp@2001:db8::1:80>80", true),
            ("tcp@:::80>80", "tcp@192.0.2.1:80>80", false),
            ("tcp@:::80>80", "tcp@0.0.0.0:80>80", false),
            ("sctp@2001:db8::1:80>80", "sctp@:80>80", false),
        ] {
            assert_eq!(ask(&[held], &[wanted]).is_ok(), free, "{held} and {wanted}");
            assert_eq!(ask(&[wanted], &[held]).is_ok(), free, "{wanted} and {held}");
            // One pod may say the same twice, and nothing else.
            let same = held.rsplit_once('>').unwrap().1 == wanted.rsplit_once('>').unwrap().1;
            assert_eq!(ask(&[], &[held, wanted]).is_ok(), free || same, "{held} with {wanted}");
        }
    }

    #[test]
    fn no_pod_gets_a_port_by_which_its_node_is_reached() {
        for (port, free) in [
            ("udp@:51880>80", false),
            ("udp@192.0.2.1:51881>80", false),
            ("tcp@127.0.0.1:51890>80", false),
            ("tcp@:51891>80", false),
            ("tcp@:51892>80", false),
            ("tcp@:51880>80", true),
            ("udp@:51890>80", true),
        ] {
            assert_eq!(ask(&[], &[port]).is_ok(), free, "{port}");
        }
        assert_eq!(
            ask(&[], &["udp@:51880>80"]).unwrap_err(),
            "hostPort 51880/UDP of pod x/second is taken: Hawser itself has hostPort 51880/UDP on this node"
        );
    }

    #[test]
    fn who_is_refused_hears_which_port_and_who_has_it() {
        assert_eq!(
            ask(&["udp@:53>53"], &["tcp@:53>53", "udp@192.0.2.1:53>5353"]).unwrap_err(),
            "hostPort 192.0.2.1:53/UDP of pod x/second is taken: pod x/first has hostPort 53/UDP on this node"
        );
    }

    #[test]
    fn a_former_sandbox_does_not_stand_in_the_way_of_the_same_pods_next_one() {
        let pod = |uid: Option<&str>| PodRef {
            namespace: "x".into(),
            name: "p".into(),
            uid: uid.map(str::to_owned),
        };
        let port = "tcp@:80>80";
        for (held_in, holder, wanted_in, by, free) in [
            ("before", Some("u"), "now", Some("u"), true),
            // Another pod of that name, which may still run.
            ("before", Some("u"), "now", Some("v"), false),
            ("before", None, "now", None, false),
            ("now", Some("u"), "now", Some("u"), false),
        ] {
            let id = |container: &str| AttachmentId { container_id: container.into(), ifname: "eth0".into() };
            let former = Attachment { id: id(held_in), pod: Some(pod(holder)), ..attachment(&[port]) };
            let held = BTreeMap::from([("hw1".to_owned(), former)]);
            let wanted = [HostPort::mapped(&mapping(port)).unwrap()];
            let claimed = claim(&wanted, Some(&pod(by)), &id(wanted_in), &held);
            assert_eq!(claimed.is_ok(), free, "{holder:?} in {held_in}, {by:?} in {wanted_in}");
        }
    }

    fn ports() -> impl Strategy<Value = Vec<String>> {
        let address =
            prop::sample::select(vec!["", "0.0.0.0", "::", "192.0.2.1", "192.0.2.2", "2001:db8::1"]);
        let port = (prop::sample::select(vec!["tcp", "udp"]), address, 1_u8..4, 1_u8..3)
            .prop_map(|(protocol, ip, port, to)| format!("{protocol}@{ip}:{port}>{to}"));
        prop::collection::vec(port, 1..4)
    }

    /// What a packet to an address finds, in plain words.
    fn serves(port: &str, packet: (&str, IpAddr, u16)) -> bool {
        let mapping = mapping(port);
        let at = match mapping.host_ip {
            None => true,
            Some(ip) if ip.is_unspecified() => ip.is_ipv6() || packet.1.is_ipv4(),
            Some(ip) => ip == packet.1,
        };
        at && mapping.protocol == packet.0 && mapping.host_port == packet.2
    }

    proptest! {
        #[test]
        fn no_packet_has_two_pods_to_go_to(held in ports(), wanted in ports()) {
            let texts = |ports: &'_ [String]| -> Vec<String> { ports.to_vec() };
            let (h, w) = (texts(&held), texts(&wanted));
            let (h, w): (Vec<&str>, Vec<&str>) = (h.iter().map(|s| &**s).collect(), w.iter().map(|s| &**s).collect());
            let addresses: Vec<IpAddr> = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1", "2001:db8::2"]
                .iter().map(|ip| ip.parse().unwrap()).collect();
            let packets = ["tcp", "udp"].into_iter().flat_map(|p| addresses.iter().map(move |ip| (p, *ip)))
                .flat_map(|(p, ip)| (1..4).map(move |port| (p, ip, port)));
            let meets = |packet| h.iter().any(|port| serves(port, packet)) && w.iter().any(|port| serves(port, packet));
            let torn = |packet| {
                let to = w.iter().filter(|port| serves(port, packet)).map(|port| mapping(port).container_port);
                to.collect::<std::collections::BTreeSet<_>>().len() > 1
            };
            let wrong = packets.into_iter().any(|packet| meets(packet) || torn(packet));
            prop_assert_eq!(ask(&h, &w).is_err(), wrong);
        }
    }
}
