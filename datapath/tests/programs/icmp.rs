//! Errors about flows that we know pass, and no others; what they quote is as its sender said it.

use crate::support::bench::{both, one};
use crate::support::names::Family;

const KINDS: [&str; 4] = ["unreachable", "toobig", "exceeded", "problem"];
const FLOWS: [(&str, &str); 4] =
    [("tcp", "a:1 > {}:80"), ("udp", "a:1 > {}:80"), ("sctp", "a:1 > {}:80"), ("echo", "a > {} id 5")];

#[test]
fn errors_about_known_flows_pass_whatever_policy_says_of_icmp() {
    both(|bench| {
        for kind in KINDS {
            for (protocol, ends) in FLOWS {
                let (near, far) = (ends.replace("{}", "b"), ends.replace("{}", "x"));
                bench.play(&format!(
                    "
                    policy a: in deny, out deny, out b allow, out x allow
                    policy b: out deny
                    a          | {protocol} {near} | to b
                    b          | {kind} b > a about {{ {protocol} {near} }}  | to a
                    a          | {protocol} {far} | tunnel
                    slot       | {kind} x > a about {{ {protocol} {far} }}   | to a
                    slot       | {kind} n2 > a about {{ {protocol} {far} }}  | to a     # somebody on the way
                    uplink > a | {kind} v > a about {{ {protocol} {far} }}   | pass
                    host > a   | {kind} n1 > a about {{ {protocol} {far} }}  | pass
                    "
                ));
            }
        }
    });
}

#[test]
fn errors_about_answers_pass_to_whoever_gave_them() {
    both(|bench| {
        bench.play(
            "
            policy b: out deny, in deny, in x udp/53, in world udp/53
            slot       | udp x:1 > b:53                                  | to b
            b          | udp b:53 > x:1                                  | tunnel
            slot       | toobig n2 > b about { udp b:53 > x:1 }          | to b
            slot       | unreachable x > b about { udp b:53 > x:1 }      | to b
            uplink > b | udp w:1 > b:53                                  | pass
            b          | udp b:53 > w:1                                  | stack
            uplink > b | toobig v > b about { udp b:53 > w:1 }           | pass
            ",
        );
    });
}

#[test]
fn a_pods_errors_go_where_its_answers_go() {
    both(|bench| {
        bench.play(
            "
            policy b: out deny
            slot       | udp x:1 > b:53                             | to b
            b          | unreachable b > x about { udp x:1 > b:53 } | tunnel
            uplink > b | udp w:1 > b:53                             | pass
            b          | unreachable b > w about { udp w:1 > b:53 } | stack
            host > b   | udp n1:1 > b:53                            | pass
            b          | unreachable b > n1 about { udp n1:1 > b:53 } | stack
            ",
        );
    });
}

#[test]
fn errors_about_nothing_that_we_know_are_dropped_but_for_the_nodes_own() {
    both(|bench| {
        bench.play(
            "
            b          | unreachable b > a about { udp a:1 > b:53 }  | drop icmp-unrelated
            slot       | unreachable x > a about { udp a:1 > x:53 }  | drop icmp-unrelated
            uplink > a | toobig w > a about { tcp a:1 > w:80 }       | drop icmp-unrelated
            host > a   | unreachable n1 > a about { udp a:1 > x:53 } | pass
            a          | udp a:1 > b:53                              | to b
            b          | unreachable b > a about { udp a:1 > b:54 }  | drop icmp-unrelated
            b          | unreachable b > a about { udp a:2 > b:53 }  | drop icmp-unrelated
            b          | unreachable b > a about { tcp a:1 > b:53 }  | drop icmp-unrelated
            b          | unreachable b > a about { echo a > b id 1 } | drop icmp-unrelated
            b          | unreachable b > a about { udp a:1 > b:53 }  | to a
            ",
        );
    });
}

#[test]
fn an_error_about_somebody_elses_flow_does_not_open_a_way() {
    both(|bench| {
        bench.play(
            "
            policy c: in deny, out deny
            policy b: out deny
            a          | udp a:1 > b:53                             | to b
            a          | udp a:1 > x:53                             | tunnel
            b          | unreachable b > c about { udp a:1 > b:53 } | drop icmp-unrelated  # not to whom it belongs
            b          | unreachable b > x about { udp a:1 > b:53 } | drop icmp-unrelated
            b          | unreachable b > w about { udp a:1 > b:53 } | drop icmp-unrelated
            c          | unreachable c > a about { udp a:1 > b:53 } | drop icmp-unrelated  # not from whom it came to
            c          | unreachable c > a about { udp a:1 > x:53 } | drop icmp-unrelated
            a          | unreachable a > b about { udp a:1 > b:53 } | drop icmp-unrelated
            slot       | unreachable x > c about { udp a:1 > x:53 } | drop icmp-unrelated
            slot       | unreachable y > c about { udp a:1 > b:53 } | drop icmp-unrelated
            uplink > c | unreachable w > c about { udp a:1 > x:53 } | drop icmp-unrelated
            a > c      | unreachable a > c about { udp a:1 > x:53 } | drop icmp-unrelated
            ",
        );
    });
}

#[test]
fn an_error_that_quotes_too_little_or_a_later_piece_is_about_nothing() {
    both(|bench| {
        bench.play(
            "
            a    | udp a:1 > b:53 first 9                                       | to b
            b    | unreachable b > a about { udp a:1 > b:53 } quoted 8          | to a
            b    | unreachable b > a about { udp a:1 > b:53 } quoted 7          | drop icmp-unrelated
            b    | unreachable b > a about { udp a:1 > b:53 } quoted 0          | drop icmp-unrelated
            b    | unreachable b > a about { udp a:1 > b:53 first 9 }           | to a
            b    | unreachable b > a about { udp a:1 > b:53 later 9 }           | drop icmp-unrelated
            b    | unreachable b > a about { unreachable a > b about { udp b:53 > a:1 } } | drop icmp-unrelated
            ",
        );
    });
}

#[test]
fn an_error_about_an_error_reads_the_ends_behind_options_and_extension_headers() {
    one(Family::V4, |bench| {
        bench.play("a | udp a:1 > b:53 | to b");
        bench.play("b | unreachable b > a about { udp a:1 > b:53 options 5 } | to a");
        bench.play("b | unreachable b > a about { udp a:1 > b:53 } options 3 | to a");
    });
    one(Family::V6, |bench| {
        bench.play("a | udp a:1 > b:53 | to b");
        bench.play("b | unreachable b > a about { udp a:1 > b:53 extensions 0,60 } quoted 64 | to a");
        bench.play("b | unreachable b > a about { udp a:1 > b:53 } extensions 60 | to a");
        bench.play(
            "b | unreachable b > a about { udp a:1 > b:53 extensions 60,60,60,60,60,60 } | drop malformed",
        );
    });
}

#[test]
fn errors_about_a_flow_that_was_cut_are_cut() {
    both(|bench| {
        bench.play(
            "
            a | udp a:1 > b:53                             | to b
            a | udp a:1 > x:53                             | tunnel
            policy b: in deny
            b | unreachable b > a about { udp a:1 > b:53 } | drop revoked
            policy a: out deny
            slot | unreachable x > a about { udp a:1 > x:53 } | drop revoked
            ",
        );
    });
}

#[test]
fn an_error_neither_renews_a_flow_nor_answers_it() {
    both(|bench| {
        bench.play("a | udp a:1 > b:53 | to b\nage 20 udp a:1 > b:53");
        let before = bench.flow("udp a:1 > b:53").expect("remembered").1;
        bench.play("b | unreachable b > a about { udp a:1 > b:53 } | to a");
        let after = bench.flow("udp a:1 > b:53").expect("remembered").1;
        assert_eq!(before, after);
        assert_eq!(bench.kernel.all::<datapath::abi::Tuple, datapath::abi::Flow>("flows").len(), 1);
    });
}

#[test]
fn icmp_that_is_no_error_is_judged_like_any_flow() {
    both(|bench| {
        let kind = if bench.family == Family::V4 { 37 } else { 200 };
        bench.play(&format!(
            "
            policy b: in deny, in a icmp
            a | icmp-{kind} a > b | to b
            c | icmp-{kind} c > b | drop policy-ingress
            c | echo c > b        | drop policy-ingress
            a | answer a > b id 3 | to b
            "
        ));
    });
}

#[test]
fn an_error_to_a_client_quotes_what_the_client_had_said_to_the_service() {
    both(|bench| {
        for (protocol, port, behind) in [("udp", 53, 5353), ("tcp", 80, 8080), ("sctp", 9, 9)] {
            bench.play(&format!(
                "
                service svc:{port}/{protocol} = b:{behind}
                service svc2:{port}/{protocol} = x:{behind}
                service ext:{port}/{protocol} = w:{behind}
                a | {protocol} a:1 > svc:{port}  | to b   | {protocol} a:1 > b:{behind}
                a | {protocol} a:2 > svc2:{port} | tunnel | {protocol} a:2 > x:{behind}
                a | {protocol} a:3 > ext:{port}  | stack  | {protocol} a:3 > w:{behind}
                "
            ));
            for kind in KINDS {
                let (near, far, out) = ("a:1 > b", "a:2 > x", "a:3 > w");
                bench.play(&format!(
                    "
                    b    | {kind} b > a about {{ {protocol} {near}:{behind} }} | to a | {kind} b > a about {{ {protocol} a:1 > svc:{port} }}
                    slot | {kind} x > a about {{ {protocol} {far}:{behind} }}  | to a | {kind} x > a about {{ {protocol} a:2 > svc2:{port} }}
                    slot | {kind} n2 > a about {{ {protocol} {far}:{behind} }} quoted 8 | to a | {kind} n2 > a about {{ {protocol} a:2 > svc2:{port} }}
                    slot | {kind} n2 > a about {{ {protocol} {far}:{behind} }} quoted 13 | to a | {kind} n2 > a about {{ {protocol} a:2 > svc2:{port} }}
                    uplink > a | {kind} w > a about {{ {protocol} {out}:{behind} }} | pass | {kind} w > a about {{ {protocol} a:3 > ext:{port} }}
                    "
                ));
            }
        }
    });
}

#[test]
fn an_error_to_a_backend_quotes_what_the_backend_had_said() {
    both(|bench| {
        bench.play(
            "
            service svc:53/udp = b:5353
            a | udp a:1 > svc:53                             | to b | udp a:1 > b:5353
            b | udp b:5353 > a:1                             | to a | udp svc:53 > a:1
            host > b | exceeded n1 > b about { udp b:5353 > a:1 } | pass
            ",
        );
    });
}
