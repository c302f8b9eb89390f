//! What the data path is told: the section "policy" of `datapath/src/bpf/abi.h`, in our own types, and [`judge`], which
//! reads it exactly as the programs do.
//!
//! An address has a class ([`State::addresses`], else the longest match in [`State::blocks`], else [`ClassId::WORLD`]). A
//! pod has a table. The table says of a class and a direction which port function holds, and that says of a protocol and a
//! port whether it may pass.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::model::{Direction, ObjectName, Protocol, Verdict};

/// What policy can tell about an address. Its meaning never changes, and no other class ever has its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClassId(pub u32);

impl ClassId {
    /// `HW_CLASS_UNKNOWN`: inside a guarded prefix and nobody's that we know, or claimed by two.
    pub const UNKNOWN: Self = Self(1);
    /// `HW_CLASS_WORLD`: whatever no selector and no block in use matches.
    pub const WORLD: Self = Self(2);
    /// `HW_CLASS_FIRST`: the first that is given out.
    pub const FIRST: Self = Self(16);
}

/// A compiled policy, shared by the pods that have the same. From 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TableId(pub u32);

/// A port function. Its meaning never changes, and no other function ever has its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FnId(pub u32);

impl FnId {
    /// `HW_FN_DENY`: nothing may pass.
    pub const DENY: Self = Self(0);
    /// `HW_FN_ALLOW`: everything may pass.
    pub const ALLOW: Self = Self(1);
    /// `HW_FN_FIRST`: the first with a [`PortFunction`] of its own.
    pub const FIRST: Self = Self(2);
}

/// Value of `addresses`: a pod's or a node's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AddressRow {
    /// Its class.
    pub class: ClassId,
    /// `HW_ADDRESS_NODE`: it is a node's.
    pub node: bool,
}

/// Which protocol and ports: any protocol (`None`), one protocol (`bits` 0), or those ports of it whose first `bits` bits
/// are `port`'s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortPrefix {
    /// Number of the protocol in the IP header; none: any, and then `port` and `bits` are 0.
    pub protocol: Option<u8>,
    /// The ports' common bits, the rest 0.
    pub port: u16,
    /// How many bits of `port` count, 0 to 16.
    pub bits: u8,
}

impl PortPrefix {
    /// Every protocol.
    pub const ANY: Self = Self { protocol: None, port: 0, bits: 0 };

    /// The prefix of `bits` bits (0 to 16) that `port` lies in.
    pub const fn of(protocol: u8, port: u16, bits: u8) -> Self {
        let mask = if bits == 0 { 0 } else { u16::MAX << (16 - bits) };
        Self { protocol: Some(protocol), port: port & mask, bits }
    }
}

/// What a port function says of a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortVerdict {
    /// May it pass?
    pub allow: bool,
    /// Number of the rule that decides ([`super::compile::Compiler::rule`]), below 2³¹; 0: none.
    pub rule: u32,
}

/// The longest prefix decides; where there is none, nothing may pass.
pub type PortFunction = BTreeMap<PortPrefix, PortVerdict>;

/// What one set of policies says of all classes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Table {
    /// For classes without a row: `[ingress, egress]`, as `HW_INGRESS` and `HW_EGRESS` count.
    pub fallback: [FnId; 2],
    /// Only what differs from the fallback.
    pub rows: BTreeMap<(Direction, ClassId), FnId>,
}

impl Table {
    /// What holds for a class.
    pub fn function(&self, direction: Direction, class: ClassId) -> FnId {
        self.rows.get(&(direction, class)).copied().unwrap_or(self.fallback[index(direction)])
    }
}

/// `HW_INGRESS` or `HW_EGRESS`.
pub const fn index(direction: Direction) -> usize {
    match direction {
        Direction::Ingress => 0,
        Direction::Egress => 1,
    }
}

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Subject {
    /// Its table.
    pub table: TableId,
    /// `HW_SIDE_AUDIT`: what the table denies is reported and passes. [`judge`] does not heed it.
    pub audit: bool,
    /// The pod's own addresses, which no policy keeps it from.
    pub ips: BTreeSet<IpAddr>,
}

/// Everything the maps hold after all deltas.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Addresses of pods and nodes. What two claim is [`ClassId::UNKNOWN`] here.
    pub addresses: BTreeMap<IpAddr, AddressRow>,
    /// Classes of all other addresses, by longest match; none: [`ClassId::WORLD`]. IPv4 always has one: `0.0.0.0/0`, since
    /// in the map, where IPv4 is mapped into IPv6, an IPv6 block could contain it. No block lies inside `::ffff:0:0/96`.
    pub blocks: BTreeMap<IpNet, ClassId>,
    /// Tables in use.
    pub tables: BTreeMap<TableId, Table>,
    /// Port functions in use, without [`FnId::DENY`] and [`FnId::ALLOW`].
    pub functions: BTreeMap<FnId, PortFunction>,
    /// Pods of this node that are known. The others have no table: nothing may pass.
    pub subjects: BTreeMap<ObjectName, Subject>,
}

/// Key of `rows`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RowKey {
    /// Table.
    pub table: TableId,
    /// Direction.
    pub direction: Direction,
    /// Class.
    pub class: ClassId,
}

/// What changed since the commit before.
///
/// What a table says of a class, and what a function says, is never changed once it was told: a row is added only for a
/// class or a table that is new, and removed only with its class or its table. So the order is: functions, tables and
/// rows; then the bank not in use (addresses, blocks, subjects) and the epoch; and what is `_removed` last, after the
/// other bank was written too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// New functions.
    pub functions_put: BTreeMap<FnId, PortFunction>,
    /// New tables, with their fallback by direction.
    pub tables_put: BTreeMap<TableId, [FnId; 2]>,
    /// New rows, also of tables that were there.
    pub rows_put: BTreeMap<RowKey, FnId>,
    /// New addresses, and those with another class.
    pub addresses_put: BTreeMap<IpAddr, AddressRow>,
    /// New blocks, and those with another class.
    pub blocks_put: BTreeMap<IpNet, ClassId>,
    /// New subjects, and those that changed.
    pub subjects_put: BTreeMap<ObjectName, Subject>,
    /// Gone.
    pub subjects_removed: BTreeSet<ObjectName>,
    /// Gone. Addresses in them now have the class of the next shorter block.
    pub blocks_removed: BTreeSet<IpNet>,
    /// Nobody's any more. The data path keeps them as `HW_ADDRESS_GONE` with their last class, which stays until
    /// [`super::compile::Compiler::forget`].
    pub addresses_removed: BTreeSet<IpAddr>,
    /// Gone, those of tables that are gone included.
    pub rows_removed: BTreeSet<RowKey>,
    /// Gone.
    pub tables_removed: BTreeSet<TableId>,
    /// Gone.
    pub functions_removed: BTreeSet<FnId>,
    /// False if nothing but addresses that were not known before and subjects that were not there before (and what these
    /// need) was added: then both banks can be written without a new epoch.
    pub verdicts_may_change: bool,
}

impl Delta {
    /// Is there nothing to write?
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Does to a mirror what it says.
    pub fn apply(&self, state: &mut State) {
        state.functions.extend(self.functions_put.clone());
        for (id, fallback) in &self.tables_put {
            state.tables.insert(*id, Table { fallback: *fallback, rows: BTreeMap::new() });
        }
        for (key, function) in &self.rows_put {
            if let Some(table) = state.tables.get_mut(&key.table) {
                table.rows.insert((key.direction, key.class), *function);
            }
        }
        state.addresses.extend(&self.addresses_put);
        state.blocks.extend(&self.blocks_put);
        state.subjects.extend(self.subjects_put.clone());
        for subject in &self.subjects_removed {
            state.subjects.remove(subject);
        }
        for block in &self.blocks_removed {
            state.blocks.remove(block);
        }
        for address in &self.addresses_removed {
            state.addresses.remove(address);
        }
        for key in &self.rows_removed {
            if let Some(table) = state.tables.get_mut(&key.table) {
                table.rows.remove(&(key.direction, key.class));
            }
        }
        for table in &self.tables_removed {
            state.tables.remove(table);
        }
        for function in &self.functions_removed {
            state.functions.remove(function);
        }
    }
}

/// The longest of these prefixes that contains the address.
pub fn longest_match<T>(prefixes: &BTreeMap<IpNet, T>, address: IpAddr) -> Option<(&IpNet, &T)> {
    let mut bits = if address.is_ipv4() { 32 } else { 128 };
    loop {
        // Whatever contains the address is not above this key; the nearest below it either does, or shares with the
        // address all the bits of the one that we look for.
        let key = IpNet::new(address, bits).ok()?.trunc();
        let (found, value) = prefixes.range(..=key).next_back()?;
        if found.contains(&address) {
            return Some((found, value));
        }
        bits = common_bits(found.network(), address)?;
    }
}

/// How many leading bits two addresses share; none: they are of two families.
fn common_bits(a: IpAddr, b: IpAddr) -> Option<u8> {
    let bits = match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u32::from(a) ^ u32::from(b)).leading_zeros(),
        (IpAddr::V6(a), IpAddr::V6(b)) => (u128::from(a) ^ u128::from(b)).leading_zeros(),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
    };
    u8::try_from(bits).ok()
}

impl State {
    /// The class of an address that opens a flow.
    pub fn class(&self, address: IpAddr) -> ClassId {
        match self.addresses.get(&address) {
            Some(row) => row.class,
            None => longest_match(&self.blocks, address).map_or(ClassId::WORLD, |(_, class)| *class),
        }
    }

    /// What a function says. A protocol without ports has none, whatever is given.
    pub fn ask(&self, function: FnId, protocol: u8, port: Option<u16>) -> PortVerdict {
        const DENY: PortVerdict = PortVerdict { allow: false, rule: 0 };
        match function {
            FnId::DENY => DENY,
            FnId::ALLOW => PortVerdict { allow: true, rule: 0 },
            other => self.functions.get(&other).map_or(DENY, |f| look_up(f, protocol, port).unwrap_or(DENY)),
        }
    }
}

/// The longest prefix of a function that a protocol and a port lie in.
pub fn look_up(function: &PortFunction, protocol: u8, port: Option<u16>) -> Option<PortVerdict> {
    let has_ports = Protocol::ALL.iter().any(|known| known.number() == protocol);
    let port = if has_ports { port.unwrap_or(0) } else { 0 };
    let by_port = (0..=16).rev().find_map(|bits| function.get(&PortPrefix::of(protocol, port, bits)));
    by_port.or_else(|| function.get(&PortPrefix::ANY)).copied()
}

/// What the tables say of a flow that opens: the verdict and the number of the rule that decides (0: none of its own).
///
/// `peer` is the source for [`Direction::Ingress`], the destination for [`Direction::Egress`]; `port` the destination's.
/// A subject without a table may do nothing. A pod is never kept from itself (§2.2 row 32, and hairpin by the own address
/// in §3): the data path never asks then, so that is decided here. What the own node sends to its pods is not asked
/// either, there by `ingress_ifindex`, which nobody can see from addresses; the caller has to know it.
pub fn judge(
    state: &State,
    subject: &ObjectName,
    direction: Direction,
    peer: IpAddr,
    protocol: u8,
    port: Option<u16>,
) -> (Verdict, u32) {
    let Some(subject) = state.subjects.get(subject) else { return (Verdict::Deny, 0) };
    if subject.ips.contains(&peer) {
        return (Verdict::Allow, 0);
    }
    let Some(table) = state.tables.get(&subject.table) else { return (Verdict::Deny, 0) };
    let says = state.ask(table.function(direction, state.class(peer)), protocol, port);
    (if says.allow { Verdict::Allow } else { Verdict::Deny }, says.rule)
}
