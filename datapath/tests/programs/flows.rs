//! What is remembered of flows, and for how long.

use datapath::abi;

use crate::support::bench::{Bench, both};

const SECOND: u64 = 1_000_000_000;

/// Seconds until a flow is forgotten.
fn left(bench: &Bench, text: &str) -> u64 {
    let (_, flow) = bench.flow(text).unwrap_or_else(|| panic!("no flow of {text:?}"));
    (flow.until + SECOND / 2).saturating_sub(Bench::now()) / SECOND
}

#[test]
fn answers_pass_where_only_the_first_direction_is_allowed() {
    both(|bench| {
        bench.play(
            "
            policy a: in deny
            policy b: out deny
            a    | tcp a:1 > b:80 syn     | to b
            b    | tcp b:80 > a:1 syn,ack | to a
            a    | udp a:1 > b:53         | to b
            b    | udp b:53 > a:1         | to a
            a    | sctp a:1 > b:9         | to b
            b    | sctp b:9 > a:1         | to a
            a    | echo a > b id 3        | to b
            b    | answer b > a id 3      | to a
            a    | protocol-47 a > b      | to b
            b    | protocol-47 b > a      | to a
            a    | udp a:1 > x:53         | tunnel
            slot | udp x:53 > a:1         | to a
            slot | udp x:54 > a:1         | drop policy-ingress
            b    | tcp b:81 > a:1 syn,ack | drop policy-egress
            b    | udp b:53 > a:2         | drop policy-egress
            b    | answer b > a id 4      | drop policy-egress
            b    | echo b > a id 3        | drop policy-egress
            ",
        );
    });
}

#[test]
fn both_directions_of_a_flow_are_one_entry() {
    both(|bench| {
        bench.play(
            "
            a | tcp a:1 > b:80 syn     | to b
            b | tcp b:80 > a:1 syn,ack | to a
            b | tcp b:7 > a:9 syn      | to a
            a | tcp a:9 > b:7 syn,ack  | to b
            ",
        );
        let flows = bench.kernel.all::<abi::Tuple, abi::Flow>("flows");
        assert_eq!(flows.len(), 2, "{flows:?}");
        assert_ne!(flows[0].1.flags & abi::HW_FLOW_SWAPPED, flows[1].1.flags & abi::HW_FLOW_SWAPPED);
        assert!(flows.iter().all(|(_, flow)| flow.state == abi::HW_ESTABLISHED), "{flows:?}");
    });
}

#[test]
fn echoes_are_told_apart_by_their_identifier() {
    both(|bench| {
        bench.play(
            "
            policy a: in deny
            a    | echo a > x id 1   | tunnel
            slot | answer x > a id 1 | to a
            slot | answer x > a id 2 | drop policy-ingress
            slot | echo x > a id 1   | drop policy-ingress
            slot | answer y > a id 1 | drop policy-ingress
            ",
        );
    });
}

#[test]
fn each_state_of_each_protocol_has_its_idle_time() {
    both(|bench| {
        for (place, text, seconds) in [
            ("a", "tcp a:1 > b:80 syn", 60),
            ("a", "tcp a:1 > b:80 syn", 60),
            ("b", "tcp b:80 > a:1 syn,ack", 8000),
            ("a", "tcp a:1 > b:80 ack", 8000),
            ("a", "tcp a:1 > b:80 fin,ack", 3600),
            ("b", "tcp b:80 > a:1 ack", 3600),
            ("b", "tcp b:80 > a:1 fin,ack", 10),
            ("a", "tcp a:1 > b:80 ack", 10),
            ("a", "tcp a:2 > b:80 syn", 60),
            ("b", "tcp b:80 > a:2 syn,ack", 8000),
            ("b", "tcp b:80 > a:2 rst,ack", 10),
            // What was on its way when the reset was sent, and is answered by another.
            ("a", "tcp a:2 > b:80 ack", 10),
            ("a", "tcp a:2 > b:80 ack", 10),
            ("b", "tcp b:80 > a:2 rst", 10),
            // A reset that nobody believed.
            ("b", "tcp b:80 > a:2 ack", 10),
            ("a", "tcp a:2 > b:80 ack", 8000),
            ("a", "tcp a:2 > b:80 rst", 10),
            ("a", "tcp a:2 > b:80 ack", 10),
            ("b", "tcp b:80 > a:2 ack", 8000),
            ("a", "tcp a:2 > b:80 rst", 10),
            ("a", "udp a:1 > b:53", 30),
            ("a", "udp a:1 > b:53", 30),
            ("b", "udp b:53 > a:1", 180),
            ("a", "udp a:1 > b:53", 180),
            ("a", "sctp a:1 > b:9", 60),
            ("b", "sctp b:9 > a:1", 8000),
            ("a", "echo a > b id 3", 60),
            ("b", "answer b > a id 3", 60),
            ("a", "protocol-47 a > b", 60),
            ("slot", "tcp x:1 > b:80 syn", 60),
            ("b", "tcp b:80 > x:1 syn,ack", 8000),
            ("slot", "tcp x:1 > b:80 rst", 10),
            ("host > b", "udp n1:1 > b:80", 30),
            ("b", "udp b:80 > n1:1", 180),
        ] {
            let packet = crate::support::text::packet(text, bench.family);
            let done = bench.send(place, &packet);
            assert!(!done.outcome.starts_with("drop"), "{text}: {}", done.outcome);
            assert_eq!(left(bench, text), seconds, "{text}");
        }
    });
}

#[test]
fn what_a_client_said_to_a_service_is_remembered_no_longer_than_its_connection() {
    both(|bench| {
        bench.play("service svc:80/tcp = b:8080\nservice svc:53/udp = b:53");
        for (place, text, of, seconds) in [
            ("a", "tcp a:1 > svc:80 syn", 1, 60),
            ("b", "tcp b:8080 > a:1 syn,ack", 1, 60),
            ("a", "tcp a:1 > svc:80 ack", 1, 8000),
            ("b", "tcp b:8080 > a:1 fin,ack", 1, 8000),
            // The last that it says, and the first.
            ("a", "tcp a:1 > svc:80 fin,ack", 1, 10),
            ("a", "tcp a:1 > svc:80 syn", 1, 60),
            ("a", "tcp a:2 > svc:80 syn", 2, 60),
            ("b", "tcp b:8080 > a:2 syn,ack", 2, 60),
            ("a", "tcp a:2 > svc:80 ack", 2, 8000),
            ("a", "tcp a:2 > svc:80 fin,ack", 2, 8000),
            ("b", "tcp b:8080 > a:2 fin,ack", 2, 8000),
            ("a", "tcp a:2 > svc:80 ack", 2, 10),
            ("a", "tcp a:3 > svc:80 syn", 3, 60),
            ("b", "tcp b:8080 > a:3 syn,ack", 3, 60),
            ("a", "tcp a:3 > svc:80 ack", 3, 8000),
            ("a", "tcp a:3 > svc:80 rst", 3, 10),
        ] {
            let packet = crate::support::text::packet(text, bench.family);
            let done = bench.send(place, &packet);
            assert!(!done.outcome.starts_with("drop"), "{text}: {}", done.outcome);
            let (_, said) = bench.said(&format!("tcp a:{of} > svc:80 syn")).expect("remembered");
            assert_eq!((said.until + SECOND / 2).saturating_sub(Bench::now()) / SECOND, seconds, "{text}");
        }
        let packet = crate::support::text::packet("udp a:1 > svc:53", bench.family);
        bench.send("a", &packet);
        let (_, said) = bench.said("udp a:1 > svc:53").expect("remembered");
        assert!(said.until > Bench::now() + 170 * SECOND);
    });
}

#[test]
fn a_flow_that_was_idle_too_long_is_forgotten_and_its_answers_with_it() {
    both(|bench| {
        bench.play(
            "
            policy a: in deny
            a    | udp a:1 > x:53 | tunnel
            slot | udp x:53 > a:1 | to a
            age 170 udp a:1 > x:53
            slot | udp x:53 > a:1 | to a
            age 190 udp a:1 > x:53
            slot | udp x:53 > a:1 | drop policy-ingress
            a    | udp a:1 > x:53 | tunnel
            slot | udp x:53 > a:1 | to a
            ",
        );
    });
}

#[test]
fn a_reset_that_opens_nothing_is_not_remembered() {
    both(|bench| {
        bench.play(
            "
            a    | tcp a:1 > b:80 rst | to b
            slot | tcp x:1 > b:80 rst | to b
            uplink > b | tcp w:1 > b:80 rst,ack | pass
            ",
        );
        assert!(bench.kernel.all::<abi::Tuple, abi::Flow>("flows").is_empty());
    });
}

#[test]
fn a_closed_connections_ports_can_be_used_again_from_either_side_and_are_judged_anew() {
    both(|bench| {
        for closing in [
            "a | tcp a:1 > b:80 rst | to b",
            "a | tcp a:1 > b:80 fin,ack | to b\nb | tcp b:80 > a:1 fin,ack | to a",
        ] {
            bench.counted();
            bench.play(&format!(
                "
                policy b: in deny, in a tcp/80, out deny
                a | tcp a:1 > b:80 syn     | to b
                b | tcp b:80 > a:1 syn,ack | to a
                {closing}
                asked egress 1, ingress-fast 1
                a | tcp a:1 > b:80 syn     | to b       # the same way
                asked egress 1, ingress-fast 1
                b | tcp b:80 > a:1 syn,ack | to a
                {closing}
                b | tcp b:80 > a:1 syn     | drop policy-egress
                policy b: in deny, out allow
                b | tcp b:80 > a:1 syn     | to a       # the other way
                a | tcp a:1 > b:80 syn,ack | to b
                {closing}
                a | tcp a:1 > b:80 syn     | drop policy-ingress
                "
            ));
        }
    });
}

#[test]
fn an_open_connections_retransmitted_syn_is_part_of_it() {
    both(|bench| {
        bench.play(
            "
            a | tcp a:1 > b:80 syn | to b
            a | tcp a:1 > b:80 syn | to b
            asked egress 1, ingress-fast 1
            b | tcp b:80 > a:1 syn,ack | to a
            b | tcp b:80 > a:1 syn,ack | to a
            asked nothing
            ",
        );
    });
}

#[test]
fn when_the_table_is_full_new_flows_pass_by_policy_and_what_it_denies_stays_denied() {
    both(|bench| {
        bench.play("policy a: in deny");
        // Four times as many as the table holds: the oldest make room.
        for port in 1..16384_u16 {
            let packet = crate::support::text::packet(&format!("udp a:{port} > x:53"), bench.family);
            let (program, context, frame) = bench.place("a", &packet);
            assert_eq!(
                bench.kernel.run(program, &frame, context).verdict,
                crate::support::kernel::REDIRECT,
                "port {port}"
            );
        }
        bench.kernel.events();
        let flows = bench.kernel.all::<abi::Tuple, abi::Flow>("flows");
        assert!(flows.len() <= 4096, "{}", flows.len());
        // The kernel forgets about the oldest, on each CPU for itself; one of the first quarter is surely gone.
        let gone = (1..4096).find(|port| bench.flow(&format!("udp a:{port} > x:53")).is_none());
        let gone = gone.expect("all of the oldest are remembered");
        bench.play(&format!(
            "
            slot | udp x:53 > a:16383  | to a
            slot | udp x:53 > a:{gone} | drop policy-ingress    # forgotten
            slot | udp x:54 > a:16383  | drop policy-ingress
            a    | udp a:{gone} > x:53 | tunnel
            slot | udp x:53 > a:{gone} | to a
            "
        ));
    });
}

#[test]
fn an_open_flow_forgotten_by_pressure_is_judged_as_a_new_one() {
    both(|bench| {
        bench.play("policy b: out deny");
        bench.play("a | tcp a:1 > b:80 syn | to b");
        bench.play("b | tcp b:80 > a:1 ack | to a");
        let (key, _) = bench.flow("tcp a:1 > b:80").expect("remembered");
        bench.kernel.remove::<_, abi::Flow>("flows", key);
        bench.play(
            "
            b | tcp b:80 > a:1 ack | drop policy-egress
            a | tcp a:1 > b:80 ack | to b
            b | tcp b:80 > a:1 ack | to a
            ",
        );
    });
}
