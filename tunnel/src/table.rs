//! The device's allowed-IPs table: longest prefix match over both families, one owner per prefix.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;

/// What a table stores: cheap to clone, with a number that says who it is.
pub trait Owner: Clone {
    /// Unique among the owners in one table, for as long as they are in it.
    fn owner_id(&self) -> u64;
}

/// Prefixes of one length, in one family.
#[derive(Clone, Debug)]
struct Level<V> {
    len: u8,
    mask: u128,
    entries: HashMap<u128, V>,
}

/// Prefixes of one family, longest first. A lookup probes one hash map per *distinct* length: a mesh has
/// two or three (pod CIDRs and host addresses).
#[derive(Clone, Debug)]
struct Family<V> {
    width: u8,
    levels: Vec<Level<V>>,
}

impl<V: Clone> Family<V> {
    const fn new(width: u8) -> Self {
        Self { width, levels: Vec::new() }
    }

    fn mask(&self, len: u8) -> u128 {
        let host_bits = u32::from(self.width - len);
        u128::MAX.checked_shl(host_bits).unwrap_or(0)
    }

    fn insert(&mut self, bits: u128, len: u8, value: V) -> Option<V> {
        let mask = self.mask(len);
        let at = match self.levels.binary_search_by(|l| len.cmp(&l.len)) {
            Ok(at) => at,
            Err(at) => {
                self.levels.insert(at, Level { len, mask, entries: HashMap::new() });
                at
            }
        };
        self.levels[at].entries.insert(bits & mask, value)
    }

    fn remove(&mut self, bits: u128, len: u8) -> Option<V> {
        let at = self.levels.binary_search_by(|l| len.cmp(&l.len)).ok()?;
        let level = &mut self.levels[at];
        let old = level.entries.remove(&(bits & level.mask));
        if level.entries.is_empty() {
            self.levels.remove(at);
        }
        old
    }

    fn get(&self, bits: u128, len: u8) -> Option<&V> {
        let at = self.levels.binary_search_by(|l| len.cmp(&l.len)).ok()?;
        let level = &self.levels[at];
        level.entries.get(&(bits & level.mask))
    }

    fn lookup(&self, bits: u128) -> Option<&V> {
        self.levels.iter().find_map(|l| l.entries.get(&(bits & l.mask)))
    }
}

/// Allowed IPs of all peers of a device (cryptokey routing).
///
/// A prefix has at most one owner: inserting it for another owner moves it.
#[derive(Clone, Debug)]
pub struct AllowedIps<V> {
    v4: Family<V>,
    v6: Family<V>,
    owned: BTreeMap<u64, BTreeSet<IpNet>>,
}

fn bits(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(a) => u128::from(a.to_bits()),
        IpAddr::V6(a) => a.to_bits(),
    }
}

impl<V: Owner> AllowedIps<V> {
    /// A table without prefixes.
    #[must_use]
    pub const fn new() -> Self {
        Self { v4: Family::new(32), v6: Family::new(128), owned: BTreeMap::new() }
    }

    fn family(&self, addr: IpAddr) -> &Family<V> {
        match addr {
            IpAddr::V4(_) => &self.v4,
            IpAddr::V6(_) => &self.v6,
        }
    }

    fn family_mut(&mut self, addr: IpAddr) -> &mut Family<V> {
        match addr {
            IpAddr::V4(_) => &mut self.v4,
            IpAddr::V6(_) => &mut self.v6,
        }
    }

    fn disown(&mut self, owner: u64, prefix: &IpNet) {
        if let Some(set) = self.owned.get_mut(&owner) {
            set.remove(prefix);
            if set.is_empty() {
                self.owned.remove(&owner);
            }
        }
    }

    /// Gives a prefix (host bits are cleared) to `owner`, taking it from whoever had it.
    pub fn insert(&mut self, prefix: IpNet, owner: V) {
        let prefix = prefix.trunc();
        let id = owner.owner_id();
        let addr = prefix.addr();
        let old = self.family_mut(addr).insert(bits(addr), prefix.prefix_len(), owner);
        if let Some(old) = old
            && old.owner_id() != id
        {
            self.disown(old.owner_id(), &prefix);
        }
        self.owned.entry(id).or_default().insert(prefix);
    }

    /// Takes exactly this prefix from whoever has it.
    pub fn remove(&mut self, prefix: IpNet) {
        let prefix = prefix.trunc();
        let addr = prefix.addr();
        if let Some(old) = self.family_mut(addr).remove(bits(addr), prefix.prefix_len()) {
            self.disown(old.owner_id(), &prefix);
        }
    }

    /// Takes exactly this prefix from the owner with this id; one that belongs to another stays.
    pub fn remove_from(&mut self, prefix: IpNet, owner: u64) {
        let prefix = prefix.trunc();
        let addr = prefix.addr();
        let current = self.family(addr).get(bits(addr), prefix.prefix_len());
        if current.is_some_and(|v| v.owner_id() == owner) {
            self.remove(prefix);
        }
    }

    /// Takes all prefixes from an owner.
    pub fn clear_owner(&mut self, owner: u64) {
        for prefix in self.owned.remove(&owner).unwrap_or_default() {
            let addr = prefix.addr();
            self.family_mut(addr).remove(bits(addr), prefix.prefix_len());
        }
    }

    /// The owner of the longest prefix that contains the address.
    #[must_use]
    pub fn lookup(&self, addr: IpAddr) -> Option<&V> {
        self.family(addr).lookup(bits(addr))
    }

    /// The prefixes of an owner, in order.
    pub fn prefixes_of(&self, owner: u64) -> impl Iterator<Item = &IpNet> {
        self.owned.get(&owner).into_iter().flatten()
    }
}

impl<V: Owner> Default for AllowedIps<V> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;
