use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;
use crate::nft::encode;

/// A packet as a hook sees it.
#[derive(Debug, Clone)]
struct Packet {
    iif: String,
    oif: String,
    source: IpAddr,
    destination: IpAddr,
    mark: u32,
    protocol: u8,
    /// First four bytes of the transport header, as two numbers.
    ports: [u16; 2],
    /// A TCP segment with SYN and without ACK.
    opens: bool,
    /// To an address of this node.
    local: bool,
    /// What its connection was begun to, if it has one.
    begun_to: Option<IpAddr>,
}

/// What a chain does to a packet, with the comment of the rule that decided.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Passes,
    Dropped(String),
    Translated(String, Option<IpAddr>),
}

/// Runs one chain of the model, rule by rule, as nf_tables documents.
fn evaluate(table: &Table, chain: &str, packet: &Packet) -> Outcome {
    let Some(chain) = table.chains.iter().find(|found| found.name == chain) else {
        assert!(chain.starts_with("refuse_host_"), "{chain}: the others are always there");
        return Outcome::Passes;
    };
    let rule = chain.rules.iter().find(|rule| rule.matches.iter().all(|wanted| holds(table, wanted, packet)));
    match rule.map(|rule| (rule.verdict.clone(), rule.comment.clone())) {
        None | Some((Verdict::Accept | Verdict::Return, _)) => Outcome::Passes,
        Some((Verdict::Drop | Verdict::RejectReset | Verdict::RejectPort, by)) => Outcome::Dropped(by),
        Some((Verdict::Masquerade, by)) => Outcome::Translated(by, None),
        Some((Verdict::Snat(to), by)) => Outcome::Translated(by, Some(to)),
        Some((Verdict::Dnat(_), _)) => panic!("no rule of this table translates destinations"),
    }
}

fn holds(table: &Table, wanted: &Match, packet: &Packet) -> bool {
    let name_of = |direction: &Direction| match direction {
        Direction::In => &packet.iif,
        Direction::Out => &packet.oif,
    };
    let set =
        |name: &String| &table.sets.iter().find(|set| set.name == *name).expect("the set exists").elements;
    match wanted {
        Match::Interface(direction, is, InterfaceName::Exact(name)) => {
            (name_of(direction) == name) == (*is == Is::Yes)
        }
        Match::Interface(direction, is, InterfaceName::Prefix(prefix)) => {
            name_of(direction).starts_with(prefix.as_str()) == (*is == Is::Yes)
        }
        Match::InterfaceIn(direction, is, name) => match set(name) {
            Elements::Interfaces(names) => names.contains(name_of(direction)) == (*is == Is::Yes),
            Elements::Addresses(_) | Elements::Ports(_) => panic!("{name} holds no names"),
        },
        Match::Family(family) => Family::of(packet.source) == *family,
        Match::Mark { mask, value } => packet.mark & mask == *value,
        Match::AddressIn(family, end, is, name) => {
            let address = match end {
                End::Source => packet.source,
                End::Destination => packet.destination,
            };
            let Elements::Addresses(ranges) = set(name) else { panic!("{name} holds names") };
            Family::of(address) == *family && ranges.contains(address) == (*is == Is::Yes)
        }
        Match::Protocol(number) => packet.protocol == *number,
        Match::Port(End::Source, port) => packet.ports[0] == *port,
        Match::Port(End::Destination, port) => packet.ports[1] == *port,
        Match::TcpOpens(is) => packet.opens == (*is == Is::Yes),
        Match::Icmpv6Type(first, last) => (*first..=*last).contains(&packet.ports[0].to_be_bytes()[0]),
        Match::LocalDestination => packet.local,
        Match::BegunTo(family, name) => {
            let Elements::Addresses(ranges) = set(name) else { panic!("{name} holds names") };
            packet.begun_to.is_some_and(|to| Family::of(to) == *family && ranges.contains(to))
        }
        Match::CtState(_) => panic!("no rule of this table asks for that"),
    }
}

/// The promise in plain words, from the input itself: no sets, no rules, no order.
struct Promise<'a>(&'a NftInput);

impl Promise<'_> {
    fn is_foreign(&self, interface: &str) -> bool {
        interface != "lo"
            && !interface.starts_with("hw")
            && !self.0.slots.iter().any(|slot| slot == interface)
    }

    fn is_own_pod(&self, address: IpAddr) -> bool {
        self.0.own_pod_cidrs.iter().any(|net| net.contains(&address))
    }

    fn is_guarded(&self, address: IpAddr) -> bool {
        self.is_own_pod(address) || self.0.guarded.iter().any(|net| net.contains(&address))
    }

    fn is_exempt(&self, address: IpAddr) -> bool {
        let node = self.0.own_node_ips.contains(&address) || self.0.peer_node_ips.contains(&address);
        self.0.non_masquerade.iter().any(|net| net.contains(&address)) && !self.is_guarded(address) && !node
    }

    fn is_plaintext_leak(&self, packet: &Packet) -> bool {
        let (a, b) = (packet.source, packet.destination);
        (self.is_guarded(a) && !self.is_exempt(b)) || (self.is_guarded(b) && !self.is_exempt(a))
    }

    fn refused(&self, interface: &str, stem: &str, packet: &Packet) -> Outcome {
        if self.is_foreign(interface) && self.is_plaintext_leak(packet) {
            return Outcome::Dropped(format!("{stem}_{}", Family::of(packet.source)));
        }
        Outcome::Passes
    }

    fn arrives(&self, packet: &Packet) -> Outcome {
        if packet.iif.starts_with("hw") && packet.mark & 0x20 != 0 {
            return match self.refused(&packet.iif, "refused_in", packet) {
                Outcome::Passes => Outcome::Dropped("service_rejected".to_owned()),
                refused @ (Outcome::Dropped(_) | Outcome::Translated(..)) => refused,
            };
        }
        self.refused(&packet.iif, "refused_in", packet)
    }

    fn to_node(&self, packet: &Packet) -> Outcome {
        let pod = packet.iif.starts_with("hw") && self.is_foreign(&packet.oif);
        if pod && self.0.peer_node_ips.contains(&packet.destination) {
            return Outcome::Dropped("leak_refused_to_node".to_owned());
        }
        Outcome::Passes
    }

    fn to_service(&self, packet: &Packet) -> Outcome {
        let pod = packet.iif.starts_with("hw");
        let services = || self.0.service_cidrs.iter();
        let is_service = |ip: &IpAddr| {
            let opened = |net: &IpNet| net.contains(ip) && services().any(|services| services.contains(net));
            services().any(|net| net.contains(ip)) && !self.0.non_masquerade.iter().any(opened)
        };
        let plain = self.is_foreign(&packet.oif) && is_service(&packet.destination);
        let translated = self.0.translates
            && self.0.slots.contains(&packet.oif)
            && packet.begun_to.as_ref().is_some_and(is_service);
        if pod && (plain || translated) {
            return Outcome::Dropped("service_unknown".to_owned());
        }
        Outcome::Passes
    }

    fn is_exempt_port(&self, [from, to]: [u16; 2], opens: bool) -> bool {
        let exempt = &self.0.hosts.exempt_tcp;
        exempt.contains(&to) || (exempt.contains(&from) && !opens)
    }

    fn host_in(&self, packet: &Packet) -> Outcome {
        let Packet { source, protocol, ports, .. } = packet;
        let discovery = source.is_ipv6() && *protocol == 58 && matches!(ports[0] >> 8, 133..=137);
        let exempt = *protocol == 6 && self.is_exempt_port(*ports, packet.opens);
        let wireguard = *protocol == 17 && self.0.tunnel_ports.contains(&ports[1]);
        let plain = self.is_foreign(&packet.iif) && self.0.hosts.closed.contains(source) && packet.local;
        if self.0.hosts.require && plain && !wireguard && !discovery && !exempt {
            return Outcome::Dropped(format!("host_refused_in_{}", Family::of(*source)));
        }
        Outcome::Passes
    }

    fn host_out(&self, packet: &Packet) -> Outcome {
        let Packet { source, destination, protocol, ports, .. } = packet;
        let own = self.is_own_pod(*source)
            || [&self.0.own_node_ips, &self.0.hosts.sources].iter().any(|own| own.contains(source));
        let discovery = source.is_ipv6() && *protocol == 58 && matches!(ports[0] >> 8, 133..=137);
        let exempt = *protocol == 6 && self.is_exempt_port(*ports, packet.opens);
        let plain = self.is_foreign(&packet.oif) && own && self.0.hosts.closed.contains(destination);
        let wireguard = packet.mark & 0x40 != 0 && *protocol == 17 && self.0.tunnel_ports.contains(&ports[0]);
        if plain && !wireguard && !discovery && !exempt {
            return Outcome::Dropped(format!("host_refused_out_{}", Family::of(*source)));
        }
        Outcome::Passes
    }

    fn translate(&self, packet: &Packet) -> Outcome {
        let family = Family::of(packet.source);
        let mesh = self.0.mesh.iter().copied().find(|mesh| Family::of(*mesh) == family);
        // Whatever way it came here, and though its source would be the node's from now on.
        let (from_pod, to_node) =
            (self.is_guarded(packet.source), self.0.peer_node_ips.contains(&packet.destination));
        if self.is_foreign(&packet.oif) && from_pod && to_node {
            return Outcome::Dropped("leak_refused_to_node".to_owned());
        }
        if self.0.slots.contains(&packet.oif) {
            let own = self.is_own_pod(packet.source) || self.0.own_node_ips.contains(&packet.source);
            return match mesh {
                Some(mesh) if !own || packet.mark & 0x4000 != 0 => {
                    Outcome::Translated("snat_into_mesh".to_owned(), Some(mesh))
                }
                Some(_) | None => Outcome::Passes,
            };
        }
        let stays = self.is_guarded(packet.destination) || self.is_exempt(packet.destination);
        if self.is_foreign(&packet.oif) && self.is_own_pod(packet.source) && !stays {
            return Outcome::Translated("masqueraded_to_world".to_owned(), None);
        }
        Outcome::Passes
    }
}

/// Few addresses, so that they meet; the ends of each family's space among them.
fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0_u8..4, prop_oneof![Just(0_u8), Just(1), Just(127), Just(255)])
            .prop_map(|(c, d)| IpAddr::V4(Ipv4Addr::new(10, 244, c, d))),
        (0_u8..4).prop_map(|d| IpAddr::V4(Ipv4Addr::new(192, 0, 2, d))),
        prop_oneof![Just(Ipv4Addr::UNSPECIFIED), Just(Ipv4Addr::BROADCAST)].prop_map(IpAddr::V4),
        (0_u16..4, prop_oneof![Just(0_u16), Just(1), Just(0xffff)])
            .prop_map(|(c, d)| IpAddr::V6(Ipv6Addr::new(0xfd44, 0, 0, c, 0, 0, 0, d))),
        prop_oneof![Just(Ipv6Addr::UNSPECIFIED), Just(Ipv6Addr::from(u128::MAX))].prop_map(IpAddr::V6),
    ]
}

fn net() -> impl Strategy<Value = IpNet> {
    (address(), prop_oneof![Just(0_u8), Just(1), 14_u8..=32, 62_u8..=66, Just(128)]).prop_map(
        |(address, length)| {
            let length = u32::from(length).min(Family::of(address).bits());
            IpNet::new(address, u8::try_from(length).unwrap()).unwrap().trunc()
        },
    )
}

fn nets() -> impl Strategy<Value = Vec<IpNet>> {
    prop::collection::vec(net(), 0..4)
}

fn addresses() -> impl Strategy<Value = Vec<IpAddr>> {
    prop::collection::vec(address(), 0..4)
}

/// So few ports that they meet; their first bytes are types of ICMPv6 at both ends of neighbour discovery.
fn port() -> impl Strategy<Value = u16> {
    prop::sample::select(vec![0x84ff_u16, 0x8500, 0x89ff, 0x8a00])
}

prop_compose! {
    fn input()(
        guarded in nets(), own_pod_cidrs in nets(), own_node_ips in addresses(), peer_node_ips in addresses(),
        mesh in addresses(), non_masquerade in nets(), service_cidrs in nets(),
        translates in any::<bool>(), closed in addresses(), sources in addresses(), require in any::<bool>(), exempt_tcp in prop::collection::btree_set(port(), 0..3),
    ) -> NftInput {
        NftInput {
            guarded, own_pod_cidrs, own_node_ips, peer_node_ips, mesh, non_masquerade, service_cidrs, translates,
            slots: ["hawser0".into(), "hawser1".into()], pod_veth_prefix: "hw".into(), tunnel_ports: [51880, 51881],
            hosts: HostGuard { closed, sources, require, exempt_tcp },
        }
    }
}

fn interface() -> impl Strategy<Value = String> {
    let names =
        ["hawser0", "hawser1", "hawser", "hawser00", "hw0123456789abc", "lo", "lo0", "eth0", "h", "docker0"];
    prop::sample::select(names.to_vec()).prop_map(str::to_owned)
}

prop_compose! {
    fn packet()(
        iif in interface(), oif in interface(), source in address(), destination in address(),
        mark in prop_oneof![Just(0_u32), Just(0x40), Just(0x4000), Just(0xc000), Just(0x8000), any::<u32>()],
        protocol in prop_oneof![Just(6_u8), Just(17), Just(58), any::<u8>()],
        to_port in prop_oneof![port(), Just(51880_u16), Just(51881)],
        from_port in prop_oneof![port(), Just(51880_u16), Just(51881)], local in any::<bool>(), opens in any::<bool>(),
        begun_to in prop::option::of(address()),
    ) -> Packet {
        // A packet has one family.
        let destination = match (source, destination) {
            (IpAddr::V4(_), IpAddr::V6(_)) => IpAddr::V4(Ipv4Addr::new(10, 244, 0, 1)),
            (IpAddr::V6(_), IpAddr::V4(_)) => IpAddr::V6(Ipv6Addr::new(0xfd44, 0, 0, 0, 0, 0, 0, 1)),
            (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)) => destination,
        };
        Packet { iif, oif, source, destination, mark, protocol, ports: [from_port, to_port], opens, local, begun_to: begun_to.filter(|to| to.is_ipv4() == source.is_ipv4()) }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_chain_keeps_its_promise_and_can_be_encoded(input in input(), packets in prop::collection::vec(packet(), 8)) {
        let table = ruleset(&input);
        let messages = encode::replace(&table, &Default::default());
        prop_assert!(messages.is_ok(), "{messages:?}");
        let promise = Promise(&input);
        for packet in packets {
            let chain = |name| evaluate(&table, name, &packet);
            prop_assert_eq!(chain("refuse_in"), promise.arrives(&packet), "{:?}", packet);
            prop_assert_eq!(
                chain("refuse_out"), promise.refused(&packet.oif, "leak_refused_out", &packet), "{:?}", packet
            );
            prop_assert_eq!(chain("refuse_to_node"), promise.to_node(&packet), "{:?}", packet);
            prop_assert_eq!(chain("refuse_to_service"), promise.to_service(&packet), "{:?}", packet);
            prop_assert_eq!(chain("translate"), promise.translate(&packet), "{:?}", packet);
            prop_assert_eq!(chain("refuse_host_in"), promise.host_in(&packet), "{:?}", packet);
            prop_assert_eq!(chain("refuse_host_out"), promise.host_out(&packet), "{:?}", packet);
        }
    }

    #[test]
    fn wireguard_between_nodes_meets_no_rule_unless_its_address_is_named_as_a_conflict(
        input in input(), packet in packet(),
    ) {
        let table = ruleset(&input);
        let conflicts = conflicts(&input);
        let pairs = input.own_node_ips.iter().flat_map(|own| input.peer_node_ips.iter().map(move |peer| (*own, *peer)));
        for (own, peer) in pairs.filter(|(own, peer)| Family::of(*own) == Family::of(*peer)) {
            let conflict = conflicts.iter().any(|found| found.address == own || found.address == peer);
            for (source, destination) in [(own, peer), (peer, own)] {
                // Local packets do not pass the forward hook.
                let (iif, oif) = ("eth0".to_owned(), "eth0".to_owned());
                // Its sockets set its mark, whatever else is closed.
                let mark = packet.mark | 0x40;
                let (protocol, ports) = (17, [51881, 51880]);
                let packet = Packet { iif, oif, source, destination, mark, protocol, ports, ..packet.clone() };
                let chains = ["refuse_in", "refuse_out", "translate", "refuse_host_out", "refuse_host_in"];
                let untouched = chains.iter().all(|chain| evaluate(&table, chain, &packet) == Outcome::Passes);
                prop_assert_eq!(untouched, !conflict, "{:?}", packet);
            }
        }
    }

    #[test]
    fn ranges_are_sets_of_addresses(a in nets(), b in nets(), probe in address()) {
        let within = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&probe));
        let family = Family::of(probe);
        let (of_a, of_b) = (Ranges::of_nets(family, &a), Ranges::of_nets(family, &b));
        prop_assert_eq!(of_a.contains(probe), within(&a));
        prop_assert_eq!(of_a.union(&of_b).contains(probe), within(&a) || within(&b));
        let minus = of_a.minus(&of_b);
        prop_assert_eq!(minus.contains(probe), within(&a) && !within(&b));
        let gaps = minus.as_slice().windows(2).all(|pair| pair[0].1 + 1 < pair[1].0);
        prop_assert!(gaps && minus.as_slice().iter().all(|range| range.0 <= range.1), "{:?}", minus);
    }
}

#[test]
fn a_wide_exemption_opens_neither_the_pod_networks_nor_the_nodes_inside_it() {
    let input = NftInput {
        guarded: vec!["10.244.0.0/16".parse().unwrap()],
        own_pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
        own_node_ips: vec!["10.0.0.1".parse().unwrap()],
        peer_node_ips: vec!["10.0.0.2".parse().unwrap()],
        mesh: vec!["10.244.1.1".parse().unwrap()],
        non_masquerade: vec!["10.0.0.0/8".parse().unwrap()],
        service_cidrs: Vec::new(),
        translates: true,
        slots: ["hawser0".into(), "hawser1".into()],
        pod_veth_prefix: "hw".into(),
        tunnel_ports: [51880, 51881],
        hosts: HostGuard::default(),
    };
    let table = ruleset(&input);
    let leaves = |source: &str, destination: &str| {
        let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
        let packet = Packet {
            iif: "hw1".into(),
            oif: "eth0".into(),
            source,
            destination,
            mark: 0,
            protocol: 6,
            ports: [1, 2],
            opens: true,
            local: false,
            begun_to: None,
        };
        evaluate(&table, "refuse_out", &packet) == Outcome::Passes
    };
    assert!(!leaves("10.244.1.5", "10.244.2.5"), "pod to pod");
    assert!(!leaves("10.0.0.1", "10.244.2.5"), "node to pod");
    assert!(!leaves("10.244.1.5", "10.0.0.2"), "pod to node");
    assert!(leaves("10.244.1.5", "10.9.9.9"), "pod to what is exempt");
}

#[test]
fn every_rule_has_a_name_of_the_list_of_counters_and_every_name_has_a_rule() {
    let both = |v4: &str, v6: &str| vec![v4.parse().unwrap(), v6.parse().unwrap()];
    let input = NftInput {
        guarded: both("10.244.0.0/16", "fd44::/48"),
        own_pod_cidrs: both("10.244.1.0/24", "fd44:0:0:1::/64"),
        own_node_ips: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        peer_node_ips: vec!["192.0.2.2".parse().unwrap(), "2001:db8::2".parse().unwrap()],
        mesh: vec!["10.244.1.1".parse().unwrap(), "fd44:0:0:1::1".parse().unwrap()],
        non_masquerade: Vec::new(),
        service_cidrs: both("10.96.0.0/12", "fd00:96::/112"),
        translates: true,
        slots: ["hawser0".into(), "hawser1".into()],
        pod_veth_prefix: "hw".into(),
        tunnel_ports: [51880, 51881],
        hosts: HostGuard {
            closed: vec!["192.0.2.2".parse().unwrap(), "2001:db8::2".parse().unwrap()],
            sources: Vec::new(),
            require: true,
            exempt_tcp: [6443].into(),
        },
    };
    let table = ruleset(&input);
    let rules = table.chains.iter().flat_map(|chain| &chain.rules);
    let names: BTreeSet<_> =
        rules.inspect(|rule| assert!(rule.counter)).map(|rule| rule.comment.clone()).collect();
    assert_eq!(names, counter::ALL.iter().map(|name| (*name).to_owned()).collect());
}

#[test]
fn names_that_no_interface_can_have_and_sets_that_do_not_exist_are_refused_before_anything_is_sent() {
    let check = |change: &dyn Fn(&mut Table), expect: &str| {
        let empty = NftInput {
            guarded: vec!["10.244.0.0/16".parse().unwrap()],
            own_pod_cidrs: Vec::new(),
            own_node_ips: Vec::new(),
            peer_node_ips: Vec::new(),
            mesh: Vec::new(),
            non_masquerade: Vec::new(),
            service_cidrs: Vec::new(),
            translates: true,
            slots: ["hawser0".into(), "hawser1".into()],
            pod_veth_prefix: "hw".into(),
            tunnel_ports: [51880, 51881],
            hosts: HostGuard::default(),
        };
        let mut table = ruleset(&empty);
        change(&mut table);
        let error = encode::replace(&table, &Default::default()).expect_err("refused").to_string();
        assert_eq!(error, expect);
    };
    let slot = |name: &str| Elements::Interfaces([name.to_owned()].into());
    check(
        &|table| table.sets[0].elements = slot("a-name-too-long0"),
        "interface name \"a-name-too-long0\" in elements of set hawser/slots from number 0: must be 1 to 15 bytes without \
         '/', space or '*'",
    );
    check(
        &|table| {
            table.chains[0].rules[1].matches[1] =
                Match::InterfaceIn(Direction::In, Is::Yes, "guarded_v4".into())
        },
        "rule 1 (refused_in_v4) of chain hawser/refuse_in looks up set \"guarded_v4\", which is not in the table or holds \
         something else",
    );
    check(
        &|table| table.chains[0].rules[0].comment = "x".repeat(128),
        &format!(
            "comment of rule 0 ({}) of chain hawser/refuse_in has 128 bytes; at most 127 are kept, and no NUL",
            "x".repeat(128)
        ),
    );
}
