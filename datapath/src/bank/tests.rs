//! A model of the kernel: maps that change write by write, and packets that read the epoch first and then one map after
//! the other, with writes in between. Whatever a packet reads when, it must be judged wholly by the policy of its epoch.

use mesh_core::policy::model::Direction;
use mesh_core::policy::tables::{AddressRow, Subject, Table, TableId};
use proptest::prelude::*;

use super::*;
use crate::abi::HW_SIDE_CLOSED;

const ME: u32 = 7;
const ADDRESSES: u8 = 5;

fn address(number: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, number])
}

fn me() -> ObjectName {
    ObjectName { namespace: "x".into(), name: "me".into() }
}

/// One version of the world: what each address and each block means, and what the policy says of a meaning.
#[derive(Clone, Debug)]
struct Version {
    /// Meaning of each address that belongs to somebody.
    owners: BTreeMap<u8, u8>,
    /// Meaning of nested blocks around them.
    blocks: BTreeMap<u8, u8>,
    /// A bit for each meaning: allowed?
    policy: u16,
    /// The addresses are inside of a guarded prefix: pods', not nodes'.
    guarded: bool,
}

/// Length of the guarded prefix.
const GUARDED: u8 = 28;

/// Classes and tables as a compiler gives them: numbers never change their meaning.
#[derive(Default)]
struct Numbers {
    classes: BTreeMap<u8, ClassId>,
    tables: BTreeMap<u16, TableId>,
    next: u32,
}

impl Numbers {
    fn class(&mut self, meaning: u8) -> ClassId {
        self.next += 1;
        *self.classes.entry(meaning).or_insert(ClassId(100 + self.next))
    }

    /// The state of a version. Every table has a row for every class that was ever given out, as long as it lives.
    fn state(&mut self, version: &Version) -> State {
        let mut state = State::default();
        for (number, meaning) in &version.owners {
            state
                .addresses
                .insert(address(*number), AddressRow { class: self.class(*meaning), node: number % 2 == 0 });
        }
        for (bits, meaning) in &version.blocks {
            let inside = version.guarded && *bits >= GUARDED;
            let class = if inside { ClassId::UNKNOWN } else { self.class(*meaning) };
            state.blocks.insert(block(*bits), class);
        }
        if version.guarded {
            state.blocks.insert(block(GUARDED), ClassId::UNKNOWN);
        }
        self.next += 1;
        let table = *self.tables.entry(version.policy).or_insert(TableId(self.next));
        let subject = Subject { table, audit: false, ips: BTreeSet::new() };
        state.subjects.insert(me(), subject);
        state.tables.insert(table, self.table(version.policy));
        state
    }

    fn table(&self, policy: u16) -> Table {
        let mut table = Table { fallback: [FnId::DENY; 2], rows: BTreeMap::new() };
        for (meaning, class) in &self.classes {
            if allows(policy, *meaning) {
                table.rows.insert((Direction::Ingress, *class), FnId::ALLOW);
            }
        }
        table
    }
}

fn block(bits: u8) -> IpNet {
    IpNet::new(address(0), bits).unwrap()
}

fn allows(policy: u16, meaning: u8) -> bool {
    policy >> meaning & 1 == 1
}

/// Tables of a state that must say something of classes that are new: the compiler puts rows of old tables, too.
fn delta(before: &State, after: &State, numbers: &Numbers) -> Delta {
    let mut delta = Delta::default();
    let policy = |table: &TableId| *numbers.tables.iter().find(|(_, id)| *id == table).unwrap().0;
    let old = before.tables.keys().filter(|id| !after.tables.contains_key(id));
    let all: BTreeMap<TableId, Table> =
        after.tables.keys().chain(old).map(|id| (*id, numbers.table(policy(id)))).collect();
    for (table, content) in &all {
        let was = before.tables.get(table);
        if was.is_none() {
            delta.tables_put.insert(*table, content.fallback);
        }
        for ((direction, class), function) in &content.rows {
            if was.and_then(|was| was.rows.get(&(*direction, *class))) != Some(function) {
                let key = RowKey { table: *table, direction: *direction, class: *class };
                delta.rows_put.insert(key, *function);
            }
        }
    }
    for (table, content) in &before.tables {
        if !after.tables.contains_key(table) {
            delta.tables_removed.insert(*table);
            let key = |(direction, class): &(Direction, ClassId)| RowKey {
                table: *table,
                direction: *direction,
                class: *class,
            };
            delta.rows_removed.extend(content.rows.keys().map(key));
            delta.rows_removed.extend(all[table].rows.keys().map(key));
        }
    }
    for (address, row) in &after.addresses {
        if before.addresses.get(address) != Some(row) {
            delta.addresses_put.insert(*address, *row);
            delta.verdicts_may_change |= before.addresses.contains_key(address);
        }
    }
    delta.addresses_removed.extend(before.addresses.keys().filter(|a| !after.addresses.contains_key(a)));
    for (prefix, class) in &after.blocks {
        if before.blocks.get(prefix) != Some(class) {
            delta.blocks_put.insert(*prefix, *class);
            delta.verdicts_may_change = true;
        }
    }
    delta.blocks_removed.extend(before.blocks.keys().filter(|p| !after.blocks.contains_key(p)));
    delta.verdicts_may_change |= before.subjects != after.subjects && !before.subjects.is_empty();
    delta.subjects_put = after.subjects.clone();
    delta
}

/// Does one write to the maps.
fn perform(maps: &mut Known, write: &Write) {
    match write {
        Write::PutPort(function, prefix, value) => {
            maps.ports.insert((*function, *prefix), *value);
        }
        Write::PutRow(key, function) => {
            maps.rows.insert(*key, *function);
        }
        Write::PutAddress(address, value) => {
            maps.addresses.insert(*address, *value);
        }
        Write::PutBlock(prefix, class) => {
            maps.blocks.insert(*prefix, *class);
        }
        Write::PutSides(index, sides) => {
            maps.sides.insert(*index, *sides);
        }
        Write::Epoch(epoch) => maps.epoch = *epoch,
        Write::Grace => {}
        Write::DeletePort(function, prefix) => {
            maps.ports.remove(&(*function, *prefix));
        }
        Write::DeleteRow(key) => {
            maps.rows.remove(key);
        }
        Write::DeleteAddress(address) => {
            maps.addresses.remove(address);
        }
        Write::DeleteBlock(prefix) => {
            maps.blocks.remove(prefix);
        }
    }
}

/// The class that a packet finds, as `class_of` in `policy.h` for a flow that opens.
fn class_of(maps: &Known, address: IpAddr, bank: usize) -> u32 {
    if let Some(known) = maps.addresses.get(&address) {
        return if known.flags & HW_ADDRESS_GONE != 0 || known.class[bank] == 0 {
            ClassId::UNKNOWN.0
        } else {
            known.class[bank]
        };
    }
    longest_match(&maps.blocks, address).map_or(ClassId::WORLD.0, |(_, class)| class[bank])
}

/// A packet from `peer` to the subject, that reads its four maps after these numbers of writes.
fn judged(stages: &[Known], at: [usize; 4], peer: IpAddr) -> bool {
    let bank = (stages[at[0]].epoch & 1) as usize;
    let side = stages[at[1]].sides.get(&ME).map_or(Side::CLOSED, |sides| sides[bank]);
    if side.flags & HW_SIDE_CLOSED != 0 {
        return false;
    }
    let class = ClassId(class_of(&stages[at[2]], peer, bank));
    let key = RowKey { table: TableId(side.table), direction: Direction::Ingress, class };
    stages[at[3]].rows.get(&key).copied().unwrap_or(side.fallback[0]) == FnId::ALLOW.0
}

/// What a version says of a peer, in plain words.
fn wanted(version: &Version, peer: u8) -> bool {
    let by_block = || version.blocks.iter().rev().find(|(bits, _)| block(**bits).contains(&address(peer)));
    let world = || if version.guarded { None } else { by_block().map(|(_, meaning)| *meaning) };
    let meaning = version.owners.get(&peer).copied().or_else(world);
    meaning.is_some_and(|meaning| allows(version.policy, meaning))
}

fn versions() -> impl Strategy<Value = Vec<Version>> {
    any::<bool>().prop_flat_map(|guarded| prop::collection::vec(version(guarded), 2..6))
}

fn version(guarded: bool) -> impl Strategy<Value = Version> {
    let owners = prop::collection::btree_map(1..=ADDRESSES, 0_u8..6, 0..5);
    let blocks =
        prop::collection::btree_map(prop::sample::select(vec![8_u8, 24, 29, 30, 31, 32]), 6_u8..9, 0..4);
    (owners, blocks, any::<u16>()).prop_map(move |(owners, blocks, policy)| Version {
        owners,
        blocks,
        policy,
        guarded,
    })
}

/// A plan of which the kernel refuses a write, after the bank was in doubt. The policy in force is the one before, or, if the
/// epoch was written, the next.
fn fail(
    bank: &mut Bank,
    maps: &mut Known,
    state: &State,
    version: &Version,
    at: prop::sample::Index,
) -> Result<(), TestCaseError> {
    bank.observed(maps.clone());
    let links = BTreeMap::from([(me(), ME)]);
    let change =
        Change { state, delta: &Delta::default(), links: &links, forgotten: &BTreeSet::new(), now: 0 };
    let writes = bank.plan(&change);
    let before = maps.clone();
    for write in &writes[..at.index(writes.len() + 1)] {
        perform(maps, write);
    }
    for peer in 1..=ADDRESSES {
        let found = judged(std::slice::from_ref(maps), [0; 4], address(peer));
        let right = if maps.epoch == before.epoch {
            judged(std::slice::from_ref(&before), [0; 4], address(peer))
        } else {
            wanted(version, peer)
        };
        prop_assert!(found == right || !found, "peer {peer} after {writes:?}: {found} instead of {right}");
    }
    bank.observed(maps.clone());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_packet_is_judged_wholly_by_the_policy_of_its_epoch_whatever_is_written_meanwhile(
        versions in versions(),
        picks in prop::collection::vec((any::<[prop::sample::Index; 4]>(), 1..=ADDRESSES), 60),
        restarts in prop::collection::vec(any::<bool>(), 6),
        failures in prop::collection::vec(prop::option::of(any::<prop::sample::Index>()), 6),
    ) {
        let mut numbers = Numbers::default();
        let mut bank = Bank::new(Known::default());
        let (mut before, mut maps) = (State::default(), Known::default());
        let links = BTreeMap::from([(me(), ME)]);
        for (round, version) in versions.iter().enumerate() {
            if restarts[round] {
                bank = Bank::new(maps.clone());
            }
            if let Some(failure) = &failures[round] {
                let other = versions[(round + 1) % versions.len()].clone();
                fail(&mut bank, &mut maps, &numbers.state(&other), &other, *failure)?;
            }
            let after = numbers.state(version);
            let delta = delta(&before, &after, &numbers);
            let forgotten = if round % 2 == 0 { bank.expired(u64::MAX) } else { BTreeSet::new() };
            let forgotten = forgotten.into_iter().filter(|a| !after.addresses.contains_key(a)).collect();
            let change = Change { state: &after, delta: &delta, links: &links, forgotten: &forgotten, now: 0 };
            let writes = bank.plan(&change);
            let mut stages = vec![maps.clone()];
            for write in &writes {
                perform(&mut maps, write);
                stages.push(maps.clone());
            }
            prop_assert_eq!(&maps, bank.known());
            for (at, peer) in &picks {
                let mut at = at.map(|index| index.index(stages.len()));
                at.sort_unstable();
                // Who began before a grace period ends within it.
                let grace = writes.iter().skip(at[0]).position(|write| *write == Write::Grace);
                if let Some(grace) = grace.map(|ahead| at[0] + ahead) {
                    at = at.map(|stage| stage.min(grace));
                }
                let passed = judged(&stages, at, address(*peer));
                let new = stages[at[0]].epoch == maps.epoch && stages[0].epoch != maps.epoch;
                // What is right at either end is checked below.
                let end = stages.len() - 1;
                let (old, next) = (judged(&stages, [0; 4], address(*peer)), judged(&stages, [end; 4], address(*peer)));
                let is_gone = |maps: &Known| {
                    maps.addresses.get(&address(*peer)).is_some_and(|known| known.flags & HW_ADDRESS_GONE != 0)
                };
                let vanishes = is_gone(&stages[0]) || stages.iter().any(is_gone);
                let right = if new {
                    passed == next
                } else if stages[0].epoch == maps.epoch {
                    // No new epoch: something was added at most.
                    passed == old || passed == next
                } else {
                    // A pod that goes is nobody at once.
                    passed == old || (vanishes && !passed)
                };
                prop_assert!(right, "round {round} peer {peer} at {at:?} of {writes:?}: {passed}, {old} -> {next}");
            }
            for peer in 1..=ADDRESSES {
                let end = stages.len() - 1;
                let gone = maps.addresses.get(&address(peer)).is_some_and(|known| known.flags & HW_ADDRESS_GONE != 0);
                let expect = !gone && wanted(version, peer);
                prop_assert_eq!(judged(&stages, [end; 4], address(peer)), expect, "round {} peer {}", round, peer);
            }
            // Whatever is left in the maps is still asked for.
            prop_assert!(maps.rows.keys().all(|row| after.tables.contains_key(&row.table)), "{:?}", maps.rows);
            prop_assert!(maps.blocks.keys().all(|prefix| after.blocks.contains_key(prefix)));
            before = after;
        }
    }
}

#[test]
fn an_address_that_is_used_again_makes_a_new_epoch_and_a_new_one_does_not() {
    let mut numbers = Numbers::default();
    let mut bank = Bank::new(Known::default());
    let mut before = State::default();
    let links = BTreeMap::from([(me(), ME)]);
    let mut owners = BTreeMap::from([(1, 1)]);
    let mut step = |owners: &BTreeMap<u8, u8>, now| {
        let version =
            Version { owners: owners.clone(), blocks: BTreeMap::new(), policy: 0b11, guarded: true };
        let after = numbers.state(&version);
        let delta = delta(&before, &after, &numbers);
        let forgotten = BTreeSet::new();
        let writes =
            bank.plan(&Change { state: &after, delta: &delta, links: &links, forgotten: &forgotten, now });
        before = after;
        writes.iter().any(|write| matches!(write, Write::Epoch(_)))
    };
    assert!(step(&owners, 0), "the first");
    owners.insert(2, 1);
    assert!(!step(&owners, 1), "a new pod");
    owners.remove(&1);
    assert!(step(&owners, 2), "a pod is gone");
    owners.insert(1, 1);
    assert!(step(&owners, 3), "its address again");
    assert!(!step(&owners, 4), "nothing");
    owners.remove(&2);
    assert!(step(&owners, 100), "the other is gone");
    // It is nobody's, to flows that were there as well, long before its node gives it away again.
    let rest = QUARANTINE / 1000;
    assert_eq!(bank.expired(100 + rest / 2 - 1).len(), 0);
    assert_eq!(bank.expired(100 + rest / 2).len(), 1);
}

#[test]
fn numbers_begin_above_whatever_is_in_the_maps() {
    let mut known = Known::default();
    assert_eq!(
        Bank::new(known.clone()).first_numbers(),
        FirstNumbers { class: 16, table: 1, function: 2, rule: 1 }
    );
    known.addresses.insert(address(1), Address { class: [20, 40], flags: 0 });
    known.rows.insert(
        RowKey { table: TableId(5), direction: Direction::Egress, class: ClassId(30) },
        FnId::ALLOW.0,
    );
    known.ports.insert((FnId(9), PortPrefix::ANY), 7 << 1);
    let side = Side { table: 6, fallback: [11, 1], flags: 0 };
    known.sides.insert(1, [side, Side::CLOSED]);
    assert_eq!(Bank::new(known).first_numbers(), FirstNumbers { class: 41, table: 7, function: 12, rule: 8 });
}
