//! Waiting for a condition with a deadline, and names that do not collide.

use std::fmt::Display;
use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Something awaited did not become true in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} did not happen within {deadline:?} ({probes} probes); last observation: {last}")]
pub struct NotObserved {
    /// What was awaited.
    pub what: String,
    /// For how long.
    pub deadline: Duration,
    /// How often it was looked at.
    pub probes: u32,
    /// What the last probe saw instead.
    pub last: String,
}

/// First pause between probes: short, because most conditions hold within milliseconds.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
/// Longest pause between probes: bounds the delay a waiting test adds.
const LAST_PAUSE: Duration = Duration::from_millis(50);

/// How many times slower than a usual one this machine is: `HAWSER_SLOWNESS`, for one that is emulated; 1 without it.
///
/// # Panics
/// The variable has no number from 1 to 1,000.
#[must_use]
pub fn slowness() -> u32 {
    std::env::var_os("HAWSER_SLOWNESS").map_or(1, |text| {
        let number =
            text.to_str().and_then(|text| text.parse().ok()).filter(|number| (1..=1000).contains(number));
        number.unwrap_or_else(|| panic!("HAWSER_SLOWNESS={}: not a number from 1 to 1000", text.display()))
    })
}

/// Calls `probe` until it answers `Ok` or `deadline` has passed. The probe's error is its observation.
///
/// The probe runs at least once and once more at the deadline, so that a slow machine gets a last look. Deadline and pauses are
/// longer by [`slowness`].
pub fn eventually<T, O: Display>(
    deadline: Duration,
    what: &str,
    mut probe: impl FnMut() -> Result<T, O>,
) -> Result<T, NotObserved> {
    let slowness = slowness();
    let deadline = deadline * slowness;
    let end = Instant::now() + deadline;
    let mut pause = FIRST_PAUSE;
    let mut probes = 0;
    loop {
        let late = Instant::now() >= end;
        probes += 1;
        match probe() {
            Ok(value) => return Ok(value),
            Err(seen) if late => {
                return Err(NotObserved { what: what.to_owned(), deadline, probes, last: seen.to_string() });
            }
            Err(_) => {
                std::thread::sleep(pause.min(end.saturating_duration_since(Instant::now())));
                pause = (pause * 2).min(LAST_PAUSE * slowness);
            }
        }
    }
}

/// The asynchronous form of [`eventually`]. A probe that hangs is abandoned at the deadline.
pub async fn eventually_async<T, O: Display, F: Future<Output = Result<T, O>>>(
    deadline: Duration,
    what: &str,
    mut probe: impl FnMut() -> F,
) -> Result<T, NotObserved> {
    let deadline = deadline * slowness();
    let end = tokio::time::Instant::now() + deadline;
    let mut pause = FIRST_PAUSE;
    let mut probes = 0;
    let mut last = String::from("nothing yet: the first probe hangs");
    let fail = |probes, last| NotObserved { what: what.to_owned(), deadline, probes, last };
    loop {
        let late = tokio::time::Instant::now() >= end;
        probes += 1;
        match tokio::time::timeout_at(end + LAST_PAUSE, probe()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(seen)) => last = seen.to_string(),
            Err(_) => return Err(fail(probes, last)),
        }
        if late {
            return Err(fail(probes, last));
        }
        tokio::time::sleep_until((tokio::time::Instant::now() + pause).min(end)).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

/// `prefix` with the process id and a counter: unique among all processes alive.
///
/// The suffix takes at most 7 + 1 + n bytes for the n-digit count; keep prefixes of device names short.
#[must_use]
pub fn unique_name(prefix: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{prefix}{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
mod tests;
