//! Nothing with a guarded address at either end crosses an uplink in clear.

use datapath::abi;

use crate::support::bench::{both, one};
use crate::support::kernel::Context;
use crate::support::names::{Family, address};
use crate::support::packet::{Arp, ETHERNET};
use crate::support::text::packet;

#[test]
fn what_has_a_guarded_address_at_either_end_is_dropped_in_both_directions() {
    both(|bench| {
        for (place, reason) in [("in", "guard-in"), ("out", "guard-out")] {
            for text in [
                "tcp a:1 > w:80 syn",
                "tcp w:80 > a:1 syn,ack",
                "udp a:1 > x:80",
                "udp x:1 > a:80",
                "echo a > w",
                "echo w > a",
                "sctp u:1 > w:80",
                "udp w:1 > u:80",
                "protocol-47 m1 > n2",
                "udp n1:1 > m2:51880",
                "tcp x:1 > n1:6443 syn",
                "unreachable a > w about { udp w:1 > a:53 }",
                "udp a:1 > w:9 first 3",
                "udp a:1 > w:9 later 3",
                "udp w:9 > a:1 later 3",
            ] {
                bench.play(&format!("{place} | {text} | drop {reason}"));
            }
        }
    });
}

#[test]
fn what_has_none_passes() {
    both(|bench| {
        for place in ["in", "out"] {
            for text in ["udp n1:51880 > n2:51880", "tcp w:1 > n1:22 syn", "udp svc:53 > w:53", "echo n1 > w"]
            {
                bench.play(&format!("{place} | {text} | pass"));
            }
        }
        bench.play("counted exempt 0");
    });
}

#[test]
fn what_is_exempt_at_the_other_end_passes_and_is_counted_unless_it_is_guarded_too() {
    both(|bench| {
        bench.play(
            "
            exempt 198.51.100.0/24
            exempt 2001:db8:ffff::/48
            out | tcp a:1 > w:80 syn     | pass
            in  | tcp w:80 > a:1 syn,ack | pass
            counted exempt 2
            out | tcp a:1 > ext:80 syn   | drop guard-out
            in  | tcp ext:80 > a:1 ack   | drop guard-in
            out | tcp w:1 > v:80 ack     | pass
            counted exempt 0
            exempt 10.0.0.0/8
            exempt fd00::/16
            out | tcp a:1 > x:80 syn     | drop guard-out
            in  | tcp x:1 > a:80 syn     | drop guard-in
            out | tcp a:1 > svc:80 syn   | pass
            counted exempt 1
            ",
        );
    });
}

#[test]
fn tags_do_not_hide_an_address() {
    both(|bench| {
        for tags in [
            "tag 5",
            "stag 5",
            "stag 5 tag 6",
            "tag 5 tag 6",
            "stag 1 stag 2 tag 3",
            "tag 1 tag 2 tag 3 tag 4",
        ] {
            bench.play(&format!(
                "
                out | tcp a:1 > w:80 syn {tags} | drop guard-out
                in  | tcp w:1 > a:80 syn {tags} | drop guard-in
                in  | tcp w:1 > n1:80 syn {tags} | pass
                "
            ));
        }
    });
}

#[test]
fn more_tags_than_any_link_has_are_dropped() {
    both(|bench| {
        bench.play("out | tcp a:1 > w:80 syn tag 1 tag 2 tag 3 tag 4 tag 5 tag 6 tag 7 | drop guard-out");
        bench.play("in  | tcp w:1 > n1:80 syn tag 1 tag 2 tag 3 tag 4 tag 5 tag 6 tag 7 | drop guard-in");
    });
}

#[test]
fn options_and_extension_headers_do_not_hide_an_address() {
    one(Family::V4, |bench| bench.play("out | udp a:1 > w:80 options 10 | drop guard-out"));
    one(Family::V6, |bench| {
        bench.play("out | udp a:1 > w:80 extensions 0,43,60,60,60,60,60,60 | drop guard-out");
        // An IPv4 address of a pod, worn by an IPv6 packet.
        bench.play("out | udp [::ffff:10.244.1.10]:1 > w:80 | drop guard-out");
    });
}

#[test]
fn what_is_no_ip_is_not_the_guards_business() {
    one(Family::V4, |bench| {
        let arp = Arp {
            operation: 1,
            sender_mac: [2; 6],
            sender: [192, 0, 2, 1],
            target_mac: [0; 6],
            target: [192, 0, 2, 2],
        };
        for program in ["guard_in", "guard_out"] {
            let context = Context { ifindex: bench.device("uplink"), ..Context::default() };
            assert_eq!(bench.run(program, &arp.frame(), context).outcome, "pass");
            let mut frame = packet("udp a:1 > w:80", Family::V4).frame([2; 6], [4; 6]);
            frame[12..ETHERNET].copy_from_slice(&0x88cc_u16.to_be_bytes());
            assert_eq!(bench.run(program, &frame, context).outcome, "pass");
        }
    });
}

#[test]
fn an_event_of_the_guard_names_both_ends_and_the_device() {
    both(|bench| {
        let done = bench.send("out", &packet("tcp a:1 > w:80 syn", bench.family));
        let event = done.events[0];
        assert_eq!((event.kind, event.ifindex), (abi::HW_EVENT_DROP, bench.device("uplink")));
        let ends: (abi::Addr, abi::Addr) =
            (address("a", bench.family).into(), address("w", bench.family).into());
        assert_eq!((event.src, event.dst, event.protocol), (ends.0, ends.1, 6));
    });
}
