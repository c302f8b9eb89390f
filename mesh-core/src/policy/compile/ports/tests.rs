use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::policy::tables::look_up;

const DENY: PortVerdict = PortVerdict { allow: false, rule: 0 };

fn allow(rule: u32) -> PortVerdict {
    PortVerdict { allow: true, rule }
}

/// What stands in a function for a painting of TCP ranges.
fn paint(ranges: &[(u16, u16, PortVerdict)]) -> Vec<String> {
    let mut painting = Painting::new();
    for (first, last, verdict) in ranges {
        painting.some(&PortMatch::Range(Protocol::Tcp, *first, *last), Mark::Said(*verdict));
    }
    match painting.outcome(DENY) {
        Outcome::Deny => vec!["deny".into()],
        Outcome::Allow => vec!["allow".into()],
        Outcome::Ports(function) => {
            let text = |(prefix, verdict): (&PortPrefix, &PortVerdict)| {
                let allow = if verdict.allow { "allow" } else { "deny" };
                match prefix.protocol {
                    None => format!("any {allow}"),
                    Some(protocol) => format!("{protocol} {}/{} {allow}", prefix.port, prefix.bits),
                }
            };
            function.iter().map(text).collect()
        }
    }
}

#[test]
fn ranges_become_the_fewest_prefixes() {
    assert_eq!(paint(&[]), ["deny"]);
    assert_eq!(paint(&[(80, 80, allow(1))]), ["any deny", "6 80/16 allow"]);
    assert_eq!(paint(&[(0, 65535, allow(1))]), ["any deny", "6 0/0 allow"]);
    let but_one = [(0, 79, allow(1)), (81, 65535, allow(1))];
    assert_eq!(paint(&but_one), ["any deny", "6 0/0 allow", "6 80/16 deny"]);
    let high = paint(&[(1024, 65535, allow(1))]);
    assert_eq!(high, ["any deny", "6 0/0 allow", "6 0/6 deny"]);
    assert_eq!(paint(&[(80, 83, allow(1))]), ["any deny", "6 80/14 allow"]);
}

#[test]
fn a_pass_leaves_a_port_to_the_next_tier() {
    let port = PortMatch::Range(Protocol::Udp, 53, 53);
    let mut painting = Painting::new();
    painting.some(&port, Mark::Passed);
    painting.all(Mark::Said(DENY));
    painting.next_tier();
    painting.some(&port, Mark::Said(allow(7)));
    let Outcome::Ports(function) = painting.outcome(DENY) else { panic!("one port differs") };
    assert_eq!(look_up(&function, 17, Some(53)), Some(allow(7)));
    assert_eq!(look_up(&function, 17, Some(54)), Some(DENY));
    assert_eq!(look_up(&function, 6, Some(53)), Some(DENY));
    assert_eq!(look_up(&function, 1, None), Some(DENY));
}

proptest! {
    #[test]
    fn a_function_says_of_each_port_what_the_first_range_with_it_says(
        ranges in vec((0_usize..3, any::<u16>(), any::<u16>(), any::<bool>(), 0_u32..3), 0..8),
    ) {
        let mut painting = Painting::new();
        let mut said = Vec::new();
        for (protocol, a, b, allow, rule) in ranges {
            let (protocol, verdict) = (Protocol::ALL[protocol], PortVerdict { allow, rule });
            let (first, last) = (a.min(b), a.max(b));
            painting.some(&PortMatch::Range(protocol, first, last), Mark::Said(verdict));
            said.push((protocol, first, last, verdict));
        }
        let outcome = painting.outcome(DENY);
        let asked = said.iter().flat_map(|(_, first, last, _)| {
            [*first, first.saturating_sub(1), *last, last.saturating_add(1), 0, 65_535]
        });
        for port in asked {
            for protocol in Protocol::ALL {
                let by = said.iter().find(|(p, first, last, _)| *p == protocol && (*first..=*last).contains(&port));
                let wanted = by.map_or(DENY, |(_, _, _, verdict)| *verdict);
                match &outcome {
                    Outcome::Deny => prop_assert!(!wanted.allow),
                    Outcome::Allow => prop_assert!(wanted.allow),
                    Outcome::Ports(function) => {
                        prop_assert_eq!(look_up(function, protocol.number(), Some(port)), Some(wanted));
                    }
                }
            }
        }
    }
}
