//! Where a packet that may pass goes, and that ingress policy is asked exactly once on the way.

use crate::support::bench::both;

#[test]
fn a_pod_of_the_same_node_gets_a_packet_past_the_stack_and_policy_is_asked_once_at_each_end() {
    both(|bench| {
        bench.play(
            "
            a | tcp a:40000 > b:80 syn     | to b
            asked egress 1, ingress-fast 1
            b | tcp b:80 > a:40000 syn,ack | to a
            a | tcp a:40000 > b:80 ack     | to b
            asked nothing
            counted to-peer 0
            ",
        );
    });
}
