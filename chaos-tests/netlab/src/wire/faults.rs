//! What happens to one frame: a pure function of faults, queue, random numbers and time.

use rand::{Rng, RngExt};
use std::time::Duration;

/// Length of an Ethernet header, which the MTU does not count.
const ETHERNET_HEADER: usize = 14;

/// Faults of one direction between two ports. The default is a perfect link.
#[derive(Debug, Clone, PartialEq)]
pub struct Faults {
    /// Every frame takes this long.
    pub delay: Duration,
    /// Up to this much is added, evenly distributed. Order is kept.
    pub jitter: Duration,
    /// Probability that a frame is lost, 0 to 1.
    pub loss: f64,
    /// Probability that a frame arrives twice, 0 to 1.
    pub duplicate: f64,
    /// Probability that a frame is held back by `reorder_by`, so that later ones overtake it, 0 to 1.
    pub reorder: f64,
    /// How long a reordered frame is held back.
    pub reorder_by: Duration,
    /// Bandwidth in bits per second of whole frames.
    pub rate: Option<u64>,
    /// With `rate`: frames that would wait longer than this are dropped.
    pub queue: Duration,
    /// Frames with more than this many bytes after the Ethernet header vanish without an error.
    pub black_hole: Option<usize>,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            loss: 0.0,
            duplicate: 0.0,
            reorder: 0.0,
            reorder_by: Duration::from_millis(10),
            rate: None,
            queue: Duration::from_millis(200),
            black_hole: None,
        }
    }
}

/// The random numbers of one frame, each in `[0, 1)`. Every frame takes all of them, so that changing one
/// fault does not change what the others decide.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draws {
    /// Decides loss.
    pub loss: f64,
    /// Decides duplication.
    pub duplicate: f64,
    /// Decides reordering.
    pub reorder: f64,
    /// Share of the jitter.
    pub jitter: f64,
}

impl Draws {
    /// The next frame's numbers.
    pub fn next(rng: &mut impl Rng) -> Self {
        Self { loss: rng.random(), duplicate: rng.random(), reorder: rng.random(), jitter: rng.random() }
    }
}

/// What one direction remembers of earlier frames. Times count from the start of the wire.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backlog {
    /// When the sender's queue is empty.
    pub free_at: Duration,
    /// The latest arrival of a frame that was not reordered.
    pub last_arrival: Duration,
}

/// What happens to a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It does not arrive.
    Drop(Cause),
    /// It arrives.
    Arrive {
        /// When, counted from the start of the wire.
        at: Duration,
        /// It arrives a second time, right after the first.
        twice: bool,
        /// It was held back.
        reordered: bool,
    },
}

/// Why a frame does not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Random loss.
    Loss,
    /// Larger than the black hole lets through.
    BlackHole,
    /// The queue in front of the bandwidth limit is full.
    QueueFull,
}

/// Decides the fate of a frame of `length` bytes (with its Ethernet header) that entered at `now`.
pub fn decide(faults: &Faults, backlog: &mut Backlog, draws: Draws, now: Duration, length: usize) -> Fate {
    if faults.black_hole.is_some_and(|mtu| length > mtu + ETHERNET_HEADER) {
        return Fate::Drop(Cause::BlackHole);
    }
    if draws.loss < faults.loss {
        return Fate::Drop(Cause::Loss);
    }
    let departure = match faults.rate {
        None => now,
        Some(rate) => {
            let start = backlog.free_at.max(now);
            if start - now > faults.queue {
                return Fate::Drop(Cause::QueueFull);
            }
            backlog.free_at = start + transmission(length, rate);
            backlog.free_at
        }
    };
    let arrival = departure + faults.delay + faults.jitter.mul_f64(draws.jitter.clamp(0.0, 1.0));
    let reordered = draws.reorder < faults.reorder;
    let at = if reordered {
        arrival + faults.reorder_by
    } else {
        backlog.last_arrival = backlog.last_arrival.max(arrival);
        backlog.last_arrival
    };
    Fate::Arrive { at, twice: draws.duplicate < faults.duplicate, reordered }
}

/// Time to send `length` bytes at `rate` bits per second; a rate of 0 is taken for 1.
fn transmission(length: usize, rate: u64) -> Duration {
    let bits = u64::try_from(length).unwrap_or(u64::MAX).saturating_mul(8);
    Duration::from_nanos(bits.saturating_mul(1_000_000_000) / rate.max(1))
}

#[cfg(test)]
mod tests;
