//! Pieces of packets follow their first.

use crate::support::bench::{both, one};
use crate::support::names::Family;

#[test]
fn later_pieces_follow_their_first_and_unknown_ones_are_dropped() {
    both(|bench| {
        bench.play(
            "
            policy b: in deny, in a udp/53
            a | udp a:5000 > b:53 later 7  | drop fragment   # before its first
            a | udp a:5000 > b:53 first 7  | to b
            a | udp a:5000 > b:53 later 7  | to b
            a | udp a:5000 > b:53 later 8  | drop fragment   # of another packet
            a | udp a:5000 > c:53 later 7  | drop fragment   # to somebody else
            c | udp c:5000 > b:53 later 7  | drop fragment   # from somebody else
            a | udp a:5000 > b:54 first 9  | drop policy-ingress
            a | udp a:5000 > b:54 later 9  | drop policy-ingress
            ",
        );
    });
}

#[test]
fn pieces_do_not_borrow_the_ports_of_a_neighbours() {
    both(|bench| {
        bench.play(
            "
            policy b: in deny, in a udp/53
            a | udp a:5000 > b:53 first 7  | to b
            c | udp a:5000 > b:53 later 7  | drop spoofed-source
            c | udp a:5000 > b:54 first 7  | drop spoofed-source
            a | udp a:5000 > b:53 later 7  | to b
            ",
        );
    });
}

#[test]
fn pieces_of_tcp_sctp_and_echoes_follow_their_first_too() {
    both(|bench| {
        bench.play(
            "
            policy b: in deny, in a tcp/80 sctp/80 icmp
            a | tcp a:5000 > b:80 ack first 1  | to b
            a | tcp a:5000 > b:80 ack later 1  | to b
            a | sctp a:5000 > b:80 first 2     | to b
            a | sctp a:5000 > b:80 later 2     | to b
            a | tcp a:5000 > b:81 syn first 3  | drop policy-ingress
            a | tcp a:5000 > b:81 later 3      | drop policy-ingress
            ",
        );
        let first = crate::support::text::packet("echo a > b id 9 first 4", bench.family);
        let later = crate::support::text::packet("echo a > b id 9 later 4", bench.family);
        assert_eq!(bench.send("a", &first).outcome, "to b");
        assert_eq!(bench.send("a", &later).outcome, "to b");
        assert!(bench.flow("echo a > b id 9").is_some());
    });
}

#[test]
fn the_first_piece_must_hold_the_header() {
    both(|bench| {
        bench.play(
            "
            a | tcp a:5000 > b:80 syn piece 0 8 more 5  | drop malformed
            a | tcp a:5000 > b:80 syn piece 8 8 more 5  | drop fragment
            a | tcp a:5000 > b:80 syn piece 16 64 last 5 | drop fragment
            ",
        );
    });
}

#[test]
fn a_packet_that_calls_itself_a_piece_and_is_whole_is_whole() {
    one(Family::V6, |bench| {
        bench.play("a | tcp a:5000 > b:80 syn extensions 44 | to b");
        assert!(
            bench.kernel.all::<datapath::abi::FragmentKey, datapath::abi::Fragment>("fragments").is_empty()
        );
    });
}

#[test]
fn pieces_out_of_the_tunnel_and_by_the_stack_follow_their_first() {
    both(|bench| {
        bench.play(
            "
            policy b: in deny, in x udp/53
            slot       | udp x:5000 > b:53 later 7 | drop fragment
            slot       | udp x:5000 > b:53 first 7 | to b
            slot       | udp x:5000 > b:53 later 7 | to b
            slot       | udp n2:5000 > n1:53 later 7 | drop fragment
            slot       | udp n2:5000 > n1:53 first 7 | pass
            slot       | udp n2:5000 > n1:53 later 7 | pass
            uplink > b | udp x:5001 > b:53 later 8 | drop fragment
            uplink > b | udp x:5001 > b:53 first 8 | pass
            uplink > b | udp x:5001 > b:53 later 8 | pass
            ",
        );
    });
    one(Family::V4, |bench| {
        bench.play(
            "
            policy b: in deny, in x udp/53
            host > b   | udp n1:5000 > b:9 later 7 | drop fragment
            host > b   | udp n1:5000 > b:9 first 7 | pass
            host > b   | udp n1:5000 > b:9 later 7 | pass
            ",
        );
    });
}

/// Where the kernel has cut it anew, nothing says that it came in by a link.
#[test]
fn a_piece_of_ipv6_is_nobodys_word_for_the_own_node() {
    one(Family::V6, |bench| {
        bench.play(
            "
            policy b: in deny, in x udp/53 tcp/53
            host > b | udp w:5000 > b:53 first 7              | drop policy-ingress
            host > b | udp w:5000 > b:53 later 7              | drop policy-ingress
            host > b | tcp w:5000 > b:53 syn extensions 44    | drop policy-ingress
            host > b | udp n1:5000 > b:53 first 7             | drop policy-ingress
            host > b | udp x:5000 > b:53 first 7              | pass
            host > b | udp x:5000 > b:53 later 7              | pass
            host > b | udp x:5000 > b:54 first 8              | drop policy-ingress
            host > b | tcp x:5000 > b:53 syn extensions 44    | pass
            host > b | udp n1:5000 > b:53                     | pass
            b        | udp b:53 > n1:5000                     | stack
            host > b | udp n1:5000 > b:53 first 9             | drop policy-ingress
            ",
        );
    });
}

/// What stands behind a fragment header is what followed in the first piece, which may be another header (RFC 8200 4.5).
#[test]
fn pieces_of_ipv6_are_told_apart_by_their_ends_and_number_alone() {
    one(Family::V6, |bench| {
        bench.play(
            "
            policy b: in deny, in a udp/53
            a | udp a:5000 > b:53 first 7  | to b
            ",
        );
        let mut all = bench.kernel.all::<datapath::abi::FragmentKey, datapath::abi::Fragment>("fragments");
        let (key, first) = all.remove(0);
        assert_eq!((key.protocol, first.protocol), (0, 17));
        let later = crate::support::text::packet("protocol-60 a > b later 7", bench.family);
        assert_eq!(bench.send("a", &later).outcome, "to b");
    });
}

#[test]
fn pieces_of_an_old_packet_are_unknown_again() {
    both(|bench| {
        bench.play("a | udp a:5000 > b:53 first 7 | to b");
        let all = bench.kernel.all::<datapath::abi::FragmentKey, datapath::abi::Fragment>("fragments");
        let (key, mut first) = all[0];
        let left = first.until - crate::support::bench::Bench::now();
        assert!((59_000_000_000..=60_100_000_000).contains(&left), "{left}");
        first.until = 1;
        bench.kernel.put("fragments", key, first);
        bench.play("a | udp a:5000 > b:53 later 7 | drop fragment");
    });
}

#[test]
fn a_denied_flow_stays_denied_in_pieces_and_its_pieces_are_cut_with_it() {
    both(|bench| {
        bench.play(
            "
            a | udp a:5000 > b:53 first 7  | to b
            policy b: in deny
            a | udp a:5000 > b:53 later 7  | drop revoked
            a | udp a:5000 > b:53 first 8  | drop revoked
            a | udp a:5000 > b:53 later 8  | drop revoked
            ",
        );
    });
}

#[test]
fn pieces_of_what_goes_to_a_service_are_translated_like_their_first() {
    both(|bench| {
        bench.play(
            "
            service svc:53/udp = b:5353
            a | udp a:5000 > svc:53 first 7  | to b | udp a:5000 > b:5353 first 7
            a | udp a:5000 > svc:53 later 7  | to b | udp a:5000 > b:5353 later 7
            b | udp b:5353 > a:5000 first 9  | to a | udp svc:53 > a:5000 first 9
            b | udp b:5353 > a:5000 later 9  | to a | udp svc:53 > a:5000 later 9
            ",
        );
    });
}

#[test]
fn errors_in_pieces_are_refused_since_none_is_that_long() {
    both(|bench| {
        // What they quote would be taken for the packet itself.
        bench.play(
            "
            policy a: out deny, out b allow
            b | udp b:53 > a:53 | to a
            a | unreachable a > c about { udp a:53 > b:53 } piece 0 56 more 3 | drop malformed
            a | unreachable a > b about { udp b:53 > a:53 } piece 0 56 more 3 | drop malformed
            slot | unreachable x > a about { udp b:53 > a:53 } piece 0 56 more 3 | drop malformed
            ",
        );
    });
}
