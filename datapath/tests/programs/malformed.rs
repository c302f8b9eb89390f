//! Headers that cannot be read, and those that can be read in odd ways.

use crate::support::bench::{Bench, both, host_mac, one, pod_mac};
use crate::support::kernel::Context;
use crate::support::names::Family;
use crate::support::packet::{ETHERNET, Packet};
use crate::support::text::packet;

/// The kernel runs nothing on less than an IP header: shorter ones are sent over a link (`wire.rs`).
fn shortest(bench: &Bench) -> usize {
    ETHERNET + if bench.family == Family::V4 { 20 } else { 40 }
}

/// What one program says of the first bytes of a frame.
fn cut(bench: &mut Bench, place: &str, packet: &Packet, length: usize) -> String {
    let (program, context, frame) = bench.place(place, packet);
    bench.run(program, &frame[..length], context).outcome
}

/// Packets of every kind, and how many bytes behind the Ethernet header a program must have seen before it can judge.
const KINDS: &[(&str, usize, usize)] = &[
    ("tcp a:40000 > b:80 syn", 20 + 14, 40 + 14),
    ("udp a:40000 > b:80", 20 + 4, 40 + 4),
    ("sctp a:40000 > b:80", 20 + 4, 40 + 4),
    ("echo a > b id 7", 20 + 8, 40 + 8),
    ("protocol-47 a > b", 20, 40),
    ("unreachable a > b about { udp b:53 > a:40000 }", 20 + 8 + 20 + 8, 40 + 8 + 40 + 8),
];

#[test]
fn a_packet_cut_off_at_any_byte_never_passes_before_its_ends_are_known() {
    for &(text, four, six) in KINDS {
        both(|bench| {
            let needed = ETHERNET + if bench.family == Family::V4 { four } else { six };
            let whole = packet(text, bench.family);
            let (_, _, frame) = bench.place("a", &whole);
            // The error is about a flow.
            bench.play("b | udp b:53 > a:40000 | to a");
            for length in shortest(bench)..frame.len() {
                let outcome = cut(bench, "a", &whole, length);
                if length < needed {
                    assert!(outcome.starts_with("drop"), "{text}: {length} of {needed} bytes: {outcome}");
                } else {
                    assert_eq!(outcome, "to b", "{text}: {length} of {needed} bytes");
                }
            }
        });
    }
}

#[test]
fn a_cut_packet_passes_none_of_the_programs_before_its_ends_are_known() {
    for place in ["host > b", "uplink > b", "slot"] {
        both(|bench| {
            let text = if place == "host > b" { "tcp n1:40000 > b:80 syn" } else { "tcp x:40000 > b:80 syn" };
            let whole = packet(text, bench.family);
            let needed = ETHERNET + if bench.family == Family::V4 { 34 } else { 54 };
            for length in shortest(bench)..needed {
                let outcome = cut(bench, place, &whole, length);
                assert!(outcome == "drop malformed", "{place}: {length} bytes: {outcome}");
            }
        });
    }
}

#[test]
fn a_version_that_is_not_the_ethertypes_is_malformed() {
    both(|bench| {
        let (_, context, frame) = bench.place("a", &packet("tcp a:40000 > b:80 syn", bench.family));
        let right = if bench.family == Family::V4 { 4 } else { 6 };
        for version in (0..16_u8).filter(|version| *version != right) {
            let mut changed = frame.clone();
            changed[ETHERNET] = version << 4 | changed[ETHERNET] & 0xf;
            for program in ["from_pod", "to_pod", "from_tunnel", "from_hold"] {
                assert_eq!(
                    bench.run(program, &changed, context).outcome,
                    "drop malformed",
                    "{program}, {version}"
                );
            }
        }
    });
}

#[test]
fn an_ipv4_header_shorter_than_any_is_malformed() {
    one(Family::V4, |bench| {
        let (_, context, frame) = bench.place("a", &packet("tcp a:40000 > b:80 syn", bench.family));
        for words in 0..5 {
            let mut changed = frame.clone();
            changed[ETHERNET] = 0x40 | words;
            assert_eq!(bench.run("from_pod", &changed, context).outcome, "drop malformed", "{words} words");
        }
    });
}

#[test]
fn ipv4_options_are_stepped_over_and_ports_read_behind_them() {
    one(Family::V4, |bench| {
        for words in 0..=10 {
            bench.play(&format!(
                "
                policy b: in deny, in a tcp/80 icmp
                a | tcp a:40000 > b:80 syn options {words} | to b
                a | tcp a:40000 > b:81 syn options {words} | drop policy-ingress
                a | echo a > b options {words}             | to b
                "
            ));
        }
    });
}

#[test]
fn ipv4_options_that_say_more_than_there_is_are_malformed() {
    one(Family::V4, |bench| {
        let (_, context, mut frame) = bench.place("a", &packet("udp a:40000 > b:80 payload 0", bench.family));
        frame[ETHERNET] = 0x4f;
        assert_eq!(bench.run("from_pod", &frame, context).outcome, "drop malformed");
    });
}

#[test]
fn ipv6_extension_headers_are_stepped_over_and_ports_read_behind_them() {
    one(Family::V6, |bench| {
        // Hop-by-hop, routing, destination options, authentication, a fragment header around a whole packet.
        for extensions in ["0", "43", "60", "51", "44", "0,43,60,51", "0,60,44,60", "60,60,60,60,60"] {
            bench.play(&format!(
                "
                policy b: in deny, in a tcp/80 udp/53
                a | tcp a:40000 > b:80 syn extensions {extensions} | to b
                a | tcp a:40000 > b:81 syn extensions {extensions} | drop policy-ingress
                a | udp a:40000 > b:53 extensions {extensions}     | to b
                a | udp b:40000 > b:53 extensions {extensions}     | drop spoofed-source
                "
            ));
        }
    });
}

#[test]
fn more_extension_headers_than_any_real_packet_has_are_malformed() {
    one(Family::V6, |bench| {
        bench.play("a | tcp a:40000 > b:80 syn extensions 60,60,60,60,60,60 | drop malformed");
        bench.play("a | tcp a:40000 > b:80 syn extensions 60,60,60,60,60,60,60,60,60 | drop malformed");
    });
}

#[test]
fn an_extension_header_cut_off_at_any_byte_is_malformed() {
    one(Family::V6, |bench| {
        for extensions in ["0", "43,60", "51", "44", "0,43,60,51"] {
            let text = format!("udp a:40000 > b:80 extensions {extensions} payload 0");
            let whole = packet(&text, Family::V6);
            let (_, _, frame) = bench.place("a", &whole);
            for length in shortest(bench)..frame.len() - 4 {
                assert_eq!(cut(bench, "a", &whole, length), "drop malformed", "{extensions}: {length} bytes");
            }
            assert_eq!(cut(bench, "a", &whole, frame.len()), "to b", "{extensions}");
        }
    });
}

#[test]
fn extension_lengths_that_lead_beyond_the_packet_are_malformed() {
    one(Family::V6, |bench| {
        for extension in [0_u8, 43, 60, 51] {
            let whole = packet(&format!("udp a:40000 > b:80 extensions {extension}"), Family::V6);
            let (program, context, mut frame) = bench.place("a", &whole);
            for length in [8, 64, 128, 255] {
                frame[ETHERNET + 41] = length;
                assert_eq!(
                    bench.run(program, &frame, context).outcome,
                    "drop malformed",
                    "{extension}, {length}"
                );
            }
        }
    });
}

#[test]
fn protocols_without_ports_are_judged_by_rules_without_ports() {
    both(|bench| {
        bench.play(
            "
            policy b: in deny, in a tcp, in c any
            a | protocol-47 a > b  | drop policy-ingress
            c | protocol-47 c > b  | to b
            c | protocol-50 c > b  | to b
            c | protocol-59 c > b  | to b
            c | protocol-4 c > b   | to b
            c | protocol-41 c > b  | to b
            a | tcp a:1 > b:9 syn  | to b
            ",
        );
    });
}

/// A small generator of bytes (xorshift), so that a failing round can be named.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()[0]
    };
    (0..length).map(next).collect()
}

#[test]
fn noise_behind_an_ip_header_neither_crashes_a_program_nor_passes_where_everything_is_denied() {
    both(|bench| {
        bench.play("policy a: in deny, out deny");
        bench.play("policy b: in deny, out deny");
        let kinds = [0_u8, 6, 17, 43, 44, 51, 58, 1, 60, 132];
        for seed in 0..2000_u64 {
            let mut whole = packet("udp a:40000 > b:80", bench.family);
            whole.payload = 120;
            let mut frame = whole.frame(pod_mac("a"), host_mac("a"));
            let (behind, next) = if bench.family == Family::V4 { (20, 9) } else { (40, 6) };
            frame[ETHERNET + next] = kinds[usize::try_from(seed).expect("small") % kinds.len()];
            let length = frame.len() - ETHERNET - behind;
            frame[ETHERNET + behind..].copy_from_slice(&noise(seed, length));
            let ifindex = bench.device("a");
            let from = bench.run("from_pod", &frame, Context { ifindex, ..Context::default() });
            assert!(
                from.outcome.starts_with("drop") || is_discovery(&from.outcome, &frame),
                "seed {seed}: {from:?}"
            );
            let context =
                Context { ifindex: bench.device("b"), ingress_ifindex: bench.device("uplink"), mark: 0 };
            let to = bench.run("to_pod", &frame, context);
            assert!(to.outcome.starts_with("drop"), "seed {seed}: {to:?}");
        }
    });
}

/// What a pod may say to its link whatever its policy.
fn is_discovery(outcome: &str, frame: &[u8]) -> bool {
    outcome == "stack" && frame[ETHERNET + 6] == 58
}
