//! What the tables say, in the kernel.

use crate::support::bench::{Bench, both, class, prefix};

#[test]
fn the_longest_match_of_a_port_decides_before_its_protocol_and_that_before_any() {
    both(|bench| {
        bench.play(
            "
            policy b: in deny, in a any -tcp tcp/8000/8 -tcp/8080 -udp/53 sctp/9
            a | tcp a:1 > b:7999 syn  | to b            # of 7936 to 8191
            a | tcp a:1 > b:8080 syn  | drop policy-ingress
            a | tcp a:1 > b:8081 syn  | to b
            a | tcp a:1 > b:8192 syn  | drop policy-ingress
            a | tcp a:1 > b:7935 syn  | drop policy-ingress
            a | udp a:1 > b:53        | drop policy-ingress
            a | udp a:1 > b:54        | to b
            a | sctp a:1 > b:9        | to b
            a | sctp a:1 > b:10       | to b
            a | protocol-47 a > b     | to b
            a | echo a > b            | to b
            c | tcp c:1 > b:8081 syn  | drop policy-ingress
            ",
        );
    });
}

#[test]
fn ports_at_the_ends_of_ranges_are_in_or_out_as_written() {
    both(|bench| {
        bench.play(
            "
            policy b: in deny, in a tcp/1 tcp/65535 tcp/4096/4
            a | tcp a:1 > b:0 syn     | drop policy-ingress
            a | tcp a:1 > b:1 syn     | to b
            a | tcp a:1 > b:2 syn     | drop policy-ingress
            a | tcp a:1 > b:4095 syn  | drop policy-ingress
            a | tcp a:1 > b:4096 syn  | to b
            a | tcp a:1 > b:8191 syn  | to b
            a | tcp a:1 > b:8192 syn  | drop policy-ingress
            a | tcp a:1 > b:65534 syn | drop policy-ingress
            a | tcp a:1 > b:65535 syn | to b
            a | udp a:1 > b:65535     | drop policy-ingress
            a | sctp a:1 > b:65535    | drop policy-ingress
            ",
        );
    });
}

#[test]
fn both_ends_must_allow_and_each_direction_is_its_own() {
    both(|bench| {
        bench.play(
            "
            policy a: out deny, out b tcp/80
            policy b: in deny, in a tcp/80, out deny
            a    | tcp a:1 > b:80 syn | to b
            a    | tcp a:1 > b:81 syn | drop policy-egress
            a    | tcp a:1 > c:80 syn | drop policy-egress
            c    | tcp c:1 > b:80 syn | drop policy-ingress
            b    | tcp b:2 > a:80 syn | drop policy-egress
            c    | tcp c:1 > a:80 syn | to a
            slot | tcp x:1 > a:80 syn | to a
            slot | tcp x:1 > b:80 syn | drop policy-ingress
            policy b: in deny, in a udp/80, out deny
            a    | tcp a:3 > b:80 syn | drop policy-ingress
            ",
        );
    });
}

#[test]
fn a_class_without_a_row_has_the_fallback_and_a_row_stands_above_it() {
    both(|bench| {
        bench.play(
            "
            policy b: in allow, in a deny
            a | tcp a:1 > b:80 syn          | drop policy-ingress
            c | tcp c:1 > b:80 syn          | to b
            uplink > b | tcp w:1 > b:80 syn | pass
            policy b: in deny, in world tcp/80
            uplink > b | tcp w:2 > b:80 syn | pass
            uplink > b | tcp w:2 > b:81 syn | drop policy-ingress
            c | tcp c:2 > b:80 syn          | drop policy-ingress
            policy b: in tcp/80
            c | tcp c:3 > b:80 syn          | to b
            c | tcp c:3 > b:81 syn          | drop policy-ingress
            ",
        );
    });
}

#[test]
fn addresses_that_nobody_has_told_us_of_have_the_class_of_their_longest_block() {
    both(|bench| {
        for (block, class) in [
            ("198.51.100.0/24", 70),
            ("198.51.100.7", 71),
            ("2001:db8:ffff::/48", 70),
            ("2001:db8:ffff::7", 71),
        ] {
            let net = prefix(block);
            bench.kernel.put_prefix(
                "blocks",
                net.bits,
                net.addr.w,
                datapath::abi::Block { class: [class; 2] },
            );
        }
        bench.play("policy b: in allow");
        let table = bench.sides["b"].table;
        let deny = |bench: &mut Bench, class| {
            let row = datapath::abi::RowKey { table, class, direction: datapath::abi::HW_INGRESS };
            bench.kernel.put("rows", row, datapath::abi::HW_FN_DENY);
        };
        deny(bench, 71);
        bench.play(
            "
            uplink > b | udp w:1 > b:80   | drop policy-ingress
            uplink > b | udp v:1 > b:80   | pass
            uplink > b | udp ext:1 > b:80 | pass
            ",
        );
        deny(bench, datapath::abi::HW_CLASS_UNKNOWN);
        deny(bench, datapath::abi::HW_CLASS_WORLD);
        bench.play(
            "
            uplink > b | udp ext:2 > b:80 | drop policy-ingress
            uplink > b | udp v:2 > b:80   | pass
            slot       | udp u:2 > b:80   | drop unknown-ingress
            slot       | udp y:2 > b:80   | to b
            ",
        );
    });
}

#[test]
fn an_address_of_a_pod_that_is_gone_opens_nothing_and_its_flows_go_on() {
    both(|bench| {
        bench.play(
            "
            policy b: in deny, in x allow
            slot | tcp x:1 > b:80 syn | to b
            gone x
            slot | tcp x:2 > b:80 syn | drop unknown-ingress
            slot | tcp x:1 > b:80 ack | to b
            epoch
            slot | tcp x:1 > b:80 ack | to b            # judged again, as what it was
            policy b: in deny, in unknown allow
            slot | tcp x:1 > b:80 ack | drop revoked
            ",
        );
    });
}

#[test]
fn what_begins_from_an_address_whose_pod_is_gone_stays_nobodys_until_somebody_has_it() {
    both(|bench| {
        bench.play(
            "
            gone x
            slot | tcp x:1 > b:80 syn   | to b
            b    | tcp b:2 > x:80 syn   | tunnel
            policy b: in allow, in unknown deny, out allow, out unknown deny
            slot | tcp x:1 > b:80 ack   | drop revoked      # not as what had the address before
            b    | tcp b:2 > x:80 ack   | drop revoked
            policy b: in unknown allow, in x deny, out unknown allow, out x deny
            slot | tcp x:1 > b:80 ack   | to b
            b    | tcp b:2 > x:80 ack   | tunnel
            know x
            epoch
            slot | tcp x:1 > b:80 ack   | drop revoked      # now it is somebody's
            b    | tcp b:2 > x:80 ack   | drop revoked
            policy b: in allow, out allow
            slot | tcp x:1 > b:80 ack   | to b
            gone x
            policy b: in unknown deny, out unknown deny
            slot | tcp x:1 > b:80 ack   | to b              # and judged as what it was
            ",
        );
    });
}

#[test]
fn a_pod_whose_policy_is_not_known_yet_meets_its_own_node_alone() {
    both(|bench| {
        bench.play(
            "
            policy b: closed
            a          | tcp a:1 > b:80 syn   | drop no-policy-yet
            slot       | tcp x:1 > b:80 syn   | drop no-policy-yet
            uplink > b | tcp w:1 > b:80 syn   | drop no-policy-yet
            b          | tcp b:1 > a:80 syn   | drop no-policy-yet
            b          | tcp b:1 > x:80 syn   | drop no-policy-yet
            b          | udp b:1 > n1:53      | drop no-policy-yet
            host > b   | tcp n1:1 > b:80 syn  | pass
            b          | tcp b:80 > n1:1 ack  | stack
            policy b: in allow, out allow
            a          | tcp a:1 > b:80 syn   | to b
            ",
        );
    });
}

#[test]
fn a_flow_of_a_pod_that_is_closed_is_stopped_and_goes_on_when_its_policy_is_there() {
    both(|bench| {
        bench.play(
            "
            a | tcp a:1 > b:80 syn     | to b
            policy b: closed
            a | tcp a:1 > b:80 ack     | drop no-policy-yet
            b | tcp b:80 > a:1 ack     | drop no-policy-yet
            policy b: in deny, in a tcp/80
            a | tcp a:1 > b:80 ack     | to b
            ",
        );
    });
}

#[test]
fn audit_reports_what_policy_denies_and_lets_it_pass_but_never_helps_a_spoofer() {
    both(|bench| {
        bench.play(
            "
            policy b: audit, in deny, out deny
            a    | tcp a:1 > b:80 syn   | to b
            slot | tcp x:1 > b:80 syn   | to b
            b    | tcp b:1 > x:80 syn   | tunnel
            counted audited 3
            a    | tcp a:1 > b:80 ack   | to b
            b    | udp a:1 > c:80       | drop spoofed-source
            slot | tcp a:1 > b:80 syn   | drop source-local
            counted audited 0
            a    | tcp a:2 > c:80 syn   | to c
            policy b: audit, closed
            a    | tcp a:3 > b:80 syn   | drop no-policy-yet
            ",
        );
    });
}

#[test]
fn a_packet_meets_one_bank_and_the_epoch_says_which() {
    both(|bench| {
        bench.play("policy b: in deny, in a tcp/80");
        // In the other bank the class of `a` is another, and so is what the endpoint says of it.
        let idle = usize::from(bench.epoch.is_multiple_of(2));
        let family = bench.family;
        let key = crate::support::bench::key("a", family);
        let mut known: datapath::abi::Address = bench.kernel.get("addresses", key).expect("known");
        known.class[idle] = 90;
        bench.kernel.put("addresses", key, known);
        bench.play("a | tcp a:1 > b:80 syn | to b");
        bench.stage("b", "in deny, in c allow");
        bench.play("a | tcp a:2 > b:80 syn | to b");
        bench.play("a | tcp a:2 > b:81 syn | drop policy-ingress");
        bench.play("epoch");
        bench.play("a | tcp a:3 > b:80 syn | drop policy-ingress");
        let table = bench.sides["b"].table;
        let row = datapath::abi::RowKey { table, class: 90, direction: datapath::abi::HW_INGRESS };
        bench.kernel.put("rows", row, datapath::abi::HW_FN_ALLOW);
        bench.play("a | tcp a:4 > b:80 syn | to b");
        let row = datapath::abi::RowKey { class: class("a"), ..row };
        bench.kernel.put("rows", row, datapath::abi::HW_FN_DENY);
        bench.play("a | tcp a:5 > b:80 syn | to b");
    });
}

#[test]
fn blocks_are_kept_twice_too() {
    both(|bench| {
        bench.play("policy b: in allow");
        let (used, idle) =
            (usize::try_from(bench.epoch % 2).expect("0 or 1"), usize::from(bench.epoch.is_multiple_of(2)));
        let mut class = [0; 2];
        (class[used], class[idle]) = (80, 81);
        for block in ["198.51.100.0/24", "2001:db8:ffff::/48"] {
            let net = prefix(block);
            bench.kernel.put_prefix("blocks", net.bits, net.addr.w, datapath::abi::Block { class });
        }
        let row = datapath::abi::RowKey {
            table: bench.sides["b"].table,
            class: 81,
            direction: datapath::abi::HW_INGRESS,
        };
        bench.kernel.put("rows", row, datapath::abi::HW_FN_DENY);
        bench.play("uplink > b | udp w:1 > b:80 | pass");
        bench.play("epoch");
        bench.play("uplink > b | udp w:2 > b:80 | drop policy-ingress");
    });
}

#[test]
fn an_address_without_a_class_in_a_bank_is_unknown_there() {
    both(|bench| {
        bench.play("policy b: in deny, in a allow");
        let key = crate::support::bench::key("a", bench.family);
        let mut known: datapath::abi::Address = bench.kernel.get("addresses", key).expect("known");
        known.class[usize::try_from(bench.epoch % 2).expect("0 or 1")] = 0;
        bench.kernel.put("addresses", key, known);
        bench.play("a | tcp a:1 > b:80 syn | drop unknown-ingress");
    });
}
