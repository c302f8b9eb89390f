//! How many from one address stand at the door: have connected, and nobody was let in by them yet.
//!
//! Who is silent holds one of few places until it is sent away. Without a bound for each address a single host would hold all
//! of them, and neither agents nor clusters came in.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many times as many may come from an IPv6 /64 as from one address: a host can have all of its addresses (RFC 4291,
/// section 2.5.4), but it may be the network of all nodes, too.
const NETWORK: usize = 8;

/// An address, or an IPv6 /64 by its upper half.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Address(IpAddr),
    Network(u128),
}

impl Source {
    fn of(address: IpAddr) -> [Option<Self>; 2] {
        let address = address.to_canonical();
        let network = match address {
            IpAddr::V6(six) => Some(Self::Network(Ipv6Addr::to_bits(six) >> 64)),
            IpAddr::V4(_) => None,
        };
        [Some(Self::Address(address)), network]
    }
}

/// The door. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Door {
    limit: usize,
    there: Arc<Mutex<BTreeMap<Source, usize>>>,
}

/// One that stands at the door, until this is dropped.
#[derive(Debug)]
pub(super) struct Visit {
    door: Door,
    from: IpAddr,
}

impl Door {
    /// With room for `limit` from each address.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, there: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Source, usize>> {
        self.there.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing, if as many from there are at the door already.
    pub(super) fn enter(&self, from: IpAddr) -> Option<Visit> {
        let mut there = self.lock();
        let full = |source: Source| {
            let limit = match source {
                Source::Address(_) => self.limit,
                Source::Network(_) => self.limit * NETWORK,
            };
            there.get(&source).is_some_and(|count| *count >= limit)
        };
        if Source::of(from).into_iter().flatten().any(full) {
            return None;
        }
        for source in Source::of(from).into_iter().flatten() {
            *there.entry(source).or_default() += 1;
        }
        drop(there);
        Some(Visit { door: self.clone(), from })
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut there = self.door.lock();
        for source in Source::of(self.from).into_iter().flatten() {
            if let Some(count) = there.get_mut(&source) {
                *count -= 1;
                if *count == 0 {
                    there.remove(&source);
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
        let door = Door::new(2);
        let enter = |text: &str| door.enter(text.parse().unwrap());
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
        let door = Door::new(2);
        let enter = |text: String| door.enter(text.parse().unwrap());
        let there: Vec<_> = (0..100).filter_map(|number| enter(format!("2001:db8::{number:x}"))).collect();
        assert_eq!(there.len(), 2 * NETWORK);
        assert!(enter("2001:db8:0:1::1".into()).is_some(), "another network");
        drop(there);
        assert!(enter("2001:db8::1".into()).is_some());
    }
}
