use proptest::prelude::*;

use super::*;

const NODES: [&str; 3] = ["a", "b", "me"];

fn name(index: usize) -> NodeName {
    NODES[index].parse().unwrap()
}

fn address(number: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, number])
}

/// How one Node is at a moment: gone, opened by somebody's word, or closed with these addresses.
#[derive(Clone, Debug)]
enum State {
    Gone,
    Opened,
    Closed(BTreeSet<u8>),
}

fn state() -> impl Strategy<Value = State> {
    prop_oneof![
        Just(State::Gone),
        Just(State::Opened),
        prop::collection::btree_set(0_u8..4, 0..3).prop_map(State::Closed),
        prop::collection::btree_set(0_u8..4, 1..3).prop_map(State::Closed),
    ]
}

/// What happens, and after how many seconds; the clock may be set back.
type Moment = ([State; 2], bool, bool, i64);

fn moment() -> impl Strategy<Value = Moment> {
    let hour = i64::try_from(FORGET).unwrap();
    let passes = prop::sample::select(vec![0, 1, 600, hour - 1, hour, hour + 1, -600]);
    ([state(), state()], prop::bool::weighted(0.9), prop::bool::weighted(0.8), passes)
}

/// Everything that has happened, of which the oracle asks for each address: was it closed, and what has been said since?
fn is_kept(history: &[Moment], node: usize, number: u8) -> bool {
    let mut since = None::<i64>;
    let (mut kept, mut now) = (false, 0_i64);
    for (states, on, synced, passed) in history {
        now += passed;
        if !on {
            (kept, since) = (false, None);
            continue;
        }
        let leaves = |since: &mut Option<i64>, kept: &mut bool| {
            let since = *since.get_or_insert(now);
            *kept &= now - since < i64::try_from(FORGET).unwrap();
        };
        match &states[node] {
            State::Closed(has) if has.contains(&number) => (kept, since) = (true, None),
            _ if !synced => {}
            State::Opened => (kept, since) = (false, None),
            State::Closed(has) if has.is_empty() => since = None,
            State::Closed(_) | State::Gone if kept => leaves(&mut since, &mut kept),
            State::Closed(_) | State::Gone => {}
        }
    }
    kept
}

proptest! {
    #[test]
    fn what_was_closed_is_kept_until_somebody_says_otherwise_or_it_was_gone_for_an_hour(
        moments in prop::collection::vec(moment(), 1..12),
    ) {
        let mut remembered = Remembered::default();
        let mut now = i64::try_from(CLOCK_SET).unwrap() + 1_000_000;
        for (index, (states, on, synced, passed)) in moments.iter().enumerate() {
            now += passed;
            let mut closed: BTreeMap<NodeName, BTreeSet<IpAddr>> = BTreeMap::new();
            let mut present = BTreeSet::new();
            for (node, state) in states.iter().enumerate() {
                match state {
                    State::Gone => continue,
                    State::Opened => {}
                    State::Closed(has) => {
                        closed.insert(name(node), has.iter().copied().map(address).collect());
                    }
                }
                present.insert(name(node));
            }
            closed.insert(name(2), BTreeSet::new());
            if !on {
                closed.clear();
            }
            let before = remembered.clone();
            let facts = Closings { closed: &closed, present: &present, synced: *synced, now: now.try_into().unwrap() };
            let changed = remembered.update(facts);
            prop_assert_eq!(changed, before != remembered);
            for node in 0..2 {
                let kept: BTreeSet<IpAddr> = remembered.addresses(&name(node)).collect();
                for number in 0..4 {
                    let expected = is_kept(&moments[..=index], node, number);
                    prop_assert_eq!(kept.contains(&address(number)), expected, "{} {}", node, number);
                }
                let known = !kept.is_empty() || closed.contains_key(&name(node));
                // Before the first list a name may stay without an address.
                prop_assert!(remembered.knows(&name(node)) == known || !*synced && !known);
            }
            let text = serde_json::to_string(&remembered).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Remembered>(&text).unwrap(), &remembered);
        }
    }
}

#[test]
fn a_node_that_started_without_a_clock_forgets_nothing_when_its_clock_is_set() {
    let here = BTreeMap::from([(name(2), BTreeSet::new())]);
    let both = BTreeMap::from([(name(0), BTreeSet::from([address(1)])), (name(2), BTreeSet::new())]);
    let mut remembered = Remembered::default();
    let mut known = |closed: &BTreeMap<NodeName, BTreeSet<IpAddr>>, now| {
        let present = closed.keys().cloned().collect();
        remembered.update(Closings { closed, present: &present, synced: true, now });
        remembered.knows(&name(0))
    };
    assert!(known(&both, 10) && known(&here, 20) && known(&here, 20 + 2 * FORGET), "nobody knows the time");
    let set = CLOCK_SET + 1;
    assert!(known(&here, set) && known(&here, set + FORGET - 1));
    assert!(!known(&here, set + FORGET));
}
