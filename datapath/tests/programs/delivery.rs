//! Where a packet that may pass goes, and that ingress policy is asked exactly once on the way.

use datapath::abi;

use crate::support::bench::{both, one};
use crate::support::names::Family;

#[test]
fn a_pod_of_the_same_node_gets_a_packet_past_the_stack_and_policy_is_asked_once_at_each_end() {
    both(|bench| {
        bench.play(
            "
            a | tcp a:40000 > b:80 syn     | to b
            asked egress 1, ingress-fast 1
            b | tcp b:80 > a:40000 syn,ack | to a
            a | tcp a:40000 > b:80 ack     | to b
            a | udp a:40000 > b:80         | to b
            asked egress 1, ingress-fast 1
            b | udp b:80 > a:40000         | to a
            a | sctp a:40000 > b:80        | to b
            b | sctp b:80 > a:40000        | to a
            a | echo a > b id 7            | to b
            b | answer b > a id 7          | to a
            asked egress 2, ingress-fast 2
            ",
        );
    });
}

#[test]
fn what_is_for_another_node_goes_into_a_slot_where_a_route_leads_into_one() {
    both(|bench| {
        bench.play(
            "
            a    | tcp a:40000 > x:80 syn     | tunnel
            asked egress 1
            slot | tcp x:80 > a:40000 syn,ack | to a
            a    | tcp a:40000 > x:80 ack     | tunnel
            asked nothing
            counted to-tunnel 0, to-stack 0
            a    | udp a:40000 > u:80         | stack   # no route into the mesh
            a    | udp a:40000 > w:80         | stack
            a    | udp a:40000 > n2:80        | stack
            counted to-tunnel 0, to-stack 3
            ",
        );
    });
}

#[test]
fn what_is_said_to_another_node_goes_by_the_stack_both_ways_and_services_there_do_not() {
    both(|bench| {
        bench.play(
            "
            a        | tcp a:1 > m2:80 syn     | stack
            slot     | tcp m2:80 > a:1 syn,ack | pass
            slot > a | tcp m2:80 > a:1 syn,ack | pass
            a        | tcp a:1 > m2:80 ack     | stack
            counted to-tunnel 0, to-stack 2, ingress-stack 0
            service svc:53/udp = m2:53
            a        | udp a:1 > svc:53        | tunnel | udp a:1 > m2:53
            slot     | udp m2:53 > a:1         | to a   | udp svc:53 > a:1
            slot     | tcp m2:1 > a:80 syn     | to a       # began there
            a        | tcp a:80 > m2:1 syn,ack | tunnel
            ",
        );
    });
}

#[test]
fn out_of_the_tunnel_ingress_policy_is_asked_once_and_the_answer_goes_back_into_it() {
    both(|bench| {
        bench.play(
            "
            slot | tcp x:40000 > b:80 syn     | to b
            asked ingress-tunnel 1
            b    | tcp b:80 > x:40000 syn,ack | tunnel
            slot | tcp x:40000 > b:80 ack     | to b
            b    | tcp b:80 > x:40000 ack     | tunnel
            asked nothing
            policy b: in deny, in x tcp/80
            slot | tcp x:40000 > b:80 ack     | to b
            slot | tcp x:40001 > b:81 syn     | drop policy-ingress
            slot | tcp y:40001 > b:80 syn     | drop policy-ingress
            asked ingress-tunnel 3
            ",
        );
    });
}

#[test]
fn by_the_stack_ingress_policy_is_asked_once_by_the_program_that_delivers() {
    both(|bench| {
        bench.play(
            "
            slow b
            a     | tcp a:40000 > b:80 syn     | stack
            asked egress 1
            a > b | tcp a:40000 > b:80 syn     | pass
            asked ingress-stack 1
            b     | tcp b:80 > a:40000 syn,ack | stack
            b > a | tcp b:80 > a:40000 syn,ack | pass
            asked nothing
            policy b: in deny
            a     | tcp a:40001 > b:80 syn     | stack
            a > b | tcp a:40001 > b:80 syn     | drop policy-ingress
            asked egress 1, ingress-stack 1
            ",
        );
    });
}

#[test]
fn a_slow_pod_meets_the_tunnel_by_the_stack_both_ways() {
    both(|bench| {
        bench.play(
            "
            slow a
            a        | tcp a:40000 > x:80 syn     | stack
            asked egress 1
            slot     | tcp x:80 > a:40000 syn,ack | pass
            slot > a | tcp x:80 > a:40000 syn,ack | pass
            asked nothing
            slot     | tcp y:40000 > a:80 syn     | pass
            slot > a | tcp y:40000 > a:80 syn     | pass
            asked ingress-stack 1
            a        | tcp a:80 > y:40000 syn,ack | stack
            asked nothing
            ",
        );
    });
}

#[test]
fn a_flow_that_came_in_by_the_stack_goes_back_by_it() {
    both(|bench| {
        bench.play(
            "
            uplink > a | tcp w:40000 > a:80 syn     | pass
            asked ingress-stack 1
            a          | tcp a:80 > w:40000 syn,ack | stack
            uplink > a | tcp x:40000 > a:80 syn     | pass    # a peer that is not in the tunnel yet
            a          | tcp a:80 > x:40000 syn,ack | stack
            slot       | tcp x:40000 > a:80 ack     | pass    # and moved into it
            slot > a   | tcp x:40000 > a:80 ack     | pass
            ",
        );
    });
}

#[test]
fn a_pods_own_node_is_always_let_in_and_answered_and_its_address_from_elsewhere_is_not() {
    both(|bench| {
        bench.play(
            "
            policy b: in deny, out deny
            host > b   | tcp n1:40000 > b:80 syn     | pass
            asked ingress-host 1
            b          | tcp b:80 > n1:40000 syn,ack | stack
            host > b   | tcp n1:40000 > b:80 ack     | pass
            host > b   | tcp m1:40000 > b:80 syn     | pass
            host > b   | echo n1 > b id 5            | pass
            b          | answer b > n1 id 5          | stack
            asked ingress-host 2
            uplink > b | tcp n1:40001 > b:80 syn     | drop policy-ingress
            slot       | tcp n1:40001 > b:80 syn     | drop source-local
            a > b      | tcp n1:40001 > b:80 syn     | drop policy-ingress
            b          | tcp b:80 > n1:40001 syn     | drop policy-egress
            ",
        );
    });
}

#[test]
fn what_wears_the_tuple_of_a_flow_of_the_node_is_judged() {
    both(|bench| {
        bench.play(
            "
            policy b: in deny
            host > b   | tcp n1:40000 > b:80 syn     | pass
            uplink > b | tcp n1:40000 > b:80 ack     | drop policy-ingress
            a > b      | tcp n1:40000 > b:80 ack     | drop policy-ingress
            host > b   | tcp n1:40000 > b:80 ack     | pass
            policy b: in deny, in n1 tcp/80
            uplink > b | tcp n1:40000 > b:80 ack     | pass
            ",
        );
    });
}

#[test]
fn the_nodes_own_probe_passes_though_the_same_tuple_was_denied_to_somebody_who_wore_it() {
    both(|bench| {
        bench.play(
            "
            uplink > b | tcp n1:40000 > b:80 syn     | pass
            policy b: in deny
            uplink > b | tcp n1:40000 > b:80 ack     | drop revoked
            host > b   | tcp n1:40000 > b:80 syn     | pass
            b          | tcp b:80 > n1:40000 syn,ack | stack
            uplink > b | tcp n1:40000 > b:80 ack     | drop policy-ingress
            host > b   | tcp n1:40000 > b:80 ack     | pass
            ",
        );
    });
}

#[test]
fn a_link_without_a_guard_injects_nothing_but_what_belongs_to_flows_that_we_know() {
    both(|bench| {
        bench.play(
            "
            stray > a  | tcp w:40000 > a:80 syn     | drop unguarded
            stray > a  | udp x:53 > a:53            | drop unguarded
            stray > a  | echo w > a                 | drop unguarded
            asked nothing
            a          | udp a:53 > w:53            | stack
            stray > a  | udp w:53 > a:53            | pass
            uplink > a | tcp w:40000 > a:80 syn     | pass
            ",
        );
    });
}

#[test]
fn what_the_stack_delivers_must_be_the_pods() {
    both(|bench| {
        bench.play(
            "
            uplink > a | udp w:53 > b:53  | drop tunnel-foreign
            host > a   | udp n1:53 > b:53 | drop tunnel-foreign
            slot > a   | udp x:53 > b:53  | drop tunnel-foreign
            ",
        );
    });
    one(Family::V6, |bench| {
        // What the node says on the link itself.
        bench.play("host > a | udp [fe80::1]:5353 > [ff02::fb]:5353 | pass");
        bench.play("uplink > a | udp [fe80::1]:5353 > [ff02::fb]:5353 | drop tunnel-foreign");
    });
}

#[test]
fn what_a_pod_says_to_its_node_is_judged_by_its_egress_and_left_to_the_stack() {
    both(|bench| {
        bench.play(
            "
            a        | tcp a:40000 > n1:6443 syn     | stack
            asked egress 1
            host > a | tcp n1:6443 > a:40000 syn,ack | pass
            asked nothing
            policy a: out deny, out m1 udp/53
            host > a | tcp n1:6443 > a:40000 ack     | drop revoked
            a        | tcp a:40000 > n1:6443 ack     | drop revoked
            a        | udp a:40000 > m1:53           | stack
            host > a | udp m1:53 > a:40000           | pass
            ",
        );
    });
}

#[test]
fn first_packets_of_peers_that_nobody_has_told_us_of_are_held_where_a_device_holds_them() {
    both(|bench| {
        bench.play(
            "
            policy b: in deny, in x allow
            policy a: out deny, out x allow
            forget x
            slot | tcp x:40000 > b:80 syn | drop unknown-ingress
            a    | tcp a:40000 > x:80 syn | drop unknown-egress
            holding
            slot | tcp x:40000 > b:80 syn | held
            a    | tcp a:40000 > x:80 syn | held
            counted held 2
            know x
            hold | tcp x:40000 > b:80 syn | to b
            hold | tcp a:40000 > x:80 syn | tunnel
            asked egress 1, ingress-tunnel 1
            slot | tcp x:40000 > b:80 ack | to b
            slot | tcp x:80 > a:40000 syn,ack | to a
            ",
        );
    });
}

#[test]
fn what_is_still_unknown_when_it_comes_back_is_dropped_and_not_held_again() {
    both(|bench| {
        bench.play(
            "
            policy b: in deny, in x allow
            forget x
            holding
            slot | tcp x:40000 > b:80 syn | held
            hold | tcp x:40000 > b:80 syn | drop unknown-ingress
            hold | tcp b:40000 > u:80 syn | stack
            hold | udp n1:1 > b:80        | drop no-endpoint
            hold | udp x:1 > u:80         | drop tunnel-foreign
            ",
        );
    });
}

#[test]
fn what_policy_denies_to_a_known_peer_is_dropped_and_not_held() {
    both(|bench| {
        bench.play(
            "
            policy b: in deny
            policy a: out deny
            holding
            slot | tcp x:40000 > b:80 syn | drop policy-ingress
            a    | tcp a:40000 > x:80 syn | drop policy-egress
            counted held 0
            ",
        );
    });
}

#[test]
fn every_new_flow_is_told_once_and_no_other_packet() {
    both(|bench| {
        let told = |bench: &mut crate::support::bench::Bench, place: &str, text: &str| -> Vec<(u8, u8)> {
            let packet = crate::support::text::packet(text, bench.family);
            let events = bench.send(place, &packet).events;
            for event in &events {
                assert_eq!(event.epoch, bench.epoch);
                let bytes = packet.ip().0.len();
                assert_eq!(event.length, u32::try_from(bytes).expect("short"));
                assert_eq!(event.protocol, packet.protocol());
            }
            events.iter().map(|event| (event.kind, event.reason)).collect()
        };
        let new = vec![(abi::HW_EVENT_NEW, 0)];
        assert_eq!(told(bench, "a", "tcp a:40000 > b:80 syn"), new);
        assert_eq!(told(bench, "b", "tcp b:80 > a:40000 syn,ack"), []);
        assert_eq!(told(bench, "slot", "udp x:40000 > b:80"), new);
        assert_eq!(told(bench, "b", "udp b:80 > x:40000"), []);
        assert_eq!(told(bench, "host > b", "tcp n1:40000 > b:80 syn"), new);
        assert_eq!(told(bench, "uplink > b", "tcp w:40000 > b:80 syn"), new);
        assert_eq!(told(bench, "a", "echo a > x id 9"), new);
        bench.play("policy b: in deny");
        let denied = abi::DropReason::PolicyIngress as u8;
        let revoked = abi::DropReason::Revoked as u8;
        assert_eq!(told(bench, "a", "udp a:40000 > b:80"), [(abi::HW_EVENT_DROP, denied)]);
        let both = vec![(abi::HW_EVENT_REVOKED, denied), (abi::HW_EVENT_DROP, revoked)];
        assert_eq!(told(bench, "a", "tcp a:40000 > b:80 ack"), both);
        assert_eq!(told(bench, "a", "tcp a:40000 > b:80 ack"), [(abi::HW_EVENT_DROP, revoked)]);
        bench.play("policy b: in allow");
        assert_eq!(told(bench, "a", "tcp a:40000 > b:80 ack"), [(abi::HW_EVENT_CHANGED, 0)]);
        assert_eq!(told(bench, "a", "tcp a:40000 > b:80 ack"), []);
        bench.play("policy b: audit, in deny");
        assert_eq!(told(bench, "a", "tcp a:40000 > b:80 ack"), [(abi::HW_EVENT_AUDIT, denied)]);
        bench.forget("x");
        let unknown = abi::DropReason::UnknownIngress as u8;
        bench.play("policy b: in deny");
        let asks = vec![(abi::HW_EVENT_UNKNOWN, 0), (abi::HW_EVENT_DROP, unknown)];
        assert_eq!(told(bench, "slot", "udp x:40001 > b:80"), asks);
    });
}

#[test]
fn an_event_names_both_ends_the_pods_link_the_classes_and_the_rule() {
    both(|bench| {
        bench.play("policy b: in deny, in a -tcp/80");
        let packet = crate::support::text::packet("tcp a:40000 > b:80 syn", bench.family);
        let done = bench.send("a", &packet);
        let event = done.events[0];
        assert_eq!((event.src, event.dst), (bench.addr("a"), bench.addr("b")));
        assert_eq!((event.sport.get(), event.dport.get(), event.tcp_flags), (40000, 80, 2));
        assert_eq!(event.ifindex, bench.device("b"), "the pod whose policy denied");
        assert_eq!(event.classes, [crate::support::bench::class("a"), crate::support::bench::class("b")]);
        assert_eq!(u32::from(event.direction), abi::HW_INGRESS);
        assert_ne!(event.rule, 0);
        let now = crate::support::bench::Bench::now();
        assert!(event.at <= now && now - event.at < 5_000_000_000, "{} at {now}", event.at);
    });
}

#[test]
fn events_that_find_the_ring_full_are_counted() {
    both(|bench| {
        let packet = crate::support::text::packet("udp a:40000 > b:80", bench.family);
        bench.play("policy b: in deny");
        bench.counted();
        let (program, context, frame) = bench.place("a", &packet);
        for _ in 0..1000 {
            bench.kernel.run(program, &frame, context);
        }
        let kept = bench.kernel.events().len();
        let lost = bench.counted().get("flow-events-lost").copied().unwrap_or(0);
        assert!(lost > 0 && kept > 0, "{lost} lost, {kept} kept");
        assert_eq!(lost + u64::try_from(kept).expect("few"), 1000);
    });
}

#[test]
fn what_is_too_long_for_the_tunnel_is_left_to_the_stack_which_says_so() {
    both(|bench| {
        let header = if bench.family == Family::V4 { 20 } else { 40 } + 8;
        let (fits, long) = (1420 - header, 1421 - header);
        bench.play(&format!(
            "a | udp a:1 > x:9 payload {fits} | tunnel\na | udp a:1 > x:9 payload {long} | stack"
        ));
    });
}
