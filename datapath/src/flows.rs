//! Conntrack: how full it is, and what is over.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::net::IpAddr;

use aya::Pod;

use crate::abi::{self, HW_SCOPE_FLOW};
use crate::error::Result;
use crate::load::Datapath;
use crate::map::Keyed;

/// Entries that are deleted at most in one go, so that one that finds a full map does not hold everybody up.
const EXPIRE_LIMIT: usize = 65_536;

/// How full conntrack is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowUsage {
    /// Entries, those whose time is over included.
    pub entries: u32,
    /// Of those, flows; the rest remembers which backend a client's words mean.
    pub flows: u32,
    /// Flows that were cut and are remembered as such.
    pub revoked: u32,
    /// Entries whose time is over.
    pub expired: u32,
    /// Entries it has room for.
    pub capacity: u32,
}

/// Nanoseconds of the clock that the programs use (`CLOCK_MONOTONIC`; it stands still while the machine sleeps).
pub fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0))
}

fn delete_old<K: Pod + Debug, V: Pod>(map: &Keyed<K, V>, is_old: impl Fn(&V) -> bool) -> Result<u32> {
    let mut old = Vec::new();
    map.walk(map.capacity(), |key, value| {
        if is_old(value) {
            old.push(*key);
        }
    })?;
    forget_old(map, &old, is_old)
}

/// Deletes what still is old. The walk takes milliseconds, in which a packet may have made it anew under the same key: a connection
/// that lost its flow like this would lose its translation, too. What is left of the time between is a microsecond.
fn forget_old<K: Pod + Debug, V: Pod>(
    map: &Keyed<K, V>,
    keys: &[K],
    is_old: impl Fn(&V) -> bool,
) -> Result<u32> {
    let mut forgotten = 0;
    for key in keys {
        if map.get(key)?.is_some_and(|value| is_old(&value)) {
            forgotten += u32::from(map.delete(key)?);
        }
    }
    Ok(forgotten)
}

impl Datapath {
    /// Counts conntrack's entries: a walk over the map, about 100 ns an entry.
    pub fn flow_usage(&self, now_ns: u64) -> Result<FlowUsage> {
        let map = &self.maps().flows;
        let mut usage = FlowUsage { capacity: map.capacity(), ..FlowUsage::default() };
        usage.entries = map.walk(map.capacity(), |tuple, flow| {
            usage.flows += u32::from(tuple.scope == HW_SCOPE_FLOW);
            usage.revoked += u32::from(flow.judged.iter().any(|judged| judged & 1 != 0));
            usage.expired += u32::from(flow.until < now_ns);
        })?;
        Ok(usage)
    }

    /// Deletes entries whose time is over, of fragments and affinities too. One walk does it and tells how full conntrack was
    /// before. The kernel forgets the oldest when a map is full; this keeps room for what lives.
    pub fn expire_flows(&self, now_ns: u64) -> Result<FlowUsage> {
        let map = &self.maps().flows;
        let mut usage = FlowUsage { capacity: map.capacity(), ..FlowUsage::default() };
        let mut old = Vec::new();
        usage.entries = map.walk(map.capacity(), |tuple, flow| {
            usage.flows += u32::from(tuple.scope == HW_SCOPE_FLOW);
            usage.revoked += u32::from(flow.judged.iter().any(|judged| judged & 1 != 0));
            if flow.until < now_ns {
                usage.expired += 1;
                if old.len() < EXPIRE_LIMIT {
                    old.push(*tuple);
                }
            }
        })?;
        forget_old(map, &old, |flow| flow.until < now_ns)?;
        delete_old(&self.maps().fragments, |fragment| fragment.until < now_ns)?;
        delete_old(&self.maps().affinities, |affinity| affinity.until < now_ns)?;
        Ok(usage)
    }

    /// All entries with this address at either end: a walk over the map, for people who ask.
    pub fn flows_of(&self, address: IpAddr) -> Result<Vec<(abi::Tuple, abi::Flow)>> {
        let address = abi::Addr::from(address);
        let map = &self.maps().flows;
        let mut found = Vec::new();
        map.walk(map.capacity(), |tuple, flow| {
            if [tuple.src, tuple.dst].contains(&address) {
                found.push((*tuple, *flow));
            }
        })?;
        Ok(found)
    }

    /// Forgets everything of addresses whose pods are gone for good, before others get them, in one walk over the map. Returns how
    /// many entries.
    pub fn forget_flows_of(&self, addresses: &BTreeSet<IpAddr>) -> Result<u32> {
        if addresses.is_empty() {
            return Ok(0);
        }
        let addresses: BTreeSet<abi::Addr> = addresses.iter().copied().map(abi::Addr::from).collect();
        let map = &self.maps().flows;
        let mut keys = Vec::new();
        map.walk(map.capacity(), |tuple, _| {
            if [tuple.src, tuple.dst].iter().any(|end| addresses.contains(end)) {
                keys.push(*tuple);
            }
        })?;
        map.delete_all(&keys)
    }
}
