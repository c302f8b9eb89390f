//! Where a follower goes next. Pure: chance and time are arguments.
//!
//! ```text
//!                   ended well: the same one                       a later leader is found
//!   at an address ──────────────────────────► (pause) ──► at it   ◄────────────────────────┐
//!        │  ended badly: the next one                               asks others in turn ───┘
//!        └──────────────────────────────────► (pause) ──► …         while its leader is cut off
//! ```

use std::time::Duration;

/// A stream that lasted so long was a good one, if it told anything: the next pause is short.
pub const GOOD: Duration = Duration::from_secs(10);
/// First and longest pause between two rounds over all addresses.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));
/// Pause before the next address of a round: addresses of one server are its replicas, of which one serves.
const NEXT: Duration = Duration::from_millis(50);

/// Pauses between tries: each is shortened by chance by up to a half, so that followers do not come all at once.
#[derive(Clone, Copy, Debug)]
struct Patience(Duration);

impl Patience {
    const fn new() -> Self {
        Self(PAUSES.0)
    }

    /// The next pause; `chance` is 0 to 999.
    fn next(&mut self, chance: u32) -> Duration {
        let half = self.0 / 2;
        self.0 = (self.0 * 2).min(PAUSES.1);
        half + half * chance.min(999) / 1000
    }
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It failed after so long.
    Failed(Duration),
    /// Its server said nothing any more, after it had spoken for so long.
    Silent(Duration),
    /// There are other addresses.
    Moved,
    /// What is shown of the follower is new; the server is the same.
    Renewed,
    /// A later leader was found where it was asked last.
    Later,
}

/// Where a follower of one server is, among the addresses of that.
#[derive(Debug)]
pub struct Course {
    patience: Patience,
    tried: usize,
    /// The present stream told something.
    heard: bool,
    /// The place that was asked last, and how many were before it.
    asked: (usize, usize),
}

impl Course {
    /// At the first address.
    pub const fn new() -> Self {
        Self { patience: Patience::new(), tried: 0, heard: false, asked: (0, 0) }
    }

    /// Begins a stream at one of so many addresses; none, if there are none.
    pub fn begin(&mut self, addresses: usize) -> Option<usize> {
        self.heard = false;
        self.tried.checked_rem(addresses)
    }

    /// The stream told something of a cluster.
    pub fn heard(&mut self) {
        self.heard = true;
    }

    /// Whom to ask whether a later leader serves there: all others in turn and, if `same` may lead elsewhere by now, the
    /// present address, too.
    pub fn ask(&mut self, addresses: usize, same: bool) -> Option<usize> {
        let turn = self.asked.1.checked_rem(addresses.saturating_sub(usize::from(!same)))?;
        self.asked = ((self.tried + 1 + turn) % addresses, self.asked.1.wrapping_add(1));
        Some(self.asked.0)
    }

    fn was_good(&self, lasted: Duration) -> bool {
        self.heard && lasted >= GOOD
    }

    /// How long to wait before the next stream, after one with so many addresses. `chance` is 0 to 999.
    pub fn ended(&mut self, end: End, addresses: usize, chance: u32) -> Duration {
        match end {
            End::Moved | End::Renewed | End::Later => {
                self.patience = Patience::new();
                self.tried = match end {
                    End::Moved => 0,
                    End::Later => self.asked.0,
                    End::Renewed | End::Failed(_) | End::Silent(_) => self.tried,
                };
                return Duration::ZERO;
            }
            // The same server first: it may only have restarted.
            End::Failed(lasted) if self.was_good(lasted) => self.patience = Patience::new(),
            // One that says nothing any more is left, however good it was: it may be gone with its machine.
            End::Silent(spoke) if self.was_good(spoke) => {
                self.patience = Patience::new();
                self.tried += 1;
            }
            // One that told nothing is no good, however long that took.
            End::Failed(_) | End::Silent(_) => self.tried += 1,
        }
        let round = self.tried.checked_rem(addresses).unwrap_or(0) == 0;
        if round { self.patience.next(chance) } else { NEXT }
    }
}

impl Default for Course {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_differ_by_chance() {
        let mut patience = Patience::new();
        for longest in [250, 500, 1000, 2000, 4000, 8000, 15_000, 15_000] {
            let (mut least, mut most) = (patience, patience);
            assert_eq!(least.next(0).as_millis(), longest / 2);
            assert!(most.next(999).as_millis() < longest);
            patience.next(0);
        }
    }

    #[test]
    fn after_a_good_stream_the_same_address_is_tried_and_after_any_other_the_next_one() {
        const LONG: Duration = Duration::from_secs(12);
        for (told, end, next) in [
            (true, End::Failed(LONG), 0),
            (true, End::Failed(GOOD / 2), 1),
            (false, End::Failed(LONG), 1),
            (false, End::Silent(LONG), 1),
            (true, End::Silent(LONG), 1),
            (true, End::Renewed, 0),
        ] {
            let mut course = Course::new();
            assert_eq!(course.begin(3), Some(0));
            if told {
                course.heard();
            }
            course.ended(end, 3, 0);
            assert_eq!(course.begin(3), Some(next), "told {told}, {end:?}");
        }
        let mut course = Course::new();
        assert_eq!((course.begin(0), course.ask(0, true)), (None, None));
        course.ended(End::Failed(Duration::ZERO), 0, 0);
        assert_eq!(course.ended(End::Moved, 0, 0), Duration::ZERO);
        assert_eq!(course.begin(2), Some(0));
    }

    #[test]
    fn a_server_that_was_good_until_it_fell_silent_leaves_no_long_pause_behind() {
        const LONG: Duration = Duration::from_secs(3600);
        let longest = |told: bool, spoke: Duration| {
            let mut course = Course::new();
            // Nobody answers for a while.
            for _ in 0..10 {
                course.begin(1);
                course.ended(End::Failed(Duration::ZERO), 1, 999);
            }
            course.begin(1);
            if told {
                course.heard();
            }
            course.ended(End::Silent(spoke), 1, 999)
        };
        assert!(longest(true, LONG) < PAUSES.0);
        for (told, spoke) in [(true, GOOD / 2), (false, LONG)] {
            assert!(longest(told, spoke) > PAUSES.1 / 2, "told {told}, {spoke:?}");
        }
    }

    #[test]
    fn all_others_are_asked_in_turn_and_where_a_later_leader_is_found_it_goes() {
        let mut course = Course::new();
        course.ended(End::Silent(Duration::ZERO), 3, 0);
        assert_eq!(course.begin(3), Some(1));
        let mut asked = |same| [0; 4].map(|_| course.ask(3, same).unwrap());
        assert_eq!(asked(false), [2, 0, 2, 0]);
        assert_eq!(asked(true), [0, 1, 2, 0], "the same one may be another by now");
        assert_eq!(course.ended(End::Later, 3, 0), Duration::ZERO);
        assert_eq!(course.begin(3), Some(0));
        assert_eq!((course.ask(1, false), course.ask(1, true)), (None, Some(0)));
    }
}
