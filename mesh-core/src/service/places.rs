//! Who has which places: regions of one flat array, handed out by halves (a buddy system, Knowlton 1965).
//!
//! A region is a power of two and lies at a multiple of its size. Tables are just below powers of two, so next to
//! nothing is wasted inside; two free halves become one again at once, which bounds what is wasted between. A region that
//! was given back rests until [`Places::quiesced`] says that no packet can still look at it.

use std::collections::{BTreeMap, BTreeSet};

/// log2 of the largest region.
const MAX_ORDER: usize = 20;

/// The array's owner.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// Free blocks by log2 of their size.
    free: [BTreeSet<u32>; MAX_ORDER + 1],
    /// Given back in which commit: base and order.
    resting: BTreeMap<u64, Vec<(u32, usize)>>,
}

/// log2 of the region for so many places; none for 0 and beyond the largest.
fn order_of(count: u32) -> Option<usize> {
    let order = usize::try_from(count.checked_next_power_of_two()?.trailing_zeros()).ok()?;
    (count > 0 && order <= MAX_ORDER).then_some(order)
}

impl Places {
    /// An array of `capacity` places, all free.
    pub fn new(capacity: u32) -> Self {
        let mut places = Self::default();
        let mut base = 0;
        while base < capacity {
            let aligned =
                if base == 0 { MAX_ORDER } else { usize::try_from(base.trailing_zeros()).unwrap_or(0) };
            let fits = usize::try_from((capacity - base).ilog2()).unwrap_or(0);
            let order = aligned.min(fits).min(MAX_ORDER);
            places.free[order].insert(base);
            base += 1 << order;
        }
        places
    }

    /// A region for `count` places: its base, the lowest of the smallest blocks that do. None: no room.
    pub fn take(&mut self, count: u32) -> Option<u32> {
        let order = order_of(count)?;
        let (found, base) = (order..=MAX_ORDER).find_map(|o| Some((o, *self.free[o].first()?)))?;
        self.free[found].remove(&base);
        self.split(base, found, base, order);
        Some(base)
    }

    /// Takes exactly that region. False if it is not wholly free, or no region.
    pub fn take_at(&mut self, base: u32, count: u32) -> bool {
        let Some(order) = order_of(count) else { return false };
        if !base.is_multiple_of(1 << order) {
            return false;
        }
        let block = |o: usize| (o, base >> o << o);
        let Some((found, within)) = (order..=MAX_ORDER).map(block).find(|(o, at)| self.free[*o].contains(at))
        else {
            return false;
        };
        self.free[found].remove(&within);
        self.split(within, found, base, order);
        true
    }

    /// Leaves the block at `wanted` of a taken larger one, and frees the rest of that.
    fn split(&mut self, mut at: u32, mut order: usize, wanted: u32, to: usize) {
        while order > to {
            order -= 1;
            let upper = at + (1 << order);
            if wanted >= upper {
                self.free[order].insert(at);
                at = upper;
            } else {
                self.free[order].insert(upper);
            }
        }
    }

    /// A region is not used any more by what this commit leaves behind; it rests.
    pub fn give_back(&mut self, base: u32, count: u32, commit: u64) {
        if let Some(order) = order_of(count) {
            self.resting.entry(commit).or_default().push((base, order));
        }
    }

    /// No packet can still look at what was given back in this commit and before it. True if there was anything.
    pub fn quiesced(&mut self, commit: u64) -> bool {
        let later = self.resting.split_off(&commit.saturating_add(1));
        let rested = std::mem::replace(&mut self.resting, later);
        for (base, order) in rested.values().flatten() {
            self.merge(*base, *order);
        }
        !rested.is_empty()
    }

    fn merge(&mut self, mut base: u32, mut order: usize) {
        while order < MAX_ORDER && self.free[order].remove(&(base ^ (1 << order))) {
            base &= !(1 << order);
            order += 1;
        }
        self.free[order].insert(base);
    }

    /// How many places are free.
    pub fn free(&self) -> u32 {
        let sizes = self.free.iter().enumerate();
        sizes.map(|(order, blocks)| u32::try_from(blocks.len() << order).unwrap_or(u32::MAX)).sum()
    }
}

#[cfg(test)]
mod tests;
