//! In which order policy is written, so that no packet meets half an update.
//!
//! Everything that says what policy says is in the maps twice, in two banks; a packet reads the epoch once and uses bank
//! `epoch & 1` to its end. A change is one transaction:
//!
//! ```text
//! functions, rows (nobody asks for them yet)
//!   └► the bank not in use: addresses, blocks, sides ─► epoch + 1 ─► grace period ─► the other bank, equal ─► deletions
//! ```
//!
//! What only adds (an address that nobody knew, a pod that is new here) needs no new epoch: rows first, then both banks at once.
//! Between transactions both banks are equal. Whatever fails before the new epoch leaves the old policy in force.
//!
//! [`Bank`] chooses and writes nothing; `apply.rs` does what it says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use mesh_core::ipam::QUARANTINE;
use mesh_core::policy::compile::FirstNumbers;
use mesh_core::policy::model::ObjectName;
use mesh_core::policy::tables::{
    ClassId, Delta, FnId, PortPrefix, PortVerdict, RowKey, State, TableId, longest_match,
};

use crate::abi::{HW_ADDRESS_GONE, HW_ADDRESS_NODE, HW_ALLOW, HW_SIDE_AUDIT, Side};

/// Seconds for which the class of a vanished pod's address is kept, unless it is used again: its flows may still have
/// packets to exchange, and are judged by it. It is nobody's long before it may be given away again: a node that hears late of
/// the next owner would take his packets for those of a flow that the former one had.
const GONE_SECONDS: u64 = 15;
const _: () = assert!(2 * 1000 * GONE_SECONDS <= QUARANTINE, "longer than an address rests");
/// Addresses of vanished pods that are kept at most, so that churn cannot fill the map; the oldest go first.
const GONE_LIMIT: usize = 16_384;

/// Value of `addresses`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// By bank.
    pub class: [u32; 2],
    /// `HW_ADDRESS_*`.
    pub flags: u32,
}

/// One thing to do. They are done in order, and the first that fails ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// What a function says of a prefix: `HW_ALLOW` and the rule's number.
    PutPort(FnId, PortPrefix, u32),
    /// A row.
    PutRow(RowKey, u32),
    /// An address.
    PutAddress(IpAddr, Address),
    /// A block's class by bank.
    PutBlock(IpNet, [u32; 2]),
    /// Both sides of the endpoint with this interface index.
    PutSides(u32, [Side; 2]),
    /// From now on packets use the other bank.
    Epoch(u32),
    /// Wait until no packet can still use the former bank.
    Grace,
    /// Take it away.
    DeletePort(FnId, PortPrefix),
    /// Take it away.
    DeleteRow(RowKey),
    /// Take it away.
    DeleteAddress(IpAddr),
    /// Take it away.
    DeleteBlock(IpNet),
}

/// What the maps hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// In force; 0: never set.
    pub epoch: u32,
    /// `addresses`.
    pub addresses: BTreeMap<IpAddr, Address>,
    /// `blocks`.
    pub blocks: BTreeMap<IpNet, [u32; 2]>,
    /// `rows`.
    pub rows: BTreeMap<RowKey, u32>,
    /// `ports`.
    pub ports: BTreeMap<(FnId, PortPrefix), u32>,
    /// Sides of `endpoints`, by interface index.
    pub sides: BTreeMap<u32, [Side; 2]>,
}

/// Knows what is in the maps and says what to write.
#[derive(Clone, Debug, Default)]
pub struct Bank {
    known: Known,
    /// Since when a pod's address is nobody's.
    gone: BTreeMap<IpAddr, u64>,
    /// The last transaction may not have been finished, or was another process's: nothing is taken for granted.
    doubtful: bool,
}

/// A change, and all that is wanted after it.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// All that is wanted.
    pub state: &'a State,
    /// What of it is new since the last plan.
    pub delta: &'a Delta,
    /// Endpoints of this node: which pod behind which interface index.
    pub links: &'a BTreeMap<ObjectName, u32>,
    /// Addresses of vanished pods that the compiler forgot with this delta ([`Bank::expired`] named them).
    pub forgotten: &'a BTreeSet<IpAddr>,
    /// Seconds of any clock that does not go back.
    pub now: u64,
}

impl Bank {
    /// Begins from what was found in the maps.
    pub fn new(known: Known) -> Self {
        Self { known, gone: BTreeMap::new(), doubtful: true }
    }

    /// What is in the maps, as far as we know.
    pub const fn known(&self) -> &Known {
        &self.known
    }

    /// The first numbers that nothing in the maps has.
    pub fn first_numbers(&self) -> FirstNumbers {
        let known = &self.known;
        let classes = known.addresses.values().flat_map(|address| address.class);
        let classes = classes.chain(known.blocks.values().copied().flatten());
        let classes = classes.chain(known.rows.keys().map(|row| row.class.0));
        let tables = known.rows.keys().map(|row| row.table.0);
        let tables = tables.chain(known.sides.values().flatten().map(|side| side.table));
        let fallbacks = known.sides.values().flatten().flat_map(|side| side.fallback);
        let functions = known.ports.keys().map(|(function, _)| function.0).chain(fallbacks);
        let functions = functions.chain(known.rows.values().copied());
        let rules = known.ports.values().map(|says| says >> 1);
        let after = |numbers: &mut dyn Iterator<Item = u32>, least: u32| {
            numbers.max().map_or(least, |highest| (highest + 1).max(least))
        };
        FirstNumbers {
            class: after(&mut { classes }, ClassId::FIRST.0),
            table: after(&mut { tables }, 1),
            function: after(&mut { functions }, FnId::FIRST.0),
            rule: after(&mut { rules }, 1),
        }
    }

    /// Addresses whose time as a vanished pod's is over: the compiler is to forget them, and the next plan takes them out.
    pub fn expired(&self, now: u64) -> BTreeSet<IpAddr> {
        let old = |since: &u64| now.saturating_sub(*since) >= GONE_SECONDS;
        let mut expired: BTreeSet<IpAddr> =
            self.gone.iter().filter(|(_, since)| old(since)).map(|(address, _)| *address).collect();
        let mut rest: Vec<_> = self.gone.iter().filter(|(_, since)| !old(since)).collect();
        if rest.len() > GONE_LIMIT {
            rest.sort_by_key(|(_, since)| **since);
            expired.extend(rest[..rest.len() - GONE_LIMIT].iter().map(|(address, _)| **address));
        }
        expired
    }

    /// Endpoints come and go beside the plans: these are there, with these sides.
    pub fn set_sides(&mut self, sides: BTreeMap<u32, [Side; 2]>) {
        self.known.sides = sides;
    }

    /// Something of the last plan failed, or was not tried: what is in the maps is this.
    pub fn observed(&mut self, known: Known) {
        self.known = known;
        self.doubtful = true;
    }

    /// What to write so that the maps say what is wanted. The plan is taken as done; if it was not,
    /// [`Bank::observed`] has to be called before the next.
    pub fn plan(&mut self, change: &Change<'_>) -> Vec<Write> {
        let dirty = self.dirty(change);
        let mut writes = Vec::new();
        if self.doubtful {
            self.sweep(change.state, &mut writes);
        }
        self.put_tables(change, &mut writes);
        if self.needs_epoch(change, &dirty) {
            self.flip(change, &dirty, &mut writes);
        } else {
            self.add(change, &dirty, &mut writes);
        }
        self.doubtful = false;
        writes
    }

    /// Addresses to look at.
    fn dirty(&self, change: &Change<'_>) -> BTreeSet<IpAddr> {
        let delta = change.delta;
        let mut dirty: BTreeSet<IpAddr> = delta.addresses_put.keys().copied().collect();
        dirty.extend(&delta.addresses_removed);
        dirty.extend(change.forgotten);
        if self.doubtful {
            dirty.extend(self.known.addresses.keys());
            dirty.extend(change.state.addresses.keys());
        }
        dirty
    }

    fn needs_epoch(&self, change: &Change<'_>, dirty: &BTreeSet<IpAddr>) -> bool {
        let delta = change.delta;
        let removes = !(delta.addresses_removed.is_empty()
            && delta.blocks_removed.is_empty()
            && delta.rows_removed.is_empty()
            && delta.tables_removed.is_empty()
            && delta.functions_removed.is_empty()
            && change.forgotten.is_empty());
        // Flows of an address's former owner are judged again when it has a new one.
        let known_before = dirty.iter().any(|address| self.known.addresses.contains_key(address));
        let reopened = change.links.iter().any(|(name, index)| {
            let before = self.known.sides.get(index);
            before.is_some_and(|before| {
                *before != [Side::CLOSED; 2] && *before != [side(change.state, name); 2]
            })
        });
        self.doubtful
            || self.known.epoch == 0
            || delta.verdicts_may_change
            || removes
            || known_before
            || reopened
    }

    /// What was left half done, and no side asks for: it goes first, so that it takes no room from what is wanted.
    fn sweep(&mut self, state: &State, writes: &mut Vec<Write>) {
        let sides: Vec<Side> = self.known.sides.values().flatten().copied().collect();
        let asked = |table: &TableId| {
            state.tables.contains_key(table) || sides.iter().any(|side| side.table == table.0)
        };
        let stale: Vec<RowKey> = self.known.rows.keys().filter(|key| !asked(&key.table)).copied().collect();
        for key in &stale {
            self.known.rows.remove(key);
        }
        let mut functions: BTreeSet<u32> = self.known.rows.values().copied().collect();
        functions.extend(sides.iter().flat_map(|side| side.fallback));
        functions.extend(state.functions.keys().map(|function| function.0));
        let unused = |(function, _): &&(FnId, PortPrefix)| !functions.contains(&function.0);
        let ports: Vec<_> = self.known.ports.keys().filter(unused).copied().collect();
        if !(stale.is_empty() && ports.is_empty()) {
            // Somebody may still be on his way who saw the side that asked for it.
            writes.push(Write::Grace);
        }
        writes.extend(stale.into_iter().map(Write::DeleteRow));
        for (function, prefix) in ports {
            self.known.ports.remove(&(function, prefix));
            writes.push(Write::DeletePort(function, prefix));
        }
    }

    /// Functions and rows that nobody asks for yet.
    fn put_tables(&mut self, change: &Change<'_>, writes: &mut Vec<Write>) {
        let (state, delta) = (change.state, change.delta);
        // What the delta has and the state has not, has no room; of what had none so far, some may be asked for now.
        let missing = |function: &FnId| {
            let first = self.known.ports.range((*function, PortPrefix::ANY)..).next();
            first.is_none_or(|((found, _), _)| found != function)
        };
        let put = |(function, _): &(&FnId, _)| {
            self.doubtful || delta.functions_put.contains_key(*function) || missing(function)
        };
        let functions: Vec<_> = state.functions.iter().filter(put).collect();
        for (function, says) in functions {
            for (prefix, verdict) in says {
                let value = verdict_value(*verdict);
                if self.known.ports.insert((*function, *prefix), value) != Some(value) {
                    writes.push(Write::PutPort(*function, *prefix, value));
                }
            }
        }
        let mut put = |key: RowKey, function: FnId| {
            if self.known.rows.insert(key, function.0) != Some(function.0) {
                writes.push(Write::PutRow(key, function.0));
            }
        };
        if self.doubtful {
            for (key, function) in rows(state) {
                put(key, function);
            }
        } else {
            for (key, function) in
                delta.rows_put.iter().filter(|(key, _)| state.tables.contains_key(&key.table))
            {
                put(*key, *function);
            }
        }
    }

    /// Both banks at once: nothing that was there changes.
    fn add(&mut self, change: &Change<'_>, dirty: &BTreeSet<IpAddr>, writes: &mut Vec<Write>) {
        let prefixes: BTreeSet<IpNet> = change.delta.blocks_put.keys().copied().collect();
        // From long to short: a short one would open what the long one keeps apart.
        for prefix in prefixes.into_iter().rev() {
            self.put_block(prefix, [block_class(&change.state.blocks, prefix); 2], writes);
        }
        for address in dirty {
            if let Some(row) = change.state.addresses.get(address) {
                let flags = if row.node { HW_ADDRESS_NODE } else { 0 };
                self.put_address(*address, Address { class: [row.class.0; 2], flags }, writes);
            }
        }
        self.put_sides(change, [true, true], writes);
    }

    /// The bank not in use, the epoch, the other bank, and what nobody asks for any more.
    fn flip(&mut self, change: &Change<'_>, dirty: &BTreeSet<IpAddr>, writes: &mut Vec<Write>) {
        let next = self.known.epoch.wrapping_add(1).max(1);
        let bank = (next & 1) as usize;
        let mut only = [false; 2];
        only[bank] = true;
        self.address_step(change, dirty, bank, writes);
        self.block_step(change, bank, writes);
        self.put_sides(change, only, writes);

        writes.push(Write::Epoch(next));
        self.known.epoch = next;
        writes.push(Write::Grace);

        self.address_settle(change, dirty, writes);
        self.block_settle(change, writes);
        self.put_sides(change, [true, true], writes);
        self.delete_tables(change, writes);
    }

    /// Addresses in the bank not in use. In the other only this moves at once: an address that was a vanished pod's is
    /// nobody's until the new epoch, and one whose pod vanishes opens nothing any more.
    fn address_step(
        &mut self,
        change: &Change<'_>,
        dirty: &BTreeSet<IpAddr>,
        bank: usize,
        writes: &mut Vec<Write>,
    ) {
        // Those that vanish go first: where the others have no room, at least nobody speaks as somebody who is gone.
        let here = |address: &&IpAddr| change.state.addresses.contains_key(*address);
        let (present, vanished): (Vec<&IpAddr>, Vec<&IpAddr>) = dirty.iter().partition(here);
        for address in vanished.into_iter().chain(present) {
            let before = self.known.addresses.get(address).copied();
            let after = match (change.state.addresses.get(address), before) {
                (Some(row), before) => {
                    let mut class = match before {
                        None => [self.block_in_force(*address, 1 - bank); 2],
                        Some(before) if before.flags & HW_ADDRESS_GONE != 0 => [ClassId::UNKNOWN.0; 2],
                        Some(before) => before.class,
                    };
                    class[bank] = row.class.0;
                    self.gone.remove(address);
                    Address { class, flags: if row.node { HW_ADDRESS_NODE } else { 0 } }
                }
                (None, Some(before)) => {
                    let host = IpNet::from(*address);
                    let class = block_class(&change.state.blocks, host);
                    if class == ClassId::UNKNOWN.0 {
                        if change.delta.addresses_removed.contains(address) {
                            self.gone.insert(*address, change.now);
                        }
                        Address { flags: HW_ADDRESS_GONE, ..before }
                    } else {
                        // A node's, outside of the pods' prefixes: the world's again, with the new epoch.
                        let mut both = before.class;
                        both[bank] = class;
                        Address { class: both, flags: 0 }
                    }
                }
                (None, None) => continue,
            };
            self.put_address(*address, after, writes);
        }
    }

    /// The class that a packet finds for an address that is not in `addresses`.
    fn block_in_force(&self, address: IpAddr, bank: usize) -> u32 {
        longest_match(&self.known.blocks, address).map_or(ClassId::WORLD.0, |(_, class)| class[bank])
    }

    fn address_settle(&mut self, change: &Change<'_>, dirty: &BTreeSet<IpAddr>, writes: &mut Vec<Write>) {
        for address in dirty {
            if let Some(row) = change.state.addresses.get(address) {
                let flags = if row.node { HW_ADDRESS_NODE } else { 0 };
                self.put_address(*address, Address { class: [row.class.0; 2], flags }, writes);
            } else if self.known.addresses.contains_key(address) && !self.gone.contains_key(address)
                || change.forgotten.contains(address)
            {
                // Of a former life, or forgotten.
                self.gone.remove(address);
                if self.known.addresses.remove(address).is_some() {
                    writes.push(Write::DeleteAddress(*address));
                }
            }
        }
    }

    fn blocks_change(&self, change: &Change<'_>) -> bool {
        self.doubtful || !change.delta.blocks_put.is_empty() || !change.delta.blocks_removed.is_empty()
    }

    /// Blocks in the bank not in use. A prefix that only one bank has hides shorter ones from the other, so there it carries
    /// what that would find.
    fn block_step(&mut self, change: &Change<'_>, bank: usize, writes: &mut Vec<Write>) {
        if !self.blocks_change(change) {
            return;
        }
        let other = 1 - bank;
        let wanted = &change.state.blocks;
        let in_force: BTreeMap<IpNet, ClassId> =
            self.known.blocks.iter().map(|(prefix, class)| (*prefix, ClassId(class[other]))).collect();
        let all: BTreeSet<IpNet> = in_force.keys().chain(wanted.keys()).copied().collect();
        // A new prefix hides the shorter ones at once: longest first, so that each finds its bank's class beneath.
        for prefix in all.into_iter().rev() {
            let mut class = [0; 2];
            class[bank] = block_class(wanted, prefix);
            class[other] = block_class(&in_force, prefix);
            self.put_block(prefix, class, writes);
        }
    }

    fn block_settle(&mut self, change: &Change<'_>, writes: &mut Vec<Write>) {
        if !self.blocks_change(change) {
            return;
        }
        let wanted = &change.state.blocks;
        let all: Vec<IpNet> = self.known.blocks.keys().copied().collect();
        for prefix in all {
            if let Some(class) = wanted.get(&prefix) {
                self.put_block(prefix, [class.0; 2], writes);
            }
        }
        let stale: Vec<IpNet> =
            self.known.blocks.keys().filter(|prefix| !wanted.contains_key(prefix)).copied().collect();
        for prefix in stale {
            self.known.blocks.remove(&prefix);
            writes.push(Write::DeleteBlock(prefix));
        }
    }

    fn delete_tables(&mut self, change: &Change<'_>, writes: &mut Vec<Write>) {
        let (state, delta) = (change.state, change.delta);
        let stale: Vec<RowKey> = if self.doubtful {
            let wanted: BTreeSet<RowKey> = rows(state).map(|(key, _)| key).collect();
            self.known.rows.keys().filter(|key| !wanted.contains(key)).copied().collect()
        } else {
            delta.rows_removed.iter().copied().collect()
        };
        for key in stale {
            if self.known.rows.remove(&key).is_some() {
                writes.push(Write::DeleteRow(key));
            }
        }
        let stale: Vec<(FnId, PortPrefix)> = if self.doubtful {
            let unused = |(function, _): &&(FnId, PortPrefix)| !state.functions.contains_key(function);
            self.known.ports.keys().filter(unused).copied().collect()
        } else {
            let ports = &self.known.ports;
            let of = |function: &FnId| {
                let function = *function;
                let from = ports.range((function, PortPrefix::ANY)..);
                from.take_while(move |((found, _), _)| *found == function)
            };
            delta.functions_removed.iter().flat_map(of).map(|(key, _)| *key).collect()
        };
        for key in stale {
            self.known.ports.remove(&key);
            writes.push(Write::DeletePort(key.0, key.1));
        }
    }

    fn put_address(&mut self, address: IpAddr, value: Address, writes: &mut Vec<Write>) {
        if self.known.addresses.insert(address, value) != Some(value) {
            writes.push(Write::PutAddress(address, value));
        }
    }

    fn put_block(&mut self, prefix: IpNet, class: [u32; 2], writes: &mut Vec<Write>) {
        if self.known.blocks.insert(prefix, class) != Some(class) {
            writes.push(Write::PutBlock(prefix, class));
        }
    }

    /// Sides of all endpoints, in these banks. Those that nobody names are closed: their tables may go.
    fn put_sides(&mut self, change: &Change<'_>, banks: [bool; 2], writes: &mut Vec<Write>) {
        let named: BTreeSet<u32> = change.links.values().copied().collect();
        let others = self.known.sides.keys().filter(|index| !named.contains(index));
        let others: Vec<_> = others.map(|index| (*index, Side::CLOSED)).collect();
        let ours = change.links.iter().map(|(name, index)| (*index, side(change.state, name)));
        for (index, wanted) in ours.chain(others) {
            let before = self.known.sides.get(&index).copied().unwrap_or([Side::CLOSED; 2]);
            let mut after = before;
            for (bank, side) in after.iter_mut().enumerate() {
                if banks[bank] {
                    *side = wanted;
                }
            }
            if self.known.sides.insert(index, after) != Some(after) {
                writes.push(Write::PutSides(index, after));
            }
        }
    }
}

fn verdict_value(verdict: PortVerdict) -> u32 {
    verdict.rule << 1 | if verdict.allow { HW_ALLOW } else { 0 }
}

fn rows(state: &State) -> impl Iterator<Item = (RowKey, FnId)> + '_ {
    state.tables.iter().flat_map(|(table, content)| {
        let key = |direction, class| RowKey { table: *table, direction, class };
        content.rows.iter().map(move |((direction, class), function)| (key(*direction, *class), *function))
    })
}

/// The class that a prefix's addresses have by longest match.
fn block_class(blocks: &BTreeMap<IpNet, ClassId>, prefix: IpNet) -> u32 {
    if let Some(own) = blocks.get(&prefix) {
        return own.0;
    }
    let shorter: BTreeMap<IpNet, ClassId> = ancestors(blocks, prefix);
    longest_match(&shorter, prefix.network()).map_or(ClassId::WORLD.0, |(_, class)| class.0)
}

/// The shorter prefixes that contain this one.
fn ancestors(blocks: &BTreeMap<IpNet, ClassId>, prefix: IpNet) -> BTreeMap<IpNet, ClassId> {
    let shorter = (0..prefix.prefix_len()).filter_map(|bits| IpNet::new(prefix.network(), bits).ok());
    shorter.filter_map(|net| blocks.get_key_value(&net.trunc())).map(|(net, class)| (*net, *class)).collect()
}

/// What holds for a pod: its table, or nothing at all.
fn side(state: &State, name: &ObjectName) -> Side {
    let Some(subject) = state.subjects.get(name) else { return Side::CLOSED };
    let Some(table) = state.tables.get(&subject.table) else { return Side::CLOSED };
    let flags = if subject.audit { HW_SIDE_AUDIT } else { 0 };
    Side { table: subject.table.0, fallback: [table.fallback[0].0, table.fallback[1].0], flags }
}

#[cfg(test)]
mod tests;
