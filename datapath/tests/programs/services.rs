//! Services: from what a pod says to a backend, and back.

use std::collections::BTreeMap;

use datapath::abi;

use crate::support::bench::{Bench, both, one};
use crate::support::names::{Family, name};
use crate::support::text::packet;

#[test]
fn what_is_said_to_a_service_goes_to_its_backend_and_the_answer_comes_from_the_service() {
    both(|bench| {
        for (protocol, port, behind) in
            [("tcp", 80, 8080), ("udp", 53, 5353), ("sctp", 9, 9), ("tcp", 81, 81)]
        {
            bench.play(&format!(
                "
                service svc:{port}/{protocol} = b:{behind}
                service svc2:{port}/{protocol} = x:{behind}
                service ext:{port}/{protocol} = w:{behind}
                a          | {protocol} a:1 > svc:{port}  | to b   | {protocol} a:1 > b:{behind}
                b          | {protocol} b:{behind} > a:1  | to a   | {protocol} svc:{port} > a:1
                a          | {protocol} a:1 > svc:{port}  | to b   | {protocol} a:1 > b:{behind}
                a          | {protocol} a:2 > svc2:{port} | tunnel | {protocol} a:2 > x:{behind}
                slot       | {protocol} x:{behind} > a:2  | to a   | {protocol} svc2:{port} > a:2
                a          | {protocol} a:3 > ext:{port}  | stack  | {protocol} a:3 > w:{behind}
                uplink > a | {protocol} w:{behind} > a:3  | pass   | {protocol} ext:{port} > a:3
                a          | {protocol} a:3 > ext:{port}  | stack  | {protocol} a:3 > w:{behind}
                counted translated 3
                "
            ));
        }
    });
}

#[test]
fn checksums_stay_right_at_odd_lengths_and_udp_may_do_without() {
    both(|bench| {
        bench.play("service svc:53/udp = b:5353\nservice svc:80/tcp = x:65535");
        for payload in [0, 1, 2, 3, 7, 64, 513, 1341] {
            bench.play(&format!(
                "
                a    | udp a:1 > svc:53 payload {payload}     | to b   | udp a:1 > b:5353
                b    | udp b:5353 > a:1 payload {payload}     | to a   | udp svc:53 > a:1
                a    | tcp a:2 > svc:80 ack payload {payload} | tunnel | tcp a:2 > x:65535 ack
                slot | tcp x:65535 > a:2 ack payload {payload} | to a  | tcp svc:80 > a:2 ack
                "
            ));
        }
    });
    one(Family::V4, |bench| {
        bench.play(
            "
            service svc:53/udp = b:5353
            a | udp a:1 > svc:53 nosum | to b | udp a:1 > b:5353
            ",
        );
        let done = bench.send("a", &packet("udp a:1 > svc:53 nosum", Family::V4));
        assert_eq!(done.frame[14 + 20 + 6..][..2], [0, 0], "no checksum is none afterwards");
    });
}

#[test]
fn options_and_extension_headers_do_not_hide_the_ports() {
    one(Family::V4, |bench| {
        bench.play("service svc:80/tcp = b:8080");
        bench.play("a | tcp a:1 > svc:80 syn options 4 | to b | tcp a:1 > b:8080 syn");
    });
    one(Family::V6, |bench| {
        bench.play("service svc:80/tcp = b:8080");
        bench.play("a | tcp a:1 > svc:80 syn extensions 60,44 | to b | tcp a:1 > b:8080 syn");
    });
}

#[test]
fn policy_is_asked_of_the_backend_and_its_port_and_never_of_the_services_address() {
    both(|bench| {
        bench.play(
            "
            service svc:80/tcp = b:8080
            service svc2:80/tcp = c:8080
            policy a: out deny, out b tcp/8080, out world allow
            policy b: in deny, in a tcp/8080
            a | tcp a:1 > svc:80 syn  | to b | tcp a:1 > b:8080 syn
            asked egress 1, ingress-fast 1
            a | tcp a:2 > svc2:80 syn | drop policy-egress
            d | tcp d:1 > svc:80 syn  | drop policy-ingress
            policy a: out deny, out b tcp/80
            a | tcp a:3 > svc:80 syn  | drop policy-egress
            ",
        );
    });
}

#[test]
fn a_new_deny_cuts_flows_to_services_in_both_directions() {
    both(|bench| {
        bench.play(
            "
            service svc:80/tcp = b:8080
            service svc2:80/tcp = x:8080
            a    | tcp a:1 > svc:80 syn      | to b   | tcp a:1 > b:8080 syn
            b    | tcp b:8080 > a:1 syn,ack  | to a   | tcp svc:80 > a:1 syn,ack
            a    | tcp a:2 > svc2:80 syn     | tunnel | tcp a:2 > x:8080 syn
            policy b: in deny
            a    | tcp a:1 > svc:80 ack      | drop revoked
            b    | tcp b:8080 > a:1 ack      | drop revoked
            policy a: out deny
            slot | tcp x:8080 > a:2 syn,ack  | drop revoked
            a    | tcp a:2 > svc2:80 ack     | drop revoked
            policy b: in allow
            policy a: out allow
            a    | tcp a:1 > svc:80 ack      | to b   | tcp a:1 > b:8080 ack
            b    | tcp b:8080 > a:1 ack      | to a   | tcp svc:80 > a:1 ack
            slot | tcp x:8080 > a:2 syn,ack  | to a   | tcp svc2:80 > a:2 syn,ack
            ",
        );
    });
}

#[test]
fn a_service_without_endpoints_is_refused_by_the_stack_and_nothing_is_remembered() {
    both(|bench| {
        bench.play(
            "
            service svc:80/tcp =
            service svc:53/udp =
            policy a: out deny
            a | tcp a:1 > svc:80 syn | reject
            a | udp a:1 > svc:53     | reject
            counted rejected 2, translated 0, egress 0
            ",
        );
        assert!(bench.kernel.all::<abi::Tuple, abi::Flow>("flows").is_empty());
    });
}

#[test]
fn a_service_whose_local_policy_leaves_no_endpoint_is_dropped_without_a_word() {
    both(|bench| bench.play("service svc:80/tcp = drop\na | tcp a:1 > svc:80 syn | drop no-backend"));
}

#[test]
fn a_services_address_refuses_ports_that_it_does_not_serve() {
    both(|bench| {
        bench.play(
            "
            whole svc
            service svc:80/tcp = b:8080
            a | tcp a:1 > svc:80 syn  | to b | tcp a:1 > b:8080 syn
            a | tcp a:1 > svc:81 syn  | reject
            a | udp a:1 > svc:80      | reject
            a | sctp a:1 > svc:80     | reject
            a | udp a:1 > svc2:80     | stack
            a | echo a > svc          | stack    # no service answers that
            ",
        );
    });
}

#[test]
fn a_node_port_is_at_any_nodes_address_and_at_no_other() {
    both(|bench| {
        bench.play(
            "
            service node:30080/tcp = b:8080
            a | tcp a:1 > n1:30080 syn | to b | tcp a:1 > b:8080 syn
            b | tcp b:8080 > a:1 ack   | to a | tcp n1:30080 > a:1 ack
            a | tcp a:2 > n2:30080 syn | to b | tcp a:2 > b:8080 syn
            b | tcp b:8080 > a:2 ack   | to a | tcp n2:30080 > a:2 ack
            a | tcp a:3 > m1:30080 syn | to b | tcp a:3 > b:8080 syn
            a | tcp a:4 > w:30080 syn  | stack
            a | tcp a:5 > x:30080 syn  | tunnel
            a | tcp a:6 > c:30080 syn  | to c
            a | tcp a:7 > n1:30081 syn | stack
            a | udp a:8 > n1:30080     | stack
            service n1:30080/tcp = c:9090
            a | tcp a:9 > n1:30080 syn | to c | tcp a:9 > c:9090 syn   # a hostPort of its own stands above
            a | tcp a:9 > n2:30080 syn | to b | tcp a:9 > b:8080 syn
            ",
        );
    });
}

#[test]
fn the_families_node_ports_do_not_mix() {
    one(Family::V6, |bench| {
        bench.play("service node:30080/tcp = b:8080");
        bench.family = Family::V4;
        bench.play("a | tcp a:1 > n1:30080 syn | stack");
        bench.family = Family::V6;
        bench.play("a | tcp a:1 > n1:30080 syn | to b | tcp a:1 > b:8080 syn");
    });
}

#[test]
fn a_pod_reaches_itself_by_its_service_and_is_answered_by_it() {
    both(|bench| {
        for (protocol, behind) in [("tcp", 8080), ("udp", 8080), ("sctp", 80), ("tcp", 80)] {
            bench.play(&format!(
                "
                service svc:80/{protocol} = a:{behind}
                a | {protocol} a:1 > svc:80     | to a | {protocol} svc:1 > a:{behind}
                a | {protocol} a:{behind} > svc:1 | to a | {protocol} svc:80 > a:1
                a | {protocol} a:1 > svc:80     | to a | {protocol} svc:1 > a:{behind}
                a | {protocol} a:{behind} > svc:1 | to a | {protocol} svc:80 > a:1
                "
            ));
            for (key, _) in bench.kernel.all::<abi::Tuple, abi::Flow>("flows") {
                bench.kernel.remove::<_, abi::Flow>("flows", key);
            }
        }
    });
}

#[test]
fn a_pods_way_to_itself_by_its_service_is_judged_by_its_own_address() {
    both(|bench| {
        bench.play(
            "
            service svc:80/tcp = a:8080
            policy a: in deny, in a allow, out deny, out a tcp/8080
            a | tcp a:1 > svc:80 syn      | to a | tcp svc:1 > a:8080 syn
            policy a: in deny, out allow
            a | tcp a:1 > svc:80 ack      | drop revoked
            a | tcp a:8080 > svc:1 ack    | drop revoked
            a | tcp a:2 > svc:80 syn      | drop policy-ingress
            policy a: in allow, out deny
            a | tcp a:2 > svc:80 syn      | drop policy-egress
            ",
        );
    });
}

#[test]
fn a_slow_pods_services_are_translated_both_ways_by_the_stack() {
    both(|bench| {
        for slow in ["a", "b"] {
            bench.play(&format!(
                "
                slow {slow}
                service svc:80/tcp = b:8080
                policy a: in deny
                policy b: out deny
                "
            ));
            // Policies rewrite the endpoint's sides and leave its flags.
            bench.play(
                "
                a     | tcp a:1 > svc:80 syn     | stack | tcp a:1 > b:8080 syn
                a > b | tcp a:1 > b:8080 syn     | pass
                b     | tcp b:8080 > a:1 syn,ack | stack
                b > a | tcp b:8080 > a:1 syn,ack | pass  | tcp svc:80 > a:1 syn,ack
                a     | tcp a:1 > svc:80 ack     | stack | tcp a:1 > b:8080 ack
                b     | unreachable b > a about { tcp a:1 > b:8080 } | stack
                b > a | unreachable b > a about { tcp a:1 > b:8080 } | pass | unreachable b > a about { tcp a:1 > svc:80 }
                ",
            );
            bench.put_endpoint("a", 0);
            bench.put_endpoint("b", 0);
            for (key, _) in bench.kernel.all::<abi::Tuple, abi::Flow>("flows") {
                bench.kernel.remove::<_, abi::Flow>("flows", key);
            }
        }
    });
}

#[test]
fn a_slow_pod_reaches_itself_by_its_service_past_the_stack() {
    both(|bench| {
        bench.play(
            "
            slow a
            service svc:80/tcp = a:8080
            a | tcp a:1 > svc:80 syn       | to a | tcp svc:1 > a:8080 syn
            a | tcp a:8080 > svc:1 syn,ack | to a | tcp svc:80 > a:1 syn,ack
            ",
        );
    });
}

/// Which backend each of many flows of `a` to `to` got.
pub(crate) fn spread(
    bench: &mut Bench,
    protocol: &str,
    to: &str,
    ports: std::ops::Range<u16>,
) -> BTreeMap<u16, String> {
    let mut seen = BTreeMap::new();
    for port in ports {
        let said = packet(&format!("{protocol} a:{port} > {to}"), bench.family);
        let done = bench.send("a", &said);
        assert!(["to b", "to c", "tunnel"].contains(&done.outcome.as_str()), "{}", done.outcome);
        let (_, kept) = bench.said(&format!("{protocol} a:{port} > {to}")).expect("the choice is remembered");
        seen.insert(port, name(kept.nat.ip()));
    }
    seen
}

pub(crate) fn shares(seen: &BTreeMap<u16, String>) -> BTreeMap<&str, usize> {
    let mut shares = BTreeMap::new();
    for backend in seen.values() {
        *shares.entry(backend.as_str()).or_default() += 1;
    }
    shares
}

#[test]
fn flows_spread_over_the_backends_and_each_stays_with_its_own() {
    both(|bench| {
        bench.play("service svc:80/udp = b:8080 c:8080 x:8080");
        let first = spread(bench, "udp", "svc:80", 1000..1300);
        let shares = shares(&first);
        assert_eq!(shares.len(), 3, "{shares:?}");
        assert!(shares.values().all(|share| (60..=140).contains(share)), "{shares:?}");
        assert_eq!(spread(bench, "udp", "svc:80", 1000..1300), first);
    });
}

/// Takes a backend out of `places` (all of them name `instead`) and out of `backends`.
fn remove_backend(bench: &mut Bench, gone: u32, instead: u32) {
    for place in 0..bench.place {
        bench.kernel.set("places", place, instead);
    }
    assert!(bench.kernel.remove::<u32, abi::Backend>("backends", gone));
}

fn backend_of(bench: &Bench, pod: &str) -> u32 {
    let all = bench.kernel.all::<u32, abi::Backend>("backends");
    all.into_iter().find(|(_, backend)| backend.addr == bench.addr(pod)).expect("a backend").0
}

#[test]
fn udp_flows_to_a_removed_backend_choose_again_and_tcp_ones_go_on() {
    both(|bench| {
        bench.play(
            "
            service svc:80/tcp = b:8080
            service svc:53/udp = b:5353
            service svc:9/sctp = b:9
            a | tcp a:1 > svc:80 syn | to b | tcp a:1 > b:8080 syn
            a | udp a:1 > svc:53     | to b | udp a:1 > b:5353
            a | sctp a:1 > svc:9     | to b | sctp a:1 > b:9
            ",
        );
        for (key, _) in bench.kernel.all::<u32, abi::Backend>("backends") {
            bench.kernel.remove::<u32, abi::Backend>("backends", key);
        }
        bench.place = 0;
        bench.play(
            "
            service svc:80/tcp = c:8080
            service svc:53/udp = c:5353
            service svc:9/sctp = c:9
            a | tcp a:1 > svc:80 ack     | to b | tcp a:1 > b:8080 ack
            b | tcp b:8080 > a:1 fin,ack | to a | tcp svc:80 > a:1 fin,ack
            a | udp a:1 > svc:53         | to c | udp a:1 > c:5353
            c | udp c:5353 > a:1         | to a | udp svc:53 > a:1
            a | sctp a:1 > svc:9         | to c | sctp a:1 > c:9
            a | tcp a:1 > svc:80 syn     | to c | tcp a:1 > c:8080 syn    # a new connection of the same ports
            a | tcp a:1 > svc:80 ack     | to c | tcp a:1 > c:8080 ack
            ",
        );
    });
}

#[test]
fn flows_stay_where_they_are_when_other_backends_go() {
    both(|bench| {
        bench.play("service svc:80/udp = b:8080 c:8080");
        let before = spread(bench, "udp", "svc:80", 1..40);
        let (gone, stays) = (backend_of(bench, "c"), backend_of(bench, "b"));
        remove_backend(bench, gone, stays);
        let after = spread(bench, "udp", "svc:80", 1..40);
        assert!(
            shares(&before).len() == 2 && shares(&after) == BTreeMap::from([("b", 39)]),
            "{before:?} {after:?}"
        );
    });
}

#[test]
fn a_leaving_backend_keeps_its_flows() {
    both(|bench| {
        bench.play("service svc:80/udp = b:8080\na | udp a:1 > svc:80 | to b | udp a:1 > b:8080");
        let number = backend_of(bench, "b");
        let mut backend: abi::Backend = bench.kernel.get("backends", number).expect("there");
        backend.flags = abi::HW_BACKEND_LEAVING;
        bench.kernel.put("backends", number, backend);
        bench.place = 0;
        bench.play(
            "
            service svc:80/udp = c:8080
            a | udp a:1 > svc:80 | to b | udp a:1 > b:8080
            a | udp a:2 > svc:80 | to c | udp a:2 > c:8080
            ",
        );
    });
}

#[test]
fn a_client_with_affinity_stays_with_one_backend_until_it_expires_or_the_backend_goes() {
    both(|bench| {
        bench.play("service svc:80/tcp = b:8080 c:8080 affinity 100");
        let first = spread(bench, "tcp", "svc:80", 1..60);
        let of_first = shares(&first);
        assert_eq!(of_first.len(), 1, "{of_first:?}");
        let chosen = (*of_first.keys().next().expect("one")).to_owned();
        let all = bench.kernel.all::<abi::AffinityKey, abi::Affinity>("affinities");
        let (key, affinity) = all[0];
        assert_eq!((all.len(), key.client), (1, bench.addr("a")));
        let left = (affinity.until - Bench::now()) / 1_000_000_000;
        assert!((98..=100).contains(&left), "{left}");
        // It leaves: flows of before go on, new ones go elsewhere.
        let number = backend_of(bench, &chosen);
        let mut backend: abi::Backend = bench.kernel.get("backends", number).expect("there");
        backend.flags = abi::HW_BACKEND_LEAVING;
        bench.kernel.put("backends", number, backend);
        let other = backend_of(bench, if chosen == "b" { "c" } else { "b" });
        bench.kernel.set("places", 0, other);
        bench.kernel.set("places", 1, other);
        let later = spread(bench, "tcp", "svc:80", 100..140);
        assert!(shares(&later).len() == 1 && !shares(&later).contains_key(chosen.as_str()), "{later:?}");
        // Expired: any backend again.
        bench.kernel.put("affinities", key, abi::Affinity { until: 1, ..affinity });
        let fresh = spread(bench, "tcp", "svc:80", 200..202);
        assert_eq!(shares(&fresh).len(), 1);
    });
}

#[test]
fn affinity_is_of_one_client_and_one_service() {
    both(|bench| {
        bench.play(
            "
            service svc:80/tcp = b:8080 affinity 100
            service svc2:80/tcp = c:8080 affinity 100
            a | tcp a:1 > svc:80 syn  | to b | tcp a:1 > b:8080 syn
            a | tcp a:1 > svc2:80 syn | to c | tcp a:1 > c:8080 syn
            d | tcp d:1 > svc:80 syn  | to b | tcp d:1 > b:8080 syn
            ",
        );
        assert_eq!(bench.kernel.all::<abi::AffinityKey, abi::Affinity>("affinities").len(), 3);
    });
}

#[test]
fn a_flow_that_spoke_to_a_service_before_there_was_one_finds_it_when_it_is_there() {
    both(|bench| {
        bench.play(
            "
            a | udp a:1 > svc:53     | stack
            a | tcp a:1 > svc:80 syn | stack
            a | tcp a:1 > n2:30080 syn | stack
            service svc:53/udp = b:5353
            service svc:80/tcp = b:8080
            service node:30080/tcp = b:8080
            a | udp a:1 > svc:53     | to b | udp a:1 > b:5353
            a | tcp a:1 > svc:80 syn | to b | tcp a:1 > b:8080 syn
            b | udp b:5353 > a:1     | to a | udp svc:53 > a:1
            service svc2:80/tcp =
            a | tcp a:3 > svc2:80 syn | reject
            ",
        );
    });
}

#[test]
fn a_flow_that_was_answered_from_elsewhere_stays_there_when_its_address_becomes_a_services() {
    both(|bench| {
        bench.play(
            "
            a          | udp a:1 > ext:53 | stack
            uplink > a | udp ext:53 > a:1 | pass
            service ext:53/udp = b:5353
            a          | udp a:1 > ext:53 | stack
            a          | udp a:2 > ext:53 | to b | udp a:2 > b:5353
            ",
        );
    });
}

#[test]
fn a_flow_outlives_its_service_as_long_as_its_backend_is_there() {
    both(|bench| {
        bench.play("service svc:80/tcp = b:8080\na | tcp a:1 > svc:80 syn | to b | tcp a:1 > b:8080 syn");
        for (key, _) in bench.kernel.all::<abi::FrontendKey, abi::Frontend>("frontends") {
            bench.kernel.remove::<_, abi::Frontend>("frontends", key);
        }
        bench.play("a | tcp a:1 > svc:80 ack | to b | tcp a:1 > b:8080 ack");
        bench.play("a | tcp a:2 > svc:80 syn | stack");
    });
}

#[test]
fn what_is_remembered_of_a_clients_words_lasts_as_long_as_the_flow() {
    both(|bench| {
        let left = |bench: &Bench, text: &str| {
            let until = bench.said(text).expect("the choice is remembered").1.until;
            (until - Bench::now() + 500_000_000) / 1_000_000_000
        };
        bench.play(
            "
            service svc:80/tcp = b:8080
            service svc:53/udp = b:5353
            a | tcp a:1 > svc:80 syn | to b | tcp a:1 > b:8080 syn
            a | udp a:1 > svc:53     | to b | udp a:1 > b:5353
            ",
        );
        assert_eq!(left(bench, "tcp a:1 > svc:80"), 60);
        assert_eq!(left(bench, "udp a:1 > svc:53"), 180, "a resolver asks from a new port each time");
    });
}

#[test]
fn first_packets_to_a_service_are_not_held_since_a_second_look_would_not_know_how() {
    both(|bench| {
        bench.play(
            "
            service svc:80/tcp = x:8080
            policy a: out deny, out x allow
            forget x
            holding
            a | tcp a:1 > svc:80 syn | drop unknown-egress
            know x
            a | tcp a:1 > svc:80 syn | tunnel | tcp a:1 > x:8080 syn
            ",
        );
    });
}

#[test]
fn an_event_names_the_service_and_the_backend() {
    both(|bench| {
        bench.play("service svc:80/tcp = b:8080");
        let event = bench.send("a", &packet("tcp a:1 > svc:80 syn", bench.family)).events[0];
        assert_eq!(
            (event.kind, event.service, event.service_port.get()),
            (abi::HW_EVENT_NEW, bench.addr("svc"), 80)
        );
        assert_eq!((event.dst, event.dport.get()), (bench.addr("b"), 8080));
    });
}
