//! Policy in the maps: does what [`Bank`] says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use mesh_core::policy::compile::FirstNumbers;
use mesh_core::policy::model::{Direction, ObjectName};
use mesh_core::policy::tables::{ClassId, FnId, PortPrefix, RowKey, TableId};

use crate::abi;
use crate::bank::{Address, Bank, Change, Known, Write};
use crate::error::Result;
use crate::load::Datapath;
use crate::room::{Fitted, Room};

/// The policy that is in the maps, and its next change. There is one for a [`Datapath`].
#[derive(Debug)]
pub struct PolicyBanks {
    bank: Bank,
    /// Not all of the last plan was done.
    broken: bool,
    /// Tables that had no room last time. As long as these are the same, deltas say what is to be done, less what is of them.
    closed: BTreeSet<TableId>,
}

/// What an application did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Entries written or deleted.
    pub writes: usize,
    /// The new epoch, if flows are judged again.
    pub epoch: Option<u32>,
    /// Pods of this node that are closed because what policy says of them needs most of a map that has no room for all.
    pub closed: BTreeSet<ObjectName>,
}

impl PolicyBanks {
    /// Begins with what is in the maps.
    pub fn read(datapath: &Datapath) -> Result<Self> {
        Ok(Self { bank: Bank::new(datapath.known_policy()?), broken: false, closed: BTreeSet::new() })
    }

    /// Numbers that nothing in the maps has, for `mesh_core::policy::compile::Compiler::starting_at`.
    pub fn first_numbers(&self) -> FirstNumbers {
        self.bank.first_numbers()
    }

    /// Addresses of vanished pods whose time is over: `Compiler::forget` is to be told before the next commit, and the next
    /// application of them.
    pub fn expired(&self, now_seconds: u64) -> BTreeSet<IpAddr> {
        self.bank.expired(now_seconds)
    }

    /// Makes the maps say what is wanted. When it returns, all packets are judged by it and none is still on its way that
    /// was judged by the policy before.
    ///
    /// `links` names every endpoint of this node; those that it does not name are closed. `forgotten`: what
    /// [`Self::expired`] said and the compiler forgot before this delta. `delta` is what is new in `state` since the last
    /// application, and ignored in the first and after an error.
    ///
    /// # Errors
    /// A map is full or cannot be written. Before the new epoch the old policy stays in force, wholly; the next application
    /// reads the maps and repairs what was left.
    pub fn apply(&mut self, datapath: &Datapath, change: &Change<'_>) -> Result<Applied> {
        let maps = datapath.maps();
        let fitted = Room::of(maps.rows.capacity(), maps.ports.capacity()).fit(change.state);
        let closed = fitted.as_ref().map(|fitted| fitted.closed.clone()).unwrap_or_default();
        if self.broken || closed != self.closed {
            self.reread(datapath)?;
        }
        let (state, pods) = match &fitted {
            None => (change.state, BTreeSet::new()),
            Some(Fitted { state, pods, .. }) => (state, pods.clone()),
        };
        let change = Change { state, ..*change };
        self.bank.set_sides(datapath.sides()?);
        let writes = self.bank.plan(&change);
        self.broken = true;
        let mut applied = Applied { writes: writes.len(), epoch: None, closed: pods };
        for write in &writes {
            datapath.write(write)?;
            if let Write::Epoch(epoch) = write {
                applied.epoch = Some(*epoch);
            }
        }
        (self.broken, self.closed) = (false, closed);
        Ok(applied)
    }

    /// Reads the maps and takes nothing for granted in the next application. Returns how many entries were not as they
    /// should have been.
    pub fn reread(&mut self, datapath: &Datapath) -> Result<usize> {
        let known = datapath.known_policy()?;
        let differences = differences(self.bank.known(), &known);
        self.bank.observed(known);
        self.broken = false;
        Ok(differences)
    }
}

fn differences(wanted: &Known, found: &Known) -> usize {
    fn of<K: Ord, V: PartialEq>(a: &BTreeMap<K, V>, b: &BTreeMap<K, V>) -> usize {
        let missing = a.iter().filter(|(key, value)| b.get(key) != Some(value)).count();
        missing + b.keys().filter(|key| !a.contains_key(key)).count()
    }
    of(&wanted.addresses, &found.addresses)
        + of(&wanted.blocks, &found.blocks)
        + of(&wanted.rows, &found.rows)
        + of(&wanted.ports, &found.ports)
        + of(&wanted.sides, &found.sides)
        + usize::from(wanted.epoch != found.epoch)
}

const fn direction_number(direction: Direction) -> u32 {
    match direction {
        Direction::Ingress => abi::HW_INGRESS,
        Direction::Egress => abi::HW_EGRESS,
    }
}

fn row_key(key: &RowKey) -> abi::RowKey {
    abi::RowKey { table: key.table.0, class: key.class.0, direction: direction_number(key.direction) }
}

fn row_from(key: &abi::RowKey) -> Option<RowKey> {
    let direction = match key.direction {
        abi::HW_INGRESS => Direction::Ingress,
        abi::HW_EGRESS => Direction::Egress,
        _ => return None,
    };
    Some(RowKey { table: TableId(key.table), direction, class: ClassId(key.class) })
}

/// Bits of a key of `ports` before its protocol, and with it.
const FUNCTION_BITS: u32 = 32;
const PROTOCOL_BITS: u32 = 48;

fn port_key(function: FnId, prefix: PortPrefix) -> abi::PortKey {
    let bits = prefix.protocol.map_or(FUNCTION_BITS, |_| PROTOCOL_BITS + u32::from(prefix.bits));
    abi::PortKey {
        bits,
        r#fn: function.0,
        protocol: prefix.protocol.unwrap_or(0),
        pad: 0,
        port: prefix.port.into(),
    }
}

fn port_from(key: &abi::PortKey) -> Option<(FnId, PortPrefix)> {
    let prefix = match key.bits {
        FUNCTION_BITS => PortPrefix::ANY,
        bits => {
            let bits = u8::try_from(bits.checked_sub(PROTOCOL_BITS)?).ok().filter(|bits| *bits <= 16)?;
            PortPrefix::of(key.protocol, key.port.get(), bits)
        }
    };
    Some((FnId(key.r#fn), prefix))
}

impl Datapath {
    fn write(&self, write: &Write) -> Result<()> {
        let maps = self.maps();
        match write {
            Write::PutPort(function, prefix, says) => maps.ports.put(&port_key(*function, *prefix), says),
            Write::PutRow(key, function) => maps.rows.put(&row_key(key), function),
            Write::PutAddress(address, Address { class, flags }) => {
                maps.addresses.put(&(*address).into(), &abi::Address { class: *class, flags: *flags, pad: 0 })
            }
            Write::PutBlock(prefix, class) => {
                maps.blocks.put(&(*prefix).into(), &abi::Block { class: *class })
            }
            Write::PutSides(ifindex, sides) => self.set_sides(*ifindex, *sides),
            Write::Epoch(epoch) => self.set_epoch(*epoch),
            Write::Grace => self.wait_for_packets(),
            Write::DeletePort(function, prefix) => maps.ports.delete(&port_key(*function, *prefix)).map(drop),
            Write::DeleteRow(key) => maps.rows.delete(&row_key(key)).map(drop),
            Write::DeleteAddress(address) => maps.addresses.delete(&(*address).into()).map(drop),
            Write::DeleteBlock(prefix) => maps.blocks.delete(&(*prefix).into()).map(drop),
        }
    }

    /// Reads all maps of policy. What no agent writes is deleted: nobody knows what it means.
    fn known_policy(&self) -> Result<Known> {
        let maps = self.maps();
        let mut known = Known { epoch: self.epoch()?, sides: self.sides()?, ..Known::default() };
        for (address, value) in maps.addresses.entries()? {
            known.addresses.insert(address.ip(), Address { class: value.class, flags: value.flags });
        }
        for (prefix, value) in maps.blocks.entries()? {
            match prefix.net() {
                Some(net) => drop(known.blocks.insert(net, value.class)),
                None => drop(maps.blocks.delete(&prefix)?),
            }
        }
        for (key, function) in maps.rows.entries()? {
            match row_from(&key) {
                Some(row) => drop(known.rows.insert(row, function)),
                None => drop(maps.rows.delete(&key)?),
            }
        }
        for (key, says) in maps.ports.entries()? {
            match port_from(&key) {
                Some(place) if port_key(place.0, place.1) == key => drop(known.ports.insert(place, says)),
                Some(_) | None => drop(maps.ports.delete(&key)?),
            }
        }
        Ok(known)
    }
}

/// The names of endpoints, for [`Change::links`].
pub type Links = BTreeMap<ObjectName, u32>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_rows_and_ports_come_back() {
        for direction in [Direction::Ingress, Direction::Egress] {
            let key = RowKey { table: TableId(3), direction, class: ClassId(17) };
            assert_eq!(row_from(&row_key(&key)), Some(key));
        }
        for prefix in
            [PortPrefix::ANY, PortPrefix::of(6, 0, 0), PortPrefix::of(17, 53, 16), PortPrefix::of(6, 8192, 3)]
        {
            assert_eq!(port_from(&port_key(FnId(5), prefix)), Some((FnId(5), prefix)));
        }
        assert_eq!(port_key(FnId(5), PortPrefix::of(6, 80, 16)).bits, 64);
        assert_eq!(row_from(&abi::RowKey { direction: 2, ..abi::RowKey::default() }), None);
        assert_eq!(port_from(&abi::PortKey { bits: 40, ..abi::PortKey::default() }), None);
    }

    #[test]
    fn differences_are_counted_by_entry() {
        let address = |last| IpAddr::from([10, 0, 0, last]);
        let entry = |class| Address { class: [class; 2], flags: 0 };
        let mut wanted = Known { epoch: 4, ..Known::default() };
        wanted.addresses = BTreeMap::from([(address(1), entry(16)), (address(2), entry(16))]);
        let mut found = wanted.clone();
        assert_eq!(differences(&wanted, &found), 0);
        found.addresses = BTreeMap::from([(address(1), entry(17)), (address(3), entry(16))]);
        found.epoch = 5;
        assert_eq!(differences(&wanted, &found), 4);
    }
}
