//! Denied means cut: flows that were allowed are judged again when policy has moved.

use crate::support::bench::both;

#[test]
fn a_new_deny_cuts_a_flow_in_both_directions_and_an_allow_brings_it_back() {
    both(|bench| {
        for (there, back) in [
            ("tcp a:1 > b:80 ack", "tcp b:80 > a:1 ack"),
            ("udp a:1 > b:80", "udp b:80 > a:1"),
            ("sctp a:1 > b:80", "sctp b:80 > a:1"),
            ("echo a > b id 4", "answer b > a id 4"),
            ("protocol-47 a > b", "protocol-47 b > a"),
        ] {
            bench.play(&format!(
                "
                policy b: in allow
                a | {there} | to b
                b | {back}  | to a
                policy b: in deny
                b | {back}  | drop revoked
                a | {there} | drop revoked
                a | {there} | drop revoked
                b | {back}  | drop revoked
                policy b: in deny, in a allow
                b | {back}  | to a
                a | {there} | to b
                policy a: out deny
                a | {there} | drop revoked
                b | {back}  | drop revoked
                policy a: out allow
                a | {there} | to b
                b | {back}  | to a
                "
            ));
        }
    });
}

#[test]
fn a_flow_is_judged_once_at_each_end_after_each_change_and_not_more() {
    both(|bench| {
        bench.play(
            "
            a | tcp a:1 > b:80 syn     | to b
            b | tcp b:80 > a:1 syn,ack | to a
            asked egress 1, ingress-fast 1
            policy c: in deny
            counted rejudged 0
            a | tcp a:1 > b:80 ack     | to b
            asked egress 1, ingress-fast 1
            b | tcp b:80 > a:1 ack     | to a
            a | tcp a:1 > b:80 ack     | to b
            asked nothing
            epoch
            b | tcp b:80 > a:1 ack     | to a
            counted rejudged 2, revoked 0, egress 1, ingress-fast 1
            a | tcp a:1 > b:80 ack     | to b
            asked nothing
            policy b: in deny
            a | tcp a:1 > b:80 ack     | drop revoked
            counted rejudged 2, revoked 1
            a | tcp a:1 > b:80 ack     | drop revoked
            counted rejudged 0, revoked 0
            ",
        );
    });
}

#[test]
fn flows_through_the_tunnel_are_cut_at_either_node_in_both_directions() {
    both(|bench| {
        bench.play(
            "
            slot | tcp x:1 > b:80 syn     | to b
            b    | tcp b:80 > x:1 syn,ack | tunnel
            a    | tcp a:1 > x:80 syn     | tunnel
            slot | tcp x:80 > a:1 syn,ack | to a
            policy b: in deny
            b    | tcp b:80 > x:1 ack     | drop revoked
            slot | tcp x:1 > b:80 ack     | drop revoked
            policy a: out deny
            slot | tcp x:80 > a:1 ack     | drop revoked
            a    | tcp a:1 > x:80 ack     | drop revoked
            policy a: out allow
            slot | tcp x:80 > a:1 ack     | to a
            ",
        );
    });
}

#[test]
fn flows_of_the_stack_are_cut_in_both_directions() {
    both(|bench| {
        bench.play(
            "
            uplink > b | tcp w:1 > b:80 syn     | pass
            b          | tcp b:80 > w:1 syn,ack | stack
            a          | tcp a:1 > w:80 syn     | stack
            uplink > a | tcp w:80 > a:1 syn,ack | pass
            policy b: in deny
            b          | tcp b:80 > w:1 ack     | drop revoked
            uplink > b | tcp w:1 > b:80 ack     | drop revoked
            policy a: out deny
            uplink > a | tcp w:80 > a:1 ack     | drop revoked
            a          | tcp a:1 > w:80 ack     | drop revoked
            ",
        );
    });
}

#[test]
fn what_was_cut_cannot_go_on_as_if_the_other_side_had_begun_it() {
    both(|bench| {
        // The server may open whatever it likes; what the client opened to it is cut all the same.
        bench.play(
            "
            policy b: in deny, in a tcp/80, out allow
            a | tcp a:1 > b:80 syn     | to b
            b | tcp b:80 > a:1 syn,ack | to a
            policy b: in deny, out allow
            a | tcp a:1 > b:80 ack     | drop revoked
            b | tcp b:80 > a:1 ack     | drop revoked
            b | tcp b:80 > a:1 fin,ack | drop revoked
            b | udp b:80 > a:1         | to a
            ",
        );
    });
}

#[test]
fn a_tombstone_lasts_as_long_as_its_ends_try_and_five_minutes_more() {
    both(|bench| {
        bench.play(
            "
            a | tcp a:1 > b:80 syn | to b
            policy b: in deny
            a | tcp a:1 > b:80 ack | drop revoked
            age 290 tcp a:1 > b:80
            a | tcp a:1 > b:80 ack | drop revoked
            age 290 tcp a:1 > b:80
            b | tcp b:80 > a:1 ack | drop revoked
            age 310 tcp a:1 > b:80
            b | tcp b:80 > a:1 ack | to a      # b may open what it likes
            ",
        );
    });
}

#[test]
fn a_reset_does_not_dig_up_a_tombstone() {
    both(|bench| {
        bench.play(
            "
            a | tcp a:1 > b:80 syn     | to b
            policy b: in deny
            a | tcp a:1 > b:80 ack     | drop revoked
            a | tcp a:1 > b:80 rst     | drop revoked
            b | tcp b:80 > a:1 ack     | drop revoked
            a | tcp a:1 > b:80 syn     | drop policy-ingress
            ",
        );
    });
}

#[test]
fn a_peer_that_is_still_unknown_when_a_flow_is_judged_is_judged_again_when_it_is_known() {
    both(|bench| {
        // New addresses are written without a new epoch: what was denied for want of them must not stay so.
        bench.play(
            "
            policy b: in deny, in x allow
            slot | udp x:1 > b:53 | to b
            forget x
            epoch
            slot | udp x:1 > b:53 | drop revoked
            know x
            slot | udp x:1 > b:53 | to b
            slow b
            policy b: in deny, in y allow
            forget y
            slot     | udp y:1 > b:53 | pass
            slot > b | udp y:1 > b:53 | drop unknown-ingress
            know y
            slot > b | udp y:1 > b:53 | pass
            ",
        );
    });
}

#[test]
fn a_slow_pods_unknown_caller_is_judged_again_when_it_is_known() {
    both(|bench| {
        bench.play(
            "
            policy b: in deny, in a allow
            slow b
            forget a
            a     | udp a:1 > b:53 | stack
            a > b | udp a:1 > b:53 | drop unknown-ingress
            know a
            a     | udp a:1 > b:53 | stack
            a > b | udp a:1 > b:53 | pass
            ",
        );
    });
}

#[test]
fn a_flow_to_a_pod_whose_address_changed_its_class_is_judged_by_the_new_one() {
    both(|bench| {
        bench.play("policy b: in deny, in a allow");
        bench.play("a | tcp a:1 > b:80 syn | to b");
        bench.know("a", 95, bench.family);
        // Written without an epoch, flows do not notice, new ones do.
        bench.play("a | tcp a:1 > b:80 ack | to b");
        bench.play("a | tcp a:2 > b:80 syn | drop policy-ingress");
        bench.play("epoch");
        bench.play("a | tcp a:1 > b:80 ack | drop revoked");
    });
}

#[test]
fn flows_of_the_pods_own_node_are_never_cut() {
    both(|bench| {
        bench.play(
            "
            host > b | tcp n1:1 > b:80 syn     | pass
            b        | tcp b:80 > n1:1 syn,ack | stack
            policy b: in deny, out deny
            host > b | tcp n1:1 > b:80 ack     | pass
            b        | tcp b:80 > n1:1 ack     | stack
            asked ingress-host 1
            ",
        );
    });
}

#[test]
fn audit_of_a_known_flow_reports_once_and_passes() {
    both(|bench| {
        bench.play(
            "
            a | tcp a:1 > b:80 syn | to b
            policy b: audit, in deny
            counted audited 0
            a | tcp a:1 > b:80 ack | to b
            counted audited 1
            a | tcp a:1 > b:80 ack | to b
            counted audited 0
            policy b: in deny
            a | tcp a:1 > b:80 ack | drop revoked
            policy b: audit, in deny
            a | tcp a:1 > b:80 ack | to b
            counted audited 1
            ",
        );
    });
}
