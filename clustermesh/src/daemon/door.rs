//! How many from one address stand at the door (have connected, and nobody was let in by them yet), and how many connections a
//! cluster has.
//!
//! Who is silent holds one of few places until it is sent away. Without a bound for each address a single host would hold all
//! of them, and neither agents nor clusters came in; nor would they, if one cluster could hold all connections.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many times as many may come from an IPv6 /64 as from one address: a host can have all of its addresses (RFC 4291,
/// section 2.5.4), but it may be the network of all nodes, too.
const NETWORK: usize = 8;

/// An address, or an IPv6 /64 by its upper half.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    Address(IpAddr),
    Network(u128),
}

impl Source {
    /// What an address counts as, with the room of each.
    pub(super) fn of(address: IpAddr, limit: usize) -> impl Iterator<Item = (Self, usize)> {
        let address = address.to_canonical();
        let network = match address {
            IpAddr::V6(six) => Some((Self::Network(Ipv6Addr::to_bits(six) >> 64), limit * NETWORK)),
            IpAddr::V4(_) => None,
        };
        [(Self::Address(address), limit)].into_iter().chain(network)
    }
}

/// The door. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Door<K: Ord> {
    there: Arc<Mutex<BTreeMap<K, usize>>>,
}

impl<K: Ord> Default for Door<K> {
    fn default() -> Self {
        Self { there: Arc::default() }
    }
}

/// One that is there, until this is dropped.
#[derive(Debug)]
pub(super) struct Visit<K: Ord> {
    door: Door<K>,
    of: Vec<K>,
}

impl<K: Ord> Door<K> {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<K, usize>> {
        self.there.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Ord + Clone> Door<K> {
    /// One that counts for each of these. Nothing, if there are as many of one of them as it has room for.
    pub(super) fn enter(&self, of: impl IntoIterator<Item = (K, usize)>) -> Option<Visit<K>> {
        let of: Vec<(K, usize)> = of.into_iter().collect();
        let mut there = self.lock();
        if of.iter().any(|(key, limit)| there.get(key).is_some_and(|count| count >= limit)) {
            return None;
        }
        let of: Vec<K> = of.into_iter().map(|(key, _)| key).collect();
        for key in &of {
            *there.entry(key.clone()).or_default() += 1;
        }
        drop(there);
        Some(Visit { door: self.clone(), of })
    }
}

impl<K: Ord> Drop for Visit<K> {
    fn drop(&mut self) {
        let mut there = self.door.lock();
        for key in &self.of {
            if let Some(count) = there.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    there.remove(key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_room_of_its_own_and_gets_it_back() {
        let door = Door::default();
        let enter = |text: &str| door.enter(Source::of(text.parse().unwrap(), 2));
        let first = enter("192.0.2.1").unwrap();
        let mapped = enter("::ffff:192.0.2.1").unwrap();
        assert!(enter("192.0.2.1").is_none(), "the same address, however it is written");
        let other = enter("192.0.2.2").unwrap();
        drop(first);
        let again = enter("192.0.2.1").unwrap();
        drop((again, mapped, other));
        assert!(door.lock().is_empty(), "nothing is kept of who is gone");
    }

    #[test]
    fn a_host_with_a_network_of_addresses_fills_no_more_than_the_networks_room() {
        let door = Door::default();
        let enter = |text: String| door.enter(Source::of(text.parse().unwrap(), 2));
        let there: Vec<_> = (0..100).filter_map(|number| enter(format!("2001:db8::{number:x}"))).collect();
        assert_eq!(there.len(), 2 * NETWORK);
        assert!(enter("2001:db8:0:1::1".into()).is_some(), "another network");
        drop(there);
        assert!(enter("2001:db8::1".into()).is_some());
    }
}
