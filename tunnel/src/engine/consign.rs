//! With several lanes, one thread reads what the host sends and consigns each packet to its peer's lane.
//!
//! One thread, and not one for each queue of a TUN device that has many: the kernel learns from what is written to such a device
//! which queue a flow goes to, so that a flow changes its queue between two packets and the later one may be read first. To tell it
//! otherwise takes a program whose loading needs privileges that this process does not have.
//!
//! What waits for a lane is bounded, and shared as in a switch with one buffer (Choudhury and Hahne, "Dynamic queue length
//! thresholds"): a peer may have as much waiting as is still free. One peer that sends more than its lane encrypts has half of the
//! room, two have a third each, and there is always some for one that comes. Who has its share and more to say is dropped, which
//! tells its connections to slow down; unless nobody else sends: then the host's packets wait in the TUN device's queue.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::peer::Peer;
use super::{Engine, read};
use crate::counters::Counter;
use crate::offload::split::{self, Plan};
use crate::offload::vnet::Header;
use crate::packet;

/// Bytes that may wait for one lane: four milliseconds of a core's work, more or less. With half of it twenty peers that were sent to at
/// once over two lanes lost one segment of sixteen.
pub const ROOM: usize = 4 << 20;
/// What a packet takes of it besides its bytes, so that small ones are bounded, too.
const EACH: usize = 256;

/// The peer that a packet is for.
#[derive(Clone)]
pub struct Consignee(Arc<Peer>);

impl std::fmt::Debug for Consignee {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} in lane {}", self.0.public_key, self.0.lane)
    }
}

impl Consignee {
    /// Whose thread is to have the packet.
    #[must_use]
    pub fn lane(&self) -> usize {
        self.0.lane
    }

    /// Who it is.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// What of it waits in its lane.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.0.waiting.0.load(Ordering::Relaxed)
    }

    /// Notes that a packet of so many bytes waits now; what it takes of its lane's room.
    pub fn begin(&self, len: usize) -> usize {
        self.0.waiting.0.fetch_add(len + EACH, Ordering::Relaxed);
        len + EACH
    }

    /// Notes that it waits no more; what it took.
    pub fn end(&self, len: usize) -> usize {
        self.0.waiting.0.fetch_sub(len + EACH, Ordering::Relaxed);
        len + EACH
    }
}

/// What is to be done with a packet for a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes there.
    Take,
    /// It stays where it is, and so does all behind it.
    Wait,
    /// It is dropped.
    Drop,
}

/// Judges a packet of `len` bytes whose peer has `own` waiting in a lane with `all` waiting. `alone` says that only this peer has
/// sent anything lately, so that nobody is kept waiting with it.
#[must_use]
pub fn verdict(len: usize, own: usize, all: usize, alone: bool) -> Verdict {
    if own + len + EACH <= ROOM.saturating_sub(all) {
        Verdict::Take
    } else if alone {
        Verdict::Wait
    } else {
        Verdict::Drop
    }
}

impl Engine {
    /// The peer that a packet of the host is for, to be asked by one thread alone. What is for nobody is counted: then it is to be
    /// forgotten. Its checksum may be completed.
    pub fn consignee(&self, header: &Header, packet: &mut [u8]) -> Option<Consignee> {
        let Some(parsed) = packet::parse(packet) else {
            self.counters.add(Counter::Malformed);
            return None;
        };
        let last = self.lanes.len() - 1;
        let peer = read(&self.lanes[last].routes).lookup(parsed.destination).cloned();
        if peer.is_none() {
            self.count_as(Counter::NoPeer, header, packet);
        }
        peer.map(Consignee)
    }

    /// Counts a packet of the host, by its segments, that goes nowhere.
    pub fn count_as(&self, counter: Counter, header: &Header, packet: &mut [u8]) {
        match split::plan(header, packet) {
            Some(Plan::Whole(_)) => self.counters.add(counter),
            Some(Plan::Segments(segments)) => self.counters.add_many(counter, segments.remaining() as u64),
            None => self.counters.add(Counter::Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Peers that send as many super-packets, in any order, into a lane that encrypts one in the time of `offered`: how many of each it did.
    fn saturate(peers: usize, offered: u64, mut random: u64) -> Vec<u64> {
        const LEN: usize = 60_000;
        let (mut own, mut done) = (vec![0; peers], vec![0; peers]);
        let mut queue = std::collections::VecDeque::new();
        for round in 0..400_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let peer = usize::try_from(random >> 33).unwrap() % peers;
            if verdict(LEN, own[peer], own.iter().sum(), false) == Verdict::Take {
                own[peer] += LEN + EACH;
                queue.push_back(peer);
            }
            if round % offered == 0
                && let Some(peer) = queue.pop_front()
            {
                own[peer] -= LEN + EACH;
                done[peer] += 1;
            }
        }
        done
    }

    proptest! {
        #[test]
        fn what_waits_never_fills_the_room(
            packets in prop::collection::vec((0usize..10, 20usize..65536), 0..2000),
        ) {
            let mut own = [0; 10];
            for (peer, len) in packets {
                let all: usize = own.iter().sum();
                if verdict(len, own[peer], all, false) == Verdict::Take {
                    own[peer] += len + EACH;
                }
                prop_assert!(own.iter().sum::<usize>() < ROOM);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn peers_that_all_send_too_much_are_served_alike(
            peers in 2usize..12, offered in 2u64..5, seed in any::<u64>(),
        ) {
            let done = saturate(peers, offered, seed);
            let mean = done.iter().sum::<u64>() / peers as u64;
            for (peer, n) in done.iter().enumerate() {
                prop_assert!(n.abs_diff(mean) <= mean / 10, "{} of {}: {} of {}", peer, peers, n, mean);
            }
        }
    }

    #[test]
    fn one_that_sends_little_loses_nothing_to_one_that_sends_without_end() {
        let mut own = [0usize; 2];
        let mut queue = std::collections::VecDeque::new();
        let mut dropped = [0; 2];
        for round in 0..100_000 {
            for (peer, len) in [(0, 60_000), (1, 1_400)] {
                if peer == 1 && round % 10 != 0 {
                    continue;
                }
                match verdict(len, own[peer], own[0] + own[1], false) {
                    Verdict::Take => {
                        own[peer] += len + EACH;
                        queue.push_back((peer, len + EACH));
                    }
                    Verdict::Drop => dropped[peer] += 1,
                    Verdict::Wait => panic!("there is another one"),
                }
            }
            // The lane is done with a super-packet in the time of two.
            if round % 2 == 0
                && let Some((peer, cost)) = queue.pop_front()
            {
                own[peer] -= cost;
            }
        }
        assert!(dropped[0] > 10_000, "{dropped:?}");
        assert_eq!(dropped[1], 0);
    }

    #[test]
    fn who_is_alone_waits_instead() {
        assert_eq!(verdict(60_000, 0, 0, true), Verdict::Take);
        assert_eq!(verdict(60_000, ROOM / 2, ROOM / 2, true), Verdict::Wait);
        assert_eq!(verdict(60_000, ROOM / 2, ROOM / 2, false), Verdict::Drop);
        assert_eq!(verdict(60_000, 0, ROOM, false), Verdict::Drop);
    }
}
