//! What of a policy has room in the maps. The tables that need most are closed when all together need more than half of a map:
//! whoever writes a policy that is too large loses his own pods, and nobody else's policy waits for him. Half, since a
//! transaction, and an agent that starts anew, has the new policy in the maps beside the old one.

use std::collections::{BTreeMap, BTreeSet};

use mesh_core::policy::model::ObjectName;
use mesh_core::policy::tables::{FnId, State, Table, TableId};

/// Entries that there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    /// Of `rows`.
    pub(crate) rows: usize,
    /// Of `ports`.
    pub(crate) ports: usize,
}

/// What has room, and what is closed for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fitted {
    /// What is left.
    pub(crate) state: State,
    /// Tables that are closed,
    pub(crate) closed: BTreeSet<TableId>,
    /// and the pods that have them.
    pub(crate) pods: BTreeSet<ObjectName>,
}

impl Room {
    /// Half of maps of these sizes.
    pub(crate) fn of(rows: u32, ports: u32) -> Self {
        let half = |entries: u32| usize::try_from(entries / 2).unwrap_or(usize::MAX);
        Self { rows: half(rows), ports: half(ports) }
    }

    /// What is left of it; none: all of it has room.
    pub(crate) fn fit(self, state: &State) -> Option<Fitted> {
        // Nearly always: looked at without a walk over all rows, since this is asked with every change.
        let rows = state.tables.values().map(|table| table.rows.len()).sum();
        if self.holds(rows, state.functions.values().map(BTreeMap::len).sum()) {
            return None;
        }
        let mut needs = Needs::default();
        for table in state.tables.values() {
            needs.add(table);
        }
        if self.holds(needs.rows, needs.ports(state)) {
            return None;
        }
        let mut tables: Vec<(&TableId, usize, &Table)> =
            state.tables.iter().map(|(id, table)| (id, self.share(state, table), table)).collect();
        tables.sort_by_key(|(id, share, _)| (std::cmp::Reverse(*share), **id));
        let mut ports = needs.ports(state);
        let mut closed = BTreeSet::new();
        for (id, _, table) in tables {
            if self.holds(needs.rows, ports) {
                break;
            }
            ports -= needs.remove(state, table);
            closed.insert(*id);
        }
        let mut left = state.clone();
        left.tables.retain(|id, _| !closed.contains(id));
        left.functions.retain(|function, _| needs.users.contains_key(function));
        let pods = state.subjects.iter().filter(|(_, subject)| closed.contains(&subject.table));
        let pods: BTreeSet<ObjectName> = pods.map(|(name, _)| name.clone()).collect();
        left.subjects.retain(|name, _| !pods.contains(name));
        Some(Fitted { state: left, closed, pods })
    }

    const fn holds(self, rows: usize, ports: usize) -> bool {
        rows <= self.rows && ports <= self.ports
    }

    /// How much of the room a table needs if nobody shares its functions: millionths of what is scarcer.
    fn share(self, state: &State, table: &Table) -> usize {
        let ports: usize = functions(table).iter().map(|function| length(state, *function)).sum();
        let of = |entries: usize, room: usize| entries.saturating_mul(1_000_000) / room.max(1);
        of(table.rows.len(), self.rows).max(of(ports, self.ports))
    }
}

/// What tables need together.
#[derive(Default)]
struct Needs {
    rows: usize,
    /// Tables that use a function.
    users: BTreeMap<FnId, usize>,
}

impl Needs {
    fn add(&mut self, table: &Table) {
        self.rows += table.rows.len();
        for function in functions(table) {
            *self.users.entry(function).or_default() += 1;
        }
    }

    /// Returns how many entries of `ports` nobody needs any more.
    fn remove(&mut self, state: &State, table: &Table) -> usize {
        self.rows -= table.rows.len();
        let mut freed = 0;
        for function in functions(table) {
            let Some(users) = self.users.get_mut(&function) else { continue };
            *users -= 1;
            if *users == 0 {
                self.users.remove(&function);
                freed += length(state, function);
            }
        }
        freed
    }

    fn ports(&self, state: &State) -> usize {
        self.users.keys().map(|function| length(state, *function)).sum()
    }
}

fn functions(table: &Table) -> BTreeSet<FnId> {
    table.rows.values().chain(&table.fallback).copied().collect()
}

fn length(state: &State, function: FnId) -> usize {
    state.functions.get(&function).map_or(0, BTreeMap::len)
}

#[cfg(test)]
mod tests {
    use mesh_core::policy::model::Direction;
    use mesh_core::policy::tables::{ClassId, PortPrefix, PortVerdict, Subject};
    use proptest::prelude::*;

    use super::*;

    /// Tables by the lengths of the functions that their rows use; each has one subject of the same number.
    fn state(lengths: &[usize], tables: &[Vec<usize>]) -> State {
        let mut state = State::default();
        let function = |number: usize| FnId(FnId::FIRST.0 + u32::try_from(number).unwrap());
        for (number, length) in lengths.iter().enumerate() {
            let prefix = |port: usize| PortPrefix::of(6, u16::try_from(port + 1).unwrap(), 16);
            let verdict = PortVerdict { rule: 1, allow: true };
            let says = (0..*length).map(|port| (prefix(port), verdict)).collect();
            state.functions.insert(function(number), says);
        }
        for (number, uses) in tables.iter().enumerate() {
            let id = TableId(u32::try_from(number).unwrap() + 1);
            let class = |row: usize| ClassId(ClassId::FIRST.0 + u32::try_from(row).unwrap());
            let rows = uses.iter().enumerate();
            let rows = rows.map(|(row, at)| ((Direction::Ingress, class(row)), function(*at))).collect();
            state.tables.insert(id, Table { fallback: [FnId::DENY; 2], rows });
            let name = ObjectName { namespace: "shop".into(), name: format!("web-{number}") };
            state.subjects.insert(name, Subject { table: id, audit: false, ips: BTreeSet::new() });
        }
        state
    }

    fn needed(state: &State) -> (usize, usize) {
        let rows = state.tables.values().map(|table| table.rows.len()).sum();
        let used: BTreeSet<FnId> = state.tables.values().flat_map(functions).collect();
        (rows, used.iter().map(|function| length(state, *function)).sum())
    }

    proptest! {
        #[test]
        fn what_is_left_has_room_and_nobody_is_closed_for_less_than_he_needs(
            lengths in prop::collection::vec(1..50_usize, 1..8),
            tables in prop::collection::vec(prop::collection::vec(0..8_usize, 0..6), 0..8),
            rows in 0..30_usize,
            ports in 0..200_usize,
        ) {
            let tables: Vec<Vec<usize>> =
                tables.iter().map(|uses| uses.iter().map(|at| at % lengths.len()).collect()).collect();
            let all = state(&lengths, &tables);
            let room = Room { rows, ports };
            let (needs_rows, needs_ports) = needed(&all);
            let Some(Fitted { state: left, pods: closed, .. }) = room.fit(&all) else {
                prop_assert!(needs_rows <= rows && needs_ports <= ports);
                return Ok(());
            };
            prop_assert!(needs_rows > rows || needs_ports > ports);
            let (left_rows, left_ports) = needed(&left);
            prop_assert!(left_rows <= rows && left_ports <= ports);
            // Whoever stays says what he said, and all that he asks for is there.
            for (id, table) in &left.tables {
                prop_assert_eq!(Some(table), all.tables.get(id));
                for function in functions(table).iter().filter(|function| **function != FnId::DENY) {
                    prop_assert_eq!(left.functions.get(function), all.functions.get(function));
                }
            }
            for (name, subject) in &all.subjects {
                prop_assert_eq!(closed.contains(name), !left.tables.contains_key(&subject.table));
                prop_assert_eq!(closed.contains(name), !left.subjects.contains_key(name));
            }
            // Nobody who needs less than another is closed before him.
            let share = |name: &ObjectName| room.share(&all, &all.tables[&all.subjects[name].table]);
            let least_closed = closed.iter().map(share).min().unwrap_or(usize::MAX);
            prop_assert!(left.subjects.keys().all(|name| share(name) <= least_closed));
        }
    }

    #[test]
    fn who_needs_most_is_closed_and_the_others_are_not() {
        let all = state(&[900, 10, 20], &[vec![1], vec![0, 1], vec![2, 2]]);
        let Fitted { state: left, pods, .. } = Room { rows: 100, ports: 100 }.fit(&all).unwrap();
        let closed: Vec<&str> = pods.iter().map(|name| name.name.as_str()).collect();
        assert_eq!(closed, ["web-1"]);
        assert_eq!(left.tables.len(), 2);
        assert_eq!(Room { rows: 100, ports: 1000 }.fit(&all), None);
    }
}
