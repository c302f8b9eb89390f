//! With whom this node's own traffic goes through the tunnel, as it outlives routes, Nodes and boots.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::name::NodeName;

/// For how long a Node that was deleted, and an address that a Node has no more, are kept closed, in seconds. Longer than it
/// takes to register again or to put right what was changed by mistake; then the address may be anybody's.
pub const FORGET: u64 = 3600;

/// Seconds since 1970 that no clock shows which was set: 2024.
const CLOCK_SET: u64 = 1_704_067_200;

/// Nodes whose pair with this one is closed, and this node itself, with their InternalIPs.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Remembered(BTreeMap<NodeName, BTreeMap<IpAddr, Option<u64>>>);

/// What is known when a [`Remembered`] is brought up to date.
#[derive(Clone, Copy, Debug)]
pub struct Closings<'a> {
    /// What the plan has closed: addresses that each has at present, this node's own included. Of a Node without any, what it
    /// had stays. Nobody, not even this node: host traffic is not wanted, and all is forgotten.
    pub closed: &'a BTreeMap<NodeName, BTreeSet<IpAddr>>,
    /// Every Node that there is.
    pub present: &'a BTreeSet<NodeName>,
    /// Whether that is known to be all. Before, nothing is forgotten.
    pub synced: bool,
    /// Seconds since 1970.
    pub now: u64,
}

impl Remembered {
    /// Is the pair with this node closed?
    pub fn knows(&self, node: &NodeName) -> bool {
        self.0.contains_key(node)
    }

    /// Addresses of a node, those included that it has no more.
    pub fn addresses(&self, node: &NodeName) -> impl Iterator<Item = IpAddr> {
        self.0.get(node).into_iter().flat_map(|addresses| addresses.keys().copied())
    }

    /// Every address, with whose it is or was.
    pub fn all(&self) -> impl Iterator<Item = (&NodeName, IpAddr)> {
        self.0.iter().flat_map(|(node, addresses)| addresses.keys().map(move |address| (node, *address)))
    }

    /// Brings it up to date; true: it has changed.
    pub fn update(&mut self, facts: Closings<'_>) -> bool {
        let Closings { closed, present, synced, now } = facts;
        if closed.is_empty() {
            return !std::mem::take(&mut self.0).is_empty();
        }
        let before = self.clone();
        for (node, addresses) in closed {
            self.0.entry(node.clone()).or_default().extend(addresses.iter().map(|address| (*address, None)));
        }
        if !synced {
            return *self != before;
        }
        // Who is there and not closed has been opened by somebody's word.
        self.0.retain(|node, _| closed.contains_key(node) || !present.contains(node));
        for (node, addresses) in &mut self.0 {
            let has = closed.get(node);
            let silent = has.is_some_and(BTreeSet::is_empty);
            for (address, since) in addresses.iter_mut() {
                let gone = !silent && !has.is_some_and(|has| has.contains(address));
                // What was noted before the clock was set says nothing of how long ago that was.
                *since = gone.then(|| since.filter(|since| *since >= CLOCK_SET).unwrap_or(now));
            }
            // A clock that was set back makes it longer, never shorter.
            addresses.retain(|_, since| since.is_none_or(|since| now.saturating_sub(since) < FORGET));
        }
        self.0.retain(|node, addresses| closed.contains_key(node) || !addresses.is_empty());
        *self != before
    }
}

#[cfg(test)]
mod tests;
