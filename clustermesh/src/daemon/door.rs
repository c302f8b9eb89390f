//! How many from one address stand at the door (have connected, and nobody was let in by them yet), and how many connections a
//! cluster has.
//!
//! Who is silent holds one of few places until it is sent away. Without a bound for each address a single host would hold all
//! of them, and neither agents nor clusters came in; nor would they, if one cluster could hold all connections. At a full
//! [`Threshold`] whoever has been silent there longest gives way, since many may share an address: all that come by one node's
//! NodePort do. Who has asked is heard to the end.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

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

/// Where arrivals stand by their addresses. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Threshold {
    standing: Arc<Mutex<Standing>>,
}

#[derive(Debug, Default)]
struct Standing {
    /// Oldest first.
    of: BTreeMap<Source, VecDeque<u64>>,
    all: BTreeMap<u64, (Vec<Source>, Arc<Place>)>,
    next: u64,
}

#[derive(Debug, Default)]
struct Place {
    /// Whoever stands there has to give way.
    lost: Notify,
    /// Somebody is finding out who that is.
    asks: AtomicBool,
}

impl Standing {
    fn leave(&mut self, number: u64) -> Option<Arc<Place>> {
        let (sources, place) = self.all.remove(&number)?;
        for source in sources {
            if let Some(line) = self.of.get_mut(&source) {
                line.retain(|other| *other != number);
                if line.is_empty() {
                    self.of.remove(&source);
                }
            }
        }
        Some(place)
    }

    fn is_full(&self, source: Source, limit: usize) -> bool {
        self.of.get(&source).is_some_and(|line| line.len() >= limit)
    }

    /// Who has been silent longest.
    fn silent(&self, source: Source) -> Option<u64> {
        let silent = |number: &&u64| {
            self.all.get(number).is_some_and(|(_, place)| !place.asks.load(Ordering::Relaxed))
        };
        self.of.get(&source)?.iter().find(silent).copied()
    }
}

/// One that stands there, until this is dropped.
#[derive(Debug)]
pub(super) struct Arrival {
    threshold: Threshold,
    number: u64,
    place: Arc<Place>,
}

/// By which an [`Arrival`] asks.
#[derive(Clone, Debug)]
pub(super) struct Voice(Arc<Place>);

/// It asks, and so gives way to nobody, until this is dropped.
#[derive(Debug)]
pub(super) struct Asks(Arc<Place>);

impl Voice {
    /// It asks.
    pub(super) fn ask(&self) -> Asks {
        self.0.asks.store(true, Ordering::Relaxed);
        Asks(Arc::clone(&self.0))
    }
}

impl Drop for Asks {
    fn drop(&mut self) {
        self.0.asks.store(false, Ordering::Relaxed);
    }
}

impl Arrival {
    /// Waits until it has to give way.
    pub(super) async fn gives_way(&self) {
        self.place.lost.notified().await;
    }

    /// Its voice.
    pub(super) fn voice(&self) -> Voice {
        Voice(Arc::clone(&self.place))
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.threshold.lock().leave(self.number);
    }
}

impl Threshold {
    fn lock(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that counts for each of these. Where there is no room, whoever has been silent there longest gives way; says how many
    /// did. Nothing, where all of them ask.
    pub(super) fn enter(&self, of: impl IntoIterator<Item = (Source, usize)>) -> Option<(Arrival, usize)> {
        let of: Vec<(Source, usize)> = of.into_iter().collect();
        let mut standing = self.lock();
        if of
            .iter()
            .any(|(source, limit)| standing.is_full(*source, *limit) && standing.silent(*source).is_none())
        {
            return None;
        }
        let mut gave_way = 0;
        for (source, limit) in &of {
            while standing.is_full(*source, *limit)
                && let Some(silent) = standing.silent(*source)
                && let Some(place) = standing.leave(silent)
            {
                place.lost.notify_one();
                gave_way += 1;
            }
        }
        let (number, place) = (standing.next, Arc::new(Place::default()));
        standing.next += 1;
        let sources: Vec<Source> = of.into_iter().map(|(source, _)| source).collect();
        for source in &sources {
            standing.of.entry(*source).or_default().push_back(number);
        }
        standing.all.insert(number, (sources, Arc::clone(&place)));
        drop(standing);
        Some((Arrival { threshold: self.clone(), number, place }, gave_way))
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

    use futures::FutureExt as _;

    fn enter(threshold: &Threshold, text: &str) -> (Arrival, usize) {
        threshold.enter(Source::of(text.parse().unwrap(), 2)).unwrap()
    }

    fn stands(arrival: &Arrival) -> bool {
        arrival.gives_way().now_or_never().is_none()
    }

    #[test]
    fn of_each_address_the_oldest_gives_way_and_of_no_other() {
        let threshold = Threshold::default();
        let other = enter(&threshold, "192.0.2.2").0;
        let first = enter(&threshold, "192.0.2.1").0;
        let (second, gave_way) = enter(&threshold, "::ffff:192.0.2.1");
        assert!(gave_way == 0 && stands(&first) && stands(&second), "there is room");
        let (third, gave_way) = enter(&threshold, "192.0.2.1");
        assert_eq!(gave_way, 1, "the same address, however it is written");
        assert!(!stands(&first) && stands(&second) && stands(&third) && stands(&other));
        drop(second);
        let (fourth, gave_way) = enter(&threshold, "192.0.2.1");
        assert!(gave_way == 0 && stands(&third) && stands(&fourth), "who has gone leaves room");
        drop((first, third, fourth, other));
        let standing = threshold.lock();
        assert!(standing.of.is_empty() && standing.all.is_empty(), "nothing is kept of who is gone");
    }

    #[test]
    fn who_asks_gives_way_to_nobody_until_it_is_answered() {
        let threshold = Threshold::default();
        let [first, second] = [0, 1].map(|_| enter(&threshold, "192.0.2.1").0);
        let asks = first.voice().ask();
        let third = enter(&threshold, "192.0.2.1").0;
        assert!(stands(&first) && !stands(&second));
        let _asks = third.voice().ask();
        let refused = threshold.enter(Source::of("192.0.2.1".parse().unwrap(), 2));
        assert!(refused.is_none() && stands(&first) && stands(&third), "all ask");
        drop(asks);
        let fourth = enter(&threshold, "192.0.2.1").0;
        assert!(!stands(&first) && stands(&third) && stands(&fourth));
    }

    #[test]
    fn a_host_with_a_network_of_addresses_fills_no_more_than_the_networks_room() {
        let threshold = Threshold::default();
        let there: Vec<_> =
            (0..100).map(|number| enter(&threshold, &format!("2001:db8::{number:x}")).0).collect();
        let other = enter(&threshold, "2001:db8:0:1::1").0;
        assert_eq!(there.iter().filter(|one| stands(one)).count(), 2 * NETWORK);
        assert!(there[100 - 2 * NETWORK..].iter().all(stands) && stands(&other), "the latest stand");
    }

    #[test]
    fn each_has_room_of_its_own_and_gets_it_back() {
        let door = Door::default();
        let enter = |name: &'static str| door.enter([(name, 2)]);
        let (first, second) = (enter("a").unwrap(), enter("a").unwrap());
        assert!(enter("a").is_none());
        let other = enter("b").unwrap();
        drop(first);
        let again = enter("a").unwrap();
        drop((again, second, other));
        assert!(door.lock().is_empty(), "nothing is kept of who is gone");
    }
}
