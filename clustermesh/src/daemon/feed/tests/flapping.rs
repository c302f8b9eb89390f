//! A line that comes and goes around the end of a lease, in virtual time: what services make of it.

use std::collections::BTreeSet;

use mesh_core::prefix::Family;

use super::simulation::Chance;
use super::*;
use crate::daemon::peers::presence::{Presence, Sign};
use crate::mcs::{LEASE, Settings, World};

const TICK: u64 = 100;
const BEAT: u64 = 3000;

/// West serves, east mirrors it, and east's services are told.
struct Lab {
    now: u64,
    west: Clusters,
    east: Clusters,
    line: Session,
    stream: Option<Feed>,
    presence: Presence,
    inside: (Session, Feed),
    services: World,
    /// When services looked at west's anew, since that was asked last.
    looks: Vec<u64>,
}

/// A leader of west, with these backends of one service.
fn leader(incarnation: u64, backends: &[u8]) -> Clusters {
    let mut made = Clusters::new(cluster("west"), Millis(0));
    made.join(&[], Millis(0));
    let objects = backends.iter().map(|which| object(5, *which, 1)).chain([object(4, 0, 1)]);
    made.changed(&cluster("west"), at(incarnation, 0), objects.map(Change::Put).collect());
    made
}

impl Lab {
    fn new() -> Self {
        let (here, west) = (cluster("east"), cluster("west"));
        let mut east = Clusters::new(here.clone(), Millis(0));
        east.join(&[west], Millis(0));
        let families = BTreeSet::from([Family::V4]);
        let pod_cidrs = vec!["10.1.0.0/16".parse().unwrap()];
        Self {
            now: 0,
            west: leader(1, &[0, 2]),
            east,
            line: Session::new(Scope::One(cluster("west"))),
            stream: None,
            presence: Presence::new(),
            inside: (Session::new(Scope::All), Feed::new(Reach::Others, BTreeMap::new())),
            services: World::new(Settings { cluster: here, families, pod_cidrs, lease: LEASE }),
            looks: Vec::new(),
        }
    }

    /// So many milliseconds, while the line carries so many messages in each tick; none: it is cut.
    fn pass(&mut self, duration: u64, messages: Option<usize>) {
        let west = cluster("west");
        if messages.is_none() {
            self.stream = None;
        } else if self.stream.is_none() {
            self.stream = Some(Feed::new(Reach::Own, self.line.begin()));
        }
        for _ in 0..duration / TICK {
            self.now += TICK;
            let now = Millis(self.now);
            if self.now.is_multiple_of(BEAT) {
                self.west.heard(&west);
            }
            for _ in 0..messages.unwrap_or(0) {
                let Some(message) = self.stream.as_mut().and_then(|feed| feed.next(&self.west, now)) else {
                    break;
                };
                let told = self.line.hear(message).unwrap().told;
                let mut there =
                    if told.is_empty() { self.presence.sign(&west, Sign::Speaks(1), now) } else { false };
                for told in told {
                    there |= match told {
                        Told::Changed { version, changes, .. } => {
                            self.east.changed(&west, version.into(), changes);
                            self.presence.sign(&west, Sign::Changed, now)
                        }
                        Told::Heard { .. } => self.presence.sign(&west, Sign::Bookmark, now),
                        Told::Gone { .. } | Told::Complete => false,
                    };
                }
                if there {
                    self.east.heard(&west);
                }
            }
            while let Some(message) = self.inside.1.next(&self.east, now) {
                for told in self.inside.0.hear(message).unwrap().told {
                    self.services.told(told, now);
                }
            }
            self.services.tick(now);
            if self.services.has_dirty() {
                self.looks.push(self.now);
                while self.services.take_dirty().is_some() {}
            }
        }
    }

    /// How often services looked at west's anew.
    fn looked(&mut self) -> usize {
        std::mem::take(&mut self.looks).len()
    }
}

#[test]
fn a_line_that_comes_and_goes_around_the_end_of_a_lease_makes_nothing_flap() {
    for seed in 0..100 {
        let (mut lab, mut chance) = (Lab::new(), Chance(seed));
        lab.pass(10_000, Some(10));
        assert_eq!(lab.looked(), 1, "seed {seed}: it has come");
        // Shorter than a lease less a beat, however often: nobody notices.
        for _ in 0..10 {
            lab.pass(TICK * chance.below((LEASE - 2 * BEAT) / TICK), None);
            lab.pass(BEAT + TICK * chance.below(20), Some(10));
        }
        assert_eq!(lab.looked(), 0, "seed {seed}: no lease was over");
        // Around its end, either way: it leaves once and returns once, or nothing happens at all.
        for _ in 0..10 {
            lab.pass(LEASE - BEAT + TICK * chance.below(2 * BEAT / TICK), None);
            lab.pass(2 * BEAT + TICK * chance.below(20), Some(10));
            let looked = lab.looked();
            assert!(matches!(looked, 0 | 2), "seed {seed}: {looked}");
        }
        // Once it has left, a line that is whole for a moment only does not bring it back: nothing comes of it.
        lab.pass(2 * LEASE, None);
        assert_eq!(lab.looked(), 1, "seed {seed}: it has left");
        lab.west = leader(2, &[0, 2, 4]);
        for _ in 0..10 {
            // The beginning of a snapshot, and a part of it.
            lab.pass(2 * TICK, Some(1));
            lab.pass(TICK * chance.below(LEASE / TICK), None);
        }
        assert_eq!(lab.looked(), 0, "seed {seed}: nothing was whole");
        lab.pass(2 * BEAT, Some(10));
        // With what is new, and as being there.
        assert!(matches!(lab.looked(), 1 | 2), "seed {seed}: it has returned");
        let state = lab.east.store(&cluster("west")).unwrap().state();
        assert_eq!(state, lab.west.store(&cluster("west")).unwrap().state());
    }
}
