//! Under load, a source that has shown its cookie still gets only a few handshakes per second.
//!
//! Without load nothing is limited per source: an address is not proven then, so a limit would let anybody
//! spend a peer's allowance by forging its address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::lock;
use crate::clock::Moment;

/// Handshake messages per second beyond which senders must show a cookie. One costs about 0.1 ms of a core.
pub(super) const LOAD_LIMIT: u64 = 100;

/// Handshake messages per second and source under load, as in wireguard-go.
const PER_SECOND: u32 = 20;
/// Messages that a source may send at once.
const BURST: u32 = 5;
/// Sources remembered. All have shown a cookie, so they are real; beyond this, new ones wait for the next second.
const MAX_SOURCES: usize = 16384;

struct Bucket {
    tokens: f64,
    filled: Moment,
}

#[derive(Default)]
pub(super) struct SourceLimiter {
    this_second: AtomicU64,
    forged: AtomicU64,
    started: Mutex<Option<Moment>>,
    buckets: Mutex<HashMap<IpAddr, Bucket>>,
}

/// One host has all addresses of an IPv6 /64, so they share a bucket.
fn bucket_key(source: IpAddr) -> IpAddr {
    match source {
        IpAddr::V4(_) => source,
        IpAddr::V6(v6) => IpAddr::from((u128::from(v6) >> 64 << 64).to_be_bytes()),
    }
}

impl SourceLimiter {
    /// Counts a handshake message; whether there are so many that its sender must show a cookie.
    pub(super) fn is_loaded(&self) -> bool {
        self.this_second.fetch_add(1, Ordering::Relaxed) >= LOAD_LIMIT
    }

    /// Notes an answer to an initiation of ours that took its time and was none.
    pub(super) fn note_forged(&self) {
        self.forged.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether there were so many of them that who answers must show a cookie. Those who answer in truth are no load, however many:
    /// we have asked them.
    pub(super) fn is_forged_for(&self) -> bool {
        self.forged.load(Ordering::Relaxed) >= LOAD_LIMIT
    }

    /// Whether a message that came under load and shows its source's cookie may go on.
    pub(super) fn admit(&self, source: IpAddr, now: Moment) -> bool {
        let source = bucket_key(source);
        let mut buckets = lock(&self.buckets);
        if !buckets.contains_key(&source) && buckets.len() >= MAX_SOURCES {
            return false;
        }
        let bucket = buckets.entry(source).or_insert(Bucket { tokens: f64::from(BURST), filled: now });
        let elapsed = now.since(bucket.filled).as_secs_f64();
        bucket.tokens = (bucket.tokens + elapsed * f64::from(PER_SECOND)).min(f64::from(BURST));
        bucket.filled = now;
        let admitted = bucket.tokens >= 1.0;
        if admitted {
            bucket.tokens -= 1.0;
        }
        admitted
    }

    /// Starts a new second where one has passed and forgets sources whose buckets are full again.
    pub(super) fn tick(&self, now: Moment) {
        let mut started = lock(&self.started);
        if started.is_some_and(|s| now.since(s) < Duration::from_secs(1)) {
            return;
        }
        *started = Some(now);
        drop(started);
        self.this_second.store(0, Ordering::Relaxed);
        self.forged.store(0, Ordering::Relaxed);
        lock(&self.buckets).retain(|_, b| now.since(b.filled) < Duration::from_secs(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn under_load_a_source_gets_its_burst_then_its_rate_and_others_are_not_harmed() {
        let limiter = SourceLimiter::default();
        let start = Moment::now();
        let (loud, quiet) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        assert!((0..LOAD_LIMIT).all(|_| !limiter.is_loaded()), "no limit without load");
        assert!(limiter.is_loaded());
        let admitted = (0..1000).filter(|_| limiter.admit(loud, start)).count();
        assert_eq!(admitted, BURST as usize);
        assert!(limiter.admit(quiet, start));
        assert!(limiter.admit(loud, start + Duration::from_millis(51)));
        limiter.tick(start + Duration::from_secs(2));
        assert!(!limiter.is_loaded());
    }
}
