//! The compiler against itself: one change at a time or all at once, its words and its tables.

mod cases;
mod worlds;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::prelude::*;

use self::worlds::{Event, World, addresses, events, pod_names, ports, tell};
use super::{Compiler, FirstNumbers, RuleRef};
use crate::policy::explain::Reason;
use crate::policy::model::{Direction, Flow, ObjectName, Verdict};
use crate::policy::tables::{ClassId, FnId, PortFunction, PortPrefix, RowKey, State, TableId, judge};

const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

type Question = (ObjectName, Direction, IpAddr, (u8, Option<u16>));

fn questions() -> Vec<Question> {
    let mut all = Vec::new();
    for subject in pod_names() {
        for direction in DIRECTIONS {
            for address in addresses() {
                for port in ports() {
                    all.push((subject.clone(), direction, address, port));
                }
            }
        }
    }
    all
}

fn answer(compiler: &Compiler, question: &Question) -> (Verdict, Option<RuleRef>) {
    let (subject, direction, peer, (protocol, port)) = question;
    let (verdict, rule) = judge(compiler.state(), subject, *direction, *peer, *protocol, *port);
    (verdict, compiler.rule(rule).cloned())
}

/// Every reference in a state leads somewhere, and every function says something of everything.
fn check_total(state: &State) {
    let has = |id: FnId| id < FnId::FIRST || state.functions.contains_key(&id);
    for table in state.tables.values() {
        assert!(table.fallback.iter().all(|id| has(*id)));
        for ((direction, _), function) in &table.rows {
            assert!(has(*function));
            assert_ne!(*function, table.fallback[crate::policy::tables::index(*direction)]);
        }
    }
    for function in state.functions.values() {
        assert!(function.contains_key(&PortPrefix::ANY));
    }
    let used: BTreeSet<_> = state.subjects.values().map(|subject| subject.table).collect();
    assert_eq!(used, state.tables.keys().copied().collect(), "tables are those of subjects");
    let contents: BTreeSet<_> = state.functions.values().collect();
    assert_eq!(contents.len(), state.functions.len(), "equal functions share one number");
}

/// Remembers what numbers meant.
#[derive(Default)]
struct Memory {
    functions: BTreeMap<FnId, PortFunction>,
    rows: BTreeMap<RowKey, FnId>,
    tables: BTreeMap<TableId, [FnId; 2]>,
    gone_tables: BTreeSet<TableId>,
    classes: BTreeMap<ClassId, String>,
}

impl Memory {
    fn check(&mut self, compiler: &Compiler) {
        let state = compiler.state();
        for (id, function) in &state.functions {
            assert_eq!(self.functions.entry(*id).or_insert_with(|| function.clone()), function);
        }
        for (id, table) in &state.tables {
            assert!(!self.gone_tables.contains(id), "{id:?} is back");
            assert_eq!(*self.tables.entry(*id).or_insert(table.fallback), table.fallback);
            for ((direction, class), function) in &table.rows {
                let key = RowKey { table: *id, direction: *direction, class: *class };
                assert_eq!(*self.rows.entry(key).or_insert(*function), *function, "{key:?}");
            }
        }
        self.gone_tables.extend(self.tables.keys().filter(|id| !state.tables.contains_key(id)));
        let classes = state.addresses.values().map(|row| row.class).chain(state.blocks.values().copied());
        for class in classes.filter(|class| *class >= ClassId::FIRST) {
            // Numbers of atoms are never used again, so equal text is equal meaning.
            let meaning =
                format!("{:?}", compiler.classes.signature(class).expect("a class in use has a meaning"));
            assert_eq!(*self.classes.entry(class).or_insert_with(|| meaning.clone()), meaning);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn one_change_at_a_time_comes_to_the_same_as_all_at_once(events in events()) {
        let (mut compiler, mut world) = (Compiler::new(worlds::guarded()), World::default());
        for event in &events {
            tell(&mut compiler, event);
            world.note(event);
            if let Event::Commit = event {
                compiler.commit();
            }
        }
        compiler.commit();
        let scratch = world.compile();
        check_total(compiler.state());
        prop_assert_eq!(compiler.problems(), scratch.problems());
        let known: Vec<_> = scratch.state().subjects.keys().collect();
        prop_assert_eq!(compiler.state().subjects.keys().collect::<Vec<_>>(), known);
        for question in questions() {
            prop_assert_eq!(answer(&compiler, &question), answer(&scratch, &question), "{:?}", question);
        }
    }

    #[test]
    fn deltas_make_a_mirror_of_the_state_and_numbers_keep_their_meaning(events in events()) {
        let (mut compiler, mut again) = (Compiler::new(worlds::guarded()), Compiler::new(worlds::guarded()));
        let (mut mirror, mut memory) = (State::default(), Memory::default());
        for event in events.iter().chain([&Event::Commit]) {
            tell(&mut compiler, event);
            tell(&mut again, event);
            if let Event::Commit = event {
                let delta = compiler.commit();
                prop_assert_eq!(&delta, &again.commit(), "the same calls, the same delta");
                delta.apply(&mut mirror);
                prop_assert_eq!(&mirror, compiler.state());
                memory.check(&compiler);
                check_total(compiler.state());
                prop_assert!(compiler.commit().is_empty(), "nothing happened");
                prop_assert!(again.commit().is_empty());
            }
        }
    }

    #[test]
    fn without_a_new_epoch_no_verdict_on_known_addresses_changes(events in events()) {
        let mut compiler = Compiler::new(worlds::guarded());
        let questions = questions();
        let mut gone = BTreeSet::new();
        for event in events.iter().chain([&Event::Commit]) {
            tell(&mut compiler, event);
            if let Event::Forget(address) = event {
                gone.remove(address);
            }
            let Event::Commit = event else { continue };
            let before = compiler.state().clone();
            let delta = compiler.commit();
            let reused = delta.addresses_put.keys().any(|address| gone.contains(address));
            prop_assert!(delta.verdicts_may_change || !reused);
            gone.extend(delta.addresses_removed.iter().copied());
            if delta.verdicts_may_change {
                continue;
            }
            for (subject, direction, peer, (protocol, port)) in &questions {
                // An own address is no question of the tables, and one that was unknown may become known.
                let own = |state: &State| state.subjects.get(subject).is_none_or(|s| s.ips.contains(peer));
                if own(&before) || own(compiler.state()) || before.class(*peer) == ClassId::UNKNOWN {
                    continue;
                }
                let old = judge(&before, subject, *direction, *peer, *protocol, *port);
                let new = judge(compiler.state(), subject, *direction, *peer, *protocol, *port);
                prop_assert_eq!(old, new);
            }
        }
    }

    #[test]
    fn explanations_agree_with_the_tables(events in events()) {
        let mut world = World::default();
        events.iter().for_each(|event| world.note(event));
        let compiler = world.compile();
        for question in questions() {
            let (verdict, rule) = answer(&compiler, &question);
            let (subject, direction, peer, (protocol, port)) = question;
            let other: IpAddr = "203.0.113.1".parse().unwrap();
            let (source, destination) = match direction {
                Direction::Ingress => (peer, other),
                Direction::Egress => (other, peer),
            };
            let explained = compiler.explain(&subject, direction, Flow { source, destination, protocol, port });
            prop_assert_eq!(explained.verdict, verdict, "{}", explained);
            match (rule, explained.reason) {
                (Some(rule), Reason::Rule(explained)) => prop_assert_eq!(rule, explained),
                // The first of those that isolate stands for all.
                (Some(rule), Reason::Isolated(by)) => prop_assert_eq!(Some(&rule.object), by.first()),
                // Where a function says the same of everything, no rule is told.
                (None, _) => {}
                (Some(rule), other) => prop_assert!(false, "tables say {}, explain {}", rule, other),
            }
        }
    }
}

#[test]
fn a_second_life_uses_no_number_of_the_first() {
    let first = FirstNumbers { class: 1_000, table: 2_000, function: 3_000, rule: 4_000 };
    let mut world = World::default();
    for event in cases::busy() {
        world.note(&event);
    }
    let one = world.compile();
    let mut two = Compiler::new(worlds::guarded()).starting_at(first);
    cases::busy().iter().for_each(|event| tell(&mut two, event));
    two.commit();
    let state = two.state();
    assert!(!state.functions.is_empty() && state.functions.keys().all(|id| id.0 >= 3_000));
    assert!(!state.tables.is_empty() && state.tables.keys().all(|id| id.0 >= 2_000));
    let classes = state.addresses.values().filter(|row| row.class >= ClassId::FIRST);
    assert!(classes.clone().count() > 0 && classes.into_iter().all(|row| row.class.0 >= 1_000));
    assert!(two.rule(1).is_none() && two.rule(4_000).is_some() && one.rule(1).is_some());
}
