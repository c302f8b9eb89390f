//! The annotation `hawser.dev/ports`: `http=TCP/80,dns=UDP/53`. Written by the pod's node, read by all others, for rules that
//! name a port of a pod that runs elsewhere.

use std::collections::BTreeSet;

use mesh_core::policy::model::{NamedPort, Protocol};

/// Ports of one pod that are written and read: a pod of twenty containers with a few each. What comes after them is not
/// named to other nodes.
const MAX_PORTS: usize = 128;
/// Longest name of a port (`IANA_SVC_NAME`, RFC 6335 section 5.1).
const MAX_NAME: usize = 15;

/// The annotation's text; none: the pod names no port.
pub fn encode(ports: &BTreeSet<NamedPort>) -> Option<String> {
    let one = |port: &NamedPort| format!("{}={}/{}", port.name, word(port.protocol), port.port);
    let parts: Vec<String> = ports.iter().filter(|p| is_name(&p.name)).take(MAX_PORTS).map(one).collect();
    (!parts.is_empty()).then(|| parts.join(","))
}

/// Reads the annotation. What is no port is passed over: it costs no more than itself.
pub fn parse(text: &str) -> BTreeSet<NamedPort> {
    text.split(',').filter_map(one).take(MAX_PORTS).collect()
}

fn one(text: &str) -> Option<NamedPort> {
    let (name, rest) = text.trim().split_once('=')?;
    let (kind, port) = rest.split_once('/')?;
    let port: u16 = port.parse().ok().filter(|port| *port != 0)?;
    is_name(name).then(|| Some(NamedPort { name: name.to_owned(), protocol: protocol(kind)?, port }))?
}

/// The protocol of that word, as the API writes it.
pub fn protocol(word: &str) -> Option<Protocol> {
    Protocol::ALL.into_iter().find(|p| self::word(*p) == word)
}

/// What the API calls it.
pub const fn word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    }
}

fn is_name(text: &str) -> bool {
    (1..=MAX_NAME).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn named() -> impl Strategy<Value = NamedPort> {
        let protocol = proptest::sample::select(Protocol::ALL.to_vec());
        ("[a-z0-9-]{1,15}", protocol, 1_u16..).prop_map(|(name, protocol, port)| NamedPort {
            name,
            protocol,
            port,
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(ports in proptest::collection::btree_set(named(), 0..40)) {
            let read = encode(&ports).map(|text| parse(&text)).unwrap_or_default();
            prop_assert_eq!(read, ports);
        }

        #[test]
        fn no_text_is_too_wild_to_be_read(text in ".{0,200}") {
            prop_assert!(parse(&text).len() <= MAX_PORTS);
        }
    }

    #[test]
    fn what_is_no_port_costs_itself_alone() {
        let read = |text: &str| {
            parse(text).into_iter().map(|p| format!("{}:{}", p.name, p.port)).collect::<Vec<_>>()
        };
        assert_eq!(read("http=TCP/80, dns=UDP/53"), ["dns:53", "http:80"]);
        assert_eq!(read("http=TCP/0,x=TCP/65536,=TCP/1,a=tcp/1,Big=TCP/2,b,c=TCP,,ok=SCTP/9"), ["ok:9"]);
        let many = (1..5000).map(|n| format!("p=TCP/{n}")).collect::<Vec<_>>().join(",");
        assert_eq!(parse(&many).len(), MAX_PORTS);
    }
}
