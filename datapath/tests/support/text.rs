//! Packets in a few words: `tcp a:40000 > b:80 syn`, `udp a:5000 > svc:53 first 7`, `echo a > x id 9`,
//! `toobig n2 > a about { tcp a:40000 > x:80 ack }`.
//!
//! After the two ends may follow: TCP flags (`syn,ack`), `id N` of an echo, `ttl N`, `payload N` bytes, `first ID` and `later ID`
//! (pieces of a fragmented packet), `piece FROM LENGTH more|last ID`, `options N` (words, IPv4), `extensions N,N..` (numbers of
//! extension headers), `tag VLAN` (802.1Q), `stag VLAN` (802.1ad), `nosum` (UDP), `quoted N` (bytes of an error's packet).

use std::net::{IpAddr, SocketAddr};

use super::names::{Family, address, name};
use super::packet::{ACK, Body, FIN, Fragment, Packet, RST, SYN};

/// Bytes of the first of two fragments: whole transport headers, and a multiple of eight.
const FIRST_PIECE: usize = 32;

pub(crate) fn packet(text: &str, family: Family) -> Packet {
    let (before, about, after) = match text.split_once('{') {
        Some((before, inner)) => {
            let (inner, after) = inner.rsplit_once('}').unwrap_or_else(|| panic!("no }} in {text:?}"));
            (before, Some(packet(inner, family)), after)
        }
        None => (text, None, ""),
    };
    let mut words = before.split_whitespace().filter(|word| *word != "about").chain(after.split_whitespace());
    let mut word = |what: &str| words.next().unwrap_or_else(|| panic!("{text:?} has no {what}"));
    let (kind, from, arrow, to) = (word("kind"), word("source"), word("arrow"), word("destination"));
    assert_eq!(arrow, ">", "{text:?}");
    let ((src, sport), (dst, dport)) = (end(from, family), end(to, family));
    let error = |four: (u8, u8), six: (u8, u8)| {
        let (kind, code) = if family == Family::V4 { four } else { six };
        let about = about.clone().unwrap_or_else(|| panic!("{text:?} is about nothing"));
        Body::Error { kind, code, about: Box::new(about), quoted: 64 }
    };
    let body = match kind {
        "tcp" => Body::Tcp { sport, dport, flags: 0 },
        "udp" => Body::Udp { sport, dport, sum: true },
        "sctp" => Body::Sctp { sport, dport },
        "echo" => Body::Echo { id: 1, answer: false },
        "answer" => Body::Echo { id: 1, answer: true },
        "unreachable" => error((3, 3), (1, 4)),
        "toobig" => error((3, 4), (2, 0)),
        "exceeded" => error((11, 0), (3, 0)),
        "problem" => error((12, 0), (4, 0)),
        _ => other(kind),
    };
    let mut packet = Packet::new(src, dst, body);
    let rest: Vec<&str> = words.collect();
    let mut rest = rest.into_iter();
    while let Some(word) = rest.next() {
        attribute(&mut packet, word, &mut rest);
    }
    packet
}

fn other(kind: &str) -> Body {
    if let Some(kind) = kind.strip_prefix("icmp-") {
        return Body::Icmp { kind: kind.parse().expect("icmp-NUMBER"), rest: vec![0; 20] };
    }
    let number =
        kind.strip_prefix("protocol-").unwrap_or_else(|| panic!("no kind of packet is called {kind:?}"));
    Body::Other { protocol: number.parse().expect("protocol-NUMBER") }
}

fn end(text: &str, family: Family) -> (IpAddr, u16) {
    if let Ok(both) = text.parse::<SocketAddr>() {
        return (both.ip(), both.port());
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        return (ip, 0);
    }
    match text.split_once(':') {
        Some((name, port)) => {
            (address(name, family), port.parse().unwrap_or_else(|_| panic!("a port in {text:?}")))
        }
        None => (address(text, family), 0),
    }
}

fn attribute<'a>(packet: &mut Packet, word: &str, rest: &mut impl Iterator<Item = &'a str>) {
    let mut next = || rest.next().unwrap_or_else(|| panic!("nothing follows {word:?}"));
    match word {
        "id" => {
            let Body::Echo { id, .. } = &mut packet.body else { panic!("only an echo has an id") };
            *id = number(next());
        }
        "ttl" => packet.ttl = number(next()),
        "payload" => packet.payload = number(next()),
        "options" => packet.options = number(next()),
        "extensions" => packet.extensions = next().split(',').map(number).collect(),
        "tag" => packet.tags.push((0x8100, number(next()))),
        "stag" => packet.tags.push((0x88a8, number(next()))),
        "nosum" => {
            let Body::Udp { sum, .. } = &mut packet.body else {
                panic!("only UDP may do without a checksum")
            };
            *sum = false;
        }
        "quoted" => {
            let wanted = number(next());
            let Body::Error { quoted, .. } = &mut packet.body else { panic!("only an error quotes") };
            *quoted = wanted;
        }
        "first" => {
            packet.payload = packet.payload.max(64);
            packet.fragment = Some(Fragment { id: number(next()), from: 0, length: FIRST_PIECE, more: true });
        }
        "later" => {
            packet.payload = packet.payload.max(64);
            packet.fragment =
                Some(Fragment { id: number(next()), from: FIRST_PIECE, length: usize::MAX / 2, more: false });
        }
        "piece" => {
            let (from, length) = (number(next()), number(next()));
            let more = next() == "more";
            packet.fragment = Some(Fragment { id: number(next()), from, length, more });
        }
        _ => {
            let Body::Tcp { flags, .. } = &mut packet.body else { panic!("no packet has {word:?}") };
            *flags = word.split(',').map(flag).sum();
        }
    }
}

fn number<N: std::str::FromStr>(text: &str) -> N {
    text.parse().unwrap_or_else(|_| panic!("{text:?} is no number that fits"))
}

fn flag(word: &str) -> u8 {
    match word {
        "fin" => FIN,
        "syn" => SYN,
        "rst" => RST,
        "ack" => ACK,
        _ => panic!("TCP has no flag {word:?}"),
    }
}

/// What a packet is, in the words above without what a router may change or nobody looks at.
pub(crate) fn summary(packet: &Packet) -> String {
    let (from, to) = (name(packet.src), name(packet.dst));
    if packet.fragment.is_some_and(|piece| piece.from > 0) {
        return format!("piece-{} {from} > {to}", packet.protocol());
    }
    match &packet.body {
        Body::Tcp { sport, dport, flags } => {
            format!("tcp {from}:{sport} > {to}:{dport}{}", flag_words(*flags))
        }
        Body::Udp { sport, dport, .. } => format!("udp {from}:{sport} > {to}:{dport}"),
        Body::Sctp { sport, dport } => format!("sctp {from}:{sport} > {to}:{dport}"),
        Body::Echo { id, answer } => {
            format!("{} {from} > {to} id {id}", if *answer { "answer" } else { "echo" })
        }
        Body::Error { kind, code, about, .. } => {
            format!("error-{kind}-{code} {from} > {to} about {{ {} }}", without_flags(&summary(about)))
        }
        Body::Icmp { kind, .. } => format!("icmp-{kind} {from} > {to}"),
        Body::Other { protocol } => format!("protocol-{protocol} {from} > {to}"),
    }
}

/// An error quotes eight bytes for certain, and flags come behind them.
pub(crate) fn without_flags(text: &str) -> String {
    text.split(' ').take(4).collect::<Vec<_>>().join(" ")
}

pub(crate) fn flag_words(flags: u8) -> String {
    let words = [(SYN, "syn"), (ACK, "ack"), (FIN, "fin"), (RST, "rst")];
    let set: Vec<_> = words.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, word)| *word).collect();
    if set.is_empty() { String::new() } else { format!(" {}", set.join(",")) }
}
