//! Times of the protocol: moments that go on while the machine sleeps, and the time of day.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// A time since the machine was started, sleep included (`CLOCK_BOOTTIME`): a session's keys get old while it sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Duration);

impl Moment {
    /// The present.
    #[must_use]
    pub fn now() -> Self {
        // Linux has had this clock since 2.6.39, and the call has no other way to fail.
        Self(clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default())
    }

    /// How long ago an earlier moment was; zero for a later one.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl std::ops::Add<Duration> for Moment {
    type Output = Self;

    fn add(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time))
    }
}

/// The UNIX time; zero if the clock is before 1970.
#[must_use]
pub fn unix_time() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}
