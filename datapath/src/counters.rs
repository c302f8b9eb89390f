//! What the programs counted.

use std::collections::BTreeMap;

use crate::abi::counters::HW_COUNT_DROP;
use crate::abi::{CountIndex, DropReason};
use crate::error::Result;
use crate::load::Datapath;

/// All counters since the maps were made; they outlive the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CounterValues {
    /// Dropped packets by reason, without [`DropReason::None`].
    pub drops: BTreeMap<DropReason, u64>,
    /// Everything else.
    pub counts: BTreeMap<CountIndex, u64>,
}

impl CounterValues {
    /// Names with hyphens and values: drops as `drop-<reason>`.
    pub fn named(&self) -> BTreeMap<String, u64> {
        let counts = self.counts.iter().map(|(count, value)| (count.name().to_owned(), *value));
        let drops = self.drops.iter().map(|(reason, value)| (format!("drop-{reason}"), *value));
        counts.chain(drops).collect()
    }
}

impl Datapath {
    /// All counters, summed over the CPUs.
    pub fn counters(&self) -> Result<CounterValues> {
        let map = &self.maps().counters;
        let mut values = CounterValues::default();
        for count in CountIndex::ALL {
            values.counts.insert(*count, map.sum(*count as u32)?);
        }
        for reason in DropReason::ALL.iter().filter(|reason| **reason != DropReason::None) {
            values.drops.insert(*reason, map.sum(HW_COUNT_DROP + u32::from(*reason as u8))?);
        }
        Ok(values)
    }
}
