//! Verdicts written by hand: what kube-proxy's rules say, case by case. The oracle must say the same.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use super::kernel::Kernel;
use super::object;
use super::oracle::{Answer, World};
use crate::policy::model::Protocol;
use crate::service::model::{
    ClientIpConfig, Conditions, EndpointFacts, EndpointSliceFacts, Hint, Hints, HostPortFacts,
    LoadBalancerIngress, OwnNode, ServiceFacts, ServicePort, SlicePort,
};
use crate::service::{Compiler, Limits};

/// This node is `n1` in zone `z1` with pods in 10.1.0.0/24; `n2` is another one.
pub(super) fn world() -> World {
    let addresses: BTreeSet<IpAddr> = ["192.0.2.1", "2001:db8::1"].map(|text| text.parse().unwrap()).into();
    let own = OwnNode {
        name: Some("n1".parse().unwrap()),
        zone: Some("z1".to_owned()),
        addresses: addresses.clone(),
        pod_cidrs: vec!["10.1.0.0/24".parse().unwrap(), "fd00:1::/64".parse().unwrap()],
    };
    let nodes = addresses.into_iter().chain(["192.0.2.2".parse().unwrap()]).collect();
    World { own, nodes, ..World::default() }
}

/// Service `name` with port 80 named `p`, NodePort 30080.
pub(super) fn service(kind: &str, cluster_ips: &[&str]) -> ServiceFacts {
    let mut facts = ServiceFacts::default();
    facts.spec.kind = kind.to_owned();
    facts.spec.cluster_ips = cluster_ips.iter().map(|ip| (*ip).to_owned()).collect();
    facts.spec.cluster_ip = facts.spec.cluster_ips.first().cloned().unwrap_or_default();
    facts.spec.ports = vec![port("p", "TCP", 80, 30_080)];
    facts
}

pub(super) fn port(name: &str, protocol: &str, port: i64, node_port: i64) -> ServicePort {
    ServicePort { name: name.to_owned(), protocol: protocol.to_owned(), port, node_port }
}

/// Endpoints by words: `ADDRESS[@NODE][/ZONES][%NODES][!STATE]`; state `unready`, `ending`, `dead` or, of a service that
/// publishes what is not ready, `published`. Zones and nodes are hints.
pub(super) fn slice(of: &str, endpoints: &str) -> EndpointSliceFacts {
    let mut facts = EndpointSliceFacts::default();
    facts.metadata.labels.insert("kubernetes.io/service-name".to_owned(), of.to_owned());
    facts.address_type = if endpoints.contains("::") { "IPv6" } else { "IPv4" }.to_owned();
    facts.ports = vec![SlicePort { name: "p".to_owned(), protocol: "TCP".to_owned(), port: Some(8080) }];
    facts.endpoints = endpoints.split_whitespace().map(endpoint).collect();
    facts
}

fn endpoint(word: &str) -> EndpointFacts {
    let (word, state) = word.split_once('!').unwrap_or((word, ""));
    let (word, nodes) = word.split_once('%').unwrap_or((word, ""));
    let (word, zones) = word.split_once('/').unwrap_or((word, ""));
    let (address, node) = word.split_once('@').unwrap_or((word, ""));
    let hints = |names: &str| {
        names.split(',').filter(|n| !n.is_empty()).map(|n| Hint { name: n.to_owned() }).collect()
    };
    let flags = |ready, serving, terminating| Conditions {
        ready: Some(ready),
        serving: Some(serving),
        terminating: Some(terminating),
    };
    let conditions = match state {
        "" => Conditions::default(),
        "unready" => flags(false, false, false),
        "ending" => flags(false, true, true),
        "dead" => flags(false, false, true),
        "published" => flags(true, true, true),
        other => panic!("no state {other}"),
    };
    EndpointFacts {
        addresses: vec![address.to_owned()],
        conditions,
        node_name: (!node.is_empty()).then(|| node.to_owned()),
        zone: None,
        hints: Hints { for_zones: hints(zones), for_nodes: hints(nodes) },
    }
}

pub(super) fn compiled(world: &World) -> (Compiler, Kernel) {
    let mut compiler = Compiler::new(Limits::default());
    super::tell(&mut compiler, world);
    let mut kernel = Kernel::default();
    kernel.apply(&compiler.commit()).unwrap();
    (compiler, kernel)
}

fn words(answer: &Answer) -> String {
    match answer {
        Answer::Untouched => "untouched".to_owned(),
        Answer::Refused => "refused".to_owned(),
        Answer::Dropped => "dropped".to_owned(),
        Answer::To(backends, affinity) => {
            let backends: Vec<String> = backends.iter().map(SocketAddr::to_string).collect();
            let affinity = if *affinity > 0 { format!(" for {affinity} s") } else { String::new() };
            format!("{}{affinity}", backends.join(" "))
        }
    }
}

/// What is said (`ADDRESS PORT/PROTOCOL`) and what it leads to.
fn check(world: &World, cases: &[(&str, &str)]) {
    let (_, kernel) = compiled(world);
    for (said, expected) in cases {
        let (at, protocol) = said.split_once('/').unwrap_or((said, "TCP"));
        let (addr, port) = at.split_once(' ').unwrap();
        let (addr, port) = (addr.parse().unwrap(), port.parse().unwrap());
        let protocol = super::oracle::protocol(protocol).unwrap();
        assert_eq!(words(&kernel.answer(world, addr, port, protocol)), *expected, "{said}");
        assert_eq!(words(&world.answer(addr, port, protocol)), *expected, "the oracle of {said}");
    }
}

fn problems(world: &World) -> Vec<String> {
    compiled(world).0.problems().iter().map(ToString::to_string).collect()
}

#[test]
fn who_is_chosen_under_the_policy_cluster() {
    for (endpoints, expected) in [
        ("", "refused"),
        ("10.2.0.1", "10.2.0.1:8080"),
        ("10.2.0.1@n2 10.1.0.1@n1", "10.1.0.1:8080 10.2.0.1:8080"),
        ("10.2.0.1!unready", "refused"),
        ("10.2.0.1!unready 10.2.0.2", "10.2.0.2:8080"),
        ("10.2.0.1!ending", "10.2.0.1:8080"),
        ("10.2.0.1!ending 10.2.0.2", "10.2.0.2:8080"),
        ("10.2.0.1!ending 10.2.0.2!unready 10.2.0.3!dead", "10.2.0.1:8080"),
        ("10.2.0.1!dead", "refused"),
        ("10.2.0.1!published", "10.2.0.1:8080"),
        // Zones.
        ("10.2.0.1/z1 10.2.0.2/z2", "10.2.0.1:8080"),
        ("10.2.0.1/z2,z1 10.2.0.2/z2", "10.2.0.1:8080"),
        ("10.2.0.1/z1 10.2.0.2", "10.2.0.1:8080 10.2.0.2:8080"),
        ("10.2.0.1/z2 10.2.0.2/z3", "10.2.0.1:8080 10.2.0.2:8080"),
        ("10.2.0.1/z1 10.2.0.2/z2 10.2.0.3!unready", "10.2.0.1:8080"),
        ("10.2.0.1/z1!unready 10.2.0.2/z2", "10.2.0.2:8080"),
        ("10.2.0.1/z1!ending 10.2.0.2/z2!ending", "10.2.0.1:8080 10.2.0.2:8080"),
        // Nodes before zones.
        ("10.2.0.1/z1%n1 10.2.0.2/z1%n2", "10.2.0.1:8080"),
        ("10.2.0.1/z1%n2 10.2.0.2/z2%n2", "10.2.0.1:8080"),
        ("10.2.0.1/z1%n1 10.2.0.2/z1", "10.2.0.1:8080 10.2.0.2:8080"),
        ("10.2.0.1/z1%n1 10.2.0.2/z2", "10.2.0.1:8080"),
    ] {
        let mut world = world();
        world.services.insert(object("a"), service("ClusterIP", &["10.96.0.1"]));
        world.slices.insert(object("a-1"), slice("a", endpoints));
        check(&world, &[("10.96.0.1 80", expected)]);
    }
}

#[test]
fn who_is_chosen_under_the_policy_local() {
    for (endpoints, expected) in [
        ("", "refused"),
        ("10.1.0.1@n1 10.2.0.1@n2", "10.1.0.1:8080"),
        ("10.2.0.1@n2", "dropped"),
        ("10.2.0.1@n2!ending", "dropped"),
        ("10.2.0.1@n2!unready", "refused"),
        ("10.1.0.1@n1!ending 10.2.0.1@n2", "10.1.0.1:8080"),
        ("10.1.0.1@n1!ending 10.1.0.2@n1", "10.1.0.2:8080"),
        ("10.1.0.1@n1!unready 10.2.0.1@n2", "dropped"),
        ("10.1.0.1@n1/z2 10.2.0.1@n2/z1", "10.1.0.1:8080"),
        ("10.2.0.1", "dropped"),
    ] {
        let mut world = world();
        let mut facts = service("NodePort", &["10.96.0.1"]);
        facts.spec.internal_traffic_policy = "Local".to_owned();
        facts.spec.external_ips = vec!["198.51.100.1".to_owned()];
        world.services.insert(object("a"), facts);
        world.slices.insert(object("a-1"), slice("a", endpoints));
        check(&world, &[("10.96.0.1 80", expected)]);
    }
}

#[test]
fn an_endpoint_in_two_slices_is_what_says_more_for_it() {
    for (one, other, cluster, local) in [
        ("10.1.0.1@n1", "10.1.0.1@n1!unready", "10.1.0.1:8080", "10.1.0.1:8080"),
        ("10.1.0.1@n1!unready", "10.1.0.1@n2", "refused", "refused"),
        ("10.1.0.1@n2", "10.1.0.1@n1!ending", "10.1.0.1:8080", "10.1.0.1:8080"),
        ("10.1.0.1@n1!dead", "10.1.0.1@n1!ending", "10.1.0.1:8080", "10.1.0.1:8080"),
        ("10.1.0.1@n2!ending", "10.1.0.1@n2!unready", "10.1.0.1:8080", "dropped"),
    ] {
        for (policy, expected) in [("Cluster", cluster), ("Local", local)] {
            for (first, second) in [(one, other), (other, one)] {
                let mut world = world();
                let mut facts = service("ClusterIP", &["10.96.0.1"]);
                facts.spec.internal_traffic_policy = policy.to_owned();
                world.services.insert(object("a"), facts);
                world.slices.insert(object("a-1"), slice("a", first));
                world.slices.insert(object("a-2"), slice("a", second));
                check(&world, &[("10.96.0.1 80", expected)]);
            }
        }
    }
}

#[test]
fn external_addresses_follow_the_cluster_policy_for_pods_whatever_the_service_says() {
    let mut world = world();
    let mut facts = service("LoadBalancer", &["10.96.0.1"]);
    facts.spec.internal_traffic_policy = "Local".to_owned();
    facts.spec.external_traffic_policy = "Local".to_owned();
    facts.spec.external_ips = vec!["198.51.100.1".to_owned(), "192.0.2.2".to_owned()];
    facts.status.load_balancer.ingress = vec![
        LoadBalancerIngress { ip: "198.51.100.2".to_owned(), ip_mode: "VIP".to_owned() },
        LoadBalancerIngress { ip: "198.51.100.3".to_owned(), ip_mode: "Proxy".to_owned() },
        LoadBalancerIngress::default(),
    ];
    world.services.insert(object("a"), facts);
    world.slices.insert(object("a-1"), slice("a", "10.2.0.1@n2"));
    check(
        &world,
        &[
            ("10.96.0.1 80", "dropped"),
            ("198.51.100.1 80", "10.2.0.1:8080"),
            ("198.51.100.1 81", "untouched"),
            ("198.51.100.2 80", "10.2.0.1:8080"),
            ("198.51.100.3 80", "untouched"),
            ("192.0.2.1 30080", "10.2.0.1:8080"), // this node's: its own pods do not come from outside
            ("192.0.2.2 80", "10.2.0.1:8080"),
            ("192.0.2.1 80", "untouched"),
            ("2001:db8::1 30080", "untouched"),
        ],
    );
}

#[test]
fn another_node_hands_what_comes_in_on_to_its_own_endpoints_alone_if_the_service_wants_that() {
    let mut world = world();
    world.nodes.insert("192.0.2.3".parse().unwrap());
    world.homes = [("n1", "192.0.2.1"), ("n2", "192.0.2.2"), ("n3", "192.0.2.3")]
        .map(|(node, addr)| (node.parse().unwrap(), BTreeSet::from([addr.parse().unwrap()])))
        .into();
    let mut facts = service("NodePort", &["10.96.0.1"]);
    facts.spec.external_traffic_policy = "Local".to_owned();
    world.services.insert(object("a"), facts);
    // n1 is this node. (endpoints, at n1, at n2, at n3)
    let both = "10.1.0.1:8080 10.2.0.1:8080";
    for (endpoints, own, second, third) in [
        ("10.1.0.1@n1 10.2.0.1@n2", both, "10.2.0.1:8080", "dropped"),
        ("10.2.0.1@n2", "10.2.0.1:8080", "10.2.0.1:8080", "dropped"),
        ("10.1.0.1@n1", "10.1.0.1:8080", "dropped", "dropped"),
        // Ending, and the only one.
        ("10.2.0.1@n2!ending", "10.2.0.1:8080", "10.2.0.1:8080", "dropped"),
        // Nobody knows on which node it is.
        ("10.2.0.1", "10.2.0.1:8080", "dropped", "dropped"),
        ("", "refused", "refused", "refused"),
    ] {
        world.slices.insert(object("a-1"), slice("a", endpoints));
        check(&world, &[("192.0.2.1 30080", own), ("192.0.2.2 30080", second), ("192.0.2.3 30080", third)]);
    }
}

#[test]
fn a_cluster_ip_refuses_what_it_does_not_serve() {
    let mut world = world();
    world.services.insert(object("a"), service("ClusterIP", &["10.96.0.1"]));
    world.slices.insert(object("a-1"), slice("a", "10.2.0.1"));
    check(
        &world,
        &[
            ("10.96.0.1 80", "10.2.0.1:8080"),
            ("10.96.0.1 80/UDP", "refused"),
            ("10.96.0.1 81", "refused"),
            ("10.96.0.2 80", "untouched"),
            ("192.0.2.1 30080", "untouched"), // no NodePort by its type
        ],
    );
}

#[test]
fn families_have_slices_of_their_own() {
    let mut world = world();
    world.services.insert(object("a"), service("NodePort", &["fd00:96::1", "10.96.0.1"]));
    world.slices.insert(object("a-4"), slice("a", "10.2.0.1"));
    world.slices.insert(object("a-6"), slice("a", "fd00:2::1"));
    check(
        &world,
        &[
            ("10.96.0.1 80", "10.2.0.1:8080"),
            ("fd00:96::1 80", "[fd00:2::1]:8080"),
            ("192.0.2.1 30080", "10.2.0.1:8080"),
            ("2001:db8::1 30080", "[fd00:2::1]:8080"),
        ],
    );
}

#[test]
fn services_that_are_not_for_us_have_no_entry() {
    type Case = (fn(&mut ServiceFacts), &'static str);
    let changes: [Case; 6] = [
        (|_| {}, "10.2.0.1:8080"),
        (|s| s.spec.cluster_ips = vec!["None".to_owned()], "untouched"),
        (|s| s.spec.kind = "ExternalName".to_owned(), "untouched"),
        (|s| s.spec.cluster_ips = vec![String::new()], "untouched"),
        (
            |s| {
                s.metadata
                    .labels
                    .insert("service.kubernetes.io/service-proxy-name".to_owned(), "other".to_owned());
            },
            "untouched",
        ),
        (
            |s| {
                s.metadata.labels.insert("service.kubernetes.io/headless".to_owned(), String::new());
            },
            "untouched",
        ),
    ];
    for (change, expected) in changes {
        let mut world = world();
        let mut facts = service("ClusterIP", &["10.96.0.1"]);
        change(&mut facts);
        world.services.insert(object("a"), facts);
        world.slices.insert(object("a-1"), slice("a", "10.2.0.1"));
        check(&world, &[("10.96.0.1 80", expected)]);
    }
}

#[test]
fn affinity_lasts_as_long_as_the_service_says() {
    for (seconds, expected) in [(None, 10_800), (Some(60), 60), (Some(0), 10_800), (Some(86_401), 10_800)] {
        let mut world = world();
        let mut facts = service("ClusterIP", &["10.96.0.1"]);
        facts.spec.session_affinity = "ClientIP".to_owned();
        facts.spec.session_affinity_config.client_ip = ClientIpConfig { timeout_seconds: seconds };
        world.services.insert(object("a"), facts);
        world.slices.insert(object("a-1"), slice("a", "10.2.0.1"));
        check(&world, &[("10.96.0.1 80", &format!("10.2.0.1:8080 for {expected} s"))]);
    }
}

#[test]
fn sctp_is_translated_only_where_ports_stay() {
    for (target, expected, rest) in [(80, "10.2.0.1:80", "refused"), (8080, "untouched", "untouched")] {
        let mut world = world();
        let mut facts = service("NodePort", &["10.96.0.1"]);
        facts.spec.ports = vec![port("p", "SCTP", 80, 30_080)];
        world.services.insert(object("a"), facts);
        let mut endpoints = slice("a", "10.2.0.1");
        endpoints.ports[0].protocol = "SCTP".to_owned();
        endpoints.ports[0].port = Some(target);
        world.slices.insert(object("a-1"), endpoints);
        let cases =
            [("10.96.0.1 80/SCTP", expected), ("10.96.0.1 81", rest), ("192.0.2.1 30080/SCTP", "untouched")];
        check(&world, &cases);
    }
}

#[test]
fn load_balancer_addresses_are_closed_to_pods_outside_the_source_ranges() {
    for (ranges, expected) in [
        (&[][..], "10.2.0.1:8080"),
        (&["10.0.0.0/8"][..], "10.2.0.1:8080"),
        (&[" 10.1.0.0/25 ", "10.1.0.128/25"][..], "10.2.0.1:8080"),
        (&["203.0.113.0/24"][..], "dropped"),
        (&["10.1.0.0/25"][..], "dropped"),
        (&["fd00::/8"][..], "10.2.0.1:8080"),
        (&["10.1.0.0/33"][..], "dropped"),
    ] {
        let mut world = world();
        let mut facts = service("LoadBalancer", &["10.96.0.1"]);
        facts.spec.load_balancer_source_ranges = ranges.iter().map(|r| (*r).to_owned()).collect();
        facts.status.load_balancer.ingress =
            vec![LoadBalancerIngress { ip: "198.51.100.2".to_owned(), ip_mode: String::new() }];
        world.services.insert(object("a"), facts);
        world.slices.insert(object("a-1"), slice("a", "10.2.0.1"));
        let (_, kernel) = compiled(&world);
        let addr = "198.51.100.2".parse().unwrap();
        assert_eq!(words(&kernel.answer(&world, addr, 80, Protocol::Tcp)), expected, "{ranges:?}");
        check(&world, &[("10.96.0.1 80", "10.2.0.1:8080"), ("192.0.2.1 30080", "10.2.0.1:8080")]);
    }
}

#[test]
fn nobody_takes_an_address_that_the_api_server_gave_to_another() {
    let mut world = world();
    let mut thief = service("ClusterIP", &["10.96.0.9"]);
    thief.spec.external_ips = vec!["10.96.0.1".to_owned(), "198.51.100.1".to_owned()];
    thief.spec.ports.push(port("q", "TCP", 81, 0));
    world.services.insert(object("a-thief"), thief);
    let mut owner = service("LoadBalancer", &["10.96.0.1"]);
    owner.status.load_balancer.ingress =
        vec![LoadBalancerIngress { ip: "198.51.100.1".to_owned(), ip_mode: String::new() }];
    world.services.insert(object("owner"), owner);
    world.slices.insert(object("a-1"), slice("a-thief", "10.2.0.66"));
    world.slices.insert(object("o-1"), slice("owner", "10.2.0.1"));
    check(
        &world,
        &[
            ("10.96.0.1 80", "10.2.0.1:8080"),
            ("10.96.0.1 81", "refused"),
            ("198.51.100.1 80", "10.2.0.1:8080"),
        ],
    );
    expect_test::expect![[r#"
        Service x/a-thief: spec.externalIPs: 10.96.0.1 port 80/TCP is refused: it belongs to Service x/owner; give one of the two another address or port
        Service x/a-thief: spec.externalIPs: 10.96.0.1 port 81/TCP is refused: it belongs to Service x/owner; give one of the two another address or port
        Service x/a-thief: spec.externalIPs: 198.51.100.1 port 80/TCP is refused: it belongs to Service x/owner; give one of the two another address or port"#]].assert_eq(&problems(&world).join("\n"));
}

#[test]
fn host_ports_are_reached_at_this_node_and_shadow_node_ports_there() {
    let mut world = world();
    world.services.insert(object("a"), service("NodePort", &["10.96.0.1"]));
    world.slices.insert(object("a-1"), slice("a", "10.2.0.1"));
    let host_port = |pod: &str, host_ip: Option<&str>, host_port| HostPortFacts {
        pod: object(pod),
        protocol: Protocol::Tcp,
        host_port,
        host_ip: host_ip.map(|ip| ip.parse().unwrap()),
        pod_ips: ["10.1.0.7", "fd00:1::7"].map(|ip| ip.parse().unwrap()).into(),
        container_port: 8080,
    };
    world.host_ports = BTreeSet::from([
        host_port("p", None, 30_080),
        host_port("q", Some("192.0.2.1"), 8443),
        host_port("r", Some("0.0.0.0"), 9000),
        host_port("s", Some("127.0.0.1"), 9001),
        host_port("t", None, 9000),
        host_port("u", Some("203.0.113.9"), 9002),
    ]);
    check(
        &world,
        &[
            ("192.0.2.1 30080", "10.1.0.7:8080"),
            ("2001:db8::1 30080", "[fd00:1::7]:8080"),
            ("192.0.2.2 30080", "10.2.0.1:8080"),
            ("192.0.2.1 8443", "10.1.0.7:8080"),
            ("2001:db8::1 8443", "untouched"),
            ("192.0.2.1 9000", "10.1.0.7:8080"),
            ("2001:db8::1 9000", "[fd00:1::7]:8080"),
            ("192.0.2.1 9001", "untouched"),
            ("203.0.113.9 9002", "untouched"),
        ],
    );
    expect_test::expect!["Pod x/t: hostPort: 192.0.2.1 port 9000/TCP is refused: it belongs to Pod x/r; give one of the two another address or port"].assert_eq(&problems(&world).join("\n"));
}

#[test]
fn what_is_wrong_is_named_and_costs_itself_alone() {
    let mut world = world();
    let mut facts = service("NodePort", &["10.96.0.1", "10.96.0.300"]);
    facts.spec.ports.push(port("q", "QUIC", 81, 0));
    facts.spec.ports.push(port("r", "UDP", 65_536, 0));
    facts.spec.ports.push(port("p", "TCP", 82, 0));
    facts.spec.ports.push(port("s", "TCP", 83, -1));
    facts.spec.external_ips = vec!["127.0.0.1".to_owned()];
    facts.spec.session_affinity = "Sticky".to_owned();
    world.services.insert(object("a"), facts);
    let mut endpoints = slice("a", "10.2.0.1 169.254.169.254 fe80::1 ::ffff:10.2.0.2");
    endpoints.address_type = "IPv4".to_owned();
    endpoints.ports.push(SlicePort { name: "s".to_owned(), protocol: "TCP".to_owned(), port: Some(70_000) });
    endpoints.ports.push(SlicePort { name: "q".to_owned(), protocol: "QUIC".to_owned(), port: Some(81) });
    world.slices.insert(object("a-1"), endpoints);
    check(&world, &[("10.96.0.1 80", "10.2.0.1:8080"), ("10.96.0.1 83", "refused")]);
    let mut sctp = service("NodePort", &["10.96.0.2"]);
    sctp.spec.ports = vec![port("p", "SCTP", 80, 30_081)];
    world.services.insert(object("b"), sctp);
    let mut endpoints = slice("b", "10.2.0.1");
    endpoints.ports[0].protocol = "SCTP".to_owned();
    world.slices.insert(object("b-1"), endpoints);
    expect_test::expect![[r#"
        Service x/a: spec.clusterIPs[1]="10.96.0.300" refused: not an address that a host can have; not served; correct it
        Service x/a: spec.externalIPs[0]="127.0.0.1" refused: not an address that a host can have; not served; correct it
        Service x/a: spec.ports[1].protocol="QUIC" refused: the port is not served; wanted TCP, UDP or SCTP
        Service x/a: spec.ports[2].port="65536" refused: the port is not served; wanted 1 to 65535
        Service x/a: spec.ports[3].name="p" refused: another port of the service has that name and protocol; the first one is served
        Service x/a: spec.ports[4].nodePort="-1" refused: the NodePort is not served; wanted 1 to 65535
        Service x/a: spec.sessionAffinity="Sticky" refused: no affinity is kept; wanted None or ClientIP
        Service x/a: EndpointSlice a-1: endpoints[1].addresses[0]="169.254.169.254" refused: not an address of that type that a host can have; the endpoint gets nothing
        Service x/a: EndpointSlice a-1: endpoints[2].addresses[0]="fe80::1" refused: not an address of that type that a host can have; the endpoint gets nothing
        Service x/a: EndpointSlice a-1: endpoints[3].addresses[0]="::ffff:10.2.0.2" refused: not an address of that type that a host can have; the endpoint gets nothing
        Service x/a: EndpointSlice a-1: ports[1].port="70000" refused: the entry is ignored; wanted 1 to 65535
        Service x/a: EndpointSlice a-1: ports[2].protocol="QUIC" refused: the entry is ignored; wanted TCP, UDP or SCTP
        Service x/b: spec.ports[0].nodePort=30081 (SCTP) is not the port of its endpoint 10.2.0.1:8080; policy sees the address that clients say, and the stack (kube-proxy) translates it; make both ports equal
        Service x/b: spec.ports[0].port=80 (SCTP) is not the port of its endpoint 10.2.0.1:8080; policy sees the address that clients say, and the stack (kube-proxy) translates it; make both ports equal"#]].assert_eq(&problems(&world).join("\n"));
}

#[test]
fn who_leaves_keeps_flows_and_gets_no_new_ones() {
    let mut world = world();
    world.services.insert(object("a"), service("ClusterIP", &["10.96.0.1"]));
    let mut slices = vec![
        ("10.2.0.1 10.2.0.2", "10.2.0.1:8080 10.2.0.2:8080"),
        ("10.2.0.1!ending 10.2.0.2", "10.2.0.1:8080 leaving 10.2.0.2:8080"),
        ("10.2.0.1!dead 10.2.0.2", "10.2.0.2:8080"),
        ("10.2.0.1!dead 10.2.0.2!ending", "10.2.0.2:8080"),
        ("10.2.0.1/z1 10.2.0.2/z2", "10.2.0.1:8080 10.2.0.2:8080 leaving"),
    ]
    .into_iter();
    let mut compiler = Compiler::new(Limits::default());
    super::tell(&mut compiler, &world);
    compiler.commit();
    let mut numbers = BTreeSet::new();
    for (endpoints, expected) in &mut slices {
        compiler.set_slice(object("a-1"), Some(slice("a", endpoints)));
        let delta = compiler.commit();
        let known = compiler.state().backends.values();
        let words: Vec<String> =
            known.clone().map(|b| format!("{}{}", b.addr, if b.leaving { " leaving" } else { "" })).collect();
        let words: BTreeSet<String> = words.into_iter().collect();
        assert_eq!(words.into_iter().collect::<Vec<_>>().join(" "), expected, "{endpoints}");
        for id in delta.backends_set.keys().filter(|id| !numbers.contains(*id)).collect::<Vec<_>>() {
            assert!(numbers.iter().all(|known| known < id), "numbers only grow");
        }
        numbers.extend(delta.backends_set.into_keys());
    }
    assert_eq!(numbers.len(), 3, "who came back has another number: old flows do not mean it");
}

#[test]
fn other_clusters_serve_while_no_own_endpoint_is_ready() {
    let cases = [
        ("10.1.0.1", "10.2.0.1", "10.1.0.1:8080"),
        ("10.1.0.1!unready", "10.2.0.1 10.2.0.2", "10.2.0.1:8080 10.2.0.2:8080"),
        ("10.1.0.1!ending", "10.2.0.1", "10.2.0.1:8080"),
        ("10.1.0.1!ending", "10.2.0.1!ending", "10.1.0.1:8080"),
        ("10.1.0.1!dead", "10.2.0.1!ending", "10.2.0.1:8080"),
        ("", "10.2.0.1/z1 10.2.0.2/z2", "10.2.0.1:8080"),
        ("10.1.0.1/z2", "10.2.0.1/z1", "10.1.0.1:8080"),
        // A node of theirs is not ours, whatever it is called, and what we say of an address counts.
        ("10.1.0.1", "10.2.0.1%n1", "10.1.0.1:8080"),
        ("10.1.0.1!unready", "10.1.0.1", "refused"),
    ];
    for (own, remote, expected) in cases {
        let mut world = world();
        world.services.insert(object("a"), service("ClusterIP", &["10.96.0.1"]));
        world.slices.insert(object("a-own"), slice("a", own));
        let mut abroad = slice("a", remote);
        abroad.metadata.labels.insert("hawser.dev/remote".to_owned(), "east".to_owned());
        world.slices.insert(object("a-abroad"), abroad);
        check(&world, &[("10.96.0.1 80", expected)]);
    }
}

#[test]
fn an_endpoint_of_another_cluster_is_never_on_this_node() {
    let mut world = world();
    let mut facts = service("ClusterIP", &["10.96.0.1"]);
    facts.spec.internal_traffic_policy = "Local".to_owned();
    world.services.insert(object("a"), facts);
    let mut abroad = slice("a", "10.2.0.1@n1");
    abroad.metadata.labels.insert("hawser.dev/remote".to_owned(), "east".to_owned());
    world.slices.insert(object("a-abroad"), abroad);
    check(&world, &[("10.96.0.1 80", "dropped")]);
}

#[test]
fn flows_to_another_cluster_outlive_the_return_of_an_own_endpoint() {
    let mut world = world();
    world.services.insert(object("a"), service("ClusterIP", &["10.96.0.1"]));
    let mut abroad = slice("a", "10.2.0.1");
    abroad.metadata.labels.insert("hawser.dev/remote".to_owned(), "east".to_owned());
    world.slices.insert(object("a-abroad"), abroad);
    let (mut compiler, _) = compiled(&world);
    compiler.set_slice(object("a-own"), Some(slice("a", "10.1.0.1")));
    compiler.commit();
    let backends: Vec<(String, bool)> =
        compiler.state().backends.values().map(|b| (b.addr.to_string(), b.leaving)).collect();
    assert!(backends.contains(&("10.2.0.1:8080".to_owned(), true)), "{backends:?}");
    assert!(backends.contains(&("10.1.0.1:8080".to_owned(), false)), "{backends:?}");
}
