//! The state and, for every entry that was touched, what it was at the last commit.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::policy::model::ObjectName;
use crate::policy::tables::{
    AddressRow, ClassId, Delta, FnId, PortFunction, RowKey, State, Subject, Table, TableId, longest_match,
};

/// What was there before: none, if it was not.
type Before<K, V> = BTreeMap<K, Option<V>>;

/// State and changes.
#[derive(Debug, Default)]
pub(crate) struct Book {
    pub(crate) state: State,
    addresses: Before<IpAddr, AddressRow>,
    blocks: Before<IpNet, ClassId>,
    subjects: Before<ObjectName, Subject>,
    delta: Delta,
}

/// Sets or removes one entry and remembers what was there.
fn put<K: Ord + Clone, V: Clone + PartialEq>(
    map: &mut BTreeMap<K, V>,
    before: &mut Before<K, V>,
    key: K,
    value: Option<V>,
) {
    let old = match value {
        Some(value) => map.insert(key.clone(), value),
        None => map.remove(&key),
    };
    before.entry(key).or_insert(old);
}

impl Book {
    pub(crate) fn set_address(&mut self, address: IpAddr, row: Option<AddressRow>) {
        put(&mut self.state.addresses, &mut self.addresses, address, row);
    }

    pub(crate) fn set_block(&mut self, block: IpNet, class: Option<ClassId>) {
        put(&mut self.state.blocks, &mut self.blocks, block, class);
    }

    pub(crate) fn set_subject(&mut self, name: &ObjectName, subject: Option<Subject>) {
        put(&mut self.state.subjects, &mut self.subjects, name.clone(), subject);
    }

    pub(crate) fn add_table(&mut self, id: TableId, fallback: [FnId; 2]) {
        self.state.tables.insert(id, Table { fallback, rows: BTreeMap::new() });
        self.delta.tables_put.insert(id, fallback);
    }

    pub(crate) fn remove_table(&mut self, id: TableId) {
        let Some(table) = self.state.tables.remove(&id) else { return };
        let new = self.delta.tables_put.remove(&id).is_some();
        for (direction, class) in table.rows.into_keys() {
            let key = RowKey { table: id, direction, class };
            if self.delta.rows_put.remove(&key).is_none() {
                self.delta.rows_removed.insert(key);
            }
        }
        if !new {
            self.delta.tables_removed.insert(id);
        }
    }

    pub(crate) fn add_row(&mut self, key: RowKey, function: FnId) {
        if let Some(table) = self.state.tables.get_mut(&key.table) {
            table.rows.insert((key.direction, key.class), function);
            self.delta.rows_put.insert(key, function);
        }
    }

    pub(crate) fn remove_row(&mut self, key: RowKey) {
        let Some(table) = self.state.tables.get_mut(&key.table) else { return };
        if table.rows.remove(&(key.direction, key.class)).is_some()
            && self.delta.rows_put.remove(&key).is_none()
        {
            self.delta.rows_removed.insert(key);
        }
    }

    pub(crate) fn add_function(&mut self, id: FnId, function: PortFunction) {
        self.state.functions.insert(id, function.clone());
        self.delta.functions_put.insert(id, function);
    }

    pub(crate) fn remove_function(&mut self, id: FnId) {
        if self.state.functions.remove(&id).is_some() && self.delta.functions_put.remove(&id).is_none() {
            self.delta.functions_removed.insert(id);
        }
    }

    /// What changed since it was closed last. `reused`: an address that was gone is somebody's again, so flows of its
    /// former owner must be judged anew.
    pub(crate) fn close(&mut self, reused: bool) -> Delta {
        let mut delta = std::mem::take(&mut self.delta);
        let mut moved = reused;
        for (block, before) in std::mem::take(&mut self.blocks) {
            let now = self.state.blocks.get(&block).copied();
            if now == before {
                continue;
            }
            moved = true;
            match now {
                Some(class) => drop(delta.blocks_put.insert(block, class)),
                None => drop(delta.blocks_removed.insert(block)),
            }
        }
        for (address, before) in std::mem::take(&mut self.addresses) {
            let now = self.state.addresses.get(&address).copied();
            if now == before {
                continue;
            }
            // What was not listed was known all the same if it was not unknown: as a part of the world or of a block.
            let ground =
                || longest_match(&self.state.blocks, address).map_or(ClassId::WORLD, |(_, class)| *class);
            let class = before.map_or_else(ground, |row| row.class);
            moved |=
                before.is_some() || class != ClassId::UNKNOWN && now.is_none_or(|row| row.class != class);
            match now {
                Some(row) => drop(delta.addresses_put.insert(address, row)),
                None => drop(delta.addresses_removed.insert(address)),
            }
        }
        for (name, before) in std::mem::take(&mut self.subjects) {
            let now = self.state.subjects.get(&name);
            if now == before.as_ref() {
                continue;
            }
            let judged = |subject: &Subject| (subject.table, subject.audit);
            moved |= before.is_some() && now.map(judged) != before.as_ref().map(judged);
            match now {
                Some(subject) => drop(delta.subjects_put.insert(name, subject.clone())),
                None => drop(delta.subjects_removed.insert(name)),
            }
        }
        delta.verdicts_may_change = moved;
        delta
    }
}
