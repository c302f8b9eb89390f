use proptest::prelude::*;

use super::*;
use crate::nft::encode::{Message, replace};
use crate::nft::{HostGuard, NftInput, ruleset};

fn table() -> Table {
    let both = |v4: &str, v6: &str| vec![v4.parse().unwrap(), v6.parse().unwrap()];
    ruleset(&NftInput {
        guarded: both("10.244.0.0/16", "fd44::/48"),
        own_pod_cidrs: both("10.244.1.0/24", "fd44:0:0:1::/64"),
        own_node_ips: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        peer_node_ips: vec!["255.255.255.255".parse().unwrap(), "2001:db8::2".parse().unwrap()],
        mesh: vec!["10.244.1.1".parse().unwrap(), "fd44:0:0:1::1".parse().unwrap()],
        non_masquerade: both("0.0.0.0/1", "fc00::/7"),
        service_cidrs: both("10.96.0.0/12", "fd00:96::/112"),
        translates: true,
        slots: ["hawser0".into(), "hawser1".into()],
        pod_veth_prefix: "hw".into(),
        tunnel_ports: [51880, 51881],
        hosts: HostGuard::default(),
    })
}

fn answer(message: &Message) -> Answer {
    let mut attrs = Vec::new();
    message.attrs.iter().try_for_each(|attr| attr.write(&mut attrs)).expect("fits");
    Answer { family: message.family, attrs }
}

/// What a kernel that stores exactly what it is sent would list.
fn stored(table: &Table) -> Observed {
    let mut found = ObservedTable::default();
    for message in replace(table, &BTreeMap::new()).expect("encodes") {
        let answer = answer(&message);
        match message.kind {
            msg::NEWSET => {
                let (name, shape) = parse_set(&answer).expect("a set");
                found.sets.insert(name, ObservedSet { shape, keys: Vec::new() });
            }
            msg::NEWSETELEM => {
                let attrs = wire::parse(&answer.attrs).unwrap();
                let set = wire::text(wire::find(&attrs, nfta::ELEMS_SET).unwrap());
                let keys = &mut found.sets.get_mut(&set).unwrap().keys;
                keys.extend(parse_elements(&answer.attrs).expect("elements"));
                keys.sort_unstable();
            }
            msg::NEWCHAIN => {
                let chain = parse_chain(&answer).expect("a chain");
                found.chains.insert(chain.name, ObservedChain { base: chain.base, rules: Vec::new() });
            }
            msg::NEWRULE => {
                let (_, chain, rule) = parse_rule(&answer).expect("a rule");
                found.chains.get_mut(&chain).unwrap().rules.push(rule);
            }
            _ => {}
        }
    }
    Observed { table: Some(found) }
}

fn rules(observed: &mut Observed) -> Vec<&mut ObservedRule> {
    observed
        .table
        .iter_mut()
        .flat_map(|table| table.chains.values_mut())
        .flat_map(|chain| &mut chain.rules)
        .collect()
}

#[test]
fn what_is_sent_and_stored_is_no_difference_and_sums_start_at_zero() {
    let observed = stored(&table());
    assert_eq!(diff(&table(), &observed).unwrap(), []);
    assert!(sums(&observed).values().all(|sum| *sum == Counter::default()) && sums(&observed).len() == 9);
}

#[test]
fn seeds_go_to_the_first_rule_of_a_name_and_are_no_difference() {
    let seeds = BTreeMap::from([
        ("refused_in_v4".to_owned(), Counter { packets: 7, bytes: 700 }),
        ("of a rule that is gone".to_owned(), Counter { packets: 1, bytes: 1 }),
    ]);
    let messages = replace(&table(), &seeds).unwrap();
    let rules = messages.iter().filter(|message| message.kind == msg::NEWRULE);
    let mut chain = ObservedChain { base: None, rules: Vec::new() };
    chain.rules.extend(rules.map(|message| parse_rule(&answer(message)).expect("a rule").2));
    let observed = ObservedTable { chains: [("x".to_owned(), chain)].into(), ..ObservedTable::default() };
    let sums = sums(&Observed { table: Some(observed) });
    assert_eq!(sums["refused_in_v4"], Counter { packets: 7, bytes: 700 });
    assert_eq!(sums.values().map(|sum| sum.packets).sum::<u64>(), 7);
}

proptest! {
    #[test]
    fn one_bit_of_any_expression_but_a_counter_is_a_difference_even_under_our_own_hash(
        rule in any::<prop::sample::Index>(), expression in any::<prop::sample::Index>(),
        byte in any::<prop::sample::Index>(), bit in 0_u32..8,
    ) {
        let mut observed = stored(&table());
        {
            let mut rules = rules(&mut observed);
            let count = rules.len();
            let rule = &mut rules[rule.index(count)];
            let acting: Vec<_> = (0..rule.expressions.len()).filter(|at| rule.expressions[*at].0 != COUNTER).collect();
            let data = &mut rule.expressions[*expression.get(&acting)].1;
            let at = byte.index(data.len());
            // The top bits of an attribute's type (its fourth byte; attributes begin at multiples of four) are flags,
            // which mean nothing here; nor does padding.
            prop_assume!(at % 4 != 3 || bit < 6);
            let before = data.clone();
            data[at] ^= 1 << bit;
            prop_assume!(meaning(&before) != meaning(data));
        }
        prop_assert!(!diff(&table(), &observed).unwrap().is_empty());
    }

    #[test]
    fn no_answer_of_any_bytes_makes_a_parser_panic(attrs in prop::collection::vec(any::<u8>(), 0..200)) {
        let answer = Answer { family: 0, attrs: attrs.clone() };
        let _ = (parse_chain(&answer), parse_rule(&answer), parse_set(&answer), parse_elements(&attrs));
        let _ = (table_flags(&answer, "x"), parse_userdata(&attrs));
    }
}

/// Attributes as a tree without flags and padding.
fn meaning(data: &[u8]) -> Option<Vec<(u16, Vec<u8>)>> {
    let nests = [nfta::CMP_DATA, nfta::BITWISE_MASK, nfta::BITWISE_XOR];
    let mut flat = Vec::new();
    for (kind, value) in wire::parse(data)? {
        match wire::parse(value).filter(|inner| nests.contains(&kind) && value.len() > 4 && inner.len() == 1)
        {
            Some(inner) => {
                flat.extend(inner.into_iter().map(|(inner, value)| (kind << 8 | inner, value.to_vec())))
            }
            None => flat.push((kind, value.to_vec())),
        }
    }
    Some(flat)
}

#[test]
fn a_missing_added_or_swapped_rule_chain_set_or_element_is_named() {
    let check = |change: &dyn Fn(&mut ObservedTable), expect: &[&str]| {
        let mut observed = stored(&table());
        change(observed.table.as_mut().unwrap());
        let found: Vec<_> = diff(&table(), &observed).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(found, expect);
    };
    check(
        &|table| table.chains.get_mut("translate").unwrap().rules.swap(1, 2),
        &["chain translate differs from rule 1 on"],
    );
    check(
        &|table| drop(table.chains.get_mut("refuse_in").unwrap().rules.pop()),
        &["chain refuse_in differs from rule 5 on"],
    );
    check(
        &|table| table.chains.get_mut("refuse_in").unwrap().rules[2].hash = None,
        &["chain refuse_in differs from rule 2 on"],
    );
    check(&|table| drop(table.chains.remove("refuse_out")), &["chain refuse_out missing"]);
    check(&|table| drop(table.sets.remove("slots")), &["set slots missing"]);
    check(
        &|table| drop(table.sets.get_mut("peers_v4").unwrap().keys.pop()),
        &["set peers_v4 has other elements"],
    );
    check(&|table| table.sets.get_mut("peers_v4").unwrap().keys.insert(0, (vec![0; 4], true)), &[]);
    check(
        &|table| table.sets.get_mut("peers_v4").unwrap().shape.flags = 0,
        &["set peers_v4 of another type"],
    );
    check(&|table| table.flags = 1, &["table has flags"]);
}
