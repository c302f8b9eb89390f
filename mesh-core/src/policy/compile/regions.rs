//! Prefixes between which all addresses lie in the same blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

use super::read::is_mapped;
use crate::policy::classes::{AtomId, Block};
use crate::policy::tables::longest_match;

/// A prefix without the longer ones inside.
#[derive(Clone, Debug, Default)]
struct Region {
    /// Blocks that mention it.
    uses: usize,
    /// Blocks that contain it, in order.
    atoms: Vec<AtomId>,
}

/// All prefixes that blocks in use mention, the guarded ones and `0.0.0.0/0`.
#[derive(Debug)]
pub(crate) struct Regions {
    guarded: BTreeSet<IpNet>,
    regions: BTreeMap<IpNet, Region>,
    /// Came, went, or lie in other blocks than before.
    dirty: BTreeSet<IpNet>,
}

/// What addresses of a region are that nobody claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ground<'a> {
    /// Inside a guarded prefix, or not there: nothing is to be said of it.
    Unsaid,
    /// A guarded prefix.
    Guarded,
    /// In these blocks.
    In(&'a [AtomId]),
}

impl Regions {
    pub(crate) fn new(guarded: &[IpNet]) -> Self {
        let guarded = truncated(guarded);
        let everything = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0));
        let mut regions = BTreeMap::new();
        for net in guarded.iter().copied().chain([everything]) {
            regions.entry(net).or_insert_with(Region::default).uses += 1;
        }
        let dirty = regions.keys().copied().collect();
        Self { guarded, regions, dirty }
    }

    /// Other prefixes are guarded.
    pub(crate) fn set_guarded(&mut self, guarded: &[IpNet]) {
        let wanted = truncated(guarded);
        for net in wanted.difference(&self.guarded) {
            let atoms = match self.regions.get_mut(net) {
                Some(region) => {
                    region.uses += 1;
                    continue;
                }
                None => self.parent(net).map(|parent| parent.atoms.clone()).unwrap_or_default(),
            };
            self.regions.insert(*net, Region { uses: 1, atoms });
        }
        for net in self.guarded.difference(&wanted) {
            let Some(region) = self.regions.get_mut(net) else { continue };
            region.uses -= 1;
            if region.uses == 0 {
                self.regions.remove(net);
            }
        }
        // Whatever lies in one that came or went is said, or unsaid.
        for net in wanted.symmetric_difference(&self.guarded) {
            self.dirty.insert(*net);
            let within = self.regions.range(*net..).take_while(|(inner, _)| net.contains(*inner));
            self.dirty.extend(within.map(|(inner, _)| *inner));
        }
        self.guarded = wanted;
    }

    /// A block came into use.
    pub(crate) fn insert(&mut self, id: AtomId, block: &Block) {
        if is_mapped(&block.cidr) {
            return;
        }
        for net in prefixes(block) {
            if let Some(region) = self.regions.get_mut(&net) {
                region.uses += 1;
                continue;
            }
            let atoms = self.parent(&net).map(|parent| parent.atoms.clone()).unwrap_or_default();
            self.regions.insert(net, Region { uses: 1, atoms });
            self.dirty.insert(net);
        }
        for (net, region) in
            self.regions.range_mut(block.cidr..).take_while(|(net, _)| block.cidr.contains(*net))
        {
            if block.contains(net) {
                // Numbers only grow, so the order holds.
                region.atoms.push(id);
                self.dirty.insert(*net);
            }
        }
    }

    /// A block went out of use.
    pub(crate) fn remove(&mut self, id: AtomId, block: &Block) {
        if is_mapped(&block.cidr) {
            return;
        }
        for (net, region) in
            self.regions.range_mut(block.cidr..).take_while(|(net, _)| block.cidr.contains(*net))
        {
            if block.contains(net) {
                region.atoms.retain(|atom| *atom != id);
                self.dirty.insert(*net);
            }
        }
        for net in prefixes(block) {
            let Some(region) = self.regions.get_mut(&net) else { continue };
            region.uses -= 1;
            if region.uses == 0 {
                self.regions.remove(&net);
                self.dirty.insert(net);
            }
        }
    }

    /// The next shorter prefix around one that is not there.
    fn parent(&self, net: &IpNet) -> Option<&Region> {
        let mut around = *net;
        while let Some(wider) = around.supernet() {
            if let Some(region) = self.regions.get(&wider) {
                return Some(region);
            }
            around = wider;
        }
        None
    }

    /// Blocks that contain an address, in order.
    pub(crate) fn atoms(&self, address: IpAddr) -> &[AtomId] {
        longest_match(&self.regions, address).map_or(&[], |(_, region)| &region.atoms)
    }

    /// What changed since it was asked last.
    pub(crate) fn take_dirty(&mut self) -> BTreeSet<IpNet> {
        std::mem::take(&mut self.dirty)
    }

    pub(crate) fn ground(&self, net: &IpNet) -> Ground<'_> {
        if self.guarded.iter().any(|guarded| guarded != net && guarded.contains(net)) {
            return Ground::Unsaid;
        }
        match self.regions.get(net) {
            None => Ground::Unsaid,
            Some(_) if self.guarded.contains(net) => Ground::Guarded,
            Some(region) => Ground::In(&region.atoms),
        }
    }
}

fn truncated(nets: &[IpNet]) -> BTreeSet<IpNet> {
    nets.iter().map(IpNet::trunc).filter(|net| !is_mapped(net)).collect()
}

/// All that a block mentions and a packet can wear.
fn prefixes(block: &Block) -> impl Iterator<Item = IpNet> {
    std::iter::once(block.cidr).chain(block.except.iter().copied()).filter(|net| !is_mapped(net))
}

#[cfg(test)]
mod tests;
